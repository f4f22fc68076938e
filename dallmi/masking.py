import numpy as np

def keep_per_label(positive, keep, rng):
    "Of every label's positives keep the share `keep`, rounded, one at least. `positive`: bool [N, L]."
    out = np.zeros_like(positive)
    for j in range(positive.shape[1]):
        rows = np.flatnonzero(positive[:, j])
        if len(rows): out[rng.choice(rows, max(1, int(keep * len(rows) + 0.5)), replace=False), j] = True
    return out

def keep_per_sample(positive, keep, rng):
    "Of every text's positives keep the share `keep`: floor, and one more with the probability of the rest. `positive`: bool [N, L]."
    out = np.zeros_like(positive)
    for i in range(positive.shape[0]):
        cols = np.flatnonzero(positive[i])
        whole, rest = divmod(round(keep * len(cols), 9), 1)
        n = int(whole) + int(rng.random() < rest)
        if n: out[i, rng.choice(cols, n, replace=False)] = True
    return out

def rescue_labels(kept, positive, rng):
    "Give each label that lost all its positives one of them back."
    for j in np.flatnonzero(positive.any(0) & ~kept.any(0)): kept[rng.choice(np.flatnonzero(positive[:, j])), j] = True
    return kept

STRATEGIES = {"label": keep_per_label, "sample": keep_per_sample}

def mask_labels(labels, keep, by="label", seed=0, trust_negatives=False):
    """`labels` [N, L] (1, 0, NaN) with positives hidden as NaN, the share `keep` of them left; paper, section 4 (label availability).

    `by`: 'label' (each label loses that share of its texts, exactly) or 'sample' (each text that share of its labels, exactly in expectation).
    One positive a label survives. Zeros become NaN unless `trust_negatives`. Raises ValueError for a `keep` outside (0, 1] or another `by`."""
    if not 0 < keep <= 1: raise ValueError(f"keep={keep} is outside (0, 1]: it is the share of positive labels that stay visible.")
    if by not in STRATEGIES: raise ValueError(f"by={by!r} is unknown: use {' or '.join(map(repr, STRATEGIES))}.")
    labels, rng = np.asarray(labels, dtype=np.float32), np.random.default_rng(seed)
    positive = labels == 1
    kept = rescue_labels(STRATEGIES[by](positive, keep, rng), positive, rng)
    out = np.where(kept, np.float32(1), np.float32(np.nan))
    return np.where(labels == 0, np.float32(0), out) if trust_negatives else out
