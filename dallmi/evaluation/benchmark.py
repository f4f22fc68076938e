"""A grid of trials, methods × pairs × label fractions × seeds, that survives being killed."""

__all__ = ["Trial", "Grid", "run_trial", "benchmark", "BASELINES"]

import json
import multiprocessing
import os
import re
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch
from filelock import FileLock, Timeout
from loky.process_executor import ProcessPoolExecutor, TerminatedWorkerError

import dallmi
from dallmi.baselines.adversarial import adapt_adversarially
from dallmi.baselines.linear import fit_linear
from dallmi.data.domain import Domain
from dallmi.errors import InputError, unknown_name
from dallmi.evaluation.results import check_together, read_trial
from dallmi.files import write_json
from dallmi.losses import variation_loss
from dallmi.metrics import evaluate, prevalences
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
from dallmi.thresholds import expected_f1_thresholds
from dallmi.training.callbacks import TrainingDiverged, duration

BUDGET = {"batch_size": 16, "epochs": 3}
AAD_RATE = 0.1  # the published rate of AAD, 1e-5, is a tenth of the other methods'


@dataclass(frozen=True)
class Trial:
    """One training of a grid. `label_fraction` and `masking` are None where they make no
    difference."""

    pair: str
    method: str
    label_fraction: float | None = None
    masking: str | None = None
    seed: int = 0

    def __str__(self) -> str:
        how = f" {self.label_fraction:g} by {self.masking}" if self.label_fraction else ""
        return f"{self.pair} {self.method}{how} seed {self.seed}"


Budget = Mapping[str, Any]
Opener = Callable[[], Pipeline]  # makes the pipeline of a trial, source model and all


def _source_scores(task: Task, open_pipeline: Opener, budget: Budget) -> MethodScores:
    "The source model as it is."
    return open_pipeline().source_scores()


def _linear_scores(task: Task, open_pipeline: Opener, budget: Budget) -> MethodScores:
    """A linear model of words, on the source's labels and the target's observed ones; no source
    model."""
    assert task.test is not None
    began = time.monotonic()
    score = fit_linear(task.source.texts, task.source.labels, task.target.texts, task.target.labels)
    seconds = time.monotonic() - began
    return MethodScores(score(task.target.texts), score(task.test.texts), seconds)


def _adversarial_scores(task: Task, open_pipeline: Opener, budget: Budget) -> MethodScores:
    "Adversarial adaptation with distillation, without a label of the target."
    pipeline = open_pipeline()
    began = time.monotonic()
    adapt_adversarially(
        pipeline.classifier,
        pipeline.classifier.tokenize(task.source.texts),
        pipeline.rows["input_ids"][:],
        budget["epochs"],
        budget["batch_size"],
        budget["learning_rate"] * AAD_RATE,
        pipeline.seed,
    )
    return pipeline.scores(time.monotonic() - began)


BASELINES: dict[str, Callable[[Task, Opener, Budget], MethodScores]] = {
    "source": _source_scores,
    "tfidf": _linear_scores,
    "unsupervised": _adversarial_scores,
}
FREE = ("source", "unsupervised")  # methods that look at no label of the target
UNTRAINED = ("source", "tfidf")  # their seconds say nothing about a training


@dataclass
class Grid:
    """What `dallmi benchmark` runs: every pair × method × label fraction × masking × seed.

    `methods`: names of `BASELINES`, recipes, or recipes with changes; `recipes`: your own,
    {name: recipe}. `settings`: those of all trials; `budget`: `epochs` and `batch_size` of all
    that do not say otherwise. With several learning rates each trial chooses its own, by the
    variation loss on held-out target texts, without a hidden label. Raises `InputError` for what
    cannot be run."""

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
        own = [method for method in self.methods if "learning_rate=" in method]
        if own and len(self.learning_rates) > 1:
            raise InputError(
                f"{own[0]!r} names its rate, so it cannot choose one of several; drop one of both."
            )
        for trial in self.trials():
            self.trial_settings(trial)
            for rate in self.learning_rates:
                self.recipe(trial.method, rate)

    def recipe(self, method: str, learning_rate: float | None = None) -> Recipe | None:
        "The recipe of a method at the grid's budget; None for a baseline."
        if method in BASELINES:
            return None
        known = {**RECIPES, **self.recipes}
        if method.partition(":")[0] not in known:
            raise unknown_name("method", method, [*BASELINES, *known])
        rate = self.learning_rates[0] if learning_rate is None else learning_rate
        budget = {**BUDGET, **self.budget, "learning_rate": rate}
        return find_recipe(method, known, defaults=budget)

    def trials(self) -> list[Trial]:
        "The trials, each once: methods that look at no label, or at all, have one per seed."
        found = []
        for seed in self.seeds:
            for masking in self.maskings:
                for fraction in self.label_fractions:
                    for pair in self.pairs:
                        for method in self.methods:
                            recipe = self.recipe(method)
                            free = method in FREE or (recipe and recipe.labels == "all")
                            share, how = (None, None) if free else (fraction, masking)
                            found.append(Trial(pair, method, share, how, seed))
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
        label_fraction=settings.label_fraction,
        masking=settings.masking,
        seed=settings.seed,
    )


def _check_pair(grid: Grid, pair: str) -> str:
    "Digest of a pair's texts and labels. Raises `InputError` for a pair that cannot be used."
    folder = Path(grid.data_dir)
    if pair != "films" and not (folder / pair).is_dir():
        folders = folder.iterdir() if folder.is_dir() else ()
        there = sorted(p.name for p in folders if (p / "source.csv").is_file())
        raise unknown_name(f"pair in '{grid.data_dir}' called", pair, [*there, "films"])
    for file in grid.files(pair):
        if pair != "films" and not Path(file).is_file():
            raise InputError(
                f"The pair {pair!r} has no file '{file}'; it needs source.csv and target.csv."
            )
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
    source: Domain = task.source
    return digest(source.texts, source.labels.tolist(), source.label_names, target)


def _configuration(grid: Grid, trial: Trial, data: str) -> dict[str, Any]:
    "All that decides a trial's numbers, JSON-able; `data`: what `_check_pair` gave."
    recipe = grid.recipe(trial.method)
    rates = list(grid.learning_rates)
    budget = {**BUDGET, **grid.budget, "learning_rate": rates if len(rates) > 1 else rates[0]}
    described = None if recipe is None else recipe.describe()
    if described is not None:
        budget |= {key: described[key] for key in ("batch_size", "epochs")}
    settings = asdict(grid.trial_settings(trial)) | budget | {"recipe": described}
    return {
        "version": dallmi.__version__,
        "trial": asdict(trial),
        "settings": settings,
        "data": data,
    }


def _trial_file(out: Path, config: Mapping[str, Any]) -> Path:
    "Path of a trial's result."
    t = config["trial"]
    share = [f"{t['label_fraction']:g}", t["masking"]] if t["label_fraction"] else []
    words = [t["pair"], t["method"], *share, f"s{t['seed']}", digest(config)[:10]]
    return out / ("_".join(re.sub(r"[^\w.=-]+", "-", str(w)) for w in words) + ".json")


def _validation_loss(probs: np.ndarray, observed: np.ndarray) -> float:
    """Log-form variation loss of `probs` [N, L] on `observed` [N, L], summed over labels; lower
    is better."""
    clipped = torch.as_tensor(np.clip(probs, 1e-7, 1 - 1e-7), dtype=torch.float64)
    labels = torch.as_tensor(observed, dtype=torch.float64)
    return float(variation_loss(clipped.logit(), labels, "log"))


def _choose_rate(pipeline: Pipeline, recipe: Recipe, rates: Sequence[float]) -> float:
    """The rate with the smallest `_validation_loss` on a fifth of the target, which no trial
    training sees."""
    task = pipeline.task
    rows = np.random.default_rng(pipeline.seed).permutation(len(task.target))
    held, kept = np.split(rows, [len(rows) // 5])
    all_labels = None if task.all_labels is None else task.all_labels[kept]
    part = replace(task, target=task.target.select(kept), all_labels=all_labels, test=None)
    pipeline.reset()
    inner = Pipeline(part, pipeline.classifier, pipeline.seed)
    losses = {}
    for rate in rates:
        with tempfile.TemporaryDirectory() as folder:
            inner.train("search", recipe.change(learning_rate=rate), Path(folder))
        probs = pipeline.classifier.score_tokens(pipeline.rows.select(held)["input_ids"])
        losses[rate] = _validation_loss(probs, task.target.labels[held])
    pipeline.reset()
    return min(losses, key=lambda rate: losses[rate])


def _pipeline(task: Task, settings: Settings) -> Pipeline:
    """The pipeline of a trial, from the source model that all trials of a pair share, whatever
    their seed."""
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


def _method_scores(grid: Grid, trial: Trial, task: Task) -> tuple[MethodScores, dict[str, Any]]:
    "The scores of a trial's method, and the learning rate that it chose, if it had a choice."
    recipe = grid.recipe(trial.method)
    rates = grid.learning_rates
    settings = grid.trial_settings(trial)
    if recipe is None:
        budget = {**BUDGET, **grid.budget, "learning_rate": rates[0]}
        return BASELINES[trial.method](task, lambda: _pipeline(task, settings), budget), {}
    pipeline = _pipeline(task, settings)
    began = time.monotonic()
    chosen: dict[str, Any] = {}
    if len(rates) > 1:
        chosen = {"chosen_learning_rate": _choose_rate(pipeline, recipe, rates)}
        recipe = recipe.change(learning_rate=chosen["chosen_learning_rate"])
    searched = time.monotonic() - began
    with tempfile.TemporaryDirectory() as folder:
        scores = pipeline.train(trial.method, recipe, Path(folder))
    return replace(scores, seconds=scores.seconds + searched), chosen


def run_trial(grid: Grid, trial: Trial) -> dict[str, Any]:
    """Train and measure one trial; returns {metrics, labels, chance, counts, seconds, memory_mb,
    …}.

    Metrics are in [0, 1]; `seconds` are those of the adaptation, a search for the learning rate
    included, without source stage and scoring; `memory_mb` is the peak of the process so far."""
    task = _load(grid, trial)
    assert task.test is not None
    scores, chosen = _method_scores(grid, trial, task)
    names = task.test.label_names
    thresholds = expected_f1_thresholds(scores.target)
    metrics = evaluate(scores.test, task.test.labels, names, thresholds)
    labels = metrics.pop("labels")
    counts = {
        "source": len(task.source),
        "target": len(task.target),
        "test": len(task.test),
        "observed": int((task.target.labels == 1).sum()),
    }
    return {
        "metrics": metrics,
        "labels": labels,
        "chance": prevalences(task.test.labels, names),
        "counts": counts,
        "seconds": round(scores.seconds, 2),
        "memory_mb": round(_peak_memory() / 2**20, 1),
        "versions": versions(),
        **chosen,
    }


def _sentence(error: BaseException) -> str:
    "An exception as one sentence."
    words = " ".join(str(error).split()) or "no message"
    if isinstance(error, (InputError, TrainingDiverged)):
        return words
    return f"{type(error).__name__}: {words}"


def _start_worker(log: str, parent: int) -> None:
    """In a worker: write to the file `log`, ignore the terminal's Ctrl-C, and end when the
    parent does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(target, 1)
    os.dup2(target, 2)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _train_source(grid: Grid, trial: Trial) -> None:
    "In a worker: make sure that the source model of a trial's pair is in the cache."
    _pipeline(_load(grid, trial), grid.trial_settings(trial))


def _work(grid: Grid, trial: Trial, config: dict[str, Any], path: Path) -> None:
    "In a worker: run a trial and write its result, or what went wrong, so that the grid goes on."
    began = time.time()
    try:
        result = run_trial(grid, trial)
    except Exception as e:
        result = {"error": _sentence(e)}
    write_json(path, config | result | {"trial_seconds": round(time.time() - began, 1)})


def _in_worker(
    job: Callable[..., None], args: Iterable[Any], threads: int, log: Path
) -> str | None:
    "Run a job in a process of its own; returns why it ended without a word, or None."
    env = {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
    start = (str(log), os.getpid())
    executor = ProcessPoolExecutor(
        max_workers=1, env=env, initializer=_start_worker, initargs=start
    )
    try:
        executor.submit(job, *args).result()
    except TerminatedWorkerError:
        return "killed, perhaps for memory"
    except Exception as e:
        return _sentence(e)
    finally:
        executor.shutdown(wait=True, kill_workers=True)
    return None


def _finished(path: Path) -> dict[str, Any] | None:
    "The trial in the file at `path`; None where it holds no numbers."
    try:
        trial = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return trial if "metrics" in trial else None


def _mean_of(took: Mapping[Trial, float], fits: Callable[[Trial], bool]) -> float | None:
    "Mean of the seconds of the trials that fit; None where none does."
    known = [seconds for trial, seconds in took.items() if fits(trial)]
    return sum(known) / len(known) if known else None


def _guess(trial: Trial, took: Mapping[Trial, float]) -> float | None:
    """Seconds for `trial`, from finished ones like it: of its pair and method, of its pair,
    anywhere."""

    def alike(other: Trial) -> bool:
        return (other.method in UNTRAINED) == (trial.method in UNTRAINED)

    return (
        _mean_of(took, lambda o: (o.pair, o.method) == (trial.pair, trial.method))
        or _mean_of(took, lambda o: alike(o) and o.pair == trial.pair)
        or _mean_of(took, alike)
    )


def _time_left(todo: Sequence[Trial], took: Mapping[Trial, float], jobs: int) -> float | None:
    "Seconds for the trials `todo`, `jobs` at a time; None where that is not known yet."
    guesses = [(trial, _guess(trial, took)) for trial in todo]
    if any(guess is None and trial.method not in UNTRAINED for trial, guess in guesses):
        return None
    return sum(guess or 0 for _, guess in guesses) / min(jobs, max(len(todo), 1))


class _Run:
    """A grid on its way: what is done, what is left, and a line on `stream` for every finished
    trial."""

    def __init__(
        self, grid: Grid, out: Path, jobs: int, data: Mapping[str, str], stream: TextIO | None
    ) -> None:
        self.grid, self.out, self.jobs = grid, out, jobs
        self.stream = stream or sys.stderr
        self.threads = max(1, (os.cpu_count() or 1) // jobs)
        self.configs = {t: _configuration(grid, t, data[t.pair]) for t in grid.trials()}
        self.paths = {t: _trial_file(out, config) for t, config in self.configs.items()}
        finished = {trial: _finished(path) for trial, path in self.paths.items()}
        self.took = {t: found["trial_seconds"] for t, found in finished.items() if found}
        self.todo = [trial for trial in self.paths if trial not in self.took]

    def say(self, text: str) -> None:
        "A line of progress."
        print(text, file=self.stream, flush=True)

    def in_worker(self, job: Callable[..., None], *args: Any) -> str | None:
        "See `_in_worker`."
        return _in_worker(job, args, self.threads, self.out / "log.txt")

    def train_source(self, trial: Trial) -> tuple[Trial, float]:
        """Make sure that a pair's source model is there. A failure shows, with its words, in the
        trials."""
        began = time.monotonic()
        self.in_worker(_train_source, self.grid, trial)
        return trial, time.monotonic() - began

    def run_trial(self, trial: Trial) -> tuple[Trial, float]:
        "Run one trial; a worker that dies without a word leaves an error file all the same."
        began = time.monotonic()
        path = self.paths[trial]
        path.unlink(missing_ok=True)
        why = self.in_worker(_work, self.grid, trial, self.configs[trial], path)
        if not path.is_file():
            error = f"The process ended without a result ({why or 'see log.txt'})."
            write_json(path, self.configs[trial] | {"error": error})
        return trial, time.monotonic() - began

    def progress(self, trial: Trial, seconds: float) -> None:
        "The line for a finished trial."
        result = json.loads(self.paths[trial].read_text(encoding="utf-8"))
        self.todo.remove(trial)
        said = f"FAILED: {result.get('error')}"
        if "metrics" in result:
            self.took[trial] = seconds
            said = f"mAP {100 * result['metrics']['mAP']:.1f}"
        left = _time_left(self.todo, self.took, self.jobs)
        clock = f"; about {duration(left)} left" if self.todo and left else ""
        done = f"{len(self.paths) - len(self.todo)}/{len(self.paths)}"
        self.say(f"{done} {trial}: {said} ({duration(seconds)}){clock}")

    def run(self) -> list[Trial]:
        "Run what is left; returns the failed trials."
        done = len(self.paths) - len(self.todo)
        self.say(
            f"{len(self.paths)} trials, {done} there already; {self.jobs} at a time, "
            f"{self.threads} thread(s) each"
        )
        first = {t.pair: t for t in reversed(self.todo) if t.method != "tfidf"}
        with ThreadPoolExecutor(self.jobs) as pool:
            try:
                if first:
                    pairs = ", ".join(first)
                    self.say(f"source models of {pairs}: trained once per pair, or from the cache")
                for future in as_completed(
                    [pool.submit(self.train_source, t) for t in first.values()]
                ):
                    trial, seconds = future.result()
                    self.say(f"source model of {trial.pair}: ready ({duration(seconds)})")
                for future in as_completed(
                    [pool.submit(self.run_trial, t) for t in list(self.todo)]
                ):
                    self.progress(*future.result())
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                _kill_workers()
                raise
        return [trial for trial in self.paths if trial not in self.took]


def _kill_workers() -> None:
    "End this process's workers at once; a trial in hand leaves nothing."
    for child in multiprocessing.active_children():
        child.kill()


def _check_folder(out: Path, planned: dict[Path | str, dict[str, Any]]) -> None:
    """Raise `InputError` where the results in `out` do not fit the `planned` ones, {path:
    configuration}."""
    try:
        found: dict[Path | str, dict[str, Any]] = {}
        for path in sorted(out.glob("*.json")):
            found[path] = read_trial(path)
        found |= planned
        check_together(found)
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
