"""The rivals that the accelerator's time left out of the grid, on cut pairs and two cores.

    python experiments/small_grid.py DATA MODEL OUT [METHOD ...]

DATA: the folder of the pairs; MODEL: the folder of an encoder, or 'minilm' for the bundled one;
OUT: a folder, which a second run goes on with. Sources are cut to their first 400 texts and targets
to their first 900, of which 300 are trained on; 48 tokens of a text are read. OUT/trials.jsonl is
what chapter 39 reads as nbs/results/small.jsonl, of a run that was stopped after the rivals' second
seed: without the third, and with one seed of `anchored`."""

import csv
import json
import sys
from pathlib import Path

from dallmi.evaluation.benchmark import Grid, benchmark
from dallmi.settings import Settings

PAIRS = ["arxiv", "films", "movies", "movies_rt", "pubmed", "tmdb"]
METHODS = ["source", "asl", "em", "splc", "nnpu", "spu", "anchored"]
ROWS = {"source": 400, "target": 900}


class Ordered(Grid):
    "The trials of one seed before those of the next, the methods in the order that was asked for."

    def trials(self):
        return sorted(super().trials(), key=lambda t: (t.seed, self.methods.index(t.method)))


def cut_pairs(data: Path, out: Path, pairs: list[str], rows_of: dict[str, int]) -> None:
    "Write the first rows of every pair's files to `out`; the films come with the package."
    csv.field_size_limit(10**9)
    for pair in set(pairs) - {"films"}:
        (out / pair).mkdir(parents=True, exist_ok=True)
        for part, most in rows_of.items():
            with open(data / pair / f"{part}.csv", newline="", encoding="utf-8") as file:
                rows = list(csv.reader(file))[: most + 1]
            with open(out / pair / f"{part}.csv", "w", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows(rows)


if __name__ == "__main__":
    data, model, out = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
    model = None if model == "minilm" else model
    cut_pairs(data, out / "data", PAIRS, ROWS)
    grid = Ordered(
        pairs=PAIRS,
        data_dir=str(out / "data"),
        methods=sys.argv[4:] or METHODS,
        settings=Settings(model=model, max_length=48),
        target_rows=300,
        seeds=[0, 1, 2],
        label_fractions=[0.1, 0.3, 0.5],
    )
    failed = benchmark(grid, out / "trials", jobs=2, stream=sys.stdout)
    lines = [json.dumps(json.loads(p.read_text())) for p in sorted((out / "trials").glob("*.json"))]
    (out / "trials.jsonl").write_text("\n".join(lines) + "\n")
    print(len(lines), "trials;", len(failed), "failed")
