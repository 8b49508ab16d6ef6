"""`expunge run` and `expunge eval` from Python: values in place of words, and numbers in place of tables."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

import torch
from accelerate.state import AcceleratorState

from expunge.benchmarks import custom
from expunge.data.benchmark import Benchmark, Row
from expunge.data.formats import normalise, read_rows
from expunge.errors import UserError
from expunge.evals.retrained import Retrained
from expunge.evals.tofu import Evaluation
from expunge.modeling.causal import CausalLM
from expunge.modeling.checkpoint import whereabouts
from expunge.pipeline.inputs import (
    check_answered,
    check_answers,
    check_data,
    check_methods,
    check_recipe,
    load_benchmark,
    with_additions,
    with_general_questions,
)
from expunge.pipeline.measure import load, measure_retrained, measure_target
from expunge.pipeline.run import run_all
from expunge.pipeline.rundir import Result
from expunge.recipe.config import Recipe
from expunge.recipe.parsing import parse_recipe, recipe_of
from expunge.training.prepare import rows_of

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

Rows = Union[str, Path, Sequence[Row], "Dataset"]

GIVEN = "given in Python"
"""Stands in a recipe for a model or rows that are in memory."""


@contextmanager
def _state_of_trainers_kept() -> Iterator[None]:
    """Keep accelerate's state, which new training arguments clear and a trainer that was built before them reads."""
    before = dict(AcceleratorState._shared_state)
    try:
        yield
    finally:
        AcceleratorState._shared_state.update(before)


@_state_of_trainers_kept()
def run(
    recipe: str | Path | Mapping[str, Any] | Recipe,
    *,
    keys: Mapping[str, Any] | None = None,
    resume: bool = False,
    overwrite: bool = False,
    workers: int = 1,
) -> list[Result]:
    """Carry out a recipe and return the rows of its `results.json`, as `expunge run` does.

    Use when a script needs a run's numbers. Objectives may be given as they are in Python.

    Args:
        recipe: a YAML file, a mapping of the same keys, or a `Recipe`.
        keys: dotted keys and their values, in place of the recipe's: `{"train.learning_rate": 1e-5}`.
        resume: go on where an interrupted run stopped.
        overwrite: start over in a directory that holds a run.
        workers: number of runs at a time where there are several (the key `over`), each in a process of its own.

    Raises:
        UserError: the same sentences as on the command line, before anything is written.

    `run({"benchmark": "fable", "model": {"scratch": {}}, "method": objectives.NPO(beta=0.2), "out": "runs/npo"})` is
    one run of NPO without a retain term.
    """
    return run_all(recipe_of(recipe, keys), resume=resume, overwrite=overwrite, workers=workers)


@_state_of_trainers_kept()
def evaluate(
    model: CausalLM | str | Path,
    tokenizer: "PreTrainedTokenizerBase | None" = None,
    *,
    benchmark: str | Mapping[str, Any] | Benchmark | None = None,
    forget: Rows | None = None,
    retain: Rows | None = None,
    retrained: Any = None,
    augment: str | Path | None = None,
    seed: int = 0,
    **options: Any,
) -> Evaluation:
    """Measure a model as it is, as `expunge eval` does; nothing is written.

    Use when a model in memory needs a number. Broken text is judged by itself alone, for the model before unlearning is
    not known here.

    Args:
        model: a causal LM in memory, which stays on its device, or a folder or hub name.
        tokenizer: the tokenizer of a model in memory; a folder's own without it.
        benchmark: its name, its section in a recipe, or a `Benchmark`.
        forget: rows in place of a benchmark: a list or data set of them, a file, a folder or a hub name.
        retain: rows that were to stay, in the same forms.
        retrained: a model that never saw the forget rows, in memory (with the same tokenizer), a folder or a hub name.
        augment: file of paraphrases and wrong answers (see `expunge augment`).
        seed: draws which of the own rows are held out and asked about.
        options: the keys of `evaluate` in a recipe, such as `limit`, `max_new_tokens` and `mmlu`.

    Returns:
        `metrics` by name and `records` by question set or probe, as a run writes them to results.json and records/.

    Raises:
        UserError: the same sentences as on the command line.

    `evaluate("runs/run/model", forget="forget.jsonl").metrics["forget_probability"]` is one number of a saved model.
    """
    named = isinstance(model, str | Path)
    if named:
        whereabouts(str(model))
    else:
        options = {"general": getattr(tokenizer, "chat_template", None) is not None, **options}
    recipe = parse_recipe(
        {
            "model": str(model) if named else GIVEN,
            **_data(benchmark, forget, retain),
            **({} if augment is None else {"augment": str(augment)}),
            **({"retrained": str(retrained)} if isinstance(retrained, str | Path) else {}),
            "evaluate": options,
            "methods": [],
            "seed": seed,
        },
        where="evaluate",
    )
    check_recipe(recipe)
    asked = with_general_questions(recipe, _benchmark(recipe, benchmark, forget, retain))
    check_data(asked)
    measured: Any = model
    if named:
        check_methods(recipe, asked)
        measured, its_own = load(str(model), use_cpu=False)
        tokenizer = its_own if tokenizer is None else tokenizer
    gold = None if retrained is None else _retrained(retrained, measured, tokenizer, asked, recipe)
    _check_model(measured, tokenizer, "model")
    assert tokenizer is not None
    check_answers(recipe, measured.config)
    return measure_target(measured, tokenizer, asked, recipe.evaluate, gold=gold)


def _data(benchmark: Any, forget: Any, retain: Any) -> dict[str, Any]:
    """The sections `benchmark` and `data` of a recipe; what is in memory is only named there."""
    sides = {"forget": forget, "retain": retain}
    data = {k: str(v) if isinstance(v, str | Path) else GIVEN for k, v in sides.items() if v is not None}
    if isinstance(benchmark, Benchmark) and not data:
        return {"data": {"forget": GIVEN}}
    return {**({} if benchmark is None else {"benchmark": benchmark}), **({"data": data} if data else {})}


def _benchmark(recipe: Recipe, benchmark: Any, forget: Any, retain: Any) -> Benchmark:
    if isinstance(benchmark, Benchmark):
        return with_additions(recipe.model_copy(update={"data": None}), benchmark, benchmark.variants)
    if all(rows is None or isinstance(rows, str | Path) for rows in (forget, retain)):
        check_answered(recipe, "evaluate")
        return load_benchmark(recipe)
    given = custom.of_rows(_rows(forget, "forget"), _rows(retain, "retain"), split=GIVEN, seed=recipe.seed)
    return with_additions(recipe, given)


def _rows(given: Rows | None, name: str) -> list[Row]:
    if isinstance(given, str | Path):
        return read_rows(given)
    return [normalise(dict(row), f"{name}: row {i}") for i, row in enumerate(rows_of(given, name))]


def _retrained(given: Any, model: CausalLM, tokenizer: Any, benchmark: Benchmark, recipe: Recipe) -> Retrained:
    if isinstance(given, str | Path):
        other, its_own = load(given, use_cpu=True)
        given, tokenizer = other.to(model.device), its_own
    _check_model(given, tokenizer, "retrained")
    return measure_retrained(given, tokenizer, benchmark, recipe.evaluate)[0]


def _check_model(model: Any, tokenizer: Any, name: str) -> None:
    if not isinstance(model, torch.nn.Module):
        raise UserError(f"evaluate: {name} must be a model, a folder or a hub name, got {type(model).__name__}.")
    if tokenizer is None:
        raise UserError(f"evaluate: a {name} in memory needs its tokenizer; give tokenizer=….")
