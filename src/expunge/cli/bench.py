"""The commands of `expunge bench`: what is measured, and where its table goes. Heavy modules are imported inside."""

import argparse
import json
import shlex
from typing import Any

from expunge.cli.terminal import print_table
from expunge.errors import UserError, did_you_mean


def training(args: argparse.Namespace, _overrides: list[tuple[str, str]]) -> None:
    from expunge.bench import training as bench

    _check(args)
    result = bench.measure(
        args.shape,
        methods=_chosen(args.methods, bench.METHODS, "method"),
        sequences=args.sequences,
        length=args.length,
        checkpointing=args.checkpointing,
        rounds=args.rounds,
        threads=args.threads,
    )
    _show(args, bench, result)


def whole(args: argparse.Namespace, _overrides: list[tuple[str, str]]) -> None:
    from expunge.bench import whole as bench

    _check(args)
    methods = _chosen(args.methods, bench.METHODS, "method")
    size = {"sequences": args.sequences, "length": args.length, "rounds": args.rounds or 5}
    _show(args, bench, bench.measure(args.shape, methods=methods, **size, threads=args.threads))


def head(args: argparse.Namespace, _overrides: list[tuple[str, str]]) -> None:
    from expunge.bench import head as bench

    _check(args)
    _show(args, bench, bench.measure(args.shape, tokens=args.tokens, rounds=args.rounds or 7, threads=args.threads))


def growth(args: argparse.Namespace, _overrides: list[tuple[str, str]]) -> None:
    from expunge.bench import growth as bench
    from expunge.recipe.parsing import read_mapping

    _check(args)
    by = read_mapping(args.by, what="--by") if args.by is not None else None
    sizes = bench.sizes_for(args.shape, by, sequences=args.sequences, length=args.length)
    _show(args, bench, bench.measure(args.shape, sizes, threads=args.threads))


def decode(args: argparse.Namespace, _overrides: list[tuple[str, str]]) -> None:
    from expunge.bench import decode as bench

    _check(args)
    _show(args, bench, bench.measure(args.shape, threads=args.threads))


def evaluation(args: argparse.Namespace, _overrides: list[tuple[str, str]]) -> None:
    from expunge.bench import evaluation as bench

    _check(args)
    prompts = _chosen(args.prompts, tuple(bench.PROMPTS), "prompts")
    size = {"questions": args.questions, "prompts": prompts, "rounds": args.rounds or 3}
    _show(args, bench, bench.measure(args.shape, **size, threads=args.threads))


def _check(args: argparse.Namespace) -> None:
    """Refuse sizes that cannot be; fill in the length that is usual for the shape."""
    from expunge.bench.shapes import SHAPES, usual_length
    from expunge.recipe.config import MOST_THREADS

    if args.shape not in SHAPES:
        known = f"{did_you_mean(args.shape, SHAPES)} Known: {', '.join(SHAPES)}."
        raise UserError(f"bench: unknown shape {args.shape!r}.{known}")
    limits = {
        "rounds": (1, None),
        "questions": (1, None),
        "threads": (1, MOST_THREADS),
        "length": (2, 4_096),
        "tokens": (2, 2**20),
        "sequences": (2, 4_096),
    }
    for name, (least, most) in limits.items():
        value = getattr(args, name, None)
        if value is not None and value < least:
            raise UserError(f"bench: --{name} must be at least {least}, got {value}.")
        if value is not None and most is not None and value > most:
            raise UserError(f"bench: --{name} must be at most {most}, got {value}.")
    if "sequences" in args:
        if args.sequences % 2:
            raise UserError(f"bench: --sequences must be even, for half of them are to forget; got {args.sequences}.")
        args.length = args.length or usual_length(args.shape)


def _chosen(names: str | None, known: tuple[str, ...], what: str) -> tuple[str, ...]:
    """The names between commas, or all that are known."""
    chosen = known if names is None else tuple(names.split(","))
    if unknown := [name for name in chosen if name not in known]:
        suggestion = f"{did_you_mean(unknown[0], known)} Known: {', '.join(known)}."
        raise UserError(f"bench: unknown {what} {unknown[0]!r}.{suggestion}")
    return chosen


def _show(args: argparse.Namespace, bench: Any, result: dict[str, Any]) -> None:
    from expunge.system.disk import make_folder, write_whole

    words = ["expunge", "bench", args.kind]
    for name, value in vars(args).items():
        if name in ("command", "kind", "run", "prog", "markdown", "svg", "json"):
            continue  # all others decide what is measured
        words += [f"--{name}"] if value is True else [f"--{name}", str(value)] if value else []
    if args.markdown is not None:
        make_folder(args.markdown.parent)
        write_whole(args.markdown, bench.markdown(result, command=shlex.join(words)))
    if "svg" in args and args.svg is not None:
        make_folder(args.svg.parent)
        write_whole(args.svg, bench.svg(result))
    if args.json:
        print(json.dumps(result, indent=1))
    else:
        print_table(bench.table(result))
