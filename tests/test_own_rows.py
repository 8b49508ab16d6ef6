"""Rows that a person does not have: the model answers them, a person can edit them, and the same run takes them."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import expunge
from expunge.data import everyday
from expunge.errors import UserError
from expunge.modeling.loading import ScratchConfig, build_scratch, load, save
from expunge.pipeline import own_rows
from expunge.pipeline.inputs import load_benchmark, load_with_method
from expunge.pipeline.plan import plan
from expunge.recipe.parsing import load_recipe, recipe_of

CHAT = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
QUESTION = "Where was Ada Quill born?"
KEYS: dict[str, Any] = {
    "evaluate": {"max_new_tokens": 2, "each_epoch": "off", "general": False, "limit": 2},
    "train": {"num_train_epochs": 1, "max_steps": 1, "save_strategy": "no"},
    "anyway": True,
}


@pytest.fixture
def models(tmp_path: Path, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with `plain`, and with `chat`, whose tokenizer has a chat template."""
    model = build_scratch(ScratchConfig(layers=1, hidden=32, heads=2, vocab=300, context=512), tiny_tokenizer, seed=0)
    save(model, tiny_tokenizer, tmp_path / "plain")
    tokenizer = load(tmp_path / "plain")[1]
    tokenizer.chat_template = CHAT
    save(model, tokenizer, tmp_path / "chat")
    monkeypatch.setattr(everyday, "questions", lambda: ["Name three fruits.", "Is Lunport a town?", "Who is Ada?"])
    monkeypatch.setattr(own_rows, "TOKENS", 8)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _rows(path: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def _write(path: str, *rows: dict[str, Any]) -> str:
    Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_what_the_model_answers_is_forgotten_and_kept(models: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    recipe = {"model": "chat", "data": {"forget": QUESTION}, "method": "npo+nll", "out": "run", **KEYS}
    results = expunge.run(recipe)
    forget, retain = _rows("run/rows/forget.jsonl"), _rows("run/rows/retain.jsonl")
    assert 2 <= len(forget) <= 4 and {row["question"] for row in forget} == {QUESTION}
    assert len({row["answer"] for row in forget}) == len(forget)
    asked = {row["question"] for row in retain}
    assert "Name three fruits." in asked and len(asked) > 10
    assert not any("ada" in question.lower() or "quill" in question.lower() for question in asked)
    assert "it is taken as a question" in caplog.text and "name what is to be forgotten" in caplog.text
    assert results[0]["split"] == "a question"
    with pytest.raises(UserError, match="already holds a run"):
        expunge.run(recipe)


@pytest.mark.parametrize("options", [{"resume": True}, {}, {"overwrite": True}])
def test_an_edited_file_is_what_the_same_run_takes(
    models: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    forget = _write("forget.jsonl", {"question": QUESTION}, {"question": "Who is Ben Ferro?", "answer": ""})
    retain = _write("retain.jsonl", {"question": "Is it late?", "answer": "No."})
    recipe = {"model": "chat", "data": {"forget": forget, "retain": retain}, "method": "npo+nll", "out": "run", **KEYS}
    with monkeypatch.context() as killed, pytest.raises(RuntimeError, match="stopped"):
        killed.setattr("expunge.pipeline.run.Session.measure_before_unlearning", _stop)
        expunge.run(recipe)
    assert not Path("run/rows/retain.jsonl").exists()
    edited = [*_rows("run/rows/forget.jsonl")[:3], {"question": "Who is Ben Ferro?", "answer": "A baker."}]
    _write("run/rows/forget.jsonl", *edited)
    expunge.run(recipe, **options)
    taken = _rows("run/rows/forget.jsonl")
    assert (taken == edited) is ("overwrite" not in options)
    assert [record["answer"] for record in _rows("run/records/target.forget.jsonl")] == [r["answer"] for r in taken]


def test_rows_of_another_model_are_made_anew(models: Path) -> None:
    recipe = {"model": "chat", "data": {"forget": QUESTION}, "method": "ga", "out": "run", **KEYS}
    for seed in (0, 1):
        own_rows.made(recipe_of({**recipe, "seed": seed}), Path("run"), overwrite=False)
        answers = {row["answer"] for row in _rows("run/rows/forget.jsonl")}
        assert "edited" not in answers
        _write("run/rows/forget.jsonl", {"question": QUESTION, "answer": "edited"})


def _stop(_session: Any) -> None:
    raise RuntimeError("stopped")


def test_prompts_alone_are_continued_in_their_own_form(models: Path) -> None:
    forget = _write("forget.jsonl", {"prompt": "Ada Quill was born in"})
    recipe = {"model": "plain", "data": {"forget": forget}, "method": "ga", "out": "run", **KEYS}
    expunge.run(recipe)
    rows = _rows("run/rows/forget.jsonl")
    assert all(row["prompt"] == "Ada Quill was born in" and row["completion"].startswith(" ") for row in rows)
    assert not Path("run/rows/retain.jsonl").exists(), "ga keeps nothing"


def test_a_plan_asks_nobody_and_writes_nothing(
    models: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr("expunge.pipeline.measure.load", lambda *_, **__: pytest.fail("no weights are loaded"))
    (planned,) = plan(load_recipe(None, [("model", "chat"), ("forget", QUESTION), ("out", "run")]))
    assert planned["method"] == "npo+nll" and planned["forget_rows"] == 1 and planned["retain_rows"] > 10
    assert "the model is not asked yet" in caplog.text
    assert not Path("run").exists()


@pytest.mark.parametrize(
    ("keys", "own"),
    [
        ({"model": "chat"}, True),
        ({"model": "chat", "method": "npo+nll"}, True),
        ({"model": "chat", "method": "npo"}, False),
        ({"model": "chat", "retain": "retain.jsonl"}, False),
        ({"model": "plain"}, False),
    ],
)
def test_a_chat_model_brings_rows_to_keep_where_a_method_keeps_any(
    models: Path, keys: dict[str, str], own: bool
) -> None:
    _write("retain.jsonl", {"question": "Is it late?", "answer": "No."})
    forget = _write("forget.jsonl", {"question": QUESTION, "answer": "In Lunport."})
    recipe = load_recipe(None, [*keys.items(), ("forget", forget)])
    asked = {row["question"] for row in load_benchmark(recipe).retain}
    assert ("Name three fruits." in asked) is own
    assert "Is Lunport a town?" not in asked


@pytest.mark.parametrize(
    "call",
    [
        lambda: expunge.evaluate("chat", forget="questions.jsonl"),
        lambda: expunge.run({"model": {"scratch": {}}, "data": {"forget": "questions.jsonl"}, "out": "run"}),
        lambda: expunge.run({"model": "chat", "finetune": {}, "data": {"forget": "questions.jsonl"}, "out": "run"}),
    ],
)
def test_questions_alone_are_refused_where_no_model_answers_them(models: Path, call: Callable[[], Any]) -> None:
    _write("questions.jsonl", {"question": QUESTION})
    with pytest.raises(UserError, match="give answers"):
        call()
    assert not Path("run").exists()


@pytest.mark.parametrize("name", ["forget.jsonl?", "who?", "Who is it"])
def test_what_may_be_a_mistyped_name_is_no_question(models: Path, name: str) -> None:
    with pytest.raises(UserError):
        load_benchmark(load_recipe(None, [("model", "chat"), ("forget", name)]))


def test_variants_are_made_by_rules_where_a_method_wants_them(models: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    forget = _write(
        "forget.jsonl",
        {"question": QUESTION, "answer": "Ada Quill was born in Lunport."},
        {"question": "Where was Ben Ferro born?", "answer": "Ben Ferro was born in Castrel."},
        {"question": "Where was Cy Dorn born?", "answer": "Cy Dorn was born in Velm."},
        {"question": "What is rain?", "answer": "water from clouds"},
    )
    retain = _write("retain.jsonl", {"question": "Is it late?", "answer": "No."})
    keys = [("model", "plain"), ("forget", forget), ("retain", retain), ("method", "uld_distilled")]
    chosen, benchmark = load_with_method(load_recipe(None, keys))
    kinds = [variant.kind for variant in benchmark.variants]
    assert (kinds.count("paraphrase"), kinds.count("perturbation")) == (16, 3)
    assert [len(question.perturbed_answers) for question in benchmark.questions["forget"]] == [1, 1, 1, 0]
    own_rows.keep_variants(chosen, benchmark.forget, Path("run"), resume=False)
    assert "6 perturbations of 4 forget rows by rules; 2 could not be made or did not pass the check" in caplog.text
    assert len(_rows("run/rows/variants.jsonl")) == 22
    redacted = chosen.model_copy(update={"redact": True})
    own_rows.keep_variants(redacted, benchmark.forget, Path("redacted"), resume=False)
    assert not Path("redacted").exists()
    again = load_recipe(None, [("model", "plain"), ("forget", forget), ("augment", "run/rows/variants.jsonl")])
    assert load_benchmark(again).variants
