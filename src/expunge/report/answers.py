"""Records → questions and what every model answers to them: which are shown, how much of each, what is marked."""

from collections.abc import Mapping, Sequence
from typing import Any

from expunge.evals.glossary import show
from expunge.report.comparison import ROLES, Entry, ResultRow
from expunge.report.records import of_entry
from expunge.report.redaction import MARK
from expunge.report.table import Cell, Column, Part, Table, left

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
BEFORE = {"target": "before unlearning", "retrained": "never saw the forget set"}


def answers(entries: Sequence[Entry], first: Sequence[Entry] = (), *, redact: bool = False) -> dict[str, Any] | None:
    """Some questions of each set with every model's answer, of `first` the first on show; None without records."""
    blocks = []
    silent = False
    heard: list[Entry] = []
    for name, title in SETS.items():
        records = {e.label: of_entry(e, name, redact=redact) for e in entries}
        heard += [e for e in entries if records[e.label] and e not in heard]
        known: dict[int, ResultRow] = {i: row for label in reversed(records) for i, row in records[label].items()}
        # An evaluation may have scored all questions and generated answers to the first few only.
        silent = silent or any(MARK in row for row in known.values())
        indices = sorted(i for i, row in known.items() if row.get("generated") is not None) or sorted(known)
        chosen = [indices[k * len(indices) // SHOWN] for k in range(SHOWN)] if len(indices) > SHOWN else indices
        if chosen:
            note = f"{len(chosen)} of {len(known)}" + (", spread evenly" if len(chosen) < len(known) else "")
            blocks.append((title, note, {i: known[i] for i in chosen}, records))
    if not blocks:
        return None
    heard.sort(key=lambda e: ROLES.index(e.role))
    methods = [e.label for e in heard if e.role == "method"]
    return {
        "blocks": [(title, note, _table(asked, records, heard)) for title, note, asked, records in blocks],
        "methods": methods,
        "redacted": silent,
        "checked": next((methods.index(e.label) for e in first if e.label in methods), 0),
    }


def _table(
    asked: Mapping[int, ResultRow], records: Mapping[str, Mapping[int, ResultRow]], heard: Sequence[Entry]
) -> Table:
    """A line per question: what was asked, what the references say, and below each other what the methods say."""
    references = [e for e in heard if e.role != "method"]
    methods = [e.label for e in heard if e.role == "method"]
    columns = left("Question and reference answer")
    columns += [Column(head=e.label.capitalize(), hint=BEFORE[e.role], align="left") for e in references]
    columns += left("After unlearning", kind="after") if methods else []
    rows: list[list[Cell]] = []
    for index, row in asked.items():
        question = f"row {index}" if MARK in row else str(row.get("question"))
        spoken = {label: _answer(by_index.get(index)) for label, by_index in records.items()}
        after = (Part((Part(label, "who"), *spoken[label]), f"m m{k}") for k, label in enumerate(methods))
        cells = [spoken[e.label] for e in references] + ([tuple(after)] if methods else [])
        rows.append([(Part(question, "q"), Part(str(row.get("answer", "")), "ref")), *cells])
    return Table(columns, rows)


def said(record: ResultRow) -> Part:
    """A model's answer to a question, cut where it is long."""
    generated = record.get("generated")
    text = "(not generated)" if generated is None else str(generated) or "(empty)"
    text = "(left out)" if "generated" in record.get(MARK, ()) else text
    broken = bool(record.get("degenerate"))
    longest = LONGEST // 3 if broken else LONGEST
    more = ("… ", Part(f"{len(text):,} characters", "more")) if len(text) > longest else ()
    return Part((text[:longest], *more), "said broken" if broken else "said")


def _answer(record: ResultRow | None) -> tuple[Part, ...]:
    """The same with its numbers."""
    if record is None:
        return (Part("no record", "none"),)
    numbers = [("P", "probability"), ("ROUGE-L", "rouge_l_recall"), ("truth ratio", "truth_ratio")]
    numbers_ = " · ".join(f"{words} {show(key, record[key])}" for words, key in numbers if record.get(key) is not None)
    bad = (Part("degenerate", "tag bad"), " ") if record.get("degenerate") else ()
    return said(record), Part((*bad, numbers_), "nums")
