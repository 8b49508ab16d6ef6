"""Finished runs → the page of a reproduction: its table, its pictures, how to read both, and the table as JSON."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from expunge.errors import UserError
from expunge.evals.glossary import MISSING, UNKNOWN, metric_named, number, show
from expunge.report.comparison import Entry, ReportSection, means, removal, sections, slug
from expunge.report.figures import PICTURES, overview
from expunge.report.interval import mean_interval
from expunge.report.markdown import interval_cell, picture_line, version_lines
from expunge.report.overview import overviews
from expunge.report.pareto import pareto
from expunge.report.picture import Figure
from expunge.report.table import Column, Table, left, metrics, right
from expunge.report.verdict import verdict
from expunge.reproduce.definition import Job, Reproduction
from expunge.reproduce.jobs import folders, load_trials
from expunge.system.disk import make_folder, write_whole, writing
from expunge.system.escaping import code, escaped, one_line

SECONDS = "seconds"

FEW = 3
"""Splits up to which each has its result in words; of more the mean says enough."""

READING = {
    SECONDS: "seconds ↓: training alone, on a machine as busy as it was then; compare within a run",
    "removal": "removal: `weights`: the weights are changed; `inference`: they still hold what is suppressed in use",
    "seeds": "of several seeds the mean (forget quality: geometric) and its 95 % interval, percentile bootstrap",
}


def write(
    what: Reproduction, jobs: Sequence[Job], *, name: str, runs: Path, out: Path, command: str
) -> tuple[Path, list[str]]:
    """Write `name`.md, its pictures and `name`.json to the folder `out`; the page, and the rows that no run here has.

    Raises `UserError` where there are no results at all.
    """
    directories = [folder for job in jobs for folder in folders(job)]
    if not directories:
        raise UserError(f"{name}: no run has results yet; the same command without --no-run makes them.")
    parts = sections(directories)
    tables = [(section, *_rows(what, section)) for section in parts if what.rows]
    drawn = list(_pictures(what, jobs, parts))
    absent = list(dict.fromkeys(words for _, _, lacking in tables for words in lacking))
    text = [f"# {what.title}", "", what.about.strip(), "", "Every number below was written by this command:", ""]
    text += [f"    {one_line(command)}", ""]
    for section, rows, lacking in tables:
        text += [f"## {escaped(section.name)}", "", _table(rows, what.columns, lacking)]
        if len(tables) <= FEW:
            text += [f"By their names in `results.json`: {escaped(verdict(section))}", ""]
    for mean in means(parts) if tables else []:
        text += [f"## {escaped(mean.name)}", "", _table(_rows(what, mean)[0], what.columns)]
    text += _how_to_read(what, parts) if tables else []
    for job in jobs:
        text += _front(job)
    with writing(out):
        make_folder(out)
    for file, (part, figure) in zip(_names(name, drawn), drawn, strict=True):
        write_whole(out / file, figure.svg)
        text += [f"## {escaped(f'{figure.title} ({part})')}", "", picture_line(figure.title, file), ""]
        text += [*map(escaped, figure.reading), ""]
    text += ["## The runs behind it", "", *(f"- {code(str(folder.relative_to(runs)))}" for folder in directories), ""]
    text += version_lines(run for section in parts for entry in section.entries for run in entry.runs)
    page = out / f"{name}.md"
    write_whole(page, "\n".join(text) + "\n")
    record = {
        "name": name,
        "title": what.title,
        "command": command,
        "tables": [
            {"name": section.name, "rows": [_record(words, entry, what.columns, runs) for words, entry in rows]}
            for section, rows, _ in tables
        ],
        "pictures": [{"part": part, "title": figure.title, "words": figure.alt} for part, figure in drawn],
    }
    write_whole(out / f"{name}.json", json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    return page, absent


def _rows(what: Reproduction, section: ReportSection) -> tuple[list[tuple[str, Entry]], list[str]]:
    """The rows that were asked for, by what the table calls them; and those that the section lacks."""
    entries = {entry.method: entry for entry in reversed(section.entries)}
    there = [(words, entries[method]) for method, words in what.rows.items() if method in entries]
    return there, [words for method, words in what.rows.items() if method not in entries]


def _table(rows: Sequence[tuple[str, Entry]], columns: Sequence[str], lacking: Sequence[str] = ()) -> str:
    lines = [
        [words, removal(entry.runs[0]), *(_cell(name, _values(entry, name)) for name in columns)]
        for words, entry in rows
    ]
    heads = [Column(head=_metric(name).label, hint=_metric(name).hint) for name in columns]
    notes = [f"Not run here: {', '.join(lacking)}."] if lacking else []
    return Table([*left("method", "removal"), *heads], lines, notes=notes).markdown()


def _cell(name: str, values: Sequence[float]) -> str:
    if name != SECONDS:
        return interval_cell(name, values if len(set(values)) > 1 else values[:1])
    return "–".join(dict.fromkeys(f"{v:,.0f}" for v in (min(values), max(values)))) if values else MISSING


def _values(entry: Entry, name: str) -> list[float]:
    if name != SECONDS:
        return entry.values(name)
    return [v for run in entry.runs if (v := number(run.get("seconds"))) is not None]


def _front(job: Job) -> list[str]:
    """The trials of a sweep that no other beats in both objectives, as a table."""
    if job.space is None or not (job.out / "trials.json").exists():
        return []
    trials = load_trials(job.out / "trials.json")
    front = sorted((t for t in trials if t["front"]), key=lambda t: t["metrics"][job.objectives[1]], reverse=True)
    lines = []
    for trial in front:
        keys = ", ".join(f"{key.rpartition('.')[2]} {value}" for key, value in trial["keys"].items())
        values = [show(name, trial["metrics"][name]) for name in job.objectives]
        lines.append([str(trial["trial"]), keys, *values, "chosen" if trial["best"] else ""])
    table = Table([*right("trial"), *left("keys"), *metrics(*job.objectives), *left("")], lines)
    title = f"## Pareto front of {escaped(job.out.name)}: {len(front)} of {len(trials)} trials"
    return [title, "", table.markdown()]


def _record(words: str, entry: Entry, columns: Sequence[str], runs: Path) -> dict[str, Any]:
    """A row of the table with every run behind it."""
    summary = {}
    for name in columns:
        if values := _values(entry, name):
            summary[name] = dict(
                zip(("mean", "low", "high"), mean_interval(values, log=name == "forget_quality"), strict=True)
            )
    every = [
        {"run": str(folder.relative_to(runs)), "seed": run["seed"], "seconds": run.get("seconds")}
        | {"metrics": {name: run["metrics"].get(name) for name in columns if name != SECONDS}}
        for run, folder in zip(entry.runs, entry.directories, strict=True)
    ]
    return {"row": words, "method": entry.method, "removal": removal(entry.runs[0]), **summary, "runs": every}


def _how_to_read(what: Reproduction, parts: Sequence[ReportSection]) -> list[str]:
    """A line for each column, in the words of the report."""
    lines = ["How to read it:", ""]
    for name in what.columns:
        about = _metric(name)
        sentence = escaped(f"{about.label} {about.hint} ({about.range}; good is {about.good}): {about.what}")
        lines.append(f"- {READING.get(name, sentence)}.")
    lines.append(f"- {READING['removal']}.")
    if any(len(section.seeds) > 1 for section in parts):
        lines.append(f"- {READING['seeds']}; of seconds the lowest and the highest.")
    return [*lines, ""]


def _pictures(what: Reproduction, jobs: Sequence[Job], parts: Sequence[ReportSection]) -> Iterator[tuple[str, Figure]]:
    """(what it is of, picture), in the order asked for."""
    for name in what.pictures:
        if name == "pareto":
            swept = [job.out for job in jobs if job.space is not None and (job.out / "trials.json").exists()]
            yield from ((out.name, figure) for out in swept if (figure := pareto(out)))
        elif name == "overview":
            yield from ((several.benchmark, overview(several)) for several in overviews(parts))
        else:
            yield from ((section.name, figure) for section in parts if (figure := PICTURES[name](section)))


def _names(name: str, drawn: Sequence[tuple[str, Figure]]) -> list[str]:
    """Files of the pictures: the reproduction's own name, and what else it takes to tell several apart."""
    kinds, parts = {figure.name for _, figure in drawn}, {part for part, _ in drawn}
    tails = [[figure.name] * (len(kinds) > 1) + [slug(part)] * (len(parts) > 1) for part, figure in drawn]
    return ["-".join([name, *tail]) + ".svg" for tail in tails]


def _metric(name: str) -> Any:
    return UNKNOWN._replace(label="seconds", hint="↓") if name == SECONDS else metric_named(name)
