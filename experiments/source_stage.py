"""The experiment of chapter 41: would the source stage better stop early?

A source model is fine-tuned for five epochs twice: on all source texts, and on nine tenths of them,
so that the rest can say when to stop. After every epoch of both, the target's texts are scored
(which nobody can in earnest), and in the second also the tenth that was held out.

    python experiments/source_stage.py films data/movies_rt

Appends to nbs/results/source_stage.jsonl, per pair, seed, part and epoch, the mAP of the target and
of the tenth, and the seconds of the processor so far. SEEDS=0,1 and OUT=… choose seeds and file."""

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from unittest.mock import patch

import numpy as np

from dallmi import pipeline
from dallmi.data.domain import Domain
from dallmi.data.labels import load_domain
from dallmi.inference import Classifier
from dallmi.metrics import per_label_ap
from dallmi.pipeline import SourceStage, untrained_classifier
from dallmi.training.callbacks import Progress

OUT = Path(os.environ.get("OUT", "nbs/results/source_stage.jsonl"))
SEEDS = list(map(int, os.environ.get("SEEDS", "0,1").split(",")))
ROWS, TOKENS, EPOCHS = 500, 64, 5


def mean_ap(classifier: Classifier, domain: Domain) -> float:
    "mAP in percent over the labels that occur."
    return round(
        100 * float(np.nanmean(per_label_ap(classifier.score(domain.texts), domain.labels))), 2
    )


def watched(classifier: Classifier, scored: dict[str, Domain], about: dict) -> type[Progress]:
    "A `Progress` that scores after every epoch and appends a line."

    class Scoring(Progress):
        began, spent = time.process_time(), 0.0

        def on_epoch_end(self, args, state, control, **kwargs):
            super().on_epoch_end(args, state, control, **kwargs)
            seconds, start = time.process_time() - self.began - self.spent, time.process_time()
            found = {name: mean_ap(classifier, domain) for name, domain in scored.items()}
            classifier.model.train()
            line = about | {"epoch": round(state.epoch), **found, "seconds": round(seconds, 1)}
            with OUT.open("a") as file:
                file.write(json.dumps(line) + "\n")
            self.spent += time.process_time() - start

    return Scoring


def main(pairs: list[str]) -> None:
    "All pairs, seeds and parts."
    for pair in pairs:
        films = pair == "films"
        source = load_domain("films:source" if films else f"{pair}/source.csv", max_rows=ROWS)
        target = load_domain("films:target" if films else f"{pair}/target.csv", max_rows=ROWS)
        for seed in SEEDS:
            order = np.random.default_rng(seed).permutation(len(source))
            tenth = len(source) // 10
            parts = {"all": order, "nine tenths": order[tenth:]}
            for part, rows in parts.items():
                classifier = untrained_classifier(source.label_names, None, TOKENS, seed=seed)
                scored = {"target": target}
                if part != "all":
                    scored["tenth"] = source.select(np.sort(order[:tenth]))
                about = {"pair": Path(pair).name, "seed": seed, "part": part}
                progress = watched(classifier, scored, about)
                with (
                    patch.object(pipeline, "Progress", progress),
                    tempfile.TemporaryDirectory() as d,
                ):
                    chosen = source.select(np.sort(rows))
                    stage = SourceStage(epochs=EPOCHS, seed=seed)
                    pipeline._train_source(chosen, classifier, stage, Path(d) / "source")


if __name__ == "__main__":
    main(sys.argv[1:])
