"""The files of `expunge find`: the rows to forget, the list to look through and its page; and the terminal's table."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from expunge.data.files import SourceRecord, lines_of
from expunge.data.formats import columns_of, normalise
from expunge.errors import UserError
from expunge.report.sheet import Answer, Part, Sheet, write_sheet
from expunge.report.table import Cell, Column, Table, left, right
from expunge.report.table import Part as Piece
from expunge.requests.find import Found, rows_taken
from expunge.requests.people import Person
from expunge.system.disk import make_folder, remove, write_whole, writing

FORGET, LIST, PAGE, OTHER = "forget.jsonl", "found.jsonl", "found.html", "forget-other.jsonl"
MOST = 500
"""Rows of a person that the page shows."""


def check_out(out: Path, *, overwrite: bool) -> None:
    """Raise `UserError` where the folder holds what an earlier search wrote."""
    if not overwrite and (out / LIST).exists():
        raise UserError(f"find: {out} already holds a search; give another --out, or --overwrite.")


def write_found(
    out: Path, people: Sequence[Person], records: Sequence[SourceRecord], found: Sequence[Found], *, least: float
) -> list[Path]:
    """Write the files of a search, for their owner alone; returns their paths.

    The rows that are taken are written as they are: those of the commonest form to `forget.jsonl`, which `--forget`
    reads, and others to a file for each form. Records in no form of rows go to `forget-other.jsonl`.
    """
    with writing(out):
        make_folder(out)
        for path in (*out.glob("forget*.jsonl"), out / LIST, out / PAGE):
            remove(path)
    placed: dict[int, tuple[str, int]] = {}
    files = _by_form(records, rows_taken(found))
    for name, rows in files.items():
        placed |= {row: (name, i) for i, row in enumerate(rows)}
        write_whole(out / name, lines_of((records[row][1] for row in rows), default=str))
    write_whole(out / LIST, lines_of(_entry(each, placed.get(each.row)) for each in found))
    page = write_sheet(_sheet(people, records, found, files, least=least), out / PAGE)
    return [*(out / name for name in files), out / LIST, page]


def summary(people: Sequence[Person], found: Sequence[Found]) -> Table:
    """A line a person: rows taken, rows to look through, and why."""
    lines: list[list[Cell]] = []
    for person in people:
        of = [each for each in found if each.person == person.name]
        why = Counter(_why(each) for each in of)
        reasons = ", ".join(f"{count} {reason}" for reason, count in why.most_common())
        taken = sum(each.taken for each in of)
        lines.append([person.name, f"{taken:,}", f"{len(of) - taken:,}", reasons or "nothing found"])
    columns = [*left("person"), *right("taken", "to look at"), *left("why", wrap="words")]
    return Table(columns, lines, records=[_entry(each, None) for each in found])


def _why(each: Found) -> str:
    """The kind of a reason, without what it is about."""
    kind = each.reason.split(maxsplit=1)[0]
    return (
        f"{kind}, unsure" if kind != "near-copy" and not each.taken else f"by {kind}" if kind != "near-copy" else kind
    )


def _by_form(records: Sequence[SourceRecord], rows: Sequence[int]) -> dict[str, list[int]]:
    """File name → the rows in it; the first of several is that of the commonest form."""
    forms: dict[tuple[str, ...], list[int]] = {}
    for row in rows:
        where, record = records[row]
        try:
            form = tuple(columns_of(normalise(record, where)))
        except UserError:
            form = ()
        forms.setdefault(form, []).append(row)
    known = sorted((form for form in forms if form), key=lambda form: -len(forms[form]))
    files = {FORGET if i == 0 else f"forget-{'-'.join(form)}.jsonl": forms[form] for i, form in enumerate(known)}
    return files | ({OTHER: forms[()]} if () in forms else {})


def _entry(each: Found, place: tuple[str, int] | None) -> dict[str, Any]:
    file, line = (None, None) if place is None else (place[0], place[1] + 1)
    return {
        "person": each.person,
        "where": each.where,
        "taken": each.taken,
        "score": round(each.score, 3),
        "reason": each.reason,
        "excerpt": "".join(each.excerpt),
        "written_to": file,
        "line": line,
    }


def _sheet(
    people: Sequence[Person],
    records: Sequence[SourceRecord],
    found: Sequence[Found],
    files: dict[str, list[int]],
    *,
    least: float,
) -> Sheet:
    taken, rows = len(rows_taken(found)), len({each.row for each in found})
    written = "; ".join(f"{name}: {_rows(len(of))}" for name, of in files.items()) or "no file"
    items = [
        Answer("Rows taken", f"{taken:,}", f"Score from {least:g}. Written to {written}.", tone="forgotten"),
        Answer("Rows to look at", f"{rows - taken:,}", "Below that score, and not written. Add those that are "
               "about the person."),
        Answer("Searched", f"{len(records):,} records", "Names and identifiers exactly, then with typing errors, then "
               "near-copies of what was found."),
    ]  # fmt: skip
    parts = []
    for person in people:
        of = [each for each in found if each.person == person.name]
        note = f"{_rows(len(of))}, the surest first" if len(of) <= MOST else f"The first {MOST} of {len(of):,} rows"
        parts.append(Part(person.name, _table(of[:MOST]), f"{note}." if of else "Nothing was found.", "qa"))
    return Sheet(
        f"Rows about {people[0].name}" if len(people) == 1 else f"Rows about {len(people)} persons",
        "expunge find: the rows about a person",
        f"{len(records):,} records searched",
        items=items,
        parts=parts,
        small_print=[
            "Score: 1 for a name or an identifier that stands there as given. A misspelt name: 1 less the share of its "
            "letters that differ. A near-copy: the share of three-word runs that it has in common with a row that was "
            "found, or with the text about the person; less where it has names or numbers of its own. A name of one "
            "word that is also a common word, a month or a day: .8 in the middle of a sentence, .6 where it may be the "
            "word.",
            "A row that says nothing of this is not found: a pronoun, a nickname that nobody gave, a picture.",
        ],
    )


def _rows(number: int) -> str:
    return f"{number:,} row{'' if number == 1 else 's'}"


def _table(found: Sequence[Found]) -> Table:
    rows: list[list[Cell]] = [
        [each.where, (Piece(f"{each.score:.2f}", "said"), Piece("taken" if each.taken else "look at", "nums")),
         each.reason, (each.excerpt[0], Piece(each.excerpt[1], "most"), each.excerpt[2])]
        for each in found
    ]  # fmt: skip
    columns = [*left("Where"), Column(head="Score", align="left"), *left("Why", "What stands there")]
    return Table(columns, rows, "Rows that were found")
