"""A `Trainer` that draws balanced batches, mixes texts in the same pass and minimises any
`Loss`."""

__all__ = [
    "Collator",
    "DallmiArguments",
    "DallmiTrainer",
    "check_loss",
    "loss_name",
    "parameter_groups",
]

import inspect
import math
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate.data_loader import prepare_data_loader
from datasets import Dataset, List
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    ProgressCallback,
    TrainingArguments,
)

from dallmi.errors import InputError
from dallmi.losses.base import Loss
from dallmi.losses.mixup import MixUp
from dallmi.losses.variation import VariationLoss
from dallmi.training.callbacks import CarefulTrainer
from dallmi.training.encoder import pad_batch
from dallmi.training.sampler import BalancedBatchSampler

RANGES = {"balanced_share": (0.0, 1.0), "head_multiplier": (1e-6, math.inf)}


def _setting(default: Any, help: str) -> Any:
    "A dataclass field with its help text."
    return field(default=default, metadata={"help": help})


@dataclass
class DallmiArguments(TrainingArguments):
    """`transformers.TrainingArguments` with the method's own settings.

    Raises `InputError` for a setting outside its range, and for `auto_find_batch_size`, which would
    change the batches that the sampler drew."""

    balanced_share: float = _setting(
        0.5, "share of a batch drawn round the labels; 1 is the published scheme"
    )
    head_multiplier: float = _setting(1.0, "learning rate multiplier of the head")
    group_lengths: bool = _setting(False, "batches of texts of similar length")
    logging_nan_inf_filter: bool = _setting(
        False, "kept off: a loss that is not finite stops the training"
    )
    disable_tqdm: bool = _setting(True, "no progress bars and no printed logs")
    report_to: str = _setting("none", "where to send the logs")

    def __post_init__(self) -> None:
        for name, (low, high) in RANGES.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise InputError(f"{name}={value} is outside {low:g} … {high:g}.")
        if self.auto_find_batch_size:
            raise InputError(
                "auto_find_batch_size=True would change the batches that the sampler draws; "
                "set per_device_train_batch_size."
            )
        self.use_cpu = self.use_cpu or not torch.accelerator.is_available()
        self.remove_unused_columns = False
        self.dataloader_pin_memory = self.dataloader_pin_memory and not self.use_cpu
        super().__post_init__()

    @property
    def n_gpu(self) -> int:
        "One device per process: nn.DataParallel would cut the pairs of a batch apart."
        return min(1, super().n_gpu)

    @property
    def balanced_rows(self) -> int:
        "Rows of a batch that are drawn round the labels."
        return round(self.balanced_share * self.per_device_train_batch_size)


def _head_names(model: PreTrainedModel) -> set[str]:
    "Names of the parameters above the encoder: pooler and classifier."
    inside = f"{model.base_model_prefix}."
    names = [name for name, _ in model.named_parameters()]
    return {name for name in names if ".pooler." in name or not name.startswith(inside)}


def parameter_groups(
    model: PreTrainedModel,
    learning_rate: float,
    head_multiplier: float = 1.0,
    weight_decay: float = 0.0,
    decay: Collection[str] = (),
) -> list[dict[str, Any]]:
    """Optimizer groups of what is trainable: the encoder, then the head at `head_multiplier`
    times the rate.

    Only parameters named in `decay` get `weight_decay`."""
    head = _head_names(model)
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    groups = []
    for in_head in (False, True):
        for decays in (True, False):
            params = [p for n, p in named if (n in head) == in_head and (n in decay) == decays]
            rate = learning_rate * (head_multiplier if in_head else 1)
            groups.append({"params": params, "lr": rate, "weight_decay": weight_decay * decays})
    return [group for group in groups if group["params"]]


class Collator:
    """Pads rows to the longest text: `input_ids`, `attention_mask` [B, T]; all else as floats
    [B, L].

    The last `balanced` rows of a batch are marked False in `uniform` [B]: they were drawn round
    the labels. Where all rows are (the published scheme), there is no uniform part, and every
    row stands in for it."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, balanced: int = 0) -> None:
        self.tokenizer = tokenizer
        self.balanced = balanced

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        batch = dict(pad_batch(self.tokenizer, [row["input_ids"] for row in rows]))
        for key in rows[0].keys() - {"input_ids", "attention_mask", "token_type_ids"}:
            batch[key] = torch.tensor([row[key] for row in rows], dtype=torch.float32)
        uniform = len(rows) - self.balanced
        if "labels" in batch:
            batch["uniform"] = torch.arange(len(rows)) < (uniform or len(rows))
        return batch


def check_loss(loss: Any) -> None:
    "Raise `InputError` where `loss` cannot be called with (logits, labels, batch)."
    forward = getattr(loss, "forward", None)
    inherited = (nn.Module.forward, Loss.forward)
    own = callable(forward) and getattr(type(loss), "forward", None) not in inherited
    if not own:
        raise InputError(
            f"The loss {type(loss).__name__} has no method forward(logits, labels, batch); "
            "subclass dallmi.losses.Loss and write one."
        )
    assert callable(forward)
    try:
        inspect.signature(forward).bind(None, None, None)
    except TypeError:
        raise InputError(
            f"The forward of the loss {type(loss).__name__} does not take (logits, labels, batch); "
            "give it these three arguments."
        ) from None


def _training_columns(rows: Dataset) -> list[str]:
    "Names of the columns that go into a batch: the tokens, the labels, and lists of floats."
    floats = ("float16", "float32", "float64")
    chosen = []
    for name, feature in rows.features.items():
        inner = getattr(feature, "feature", None) if isinstance(feature, List) else None
        if name == "input_ids" or getattr(inner, "dtype", None) in floats:
            chosen.append(name)
    return chosen


def _balanced_loader(
    rows: Dataset,
    tokenizer: Any,
    args: DallmiArguments,
    collate: Callable[[list[dict[str, Any]]], dict[str, Tensor]] | None = None,
) -> DataLoader:
    """Device-placed batches of `BalancedBatchSampler` from tokenized rows, this process's share
    of them."""
    if "input_ids" not in rows.column_names:
        raise InputError("The training rows have no column 'input_ids'; use tokenize_domain.")
    labels = torch.tensor(rows["labels"][:], dtype=torch.float32).numpy()
    sampler = BalancedBatchSampler(
        labels,
        args.train_batch_size,
        args.balanced_rows,
        args.seed,
        args.process_index,
        args.world_size,
        [len(ids) for ids in rows["input_ids"]] if args.group_lengths else None,
    )
    loader = DataLoader(
        rows.select_columns(_training_columns(rows)),
        batch_sampler=sampler,
        collate_fn=collate or Collator(tokenizer, args.balanced_rows),
        num_workers=args.dataloader_num_workers,
        pin_memory=args.dataloader_pin_memory,
    )
    # the sampler already splits the rows over processes; accelerate only moves them to the device
    return prepare_data_loader(
        loader, args.device, num_processes=1, process_index=0, put_on_device=True
    )


def _sum(values: Iterable[Tensor]) -> Tensor:
    "The sum of scalars, of at least one."
    first, *rest = values
    for value in rest:
        first = first + value
    return first


def loss_name(loss: nn.Module) -> str:
    "What a loss is called in the logs: its own name, else its class in lower case without 'loss'."
    name = getattr(loss, "name", None) or type(loss).__name__.lower().removesuffix("loss")
    return str(name) or "loss"


class DallmiTrainer(CarefulTrainer):
    """`Trainer` that draws balanced batches, mixes texts in the same pass and minimises `loss`.

    `train_dataset`: tokenized rows with `input_ids` and `labels` [L] (1, 0, NaN), and the
    columns that `loss.prepare` gave, if any. `loss`: a `dallmi.losses.Loss` or any module whose
    forward takes (logits [B, L], labels [B, L], batch) and returns a scalar or a dict of named
    scalars, summed over labels; default the paper's `VariationLoss`. `batch` holds `uniform`
    [B], `epoch`, and the other columns. `mixup`: a `MixUp`, or None for none. `data_collator`:
    default `Collator`; yours marks the rows in `uniform` itself. The loss is divided by L; every
    part is logged as loss_<name>.

    One device per process; for several, use `accelerate launch`. Silent unless
    `disable_tqdm=False`. Raises `TrainingDiverged`, and `InputError` for a loss without a
    fitting forward and a model that cannot be mixed."""

    loss_is_scaled_for_ga = (
        False  # the loss is a batch mean: Trainer divides it by accumulation steps
    )

    def __init__(
        self,
        model: PreTrainedModel | None = None,
        args: DallmiArguments | None = None,
        data_collator: Callable[[list[dict[str, Any]]], dict[str, Tensor]] | None = None,
        train_dataset: Dataset | None = None,
        eval_dataset: Dataset | None = None,
        processing_class: Any = None,
        *,
        loss: nn.Module | None = None,
        mixup: MixUp | None = None,
        **kwargs: Any,
    ) -> None:
        args = DallmiArguments("tmp_trainer") if args is None else args
        if not isinstance(args, DallmiArguments):
            raise InputError(f"DallmiTrainer needs DallmiArguments, not {type(args).__name__}.")
        self.loss = VariationLoss() if loss is None else loss
        check_loss(self.loss)
        if mixup is not None and model is not None:
            mixup.check(model, getattr(processing_class, "padding_side", "right"))
        self.mixup = mixup
        self.own_collator = data_collator
        super().__init__(
            model,
            args,
            data_collator=data_collator or Collator(processing_class),
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            **kwargs,
        )
        self.loss.to(args.device)
        if args.disable_tqdm:
            for callback in (PrinterCallback, ProgressCallback):
                self.remove_callback(callback)

    def get_train_dataloader(self) -> DataLoader:
        "This process's share of the balanced batches."
        assert isinstance(self.args, DallmiArguments)
        return _balanced_loader(
            self.train_dataset, self.processing_class, self.args, self.own_collator
        )

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        "The arguments' optimizer, with the head at `head_multiplier` times the learning rate."
        assert isinstance(self.args, DallmiArguments)
        if self.optimizer is None and self.args.head_multiplier != 1:
            assert isinstance(self.model, PreTrainedModel)
            cls, kwargs = self.optimizer_cls_and_kwargs or self.get_optimizer_cls_and_kwargs(
                self.args, self.model
            )
            groups = parameter_groups(
                self.model,
                kwargs["lr"],
                self.args.head_multiplier,
                self.args.weight_decay,
                self.get_decay_parameter_names(self.model),
            )
            self.optimizer = cls(groups, **kwargs)
        return super().create_optimizer(model)

    def forward_batch(
        self, model: nn.Module, batch: dict[str, Any]
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Parts of the loss, {name: scalar, summed over labels}, and logits [B, L], from one pass.

        In training with MixUp the part "mixup" is among them, not yet weighted."""
        plain = self.accelerator.unwrap_model(model)
        text = {k: batch[k] for k in ("input_ids", "attention_mask")}
        labels = batch["labels"]
        mixup = self.mixup if model.training else None
        if mixup is not None and mixup.weight > 0:
            pairs = mixup.draw(labels)
            logits, mixed = mixup.forward(model, plain, text, pairs)
            return self._loss_parts(logits, labels, batch) | {
                "mixup": mixup.loss(mixed, logits, pairs)
            }, logits
        logits = model(**text).logits
        return self._loss_parts(logits, labels, batch), logits

    def _loss_parts(
        self, logits: Tensor, labels: Tensor, batch: dict[str, Any]
    ) -> dict[str, Tensor]:
        "What the loss gives, as named parts."
        value = self.loss(logits, labels, batch)
        return value if isinstance(value, dict) else {loss_name(self.loss): value}

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        "The parts of the loss plus the weighted MixUp term, divided by the number of labels."
        batch = {**inputs, "epoch": self.state.epoch or 0.0}
        parts, logits = self.forward_batch(model, batch)
        if model.training:
            self.tally.add(parts, logits, batch["labels"], self.state.global_step + 1)
        total = _sum(value for name, value in parts.items() if name != "mixup")
        if "mixup" in parts and self.mixup is not None:
            total = total + self.mixup.weight * parts["mixup"]
        loss = total / logits.shape[1]
        return (loss, {"logits": logits}) if return_outputs else loss
