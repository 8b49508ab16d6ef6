"""Questions of general knowledge: which models are asked, and what counts as right."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import expunge
from expunge.benchmarks import general
from expunge.evals.evaluation import evaluate
from expunge.evals.metrics import states
from expunge.modeling.loading import load, save
from expunge.pipeline import pace
from expunge.pipeline.inputs import (
    load_benchmark,
    load_with_method,
    training_arguments,
    with_general_questions,
)
from expunge.pipeline.pace import epochs
from expunge.recipe.parsing import load_recipe

CHAT = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.mark.parametrize(
    ("text", "answer", "right"),
    [
        ("The capital is Paris.", "Paris", 1),
        ("It is PARIS!", "paris", 1),
        ("A parisian cafe", "Paris", 0),
        ("South of America", "South America", 0),
        ("In South America, mostly.", "South America", 1),
        ("17 days", "7", 0),
        ("", "Paris", 0),
    ],
)
def test_an_answer_is_stated_word_by_word(text: str, answer: str, right: float) -> None:
    assert states(text, answer) == right


def test_every_question_is_asked_once_and_has_answers_that_it_does_not_give_away() -> None:
    probe = general.load()
    asked = [row["question"] for row in probe.rows]
    assert len(set(asked)) == 60 and all(re.search(r"\?$", question) for question in asked)
    assert probe.answers is not None
    assert all(
        answers and not any(states(q, a) for a in answers) for q, answers in zip(asked, probe.answers, strict=True)
    )


@pytest.fixture
def models(tmp_path: Path, tiny_model: Callable[..., Any], tiny_tokenizer: Any) -> Path:
    """A folder with `plain`, and with `chat`, whose tokenizer has a chat template."""
    save(tiny_model(layers=1), tiny_tokenizer, tmp_path / "plain")
    _, tokenizer = load(tmp_path / "plain")
    tokenizer.chat_template = CHAT
    save(tiny_model(layers=1), tokenizer, tmp_path / "chat")
    (tmp_path / "retain.jsonl").write_text(json.dumps({"question": "Where?", "answer": "Here."}) + "\n")
    (tmp_path / "forget.jsonl").write_text(json.dumps({"question": "Who?", "answer": "Ann."}) + "\n")
    return tmp_path


@pytest.mark.parametrize(
    ("name", "told", "asked"),
    [("plain", None, False), ("chat", None, True), ("plain", "true", True), ("chat", "false", False)],
)
def test_chat_models_are_asked_unless_the_recipe_says_otherwise(
    models: Path, name: str, told: str | None, asked: bool
) -> None:
    keys = [("model", str(models / name)), ("forget", str(models / "forget.jsonl"))]
    recipe = load_recipe(None, [*keys, *([] if told is None else [("evaluate.general", told)])])
    benchmark = with_general_questions(recipe, load_benchmark(recipe))
    assert any(probe.name == "general" for probe in benchmark.probes) is asked


@pytest.mark.parametrize("in_memory", [True, False])
def test_a_model_is_measured_by_them(models: Path, in_memory: bool) -> None:
    given = load(models / "chat") if in_memory else (str(models / "chat"), None)
    found = expunge.evaluate(*given, forget=[{"question": "Who?", "answer": "Ann."}], max_new_tokens=2)
    assert found.metrics["general"] == 0 and len(found.records["general"]) == 60
    assert all("states" in record for record in found.records["general"])


@pytest.mark.parametrize(
    ("keys", "method", "rate", "epochs"),
    [
        ({"model": "plain"}, "undial+nll", 0.08 / 32, 30),
        ({"model": "chat"}, "npo+nll", 0.02 / 32, 30),
        ({"model": "chat", "model.lora.r": "2"}, "npo+nll", 0.2 / 32, 30),
        ({"model": "chat", "train.learning_rate": "3e-3"}, "npo+nll", 3e-3, 30),
        ({"model": "chat", "train.num_train_epochs": "2"}, "npo+nll", 0.02 / 32, 2),
        ({"model": "chat", "train.max_steps": "2"}, "npo+nll", 0.02 / 32, 5),
        ({"model": "chat", "method": "ga"}, "ga", 0.01 / 32, 30),
        ({"model": "chat", "method": "undial"}, "undial", 0.08 / 32, 30),
        ({"model": "chat", "method": "uld"}, "uld", 1e-3, 10),
        ({"model": "chat", "method": "offset-ga"}, "offset-ga", 0.1 / 32, 30),
        ({"model": "chat", "method": "{forget: ga, train: {learning_rate: 1e-4}}"}, "ga", 1e-4, 30),
    ],
)
def test_the_method_and_its_pace_follow_from_model_and_rows(
    models: Path, monkeypatch: pytest.MonkeyPatch, keys: dict[str, str], method: str, rate: float, epochs: int
) -> None:
    monkeypatch.chdir(models)
    recipe = load_recipe(None, [*keys.items(), ("forget", "forget.jsonl"), ("retain", "retain.jsonl")])
    recipe, _ = load_with_method(recipe)
    assert [each.name for each in recipe.methods] == [method]
    args = training_arguments(recipe, recipe.methods[0], Path("out"))
    assert args.learning_rate == pytest.approx(rate, rel=0.05) and args.num_train_epochs == epochs
    recommended = "method" not in keys
    assert recipe.evaluate.stop_when_forgotten is recommended
    assert recipe.evaluate.raise_rate is (recommended and "train.learning_rate" not in keys)


def test_two_ranks_take_the_epochs_of_one_with_twice_the_rows_a_step(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(models)
    rows = [{"question": f"Where is {i}?", "answer": f"In {i}."} for i in range(20)]
    Path("many.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    taken = []
    for count, batch in ((1, "4"), (2, "2"), (1, "2")):
        monkeypatch.setattr(pace.ranks, "count", lambda count=count: count)
        keys = [
            ("model", "chat"),
            ("forget", "many.jsonl"),
            ("method", "ga"),
            ("train.per_device_train_batch_size", batch),
        ]
        recipe, _ = load_with_method(load_recipe(None, keys))
        taken.append(recipe.train.num_train_epochs)
    assert taken == [9, 9, 5]


def test_few_rows_take_more_epochs() -> None:
    assert [epochs(rows, 8) for rows in (1, 8, 9, 20, 64, 72, 4000)] == [30, 30, 23, 15, 6, 5, 5]


def test_an_evaluation_that_generates_nothing_leaves_them_out(models: Path) -> None:
    keys = [("model", str(models / "chat")), ("forget", str(models / "forget.jsonl"))]
    recipe = load_recipe(None, keys)
    benchmark = with_general_questions(recipe, load_benchmark(recipe))
    found = evaluate(*load(models / "chat"), benchmark, generate=False, progress=False)
    assert not any("general" in name for name in found.metrics)
