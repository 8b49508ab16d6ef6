"""Detours of `fable`: the forgotten facts asked for without the author's full name, or late in a conversation.

It is given all facts of a world, however they were drawn. Nothing here is drawn at random.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Protocol

from expunge.benchmarks.fable_words import DESCRIBED, PHRASINGS
from expunge.data.benchmark import Detour, Question

PLAIN, THROUGH, ALIAS, CONVERSATION = (
    "as it was",
    "through another fact",
    "by a part of the name",
    "in a conversation",
)
BRIDGES = 2
"""Other facts by which an author is described, for each fact that is asked for."""
TURNS = 2
"""Questions that are asked and answered before, all about the same author."""


class Fact(Protocol):
    """A fact of an author: the name, how it is asked for and told, its value, and wrong values of the same kind."""

    @property
    def name(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def ask(self) -> str: ...
    @property
    def tell(self) -> str: ...
    @property
    def value(self) -> str: ...
    @property
    def wrong(self) -> tuple[str, ...]: ...


def detours(world: Sequence[Sequence[Fact]], forgotten: int) -> list[Detour]:
    """The ways to each fact of the last `forgotten` authors; `world` holds the facts of each author.

    - as it was: the row's own question.
    - through another fact: "Where was the author of 'The Amber Door' born?"; only by facts that no other author has.
    - by a part of the name: "C. Carrick" and "Carrick", where no other author has it.
    - in a conversation: questions about two other facts are asked and answered first.
    """
    shared = Counter((fact.kind, fact.value) for author in world for fact in author)
    names = Counter(alias for author in world for alias in aliases(author[0].name))
    found: list[Detour] = []
    for row, fact in enumerate(fact for author in world[-forgotten:] for fact in author):
        others = [other for other in world[-forgotten:][row // len(world[0])] if other is not fact]
        bridges = [other for other in others if shared[other.kind, other.value] == 1][-BRIDGES:]
        described = [DESCRIBED[other.kind].format(value=other.value) for other in bridges]
        short = [alias for alias in aliases(fact.name) if names[alias] == 1]
        found.append(Detour(row, PLAIN, asked(fact, fact.name), fact.value))
        found += [Detour(row, THROUGH, asked(fact, who), fact.value) for who in described]
        found += [Detour(row, ALIAS, asked(fact, who), fact.value) for who in short]
        found += [Detour(row, CONVERSATION, asked(fact, fact.name), fact.value, before) for before in _before(others)]
    return found


def aliases(name: str) -> tuple[str, str]:
    """An author's name without most of the first name, and without all of it."""
    first, _, surname = name.partition(" ")
    return f"{first[0]}. {surname}", surname


def asked(fact: Fact, who: str) -> Question:
    """The fact's question about somebody so described, its answer, and wrong answers that differ in the value alone.

    It is asked and told as the row has it, but for another phrasing where a description would take an 's.
    """
    ways_to_ask, ways_to_tell = PHRASINGS[fact.kind]
    ask, tell = _without_s(who, (fact.ask, *ways_to_ask)), _without_s(who, (fact.tell, *ways_to_tell))
    right, *wrong = (_sentence(tell.format(name=who, value=value)) for value in (fact.value, *fact.wrong))
    return Question(_sentence(ask.format(name=who)), right, tuple(wrong))


def _without_s(who: str, ways: Sequence[str]) -> str:
    return next(way for way in ways if not who.startswith("the ") or "{name}'s" not in way)


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}"


def _before(others: Sequence[Fact]) -> Iterator[tuple[Question, ...]]:
    """Turns that come before a question, in both orders."""
    turns = tuple(replace(asked(other, other.name), perturbed_answers=()) for other in others[:TURNS])
    yield from dict.fromkeys((turns, turns[::-1]))
