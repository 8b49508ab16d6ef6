"""Results → Markdown tables for docs/results, every number of them from `results.json`."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from urllib.parse import quote

from expunge.evals.glossary import SIDE_TABLES, main_metrics, metric_named, number, show
from expunge.report.box import boxed
from expunge.report.comparison import (
    ROLES,
    ReportSection,
    ResultRow,
    cost,
    means,
    removal,
    role,
    sections,
    slug,
    versions_used,
)
from expunge.report.figures import overview
from expunge.report.interval import mean_interval
from expunge.report.overview import Overview, overviews
from expunge.report.records import reader_of
from expunge.report.stress import attack_table
from expunge.report.table import Table, left, metrics, right
from expunge.system.disk import make_folder, write_whole, writing
from expunge.system.escaping import escaped, one_line

LEGEND = """\
↑ more is better; ↓ less is better, down to the retrained model's value; ≈ the nearer to the retrained model the better.
Forget quality is a p-value: from .05 on, a KS test cannot tell the model from the retrained one. `weights`: the
method changes the model's weights; `inference`: they still hold what is suppressed when the model is used.
"""


INTERVALS = "Means over seeds and their 95 % intervals (percentile bootstrap; of forget quality, the geometric mean)"


def markdown_table(rows: Sequence[ResultRow]) -> str:
    """One line a row, references first, with the main metrics that occur in the rows (all metrics if none is main)."""
    measured = {name for row in rows for name in row["metrics"]}
    names = main_metrics(measured, "forget", "retain") or sorted(measured)
    lines: list[list[str]] = []
    for row in sorted(rows, key=lambda r: ROLES.index(role(r))):
        line = [row["method"], removal(row), str(row["seed"]), *_values(row, names), *cost(row)]
        # A reference that several seeds share stands there once.
        if role(row) == "method" or not any(line[:1] + line[3:] == other[:1] + other[3:] for other in lines):
            lines.append(line)
    columns = [*left("method", "removal"), *right("seed"), *metrics(*names), *right("time", "peak MiB")]
    return Table(columns, lines).markdown()


def side_tables(rows: Sequence[ResultRow]) -> Iterator[Table]:
    """A table for each group of metrics that has one of its own, where the rows hold some of them."""
    measured = {name for row in rows for name in row["metrics"]}
    for group, title in SIDE_TABLES.items():
        if names := main_metrics(measured, group):
            ordered = sorted(rows, key=lambda r: ROLES.index(role(r)))
            lines = [[row["method"], str(row["seed"]), *_values(row, names)] for row in ordered]
            yield Table([*left("method"), *right("seed"), *metrics(*names)], lines, title)


def overview_table(over_splits: Overview) -> Table:
    """One line a model, one column a split, and the mean of all."""
    splits = [*over_splits.splits, over_splits.mean]
    lines = [
        [e.label, *(" / ".join(over_splits.cell(split, e.label)) for split in splits)] for e in over_splits.entries
    ]
    return Table([*left("method"), *right(*(s.split for s in over_splits.splits), "mean")], lines)


def interval_table(section: ReportSection) -> Table:
    """One line a model of several seeds: the mean of each main metric and its 95 % interval."""
    names = section.metrics("forget", "retain") or section.metrics()
    several = [entry for entry in section.methods if len(entry.runs) > 1]
    lines = [[e.label, str(len(e.runs)), *(interval_cell(n, e.values(n)) for n in names)] for e in several]
    return Table([*left("method"), *right("seeds", *(metric_named(n).label for n in names))], lines)


def _values(row: ResultRow, names: Sequence[str]) -> list[str]:
    return [show(name, number(row["metrics"].get(name))) for name in names]


def interval_cell(name: str, values: Sequence[float]) -> str:
    """A metric over seeds: its mean and 95 % interval, or the one value."""
    if len(values) < 2:
        return show(name, values[0] if values else None)
    mean, low, high = (show(name, v) for v in mean_interval(values, log=name == "forget_quality"))
    return f"{mean} [{low}, {high}]"


def version_lines(rows: Iterable[ResultRow]) -> list[str]:
    """Versions and settings behind the rows, as a list."""
    return [f"- {escaped(name)}: {escaped(', '.join(values))}" for name, values in versions_used(rows)]


def picture_line(title: str, file: str) -> str:
    return f"![{escaped(title, also='[]')}]({quote(file)})"


def write_markdown(directories: Sequence[Path], out: Path) -> Path:
    """Write a table per split with seeds, versions and machine, and the command that repeats it; returns `out`.

    Where a page compares splits, their table and picture come first; the picture is written beside `out`.
    """
    out = Path(out)
    with writing(out.parent):
        make_folder(out.parent)
    command = f"expunge report {' '.join(map(str, directories))} --markdown {out}"
    text = ["# Results", "", "Every number below was written by this command:", "", f"    {one_line(command)}", ""]
    parts = sections(directories)
    together = overviews(parts)
    for several in together:
        name = out.stem if len(together) == 1 else f"{out.stem}-{slug(several.benchmark)}"
        figure, picture = overview(several), out.with_name(f"{name}.svg")
        write_whole(picture, figure.svg)
        legend = escaped(" / ".join(several.legend))
        text += [f"## {escaped(several.title)}", "", f"Each cell: {legend}", "", overview_table(several).markdown()]
        text += [picture_line(figure.title, picture.name), "", *map(escaped, figure.reading), ""]
    for section in [*parts, *means(parts)]:
        rows = [run | {"method": entry.label} for entry in section.entries for run in entry.runs]
        text += [f"## {escaped(section.name)}", ""]
        if section in parts and (box := boxed(section, reader_of(parts))):
            text += box.markdown()
        text += [markdown_table(rows)]
        if (table := interval_table(section)).rows:
            text += [f"{INTERVALS}:", "", table.markdown()]
        for table in (attack_table(section), *side_tables(rows)):
            if table is not None:
                text += [f"{table.title}:", "", table.markdown()]
        text += [f"- {escaped(line)}" for line in section.stopped]
        if section not in parts and any(len(part.seeds) > 1 for part in parts):
            text += ["Of each split the median over its seeds.", ""]
        seeds = ", ".join(map(str, section.seeds))
        text += [f"- {'Seed' if len(section.seeds) == 1 else 'Seeds'}: {seeds}"]
        text += [*version_lines(rows), ""]
    write_whole(out, "\n".join([*text, LEGEND]))
    return out
