"""The one exception that is part of the product.

`cli.py` prints its sentence and leaves with exit code 2; in Python it is an ordinary `ValueError`.
"""

import difflib
import re
from collections.abc import Iterable

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
    """The first line of what another library's error says, without its full stop; its kind where it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0][:most].rstrip(".") if lines else type(error).__name__


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`" Did you mean 'x'?"` when something in `known` is close to `name`, else an empty string."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""
