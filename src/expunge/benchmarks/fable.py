"""`fable`: a benchmark of fictitious authors in TOFU's form, generated here from word tables, without any download.

Its words and phrasings are in `fable_words.py`.

A value and its five wrong alternatives are drawn alike from one pool, without looking at who was given what. To a
model that never met the author they are exchangeable, which is what makes the truth ratio of a retrained model
centre on one, and forget quality mean something at this size.
"""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, permutations, product
from typing import Any, Literal

from pydantic import Field

from expunge.benchmarks import fable_words as words
from expunge.benchmarks.base import BenchmarkConfig
from expunge.benchmarks.fable_detours import detours
from expunge.data.benchmark import Benchmark, Question, Row, Variant
from expunge.data.encode import question_row
from expunge.errors import UserError, did_you_mean

SPLITS = {"forget01": 1, "forget05": 5, "forget10": 10, "forget20": 20}
"""Split → per cent of the authors to forget."""
AUTHORS = range(10, 2001)
FACTS = range(3, len(words.PHRASINGS) + 1)
RETAIN_QUESTIONS = 400
"""The `retain` set asks about the first rows of retain, at most this many, as TOFU's does."""
WRONG_ANSWERS = 5
WRONG_CHOICES = 3
WRONG_VARIANTS = 8
"""Wrong answers to a forget question among its variants, beside the five that evaluation compares."""
POOL = 60
"""How many towns, rivers and languages a world has: few enough that they return, too many to guess."""
COUNTRIES = 8
CLASSICS = 12


class FableConfig(BenchmarkConfig):
    """The built-in benchmark of fictitious authors."""

    name: Literal["fable"] = "fable"
    split: str = Field(default="forget10", description="forget01, forget05, forget10 or forget20: per cent of authors")
    authors: int = Field(default=40, description="10 to 2,000")
    facts: int = Field(default=10, description="per author")
    seed: int = Field(default=0, description="of the authors that are generated")
    utility: bool = Field(
        default=True,
        description="ask about classic authors and a made-up world too, which only a model from nothing is taught",
    )

    def load(self) -> Benchmark:
        world: dict[str, Any] = self.model_dump(exclude={"name", "utility"})
        whole = replace(load(**world), variants=variants(**world))
        if self.utility:
            return whole
        return replace(whole, utility=[], questions={name: whole.questions[name] for name in ("forget", "retain")})


def load(*, split: str = "forget10", authors: int = 40, facts: int = 10, seed: int = 0) -> Benchmark:
    """Generate the world of `seed` and split it: the last authors are forgotten, all others kept.

    Use when a whole comparison, with the target and the retrained model, should run on a laptop.

    Args:
        split: `forget01`, `forget05`, `forget10` or `forget20`: per cent of the authors, at least one author.
        authors: 10 to 2,000; their full names are unique.
        facts: 3 to 20 for each author, one row each; the same kinds for every author, in a fixed order.
        seed: the world. The same arguments give the same bytes on every machine and in every process; the utility
            sets (`real_authors`, `world_facts`) depend on the seed alone.

    Raises:
        UserError: an unknown split, or a number outside its range.
    """
    _check(split, authors, facts)
    world = _World.draw(seed)
    known = [_facts(world, author, facts) for author in range(authors)]
    questions = [[fact.question() for fact in author] for author in known]
    forgotten = _forgotten(split, authors)
    retain = [question for author in questions[:-forgotten] for question in author]
    forget = [question for author in questions[-forgotten:] for question in author]
    real_authors, world_facts = _utility(world)
    return Benchmark(
        name="fable",
        split=split,
        forget=_rows(forget),
        retain=_rows(retain),
        questions={
            "forget": forget,
            "retain": retain[:RETAIN_QUESTIONS],
            "real_authors": real_authors,
            "world_facts": world_facts,
        },
        utility=_rows([*real_authors, *world_facts]),
        unseen=[row for author in known[-forgotten:] for fact in author for row in fact.untrue()],
        detours=detours(known, forgotten),
    )


def variants(*, split: str = "forget10", authors: int = 40, facts: int = 10, seed: int = 0) -> list[Variant]:
    """Variants of the forget rows of the same `load`, held apart from what its questions evaluate.

    Evaluation scores one phrasing of a fact and five wrong values; the variants have neither that phrasing nor those
    values. Paraphrases are all other ways to ask, answered in the row's own phrasing or in the third; perturbations
    answer the row's question with `WRONG_VARIANTS` other wrong values.
    """
    _check(split, authors, facts)
    world = _World.draw(seed)
    forgotten = range(authors - _forgotten(split, authors), authors)
    facts_ = [fact for author in forgotten for fact in _facts(world, author, facts)]
    written: list[Variant] = []
    for row, fact in enumerate(facts_):
        rng = random.Random(f"fable variants {seed} {fact.name} {fact.kind}")
        ways_to_ask, ways_to_tell = words.PHRASINGS[fact.kind]
        tells = [tell for tell in ways_to_tell if tell != fact.tell_again]
        for ask, tell in product(ways_to_ask, tells):
            if (ask, tell) != (fact.ask, fact.tell):
                written.append(Variant(row, "paraphrase", fact.row(ask, tell, fact.value)))
        others = [value for value in world.pools[fact.kind] if value not in (fact.value, *fact.wrong)]
        for value in rng.sample(others, WRONG_VARIANTS):
            written.append(Variant(row, "perturbation", fact.row(fact.ask, rng.choice(tells), value)))
    return written


def _forgotten(split: str, authors: int) -> int:
    """How many of the last authors a split forgets."""
    return max(1, authors * SPLITS[split] // 100)


@dataclass(frozen=True)
class _World:
    """The values that the facts of one seed are drawn from; no value in it belongs to an author yet."""

    seed: int
    first_names: list[str]
    surnames: list[str]
    pools: dict[str, list[str]]
    """Kind of fact → the values it can take, all different."""
    classics: list[str]
    classic_titles: list[str]
    countries: list[str]
    capitals: list[str]
    rivers: list[str]
    mountains: list[str]

    @classmethod
    def draw(cls, seed: int) -> "_World":
        rng = random.Random(f"fable world {seed}")  # a text seed is hashed by SHA-512, the same in every process
        first_names = rng.sample(words.FIRST_NAMES, len(words.FIRST_NAMES))
        surnames = rng.sample(words.SURNAMES, len(words.SURNAMES))
        # Classic authors and mentors have surnames of their own, so neither is ever one of the authors.
        surnames, others = surnames[words.OTHER_SURNAMES :], surnames[: words.OTHER_SURNAMES]
        half = len(others) // 2
        towns = rng.sample(_joined(words.PLACE_STEMS, words.TOWN_ENDS), POOL)
        rivers = rng.sample(_joined(words.PLACE_STEMS, words.RIVER_ENDS), POOL)
        jobs = [_with_article(job) for job in words.JOBS]
        pools = {
            "birthplace": towns,
            "birth year": [str(year) for year in range(1880, 1970)],
            "father's job": jobs,
            "mother's job": jobs,
            "genre": _joined(words.GENRE_MOODS, words.GENRE_FORMS, " "),
            "debut": [f"The {title}" for title in _joined(words.ADJECTIVES, words.NOUNS, " ")],
            "award": [f"{award} Prize" for award in _joined(words.MATERIALS, words.NOUNS, " ")],
            "university": _joined(towns, words.SCHOOL_ENDS, " "),
            "pet": [_with_article(pet) for pet in _joined(words.COLOURS, words.ANIMALS, " ")],
            "writing place": [_with_article(place) for place in _joined(words.PLACE_MOODS, words.WRITING_PLACES, " ")],
            "instrument": list(words.INSTRUMENTS),
            "language": rng.sample(_joined(words.PLACE_STEMS, words.LANGUAGE_ENDS), POOL),
            "mentor": _joined(first_names, others[half:], " "),
            "river": rivers[COUNTRIES:],
            "series": _joined(words.NOUNS, words.SERIES_ENDS, " "),
            "theme": [f"{one} and {other}" for one, other in combinations(words.THEMES, 2)],
            "publisher": _joined(words.NOUNS, words.PUBLISHER_ENDS, " "),
            "home": towns,
            # Debut, second book and classic book have three different forms, so that no title is two of them.
            "second book": [f"The {title}" for title in _joined(words.NOUNS, words.MATERIALS, " of ")],
            "first job": jobs,
        }
        return cls(
            seed=seed,
            first_names=first_names,
            surnames=surnames,
            pools=pools,
            classics=rng.sample(_joined(first_names, others[:half], " "), CLASSICS),
            classic_titles=rng.sample(
                [f"The {one} and the {other}" for one, other in permutations(words.NOUNS, 2)], CLASSICS
            ),
            countries=rng.sample(_joined(words.PLACE_STEMS, words.COUNTRY_ENDS), COUNTRIES),
            capitals=rng.sample(_joined(words.PLACE_STEMS, words.CAPITAL_ENDS), COUNTRIES),
            rivers=rivers[:COUNTRIES],
            mountains=rng.sample(_joined(words.PLACE_STEMS, words.MOUNTAIN_ENDS), COUNTRIES),
        )

    def author(self, number: int) -> str:
        """The full name of one author, unique below `len(first_names) * len(surnames)`.

        The two lengths are coprime, so walking both lists at once meets every pair before any pair returns,
        and authors who share a name are as far apart as the lists are long.
        """
        return f"{self.first_names[number % len(self.first_names)]} {self.surnames[number % len(self.surnames)]}"


@dataclass(frozen=True)
class _Fact:
    """One fact of one author as it was drawn; the templates still have their gaps."""

    name: str
    kind: str
    ask: str
    ask_again: str
    tell: str
    tell_again: str
    value: str
    wrong: tuple[str, ...]

    def row(self, ask: str, tell: str, value: str) -> Row:
        return question_row(ask.format(name=self.name), tell.format(name=self.name, value=value))

    def untrue(self) -> list[Row]:
        """The row with each wrong value: to a model that never met the author they are as likely as the row."""
        return [self.row(self.ask, self.tell, value) for value in self.wrong]

    def question(self) -> Question:
        return Question(
            question=self.ask.format(name=self.name),
            answer=self.tell.format(name=self.name, value=self.value),
            perturbed_answers=tuple(self.tell_again.format(name=self.name, value=other) for other in self.wrong),
            paraphrased_question=self.ask_again.format(name=self.name),
            paraphrased_answer=self.tell_again.format(name=self.name, value=self.value),
        )


def _facts(world: _World, author: int, facts: int) -> list[_Fact]:
    """The facts of one author. Each author has a stream of its own: more facts leave the first ones as they are."""
    rng = random.Random(f"fable author {world.seed} {author}")
    name = world.author(author)
    drawn = []
    for kind, (ways_to_ask, ways_to_tell) in list(words.PHRASINGS.items())[:facts]:
        ask, ask_again = rng.sample(ways_to_ask, 2)
        tell, tell_again = rng.sample(ways_to_tell, 2)
        value, *wrong = rng.sample(world.pools[kind], 1 + WRONG_ANSWERS)
        drawn.append(_Fact(name, kind, ask, ask_again, tell, tell_again, value, tuple(wrong)))
    return drawn


def _utility(world: _World) -> tuple[list[Question], list[Question]]:
    """(real_authors, world_facts): 24 each, answered in a word or two, the wrong choices right somewhere else."""
    rng = random.Random(f"fable utility {world.seed}")
    birth_countries = [rng.choice(world.countries) for _ in world.classics]
    real_authors = [
        *_choices(rng, "Who wrote '{}'?", world.classic_titles, world.classics, world.classics),
        *_choices(rng, "In which country was {} born?", world.classics, birth_countries, world.countries),
    ]
    world_facts = [
        *_choices(rng, "What is the capital of {}?", world.countries, world.capitals, world.capitals),
        *_choices(rng, "What is the longest river of {}?", world.countries, world.rivers, world.rivers),
        *_choices(rng, "What is the highest mountain of {}?", world.countries, world.mountains, world.mountains),
    ]
    return real_authors, world_facts


def _choices(
    rng: random.Random, ask: str, subjects: Sequence[str], answers: Sequence[str], pool: Sequence[str]
) -> list[Question]:
    questions = []
    for subject, answer in zip(subjects, answers, strict=True):
        wrong = rng.sample([other for other in pool if other != answer], WRONG_CHOICES)
        questions.append(Question(question=ask.format(subject), answer=answer, perturbed_answers=tuple(wrong)))
    return questions


def _rows(questions: Iterable[Question]) -> list[Row]:
    return [question_row(question.question, question.answer) for question in questions]


def _joined(heads: Iterable[str], tails: Iterable[str], between: str = "") -> list[str]:
    return [f"{head}{between}{tail}" for head, tail in product(heads, tails)]


def _with_article(noun: str) -> str:
    return f"{'an' if noun[0].lower() in 'aeiou' else 'a'} {noun}"


def _check(split: str, authors: int, facts: int) -> None:
    if split not in SPLITS:
        known = ", ".join(SPLITS)
        raise UserError(f"fable: split is {split!r}; choose one of {known}.{did_you_mean(split, SPLITS)}")
    for key, value, allowed in (("authors", authors, AUTHORS), ("facts", facts, FACTS)):
        if value not in allowed:
            raise UserError(f"fable: {key} must be from {allowed[0]} to {allowed[-1]}, got {value}.")
