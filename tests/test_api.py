"""`expunge.run` and `expunge.evaluate` give the numbers of the commands, and the commands' errors."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch

import expunge
from expunge import UnlearnConfig, UnlearnTrainer, UserError, evaluate, load, objectives, run
from expunge.cli.main import main
from expunge.data.benchmark import Benchmark
from expunge.modeling.loading import LoraConfig, save
from expunge.pipeline.inputs import load_benchmark
from expunge.recipe.parsing import load_recipe, recipe_of
from tests.small import FABLE

Model = Callable[..., Any]


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_model: Model, tiny_tokenizer: Any) -> Path:
    """A folder with a model, a retrained one and rows to forget and to retain."""
    torch.set_num_threads(1)
    monkeypatch.chdir(tmp_path)
    save(tiny_model(layers=1, hidden=16), tiny_tokenizer, tmp_path / "model")
    save(tiny_model(layers=1, hidden=16, seed=1), tiny_tokenizer, tmp_path / "retrained")
    for name, numbers in (("forget", range(4)), ("retain", range(4, 24))):
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in people(numbers)), encoding="utf-8")
    return tmp_path


def people(numbers: range) -> list[dict[str, str]]:
    return [{"question": f"Where was person {i} born?", "answer": f"In town {i}."} for i in numbers]


def of_command(*words: str, out: str = "out") -> tuple[dict[str, float], dict[str, list[dict[str, Any]]]]:
    """(metrics, records) that `expunge eval` writes of the target."""
    assert main(["eval", *words, "--out", out, "--json"]) == 0
    rows = json.loads(Path(out, "results.json").read_text(encoding="utf-8"))
    records = {
        file.name.split(".")[1]: [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line]
        for file in Path(out, "records").glob("target.*.jsonl")
    }
    return rows[0]["metrics"], records


def test_evaluate_is_what_the_command_measures(workplace: Path) -> None:
    metrics, records = of_command("model", "--forget", "forget.jsonl", "--retain", "retain.jsonl",
                                  "--retrained", "retrained", "--evaluate.limit", "3")  # fmt: skip
    assert {"forget_probability", "kl_start", "held_out_probability"} <= metrics.keys()
    model, tokenizer = load("model")
    model.train()
    own, kept = people(range(4)), datasets.Dataset.from_list(people(range(4, 24)))
    for found in (
        evaluate("model", forget="forget.jsonl", retain="retain.jsonl", retrained="retrained", limit=3),
        evaluate(Path("model"), forget=own, retain=kept, retrained=Path("retrained"), limit=3),
        evaluate(model, tokenizer, forget=own, retain="retain.jsonl", retrained=load("retrained")[0], limit=3),
    ):
        assert found.metrics == metrics
        assert json.loads(json.dumps(found.records)) == records
    assert model.training
    assert not Path("runs").exists()


def test_evaluate_on_a_benchmark(workplace: Path) -> None:
    section = {"name": "fable", "authors": 10, "facts": 3}
    metrics, records = of_command("model", "--benchmark", json.dumps(section), "--evaluate.max_new_tokens", "4")
    recipe = load_recipe(None, [("benchmark", json.dumps(section)), ("model", "model")])
    for benchmark in (section, load_benchmark(recipe)):
        found = evaluate("model", benchmark=benchmark, max_new_tokens=4)
        assert found.metrics == metrics
        assert found.records.keys() == records.keys()


@pytest.mark.parametrize("lora", [False, True])
def test_the_model_of_a_trainer_can_be_measured(workplace: Path, lora: bool) -> None:
    model, tokenizer = load("model", dtype="float32")
    rows = people(range(4))
    before = evaluate(model, tokenizer, forget=rows).metrics["forget_probability"]
    trainer = UnlearnTrainer(
        model=model,
        args=UnlearnConfig(output_dir="trained", max_steps=4, learning_rate=1e-2, save_strategy="no"),
        objective=objectives.GA(),
        forget_dataset=rows,
        processing_class=tokenizer,
        peft_config=LoraConfig(r=2).peft() if lora else None,
    )
    trainer.train()
    assert evaluate(trainer.model, tokenizer, forget=rows).metrics["forget_probability"] < before


def test_run_is_what_the_command_runs(workplace: Path) -> None:
    Path("small.yaml").write_text(json.dumps({**FABLE, "method": "npo+nll"}), encoding="utf-8")
    assert main(["run", "small.yaml", "--json", "--seed", "3"]) == 0
    written = json.loads(Path("runs/small/results.json").read_text(encoding="utf-8"))
    made = {"forget": objectives.NPO(), "retain": objectives.NLL()}
    by_file = run("small.yaml", keys={"seed": 3, "out": "by-file"})
    by_mapping = run({**FABLE, "method": made, "seed": 3, "out": Path("by-mapping")})
    by_recipe = run(recipe_of({**FABLE, "method": "npo+nll"}), keys={"seed": 3, "out": "by-recipe"})
    for rows in (by_file, by_mapping, by_recipe):
        assert [(row["method"], row["metrics"]) for row in rows] == [(r["method"], r["metrics"]) for r in written]
    with pytest.raises(UserError, match=r"runs/small already holds a run"):
        run("small.yaml")
    assert run("by-mapping/recipe.yaml", keys={"out": "by-mapping"}, resume=True) == by_mapping


def test_an_objective_is_a_method() -> None:
    base = {"data": {"forget": "f.jsonl"}, "model": "m"}
    alone = recipe_of({**base, "method": objectives.NPO(beta=0.2)})
    several = recipe_of({**base, "methods": [objectives.GA(), "npo+nll"]})
    assert alone.methods[0].forget == objectives.NPO(beta=0.2)
    assert [method.name for method in several.methods] == ["ga", "npo+nll"]
    assert recipe_of(alone.model_dump(mode="json", exclude_unset=True)) == alone


ROWS = people(range(2))
MISTAKES: dict[str, tuple[Callable[[], Any], str]] = {
    "a misspelt key": (lambda: run({**FABLE, "metod": "npo"}), "recipe: unknown key 'metod'. Did you mean 'method'?"),
    "a misspelt override": (
        lambda: run({**FABLE, "method": "ga"}, keys={"train.learning_rat": 1}),
        "keys: unknown key 'train.learning_rat'. Did you mean 'train.learning_rate'?",
    ),
    "no recipe": (lambda: run(7), "recipe must be a file, a mapping or a Recipe, got int."),  # pyright: ignore[reportArgumentType]
    "no file": (lambda: run("nothing.yaml"), "recipe 'nothing.yaml' does not exist."),
    "a misspelt option": (
        lambda: evaluate("model", forget=ROWS, limits=3),
        "evaluate: unknown key 'evaluate.limits'. Did you mean 'evaluate.limit'?",
    ),
    "no rows": (
        lambda: evaluate("model"),
        "evaluate: give either a benchmark or your own data (--forget FILE; in Python forget=).",
    ),
    "both": (
        lambda: evaluate("model", benchmark="fable", forget=ROWS),
        "evaluate: give either a benchmark or your own data (--forget FILE; in Python forget=).",
    ),
    "an empty list": (lambda: evaluate("model", forget=[]), "the forget set has no rows; give at least one."),
    "no format": (lambda: evaluate("model", forget=[{"q": "?"}]), "forget: row 0: no known column"),
    "on both sides": (lambda: evaluate("model", forget=ROWS, retain=ROWS), "stand"),
    "no model": (lambda: evaluate("models", forget=ROWS), "'models'"),
    "not a model": (
        lambda: evaluate(3, forget=ROWS),  # pyright: ignore[reportArgumentType]
        "evaluate: model must be a model, a folder or a hub name, got int.",
    ),
    "no tokenizer": (
        lambda: evaluate(load("model")[0], forget=ROWS),
        "evaluate: a model in memory needs its tokenizer; give tokenizer=….",
    ),
    "a class as method": (lambda: run_of(method=objectives.NPO), "method: NPO is a class; give what it makes, NPO(…)."),
    "a class among methods": (lambda: run_of(methods=[objectives.NPO]), "methods.0: NPO is a class"),
    "an objective as methods": (lambda: run_of(methods=objectives.NPO()), "methods: must be a list; give [objective]"),
    "a class to forget": (lambda: run_of(method={"forget": objectives.NPO}), "method: NPO is a class"),
    "a class to retain": (lambda: run_of(method={"forget": "npo", "retain": objectives.KL}), "retain: KL is a class"),
    "a class as benchmark": (lambda: run_of(data=None, benchmark=Benchmark), "benchmark: Benchmark is a class"),
    "no folder": (lambda: run_of(out=""), "out: is empty; give a folder."),
    "answers longer than the context": (
        lambda: run_of(evaluate={"max_new_tokens": 128}),
        "evaluate.max_new_tokens must be less than 128, the model's context",
    ),
    "answers longer than the context of a model in memory": (
        lambda: evaluate(*load("model"), forget=ROWS, max_new_tokens=128),
        "evaluate.max_new_tokens must be less than 128, the model's context",
    ),
    "no retrained model": (lambda: evaluate("model", forget=ROWS, retrained="nothing"), "'nothing'"),
}


def run_of(**keys: Any) -> Any:
    return run({"model": "model", "data": {"forget": "forget.jsonl"}, "out": "out", **keys})


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_are_one_sentence_and_nothing_is_written(workplace: Path, case: str) -> None:
    do, sentence = MISTAKES[case]
    there = sorted(workplace.rglob("*"))
    with pytest.raises(UserError) as error:
        do()
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)
    assert sorted(workplace.rglob("*")) == there


def test_the_names_are_documented() -> None:
    for name in ("run", "evaluate"):
        assert "Use when" in (getattr(expunge, name).__doc__ or "")


def test_a_trainer_trains_after_the_model_was_measured(
    workplace: Path, tiny_model: Model, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    rows = people(range(4))
    trainer = UnlearnTrainer(
        tiny_model(layers=1, hidden=16),
        UnlearnConfig(output_dir=str(tmp_path / "trained"), num_train_epochs=1, save_strategy="no"),
        objective=objectives.GA(),
        forget_dataset=rows,
        processing_class=tiny_tokenizer,
    )
    before = evaluate(trainer.model, tiny_tokenizer, forget=rows, limit=2, max_new_tokens=4).metrics
    run({**FABLE, "method": "ga", "out": "between"})
    trainer.train()
    after = evaluate(trainer.model, tiny_tokenizer, forget=rows, limit=2, max_new_tokens=4).metrics
    assert after["forget_probability"] < before["forget_probability"]
