"""Previous, next and solutions at both ends of every chapter, in reading order, links that open it
without an installation, a first cell that installs what is missing there, and the overview's table
of chapters.

    python .ci/navigation.py            writes what is missing or out of date
    python .ci/navigation.py --check    fails where something would be written
    python .ci/navigation.py nbs/1_method/*.ipynb    these chapters only
"""

import json
import os
import re
import sys
from pathlib import Path
from typing import Any

NOTEBOOKS = Path(__file__).parent.parent / "nbs"
LINE = re.compile(r"^((Previous|Next): \[\d\d_.*\)|Open it in \[Colab\].*)$")
REPOSITORY = "dallmi/dallmi"
INSTALL = """\
import importlib.util

if importlib.util.find_spec("dallmi") is None:  # Colab: a copy of the course, and what it needs
    !git clone -q https://github.com/{repository} && pip install -q "./dallmi[course]"
    %cd dallmi/{folder}"""
TABLE = re.compile(r"(?<=<!-- chapters -->\n).*(?=<!-- /chapters -->)", re.S)
PARTS = {"1_method": "The method", "2_using": "Using it", "3_judging": "Judging it"}


def chapters() -> list[Path]:
    "All chapters in reading order: the overview, then part by part, each after its opening page."
    found = [*NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"), *NOTEBOOKS.glob("[0-9]_*/[0-9][0-9]_*.ipynb")]
    return sorted(found, key=lambda path: (path.parent != NOTEBOOKS, path.parent.name, path.name))


def link(text: str, to: Path, page: Path) -> str:
    "A Markdown link from `page` to the notebook `to`."
    return f"[{text}]({os.path.relpath(to, page.parent).replace(os.sep, '/')})"


def line_of(place: int, order: list[Path]) -> str:
    "The line for the chapter at `place` of the reading order."
    page, parts = order[place], []
    if place > 0:
        parts.append("Previous: " + link(order[place - 1].stem, order[place - 1], page))
    if place + 1 < len(order):
        parts.append("Next: " + link(order[place + 1].stem, order[place + 1], page))
    solutions = NOTEBOOKS / "solutions" / page.name
    if solutions.exists():
        parts.append(link("Solutions", solutions, page))
    return " · ".join(parts)


def open_line(page: Path) -> str:
    "The links that open a chapter on a machine of somebody else's."
    path = page.relative_to(NOTEBOOKS.parent).as_posix()
    colab = f"https://colab.research.google.com/github/{REPOSITORY}/blob/main/{path}"
    binder = f"https://mybinder.org/v2/gh/{REPOSITORY}/main?labpath={path}"
    return f"Open it in [Colab]({colab}) or on [Binder]({binder})"


def install_cell(page: Path) -> dict[str, Any]:
    "A cell that does nothing where the package is installed."
    folder = page.parent.relative_to(NOTEBOOKS.parent).as_posix()
    source = INSTALL.format(repository=REPOSITORY, folder=folder).splitlines(keepends=True)
    made = {"cell_type": "code", "execution_count": None, "id": "install", "metadata": {}}
    return made | {"outputs": [], "source": source}


def is_install(cell: dict[str, Any]) -> bool:
    "Whether a cell is one of those, also where an editor gave it another id."
    begins = INSTALL.partition("  #")[0]
    return cell["cell_type"] == "code" and "".join(cell["source"]).startswith(begins)


def without(text: str) -> str:
    "`text` without lines of navigation, and without the blank lines before them."
    kept: list[str] = []
    for row in text.split("\n"):
        if LINE.match(row):
            while kept and not kept[-1]:
                kept.pop()
        else:
            kept.append(row)
    return "\n".join(kept)


def with_line(text: str, line: str) -> str:
    "The first cell, `line` below its title and subtitle."
    rows = text.split("\n")
    at = next(i for i, row in enumerate(rows) if row.startswith("# ")) + 1
    while at < len(rows) and (rows[at].startswith(">") or not rows[at]):
        at += 1
    head = "\n".join(rows[:at]).rstrip("\n")
    return "\n\n".join(part for part in (head, line, "\n".join(rows[at:])) if part)


def navigated(notebook: dict[str, Any], line: str, page: Path) -> dict[str, Any]:
    "`notebook` with `line` in its first cell, and as its last; `page`: where it lies."
    cells = [cell for cell in notebook["cells"] if not is_install(cell)]
    top = "\n\n".join([open_line(page), line])
    first = with_line(without("".join(cells[0]["source"])), top)
    cells[0]["source"] = first.splitlines(keepends=True)
    if any(cell["cell_type"] == "code" for cell in cells):
        cells.insert(1, install_cell(page))
    while cells[-1]["cell_type"] == "markdown" and not without("".join(cells[-1]["source"])):
        cells.pop()
    if cells[-1]["cell_type"] == "markdown":
        last = without("".join(cells[-1]["source"])).rstrip("\n")
        cells[-1]["source"] = last.splitlines(keepends=True)
    end = {"cell_type": "markdown", "id": "navigation", "metadata": {}, "source": [line]}
    return {**notebook, "cells": [*cells, end]}


def about(chapter: Path) -> str:
    "A chapter's title and subtitle, in one line."
    cells = json.loads(chapter.read_text(encoding="utf-8"))["cells"]
    rows = "".join(cells[0]["source"]).split("\n")
    title = [row[2:] for row in rows if row.startswith("# ")][:1]
    subtitle = " ".join(row.lstrip("> ") for row in rows if row.startswith(">"))
    return ". ".join([*title, subtitle]).replace("|", "\\|").removesuffix(".")


def is_in(chapter: Path, folder: str) -> bool:
    "Whether it is a chapter of that part, and not the part's opening page."
    return chapter.parent.name == folder and not chapter.name.startswith("00_")


def table_of(order: list[Path], page: Path) -> str:
    "The chapters of every part, for the overview at `page`."
    text = ""
    for folder, part in PARTS.items():
        rows = [f"| {link(c.stem, c, page)} | {about(c)} |" for c in order if is_in(c, folder)]
        text += "\n".join(["", f"| {part} | |", "|---|---|", *rows, ""])
    return text + "\n"


def put_table(notebook: dict[str, Any], table: str) -> None:
    "Write `table` where `notebook` has the marks for it."
    for cell in notebook["cells"]:
        text = TABLE.sub(lambda _: table, "".join(cell["source"]))
        cell["source"] = text.splitlines(keepends=True)


def main(arguments: list[str]) -> int:
    "Write the lines, or with --check say where they are missing."
    check, order = "--check" in arguments, chapters()
    chosen = {Path(a).resolve() for a in arguments if not a.startswith("--")}
    stale = 0
    for place, page in enumerate(order):
        if chosen and page.resolve() not in chosen:
            continue
        before = page.read_text(encoding="utf-8")
        notebook = json.loads(before)
        if not "".join(notebook["cells"][0]["source"]).startswith("# "):
            print(f"{page.relative_to(NOTEBOOKS)}: its first cell has no title")
            stale += 1
            continue
        notebook = navigated(notebook, line_of(place, order), page)
        if place == 0:
            put_table(notebook, table_of(order, page))
        after = json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True) + "\n"
        if after == before:
            continue
        stale += 1
        if check:
            print(f"{page.relative_to(NOTEBOOKS)}: run python .ci/navigation.py")
        else:
            page.write_text(after, encoding="utf-8")
    return int(check and stale > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
