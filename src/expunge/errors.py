"""The one exception that is part of the product.

Knows nothing of commands or models. `cli.py` prints its sentence and leaves with exit code 2;
in Python it is an ordinary `ValueError`.
"""

import difflib
from collections.abc import Iterable

from expunge.secrets import masked_text


class UserError(ValueError):
    """An input that a person can mend: the message says what is wrong, where, and what to do, and holds no secret."""

    def __init__(self, message: str) -> None:
        super().__init__(masked_text(message))


class MachineError(UserError):
    """An obstacle of this machine, such as a full disk or a folder in use; the same input runs once it is gone."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`" Did you mean 'x'?"` when something in `known` is close to `name`, else an empty string."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""
