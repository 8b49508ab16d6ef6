"""Comparisons → the page: what stands in which table, what is marked best or collapsed."""

import re
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from expunge.evals.glossary import SIDE_TABLES, metric_named, number, show
from expunge.report import drawing, origin
from expunge.report.answers import answers
from expunge.report.attack_pictures import attack_pictures
from expunge.report.box import boxed
from expunge.report.comparison import Entry, ReportSection, ResultRow, cost, removal, sections, slug, versions_used
from expunge.report.figures import figures, overview
from expunge.report.overview import Overview, overviews
from expunge.report.picture import Figure
from expunge.report.records import reader_of
from expunge.report.redaction import NOTE
from expunge.report.stress import TITLE, attack_table
from expunge.report.table import Cell, Column, Line, Part, Table, Tag, left, metrics, right
from expunge.report.templates import template
from expunge.report.verdict import verdict
from expunge.report.wording import ranking_words, spaced
from expunge.secrets import masked_yaml
from expunge.system.disk import make_folder, write_whole, writing

LEGEND = (
    "↑ more is better; ↓ less is better, down to the retrained model’s value; ≈ the nearer to the retrained model the "
    "better.",
    "Collapsed: keeps less than half.",
)
MEDIANS = "Medians over seeds, smallest and largest value below."


def write_report(
    directories: Sequence[Path],
    out: Path,
    *,
    first: Sequence[Figure] = (),
    redact: bool = False,
    settings: Callable[[Path], str | None] = lambda _recipe: None,
) -> Path:
    """Write the page to `out` and its pictures to `pictures/` beside it; returns `out`.

    `first` are pictures that stand above all others; `redact` leaves out what records say in words; `settings` reads a
    recipe with its defaults (`recipe.parsing.complete`), since imports go downwards. The page needs nothing but
    itself (no script library, no address on the network) and is the same, byte for byte, for the same
    directories. `UserError` for a directory without proper results or with a broken record.
    """
    out, each = Path(out), sections(directories)
    splits = {d: [s.name for s in each if d in s.directories] for s in each for d in s.directories}
    reader = reader_of(each, redact=redact)
    parts, above, drawn = [], [], {f"{figure.name}.svg": figure.svg for figure in first}
    for several in overviews(each):
        name, figure = slug(several.title), overview(several)
        drawn[f"{name}.svg"] = figure.svg
        inline, table = _inline(figure, name), _overview_table(several)
        above.append({"id": name, "overview": several, "table": table, "figure": figure, "svg": inline})
    for section in each:
        name, pictures, attacks = slug(section.name), figures(section), attack_pictures(section)
        drawn |= {f"{name}-{figure.name}.svg": figure.svg for figure in (*pictures, *attacks)}
        parts.append(
            {
                "id": name,
                "section": section,
                "box": (box := boxed(section, reader)),
                "worse": box and box.worse(),
                "verdict": _bold(verdict(section), [e.label for e in section.methods]),
                "table": _table(section),
                "figures": [(f, _inline(f, name)) for f in pictures],
                "attacks": attack_table(section),
                "attacked": [(f, _inline(f, name)) for f in attacks],
                # Records carry no split, so those of a directory with several splits belong under none of them.
                "answers": answers(
                    [e for e in section.entries if len(splits[e.directory]) == 1], section.ranked(), redact=redact
                ),
                "sides": _side_tables(section),
                "runs": _runs(section),
                "versions": versions_used(run for e in section.entries for run in e.runs),
            }
        )
    mixed = {(e.label, e.directory): e for s in each for e in s.entries if len(splits[e.directory]) > 1}
    page = template(Path(__file__).with_name("page.html.j2")).render(
        title=" and ".join(dict.fromkeys(s.name for s in each)) if len(each) < 3 else each[0].name.split(" · ")[0],
        parts=parts,
        first=[(figure, _inline(figure, "first")) for figure in first],
        overviews=above,
        mixed=(together := answers(list(mixed.values()), redact=redact)),
        redacted=NOTE if any(a and a["redacted"] for a in (together, *(p["answers"] for p in parts))) else "",
        recipes=[
            (d.name, masked_yaml(p.read_text(encoding="utf-8")), settings(p))
            for d in splits
            if (p := d / "recipe.yaml").is_file()
        ],
        days=origin.days(each),
        again=[origin.command(d) for d in splits if (d / "recipe.yaml").is_file()],
        sums=origin.sums(each, list(splits)),
        glossary=_glossary(each),
        attack_title=TITLE,
    )
    with writing(out.parent):
        make_folder(out.parent / "pictures")
    for name, svg in drawn.items():
        write_whole(out.parent / "pictures" / name, svg)
    write_whole(out, page)
    return out


def _table(section: ReportSection) -> Table:
    """The main table: a line per model, medians and spreads where there are several seeds."""
    titles = {"Forget set": "forget", "What should stay": "retain", "In all": "both"}
    groups = {words: section.metrics(group) for words, group in titles.items()}
    if not any(groups.values()):
        groups = {"Metrics": section.metrics()}
    columns = left("Model")
    for words, names in groups.items():
        columns += [replace(c, head=_short(c.head)) for c in metrics(*names, group=words, kind="value")]
    columns += right("removal", "time", "peak MiB", group="Removal and cost")
    best = next((e for e in section.keepers() if not e.inference), None)
    methods = [e.label for e in section.methods]
    rows = []
    for entry in section.entries:
        collapsed = entry.role == "method" and section.collapsed(entry)
        tag = "collapsed" if collapsed else "best" if entry is best and len(methods) > 1 else ""
        typical = entry.runs[0] | {key: _median(entry.runs, key) for key in ("seconds", "peak_memory_mib")}
        values = [_over_seeds(name, entry) for names in groups.values() for name in names]
        rows.append(_row(entry, methods, [*values, removal(typical), *cost(typical)], tag))
    ranking = [spaced(ranking_words(section))] if len(methods) > 1 else []
    notes = [LEGEND[0], *([MEDIANS] if len(section.seeds) > 1 else []), *ranking, LEGEND[1]]
    return Table(columns, rows, "Results table", [" ".join(notes), *section.stopped])


def _row(entry: Entry, methods: Sequence[str], cells: Sequence[Cell], tag: Tag = "") -> Line:
    mark = drawing.swatch(entry.label, entry.role, entry.inference, methods)
    return Line([entry.label, *cells], mark, entry.role != "method", tag)


def _short(label: str) -> str:
    """A metric's name below the name of its set, in one piece."""
    return re.sub("^(forget|retain) ", "", label).replace("-", "\u2011")


def _over_seeds(name: str, entry: Entry) -> Cell:
    """The median and, where seeds differ, the smallest and the largest value."""
    values, median = entry.values(name), show(name, entry.value(name))
    ends = dict.fromkeys(show(name, v) for v in (min(values), max(values))) if values else {}
    return (median, Part("–".join(ends), "spread")) if len(ends) > 1 else median


def _overview_table(over_splits: Overview) -> Table:
    """A line per model, a column per split and one for their mean, headed by groups where the splits have such."""
    methods = [e.label for e in over_splits.entries if e.role == "method"]
    columns = [Column(head=name, group=group or "Split", kind="value") for group, name in over_splits.heads]
    rows = []
    for entry in over_splits.entries:
        cells = [over_splits.cell(split, entry.label) for split in (*over_splits.splits, over_splits.mean)]
        rows.append(
            _row(entry, methods, [(" / ".join(c[:2]), *(Part(text, "spread") for text in c[2:])) for c in cells])
        )
    return Table([*left("Model"), *columns, *right("mean", kind="value")], rows, "Results of every split")


def _side_tables(section: ReportSection) -> Iterator[Table]:
    """A table for each group of metrics that has one of its own."""
    for group, title in SIDE_TABLES.items():
        if names := section.metrics(group):
            columns = [replace(c, head=c.head.removeprefix("AA, ")) for c in metrics(*names, kind="value")]
            rows = [
                Line([e.label, *(show(n, e.value(n)) for n in names)], reference=e.role != "method")
                for e in section.entries
            ]
            yield Table([*left("Model"), *columns], rows, title)


def _runs(section: ReportSection) -> Table:
    """The full table: a line per metric, a column per model and seed."""
    runs = [(e.label, run) for e in section.entries for run in e.runs]
    several = len(section.seeds) > 1
    columns = [Column(head=label, hint=f"seed {run['seed']}" if several else "") for label, run in runs]
    rows = [[n, *(show(n, number(run["metrics"].get(n))) for _, run in runs)] for n in section.metrics()]
    return Table([*left("Metric"), *columns], rows)


def _glossary(shown: Sequence[ReportSection]) -> Table:
    """The meaning of the metrics that occur."""
    columns = [*left("Metric"), Column(head="in results.json", kind="code"), *left("Range", "Good", "What it is")]
    names = dict.fromkeys(n for section in shown for n in section.metrics())
    known = [(n, metric_named(n)) for n in names]
    return Table(columns, [[(f"{m.label} ", Part(m.hint, "hint")), n, m.range, m.good, m.what] for n, m in known])


def _inline(figure: Figure, slug: str) -> str:
    """The picture as part of a page: described, its ids unlike those of other sections, the namespaces left to HTML."""
    svg = re.sub(r' xmlns(:xlink)?="[^"]*"', "", figure.svg)
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{slug}-", svg)
    description = figure.alt.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    return svg.replace("<svg ", f'<svg role="img" aria-label="{description}" ', 1)


def _median(runs: Sequence[ResultRow], key: str) -> float | None:
    values = [v for run in runs if (v := number(run.get(key))) is not None]
    return statistics.median(values) if values else None


def _bold(text: str, labels: Sequence[str]) -> list[tuple[str, bool]]:
    """The text in pieces, each with whether it is one of the names."""
    names = "|".join(re.escape(label) for label in sorted(labels, key=len, reverse=True))
    if not names:
        return [(text, False)]
    return [(piece, k % 2 == 1) for k, piece in enumerate(re.split(rf"(?<![\w+])({names})(?![\w+])", text)) if piece]
