"One kind of error for whatever a user can mend, and the words of its messages."

from collections.abc import Iterable, Sequence
from difflib import get_close_matches

__all__ = ["InputError", "first_line", "listing", "unknown_name"]


class InputError(ValueError):
    """Something the user gave cannot be used.

    The message says what is wrong, where, and what to do (command line: exit code 2)."""


def listing(names: Iterable[object], most: int = 20) -> str:
    "`names`, each quoted and cut at 40 characters, joined by commas for a message."
    quoted = [repr(str(name)[:40]) for name in names]
    shown = ", ".join(quoted[:most]) or "none"
    return f"{shown} and {len(quoted) - most} more" if len(quoted) > most else shown


def unknown_name(what: str, name: object, known: Sequence[str]) -> InputError:
    "The `InputError` for a `name` that is none of the `known` names of a `what`, with the nearest."
    lower = {k.lower(): k for k in known}
    near = get_close_matches(str(name).lower(), lower, n=1, cutoff=0.4)
    hint = f"did you mean {lower[near[0]]!r}?" if near else "check the name."
    return InputError(f"There is no {what} {name!r}; {hint} Known: {', '.join(known)}.")


def first_line(error: BaseException) -> str:
    "First line of an error's message, at most 200 characters, without a full stop; or its kind."
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:200].rstrip(". ")
