"""The rows of a request: those about the person, and others to keep, in the request's folder."""

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from expunge.data.benchmark import Row
from expunge.data.files import SourceRecord, read_records
from expunge.data.formats import rows_of_records
from expunge.errors import UserError
from expunge.requests.find import find, rows_taken
from expunge.requests.people import read_people
from expunge.requests.sources import search_in
from expunge.system.digest import digest
from expunge.system.disk import write_whole

WHO, FORGET, RETAIN = "who.yaml", "forget.jsonl", "retain.jsonl"
KEPT = 10
"""Rows to keep for each row to forget, at most; and at least `LEAST_KEPT` where there are so many."""
LEAST_KEPT = 1_000


def rows_of(place: Path, data: Sequence[str], *, gone: Sequence[Row], least: float, seed: int) -> list[Row]:
    """The rows about the person whose request lies in `place`, found once in `data`; with them rows to keep.

    gone: rows of other requests, which must not be kept: training on them would bring them back.

    Raises `UserError` where they are to be looked for and nobody says where, and for rows of several forms.
    """
    if (place / FORGET).exists() and ((place / RETAIN).exists() or not data):
        return rows_at(place / FORGET)
    if not data:
        raise UserError("request run: say where the rows about the person are to be looked for: --in DATA.")
    records = search_in(data)
    if (place / FORGET).exists():
        rows = rows_at(place / FORGET)
        taken = set(map(digest, rows))
        left = [record for record in records if digest(_row(record)) not in taken]
    else:
        found = find(read_people(place / WHO), records, least=least)
        rows = _of_one_form([records[k] for k in rows_taken(found)])
        listed = {each.row for each in found}
        left = [record for k, record in enumerate(records) if k not in listed]
    never = set(map(digest, gone))
    readable = [row for record in left if (row := _row(record)) is not None and digest(row) not in never]
    kept = [row for row in readable if not rows or row.keys() == rows[0].keys()]
    most = max(LEAST_KEPT, KEPT * len(rows))
    write_whole(place / RETAIN, lines_of(random.Random(seed).sample(kept, min(most, len(kept)))))
    write_whole(place / FORGET, lines_of(rows))
    return rows


def rest_of(data: Sequence[str], *, gone: Sequence[Row]) -> list[Row]:
    """All rows of the data but those that are gone; a row that is there twice stays twice."""
    never = set(map(digest, gone))
    rows = (_row(record) for record in search_in(data))
    return [row for row in rows if row is not None and digest(row) not in never]


def _of_one_form(records: Sequence[SourceRecord]) -> list[Row]:
    try:
        return rows_of_records(records)
    except UserError as error:
        raise UserError(
            f"the rows about the person can't be unlearned together ({str(error).rstrip('.')}); write them in one form "
            "and add them with --forget."
        ) from None


def _row(record: SourceRecord) -> Row | None:
    """A record as a row; `None` for what is none, such as a note beside the data."""
    try:
        return rows_of_records([record])[0]
    except UserError:
        return None


def others_at(place: Path) -> list[Row]:
    """The rows to keep."""
    return rows_at(place / RETAIN) if (place / RETAIN).exists() else []


def rows_at(path: Path) -> list[Row]:
    """The rows in a file, which may have none."""
    return rows_of_records(read_records(str(path))) if path.stat().st_size else []


def lines_of(rows: Sequence[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)
