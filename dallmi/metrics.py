import numpy as np
from sklearn.metrics import average_precision_score, f1_score

def per_label_ap(scores, labels):
    "Average precision of every label [L]; NaN where the known labels hold no positive or no negative. `scores`, `labels`: [N, L], labels 1, 0 or NaN."
    out = np.full(labels.shape[1], np.nan)
    for j, (s, y) in enumerate(zip(np.asarray(scores).T, np.asarray(labels).T)):
        known = ~np.isnan(y)
        if 0 < y[known].sum() < known.sum(): out[j] = average_precision_score(y[known], s[known])
    return out

def evaluate_scores(scores, labels, names=None, thresholds=0.5):
    """Metrics of probabilities `scores` [N, L] against `labels` [N, L] (1, 0, NaN = not scored), each in [0, 1].

    `mAP`: macro average precision of the scores. `mAP@0.5`: the same of the predictions rounded at 0.5, as the published code reports it.
    `F1`, `F1_micro`: at `thresholds` (number or [L]). `AP`: by label. Labels without a positive or a negative are left out of the means."""
    scores, labels = np.asarray(scores, dtype=np.float64), np.asarray(labels, dtype=np.float64)
    if scores.shape != labels.shape: raise ValueError(f"scores {scores.shape} and labels {labels.shape} must have the same shape.")
    ap, rounded = per_label_ap(scores, labels), per_label_ap((scores > 0.5).astype(float), labels)
    said, known = scores > thresholds, ~np.isnan(labels)
    f1 = [f1_score(y[k], s[k], zero_division=0) for y, s, k in zip(labels.T, said.T, known.T) if k.any() and y[k].any()]
    names = range(labels.shape[1]) if names is None else names
    return {"mAP": float(np.nanmean(ap)), "mAP@0.5": float(np.nanmean(rounded)), "F1": float(np.mean(f1)),
            "F1_micro": float(f1_score(labels[known], said[known], zero_division=0)), "AP": {str(n): float(a) for n, a in zip(names, ap)}}
