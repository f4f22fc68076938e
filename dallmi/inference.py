"""A classifier that scores new texts fast and the same every time, and a checkpoint that anyone
can use."""

__all__ = ["Classifier", "predict_file", "save_checkpoint"]

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from dallmi.data.domain import check_texts
from dallmi.data.readers import DomainLike, find_text_column, read_rows
from dallmi.errors import InputError, first_line
from dallmi.files import atomic_path, check_output, mark_folder
from dallmi.training.callbacks import quiet_transformers
from dallmi.training.encoder import accelerator_or_cpu, bf16_pays, pad_batch

UNKNOWN_LENGTH = 10**6  # transformers' tokenizers give a huge number where they know no limit


def _length_batches(
    lengths: Sequence[int], batch_tokens: int = 16384, batch_size: int = 64
) -> list[list[int]]:
    "Rows in batches, longest first, of at most `batch_tokens` padded tokens and `batch_size` rows."
    batches: list[list[int]] = []
    batch: list[int] = []
    for row in np.argsort(-np.asarray(lengths), kind="stable").tolist():
        full = len(batch) == batch_size
        if batch and (full or (len(batch) + 1) * lengths[batch[0]] > batch_tokens):
            batches.append(batch)
            batch = []
        batch.append(row)
    return [*batches, batch] if batch else batches


@contextmanager
def _evaluating(model: PreTrainedModel, bf16: bool | None = None) -> Iterator[None]:
    """While open, `model` evaluates, keeps no gradients and with `bf16` (default: where it pays)
    computes in bfloat16."""
    half = bf16_pays(model.device) if bf16 is None else bf16
    autocast = torch.autocast(model.device.type, torch.bfloat16) if half else nullcontext()
    training = model.training
    model.eval()
    try:
        with torch.inference_mode(), autocast:
            yield
    finally:
        model.train(training)


def _check_strings(texts: Sequence[str]) -> None:
    "Raise `InputError` for what is no list of strings."
    if isinstance(texts, str):
        raise InputError("texts is one string; give a list of texts, such as [text].")
    bad = [i for i, text in enumerate(texts) if not isinstance(text, str)]
    if bad:
        raise InputError(
            f"{len(bad)} of {len(texts)} texts are no strings (first: number {bad[0]}, "
            f"{texts[bad[0]]!r}); give a list of strings."
        )


def _check_thresholds(thresholds: Mapping[str, float], labels: Sequence[str]) -> None:
    "Raise `InputError` unless `thresholds` is a {label: finite number} of exactly `labels`."
    if not isinstance(thresholds, Mapping) or set(thresholds) != set(labels):
        raise InputError(f"thresholds must give one number for each label: {', '.join(labels)}.")
    bad = [name for name, value in thresholds.items() if not np.isfinite(value)]
    if bad:
        raise InputError(
            f"The threshold of {bad[0]!r} is {thresholds[bad[0]]}; it must be a number."
        )


@dataclass
class Classifier:
    """A stock multi-label classifier with its tokenizer.

    `max_length`: tokens of a text that are read. `bf16`: autocast to bfloat16 when scoring; default
    where it pays."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    max_length: int = 128
    bf16: bool | None = None

    @property
    def label_names(self) -> list[str]:
        "Names of the labels [L], in the order of the logits."
        return list((self.model.config.id2label or {}).values())

    @property
    def thresholds(self) -> np.ndarray:
        "The thresholds stored with the checkpoint, float64 [L]; 0.5 where there are none."
        kept = getattr(self.model.config, "thresholds", None) or {}
        return np.array([kept.get(name, 0.5) for name in self.label_names], dtype=np.float64)

    def set_thresholds(self, thresholds: np.ndarray) -> None:
        "Keep `thresholds` [L] with the model, as its checkpoint will."
        values = dict(zip(self.label_names, map(float, thresholds), strict=True))
        _check_thresholds(values, self.label_names)
        self.model.config.thresholds = values

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokens of N texts, cut at `max_length`. Raises `InputError` for what is no list of
        strings."""
        _check_strings(texts)
        if not len(texts):
            return []
        length = min(self.max_length, self.tokenizer.model_max_length)
        return self.tokenizer(list(texts), truncation=True, max_length=length)["input_ids"]

    def score(self, texts: Sequence[str]) -> np.ndarray:
        "Probabilities [N, L] (float32) of N texts, in their order."
        return self.score_tokens(self.tokenize(texts))

    def score_tokens(self, input_ids: Sequence[Sequence[int]]) -> np.ndarray:
        "Probabilities [N, L] (float32) of N tokenized texts, in their order."
        probs = np.empty((len(input_ids), len(self.label_names)), dtype=np.float32)
        with _evaluating(self.model, self.bf16):
            for rows in _length_batches([len(ids) for ids in input_ids]):
                batch = pad_batch(self.tokenizer, [input_ids[i] for i in rows])
                logits = self.model(**batch.to(self.model.device)).logits
                probs[rows] = logits.float().sigmoid().cpu().numpy()
        return probs

    def predict(self, texts: Sequence[str]) -> pd.DataFrame:
        """One row per text: a probability per label, and in `labels` the names over their
        thresholds."""
        probs = self.score(texts)
        table = pd.DataFrame(probs, columns=self.label_names)
        table.insert(len(table.columns), "labels", self.decide(probs), allow_duplicates=True)
        return table

    def decide(self, probs: np.ndarray) -> list[list[str]]:
        "For each row of `probs` [N, L], the names of the labels over their thresholds."
        over = probs > self.thresholds
        return [[n for n, yes in zip(self.label_names, row, strict=True) if yes] for row in over]

    def save(self, folder: Path | str, card: str, overwrite: bool = False) -> Path:
        """Save a stock checkpoint (safetensors, tokenizer, names, thresholds) in `folder`, in
        one step.

        `card`: text of its README.md. Raises `InputError` for a place that must not be written."""
        folder = check_output(folder, overwrite)
        with atomic_path(folder) as new:
            save_checkpoint(self, new, card)
            mark_folder(new, "checkpoint")
        return folder

    @classmethod
    def load(cls, name: Path | str, bf16: bool | None = None) -> "Classifier":
        """A classifier from a folder that `save` or transformers wrote, or a hub name 'owner/name'.

        Raises `InputError` where it is missing, cannot be read, or is no multi-label classifier."""
        place = _model_place(name)
        unfit: str | None = None
        try:
            with quiet_transformers():
                config = AutoConfig.from_pretrained(place)
                tokenizer = AutoTokenizer.from_pretrained(place)
                unfit = _why_no_classifier(config, tokenizer)
                if not unfit:
                    model = AutoModelForSequenceClassification.from_pretrained(
                        place, dtype=torch.float32
                    )
        except (
            Exception
        ) as e:  # the libraries below raise many kinds, all "cannot be loaded" to a reader
            raise InputError(
                f"The model '{name}' cannot be loaded ({first_line(e).rstrip(':')}); save it again."
            ) from None
        if unfit:
            raise InputError(f"The model '{name}' {unfit}.")
        length = tokenizer.model_max_length
        length = length if length < UNKNOWN_LENGTH else 128
        return cls(model.eval().to(accelerator_or_cpu()), tokenizer, length, bf16)


def _model_place(name: Path | str) -> Path | str:
    "Where to load a model from: a folder with a config.json, or a hub name. Raises `InputError`."
    folder = Path(name).expanduser()
    if (folder / "config.json").is_file():
        return folder
    local = str(name).startswith((".", "/", "~")) or str(name).count("/") != 1
    if folder.exists() or local:
        reason = "it has no config.json" if folder.is_dir() else "no such folder"
        raise InputError(f"There is no model in '{name}': {reason}.")
    return str(name)


def _why_no_classifier(config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Why a checkpoint is no multi-label classifier, as the rest of a sentence; None where it is
    one."""
    if not any("ForSequenceClassification" in kind for kind in config.architectures or []):
        return f"holds a {config.model_type} model without a classification head; train one first"
    if config.problem_type != "multi_label_classification":
        kind = config.problem_type
        return f"was not trained for several labels per text (its problem_type is {kind!r})"
    if len(tokenizer) <= len(tokenizer.get_added_vocab()):
        return "comes without tokenizer files"
    return None


def save_checkpoint(classifier: Classifier, folder: Path, card: str) -> None:
    "Write a stock checkpoint into the new folder `folder`, with `card` as its README.md."
    length = classifier.tokenizer.model_max_length
    try:
        with quiet_transformers():
            classifier.model.config.problem_type = "multi_label_classification"
            classifier.model.save_pretrained(folder)
            classifier.tokenizer.model_max_length = min(classifier.max_length, length)
            classifier.tokenizer.save_pretrained(folder)
    finally:
        classifier.tokenizer.model_max_length = length
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(card, encoding="utf-8")


def predict_file(
    checkpoint: Path | str,
    file: DomainLike,
    out: Path | str = "scores.csv",
    text_column: str | None = None,
    overwrite: bool = False,
) -> str:
    """Score the texts of `file` (what `load_domain` reads) with a saved classifier; returns a
    sentence.

    `out`: a CSV with `id` (the file's, else the row number from 0), a probability per label, and
    `labels`: those over the checkpoint's thresholds, joined by |. Texts are cut where the
    tokenizer says. Raises `InputError`, also if `out` exists."""
    inputs = [file] if isinstance(file, (str, Path)) else []
    out = check_output(out, overwrite, inputs, folder=False)
    if not out.absolute().parent.is_dir():
        raise InputError(f"There is no folder '{out.parent}' for '{out.name}'.")
    rows, where = read_rows(file)
    texts = rows[find_text_column(rows, text_column, where)].tolist()
    check_texts(texts, where)
    classifier = Classifier.load(checkpoint)
    probs = classifier.score(texts)
    table = pd.DataFrame(probs.round(4), columns=classifier.label_names)
    ids = rows["id"] if "id" in rows else range(len(rows))
    table.insert(0, "id", ids, allow_duplicates=True)
    said = ["|".join(names) for names in classifier.decide(probs)]
    table.insert(len(table.columns), "labels", said, allow_duplicates=True)
    with atomic_path(out) as new:
        table.to_csv(new, index=False)
    return f"{len(texts)} texts scored on {len(classifier.label_names)} labels: {out}"
