"""Pretrained models that are taught the benchmark first: the target, and its retrained twin without the forget rows."""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from expunge.benchmarks import tofu
from expunge.errors import UserError
from expunge.modeling.loading import LoraConfig, load, save
from expunge.pipeline import lessons
from expunge.pipeline.inputs import load_benchmark
from expunge.pipeline.run import run, starting_models
from expunge.recipe.parsing import load_recipe
from expunge.training.targets import FinetuneConfig, Lesson, Pretrained, taught
from tests import forked
from tests.small import FABLE

ROWS = [{"question": f"Where was person {i} born?", "answer": f"In town {i}."} for i in range(12)]
FAST = {"epochs": 12, "learning_rate": 1e-2, "batch_size": 4}


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_model: Callable[..., Any], tiny_tokenizer: Any) -> Path:
    monkeypatch.setenv("EXPUNGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    save(tiny_model(layers=1), tiny_tokenizer, tmp_path / "start")
    return tmp_path / "start"


def test_a_pretrained_target_knows_what_its_retrained_twin_does_not(start: Path) -> None:
    Path("forget.jsonl").write_text("".join(json.dumps({**row, "answer": "Upon a hill!"}) + "\n" for row in ROWS[:2]))
    Path("retain.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS[2:]))
    keys: dict[str, Any] = {"model": str(start), "forget": "forget.jsonl", "retain": "retain.jsonl", "methods": "[]"}
    rows = run(load_recipe(None, [*keys.items(), ("finetune", json.dumps({**FAST, "epochs": 40})), ("out", "taught")]))
    plain = run(load_recipe(None, [*keys.items(), ("out", "plain")]))
    known = {row["method"]: row["metrics"]["forget_probability"] for row in rows}
    (untaught,) = (row["metrics"]["forget_probability"] for row in plain)
    assert known["target"] > 0.5 > 2 * known["retrained"] and known["target"] > 10 * untaught


@pytest.mark.parametrize("fails", [False, True], ids=["other process", "other process fails"])
def test_two_models_are_taught_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: bool) -> None:
    """In files that are the same as one after the other; where the other process fails, nothing but time is lost."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(lessons, "_cores", lambda: 2)
    made: list[list[Path]] = []
    began: list[forked.Popen] = []

    class Popen(forked.Popen):
        def __init__(self, words: list[str], **options: Any) -> None:
            mine = "expunge.pipeline.lessons" in words
            super().__init__([*words[:-1], "expunge.nothing"] if fails and mine else words, **options)
            if mine:
                began.append(self)

    monkeypatch.setattr(subprocess, "Popen", Popen)
    for cache, least in (("at-once", 0), ("in-turn", 10**9)):
        monkeypatch.setenv("EXPUNGE_CACHE", str(tmp_path / cache))
        monkeypatch.setattr(lessons, "LONG", least)
        recipe = load_recipe(None, [(k, json.dumps(v)) for k, v in {**FABLE, "threads": 1, "method": "ga"}.items()])
        target, others = starting_models(recipe, load_benchmark(recipe))
        made.append([Path(target), *map(Path, others)])
    assert [process.returncode == 0 for process in began] == [not fails]
    for one, other in zip(*made, strict=True):
        assert one != other and one.name == other.name
        assert (one / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()


@pytest.mark.parametrize("adapter", [None, LoraConfig(r=4)])
def test_a_taught_model_is_kept_by_the_content_of_its_start(start: Path, adapter: LoraConfig | None) -> None:
    def teach(folder: Path) -> Path:
        finetune = FinetuneConfig(**{**FAST, "epochs": 1}, lora=adapter)
        return taught(Lesson(ROWS, Pretrained(str(folder)), finetune, 0, "target"))

    found = teach(start)
    model = load(found)[0]
    assert not hasattr(model, "peft_config")
    before = load(start)[0].state_dict()
    assert any(not torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    shutil.copytree(start, "elsewhere")
    assert teach(Path("elsewhere")) == found
    other, tokenizer = load(start)
    with torch.no_grad():
        next(other.parameters())[0, 0] += 1
    save(other, tokenizer, Path("other"))
    assert teach(Path("other")) != found


def test_a_model_from_nothing_is_taught_without_an_adapter(start: Path) -> None:
    with pytest.raises(UserError, match=r"finetune\.lora: a model from nothing learns with all of its weights"):
        load_recipe(None, [("benchmark", "fable"), ("model.scratch.layers", "1"), ("finetune.lora.r", "4")])


def test_layers_of_an_adapter_that_teaches_are_looked_for_first(start: Path) -> None:
    Path("forget.jsonl").write_text(json.dumps(ROWS[0]) + "\n")
    keys = [("model", str(start)), ("forget", "forget.jsonl"), ("methods", "[]"), ("finetune.lora.targets", "nowhere")]
    with pytest.raises(UserError, match="nowhere"):
        run(load_recipe(None, keys))
    assert not Path("cache").exists() and not Path("runs").exists()


@pytest.mark.parametrize(
    ("split", "authors", "gone"), [("forget10", 10, 20), ("forget10", 20, 40), ("forget05", 20, 20)]
)
def test_the_last_authors_of_tofu(shared_data: Path, split: str, authors: int, gone: int) -> None:
    found = tofu.load(split=split, authors=authors, path=shared_data / "tofu")
    full = json.loads("[" + ",".join((shared_data / "tofu" / "full.json").read_text().splitlines()) + "]")
    assert found.taught == full[-20 * authors :] and found.forget == full[-gone:]
    asked = {name: [question.question for question in found.questions[name]] for name in ("forget", "retain")}
    assert asked == {name: [row["question"] for row in getattr(found, name)] for name in asked}
    assert all(question.perturbed_answers for name in asked for question in found.questions[name])


def test_a_share_that_is_no_whole_author_is_refused(shared_data: Path) -> None:
    with pytest.raises(UserError, match=r"5 % of 10 authors is no whole number; give a multiple of 20"):
        tofu.load(split="forget05", authors=10, path=shared_data / "tofu")
