"""An experiment of chapter 41: does quick dropout cost quality?

`quick_dropout`, the default on a CPU, draws its masks from a pool of random bits and drops nothing
in attention. Here one source model of the films is adapted by one round of the anchored loss,
without the word view, once with it and once with the dropout that models come with. Each seed draws
other blurbs and other observed positives (10 %); the two trainings of a seed have the same texts,
batches and first weights. The first 32 tokens of a text, so that a laptop does it.

    OMP_NUM_THREADS=1 python experiments/dropout.py

Appends to nbs/results/dropout.jsonl, per seed and training, the mAP in percent on the blurbs that
were not trained on, and the seconds of the processor. SEEDS=0,1,… and OUT=… choose otherwise."""

import json
import os
import tempfile
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

import dallmi
from dallmi.data.domain import Domain
from dallmi.data.labels import load_domain
from dallmi.data.masking import mask_labels
from dallmi.metrics import per_label_ap
from dallmi.pipeline import Pipeline, SourceStage, Task, source_classifier, untrained_classifier
from dallmi.recipes import find_recipe
from dallmi.training.encoder import bf16_pays

OUT = Path(os.environ.get("OUT", "nbs/results/dropout.jsonl"))
SEEDS = list(map(int, os.environ.get("SEEDS", "0,1").split(",")))
SOURCE, TARGET, TOKENS, EPOCHS, FRACTION = 200, 160, 32, 4, 0.1
RECIPE = "anchored:rounds=1,epochs=2,words_weight=0"


def dropout(kind: str) -> AbstractContextManager[Any]:
    "While open, trainings have the dropout of that `kind`: 'quick' or 'stock'."
    if kind == "quick":
        return nullcontext()
    return patch("dallmi.training.trainer.quick_dropout", lambda model: nullcontext())


def mean_ap(probs: np.ndarray, domain: Domain) -> float:
    "Mean average precision in percent, over the labels that occur."
    return round(100 * float(np.nanmean(per_label_ap(probs, domain.labels))), 3)


def task_of(seed: int, source: Domain, target: Domain) -> Task:
    "Some blurbs with few observed positives to adapt to, and all others to score on."
    order = np.random.default_rng(seed).permutation(len(target))
    train, rest = (target.select(np.sort(part)) for part in (order[:TARGET], order[TARGET:]))
    seen = mask_labels(train.labels, FRACTION, seed=seed)
    return Task(source, train.with_labels(seen), rest, train.labels)


def main() -> None:
    "All seeds, one after the other; the side that goes first changes."
    films, target = load_domain("films:source"), load_domain("films:target")
    source = films.select(np.sort(np.random.default_rng(0).permutation(len(films))[:SOURCE]))
    about = {"threads": torch.get_num_threads(), "bf16": bf16_pays("cpu"), "recipe": RECIPE}
    about["version"] = dallmi.__version__
    with tempfile.TemporaryDirectory() as folder:
        os.environ["DALLMI_CACHE"] = folder
        fresh = untrained_classifier(source.label_names, None, TOKENS)
        start = source_classifier(source, fresh, SourceStage(epochs=EPOCHS))
        for seed in SEEDS:
            task = task_of(seed, source, target)
            pipeline = Pipeline(task, start, seed)
            line = {"seed": seed, "source": mean_ap(pipeline.source_scores().test, task.test)}
            for kind in ("quick", "stock")[:: -1 if seed % 2 else 1]:
                began = time.process_time()
                with dropout(kind):
                    scores = pipeline.train(kind, find_recipe(RECIPE), Path(folder) / "run")
                line[kind] = mean_ap(scores.test, task.test)
                line[f"{kind}, seconds"] = round(time.process_time() - began, 1)
            pipeline.reset()
            with OUT.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line | {"texts": len(task.test)} | about) + "\n")


if __name__ == "__main__":
    main()
