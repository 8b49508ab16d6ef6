"""TOFU is read as its authors published it; what is missing or unknown is named."""

import json
from pathlib import Path
from typing import Any

import datasets
import pytest

from expunge.benchmarks import tofu
from expunge.data.benchmark import Question, Row
from expunge.errors import UserError

SIZES = {"forget01": (40, 3960), "forget05": (200, 3800), "forget10": (400, 3600)}


def _key(row: Row):
    return row["question"], row["answer"]


@pytest.mark.parametrize("split", SIZES)
def test_the_published_files(shared_data: Path, split: str):
    benchmark = tofu.load(split=split, path=shared_data / "tofu")
    assert (benchmark.name, benchmark.split) == ("tofu", split)
    assert (len(benchmark.forget), len(benchmark.retain)) == SIZES[split]
    asked = {name: [(q.question, q.answer) for q in questions] for name, questions in benchmark.questions.items()}
    assert list(asked) == ["forget", "retain", "real_authors", "world_facts"]
    assert asked["forget"] == [_key(row) for row in benchmark.forget]
    assert asked["retain"] == [_key(row) for row in benchmark.retain[:400]]
    assert [_key(row) for row in benchmark.utility] == asked["real_authors"] + asked["world_facts"]
    assert len(benchmark.utility) == 100 + 117
    for name, questions in benchmark.questions.items():
        is_choice = name in benchmark.choice_sets
        assert all(len(set(q.perturbed_answers) - {q.answer}) == (3 if is_choice else 5) for q in questions)
        assert all((q.paraphrased_answer is None) == (q.paraphrased_question is None) == is_choice for q in questions)


def _copy(folder: Path, split: str = "forget01"):
    """The files of one split, a row each, as on the hub."""
    row = {"question": "q", "answer": "a"}
    asked = {**row, "perturbed_answer": ["x", "y"]}
    paraphrased = {**asked, "paraphrased_answer": "pa", "paraphrased_question": "pq"}
    files = {split: row, tofu.RETAIN_OF[split]: row, f"{split}_perturbed": paraphrased, "retain_perturbed": paraphrased}
    files |= {"real_authors_perturbed": asked, "world_facts_perturbed": asked}
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content) + "\n")
    return files


def test_columns_become_questions(tmp_path: Path):
    _copy(tmp_path)
    benchmark = tofu.load(split="forget01", path=str(tmp_path))
    assert benchmark.questions["forget"] == [Question("q", "a", ("x", "y"), "pq", "pa")]
    assert benchmark.questions["world_facts"] == [Question("q", "a", ("x", "y"))]
    assert benchmark.utility == [{"question": "q", "answer": "a"}] * 2
    assert benchmark.unseen == [] and (tmp_path / tofu.HELD_OUT).write_text('{"question": "new", "answer": "a"}\n')
    assert tofu.load(split="forget01", path=tmp_path).unseen == [{"question": "new", "answer": "a"}]


def test_without_a_path_the_hub_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    files = _copy(tmp_path)
    monkeypatch.setattr(
        datasets, "load_dataset", lambda name, config, split: datasets.Dataset.from_list([files[config]])
    )
    assert tofu.load(split="forget01") == tofu.load(split="forget01", path=tmp_path)


def test_a_missing_file_or_folder_is_named(tmp_path: Path):
    _copy(tmp_path)
    (tmp_path / "retain99.json").unlink()
    with pytest.raises(UserError, match=r"the file retain99\.json in .*, which does not have it; download"):
        tofu.load(split="forget01", path=tmp_path)
    with pytest.raises(UserError, match=r"forget10_perturbed\.json in .*nowhere, which does not exist"):
        tofu.load(path=tmp_path / "nowhere")


def test_an_unknown_split_is_refused_with_the_known_ones():
    with pytest.raises(
        UserError, match=r"unknown split 'forget_10'; choose one of forget01, forget05, forget10\. Did you"
    ):
        tofu.load(split="forget_10")


@pytest.mark.parametrize("wrong", [None, "x", [], ["x", 1]])
def test_a_file_with_other_columns_is_refused(tmp_path: Path, wrong: Any):
    _copy(tmp_path)
    (tmp_path / "retain_perturbed.json").write_text(
        json.dumps({"question": "q", "answer": "a", "perturbed_answer": wrong})
    )
    with pytest.raises(UserError, match=r"retain_perturbed\.json:1 is not one of TOFU's questions"):
        tofu.load(split="forget01", path=tmp_path)
