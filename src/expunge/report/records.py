"""Records of an evaluation → rows by their question's index, and what each says of an answer."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from expunge.errors import UserError
from expunge.report.comparison import Entry, ReportSection, ResultRow
from expunge.report.redaction import redacted

Records = Mapping[int, ResultRow]
Reader = Callable[[Entry, str], Records]
"""A function of a model and a question set that gives the records of that set; empty where there are no records."""

SCORES = ("rouge_l_recall", "rouge_l_f1", "rwku_rouge_l_recall", "states", "token_f1", "exact_match", "hit")
"""Keys that say how much of the right answer a generated one holds, from 0 to 1; a record has one or none."""


def read(path: Path, *, redact: bool = False) -> dict[int, ResultRow]:
    """The records of a file by their question's index; none when the file is absent.

    Raises `UserError` for a line that is no record.
    """
    if not path.is_file():
        return {}
    records: dict[int, ResultRow] = {}
    with path.open("rb") as lines:
        for k, line in enumerate(lines, start=1):
            try:
                row = json.loads(line)
                records[int(row["index"])] = redacted(row) if redact else row
            except (ValueError, TypeError, KeyError, RecursionError):
                raise UserError(
                    f"{path}, line {k}: not a record with an 'index'; evaluate again, or remove it."
                ) from None
    return records


def of_entry(entry: Entry, name: str, *, redact: bool = False) -> dict[int, ResultRow]:
    """The records of one question set, of the entry's first run."""
    return read(_file(entry, name), redact=redact)


def _file(entry: Entry, name: str) -> Path:
    return entry.directory / "records" / f"{entry.method}.{name}.jsonl"


def reader_of(sections: Sequence[ReportSection], *, redact: bool = False) -> Reader:
    """A reader that knows what it has read. Records carry no split: a directory of several splits has none to read."""
    several = [d for d in {d for s in sections for d in s.directories} if sum(d in s.directories for s in sections) > 1]
    known: dict[Path, Records] = {}

    def reader(entry: Entry, name: str) -> Records:
        path = _file(entry, name)
        if path not in known:
            known[path] = {} if entry.directory in several else read(path, redact=redact)
        return known[path]

    return reader


def nothing(_entry: Entry, _name: str) -> Records:
    """The reader of who has no records."""
    return {}


def score(record: ResultRow) -> float | None:
    """The share of the right answer that the generated answer holds, in [0, 1]; None without a generated answer."""
    return next((float(v) for key in SCORES if isinstance(v := record.get(key), int | float)), None)
