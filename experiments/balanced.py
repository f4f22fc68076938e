"""The experiment of chapter 3: how much of a batch should be label-balanced?

The recipe `paper` on the films, 10 % of the positives observed, with all of each batch balanced (as
published), half of it, and none. All three take about as many steps: a half-balanced epoch has
twice as many, so it gets half the epochs. To be done in minutes on one core, it is all small: the
first two layers of MiniLM, 32 tokens, batches of 16 at 1e-4, two epochs.

    OMP_NUM_THREADS=1 python experiments/balanced.py

Appends the trials of three seeds, and those of the source models, to nbs/results/balanced.jsonl;
those that are there already are left out. EPOCHS, SEEDS=0,1,2 and OUT=… choose others."""

import json
import os
import tempfile
from pathlib import Path

from transformers import AutoModelForSequenceClassification, AutoTokenizer

import dallmi
from dallmi.evaluation.benchmark import Grid, run_trial
from dallmi.settings import Settings
from dallmi.training.encoder import default_model

OUT = Path(os.environ.get("OUT", "nbs/results/balanced.jsonl"))
EPOCHS = int(os.environ.get("EPOCHS", 2))
SEEDS = list(map(int, os.environ.get("SEEDS", "0,1,2").split(",")))
LAYERS = 2
SMALL = {"source_epochs": 3, "source_learning_rate": 3e-4, "max_length": 32}


def methods(epochs: int) -> list[str]:
    "The source model, and the recipe with all, none and half of each batch balanced."
    shares = {1: epochs, 0: epochs, 0.5: epochs // 2}
    spec = "paper:balanced_share={},epochs={},batch_size=16,learning_rate=1e-4"
    return ["source", *(spec.format(share, n) for share, n in shares.items())]


def save_thin(folder: str) -> str:
    "The first layers of the default encoder, as a checkpoint."
    name = default_model()
    thin = AutoModelForSequenceClassification.from_pretrained(name, num_hidden_layers=LAYERS)
    for part in (thin, AutoTokenizer.from_pretrained(name)):
        part.save_pretrained(folder)
    return folder


def main() -> None:
    "All trials, one after another."
    lines = OUT.read_text(encoding="utf-8").splitlines() if OUT.exists() else []
    done = [json.loads(line)["trial"] for line in lines]
    with tempfile.TemporaryDirectory() as folder:
        os.environ["DALLMI_CACHE"] = f"{folder}/cache"
        grid = Grid(
            pairs=["films"],
            methods=methods(EPOCHS),
            label_fractions=[0.1],
            seeds=SEEDS,
            settings=Settings(model=save_thin(f"{folder}/thin"), **SMALL),
        )
        for trial in grid.trials():
            if vars(trial) in done:
                continue
            about = {"version": dallmi.__version__, "trial": vars(trial)}
            line = about | {"settings": SMALL | {"layers": LAYERS}} | run_trial(grid, trial)
            with OUT.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            print(trial, f"mAP {100 * line['metrics']['mAP']:.1f}, {line['seconds']} s", flush=True)


if __name__ == "__main__":
    main()
