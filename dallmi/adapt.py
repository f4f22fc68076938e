import hashlib
import json
import os
import shutil
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from transformers.trainer_utils import set_seed

import dallmi
from dallmi.config import Settings
from dallmi.data import (InputError, as_unlabelled, check_disjoint, check_positives, label_matrix, label_names, load_domain, match_labels,
                         split_domain, tokenize_domain, with_labels)
from dallmi.inference import bf16_pays, save_classifier, score_tokens
from dallmi.masking import mask_labels
from dallmi.mixup import check_model
from dallmi.metrics import chance_map, evaluate_scores, pu_thresholds
from dallmi.training import DallmiArguments, HUB_DEFAULT, DallmiTrainer, Progress, default_model, load_encoder, start_at_prior

# ---- data ----------------------------------------------------------------------------------------------------

def load_pair(s):
    """Source, target-train and target-test of settings `s`, checked and with labels in one order; test is None where nothing can be scored.

    With `s.keep` the positives of target-train are hidden but for that share, and test is `s.test` or a fifth of the target."""
    only = s.only and [n.strip() for n in s.only.split(",")]
    load = lambda path: load_domain(path, s.text, s.labels, only=only, max_rows=s.max_rows)
    source = load(s.source)
    check_positives(source, s.source)
    target = match_labels(source, load(s.target))
    test = s.test and match_labels(source, load(s.test), "test")
    if s.keep and not test: target, test = split_domain(target, 0.2, s.seed)
    if test: check_disjoint(target, test)
    check_positives(target, f"{s.target} (training part)" if s.keep else s.target)
    labels = label_matrix(target)
    hidden = mask_labels(labels, s.keep, s.by, s.seed, s.trust_negatives) if s.keep else as_unlabelled(labels, s.trust_negatives)
    return source, with_labels(target, hidden), test

# ---- stages --------------------------------------------------------------------------------------------------

def last_checkpoint(folder):
    "The newest complete checkpoint in `folder`, or None; one cut off while it was written is removed."
    done = []
    for path in sorted(Path(folder).glob("checkpoint-*"), key=lambda p: int(p.name.split("-")[1])):
        try: json.loads((path / "trainer_state.json").read_text()); done.append(str(path))
        except (OSError, ValueError): shutil.rmtree(path, ignore_errors=True)
    return done[-1] if done else None

def train_stage(name, s, model, tokenizer, data, folder, pos_weight=1., **kwargs):
    "Train `model` on `data`, checkpointing in `folder` and going on from there if it holds a checkpoint; returns texts per second."
    args = DallmiArguments(output_dir=str(folder), per_device_train_batch_size=s.batch_size, seed=s.seed, bf16=s.bf16, warmup_steps=0.1, weight_decay=0.01,
                           save_steps=0.2, save_total_limit=1, logging_steps=10, disable_tqdm=True, **kwargs)
    trainer = DallmiTrainer(model, args, data, tokenizer, pos_weight=pos_weight, callbacks=[Progress(name)])
    return trainer.train(resume_from_checkpoint=last_checkpoint(folder)).metrics["train_samples_per_second"]

def digest(*parts):
    "Short SHA-256 of bytes, strings and JSON-able values."
    h = hashlib.sha256()
    for p in parts: h.update(p if isinstance(p, bytes) else (p if isinstance(p, str) else json.dumps(p, sort_keys=True)).encode())
    return h.hexdigest()[:24]

def weights_digest(model):
    "Digest of the encoder's weights: the same for a folder, its copy and the hub's."
    return digest(*(t.detach().cpu().contiguous().numpy().tobytes() for _, t in sorted(model.base_model.state_dict().items())))

def is_main(): return int(os.environ.get("RANK", 0)) == 0

def barrier():
    "Wait for the other processes of `accelerate launch`, if there are any."
    if torch.distributed.is_available() and torch.distributed.is_initialized(): torch.distributed.barrier()

def cache_folder():
    "Where source models are kept: $DALLMI_CACHE, else ~/.cache/dallmi."
    return Path(os.environ.get("DALLMI_CACHE") or Path.home() / ".cache" / "dallmi")

def to_device(model): return model.to(torch.accelerator.current_accelerator() or "cpu") if torch.accelerator.is_available() else model

def source_key(s, source, model):
    "Name of the source model in the cache: made from the encoder's weights, the texts, the labels and the settings of this stage."
    return digest(dallmi.__version__, weights_digest(model), list(source["text"]), label_matrix(source).tobytes(), label_names(source),
                  [s.max_length, s.source_epochs, s.source_lr, s.head_lr, s.batch_size, s.seed, s.bf16])

def source_model(s, source):
    "Tokenizer and model fine-tuned on `source`, from the cache where it is there, else trained (stage 1)."
    set_seed(s.seed)
    tokenizer, model = load_encoder(s.model or default_model(), label_names(source))
    check_model(model, s.mixup_place)
    folder = cache_folder() / source_key(s, source, model)
    if not (folder / "model.safetensors").is_file():
        start_at_prior(model, np.nanmean(label_matrix(source), 0))
        work = Path(f"{folder}.partial")
        train_stage("source", s, model, tokenizer, tokenize_domain(source, tokenizer, s.max_length), work, objective="supervised", balanced_share=0.,
                    num_train_epochs=s.source_epochs, learning_rate=s.source_lr, head_lr=s.head_lr)
        if is_main():
            model.save_pretrained(work / "final")
            shutil.rmtree(folder, ignore_errors=True)
            (work / "final").rename(folder)
            shutil.rmtree(work)
        barrier()
    model.load_state_dict(load_file(folder / "model.safetensors"))
    return tokenizer, to_device(model)

def positive_weights(anchor, observed, most=20.):
    """Weight [L] of an observed positive: the number of positives the source model expects among the texts (`anchor` [N, L], its Φ), over the
    number observed (`observed` [N, L]), within 1 … `most`. The observed ones then stand for all."""
    found = (observed == 1).sum(0)
    return np.clip(anchor.sum(0) / np.maximum(found, 1), 1, most)

def adapt_model(name, s, model, tokenizer, target, folder, **choices):
    "Train `model` on the target (stage 2) by the method's settings, or those in `choices`; returns texts per second."
    set_seed(s.seed)
    anchor = score_tokens(model, tokenizer, target["input_ids"], s.bf16)
    method = dict(objective=s.objective, form=s.form, balanced_share=s.balanced_share, mixup_weight=s.mixup_weight, mixup_alpha=s.mixup_alpha,
                  mixup_place=s.mixup_place, mixup_rows=s.mixup_rows) | choices
    return train_stage(name, s, model, tokenizer, target.add_column("anchor", anchor.tolist()), folder, positive_weights(anchor, label_matrix(target)),
                       num_train_epochs=s.epochs, learning_rate=s.lr, **method)

# ---- results -------------------------------------------------------------------------------------------------

TITLES = {"source": "source model", "bce": "BCE, observed labels", "dallmi": "DALLMi"}
COLUMNS = ("mAP", "mAP@0.5", "F1")

def results_table(models):
    "The metrics of `models` ({name: metrics}) in percent, as text."
    lines = [f"{'':<22}" + "".join(f"{c:>9}" for c in COLUMNS)]
    return "\n".join(lines + [f"{TITLES[name]:<22}" + "".join(f"{100 * m[c]:9.1f}" for c in COLUMNS) for name, m in models.items()])

def plot_results(models, chance, path):
    "Dot plot of the average precision of every label, one mark a model, written to `path`."
    import matplotlib
    from matplotlib.figure import Figure
    names = list(chance)
    order = sorted(range(len(names)), key=lambda i: np.nan_to_num(list(models["source"]["AP"].values())[i]))
    fig = Figure(figsize=(6, 1.2 + 0.28 * len(names)), dpi=130, layout="constrained")
    ax = fig.subplots()
    ax.scatter([chance[names[i]] for i in order], range(len(order)), marker="|", color="0.6", label="chance")
    for (name, m), marker, color in zip(models.items(), "osD", ("#949494", "#de8f05", "#0173b2")):
        ax.scatter([m["AP"][names[i]] for i in order], range(len(order)), marker=marker, color=color, s=26, label=f"{TITLES[name]} (mAP {100 * m['mAP']:.1f})")
    ax.set(yticks=range(len(order)), yticklabels=[names[i] for i in order], xlabel="average precision on held-out target texts", xlim=(0, 1.02))
    ax.grid(axis="x", color="0.9")
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=2, frameon=False, fontsize=8)
    fig.savefig(path)

def model_card(s, names, models, counts):
    "Text of the checkpoint's README.md: what it is, how it was made, what was measured."
    rows = "\n".join(f"| {TITLES[n]} | " + " | ".join(f"{100 * m[c]:.1f}" for c in COLUMNS) + " |" for n, m in models.items())
    measured = f"Held-out target texts: {counts['test']}. In percent; mAP@0.5 is the average precision of predictions rounded at 0.5.\n\n| | {' | '.join(COLUMNS)} |\n|---|---|---|---|\n{rows}\n"
    return f"""---
library_name: transformers
pipeline_tag: text-classification
base_model: {s.model or HUB_DEFAULT}
tags: [multi-label, domain-adaptation, positive-unlabelled, dallmi]
---
# Multi-label text classifier, adapted with dallmi {dallmi.__version__}

Labels: {', '.join(names)}.

Fine-tuned on {counts['source']} labelled texts of a source domain, then adapted to a target domain with {counts['target']} texts of which {counts['observed']} positive
labels were known (recipe `{s.recipe}`; every setting in `settings.json`).

{measured if models else 'No labelled target texts were given: nothing was measured.'}
Scores are sigmoid outputs, one a label. `config.json` holds a threshold a label, chosen from the observed positives without any negatives.
"""

def open_work(out, s, source, target, overwrite=False):
    "The folder `out.partial` of an unfinished run with the same settings and data, or a new one. Raises `InputError` where something is in the way."
    out, work = Path(out), Path(f"{out}.partial")
    mine = asdict(s) | {"data": digest(list(source["text"]), list(target["text"]), label_matrix(source).tobytes(), label_matrix(target).tobytes())}
    if out.exists() and not overwrite: raise InputError(f"'{out}' exists; give another --out, or --overwrite to replace it.")
    if not is_main(): return work
    if (work / "settings.json").is_file():
        theirs = json.loads((work / "settings.json").read_text())
        differ = [k for k in mine if mine[k] != theirs.get(k)]
        if differ and not overwrite: raise InputError(f"'{work}' holds an unfinished run that differs in {', '.join(differ)}; finish it with its own settings, or discard it with --overwrite.")
        if differ: shutil.rmtree(work)
    try: work.mkdir(parents=True, exist_ok=True)
    except OSError as e: raise InputError(f"'{out}' cannot be written: {e.strerror}.") from None
    (work / "settings.json").write_text(json.dumps(mine, indent=1))
    return work

def stage(work, name, make):
    "Arrays of a finished stage from `work/name.npz`, else those that `make()` returns, which are stored."
    path = work / f"{name}.npz"
    if not path.is_file():
        arrays = make()
        if is_main():
            np.savez(work / "new.npz", **arrays)
            (work / "new.npz").rename(path)
        barrier()
    return dict(np.load(path))

def adapt(s, out="dallmi-out", overwrite=False):
    """Fine-tune on the source (cached), adapt to the target, compare, and write a stock checkpoint with its card, metrics and figure to `out`.

    Returns {"models": {name: metrics}, "counts": …}. All input is checked before anything is written; an interrupted run goes on from `out.partial`
    when called again. Raises `InputError`, and `TrainingDiverged` where a loss is not finite."""
    began = time.time()
    source, target, test = load_pair(s)
    work = open_work(out, s, source, target, overwrite)
    tokenizer, model = source_model(s, source)
    names, start = label_names(source), {k: v.clone() for k, v in model.state_dict().items()}
    target = tokenize_domain(target, tokenizer, s.max_length)
    test_ids = tokenize_domain(test, tokenizer, s.max_length)["input_ids"] if test else []
    score = lambda: {"test": score_tokens(model, tokenizer, test_ids, s.bf16)}

    def run(name, **choices):
        model.load_state_dict(start)
        rate = adapt_model(TITLES[name], s, model, tokenizer, target, work / name, **choices)
        return score() | {"train": score_tokens(model, tokenizer, target["input_ids"], s.bf16), "rate": rate}

    stages = {"source": stage(work, "source", score)} if test else {}
    if test and s.baseline: stages["bce"] = stage(work, "bce", lambda: run("bce", objective="bce", balanced_share=0.))

    def run_method():
        arrays = run("dallmi")
        if is_main(): model.save_pretrained(work / "weights")
        return arrays
    stages["dallmi"] = stage(work, "dallmi", run_method)
    model.load_state_dict(load_file(work / "weights" / "model.safetensors"))
    observed = label_matrix(target)
    counts = {"source": len(source), "target": len(target), "test": len(test or []), "labels": len(names), "observed": int((observed == 1).sum())}
    models = {n: evaluate_scores(a["test"], label_matrix(test), names) for n, a in stages.items()} if test else {}
    chance = dict(zip(names, np.nanmean(label_matrix(test), 0))) if test else {}
    results = {"models": models, "chance": chance and float(np.mean(list(chance.values()))), "counts": counts,
               "observed": dict(zip(names, (observed == 1).sum(0).tolist())), "seconds": round(time.time() - began, 1), "versions": versions()}
    if is_main(): write_results(work, Path(out), s, model, tokenizer, results, chance, pu_thresholds(stages["dallmi"]["train"], observed))
    barrier()
    return results

def versions():
    "Versions of what the numbers depend on, and the device."
    import platform, transformers
    return {"dallmi": dallmi.__version__, "python": platform.python_version(), "torch": torch.__version__, "transformers": transformers.__version__,
            "device": str(torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"), "threads": torch.get_num_threads()}

def write_results(work, out, s, model, tokenizer, results, chance, thresholds):
    "Write checkpoint, card, metrics, settings and figure into `work/result`, then move it to `out` in one step and remove `work`."
    names, folder = list(results["observed"]), work / "result"
    shutil.rmtree(folder, ignore_errors=True)
    save_classifier(model, tokenizer, folder, model_card(s, names, results["models"], results["counts"]), dict(zip(names, map(float, thresholds))))
    (folder / "metrics.json").write_text(json.dumps(results, indent=1))
    shutil.copy(work / "settings.json", folder)
    if chance: plot_results(results["models"], chance, folder / "per_label_ap.png")
    if out.exists(): shutil.rmtree(out)
    folder.rename(out)
    shutil.rmtree(work)

def report(s, results, out):
    "What the command line prints at the end: the table and what was written."
    c, models = results["counts"], results["models"]
    known = f"{c['observed']} positive labels known" + (f" ({100 * s.keep:g} % by {s.by}, seed {s.seed})" if s.keep else "")
    head = f"{c['source']} source texts, {c['target']} target texts, {c['labels']} labels, {known}"
    scored = f"scored on {c['test']} held-out target texts; chance mAP {100 * results['chance']:.1f}\n\n{results_table(models)}" if models else "no labelled target texts given (--test): nothing to score"
    return f"\n{head}\n{scored}\n\n{results['seconds']:.0f} s; checkpoint, card, metrics.json, settings.json" + (" and per_label_ap.png" if models else "") + f" in {out}/"
