"""Records → rows: the four column formats, checked.

    text                    documents
    prompt, completion      two strings, or two lists of messages
    messages                a conversation whose last message is the assistant's
    question, answer        rendered with the chat template, or plainly

A message keeps every key that holds something, and a row that is rendered with a chat template its `tools` and
`documents`: whether the template reads them is decided when the row is encoded.
"""

import json
from pathlib import Path
from typing import Any

from expunge.data.benchmark import Row
from expunge.data.conversation import RENDERED
from expunge.data.files import KeyTwice, distinct, read_records
from expunge.errors import UserError, did_you_mean

FORMATS: tuple[tuple[str, ...], ...] = (("question", "answer"), ("prompt", "completion"), ("messages",), ("text",))
"""The columns of each format; a row has those of one alone."""

FORMATS_IN_WORDS = "question and answer, prompt and completion, messages, or text"

DEEPEST = 64
"""Levels of lists and objects in a cell: what renders and compares cells later on goes through them by recursion."""


LONGEST_WORD = 1_000_000
"""Most characters of one word. A tokenizer takes a second or more for a longer one."""


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
    records = read_records(source, split=split)
    rows: list[Row] = [PlacedRow(normalise(record, where), where) for where, record in records]
    for (where, _), row in zip(records, rows, strict=True):
        if columns_of(row) != columns_of(rows[0]):
            raise UserError(
                f"{where} has the columns {' and '.join(columns_of(row))} but the first row has "
                f"{' and '.join(columns_of(rows[0]))}; give every row of a file the same columns."
            )
    return rows


def columns_of(row: Row) -> list[str]:
    """The columns of the row's format, without those that its template renders beside them."""
    return [name for name in row if name not in RENDERED]


def normalise(record: Any, where: str) -> Row:
    """Keep the columns of the one of `FORMATS` that `record` has all of, checked; drop the others.

    Messages keep every key that holds something. A cell with messages, `tools` or `documents` that is a string is read
    as JSON (CSV has no lists). `where` opens the message of the `UserError` for a missing column, for the columns of
    two formats, and for a cell of the wrong type.
    """
    if not isinstance(record, dict):
        raise UserError(f"{where} is {_kind(record)} instead of an object with columns; rows need {FORMATS_IN_WORDS}.")
    filled = [columns for columns in FORMATS if all(_is_filled(record, name) for name in columns)]
    if len(filled) > 1:
        first, second = (" and ".join(columns) for columns in filled[:2])
        raise UserError(f"{where} has {first}, and {second} too, which are two rows' columns; drop one of the two.")
    columns = next((c for c in (*filled, *FORMATS) if all(name in record for name in c)), None)
    if columns is None:
        raise _no_format(record, where)
    rendered = {name: _objects(record[name], name, where) for name in RENDERED if record.get(name)}
    if columns == ("messages",):
        return {"messages": _messages(record["messages"], "messages", where, ends_with_assistant=True), **rendered}
    if columns == ("prompt", "completion") and isinstance(record["prompt"], list):
        prompt = _messages(record["prompt"], "prompt", where)
        completion = _messages(record["completion"], "completion", where, ends_with_assistant=True)
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
    half = next((c for c in FORMATS if any(name in record for name in c)), None)
    missing = next((name for name in half if name not in record), None) if half else None
    problem = f"the column {missing!r} is missing" if missing else "no known column"
    listed = ", ".join(repr(name[:30]) for name in columns[:8]) or "none"
    hint = did_you_mean(missing, columns) if missing else ""
    return UserError(f"{where}: {problem} (found: {listed}); rows need {FORMATS_IN_WORDS}.{hint}")


def text_of(value: Any, name: str, where: str, *, may_be_empty: bool = False) -> str:
    """A cell that must be text; `where` and `name` open the message of the `UserError`."""
    if not isinstance(value, str):
        raise UserError(f"{where}: {name} is {_kind(value)} instead of text; write it as a string.")
    if not value.strip() and not may_be_empty:
        raise UserError(f"{where}: {name} is empty; fill it in or drop the row.")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{where}: {name} holds half a surrogate pair at character {error.start}, which no tokenizer can read; "
            "repair or drop the row."
        ) from None
    if len(value) > LONGEST_WORD and (longest := max(map(len, value.split()))) > LONGEST_WORD:
        raise UserError(
            f"{where}: {name} holds {longest:,} characters without a space or a line break, over {LONGEST_WORD:,}, "
            "which a tokenizer takes too long for; break them up or drop the row."
        )
    return value


def _messages(value: Any, name: str, where: str, *, ends_with_assistant: bool = False) -> list[dict[str, Any]]:
    value = _of_json(value, where, name)
    if isinstance(value, str):
        raise UserError(
            f"{where}: {name} is text instead of a list of messages; write the list as JSON, like "
            '[{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}].'
        )
    if not isinstance(value, list) or not value:
        raise UserError(f"{where}: {name} is {_kind(value)} instead of a list of messages.")
    last = len(value) - 1
    messages = [_message(m, f"{name}[{i}]", where, is_last=i == last) for i, m in enumerate(value)]
    if ends_with_assistant and messages[-1]["role"] != "assistant":
        raise UserError(
            f"{where}: the last message of {name} has the role {messages[-1]['role']!r}; "
            "end with the assistant's, which is the part that is supervised."
        )
    return messages


def _message(value: Any, name: str, where: str, *, is_last: bool) -> dict[str, Any]:
    """A message with its content first and only such keys as hold something; without content where it calls tools."""
    calls = isinstance(value, dict) and bool(value.get("tool_calls"))
    if not isinstance(value, dict) or "role" not in value or not ("content" in value or calls):
        raise UserError(f"{where}: {name} is not an object with role and content; write it as one.")
    message: dict[str, Any] = {"role": text_of(value["role"], f"{name}.role", where)}
    content = value.get("content")
    if content is not None or not calls:
        content = _one_part(content, f"{name}.content", where)
        message["content"] = text_of(content, f"{name}.content", where, may_be_empty=not is_last or calls)
    for key, cell in value.items():
        if key not in ("role", "content") and cell is not None:
            message[str(key)] = _nested(cell, f"{name}.{key}", where)
    if calls:
        message["tool_calls"] = _objects(value["tool_calls"], f"{name}.tool_calls", where)
    return message


def _one_part(content: Any, name: str, where: str) -> Any:
    """The text of a list of parts, of which there must be one: templates differ in how they join several."""
    if not isinstance(content, list):
        return content
    match content:
        case [{"type": "text", "text": text}]:
            return text
    kinds = [part.get("type") if isinstance(part, dict) else _kind(part) for part in content]
    listed = ", ".join(map(repr, kinds[:4])) + (", …" if len(kinds) > 4 else "")
    raise UserError(f"{where}: {name} is a list of {len(content)} parts ({listed}); write it as one text.")


def _objects(value: Any, name: str, where: str) -> list[dict[str, Any]]:
    value = _nested(_of_json(value, where, name), name, where)
    if not isinstance(value, list):
        raise UserError(f"{where}: {name} is {_kind(value)} instead of a list of objects; write one, or drop {name}.")
    if other := next((_kind(cell) for cell in value if not isinstance(cell, dict)), None):
        raise UserError(f"{where}: {name} is a list with {other} instead of objects; write objects, or drop {name}.")
    return value


def _of_json(value: Any, where: str, name: str) -> Any:
    """A cell of a file without lists."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value, object_pairs_hook=distinct)
    except KeyTwice as error:
        raise UserError(f"{where}: {name} has the key {error.key!r} twice in one object; drop one.") from None
    except (ValueError, RecursionError):
        return value


def _nested(value: Any, name: str, where: str) -> Any:
    """A copy of plain data, as deep as it may be; `UserError` for what can't be written as JSON again."""

    def plain(cell: Any, depth: int) -> Any:
        if depth > DEEPEST:
            raise UserError(f"{where}: {name} is nested more than {DEEPEST} levels deep; flatten it.")
        if isinstance(cell, dict):
            # Tables know one type for every row, and fill in what others have with nulls.
            kept = {k: v for k, v in cell.items() if v is not None}
            return {text_of(k, f"a key of {name}", where): plain(v, depth + 1) for k, v in kept.items()}
        if isinstance(cell, (list, tuple)):
            return [plain(part, depth + 1) for part in cell]
        if isinstance(cell, str):
            return text_of(cell, name, where, may_be_empty=True)
        if cell is None or isinstance(cell, (bool, int, float)):
            return cell
        raise UserError(f"{where}: {name} holds {_kind(cell)}, which a template can't write; use text or numbers.")

    return plain(value, 0)


def _kind(value: Any) -> str:
    """The type of a cell in a person's words."""
    if value is None:
        return "missing (null)"
    if isinstance(value, (list, dict)) and not value:
        return "empty"
    names = {bool: "true or false", int: "a number", float: "a number", str: "text", list: "a list", dict: "an object"}
    return names.get(type(value), type(value).__name__)
