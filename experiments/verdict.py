"""The experiment of chapter 19: how often the verdict is right, silent and wrong.

Pairs of rankings, of which one is better, on the development pairs: word models and linear models
of frozen MiniLM embeddings, fitted here (about fifteen minutes on one core), and the encoders of
development.py, whose logits that script packed. Of each the verdict from the observed positives
alone is compared with the true difference in mAP on the validation texts; test splits stay unread.

    DATA=data LOGITS=dev.npz python experiments/verdict.py

Writes a row per comparison to nbs/results/verdict.jsonl. Without LOGITS those of the encoders are
left out."""

import json
import os
from pathlib import Path

import numpy as np
import torch
from scipy.special import expit
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
    with torch.inference_mode():
        for i in range(0, len(order), 32):
            rows = order[i : i + 32]
            batch = tokenizer(
                [texts[r] for r in rows],
                truncation=True,
                max_length=length,
                padding=True,
                return_tensors="pt",
            )
            mask = batch["attention_mask"][..., None]
            mean = (model(**batch).last_hidden_state * mask).sum(1) / mask.sum(1)
            out[rows] = torch.nn.functional.normalize(mean, dim=1).numpy()
    return out


def fit(features, labels, weights, C):
    "Logistic regressions of the columns of `labels` [N, L], NaN left out; coefficients, intercepts."
    coefficients, intercepts = [], []
    for y, w in zip(labels.T, weights.T, strict=True):
        known = w > 0
        if len(set(y[known])) < 2:
            coefficients.append(np.zeros(features.shape[1]))
            intercepts.append(0.0)
            continue
        model = LogisticRegression(C=C, solver="liblinear", intercept_scaling=5)
        model.fit(features[known], y[known], w[known])
        coefficients.append(model.coef_[0])
        intercepts.append(model.intercept_[0])
    return np.array(coefficients).T, np.array(intercepts)


class View:
    "A linear model of fixed features: of the source alone, or adapted in one of three ways."

    def __init__(self, source, labels, train, valid, C):
        self.source, self.labels, self.train, self.valid, self.C = source, labels, train, valid, C
        self.stack = np.vstack if isinstance(source, np.ndarray) else __import__("scipy.sparse").sparse.vstack
        self.alone = self.fit([], None, "source")

    def fit(self, rows, observed, how, anchor=None, weight=None):
        n, labels = len(self.labels), self.labels
        x, y, w = [self.source], [labels], [np.ones_like(labels)]
        if how != "source":
            mine, seen = self.train[rows], observed[rows] == 1
            up = np.ones(seen.shape[1]) if weight is None else weight
            x, y, w = x + [mine], y + [np.ones(seen.shape)], w + [seen * up]
            if how == "anchored":
                a = anchor[rows]
                x, y = x + [mine, mine], y + [np.ones(seen.shape), np.zeros(seen.shape)]
                w += [np.where(seen, 0, a), np.where(seen, 0, 1 - a)]
            if how == "negative":
                x, y, w = x[1:] + [mine], y[1:] + [np.zeros(seen.shape)], w[1:] + [~seen * 1.0]
        found = fit(self.stack(x).tocsr() if n and not isinstance(x[0], np.ndarray) else np.vstack(x), np.concatenate(y), np.concatenate(w), self.C)
        return lambda features: features @ found[0] + found[1]

    def adapted(self, observed, how, half):
        "Scores of the training texts, held out by halves, and of the validation texts."
        made = make_anchors(expit(self.alone(self.train)), observed)
        held = np.zeros(observed.shape)
        for h in (0, 1):
            model = self.fit(np.flatnonzero(half == h), observed, how, made.anchor, made.pos_weight)
            held[half != h] = model(self.train[half != h])
        model = self.fit(np.arange(len(half)), observed, how, made.anchor, made.pos_weight)
        return held, model(self.valid)
