"""Run the notebooks as tests, each in a fresh process, as a reader has it.

    python .ci/test_notebooks.py                                  # all, two at a time or three
    python .ci/test_notebooks.py nbs/2_using/15_training.ipynb    # one
    python .ci/test_notebooks.py --flags slow nbs/2_using/34*     # the long cells too

The same cells as `nbdev_test`, which runs forty notebooks one after another in a process: each then
stands among what the others left, and the garbage collector visits all of it. Here torch,
transformers and scikit-learn are imported once, and every notebook is forked off. Needs os.fork."""

import argparse
import gc
import os
import resource
import sys
import time
from importlib import import_module
from multiprocessing import connection, get_context
from pathlib import Path

from psutil import cpu_percent

os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
ROOT = Path(__file__).resolve().parent.parent
IMPORTED = ["dallmi.evaluation.benchmark", "matplotlib.pyplot", "nbdev.test", "seaborn"]


def test(notebook: Path, flags: list[str]) -> None:
    "Runs the cells of `notebook`, says what they took; exits with 1 if one failed."
    from nbdev.test import test_nb

    passed, wall = test_nb(notebook, skip_flags=["slow"], force_flags=flags, basepath=ROOT)
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    cpu = sum(one.ru_utime + one.ru_stime for one in used)
    print(f"{wall:6.1f} s, {cpu:6.1f} s of CPU  {notebook.relative_to(ROOT)}", flush=True)
    sys.exit(not passed)


def run_all(notebooks: list[Path], flags: list[str], workers: int) -> list[str]:
    """Names of the notebooks that failed.

    They begin in their order, `workers` at a time, and one more while a core is idle: some wait."""
    waiting, running, failed, most = list(reversed(notebooks)), {}, [], workers
    while waiting or running:
        while waiting and len(running) < most:
            notebook = waiting.pop()
            process = get_context("fork").Process(target=test, args=(notebook, flags))
            process.start()
            running[process.sentinel] = process, notebook
        ended = connection.wait(running, timeout=3)
        idle = (100 - cpu_percent()) / 100 * os.cpu_count()  # cores, since it was asked last
        most = workers + (not ended and idle > 0.6)
        for sentinel in ended:
            process, notebook = running.pop(sentinel)
            process.join()
            if process.exitcode:
                failed.append(f"{notebook.name} (exit status {process.exitcode})")
    return failed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("notebooks", nargs="*", type=Path, help="all of nbs/ by default")
    parser.add_argument("--flags", nargs="*", default=[], help="run these cells too: slow")
    parser.add_argument("--workers", type=int, default=2, help="notebooks at a time")
    args = parser.parse_args()
    began = time.monotonic()
    every = [path for path in ROOT.glob("nbs/**/*.ipynb") if "checkpoint" not in str(path)]
    every.sort(key=lambda path: -path.stat().st_size)  # so that no long one is left for the end
    notebooks = [path.resolve() for path in args.notebooks] or every
    for path in notebooks:
        if not path.is_file():
            parser.error(f"{path} is no file; name a notebook, or none for all of them")

    for name in IMPORTED:
        import_module(name)
    gc.collect()
    gc.freeze()  # the garbage collector need not look at what was imported,
    gc.set_threshold(20_000, 20, 20)  # nor so often: tables make much that is no garbage
    failed = run_all(notebooks, args.flags, args.workers)
    if failed:
        sys.exit("failed: " + ", ".join(failed))
    print(f"{len(notebooks)} notebooks passed in {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
