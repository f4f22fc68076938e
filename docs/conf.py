"""The documentation site: sphinx-build -b html -c docs nbs _docs

Chapters are shown as committed, with their outputs; nothing is run. nbdev's hidden cells and
directives are dropped, imports and tests are folded, and the parts of the course become the
navigation. The API pages are made from the package's docstrings."""

import json
import re
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
NOTEBOOKS = HERE.parent / "nbs"
REPOSITORY = "https://github.com/dallmi/dallmi/blob/main/"
PARTS = {"1_method": "The method", "2_using": "Using it", "3_judging": "Judging it"}

BESIDE = ["glossary", "paper_to_code", "for_teachers"]

project, author = "dallmi", "The dallmi authors"
extensions = ["myst_nb", "autodoc2", "sphinx_copybutton", "sphinx-mathjax-offline"]
exclude_patterns = ["_build", "results", "**.ipynb_checkpoints"]
suppress_warnings = ["myst.header", "mystnb.unknown_mime_type", "autodoc2.dup_item"]

html_theme, html_title = "sphinx_book_theme", "dallmi"
html_theme_options = {
    "path_to_docs": "nbs",
    "home_page_in_toc": True,
    "show_navbar_depth": 1,
    "show_toc_level": 2,
    "pygments_light_style": "a11y-high-contrast-light",
}
html_static_path, html_css_files = ["_static"], ["course.css"]

nb_execution_mode, nb_merge_streams, nb_render_markdown_format = "off", True, "myst"
nb_code_prompt_show, nb_code_prompt_hide = "Show imports or tests", "Hide"
myst_enable_extensions, myst_heading_anchors = ["dollarmath", "amsmath", "colon_fence"], 3

autodoc2_packages = [{"path": "../dallmi", "exclude_files": ["_modidx.py"]}]
autodoc2_output_dir, autodoc2_render_plugin = "api", "myst"
autodoc2_hidden_objects = ["private", "dunder", "inherited", "undoc"]


def toctree(caption: str, names: list[str]) -> str:
    "A hidden table of contents with its caption."
    return "\n".join(["```{toctree}", ":hidden:", f":caption: {caption}", *names, "```", "", ""])


def contents() -> str:
    "The site's navigation: the chapters of every part, the reference, the solutions."
    text = ""
    for folder, title in PARTS.items():
        names = sorted(p.stem for p in (NOTEBOOKS / folder).glob("*.ipynb"))
        first = ["00_overview"] if folder == "1_method" else []
        text += toctree(title, [*first, *(f"{folder}/{name}" for name in names)])
    solved = sorted(f"solutions/{p.stem}" for p in (NOTEBOOKS / "solutions").glob("*.ipynb"))
    return (
        text
        + toctree("Beside it", BESIDE)
        + toctree("Reference", ["api/index"])
        + toctree("Solutions", solved)
    )


def is_aside(cell: dict[str, Any]) -> bool:
    "Whether a code cell shows nothing and holds only imports or tests."
    lines = cell["source"].splitlines()
    tops = [line for line in lines if line.strip() and not line.startswith((" ", ")"))]
    starts = ("test_", "assert ", "import ", "from ")
    return bool(tops) and not cell["outputs"] and all(line.startswith(starts) for line in tops)


def outward(text: str) -> str:
    "Links of a chapter to files outside `nbs`, and to its folders, as links that the site has."
    text = re.sub(
        r"\]\((?:\.\./)+(README|CONTRIBUTING|CHANGELOG|LICENSE|SECURITY|CITATION)",
        rf"]({REPOSITORY}\1",
        text,
    )
    return text.replace("](solutions)", "](solutions/00_overview.ipynb)")


def as_myst(app: Any, docname: str, source: list[str]) -> None:
    "Drop nbdev's hidden cells and directives, fold imports and tests, add contents to the index."
    if not str(app.env.doc2path(docname)).endswith(".ipynb"):
        return
    notebook = json.loads(source[0])
    cells = []
    for cell in notebook["cells"]:
        text, code = "".join(cell["source"]), cell["cell_type"] == "code"
        marks = set(re.findall(r"^#\|\s*([\w-]+)", text, re.M)) if code else set()
        if marks & {"hide", "default_exp"} or cell.get("id") == "install":
            continue
        cell["source"] = re.sub(r"^#\|.*\n?", "", text, flags=re.M) if code else outward(text)
        if code and is_aside(cell):
            cell.setdefault("metadata", {})["tags"] = ["hide-cell"]
        cells.append(cell)
    if docname == "index":
        cells.append({"cell_type": "markdown", "metadata": {}, "source": contents(), "id": "toc"})
    notebook["cells"] = cells
    notebook["metadata"]["language_info"] = {"name": "python", "pygments_lexer": "ipython3"}
    source[0] = json.dumps(notebook)


def setup(app: Any) -> None:
    app.connect("source-read", as_myst)
