"""The experiment of chapter 22: what the rest of a long text is worth.

Pairs whose target texts are long: abstracts of arXiv and PubMed, and plots of Wikipedia (`movies`
the other way round: trained on IMDb's descriptions, adapted to the plots). A small source model is
adapted to few target texts, once reading the first 128 tokens and once a random window of 128 an
epoch; each is then scored on the same held-out texts by the first 128, 256 and 512 tokens and by
windows of 128 with several overlaps, their probabilities put together by mean and by max.

    DATA=data python experiments/long_texts.py

Appends a row per pair, seed, training and way of scoring to nbs/results/long_texts.jsonl, with the
mAP of the encoder alone and the seconds of the processor that scoring took. TRAINED=first-512 adds
a training on the first 512 tokens, at four times the price.
"""

import json
import os
import time
from pathlib import Path

os.environ.setdefault("DALLMI_CACHE", "/tmp/dallmi-long-texts")

import numpy as np
import torch
from transformers.trainer_utils import set_seed

import dallmi
from dallmi.data.labels import load_domains
from dallmi.data.masking import mask_labels
from dallmi.inference import Classifier, _cut_windows
from dallmi.metrics import per_label_ap
from dallmi.pipeline import Pipeline, SourceStage, Task, source_classifier, untrained_classifier
from dallmi.recipes import find_recipe
from dallmi.training.encoder import bf16_pays

DATA = Path(os.environ.get("DATA", "data"))
OUT = Path(os.environ.get("OUT", "nbs/results/long_texts.jsonl"))
PAIRS = os.environ.get("PAIRS", "pubmed,wiki,arxiv").split(",")
SEEDS = list(map(int, os.environ.get("SEEDS", "0").split(",")))
TRAINED = os.environ.get("TRAINED", "first-128,windows-128").split(",")
SOURCE, TARGET, TEST = (
    int(os.environ.get(n, d)) for n, d in (("SOURCE", 200), ("TARGET", 200), ("TEST", 250))
)
RECIPE = os.environ.get("RECIPE", "anchored:rounds=1,epochs=2,words_weight=0")
FILES = {"wiki": ("movies/target.csv", "movies/source.csv")}
WINDOW, OVERLAPS = 128, (0.0, 0.25)


def make_task(pair, seed):
    "Some source texts, some target texts with three tenths of their labels observed, and a test."
    names = FILES.get(pair, (f"{pair}/source.csv", f"{pair}/target.csv"))
    source, target, _ = load_domains(*(str(DATA / name) for name in names), None)
    draws = np.random.default_rng(seed)
    few = source.select(np.sort(draws.permutation(len(source))[:SOURCE]))
    order = draws.permutation(len(target))
    test = target.select(np.sort(order[:TEST]))
    train = target.select(np.sort(order[TEST : TEST + TARGET]))
    seen = mask_labels(train.labels, 0.3, "label", seed)
    return Task(few, train.with_labels(seen), test, train.labels)


def train(task, how, seed):
    "A classifier adapted by the recipe; `how`: 'first-128', 'windows-128', …"
    kind, length = how.split("-")
    fresh = untrained_classifier(
        task.source.label_names, None, int(length), seed=seed, long_texts=kind
    )
    start = source_classifier(task.source, fresh, SourceStage(epochs=2, seed=seed))
    pipeline = Pipeline(task, start, seed)
    pipeline.train(how, find_recipe(RECIPE), Path("/nowhere"))
    return pipeline.classifier


def by_windows(classifier, tokens, overlap):
    "Probabilities of all windows of all texts, and where each text's begin."
    shape = classifier.window_shape
    cut = [_cut_windows(t, *shape, overlap) if len(t) > shape[0] else [t] for t in tokens]
    probs = classifier._score_windows([window for windows in cut for window in windows])
    return probs, np.cumsum([0, *map(len, cut)])


def ways(classifier, texts):
    "Name, probabilities [N, L] and seconds of the processor of every way to score some texts."
    for length in (128, 256, 512):
        one = Classifier(classifier.model, classifier.tokenizer, length, classifier.bf16)
        began = time.process_time()
        yield f"first {length}", one.score(texts), time.process_time() - began
    one = Classifier(classifier.model, classifier.tokenizer, WINDOW, classifier.bf16)
    one.long_texts = "windows"
    for overlap in OVERLAPS:
        began = time.process_time()
        probs, at = by_windows(one, one.tokenize(texts), overlap)
        took = time.process_time() - began
        pools = {"mean": np.mean, "max": np.max}
        for name, pool in pools.items():
            found = np.stack([pool(probs[a:b], axis=0) for a, b in zip(at, at[1:], strict=False)])
            yield f"windows {overlap:g} {name}", found, took


def main():
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 1)))
    for seed in SEEDS:
        for pair in PAIRS:
            task = make_task(pair, seed)
            for how in TRAINED:
                set_seed(seed)
                began = time.process_time()
                classifier = train(task, how, seed)
                trained = time.process_time() - began
                lengths = [
                    len(t)
                    for t in classifier.tokenizer(task.test.texts, verbose=False)["input_ids"]
                ]
                for read, probs, seconds in ways(classifier, task.test.texts):
                    row = {
                        "pair": pair,
                        "seed": seed,
                        "trained": how,
                        "read": read,
                        "mAP": round(float(np.nanmean(per_label_ap(probs, task.test.labels))), 5),
                        "seconds": round(seconds, 2),
                        "training_seconds": round(trained, 1),
                        "texts": len(task.test),
                        "tokens": int(np.mean(lengths)),
                        "longer_than_128": round(float(np.mean(np.array(lengths) > 128)), 3),
                        "bf16": bf16_pays("cpu"),
                        "recipe": RECIPE,
                        "version": dallmi.__version__,
                    }
                    with OUT.open("a") as f:
                        f.write(json.dumps(row) + "\n")
                    print(row["pair"], seed, how, read, row["mAP"], row["seconds"], flush=True)


if __name__ == "__main__":
    main()
