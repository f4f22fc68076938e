"""The second set of development experiments of chapter 40: what else might improve the default.

Validation splits of the development pairs alone, cut as `grid.py` cuts them; no text is scored that
the grid's tests hold. Ran with the package at commit 9451c84 on one GPU, in two runs, whose lines
nbs/results/hypotheses.jsonl holds together (of the second those of the layers, `ONLY="source_task
default_task layers_task" FRACTIONS=0.1`, and its 'two views again'):

    DATA=data MODEL=minilm OUT=out DEADLINE=235 JOBS=15 python experiments/hypotheses.py

A line of OUT/hypotheses.jsonl is a way to score the validation texts, with the average precision of
every label. Texts are read to 128 tokens."""

import csv
import json
import multiprocessing as mp
import os
import tempfile
import time
import traceback
from pathlib import Path

import numpy as np
import torch
import transformers.trainer  # noqa: F401 (imported before the workers fork)
from scipy.special import expit
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from transformers import BertForMaskedLM, DataCollatorForLanguageModeling

from dallmi.data.domain import Domain, check_positives
from dallmi.data.labels import load_domain
from dallmi.data.masking import mask_labels
from dallmi.losses import BCELoss
from dallmi.losses.anchored import prior_shift
from dallmi.pipeline import (
    Pipeline,
    SourceStage,
    Task,
    _tokenized,
    _train_classifier,
    untrained_classifier,
)
from dallmi.recipes import RECIPES
from dallmi.training.encoder import accelerator_or_cpu, start_at_prior
from dallmi.words import TwoViews

torch.set_num_threads(1)
torch.set_float32_matmul_precision("high")
csv.field_size_limit(10**9)

T0 = time.time()
ENV = os.environ
DATA, OUT = Path(ENV.get("DATA", "data")), Path(ENV.get("OUT", "hypotheses"))
MODEL = ENV.get("MODEL") or None
DEADLINE, JOBS = float(ENV.get("DEADLINE", 230)), int(ENV.get("JOBS", 15))
PAIRS = ENV.get("PAIRS", "arxiv,movies_rt,pubmed,films").split(",")
SEEDS = [int(seed) for seed in ENV.get("SEEDS", "0,1,2").split(",")]
ROWS, TARGET, TRAIN = int(ENV.get("ROWS", 1200)), 1600, int(ENV.get("TRAIN", 600))
LENGTH, EPOCHS = int(ENV.get("LENGTH", 128)), int(ENV.get("EPOCHS", 0))
FRACTIONS = [float(f) for f in ENV.get("FRACTIONS", "0.1,0.5").split(",")]
STORE = Path(tempfile.mkdtemp())
C_FROZEN = 0.002  # chosen on held-out source texts of three pairs
RECIPE = RECIPES["anchored"].change(**({"epochs": EPOCHS} if EPOCHS else {}))


def domains(pair: str, seed: int) -> tuple[Domain, Domain, Domain]:
    "Source, target to train on, and texts to score that `grid.py` never scores."
    if pair == "films":
        source, target, more = load_domain("films:source"), load_domain("films:target"), None
    else:
        source = load_domain(DATA / pair / "source.csv", max_rows=ROWS)
        whole = load_domain(DATA / pair / "target.csv", max_rows=TARGET + 1000)
        target = whole.select(np.arange(min(TARGET, len(whole))))
        more = whole.select(np.arange(TARGET, len(whole))) if len(whole) > TARGET else None
    train, _ = target.split(max(0.2, 1 - TRAIN / len(target)), seed)
    train, val = train.split(0.3, seed + 50)
    if more is not None:
        val = Domain(
            [*val.texts, *more.texts], np.concatenate([val.labels, more.labels]), val.label_names
        )
    return source, train, val


class Context:
    "A pair and a seed."

    def __init__(self, pair: str, seed: int) -> None:
        self.pair, self.seed = pair, seed
        self.source, self.train, self.val = domains(pair, seed)

    def classifier(self):
        made = untrained_classifier(self.source.label_names, MODEL, LENGTH, False, self.seed)
        torch.nn.Module.to(made.model, accelerator_or_cpu())
        return made

    def observed(self, fraction: float) -> np.ndarray:
        seen = mask_labels(self.train.labels, fraction, "label", self.seed)
        check_positives(self.train.with_labels(seen), "the target")
        return seen

    def pipeline(self, fraction: float, start: str = "source") -> Pipeline:
        made = self.classifier()
        made.model.load_state_dict(self.wait(start, torch.load, map_location=made.model.device))
        task = Task(self.source, self.train.with_labels(self.observed(fraction)), self.val)
        return Pipeline(task, made, self.seed)

    def path(self, name: str) -> Path:
        return STORE / f"{self.pair}-{self.seed}-{name}"

    def keep(self, name: str, write, value) -> None:
        write(value, f"{self.path(name)}.new")
        os.replace(f"{self.path(name)}.new", self.path(name))

    def wait(self, name: str, read, **more):
        while not self.path(name).exists():
            time.sleep(0.3)
            if time.time() - T0 > DEADLINE:
                raise TimeoutError
        return read(self.path(name), **more)

    def write(self, variant: str, fraction: float | None, probs: np.ndarray, **more) -> None:
        "A line: average precision of every label by the scores `probs` of the validation texts."
        labels = self.val.labels
        aps = {
            name: round(float(average_precision_score(labels[:, j], probs[:, j])), 4)
            for j, name in enumerate(self.val.label_names)
            if labels[:, j].any()
        }
        about = {"pair": self.pair, "seed": self.seed, "label_fraction": fraction}
        line = json.dumps(about | {"variant": variant} | more | {"AP": aps})
        name = f"{variant}-{fraction}.line".replace(" ", "_").replace("/", "_")
        self.keep(name, lambda text, path: Path(path).write_text(text), line)


def logit(probs: np.ndarray) -> np.ndarray:
    clipped = np.clip(probs.astype(np.float64), 1e-6, 1 - 1e-6)
    return np.log(clipped) - np.log1p(-clipped)


def together(encoder, others, weights, train=None):
    """Probabilities by the encoder's log odds and those of `others` at the encoder's spread, with
    the encoder's mean; spreads and means are those of `train`, a pair as (encoder, others)."""
    of_encoder, of_others = train or (encoder, others)
    total, at = encoder.copy(), of_encoder.copy()
    for z, z_at, weight in zip(others, of_others, weights, strict=True):
        scale = weight * of_encoder.std(0) / np.maximum(z_at.std(0), 1e-6)
        total, at = total + scale * z, at + scale * z_at
    shift = prior_shift(expit(at - at.mean(0)), expit(of_encoder).mean(0)) - at.mean(0)
    return expit(total + shift)


def pooled(c: Context, classifier, layers: list[int]) -> list[np.ndarray]:
    "Mean-pooled states of the model's `layers`, side by side: source, target, validation."
    classifier.model.eval()
    found = []
    for domain in (c.source, c.train, c.val):
        rows = []
        for i in range(0, len(domain), 128):
            batch = classifier.tokenizer(
                domain.texts[i : i + 128],
                truncation=True,
                max_length=LENGTH,
                padding=True,
                return_tensors="pt",
            ).to(classifier.model.device)
            with torch.no_grad():
                out = classifier.model.base_model(**batch, output_hidden_states=True)
            mask = batch["attention_mask"][..., None]
            means = [(out.hidden_states[k] * mask).sum(1) / mask.sum(1) for k in layers]
            rows.append(torch.cat(means, 1).float().cpu().numpy())
        found.append(np.concatenate(rows))
    mean, spread = found[0].mean(0), np.maximum(found[0].std(0), 1e-3)  # one may be constant
    return [(x - mean) / spread for x in found]


def fit_frozen(c, features, index, observed, made):
    "Logistic regressions on frozen features, fitted like the word view; log odds of all texts."
    source, target, val = features
    labels, out = c.source.labels, []
    for j in range(labels.shape[1]):
        seen = np.flatnonzero(observed[:, j] == 1)
        rest = np.flatnonzero(observed[:, j] != 1)
        share = made.anchor[rest, j]
        x = np.concatenate([source, target[index][seen], target[index][rest], target[index][rest]])
        y = np.r_[labels[:, j], np.ones(len(seen)), np.ones(len(rest)), np.zeros(len(rest))]
        weight = np.r_[
            np.ones(len(labels)), np.full(len(seen), made.pos_weight[j]), share, 1 - share
        ]
        model = LogisticRegression(C=C_FROZEN, max_iter=300)
        model.fit(x, y, sample_weight=weight)
        out.append([model.decision_function(z) for z in (target, val)])
    return [np.stack([column[i] for column in out], 1) for i in (0, 1)]


def source_task(c: Context, name: str, seed: int, start: str | None = None) -> None:
    "Train a source model."
    made = c.classifier()
    if start:
        made.model.base_model.load_state_dict(
            c.wait(start, torch.load, map_location=made.model.device), strict=False
        )
    start_at_prior(made.model, np.nanmean(c.source.labels, 0))
    stage = SourceStage()
    rows = _tokenized(c.source, made)
    with tempfile.TemporaryDirectory() as folder:
        _train_classifier(
            name,
            made,
            rows,
            Path(folder),
            loss=BCELoss(unknown="ignore"),
            epochs=EPOCHS or stage.epochs,
            learning_rate=stage.learning_rate,
            head_multiplier=stage.head_multiplier,
            seed=seed,
            save=False,
        )
    c.keep(name, torch.save, made.model.state_dict())
    c.write(name, None, made.score(c.val.texts))


def source_of_mlm_task(c: Context) -> None:
    "Train a source model from the encoder that went on with its pretraining."
    source_task(c, "source mlm", c.seed, "mlm")


def save_arrays(arrays: dict, path: str) -> None:
    with open(path, "wb") as file:
        np.savez_compressed(file, **{k: v.astype(np.float32) for k, v in arrays.items()})


def half_models(c: Context, p: Pipeline, recipe, teacher):
    "Both halves' trainings: what each view says of the half it has not seen, and their weights."
    half = p._halves()
    short = recipe.change(epochs=-(-recipe.epochs // 2))
    shape = p.task.target.labels.shape
    said, encoder, words = (np.empty(shape) for _ in range(3))
    weights = []
    for number in (0, 1):
        mine, other = np.flatnonzero(half == number), np.flatnonzero(half != number)
        with tempfile.TemporaryDirectory() as folder:
            p._fit("half", short, mine, teacher, Path(folder), False)
        said[other] = p._say(other)
        encoder[other] = logit(p.classifier.score_tokens(p._tokens(other)))
        words[other] = p.classifier.words.model.logits([c.train.texts[i] for i in other])
        weights.append({k: v.clone() for k, v in p.classifier.model.state_dict().items()})
    return said, encoder, words, weights


def last_round(c, p, recipe, teacher, variant, fraction):
    "The last training from a teacher; lines with and without the words."
    with tempfile.TemporaryDirectory() as folder:
        p._fit(variant, recipe, np.arange(len(p.rows)), teacher, Path(folder), False)
    score(c, p, variant, fraction)


def score(c, p, variant, fraction, refit=False):
    "Lines of the model as it is now, with and without the words."
    probs = p.classifier.score_tokens(p.test_ids)
    c.write(f"{variant}, encoder", fraction, probs)
    words: TwoViews = p.classifier.words
    if refit:  # the same words beside other weights of the encoder
        words = TwoViews.fit(
            words.model,
            words.label_names,
            p.classifier.score_tokens(p.rows["input_ids"]),
            c.train.texts,
        )
    c.write(variant, fraction, words.combine(probs, c.val.texts))


def average(states):
    return {
        k: sum(s[k] for s in states) / len(states) if v.is_floating_point() else v
        for k, v in states[0].items()
    }


def default_task(c: Context, fraction: float) -> None:
    "The default; the average of its weights with those of the halves, and with the source's."
    p = c.pipeline(fraction)
    source = p.source_probs
    said, encoder, words, halves = half_models(c, p, RECIPE, source)
    c.keep(f"teacher-{fraction}", save_arrays, {"said": said, "encoder": encoder, "words": words})
    last_round(c, p, RECIPE, said, "default", fraction)
    whole = {k: v.clone() for k, v in p.classifier.model.state_dict().items()}
    c.keep(f"weights-{fraction}", torch.save, whole)
    (e_t, e_v), (w_t, w_v) = both_views(c, p)
    observed = c.observed(fraction)
    for weight in (0.0, 0.125, 0.25, 0.5, 1.0, 2.0):
        probs = together(e_v, [w_v], [weight], (e_t, [w_t]))
        c.write(f"words × {weight:g}", fraction, probs)
    by = {w: held_out_ap(together(encoder, [words], [w]), observed) for w in (0.25, 0.5, 1.0)}
    best = max(by, key=by.get)
    probs = together(e_v, [w_v], [best], (e_t, [w_t]))
    c.write("weight by positives", fraction, probs, weight=best)
    start = {k: v.to(whole[k].device) for k, v in p.start.items()}
    for name, states in {
        "mean with the halves": [whole, *halves],
        "mean with the source": [whole, start],
    }.items():
        p.classifier.model.load_state_dict(average(states))
        score(c, p, name, fraction, refit=True)
    # the source's two views, for scale
    p.reset()
    both = p.source_scores(words=True)
    c.write("source + words", fraction, both.test)


def held_out_ap(probs: np.ndarray, observed: np.ndarray) -> float:
    "Mean AP of observed positives against unlabelled texts."
    labels = observed == 1
    return float(
        np.mean(
            [average_precision_score(labels[:, j], probs[:, j]) for j in range(labels.shape[1])]
        )
    )


def said_by_default(c: Context, fraction: float) -> dict:
    with c.wait(f"teacher-{fraction}", np.load) as stored:
        return dict(stored)


def both_views(c: Context, p: Pipeline) -> list[tuple[np.ndarray, np.ndarray]]:
    "Log odds of the training and the validation texts, by the encoder and by the words."
    score, words = p.classifier.score_tokens, p.classifier.words.model.logits
    encoder = logit(score(p.rows["input_ids"])), logit(score(p.test_ids))
    return [encoder, (words(c.train.texts), words(c.val.texts))]


def write_with_third(c, fraction, name, views, z_t, z_v) -> None:
    "Lines of both views with a third, of the log odds `z_t` and `z_v`, at two weights."
    (e_t, e_v), (w_t, w_v) = views
    for weight in (0.25, 0.5):
        probs = together(e_v, [w_v, z_v], [0.5, weight], (e_t, [w_t, z_t]))
        c.write(f"{name} × {weight:g}", fraction, probs)


def frozen_task(c: Context, fraction: float) -> None:
    "A third view, of frozen features: in the teacher alone, and at the end too."
    p = c.pipeline(fraction)
    there = pooled(c, c.classifier(), [-1])
    observed, half = c.observed(fraction), p._halves()
    third = np.empty(observed.shape)
    for number in (0, 1):
        mine, other = np.flatnonzero(half == number), np.flatnonzero(half != number)
        part = RECIPE.loss.anchors(p.source_probs[mine], observed[mine])
        third[other] = fit_frozen(c, there, mine, observed[mine], part)[0][other]
    stored = said_by_default(c, fraction)
    teacher = together(stored["encoder"], [stored["words"], third], [0.5, 0.5])
    last_round(c, p, RECIPE, teacher.astype(np.float32), "third view teaches", fraction)
    made = RECIPE.loss.anchors(teacher, observed)
    z_t, z_v = fit_frozen(c, there, np.arange(len(c.train)), observed, made)
    views = both_views(c, p)
    c.write("third view alone", fraction, expit(z_v))
    write_with_third(c, fraction, "third view teaches and stays", views, z_t, z_v)


def layers_task(c: Context, fraction: float) -> None:
    "A third view of the adapted model's own lower layers, read in the pass that is made anyway."
    p = c.pipeline(fraction)
    observed = c.observed(fraction)
    teacher = said_by_default(c, fraction)["said"].astype(np.float32)
    made = RECIPE.loss.anchors(teacher, observed)
    everything = np.arange(len(c.train))
    at_start = {"pretrained 0": pooled(c, c.classifier(), [0])}
    whole = c.wait(f"weights-{fraction}", torch.load, map_location=p.classifier.model.device)
    p._fit_words(RECIPE.words, everything, observed, made)
    p.classifier.model.load_state_dict(whole)
    views = both_views(c, p)
    (e_t, e_v), (w_t, w_v) = views
    c.write("two views again", fraction, together(e_v, [w_v], [0.5], (e_t, [w_t])))
    depth = p.classifier.model.config.num_hidden_layers
    sets = {f"adapted {k}": [k] for k in range(0, depth + 1, 2)}
    sets[f"adapted 0, {depth // 2}, {depth}"] = [0, depth // 2, depth]
    there = at_start | {name: pooled(c, p.classifier, layers) for name, layers in sets.items()}
    for name, triple in there.items():
        z_t, z_v = fit_frozen(c, triple, everything, observed, made)
        c.write(f"view of {name} alone", fraction, expit(z_v))
        write_with_third(c, fraction, f"third view of {name}", views, z_t, z_v)


def seed_task(c: Context, fraction: float) -> None:
    "The last round with another seed, and the mean of the weights of both."
    p = c.pipeline(fraction)
    p.seed += 1000
    said = said_by_default(c, fraction)["said"].astype(np.float32)
    last_round(c, p, RECIPE, said, "another seed", fraction)
    mine = {k: v.clone() for k, v in p.classifier.model.state_dict().items()}
    other = c.wait(f"weights-{fraction}", torch.load, map_location=p.classifier.model.device)
    p.classifier.model.load_state_dict(average([mine, other]))
    score(c, p, "mean of two last rounds", fraction, refit=True)


def change_task(c: Context, fraction: float, variant: str, changes: dict, sharpen: float) -> None:
    "The last round with other settings, or from a sharper teacher."
    p = c.pipeline(fraction)
    said = said_by_default(c, fraction)["said"].astype(np.float32)
    if sharpen != 1:
        z = logit(said) * sharpen
        said = expit(z + prior_shift(expit(z), said.mean(0))).astype(np.float32)
    last_round(c, p, RECIPE.change(**changes), said, variant, fraction)


def teachers_task(c: Context, fraction: float) -> None:
    "Two source models as the first teacher."
    p = c.pipeline(fraction)
    q = c.pipeline(fraction, "source2")
    teacher = expit((logit(p.source_probs) + logit(q.source_probs)) / 2).astype(np.float32)
    c.write(
        "two source models",
        None,
        expit(
            (
                logit(p.classifier.score_tokens(p.test_ids))
                + logit(q.classifier.score_tokens(q.test_ids))
            )
            / 2
        ),
    )
    said = half_models(c, p, RECIPE, teacher)[0]
    last_round(c, p, RECIPE, said, "two source models teach", fraction)


def whole_task(c: Context, fraction: float, start: str, variant: str) -> None:
    "The default from another source model."
    p = c.pipeline(fraction, start)
    said = half_models(c, p, RECIPE, p.source_probs)[0]
    last_round(c, p, RECIPE, said, variant, fraction)


def mlm_task(c: Context) -> None:
    "Masked-language modelling of source and target texts, five epochs, from the same encoder."
    made = c.classifier()
    model = BertForMaskedLM(made.model.config)
    model.bert.load_state_dict(made.model.base_model.state_dict(), strict=False)
    model.tie_weights()
    model = model.to(made.model.device).train()
    texts = [*c.source.texts, *c.train.texts]
    rows = [{"input_ids": ids} for ids in made.tokenize(texts)]
    collate = DataCollatorForLanguageModeling(made.tokenizer, mlm_probability=0.15)
    torch.manual_seed(c.seed)
    steps = (EPOCHS or 5) * -(-len(rows) // 32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-4, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-4, total_steps=steps)
    step = 0
    for _ in range(EPOCHS or 5):
        order = torch.randperm(len(rows)).tolist()
        for i in range(0, len(order), 32):
            batch = collate([rows[j] for j in order[i : i + 32]]).to(model.device)
            loss = model(**batch).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            step += 1
            if step in (1, steps):
                print(c.pair, c.seed, "MLM loss", step, round(loss.item(), 2), flush=True)
    c.keep("mlm", torch.save, model.bert.state_dict())


CONTEXTS: dict = {}


def run(task) -> None:
    pair, seed, name, *arguments = task
    began = time.time()
    try:
        globals()[name](CONTEXTS[pair, seed], *arguments)
        said = "ok"
    except TimeoutError:
        said = "late"
    except Exception:
        said = traceback.format_exc()
    print(f"{time.time() - T0:6.1f} {task} {time.time() - began:.1f}s {said}", flush=True)


def worker(queue) -> None:
    while time.time() - T0 < DEADLINE:
        try:
            task = queue.get(timeout=1)
        except Exception:
            break
        run(task)


def plan() -> list:
    order = list(CONTEXTS)
    first, *later = FRACTIONS
    tasks = [(*k, "source_task", "source", k[1]) for k in order]
    tasks += [(*k, "source_task", "source2", k[1] + 100) for k in order]
    tasks += [(*k, "default_task", f) for f in FRACTIONS for k in order]
    tasks += [(*k, "frozen_task", f) for f in FRACTIONS for k in order]
    tasks += [(*k, "teachers_task", first) for k in order]
    tasks += [(*k, "seed_task", first) for k in order]
    tasks += [(*k, "mlm_task") for k in order]
    tasks += [(*k, "source_of_mlm_task") for k in order]
    tasks += [(*k, "whole_task", first, "source mlm", "continued pretraining") for k in order]
    tasks += [(*k, "change_task", first, "teacher sharper", {}, 1.5) for k in order]
    tasks += [(*k, "change_task", first, "12 epochs", {"epochs": 12}, 1.0) for k in order]
    tasks += [(*k, "teachers_task", f) for f in later for k in order]
    tasks += [(*k, "layers_task", f) for f in FRACTIONS for k in order]
    only = ENV.get("ONLY", "").split()
    return [task for task in tasks if not only or task[2] in only]


def main() -> None:
    OUT.mkdir(exist_ok=True, parents=True)
    for pair in PAIRS:
        for seed in SEEDS:
            CONTEXTS[pair, seed] = Context(pair, seed)
    for (pair, seed), c in CONTEXTS.items():
        if seed == SEEDS[0]:
            print(pair, len(c.source), len(c.train), len(c.val), len(c.source.label_names))
    print("read", round(time.time() - T0, 1), flush=True)
    context = mp.get_context("fork")
    queue = context.Queue()
    for task in plan():
        queue.put(task)
    workers = [context.Process(target=worker, args=(queue,)) for _ in range(JOBS)]
    for process in workers:
        process.start()
    for process in workers:
        process.join(max(0.1, DEADLINE + 12 - (time.time() - T0)))
        if process.is_alive():
            process.terminate()
    lines = [p.read_text() for p in sorted(STORE.glob("*.line"))]
    (OUT / "hypotheses.jsonl").write_text("\n".join(lines) + "\n")
    print(len(lines), "lines", round(time.time() - T0, 1), flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()
