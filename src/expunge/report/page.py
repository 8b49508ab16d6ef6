"""Comparisons and records → the page: what stands in which table, which answers are shown, what is collapsed.

Knows a run directory's `records/` and `recipe.yaml`. Knows nothing of how the page looks: that is `page.html.j2`.
"""

import json
import re
import statistics
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from expunge.errors import UserError
from expunge.evals.glossary import METRICS, SIDE_TABLES, UNKNOWN, number, show
from expunge.report import drawing
from expunge.report.comparison import ROLES, Entry, Row, Section, cost, removal, sections, slug, versions
from expunge.report.figures import figures, overview
from expunge.report.overview import Overview, overviews
from expunge.report.picture import Figure
from expunge.report.redaction import MARK, NOTE, redacted
from expunge.report.verdict import verdict
from expunge.secrets import masked_yaml
from expunge.system.disk import make_folder, write_whole, writing

SHOWN = 10
"""Questions shown of a set, spread evenly over its records."""
LONGEST = 320
"""Characters shown of an answer, and a third of it of a broken one; the records hold all of it."""
SETS = {
    "forget": "Questions to forget",
    "forget_fb": "Blanks to forget (FB)",
    "forget_qa": "Questions to forget (QA)",
    "forget_aa": "Adversarial questions to forget (AA)",
    "retain": "Questions to keep",
    "neighbor_fb": "Blanks about neighbours, to keep (FB)",
    "neighbor_qa": "Questions about neighbours, to keep (QA)",
}


def write_report(directories: Sequence[Path], out: Path, *, first: Sequence[Figure] = (), redact: bool = False) -> Path:
    """Write the page to `out` and its pictures to `pictures/` beside it; returns `out`.

    `first` are pictures that stand above all others; `redact` leaves out what records say in words. The page needs
    nothing but itself (no script library, no address on the network) and is the same, byte for byte, for the same
    directories. `UserError` for a directory without proper results or with a broken record.
    """
    import jinja2

    out, found = Path(out), sections(directories)
    splits = {d: [s.name for s in found if d in s.directories] for s in found for d in s.directories}
    parts, above, drawn = [], [], {f"{figure.name}.svg": figure.svg for figure in first}
    for several in overviews(found):
        name, figure = slug(several.title), overview(several)
        drawn[f"{name}.svg"] = figure.svg
        table = _overview_table(several)
        above.append({"id": name, "overview": several, "table": table, "figure": figure, "svg": _inline(figure, name)})
    for section in found:
        name, pictures = slug(section.name), figures(section)
        drawn |= {f"{name}-{figure.name}.svg": figure.svg for figure in pictures}
        parts.append(
            {
                "id": name,
                "section": section,
                "verdict": _bold(verdict(section), [e.label for e in section.methods]),
                "table": _table(section),
                "figures": [(f, _inline(f, name)) for f in pictures],
                # Records carry no split, so those of a directory with several splits belong under none of them.
                "answers": _answers(
                    [e for e in section.entries if len(splits[e.directory]) == 1], section.keepers(), redact=redact
                ),
                "sides": _side_tables(section),
                "runs": _runs(section),
                "versions": versions(run for e in section.entries for run in e.runs),
            }
        )
    mixed = {(e.label, e.directory): e for s in found for e in s.entries if len(splits[e.directory]) > 1}
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    page = environment.get_template("page.html.j2").render(
        title=" and ".join(dict.fromkeys(s.name for s in found)) if len(found) < 3 else found[0].name.split(" · ")[0],
        parts=parts,
        first=[(figure, _inline(figure, "first")) for figure in first],
        overviews=above,
        mixed=(together := _answers(list(mixed.values()), redact=redact)),
        redacted=NOTE if any(a and a["redacted"] for a in (together, *(p["answers"] for p in parts))) else "",
        recipes=[
            (d.name, masked_yaml(p.read_text(encoding="utf-8"))) for d in splits if (p := d / "recipe.yaml").is_file()
        ],
        glossary=[(n, METRICS.get(n, UNKNOWN)) for n in dict.fromkeys(n for s in found for n in s.metrics())],
        shown=SHOWN,
    )
    with writing(out.parent):
        make_folder(out.parent / "pictures")
    for name, svg in drawn.items():
        write_whole(out.parent / "pictures" / name, svg)
    write_whole(out, page)
    return out


def _table(section: Section) -> dict[str, Any]:
    """The main table: a line per model, medians and spreads where there are several seeds."""
    titles = {"Forget set": "forget", "What should stay": "retain", "In all": "both"}
    groups = [(words, section.metrics(group)) for words, group in titles.items()]
    groups = [g for g in groups if g[1]] or [("Metrics", section.metrics())]
    names = [n for _, group in groups for n in group]
    starts = {group[0] for _, group in groups}
    best = next(iter(section.keepers()), None)
    methods = [e.label for e in section.methods]
    rows = []
    for entry in section.entries:
        cells = []
        for name in names:
            values = entry.values(name)
            spread = "–".join(dict.fromkeys(show(name, v) for v in (min(values), max(values)))) if values else ""
            cells.append((show(name, entry.value(name)), spread if "–" in spread else "", name in starts))
        typical = entry.runs[0] | {key: _median(entry.runs, key) for key in ("seconds", "peak_memory_mib")}
        collapsed = entry.role == "method" and section.collapsed(entry)
        rows.append(
            {
                "label": entry.label,
                "role": entry.role,
                "tag": "collapsed" if collapsed else "best" if entry is best and len(methods) > 1 else "",
                "mark": drawing.swatch(entry.label, entry.role, entry.inference, methods),
                "cells": cells,
                "removal": removal(typical),
                "cost": cost(typical),
                "seeds": len(entry.runs),
            }
        )
    columns = []
    for name in names:
        metric = METRICS.get(name, UNKNOWN)
        head = re.sub("^(forget|retain) ", "", metric.label) or name
        columns.append((head.replace("-", "\u2011"), metric.hint, name in starts))
    return {"groups": [(words, len(group)) for words, group in groups], "columns": columns, "rows": rows}


def _overview_table(found: Overview) -> dict[str, Any]:
    """A line per model, a column per split and one for their mean, headed by groups where the splits have such."""
    methods = [e.label for e in found.entries if e.role == "method"]
    rows = [
        {
            "label": e.label,
            "role": e.role,
            "mark": drawing.swatch(e.label, e.role, e.inference, methods),
            "cells": [found.cell(split, e.label) for split in (*found.splits, found.mean)],
        }
        for e in found.entries
    ]
    groups = [(group, len(list(same))) for group, same in groupby(found.heads, key=lambda head: head[0])]
    firsts = [k == 0 or group != found.heads[k - 1][0] for k, (group, _) in enumerate(found.heads)]
    return {
        "groups": groups if groups[0][0] else [("Split", len(found.splits))],
        "columns": [(name, first) for (_, name), first in zip(found.heads, firsts, strict=True)],
        "rows": rows,
    }


def _side_tables(section: Section) -> list[tuple[str, list[tuple[str, str]], list[tuple[str, str, list[str]]]]]:
    """(title, heads with their hints, lines of name, role and cells) of each group with a table of its own."""
    tables = []
    for group, title in SIDE_TABLES.items():
        if names := section.metrics(group):
            heads = [(METRICS[n].label.removeprefix("AA, "), METRICS[n].hint) for n in names]
            lines = [(e.label, e.role, [show(n, e.value(n)) for n in names]) for e in section.entries]
            tables.append((title, heads, lines))
    return tables


def _runs(section: Section) -> dict[str, Any]:
    """The full table: a line per metric, a column per model and seed."""
    runs = [(e.label, run) for e in section.entries for run in e.runs]
    lines = [(n, [show(n, number(run["metrics"].get(n))) for _, run in runs]) for n in section.metrics()]
    return {"heads": [(label, run["seed"]) for label, run in runs], "lines": lines}


def _answers(entries: Sequence[Entry], first: Sequence[Entry] = (), *, redact: bool = False) -> dict[str, Any] | None:
    """Some questions of each set with every model's answer, of `first` the first on show; None without records."""
    blocks = []
    silent = False
    heard: list[Entry] = []
    for name, title in SETS.items():
        records = {e.label: _records(e.directory / "records" / f"{e.method}.{name}.jsonl", redact) for e in entries}
        heard += [e for e in entries if records[e.label] and e not in heard]
        known: dict[int, Row] = {i: row for label in reversed(records) for i, row in records[label].items()}
        # An evaluation may have scored all questions and generated answers to the first few only.
        silent = silent or any(MARK in row for row in known.values())
        indices = sorted(i for i, row in known.items() if row.get("generated") is not None) or sorted(known)
        chosen = [indices[k * len(indices) // SHOWN] for k in range(SHOWN)] if len(indices) > SHOWN else indices
        questions = []
        for index in chosen:
            told = {e.label: _answer(records[e.label].get(index)) for e in entries}
            asked = f"row {index}" if MARK in known[index] else known[index].get("question")
            questions.append((asked, known[index].get("answer", ""), told))
        if questions:
            blocks.append((title, len(known), questions))
    if not blocks:
        return None
    heard.sort(key=lambda e: ROLES.index(e.role))
    methods = [e.label for e in heard if e.role == "method"]
    return {
        "blocks": blocks,
        "references": [(e.label, e.role) for e in heard if e.role != "method"],
        "methods": methods,
        "redacted": silent,
        "checked": next((methods.index(e.label) for e in first if e.label in methods), 0),
    }


def _records(path: Path, redact: bool) -> dict[int, Row]:
    """The records by their question's index; none when the file is absent."""
    if not path.is_file():
        return {}
    found: dict[int, Row] = {}
    with path.open("rb") as lines:
        for k, line in enumerate(lines, start=1):
            try:
                row = json.loads(line)
                found[int(row["index"])] = redacted(row) if redact else row
            except (ValueError, TypeError, KeyError, RecursionError):
                raise UserError(
                    f"{path}, line {k}: not a record with an 'index'; evaluate again, or remove it."
                ) from None
    return found


def _answer(record: Row | None) -> dict[str, Any] | None:
    if record is None:
        return None
    generated = record.get("generated")
    text = "(not generated)" if generated is None else str(generated) or "(empty)"
    text = "(left out)" if "generated" in record.get(MARK, ()) else text
    broken = bool(record.get("degenerate"))
    longest = LONGEST // 3 if broken else LONGEST
    numbers = [("P", "probability"), ("ROUGE-L", "rouge_l_recall"), ("truth ratio", "truth_ratio")]
    return {
        "text": text[:longest],
        "more": f"{len(text):,} characters" if len(text) > longest else "",
        "broken": broken,
        "numbers": [f"{words} {show(key, record[key])}" for words, key in numbers if record.get(key) is not None],
    }


def _inline(figure: Figure, slug: str) -> str:
    """The picture as part of a page: described, its ids unlike those of other sections, the namespaces left to HTML."""
    svg = re.sub(r' xmlns(:xlink)?="[^"]*"', "", figure.svg)
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{slug}-", svg)
    description = figure.alt.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    return svg.replace("<svg ", f'<svg role="img" aria-label="{description}" ', 1)


def _median(runs: Sequence[Row], key: str) -> float | None:
    values = [v for run in runs if (v := number(run.get(key))) is not None]
    return statistics.median(values) if values else None


def _bold(text: str, labels: Sequence[str]) -> list[tuple[str, bool]]:
    """The text in pieces, each with whether it is one of the names."""
    names = "|".join(re.escape(label) for label in sorted(labels, key=len, reverse=True))
    if not names:
        return [(text, False)]
    return [(piece, k % 2 == 1) for k, piece in enumerate(re.split(rf"(?<![\w+])({names})(?![\w+])", text)) if piece]
