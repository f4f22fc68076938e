"""The loop of chapter 33, three rounds from the command line alone, against texts chosen by chance.

    python experiments/own_data_loop.py DATA/movies_rt OUT [seed]

Source: its first 600 texts. Target: 300 texts of which 5 % of the positives are observed, and 400
more for the test. Every round asks for 20 texts, a person who knows all labels fills in the sheet,
and `dallmi adapt` is given the sheets of all rounds so far, at a short budget. Writes the lines of
nbs/results/loop.jsonl to OUT/loop.jsonl."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd

from dallmi import load_domain, mask_labels

ROUNDS, TEXTS = 3, 20
BUDGET = ["--max-length", "64", "--recipe", "anchored:rounds=1,epochs=3"]
BUDGET += ["--compare-with", "source"]


def dallmi(*words: object) -> None:
    "Run a command of `dallmi`."
    print("dallmi", *words, flush=True)
    subprocess.run([sys.executable, "-m", "dallmi.cli", *map(str, words)], check=True)


def fill_in(sheet: Path, known: pd.DataFrame, names: list[str]) -> None:
    "Write the true labels into a sheet: 1 or 0 in every label's column."
    rows = pd.read_csv(sheet, dtype={"id": str})
    for name in names:
        rows[name] = [int(known.loc[i, name]) for i in rows["id"]]
    rows.to_csv(sheet, index=False)


def by_chance(sheet: Path, pool: pd.DataFrame, done: set[str], seed: int, names: list[str]) -> None:
    "A sheet of texts that chance chose, in the columns of the other."
    left = [i for i in pool.index if i not in done]
    chosen = np.random.default_rng(seed).choice(left, TEXTS, replace=False)
    rows = pd.DataFrame({"id": chosen, "text": pool.loc[chosen, "text"].to_numpy()})
    rows.assign(**dict.fromkeys(names, "")).to_csv(sheet, index=False)


def main(data: Path, out: Path, seed: int) -> None:
    "All rounds, both ways."
    out.mkdir(parents=True, exist_ok=True)
    load_domain(data / "source.csv", max_rows=600).to_pandas().to_csv(
        out / "source.csv", index=False
    )
    target = load_domain(data / "target.csv", max_rows=700)
    pool, test = target.select(range(300)), target.select(range(300, 700))
    test.to_pandas().to_csv(out / "test.csv", index=False)
    names = target.label_names
    known = pool.to_pandas().astype({"id": str}).set_index("id")
    few = pool.with_labels(mask_labels(pool.labels, 0.05, seed=seed))
    few.to_pandas().to_csv(out / "target.csv", index=False)
    lines = []
    for way in ("suggest", "chance"):
        sheets: list[Path] = []
        done: set[str] = set()
        for number in range(ROUNDS + 1):
            model = out / f"{way}{number}"
            more = ["--labelled", *sheets] if sheets else []
            files = ["--source", out / "source.csv", "--target", out / "target.csv"]
            if not (way == "chance" and number == 0):  # the same as the other's
                scored = ["--test", out / "test.csv", "--out", model, "--seed", seed]
                dallmi("adapt", *files, *more, *scored, *BUDGET)
                found = json.loads((model / "metrics.json").read_text())
            else:
                found = json.loads((out / "suggest0" / "metrics.json").read_text())
            maps = {name: m["mAP"] for name, m in found["metrics"].items()}
            lines.append({"way": way, "seed": seed, "round": number, "texts": len(done), **maps})
            print(lines[-1], flush=True)
            if number == ROUNDS:
                break
            sheet = out / f"{way}{number + 1}.csv"
            if way == "suggest":
                left = ["--labelled", *sheets] if sheets else []
                dallmi("suggest", model, out / "target.csv", "--n", TEXTS, "--out", sheet, *left)
            else:
                by_chance(sheet, known, done, 100 * seed + number, names)
            fill_in(sheet, known, names)
            done |= set(pd.read_csv(sheet, dtype={"id": str})["id"])
            sheets.append(sheet)
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (out / "loop.jsonl").write_text(text)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 0)
