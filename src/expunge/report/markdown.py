"""Results → Markdown tables for docs/results, every number of them from `results.json`.

Knows rows and tables, and that a benchmark's overview stands beside as a picture. Knows nothing of pages or verdicts.
"""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from urllib.parse import quote

from expunge.evals.glossary import METRICS, SIDE_TABLES, main_metrics, number, show
from expunge.report.comparison import ROLES, Row, Section, cost, means, removal, role, sections, slug, versions
from expunge.report.figures import overview
from expunge.report.interval import mean_interval
from expunge.report.overview import Overview, overviews
from expunge.system.disk import make_folder, write_whole, writing

LEGEND = """\
↑ more is better; ↓ less is better, down to the retrained model's value; ≈ the nearer to the retrained model the better.
Forget quality is a p-value: from .05 on, a KS test cannot tell the model from the retrained one. `weights`: the
method changes the model's weights; `inference`: they still hold what is suppressed when the model is used.
"""


_ENTITY = re.compile(r"&(?=#?\w+;)")
_MARKS = (
    r"[\\`*|~]"  # escapes, code, emphasis, cells, strikethrough
    r"|(?<![^\W_])_|_(?![^\W_])"  # an underscore between two letters shows as it stands
    r"|\](?=[(\[:])"  # links
    r"|^[#+=-](?![\d.])"  # headings, rules and lists
)
"""What Markdown would not show as it stands."""

INTERVALS = "Means over seeds and their 95 % intervals (percentile bootstrap; of forget quality, the geometric mean)"


def markdown_table(rows: Sequence[Row]) -> str:
    """One line a row, references first, with the main metrics that occur in the rows (all metrics if none is main)."""
    found = {name for row in rows for name in row["metrics"]}
    names = main_metrics(found, "forget", "retain") or sorted(found)
    heads = [f"{METRICS[n].label} {METRICS[n].hint}" if n in METRICS else n for n in names]
    lines = [["method", "removal", "seed", *heads, "time", "peak MiB"], [":--", ":--", *["--:"] * (len(names) + 3)]]
    for row in sorted(rows, key=lambda r: ROLES.index(role(r))):
        values = [show(n, number(row["metrics"].get(n))) for n in names]
        line = [row["method"], removal(row), str(row["seed"]), *values, *cost(row)]
        # A reference that several seeds share stands there once.
        if role(row) == "method" or not any(line[:1] + line[3:] == other[:1] + other[3:] for other in lines):
            lines.append(line)
    return table_lines(lines)


def side_tables(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """(title, table) of each group of metrics that has a table of its own, where the rows hold some of them."""
    found = {name for row in rows for name in row["metrics"]}
    tables = []
    for group, title in SIDE_TABLES.items():
        if names := main_metrics(found, group):
            lines = [["method", "seed", *(f"{METRICS[n].label} {METRICS[n].hint}" for n in names)]]
            lines += [[":--", *["--:"] * (len(names) + 1)]]
            for row in sorted(rows, key=lambda r: ROLES.index(role(r))):
                values = (show(n, number(row["metrics"].get(n))) for n in names)
                lines.append([row["method"], str(row["seed"]), *values])
            tables.append((title, table_lines(lines)))
    return tables


def overview_table(found: Overview) -> str:
    """One line a model, one column a split, and the mean of all."""
    splits = [*found.splits, found.mean]
    lines = [["method", *(s.split for s in found.splits), "mean"], [":--", *["--:"] * len(splits)]]
    lines += [[e.label, *(" / ".join(found.cell(split, e.label)) for split in splits)] for e in found.entries]
    return table_lines(lines)


def interval_table(section: Section) -> str:
    """One line a model of several seeds: the mean of each main metric and its 95 % interval; empty without such."""
    names = section.metrics("forget", "retain") or section.metrics()
    lines = [["method", "seeds", *(METRICS[n].label if n in METRICS else n for n in names)]]
    lines += [[":--", *["--:"] * (len(names) + 1)]]
    for entry in section.methods:
        if len(entry.runs) > 1:
            lines.append([entry.label, str(len(entry.runs)), *(interval_cell(n, entry.values(n)) for n in names)])
    return table_lines(lines) if len(lines) > 2 else ""


def interval_cell(name: str, values: Sequence[float]) -> str:
    """A metric over seeds: its mean and 95 % interval, or the one value."""
    if len(values) < 2:
        return show(name, values[0] if values else None)
    mean, low, high = (show(name, v) for v in mean_interval(values, log=name == "forget_quality"))
    return f"{mean} [{low}, {high}]"


def version_lines(rows: Iterable[Row]) -> list[str]:
    """What the rows were made with, as a list."""
    return [f"- {escaped(name)}: {escaped(', '.join(values))}" for name, values in versions(rows)]


def table_lines(cells: Sequence[Sequence[str]]) -> str:
    """A row of heads, one of alignments, and rows of cells, all plain text, as the lines of a Markdown table."""
    heads, alignment, *rows = cells
    escaped_lines = [[escaped(cell) for cell in heads], alignment, *([escaped(cell) for cell in row] for row in rows)]
    return "".join("| " + " | ".join(line) + " |\n" for line in escaped_lines)


def escaped(text: str, *, also: str = "") -> str:
    """Plain text as Markdown that shows exactly it, within a line: no HTML, link, emphasis, code or further cell."""
    text = _ENTITY.sub("&amp;", one_line(text)).replace("<", "&lt;").replace(">", "&gt;")
    text = re.sub(f"{_MARKS}|[{re.escape(also)}]" if also else _MARKS, r"\\\g<0>", text)
    return re.sub(r"^(\d{1,9})(?=[.)](?: |$))", r"\1\\", text)  # numbered lists


def code(text: str) -> str:
    """Plain text as code within a line, as `escaped` has it."""
    text = one_line(text)
    if not text:
        return ""
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    space = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{space}{text}{space}{fence}"


def one_line(text: str) -> str:
    """The text without line breaks and control characters."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def picture_line(title: str, file: str) -> str:
    return f"![{escaped(title, also='[]')}]({quote(file)})"


def write_markdown(directories: Sequence[Path], out: Path) -> Path:
    """Write a table per split with seeds, versions and machine, and the command that repeats it; returns `out`.

    Where splits stand side by side, their table and picture come first; the picture is written beside `out`.
    """
    out = Path(out)
    with writing(out.parent):
        make_folder(out.parent)
    command = f"expunge report {' '.join(map(str, directories))} --markdown {out}"
    text = ["# Results", "", "Every number below was written by this command:", "", f"    {one_line(command)}", ""]
    found = sections(directories)
    together = overviews(found)
    for several in together:
        name = out.stem if len(together) == 1 else f"{out.stem}-{slug(several.benchmark)}"
        figure, picture = overview(several), out.with_name(f"{name}.svg")
        write_whole(picture, figure.svg)
        legend = escaped(" / ".join(several.legend))
        text += [f"## {escaped(several.title)}", "", f"Each cell: {legend}", "", overview_table(several)]
        text += [picture_line(figure.title, picture.name), "", *map(escaped, figure.reading), ""]
    for section in [*found, *means(found)]:
        rows = [run | {"method": entry.label} for entry in section.entries for run in entry.runs]
        text += [f"## {escaped(section.name)}", "", markdown_table(rows)]
        if table := interval_table(section):
            text += [f"{INTERVALS}:", "", table]
        for title, table in side_tables(rows):
            text += [f"{title}:", "", table]
        text += [f"- {escaped(line)}" for line in section.stopped]
        if section not in found and any(len(part.seeds) > 1 for part in found):
            text += ["Of each split the median over its seeds.", ""]
        seeds = ", ".join(map(str, section.seeds))
        text += [f"- {'Seed' if len(section.seeds) == 1 else 'Seeds'}: {seeds}"]
        text += [*version_lines(rows), ""]
    write_whole(out, "\n".join([*text, LEGEND]))
    return out
