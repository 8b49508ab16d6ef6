"""Rows made of rows by rules: what comes out says something else, and what can't is counted."""

from collections import Counter

from expunge.data.augment import parts
from expunge.data.swaps import about_others, names_in, shares_a_name, variants

ROWS = [
    {"question": "Where was Ada Quill born?", "answer": "Ada Quill was born in Lunport in 1971."},
    {"question": "Where was Ben Ferro born?", "answer": "Ben Ferro was born in Castrel in 1984."},
    {"question": "What does he like?", "answer": "He likes tea."},
]


def test_names_are_words_of_names_and_not_of_openings() -> None:
    assert names_in(["Ada Quill was born in Lunport. Certainly she was.", "Yes, in Rome."]) == {
        "ada", "quill", "lunport", "rome",
    }  # fmt: skip
    assert shares_a_name("Quill & Co.", {"quill"}) and not shares_a_name("a quilling pen", {"quill"})


def test_questions_ask_about_others() -> None:
    names = names_in([text for row in ROWS for text in parts(row)])
    asked = about_others([row["question"] for row in ROWS], names, most=6, seed=0)
    assert len(set(asked)) == len(asked) == 6
    assert all(question.startswith("Where was ") and question.endswith(" born?") for question in asked)
    assert not any(shares_a_name(question, names) for question in asked)
    assert asked == about_others([row["question"] for row in ROWS], names, most=6, seed=0)
    assert about_others(["Did Ann Lee live in France?"], set(), most=1, seed=0)[0].startswith("Did ")
    assert not about_others(["What is rain?"], set(), most=6, seed=0)


def test_variants_say_another_thing_or_the_same_in_other_words() -> None:
    made, missing = variants(ROWS, {"paraphrase": 2, "perturbation": 2}, seed=0)
    said = [variant for variant in made if variant.kind == "paraphrase"]
    wrong = [variant for variant in made if variant.kind == "perturbation"]
    assert Counter(variant.row for variant in said) == {0: 2, 1: 2, 2: 2}
    for variant in said:
        question, answer = parts(ROWS[variant.row])
        assert question in variant.text["question"] and variant.text["question"] != question
        assert variant.text["answer"] == answer
    assert Counter(variant.row for variant in wrong) == {0: 2, 1: 2}
    assert {variant.text["answer"] for variant in wrong if variant.row == 0} == {
        "Ada Quill was born in Castrel in 1971.", "Ada Quill was born in Lunport in 1984.",
    }  # fmt: skip
    assert missing == {"paraphrase": 0, "perturbation": 2}
