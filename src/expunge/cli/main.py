"""The command line: which commands and options there are, exit codes, and errors of one sentence.

Exit codes: 0 done, 2 the input can be mended (one sentence says how), 1 a fault of ours (with its traceback), 3 what
`--fail-if` names.
"""

import argparse
import logging
import os
import re
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

from expunge import __version__
from expunge.cli import bench as bench_commands
from expunge.cli import commands
from expunge.cli import requests as request_commands
from expunge.errors import UserError, did_you_mean, one_sentence
from expunge.secrets import masked_text, remember
from expunge.system.disk import printable, writing
from expunge.system.escaping import visible
from expunge.system.logs import quiet_libraries


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    remember(argv)
    parser = _parser()
    if "_ARGCOMPLETE" in os.environ:  # a shell asks, through the script of --completion
        import_module("argcomplete").autocomplete(parser)
    try:
        if broken := next((word for word in argv if not _is_text(word)), None):
            raise UserError(f"{printable(broken)} is not UTF-8; rename the file, or write the word in UTF-8.")
        _check_values(argv)
        command = parser.commands.get(argv[0]) if argv else None
        options, overrides = _split(argv, command, parser) if command and command.takes_keys else (argv, [])
        args, unknown = parser.parse_known_args(options)
        if unknown:
            raise UserError(f"unrecognized arguments: {' '.join(unknown)}; see {args.prog} --help.")
        if args.command is None:
            parser.print_help()
            return 2
        quiet_libraries()
        if overrides:
            from expunge.recipe.parsing import check_once

            check_once([key for key, _ in overrides])
        with _together(), writing(Path()):
            code = args.run(args, overrides) or 0
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read the output, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter flushes it once more
        return 128 + signal.SIGPIPE
    except UserError as error:
        print(f"expunge: {visible(one_sentence(str(error)))}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        same = "; go on with the same command"
        further = {"run": "; go on with --resume", "sweep": same, "reproduce": same}.get(argv[0], "")
        print(f"expunge: interrupted{further}.", file=sys.stderr)
        return 130
    except Exception:
        print(masked_text(traceback.format_exc()), end="", file=sys.stderr)
        return 1
    return code


def _is_text(word: str) -> bool:
    """Whether a word of the command line came in the encoding that files are written in."""
    try:
        word.encode()
    except UnicodeEncodeError:
        return False
    return True


def _check_values(words: Sequence[str]) -> None:
    """Raise `UserError` for an option or a key whose value is an empty word."""
    for before, word in zip(["", *words], words, strict=False):
        name, equals, value = (word if word.startswith("--") else f"{before}={word}").partition("=")
        if name.startswith("--") and equals and not value.strip():
            raise UserError(f"{name} is empty; give a value, or leave it out.")


class _Once(argparse.Action):
    """Stores the value of an option, of which a second one would replace the first in silence."""

    given = False

    def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, option: str | None = None) -> None:
        if self.given:
            raise UserError(f"{option} is given twice and has one value; give one.")
        self.given = option is not None
        setattr(namespace, self.dest, values)


class _Completion(argparse.Action):
    """Prints what a shell evaluates to complete `expunge`, and ends."""

    def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, option: str | None = None) -> None:
        try:
            shellcode = import_module("argcomplete").shellcode
        except ImportError:
            raise UserError("--completion: argcomplete is missing; pip install 'expunge[completion]'.") from None
        print(shellcode(["expunge"], shell=values))
        parser.exit()


class _Parser(argparse.ArgumentParser):
    """A command, or the whole command line with its `commands`; errors as one sentence, like every other.

    takes_keys: whether what is no option of the command sets a key of a recipe.
    """

    takes_keys = False
    commands: dict[str, "_Parser"]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.register("action", None, _Once)

    def error(self, message: str) -> NoReturn:
        """Say it in one sentence, of a word that is no command with the nearest one that is."""
        word, known = (re.findall(r"'([^']*)'", message) or [""])[0], getattr(self, "commands", {})
        hint = did_you_mean(word, known) if "invalid choice" in message else ""
        raise UserError(f"{message}; see {self.prog} --help.{hint}")

    @property
    def options(self) -> dict[str, bool]:
        """The command's options, each with whether it takes a value."""
        return {name: action.nargs != 0 for action in self._actions for name in action.option_strings}


def _parser() -> _Parser:
    parser = _Parser(
        prog="expunge", description="Make a language model forget, and show the evidence.", allow_abbrev=False
    )
    parser.set_defaults(prog=parser.prog)
    parser.add_argument("--version", action="version", version=f"expunge {__version__}")
    parser.add_argument(
        "--completion",
        action=_Completion,
        choices=["bash", "zsh", "fish"],
        help='print what a shell completes commands with: eval "$(expunge --completion bash)" (extra: '
        "expunge[completion])",
    )
    subparsers = parser.add_subparsers(dest="command", metavar="command")
    parser.commands = subparsers.choices

    def command(name: str, run: Any, help: str, *, keys: bool = False, among: Any = subparsers) -> _Parser:
        sub = among.add_parser(name, help=help, description=help, allow_abbrev=False)
        sub.set_defaults(run=run, prog=sub.prog)
        sub.takes_keys = keys
        return sub

    def complete(argument: Any) -> None:
        """Offer a shell the names of recipes, and files."""
        argument.completer = lambda prefix, **_: [*_recipe_names(), *(str(p) for p in Path().glob(f"{prefix}*"))]

    def run_options(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("--overwrite", action="store_true", help="start over in a directory that holds a run")
        sub.add_argument("--json", action="store_true", help="print results.json instead of a table")

    def redact_option(sub: argparse.ArgumentParser, what: str = "records and report") -> None:
        sub.add_argument("--redact", action="store_true", help=f"write {what} without texts; numbers and rows stay")

    a_recipe = "YAML file, or a name of expunge recipes; not needed when the keys are given here"
    sub = command(
        "demo",
        commands.demo,
        "train a small model, unlearn it with six methods, the recommended one among them, and write the report",
        keys=True,
    )
    sub.add_argument(
        "--real",
        action="store_true",
        help="teach and unlearn a pretrained chat model: the one of make real-model, or --model FOLDER",
    )
    sub.add_argument("--out", help="run directory (default runs/demo or runs/demo-real, which is written anew)")
    run_options(sub)

    sub = command(
        "run",
        commands.run,
        "unlearn as a recipe says; any key (--help-keys) can be set as --key value, e.g. --model M --forget f.jsonl "
        "--retain r.jsonl",
        keys=True,
    )
    complete(sub.add_argument("recipe", nargs="?", help=a_recipe))
    sub.add_argument("--help-keys", action="store_true", help="list every key with its type, default and description")
    sub.add_argument("--out", help="run directory (default runs/<name of the recipe>)")
    sub.add_argument("--seeds", type=int, help="number of seeds: run once for each, one seed after the other")
    sub.add_argument(
        "--workers", type=int, default=1, help="number of runs at a time, where there are several (--seeds, over)"
    )
    sub.add_argument("--resume", action="store_true", help="go on where an interrupted run stopped")
    sub.add_argument("--dry-run", action="store_true", help="say what would be done: rows, steps, parameters, memory")
    sub.add_argument("--anyway", action="store_true", help="unlearn rows though the model shows no knowledge of them")
    run_options(sub)
    redact_option(sub)

    sub = command(
        "sweep",
        commands.sweep,
        "run a recipe with many values of its keys and choose the best (extra: expunge[sweep]); the same command again "
        "goes on where it was, with more --trials too; keys as in expunge run",
        keys=True,
    )
    complete(sub.add_argument("recipe", nargs="?", help=a_recipe))
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
    sub.add_argument("--minutes", type=float, help="begin no trial after this many minutes")
    sub.add_argument("--storage", help="database that machines share: postgresql://user:password@host/database")
    sub.add_argument("--study", help="name of the sweep there (default a hash of recipe and space)")
    sub.add_argument("--seeds", type=int, help="number of seeds of each trial; objectives are means over them")
    sub.add_argument("--out", type=Path, help="folder (default runs/<name of the recipe>-sweep)")
    sub.add_argument("--json", action="store_true", help="print trials.json instead of tables")

    sub = command(
        "reproduce",
        commands.reproduce,
        "make a table or a figure of a paper again: runs what is missing, keeps what is there, writes a page, its "
        "pictures and the numbers; keys as in expunge run; without a name lists what there is",
        keys=True,
    )
    sub.add_argument("name", nargs="?", help="one of the list, or a YAML file of your own")
    sub.add_argument("--recipe-set", help="which models (default those trained here)")
    sub.add_argument("--splits", help="which splits, with commas (default the first)")
    sub.add_argument("--seeds", type=int, help="number of seeds of each method on the same target, with intervals")
    sub.add_argument("--runs", type=Path, help="folder of the runs (default runs)")
    sub.add_argument("--out", type=Path, help="folder of the page (default docs/results)")
    sub.add_argument("--dry-run", action="store_true", help="say what is there and what would be run")
    sub.add_argument("--no-run", action="store_true", help="write the page from what is finished")
    sub.add_argument("--json", action="store_true", help="print the list, or what would be run, as JSON")

    sub = command(
        "recipes", commands.recipes, "list the recipes that come with expunge, or its configs of accelerate launch"
    )
    printed = sub.add_mutually_exclusive_group()
    printed.add_argument(
        "--launch", nargs="?", const="", metavar="NAME", help="list the launch configs; with a name print its path"
    )
    printed.add_argument("--schema", action="store_true", help="print the JSON schema of a recipe, for editors")
    sub.add_argument("--json", action="store_true")

    sub = command(
        "teach",
        commands.teach,
        "teach a model a benchmark or your own rows, and write both to a folder to try things on; keys as in run",
        keys=True,
    )
    complete(sub.add_argument("recipe", nargs="?", help=a_recipe))
    sub.add_argument("--out", type=Path, required=True, help="new folder: target, retrained, all.jsonl, forget.jsonl …")

    sub = command("eval", commands.eval, "measure a checkpoint as it is: --benchmark NAME, or --forget FILE", keys=True)
    sub.add_argument("model", help="folder or hub name")
    sub.add_argument("--out", help="run directory (default runs/eval-<name of the model>)")
    run_options(sub)
    redact_option(sub)

    sub = command(
        "stress",
        commands.stress,
        "attack a checkpoint: does what it forgot come back? --benchmark NAME, or --forget FILE --retain FILE; the "
        "same command goes on after an interruption",
        keys=True,
    )
    sub.add_argument("model", help="folder or hub name")
    sub.add_argument("--target", help="the model before unlearning; without it nothing says how much is back")
    sub.add_argument(
        "--retrained", help="models that never saw the forget rows, with commas; without one no attack has a control"
    )
    sub.add_argument(
        "--attacks",
        help="with commas: relearning, quantization, sampling, wording, reasoning, membership (default all)",
    )
    sub.add_argument(
        "--quick", action="store_true", help="fewer rows, settings and samples: a rough answer in a minute"
    )
    sub.add_argument("--out", help="run directory (default runs/stress-<name of the model>)")
    run_options(sub)
    redact_option(sub)

    sub = command(
        "augment",
        commands.augment,
        "write paraphrases and wrong answers of the forget rows (--forget FILE, or --benchmark NAME) with a model "
        "(--model NAME), for ULD to train on; the same command goes on after an interruption",
        keys=True,
    )
    sub.add_argument("--out", type=Path, required=True, help="JSON Lines file, for --augment of expunge run")
    sub.add_argument("--url", help="ask an OpenAI-compatible endpoint instead (key: OPENAI_API_KEY)")
    sub.add_argument("--paraphrases", type=int, default=4, help="of each row (default %(default)s)")
    sub.add_argument("--perturbations", type=int, default=1, help="wrong answers to each row (default %(default)s)")

    sub = command(
        "distill",
        commands.distill,
        "train the model itself towards a checkpoint of ULD: one ordinary checkpoint, keys as in expunge run",
        keys=True,
    )
    sub.add_argument("checkpoint", help="folder that ULD saved (a run's model/, or the run)")
    sub.add_argument("--out", help="run directory (default runs/distilled)")
    sub.add_argument("--resume", action="store_true", help="go on where an interrupted run stopped")
    run_options(sub)
    redact_option(sub)

    sub = command(
        "serve", commands.serve, "serve a checkpoint as an OpenAI-compatible endpoint (extra: expunge[serve])"
    )
    sub.add_argument("model", help="folder or hub name")
    sub.add_argument("--host", default="localhost", help="address to listen on (default %(default)s)")
    sub.add_argument("--port", type=int, default=8000, help="(default %(default)s)")
    sub.add_argument("--api-key", help="what clients must send; better in the environment variable EXPUNGE_API_KEY")
    sub.add_argument("--allowed-hosts", help="names that clients call this machine by, with commas (default its own)")
    sub.add_argument("--timeout", type=float, default=120, help="seconds that an answer may take (default %(default)s)")

    sub = command("chat", commands.chat, "ask a checkpoint in the terminal, or compare the answers of two")
    sub.add_argument("model", help="folder or hub name")
    sub.add_argument("--against", help="a second model, such as the one before unlearning")
    sub.add_argument("--max-new-tokens", type=int, help="of an answer (default 256, or what the context leaves)")

    sub = command(
        "find",
        request_commands.find,
        "find the rows about a person: by name, with typing errors, by identifier, and near-copies; nothing is sent "
        "anywhere (extra: expunge[requests])",
    )
    sub.add_argument("--who", required=True, help="YAML file of a person or a list: name, aliases, identifiers, text")
    sub.add_argument(
        "--in",
        dest="data",
        nargs="+",
        required=True,
        metavar="DATA",
        help="files (JSON, JSONL, CSV, Parquet, text), folders with all that lies in them, hub names",
    )
    sub.add_argument(
        "--least", type=float, default=0.8, help="score from which on a row is taken, .5 to 1 (default %(default)s)"
    )
    sub.add_argument("--out", default="runs/find", help="folder (default %(default)s)")
    sub.add_argument("--overwrite", action="store_true", help="replace an earlier search there")
    sub.add_argument("--json", action="store_true", help="print what was found as JSON instead of a table")

    sub = command(
        "probe",
        request_commands.probe,
        "does a model remember these rows? each beside rows of the same form that it can't know; no training",
    )
    sub.add_argument("model", help="folder or hub name")
    sub.add_argument("--forget", required=True, help="the rows: a file, a folder or a hub name")
    sub.add_argument("--control", help="rows of the same form that the model can't know: their facts make the controls")
    sub.add_argument(
        "--others",
        nargs="+",
        metavar="DATA",
        help="rows about others: their facts, with those of the rows, make the controls",
    )
    sub.add_argument("--base", help="the model before it was taught: what that finds likely counts for nothing")
    sub.add_argument("--who", help="YAML file of persons: a verdict for each (extra: expunge[requests])")
    sub.add_argument("--person", metavar="COLUMN", help="column of the rows that names the person: a verdict for each")
    sub.add_argument("--controls", type=int, default=32, help="of each row, where made (default %(default)s)")
    sub.add_argument(
        "--samples",
        type=int,
        default=8,
        help="answers drawn to a question for leak@k; 0 for none (default %(default)s)",
    )
    sub.add_argument("--level", type=float, default=0.01, help="of one wrong 'remembers' (default %(default)s)")
    sub.add_argument("--seed", type=int, default=0, help="of controls, draws and samples (default %(default)s)")
    sub.add_argument(
        "--fail-if",
        choices=["remembers", "not-cleared"],
        help="exit code 3 where a verdict is that it remembers; not-cleared: or that it cannot be told",
    )
    sub.add_argument("--out", help="folder (default runs/probe-<name of the model>)")
    sub.add_argument("--overwrite", action="store_true", help="replace an earlier probe there")
    sub.add_argument("--json", action="store_true", help="print probe.json instead of the verdict")
    redact_option(sub, "the page, without names too,")

    sub = command(
        "request",
        request_commands.request,
        "handle requests to be forgotten, from the letter to the evidence: add, run (keys as in expunge run), status, "
        "check MODEL, show; the same command goes on after an interruption (extra: expunge[requests])",
        keys=True,
    )
    sub.add_argument("action", choices=["add", "run", "status", "check", "show"])
    sub.add_argument("what", nargs="?", help="run, show: the request's reference; check: folder or name of a model")
    sub.add_argument("--who", help="add: YAML file of the person, as for expunge find")
    sub.add_argument("--forget", help="add: file of the rows, where they are known")
    sub.add_argument("--reference", help="add: the request's number in your files (default its number here)")
    sub.add_argument("--received", help="add: day of the letter, such as 2026-11-28")
    sub.add_argument("--model", help="run: the model as it is now (default what the last request left behind)")
    sub.add_argument("--in", dest="data", nargs="+", metavar="DATA", help="run: all that the model was tuned on")
    sub.add_argument("--allow", help="run: remedies with commas (default leave out,unlearn): leave out, drop the "
                     "adapter, unlearn, suppress")  # fmt: skip
    sub.add_argument("--retrain", help="run: recipe that taught the model; it is taught anew by it, without the rows")
    sub.add_argument("--least", type=float, help="run: score from which on a found row is taken (default 0.8)")
    sub.add_argument("--key", type=Path, help="run: private key that signs the evidence; without it there is none")
    sub.add_argument("--folder", type=Path, help="where the ledger and the requests' files lie (default requests)")
    sub.add_argument("--ledger", help="database that machines share: postgresql://user:password@host/database")
    sub.add_argument("--json", action="store_true", help="status, check, show: print JSON instead of a table")

    sub = command(
        "evidence",
        request_commands.evidence,
        "write evidence of a run that others can check without the data (expunge evidence RUN --out FOLDER), or check "
        "such a folder (expunge evidence verify FOLDER) (extra: expunge[requests])",
    )
    sub.add_argument("what", nargs="+", help="run directory, or: verify FOLDER")
    sub.add_argument("--out", type=Path, help="new folder of the evidence")
    sub.add_argument("--key", type=Path, help="private key that signs; with verify the sender's public key")
    sub.add_argument("--method", help="which, where the run has several")
    sub.add_argument("--reference", help="number of the request, which the evidence shows")
    sub.add_argument("--received", help="day of the request, such as 2026-11-28")
    sub.add_argument("--data", help="with verify: file of the rows that are meant")
    sub.add_argument("--model", help="with verify: folder of the unlearned model")
    sub.add_argument("--json", action="store_true", help="with verify: print the checks as JSON")

    sub = command("keys", request_commands.keys, "make a pair of keys to sign evidence with (extra: expunge[requests])")
    sub.add_argument(
        "--out", type=Path, required=True, help="file of the private key; the public one stands beside it (.pub)"
    )

    sub = command("report", commands.report, "write report.html, or a Markdown page, from finished runs")
    sub.add_argument("directory", nargs="+", type=Path, help="run directories")
    sub.add_argument("--out", type=Path, help="HTML file (default report.html in the first directory)")
    sub.add_argument("--markdown", type=Path, help="write a Markdown page of the tables here instead")
    redact_option(sub, "the page")

    bench = command("bench", None, "measure what things cost here, as ratios within one process")
    kinds = bench.add_subparsers(dest="kind", metavar="kind", required=True)

    def measurement(name: str, run: Any, help: str, *, shape: str = "tiny") -> _Parser:
        sub = command(name, run, help, among=kinds)
        sub.add_argument("--shape", default=shape, help="size of the random model (default %(default)s)")
        return sub

    def batch_options(sub: _Parser) -> None:
        sub.add_argument("--sequences", type=int, default=8, help="of a training step (default %(default)s)")
        sub.add_argument("--length", type=int, help="tokens of each (default 256; 64 for the tiny shape)")

    def result_options(sub: _Parser, *, picture: bool = False) -> None:
        sub.add_argument("--threads", type=int, help="CPU threads (default all)")
        sub.add_argument("--markdown", type=Path, help="also write the table to this file")
        if picture:
            sub.add_argument("--svg", type=Path, help="also write the picture to this file")
        sub.add_argument("--json", action="store_true", help="print the measurements instead of a table")

    sub = measurement(
        "training", bench_commands.training, "a training step beside plain fine-tuning and the usual way to write it"
    )
    sub.add_argument("--methods", help="with commas; all without it")
    batch_options(sub)
    sub.add_argument("--checkpointing", action="store_true", help="with activation checkpointing")
    sub.add_argument("--rounds", type=int, help="turns of each that count (default 5, 3 for the tiny shape)")
    result_options(sub, picture=True)

    sub = measurement(
        "whole", bench_commands.whole, "a whole step of every parameter by the trainer, its memory beside the estimate"
    )
    sub.add_argument("--methods", help="with commas; npo+kl and unilogit+nll without it")
    batch_options(sub)
    sub.add_argument("--rounds", type=int, help="steps that count (default 5)")
    result_options(sub)

    sub = measurement("head", bench_commands.head, "the loss at the head beside dense logits and others' fused kernels")
    sub.add_argument("--tokens", type=int, default=2048, help="supervised tokens (default %(default)s)")
    sub.add_argument("--rounds", type=int, help="turns of each that count (default 7)")
    result_options(sub)

    sub = measurement(
        "growth", bench_commands.growth, "how a training step grows with vocabulary, length, forget set and K"
    )
    batch_options(sub)
    sub.add_argument("--by", help="which sizes, written out or a file: {vocabulary: [8192, 16384]}")
    result_options(sub, picture=True)

    sub = measurement(
        "decode", bench_commands.decode, "a token of the logit difference beside the base's", shape="small"
    )
    result_options(sub)

    sub = measurement(
        "evaluation", bench_commands.evaluation, "an evaluation of TOFU's shape beside the usual way to write it"
    )
    sub.add_argument("--questions", type=int, default=40, help="of the forget set (default %(default)s)")
    sub.add_argument("--prompts", help="with commas: plain, chat, examples (default all)")
    sub.add_argument("--rounds", type=int, help="turns of each that count (default 3)")
    result_options(sub)

    sub = command("cache", commands.cache, "list or wipe what is kept between runs: trained models, reference tables")
    sub.add_argument("what", choices=["list", "clear"], help="clear leaves what a process is writing")
    sub.add_argument(
        "kind", nargs="?", choices=["targets", "references", "unpacked", "all"], default="all", help="default all"
    )
    sub.add_argument("--json", action="store_true")

    sub = command("methods", commands.methods, "list the objectives, what each needs and when to use it")
    sub.add_argument("--json", action="store_true")

    sub = command("doctor", commands.doctor, "check this machine: versions, device, caches, one tiny training step")
    sub.add_argument("--json", action="store_true")
    return parser


def _recipe_names() -> list[str]:
    from expunge.recipe.shipped import named

    return list(named())


def _split(words: Sequence[str], command: _Parser, parser: _Parser) -> tuple[list[str], list[tuple[str, str]]]:
    """The words that are the command's own, and the `--key value` or `--key=value` pairs that set a recipe's keys.

    They are parted first, because argparse would take the value of a key that it does not know for the recipe.
    """
    options: list[str] = []
    pairs: list[tuple[str, str]] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        name, equals, value = word.partition("=")
        takes_value = command.options.get(name)
        if not word.startswith("-") or takes_value is False:
            options.append(word)
        elif takes_value:
            options += [word] if equals else [word, *rest[:1]]
            rest = rest if equals else rest[1:]
        else:
            if not equals:
                if not rest or rest[0].startswith("--"):
                    if any(other.options.get(name) is False for other in parser.commands.values()):
                        raise UserError(f"{word} is no option of {command.prog}; see {command.prog} --help.")
                    if near := did_you_mean(word, command.options):
                        raise UserError(f"{word} is no option of {command.prog}.{near}")
                    raise UserError(f"{word} needs a value: {word} VALUE.")
                value = rest.pop(0)
            pairs.append((name.lstrip("-").replace("-", "_"), value))
    return options, pairs


@contextmanager
def _together() -> Iterator[None]:
    """Carry out a command along with the other processes that a launcher started, if it did; the first one speaks."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    if os.environ.get("RANK", "0") != "0":
        os.environ["TQDM_DISABLE"] = "1"
        logging.getLogger("expunge").setLevel(logging.ERROR)
    from expunge.system import ranks

    ranks.join()
    with open(os.devnull, "w") as nowhere, nullcontext() if ranks.first() else redirect_stdout(nowhere):
        yield
    ranks.leave()


if __name__ == "__main__":
    sys.exit(main())
