"""What MiniLM, as it is, makes of the films, for chapters 09, 31 and 34: nobody waits for it there.

The mean of the encoder's token vectors, one row per film in the order of `load_domain`, of the
whole text and of its first 64 tokens; of the first 300 synopses and 400 blurbs also that of 32
tokens, scaled to length 1, as SentenceTransformer gives it. The chapters show the code and compare
some rows.

    OMP_NUM_THREADS=1 python experiments/features.py

Writes nbs/results/minilm.npz, {"source", "target", "source, 64 tokens", "target, 64 tokens",
"source, 32 tokens", "target, 32 tokens"}, each [N, 384] in float32; 100 seconds of one core.
OUT=… chooses another file."""

import os
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModel, AutoTokenizer

from dallmi.data.labels import load_domain
from dallmi.training.encoder import default_model

OUT = Path(os.environ.get("OUT", "nbs/results/minilm.npz"))


@torch.inference_mode()
def embed(texts: list[str], max_length: int) -> np.ndarray:
    "Mean of the token vectors, [N, 384]."
    tokenizer = AutoTokenizer.from_pretrained(default_model())
    encoder = AutoModel.from_pretrained(default_model()).eval()
    out = np.empty((len(texts), encoder.config.hidden_size), np.float32)
    by_length = np.argsort([len(text) for text in texts], kind="stable")
    for rows in np.array_split(by_length, -(-len(texts) // 32)):
        how = {"truncation": True, "max_length": max_length, "padding": True}
        batch = tokenizer([texts[i] for i in rows], return_tensors="pt", **how)
        mask = batch["attention_mask"][..., None]
        states = encoder(**batch).last_hidden_state
        out[rows] = (states * mask).sum(1) / mask.sum(1)
    return out


if __name__ == "__main__":
    found = {}
    for domain, first in {"source": 300, "target": 400}.items():
        texts = load_domain(f"films:{domain}").texts
        found[domain] = embed(texts, 256)
        found[f"{domain}, 64 tokens"] = embed(texts, 64)
        short = embed(texts[:first], 32)
        found[f"{domain}, 32 tokens"] = short / np.linalg.norm(short, axis=1, keepdims=True)
    np.savez_compressed(OUT, **found)
    print({name: rows.shape for name, rows in found.items()}, f"{OUT.stat().st_size / 1e6:.1f} MB")
