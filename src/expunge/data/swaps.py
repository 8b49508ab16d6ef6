"""Rows made of rows by rules: a question about somebody else, another fact in an answer, a question reworded.

A rule and not a model, as in `facts.py`; every row that comes out has passed a check, and those that did not are
counted.
"""

import random
from collections import Counter
from collections.abc import Mapping, Sequence

from expunge.data.augment import KINDS, Kind, parts, reworded
from expunge.data.benchmark import Row, Variant
from expunge.data.everyday import PEOPLE, PLACES
from expunge.data.facts import Fact, alternatives, facts
from expunge.data.words import words

_IN = frozenset(words("at from in near of to through visit"))
"""Words after which a name is taken for that of a place, but for `of`, where it has one word."""
_ASKS = frozenset(
    words("are can could describe did do does explain give had has have is list name please tell was were will would")
)
"""Words with a capital letter that begin a question and belong to no name."""

FRAMES = (
    "Please tell me: {}", "I have a question. {}", "Here is what I would like to know: {}", "Can you answer this? {}",
    "A short question: {}", "Answer the following question. {}",
)  # fmt: skip
"""Other ways to put a question."""


def names_in(texts: Sequence[str]) -> set[str]:
    """The words of the names in some texts, in lower case; a capital letter after a full stop makes none."""
    found: set[str] = set()
    for text in texts:
        for fact in _names(text):
            if fact.size > 1 or fact.before[-1:].isalnum():
                found.update(word for word in words(fact.text) if len(word) > 2)
    return found


def shares_a_name(text: str, names: set[str]) -> bool:
    """Whether a text has a word of `names_in`."""
    return not names.isdisjoint(words(text))


def about_others(questions: Sequence[str], names: set[str], *, most: int, seed: int) -> list[str]:
    """At most `most` of the questions asked about well-known people and places, none of them of `names`.

    A question without a name, or with one of more than three words, gives none.
    """
    draw = random.Random(seed)
    order = list(dict.fromkeys(questions))
    draw.shuffle(order)
    made: dict[str, None] = {}
    for _ in range(most):  # rounds, since a drawn name may come twice
        for question in order:
            if len(made) < most and (swapped := _asked_of_another(question, names, draw)) is not None:
                made.setdefault(swapped)
    return list(made)


def _asked_of_another(question: str, names: set[str], draw: random.Random) -> str | None:
    found = _names(question)
    text = question
    for fact in reversed(found):
        where = fact.before in _IN and not (fact.before == "of" and fact.size > 1)
        known = (PLACES if where else PEOPLE).get(fact.size, ())
        free = [name for name in known if not shares_a_name(name, names) and name not in text]
        if not free:
            return None
        text = text[: fact.begin] + draw.choice(free) + text[fact.end :]
    return text if found and not shares_a_name(text, names) else None


def _names(text: str) -> list[Fact]:
    """The names in a text, without the word that begins a question."""
    found: list[Fact] = []
    for fact in facts("", text):
        first, _, rest = fact.text.partition(" ")
        if fact.begin == 0 and first.lower() in _ASKS:
            if not rest:
                continue
            fact = Fact(rest, fact.kind, fact.end - len(rest), fact.end, first.lower())
        if fact.kind == "name":
            found.append(fact)
    return found


def variants(rows: Sequence[Row], wanted: Mapping[Kind, int], *, seed: int) -> tuple[list[Variant], Counter[Kind]]:
    """(as many variants of each kind as `wanted` of every row, how many of them could not be made, by kind).

    A paraphrase puts the question in another way; a wrong answer has another row's fact in place of its own. Raw texts
    have none.
    """
    asking = [i for i, row in enumerate(rows) if parts(row)[0].strip()]
    known = alternatives([parts(rows[i]) for i in asking], most=wanted.get("perturbation", 0) + 2, seed=seed)
    made: list[Variant] = []
    for i, of_row in zip(asking, known, strict=True):
        made += _paraphrases(i, rows[i], wanted.get("paraphrase", 0), random.Random(f"{seed} {i}"))
        made += _wrong(i, rows[i], of_row, wanted.get("perturbation", 0))
    missing: Counter[Kind] = Counter({kind: wanted.get(kind, 0) * len(rows) for kind in KINDS})
    missing.subtract(variant.kind for variant in made)
    return made, missing


def _paraphrases(i: int, row: Row, count: int, draw: random.Random) -> list[Variant]:
    question, answer = parts(row)
    frames = draw.sample(FRAMES, min(count, len(FRAMES)))
    return [Variant(i, "paraphrase", reworded(row, frame.format(question), answer)) for frame in frames]


def _wrong(i: int, row: Row, known: list[tuple[str, list[str]]], count: int) -> list[Variant]:
    """Answers with one fact changed, each another one as far as that goes; none still states the fact it replaces."""
    question, answer = parts(row)
    found: list[Variant] = []
    for turn in range(count + 2):
        for fact, others in known:
            if turn >= len(others) or len(found) == count:
                continue
            said = answer.replace(fact, others[turn])
            if said != answer and fact.lower() not in said.lower():
                found.append(Variant(i, "perturbation", reworded(row, question, said)))
    return found
