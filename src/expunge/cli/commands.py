"""The commands, called once their words are read. Heavy modules are imported inside."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from expunge.cli.terminal import console, print_plan, print_results, print_table, print_verdicts
from expunge.errors import UserError, did_you_mean
from expunge.secrets import masked_text

if TYPE_CHECKING:
    from expunge.recipe.config import Recipe


def demo(args: argparse.Namespace, overrides: list[tuple[str, str]]) -> None:
    from expunge.recipe import shipped
    from expunge.recipe.parsing import load_recipe

    name = "demo-real" if args.real else "demo"
    usual = f"runs/{name}"
    keys = [("benchmark.seed", value) for key, value in overrides if key == "seed"]  # a seed is a world of its own
    if args.real and not {"model", "model.name"} & {key for key, _ in overrides}:
        model = shipped.real_model()
        if not model.is_file():
            raise UserError(f"demo --real: there is no model in {model}; fetch it with make real-model in a checkout, "
                            "or name one that chats with --model FOLDER.")  # fmt: skip
        keys.append(("model.name", str(model)))
    recipe = load_recipe(shipped.demo(name), [*keys, *overrides, ("out", args.out or usual)])
    _carry_out(recipe, overwrite=args.overwrite or args.out in (None, usual), as_json=args.json)


def run(args: argparse.Namespace, overrides: list[tuple[str, str]]) -> None:
    if args.help_keys:
        from expunge.recipe.keys import listed

        print("\n".join(listed()))
        return
    from expunge.recipe.parsing import load_recipe, run_name
    from expunge.recipe.shipped import find

    path = find(args.recipe) if args.recipe else None
    out = args.out or f"runs/{run_name(path)}"
    anyway = [("anyway", "true")] if args.anyway else []
    recipe = _repeated(load_recipe(path, [*overrides, ("out", out), *anyway, *_redacted(args)]), args.seeds)
    if args.dry_run:
        refuse(args, "resume", "overwrite", *(["workers"] if args.workers != 1 else []), when="with --dry-run")
        print_plan(recipe, as_json=args.json)
    else:
        _carry_out(recipe, resume=args.resume, overwrite=args.overwrite, workers=args.workers, as_json=args.json)


def _redacted(args: argparse.Namespace) -> list[tuple[str, str]]:
    """`--redact` as a key of the recipe, which a resumed run and a later report then know."""
    return [("redact", "true")] if args.redact else []


def _repeated(recipe: "Recipe", seeds: int | None) -> "Recipe":
    """The recipe over a number of seeds, from its own on."""
    from expunge.recipe.parsing import check_runs

    if seeds is None:
        return recipe
    if seeds < 1:
        raise UserError(f"--seeds must be at least 1, got {seeds}.")
    check_runs(seeds, "--seeds")
    return recipe.model_copy(update={"over": {**recipe.over, "seed": [recipe.seed + k for k in range(seeds)]}})


def sweep(args: argparse.Namespace, overrides: list[tuple[str, str]]) -> None:
    from expunge.recipe.parsing import load_recipe, read_mapping, run_name
    from expunge.recipe.shipped import find

    try:
        from expunge.sweep import Space, sweep
        from expunge.sweep.table import Watch, print_outcome
    except ImportError as error:
        if error.name != "optuna":
            raise
        raise UserError("sweep: optuna is missing; pip install 'expunge[sweep]'.") from error
    objectives = tuple(args.objectives.split(","))
    if len(objectives) != 2:
        raise UserError(f"--objectives must be two metrics with a comma between them, got {args.objectives}.")
    path = find(args.recipe) if args.recipe else None
    out = args.out or Path("runs") / f"{run_name(path)}-sweep"
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
        print_outcome(rows, objectives, out, keep=args.keep, console=console())


def reproduce(args: argparse.Namespace, overrides: list[tuple[str, str]]) -> None:
    from expunge.recipe import shipped
    from expunge.report.table import Table

    if args.name is None:
        options = ("recipe_set", "splits", "seeds", "runs", "out", "dry_run", "no_run")
        refuse(args, *options, when="without the name of a reproduction", overrides=overrides)
        listed = [{"name": name, "what": shipped.first_comment(path)} for name, path in shipped.reproductions().items()]
        table = Table.of(listed, {"name": "name", "what": "what"}, title="expunge reproduce NAME")
        print_table(table, as_json=args.json, frame="cells")
        return
    from expunge.reproduce import Reproduction, carry_out, missing, write

    if args.dry_run:
        refuse(args, "no_run", when="with --dry-run")
    else:
        refuse(args, "json", when="without --dry-run")
    what, path = Reproduction.load(args.name)
    runs, out = args.runs or Path("runs"), args.out or Path("docs/results")
    splits = args.splits.split(",") if args.splits else ()
    options = {"recipe_set": args.recipe_set, "splits": splits, "seeds": args.seeds, "overrides": overrides}
    jobs = what.jobs(path, runs=runs, **options)
    rows = [{"run": str(job.out), "to do": missing(job)} for job in jobs]
    if args.dry_run:
        cells = {"run": "run", "to do": lambda row: ", ".join(row["to do"]) or "nothing, it is there"}
        print_table(Table.of(rows, cells, title=what.title), as_json=args.json, frame="cells")
        return
    if not args.no_run:
        carry_out(jobs)
    words = ["expunge", "reproduce", path.stem if args.name == path.stem else path.name]
    given = {"recipe_set": args.recipe_set, "splits": args.splits, "seeds": args.seeds}
    pairs = [(name.replace("_", "-"), str(value)) for name, value in given.items() if value is not None]
    # Whoever repeats it has other folders.
    for key, value in [*pairs, *((key, "FOLDER" if Path(value).exists() else value) for key, value in overrides)]:
        words += [f"--{key}", value]
    command = masked_text(" ".join(words))
    page, absent = write(what, jobs, name=path.stem, runs=runs, out=out, command=command)
    print(page)
    if absent:
        print(f"not run yet: {', '.join(absent)}; the same command without --no-run runs what it can", file=sys.stderr)


def recipes(args: argparse.Namespace, _overrides: list[tuple[str, str]]) -> None:
    from expunge.recipe import shipped
    from expunge.report.table import Table

    if args.schema:
        from expunge.recipe.schema import recipe_schema

        print(json.dumps(recipe_schema(), indent=2, ensure_ascii=False))
        return
    if args.launch is not None:
        _launchers(args.launch, shipped.launchers(), as_json=args.json)
        return
    folder = shipped.recipes()
    rows = [
        {
            "name": name,
            "recipe": str(path.relative_to(folder)),
            "what": shipped.first_comment(path),
            "path": str(path),
        }
        for name, path in shipped.named().items()
    ]
    table = Table.of(rows, {"name": "name", "what it does": "what"}, title=f"expunge run NAME; in {folder}")
    print_table(table, as_json=args.json, frame="cells")


def _launchers(name: str, paths: dict[str, Path], *, as_json: bool) -> None:
    from expunge.recipe.shipped import first_comment
    from expunge.report.table import Table

    if name and name not in paths:
        raise UserError(
            f"recipes --launch: unknown config {name!r}.{did_you_mean(name, paths)} Known: {', '.join(paths)}."
        )
    if name:
        if as_json:
            raise UserError("recipes: --json is not used with the name of a launch config; leave it out.")
        print(paths[name])
        return
    rows = [{"name": name, "what": first_comment(path), "path": str(path)} for name, path in paths.items()]
    title = 'accelerate launch --config_file "$(expunge recipes --launch NAME)" -m expunge run …'
    print_table(Table.of(rows, {"name": "name", "what it is": "what"}, title=title), as_json=as_json, frame="cells")


def teach(args: argparse.Namespace, overrides: list[tuple[str, str]]) -> None:
    from expunge.pipeline.teach import teach
    from expunge.recipe.parsing import load_recipe
    from expunge.recipe.shipped import find

    written = teach(load_recipe(find(args.recipe) if args.recipe else None, overrides), args.out)
    print("\n".join(map(str, written)))


def eval(args: argparse.Namespace, overrides: list[tuple[str, str]]) -> None:
    from expunge.modeling.checkpoint import whereabouts
    from expunge.pipeline.run import evaluate_only
    from expunge.recipe.parsing import check_once, load_recipe

    check_once([*(key for key, _ in overrides), "model"])
    whereabouts(args.model)  # refuses what can be no name, before a folder is named after it
    out = args.out or f"runs/eval-{Path(args.model).name}"
    recipe = load_recipe(None, [*overrides, ("model", args.model), ("out", out), *_redacted(args)])
    print_results(evaluate_only(recipe, overwrite=args.overwrite), out, as_json=args.json)


def stress(args: argparse.Namespace, overrides: list[tuple[str, str]]) -> None:
    from expunge.modeling.checkpoint import checkpoint_name, whereabouts
    from expunge.pipeline.run import evaluate_only
    from expunge.recipe.parsing import check_once, load_recipe

    check_once([*(key for key, _ in overrides), "model", "checkpoints", "retrained", "evaluate.stress"])
    for name in filter(None, (args.model, args.target)):
        whereabouts(name)
    out = Path(args.out or f"runs/stress-{checkpoint_name(args.model)}")
    models = [("model", args.model)] if args.target is None else [("model", args.target), ("checkpoints", args.model)]
    if args.retrained is not None:
        first, _, others = args.retrained.partition(",")
        models += [("retrained", first), *([("cloud", others)] if others else [])]
    asked = {"quick": args.quick, **({} if args.attacks is None else {"attacks": args.attacks})}
    keys = [*models, ("evaluate.stress", json.dumps(asked)), ("out", str(out))]
    recipe = load_recipe(None, [*overrides, *keys, *_redacted(args)])
    resume = (out / "recipe.yaml").exists() and not args.overwrite
    print_results(evaluate_only(recipe, resume=resume, overwrite=args.overwrite), str(out), as_json=args.json)


def augment(args: argparse.Namespace, overrides: list[tuple[str, str]]) -> None:
    from expunge.pipeline.inputs import check_answered, load_benchmark
    from expunge.pipeline.writer import compose
    from expunge.recipe.parsing import load_recipe

    recipe = load_recipe(None, overrides)
    if recipe.model.name is None:
        raise UserError("augment: give --model NAME, the model that is to write.")
    check_answered(recipe, "augment")
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


def distill(args: argparse.Namespace, overrides: list[tuple[str, str]]) -> None:
    from expunge.modeling.difference import checkpoint_of
    from expunge.recipe.parsing import load_recipe

    folder, config = checkpoint_of(Path(args.checkpoint))
    keys = [("model", config.base), ("method", "uld_distilled"), ("method.forget.teacher", str(folder))]
    recipe = load_recipe(None, [*keys, *overrides, ("out", args.out or "runs/distilled"), *_redacted(args)])
    _carry_out(recipe, resume=args.resume, overwrite=args.overwrite, as_json=args.json)


def serve(args: argparse.Namespace, _overrides: list[tuple[str, str]]) -> None:
    # Every request runs the model in a thread, and each thread has OpenMP workers of its own: those of the one that is
    # not served would spin on the cores that the other needs. Read when torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from expunge.serve import serve

    serve(
        args.model,
        host=args.host,
        port=args.port,
        api_key=args.api_key or os.environ.get("EXPUNGE_API_KEY") or None,
        hosts=args.allowed_hosts.split(",") if args.allowed_hosts else (),
        timeout=args.timeout,
    )


def chat(args: argparse.Namespace, _overrides: list[tuple[str, str]]) -> None:
    from expunge.cli.chat import chat

    if args.max_new_tokens is not None and args.max_new_tokens < 1:
        raise UserError(f"chat: --max-new-tokens must be at least 1, got {args.max_new_tokens}.")
    names = [args.model, *([args.against] if args.against is not None else [])]
    chat(names, max_new_tokens=args.max_new_tokens, console=console())


def report(args: argparse.Namespace, _overrides: list[tuple[str, str]]) -> None:
    from expunge.data.files import file_to_write, local_path
    from expunge.pipeline.rundir import results_damage
    from expunge.recipe.parsing import complete
    from expunge.report import write_markdown, write_report
    from expunge.report.comparison import sections

    if args.markdown is not None:
        refuse(args, "out", "redact", when="with --markdown")
    for path in args.directory:
        if wrong := results_damage(local_path(path, "report")):
            raise UserError(
                f"report: {wrong}; put it back as it was, or delete manifest.json to report on what is there."
            )
    for path in (args.out, args.markdown):
        if path is not None:
            file_to_write(path, "report")
    if args.markdown is not None:
        print(write_markdown(args.directory, args.markdown))
    else:
        out = args.out or args.directory[0] / "report.html"
        page = write_report(args.directory, out, redact=args.redact, settings=complete)
        print_verdicts(sections(args.directory))
        print(page)


def cache(args: argparse.Namespace, _overrides: list[tuple[str, str]]) -> None:
    from datetime import datetime

    from expunge.report.table import Table
    from expunge.system.cache import KINDS, cache_directory, cache_entries, clear

    def rows(entries: Any) -> list[dict[str, Any]]:
        return [
            {
                "kind": entry.kind,
                "name": entry.name,
                "what": entry.what,
                "bytes": entry.bytes,
                "used": datetime.fromtimestamp(entry.used).isoformat(sep=" ", timespec="minutes"),
            }
            for entry in entries
        ]

    where = cache_directory()
    if args.what == "list":
        kept_entries = rows(entry for entry in cache_entries() if args.kind in ("all", entry.kind))
        if kept_entries or args.json:
            size = {"bytes": lambda row: f"{row['bytes'] / 2**20:,.1f} MiB"}
            cells = {"kind": "kind", "name": "name", "what": "what", **size, "used": "used"}
            print_table(Table.of(kept_entries, cells, title=f"in {where}"), as_json=args.json, frame="cells")
        else:
            print(f"nothing is kept in {where}")
        return
    gone, left = clear(KINDS if args.kind == "all" else (args.kind,))
    if args.json:
        print(json.dumps({"deleted": rows(gone), "in_use": rows(left)}, indent=1))
        return
    print(f"deleted {len(gone)} of {where}, {sum(entry.bytes for entry in gone) / 2**20:,.1f} MiB")
    for entry in left:
        print(f"left {entry.kind}/{entry.name}: a process is writing it", file=sys.stderr)


def methods(args: argparse.Namespace, _overrides: list[tuple[str, str]]) -> None:
    from expunge.objectives import FORGET, RETAIN, STEPS, describe
    from expunge.report.table import Table

    rows = [
        describe(cls, kind)
        for kind, registry in (("forget", FORGET), ("retain", RETAIN), ("step", STEPS))
        for cls in registry.values()
    ]
    cells = {
        "name": "name",
        "kind": "kind",
        "reads": lambda row: ", ".join(row["reads"]),
        "options": lambda row: ", ".join(f"{k}={v}" for k, v in row["options"].items()),
        "use when": "use_when",
    }
    note = (
        "Combine them as forget+retain, for example unilogit+nll or npo+kl; rmu brings anchor, jensun jsd, uld "
        "and uld_distilled a retain term of their own; a step has none. An objective of your own goes by its import "
        "path, package.module:Class."
    )
    print_table(Table.of(rows, cells, notes=[note]), as_json=args.json, frame="rows")


def doctor(args: argparse.Namespace, _overrides: list[tuple[str, str]]) -> None:
    from expunge.cli.doctor import examine
    from expunge.report.table import Part, Table

    rows = examine()
    cells = {"check": "check", "found": "found", "": lambda row: row["advice"] or Part("ok", "good")}
    print_table(Table.of(rows, cells), as_json=args.json, frame="cells")
    if any(row["fatal"] for row in rows):
        raise UserError("this machine can't run expunge yet; the table above says what to do.")


def refuse(args: argparse.Namespace, *names: str, when: str, overrides: Sequence[tuple[str, str]] = ()) -> None:
    """Raise `UserError` for the first of these options, and of the recipe's keys, that was given and is not used."""
    given = [name for name in names if getattr(args, name) not in (None, False)] + [key for key, _ in overrides]
    if given:
        raise UserError(f"{args.command}: --{given[0].replace('_', '-')} is not used {when}; leave it out.")


def _carry_out(recipe: "Recipe", *, as_json: bool = False, **options: Any) -> None:
    from expunge.pipeline.run import run_all

    print_results(run_all(recipe, **options), str(recipe.out), as_json=as_json)
