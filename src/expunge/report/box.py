"""The verdict of a comparison as it stands on the page, in a terminal, in Markdown and in `results.json`.

It is about one model: the best method, which changes the weights wherever one does, or the model that was measured.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from expunge.report.advice import Advice, advise, method_meant, recipe_of
from expunge.report.answers import said
from expunge.report.comparison import Entry, ReportSection, ResultRow
from expunge.report.harm import Worse
from expunge.report.judgement import Judgement, judge
from expunge.report.records import Reader, of_entry, score
from expunge.report.redaction import MARK
from expunge.report.sheet import Answer
from expunge.report.table import Cell, Part, Table, left
from expunge.report.wording import (
    QUESTIONS,
    SETS,
    certainty_words,
    damage_words,
    forgotten_words,
    percent,
    ranking_words,
    removal_words,
    returns_cell,
    returns_words,
    spaced,
)
from expunge.system.escaping import code, escaped

WEIGHTS = {"weights": "changed", "inference": "as they were", "not known": "not known"}
SHOWN = 8
"""Rows shown of those that got worse."""


@dataclass(frozen=True)
class Item:
    """A question, its answer in a word or two, why, and a command."""

    key: str
    question: str
    answer: str
    words: str
    command: str = ""


@dataclass(frozen=True)
class Box:
    """The answers about the best model of a section, how it was ranked, and one line for each other model."""

    about: str
    ranking: str
    items: tuple[Item, ...]
    judgement: Judgement
    others: Table | None = None

    def worse(self) -> Table | None:
        """The rows that got clearly worse, worst first: question, before, after."""
        rows = self.judgement.damage.rows
        if not rows:
            return None
        heads = left("Question and right answer", "Before", "After")
        note = f"{SHOWN} of {len(rows)}, the worst of each kind." if len(rows) > SHOWN else ""
        return Table(
            heads,
            [_worse(row) for row in self.judgement.damage.some(SHOWN)],
            "Answers that got worse",
            [note] if note else [],
        )

    def markdown(self) -> list[str]:
        """Lines of a list, and the other methods as a table."""
        lines = [f"{escaped(f'{self.about} {self.ranking}'.strip())}", ""]
        for item in self.items:
            command = f" {code(item.command)}" if item.command else ""
            lines.append(f"- {escaped(item.question)} {escaped(sentence(item))}{command}")
        return [*lines, "", *([self.others.markdown()] if self.others else [])]


def sentence(item: Item | Answer) -> str:
    """The answer and why, without the command."""
    return f"{item.answer}. {item.words}" if item.answer else item.words


def boxed(section: ReportSection, reader: Reader = of_entry) -> Box | None:
    """The box of a comparison; None where there is no model to speak of."""
    ranked = section.ranked() or [e for e in section.entries if e.role == "target"]
    if not ranked:
        return None
    judgements = [judge(section, entry, reader) for entry in ranked]
    first, entry = judgements[0], ranked[0]
    recipe = recipe_of(entry.directory)
    advice = advise(first, entry, recipe)
    commands = {"next": advice.command(entry.directory, method_meant(entry, recipe), folder=entry.method)}
    items = tuple(
        Item(key, QUESTIONS[key], spaced(answer), spaced(words), commands.get(key, ""))
        for key, (answer, words) in _answers(first, advice).items()
    )
    if len(ranked) > 1:
        about = f"This is about {entry.label}, the best of {len(ranked)} methods here."
        return Box(about, spaced(ranking_words(section)), items, first, _others(judgements))
    about = f"This is about {entry.label}." if first.unlearned else "This is about the model as it is."
    return Box(about, "", items, first)


def as_json(judgement: Judgement, advice: Advice) -> dict[str, Any]:
    """The answers of one model, for its row in `results.json`: a state, the numbers behind it, and the words."""
    words = {key: f"{answer}. {why}" if answer else why for key, (answer, why) in _answers(judgement, advice).items()}
    found, damage, sure = judgement.forgotten, judgement.damage, judgement.certainty
    kept = [
        {"of": k.of, "metric": k.metric, "before": k.before, "after": k.after, "asked": k.asked, "worse": len(k.rows)}
        for k in damage.kept
    ]
    states: Mapping[str, Mapping[str, Any]] = {
        "forgotten": {
            "state": found.state,
            "against": found.against,
            "why": found.why,
            "measures": [asdict(measure) for measure in found.measures],
        },
        "damage": {"state": damage.state, "kept": kept, "broken": damage.broken, "broken_before": damage.usual},
        "removal": {"state": judgement.removal},
        "returns": {"state": judgement.returns.state, "attacks": [asdict(each) for each in judgement.returns.attacks]},
        "certainty": asdict(sure),
        "next": {"keys": dict(advice.keys)},
    }
    return {key: {**answer, "words": words[key]} for key, answer in states.items()}


def row_verdict(section: ReportSection, entry: Entry, reader: Reader, recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The answers about one model of a run that is being written."""
    judgement = judge(section, entry, reader)
    return as_json(judgement, advise(judgement, entry, recipe))


def _answers(judgement: Judgement, advice: Advice) -> dict[str, tuple[str, str]]:
    """The answer to each question in a word or two, and why."""
    return {
        "forgotten": forgotten_words(judgement.forgotten),
        "damage": damage_words(judgement.damage),
        "removal": removal_words(judgement),
        "returns": returns_words(judgement),
        "certainty": certainty_words(judgement.certainty),
        "next": ("", advice.words),
    }


def _others(judgements: Sequence[Judgement]) -> Table:
    """Every method in words, best first."""
    lines = [
        [
            j.label,
            forgotten_words(j.forgotten)[0],
            damage_words(j.damage)[0],
            spaced(returns_cell(j)),
            WEIGHTS[j.removal],
        ]
        for j in judgements
    ]
    return Table(left("Method", "Forgotten?", "Damaged?", "Comes back?", "Weights"), lines, "Every method in words")


def _worse(row: Worse) -> list[Cell]:
    known = row.after
    asked = f"row {row.index}" if MARK in known else str(known.get("question"))
    kind = SETS.get(row.of, row.of.replace("_", " "))
    return [
        (Part(asked, "q"), Part(str(known.get("answer", "")), "ref"), Part(f"{kind[0].upper()}{kind[1:]}", "nums")),
        *((said(record), Part(_right(record), "nums")) for record in (row.before, row.after)),
    ]


def _right(record: ResultRow) -> str:
    """The share of right words in a generated answer, or whether it is right."""
    value = score(record) or 0.0
    if "states" in record or "hit" in record:
        return "right" if value else "wrong"
    return f"{percent('', value)} of the right words"
