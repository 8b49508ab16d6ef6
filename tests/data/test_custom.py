"""Your own rows as a benchmark: what is held out, what is asked, and nothing on both sides."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from expunge.benchmarks import custom
from expunge.data.benchmark import Question, Variant
from expunge.errors import UserError


def write(path: Path, *rows: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def texts(*numbers: int) -> list[dict[str, str]]:
    return [{"text": f"Document number {n} says {n}."} for n in numbers]


def test_forget_alone(tmp_path: Path) -> None:
    path = write(tmp_path / "f.jsonl", {"question": "q", "answer": "a", "more": 1})
    benchmark = custom.load(forget=path, retain=None, seed=0)
    assert (benchmark.name, benchmark.split, benchmark.retain) == ("custom", path, [])
    assert benchmark.forget == [{"question": "q", "answer": "a"}]
    assert benchmark.questions == {"forget": [Question("q", "a", row={"question": "q", "answer": "a"})]}
    assert not benchmark.choice_sets, "nothing is multiple choice"


@pytest.mark.parametrize(("rows", "held_out"), [(9, 0), (10, 1), (25, 2)])
def test_a_tenth_of_retain_is_held_out(tmp_path: Path, rows: int, held_out: int) -> None:
    forget = write(tmp_path / "f.jsonl", *texts(-1))
    retain = write(tmp_path / "r.jsonl", *texts(*range(rows)))
    benchmark = custom.load(forget=forget, retain=retain, seed=0)
    assert len(benchmark.retain) == rows - held_out
    assert len(benchmark.questions.get("held_out", [])) == held_out
    asked = [q.row["prompt"] + q.row["completion"] for q in benchmark.questions.get("held_out", []) if q.row]
    assert {row["text"] for row in benchmark.retain}.isdisjoint(asked)
    assert len({*asked, *(row["text"] for row in benchmark.retain)}) == rows, "none is lost"


def test_which_rows_depends_on_the_seed_alone(tmp_path: Path) -> None:
    sources = {
        "forget": write(tmp_path / "f.jsonl", *texts(-1)),
        "retain": write(tmp_path / "r.jsonl", *texts(*range(50))),
    }
    first, same, other = (custom.load(**sources, seed=seed) for seed in (3, 3, 4))
    assert first == same and first.retain != other.retain


def test_at_most_so_many_are_asked(tmp_path: Path) -> None:
    forget = write(tmp_path / "f.jsonl", *texts(*range(custom.QUESTIONS + 30)))
    benchmark = custom.load(forget=forget, retain=None, seed=0)
    assert len(benchmark.forget) == custom.QUESTIONS + 30
    assert len(benchmark.questions["forget"]) == custom.QUESTIONS


def test_rows_on_both_sides_are_counted_in_the_files_own_rows(tmp_path: Path) -> None:
    """All of them, those that would have been held out too."""
    forget = write(tmp_path / "f.jsonl", *texts(100, 7, 0))
    retain = write(tmp_path / "r.jsonl", *texts(*range(30)))
    for seed in range(5):
        with pytest.raises(UserError, match=r"2 of 3 forget rows .*forget row 1 = retain row 7"):
            custom.load(forget=forget, retain=retain, seed=seed)


USER, TOLD = {"role": "user", "content": "who?"}, {"role": "assistant", "content": "Ann."}


@pytest.mark.parametrize(
    ("row", "question", "answer"),
    [
        ({"prompt": "A number: ", "completion": " 5"}, "A number:", "5"),
        ({"prompt": [USER], "completion": [TOLD]}, "who?", "Ann."),
        ({"messages": [{"role": "system", "content": "s"}, USER, TOLD]}, "who?", "Ann."),
        ({"messages": [TOLD]}, "", "Ann."),
        ({"text": " aa bb cc dd"}, "aa bb", "cc dd"),
        ({"text": "word"}, "wo", "rd"),
        ({"text": "一二三四五六"}, "一二三", "四五六"),
    ],
)
def test_what_is_asked_of_every_format(tmp_path: Path, row: dict[str, Any], question: str, answer: str) -> None:
    benchmark = custom.load(forget=write(tmp_path / "f.jsonl", row), retain=None, seed=0)
    (asked,) = benchmark.questions["forget"]
    assert (asked.question, asked.answer) == (question, answer)
    assert asked.row == (row if "text" not in row else asked.row), "encoded as it was trained on"


@given(st.text().filter(str.strip))
def test_halves_of_a_text_are_the_text(text: str) -> None:
    row = custom._question({"text": text}).row
    assert row is not None and row["prompt"] + row["completion"] == text.strip()
    assert row["completion"].strip()


def asking(row: int, kind: str, *answers: str) -> list[Variant]:
    return [Variant(row, kind, {"question": "other words", "answer": a}) for a in answers]  # pyright: ignore


def test_variants_are_asked_with_or_trained_on(tmp_path: Path) -> None:
    forget = write(tmp_path / "f.jsonl", *({"question": f"q{i}", "answer": f"a{i}"} for i in range(3)))
    benchmark = custom.load(forget=forget, retain=None, seed=0)
    given = [
        *asking(0, "paraphrase", "p0", "p1", "p2"),
        *asking(0, "perturbation", "w0", "w1", "w2", "w3", "w4"),
        *asking(2, "perturbation", " only "),
    ]
    asked, left = custom.ask_with(given, benchmark, seed=0)
    assert asked.questions["forget"] == [
        Question("q0", "a0", perturbed_answers=("w0", "w1"), paraphrased_answer="p0", row=benchmark.forget[0]),
        Question("q1", "a1", row=benchmark.forget[1]),
        Question("q2", "a2", perturbed_answers=("only",), row=benchmark.forget[2]),
    ]
    assert [v.text["answer"] for v in left] == ["p1", "p2", "w2", "w3", "w4", " only "]


def test_variants_find_their_row_among_those_that_are_asked(tmp_path: Path) -> None:
    rows = range(custom.QUESTIONS + 50)
    forget = write(tmp_path / "f.jsonl", *({"question": f"q{i}", "answer": f"a{i}"} for i in rows))
    benchmark = custom.load(forget=forget, retain=None, seed=5)
    asked, _ = custom.ask_with([v for i in rows for v in asking(i, "perturbation", f"w{i}")], benchmark, seed=5)
    assert len(asked.questions["forget"]) == custom.QUESTIONS
    for question in asked.questions["forget"]:
        assert question.perturbed_answers == (f"w{question.answer[1:]}",)


def test_a_raw_text_is_not_asked_with_variants(tmp_path: Path) -> None:
    benchmark = custom.load(forget=write(tmp_path / "f.jsonl", *texts(1)), retain=None, seed=0)
    given = [Variant(0, "perturbation", {"text": "Document number 1 says 2."})]
    asked, left = custom.ask_with(given, benchmark, seed=0)
    assert asked.questions == benchmark.questions and left == given
