"""The reference pages of the documentation site, written from the code: keys of recipes, commands, objectives, metrics.

`pages()` gives them as text; `mkdocs.yml` names this file as a hook, which adds them to the site. Nothing is written
into the checkout.
"""

import argparse
import dataclasses
import inspect
import json
import os
import re
import sys
import textwrap
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from transformers import TrainingArguments

import expunge
from expunge.cli.main import _parser
from expunge.evals.glossary import METRICS
from expunge.objectives import FORGET, RETAIN, STEPS, Objective, describe
from expunge.recipe.config import Method, Recipe
from expunge.recipe.keys import (
    default_of,
    described,
    sections,
    shown,
    title,
    training_descriptions,
    type_name,
    type_of,
)
from expunge.recipe.schema import recipe_schema
from expunge.training.arguments import NEEDS, REFUSED, UnlearnConfig

ROOT = Path(__file__).parents[1]
NO_KEY_OF_A_RECIPE = {"output_dir", "seed", "eval_strategy", "eval_every", "do_eval"}
"""Fields of `UnlearnConfig` that a run sets by itself."""


def pages() -> dict[str, str]:
    """Every generated file of the site by its path under `docs/`."""
    return {
        "index.md": f"---\nhide: [navigation]\n---\n{_from_the_top('README.md', folder='')}",
        "project/changelog.md": _from_the_top("CHANGELOG.md", folder="../"),
        "project/contributing.md": _from_the_top("CONTRIBUTING.md", folder="../"),
        "reference/recipe.md": recipe_page(),
        "reference/train.md": train_page(),
        "reference/objectives.md": objectives_page(),
        "reference/commands.md": commands_page(),
        "reference/metrics.md": metrics_page(),
        "reference/python.md": python_page(),
        "reference/recipe.schema.json": json.dumps(recipe_schema(), indent=2, ensure_ascii=False) + "\n",
    }


def on_files(files: Any, config: Any) -> Any:
    """Add the generated pages to the site (a hook of MkDocs)."""
    from mkdocs.structure.files import File

    for path, text in pages().items():
        files.append(File.generated(config, path, content=text))
    return files


def _from_the_top(name: str, *, folder: str) -> str:
    """A file of the checkout's top as a page of the site, with its links to `docs/` made relative to the page."""
    text = (ROOT / name).read_text(encoding="utf-8").replace("](docs/", f"]({folder}")
    for other in ("CHANGELOG", "CONTRIBUTING"):
        text = text.replace(f"]({other}.md)", f"]({folder}project/{other.lower()}.md)")
    return re.sub(r"\[([^\]]+)\]\((?:LICENSE|SECURITY\.md|CITATION\.cff|CODE_OF_CONDUCT\.md)\)", r"\1", text)


# Keys of recipes


def recipe_page() -> str:
    """Every key of a recipe, section by section, but for those of `train` and of the objectives."""
    lines = [
        "# Keys of a recipe",
        "",
        "A recipe is a YAML file. `expunge run recipe.yaml --model.lora.r 16` sets any key by its dotted name. An "
        "unknown key is an error that names the nearest known one.",
        "",
        "One word is short for a section with that name: `benchmark: tofu`, `model: NAME`, `method: npo+kl`, "
        "`evaluate: harness:mmlu`. `method` is short for `methods` with one entry. On the command line `--forget`, "
        "`--retain`, `--refusals` and `--split` are short for `--data.forget`, `--data.retain`, `--data.refusals` and "
        "`--benchmark.split`.",
        "",
        "The [JSON schema](recipe.schema.json) of recipes lets an editor complete keys and mark mistakes. "
        "`expunge recipes --schema > recipe.schema.json` writes it; with the YAML language server (VS Code, Neovim, "
        "Helix, Emacs) a recipe names it in its first line:",
        "",
        "```yaml",
        "# yaml-language-server: $schema=recipe.schema.json",
        "```",
        "",
    ]
    for prefix, model in sections(Recipe):
        lines += [f"## {title(prefix, model)}", "", docstring(model), "", *_table(model, prefix), ""]
        if model is Method:
            lines += ["`forget` and `retain`: [objectives](objectives.md). `train`: [training keys](train.md).", ""]
    return "\n".join(lines)


def _table(model: type[BaseModel], prefix: str, *, without: Sequence[str] = ()) -> list[str]:
    rows = [
        (f"`{prefix}.{name}`" if prefix else f"`{name}`", type_of(field), default_of(field), described(name, field))
        for name, field in model.model_fields.items()
        if name not in without
    ]
    return _markdown(("key", "type", "default", "description"), rows)


# Training keys


def train_page() -> str:
    """Every field of `UnlearnConfig`: those that may be set, and those that are refused, with the reason."""
    told = training_descriptions()
    free = [f for f in dataclasses.fields(UnlearnConfig) if f.init and f.name not in REFUSED]
    hints = typing.get_type_hints(UnlearnConfig)
    own = set(UnlearnConfig.__annotations__)
    added = own - {f.name for f in dataclasses.fields(TrainingArguments)}

    def rows(names: Sequence[str]) -> list[tuple[str, ...]]:
        by_name = {f.name: f for f in free}
        return [
            (f"`{n}`" + ("" if n not in NO_KEY_OF_A_RECIPE else " (Python)"),
             type_name(hints[n]), shown(_dataclass_default(by_name[n])), _with_need(n, told.get(n, "")))
            for n in names
        ]  # fmt: skip

    ours = [f.name for f in free if f.name in added]
    changed = [f.name for f in free if f.name in own and f.name not in added]
    others = [f.name for f in free if f.name not in own]
    head = ("key", "type", "default", "description")
    return "\n".join(
        [
            "# Training keys",
            "",
            "Keys of `train` in a recipe (`--train.learning_rate 1e-5`), of `train` of one method, and fields of "
            "`expunge.UnlearnConfig`, which is a `transformers.TrainingArguments`. Fields marked *(Python)* are set by "
            "`expunge run` itself. A key that would do nothing, alone or beside the others, is an error.",
            "",
            "## Keys that unlearning adds",
            "",
            *_markdown(head, rows(ours)),
            "",
            "## Keys with other defaults than in `transformers`",
            "",
            *_markdown(head, rows(changed)),
            "",
            "## Further keys of `transformers.TrainingArguments`",
            "",
            "Descriptions are those of the installed `transformers`.",
            "",
            *_markdown(head, rows(others)),
            "",
            "## Refused",
            "",
            "Another value than the default is an error, for the reason that stands here.",
            "",
            *_markdown(("key", "why"), [(f"`{name}`", why) for name, why in sorted(REFUSED.items())]),
            "",
        ]
    )


def _dataclass_default(field: Any) -> Any:
    return field.default if field.default is not dataclasses.MISSING else None


def _with_need(name: str, text: str) -> str:
    return f"{text} Needs {NEEDS[name][1]}." if name in NEEDS else text


# Objectives


def objectives_page() -> str:
    """Every objective from its class: docstring, what it reads, its options."""
    lines = [
        "# Objectives",
        "",
        "A method is a forget objective, with or without a retain objective: `npo`, `npo+kl`; or a step on the "
        "weights: `repselect`. Options are set as "
        "`--method.forget.beta 0.5` or `method: {forget: {name: npo, beta: 0.5}, retain: kl}`; in Python they are "
        "arguments of the class. ℓ is the log-probability of an answer's token, p = exp ℓ, V the vocabulary's size, "
        "and superscript 0 the starting model. [Methods and papers](../papers.md) sets them beside each other.",
        "",
    ]
    for kind, registry in (("Forget objectives", FORGET), ("Retain objectives", RETAIN), ("Steps", STEPS)):
        lines += [f"## {kind}", ""]
        for name, cls in registry.items():
            lines += [f"### `{name}`", "", f"`expunge.objectives.{cls.__name__}`", "", docstring(cls), ""]
            told = describe(cls, kind)
            reads = ", ".join(f"`{signal}`" for signal in told["reads"]) or "nothing of the head"
            reference = "asks the starting model" if told["reference"] else "asks no reference"
            per = ("token" if cls.per == "token" else "sequence") if issubclass(cls, Objective) else ""
            mean = f" Mean over {per}s." if per else " It has no loss."
            lines += [f"Reads {reads}; {reference}.{mean} "
                      f"Removal: {told['removal']}.", "", *_table(cls, "", without=("name",)), ""]  # fmt: skip
    return "\n".join(lines)


def docstring(cls: type) -> str:
    """A class's docstring as Markdown: indented lines become blocks of their own, the source a line of its own."""
    text = inspect.cleandoc(cls.__doc__ or "")
    lines: list[str] = []
    for line in text.splitlines():
        indented = line.startswith("    ")
        if lines and lines[-1].strip() and indented != lines[-1].startswith("    "):
            lines.append("")
        lines.append(line)
    text = "\n".join(lines)
    return re.sub(r"\s*(Source: )", r"\n\n\1", re.sub(r"\s*\b(Use (?:when|to|where|for)\b)", r"\n\n\1", text))


# Commands


def commands_page() -> str:
    """The help of every command, word for word."""
    parser = _parser()
    lines = [
        "# Commands",
        "",
        "Exit codes: 0 done, 2 the input can be mended (one sentence says how), 1 a fault of expunge, with its "
        "traceback, 3 what `--fail-if` of `expunge probe` names. "
        "Commands that take recipes' keys (`--key value`) take those of [a recipe](recipe.md).",
        "",
        _help(parser),
    ]
    for name, sub in commands(parser):
        lines += ["", f"{'##' if ' ' not in name else '###'} expunge {name}", "", _help(sub)]
    return "\n".join([*lines, ""])


def commands(parser: argparse.ArgumentParser, prefix: str = "") -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Every command, and every command of a command, with its parser."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, sub in action.choices.items():
                yield f"{prefix}{name}", sub
                yield from commands(sub, f"{prefix}{name} ")


def _help(parser: argparse.ArgumentParser) -> str:
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "92"
    try:
        return f"```text\n{parser.format_help().rstrip()}\n```"
    finally:
        if before is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = before


# Metrics and Python


def metrics_page() -> str:
    """The names in `results.json`, as the report calls and reads them."""
    rows = [(f"`{key}`", m.label, m.hint, m.range, m.good, m.what) for key, m in METRICS.items()]
    return "\n".join(
        [
            "# Names in results.json",
            "",
            "↑ more is better, ↓ less is better, ≈ as the retrained model has it. Definitions and sources: "
            "[metrics](../metrics.md).",
            "",
            *_markdown(("name", "label", "", "range", "good", "what it is"), rows),
            "",
        ]
    )


def python_page() -> str:
    """The public names of `expunge`, which mkdocstrings fills in, and what an objective is made of."""
    names = [name for name in expunge.__all__ if name not in ("__version__", "objectives")]
    lines = [
        "# Python",
        "",
        "`from expunge import " + ", ".join(n for n in expunge.__all__ if n != "__version__") + "`. These names are "
        "stable; other modules may change in any release. The objectives have [a page of their own](objectives.md).",
        "",
    ]
    for name in names:
        lines += [f"::: expunge.{name}", ""]
    lines += ["## What an objective is made of", ""]
    for name in ("Objective", "Needs", "Signals", "Divergence"):
        lines += [f"::: expunge.objectives.{name}", "    options: {heading_level: 3}", ""]
    return "\n".join(lines)


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    cells = [[str(cell).replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    return [f"| {' | '.join(row)} |" for row in (head, ["--"] * len(head), *cells)]


if __name__ == "__main__":
    for path, text in pages().items():
        print(textwrap.shorten(path, 60), len(text), file=sys.stderr)
