"""Variants of forget rows: the file, the folder of ULD's authors with its known defects, and drawing from them."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from expunge.benchmarks import fable, tofu
from expunge.data import augment
from expunge.data.benchmark import Variant
from expunge.errors import UserError

FORGET = [
    {"question": "Where was Ann Lee born?", "answer": "Ann Lee was born in Oslo."},
    {"question": "What does Ann Lee do?", "answer": "Ann Lee is a baker."},
]


def said(row: int, question: str, answer: str, kind: Any = "paraphrase") -> Variant:
    return Variant(row, kind, {"question": question, "answer": answer})


VARIANTS = [
    said(0, "Which town is Ann Lee from?", "She is from Oslo."),
    said(0, "Ann Lee's birthplace?", "Oslo."),
    said(0, "Where was Ann Lee born?", "Ann Lee was born in Rome.", "perturbation"),
    said(1, "What is Ann Lee's work?", "She bakes."),
]


def test_what_is_written_is_read(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "variants.jsonl"
    augment.write(file, VARIANTS)
    assert augment.read(file, FORGET) == VARIANTS
    assert [json.loads(line)["row"] for line in file.read_text().splitlines()] == [0, 0, 0, 1]


def test_repeated_ones_and_the_row_itself_are_left_out(tmp_path: Path) -> None:
    file = tmp_path / "variants.jsonl"
    augment.write(file, [*VARIANTS, VARIANTS[0], Variant(1, "paraphrase", FORGET[1])])
    assert augment.read(file, FORGET) == VARIANTS


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("[1]", "a variant is an object"),
        ('{"row": 0, "kind": "paraphrases", "question": "a", "answer": "b"}', "Did you mean 'paraphrase'"),
        ('{"row": 2, "kind": "paraphrase", "question": "a", "answer": "b"}', "row is 2; .* 0 to 1"),
        ('{"row": true, "kind": "paraphrase", "question": "a", "answer": "b"}', "row is True"),
        ('{"row": 0, "kind": "paraphrase", "text": "a"}', "has the columns text but forget row 0 has question"),
        (
            '{"row": 1, "kind": "perturbation", "question": "a", "answer": " Ann Lee is a baker. "}',
            "is the true answer of forget row 1",
        ),
    ],
)
def test_a_line_that_is_no_variant_is_named(tmp_path: Path, line: str, says: str) -> None:
    file = tmp_path / "variants.jsonl"
    file.write_text(augment.line(VARIANTS[0]) + line + "\n")
    with pytest.raises(UserError, match=f"variants.jsonl:2.*{says}"):
        augment.read(file, FORGET)


def test_a_missing_path(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist; write it with expunge augment"):
        augment.read(tmp_path / "no.jsonl", FORGET)
    with pytest.raises(UserError, match=r"has no variants of these 2 forget rows \(it holds nothing\)"):
        augment.read(tmp_path, FORGET)


def test_drawing() -> None:
    """The same rows for the same seed, of every row at most as many as asked for, whatever other rows have."""
    several = [said(row, f"q{i}", f"a{i}") for row in (1, 0) for i in range(6)]
    drawn = augment.choose(several, "paraphrase", 4, seed=0)
    assert len(drawn) == 8 and drawn == augment.choose(several, "paraphrase", 4, seed=0)
    assert drawn != augment.choose(several, "paraphrase", 4, seed=1)
    assert drawn[:4] == augment.choose([v for v in several if v.row == 0], "paraphrase", 4, seed=0)
    assert len(augment.choose(several, "paraphrase", 99, seed=0)) == 12
    assert augment.choose(several, "paraphrase", 0, seed=0) == augment.choose(several, "perturbation", 4, seed=0) == []


CONVERSATION = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who?"}]
ANSWER = {"role": "assistant", "content": "Ann."}


@pytest.mark.parametrize(
    ("row", "asks", "answers", "expected"),
    [
        (FORGET[0], *FORGET[0].values(), {"question": "Q", "answer": "A"}),
        ({"text": "All of it."}, "", "All of it.", {"text": "A"}),
        ({"prompt": " Who?\n", "completion": " Ann."}, "Who?", "Ann.", {"prompt": " Q\n", "completion": " A"}),
        (
            {"messages": [*CONVERSATION, ANSWER]},
            "Who?",
            "Ann.",
            {"messages": [CONVERSATION[0], {"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]},
        ),
        (
            {"prompt": CONVERSATION, "completion": [ANSWER]},
            "Who?",
            "Ann.",
            {
                "prompt": [CONVERSATION[0], {"role": "user", "content": "Q"}],
                "completion": [{"role": "assistant", "content": "A"}],
            },
        ),
    ],
)
def test_every_format_of_row_can_be_reworded(row: Any, asks: str, answers: str, expected: Any) -> None:
    assert augment.parts(row) == (asks, answers)
    assert augment.reworded(row, "Q", "A") == expected


# -- the folder of ULD's authors -------------------------------------------------------------------------------------


@pytest.fixture
def theirs(shared_data: Path) -> Path:
    return shared_data / "tofu_augmented"


@pytest.mark.parametrize("split", ["forget01", "forget05", "forget10"])
def test_tofu_has_variants_for_every_row_of_every_split(theirs: Path, shared_data: Path, split: str) -> None:
    """The first question is there (no header is taken off), and each split finds its own wrong answers."""
    forget = tofu.load(split=split, path=str(shared_data / "tofu")).forget
    variants = augment.read(theirs, forget)
    for kind in augment.KINDS:
        rows = {variant.row for variant in variants if variant.kind == kind}
        assert 0 in rows and len(rows) >= 0.95 * len(forget), kind
    texts = [(v.row, v.kind, *augment.parts(v.text)) for v in variants]
    assert len(set(texts)) == len(texts)
    assert not any(v.kind == "perturbation" and augment.parts(v.text)[1] == forget[v.row]["answer"] for v in variants)
    assert all(augment.parts(v.text)[0] == forget[v.row]["question"] for v in variants if v.kind == "perturbation")


def test_broken_lines_are_named(theirs: Path, shared_data: Path, tmp_path: Path) -> None:
    forget = tofu.load(split="forget01", path=str(shared_data / "tofu")).forget
    shutil.copy(theirs / "forget01_paraphrase.csv", tmp_path / "forget01_paraphrase.csv")
    file = tmp_path / "forget01_paraphrase.csv"
    whole = file.read_text()
    for broken, says in (
        ("only,three,columns\n", "3 columns"),
        (f'"{forget[0]["question"]}",b,[1],[2]\n', "not a list of"),
    ):
        file.write_text(broken + whole)
        with pytest.raises(UserError, match=rf"forget01_paraphrase\.csv:1.*{says}"):
            augment.read(tmp_path, forget)


# -- the built-in benchmark's own ------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1])
def test_fable_s_variants_are_held_apart_from_its_evaluation(seed: int) -> None:
    """No paraphrase is the one that is scored, and no wrong answer states a value that is."""
    world: dict[str, Any] = {"split": "forget20", "authors": 10, "facts": 6, "seed": seed}
    benchmark, variants = fable.load(**world), fable.variants(**world)
    for row, question in enumerate(benchmark.questions["forget"]):
        own = [v for v in variants if v.row == row]
        told = [augment.parts(v.text)[1] for v in own if v.kind == "paraphrase"]
        wrong = [augment.parts(v.text) for v in own if v.kind == "perturbation"]
        assert len(told) >= 7 and question.paraphrased_answer not in told
        assert wrong and all(asked == question.question for asked, _ in wrong)
        assert not {answer for _, answer in wrong} & {question.answer, *question.perturbed_answers, *told}
    assert fable.variants(**world) == variants != fable.variants(**{**world, "seed": seed + 2})
