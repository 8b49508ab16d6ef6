"""Everyday questions and requests that a chat model answers itself: rows to keep where a person has none.

None of them is among the general questions that a model is measured with (`benchmarks/general.jsonl`).
"""

from pathlib import Path

FILE = Path(__file__).with_suffix(".txt")


def questions() -> list[str]:
    """The questions, one a line of the file, in its order."""
    return FILE.read_text(encoding="utf-8").splitlines()
