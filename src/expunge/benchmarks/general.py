"""Sixty questions of general knowledge with short answers: whether a chat model still knows what nobody asked to touch.

Capitals, numbers, colours, animals, a little science and history. A right answer holds one of the listed words in its
first sentence: what a small model goes on to say may hold any.
"""

import json
from pathlib import Path

from expunge.data.benchmark import Continuations
from expunge.data.encode import question_row

QUESTIONS = Path(__file__).with_suffix(".jsonl")
TOKENS = 32


def load() -> Continuations:
    """The questions as a probe, all of which are asked whatever limit is set."""
    asked = [json.loads(line) for line in QUESTIONS.read_text(encoding="utf-8").splitlines()]
    return Continuations(
        name="general",
        rows=[question_row(each["question"], each["answers"][0]) for each in asked],
        comparison="states",
        tokens=TOKENS,
        answers=[each["answers"] for each in asked],
        stops=(". ", "\n"),
        whole=True,
    )
