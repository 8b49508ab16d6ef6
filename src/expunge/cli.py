"""The command line: commands, their options, exit codes, and errors of one sentence.

Knows how to ask and how to print; knows nothing of tensors. Heavy modules are imported inside the commands,
so that `expunge --help` answers at once.

Exit codes: 0 done, 2 the input can be mended (one sentence says how), 1 a fault of ours (with its traceback).
"""

import argparse
import json
import logging
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from expunge import __version__
from expunge.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from expunge.config import Recipe

TABLE = {
    "forget_quality": "forget\nquality ↑",
    "forget_probability": "forget\nprob. ↓",
    "forget_rouge_l_recall": "forget\nROUGE ↓",
    "degeneration": "broken\ntext ↓",
    "retain_probability": "retain\nprob. ↑",
    "model_utility": "model\nutility ↑",
}
"""The columns that fit a terminal of 80; the report has them all."""

DEMO = Path(__file__).with_name("demo.yaml")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = _parser()
    args, rest = parser.parse_known_args(argv)
    if args.command is None:
        parser.print_help()
        return 2
    _quiet_libraries()
    try:
        overrides = _overrides(rest, allowed=args.takes_keys)
        args.run(args, overrides)
    except UserError as error:
        print(f"expunge: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("expunge: interrupted; go on with --resume.", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="expunge", description="Make a language model forget, and show the evidence.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"expunge {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="command")

    def command(name: str, run: Any, help: str, *, takes_keys: bool = False) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=help, description=help, allow_abbrev=False)
        sub.set_defaults(run=run, takes_keys=takes_keys)
        return sub

    sub = command("demo", _demo, "train a small model, unlearn with five methods, write the report", takes_keys=True)
    sub.add_argument("--out", default="runs/demo", help="run directory (default %(default)s)")
    sub.add_argument("--seed", type=int, default=0)

    sub = command(
        "run",
        _run,
        "unlearn as a recipe says; any key can be set as --key value, e.g. --model M --forget f.jsonl --retain r.jsonl",
        takes_keys=True,
    )
    sub.add_argument("recipe", nargs="?", help="YAML file; not needed when the keys are given here")
    sub.add_argument("--out", help="run directory (default runs/<name of the recipe>)")
    sub.add_argument("--resume", action="store_true", help="go on where an interrupted run stopped")
    sub.add_argument("--overwrite", action="store_true", help="start over in a directory that holds a run")
    sub.add_argument("--json", action="store_true", help="print results.json instead of a table")

    sub = command("eval", _eval, "measure a checkpoint as it is: --benchmark NAME, or --forget FILE", takes_keys=True)
    sub.add_argument("model", help="folder or hub name")
    sub.add_argument("--out", help="run directory (default runs/eval-<name of the model>)")
    sub.add_argument("--overwrite", action="store_true", help="start over in a directory that holds a run")
    sub.add_argument("--json", action="store_true", help="print results.json instead of a table")

    sub = command("report", _report, "write report.html, or a Markdown page, from finished runs")
    sub.add_argument("directory", nargs="+", type=Path, help="run directories")
    sub.add_argument("--out", type=Path, help="HTML file (default report.html in the first directory)")
    sub.add_argument("--markdown", type=Path, help="write a Markdown page of the tables here instead")

    sub = command("methods", _methods, "list the objectives, what each needs and when to use it")
    sub.add_argument("--json", action="store_true")

    sub = command("doctor", _doctor, "check this machine: versions, device, caches, one tiny training step")
    sub.add_argument("--json", action="store_true")
    return parser


def _demo(args: argparse.Namespace, overrides: list[tuple[str, str]]) -> None:
    from expunge.config import load_recipe

    keys = [*overrides, ("out", args.out), ("seed", str(args.seed)), ("benchmark.seed", str(args.seed))]
    _carry_out(load_recipe(DEMO, keys), overwrite=True)


def _run(args: argparse.Namespace, overrides: list[tuple[str, str]]) -> None:
    from expunge.config import load_recipe

    path = Path(args.recipe) if args.recipe else None
    out = args.out or f"runs/{_run_name(path)}"
    recipe = load_recipe(path, [*overrides, ("out", out)])
    _carry_out(recipe, resume=args.resume, overwrite=args.overwrite, as_json=args.json)


def _eval(args: argparse.Namespace, overrides: list[tuple[str, str]]) -> None:
    from expunge.config import load_recipe
    from expunge.run import evaluate_only

    out = args.out or f"runs/eval-{Path(args.model).name}"
    recipe = load_recipe(None, [*overrides, ("model", args.model), ("out", out)])
    _print_results(evaluate_only(recipe, overwrite=args.overwrite), out, as_json=args.json)


def _report(args: argparse.Namespace, _overrides: list[tuple[str, str]]) -> None:
    from expunge.report import write_markdown, write_report

    if args.markdown is not None:
        command = "expunge report " + " ".join(str(d) for d in args.directory) + f" --markdown {args.markdown}"
        print(write_markdown(args.directory, args.markdown, command=command))
    else:
        print(write_report(args.directory, args.out or args.directory[0] / "report.html"))


def _methods(args: argparse.Namespace, _overrides: list[tuple[str, str]]) -> None:
    from expunge.objectives import FORGET, RETAIN, describe

    rows = [
        describe(cls, kind) for kind, registry in (("forget", FORGET), ("retain", RETAIN)) for cls in registry.values()
    ]
    if args.json:
        print(json.dumps(rows, indent=1))
        return
    from rich.table import Table

    table = Table("name", "kind", "reads", "options", "use when", show_lines=True)
    for row in rows:
        options = ", ".join(f"{k}={v}" for k, v in row["options"].items())
        table.add_row(row["name"], row["kind"], ", ".join(row["reads"]), options, row["use_when"])
    _console().print(table)
    _console().print("Combine them as forget+retain, for example unilogit+nll or npo+kl; rmu brings its own anchor.")


def _doctor(args: argparse.Namespace, _overrides: list[tuple[str, str]]) -> None:
    from expunge.doctor import examine

    rows = examine()
    if args.json:
        print(json.dumps(rows, indent=1))
    else:
        from rich.table import Table

        table = Table("check", "found", "")
        for row in rows:
            table.add_row(row["check"], row["found"], row["advice"] or "[green]ok[/green]")
        _console().print(table)
    if any(row["fatal"] for row in rows):
        raise UserError("this machine can't run expunge yet; the table above says what to do.")


def _carry_out(recipe: "Recipe", *, as_json: bool = False, **options: bool) -> None:
    from expunge.run import run

    _print_results(run(recipe, **options), str(recipe.out), as_json=as_json)


def _print_results(rows: list[dict[str, Any]], out: str, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(rows, indent=1, ensure_ascii=False))
        return
    from rich.table import Table

    from expunge.report.glossary import show

    shown = [key for key in TABLE if any(key in row["metrics"] for row in rows)]
    table = Table(title=f"{rows[0]['benchmark']} {rows[0]['split']}")
    table.add_column("method", no_wrap=True)
    for key in shown:
        table.add_column(TABLE[key], justify="right", no_wrap=True)
    table.add_column("time\ns", justify="right", no_wrap=True)
    for row in rows:
        values = [show(key, row["metrics"].get(key)) for key in shown]
        table.add_row(row["method"], *values, "" if row["seconds"] is None else f"{row['seconds']:.1f}")
    _console().print(table)
    _console().print(f"results, records and report: {out}/  (open {out}/report.html)")


def _overrides(rest: Sequence[str], *, allowed: bool) -> list[tuple[str, str]]:
    """`--a.b value` and `--a.b=value` pairs."""
    pairs: list[tuple[str, str]] = []
    words = list(rest)
    while words:
        word = words.pop(0)
        if not word.startswith("--") or not allowed:
            known = ["--out", "--json", "--resume", "--overwrite", "--markdown", "--seed"]
            raise UserError(f"{word!r} is not understood here.{did_you_mean(word, known)} See --help.")
        key, equals, value = word[2:].partition("=")
        if not equals:
            if not words or words[0].startswith("--"):
                raise UserError(f"{word} needs a value: {word} VALUE.{did_you_mean(word, ['--resume', '--overwrite'])}")
            value = words.pop(0)
        pairs.append((key.replace("-", "_"), value))
    return pairs


def _run_name(path: Path | None) -> str:
    """`recipes/tofu/scratch/forget10.yaml` → `tofu-scratch-forget10`; without a recipe, `run`."""
    if path is None:
        return "run"
    parts = path.with_suffix("").parts
    return "-".join(parts[parts.index("recipes") + 1 :] if "recipes" in parts else parts[-1:])


def _quiet_libraries() -> None:
    """Our own log lines in short form; other libraries only from warnings on."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("expunge").setLevel(logging.INFO)
    warnings.filterwarnings("ignore", module="torch|transformers|peft|accelerate")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")


def _console() -> Any:
    from rich.console import Console

    return Console()


if __name__ == "__main__":
    sys.exit(main())
