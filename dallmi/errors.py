"One kind of error for whatever a user can mend, and the words of its messages."

import math
import numbers
import os
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path

__all__ = ["InputError", "check_number", "first_line", "listing", "unknown_name", "user_path"]


class InputError(ValueError):
    """Something the user gave cannot be used.

    The message says what is wrong, where, and what to do (command line: exit code 2)."""


def listing(names: Iterable[object], most: int = 20) -> str:
    "`names`, each quoted and cut at 40 characters, joined by commas for a message."
    quoted = [repr(str(name)[:40]) for name in names]
    shown = ", ".join(quoted[:most]) or "none"
    return f"{shown} and {len(quoted) - most} more" if len(quoted) > most else shown


def unknown_name(
    what: str, name: object, known: Sequence[str], also: Mapping[str, str] | None = None
) -> InputError:
    """The `InputError` for a `name` that is none of the `known` names of a `what`, with the nearest.

    `also`: what things are called elsewhere, {name: the known one that is meant}."""
    lower = {k.lower(): k for k in known}
    meant = {**lower, **{k: v for k, v in (also or {}).items() if v in known}}
    near = get_close_matches(str(name).lower(), meant, n=1, cutoff=0.4)
    hint = f"did you mean {meant[near[0]]!r}?" if near else "check the name."
    return InputError(f"There is no {what} {name!r}; {hint} Known: {', '.join(known)}.")


def first_line(error: BaseException) -> str:
    "First line of an error's message, at most 200 characters, without a full stop; or its kind."
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:200].rstrip(". ")


def check_number(
    name: str, value: object, low: float, high: float = math.inf, whole: bool = False
) -> None:
    """Raise `InputError` where `value` is no number from `low` to `high`; `whole`: no fraction.

    A bool is no number. `name`: what the user calls the value."""
    kinds = (numbers.Integral,) if whole else (numbers.Real,)
    kind = "whole number" if whole else "number"
    bounds = f" of {low:g} or more" if math.isinf(high) else f" from {low:g} to {high:g}"
    bounds = "" if math.isinf(low) else bounds
    if isinstance(value, bool) or not isinstance(value, kinds):
        raise InputError(f"{name}={value!r} is no {kind}; give one{bounds}.")
    if not low <= float(value) <= high:  # NaN too
        raise InputError(f"{name}={value!r} is out of range; give a {kind}{bounds}.")


def user_path(value: object, what: str) -> Path:
    """`value` as a `Path`, with ~ as the home folder. Raises `InputError` for what is no path.

    `what`: the thing whose path it is, for the message."""
    if not isinstance(value, (str, os.PathLike)) or not str(value).strip():
        raise InputError(f"{value!r} is no path for {what}; give a string or a Path.")
    return Path(os.path.expanduser(value))
