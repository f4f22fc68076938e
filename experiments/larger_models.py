"""Larger encoders, a language model with LoRA, and teachers, at a size that two cores bear.

    python experiments/larger_models.py films MODEL [--lora] [--seed N] [--epochs N]
    python experiments/larger_models.py films minilm --teachers [--larger MODEL] [--llm MODEL]
    python experiments/larger_models.py data/movies_rt MODEL …

MODEL: the folder of an encoder or a decoder, or 'minilm'. One trial is one process, so that its
peak of memory is its own; it appends its lines to nbs/results/larger.jsonl. A pair is cut to the
some texts, drawn by the seed: 160 of the source, 128 of the target with 10 % of the positives
observed, and 240 others of the target to score on; 48 tokens of a text are read. The source model
is trained for four epochs, every recipe for two, in one round; LoRA at ten times the learning rate.
`--teachers`: the same source model, taught by one teacher after another; `--larger` is an encoder
that is fine-tuned on the source as the source model was and teaches, `--llm` a language model.
`--memory`: one epoch of 32 source texts and no more, for the peak of memory."""

import argparse
import json
import os
import resource
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dallmi.data.domain import Domain
from dallmi.data.labels import load_domain
from dallmi.data.masking import mask_labels
from dallmi.llm_teacher import LLMTeacher
from dallmi.metrics import per_label_ap
from dallmi.pipeline import Pipeline, SourceStage, Task, source_classifier, untrained_classifier
from dallmi.recipes import RECIPES
from dallmi.training.encoder import bf16_pays
from dallmi.words import fit_words

SOURCE, TARGET, TEST, TOKENS, FRACTION = 160, 128, 240, 48, 0.1
RESULTS = Path(__file__).parent.parent / "nbs" / "results" / "larger.jsonl"
METHODS = {"anchored": "anchored", "all labels": "supervised"}
LORA_RATE = 10
KINDS = {"scifi": "science fiction", "music": "musical"}
QUESTION = "Review: {text}\n\nIs the film in this review a {label} film? Answer yes or no."


def load_pair(name: str, seed: int) -> Task:
    "The cut pair: its source, its target with few observed positives, and texts to score on."
    films = name == "films"
    source = load_domain("films:source" if films else Path(name) / "source.csv")
    target = load_domain("films:target" if films else Path(name) / "target.csv")
    order = np.random.default_rng(seed).permutation(len(target))
    few, rest = target.select(order[:TARGET]), target.select(order[TARGET : TARGET + TEST])
    chosen = source.select(np.random.default_rng(seed).permutation(len(source))[:SOURCE])
    seen = mask_labels(few.labels, FRACTION, seed=seed)
    return Task(chosen, few.with_labels(seen), rest, few.labels)


def mean_ap(probs: np.ndarray, domain: Domain) -> float:
    "Mean average precision in percent, over the labels that occur."
    return round(100 * float(np.nanmean(per_label_ap(probs, domain.labels))), 2)


def trained(
    pipeline: Pipeline, method: str, rate: float, title: str, epochs: int
) -> Iterator[dict[str, Any]]:
    "The line of one training: mAP of both views and of the encoder alone, seconds."
    recipe = RECIPES[method].change(
        epochs=epochs, learning_rate=RECIPES[method].learning_rate * rate
    )
    recipe = recipe.change(rounds=1) if recipe.rounds > 1 else recipe
    began = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        scores = pipeline.train(title, recipe, Path(folder))
    views = {name: mean_ap(one.test, pipeline.task.test) for name, one in scores.views.items()}
    line = {"method": title, "mAP": mean_ap(scores.test, pipeline.task.test), **views}
    yield line | {"seconds": round(time.process_time() - began, 1)}


def teachers(task: Task, seed: int) -> Iterator[tuple[str, np.ndarray]]:
    "Teachers of the target's texts: words that know all its labels, and the same with noise."
    labels, texts = task.all_labels, task.target.texts
    rng = np.random.default_rng(seed)
    half = rng.permutation(len(texts)) % 5
    probs = np.empty(labels.shape)
    for part in range(5):
        seen, new = np.flatnonzero(half != part), np.flatnonzero(half == part)
        model = fit_words([texts[i] for i in seen], labels[seen])
        probs[new] = model.probs([texts[i] for i in new])
    yield "words, all labels, cross-fitted", probs
    model = fit_words(texts, labels)
    logits = np.log(model.probs(texts)) - np.log1p(-model.probs(texts))
    noise = rng.standard_normal(logits.shape)
    for size in (0, 1, 2, 4):
        yield f"noise {size}", 1 / (1 + np.exp(-(logits + size * logits.std() * noise)))


def asked(task: Task, model: str, own: bool) -> np.ndarray:
    "What a language model says of the films, by the default template or by one of our own."
    names = task.source.label_names
    template = (QUESTION, {name: KINDS.get(name, name) for name in names}) if own else ()
    with tempfile.TemporaryDirectory() as cache:
        teacher = LLMTeacher(model, *template, cache=cache, max_length=TOKENS)
        return teacher.ask(task.target.texts, names)


def by_larger(task: Task, stage: SourceStage, model: str, seed: int) -> np.ndarray:
    "What a larger encoder says of the target's texts, fine-tuned on the source as `stage` says."
    fresh = untrained_classifier(task.source.label_names, model, TOKENS, seed=seed)
    return source_classifier(task.source, fresh, stage).score(task.target.texts)


def lines(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    "The results of one trial."
    task = load_pair(options.pair, options.seed)
    fresh = untrained_classifier(
        task.source.label_names,
        None if options.model == "minilm" else options.model,
        TOKENS,
        seed=options.seed,
        lora=options.lora,
    )
    rate = LORA_RATE if options.lora else 1
    head = 1.0 if options.lora else 10.0
    stage = SourceStage(1 if options.memory else 4, 16, 1e-4 * rate, head, options.seed)
    weights = list(fresh.model.parameters())
    size = {
        "million weights": round(sum(p.numel() for p in weights) / 1e6, 1),
        "million trained": round(sum(p.numel() for p in weights if p.requires_grad) / 1e6, 2),
    }
    if options.memory:
        source_classifier(task.source.select(range(32)), fresh, stage)
        yield {"method": "memory", **size}
        return
    began = time.process_time()
    pipeline = Pipeline(task, source_classifier(task.source, fresh, stage), options.seed)
    seconds = round(time.process_time() - began, 1)
    score = mean_ap(pipeline.source_scores().test, task.test)
    yield {"method": "source", "mAP": score, "seconds": seconds, **size}
    if options.teachers:
        say = {"the source model": lambda: pipeline.source_probs}
        say |= {name: partial(np.array, p) for name, p in teachers(task, options.seed)}
        if options.larger:
            say["a larger encoder"] = partial(by_larger, task, stage, options.larger, options.seed)
        if options.llm:
            name = Path(options.llm).name
            say[f"{name}, default template"] = partial(asked, task, options.llm, own=False)
            say[f"{name}, own template"] = partial(asked, task, options.llm, own=True)
        known = Domain(task.target.texts, task.all_labels, task.source.label_names)
        for name in options.only or say:
            probs = say[name]()
            taught = Pipeline(task, pipeline.classifier, options.seed, probs)
            taught.start = pipeline.start
            about = {"teacher": name, "teacher mAP": mean_ap(probs, known), "not adapted": score}
            for line in trained(taught, "anchored", rate, "anchored", options.epochs):
                yield line | about
        return
    for title, method in METHODS.items():
        for line in trained(pipeline, method, rate, title, options.epochs):
            yield line | size


def main() -> None:
    "Run one trial and append its lines."
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pair")
    parser.add_argument("model")
    parser.add_argument("--lora", action="store_true")
    parser.add_argument("--teachers", action="store_true")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--memory", action="store_true")
    parser.add_argument(
        "--only", nargs="*", help="of the teachers: these, by the names in the file"
    )
    parser.add_argument("--larger", help="folder of a larger encoder that teaches")
    parser.add_argument("--llm", help="folder of a language model that teaches")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    if (options.larger or options.llm or options.only) and not options.teachers:
        parser.error("--larger, --llm and --only name teachers; give --teachers, too")
    about = {
        "pair": Path(options.pair).name,
        "model": Path(options.model).name,
        "lora": options.lora,
        "seed": options.seed,
        "epochs": options.epochs,
        "threads": torch.get_num_threads(),
        "bf16": bf16_pays("cpu"),
    }
    with tempfile.TemporaryDirectory() as cache:
        os.environ["DALLMI_CACHE"] = cache
        for line in lines(options):
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
            row = about | line | {"peak GB": round(peak, 2)}
            with options.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
