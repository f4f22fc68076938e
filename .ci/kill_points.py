"""Kill `adapt`, `predict` and `benchmark` at random points, and give the same command again.

    python .ci/kill_points.py            # 25 points of each command, some minutes
    python .ci/kill_points.py --short    # a few of each, under a minute

A point is a signal (SIGINT, SIGTERM, SIGKILL) or a full disk, at the n-th file that the command
opens, makes, renames or removes, or after some time, or (`fresh`) in a process that still imports.
The command must then end as it should: with one sentence and no traceback where it can speak, and
what it says was kept is there. The same command must go on, end with the numbers of a run that
nobody disturbed, and leave no file more. Texts and model are small and random. Needs os.fork."""

import argparse
import hashlib
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

WORDS = "late slow bill wrong parcel broke never came good kind film war love sad price paid"
LABELS = {
    "slow": {"late", "slow", "never"},
    "broken": {"broke", "wrong"},
    "money": {"bill", "price"},
}
BUDGET = "--model tiny --max-length 16 --source-epochs 2 --epochs 2 --label-fraction 0.4"
COMMANDS = {
    "adapt": f"adapt --source source.csv --target pairs/q/target.csv {BUDGET} --out model",
    "predict": "predict ../trained texts.csv more.jsonl --out scores.csv",
    "benchmark": "benchmark --data-dir pairs --pairs q --methods partial tfidf-st --seeds 0 "
    + "--jobs 2 "
    + BUDGET.replace("fraction", "fractions"),
}
SHORT_BENCHMARK = COMMANDS["benchmark"].replace("partial tfidf-st", "partial")
TOLD = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree")
SPOKEN = {signal.SIGINT: (130,), "full disk": (1, 2)}


@dataclass
class Point:
    "Where a command is disturbed, and how."

    what: signal.Signals | str
    how: str  # event, time, fresh
    at: float
    limit: int = 0  # bytes of a file, on a full disk

    def __str__(self) -> str:
        name = self.what if isinstance(self.what, str) else self.what.name
        where = {"event": f"event {self.at:.0f}", "time": f"{self.at:.2f} s"}
        return f"{name} at {where.get(self.how, f'{self.at:.2f} s, import included')}"


def write_inputs(folder: Path, seed: int = 0) -> None:
    "A tiny random BERT, two domains and texts to score."
    import torch
    from transformers import BertConfig, BertModel, BertTokenizerFast

    rng = random.Random(seed)
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS.split()]
    tokenizer = BertTokenizerFast(
        vocab={word: i for i, word in enumerate(names)}, model_max_length=64
    )
    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "max_position_embeddings": 64}
    config = BertConfig(vocab_size=len(names), num_hidden_layers=1, num_attention_heads=2, **sizes)
    tokenizer.save_pretrained(folder / "tiny")
    BertModel(config).save_pretrained(folder / "tiny")
    (folder / "pairs" / "q").mkdir(parents=True)
    for name, rows in (("source", 48), ("pairs/q/target", 60), ("texts", 300)):
        lines = [",".join(["id", "text", *LABELS])]
        for row in range(rows):
            words = [name[0], str(row), *rng.choices(WORDS.split(), k=7)]
            marks = [str(int(bool(carry & set(words)))) for carry in LABELS.values()]
            lines.append(",".join([f"{name[0]}{row}", " ".join(words), *marks]))
        (folder / f"{name}.csv").write_text("\n".join(lines) + "\n")
    shutil.copy(folder / "source.csv", folder / "pairs" / "q")
    more = [" ".join(rng.choices(WORDS.split(), k=9)) for _ in range(1500)]  # several chunks
    lines = [json.dumps({"id": f"m{row}", "text": text}) for row, text in enumerate(more)]
    (folder / "more.jsonl").write_text("\n".join(lines) + "\n")


def disturb(point: Point, folder: Path, count: Callable[[int], None] | None = None) -> None:
    "In the child: count what is done to files below `folder`, and strike at the chosen one."
    seen = 0

    def hook(event: str, args: tuple) -> None:
        nonlocal seen
        if event == "open":
            flags = args[2] if isinstance(args[2], int) else 0
            if not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                return
        elif event not in TOLD:
            return
        path = os.path.abspath(args[0]) if isinstance(args[0], (str, os.PathLike)) else ""
        if not path.startswith(str(folder)):
            return
        seen += 1
        if count:
            count(seen)
        if seen == point.at:
            strike(point)

    sys.addaudithook(hook)


def strike(point: Point) -> None:
    "Do to this process what the point says."
    if isinstance(point.what, signal.Signals):
        os.kill(os.getpid(), point.what)
    else:
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        resource.setrlimit(resource.RLIMIT_FSIZE, (point.limit, hard))


def run(arguments: list[str], folder: Path, point: Point | None = None) -> tuple[int, str, int]:
    "Run `dallmi` in `folder`, disturbed or not: exit code, what it said, files touched."
    if point and point.how == "fresh":
        return run_fresh(arguments, folder, point)
    listen, speak = os.pipe()
    counted, tell = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(listen)
        os.dup2(speak, 1)
        os.dup2(speak, 2)
        code = in_child(arguments, folder, point, tell)
        os._exit(code)
    os.close(speak)
    os.close(tell)
    said: list[bytes] = []
    reader = threading.Thread(target=lambda: said.extend(iter(lambda: os.read(listen, 65536), b"")))
    reader.start()
    if point and point.how == "time":
        reader.join(point.at)
        if reader.is_alive():
            os.kill(pid, point.what)  # type: ignore[arg-type]
    status = os.waitpid(pid, 0)[1]
    reader.join(20)
    os.close(listen)
    with os.fdopen(counted) as f:
        lines = f.read().split()
    code = os.waitstatus_to_exitcode(status)
    return code, b"".join(said).decode(errors="replace"), int(lines[-1]) if lines else 0


def in_child(arguments: list[str], folder: Path, point: Point | None, tell: int) -> int:
    "The command, in a process of its own that has imported everything; returns its exit code."
    import dallmi.cli

    os.chdir(folder)
    os.environ["DALLMI_CACHE"] = str(folder / "cache")
    signal.signal(signal.SIGINT, signal.default_int_handler)
    counting = point is None
    disturb(
        point or Point("nothing", "event", -1),
        folder,
        (lambda n: os.write(tell, f"{n}\n".encode()) and None) if counting else None,
    )
    try:
        dallmi.cli.main(arguments)
        code = 0
    except SystemExit as e:
        code = e.code if isinstance(e.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def run_fresh(arguments: list[str], folder: Path, point: Point) -> tuple[int, str, int]:
    "The command as a user starts it; the signal may come while it imports."
    code = "from dallmi.cli import main; main()"
    env = os.environ | {"DALLMI_CACHE": str(folder / "cache")}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    child = subprocess.Popen([sys.executable, "-c", code, *arguments], cwd=folder, env=env, **pipes)
    try:
        said, _ = child.communicate(timeout=point.at)
    except subprocess.TimeoutExpired:
        child.send_signal(point.what)  # type: ignore[arg-type]
        said, _ = child.communicate()
    return child.returncode, said, 0


def numbers(command: str, folder: Path) -> object:
    "The numbers that a finished command leaves."
    if command == "predict":
        return (folder / "scores.csv").read_text()
    if command == "adapt":
        views = ("model.safetensors", "words.safetensors", "words.json")
        weights = b"".join((folder / "model" / name).read_bytes() for name in views)
        found = json.loads((folder / "model" / "metrics.json").read_text())
        thresholds = json.loads((folder / "model" / "config.json").read_text())["thresholds"]
        return found["metrics"], thresholds, hashlib.sha256(weights).hexdigest()
    trials = {p.name: json.loads(p.read_text()) for p in (folder / "results").glob("*.json")}
    return {n: (t.get("error"), t.get("metrics"), t.get("labels")) for n, t in trials.items()}


def listing(folder: Path) -> set[str]:
    "All files and folders below `folder`."
    return {str(p.relative_to(folder)) for p in folder.rglob("*")}


def problems(
    command: str, arguments: list[str], folder: Path, point: Point, whole: tuple[object, set[str]]
) -> list[str]:
    "What is wrong after the command was disturbed at a point and given again, a line each."
    found = []
    code, said, _ = run(arguments, folder, point)
    struck = code != 0
    if "Traceback" in said:
        found.append("a traceback: " + said.strip().splitlines()[-1][:200])
    if struck and point.what in SPOKEN and code not in SPOKEN[point.what]:
        found.append(f"exit code {code}: {said.strip()[-200:]}")
    for kept in re.findall(r"kept in '([^']+)'", said):
        if not (folder / kept).exists():
            found.append(f"said to be kept, and not there: {kept}")
    for _ in range(3):
        code, said, _ = run(arguments, folder) if struck else (0, "", 0)
        if code == 0 or "exists; give another place" in said:
            break
    else:
        found.append(f"the same command ends with {code}: {said.strip()[-300:]}")
        return found
    if numbers(command, folder) != whole[0]:
        found.append("other numbers")
    more, less = listing(folder) - whole[1], whole[1] - listing(folder)
    found += [f"left over: {name}" for name in sorted(more)[:5]]
    found += [f"missing: {name}" for name in sorted(less)[:5]]
    return found


def points(number: int, events: int, seconds: float, fresh: int, rng: random.Random) -> list[Point]:
    "Random points: half of them at events, half by time; the last `fresh` with the import."
    signals = [signal.SIGINT, signal.SIGTERM, signal.SIGKILL]
    found = []
    for i in range(number):
        what = [*signals, "full disk"][i % 4]
        if i >= number - fresh:
            found.append(Point(signals[i % 3], "fresh", rng.uniform(0.3, seconds + 7)))
        elif what == "full disk" or (i % 8 < 4 and events > 10):  # a benchmark's work is elsewhere
            limit = rng.choice([0, 50, 500, 3000, 12000])
            found.append(Point(what, "event", rng.randint(1, max(events, 1)), limit))
        else:
            found.append(Point(what, "time", rng.uniform(0, seconds)))
    return found


def try_command(command: str, text: str, number: int, fresh: int, root: Path, seed: int) -> int:
    "Disturb one command at `number` points, print a line for each; returns how many went wrong."
    arguments = text.split()
    inputs = root / "inputs"
    home = Path(tempfile.mkdtemp(prefix=f"{command}-", dir=root))
    folder = home / "run"
    shutil.copytree(inputs, folder)
    if command == "predict":
        shutil.copytree(root / "trained", home / "trained")
    began = time.monotonic()
    code, said, events = run(arguments, folder)
    seconds = time.monotonic() - began
    if code:
        raise SystemExit(f"dallmi {text}\nends with {code}:\n{said}")
    whole = numbers(command, folder), listing(folder)
    if command == "adapt" and not (root / "trained").exists():
        shutil.copytree(folder / "model", root / "trained")
    print(f"{command}: {events} events, {seconds:.1f} s undisturbed", flush=True)
    bad = 0
    for point in points(number, events, seconds, fresh, random.Random(f"{seed} {command}")):
        shutil.rmtree(folder)
        shutil.copytree(inputs, folder)
        found = problems(command, arguments, folder, point, whole)
        bad += bool(found)
        print(f"  {point}: {'; '.join(found) or 'equal'}", flush=True)
    return bad


def main() -> None:
    "Parse the options, make the inputs, try all commands."
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--short", action="store_true", help="a few points of each command")
    parser.add_argument("--points", type=int, default=25, help="points of each command")
    parser.add_argument("--commands", nargs="+", choices=list(COMMANDS), default=list(COMMANDS))
    parser.add_argument("--seed", type=int, default=0, help="of the points")
    args = parser.parse_args()
    import dallmi.adaptation
    import dallmi.evaluation.benchmark  # noqa: F401  # the children need not import it again

    counts = {"adapt": 5, "predict": 5, "benchmark": 1} if args.short else {}
    texts = COMMANDS | ({"benchmark": SHORT_BENCHMARK} if args.short else {})
    bad = total = 0
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary).resolve()
        (root / "inputs").mkdir()
        run_inputs = os.fork()  # PyTorch computes in children only, so that it can be forked
        if not run_inputs:
            write_inputs(root / "inputs")
            os._exit(0)
        os.waitpid(run_inputs, 0)
        needed = {*args.commands, *(["adapt"] if "predict" in args.commands else [])}
        for command in filter(needed.__contains__, COMMANDS):
            number = counts.get(command, args.points) if command in args.commands else 0
            fresh = 0 if args.short else number // 5
            bad += try_command(command, texts[command], number, fresh, root, args.seed)
            total += number
    print(f"{total - bad} of {total} points survived with equal numbers")
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
