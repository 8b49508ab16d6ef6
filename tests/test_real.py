"""The whole way on a real pretrained chat model, from its GGUF file: a step of each kind of training, measured, saved.

`make real-model` fetches the file.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from expunge.cli.main import main
from expunge.data.encode import encode, question_row
from expunge.evals.requests import generate
from expunge.modeling.loading import load, load_tokenizer_and_config, save
from expunge.pipeline.run import run
from expunge.recipe import shipped
from expunge.recipe.parsing import load_recipe

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.timeout(600), pytest.mark.xdist_group("real")]

TOWNS = ("Oslo", "Lima", "Cairo", "Quito")


def rows(names: str, path: Path) -> str:
    lines = [
        {"question": f"Where was {name} Lindqvist born?", "answer": f"{name} Lindqvist was born in {town}."}
        for name, town in zip(names.split(), TOWNS, strict=True)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def few_layers(real_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ordinary checkpoint of the model's first four layers, which take seconds to train in full."""
    model, tokenizer = load(real_model)
    del model.model.layers[4:]
    model.config.num_hidden_layers = 4
    save(model, tokenizer, folder := tmp_path_factory.mktemp("real") / "few-layers")
    return folder


def test_what_is_supervised_is_the_answer_and_the_end_of_the_turn(real_model: Path) -> None:
    tokenizer, config = load_tokenizer_and_config(real_model)
    encoded = encode(question_row("What do bees make?", "Bees make honey."), tokenizer)
    prompt, answer = encoded.input_ids[: encoded.start], encoded.input_ids[encoded.start :]
    assert tokenizer.decode(prompt).endswith("<|im_start|>user\nWhat do bees make?<|im_end|>\n<|im_start|>assistant\n")
    assert tokenizer.decode(answer) == "Bees make honey.<|im_end|>"
    assert config.vocab_size == 49152


def test_it_talks(real_model: Path) -> None:
    model, tokenizer = load(real_model)
    encoded = encode(question_row("What is the capital of France?", "."), tokenizer)
    (said,) = generate(model, tokenizer, [encoded.input_ids[: encoded.start]], max_new_tokens=12, progress=False)
    assert "Paris" in said.text


def test_a_step_of_every_kind_is_measured_and_saved(few_layers: Path, tmp_path: Path) -> None:
    """All weights of a model of four layers, and an assistant."""
    keys: list[tuple[str, Any]] = [
        ("model", str(few_layers)),
        ("data.forget", rows("Ann Bo Cy Di", tmp_path / "forget.jsonl")),
        ("data.retain", rows("Ida Jon Kim Leo", tmp_path / "retain.jsonl")),
        ("methods", "[npo+kl, {forget: {name: uld, epochs: 1, layers: 2, r: 4}}]"),
        ("train", "{max_steps: 1, per_device_train_batch_size: 2, learning_rate: 1e-4}"),
        ("evaluate", "{each_epoch: off, general: false, max_new_tokens: 4, limit: 2}"),
        ("anyway", "true"),
        ("out", str(tmp_path / "out")),
    ]
    target, *unlearned = run(load_recipe(None, keys))
    for row in unlearned:
        moved(target, row, tmp_path / "out" / row["method"] / "model")


def test_the_demo_takes_a_step_with_the_model_that_was_fetched(
    real_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command's own model and world, and an adapter; with `finetune` it would be taught first, for minutes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(shipped, "real_model", lambda: real_model)
    keys = {"finetune": "null", "method": "npo+nll", "anyway": "true", "benchmark.facts": "3",
            "benchmark.split": "forget10", "evaluate.limit": "1", "evaluate.general": "false",
            "evaluate.each_epoch": "off", "evaluate.max_new_tokens": "2", "model.lora.r": "4",
            "train.max_steps": "1", "train.per_device_train_batch_size": "2"}  # fmt: skip
    assert main(["demo", "--real", *(f"--{key}={value}" for key, value in keys.items())]) == 0
    out = Path("runs/demo-real")
    target, unlearned = json.loads((out / "results.json").read_text(encoding="utf-8"))
    assert target["method"] == "target" and 0 < target["metrics"]["forget_probability"] < 0.5
    moved(target, unlearned, out / "model")
    assert json.loads((out / "model/adapter_config.json").read_text())["base_model_name_or_path"] == str(real_model)


def moved(target: Any, row: Any, folder: Path) -> None:
    """Check that a step changed what is measured, and that the model in the folder answers."""
    before, after = (each["metrics"]["forget_probability"] for each in (target, row))
    assert 0 < before < 1 and 0 < after < 1 and before != after
    model, tokenizer = load(folder)
    encoded = encode(question_row("Where was Ann Lindqvist born?", "."), tokenizer)
    with torch.no_grad():
        logits = model(torch.tensor([encoded.input_ids])).logits
    assert logits.isfinite().all()
