"""The experiment of the chapter on suggestions: which texts to label next.

Four rounds of 20 texts from label fraction 0.05 on the development pairs, three seeds. Who labels
marks all positives of a text that is suggested; with ZEROS=1 the zeros are trusted, too. The
learner is cheap: two linear views, of words (200 components of TF-IDF) and of frozen MiniLM
embeddings, both fitted on the source's labels, the observed positives and the anchors, as the
default recipe's word view is. mAP on the validation texts; the test splits stay unread.

    DATA=data python experiments/suggest.py

Writes a row per pair, seed, strategy and round to nbs/results/suggest.jsonl: about ten minutes on
one core after ten for the embeddings."""

import json
import os
from pathlib import Path

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit
from sklearn.decomposition import PCA, TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from verdict import PAIRS, SEEDS, domains, embed

from dallmi import mask_labels
from dallmi.losses.anchored import make_anchors
from dallmi.metrics import expected_f1_thresholds, per_label_ap
from dallmi.suggest import STRATEGIES, _choose, _strategy_scores
from dallmi.verdict import did_it_help

OUT = Path(os.environ.get("OUT", "nbs/results/suggest.jsonl"))
ROUNDS, TEXTS, FRACTION, REPEATS = 4, 20, 0.05, 3
ZEROS = os.environ.get("ZEROS") == "1"


def logistic(x, target, weight, decay, start=None):
    """Weights [D + 1, L] of logistic regressions on x [N, D], soft `target` and `weight` [N, L]."""
    x = np.hstack([x, np.ones((len(x), 1))])
    shape = (x.shape[1], target.shape[1])

    def loss(flat):
        w = flat.reshape(shape)
        z = x @ w
        value = (weight * (np.logaddexp(0, z) - target * z)).sum() + decay * (w[:-1] ** 2).sum() / 2
        slope = x.T @ (weight * (expit(z) - target))
        slope[:-1] += decay * w[:-1]
        return value, slope.ravel()

    begin = np.zeros(shape) if start is None else start
    found = minimize(loss, begin.ravel(), jac=True, method="L-BFGS-B", options={"maxiter": 60})
    return found.x.reshape(shape)


def apply(w, x):
    "Logits [N, L]."
    return x @ w[:-1] + w[-1]


class Learner:
    "Two linear views of a pair's texts."

    def __init__(self, pair, seed):
        self.source, self.train, self.valid = domains(pair, seed)
        self.source = self.source.select(range(min(1000, len(self.source))))
        parts = [self.source.texts, self.train.texts, self.valid.texts]
        cuts = np.cumsum([len(part) for part in parts[:2]])
        words = TfidfVectorizer(min_df=2, sublinear_tf=True, max_features=10_000)
        counts = words.fit_transform(parts[0] + parts[1])
        axes = TruncatedSVD(200, random_state=0).fit(counts)
        whole = embed(sum(parts, []))
        frozen = PCA(100, random_state=0).fit(whole[: cuts[1]])
        text = [axes.transform(words.transform(part)) * 6 for part in parts]
        mean = np.split(frozen.transform(whole) * 6, cuts)
        self.views = [mean, text]
        self.alone = [self.fit(view, [], None) for view in self.views]
        self.teacher = self.both(
            [apply(w, v[1]) for w, v in zip(self.alone, self.views, strict=True)]
        )

    def both(self, logits, like=None):
        "Probabilities of both views together, the first on its own scale."
        like = logits if like is None else like
        scale = 0.5 * like[0].std(0) / np.maximum(like[1].std(0), 1e-9)
        joint = logits[0] - like[0].mean(0) + scale * (logits[1] - like[1].mean(0))
        return expit(joint + like[0].mean(0))

    def fit(self, view, rows, observed, start=None):
        "Weights of a view by the source alone, or with the target's `rows` as well."
        labels = self.source.labels.astype(float)
        if observed is None:
            return logistic(view[0], labels, np.ones_like(labels), 1.0)
        made = make_anchors(self.teacher, observed)
        seen, anchor = observed[rows], made.anchor[rows]
        target = np.where(np.isnan(seen), anchor, np.nan_to_num(seen))
        weight = np.where(seen == 1, made.pos_weight, 1.0)
        x = np.vstack([view[0], view[1][rows]])
        parts = np.vstack([labels, target]), np.vstack([np.ones_like(labels), weight])
        return logistic(x, *parts, 1.0, start)

    def adapted(self, observed, rows=None):
        "Weights of both views, and what they say of the target's texts, alone and together."
        rows = np.arange(len(self.train)) if rows is None else rows
        weights = [
            self.fit(v, rows, observed, s) for v, s in zip(self.views, self.alone, strict=True)
        ]
        logits = [apply(w, v[1]) for w, v in zip(weights, self.views, strict=True)]
        valid = [apply(w, v[2]) for w, v in zip(weights, self.views, strict=True)]
        views = tuple(expit(z) for z in logits)
        return self.both(logits), self.both(valid, logits), views

    def score(self, probs):
        "mAP on the validation texts."
        return float(np.nanmean(per_label_ap(probs, self.valid.labels)))

    def judge(self, observed, seed):
        "The verdict by the observed positives, cross-fitted on halves."
        half = np.random.default_rng(seed).permutation(len(self.train)) % 2
        held = np.zeros(observed.shape)
        for h in (0, 1):
            probs, _, _ = self.adapted(observed, np.flatnonzero(half == h))
            held[half != h] = probs[half != h]
        names = self.train.label_names
        return did_it_help(self.teacher, held, observed, names, half)["word"]

    def alone_score(self):
        "mAP of the source model on the validation texts."
        views = zip(self.alone, self.views, strict=True)
        logits = [(apply(w, v[1]), apply(w, v[2])) for w, v in views]
        return self.score(self.both([b for _, b in logits], [a for a, _ in logits]))


def annotate(observed, truth, rows):
    "What is observed after an annotator went through the texts `rows`."
    out = observed.copy()
    told = truth[rows] if ZEROS else np.where(truth[rows] == 1, 1.0, np.nan)
    out[rows] = np.where(np.isnan(told), out[rows], told)
    return out


def rounds(learner, seed, strategy, diverse, draw):
    "mAP before and after each round, the number of observed positives, and the verdict at the end."
    truth = learner.train.labels
    observed = mask_labels(truth, FRACTION, "label", seed).astype(float)
    free = ~(observed == 1).any(1)
    for number in range(ROUNDS + 1):
        probs, valid, views = learner.adapted(observed)
        row = {"round": number, "mAP": learner.score(valid)}
        row["positives"] = int((observed == 1).sum())
        if number == ROUNDS:
            row["verdict"] = learner.judge(observed, seed)
        yield row
        if number < ROUNDS:
            open_rows = np.flatnonzero(free)
            limits = expected_f1_thresholds(probs)
            seen = tuple(view[open_rows] for view in views)
            wanted = _strategy_scores(
                strategy, probs[open_rows], limits, seen, 1000 * draw + 10 * seed + number
            )
            texts = [learner.train.texts[i] for i in open_rows]
            taken = open_rows[_choose(wanted, texts, TEXTS, diverse)]
            observed, free[taken] = annotate(observed, truth, taken), False


def main():
    "All pairs, seeds and strategies, a line per round."
    lines = []
    for pair in PAIRS:
        for seed in SEEDS:
            learner = Learner(pair, seed)
            source = learner.alone_score()
            for strategy in STRATEGIES:
                for diverse in (False, True):
                    for draw in range(REPEATS if strategy == "random" else 1):
                        place = {"pair": pair, "seed": seed, "strategy": strategy}
                        place |= {"diverse": diverse, "draw": draw, "source": round(source, 5)}
                        for row in rounds(learner, seed, strategy, diverse, draw):
                            lines.append(json.dumps(place | row | {"mAP": round(row["mAP"], 5)}))
            print(pair, seed, len(lines), flush=True)
            OUT.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
