"""Output for a terminal of eighty columns: results, plans and lists as tables."""

import json
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from expunge.recipe.config import Recipe
    from expunge.report.box import Item
    from expunge.report.comparison import ReportSection
    from expunge.report.sheet import Answer
    from expunge.report.table import Frame, Table

TABLE = {
    "forget_quality": "forget\nquality\n↑",
    "forget_probability": "forget\nprob.\n↓",
    "forget_rouge_l_recall": "forget\nROUGE\n↓",
    "degeneration": "broken\ntext\n↓",
    "comes_back": "comes\nback?\n↓",
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
"""The columns that fit a terminal of 80; the report has them all. Where they do not fit, the last ones are left out."""


FEWEST = 6
"""Columns of metrics that stand in any terminal, shortened where it must be."""
FEW = 3
"""Comparisons whose answers a terminal has room for."""


def print_results(rows: list[dict[str, Any]], out: str, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(rows, indent=1, ensure_ascii=False))
        return
    from expunge.report.comparison import compare, means, sections

    groups = {(row["benchmark"], row["split"], row["seed"]) for row in rows}
    if len(groups) > 1:
        print_verdicts(sections(sorted(path.parent for path in Path(out).glob("*=*/results.json"))))
        for mean in means(compare([(Path(out), row) for row in rows])):
            _print_rows(mean.name, [entry.runs[0] for entry in mean.entries])
        console().print(f"{len(groups)} runs; tables of each, and their means: {out}/results.md and {out}/report.html")
        return
    print_verdicts(compare([(Path(out), row) for row in rows]))
    _print_rows(f"{rows[0]['benchmark']} {rows[0]['split']}", rows)
    console().print(f"results, records and report: {out}/  (open {out}/report.html)")


def print_verdicts(sections: "Sequence[ReportSection]") -> None:
    """The answers about each comparison, before any table; of more than `FEW` none, which the page has."""
    if len(sections) > FEW:
        return
    from rich.text import Text

    from expunge.report.box import boxed
    from expunge.report.records import reader_of

    reader, terminal = reader_of(sections), console()
    for section in sections:
        box = boxed(section, reader)
        if box is None:
            continue
        name = f"{section.name}. " if len(sections) > 1 else ""
        terminal.print(Text(_wrapped(f"{name}{box.about} {box.ranking}".strip(), terminal.width)))
        print_answers(box.items)


def print_answers(items: "Sequence[Answer | Item]") -> None:
    """Questions with their answers and commands, as a page has them in its box."""
    from rich.text import Text

    from expunge.report.box import sentence
    from expunge.system.escaping import visible

    terminal = console()
    for item in items:
        words = Text(_wrapped(f"{item.question} {sentence(item)}", terminal.width))
        words.stylize("bold", 0, len(item.question))
        terminal.print(words)
        if item.command:
            terminal.print(Text(f"  {visible(item.command)}"), soft_wrap=True)
    terminal.print()


def _wrapped(text: str, width: int) -> str:
    """The text in lines, broken at plain spaces alone: rich breaks between a number and its per cent as well."""
    from expunge.system.escaping import visible

    return textwrap.fill(visible(text), width, break_on_hyphens=False)


def _print_rows(title: str, rows: Sequence[dict[str, Any]]) -> None:
    shown = [key for key in TABLE if any(key in row["metrics"] for row in rows)]
    while len(shown) > FEWEST and _width(_of_rows(title, rows, shown)) > console().width:
        shown.pop()
    print_table(_of_rows(title, rows, shown))


def _width(table: "Table") -> int:
    """Columns of the terminal that a table takes where nothing of it is shortened."""
    terminal = console()
    return terminal.measure(table.rich(), options=terminal.options.update_width(1000)).maximum


def _of_rows(title: str, rows: Sequence[dict[str, Any]], shown: Sequence[str]) -> "Table":
    from expunge.evals.glossary import show
    from expunge.report.table import Table, left, right

    timed = any(row["seconds"] is not None for row in rows)
    lines = []
    for row in rows:
        seconds = row["seconds"]
        time = "" if seconds is None else f"{seconds:.{int(seconds < 100)}f}"
        values = [show(key, row["metrics"].get(key)) for key in shown]
        lines.append([row["method"], *values, *([time] if timed else [])])
    heads = [TABLE[key] for key in shown] + (["time\ns"] if timed else [])
    return Table([*left("method"), *right(*heads)], lines, title)


def print_plan(recipe: "Recipe", *, as_json: bool) -> None:
    from expunge.pipeline.plan import plan
    from expunge.recipe.parsing import combinations
    from expunge.report.table import Table, left, right

    rows = [
        row for single in ([r for _, r in combinations(recipe)] if recipe.over else [recipe]) for row in plan(single)
    ]
    several = len({(row["benchmark"], row["split"]) for row in rows}) > 1
    names = ("forget_rows", "retain_rows", "tokens", "steps", "parameters", "trainable", "memory_mib")
    heads = ("forget\nrows", "retain\nrows", "tokens", "steps", "param-\neters", "train", "MiB")
    # A person's name may be longer; the numbers matter more.
    columns = [*(left("split", most=12) if several else []), *left("method"), *right(*heads)]
    lines = [
        [*([row["split"]] if several else []), row["method"], *(_short(row[name]) for name in names)] for row in rows
    ]
    title = "nothing is run; MiB: estimate of training's peak, on a CPU beyond the process's own (parts: --json)"
    print_table(Table(columns, lines, title, records=rows), as_json=as_json)


def _short(value: float) -> str:
    """Four characters or so: 812, 19 k, 1.0 M, 8.0 G."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if value >= size:
            scaled = value / (1e3 if unit == "k" else size)
            return f"{scaled:.{0 if scaled >= 10 else 1}f} {unit}"
    return f"{value:,.0f}"


def print_table(table: "Table", *, as_json: bool = False, frame: "Frame" = "none") -> None:
    """The table as it suits a terminal, or what it was made of as JSON."""
    if as_json:
        print(table.json())
    else:
        console().print(table.rich(frame))


def console() -> Any:
    from rich.console import Console

    class Terminal(Console):
        def on_broken_pipe(self) -> None:
            raise BrokenPipeError  # as `print` does, where rich would end the process as for a fault

    return Terminal(markup=False)  # names come from users
