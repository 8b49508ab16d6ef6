"""Controls of rows: rows of the same form that a model can't know.

They are the rows themselves with other facts in their answers, so that who is asked about, and how, stays the same. If
the model never saw the rows, each could as well have been any of its controls. Whole rows about somebody else could
not: what a model makes of a name is alike in all rows of a person.
"""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from expunge.data.augment import parts, reworded
from expunge.data.benchmark import Row
from expunge.data.facts import Fact, facts
from expunge.data.words import words

LEAST = 4
"""Controls that a row needs: with fewer it tells too little."""
ALIKE = 0.6
"""Share of common words from which on two questions ask alike."""
POOL = 2_000
"""Other rows, at most, whose facts are put into answers."""


@dataclass(frozen=True)
class Stratum:
    """Rows (by their numbers) and a list of controls for each; their first controls have the same facts, and so on."""

    rows: tuple[int, ...]
    controls: tuple[tuple[Row, ...], ...]


def swapped(
    rows: Sequence[Row], others: Sequence[Row], people: Sequence[int], *, own: bool, texts: bool, most: int, seed: int
) -> list[Stratum]:
    """Rows with other facts in their answers, at most `most` for each; rows without `LEAST` are left out.

    Names and numbers of an answer become others of the same kind, said to like questions in `others` and, with `own`,
    in `rows` themselves. Where an answer has none of its own, it becomes the answer to the same question about somebody
    else, with the name changed. Raw texts, whose facts hang together, are left out without `texts`. `people` has a
    number for each row: rows of one person that share a fact, or say the same, are one stratum, in which
    it is replaced alike.
    """
    others = random.Random(seed).sample(list(others), min(len(others), POOL))
    asked = [parts(row) for row in rows]
    like = _Like([*asked, *(parts(row) for row in others)], first=0 if own else len(rows))
    used: dict[tuple[int, str], list[str]] = {}
    made: dict[int, list[Row]] = {}
    links: dict[tuple[int, str], list[int]] = {}
    for i, (row, (question, answer)) in enumerate(zip(rows, asked, strict=True)):
        if "text" in row and not texts:
            continue
        draw = random.Random(f"{seed} {question} {answer}")
        instead = {fact: used.setdefault((people[i], fact), free)[:most] for fact, free in like.facts(i, draw).items()}
        numbers = range(max(map(len, instead.values()), default=0))
        found = [text for j in numbers if (text := _replaced(question, answer, instead, j)) != answer]
        if len(found) >= LEAST:
            for fact in instead:
                links.setdefault((people[i], fact), []).append(i)
        else:
            found = like.answers(i, draw)
            said = " ".join(sorted(set(words(answer)).difference(words(question))))
            links.setdefault((people[i], said), []).append(i)
        if len(found) >= LEAST:
            made[i] = [reworded(row, question, text) for text in found[:most]]
    return [_stratum(block, made) for block in _blocks(made, links.values())]


def _replaced(question: str, answer: str, instead: dict[str, list[str]], j: int) -> str:
    """The answer with the j-th alternative of every fact that has so many."""
    found = [fact for fact in facts(question, answer) if j < len(instead.get(fact.text, ()))]
    for fact in reversed(found):
        answer = answer[: fact.begin] + instead[fact.text][j] + answer[fact.end :]
    return answer


def _stratum(block: Sequence[int], made: dict[int, list[Row]]) -> Stratum:
    least = min(len(made[i]) for i in block)
    return Stratum(tuple(block), tuple(tuple(made[i][:least]) for i in block))


def _blocks(made: dict[int, list[Row]], links: Iterable[list[int]]) -> list[list[int]]:
    """The numbers of the rows in groups that share a fact."""
    group = {i: i for i in made}

    def root(i: int) -> int:
        while group[i] != i:
            i = group[i]
        return i

    for rows in links:
        first, *more = [i for i in rows if i in made] or [-1]
        for i in more:
            group[root(i)] = root(first)
    blocks: dict[int, list[int]] = {}
    for i in made:
        blocks.setdefault(root(i), []).append(i)
    return list(blocks.values())


def _names(question: str) -> list[str]:
    return [fact.text for fact in facts("", question)]


def _form(question: str) -> frozenset[str]:
    """The words of a question without its names and numbers."""
    gone = set(words(" ".join(_names(question))))
    return frozenset(word for word in words(question) if word not in gone)


class _Like:
    """Facts and answers to like questions about somebody else, from pairs of question and answer."""

    def __init__(self, pairs: Sequence[tuple[str, str]], first: int) -> None:
        """Only the pairs from number `first` on give facts and answers."""
        self._pairs = pairs
        self._forms = [_form(question) for question, _ in pairs]
        self._by_form: dict[frozenset[str], list[int]] = {}
        for i in range(first, len(pairs)):
            self._by_form.setdefault(self._forms[i], []).append(i)
        self._facts = [facts(*pair) for pair in pairs]
        self._near: dict[frozenset[str], list[int]] = {}

    def facts(self, i: int, draw: random.Random) -> dict[str, list[str]]:
        """For each fact of an answer others of its kind and number of words, in random order."""
        form, text = self._forms[i], " ".join(self._pairs[i]).lower()
        if form not in self._near:
            near = (theirs for other, theirs in self._by_form.items() if _overlap(form, other) >= ALIKE)
            self._near[form] = [k for theirs in near for k in theirs]
        found: dict[str, list[str]] = {}
        for fact in self._facts[i]:
            free = {other.text for k in self._near[form] for other in self._facts[k] if _could_be(fact, other, form)}
            free = sorted(other for other in free if other.lower() not in text)
            draw.shuffle(free)
            found.setdefault(fact.text, free)
        return found

    def answers(self, i: int, draw: random.Random) -> list[str]:
        """Other answers to the very question, in random order, none of them its own; none where it has no name."""
        question, answer = self._pairs[i]
        names = _names(question)
        own = set(words(" ".join(names)))
        found: dict[str, None] = {}
        for k in self._by_form.get(self._forms[i], ()) if names else ():
            other, said = self._pairs[k]
            theirs = _names(other)
            if len(theirs) != len(names) or theirs == names:
                continue
            for old, new in zip(theirs, names, strict=True):
                said = said.replace(old, new)
            if said != answer and not (set(words(" ".join(theirs))) - own) & set(words(said)):
                found.setdefault(said)
        listed = list(found)
        draw.shuffle(listed)
        return listed


def _could_be(fact: Fact, other: Fact, form: frozenset[str]) -> bool:
    """Whether a fact could stand in another's place; where nothing is asked, it must follow the same word, too."""
    alike = other.kind == fact.kind and other.size == fact.size
    return alike and (bool(form) or (other.before == fact.before and bool(fact.before)))


def _overlap(a: frozenset[str], b: frozenset[str]) -> float:
    return len(a & b) / len(a | b) if a | b else 1.0
