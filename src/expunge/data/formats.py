"""Records → rows: the four column formats, checked, and what other libraries write (`dialects.py`).

    text                    documents
    prompt, completion      two strings, or two lists of messages
    messages                a conversation whose last message is the assistant's
    question, answer        rendered with the chat template, or plainly

A message keeps every key that holds something, and a row that is rendered with a chat template its `tools` and
`documents`: whether the template reads them is decided when the row is encoded.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from expunge.data.benchmark import Row
from expunge.data.cells import kind_of, messages_in, objects_in, text_of
from expunge.data.conversation import RENDERED
from expunge.data.dialects import DIALECTS, PREFERRED, conversation
from expunge.data.files import SourceRecord, read_records
from expunge.errors import UserError, did_you_mean

FORMATS: tuple[tuple[str, ...], ...] = (("question", "answer"), ("prompt", "completion"), ("messages",), ("text",))
"""The columns of each format; a row has those of one alone."""

FORMATS_IN_WORDS = "question and answer, prompt and completion, messages, or text"

_ALL = (*FORMATS, *DIALECTS)


class PlacedRow(dict[str, Any]):
    """A row that knows `where` it was read, which errors say; in everything else an ordinary `Row`."""

    def __init__(self, cells: Row, where: str) -> None:
        super().__init__(cells)
        self.where = where


def keeping(row: Row, cells: Row) -> Row:
    """`cells` with the place of `row`, where that has one."""
    where = getattr(row, "where", None)
    return cells if where is None else PlacedRow(cells, where)


def read_rows(source: str | Path, *, split: str | None = None) -> list[Row]:
    """Read a file, a folder or a hub data set (see `read_records`) as rows of one format.

    Raises `UserError` if the source is missing or unreadable, has no rows, or has a row in no known format or in
    another format than the first.
    """
    return rows_of_records(read_records(source, split=split))


def rows_of_records(records: Sequence[SourceRecord]) -> list[Row]:
    """`read_rows` of what has been read already."""
    rows: list[Row] = [PlacedRow(normalise(record, where), where) for where, record in records]
    for (where, _), row in zip(records, rows, strict=True):
        if columns_of(row) != columns_of(rows[0]):
            raise UserError(
                f"{where} has the columns {' and '.join(columns_of(row))} but the first row has "
                f"{' and '.join(columns_of(rows[0]))}; give every row of a file the same columns."
            )
    return rows


def questions_alone(records: Sequence[SourceRecord]) -> list[Row] | None:
    """The rows where all of them have a question, or a prompt, and no answer; `None` where one has more or less."""
    known = {name for columns in _ALL for name in columns}
    rows: list[Row] = []
    for where, record in records:
        filled = {n for n in known if record.get(n) not in (None, "")} if isinstance(record, dict) else set()
        if filled == {"question"}:
            cells: Row = {"question": text_of(record["question"], "question", where)}
        elif filled == {"prompt"} and isinstance(record["prompt"], list):
            cells = {"prompt": messages_in(record["prompt"], "prompt", where)}
        elif filled == {"prompt"}:
            cells = {"prompt": text_of(record["prompt"], "prompt", where)}
        else:
            return None
        rows.append(PlacedRow(cells, where))
    return rows


def columns_of(row: Row) -> list[str]:
    """The columns of the row's format, without what stands beside them."""
    return [name for name in row if name not in (*RENDERED, PREFERRED)]


def normalise(record: Any, where: str) -> Row:
    """Keep the columns of the one of `FORMATS` that `record` has all of, checked; drop the others.

    A record of one of `DIALECTS` becomes a row of one of `FORMATS`, or stays token ids.

    Messages keep every key that holds something. A cell with messages, `tools` or `documents` that is a string is read
    as JSON (CSV has no lists). `where` opens the message of the `UserError` for a missing column, for the columns of
    two formats, and for a cell of the wrong type.
    """
    if not isinstance(record, dict):
        raise UserError(
            f"{where} is {kind_of(record)} instead of an object with columns; rows need {FORMATS_IN_WORDS}."
        )
    filled = [columns for columns in _ALL if all(_is_filled(record, name) for name in columns)]
    if len(filled) > 1:
        first, second = (" and ".join(columns) for columns in filled[:2])
        raise UserError(f"{where} has {first}, and {second} too, which are two rows' columns; drop one of the two.")
    columns = next((c for c in (*filled, *_ALL) if all(name in record for name in c)), None)
    if columns is None:
        raise _no_format(record, where)
    if columns in DIALECTS and columns != ("conversations",):
        return DIALECTS[columns](record, where)
    rendered = {name: objects_in(record[name], name, where) for name in RENDERED if record.get(name)}
    if columns in DIALECTS:
        return DIALECTS[columns](record, where) | rendered
    if columns == ("messages",):
        return {"messages": conversation(record["messages"], "messages", where), **rendered}
    if columns == ("prompt", "completion") and isinstance(record["prompt"], list):
        prompt = messages_in(record["prompt"], "prompt", where)
        completion = messages_in(record["completion"], "completion", where, ends_with_assistant=True)
        if len(completion) > 1:
            raise UserError(
                f"{where}: completion has {len(completion)} messages; keep the assistant's one message and move the "
                "others to the prompt, or write all of them as messages."
            )
        return {"prompt": prompt, "completion": completion, **rendered}
    cells = {name: text_of(record[name], name, where, may_be_empty=name == "prompt") for name in columns}
    return {**cells, **rendered} if columns == ("question", "answer") else cells


def _is_filled(record: dict[Any, Any], name: str) -> bool:
    """Whether a cell holds something: tables fill in with nulls, and with empty text, what only other rows have."""
    cell = record.get(name)
    return cell is not None and (cell != "" or name == "prompt")


def _no_format(record: dict[Any, Any], where: str) -> UserError:
    columns = [str(name) for name in record]
    begun = [c for c in _ALL if any(name in record for name in c)]
    # The prompt stands in several formats, so another column tells which is meant.
    half = max(begun, key=lambda c: sum(name in record for name in c if name != "prompt"), default=None)
    missing = next((name for name in half if name not in record), None) if half else None
    problem = f"the column {missing!r} is missing" if missing else "no known column"
    listed = ", ".join(repr(name[:30]) for name in columns[:8]) or "none"
    close = did_you_mean(missing, columns) if missing else ""
    hint = f" Rename {close.split()[-1].rstrip('?')} to {missing!r}." if close else ""
    return UserError(f"{where}: {problem} (found: {listed}); rows need {FORMATS_IN_WORDS}.{hint}")
