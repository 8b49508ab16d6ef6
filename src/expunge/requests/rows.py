"""The rows of a request: those about the person, and others to keep, in the request's folder."""

import random
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from expunge.data.benchmark import Row
from expunge.data.files import SourceRecord, lines_of, read_records
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
        rows, left = rows_at(place / FORGET), records
    else:
        found = find(read_people(place / WHO), records, least=least)
        rows = _of_one_form([records[k] for k in rows_taken(found)])
        listed = {each.row for each in found}
        left = [record for k, record in enumerate(records) if k not in listed]
    readable = _readable(left, but=[*gone, *rows])
    kept = [row for row in readable if not rows or row.keys() == rows[0].keys()]
    most = max(LEAST_KEPT, KEPT * len(rows))
    write_whole(place / RETAIN, lines_of(random.Random(seed).sample(kept, min(most, len(kept))), default=str))
    write_whole(place / FORGET, lines_of(rows, default=str))
    return rows


def rest_of(data: Sequence[str], *, gone: Sequence[Row]) -> list[Row]:
    """All rows of the data but those that are gone; a row that is there twice stays twice."""
    return _readable(search_in(data), but=gone)


def _of_one_form(records: Sequence[SourceRecord]) -> list[Row]:
    try:
        return rows_of_records(records)
    except UserError as error:
        raise UserError(
            f"the rows about the person can't be unlearned together ({str(error).rstrip('.')}); write them in one form "
            "and add them with --forget."
        ) from None


def _readable(records: Sequence[SourceRecord], *, but: Sequence[Row]) -> list[Row]:
    """The records that are rows, which a note beside the data is not, without the rows in `but`."""
    never = set(map(digest, but))
    rows: list[Row] = []
    for record in records:
        with suppress(UserError):
            rows += rows_of_records([record])
    return [row for row in rows if digest(row) not in never]


def others_at(place: Path) -> list[Row]:
    """The rows to keep."""
    return rows_at(place / RETAIN) if (place / RETAIN).exists() else []


def rows_at(path: Path) -> list[Row]:
    """The rows in a file, which may have none."""
    return rows_of_records(read_records(str(path))) if path.stat().st_size else []
