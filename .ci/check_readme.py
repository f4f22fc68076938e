"""Run what README.md shows: its Python blocks and its `dallmi` commands, on a few texts.

    python .ci/check_readme.py

The files that the examples name are made here; demo and benchmark run in their quick forms. What
installs something, opens JupyterLab or runs the tests is left to the rest of CI. The numbers of the
page are compared with those of nbs/results."""

import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd

from dallmi import load_domain, mask_labels
from dallmi.evaluation.report import differences, pooled_differences, relative_gains
from dallmi.evaluation.results import labels_frame, load_trials, over_seeds, trials_frame
from dallmi.files import read_json

ROOT = Path(__file__).parent.parent
LABELS = ["comedy", "drama", "romance"]
PAIRS = ["films", "movies_rt", "arxiv", "pubmed", "movies", "tmdb"]
COLUMNS = [
    *("source", "source+words", "distilled", "st", "partial", "unsupervised", "paper"),
    *("anchored", "supervised"),
]
QUICK = {
    "demo": ["--quick"],
    "adapt": ["--epochs", "1", "--source-epochs", "1", "--max-length", "32"],
    "benchmark": [
        *("--epochs", "1", "--source-epochs", "1", "--max-length", "32", "--max-rows", "40"),
        *("--label-fractions", "0.3", "--seeds", "0"),
    ],
}
LONG = "The parcel that I had ordered for my sister never came. " * 200  # 2,000 words


def blocks(text: str) -> list[tuple[str, str]]:
    "Language and text of the code blocks, but those for the tests."
    text = text.partition("<!-- tests -->")[0]
    return re.findall(r"^```(\w+)\n(.*?)^```", text, re.M | re.S)


def write_files(folder: Path) -> None:
    "reviews.csv and tickets.csv, a pair of domains, and texts to score."
    source = load_domain("films:source", only_labels=LABELS)
    target = load_domain("films:target", only_labels=LABELS)
    some = [i for i, y in enumerate(source.labels) if y.any()][:20]
    few = [i for i, y in enumerate(target.labels) if y.any()][:40]
    source.select(some).to_pandas().to_csv(folder / "reviews.csv", index=False)
    tickets = target.select(few)
    observed = mask_labels(tickets.labels, 0.5)
    tickets.with_labels(observed).to_pandas().to_csv(folder / "tickets.csv", index=False)
    target.select(range(100, 130)).to_pandas()[["id", "text"]].to_csv(
        folder / "new.csv", index=False
    )
    pair = folder / "pairs" / "reviews"
    pair.mkdir(parents=True)
    source.select(range(60)).to_pandas().to_csv(pair / "source.csv", index=False)
    target.select(range(60)).to_pandas().to_csv(pair / "target.csv", index=False)


def commands(block: str) -> list[list[str]]:
    "The `dallmi` commands of a block, in their quick forms."
    found = []
    for line in block.replace("\\\n", " ").splitlines():
        for part in line.split("&&"):
            words = shlex.split(part, comments=True)
            if words[:1] == ["dallmi"]:
                found.append([*words, *QUICK.get(words[1] if len(words) > 1 else "", [])])
    return found


def script(text: str) -> str:
    "All Python blocks as one, with the variables that they take for granted."
    lines = ["import pandas as pd"]
    lines += ['source_frame, target_frame = pd.read_csv("reviews.csv"), pd.read_csv("tickets.csv")']
    lines += [body for language, body in blocks(text) if language == "python"]
    quick = (
        "adapt = functools.partial(adapt, epochs=1, source_epochs=1, max_length=32, overwrite=True)"
    )
    code = "\n".join(lines)
    code = re.sub(
        r"^from dallmi import adapt$", f"\\g<0>\nimport functools; {quick}", code, flags=re.M
    )
    if "classify = pipeline(" in code:
        code += f"\nassert len(classify([{LONG!r}], truncation=True)[0]) == {len(LABELS)}\n"
    return code


def run(words: list[str], folder: Path) -> None:
    "Run a command in `folder`; ends this script where it fails."
    began = time.monotonic()
    env = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(words, cwd=folder, env=env, capture_output=True, text=True)
    shown = (
        " ".join(words)
        if len(words[-1]) < 500
        else f"the {words[-1].count(chr(10))} lines of Python"
    )
    print(f"{shown}: {time.monotonic() - began:.0f} s", flush=True)
    if done.returncode:
        sys.exit(f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}\nexit code {done.returncode}")


def lead(row: pd.Series) -> str:
    "A difference with its interval, bold where that excludes zero."
    d, low, high = (f"{100 * row[name]:+.1f}" for name in ("difference", "low", "high"))
    text = f"{d} [{low}, {high}]".replace("-", "−")
    return f"**{text}**" if row["low"] > 0 else text


def numbers() -> list[str]:
    "What the page must say of the results, piece by piece."
    trials = load_trials(ROOT / "nbs" / "results" / "grid.jsonl")
    frame = trials_frame(trials, ours=["anchored"])
    labels = labels_frame(trials, ours=["anchored"])
    leads = differences(labels).query("label_fraction == 0.1").set_index("pair")
    found = []
    for pair in PAIRS:
        means = 100 * over_seeds(frame, pair)[0.1]
        cells = [f"{means[name]:.1f}" for name in COLUMNS]
        found.append(" | ".join([*cells, lead(leads.loc[pair])]))
    untouched = labels[labels["pair"].isin(["movies", "tmdb"])]  # no choice was made by them
    for rows in (labels, untouched):
        for _, row in pooled_differences(rows).iterrows():
            d, low, high = (f"{100 * row[name]:.1f}" for name in ("difference", "low", "high"))
            found.append(f"{d} ({low} to {high})".replace("-", "−"))
    papers = trials_frame(trials, ours=["paper"])
    gains = relative_gains(papers[papers["method"] != "anchored"])["partial"]
    for metric in ("mAP@0.5", "mAP"):
        one = gains.xs(0.1, level=2).xs("paper", level=-1)[metric]
        found.append(f"{100 * one.mean():.0f} percent")
    step = read_json(ROOT / "nbs" / "results" / "speed.json")["step"]["rows"]["anchored"]
    return [*found, f"{step['ratio']:.2f} times ({step['lowest']:.2f} to {step['highest']:.2f})"]


def check_numbers(text: str) -> None:
    "End this script where the page does not say what the results do."
    lost = [piece for piece in numbers() if piece not in text]
    if lost:
        sys.exit("README.md does not say, as nbs/results does:\n" + "\n".join(lost))


def main() -> None:
    "Run everything, in the order of the page."
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    check_numbers(text)
    with tempfile.TemporaryDirectory() as d:
        folder = Path(d)
        write_files(folder)
        for language, body in blocks(text):
            for words in commands(body) if language == "sh" else ():
                run(words, folder)
        run([sys.executable, "-c", script(text)], folder)
        trials = (folder / "results" / "report" / "trials.csv").read_text(encoding="utf-8")
        pictures = list((folder / "results" / "report").glob("*.png"))
        if trials.count("\n") != 4 or len(pictures) < 3:
            sys.exit(f"The report has {len(pictures)} pictures and these trials:\n{trials}")
    print("README.md does what it says.")


if __name__ == "__main__":
    main()
