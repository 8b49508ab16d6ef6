"""Overlap is found for what it is, near-duplicates exactly and fast, and lengths are counted right."""

import random
import re
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from expunge.data.benchmark import Row
from expunge.data.checks import (
    SHINGLE_WORDS,
    NearDuplicate,
    check_disjoint,
    check_not_empty,
    near_duplicates,
    summarise,
)
from expunge.data.encode import Encoded
from expunge.data.formats import read_rows
from expunge.errors import UserError


def _texts(*texts: str):
    return [{"text": text} for text in texts]


def test_an_empty_set_is_refused():
    with pytest.raises(UserError, match="the forget set has no rows"):
        check_not_empty([])
    check_not_empty(_texts("a"))


def test_overlap_is_counted_and_the_first_one_named():
    forget = [{"question": f"Who is author {i}?", "answer": "Ada."} for i in range(4)]
    retain = _texts("something else", "WHO is  author 2?\nada.", "who is author 3? ada.", "who is author 2? ada.")
    with pytest.raises(UserError, match=r"^2 of 4 forget rows .*forget row 2 = retain row 1\); drop"):
        check_disjoint(forget, retain)
    check_disjoint(forget[:2], retain)
    check_disjoint(forget, [])


def test_the_same_exchange_in_another_format_overlaps():
    messages = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Ada."}]
    rows = [
        {"question": "Who?", "answer": "Ada."},
        {"prompt": "Who?", "completion": " Ada."},
        {"prompt": messages[:1], "completion": messages[1:]},
        {"messages": messages},
    ]
    for row in rows:
        with pytest.raises(UserError, match="1 of 1 forget rows"):
            check_disjoint(rows[:1], [row])


def _brute_force(forget: list[Row], retain: list[Row], threshold: float):
    """The definition: Jaccard's similarity of every pair, the first best one a forget row."""

    def shingles(row: Row):
        words = re.findall(r"\w+", row["text"])
        runs = {tuple(words[i : i + SHINGLE_WORDS]) for i in range(len(words) - SHINGLE_WORDS + 1)}
        return runs or {row["text"]}

    found = []
    for i, ours in enumerate(map(shingles, forget)):
        similarities = [len(ours & theirs) / len(ours | theirs) for theirs in map(shingles, retain)]
        best = max(range(len(retain)), key=lambda j: similarities[j], default=None)
        if best is not None and similarities[best] >= threshold:
            found.append(NearDuplicate(i, best, similarities[best]))
    return found


WORDS = st.lists(st.sampled_from("abc"), min_size=1, max_size=12).map(" ".join)
SET = st.lists(WORDS, max_size=6).map(lambda texts: _texts(*texts))


@settings(deadline=None, max_examples=150)
@given(SET, SET, st.sampled_from([0.1, 0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]))
def test_near_duplicates_are_those_of_comparing_every_pair(forget: list[Row], retain: list[Row], threshold: float):
    assert near_duplicates(forget, retain, threshold=threshold) == _brute_force(forget, retain, threshold)


def test_a_threshold_that_floating_point_rounds_up_keeps_its_matches():
    words = [str(i) for i in range(37)]  # 35 shingles; 0.8 · 35 = 28.000000000000004
    forget, retain = _texts(" ".join(words[:30])), _texts(" ".join(words))
    assert near_duplicates(forget, retain) == [NearDuplicate(0, 0, 28 / 35)]


def test_one_changed_word_in_thirty_is_a_near_duplicate():
    words = [f"word{i}" for i in range(30)]
    changed = [*words[:15], "other", *words[16:]]
    (found,) = near_duplicates(_texts(" ".join(words)), _texts("unlike", ", ".join(changed).upper()))
    assert (found.forget, found.retain) == (0, 1) and found.similarity == 25 / 31


def test_tofu_has_neither_overlap_nor_near_duplicates(shared_data: Path):
    forget = read_rows(shared_data / "tofu" / "forget10.json")
    retain = read_rows(shared_data / "tofu" / "retain90.json")
    started = time.perf_counter()
    check_disjoint(forget, retain)
    assert near_duplicates(forget, retain) == []
    assert time.perf_counter() - started < 5


def test_large_sets_take_seconds():
    draw = random.Random(0)
    vocabulary = [f"w{i}" for i in range(1000)]
    retain = [draw.choices(vocabulary, k=50) for _ in range(10_000)]
    forget = [[*words[:25], "changed", *words[26:]] for words in retain[:1000]]
    started = time.perf_counter()
    found = near_duplicates(_texts(*map(" ".join, forget)), _texts(*map(" ".join, retain)))
    assert time.perf_counter() - started < 10
    assert [(pair.forget, pair.retain) for pair in found] == [(i, i) for i in range(1000)]


def test_lengths():
    lengths = summarise("forget", [Encoded((1,) * 5, 2), Encoded((1,) * 1200, 1000), Encoded((1,) * 9, 1)])
    assert (lengths.rows, lengths.tokens, lengths.supervised) == (3, 1214, 211)
    line = "forget: 3 rows, 1,214 tokens of which 211 supervised, length 5 / 9 / 1200 (min / median / max)"
    assert str(lengths) == line
