"""The self-checks of the chapters: is what a reader wrote right?

Each chapter of the first part asks for one function. `check(mine, tests, name)` runs the chapter's
tests on it. Until something is written there, the tests run on the solution below, so that they are
known to work. Look here last."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch


def check(mine: Callable[..., Any], tests: Callable[[Callable[..., Any]], None], name: str) -> str:
    "What the `tests` say of the function `mine`; of the solution `name` where nothing is written."
    try:
        tests(mine)
    except NotImplementedError:
        tests(SOLUTIONS[name])
        return "Not written yet. (The tests are passed by the solution in solutions/selfcheck.py.)"
    except Exception as e:  # whatever a reader's function may do
        said = str(e).strip().partition("\n")[0]
        return f"Not yet: {type(e).__name__}{': ' * bool(said)}{said}"
    return "Right: all tests pass."


SOLUTIONS: dict[str, Callable[..., Any]] = {}


def _solution(function: Callable[..., Any]) -> Callable[..., Any]:
    SOLUTIONS[function.__name__] = function
    return function


@_solution
def merge_labels(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    "01: what one of two annotators knows is known."
    clash = (first != second) & ~np.isnan(first) & ~np.isnan(second)
    if clash.any():
        raise ValueError("they contradict each other")
    return np.where(np.isnan(first), second, first)


@_solution
def label_whole_texts(labels: np.ndarray, share: float, seed: int) -> np.ndarray:
    "02: a share of the texts keeps all of its positives, the other texts none."
    rng = np.random.default_rng(seed)
    kept = rng.choice(len(labels), round(share * len(labels)), replace=False)
    seen = np.full(labels.shape, np.nan)
    seen[kept] = np.where(labels[kept] == 1, 1, np.nan)
    return seen


@_solution
def row_of_draw(lists: list[list[int]], k: int) -> int:
    "03: the row of draw k, without any shuffling."
    round_number, label = divmod(k, len(lists))
    return lists[label][round_number % len(lists[label])]


@_solution
def what_it_learns(p: float, c: float) -> float:
    "04: the minimiser of cross-entropy where an unlabelled text counts as a negative."
    return c * p


@_solution
def answer_after(p: float, n: int, prior: float, now: float) -> float:
    "05: where the norm form is lowest for a *no*, and where a *yes* stays, at one point."
    pays = n * p / prior * (n**0.5 - (n - 1) ** 0.5) > 1
    stays = n**0.5 * p / prior > 1
    return float(stays if now else pays)


@_solution
def mixup_term(
    mixed: torch.Tensor, logits: torch.Tensor, pairs: list[tuple[int, int, int, float]]
) -> torch.Tensor:
    "06: the squares of what the mixtures lack, at the labels of their pairs."
    total = torch.zeros(())
    for m, (_, u, label, g) in enumerate(pairs):
        target = g + (1 - g) * logits[u, label].sigmoid().detach()
        total = total + (target - mixed[m, label].sigmoid()).square()
    return total


@_solution
def unweighted(phi: np.ndarray, c: float, w: float) -> np.ndarray:
    "07: the weight multiplies the odds by 1 − c + w c; divide by that."
    odds = phi / (1 - phi) / (1 - c + w * c)
    return odds / (1 + odds)


@_solution
def mix(embeds: torch.Tensor, mask: torch.Tensor, p: int, u: int, g: float) -> tuple:
    "08: the mixture of rows p and u, and its mask."
    clean = embeds * mask[..., None]
    return g * clean[p] + (1 - g) * clean[u], mask[p] | mask[u]


@_solution
def soft_rows(features: np.ndarray, a: np.ndarray) -> tuple:
    "09: features, classes and weights that make a hard classifier fit the probabilities a."
    features, n = np.concatenate([features, features]), len(a)
    return features, np.repeat([1, 0], n), np.concatenate([a, 1 - a])
