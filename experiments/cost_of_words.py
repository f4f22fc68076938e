"""What the word view adds to an adaptation and to scoring, in processor time of one core.

    python experiments/cost_of_words.py data/movies_rt data/arxiv

On a core with bfloat16, 1,200 source and 600 target texts read to 256 tokens, it printed:

movies_rt: 1058 s without the words, 20.9 s (2.0 %) for them; scoring a text 16.2 ms and 0.14 ms
arxiv: 1214 s without the words, 28.8 s (2.4 %) for them; scoring a text 20.8 ms and 0.21 ms"""

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dallmi.data.domain import Domain
from dallmi.data.labels import load_domain
from dallmi.data.masking import mask_labels
from dallmi.losses.anchored import make_anchors
from dallmi.pipeline import Pipeline, Task, untrained_classifier
from dallmi.recipes import RECIPES
from dallmi.words import fit_words

SOURCE, TARGET, SAMPLE = 1200, 600, 64


def seconds(act: Callable[[], Any]) -> float:
    "Processor time of `act`."
    began = time.process_time()
    act()
    return time.process_time() - began


def train(source: Domain, target: Domain, probs: np.ndarray) -> None:
    "One pass of the encoder over `target`."
    names = source.label_names
    classifier = untrained_classifier(names, max_length="auto", domains=[source, target])
    pipeline = Pipeline(Task(source, target), classifier, teacher=probs)
    recipe = RECIPES["anchored"].change(words_weight=0, rounds=1, epochs=1)
    with tempfile.TemporaryDirectory() as folder:
        pipeline.train("sample", recipe, Path(folder))


def measure(folder: Path) -> str:
    "The line of one pair."
    source = load_domain(folder / "source.csv", max_rows=SOURCE)
    target = load_domain(folder / "target.csv", max_rows=TARGET)
    target = target.with_labels(mask_labels(target.labels, 0.1))
    probs = np.random.default_rng(0).uniform(0, 0.3, target.labels.shape)
    few = target.select(range(SAMPLE))
    pass_of = seconds(lambda: train(source, few, probs[:SAMPLE])) / SAMPLE

    def fit(n: int) -> Any:
        made = make_anchors(probs[:n], target.labels[:n])
        known = (source.texts, source.labels, target.texts[:n], target.labels[:n])
        return fit_words(*known, made.anchor, made.pos_weight)

    words = seconds(lambda: fit(TARGET)) + 2 * seconds(lambda: fit(TARGET // 2))
    model = fit(TARGET)
    names = source.label_names
    encoder = untrained_classifier(names, max_length="auto", domains=[source, target])
    scoring = seconds(lambda: encoder.score(target.texts[:SAMPLE])) / SAMPLE
    by_words = seconds(lambda: model.logits(target.texts)) / TARGET
    epochs = RECIPES["anchored"].epochs
    without = TARGET * (1.5 * epochs * pass_of + 3 * scoring)
    extra = words + 2 * TARGET * (scoring + by_words)
    return (
        f"{folder.name}: {without:.0f} s without the words, {extra:.1f} s "
        f"({100 * extra / without:.1f} %) for them; scoring a text {1e3 * scoring:.1f} ms "
        f"and {1e3 * by_words:.2f} ms"
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    for name in sys.argv[1:]:
        print(measure(Path(name)), flush=True)
