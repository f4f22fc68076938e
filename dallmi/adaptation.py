"""Source to target in one call: fine-tune, adapt, compare, and keep a checkpoint that anything
can load."""

__all__ = ["Adaptation", "adapt"]

import json
import os
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from huggingface_hub import HfApi
from matplotlib.figure import Figure
from safetensors.torch import load_file
from torch import nn

import dallmi
from dallmi.card import model_card, plot_results, run_report
from dallmi.data.domain import Domain
from dallmi.data.readers import DomainLike
from dallmi.errors import InputError, unknown_name
from dallmi.files import MARKER, atomic_path, check_output, mark_folder
from dallmi.inference import Classifier, save_checkpoint
from dallmi.metrics import evaluate, prevalences
from dallmi.pipeline import (
    MethodScores,
    Pipeline,
    SourceStage,
    Task,
    barrier,
    digest,
    is_main,
    load_task,
    source_classifier,
    untrained_classifier,
    versions,
)
from dallmi.recipes import Recipe, find_recipe
from dallmi.settings import Settings
from dallmi.thresholds import expected_f1_thresholds
from dallmi.training.callbacks import quiet_transformers


@dataclass
class Adaptation:
    """An adapted classifier, and the record of how it came about and what was measured.

    `record`: JSON-able; `metrics` {method: {"mAP", "mAP@0.5", "F1", …, "labels"}} on the
    held-out texts (empty where there were none), `chance`, `observed`, `counts`, `settings`,
    `recipe`, `seconds`, `versions`."""

    classifier: Classifier
    record: dict[str, Any]

    @property
    def metrics(self) -> dict[str, dict[str, Any]]:
        "Metrics of every method on the held-out texts, in [0, 1]; empty where there were none."
        return self.record["metrics"]

    @property
    def method(self) -> str:
        "The name of the recipe that made the classifier."
        return self.record["method"]

    def predict(self, texts: Sequence[str]) -> pd.DataFrame:
        """One row per text: a probability per label, and in `labels` the names over their
        thresholds."""
        return self.classifier.predict(texts)

    def report(self) -> str:
        "What was done and measured, as text."
        return run_report(self.record)

    def __repr__(self) -> str:
        return self.report()

    def plot(self) -> Figure:
        "Average precision of every label, before and after. Raises `InputError` without a test."
        if not self.metrics:
            raise InputError("Nothing was measured, so there is nothing to plot; give a test.")
        return plot_results(self.metrics, self.record["chance"])

    def save(self, folder: Path | str, overwrite: bool = False) -> Path:
        """Save a stock checkpoint with card, metrics, settings and figure in `folder`, in one step.

        Raises `InputError` for a place that must not be written."""
        folder = check_output(folder, overwrite)
        with atomic_path(folder) as new:
            self._write(new)
        return folder

    def _write(self, folder: Path) -> None:
        "Write everything into the new folder `folder`."
        save_checkpoint(self.classifier, folder, model_card(self.record))
        settings = {key: self.record[key] for key in ("settings", "method", "recipe")}
        rest = {key: value for key, value in self.record.items() if key not in settings}
        for name, content in {"settings": settings, "metrics": rest}.items():
            text = json.dumps(content, indent=1, ensure_ascii=False)
            (folder / f"{name}.json").write_text(text + "\n", encoding="utf-8")
        if self.metrics:
            self.plot().savefig(folder / "per_label_ap.png")
        mark_folder(folder, "adaptation")

    @classmethod
    def load(cls, name: Path | str) -> "Adaptation":
        """What `save` wrote. Raises `InputError` for a folder that is none, or damaged."""
        classifier = Classifier.load(name)
        record: dict[str, Any] = {}
        for file in ("metrics.json", "settings.json"):
            try:
                record |= json.loads((Path(name).expanduser() / file).read_text(encoding="utf-8"))
            except (OSError, ValueError, TypeError) as e:
                reason = "is missing" if isinstance(e, FileNotFoundError) else "cannot be read"
                raise InputError(
                    f"'{name}' is no adaptation: its {file} {reason}; "
                    "Classifier.load reads any checkpoint."
                ) from None
        return cls(classifier, record)

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Upload what `save` writes to the model repository `repo_id`; returns its address.

        `options`: of `HfApi.create_repo`, such as private=True."""
        api = HfApi()
        with tempfile.TemporaryDirectory() as room:
            folder = self.save(Path(room) / "model")
            (folder / MARKER).unlink()
            url = api.create_repo(repo_id, exist_ok=True, **options)
            api.upload_folder(repo_id=url.repo_id, folder_path=folder)
        return str(url)


def _read_options(recipe: str | Recipe, options: Mapping[str, Any]) -> tuple[Settings, str, Recipe]:
    "Settings, name of the method and recipe. Raises `InputError` for an unknown option."
    names = {f.name for f in fields(Settings)}
    overrides = {k: v for k, v in options.items() if k not in names and v is not None}
    plain = find_recipe(recipe)
    for name in overrides:
        if name not in plain.settings():
            raise unknown_name("option", name, sorted(names | set(plain.settings())))
    chosen = find_recipe(recipe, **overrides)
    settings = Settings(**{k: v for k, v in options.items() if k in names})
    if isinstance(recipe, str) and "loss" not in overrides:
        return settings, recipe.partition(":")[0], chosen
    return settings, chosen.loss_name, chosen


def _rivals(names: Sequence[str], method: str, recipe: Recipe) -> dict[str, Recipe | None]:
    """The methods to compare with, {name: recipe}, at the budget of `recipe`; None: the source
    model."""
    if isinstance(names, str):
        raise InputError(f"compare_with={names!r} is one string; give a list of names.")
    budget = {name: getattr(recipe, name) for name in ("batch_size", "epochs", "learning_rate")}
    found: dict[str, Recipe | None] = {}
    for name in names:
        if name == method:
            raise InputError(f"compare_with names {name!r}, the recipe itself; leave it out.")
        found[name] = None if name == "source" else find_recipe(name, defaults=budget)
    return found


def _open_work(output_dir: Path, identity: dict[str, Any], overwrite: bool) -> Path:
    """The folder `output_dir.partial`: an unfinished run of the same identity, or a new one.

    Raises `InputError` where something is in the way."""
    work = Path(f"{output_dir}.partial")
    if not is_main():
        return work
    if work.is_symlink() or (work.exists() and not (work / "identity.json").is_file()):
        raise InputError(f"'{work}' is in the way, and dallmi did not write it; move it away.")
    if work.exists():
        theirs = json.loads((work / "identity.json").read_text(encoding="utf-8"))
        differ = [key for key in identity if identity[key] != theirs.get(key)]
        if differ and not overwrite:
            raise InputError(
                f"'{work}' holds an unfinished run that differs in {', '.join(differ)}; finish it "
                "first, or discard it with overwrite=True (--overwrite)."
            )
        if differ:
            shutil.rmtree(work)
    try:
        work.mkdir(parents=True, exist_ok=True)
        (work / "identity.json").write_text(json.dumps(identity, indent=1), encoding="utf-8")
    except OSError as e:
        raise InputError(f"'{output_dir}' cannot be written: {e.strerror}.") from None
    return work


@contextmanager
def _workspace(
    output_dir: Path | None, identity: dict[str, Any], overwrite: bool
) -> Iterator[Path]:
    "A folder for unfinished work: kept beside `output_dir` until the run ends, else temporary."
    if output_dir is None:
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)
        return
    work = _open_work(output_dir, identity, overwrite)
    barrier()
    yield work
    barrier()
    if is_main():
        shutil.rmtree(work)


def _stage(work: Path, name: str, make: Callable[[], MethodScores]) -> MethodScores:
    """The scores of a finished stage from `work/name.npz`; else those that `make` returns,
    stored there."""
    path = work / f"{name}.npz"
    if not path.is_file():
        scores = make()
        if is_main():
            with atomic_path(path) as new:
                np.savez(new, **asdict(scores))
        barrier()
    with np.load(path) as stored:
        return MethodScores(stored["target"], stored["test"], float(stored["seconds"]))


def _evaluate_methods(
    scores: Mapping[str, MethodScores], test: Domain | None
) -> dict[str, dict[str, Any]]:
    "Metrics of every method on the test, at thresholds chosen on the target's scores."
    if test is None:
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the report names the labels left out
        return {
            method: evaluate(
                found.test, test.labels, test.label_names, expected_f1_thresholds(found.target)
            )
            for method, found in scores.items()
        }


def _record(
    task: Task,
    pipeline: Pipeline,
    settings: Settings,
    method: str,
    recipe: Recipe,
    scores: Mapping[str, MethodScores],
) -> dict[str, Any]:
    "All that is known of a finished run, JSON-able."
    observed = (task.target.labels == 1).sum(0)
    names = task.source.label_names
    longest = pipeline.classifier.max_length
    counts = {
        "source": len(task.source),
        "target": len(task.target),
        "test": 0 if task.test is None else len(task.test),
        "labels": len(names),
        "observed": int(observed.sum()),
        "cut": sum(len(ids) == longest for ids in pipeline.rows["input_ids"]),
    }
    return {
        "method": method,
        "recipe": recipe.describe(),
        "settings": asdict(settings),
        "metrics": _evaluate_methods(scores, task.test),
        "chance": {} if task.test is None else prevalences(task.test.labels, names),
        "counts": counts,
        "observed": dict(zip(names, observed.tolist(), strict=True)),
        "versions": versions(),
    }


def _run_methods(
    pipeline: Pipeline,
    work: Path,
    method: str,
    recipe: Recipe,
    rivals: Mapping[str, Recipe | None],
) -> dict[str, MethodScores]:
    "Scores of every method; the classifier ends with the adapted weights."
    scores = {}
    for name, rival in rivals.items() if pipeline.task.test is not None else ():
        if rival is None:
            scores[name] = _stage(work, name, pipeline.source_scores)
        else:
            train = partial(pipeline.train, name, rival, work / name, save=True)
            scores[name] = _stage(work, name, train)
    weights = work / "weights"

    def run() -> MethodScores:
        found = pipeline.train(method, recipe, work / method, save=True)
        if is_main():
            with quiet_transformers():
                pipeline.classifier.model.save_pretrained(weights)
        return found

    scores[method] = _stage(work, method, run)
    pipeline.classifier.model.load_state_dict(load_file(weights / "model.safetensors"))
    return scores


def _inputs(*domains: Any) -> list[str]:
    "Those of `domains` and models that are paths."
    return [os.fspath(d) for d in domains if isinstance(d, (str, os.PathLike))]


def adapt(
    source: DomainLike | Domain,
    target: DomainLike | Domain,
    test: DomainLike | Domain | None = None,
    *,
    recipe: str | Recipe = "anchored",
    loss: nn.Module | None = None,
    compare_with: Sequence[str] = ("source", "partial"),
    output_dir: Path | str | None = None,
    overwrite: bool = False,
    **options: Any,
) -> Adaptation:
    """Fine-tune on `source` (cached), adapt to `target`, compare, and return the adapted
    classifier.

    `source`, `target`, `test`: what `load_domain` reads, or domains. `recipe`: a name of
    `RECIPES`, one with changes ('anchored:epochs=5'), or a `Recipe`. `loss`: an objective in
    place of the recipe's. `compare_with`: methods to train beside it where there is something to
    score on, 'source' or recipes. `output_dir`: where to save the result; a run that is
    interrupted then goes on from `output_dir.partial` when called again. `options`: fields of
    `Settings` (`label_fraction`, `model`, `max_length`, `seed`, …) and changes of the recipe
    (`epochs`, `mixup_weight`, …).

    All input is checked before any work. Raises `InputError`, and `TrainingDiverged` for a loss
    that is not finite."""
    began = time.time()
    settings, method, chosen = _read_options(recipe, {**options, "loss": loss})
    rivals = _rivals(compare_with, method, chosen)
    if output_dir is not None:
        output_dir = check_output(
            output_dir, overwrite, _inputs(source, target, test, settings.model)
        )
    elif int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise InputError("Several processes need a folder that they share; give output_dir.")
    task = _load(source, target, test, settings)
    fresh = _fresh_classifier(task, chosen, settings)
    identity = _identity(task, settings, method, chosen)
    with _workspace(output_dir, identity, overwrite) as work:
        pipeline = Pipeline(task, _source_model(task, fresh, settings), settings.seed)
        scores = _run_methods(pipeline, work, method, chosen, rivals)
        record = _record(task, pipeline, settings, method, chosen, scores)
        record["seconds"] = round(time.time() - began, 1)
        pipeline.classifier.set_thresholds(expected_f1_thresholds(scores[method].target))
        result = Adaptation(pipeline.classifier, record)
        if output_dir is not None and is_main():
            result.save(output_dir, overwrite)
    return result


def _load(source: Any, target: Any, test: Any, settings: Settings) -> Task:
    "The texts and labels that `settings` choose."
    return load_task(
        source,
        target,
        test,
        text_column=settings.text_column,
        label_columns=settings.label_columns,
        only_labels=settings.only_labels,
        max_rows=settings.max_rows,
        trust_negatives=settings.trust_negatives,
        label_fraction=settings.label_fraction,
        masking=settings.masking,
        seed=settings.seed,
    )


def _fresh_classifier(task: Task, recipe: Recipe, settings: Settings) -> Classifier:
    "The untrained encoder that `settings` name, checked against what the recipe will do to it."
    fresh = untrained_classifier(
        task.source.label_names,
        settings.model,
        settings.max_length,
        settings.bf16,
        settings.seed,
    )
    if recipe.mixup is not None:
        recipe.mixup.check(fresh.model, fresh.tokenizer.padding_side)
    return fresh


def _source_model(task: Task, fresh: Classifier, settings: Settings) -> Classifier:
    "The source model that `settings` describe."
    stage = SourceStage(
        settings.source_epochs,
        settings.source_batch_size,
        settings.source_learning_rate,
        settings.head_multiplier,
        settings.seed,
    )
    return source_classifier(task.source, fresh, stage)


def _identity(task: Task, settings: Settings, method: str, recipe: Recipe) -> dict[str, Any]:
    "What an unfinished run must share with this one to be continued."
    parts: list[Any] = [task.source.label_names]
    for domain in (task.source, task.target, task.test):
        if domain is not None:
            parts += [domain.texts, np.ascontiguousarray(domain.labels).tobytes()]
    return {
        "dallmi": dallmi.__version__,
        "method": method,
        "recipe": recipe.describe(),
        **asdict(settings),
        "data": digest(*parts),
    }
