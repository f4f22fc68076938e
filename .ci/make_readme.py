"""Write README.md from nbs/index.ipynb, with paths seen from the root.

`--check` compares and fails where they differ."""

import re
import sys
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter

root = Path(__file__).parent.parent


def readme():
    nb = nbformat.read(root / "nbs/index.ipynb", as_version=4)
    nb.cells = [c for c in nb.cells if not c.source.startswith("#| hide")]
    for cell in nb.cells:
        cell.source = "\n".join(
            line for line in cell.source.splitlines() if not line.startswith("#|")
        )
    text, _ = MarkdownExporter().from_notebook_node(nb)
    text = re.sub(r"\]\((?!https?:|#|\.\./)([^)]+)\)", r"](nbs/\1)", text)
    text = text.replace("](../", "](")
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


if __name__ == "__main__":
    path = root / "README.md"
    if "--check" in sys.argv[1:]:
        if path.read_text(encoding="utf-8") != readme():
            sys.exit("README.md differs from nbs/index.ipynb: run python .ci/make_readme.py")
    else:
        path.write_text(readme(), encoding="utf-8")
