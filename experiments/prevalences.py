"""How frequent each label is in the source texts of the grid, for chapter 35.

    python experiments/prevalences.py DATA

DATA holds the folders of the data card in experiments/README.md. Of every pair the first 1,200
source texts, all that the grid's source models were trained on. Writes
nbs/results/prevalences.json, {pair: {label: share}}; OUT=… chooses another file."""

import json
import os
import sys
from pathlib import Path

from dallmi.data.labels import load_domain

OUT = Path(os.environ.get("OUT", "nbs/results/prevalences.json"))
FOLDERS = {name: name for name in ("movies_rt", "arxiv", "pubmed", "movies")} | {"tmdb": "movies"}


def main(data: Path) -> None:
    sources = {"films": "films:source"}
    sources |= {pair: str(data / folder / "source.csv") for pair, folder in FOLDERS.items()}
    found = {}
    for pair, source in sources.items():
        domain = load_domain(source, max_rows=1200)
        shares = domain.labels.mean(0, dtype=float).round(4).tolist()
        found[pair] = dict(zip(domain.label_names, shares, strict=True))
    OUT.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
