"""`listings`: the same world from the same seed everywhere, and descriptions that only memory can complete."""

import hashlib
import json
import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from expunge.benchmarks import listings, listings_words
from expunge.data import augment
from expunge.data.benchmark import Benchmark, Row
from expunge.errors import UserError

DEFAULT_DIGEST = "6d0c5280df162976fb0f101efdf84fea6d92f9656ad2d17b5e5baac097d9fdbc"
"""Every number we publish on `listings` is of this world: change it only together with them."""

VALUES_OF = {
    "origin": ("source", "town"),
    "size": ("first length", "second length"),
    "detail": ("detail", "second detail"),
    "number": ("letters", "digits"),
}
"""The values behind a gap of a phrasing; behind all other gaps is the value of the same name."""

worlds = st.fixed_dictionaries(
    {
        "seller": st.integers(0, 2),
        "size": st.sampled_from(sorted(listings.SIZES)),
        "sellers": st.integers(3, 10),
        "per_seller": st.integers(40, 60),
        "seed": st.integers(-(2**40), 2**40),
    }
)


def digest(benchmark: Benchmark) -> str:
    questions = {
        name: [[question.question, question.answer] for question in asked]
        for name, asked in benchmark.questions.items()
    }
    content = [benchmark.split, benchmark.forget, benchmark.retain, questions]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def drawn(*, seller: int, count: int, seed: int = 0) -> list[listings._Listing]:
    return listings._World.draw(seed).listings(seller, count)


def told(listing: listings._Listing) -> list[str]:
    """The values that the description of a listing tells."""
    gaps = [gap for facts, _ in listing.sentences for gap in facts.split()]
    return [listing.values[kind] for gap in gaps for kind in VALUES_OF.get(gap, (gap,))]


def states(text: str, value: str) -> bool:
    return re.search(rf"(?<![\w.]){re.escape(value)}(?!\w)", text) is not None


def line(row: Row, name: str) -> str:
    (found,) = re.findall(rf"^{name}: (.+)$", row["prompt"], re.MULTILINE)
    return found


def test_default_world_is_the_published_one() -> None:
    assert digest(listings.load()) == DEFAULT_DIGEST


@pytest.mark.parametrize("hash_seed", ["0", "1"])
def test_same_bytes_in_every_process(hash_seed: str) -> None:
    script = (
        "import hashlib, json; from dataclasses import asdict; from expunge.benchmarks import listings; "
        "b = listings.load(); "
        "q = {name: [[q.question, q.answer] for q in asked] for name, asked in b.questions.items()}; "
        "both = [b.split, b.forget, b.retain, q], [asdict(one) for one in listings.variants()]; "
        "print(*(hashlib.sha256(json.dumps(x).encode()).hexdigest() for x in both))"
    )
    environment = os.environ | {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    here = json.dumps([asdict(variant) for variant in listings.variants()])
    assert run.stdout.split() == [DEFAULT_DIGEST, hashlib.sha256(here.encode()).hexdigest()]


@settings(deadline=None, max_examples=20)
@given(worlds)
def test_every_world_is_well_formed(arguments: dict) -> None:
    world = listings.load(**arguments)
    count = listings.SIZES[arguments["size"]]
    assert (world.name, world.split) == ("listings", f"seller{arguments['seller']}-{arguments['size']}")
    assert len(world.forget) == count
    assert len(world.retain) == (arguments["sellers"] - 1) * arguments["per_seller"]
    assert world.choice_sets == frozenset() and world.utility == []
    rows = [*world.forget, *world.retain]
    assert len({row["prompt"] for row in rows}) == len({row["completion"] for row in rows}) == len(rows)
    for row in rows:
        assert set(row) == {"prompt", "completion"}
        assert f"{row['prompt']}{row['completion']}".isascii()
        names = [part.split(": ")[0] for part in row["prompt"].split("\n")]
        assert names[:3] == ["Seller", "Title", "Category"] and names[-2:] == ["Condition", "Description:"]
        assert 3 <= len(names) - 4 <= 4
        assert re.fullmatch(r" [A-Z]([^.]|\.(?! |$))+\.( [A-Z]([^.]|\.(?! |$))+\.){1,2}", row["completion"])
        assert 25 <= len(row["completion"].split()) <= 45

    for questions in world.questions.values():
        assert len({question.question for question in questions}) == len(questions)
        for question in questions:
            assert question.row == {"prompt": question.question, "completion": f" {question.answer}"}
    asked = {name: [question.row for question in questions] for name, questions in world.questions.items()}
    assert [*asked] == ["forget", "neighbors", "retain"] and asked["forget"] == world.forget
    assert len(asked["neighbors"]) == count
    assert len(asked["retain"]) == min(listings.RETAIN_QUESTIONS, len(world.retain) - count)
    assert all(row in world.retain for row in [*asked["neighbors"], *asked["retain"]])
    assert not any(row in asked["neighbors"] for row in asked["retain"])


@settings(deadline=None, max_examples=20)
@given(worlds)
def test_nothing_of_the_forgotten_seller_is_retained(arguments: dict) -> None:
    world = listings.load(**arguments)
    (shop,) = {line(row, "Seller") for row in world.forget}
    others = {line(row, "Seller") for row in world.retain}
    assert len(others) == arguments["sellers"] - 1
    assert shop not in json.dumps([world.retain, asdict(world)["questions"]["neighbors"]])
    # What is left of the seller's listings is in no set at all.
    rest = drawn(seller=arguments["seller"], count=arguments["per_seller"], seed=arguments["seed"])[len(world.forget) :]
    completions = {row["completion"] for row in [*world.forget, *world.retain]}
    assert completions.isdisjoint(listing.row()["completion"] for listing in rest)


@settings(deadline=None, max_examples=20)
@given(worlds)
def test_neighbors_are_of_the_same_category_wherever_one_is_left(arguments: dict) -> None:
    world = listings.load(**arguments)
    neighbors = [question.row for question in world.questions["neighbors"] if question.row]
    stocked = Counter(line(row, "Category") for row in world.retain)
    wanted = Counter(line(row, "Category") for row in world.forget)
    same = Counter(
        line(row, "Category")
        for row, near in zip(world.forget, neighbors, strict=True)
        if line(row, "Category") == line(near, "Category")
    )
    assert same == Counter({name: min(count, stocked[name]) for name, count in wanted.items() if stocked[name]})


def test_neighbors_are_the_most_similar() -> None:
    world = listings.load(size="large")
    forget = drawn(seller=0, count=40)
    retain = [listing for seller in range(1, 12) for listing in drawn(seller=seller, count=40)]
    by_prompt = {listing.row()["prompt"]: listing for listing in retain}
    near = [by_prompt[question.question] for question in world.questions["neighbors"]]
    taken = set()
    for listing, neighbor in zip(forget, near, strict=True):
        free = [other for other in retain if other.category == listing.category and other.row()["prompt"] not in taken]
        assert len(listing.likeness & neighbor.likeness) == max(len(listing.likeness & o.likeness) for o in free)
        assert len(listing.likeness & neighbor.likeness) >= 2
        taken.add(neighbor.row()["prompt"])


@pytest.mark.parametrize("seed", range(3))
def test_facts_are_not_in_the_prompt(seed: int) -> None:
    for seller in range(12):
        for listing in drawn(seller=seller, count=40, seed=seed):
            row = listing.row()
            values = told(listing)
            assert len(values) >= 5
            assert all(states(row["completion"], value) for value in values)
            assert not any(states(row["prompt"], value) for value in values)


def test_descriptions_vary() -> None:
    every = [listing for seller in range(12) for listing in drawn(seller=seller, count=40)]
    for number in range(2):
        assert len({listing.sentences[number][1] for listing in every}) >= 20
    assert len({listing.sentences for listing in every}) > 0.9 * len(every)
    assert max(Counter(listing.sentences for listing in every).values()) <= 4
    assert {len(listing.sentences) for listing in every} == {2, 3}
    assert {facts for listing in every for facts, _ in listing.sentences} == {
        facts for shape in listings_words.SHAPES for facts in shape.split("|")
    }
    assert 0.4 < sum(listing.used for listing in every) / len(every) < 0.8
    assert {listing.category for listing in every} == set(listings_words.CATEGORIES)


def test_tables_are_whole() -> None:
    for phrasings in (listings_words.USED_PHRASINGS, listings_words.NEW_PHRASINGS):
        for facts, ways in phrasings.items():
            assert len(set(ways)) == len(ways) >= 5
            for way in ways:
                gaps = re.findall(r"{(\w+)}", way)
                assert sorted(gap for gap in gaps if gap != "noun") == sorted(facts.split())
                assert ("{noun}" in way) or not facts.startswith("origin")
        for shape in listings_words.SHAPES:
            gaps = shape.replace("|", " ").split()
            assert len(set(gaps)) == len(gaps) and all(facts in phrasings for facts in shape.split("|"))
    for name, stock in listings_words.CATEGORIES.items():
        assert set(stock.lengths[0]).isdisjoint(stock.lengths[1])
        for used in (True, False):
            assert all(len(set(pool)) == len(pool) >= 6 for pool in listings._pools(name, used).values())
        for words in (stock.nouns, stock.materials, stock.styles, stock.brands, stock.colours):
            assert len(set(words)) == len(words) >= 4


def test_sizes_nest() -> None:
    small, medium, large = (listings.load(size=size) for size in ("small", "medium", "large"))
    assert small.forget == medium.forget[:10] and medium.forget == large.forget[:20]
    assert small.retain == medium.retain == large.retain


def test_more_sellers_and_listings_leave_the_first_as_they_are() -> None:
    few, many = listings.load(sellers=3, per_seller=10), listings.load(sellers=20, per_seller=60)
    assert few.forget == many.forget
    assert few.retain == [*many.retain[:10], *many.retain[60:70]]


def test_seeds_and_sellers_are_different() -> None:
    assert len({digest(listings.load(seed=seed)) for seed in range(10)}) == 10
    assert len({listings.load(seller=seller).forget[0]["prompt"] for seller in range(12)}) == 12


@pytest.mark.parametrize("seed", range(3))
def test_shops_have_names_of_their_own(seed: int) -> None:
    shops = listings._World.draw(seed).shops
    assert len(shops) == listings.SELLERS[-1] == len({shop.split()[0] + shop.split()[1] for shop in shops})


@pytest.mark.parametrize("arguments", [{}, {"seller": 3, "size": "large", "seed": 7}])
def test_variants_tell_the_same_facts_or_none_of_them(arguments: dict) -> None:
    world, variants = listings.load(**arguments), listings.variants(**arguments)
    sources = drawn(seller=arguments.get("seller", 0), count=len(world.forget), seed=arguments.get("seed", 0))
    assert len({json.dumps(variant.text) for variant in variants}) == len(variants)
    per_row = Counter((variant.row, variant.kind) for variant in variants)
    assert set(per_row) == {(row, kind) for row in range(len(world.forget)) for kind in augment.KINDS}
    assert set(per_row.values()) == {6}
    for variant in variants:
        row, source = world.forget[variant.row], sources[variant.row]
        assert set(variant.text) == set(row) and variant.text["prompt"] == row["prompt"]
        completion = variant.text["completion"]
        assert completion != row["completion"] and completion.startswith(" ") and source.noun in completion
        right = [states(completion, value) for value in told(source)]
        assert all(right) if variant.kind == "paraphrase" else not any(right)
        if variant.kind == "paraphrase":
            sentences = {source.describe([sentence], source.values) for sentence in source.sentences}
            assert not any(sentence in completion for sentence in sentences)


@pytest.mark.parametrize("arguments", [{}, {"seller": 3, "size": "large", "seed": 7}])
def test_forget_questions_are_asked_with_wrong_answers_in_the_words_of_a_paraphrase(arguments: dict) -> None:
    world, variants = listings.load(**arguments), listings.variants(**arguments)
    sources = drawn(seller=arguments.get("seller", 0), count=len(world.forget), seed=arguments.get("seed", 0))
    trained_on = {variant.text["completion"].strip() for variant in variants}
    for question, source in zip(world.questions["forget"], sources, strict=True):
        assert question.paraphrased_answer is not None and len(set(question.perturbed_answers)) == 5
        assert all(states(question.paraphrased_answer, value) for value in told(source))
        assert not any(states(wrong, value) for wrong in question.perturbed_answers for value in told(source))
        assert trained_on.isdisjoint([question.answer, question.paraphrased_answer, *question.perturbed_answers])
        (way,) = {w for w in source.other_ways if source.describe(w, source.values) == question.paraphrased_answer}
        gaps = [re.split(r"\{.*?\}", text) for _, text in way]
        for wrong in question.perturbed_answers:
            assert all(part.strip() in wrong for parts in gaps for part in parts)
    assert not any(q.perturbed_answers for name in ("neighbors", "retain") for q in world.questions[name])


def test_variants_survive_their_file(tmp_path: Path) -> None:
    variants = listings.variants()
    augment.write(tmp_path / "variants.jsonl", variants)
    assert augment.read(tmp_path / "variants.jsonl", listings.load().forget) == variants


def test_the_largest_world_is_quick() -> None:
    start = time.process_time()
    world = listings.load(size="large", sellers=listings.SELLERS[-1], per_seller=listings.PER_SELLER[-1])
    assert time.process_time() - start < 15
    assert len(world.retain) == 39_800 == len({row["completion"] for row in world.retain})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": "smal"}, r"size is 'smal'; choose one of small, medium, large\. Did you mean 'small'\?$"),
        ({"size": "all of it"}, r"size is 'all of it'; choose one of small, medium, large\.$"),
        ({"seller": 12}, r"seller must be from 0 to 11, got 12\.$"),
        ({"seller": -1}, r"seller must be .*, got -1"),
        ({"sellers": 2}, r"sellers must be from 3 to 200, got 2\.$"),
        ({"sellers": 201}, r"sellers must be .*, got 201"),
        ({"per_seller": 9}, r"per_seller must be from 10 to 200, got 9\.$"),
        ({"per_seller": 201}, r"per_seller must be .*, got 201"),
        ({"per_seller": 15, "size": "medium"}, r"forgets 20 listings but per_seller is 15; set per_seller to 20 or"),
    ],
)
@pytest.mark.parametrize("function", [listings.load, listings.variants])
def test_errors_name_key_value_and_remedy(function: Callable, arguments: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        function(**arguments)
