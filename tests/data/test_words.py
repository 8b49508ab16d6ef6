"""Words of every script: unchanged for ASCII, the same whatever the case and the composition of accents."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from expunge.data import words as w


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Ann's 2 cats, a_b", ["ann", "s", "2", "cats", "a", "b"]),
        ("阿达出生在伦港。", list("阿达出生在伦港")),
        ("ラーメン", list("ラーメン")),
        ("Ада родилась", ["ада", "родилась"]),
        ("서울에서 태어났다", ["서울에서", "태어났다"]),
        ("नमस्ते दुनिया", ["नमस्ते", "दुनिया"]),
        ("ولدت آدا", ["ولدت", "آدا"]),
        ("ไทย", list("ไทย")),
        ("သည်", ["သ", "ည်"]),
        ("می\u200cخواهم co\u00adop", ["میخواهم", "coop"]),
        ("STRASSE straße ΟΔΟΣ οδός", ["strasse", "strasse", "οδοσ", "οδόσ"]),
        ("伦敦 2012 Games", ["伦", "敦", "2012", "games"]),
        ("😀 … !", []),
    ],
)
def test_words(text: str, expected: list[str]) -> None:
    assert w.words(text) == expected


@given(st.text(max_size=40))
def test_composed_and_decomposed_texts_have_the_same_words(text: str) -> None:
    composed, decomposed = (unicodedata.normalize(form, text) for form in ("NFC", "NFD"))
    assert w.words(composed) == w.words(decomposed)
    assert w.caseless(composed) == w.caseless(decomposed)


def test_marks_stand_alone_and_case_stays() -> None:
    assert w.words_and_marks("He said: no.") == ["He", "said", ":", "no", "."]
    assert w.words_and_marks("再见。😀") == ["再", "见", "。", "😀"]
