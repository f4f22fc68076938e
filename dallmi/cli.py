"""`dallmi adapt`, `demo`, `predict`, `recipes`, `benchmark` and `report`: quick to answer, one
sentence for a mistake."""

__all__ = ["build_parser", "main"]

import argparse
import sys
from collections.abc import Callable, Collection
from dataclasses import Field, fields
from typing import Any, NoReturn

import dallmi
from dallmi.settings import Settings

COMMANDS = {
    "adapt": (
        "adapt a classifier from a labelled source domain to a target domain",
        """\
With --label-fraction 0.1 a fully labelled target becomes an experiment: nine in ten of its
positive labels are hidden, a fifth of its texts is held out and scored.
Without it the labels are your own: 1 marks an observed positive, 0 and blank are unlabelled
(--trust-negatives: 0 is a true negative), nothing is hidden, and --test FILE scores.
The source model is cached (in $DALLMI_CACHE, else ~/.cache/dallmi). An interrupted run goes
on where it was when the same command is given again.""",
    ),
    "demo": (
        "the same on the bundled film texts, a tenth of the labels observed",
        """\
Source: synopses in an encyclopedia's voice. Target: blurbs in a critic's. Ten kinds of film.
A few minutes on two cores, without a network.""",
    ),
    "predict": (
        "score texts with an adapted checkpoint",
        """\
Writes a CSV with the texts' ids, a probability per label, and the labels over the
checkpoint's thresholds, separated by |. FILE may also be .tsv, .jsonl or .parquet.""",
    ),
    "recipes": (
        "list the recipes and what can be changed in them",
        """\
A recipe is a loss, MixUp, a share of label-balanced sampling and a budget. Change one with a
colon: --recipe anchored:mixup_weight=0,epochs=5""",
    ),
    "benchmark": (
        "compare methods over pairs of domains, label fractions and seeds",
        """\
A pair is a folder of --data-dir with source.csv and target.csv, both fully labelled; 'films'
is the bundled one. Methods: source, tfidf, unsupervised, and all recipes (dallmi recipes);
'anchored:mixup_weight=0,epochs=5' is a variant of one.
Every trial is written when it is done. Give the same command again after an interruption: it
does what is missing. With several --learning-rate each trial chooses its own, without hidden
labels.""",
    ),
    "report": (
        "tables and plots of a benchmark",
        """\
Writes report.md, report.csv, trials.csv, labels.csv and plots, and prints the tables.""",
    ),
}
DEFAULT_RECIPE = "anchored"
BUDGET = {
    "epochs": (int, "N", "passes over the target"),
    "batch_size": (int, "N", "target texts per batch"),
    "learning_rate": (float, "RATE", "learning rate on the target"),
}
LISTS: dict[str, tuple[type, str, tuple | None, str]] = {
    "pairs": (str, "NAME", None, "pairs of domains"),
    "methods": (str, "NAME", None, "methods (default: all)"),
    "label_fractions": (
        float,
        "SHARE",
        (0.1, 0.3, 0.5),
        "shares of the positive labels that stay observed",
    ),
    "maskings": (str, "WHAT", ("label",), "hide them by label or by sample, or both"),
    "seeds": (int, "N", (0, 1, 2), "seeds"),
    "learning_rates": (float, "RATE", (1e-4,), "learning rates on the target"),
}
NOT_SHARED = ("label_fraction", "masking", "seed", "trust_negatives")


def _option(name: str) -> str:
    "The option of a setting: --max-rows."
    return "--" + name.replace("_", "-")


def _kind(f: Field) -> type:
    "The type of what is written after a setting's option."
    text = str(f.type)
    if text.startswith("bool") or f.type is bool:
        return bool
    return next((kind for kind in (int, float) if kind.__name__ in text), str)


def _add_setting(box: Any, f: Field) -> None:
    "The option for one field of `Settings`: `--max-rows N`, or `--bf16` / `--no-bf16` for a bool."
    shown = "" if f.default in (None, False) else f" (default: {f.default})"
    how: dict[str, Any] = {"action": argparse.BooleanOptionalAction}
    if _kind(f) is not bool:
        how = {
            "type": _kind(f),
            "choices": f.metadata.get("choices"),
            "metavar": f.metadata.get("metavar"),
        }
    text = f.metadata["help"] + shown
    box.add_argument(_option(f.name), default=argparse.SUPPRESS, help=text, **how)


def _add_settings(parser: argparse.ArgumentParser, skip: Collection[str] = ()) -> None:
    "An option for every field of `Settings` but those in `skip`, in its group."
    shown = [f for f in fields(Settings) if f.name not in skip]
    for group in dict.fromkeys(f.metadata["group"] for f in shown):
        box = parser.add_argument_group(group)
        for f in shown:
            if f.metadata["group"] == group:
                _add_setting(box, f)


def _add_recipe(parser: argparse.ArgumentParser) -> None:
    "The options that choose and change a recipe."
    box = parser.add_argument_group("method")
    box.add_argument(
        "--recipe",
        default=DEFAULT_RECIPE,
        metavar="NAME",
        help="recipe, perhaps with changes: log:balanced_share=0.25 (default: %(default)s; "
        "list: dallmi recipes)",
    )
    box.add_argument(
        "--compare-with",
        nargs="*",
        default=["source", "partial"],
        metavar="NAME",
        help="methods to measure beside it (default: source partial)",
    )
    for name, (kind, metavar, text) in BUDGET.items():
        box.add_argument(
            _option(name),
            type=kind,
            metavar=metavar,
            default=argparse.SUPPRESS,
            help=f"{text} (default: the recipe's)",
        )


def _add_command(commands: Any, name: str) -> argparse.ArgumentParser:
    "The sub-parser of one command, with its help texts."
    text, epilog = COMMANDS[name]
    return commands.add_parser(
        name,
        help=text,
        description=f"{text[0].upper()}{text[1:]}.",
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _add_out(parser: argparse.ArgumentParser, default: str, what: str) -> None:
    "Where to write, and whether to replace what is there."
    parser.add_argument(
        "--out", default=default, metavar="PATH", help=f"{what} to write (default: %(default)s)"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace what dallmi wrote there before"
    )


def _add_adapt(commands: Any) -> None:
    "The options of `dallmi adapt` and `dallmi demo`."
    sub = _add_command(commands, "adapt")
    sub.add_argument(
        "--source", required=True, metavar="FILE", help="labelled texts of the source domain"
    )
    sub.add_argument(
        "--target",
        required=True,
        metavar="FILE",
        help="texts of the new domain, a few positive labels observed",
    )
    sub.add_argument(
        "--test",
        metavar="FILE",
        help="labelled target texts to score on (with --label-fraction the default is a fifth of "
        "the target)",
    )
    _add_out(sub, "dallmi-adapted", "folder")
    _add_recipe(sub)
    _add_settings(sub)
    sub = _add_command(commands, "demo")
    _add_out(sub, "dallmi-demo", "folder")
    _add_recipe(sub)
    _add_settings(sub, skip=("text_column", "label_columns", "trust_negatives"))


def _add_predict(commands: Any) -> None:
    "The options of `dallmi predict`."
    sub = _add_command(commands, "predict")
    sub.add_argument("checkpoint", metavar="DIR", help="folder written by adapt")
    sub.add_argument("file", metavar="FILE", help="texts to score")
    sub.add_argument(
        "--text-column", metavar="NAME", help="name of the text column (default: text)"
    )
    _add_out(sub, "scores.csv", "file")


def _add_benchmark(commands: Any) -> None:
    "The options of `dallmi benchmark`."
    sub = _add_command(commands, "benchmark")
    sub.add_argument(
        "--data-dir",
        default=".",
        metavar="DIR",
        help="where the pairs' folders lie (default: here)",
    )
    for name, (kind, metavar, default, text) in LISTS.items():
        shown = f" (default: {' '.join(map(str, default))})" if default else ""
        sub.add_argument(
            _option(name),
            nargs="+",
            type=kind,
            metavar=metavar,
            default=argparse.SUPPRESS,
            help=text + shown,
            required=name == "pairs",
        )
    for name in ("epochs", "batch_size"):
        kind, metavar, text = BUDGET[name]
        sub.add_argument(
            _option(name), type=kind, metavar=metavar, default=argparse.SUPPRESS, help=text
        )
    sub.add_argument(
        "--jobs", type=int, default=1, metavar="N", help="trials at a time (default: 1)"
    )
    sub.add_argument(
        "--out",
        default="results",
        metavar="DIR",
        help="folder of the results (default: results)",
    )
    _add_settings(sub, skip=NOT_SHARED)


def _add_report(commands: Any) -> None:
    "The options of `dallmi report`."
    sub = _add_command(commands, "report")
    sub.add_argument(
        "results",
        nargs="+",
        metavar="RESULTS",
        help="folders written by benchmark, or packed files of them (.jsonl)",
    )
    sub.add_argument("--metrics", nargs="+", metavar="NAME", help="metrics to show")
    sub.add_argument("--out", metavar="DIR", help="folder to write (default: RESULTS/report)")


def build_parser() -> argparse.ArgumentParser:
    "The parser of `dallmi`."
    parser = argparse.ArgumentParser(
        "dallmi",
        description="Move a multi-label text classifier to a new domain with a few labels.",
    )
    parser.add_argument("--version", action="version", version=f"dallmi {dallmi.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_adapt(commands)
    _add_predict(commands)
    _add_command(commands, "recipes")
    _add_benchmark(commands)
    _add_report(commands)
    return parser


def _fail(message: object, code: int = 2) -> NoReturn:
    "Print one sentence to stderr and end with exit code `code`."
    print(f"dallmi: {message}", file=sys.stderr)
    raise SystemExit(code)


def _given(args: argparse.Namespace, names: Collection[str]) -> dict[str, Any]:
    "Those of `names` that were given on the command line."
    return {name: getattr(args, name) for name in names if hasattr(args, name)}


def _run_adapt(args: argparse.Namespace) -> None:
    "`dallmi adapt` and `dallmi demo`: the run, then its table and where things are."
    options = _given(args, [f.name for f in fields(Settings)]) | _given(args, BUDGET)
    domains = ("films:source", "films:target", None)
    if args.command == "demo":
        options = {"label_fraction": 0.1} | options
    else:
        domains = (args.source, args.target, args.test)
    Settings(**_given(args, [f.name for f in fields(Settings)]))  # refuses before torch is loaded
    from dallmi.adaptation import adapt
    from dallmi.pipeline import is_main
    from dallmi.training.callbacks import TrainingDiverged

    try:
        result = adapt(
            *domains,
            recipe=args.recipe,
            compare_with=args.compare_with,
            output_dir=args.out,
            overwrite=args.overwrite,
            **options,
        )
    except TrainingDiverged as e:
        _fail(e, 1)
    if is_main():
        files = "checkpoint, card, metrics.json, settings.json"
        files += ", per_label_ap.png" if result.metrics else ""
        print(f"\n{result.report()}\n\n{result.record['seconds']:.0f} s; {files} in {args.out}")


def _run_predict(args: argparse.Namespace) -> None:
    "`dallmi predict`: write the scores, then say where."
    from dallmi.inference import predict_file

    print(predict_file(args.checkpoint, args.file, args.out, args.text_column, args.overwrite))


def _run_recipes(args: argparse.Namespace) -> None:
    "`dallmi recipes`: the table of recipes."
    from dallmi.recipes import recipes_table

    print(recipes_table())


def _run_benchmark(args: argparse.Namespace) -> None:
    "`dallmi benchmark`: run what is missing; exit code 1 where trials failed."
    shared = [f.name for f in fields(Settings) if f.name not in NOT_SHARED]
    settings = Settings(**_given(args, shared))
    from dallmi.evaluation.benchmark import Grid, benchmark

    grid = Grid(
        data_dir=args.data_dir,
        settings=settings,
        budget=_given(args, ("epochs", "batch_size")),
        **_given(args, LISTS),
    )
    failed = benchmark(grid, args.out, args.jobs)
    if failed:
        _fail(
            f"{len(failed)} trials failed; their files in '{args.out}' say why, and the same "
            "command tries them again.",
            1,
        )
    print(f"All trials are in '{args.out}'. Next: dallmi report {args.out}")


def _run_report(args: argparse.Namespace) -> None:
    "`dallmi report`: write the report, print its tables."
    from dallmi.evaluation.report import SHOWN, write_report

    print(write_report(args.results, args.out, args.metrics or SHOWN))


GO_ON = "What is done is kept in '{}.partial'; give the same command again to go on."
KEPT = {
    "adapt": GO_ON,
    "demo": GO_ON,
    "predict": "Nothing was written.",
    "recipes": "",
    "benchmark": "The finished trials are kept in '{}'; give the same command again to go on.",
    "report": "Nothing was written.",
}
RUN: dict[str, Callable[[argparse.Namespace], None]] = {
    "adapt": _run_adapt,
    "demo": _run_adapt,
    "predict": _run_predict,
    "recipes": _run_recipes,
    "benchmark": _run_benchmark,
    "report": _run_report,
}


def _run(args: argparse.Namespace) -> None:
    "Run the command in `args`, turning what the user can act on into sentences."
    from dallmi.errors import InputError

    try:
        RUN[args.command](args)
    except KeyboardInterrupt:
        kept = KEPT[args.command].format(getattr(args, "out", ""))
        _fail(f"interrupted. {kept}", 130)
    except InputError as e:
        _fail(e)


def main(argv: list[str] | None = None) -> None:
    """Entry point of `dallmi`. Exit codes: 0 done, 1 training diverged, 2 unusable input, 130
    interrupted."""
    _run(build_parser().parse_args(argv))


if __name__ == "__main__" and "IPython" not in sys.modules:
    main()
