"""Which rows of a file are about whom: by a column that names the person, or by who is found in them."""

from collections.abc import Sequence
from pathlib import Path

from expunge.data.benchmark import Row
from expunge.data.files import SourceRecord, read_records
from expunge.data.formats import rows_of_records
from expunge.errors import UserError, did_you_mean
from expunge.requests.find import find
from expunge.requests.people import read_people

NOBODY = "nobody named"


def persons_in(
    source: str | Path, *, who: str | Path | None = None, column: str | None = None
) -> tuple[list[Row], dict[str, list[int]] | None]:
    """(the rows, the numbers of those about each person; `None` where nothing says who is meant).

    Rows in which nobody of `who` is found have a heading of their own. Raises `UserError` as `read_rows` does, and for
    a row without the column.
    """
    people = None if who is None else read_people(who)
    records = read_records(source)
    rows = rows_of_records(records)
    persons: dict[str, list[int]] = {}
    if people is not None:
        for each in find(people, records):
            if each.taken:
                persons.setdefault(each.person, []).append(each.row)
        named = {i for numbers in persons.values() for i in numbers}
        if nobody := [i for i in range(len(rows)) if i not in named]:
            persons[NOBODY] = nobody
        return rows, {name: sorted(numbers) for name, numbers in persons.items()}
    if column is None:
        return rows, None
    return rows, _by_column(records, column)


def _by_column(records: Sequence[SourceRecord], column: str) -> dict[str, list[int]]:
    persons: dict[str, list[int]] = {}
    for i, (where, record) in enumerate(records):
        if column not in record:
            raise UserError(f"{where} has no column {column!r}, which --person names.{did_you_mean(column, record)}")
        persons.setdefault(str(record[column]), []).append(i)
    return persons
