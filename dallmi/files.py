"""One way to write a file, and one rule for what may be replaced."""

__all__ = ["atomic_path", "write_json", "check_output", "mark_folder"]

import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dallmi
from dallmi.errors import InputError, listing

MARKER = "dallmi.json"


def _remove(path: Path) -> None:
    "Remove a file or a folder that this module made; nothing where there is none."
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """A path beside `path` to write a file or folder to; it takes the place of `path` in one step.

    Where the block fails, what it wrote is removed and `path` stays as it was. What stood at `path`
    is replaced: ask `check_output` first. Raises `InputError` where the place cannot be written."""
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        room = Path(tempfile.mkdtemp(prefix=f".{path.name[:40]}-", dir=path.parent))
    except OSError as e:
        raise InputError(f"'{path}' cannot be written: {e.strerror}; give another place.") from None
    new, old = room / path.name, room / "replaced"
    try:
        yield new
        if path.exists():
            path.rename(old)
        new.rename(path)
    except OSError as e:
        if old.exists() and not path.exists():
            old.rename(path)
        raise InputError(f"'{path}' cannot be written: {e.strerror or e}.") from None
    finally:
        shutil.rmtree(room, ignore_errors=True)


def write_json(path: Path | str, value: Any) -> None:
    "Write `value` to `path` as JSON: a reader sees the old file or the new one, never a part."
    text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    with atomic_path(path) as new:
        new.write_text(text, encoding="utf-8")


def mark_folder(folder: Path | str, kind: str = "output") -> None:
    """Write the marker that says which files of `folder` this package wrote, so that it may
    replace them."""
    folder = Path(folder)
    files = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
    marker = {"dallmi": dallmi.__version__, "kind": kind, "files": [*files, MARKER]}
    (folder / MARKER).write_text(json.dumps(marker, indent=1) + "\n", encoding="utf-8")


def _marked_files(folder: Path) -> set[str] | None:
    "The files that the marker of `folder` lists; None where there is no marker."
    try:
        listed = json.loads((folder / MARKER).read_text(encoding="utf-8"))["files"]
        return {str(name) for name in listed}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _why_not_ours(path: Path) -> str | None:
    "Why an existing `path` must not be replaced, as the rest of a sentence; None where it may be."
    if path.is_symlink():
        return "is a link"
    if not path.is_dir():
        return None if path.is_file() else "is no ordinary file"
    if not any(path.iterdir()):
        return None
    ours = _marked_files(path)
    if ours is None:
        return "is a folder that dallmi did not write"
    there = {str(p.relative_to(path)) for p in path.rglob("*") if not p.is_dir() or p.is_symlink()}
    strangers = sorted(there - ours)
    return f"holds files that dallmi did not write ({listing(strangers, 3)})" if strangers else None


def check_output(
    path: Path | str,
    overwrite: bool = False,
    inputs: Iterable[Path | str] = (),
    folder: bool = True,
) -> Path:
    """`path` as a `Path` that may be written to. Raises `InputError` for everything else, before
    any work.

    A new place or an empty folder is fine. With `overwrite`, what stands there is replaced if
    this package wrote it: a folder whose marker lists all its files, or (`folder=False`) a file.
    A link, an input, or a folder with anything else in it is refused, with `overwrite` or
    without."""
    path = Path(path).expanduser()
    real = os.path.realpath(path)
    if any(os.path.realpath(Path(i).expanduser()) == real for i in inputs):
        raise InputError(f"'{path}' is an input of this run; write to another place.")
    if not path.exists() and not path.is_symlink():
        return path
    if folder and path.is_file():
        raise InputError(f"'{path}' is a file; give a folder to write to.")
    if not folder and path.is_dir():
        raise InputError(f"'{path}' is a folder; give a file to write to.")
    why = _why_not_ours(path)
    if why:
        raise InputError(f"'{path}' {why}, so it is not replaced; give another place.")
    if not overwrite and not (path.is_dir() and not any(path.iterdir())):
        raise InputError(
            f"'{path}' exists; give another place, or replace it with overwrite=True (--overwrite)."
        )
    return path
