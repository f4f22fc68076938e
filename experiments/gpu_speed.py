"""Speed on a GPU, in one call: a step, its share of the card's peak, scoring, a whole adaptation.

    python experiments/gpu_speed.py nbs/results/gpu_speed.json
    OMP_NUM_THREADS=1 python experiments/gpu_speed.py --loader nbs/results/gpu_speed.json

With a BERT of the base size and random weights on texts of exactly 128 tokens, as nothing else
would fill a large card, in batches of 256, bfloat16, each side in turn with the others, medians of
five. Two minutes on an H200. On a CPU `--tiny` shows that it runs, and measures nothing.
`--loader` adds what a batch costs before it reaches the card, on one core: padded as it is now, and
by the tensors of the tokenizer, as it was when the file was made."""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from datasets import Dataset
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    TrainerCallback,
)

from dallmi.files import read_json, write_json
from dallmi.inference import Classifier
from dallmi.losses.mixup import draw_pairs
from dallmi.pipeline import versions
from dallmi.recipes import find_recipe
from dallmi.training.encoder import accelerator_or_cpu, default_model, pad_batch
from dallmi.training.trainer import DallmiArguments, DallmiTrainer

LABELS = 14
DEVICE = accelerator_or_cpu()


def clock() -> float:
    "Seconds, after the queue of the card is empty."
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def timed(act: Callable[[], Any]) -> float:
    "Seconds of `act`."
    began = clock()
    act()
    return clock() - began


def in_turn(sides: dict[str, Callable[[], float]], reps: int) -> dict[str, list[float]]:
    "The numbers of every side, measured in turn, the order turning round; the first ones dropped."
    found: dict[str, list[float]] = {name: [] for name in sides}
    for rep in range(reps + 1):
        for name in list(sides)[:: -1 if rep % 2 else 1]:
            found[name].append(sides[name]())
    return {name: values[1:] for name, values in found.items()}


def bert(tiny: bool, attention: str = "sdpa") -> Any:
    "A BERT with random weights, the same each time."
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"num_labels": LABELS}
    if tiny:
        sizes |= {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = BertConfig(**sizes)
    model: Any = BertForSequenceClassification(config)
    model.set_attn_implementation(attention)
    return model.to(DEVICE)


def long_rows(n: int, length: int) -> Dataset:
    "`n` rows of `length` random tokens with made-up labels and anchors."
    rng = np.random.default_rng(0)
    labels = np.where(rng.random((n, LABELS)) < 0.1, 1.0, np.nan)
    labels[:LABELS][np.eye(LABELS, dtype=bool)] = 1
    columns = {"input_ids": rng.integers(1000, 20_000, (n, length)).tolist()}
    columns |= {"labels": labels.tolist(), "anchor": rng.random((n, LABELS)).tolist()}
    return Dataset.from_dict(columns)


def trainer_of(spec: str, rows: Dataset, batch: int, folder: str, **choices: Any) -> DallmiTrainer:
    "A trainer of a recipe; `model` among the choices is the model."
    recipe, model = find_recipe(spec), choices.pop("model")
    args = DallmiArguments(
        folder,
        bf16=True,
        save_strategy="no",
        balanced_share=recipe.balanced_share,
        per_device_train_batch_size=batch,
        **choices,
    )
    tokenizer = AutoTokenizer.from_pretrained(default_model())
    parts: dict[str, Any] = {
        "loss": recipe.loss,
        "mixup": recipe.mixup,
        "processing_class": tokenizer,
    }
    return DallmiTrainer(model, args, train_dataset=rows, **parts)


class Window(TrainerCallback):
    "Seconds from the end of the first step, which sets all up, to the end of the last."

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 1:
            self.began = clock()
        if state.global_step == state.max_steps:
            self.seconds = (clock() - self.began) / (state.max_steps - 1)


def step_of(trainer: DallmiTrainer) -> Callable[[], float]:
    "A function that trains and gives the seconds a step, the first apart."

    def train() -> float:
        window = Window()
        trainer.add_callback(window)
        trainer.train()
        trainer.remove_callback(window)
        return window.seconds

    return train


def plain_step(model: Any, rows: Dataset, batch: int, steps: int) -> Callable[[], float]:
    "Seconds a step of a plain loop with BCE, unknown labels negative, on texts of one length."
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    ids = torch.tensor(rows[:batch]["input_ids"], device=DEVICE)
    labels = torch.tensor(rows[:batch]["labels"], device=DEVICE).nan_to_num()

    def train() -> None:
        for _ in range(steps):
            with torch.autocast(DEVICE.type, torch.bfloat16):
                logits = model.train()(ids, torch.ones_like(ids)).logits
            binary_cross_entropy_with_logits(logits.float(), labels).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()

    return lambda: timed(train) / steps


def naive_step(model: Any, rows: Dataset, batch: int) -> Callable[[], float]:
    "Seconds a step of the paper's scheme label by label, float32: 1 + 2 L passes of the encoder."
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    ids = torch.tensor(rows[:batch]["input_ids"], device=DEVICE)
    labels = torch.tensor(rows[:batch]["labels"], device=DEVICE)
    embed = model.get_input_embeddings()

    def train() -> None:
        probs = model.train()(ids).logits.sigmoid()
        loss = probs.new_zeros(())
        for p, u, c, g, weight in zip(*draw_pairs(labels, max_pairs=LABELS), strict=True):
            if not weight:
                continue
            loss = loss + probs[labels[:, c].isnan(), c].mean() - probs[labels[:, c] == 1, c].norm()
            own = model(ids[u][None]).logits[0, c].sigmoid().detach()
            mixed = (g * embed(ids[p]) + (1 - g) * embed(ids[u]))[None]
            found = model(inputs_embeds=mixed).logits[0, c].sigmoid()
            loss = loss + (g + (1 - g) * own - found).square()
        (loss / LABELS).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return lambda: timed(train)


def operations(trainer: DallmiTrainer) -> int:
    "Floating-point operations of a forward and a backward pass, attention counted."
    model: Any = trainer.model
    model.set_attn_implementation("eager")
    batch = next(iter(trainer.get_train_dataloader()))
    with FlopCounterMode(display=False) as counter:
        loss: Any = trainer.compute_loss(model.train(), batch)
        loss.backward()
    model.zero_grad()
    model.set_attn_implementation("sdpa")
    return counter.get_total_flops()


def peak(size: int) -> float:
    "Operations a second of a large bfloat16 product."
    a, b = (torch.randn(size, size, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
    return 2 * size**3 * 20 / timed(lambda: [a @ b for _ in range(20)])


def measure(tiny: bool, folder: str) -> dict[str, Any]:
    "All sides and what they depend on."
    n, length, batch, steps, reps = (48, 16, 16, 3, 1) if tiny else (2048, 128, 256, 10, 5)
    tokenizer = AutoTokenizer.from_pretrained(default_model())
    rows, scorer = long_rows(n, length), Classifier(bert(tiny), tokenizer)
    shared: dict[str, Any] = {"max_steps": steps}
    ours = trainer_of("anchored", rows, batch, folder, model=bert(tiny), **shared)
    work = operations(ours)
    variants: dict[str, Any] = {
        "step": ours,
        "step, stock dropout": {"quick_dropout": False},
        "step, compiled": {"torch_compile": not tiny},
        "step, paper": {"spec": "paper"},
        "step, eager attention": {"attention": "eager"},
    }
    sides: dict[str, Callable[[], float]] = {}
    for name, choices in variants.items():
        if isinstance(choices, dict):
            spec, attention = choices.pop("spec", "anchored"), choices.pop("attention", "sdpa")
            model = bert(tiny, attention)
            choices = trainer_of(spec, rows, batch, folder, model=model, **shared, **choices)
        sides[name] = step_of(choices)
    sides["plain BCE"] = plain_step(bert(tiny), rows, batch, steps)
    sides["the paper's scheme, naively"] = naive_step(bert(tiny), rows, batch)
    sides["scoring a text"] = lambda: timed(lambda: scorer.score_tokens(rows["input_ids"][:])) / n
    sides["operations a second, product"] = lambda: peak(256 if tiny else 8192)
    values = in_turn(sides, reps)
    median = {name: statistics.median(found) for name, found in values.items()}
    steps_of = {name: median[name] for name in [*variants, "the paper's scheme, naively"]}
    return {
        "ratios to plain BCE": {k: v / median["plain BCE"] for k, v in steps_of.items()},
        "share of the peak": work / median["step"] / median["operations a second, product"],
        "medians": median,
        "values": values,
        "versions": versions(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else str(DEVICE),
        "tiny": tiny,
    }


def loader_seconds(folder: str, reps: int = 5) -> dict[str, float]:
    "Processor seconds of a batch of 256 x 128 tokens from the loader, by two ways to pad."

    def by_tokenizer(tokenizer: Any, input_ids: Any) -> Any:
        columns = {"input_ids": [list(row) for row in input_ids]}
        return tokenizer.pad(columns, padding="longest", return_tensors="pt")

    def a_batch(pad: Callable[..., Any]) -> float:
        with patch("dallmi.training.trainer.pad_batch", pad):
            began = time.process_time()
            count = sum(1 for _ in loader)
            return (time.process_time() - began) / count

    trainer = trainer_of("anchored", long_rows(2048, 128), 256, folder, model=bert(tiny=True))
    loader = trainer.get_train_dataloader()
    ways = {"as it is": pad_batch, "by the tokenizer's tensors": by_tokenizer}
    found = in_turn({name: partial(a_batch, pad) for name, pad in ways.items()}, reps)
    return {name: statistics.median(values) for name, values in found.items()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--tiny", action="store_true", help="a try-out that measures nothing")
    parser.add_argument(
        "--loader", action="store_true", help="add the loader's seconds to the file"
    )
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        if given.loader:
            found = read_json(given.out) | {"loader, seconds a batch": loader_seconds(scratch)}
        else:
            found = measure(given.tiny, scratch)
    write_json(given.out, found)
    shown = list(found)[:3] if not given.loader else list(found)[-1:]
    print(json.dumps({name: found[name] for name in shown}, indent=1))
