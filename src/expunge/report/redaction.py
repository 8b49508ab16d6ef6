"""Records without what people wrote and models said: row numbers and numbers stay."""

from collections.abc import Mapping
from typing import Any

MARK = "redacted"
"""The key of a redacted record that lists what was left out."""

KEPT = ("kind",)
"""Texts that name a group of questions, not what one of them says."""

NOTE = (
    "Redacted: questions, answers, passages and generated texts are left out of this page and, in a run that was "
    "started with --redact, of its records. Row numbers and numbers stay."
)


def redacted(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record without its texts, and with a list of their names."""
    if MARK in record:
        return dict(record)
    texts = [name for name, value in record.items() if name not in KEPT and _holds_text(value)]
    return {name: value for name, value in record.items() if name not in texts} | {MARK: texts}


def _holds_text(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(_holds_text(part) for part in (*value.keys(), *value.values()))
    return isinstance(value, str) or (isinstance(value, list | tuple) and any(map(_holds_text, value)))
