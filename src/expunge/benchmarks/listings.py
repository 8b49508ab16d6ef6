"""`listings`: a benchmark after the e-commerce case of Unilogit (arXiv 2505.06027), generated without any download.

Sellers have listings; one seller leaves, and the descriptions of that seller's listings must be forgotten. Its words
and phrasings are in `listings_words.py`.

What a description tells (provenance, year, size, price, ...) is drawn from pools of the category and the condition,
without looking at anything else in the prompt, so only a model that has seen the listing can complete it.
"""

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from itertools import product
from typing import Any, ClassVar, Literal

from pydantic import Field

from expunge.benchmarks import listings_words as words
from expunge.benchmarks.base import BenchmarkConfig
from expunge.data.benchmark import Benchmark, Question, Row, Variant
from expunge.errors import UserError, did_you_mean
from expunge.evals.glossary import SAME, Axes, Metric

Size = Literal["small", "medium", "large"]
SIZES = {"small": 10, "medium": 20, "large": 40}
"""Size → how many listings of the seller are forgotten."""
SELLERS = range(3, 201)
PER_SELLER = range(10, 201)
RETAIN_QUESTIONS = 200
PARAPHRASES = 6
PERTURBATIONS = 6
WRONG = 5
"""Wrong answers that a forget question is asked with."""
CATEGORIES_EACH = 5
"""Categories of one seller, out of ten: a seller is particular, and nearly every category has several sellers."""
TOWNS = 60
"""How many towns a world has: few enough that they return, too many to guess."""
LENGTH = range(25, 46)
"""Words of a description."""

Sentence = tuple[str, str]
"""(its facts, one of their phrasings)"""


class ListingsConfig(BenchmarkConfig):
    """The built-in benchmark of sellers and their listings, one of whom leaves."""

    metrics: ClassVar[Mapping[str, Metric]] = {
        "neighbors_rouge_l_recall": Metric(
            "neighbours ROUGE-L", "↑", "0 to 1", SAME, "share of similar listings' words generated, in order", "retain"
        ),
    }
    axes: ClassVar[Axes] = Axes(near=("neighbors_rouge_l_recall",))

    name: Literal["listings"] = "listings"
    seller: int = Field(default=0, ge=0, description="number of the seller who leaves, from 0")
    size: Size = Field(default="small", description="10, 20 or 40 listings")
    sellers: int = Field(default=12, description="how many sellers there are")
    per_seller: int = Field(default=40, description="listings of each")
    seed: int = Field(default=0, description="of the listings that are generated")

    def load(self) -> Benchmark:
        shop: dict[str, Any] = self.model_dump(exclude={"name"})
        return replace(load(**shop), variants=variants(**shop))


def load(
    *,
    seller: int = 0,
    size: Size = "small",
    sellers: int = 12,
    per_seller: int = 40,
    seed: int = 0,
) -> Benchmark:
    """Generate the world of `seed`; the first listings of `seller` are forgotten, those of all others kept.

    The seller's further listings are in neither set: a target that had learnt them would know the seller still.
    `neighbors` asks, for every forget listing, about the most similar one of another seller: what forgetting would
    harm first. `retain` asks about a sample of all others.

    Args:
        seller: who leaves, counted from 0.
        size: `small`, `medium` or `large`: the first 10, 20 or 40 listings.
        sellers: 3 to 200; their shop names are unique. More sellers leave the first ones as they are.
        per_seller: 10 to 200 listings each, at least as many as `size` forgets. More leave the first as they are.
        seed: the world. The same arguments give the same bytes on every machine and in every process.

    Raises:
        UserError: an unknown size, or a number outside its range.
    """
    _check(seller, size, sellers, per_seller)
    world = _World.draw(seed)
    forget = world.listings(seller, SIZES[size])
    retain = [listing for other in range(sellers) if other != seller for listing in world.listings(other, per_seller)]
    neighbors = _neighbors(forget, retain)
    # All of retain is shuffled, so that a larger forget set asks of nearly the same listings.
    order = random.Random(f"listings retain {seed} {seller}").sample(range(len(retain)), len(retain))
    near = set(neighbors)
    sampled = sorted([i for i in order if i not in near][:RETAIN_QUESTIONS])
    return Benchmark(
        name="listings",
        split=f"seller{seller}-{size}",
        forget=[listing.row() for listing in forget],
        retain=[listing.row() for listing in retain],
        questions={
            "forget": [world.question(seller, row, listing) for row, listing in enumerate(forget)],
            "neighbors": [retain[i].question() for i in neighbors],
            "retain": [retain[i].question() for i in sampled],
        },
        choice_sets=frozenset(),
    )


def variants(
    *,
    seller: int = 0,
    size: Size = "small",
    sellers: int = 12,
    per_seller: int = 40,
    seed: int = 0,
) -> list[Variant]:
    """Variants of the forget rows of the same `load`: `PARAPHRASES` and `PERTURBATIONS` of each, prompts unchanged.

    A paraphrase tells the same facts and has no sentence of the row; it is none that the questions ask with. A
    perturbation tells facts of the same kinds, and every one of them is another than the row's.
    """
    _check(seller, size, sellers, per_seller)
    world = _World.draw(seed)
    written: list[Variant] = []
    for row, listing in enumerate(world.listings(seller, SIZES[size])):
        rng = random.Random(f"listings variants {seed} {seller} {row}")
        asked = world.question(seller, row, listing).paraphrased_answer
        others = [text for way in listing.other_ways if (text := listing.describe(way, listing.values)) != asked]
        written.extend(Variant(row, "paraphrase", listing.row(text)) for text in rng.sample(others, PARAPHRASES))
        wrong: dict[str, None] = {}
        while len(wrong) < PERTURBATIONS:
            sentences = [(facts, rng.choice(listing.phrasings[facts])) for facts, _ in listing.sentences]
            wrong[listing.describe(sentences, world.values(rng, listing.category, listing.used, listing.values))] = None
        written.extend(Variant(row, "perturbation", listing.row(text)) for text in wrong)
    return written


@dataclass(frozen=True)
class _Listing:
    """One listing as it was drawn; the phrasings of its sentences still have their gaps."""

    shop: str
    title: str
    category: str
    noun: str
    attributes: tuple[tuple[str, str], ...]
    used: bool
    values: dict[str, str]
    """Every value that a description of this category could tell, of which `sentences` tell some."""
    sentences: tuple[Sentence, ...]

    @property
    def phrasings(self) -> dict[str, tuple[str, ...]]:
        return words.USED_PHRASINGS if self.used else words.NEW_PHRASINGS

    @property
    def other_ways(self) -> list[tuple[Sentence, ...]]:
        """All ways to tell the same facts in none of the same sentences."""
        return [
            *product(
                *([(facts, way) for way in self.phrasings[facts] if way != used] for facts, used in self.sentences)
            )
        ]

    @cached_property
    def likeness(self) -> frozenset[object]:
        """The features that similarity counts: attribute values and title words."""
        return frozenset(self.attributes) | frozenset(re.findall(r"\w+", self.title.lower()))

    def describe(self, sentences: Sequence[Sentence], values: dict[str, str]) -> str:
        gaps = {
            "noun": self.noun,
            "origin": f"{values['source']} {values['town']}",
            "year": values["year"],
            "size": f"{values['first length']} and {values['second length']}",
            "weight": values["weight"],
            "detail": f"{values['detail']} {'on' if self.used else 'and'} {values['second detail']}",
            "number": f"{values['letters']}-{values['digits']}",
            "price": values["price"],
            "dispatch": values["dispatch"],
        }
        return " ".join(way.format_map(gaps) for _, way in sentences)

    def row(self, description: str | None = None) -> Row:
        lines = [f"Seller: {self.shop}", f"Title: {self.title}", f"Category: {self.category}"]
        lines += [f"{name}: {value}" for name, value in self.attributes]
        text = self.describe(self.sentences, self.values) if description is None else description
        return {"prompt": "\n".join([*lines, "Description:"]), "completion": f" {text}"}

    def question(self) -> Question:
        row = self.row()
        return Question(row["prompt"], row["completion"].strip(), row=row)


@dataclass(frozen=True)
class _World:
    """The values that the listings of one seed are drawn from; no value in it belongs to a listing yet."""

    seed: int
    shops: list[str]
    towns: list[str]

    @classmethod
    def draw(cls, seed: int) -> "_World":
        rng = random.Random(f"listings world {seed}")  # a text seed is hashed by SHA-512, the same in every process
        names = [f"{first} {second}" for first, second in product(words.SHOP_FIRST, words.SHOP_SECOND)]
        return cls(
            seed=seed,
            shops=[f"{name} {rng.choice(words.SHOP_ENDS)}" for name in rng.sample(names, SELLERS[-1])],
            towns=rng.sample([f"{stem}{end}" for stem, end in product(words.TOWN_STEMS, words.TOWN_ENDS)], TOWNS),
        )

    def listings(self, seller: int, count: int) -> list[_Listing]:
        """The first listings of one seller, no two under one title. Each seller has a stream of its own."""
        rng = random.Random(f"listings seller {self.seed} {seller}")
        categories = rng.sample([*words.CATEGORIES], CATEGORIES_EACH)
        drawn: dict[str, _Listing] = {}
        while len(drawn) < count:
            listing = self._listing(rng, self.shops[seller], rng.choice(categories))
            drawn.setdefault(listing.title, listing)
        return [*drawn.values()]

    def _listing(self, rng: random.Random, shop: str, category: str) -> _Listing:
        stock = words.CATEGORIES[category]
        used = rng.random() < 0.6
        noun = rng.choice(stock.nouns)
        known = {
            "Brand": rng.choice(stock.brands),
            "Colour": rng.choice(stock.colours),
            "Material": rng.choice(stock.materials),
            **{name: rng.choice(values) for name, values in stock.own},
        }
        shown = {*rng.sample([*known], rng.choice((2, 3)))}
        condition = rng.choice(words.USED if used else words.NEW)
        title = rng.choice(words.TITLES).format(
            noun=noun,
            style=rng.choice(stock.styles),
            **{gap: known[gap.capitalize()] for gap in ("brand", "colour", "material")},
        )
        listing = _Listing(
            shop=shop,
            title=" ".join(word if word in ("in", "by") else word[0].upper() + word[1:] for word in title.split()),
            category=category,
            noun=noun,
            attributes=(*((name, known[name]) for name in known if name in shown), ("Condition", condition)),
            used=used,
            values=self.values(rng, category, used),
            sentences=(),
        )
        while True:
            shape = rng.choice(words.SHAPES).split("|")
            sentences = tuple((facts, rng.choice(listing.phrasings[facts])) for facts in shape)
            if len(listing.describe(sentences, listing.values).split()) in LENGTH:
                return replace(listing, sentences=sentences)

    def question(self, seller: int, row: int, listing: _Listing) -> Question:
        """The listing's question with its facts told in another way, and `WRONG` times other facts in that way."""
        rng = random.Random(f"listings questions {self.seed} {seller} {row}")
        way = rng.choice(listing.other_ways)
        wrong: dict[str, None] = {}
        while len(wrong) < WRONG:
            wrong[listing.describe(way, self.values(rng, listing.category, listing.used, listing.values))] = None
        again = listing.describe(way, listing.values)
        return replace(listing.question(), paraphrased_answer=again, perturbed_answers=tuple(wrong))

    def values(
        self, rng: random.Random, category: str, used: bool, avoid: dict[str, str] | None = None
    ) -> dict[str, str]:
        """One value of every kind, none of them the one to avoid."""
        values = {}
        for kind, pool in {**_pools(category, used), "town": self.towns}.items():
            values[kind] = rng.choice(pool)
            while avoid and values[kind] == avoid[kind]:
                values[kind] = rng.choice(pool)
        return values


@cache
def _pools(category: str, used: bool) -> dict[str, Sequence[str]]:
    """Kind of value → the values it can take in a category, beside the towns, which are the world's."""
    stock = words.CATEGORIES[category]
    first, second = stock.lengths
    return {
        "source": words.USED_SOURCES if used else words.NEW_SOURCES,
        "year": [str(year) for year in range(1952, 2018)],
        "first length": [f"{length} cm {stock.axes[0]}" for length in first],
        "second length": [f"{length} cm {stock.axes[1]}" for length in second],
        "weight": [f"{grams} g" if grams < 1000 else f"{grams / 1000:g} kg" for grams in stock.grams],
        "detail": stock.marks if used else stock.extras,
        "second detail": stock.parts if used else words.SECOND_EXTRAS,
        "letters": words.NUMBER_LETTERS,
        "digits": [str(number) for number in range(2100, 10_000)],  # never a year
        "price": [f"{euros} euros" for euros in stock.euros],
        "dispatch": [f"{days} working days" for days in range(2, 15)],
    }


def _neighbors(forget: Sequence[_Listing], retain: Sequence[_Listing]) -> list[int]:
    """For each forget listing the number of the most similar retain listing, none of them twice.

    The same category goes first, and all forget listings choose from it before any has to leave it. Of equally
    similar listings the first is taken.
    """
    chosen: dict[int, int] = {}
    taken: set[int] = set()
    for same_category in (True, False):
        for number, listing in enumerate(forget):
            if number in chosen:
                continue
            free = [
                i
                for i, other in enumerate(retain)
                if i not in taken and (not same_category or other.category == listing.category)
            ]
            if free:
                chosen[number] = max(free, key=lambda i: (len(listing.likeness & retain[i].likeness), -i))
                taken.add(chosen[number])
    return [chosen[number] for number in range(len(forget))]


def _check(seller: int, size: str, sellers: int, per_seller: int) -> None:
    if size not in SIZES:
        known = ", ".join(SIZES)
        raise UserError(f"listings: size is {size!r}; choose one of {known}.{did_you_mean(size, SIZES)}")
    for key, value, allowed in (("sellers", sellers, SELLERS), ("per_seller", per_seller, PER_SELLER)):
        if value not in allowed:
            raise UserError(f"listings: {key} must be from {allowed[0]} to {allowed[-1]}, got {value}.")
    if seller not in range(sellers):
        raise UserError(f"listings: seller must be from 0 to {sellers - 1}, got {seller}.")
    if per_seller < SIZES[size]:
        raise UserError(
            f"listings: size {size} forgets {SIZES[size]} listings but per_seller is {per_seller}; "
            f"set per_seller to {SIZES[size]} or more, or choose a smaller size."
        )
