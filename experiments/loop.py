"""The practitioner's loop, three rounds from the command line, against random choice.

A fifth of the target is the test. Of the rest 5 % of the positives are observed. Each round `dallmi
adapt` trains with all sheets so far, `dallmi suggest` writes the next one, and an annotator who
knows the truth fills it in: 1 where a text has a label, blank elsewhere.

    python experiments/loop.py SOURCE.csv TARGET.csv FOLDER [strategy …] [-- options of adapt]

Writes a line per strategy and round to FOLDER/loop.jsonl. For the film blurbs on two cores about
six minutes a round: `films:source films:target loop disagreement random -- --epochs 3`."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd

from dallmi import load_domain, mask_labels

ROUNDS, TEXTS, FRACTION = 3, 20, 0.05


def dallmi(*words):
    "Run a command; its output is shown where it fails."
    done = subprocess.run(["dallmi", *map(str, words)], capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stdout + done.stderr)
    return done.stdout


def prepare(target, folder):
    "Write new.csv (a few positives observed) and test.csv; returns the truth of new.csv."
    train, test = load_domain(target, max_rows=1500).split(0.2, 0)
    seen = mask_labels(train.labels, FRACTION, "label", 0)
    for name, domain in {"new": train.with_labels(seen), "test": test}.items():
        domain.to_pandas().to_csv(folder / f"{name}.csv", index=False)
    return train


def fill_in(sheet, truth):
    "What an annotator writes into a sheet."
    table = pd.read_csv(sheet, dtype=str, keep_default_na=False)
    row = {name: i for i, name in enumerate(truth.ids)}
    for i, name in enumerate(table["id"]):
        marks = truth.labels[row[name]] == 1
        table.loc[i, truth.label_names] = np.where(marks, "1", "")
    table.to_csv(sheet, index=False)


def main():
    "All strategies, one after the other."
    words = sys.argv[1:]
    cut = words.index("--") if "--" in words else len(words)
    (source, target, place, *strategies), options = words[:cut], words[cut + 1 :]
    folder = Path(place)
    folder.mkdir(parents=True, exist_ok=True)
    truth, lines = prepare(target, folder), []
    for strategy in strategies or ["disagreement", "random"]:
        sheets = []
        for number in range(ROUNDS + 1):
            model = folder / f"{strategy}-{number}"
            more = ["--labelled", *sheets] if sheets else []
            files = ["--source", source, "--target", folder / "new.csv"]
            files += ["--test", folder / "test.csv", *more, "--out", model, "--overwrite"]
            dallmi("adapt", *files, "--compare-with", "source", *options)
            record = json.loads((model / "metrics.json").read_text())
            row = {"strategy": strategy, "round": number, "verdict": record["verdict"]["word"]}
            row |= {name: round(m["mAP"], 4) for name, m in record["metrics"].items()}
            lines.append(json.dumps(row | {"observed": record["counts"]["observed"]}))
            print(lines[-1], flush=True)
            (folder / "loop.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
            if number < ROUNDS:
                sheet = folder / f"{strategy}-{number + 1}.csv"
                sheet.unlink(missing_ok=True)
                dallmi(
                    "suggest",
                    model,
                    folder / "new.csv",
                    "--n",
                    TEXTS,
                    "--out",
                    sheet,
                    "--strategy",
                    strategy,
                    *more,
                )
                fill_in(sheet, truth)
                sheets.append(sheet)


if __name__ == "__main__":
    main()
