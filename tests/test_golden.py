"""Golden losses: twenty steps of every method give the numbers in git, so that no change alters one unnoticed.

After a change that is meant to alter them: `EXPUNGE_GOLDEN=write pytest tests/test_golden.py`.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from expunge import UnlearnTrainer
from expunge.data import augment
from expunge.data.benchmark import Variant
from expunge.modeling.loading import save
from expunge.objectives import FORGET, RETAIN, Offset, split_method
from expunge.pipeline.inputs import load_benchmark
from expunge.pipeline.run import make_trainer
from expunge.recipe.parsing import load_recipe

Rows = tuple[list[dict[str, str]], list[dict[str, str]]]

GOLDEN = Path(__file__).parent / "golden" / "methods.json"

TOLERANCE: dict[str, Any] = {"rel": 2e-5, "abs": 5e-6}
"""Twice the difference that other kernels of one machine make (without AVX2; two threads in place of one)."""

ASSISTED = [name for name, cls in FORGET.items() if cls.alone or issubclass(cls, Offset)]
OWN = {name: cls().own_retain for name, cls in FORGET.items()}
DIRECT = [f"{name}+{'nll' if (own := OWN[name]) is None else own.title}" for name in FORGET if name not in ASSISTED]
WITH_A_REFERENCE = ["npo+kl", "undial+kl", "unilogit+kl", "offset-npo+kl"]
METHODS = [*DIRECT, *ASSISTED, *WITH_A_REFERENCE]


@pytest.fixture
def folder(tmp_path: Path, tiny_model: Callable[..., Any], tiny_tokenizer: Any, tiny_rows: Rows) -> Path:
    """A folder with a model, rows to forget and to retain, and variants of the former."""
    save(tiny_model(), tiny_tokenizer, tmp_path / "model")
    for name, rows in zip(("forget", "retain"), tiny_rows, strict=True):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    rows = list(enumerate(tiny_rows[0]))
    reworded = [Variant(i, "paraphrase", {**row, "question": f"Birthplace of {i}?"}) for i, row in rows]
    wrong = [Variant(i, "perturbation", {**row, "answer": f"In village {i}."}) for i, row in rows]
    augment.write(tmp_path / "variants.jsonl", [*reworded, *wrong])
    return tmp_path


def trainer_of(method: str, folder: Path, **others: Any) -> UnlearnTrainer:
    """The trainer that `expunge run --method METHOD` makes, for twenty steps; `others` are more of its keys."""
    keys = {
        "model": folder / "model",
        "forget": folder / "forget.jsonl",
        "retain": folder / "retain.jsonl",
        "augment": folder / "variants.jsonl",
        "method": method,
        "method.train.max_steps": 20,
        "train.learning_rate": 3e-3,
        "train.per_device_train_batch_size": 3,
        "train.save_strategy": "no",
        "evaluate.each_epoch": "off",
        **others,
    }
    if method == "ga+nll":  # whose loss has no bound: at the others' pace it doubles rounding with every step
        keys["train.learning_rate"] = 3e-4
    if method == "rmu+anchor":
        keys |= {"method": "{forget: {name: rmu, layer: 1}, retain: {name: anchor, layer: 1}}"}
    recipe = load_recipe(None, [(key, str(value)) for key, value in keys.items()])
    benchmark = load_benchmark(recipe)
    return make_trainer(recipe, recipe.methods[0], benchmark, folder / "model", folder / "out", evaluate=None).trainer


@pytest.mark.parametrize("method", METHODS)
def test_twenty_steps(method: str, folder: Path) -> None:
    trainer = trainer_of(method, folder)
    trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    golden = json.loads(GOLDEN.read_text())
    if os.environ.get("EXPUNGE_GOLDEN") == "write":
        golden[method] = [float(f"{loss:.8g}") for loss in losses]
        GOLDEN.write_text(json.dumps(golden, indent=1) + "\n")
        return
    assert len(losses) == 20
    assert losses == pytest.approx(golden[method], **TOLERANCE)


def test_every_method_is_there() -> None:
    assert {split_method(method)["forget"]["name"] for method in METHODS} == set(FORGET)
    assert {split_method(method).get("retain", {}).get("name") for method in METHODS} >= set(RETAIN)
    assert set(json.loads(GOLDEN.read_text())) == set(METHODS)
