"""A page of answers, tables and small print in the look of the report; what it says comes from the caller."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from expunge.report.table import Table
from expunge.report.templates import template
from expunge.system.disk import make_folder, write_whole, writing

Tone = Literal["", "forgotten", "forgotten yes", "forgotten no"]
"""How an answer stands out: not at all, large and in doubt, large and good, large and bad."""


@dataclass(frozen=True)
class Answer:
    """A question, its answer in a word or two, why, and a command."""

    question: str
    answer: str
    words: str
    command: str = ""
    tone: Tone = ""


@dataclass(frozen=True)
class Part:
    """A heading, a remark and a table of class `kind`."""

    title: str
    table: Table
    note: str = ""
    kind: Literal["qa", "words", "results"] = "words"


@dataclass(frozen=True)
class Sheet:
    """The content of a page; every word is plain text."""

    title: str
    eyebrow: str
    meta: str = ""
    about: str = ""
    items: Sequence[Answer] = ()
    parts: Sequence[Part] = ()
    small_print: Sequence[str] = ()


def write_sheet(sheet: Sheet, out: Path) -> Path:
    """Write the page for its owner alone; it needs nothing but itself. Returns `out`."""
    with writing(out.parent):
        make_folder(out.parent)
    write_whole(out, template(Path(__file__).with_name("sheet.html.j2")).render(sheet=sheet))
    return out
