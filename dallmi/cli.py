import argparse
import sys
from dataclasses import fields
from pathlib import Path

import dallmi
from dallmi.config import RECIPES, Settings

def add_settings(parser, groups=("data", "experiment", "model", "training", "method"), skip=()):
    "An option for every field of `Settings`, in its group."
    for group in groups:
        box = parser.add_argument_group(group)
        for f in fields(Settings):
            if f.metadata["group"] == group and f.name not in skip: add_setting(box, f)

def add_setting(box, f):
    "The option of one field: its type, choices, help and default."
    name, kind = "--" + f.name.replace("_", "-"), f.type if isinstance(f.type, type) else {"str": str, "int": int, "float": float, "bool": bool}[f.type]
    shown = "" if f.default in (None, False) else f" (default: {'yes' if f.default is True else f.default})"
    how = dict(action=argparse.BooleanOptionalAction) if kind is bool else dict(type=kind, choices=f.metadata.get("choices"), metavar=None if f.metadata.get("choices") else kind.__name__.upper())
    box.add_argument(name, default=argparse.SUPPRESS, help=f.metadata["help"] + shown, **how)

EPILOG = {
    "adapt": """With --keep 0.1 a fully labelled target becomes an experiment: nine in ten of its positive labels are hidden, a fifth of its texts is held out and scored.
Without --keep the labels are your own: 1 marks a known positive, 0 and blank mean unknown (--trust-negatives: 0 is a true negative), nothing is hidden, and --test FILE scores.
The source model is cached ($DALLMI_CACHE, else ~/.cache/dallmi); an interrupted run goes on when the same command is given again.""",
    "demo": "The corpus: film synopses in an encyclopedia's voice (source) and in a critic's (target), ten genres. Takes a few minutes on two cores.",
    "predict": "FILE may also be .tsv, .jsonl or .parquet. Scores are probabilities, one column a label; 'labels' lists those over the checkpoint's thresholds.",
}

def build_parser():
    "The parser of `dallmi`."
    parser = argparse.ArgumentParser("dallmi", description="Move a multi-label text classifier to a new domain with a few positive labels.")
    parser.add_argument("--version", action="version", version=f"dallmi {dallmi.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, help in dict(adapt="adapt a classifier from a labelled source to a target", demo="the same on the bundled film texts, a tenth of the labels known",
                           predict="score texts with an adapted checkpoint").items():
        commands.add_parser(name, help=help, description=help[0].upper() + help[1:] + ".", epilog=EPILOG[name], formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("adapt", "demo"):
        sub = commands.choices[name]
        sub.add_argument("--out", default=f"dallmi-{name}", help="folder to write (default: %(default)s)")
        sub.add_argument("--overwrite", action="store_true", help="replace --out, or an unfinished run with other settings")
        add_settings(sub, skip=("source", "target", "test", "text", "labels", "trust_negatives") if name == "demo" else ())
    sub = commands.choices["predict"]
    sub.add_argument("checkpoint", help="folder written by adapt")
    sub.add_argument("file", help="texts to score: CSV with a text column")
    sub.add_argument("--text", help="name of the text column (default: text)")
    sub.add_argument("--out", default="scores.csv", help="file to write (default: %(default)s)")
    sub.add_argument("--overwrite", action="store_true", help="replace --out")
    return parser

def run_adapt(args):
    "`dallmi adapt` and `dallmi demo`: train, then print the table and where things are."
    given = {k: v for k, v in vars(args).items() if k not in ("command", "out", "overwrite")}
    if args.command == "demo": given = {"keep": 0.1} | given
    elif not {"source", "target"} <= given.keys(): fail("adapt needs --source and --target; to try it on the bundled film texts: dallmi demo")
    try: settings = Settings(**given)
    except ValueError as e: fail(e)
    from dallmi.adapt import adapt, is_main, report
    results = adapt(settings, args.out, args.overwrite)
    if is_main(): print(report(settings, results, args.out))

def run_predict(args):
    "`dallmi predict`: write the scores, then say where."
    from dallmi.inference import predict_file
    print(predict_file(args.checkpoint, args.file, args.out, args.text, args.overwrite))

def fail(message, code=2):
    "Print one sentence to stderr and end with exit code `code`."
    print(f"dallmi: {message}", file=sys.stderr)
    raise SystemExit(code)

def main(argv=None):
    "Entry point of `dallmi`. Exit codes: 0 done, 1 training diverged, 2 unusable input, 130 interrupted."
    args = build_parser().parse_args(argv)
    try: (run_predict if args.command == "predict" else run_adapt)(args)
    except KeyboardInterrupt: fail(f"interrupted; the work so far is in '{args.out}.partial', and the same command goes on from it.", 130)
    except Exception as e:
        if type(e).__name__ == "TrainingDiverged": fail(e, 1)
        if type(e).__name__ == "InputError": fail(e)
        raise

if __name__ == "__main__": main()
