"""The measurement of chapter 22: memory and seconds against the number of texts.

    python experiments/stream_size.py

Scores 1,000 to 1,000,000 short texts with a tiny random model, each in a process of its own: read
whole and scored at once, as the chapter's first version does, and by `predict_file`. Writes a row
per run to nbs/results/streams.jsonl: the most memory that the process had (MB), and the seconds of
the processor. SIZES=1000,100000 chooses others.
"""

import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

OUT = Path(os.environ.get("OUT", "nbs/results/streams.jsonl"))
SIZES = list(map(int, os.environ.get("SIZES", "1000,10000,100000,1000000").split(",")))
WHOLE_UP_TO = 100_000
WORDS = "late slow bill wrong parcel broke never came good kind film war love sad price paid"

WHOLE = """
import sys
import pandas as pd
from dallmi.inference import Classifier
frame = pd.read_csv(sys.argv[2])
classifier = Classifier.load(sys.argv[1])
table = classifier.predict(frame["text"].tolist())
table.insert(0, "id", frame["id"])
table.to_csv(sys.argv[3], index=False)
"""
CHUNKS = """
import sys
from dallmi.streams import predict_file
print(predict_file(*sys.argv[1:]))
"""


def make_model(folder):
    "A tiny random BERT with three labels."
    import torch
    from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

    from dallmi.inference import Classifier

    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS.split()]
    tokenizer = BertTokenizerFast(vocab={w: i for i, w in enumerate(names)}, model_max_length=32)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(names),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
        id2label={0: "slow", 1: "broken", 2: "money"},
    )
    Classifier(BertForSequenceClassification(config), tokenizer, 32).save(folder, "# tiny\n")


def make_texts(path, number):
    "A CSV of so many short texts."
    draws, words = random.Random(0), WORDS.split()
    with open(path, "w") as f:
        f.write("id,text\n")
        for i in range(number):
            f.write(f"n{i},{' '.join(draws.choices(words, k=12))}\n")


def measure(code, *arguments):
    "Most memory (MB) and processor seconds of a process that runs `code`."
    child = subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)])
    _, status, used = os.wait4(child.pid, 0)
    if status:
        raise SystemExit(f"it ended with {os.waitstatus_to_exitcode(status)}")
    return round(used.ru_maxrss / 1024), round(used.ru_utime + used.ru_stime, 1)


def main():
    os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        make_model(root / "model")
        for number in SIZES:
            make_texts(root / "texts.csv", number)
            for name, code in {"whole": WHOLE, "chunks": CHUNKS}.items():
                if name == "whole" and number > WHOLE_UP_TO:
                    continue
                out = root / f"{name}-{number}.csv"
                memory, seconds = measure(code, root / "model", root / "texts.csv", out)
                row = {"how": name, "texts": number, "memory_MB": memory, "seconds": seconds}
                with open(out, "rb") as f:
                    row["rows"] = sum(1 for _ in f) - 1
                with OUT.open("a") as f:
                    f.write(json.dumps(row) + "\n")
                print(row, flush=True)


if __name__ == "__main__":
    main()
