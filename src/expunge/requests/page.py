"""The page of the evidence: for people, with the answers first and the sums last."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from expunge.evals.glossary import METRICS, main_metrics, metric_named, show
from expunge.report.box import Box, boxed
from expunge.report.comparison import compare
from expunge.report.records import of_entry
from expunge.report.stress import TITLE, attack_table
from expunge.report.table import Cell, Line, Table, left, right
from expunge.report.templates import template
from expunge.requests.finished import Finished

SUMS = {
    "forget rows": "The rows to forget, as the run read them",
    "retain rows": "The rows to keep",
    "variants": "The forget rows in other words, and wrong answers",
    "questions": "The questions that were asked",
    "the files of model.name": "All files of the model before",
}
COLUMNS = {"before": "Before", "after": "After", "never saw the rows": "A model that never saw the rows"}
REMOVAL = {
    "weights": "The weights were changed.",
    "inference": "The weights still hold it; it is only kept from showing while the model is in use.",
}


def page(found: Finished, about: Mapping[str, Any], signer: str | None) -> str:
    """The whole page. It needs nothing but itself."""
    rows = [*found.references.values(), found.row]
    (section,) = compare([(found.run, row) for row in rows])
    box = boxed(section, lambda entry, name: of_entry(entry, name, redact=True))
    return template(Path(__file__).with_name("evidence.html.j2")).render(
        about=about,
        removal=REMOVAL.get(about["removal"] or "", "The results do not say how the method works."),
        box=box and _without_command(box),
        before_words=_before(about["model before"]),
        measured=_measured(about["metrics"]),
        attacks=attack_table(section),
        attack_title=TITLE,
        before=_sums(about["model before"].get("sha256", {}), "The model's files before"),
        data=_sums({SUMS.get(k, str(k)): v for k, v in about["data"]["sha256"].items()}, "The data"),
        settings=json.dumps(about["recipe"], indent=1, ensure_ascii=False),
        signer=signer,
    )


def _before(model: Mapping[str, Any]) -> str:
    taught = f", {model['then']}" if "then" in model else ""
    if "sha256" in model:
        return f"{len(model['sha256'])} files, whose SHA-256 sums stand below{taught}."
    return f"{model['from'][:1].upper()}{model['from'][1:]}{taught}."


def _without_command(box: Box) -> Box:
    """The answers without what to do next, which is for who has the run."""
    items = tuple(replace(item, command="") for item in box.items if item.key != "next")
    return replace(box, about="", ranking="", items=items, others=None)


def _measured(metrics: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> Table:
    """A line for each metric of the main table that the result has: before, after, and without the rows."""
    there = [name for name in COLUMNS if name in metrics]
    names = main_metrics(metrics["after"], "forget", "retain", "both") or list(metrics["after"])
    lines = []
    for name in names:
        metric = metric_named(name)
        cells: list[Cell] = [f"{metric.label} {metric.hint}"]
        cells += [_value(name, metrics[which].get(name)) for which in there]
        lines.append(Line([*cells, METRICS[name].what if name in METRICS else ""]))
    notes = [
        "↑ more is better; ↓ less is better, down to the value of a model that never saw the rows; ≈ the nearer to "
        "that one the better. In brackets: the 95 % interval over questions (percentile bootstrap). All metrics are in "
        "evidence.json."
    ]
    heads = [*left("Metric"), *right(*(COLUMNS[which] for which in there)), *left("What it is", wrap="words")]
    return Table(heads, lines, "What was measured", notes)


def _value(name: str, found: Mapping[str, Any] | None) -> str:
    if found is None:
        return "–"
    low, high = found.get("low"), found.get("high")
    return show(name, found["value"]) + (f" ({show(name, low)}–{show(name, high)})" if low is not None else "")


def _sums(sums: Mapping[str, str], title: str) -> Table | None:
    rows = [[name, total] for name, total in sums.items()]
    return Table([*left("What"), *left("SHA-256", kind="code")], rows, title) if rows else None
