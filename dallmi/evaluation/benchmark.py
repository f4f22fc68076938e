"""A grid of trials, methods × pairs × label fractions × seeds, that survives being killed."""

__all__ = ["Trial", "BASELINES", "Grid", "run_trial", "benchmark"]

import inspect
import json
import os
import re
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch
from filelock import FileLock, Timeout
from loky import ProcessPoolExecutor
from loky.process_executor import TerminatedWorkerError

import dallmi
from dallmi.baselines.adversarial import adapt_adversarially
from dallmi.baselines.linear import fit_linear
from dallmi.errors import InputError, unknown_name
from dallmi.evaluation.results import check_together, read_trial
from dallmi.files import write_json
from dallmi.losses import variation_loss
from dallmi.metrics import evaluate, expected_f1_thresholds, prevalences
from dallmi.pipeline import (
    MethodScores,
    Pipeline,
    SourceStage,
    Task,
    digest,
    load_task,
    source_classifier,
    untrained_classifier,
    versions,
)
from dallmi.recipes import RECIPES, Recipe, find_recipe
from dallmi.settings import Settings
from dallmi.training.callbacks import TrainingDiverged, duration


@dataclass(frozen=True)
class Trial:
    """One training of a grid.

    `label_fraction` and `masking` are None where they make no difference."""

    pair: str
    method: str
    label_fraction: float | None = None
    masking: str | None = None
    seed: int = 0

    def __str__(self) -> str:
        how = f" {self.label_fraction:g} by {self.masking}" if self.label_fraction else ""
        return f"{self.pair} {self.method}{how} seed {self.seed}"


BASELINES = ("source", "tfidf", "unsupervised")
_FREE = ("source", "unsupervised")  # methods that look at no label of the target
_UNTRAINED = ("source", "tfidf")  # their seconds say nothing about a training
_BUDGET = {"batch_size": 16, "epochs": 3}


@dataclass
class Grid:
    """What `dallmi benchmark` runs: every pair × method × label fraction × masking × seed.

    `methods`: names of `BASELINES`, recipes, or recipes with changes; `recipes`: your own,
    {name: recipe}. `settings`: those of all trials. `budget`: `epochs` and `batch_size` of all
    methods that do not change them in their name. With several learning rates each trial chooses
    its own, by the variation loss on held-out target texts, without a hidden label. Raises
    `InputError` for what cannot be run."""

    pairs: Sequence[str]
    methods: Sequence[str] = (*BASELINES, *RECIPES)
    label_fractions: Sequence[float] = (0.1, 0.3, 0.5)
    maskings: Sequence[str] = ("label",)
    seeds: Sequence[int] = (0, 1, 2)
    learning_rates: Sequence[float] = (1e-4,)
    data_dir: str = "."
    settings: Settings = Settings()
    budget: Mapping[str, Any] = field(default_factory=dict)
    recipes: Mapping[str, Recipe] = field(default_factory=dict)

    def __post_init__(self) -> None:
        lists = ("pairs", "methods", "label_fractions", "maskings", "seeds", "learning_rates")
        for name in lists:
            if isinstance(getattr(self, name), str) or not getattr(self, name):
                raise InputError(f"The grid needs a list of {name}, at least one.")
        for name, recipe in self.recipes.items():
            if not isinstance(recipe, Recipe) or name in BASELINES:
                raise InputError(f"recipes[{name!r}] must be a Recipe, and no name of a baseline.")
        own = [method for method in self.methods if "learning_rate=" in method]
        if own and len(self.learning_rates) > 1:
            raise InputError(
                f"{own[0]!r} names its rate, so it cannot choose one of several; drop one of both."
            )
        for rate in self.learning_rates:
            find_recipe("partial", defaults=self.budget_at(rate))
            for trial in self.trials():
                self.recipe(trial.method, rate)
                self.trial_settings(trial)

    def budget_at(self, learning_rate: float) -> dict[str, Any]:
        "`batch_size`, `epochs` and `learning_rate` of a method that does not change them."
        return {**_BUDGET, **self.budget, "learning_rate": learning_rate}

    def recipe(self, method: str, learning_rate: float | None = None) -> Recipe | None:
        "The recipe of a method at the grid's budget; None for a baseline."
        if method in BASELINES:
            return None
        known = {**RECIPES, **self.recipes}
        if method.partition(":")[0] not in known:
            raise unknown_name("method", method, [*BASELINES, *known])
        return find_recipe(
            method, known, defaults=self.budget_at(learning_rate or self.learning_rates[0])
        )

    def trials(self) -> list[Trial]:
        "The trials, each once: a method that sees none or all of the labels has one per seed."
        found = []
        axes = (self.seeds, self.maskings, self.label_fractions, self.pairs, self.methods)
        for seed, masking, fraction, pair, method in product(*axes):
            recipe = self.recipe(method)
            if method in _FREE or (recipe and recipe.labels == "all"):
                found.append(Trial(pair, method, seed=seed))
            else:
                found.append(Trial(pair, method, fraction, masking, seed))
        return list(dict.fromkeys(found))

    def files(self, pair: str) -> tuple[str, str]:
        "Source and target of a pair."
        if pair == "films":
            return "films:source", "films:target"
        folder = Path(self.data_dir) / pair
        return str(folder / "source.csv"), str(folder / "target.csv")

    def trial_settings(self, trial: Trial) -> Settings:
        "The `Settings` of a trial."
        return replace(
            self.settings,
            label_fraction=1.0 if trial.label_fraction is None else trial.label_fraction,
            masking=trial.masking or "label",
            seed=trial.seed,
        )


def _load(grid: Grid, trial: Trial) -> Task:
    "The texts and labels of a trial."
    settings = grid.trial_settings(trial)
    return load_task(
        *grid.files(trial.pair),
        text_column=settings.text_column,
        label_columns=settings.label_columns,
        only_labels=settings.only_labels,
        max_rows=settings.max_rows,
        trust_negatives=settings.trust_negatives,
        label_fraction=settings.label_fraction,
        masking=settings.masking,
        seed=settings.seed,
    )


def _check_pair(grid: Grid, pair: str) -> str:
    "Digest of a pair's texts and labels. Raises `InputError` for a pair that cannot be used."
    folder = Path(grid.data_dir)
    if pair != "films" and not (folder / pair).is_dir():
        there = sorted(path.parent.name for path in folder.glob("*/source.csv"))
        raise unknown_name(f"pair in '{folder}' called", pair, [*there, "films"])
    task = _load(grid, Trial(pair, "source", seed=grid.seeds[0]))
    assert task.test is not None and task.all_labels is not None
    labels = np.concatenate([task.all_labels, task.test.labels])
    for part, values in (("source", task.source.labels), ("target", labels)):
        if np.isnan(values).any():
            raise InputError(
                f"The {part} of the pair {pair!r} has unknown labels; a benchmark needs all of "
                "them, and hides some itself."
            )
    target = sorted(zip(task.target.texts + task.test.texts, labels.tolist(), strict=True))
    source = task.source
    return digest(source.texts, source.labels.tolist(), source.label_names, target)


def _code(loss: torch.nn.Module) -> str | None:
    "Digest of the source code of a loss that this package does not bring; None for its own."
    if type(loss).__module__.startswith("dallmi."):
        return None
    functions = [value for value in vars(type(loss)).values() if inspect.isfunction(value)]
    try:
        return digest(*map(inspect.getsource, functions))
    except OSError:
        return None


def _plain(value: Any) -> Any:
    "An array, tensor or NumPy number as JSON has it."
    if hasattr(value, "tolist"):
        return value.tolist()
    raise InputError(
        f"A loss has the parameter {str(value)[:40]!r}, which a result file cannot hold; use "
        "numbers, words and lists."
    )


def _configuration(grid: Grid, trial: Trial, data: str) -> dict[str, Any]:
    "All that decides a trial's numbers, as JSON has it; `data`: what `_check_pair` gave."
    settings = asdict(grid.trial_settings(trial)) | grid.budget_at(grid.learning_rates[0])
    recipe = grid.recipe(trial.method)
    if recipe is not None:
        settings |= {name: getattr(recipe, name) for name in (*_BUDGET, "learning_rate")}
        code = _code(recipe.loss)
        settings["recipe"] = recipe.describe() | ({"code": code} if code else {})
    if len(grid.learning_rates) > 1:
        settings["learning_rate"] = list(grid.learning_rates)
    config = {"version": dallmi.__version__, "trial": asdict(trial)}
    return json.loads(json.dumps(config | {"settings": settings, "data": data}, default=_plain))


def _trial_file(out: Path, config: Mapping[str, Any]) -> Path:
    "Path of a trial's result: words to read, and a digest of its whole configuration."
    t = config["trial"]
    share = [f"{t['label_fraction']:g}", t["masking"]] if t["label_fraction"] else []
    words = [t["pair"], t["method"], *share, f"s{t['seed']}", digest(config)[:10]]
    return out / ("_".join(re.sub(r"[^\w.=-]+", "-", word) for word in words) + ".json")


def _pipeline(grid: Grid, trial: Trial, task: Task) -> Pipeline:
    """The pipeline of a trial, from the source model that all trials of a pair share, whatever
    their seed."""
    settings = grid.trial_settings(trial)
    fresh = untrained_classifier(
        task.source.label_names, settings.model, settings.max_length, settings.bf16, seed=0
    )
    stage = SourceStage(
        settings.source_epochs,
        settings.source_batch_size,
        settings.source_learning_rate,
        settings.head_multiplier,
        seed=0,
    )
    return Pipeline(task, source_classifier(task.source, fresh, stage), settings.seed)


def _fit_words(task: Task) -> MethodScores:
    "The scores of a linear model of words, fitted on the source and the target's observed labels."
    assert task.test is not None
    began = time.monotonic()
    score = fit_linear(task.source.texts, task.source.labels, task.target.texts, task.target.labels)
    seconds = time.monotonic() - began
    return MethodScores(score(task.target.texts), score(task.test.texts), seconds)


_AAD_RATE = 0.1  # the published rate of AAD, 1e-5, is a tenth of the other methods'


def _train(grid: Grid, method: str, rate: float, pipeline: Pipeline) -> MethodScores:
    "Train the source model of a pipeline by a method, at a learning rate."
    recipe = grid.recipe(method, rate)
    if recipe is not None:
        with tempfile.TemporaryDirectory() as folder:
            return pipeline.train(method, recipe, Path(folder))
    pipeline.reset()
    source_ids = pipeline.classifier.tokenize(pipeline.task.source.texts)
    target_ids = pipeline.rows["input_ids"][:]
    began = time.monotonic()
    adapt_adversarially(
        pipeline.classifier,
        source_ids,
        target_ids,
        **grid.budget_at(rate * _AAD_RATE),
        seed=pipeline.seed,
    )
    return pipeline.scores(time.monotonic() - began)


def _validation_loss(probs: np.ndarray, observed: np.ndarray) -> float:
    "Log-form variation loss of `probs` on `observed`, both [N, L], summed; lower is better."
    clipped = torch.as_tensor(np.clip(probs, 1e-7, 1 - 1e-7), dtype=torch.float64)
    labels = torch.as_tensor(observed, dtype=torch.float64)
    return float(variation_loss(clipped.logit(), labels, "log"))


def _choose_rate(grid: Grid, method: str, pipeline: Pipeline) -> float:
    """The learning rate with the smallest `_validation_loss` on a fifth of the target, which no
    training sees here."""
    task = pipeline.task
    rows = np.random.default_rng(pipeline.seed).permutation(len(task.target))
    held, kept = np.split(rows, [len(rows) // 5])
    all_labels = None if task.all_labels is None else task.all_labels[kept]
    part = replace(task, target=task.target.select(kept), all_labels=all_labels, test=None)
    pipeline.reset()
    inner = Pipeline(part, pipeline.classifier, pipeline.seed)
    losses = {}
    for rate in grid.learning_rates:
        _train(grid, method, rate, inner)
        probs = pipeline.classifier.score_tokens(pipeline.rows.select(held)["input_ids"])
        losses[rate] = _validation_loss(probs, task.target.labels[held])
    return min(losses, key=losses.__getitem__)


def _method_scores(grid: Grid, trial: Trial, task: Task) -> tuple[MethodScores, dict[str, float]]:
    "The scores of a trial's method, and the learning rate that it chose, where there are several."
    if trial.method == "tfidf":
        return _fit_words(task), {}
    pipeline = _pipeline(grid, trial, task)
    if trial.method == "source":
        return pipeline.source_scores(), {}
    if len(grid.learning_rates) == 1:
        return _train(grid, trial.method, grid.learning_rates[0], pipeline), {}
    began = time.monotonic()
    rate = _choose_rate(grid, trial.method, pipeline)
    searched = time.monotonic() - began
    scores = _train(grid, trial.method, rate, pipeline)
    scores = replace(scores, seconds=scores.seconds + searched)
    return scores, {"chosen_learning_rate": rate}


def _peak_memory() -> int:
    "Bytes in use at the high-water mark of this process, or on its GPU."
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    try:
        found = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
        return 1024 * int(found[1]) if found else 0
    except OSError:
        from resource import RUSAGE_SELF, getrusage

        return getrusage(RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def run_trial(grid: Grid, trial: Trial) -> dict[str, Any]:
    """Train and measure one trial; returns metrics, labels, chance, counts, seconds, memory_mb and
    versions.

    Metrics are in [0, 1]. `seconds` are those of the adaptation, a search for the learning rate
    included, without source stage and scoring; `memory_mb` is the peak of the process so far."""
    task = _load(grid, trial)
    assert task.test is not None
    scores, chosen = _method_scores(grid, trial, task)
    names = task.test.label_names
    thresholds = expected_f1_thresholds(scores.target)
    metrics = evaluate(scores.test, task.test.labels, names, thresholds)
    labels = metrics.pop("labels")
    counts = {"source": len(task.source), "target": len(task.target), "test": len(task.test)}
    return {
        "metrics": metrics,
        "labels": labels,
        "chance": prevalences(task.test.labels, names),
        "counts": counts | {"observed": int((task.target.labels == 1).sum())},
        "seconds": round(scores.seconds, 2),
        "memory_mb": round(_peak_memory() / 2**20, 1),
        "versions": versions(),
        **chosen,
    }


def _start_worker(log: str, parent: int) -> None:
    "In a worker: write to the end of the file `log`, and end when the parent does."
    target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(target, 1)
    os.dup2(target, 2)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _keep_interrupt_away() -> None:
    """In a thread: the processes that it starts do not hear the terminal's Ctrl-C, from their first
    moment on."""
    if hasattr(signal, "pthread_sigmask"):
        resource_tracker.ensure_running()  # Python's own, which would undo it if it began later
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})


def _sentence(error: BaseException) -> str:
    "An exception as one sentence."
    words = " ".join(str(error).split()) or "no message"
    known = isinstance(error, (InputError, TrainingDiverged))
    return words if known else f"{type(error).__name__}: {words}"


def _work(grid: Grid, trial: Trial, config: dict[str, Any], path: Path, began: float) -> None:
    "In a worker: run a trial and write its result, or what went wrong, so that the grid goes on."
    try:
        result = run_trial(grid, trial)
    except Exception as e:
        result = {"error": _sentence(e)}
    write_json(path, config | result | {"trial_seconds": round(time.time() - began, 1)})


def _finished(path: Path) -> dict[str, Any] | None:
    "The trial in the file at `path`; None where it holds no numbers."
    try:
        trial = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return trial if "metrics" in trial else None


def _likeness(trial: Trial) -> list[tuple]:
    "What tells how long a trial takes, the best clue first: pair and method, pair, nothing."
    trained = trial.method not in _UNTRAINED
    return [(trial.pair, trial.method), (trial.pair, trained), (trained,)]


def _time_left(todo: Sequence[Trial], took: Mapping[Trial, float], jobs: int) -> float | None:
    """Seconds for the trials `todo`, `jobs` at a time; None where that is not known yet.

    `took`: seconds of finished trials. Untrained trials that nothing is known of count as 0."""
    seen: dict[tuple, list[float]] = {}
    for trial, seconds in took.items():
        for key in _likeness(trial):
            seen.setdefault(key, []).append(seconds)
    total = 0.0
    for trial in todo:
        alike = next((seen[key] for key in _likeness(trial) if key in seen), [])
        if not alike and trial.method not in _UNTRAINED:
            return None
        total += sum(alike) / max(len(alike), 1)
    return total / min(jobs, max(len(todo), 1))


class _Run:
    "A grid on its way: what is done, what is left, and a line for every finished trial."

    def __init__(
        self, grid: Grid, out: Path, jobs: int, data: Mapping[str, str], stream: TextIO | None
    ) -> None:
        self.grid, self.jobs = grid, jobs
        self.stream = stream or sys.stderr
        self.log = out / "log.txt"
        self.threads = max(1, (os.cpu_count() or 1) // jobs)
        self.configs = {t: _configuration(grid, t, data[t.pair]) for t in grid.trials()}
        self.paths = {t: _trial_file(out, config) for t, config in self.configs.items()}
        finished = {trial: _finished(path) for trial, path in self.paths.items()}
        self.took = {t: found["trial_seconds"] for t, found in finished.items() if found}
        self.todo = [trial for trial in self.paths if trial not in self.took]
        first = {t.pair: t for t in reversed(self.todo) if t.method != "tfidf"}
        self.todo.sort(key=lambda t: t is not first.get(t.pair))  # they train the source models
        self.workers: set[ProcessPoolExecutor] = set()
        self.stopped = False
        self.ending = threading.Lock()

    def in_worker(self, trial: Trial) -> str | None:
        "Run a trial in a process of its own; returns why it ended without a word, or None."
        env = {"OMP_NUM_THREADS": str(self.threads), "TOKENIZERS_PARALLELISM": "false"}
        start = (str(self.log), os.getpid())
        worker = ProcessPoolExecutor(1, env=env, initializer=_start_worker, initargs=start)
        self.workers.add(worker)
        try:
            if not self.stopped:
                job = (self.grid, trial, self.configs[trial], self.paths[trial], time.time())
                worker.submit(_work, *job).result()
        except TerminatedWorkerError as e:
            return "killed, perhaps for memory" if "SIGKILL" in str(e) else "see log.txt"
        except Exception as e:
            return _sentence(e)
        finally:
            self.end(worker)
        return None

    def end(self, worker: ProcessPoolExecutor) -> None:
        "End a worker at once, whatever it does."
        with self.ending:
            worker.shutdown(wait=True, kill_workers=True)
            self.workers.discard(worker)

    def stop(self) -> None:
        "End all workers, and start none any more; the trials in hand leave nothing."
        self.stopped = True
        for worker in list(self.workers):
            self.end(worker)

    def run_trial(self, trial: Trial) -> Trial:
        "Run one trial; a worker that dies without a word leaves an error file all the same."
        path = self.paths[trial]
        for failed in path.parent.glob(f"{path.name[:-15]}*.json"):  # all but the digest
            if _finished(failed) is None:
                failed.unlink()
        why = self.in_worker(trial)
        if not path.is_file() and not self.stopped:
            error = f"The process ended without a result ({why or 'see log.txt'})."
            write_json(path, self.configs[trial] | {"error": error})
        return trial

    def progress(self, trial: Trial) -> None:
        "The line for a finished trial."
        result = json.loads(self.paths[trial].read_text(encoding="utf-8"))
        self.todo.remove(trial)
        said = f"FAILED: {result.get('error')}"
        if "metrics" in result:
            seconds = self.took[trial] = result["trial_seconds"]
            said = f"mAP {100 * result['metrics']['mAP']:.1f} ({duration(seconds)})"
        left = _time_left(self.todo, self.took, self.jobs)
        clock = f"; about {duration(left)} left" if self.todo and left else ""
        done = len(self.paths) - len(self.todo)
        print(f"{done}/{len(self.paths)} {trial}: {said}{clock}", file=self.stream, flush=True)

    def run(self) -> list[Trial]:
        "Run what is left; returns the failed trials."
        print(
            f"{len(self.paths)} trials, {len(self.took)} there already; {self.jobs} at a time, "
            f"{self.threads} thread(s) each; what they say is in '{self.log}'",
            file=self.stream,
            flush=True,
        )
        with ThreadPoolExecutor(self.jobs, initializer=_keep_interrupt_away) as pool:
            try:
                for done in as_completed([pool.submit(self.run_trial, t) for t in self.todo]):
                    self.progress(done.result())
            except InputError as e:
                raise InputError(
                    f"{e} What is finished is kept: mend this and give the same command again."
                ) from None
            finally:
                pool.shutdown(wait=False, cancel_futures=True)
                self.stop()
        return [trial for trial in self.paths if trial not in self.took]


def _check_folder(out: Path, planned: Mapping[Path | str, dict[str, Any]]) -> None:
    """Raise `InputError` where the results in `out` do not fit the `planned` ones, {path:
    configuration}."""
    paths = {tuple(config["trial"].values()): path for path, config in planned.items()}
    try:
        found: dict[Path | str, dict[str, Any]] = {}
        for path in sorted(out.glob("*.json")):
            found[path] = read_trial(path)
        check_together({**found, **planned})
        for where, trial in found.items():
            new = paths.get(tuple(trial["trial"].values()), where)
            if new != where and "metrics" in trial:
                raise InputError(f"'{where}' is the same trial by another recipe or learning rate.")
    except InputError as e:
        raise InputError(
            f"The new trials do not fit those in '{out}', so give another --out: {e}"
        ) from None


def benchmark(
    grid: Grid, out: Path | str = "results", jobs: int = 1, stream: TextIO | None = None
) -> list[Trial]:
    """Run the trials of `grid` that `out` does not hold yet, `jobs` processes at a time.

    Returns the failed trials. Interrupted or killed, it loses the trials in hand; called again,
    it goes on. Raises `InputError` before anything is run for a pair, method or setting that
    cannot be used, and for a folder that another benchmark writes to, that holds results of
    another configuration, or that cannot be written."""
    if jobs < 1:
        raise InputError(f"jobs={jobs}: give 1 or more.")
    out = Path(out).expanduser()
    data = {pair: _check_pair(grid, pair) for pair in grid.pairs}
    try:
        out.mkdir(parents=True, exist_ok=True)
        with FileLock(out / ".lock", timeout=0):
            run = _Run(grid, out, jobs, data, stream)
            _check_folder(out, {run.paths[t]: run.configs[t] for t in run.todo})
            return run.run()
    except Timeout:
        raise InputError(
            f"Another benchmark is writing to '{out}'; wait for it, or give another --out."
        ) from None
    except OSError as e:
        raise InputError(
            f"'{out}' cannot be written ({e.strerror or e}); what is finished is kept: mend this "
            "and give the same command again."
        ) from None
