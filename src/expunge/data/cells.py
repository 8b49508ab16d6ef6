"""One cell of a record, checked: text, messages, lists of objects; and the type of a cell in a person's words."""

import json
from typing import Any

from expunge.data.files import KeyTwice, distinct
from expunge.errors import UserError

DEEPEST = 64
"""Levels of lists and objects in a cell: what renders and compares cells later on goes through them by recursion."""

LONGEST_WORD = 1_000_000
"""Most characters of one word. A tokenizer takes a second or more for a longer one."""


def text_of(value: Any, name: str, where: str, *, may_be_empty: bool = False) -> str:
    """A cell that must be text; `where` and `name` open the message of the `UserError`."""
    if not isinstance(value, str):
        raise UserError(f"{where}: {name} is {kind_of(value)} instead of text; write it as a string.")
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


def messages_in(value: Any, name: str, where: str, *, ends_with_assistant: bool = False) -> list[dict[str, Any]]:
    value = of_json(value, where, name)
    if isinstance(value, str):
        raise UserError(
            f"{where}: {name} is text instead of a list of messages; write the list as JSON, like "
            '[{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}].'
        )
    if not isinstance(value, list) or not value:
        raise UserError(f"{where}: {name} is {kind_of(value)} instead of a list of messages.")
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
        message["tool_calls"] = objects_in(value["tool_calls"], f"{name}.tool_calls", where)
    return message


def _one_part(content: Any, name: str, where: str) -> Any:
    """The text of a list of parts, of which there must be one: templates differ in how they join several."""
    if not isinstance(content, list):
        return content
    match content:
        case [{"type": "text", "text": text}]:
            return text
    kinds = [part.get("type") if isinstance(part, dict) else kind_of(part) for part in content]
    listed = ", ".join(map(repr, kinds[:4])) + (", …" if len(kinds) > 4 else "")
    raise UserError(f"{where}: {name} is a list of {len(content)} parts ({listed}); write it as one text.")


def objects_in(value: Any, name: str, where: str) -> list[dict[str, Any]]:
    value = _nested(of_json(value, where, name), name, where)
    if not isinstance(value, list):
        raise UserError(f"{where}: {name} is {kind_of(value)} instead of a list of objects; write one, or drop {name}.")
    if other := next((kind_of(cell) for cell in value if not isinstance(cell, dict)), None):
        raise UserError(f"{where}: {name} is a list with {other} instead of objects; write objects, or drop {name}.")
    return value


def of_json(value: Any, where: str, name: str) -> Any:
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
        raise UserError(f"{where}: {name} holds {kind_of(cell)}, which a template can't write; use text or numbers.")

    return plain(value, 0)


def kind_of(value: Any) -> str:
    """The type of a cell in a person's words."""
    if value is None:
        return "missing (null)"
    if isinstance(value, (list, dict)) and not value:
        return "empty"
    names = {bool: "true or false", int: "a number", float: "a number", str: "text", list: "a list", dict: "an object"}
    return names.get(type(value), type(value).__name__)
