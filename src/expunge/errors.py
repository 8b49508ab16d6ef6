"""The one exception that is part of the product.

`cli.py` prints its sentence and leaves with exit code 2; in Python it is an ordinary `ValueError`.
"""

import difflib
import re
from collections.abc import Iterable, Mapping
from typing import Any

from expunge.secrets import masked_text


class UserError(ValueError):
    """An input that a person can mend: the message says what is wrong, where, and what to do, and holds no secret."""

    def __init__(self, message: str) -> None:
        super().__init__(masked_text(message))


class MachineError(UserError):
    """An obstacle of this machine, such as a full disk or a folder in use; the same input runs once it is gone."""


def one_sentence(message: str) -> str:
    """The message on one line, without the middle of what nobody would read to the end."""
    line = re.sub(r"\S{160,}", lambda word: f"{word[0][:80]}…{word[0][-40:]}", " ".join(message.split()))
    line = line if len(line) <= 900 else f"{line[:600]} … {line[-200:]}"
    return line if line.endswith((".", "?", "!", ")")) else f"{line}."


def first_line(error: object, most: int = 300) -> str:
    """The first line of what another library's error says, without its full stop; its kind where it says nothing.

    A line that ends in a colon has the next one with it.
    """
    lines = [line for line in map(str.strip, str(error).splitlines()) if line]
    said = " ".join(lines[:2] if lines and lines[0].endswith(":") else lines[:1])
    return said[:most].rstrip(".:") or type(error).__name__


def wrong_value(key: str, error: Mapping[str, Any]) -> str:
    """One of pydantic's errors about the value of `key` as a sentence."""
    given = error.get("input")
    match error["type"]:
        case "greater_than_equal" | "less_than_equal" | "greater_than" | "less_than":
            (limit,) = (error.get("ctx") or {}).values()
            words = {"greater_than_equal": "at least", "less_than_equal": "at most", "greater_than": "more than"}
            return f"{key} must be {words.get(error['type'], 'less than')} {limit:g}, got {given}."
        case _:
            shown = repr(given) if len(repr(given)) < 60 else repr(given)[:60] + "…"
            return f"{key}: {shown} is not valid ({error['msg'][0].lower() + error['msg'][1:]})."


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`" Did you mean 'x'?"` when something in `known` is close to `name`, else an empty string."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""
