"One kind of error for whatever a user can mend, and the words of its messages."

import math
import numbers
import os
import re
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


_SECRETS = (
    (r"hf_[A-Za-z0-9]{6,}", "hf_***"),  # a token of the hub
    (r"(?i)\b(bearer|basic)\s+[\w.+/=~-]{6,}", r"\1 ***"),
    (r"://[^/\s@]+@", "://***@"),  # https://user:password@…
    (r"(?i)\b((?:access_|auth_|hf_)?token|password|secret|api_?key)=[^\s&'\",;)]+", r"\1=***"),
)
_SECRET_NAMES = re.compile("TOKEN|SECRET|PASSWORD|API_?KEY", re.I)


def _hide_secrets(text: str, secret: object = None) -> str:
    """`text` with *** in place of the `secret`, of what looks like a token or a password, and of the
    value of any environment variable that is called so. Whatever a library says goes through it."""
    if isinstance(secret, str) and secret:
        text = text.replace(secret, "***")
    for name, value in os.environ.items():
        if len(value) >= 8 and _SECRET_NAMES.search(name):
            text = text.replace(value, "***")
    for pattern, shown in _SECRETS:
        text = re.sub(pattern, shown, text)
    return text


def first_line(error: BaseException, secret: object = None) -> str:
    """First line of an error's message, at most 200 characters, without a full stop; or its kind.

    Secrets are hidden, also the `secret` that the user gave."""
    lines = _hide_secrets(str(error), secret).strip().splitlines() or [type(error).__name__]
    return lines[0][:200].rstrip(". ")


def check_number(
    name: str, value: object, low: float, high: float = math.inf, whole: bool = False
) -> None:
    """Raise `InputError` where `value` is no number from `low` to `high`; `whole`: no fraction.

    A bool is no number. `name`: what the user calls the value."""
    kinds = (numbers.Integral,) if whole else (numbers.Real,)
    kind = "whole number" if whole else "number"
    least, most = (f"{bound:.0f}" if whole else f"{bound:g}" for bound in (low, high))
    bounds = f" of {least} or more" if math.isinf(high) else f" from {least} to {most}"
    bounds = "" if math.isinf(low) else bounds
    if isinstance(value, bool) or not isinstance(value, kinds):
        raise InputError(f"{name}={value!r} is no {kind}; give one{bounds}.")
    if not low <= float(value) <= high:  # NaN too
        raise InputError(f"{name}={value!r} is out of range; give a {kind}{bounds}.")


def user_path(value: object, what: str) -> Path:
    """`value` as a `Path`, with ~ as the home folder. Raises `InputError` for what is no path.

    `what`: the thing whose path it is, for the message."""
    path = os.fspath(value) if isinstance(value, (str, os.PathLike)) else None
    if not isinstance(path, str) or not path.strip() or "\0" in path:
        raise InputError(f"{value!r} is no path for {what}; give a string or a Path.")
    return Path(os.path.expanduser(path))
