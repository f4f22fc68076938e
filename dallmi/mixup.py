from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

PLACES = ("embedding", "encoder", "logits")

class Pairs(NamedTuple):
    "Rows to mix, each [M]: a positive and an unlabelled text of one label, the positive's coefficient g, and the pair's weight in the loss."
    positive: Tensor
    unlabelled: Tensor
    label: Tensor
    g: Tensor
    weight: Tensor

def pick_rows(mask):
    "One random row [L] of every column of `mask` [B, L] (any row where there is none)."
    return torch.where(mask, torch.rand(mask.shape, device=mask.device), -1.).argmax(0)

def draw_pairs(labels, alpha=0.3, rows=8):
    """At most `rows` pairs, one a label: a random observed positive and a random unlabelled row of it, g ~ Beta(alpha, alpha); paper, MixUp.

    `labels`: [B, L] with NaN. Labels that have both come first, in random order; pairs beyond them weigh 0. The weights of the others sum
    to the number of labels that have both, so that a capped draw has the expectation of the published sum. No host synchronisation."""
    positive, unknown = labels == 1, labels.isnan()
    real = positive.any(0) & unknown.any(0)
    order = (torch.rand(real.shape, device=real.device) + real).argsort(descending=True)[:rows]
    a = torch.full((len(order),), float(alpha), device=labels.device)
    g = torch.distributions.Beta(a, a, validate_args=False).sample()
    weight = real[order] * (real.sum() / real[order].sum().clamp(min=1))
    return Pairs(pick_rows(positive)[order], pick_rows(unknown)[order], order, g, weight)

def mix(a, b, g):
    "g·a + (1 − g)·b along the first axis; `g` is [M]."
    g = g.to(a.dtype).view(-1, *[1] * (a.dim() - 1))
    return g * a + (1 - g) * b

def mix_texts(embeds, mask, pairs):
    """Mixed word embeddings [M, T, H] and their attention mask [M, T].

    Padding is zeroed before it is mixed; the mask is the union of the texts that have weight, so g = 1 gives back the positive and g = 0 the unlabelled text."""
    clean = embeds * mask[..., None].to(embeds.dtype)
    p, u, g = pairs.positive, pairs.unlabelled, pairs.g[:, None]
    return mix(clean[p], clean[u], pairs.g), ((mask[p].bool() & (g > 0)) | (mask[u].bool() & (g < 1))).to(mask.dtype)

# where the encoder's output leaves the base model, by model_type: a hook there sees [B, T, H] just before the head
ENCODER_OUTPUT = {"bert": "encoder", "roberta": "encoder", "xlm-roberta": "encoder", "electra": "encoder", "mpnet": "encoder", "deberta-v2": "encoder",
                  "distilbert": "transformer", "modernbert": "final_norm"}

def check_model(model, place):
    "Raise ValueError, in one sentence, where `model` cannot be mixed at `place`."
    kind = model.config.model_type
    if place not in PLACES: raise ValueError(f"mixup place {place!r} is unknown: use {', '.join(PLACES)}.")
    if place == "encoder" and kind not in ENCODER_OUTPUT:
        raise ValueError(f"A {kind} model cannot be mixed at the encoder's output (known: {', '.join(ENCODER_OUTPUT)}); use mixup_place='embedding' or 'logits'.")
    if place == "encoder" and getattr(model.config, "classifier_pooling", "cls") != "cls":
        raise ValueError(f"This {kind} model pools by '{model.config.classifier_pooling}' and can be mixed at the encoder's output only with classifier_pooling='cls'.")

@contextmanager
def mixed_hidden(model, pairs):
    "While open, the encoder's output [B, T, H] leaves the base model as [B + M, T, H] with the mixed rows appended."
    def append(module, args, output):
        hidden = output if isinstance(output, Tensor) else output[0]
        longer = torch.cat([hidden, mix(hidden[pairs.positive], hidden[pairs.unlabelled], pairs.g)])
        if isinstance(output, Tensor): return longer
        if isinstance(output, tuple): return (longer, *output[1:])
        output.last_hidden_state = longer
        return output
    handle = model.base_model.get_submodule(ENCODER_OUTPUT[model.config.model_type]).register_forward_hook(append)
    try: yield
    finally: handle.remove()

def mixed_forward(forward, model, batch, pairs, place="embedding"):
    """Logits [B, L] of the batch and [M, L] of the mixed rows, from one pass of the encoder.

    `forward` is what to call (the model, or its DDP wrapper); `model` the model itself; `batch` has `input_ids` and `attention_mask`, both [B, T]."""
    ids, mask = batch["input_ids"], batch["attention_mask"]
    if place == "embedding":
        embeds = model.get_input_embeddings()(ids)
        mixed, mixed_mask = mix_texts(embeds, mask, pairs)
        logits = forward(inputs_embeds=torch.cat([embeds, mixed]), attention_mask=torch.cat([mask, mixed_mask])).logits
    elif place == "encoder":
        with mixed_hidden(model, pairs): logits = forward(input_ids=ids, attention_mask=mask).logits
    else:
        logits = forward(input_ids=ids, attention_mask=mask).logits
        logits = torch.cat([logits, mix(logits[pairs.positive], logits[pairs.unlabelled], pairs.g)])
    return logits.split([len(ids), len(pairs.g)])

def mixup_loss(mixed, logits, pairs, form="norm"):
    """MixUp regularisation, a float32 scalar; paper, MixUp. `mixed`: [M, L] logits of the mixed rows; `logits`: [B, L] of the same pass.

    Target Φ̃ = g + (1 − g)·Φ(x_u), detached; (Φ̃ − Φ(x̃))² in the norm form, (log Φ̃ − log Φ(x̃))² in the log form.
    Summed over the pairs by their weights: the published sum over labels."""
    z = mixed.float().gather(1, pairs.label[:, None])[:, 0]
    z_u = logits.float().detach()[pairs.unlabelled, pairs.label]
    if form == "norm": gap = pairs.g + (1 - pairs.g) * z_u.sigmoid() - z.sigmoid()
    else: gap = torch.logaddexp(pairs.g.log(), (1 - pairs.g).log() + F.logsigmoid(z_u)) - F.logsigmoid(z)
    return (pairs.weight * gap.square()).sum()
