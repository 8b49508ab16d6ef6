"""The learning rate and the number of epochs of a training that names neither: they follow from model and rows.

docs/explanation/pace.md has the sweeps that the rule was held against.
"""

import logging
import math

from pydantic import BaseModel

from expunge.data.benchmark import Benchmark
from expunge.modeling import loading
from expunge.objectives import Objective, Step
from expunge.pipeline.methods import Material
from expunge.recipe.config import Method, Recipe
from expunge.system import ranks

log = logging.getLogger(__name__)

RATE = 0.02
"""Learning rate times hidden size, where all weights train: a wider model takes smaller steps."""
ADAPTER = 10
"""Times that, where low-rank matrices train in place of the weights."""
STEPS = 45
"""Optimizer steps that are enough, where the fewest epochs have fewer."""
EPOCHS = (5, 30)
"""The fewest epochs and the most."""


def with_pace(recipe: Recipe, benchmark: Benchmark) -> Recipe:
    """The recipe with a learning rate and epochs for each of its methods that has none of its own or of `train`.

    An assistant has its pace from its objective. A model whose configuration gives no hidden size keeps the defaults
    of the training arguments.
    """
    size = width(recipe)
    if size is None:
        return recipe
    paces = [_pace(recipe, method, benchmark, size) for method in recipe.methods]
    if not any(paces):
        return recipe
    if len(paces) == 1:
        return recipe.model_copy(update={"train": _with(recipe.train, paces[0])})
    methods = [
        method.model_copy(update={"train": _with(method.train, pace)})
        for method, pace in zip(recipe.methods, paces, strict=True)
    ]
    return recipe.model_copy(update={"methods": methods})


def learning_rate(objective: Objective, width: int, *, lora: bool) -> float:
    """The peak of the schedule for a model with hidden size `width`, to two digits.

    lora: whether an adapter on the model trains.
    """
    rate = objective.rate_factor * RATE / width
    if lora or objective.trains == "difference":  # Offset's assistant, which is an adapter
        rate *= ADAPTER
    return float(f"{rate:.2g}")


def epochs(rows: int, batch: int) -> int:
    """The number of epochs for `rows` forget rows, where an optimizer step takes `batch` of them."""
    low, high = EPOCHS
    return min(high, max(low, math.ceil(STEPS / math.ceil(rows / batch))))


def width(recipe: Recipe) -> int | None:
    """The hidden size of the model to unlearn, where its configuration gives one."""
    if recipe.model.scratch is not None:
        return recipe.model.scratch.hidden
    assert recipe.model.name is not None
    _, config = loading.load_tokenizer_and_config(recipe.model.name)
    return getattr(config.get_text_config(), "hidden_size", None)


def _pace(recipe: Recipe, method: Method, benchmark: Benchmark, width: int) -> dict[str, float]:
    """The training keys that nobody named, and their values."""
    if isinstance(method.forget, Step):
        return {}
    given = {*recipe.train.model_fields_set, *method.train.model_fields_set, *method.forget.pace}
    pace: dict[str, float] = {}
    if "learning_rate" not in given:
        pace["learning_rate"] = learning_rate(method.forget, width, lora=recipe.model.lora is not None)
    if not given & {"num_train_epochs", "max_steps"}:
        settings = {**recipe.train.model_dump(), **method.train.model_dump(exclude_unset=True)}
        batch = settings["per_device_train_batch_size"] * settings["gradient_accumulation_steps"] * ranks.count()
        pace["num_train_epochs"] = epochs(len(Material.of(recipe, method, benchmark).forget), batch)
    if pace:
        words = " and ".join(f"{key} {value:g}" for key, value in pace.items())
        log.info("%s: taking %s, by the model's width and the number of rows", method.name, words)
    return pace


def _with(train: BaseModel, pace: dict[str, float]) -> BaseModel:
    """A training section with further keys."""
    return type(train)(**train.model_dump(exclude_unset=True), **pace)
