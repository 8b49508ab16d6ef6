"""Facts in an answer that another fact of the same kind could stand for: names and numbers that its question lacks.

A rule and not a model: a fact is a number, or a run of words with a capital letter. Scripts without capital letters and
answers in lower case have no facts here.
"""

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import regex

from expunge.data.words import words

Kind = Literal["name", "number"]

_NUMBER = regex.compile(r"\d+(?:[.,:]\d+)*")
_NAME = regex.compile(r"\p{Lu}[\p{L}\p{M}\p{N}'’.-]*[\p{L}\p{M}\p{N}]|\p{Lu}")
_RUN = regex.compile(rf"(?:{_NAME.pattern})(?: (?:{_NAME.pattern}))*", regex.V1)
_BEFORE = regex.compile(r"(\S+)\s+\P{L}*$")

OPENERS = frozenset(
    words(
        "a after all although an and as at because before being both but by despite during each even every "
        "few for from given growing having he her here his how however i if in indeed inspired it its many "
        "more most my no none not of on one or our over several she since so some sorry such that the their "
        "there these they this those though through to two under unfortunately upon we what when where which "
        "while who with yes you your"
    )
)
"""Words that begin an answer with a capital letter and are no names."""


@dataclass(frozen=True, slots=True)
class Fact:
    """Characters `begin` to `end` of an answer, and the word `before` them in lower case (empty at the beginning)."""

    text: str
    kind: Kind
    begin: int
    end: int
    before: str

    @property
    def size(self) -> int:
        """Number of words."""
        return len(self.text.split())


def facts(question: str, answer: str) -> list[Fact]:
    """The names and numbers of `answer` that are no part of `question`, in order.

    >>> [fact.text for fact in facts("Where was Ann Lee born?", "Ann Lee was born in Oslo in 1970.")]
    ['Oslo', '1970']
    """
    known = set(words(question))
    return sorted(_facts(known, answer), key=lambda fact: fact.begin)


def _facts(known: set[str], answer: str) -> Iterator[Fact]:
    for match in _NUMBER.finditer(answer):
        inside_a_word = answer[: match.start()][-1:].isalpha() or answer[match.end() :][:1].isalpha()
        if not inside_a_word and not known.issuperset(words(match[0])):
            yield _fact(answer, "number", match.start(), match.end())
    for run in _RUN.finditer(answer):
        names = [(run.start() + m.start(), run.start() + m.end()) for m in _NAME.finditer(run[0])]
        while names and _is_no_name(answer, *names[0], known):
            names.pop(0)
        while names and known.issuperset(words(answer[slice(*names[-1])])):
            names.pop()
        if names and not known.intersection(words(answer[names[0][0] : names[-1][1]])):
            yield _fact(answer, "name", names[0][0], names[-1][1])


def _is_no_name(answer: str, begin: int, end: int, known: set[str]) -> bool:
    word = answer[begin:end]
    return word.lower() in OPENERS or known.issuperset(words(word))


def _fact(answer: str, kind: Kind, begin: int, end: int) -> Fact:
    before = _BEFORE.search(answer[:begin])
    return Fact(answer[begin:end], kind, begin, end, before[1].lower() if before else "")


def alternatives(
    pairs: Sequence[tuple[str, str]], others: Iterable[tuple[str, str]] = (), *, most: int, seed: int
) -> list[list[tuple[str, list[str]]]]:
    """For each (question, answer) of `pairs` its facts, each with at most `most` facts that could stand in its place.

    Those are facts of all answers here and of `others`, of the same kind and number of words, that the row does not
    hold; those that follow the same word and answer a like question come first.
    """
    rows = [(set(words(question)), facts(question, answer)) for question, answer in (*pairs, *others)]
    lists: list[list[tuple[str, list[str]]]] = []
    for (question, answer), (about, of_row) in zip(pairs, rows, strict=False):
        draw, text = random.Random(f"{seed} {question}"), f"{question} {answer}".lower()
        lists.append([])
        for fact in of_row:
            ranked = {
                other.text: (other.before == fact.before, _overlap(about, their), draw.random())
                for their, of_other in rows
                for other in of_other
                if other.kind == fact.kind and other.size == fact.size and other.text.lower() not in text
            }
            lists[-1].append((fact.text, sorted(ranked, key=ranked.__getitem__, reverse=True)[:most]))
    return lists


def _overlap(a: set[str], b: set[str]) -> float:
    return len(a & b) / len(a | b) if a | b else 0.0


def invented(
    pairs: Sequence[tuple[str, str]], others: Iterable[tuple[str, str]] = (), *, seed: int
) -> list[tuple[str, str] | None]:
    """Each (question, answer) of `pairs` with every name and number replaced, the same one by the same one.

    The others are those of all rows here and of `others`, of the same kind and number of words, after the same word
    where there are such. What comes out has the form of the row and says something that nobody could have learnt.
    `None` where nothing can be replaced that the question lacks: the answer would still be the one that was learnt.
    """
    pool: dict[tuple[Kind, int], dict[str, str]] = {}
    for question, answer in (*pairs, *others):
        for fact in (*facts("", question), *facts("", answer)):
            pool.setdefault((fact.kind, fact.size), {}).setdefault(fact.text, fact.before)
    return [_invented(pair, pool, random.Random(f"{seed} {pair[0]}")) for pair in pairs]


def _invented(
    pair: tuple[str, str], pool: dict[tuple[Kind, int], dict[str, str]], draw: random.Random
) -> tuple[str, str] | None:
    instead: dict[str, str] = {}
    text = " ".join(pair).lower()
    sides = [facts("", side) for side in pair]
    for fact in (*sides[0], *sides[1]):
        if fact.text in instead:
            continue
        like = pool[fact.kind, fact.size]
        free = [other for other in like if other.lower() not in text and other not in instead.values()]
        near = [other for other in free if like[other] == fact.before]
        if free:
            instead[fact.text] = draw.choice(sorted(near or free))
    if not any(fact.text in instead for fact in facts(*pair)):
        return None
    question, answer = (_replaced(side, found, instead) for side, found in zip(pair, sides, strict=True))
    return question, answer


def _replaced(text: str, found: Sequence[Fact], instead: dict[str, str]) -> str:
    for fact in reversed(found):
        text = text[: fact.begin] + instead.get(fact.text, fact.text) + text[fact.end :]
    return text
