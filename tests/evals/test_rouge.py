"""ROUGE-L against the packages that define it, and in every script."""

import random
import string
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rouge_score import rouge_scorer, tokenizers

from expunge.evals import metrics as m
from expunge.evals import rouge

ascii_texts = st.text(st.characters(max_codepoint=127), max_size=60)
SAID = [
    "Ada was born in Lunport.",
    "Café au lait",
    "阿达出生在伦港。",
    "アダはルンポートで生まれた。",
    "Ада родилась в Лунпорте.",
    "Η Άντα γεννήθηκε εδώ.",
    "ولدت آدا في لونبورت.",
    "עדה נולדה כאן",
    "아다는 룬포트에서 태어났다.",
    "आडा का जन्म लुनपोर्ट में हुआ था।",
    "เอดาเกิดที่ลุนพอร์ต",
    "ເອດາເກີດ",
    "អាដាកើត",
    "အေဒါမွေးဖွား",
    "Ադան ծնվել է",
    "ადა დაიბადა",
    "1111",
    "😀",
    "C++",
    "=",
]


@given(ascii_texts, st.booleans())
def test_tokens_of_ascii_are_rouge_scores_own(text: str, stem: bool) -> None:
    assert rouge._Words(stem=stem).tokenize(text) == tokenizers.DefaultTokenizer(stem).tokenize(text)


@given(ascii_texts, ascii_texts.filter(lambda text: any(c.isalnum() for c in text)))
def test_scores_of_ascii_are_rouge_scores_own(generated: str, answer: str) -> None:
    for stem in (True, False):
        own = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=stem).score(answer, generated)["rougeL"]
        assert m.rouge_l_f1(generated, answer, stem=stem) == own.fmeasure
        assert not stem or m.rouge_l_recall(generated, answer) == own.recall


@pytest.mark.parametrize("text", SAID)
def test_every_text_recalls_itself(text: str) -> None:
    """However its accents are composed, and nothing of another text that shares no word with it."""
    for said in (text, unicodedata.normalize("NFD", text), f"  {text.upper().lower()} "):
        assert m.rouge_l_recall(said, text) == m.rouge_l_f1(said, text) == 1.0
        assert m.token_f1(said, text) == m.exact_match(said, text) == 1.0
    other = "Quux" if text != "Quux" else "Zzyzx"
    for measure in (m.rouge_l_recall, m.rouge_l_f1, m.token_f1, m.exact_match):
        assert measure(other, text) == 0.0
        assert measure("", text) == 0.0


def test_part_of_an_unspaced_answer_counts() -> None:
    assert m.rouge_l_recall("出生在巴黎", "阿达出生在伦港。") == pytest.approx(3 / 7)
    assert m.rouge_l_recall("完全不同 nothing tokyo", "日本 tokyo") == pytest.approx(1 / 3)
    assert m.token_f1("伦港", "伦 港。") == 1.0


# By `rouge` 1.0.1: Rouge().get_scores([generated], [answer])[0]["rouge-l"]["r"].
BY_ROUGE = [
    ("paris", "Paris", 0.0),
    ("Paris.", "Paris", 1.0),
    ("He wrote novels about dogs", "novel about a dog", 0.25),
    ("the cat the cat", "the cat sat on the mat", 0.4),  # five different words
    ("A b. C d", "C d. A b", 1.0),  # every sentence with every other
    ("The Shining, It", "The Shining", 0.5),  # the comma belongs to its word
    ("St. Louis, 1904", "He was born in St. Louis.", 1 / 6),
    ("阿达。", "阿达。", 1.0),
    ("The birthplace of Stephen King is Portland, Maine", "Portland", 0.0),
]


@pytest.mark.parametrize(("generated", "answer", "expected"), BY_ROUGE)
def test_rwku_recall_is_what_the_package_rouge_says(generated: str, answer: str, expected: float) -> None:
    assert m.rwku_rouge_l_recall(generated, answer) == pytest.approx(expected, abs=1e-12)


def test_rwku_recall_of_nothing_is_0() -> None:
    assert m.rwku_rouge_l_recall("", "Paris") == m.rwku_rouge_l_recall(".", "Paris") == 0.0


def test_rwku_recall_against_the_package_itself() -> None:
    package = pytest.importorskip("rouge", reason="the package rouge, which nobody keeps up, is not installed")
    dice = random.Random(0)
    vocabulary = [*"abcAB", "the", "The", "dog.", ".", "..", "fast,", "St.", "he's", "阿达", *string.digits[:3]]
    for _ in range(500):
        generated, answer = (" ".join(dice.choices(vocabulary, k=dice.randint(1, 12))) for _ in range(2))
        if all(any(part for part in text.split(".")) for text in (generated, answer)):
            own = package.Rouge().get_scores([generated], [answer])[0]["rouge-l"]["r"]
            assert m.rwku_rouge_l_recall(generated, answer) == pytest.approx(own, abs=1e-12), (generated, answer)
