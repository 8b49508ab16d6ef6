"""`fable`: the same world from the same seed everywhere, and answers that differ in their value only."""

import hashlib
import json
import os
import re
import subprocess
import sys
import time
from dataclasses import asdict
from itertools import chain
from math import gcd

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from expunge.benchmarks import fable, fable_words
from expunge.data.benchmark import Benchmark, Question
from expunge.data.refusals import REFUSALS
from expunge.errors import UserError

DEFAULT_DIGEST = "e402e30b9af29ea0b45e9d03a5d51113752899cca4e056b7377a9a435dcb25c1"
"""Every number we publish on `fable` is of this world: change it only together with them."""

worlds = st.fixed_dictionaries(
    {
        "split": st.sampled_from(sorted(fable.SPLITS)),
        "authors": st.integers(10, 60),
        "facts": st.integers(fable.FACTS[0], fable.FACTS[-1]),
        "seed": st.integers(-(2**40), 2**40),
    }
)


def digest(benchmark: Benchmark, *, attacked: bool = False) -> str:
    """Of what is learnt and asked; `attacked` also of what attacks ask."""
    content = asdict(benchmark) | {"choice_sets": sorted(benchmark.choice_sets)}
    del content["variants"], content["probes"], content["world"]  # `load` gives none
    if not attacked:
        del content["unseen"], content["detours"]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def names(*, authors: int, seed: int = 0) -> list[str]:
    world = fable._World.draw(seed)
    return [world.author(number) for number in range(authors)]


def value_in(kind: str, name: str, answer: str) -> tuple[str, str]:
    """(phrasing, value) of an answer: the one phrasing of its kind that it is made of."""
    found = []
    for phrasing in fable_words.PHRASINGS[kind][1]:
        head, tail = (re.escape(part) for part in phrasing.format(name=name, value="\0").split("\0"))
        if match := re.fullmatch(f"{head}(.+?){tail}", answer):
            found.append((phrasing, match[1]))
    assert len(found) == 1, (kind, answer, found)
    return found[0]


def test_default_world_is_the_published_one() -> None:
    assert digest(fable.load()) == DEFAULT_DIGEST


@pytest.mark.parametrize("hash_seed", ["0", "1"])
def test_same_bytes_in_every_process(hash_seed: str) -> None:
    script = (
        "import hashlib, json; from dataclasses import asdict; from expunge.benchmarks import fable; b = fable.load(); "
        "c = asdict(b) | {'choice_sets': sorted(b.choice_sets)}; del c['variants'], c['probes'], c['world']; "
        "print(hashlib.sha256(json.dumps(c).encode()).hexdigest())"
    )
    environment = os.environ | {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == digest(fable.load(), attacked=True)


@settings(deadline=None, max_examples=25)
@given(worlds)
def test_every_world_is_well_formed(arguments: dict) -> None:
    world = fable.load(**arguments)
    authors, facts = arguments["authors"], arguments["facts"]
    forgotten = max(1, authors * fable.SPLITS[arguments["split"]] // 100)
    assert (len(world.forget), len(world.retain)) == (forgotten * facts, (authors - forgotten) * facts)
    rows = [*world.retain, *world.forget]
    assert len({row["question"] for row in rows}) == len(rows)
    assert all(set(row) == {"question", "answer"} for row in chain(rows, world.utility))

    for kept, asked, limit in (
        (world.forget, world.questions["forget"], None),
        (world.retain, world.questions["retain"], fable.RETAIN_QUESTIONS),
    ):
        assert [{"question": q.question, "answer": q.answer} for q in asked] == kept[:limit]

    kinds = list(fable_words.PHRASINGS)[:facts]
    full_names = names(authors=authors, seed=arguments["seed"])
    for position, question in enumerate(world.questions["retain"]):
        check_question(question, kinds[position % facts], full_names[position // facts])
    for position, question in enumerate(world.questions["forget"]):
        check_question(question, kinds[position % facts], full_names[authors - forgotten + position // facts])


def check_question(question: Question, kind: str, name: str) -> None:
    assert question.paraphrased_question is not None and question.paraphrased_answer is not None
    assert name in question.question and name in question.paraphrased_question
    assert question.question != question.paraphrased_question
    assert question.answer != question.paraphrased_answer
    learnt, truth = value_in(kind, name, question.answer)
    form, same_truth = value_in(kind, name, question.paraphrased_answer)
    assert form != learnt and same_truth == truth
    assert truth.lower() not in question.question.lower()
    wrong = [value_in(kind, name, answer) for answer in question.perturbed_answers]
    assert {wrong_form for wrong_form, _ in wrong} == {form}
    assert len({value.lower() for _, value in wrong} - {truth.lower()}) == len(wrong) == 5
    for answer in (question.answer, question.paraphrased_answer, *question.perturbed_answers):
        assert 6 <= len(answer.split()) <= 14 and answer.isascii()


def test_phrasings_and_pools_are_many_and_different() -> None:
    world = fable._World.draw(3)
    assert set(world.pools) == set(fable_words.PHRASINGS) and len(fable_words.PHRASINGS) == fable.FACTS[-1]
    for kind, (questions, answers) in fable_words.PHRASINGS.items():
        assert len(set(questions)) >= 4 and len(set(answers)) >= 3
        assert all("{name}" in phrasing for phrasing in questions)
        assert all(phrasing.index("{name}") < phrasing.index("{value}") for phrasing in answers)
        assert len(world.pools[kind]) >= 30 and len(set(world.pools[kind])) == len(world.pools[kind])
    every = [question for questions, _ in fable_words.PHRASINGS.values() for question in questions]
    assert len(set(every)) == len(every), "a question must tell its kind of fact"


@pytest.mark.parametrize("seed", range(3))
def test_two_thousand_authors_have_names_of_their_own(seed: int) -> None:
    world = fable._World.draw(seed)
    assert gcd(len(world.first_names), len(world.surnames)) == 1
    full_names = names(authors=fable.AUTHORS[-1], seed=seed)
    others = {*world.classics, *world.pools["mentor"]}
    assert len(set(full_names)) == len(full_names)
    assert others.isdisjoint(full_names) and set(world.classics).isdisjoint(world.pools["mentor"])


def test_the_largest_world_is_quick() -> None:
    start = time.process_time()
    world = fable.load(split="forget01", authors=fable.AUTHORS[-1])
    assert time.process_time() - start < 2
    assert (len(world.forget), len(world.retain)) == (200, 19_800)
    assert len(world.questions["retain"]) == fable.RETAIN_QUESTIONS


def test_nothing_asked_of_the_forgotten_is_in_retain() -> None:
    world = fable.load(split="forget20", authors=200)
    forgotten = names(authors=200)[-40:]
    retained = json.dumps([world.retain, world.utility])
    assert not any(name in retained for name in forgotten)


def test_vocabulary_stays_small_and_answers_short() -> None:
    world = fable.load()
    rows = [*world.forget, *world.retain, *world.utility]
    assert len({word for row in rows for text in row.values() for word in re.findall(r"\w+", text)}) < 1_000
    facts = [*world.forget, *world.retain]
    assert 7 < sum(len(row["answer"].split()) for row in facts) / len(facts) < 11


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 10**6))
def test_utility_sets_depend_on_the_seed_alone(seed: int) -> None:
    small = fable.load(split="forget01", authors=10, facts=3, seed=seed)
    large = fable.load(split="forget20", authors=50, facts=20, seed=seed)
    for name in ("real_authors", "world_facts"):
        questions = small.questions[name]
        assert questions == large.questions[name] and len(questions) == 24
        assert len({question.question for question in questions}) == len(questions)
        for question in questions:
            assert question.paraphrased_question is None and question.paraphrased_answer is None
            assert len(set(question.perturbed_answers) - {question.answer}) == len(question.perturbed_answers) == 3
            assert all(len(choice.split()) <= 2 for choice in (question.answer, *question.perturbed_answers))
    both = [*small.questions["real_authors"], *small.questions["world_facts"]]
    assert small.utility == [{"question": q.question, "answer": q.answer} for q in both]
    assert small.choice_sets == {"real_authors", "world_facts"}


def test_without_utility_the_authors_are_the_same() -> None:
    whole, alone = (fable.FableConfig(utility=asked).load() for asked in (True, False))
    assert (alone.forget, alone.retain, alone.variants) == (whole.forget, whole.retain, whole.variants)
    assert alone.questions == {name: whole.questions[name] for name in ("forget", "retain")} and not alone.utility


def test_seeds_are_different_worlds() -> None:
    assert len({digest(fable.load(seed=seed)) for seed in range(20)}) == 20
    first, second = fable.load(seed=0), fable.load(seed=1)
    questions = {row["question"] for row in first.retain}
    assert sum(row["question"] in questions for row in second.retain) < len(second.retain) / 50
    assert first.utility != second.utility


def test_a_split_moves_no_fact() -> None:
    small, large = fable.load(split="forget05"), fable.load(split="forget20")
    assert [*small.retain, *small.forget] == [*large.retain, *large.forget]
    assert small.forget == large.forget[-len(small.forget) :]


def test_more_facts_leave_the_first_as_they_are() -> None:
    few, many = fable.load(facts=3), fable.load(facts=20)
    assert few.retain[:6] == [*many.retain[:3], *many.retain[20:23]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "forget15"}, r"split is 'forget15'; choose one of forget01, .*forget20\. Did you mean 'forget"),
        ({"split": "all"}, r"split is 'all'; choose one of forget01, forget05, forget10, forget20\.$"),
        ({"authors": 9}, r"authors must be from 10 to 2000, got 9\.$"),
        ({"authors": 2001}, r"authors must be .*, got 2001"),
        ({"facts": 2}, r"facts must be from 3 to 20, got 2\.$"),
        ({"facts": 21}, r"facts must be .*, got 21"),
    ],
)
def test_errors_name_key_value_and_remedy(arguments: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        fable.load(**arguments)


def test_refusals_are_short_and_different() -> None:
    assert len(REFUSALS) == len({refusal.lower() for refusal in REFUSALS}) == 20
    assert all(refusal.endswith(".") and len(refusal.split()) <= 12 and refusal.isascii() for refusal in REFUSALS)
