import json
import platform
import shutil
import tempfile
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
import torch
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils import logging

from dallmi.data import InputError

def cpu_flags():
    "Names of the instruction sets of this processor, as far as torch or Linux tell them; else empty."
    if hasattr(torch.cpu, "get_capabilities"): return {k for k, v in torch.cpu.get_capabilities().items() if v is True}
    try: lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError: return set()
    return set(next((line for line in lines if line.startswith("flags")), "").split())

def bf16_pays(device):
    "Whether `device` computes bfloat16 in hardware, so that autocast to it saves time; False where that is not known."
    kind = torch.device(device).type
    if kind == "cuda": return torch.cuda.is_bf16_supported(including_emulation=False)
    return kind == "cpu" and torch.backends.mkldnn.is_available() and not cpu_flags().isdisjoint({"avx512_bf16", "amx_bf16"})

def length_batches(lengths, batch_tokens=16384, batch_size=256):
    "Row numbers in batches, longest texts first, each of at most `batch_tokens` padded tokens and `batch_size` rows (at least one)."
    batches, batch = [], []
    for i in np.argsort(-np.asarray(lengths), kind="stable").tolist():
        if batch and (len(batch) == batch_size or (len(batch) + 1) * lengths[batch[0]] > batch_tokens):
            batches.append(batch)
            batch = []
        batch.append(i)
    return batches + [batch] * bool(batch)

@contextmanager
def evaluating(model, bf16=None):
    "While open, `model` is in evaluation mode, no gradients are kept, and with `bf16` (default: where it pays) it computes in bfloat16."
    bf16, training = bf16_pays(model.device) if bf16 is None else bf16, model.training
    model.eval()
    try:
        with torch.inference_mode(), torch.autocast(model.device.type, torch.bfloat16) if bf16 else nullcontext(): yield
    finally: model.train(training)

def score_tokens(model, tokenizer, input_ids, bf16=None):
    out = np.empty((len(input_ids), model.config.num_labels), dtype=np.float32)
    with evaluating(model, bf16):
        for rows in length_batches([len(x) for x in input_ids]):
            batch = tokenizer.pad({"input_ids": [input_ids[i] for i in rows]}, return_tensors="pt").to(model.device)
            out[rows] = model(**batch).logits.float().sigmoid().cpu().numpy()
    return out

@contextmanager
def quiet_transformers():
    "While open, transformers draws no progress bars and reports nothing below an error; the user's settings come back after."
    level, bars, hub_off = logging.get_verbosity(), logging.is_progress_bar_enabled(), are_progress_bars_disabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try: yield
    finally:
        logging.set_verbosity(level)
        if bars: logging.enable_progress_bar()
        if hub_off: disable_progress_bars()
