"""The one exception that is part of the product.

Knows nothing of commands or models. `cli.py` prints its sentence and leaves with exit code 2;
in Python it is an ordinary `ValueError`.
"""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """An input that a person can mend: the message says what is wrong, where, and what to do."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`" Did you mean 'x'?"` when something in `known` is close to `name`, else an empty string."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""
