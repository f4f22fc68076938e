"""A run in words: the table of its methods, the picture of its labels, and the checkpoint's
card."""

__all__ = ["TITLES", "results_table", "plot_results", "model_card", "run_report"]

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from huggingface_hub import EvalResult, ModelCardData
from matplotlib.figure import Figure

import dallmi
from dallmi.training.encoder import HUB_DEFAULT

TITLES = {"source": "source model", "partial": "BCE, observed labels"}
COLUMNS = ("mAP", "mAP@0.5", "F1")
COLOURS = ("#949494", "#de8f05", "#0173b2", "#029e73", "#cc78bc", "#d55e00")  # colour-blind safe
MARKERS = "osD^vP"

Metrics = Mapping[str, Mapping[str, Any]]


def _title(method: str) -> str:
    "What a method is called in a table."
    return TITLES.get(method, method)


def results_table(metrics: Metrics) -> str:
    "The metrics of the methods, {method: metrics}, in percent, a line each."
    width = max([22, *(len(_title(method)) + 2 for method in metrics)])
    lines = [" " * width + "".join(f"{column:>9}" for column in COLUMNS)]
    for method, values in metrics.items():
        numbers = "".join(f"{100 * values[column]:9.1f}" for column in COLUMNS)
        lines.append(f"{_title(method):<{width}}{numbers}")
    return "\n".join(lines)


def plot_results(metrics: Metrics, chance: Mapping[str, float | None]) -> Figure:
    """Dot plot of every label's average precision, one mark per method.

    `metrics`: {method: metrics}. `chance`: {label: prevalence}. The labels stand in the order of
    the first method's scores."""
    first = next(iter(metrics.values()))["labels"]["AP"]
    names = sorted((n for n in chance if first[n] is not None), key=lambda n: first[n])
    rows = range(len(names))
    height = 1.4 + 0.27 * len(names)
    fig = Figure(figsize=(6, height), dpi=110, layout="constrained")
    ax = fig.subplots()
    values: Sequence[Any] = [chance[n] for n in names]
    ax.scatter(values, rows, marker="|", color="0.5", s=60, label="chance")
    for number, (method, found) in enumerate(metrics.items()):
        values = [found["labels"]["AP"][n] for n in names]
        label = f"{_title(method)}, mAP {100 * found['mAP']:.1f}"
        style = number % len(MARKERS)
        ax.scatter(values, rows, marker=MARKERS[style], color=COLOURS[style], s=30, label=label)
    ax.set(yticks=rows, yticklabels=[n.replace("$", r"\$") for n in names], xlim=(0, 1.02))
    ax.set_xlabel("average precision on held-out target texts")
    ax.grid(axis="x", color="0.9")
    ax.set_axisbelow(True)
    fig.legend(loc="outside upper center", ncols=2, frameon=False)
    return fig


CARD = """---
{header}
---
# Multi-label text classifier, adapted with dallmi {version}

Labels: {names}.

Fine-tuned on {source} labelled texts of a source domain, then adapted to a target domain:
{target} texts, {observed} observed positives, recipe `{method}`. Every setting is in
`settings.json`.

{measured}

Scores are sigmoid outputs, one per label. `config.json` holds a threshold per label under
`thresholds`, chosen without any negatives: the one with the highest F1 that the scores on the
target texts lead to expect. F1 above is with these thresholds.
"""

NOT_MEASURED = "No labelled target texts were given, so nothing was measured."


def _card_header(base_model: str | None, method: str, metrics: Metrics) -> str:
    "The metadata of a card, YAML: what the hub shows and searches."
    base = base_model or HUB_DEFAULT
    results = [
        EvalResult(
            task_type="text-classification",
            dataset_type="held-out",
            dataset_name="held-out target texts",
            metric_type=column,
            metric_value=round(100 * metrics[method][column], 1),
        )
        for column in COLUMNS
        if method in metrics
    ]
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="text-classification",
        base_model=None if os.path.exists(os.path.expanduser(base)) else base,
        tags=["multi-label", "domain-adaptation", "positive-unlabelled", "dallmi"],
        model_name="dallmi-adapted" if results else None,
        eval_results=results or None,
    )
    return data.to_yaml().strip()


def model_card(record: Mapping[str, Any]) -> str:
    "Text of the checkpoint's README.md, from the record of a run (`Adaptation.record`)."
    metrics, counts = record["metrics"], record["counts"]
    measured = NOT_MEASURED
    if metrics:
        intro = (
            f"In percent, on {counts['test']} held-out target texts (mAP@0.5: average precision of "
            "predictions thresholded at 0.5):"
        )
        rows = [
            f"| {_title(method)} | "
            + " | ".join(f"{100 * values[column]:.1f}" for column in COLUMNS)
            + " |"
            for method, values in metrics.items()
        ]
        head = ["| | " + " | ".join(COLUMNS) + " |", "|---|" + "---|" * len(COLUMNS)]
        measured = "\n".join([intro, "", *head, *rows])
    return CARD.format(
        header=_card_header(record["settings"]["model"], record["method"], metrics),
        version=dallmi.__version__,
        names=", ".join(record["observed"]),
        method=record["method"],
        measured=measured,
        **counts,
    )


def run_report(record: Mapping[str, Any]) -> str:
    "A run in a screen of text: what was done, and the table of what was measured."
    settings, counts, metrics = record["settings"], record["counts"], record["metrics"]
    share = settings["label_fraction"]
    how = f" ({100 * share:g} % by {settings['masking']}, seed {settings['seed']})" if share else ""
    lines = [
        f"{counts['source']} source texts, {counts['target']} target texts, "
        f"{counts['labels']} labels, {counts['observed']} observed positives{how}"
    ]
    if counts["cut"] > counts["target"] / 5:
        lines.append(
            f"{counts['cut']} target texts fill the {settings['max_length']} tokens that are read, "
            "so most of them are cut; a larger --max-length reads more, and takes longer"
        )
    if not metrics:
        return "\n".join([*lines, "no labelled target texts to score on (--test FILE)"])
    first = next(iter(metrics.values()))["labels"]["AP"]
    scored = [record["chance"][n] for n, ap in first.items() if ap is not None]
    lines.append(
        f"scored on {counts['test']} held-out target texts; chance mAP {100 * np.mean(scored):.1f}"
    )
    lost = [name for name, ap in first.items() if ap is None]
    if lost:
        lines.append(
            "not scored, as the held-out texts show no positive or no negative: " + ", ".join(lost)
        )
    return "\n".join([*lines, "", results_table(metrics)])
