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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from expunge import __version__
from expunge.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from expunge.config import Recipe

TABLE = {
    "forget_quality": "forget\nquality\n↑",
    "forget_probability": "forget\nprob.\n↓",
    "forget_rouge_l_recall": "forget\nROUGE\n↓",
    "degeneration": "broken\ntext\n↓",
    "retain_probability": "retain\nprob.\n↑",
    "model_utility": "model\nutility\n↑",
    "forget_fb": "forget\nFB\n↓",
    "forget_qa": "forget\nQA\n↓",
    "forget_aa": "forget\nAA\n↓",
    "neighbor_fb": "neigh.\nFB\n↑",
    "neighbor_qa": "neigh.\nQA\n↑",
    "verbmem": "verb-\nmem\n↓",
    "knowmem_f": "forget\nknow-\nmem ↓",
    "knowmem_r": "retain\nknow-\nmem ↑",
    "privleak": "priv-\nleak\n≈ 0",
    "membership_loss_fm": "FM\nlog p\n≈",
    "membership_loss_rm": "RM\nlog p\n≈",
    "aggregate": "aggre\n-gate\n↑",
}
"""The columns that fit a terminal of 80; the report has them all."""

TAKES_KEYS = ("run", "sweep", "reproduce", "eval", "demo", "distill", "augment")
"""Commands that set a recipe's keys; of what stands behind them only these words are argparse's own."""

FLAGS = ("-h", "--help", "--resume", "--overwrite", "--json", "--dry-run", "--no-run")
VALUED = (
    *("--out", "--url", "--paraphrases", "--perturbations", "--seeds"),
    *("--space", "--search", "--trials", "--objectives", "--keep", "--workers", "--minutes", "--storage", "--study"),
    *("--recipe-set", "--splits", "--runs"),
)

DEMO = Path(__file__).with_name("demo.yaml")
DEMO_OUT = "runs/demo"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = _parser()
    try:
        own, overrides = _split(argv) if argv[:1] and argv[0] in TAKES_KEYS else (argv, [])
        args = parser.parse_args(own)
        if args.command is None:
            parser.print_help()
            return 2
        _quiet_libraries()
        with _together():
            args.run(args, overrides)
    except UserError as error:
        print(f"expunge: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        same = "; go on with the same command"
        further = {"run": "; go on with --resume", "sweep": same, "reproduce": same}.get(argv[0], "")
        print(f"expunge: interrupted{further}.", file=sys.stderr)
        return 130
    return 0


class _Parser(argparse.ArgumentParser):
    """Errors as one sentence, like every other."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see {self.prog} --help.")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="expunge", description="Make a language model forget, and show the evidence.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"expunge {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="command")

    def command(name: str, run: Any, help: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=help, description=help, allow_abbrev=False)
        sub.set_defaults(run=run)
        return sub

    def run_options(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("--overwrite", action="store_true", help="start over in a directory that holds a run")
        sub.add_argument("--json", action="store_true", help="print results.json instead of a table")

    sub = command("demo", _demo, "train a small model, unlearn with six methods, write the report")
    sub.add_argument("--out", default=DEMO_OUT, help="run directory (default %(default)s, which is written anew)")
    run_options(sub)

    sub = command(
        "run",
        _run,
        "unlearn as a recipe says; any key can be set as --key value, e.g. --model M --forget f.jsonl --retain r.jsonl",
    )
    sub.add_argument("recipe", nargs="?", help="YAML file; not needed when the keys are given here")
    sub.add_argument("--out", help="run directory (default runs/<name of the recipe>)")
    sub.add_argument("--seeds", type=int, help="run it so many times, with one seed after the other")
    sub.add_argument("--workers", type=int, default=1, help="of several runs (--seeds, over), so many at a time")
    sub.add_argument("--resume", action="store_true", help="go on where an interrupted run stopped")
    sub.add_argument("--dry-run", action="store_true", help="say what would be done: rows, steps, parameters, memory")
    run_options(sub)

    sub = command(
        "sweep",
        _sweep,
        "run a recipe with many values of its keys and choose the best (extra: expunge[sweep]); the same command again "
        "goes on where it was, with more --trials too; keys as in expunge run",
    )
    sub.add_argument("recipe", nargs="?", help="YAML file; not needed when the keys are given here")
    sub.add_argument(
        "--space",
        required=True,
        help="YAML file, or the same written out: {method: {choices: [npo+nll, unilogit+nll]}, "
        "train.learning_rate: {low: 1e-5, high: 1e-3, log: true}}",
    )
    sub.add_argument(
        "--search",
        choices=["grid", "random", "tpe"],
        default="tpe",
        help="every combination; at random; or led by results, Optuna's multi-objective TPE (default)",
    )
    sub.add_argument("--trials", type=int, help="how many; a grid has its own number")
    sub.add_argument(
        "--objectives",
        default="forget_quality,model_utility",
        help="two metrics to improve (default %(default)s)",
    )
    sub.add_argument(
        "--keep",
        type=float,
        default=0.95,
        help="choose the best first objective among trials that keep this share of the target's second (default "
        "%(default)s)",
    )
    sub.add_argument("--workers", type=int, default=1, help="processes on this machine (default %(default)s)")
    sub.add_argument("--minutes", type=float, help="begin no trial after so many")
    sub.add_argument("--storage", help="database that machines share: postgresql://user:password@host/database")
    sub.add_argument("--study", help="name of the sweep there (default a hash of recipe and space)")
    sub.add_argument("--seeds", type=int, help="run every trial so many times; objectives are means")
    sub.add_argument("--out", type=Path, help="folder (default runs/<name of the recipe>-sweep)")
    sub.add_argument("--json", action="store_true", help="print trials.json instead of tables")

    sub = command(
        "reproduce",
        _reproduce,
        "make a table or a figure of a paper again: runs what is missing, keeps what is there, writes a page, its "
        "pictures and the numbers; keys as in expunge run; without a name lists what there is",
    )
    sub.add_argument("name", nargs="?", help="one of the list, or a YAML file of your own")
    sub.add_argument("--recipe-set", help="which models (default those trained here)")
    sub.add_argument("--splits", help="which splits, with commas (default the first)")
    sub.add_argument("--seeds", type=int, help="every method so many times on the same target, with intervals")
    sub.add_argument("--runs", type=Path, default=Path("runs"), help="folder of the runs (default %(default)s)")
    sub.add_argument("--out", type=Path, default=Path("docs/results"), help="folder of the page (default %(default)s)")
    sub.add_argument("--dry-run", action="store_true", help="say what is there and what would be run")
    sub.add_argument("--no-run", action="store_true", help="write the page from what is finished")
    sub.add_argument("--json", action="store_true", help="print the list, or what would be run, as JSON")

    sub = command("recipes", _recipes, "list the recipes that come with expunge, or its configs of accelerate launch")
    sub.add_argument(
        "--launch", nargs="?", const="", metavar="NAME", help="list the launch configs; with a name print its path"
    )
    sub.add_argument("--json", action="store_true")

    sub = command("eval", _eval, "measure a checkpoint as it is: --benchmark NAME, or --forget FILE")
    sub.add_argument("model", help="folder or hub name")
    sub.add_argument("--out", help="run directory (default runs/eval-<name of the model>)")
    run_options(sub)

    sub = command(
        "augment",
        _augment,
        "write paraphrases and wrong answers of the forget rows (--forget FILE, or --benchmark NAME) with a model "
        "(--model NAME), for ULD to train on; an interrupted call, made again, goes on",
    )
    sub.add_argument("--out", type=Path, required=True, help="JSON Lines file, for --augment of expunge run")
    sub.add_argument("--url", help="ask an OpenAI-compatible endpoint instead (key: OPENAI_API_KEY)")
    sub.add_argument("--paraphrases", type=int, default=4, help="of each row (default %(default)s)")
    sub.add_argument("--perturbations", type=int, default=1, help="wrong answers to each row (default %(default)s)")

    sub = command(
        "distill",
        _distill,
        "train the model itself towards a checkpoint of ULD: one ordinary checkpoint, keys as in expunge run",
    )
    sub.add_argument("checkpoint", help="folder that ULD saved (a run's model/, or the run)")
    sub.add_argument("--out", help="run directory (default runs/distilled)")
    sub.add_argument("--resume", action="store_true", help="go on where an interrupted run stopped")
    run_options(sub)

    sub = command("serve", _serve, "serve a checkpoint as an OpenAI-compatible endpoint (extra: expunge[serve])")
    sub.add_argument("model", help="folder or hub name")
    sub.add_argument("--host", default="localhost", help="address to listen on (default %(default)s)")
    sub.add_argument("--port", type=int, default=8000, help="(default %(default)s)")

    sub = command("chat", _chat, "ask a checkpoint in the terminal, or two the same questions side by side")
    sub.add_argument("model", help="folder or hub name")
    sub.add_argument("--against", help="a second model, such as the one before unlearning")
    sub.add_argument("--max-new-tokens", type=int, default=256, help="of an answer (default %(default)s)")

    sub = command("report", _report, "write report.html, or a Markdown page, from finished runs")
    sub.add_argument("directory", nargs="+", type=Path, help="run directories")
    sub.add_argument("--out", type=Path, help="HTML file (default report.html in the first directory)")
    sub.add_argument("--markdown", type=Path, help="write a Markdown page of the tables here instead")

    sub = command("bench", _bench, "measure what things cost here, as ratios within one process")
    sub.add_argument(
        "what",
        choices=["training", "growth", "decode", "evaluation"],
        default="training",
        nargs="?",
        help="a step beside plain fine-tuning and the usual way to write it (default); how that grows with vocabulary, "
        "length, forget set and K; a token of the difference; an evaluation beside the usual way to write it",
    )
    sub.add_argument("--shape", help="size of the random model (default tiny; small for decode)")
    sub.add_argument("--methods", help="of training, with commas; all without it")
    sub.add_argument("--by", help="of growth, which sizes, written out or a file: {vocabulary: [8192, 16384]}")
    sub.add_argument("--sequences", type=int, default=8, help="of a training step (default %(default)s)")
    sub.add_argument("--length", type=int, help="tokens of each (default 256; 64 for the tiny shape)")
    sub.add_argument("--checkpointing", action="store_true", help="training: make activations again in the backward")
    sub.add_argument("--questions", type=int, default=40, help="of an evaluation's forget set (default %(default)s)")
    sub.add_argument("--threads", type=int, help="CPU threads (default all)")
    sub.add_argument("--markdown", type=Path, help="also write the table to this file")
    sub.add_argument("--svg", type=Path, help="also write the picture (training, growth) to this file")
    sub.add_argument("--json", action="store_true")

    sub = command("methods", _methods, "list the objectives, what each needs and when to use it")
    sub.add_argument("--json", action="store_true")

    sub = command("doctor", _doctor, "check this machine: versions, device, caches, one tiny training step")
    sub.add_argument("--json", action="store_true")
    return parser


def _demo(args: argparse.Namespace, overrides: list[tuple[str, str]]) -> None:
    from expunge.parsing import load_recipe

    world = [("benchmark.seed", value) for key, value in overrides if key == "seed"]  # a seed is a world of its own
    recipe = load_recipe(DEMO, [*world, *overrides, ("out", args.out)])
    _carry_out(recipe, overwrite=args.overwrite or args.out == DEMO_OUT, as_json=args.json)


def _run(args: argparse.Namespace, overrides: list[tuple[str, str]]) -> None:
    from expunge.parsing import load_recipe

    path = Path(args.recipe) if args.recipe else None
    out = args.out or f"runs/{_run_name(path)}"
    recipe = _repeated(load_recipe(path, [*overrides, ("out", out)]), args.seeds)
    if args.dry_run:
        _print_plan(recipe, as_json=args.json)
    else:
        _carry_out(recipe, resume=args.resume, overwrite=args.overwrite, workers=args.workers, as_json=args.json)


def _repeated(recipe: "Recipe", seeds: int | None) -> "Recipe":
    """The recipe over so many seeds, from its own on."""
    if seeds is None:
        return recipe
    if seeds < 1:
        raise UserError(f"--seeds: {seeds} are none; give 1 or more.")
    return recipe.model_copy(update={"over": {**recipe.over, "seed": [recipe.seed + k for k in range(seeds)]}})


def _sweep(args: argparse.Namespace, overrides: list[tuple[str, str]]) -> None:
    from expunge.parsing import load_recipe, read_mapping

    try:
        from expunge.sweep import Space, sweep
        from expunge.sweep.table import Watch, print_outcome
    except ImportError as error:
        if error.name != "optuna":
            raise
        raise UserError("sweep: optuna is missing; pip install 'expunge[sweep]'.") from error
    objectives = tuple(args.objectives.split(","))
    if len(objectives) != 2:
        raise UserError(f"--objectives: {args.objectives} is not two metrics; write two names with a comma.")
    path = Path(args.recipe) if args.recipe else None
    out = args.out or Path("runs") / f"{_run_name(path)}-sweep"
    recipe = _repeated(load_recipe(path, overrides), args.seeds)
    with Watch(objectives, quiet=args.json) as watch:
        rows = sweep(
            recipe,
            Space.parse(read_mapping(args.space, what="space")),
            out=out,
            search=args.search,
            trials=args.trials,
            objectives=objectives,
            keep=args.keep,
            workers=args.workers,
            minutes=args.minutes,
            storage=args.storage,
            study=args.study,
            watch=watch,
        )
    if args.json:
        print(json.dumps(rows, indent=1, ensure_ascii=False))
    else:
        print_outcome(rows, objectives, out, keep=args.keep, console=_console())


def _reproduce(args: argparse.Namespace, overrides: list[tuple[str, str]]) -> None:
    from expunge import shipped

    if args.name is None:
        found = [{"name": name, "what": shipped.first_comment(path)} for name, path in shipped.reproductions().items()]
        _print_list(found, title="expunge reproduce NAME", as_json=args.json)
        return
    from expunge.reproduce import Reproduction, carry_out, missing, write

    what, path = Reproduction.load(args.name)
    splits = args.splits.split(",") if args.splits else ()
    options = {"recipe_set": args.recipe_set, "splits": splits, "seeds": args.seeds, "overrides": overrides}
    jobs = what.jobs(path, runs=args.runs, **options)
    rows = [{"run": str(job.out), "to do": missing(job)} for job in jobs]
    if args.dry_run:
        short = [{**row, "to do": ", ".join(row["to do"]) or "nothing, it is there"} for row in rows]
        _print_list(rows if args.json else short, title=what.title, as_json=args.json)
        return
    if not args.no_run:
        carry_out(jobs)
    words = ["expunge", "reproduce", path.stem if args.name == path.stem else path.name]
    given = {"recipe_set": args.recipe_set, "splits": args.splits, "seeds": args.seeds}
    pairs = [(name.replace("_", "-"), str(value)) for name, value in given.items() if value is not None]
    # Whoever repeats it has other folders.
    for key, value in [*pairs, *((key, "FOLDER" if Path(value).exists() else value) for key, value in overrides)]:
        words += [f"--{key}", value]
    page, absent = write(what, jobs, name=path.stem, runs=args.runs, out=args.out, command=" ".join(words))
    print(page)
    if absent:
        print(f"not run yet: {', '.join(absent)}; the same command without --no-run runs what it can", file=sys.stderr)


def _recipes(args: argparse.Namespace, _overrides: list[tuple[str, str]]) -> None:
    from expunge import shipped

    if args.launch is not None:
        _launchers(args.launch, shipped.launchers(), as_json=args.json)
        return
    folder = shipped.recipes()
    found = sorted(folder.rglob("*.yaml"))
    rows = [
        {"recipe": str(path.relative_to(folder)), "what": shipped.first_comment(path), "path": str(path)}
        for path in found
    ]
    shown = rows if args.json else [{"recipe": row["recipe"], "what it does": row["what"]} for row in rows]
    _print_list(shown, title=f"in {folder}; expunge run FOLDER/RECIPE", as_json=args.json)


def _launchers(name: str, paths: dict[str, Path], *, as_json: bool) -> None:
    from expunge.shipped import first_comment

    if name and name not in paths:
        raise UserError(f"recipes --launch: no {name!r}.{did_you_mean(name, paths)} Known: {', '.join(paths)}.")
    if name:
        print(paths[name])
        return
    rows = [{"name": name, "what": first_comment(path), "path": str(path)} for name, path in paths.items()]
    shown = rows if as_json else [{"name": row["name"], "what it is": row["what"]} for row in rows]
    title = 'accelerate launch --config_file "$(expunge recipes --launch NAME)" -m expunge run …'
    _print_list(shown, title=title, as_json=as_json)


def _print_list(rows: Sequence[dict[str, Any]], *, title: str, as_json: bool) -> None:
    """Rows of the same keys as a table, or as they are."""
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    from rich.table import Table

    table = Table(title=title)
    for k, head in enumerate(rows[0]):
        table.add_column(head, no_wrap=k == 0)
    for row in rows:
        table.add_row(*row.values())
    _console().print(table)


def _print_plan(recipe: "Recipe", *, as_json: bool) -> None:
    from expunge.parsing import combinations
    from expunge.plan import plan

    rows = [row for own in ([r for _, r in combinations(recipe)] if recipe.over else [recipe]) for row in plan(own)]
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    splits = list(dict.fromkeys(f"{row['benchmark']} {row['split']}" for row in rows))
    title = "nothing is run; MiB: estimate of training's peak, on a CPU beyond the process's own (parts: --json)"
    table = Table(box=SIMPLE_HEAD, title=title, collapse_padding=True, pad_edge=False)
    if len(splits) > 1:
        table.add_column("split", no_wrap=True, max_width=12)  # a person's name may be longer; the numbers matter more
    table.add_column("method", no_wrap=True)
    for name in ("forget\nrows", "retain\nrows", "tokens", "steps", "param-\neters", "train", "MiB"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        numbers = ("forget_rows", "retain_rows", "tokens", "steps", "parameters", "trainable", "memory_mib")
        names = ([row["split"]] if len(splits) > 1 else []) + [row["method"]]
        table.add_row(*names, *(_short(row[name]) for name in numbers))
    _console().print(table)


def _short(value: float) -> str:
    """Four characters or so: 812, 19 k, 1.0 M, 8.0 G."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if value >= size:
            scaled = value / (1e3 if unit == "k" else size)
            return f"{scaled:.{0 if scaled >= 10 else 1}f} {unit}"
    return f"{value:,.0f}"


def _eval(args: argparse.Namespace, overrides: list[tuple[str, str]]) -> None:
    from expunge.parsing import load_recipe
    from expunge.run import evaluate_only

    out = args.out or f"runs/eval-{Path(args.model).name}"
    recipe = load_recipe(None, [*overrides, ("model", args.model), ("out", out)])
    _print_results(evaluate_only(recipe, overwrite=args.overwrite), out, as_json=args.json)


def _augment(args: argparse.Namespace, overrides: list[tuple[str, str]]) -> None:
    from expunge.data.writer import compose
    from expunge.inputs import load_benchmark
    from expunge.parsing import load_recipe

    recipe = load_recipe(None, overrides)
    if recipe.model.name is None:
        raise UserError("augment: give --model NAME, the model that is to write.")
    variants = compose(
        load_benchmark(recipe).forget,
        model=recipe.model.name,
        url=args.url,
        out=args.out,
        paraphrases=args.paraphrases,
        perturbations=args.perturbations,
        seed=recipe.seed,
    )
    print(f"{args.out}: {len(variants)} variants; read them, and give them as --augment {args.out}")


def _distill(args: argparse.Namespace, overrides: list[tuple[str, str]]) -> None:
    from expunge.difference import checkpoint_of
    from expunge.parsing import load_recipe

    folder, config = checkpoint_of(Path(args.checkpoint))
    keys = [("model", config.base), ("method", "uld_distilled"), ("method.forget.teacher", str(folder))]
    recipe = load_recipe(None, [*keys, *overrides, ("out", args.out or "runs/distilled")])
    _carry_out(recipe, resume=args.resume, overwrite=args.overwrite, as_json=args.json)


def _serve(args: argparse.Namespace, _overrides: list[tuple[str, str]]) -> None:
    from expunge.serve import serve

    serve(args.model, host=args.host, port=args.port)


def _chat(args: argparse.Namespace, _overrides: list[tuple[str, str]]) -> None:
    from expunge.chat import chat

    names = [args.model, *([args.against] if args.against else [])]
    chat(names, max_new_tokens=args.max_new_tokens, console=_console())


def _report(args: argparse.Namespace, _overrides: list[tuple[str, str]]) -> None:
    from expunge.report import write_markdown, write_report

    if args.markdown is not None:
        command = "expunge report " + " ".join(str(d) for d in args.directory) + f" --markdown {args.markdown}"
        print(write_markdown(args.directory, args.markdown, command=command))
    else:
        print(write_report(args.directory, args.out or args.directory[0] / "report.html"))


def _bench(args: argparse.Namespace, _overrides: list[tuple[str, str]]) -> None:
    from expunge.bench import decode, evaluation, growth, training
    from expunge.bench.shapes import SHAPES, usual_length
    from expunge.parsing import read_mapping

    shape = args.shape or ("small" if args.what == "decode" else "tiny")
    if shape not in SHAPES:
        raise UserError(f"bench: no shape {shape!r}.{did_you_mean(shape, SHAPES)} Known: {', '.join(SHAPES)}.")
    if args.sequences < 2 or args.sequences % 2 or (args.length is not None and args.length < 2):
        raise UserError("bench: half of the sequences are to forget; give an even number of them, of 2 tokens or more.")
    if args.svg is not None and args.what in ("decode", "evaluation"):
        raise UserError(f"bench {args.what} draws no picture; leave --svg out, or take --markdown.")
    command = f"expunge bench {args.what} --shape {shape}"
    if args.what == "decode":
        bench: Any = decode
        found = decode.measure(shape, threads=args.threads)
    elif args.what == "evaluation":
        bench = evaluation
        found = evaluation.measure(shape, questions=args.questions, threads=args.threads)
        command += f" --questions {args.questions}"
    elif args.what == "growth":
        bench = growth
        by = read_mapping(args.by, what="--by") if args.by else None
        sizes = growth.sizes_for(shape, by, sequences=args.sequences, length=args.length or usual_length(shape))
        found = growth.measure(shape, sizes, threads=args.threads)
        command += f" --sequences {sizes.sequences} --length {sizes.length}" + (f" --by '{args.by}'" if args.by else "")
    else:
        bench = training
        methods = tuple(args.methods.split(",")) if args.methods else training.METHODS
        if unknown := [name for name in methods if name not in training.METHODS]:
            raise UserError(
                f"bench: no method {unknown[0]!r}.{did_you_mean(unknown[0], training.METHODS)} Known: "
                f"{', '.join(training.METHODS)}."
            )
        size = {"sequences": args.sequences, "length": args.length or usual_length(shape)}
        found = training.measure(shape, methods=methods, checkpointing=args.checkpointing, threads=args.threads, **size)
        command += f" --methods {args.methods}" if args.methods else ""
        command += f" --sequences {size['sequences']} --length {size['length']}"
        command += " --checkpointing" if args.checkpointing else ""
    command += f" --threads {args.threads}" if args.threads else ""
    if args.markdown is not None:
        args.markdown.parent.mkdir(parents=True, exist_ok=True)
        args.markdown.write_text(bench.markdown(found, command=command), encoding="utf-8")
    if args.svg is not None:
        args.svg.parent.mkdir(parents=True, exist_ok=True)
        args.svg.write_text(bench.svg(found), encoding="utf-8")
    if args.json:
        print(json.dumps(found, indent=1))
        return
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    title = f"{found['shape']}, {found['device']}, {found['threads']} threads"
    table = Table(box=SIMPLE_HEAD, title=title, collapse_padding=True, pad_edge=False)
    for k, head in enumerate(bench.HEADS):
        table.add_column(
            head.replace(" / ", " /\n").replace(": ", ":\n").replace(" (", "\n("),
            no_wrap=True,
            justify="right" if k else "left",
        )
    for row in bench.cells(found):
        table.add_row(*row)
    _console().print(table)


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
    _console().print(
        "Combine them as forget+retain, for example unilogit+nll or npo+kl; rmu brings its own anchor, uld and "
        "uld_distilled their own retain term."
    )


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


def _carry_out(recipe: "Recipe", *, as_json: bool = False, **options: Any) -> None:
    from expunge.run import run_all

    _print_results(run_all(recipe, **options), str(recipe.out), as_json=as_json)


def _print_results(rows: list[dict[str, Any]], out: str, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(rows, indent=1, ensure_ascii=False))
        return
    from expunge.report.comparison import compare, means
    from expunge.report.verdict import verdict

    groups = {(row["benchmark"], row["split"], row["seed"]) for row in rows}
    if len(groups) > 1:
        for mean in means(compare([(Path(out), row) for row in rows])):
            _print_rows(mean.name, [entry.runs[0] for entry in mean.entries])
        _console().print(f"{len(groups)} runs; tables of each, and their means: {out}/results.md and {out}/report.html")
        return
    _print_rows(f"{rows[0]['benchmark']} {rows[0]['split']}", rows)
    (section,) = compare([(Path(out), row) for row in rows])
    if section.methods:
        _console().print(verdict(section), end="\n\n")
    _console().print(f"results, records and report: {out}/  (open {out}/report.html)")


def _print_rows(title: str, rows: Sequence[dict[str, Any]]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from expunge.report.glossary import show

    shown = [key for key in TABLE if any(key in row["metrics"] for row in rows)]
    timed = any(row["seconds"] is not None for row in rows)
    table = Table(box=SIMPLE_HEAD, title=title, collapse_padding=True, pad_edge=False)
    table.add_column("method", no_wrap=True)
    for key in shown:
        table.add_column(TABLE[key], justify="right", no_wrap=True)
    if timed:
        table.add_column("time\ns", justify="right", no_wrap=True)
    for row in rows:
        seconds = row["seconds"]
        time = "" if seconds is None else f"{seconds:.{int(seconds < 100)}f}"
        values = [show(key, row["metrics"].get(key)) for key in shown]
        table.add_row(row["method"], *values, *([time] if timed else []))
    _console().print(table)


def _split(words: Sequence[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """The words that argparse knows, and the `--key value` or `--key=value` pairs that set a recipe's keys.

    They are parted first, because argparse would take the value of a key that it does not know for the recipe.
    """
    own: list[str] = []
    pairs: list[tuple[str, str]] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        name, equals, value = word.partition("=")
        if not word.startswith("-") or name in FLAGS:
            own.append(word)
        elif name in VALUED:
            own += [word] if equals else [word, *rest[:1]]
            rest = rest if equals else rest[1:]
        else:
            if not equals:
                if not rest or rest[0].startswith("--"):
                    raise UserError(f"{word} needs a value: {word} VALUE.{did_you_mean(word, (*FLAGS, *VALUED))}")
                value = rest.pop(0)
            pairs.append((name.lstrip("-").replace("-", "_"), value))
    return own, pairs


def _run_name(path: Path | None) -> str:
    """`recipes/tofu/scratch/forget10.yaml` → `tofu-scratch-forget10`; without a recipe, `run`."""
    if path is None:
        return "run"
    parts = path.with_suffix("").parts
    return "-".join(parts[parts.index("recipes") + 1 :] if "recipes" in parts else parts[-1:])


@contextmanager
def _together() -> Iterator[None]:
    """Carry out a command along with the other processes that a launcher started, if it did; the first one speaks."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    if os.environ.get("RANK", "0") != "0":
        os.environ["TQDM_DISABLE"] = "1"
        logging.getLogger("expunge").setLevel(logging.ERROR)
    from expunge import ranks

    ranks.join()
    with open(os.devnull, "w") as nowhere, nullcontext() if ranks.first() else redirect_stdout(nowhere):
        yield
    ranks.leave()


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
