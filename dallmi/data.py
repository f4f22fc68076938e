import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
from datasets import Dataset, DatasetInfo, Features, List, Value, load_dataset

class InputError(ValueError):
    "Something the user gave cannot be used. The message says what, where, and what to do; the command line prints it and exits with code 2."

PRESETS = {  # the paper's data sets as published: file names, text column, position of the first label after the index column
    "pubmed": dict(source="pubmed_male.csv", target="pubmed_female.csv", text="abstractText", first_label=6),
    "movies": dict(source="wiki.csv", target="imdb.csv", text="overview", first_label=13),
    "arxiv": dict(source="arvix_older_papers.csv", target="arvix_newer_papers.csv", text="summaries", first_label=3),
}

def label_names(ds):
    "Names of the columns of `ds['labels']`, in order."
    try: return json.loads(ds.info.description)["label_names"]
    except (ValueError, KeyError, TypeError): raise InputError("This data set carries no label names; make it with `load_domain`.") from None

def make_domain(texts, labels, names, ids=None):
    "A `Dataset` of `texts`, float `labels` [N, L] (1, 0 or NaN) and `ids`; `names` [L] travel in its info."
    labels = np.asarray(labels, dtype=np.float32).reshape(len(texts), len(names))
    feats = Features({"id": Value("string"), "text": Value("string"), "labels": List(Value("float32"), length=len(names))})
    info = DatasetInfo(features=feats, description=json.dumps({"label_names": list(names)}))
    ids = [str(i) for i in (range(len(texts)) if ids is None else ids)]
    return Dataset.from_dict({"id": ids, "text": list(texts), "labels": labels.tolist()}, features=feats, info=info)

def label_matrix(ds):
    "The labels of `ds` as float32 [N, L] with NaN where unknown."
    return np.asarray(ds.with_format("numpy")["labels"], dtype=np.float32).reshape(len(ds), len(label_names(ds)))

def with_labels(ds, labels):
    "`ds` with its labels replaced by `labels` [N, L]; everything else stays."
    feats = ds.features["labels"]
    return ds.remove_columns("labels").add_column("labels", np.asarray(labels, np.float32).tolist(), feature=feats)

# ---- reading -------------------------------------------------------------------------------------------------

def read_table(path):
    "The rows of a CSV, TSV, JSONL or Parquet file as a DataFrame; CSV cells stay strings. Raises `InputError`."
    path = Path(path)
    if not path.is_file(): raise InputError(f"No file at '{path}'.")
    kind = path.suffix.lower()
    if kind not in READERS: raise InputError(f"'{path}' ends in '{kind}'; use .csv, .tsv, .jsonl or .parquet.")
    try: df = READERS[kind](path)
    except UnicodeDecodeError as e:
        raise InputError(f"'{path}' is not UTF-8 (byte {e.object[e.start]:#04x} at offset {e.start}); save it as UTF-8.") from None
    except (ValueError, OSError) as e:
        raise InputError(f"'{path}' cannot be read as {kind[1:].upper()}: {str(e).splitlines()[0] if str(e) else type(e).__name__}.") from None
    return df.rename(columns=lambda c: str(c).strip())

def _read_csv(path, sep=","): 
    path.read_bytes().decode("utf-8")
    return pd.read_csv(path, sep=sep, dtype=str, keep_default_na=False, encoding="utf-8-sig", on_bad_lines="error")

READERS = {".csv": _read_csv, ".tsv": lambda p: _read_csv(p, "\t"), ".parquet": pd.read_parquet,
           ".jsonl": lambda p: pd.read_json(p, lines=True, dtype=False, convert_dates=False)}

def read_rows(source):
    "Rows of `source` as a DataFrame, and the name to use for it in messages."
    if isinstance(source, pd.DataFrame): return source.reset_index(drop=True), "the data frame"
    if isinstance(source, Dataset): return source.to_pandas(), "the data set"
    if str(source).startswith("films:"): return read_table(film_file(str(source)[6:])), str(source)
    if str(source).startswith("hub:"): return read_hub(str(source)[4:]), str(source)
    return read_table(source), str(source)

def read_hub(name, split="train"):
    "The split `split` of the hub data set `owner/name` (or `owner/name:split`) as a DataFrame."
    name, _, wanted = name.partition(":")
    try: return load_dataset(name, split=wanted or split).to_pandas()
    except Exception as e:  # the hub client raises many kinds, all of them "not there" to a reader
        raise InputError(f"The hub data set '{name}' cannot be loaded ({type(e).__name__}: {str(e).splitlines()[0]}); "
                         "check its name and split, and the connection.") from None

FILMS = Path(__file__).parent / "films" if "__file__" in globals() else Path("../dallmi/films")

def film_file(domain):
    "Path of a domain of the bundled films corpus, 'source' or 'target'."
    path = FILMS / f"{domain}.csv"
    if not path.is_file(): raise InputError(f"No films domain '{domain}': use films:source or films:target.")
    return path

# ---- labels --------------------------------------------------------------------------------------------------

BLANK = {"", "nan", "none", "null", "na", "<na>"}

def parse_cell(value):
    "1.0, 0.0 or NaN for a label cell; ValueError for all else."
    text = "" if value is None else str(value).strip().lower()
    if text in BLANK: return np.nan
    if text in ("true", "false"): return float(text == "true")
    number = float(text)
    if number not in (0.0, 1.0): raise ValueError(text)
    return number

def labels_from_columns(df, names, where):
    "Float labels [N, L] from one 0/1/blank column a label. Raises `InputError` with row, column and value."
    out = np.empty((len(df), len(names)), dtype=np.float32)
    for j, name in enumerate(names):
        for i, value in enumerate(df[name].tolist()):
            try: out[i, j] = parse_cell(value)
            except ValueError:
                raise InputError(f"{where}: row {i + 1}, column '{name}' holds {str(value)[:40]!r}; a label is 1, 0 or blank. "
                                 "If it is no label column, name the label columns with labels=… (--labels).") from None
    return out

def split_names(value):
    "Label names in a cell: a list, or a string such as 'drama|crime', 'drama, crime' or '[\"drama\"]'; None for a blank cell."
    if value is None or (isinstance(value, float) and np.isnan(value)): return None
    if isinstance(value, (list, tuple, np.ndarray)): return [str(v).strip() for v in value]
    text = str(value).strip()
    if text.startswith("["): return [v.strip().strip("'\"") for v in text.strip("[]").split(",") if v.strip()]
    return [v.strip() for v in re.split(r"[|;,]", text) if v.strip()] or None

def labels_from_lists(column, names=None):
    "Names [L] and labels [N, L] from a column of label-name lists: listed = 1, not listed = 0, a blank cell = NaN."
    rows = [split_names(v) for v in column]
    names = sorted({n for r in rows if r for n in r}) if names is None else list(names)
    out = np.zeros((len(rows), len(names)), dtype=np.float32)
    for i, row in enumerate(rows): out[i] = np.nan if row is None else [n in row for n in names]
    return names, out

def find_text_column(df, text, where):
    "Name of the text column: `text`, or 'text' where none is given. Raises `InputError` that lists the columns."
    if (text or "text") in df.columns: return text or "text"
    raise InputError(f"{where} has no text column '{text or 'text'}'; its columns are {', '.join(map(repr, df.columns))}. Name it with text=… (--text).")

def find_label_columns(df, text, labels, where):
    "Label columns: those named, else all to the right of the text column."
    cols = list(df.columns)
    if isinstance(labels, str): labels = [n.strip() for n in labels.split(",")]
    if labels is None: labels = cols[cols.index(text) + 1:]
    missing = [n for n in labels if n not in cols]
    if missing: raise InputError(f"{where} has no label column {', '.join(map(repr, missing))}; its columns are {', '.join(map(repr, cols))}.")
    if not labels: raise InputError(f"{where} has no label columns to the right of '{text}'; name them with labels=… (--labels).")
    return list(labels)

def is_list_column(df, names):
    "Whether the one label column `names` holds label-name lists rather than 0/1/blank."
    if len(names) != 1: return False
    for value in df[names[0]]:
        try: parse_cell(value) if not isinstance(value, (list, tuple, np.ndarray)) else float("list")
        except ValueError: return True
    return False

# ---- a domain ------------------------------------------------------------------------------------------------

def check_texts(texts, where):
    "Raise `InputError` where a text is empty or no string, with the count and the first row."
    bad = [i for i, t in enumerate(texts) if not isinstance(t, str) or not t.strip()]
    if bad: raise InputError(f"{where}: {len(bad)} of {len(texts)} texts are empty or no text (first at row {bad[0] + 1}); drop or fill these rows.")

def check_ids(ids, where):
    "Raise `InputError` where an id occurs twice."
    twice = pd.Series(ids)[pd.Series(ids).duplicated()]
    if len(twice): raise InputError(f"{where}: id {twice.iloc[0]!r} occurs twice (row {twice.index[0] + 1}); ids must differ.")

def load_domain(source, text=None, labels=None, *, only=None, max_rows=None):
    """A domain: a `datasets.Dataset` with columns `id`, `text` and `labels` [L] (float32: 1 positive, 0 negative, NaN unknown).

    `source`: path of a CSV, TSV, JSONL or Parquet file, a DataFrame, a `Dataset`, 'hub:owner/name[:split]' or 'films:source' / 'films:target'.
    `text`: name of the text column ('text'). `labels`: names of the 0/1/blank columns, or of one column of label-name lists (default: the
    columns to the right of the text). `only`: restrict to these labels. `max_rows`: use the first so many rows.
    Raises `InputError` for whatever cannot be used."""
    df, where = read_rows(source)
    if max_rows: df = df.head(max_rows)
    text = find_text_column(df, text, where)
    names = find_label_columns(df, text, labels, where)
    if len(df) < 2: raise InputError(f"{where} has {len(df)} rows; at least 2 are needed.")
    texts = df[text].tolist()
    check_texts(texts, where)
    ids = df["id"].tolist() if "id" in df.columns else range(len(df))
    check_ids(list(ids), where)
    if is_list_column(df, names): names, matrix = labels_from_lists(df[names[0]])
    else: matrix = labels_from_columns(df, names, where)
    ds = make_domain(texts, matrix, names, ids)
    if only is not None: ds = select_labels(ds, only, where)
    if len(label_names(ds)) < 2: raise InputError(f"{where} has the one label {label_names(ds)[0]!r}; multi-label learning needs at least 2.")
    return ds

def load_paper(name, folder):
    "Source and target of the paper's data set `name` ('pubmed', 'movies', 'arxiv') from the published CSV files in `folder`."
    if name not in PRESETS: raise InputError(f"No preset '{name}'; there are {', '.join(PRESETS)}.")
    p, out = PRESETS[name], []
    for domain in ("source", "target"):
        df = read_table(Path(folder) / p[domain]).iloc[:, 1:]
        out.append(load_domain(df, p["text"], list(df.columns[p["first_label"]:])))
    return tuple(out)

def select_labels(ds, names, where="the domain"):
    "`ds` with the labels `names`, in that order. Raises `InputError` for a name it has not."
    have = label_names(ds)
    missing = [n for n in names if n not in have]
    if missing: raise InputError(f"{where} has no label {', '.join(map(repr, missing))}; its labels are {', '.join(have)}.")
    if list(names) == have: return ds
    return make_domain(ds["text"], label_matrix(ds)[:, [have.index(n) for n in names]], names, ds["id"])

def match_labels(source, target, where="target"):
    "`target` with its labels in the order of `source`'s. Raises `InputError` that names what only one of them has."
    s, t = label_names(source), label_names(target)
    lost, extra = [n for n in s if n not in t], [n for n in t if n not in s]
    if lost or extra:
        both = [f"the {where} lacks {', '.join(map(repr, lost))}"] * bool(lost) + [f"the source lacks {', '.join(map(repr, extra))}"] * bool(extra)
        raise InputError(f"The label sets differ: {'; '.join(both)}. Restrict both to common labels with only=… (--only).")
    return select_labels(target, s)

def as_unlabelled(labels, trust_negatives=False):
    "Labels [N, L] of a target: what is not an observed positive becomes NaN; with `trust_negatives` its zeros stay."
    labels = np.asarray(labels, dtype=np.float32)
    return labels if trust_negatives else np.where(labels == 1, labels, np.nan).astype(np.float32)

def check_positives(ds, where, hint="drop it with only=… (--only)"):
    "Raise `InputError` that names the labels without an observed positive."
    none = [n for n, k in zip(label_names(ds), (label_matrix(ds) == 1).sum(0)) if k == 0]
    if none: raise InputError(f"{where}: no observed positive of {', '.join(map(repr, none))}; label at least one text or {hint}.")

def text_key(text):
    "Letters and digits of `text` only, lower case, hashed: equal for copies that differ in blanks or punctuation."
    return hashlib.sha1("".join(c for c in text.lower() if c.isalnum()).encode()).digest()

def check_disjoint(train, test):
    "Raise `InputError` where a text of `test` is in `train` too."
    seen = {text_key(t): i for i, t in zip(train["id"], train["text"])}
    both = [(i, seen[k]) for i, k in zip(test["id"], map(text_key, test["text"])) if k in seen]
    if both: raise InputError(f"{len(both)} texts are in both the target and its test (first: id {both[0][1]!r} and test id {both[0][0]!r}); remove them from one.")

def split_domain(ds, test=0.2, seed=0):
    "Train and test part of `ds`, shuffled; `test` is a share."
    parts = ds.train_test_split(test_size=test, seed=seed, load_from_cache_file=False)
    return parts["train"], parts["test"]

def tokenize_domain(ds, tokenizer, max_length=128):
    "`ds` with `input_ids`, cut at `max_length` tokens and not padded."
    ids = tokenizer(ds["text"][:], truncation=True, max_length=max_length, return_attention_mask=False)["input_ids"]
    return ds.add_column("input_ids", ids)
