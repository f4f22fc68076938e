"""The experiment of chapter 36: a loss of your own beside the others.

The focal loss and `partial`, which differ in nothing but the loss, and the source model that both
start from: on the films, 10 % of the positives observed. To be done in minutes on one core, it is
all small: the first two layers of MiniLM, 32 tokens, a source stage of three epochs at 3e-4, and
200 blurbs to train on (the other 444 are the test).

    OMP_NUM_THREADS=1 python experiments/focal.py

Writes the trials of three seeds to nbs/results/focal.jsonl. SEEDS=0,1,2 and OUT=… choose others."""

import json
import os
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from dallmi.evaluation.benchmark import Grid, benchmark
from dallmi.losses import Loss
from dallmi.recipes import RECIPES
from dallmi.settings import Settings
from dallmi.training.encoder import default_model

OUT = Path(os.environ.get("OUT", "nbs/results/focal.jsonl"))
SEEDS = list(map(int, os.environ.get("SEEDS", "0,1,2").split(",")))
LAYERS = 2
SMALL = {"source_epochs": 3, "source_learning_rate": 3e-4, "max_length": 32}


def save_thin(folder: str) -> str:
    "The first layers of the default encoder, as a checkpoint."
    name = default_model()
    thin = AutoModelForSequenceClassification.from_pretrained(name, num_hidden_layers=LAYERS)
    for part in (thin, AutoTokenizer.from_pretrained(name)):
        part.save_pretrained(folder)
    return folder


class FocalLoss(Loss):
    "The class of the chapter, letter for letter: a result keeps a digest of its code."

    def __init__(self, gamma: float = 2.0) -> None:
        super().__init__()
        self.gamma = gamma

    def forward(self, logits: Tensor, labels: Tensor, batch: dict) -> Tensor:
        costs = F.binary_cross_entropy_with_logits(logits, labels.nan_to_num(), reduction="none")
        return ((1 - (-costs).exp()) ** self.gamma * costs).mean(0).sum()


def make_trials(folder: str, seeds: list[int]) -> list[dict]:
    "The finished trials, made one after another in this process."
    os.environ["DALLMI_CACHE"] = f"{folder}/cache"
    grid = Grid(
        pairs=["films"],
        methods=["source", "partial", "focal"],
        label_fractions=[0.1],
        seeds=seeds,
        target_rows=200,
        settings=Settings(model=save_thin(f"{folder}/thin"), **SMALL),
        recipes={"focal": replace(RECIPES["partial"], loss=FocalLoss())},
    )
    trials = Path(folder) / "trials"
    failed = benchmark(grid, trials, stream=sys.stdout, executor=ThreadPoolExecutor(1))
    if failed:
        raise SystemExit("\n".join(map(str, failed)))
    found = [json.loads(path.read_text()) for path in sorted(trials.glob("*.json"))]
    for trial in found:
        trial["settings"]["model"] = f"the first {LAYERS} layers of MiniLM"
    return found


def main() -> None:
    "Make the trials and write them."
    with tempfile.TemporaryDirectory() as folder:
        lines = [json.dumps(trial) for trial in make_trials(folder, SEEDS)]
    OUT.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
