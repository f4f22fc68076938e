"""The experiment of chapter 19: how often the verdict is right, silent and wrong.

Pairs of rankings, of which one is better, on the development pairs: word models and linear models
of frozen MiniLM embeddings, fitted here (about a quarter of an hour on one core, after ten minutes
for the embeddings), and the encoders of development.py, whose logits that script packed. Of each
the verdict from the observed positives alone is compared with the true difference in mAP on the
validation texts; the test splits stay unread.

    DATA=data LOGITS=dev.npz python experiments/verdict.py

Writes a row per comparison to nbs/results/verdict.jsonl. Without LOGITS the encoders' are left out.
"""

import json
import os
from pathlib import Path

import numpy as np
import scipy.sparse as sp
import torch
from scipy.special import expit
from sklearn.decomposition import PCA
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from transformers import AutoModel, AutoTokenizer

from dallmi import load_domain, mask_labels
from dallmi.losses.anchored import make_anchors
from dallmi.metrics import per_label_ap
from dallmi.training.encoder import default_model
from dallmi.verdict import did_it_help

DATA = os.environ.get("DATA", "data")
LOGITS = os.environ.get("LOGITS")
OUT = Path(os.environ.get("OUT", "nbs/results/verdict.jsonl"))
PAIRS = os.environ.get("PAIRS", "films,movies_rt,arxiv,pubmed").split(",")
SEEDS = list(map(int, os.environ.get("SEEDS", "0,1,2").split(",")))
FRACTIONS = (0.05, 0.1, 0.3, 0.5)


def domains(pair, seed):
    "Source, training and validation part of the target, as development.py cuts them."
    films = ("films:source", "films:target")
    names = films if pair == "films" else [f"{DATA}/{pair}/{d}.csv" for d in ("source", "target")]
    source, target = load_domain(names[0], max_rows=2000), load_domain(names[1], max_rows=2500)
    train, _ = target.split(max(0.2, 1 - 1000 / len(target)), seed)
    return source, *train.split(0.3, seed + 50)


def embed(texts, length=96):
    "Mean of the last hidden states of MiniLM, [N, 384], of norm 1."
    name = default_model()
    tokenizer, model = AutoTokenizer.from_pretrained(name), AutoModel.from_pretrained(name).eval()
    order = np.argsort([len(text) for text in texts])
    out = np.zeros((len(texts), model.config.hidden_size), dtype=np.float32)
    how = {"truncation": True, "max_length": length, "padding": True, "return_tensors": "pt"}
    with torch.inference_mode():
        for i in range(0, len(order), 32):
            rows = order[i : i + 32]
            batch = tokenizer([texts[r] for r in rows], **how)
            mask = batch["attention_mask"][..., None]
            mean = (model(**batch).last_hidden_state * mask).sum(1) / mask.sum(1)
            out[rows] = torch.nn.functional.normalize(mean, dim=1).numpy()
    return out


class View:
    "A linear model of fixed features, and what it becomes when the target's labels are used."

    def __init__(self, source, labels, train, valid, C):
        self.source, self.labels, self.train, self.valid, self.C = source, labels, train, valid, C
        self.source_only = self.fit([(source, labels, np.ones_like(labels))])

    def fit(self, parts):
        "Logistic regressions, one per label, of (features, classes, weights); their logits."
        x, y, w = (list(part) for part in zip(*parts, strict=True))
        x, y, w = sp.vstack(x).tocsr(), np.concatenate(y), np.concatenate(w)
        coefficients, intercepts = np.zeros((x.shape[1], y.shape[1])), np.zeros(y.shape[1])
        for j in range(y.shape[1]):
            known = w[:, j] > 0
            if len(set(y[known, j])) == 2:
                model = LogisticRegression(C=self.C, solver="liblinear", intercept_scaling=5)
                model.fit(x[known], y[known, j], w[known, j])
                coefficients[:, j], intercepts[j] = model.coef_[0], model.intercept_[0]
        return lambda features: np.asarray(features @ coefficients + intercepts)

    def adapted(self, rows, observed, how, made):
        """The logits of a fit on source and target's `rows`: 'anchored', as the word view is;
        'observed' positives beside the source; 'negative', the target alone, unlabelled as 0."""
        mine, seen = self.train[rows], observed[rows] == 1
        ones, zeros = np.ones(seen.shape), np.zeros(seen.shape)
        source = (self.source, self.labels, np.ones_like(self.labels))
        if how == "negative":
            return self.fit([(mine, ones, seen * 1.0), (mine, zeros, ~seen * 1.0)])
        parts = [source, (mine, ones, seen * made.pos_weight)]
        if how == "anchored":
            anchor = made.anchor[rows]
            parts += [(mine, ones, np.where(seen, 0, anchor))]
            parts += [(mine, zeros, np.where(seen, 0, 1 - anchor))]
        return self.fit(parts)

    def both(self, observed, how, half):
        "Held-out scores of the training texts, and scores of the validation texts."
        made = make_anchors(expit(self.source_only(self.train)), observed)
        held = np.zeros(observed.shape)
        for h in (0, 1):
            model = self.adapted(np.flatnonzero(half == h), observed, how, made)
            held[half != h] = model(self.train[half != h])
        return held, self.adapted(np.arange(len(half)), observed, how, made)(self.valid)


def spread(scores, like=None):
    "Scores of mean 0 and standard deviation 1, by those of the training texts."
    like = scores if like is None else like
    return (scores - like.mean(0)) / (like.std(0) + 1e-9)


def encoders(logits, pair, seed, fraction, half):
    "Held-out and validation scores of the default recipe, as development.py's logits make them."
    k = f"{pair}-{seed}-{fraction}"
    get = {name: logits[f"{k}-{name}"].astype(float) for name in ("crosshalf|e", "crosshalf|w")}
    held = np.zeros(get["crosshalf|e"].shape)
    for h in (0, 1):
        e, w = (values[half == h] for values in get.values())
        held[half == h] = spread(e) + 0.5 * spread(w)
    last = [logits[f"{k}-{n}|{p}"].astype(float) for n in ("r2xe6", "words2x") for p in "vt"]
    return held, spread(last[0], last[1]) + 0.5 * spread(last[2], last[3])


def damaged(scores, much, seed):
    "Scores with noise of `much` times their spread."
    rng = np.random.default_rng(seed)
    return tuple(s + much * s.std(0) * rng.normal(size=s.shape) for s in scores)


def compare(before, after, observed, names, valid, folds):
    "The verdict, and the truth: mAP of `after` less that of `before`, all labels and each."
    said = did_it_help(before[0], after[0], observed, names, folds)
    truth = per_label_ap(after[1], valid.labels) - per_label_ap(before[1], valid.labels)
    sign = {"helped": 1, "hurt": -1, "cannot tell": 0}
    found = [
        sign[said["labels"][name]["word"]] * np.sign(t)
        for name, t in zip(names, truth, strict=True)
    ]
    counts = {"right": found.count(1), "wrong": found.count(-1)}
    counts["silent"] = int(np.isfinite(truth).sum()) - sum(counts.values())
    row = {key: said[key] for key in ("word", "difference", "low", "high", "positives")}
    return row | {"truth": float(np.nanmean(truth)), "labels": counts}


def by_habit(labels, observed, likely):
    "As many observed positives per label as before, but the most `likely` instead of by chance."
    out = np.full(labels.shape, np.nan, dtype=np.float32)
    for j in range(labels.shape[1]):
        own = np.flatnonzero(labels[:, j] == 1)
        out[own[np.argsort(-likely[own, j])[: int((observed[:, j] == 1).sum())]], j] = 1
    return out


def views(source, train, valid):
    "The two views of a pair: words, and frozen embeddings."
    parts = [source.texts, train.texts, valid.texts]
    words = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True, max_features=10_000)
    words.fit(parts[0] + parts[1])
    a, b, c = (words.transform(part) for part in parts)
    whole = embed(sum(parts, []))
    axes = PCA(64, random_state=0).fit(whole)
    d, e, f = np.split(axes.transform(whole) * 4, np.cumsum([len(part) for part in parts[:2]]))
    d, e, f = (sp.csr_matrix(part) for part in (d, e, f))
    labels = source.labels.astype(float)
    return View(a, labels, b, c, 4.0), View(d, labels, e, f, 30.0)


FITS = [("words", "anchored"), ("words", "observed"), ("words", "negative"), ("frozen", "anchored")]


def adaptations(alone, observed, half, fits):
    "The views in `alone`, each before and after a fit to the target: names, scores and halves."
    return [(k, f"{k} {how}", alone[k].both(observed, how, half), half) for k, how in fits]


def rows(pair, seed, logits):
    "All comparisons of one pair and seed."
    source, train, valid = domains(pair, seed)
    half = np.random.default_rng(seed).permutation(len(train)) % 2
    words, frozen = views(source, train, valid)
    alone = {"words": words, "frozen": frozen}
    before = {k: (v.source_only(v.train), v.source_only(v.valid)) for k, v in alone.items()}
    if logits is not None:
        before["encoder"] = tuple(logits[f"{pair}-{seed}-0-source|{p}"].astype(float) for p in "tv")
    for fraction in FRACTIONS:
        chance = mask_labels(train.labels, fraction, "label", seed)
        habit = by_habit(train.labels, chance, before["words"][0])
        for how, observed in {"chance": chance, "habit": habit}.items():
            asked = adaptations(alone, observed, half, FITS if how == "chance" else FITS[:1])
            asked += [(a, b, before[b], None) for a in before for b in before if a > b]
            if how == "chance":
                asked += [
                    (name, f"{name} with noise {much}", damaged(scores, much, seed), None)
                    for name, scores in before.items()
                    for much in (0.3, 0.7)
                ]
                if "encoder" in before and fraction in (0.1, 0.5):
                    both = encoders(logits, pair, seed, fraction, half)
                    asked.append(("encoder", "the default recipe", both, half))
            for first, second, value, folds in asked:
                place = {"pair": pair, "seed": seed, "fraction": fraction, "tags": how}
                found = compare(before[first], value, observed, train.label_names, valid, folds)
                yield place | {"before": first, "after": second} | found


def main():
    "All pairs and seeds, a line per comparison."
    torch.set_num_threads(1)
    logits = np.load(LOGITS) if LOGITS else None
    lines = []
    for pair in PAIRS:
        for seed in SEEDS:
            for row in rows(pair, seed, logits):
                short = {k: round(v, 5) if isinstance(v, float) else v for k, v in row.items()}
                lines.append(json.dumps(short))
            print(pair, seed, len(lines), flush=True)
    OUT.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
