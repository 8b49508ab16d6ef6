"""The everyday questions: what training keeps with must not be what it is measured with."""

from expunge.benchmarks import general
from expunge.data import everyday
from expunge.data.augment import parts
from expunge.data.words import words


def test_no_question_is_empty_or_stands_twice() -> None:
    asked = [" ".join(words(question)) for question in everyday.questions()]
    assert len(asked) == 130
    assert all(asked)
    assert len(set(asked)) == len(asked)


def test_no_question_is_one_that_a_model_is_measured_with() -> None:
    measured = {" ".join(words(parts(row)[0])) for row in general.load().rows}
    assert len(measured) == 60
    assert measured.isdisjoint(" ".join(words(question)) for question in everyday.questions())
