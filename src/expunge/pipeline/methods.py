"""Models and rows that each method trains on: which models, built in one place, and which rows.

A method declares what it trains (`Objective.trains`): the model itself; ULD's assistant alone; Offset's assistant
through the difference with the model; or, once ULD's difference is there, the model towards it.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch

from expunge.data.augment import choose, parts
from expunge.data.benchmark import Benchmark, Row
from expunge.data.dialects import PREFERRED
from expunge.data.formats import read_rows
from expunge.data.refusals import REFUSALS
from expunge.errors import UserError
from expunge.modeling import loading
from expunge.modeling.assistant import first_layers, layer_count, linear_names
from expunge.modeling.difference import LogitDifferenceConfig, LogitDifferenceForCausalLM
from expunge.modeling.saving import same_vocabulary
from expunge.objectives import ULDDistilled
from expunge.recipe.config import Method, Recipe

if TYPE_CHECKING:
    from transformers import PretrainedConfig


@dataclass(frozen=True)
class Material:
    """Rows that a method trains on: the benchmark's, the variants that it asks for, and refusals."""

    forget: list[Row]
    retain: list[Row]
    refusals: list[str]

    @classmethod
    def of(cls, recipe: Recipe, method: Method, benchmark: Benchmark) -> "Material":
        """Raises `UserError` for a file of refusals that holds something else."""
        variants, augment = benchmark.variants, method.augment
        said = choose(variants, "paraphrase", augment.paraphrases, seed=recipe.seed)
        wrong = choose(variants, "perturbation", augment.perturbations, seed=recipe.seed)
        forget, retain = [*benchmark.forget, *said], [*benchmark.retain]
        match method.forget.wrong_answers:
            case "forget":
                forget += wrong
            case "retain":
                retain += wrong
            case "preferred":
                forget = _preferring(benchmark, augment.perturbations, seed=recipe.seed)
        return cls(forget, retain, refusals(recipe))


def _preferring(benchmark: Benchmark, each: int, *, seed: int) -> list[Row]:
    """Every forget row once for each of its wrong answers, which it prefers to its own; as it is where it has none."""
    rows: list[Row] = []
    for i, row in enumerate(benchmark.forget):
        of_row = [variant for variant in benchmark.variants if variant.row == i]
        wrong = [parts(text)[1] for text in choose(of_row, "perturbation", each, seed=seed)]
        rows += [{**row, PREFERRED: answer} for answer in wrong] or [row]
    return rows


class Load(Protocol):
    """Gives the model to unlearn, frozen or to be trained, or another one by its name."""

    def __call__(self, name: str | None = None, *, trains: bool = False) -> Any: ...


def weights(recipe: Recipe, target: Path | str) -> Load:
    """Models with their weights; the one to unlearn is in `target`."""
    options = recipe.model

    def load(name: str | None = None, *, trains: bool = False) -> Any:
        if name is not None:
            return loading.load(name, dtype="float32", merged=True)[0]
        common: dict[str, Any] = {"dtype": options.dtype, "attention": options.attention}
        if trains:
            return loading.load_for_training(target, **common, lora=options.lora, pure_bf16=options.pure_bf16)[0]
        return loading.load(target, **common, merged=True)[0]

    return load


def outlines(recipe: Recipe, config: "PretrainedConfig") -> Load:
    """The models of `weights` without weights (`torch.device("meta")`), to be counted and checked."""

    def load(name: str | None = None, *, trains: bool = False) -> Any:
        if name is not None:
            return loading.outline(loading.load_tokenizer_and_config(name)[1], dtype=torch.float32)
        dtype = getattr(torch, recipe.model.dtype, None)  # none for auto
        if dtype is None and not (trains and recipe.model.lora is None):
            dtype = getattr(config, "dtype", None)
        return loading.outline(config, dtype=dtype or torch.float32)

    return load


@dataclass(frozen=True)
class Models:
    """The models of one training.

    trained     what the trainer is given
    adapter     `peft.LoraConfig` that the trainer puts on it; `None`: its own weights train
    base        the model to unlearn, where an assistant that stands on its layers trains alone
    difference  of such a base and its assistant
    saved_like  the place of the model in whose dtype the result is saved; `None`: in its own
    """

    trained: Any
    adapter: Any = None
    base: Any = None
    difference: Any = None
    saved_like: str | None = None

    def unlearned(self, trained: Any) -> Any:
        """The model that the training leaves, with `trained` as it now is."""
        if self.difference is None:
            return trained
        from peft import get_peft_model_state_dict

        with same_vocabulary():
            self.difference.load_assistant(get_peft_model_state_dict(trained))
        return self.difference.to(trained.device).eval()


def build(recipe: Recipe, method: Method, load: Load, *, place: str = "") -> Models:
    """The models that `method` trains: with `weights` to train them, with `outlines` to plan and to check.

    `place` is where the model to unlearn is, which a checkpoint of an assistant names.
    Raises `UserError` for a model that no assistant can be cut from.
    """
    lora, forget = recipe.model.lora, method.forget
    match forget.trains:
        case "model" | "student":
            model = load(trains=True)
            return Models(model, saved_like=place) if lora is None else Models(model, adapter=lora.peft())
        case "assistant":
            return _assistant(forget, load, place)
        case "difference":
            return _difference(forget, load, place)


def _assistant(uld: Any, load: Load, place: str) -> Models:
    """ULD: an adapter on the model's first layers learns, alone; the difference with the model is what it leaves."""
    base = load()
    layers = layer_count(base, uld.layers)
    small = first_layers(base, layers)
    config = LogitDifferenceConfig(base=place, weight=-uld.alpha, tau=uld.tau, layers=layers)
    difference = LogitDifferenceForCausalLM(config, base, lora=_adapter(uld.r)).requires_grad_(False)
    adapter = _adapter(uld.r)
    adapter.target_modules = linear_names(small, layers)
    return Models(small, adapter=adapter, base=base, difference=difference)


def _difference(offset: Any, load: Load, place: str) -> Models:
    """Offset: the loss is the difference's, and only the assistant in it learns."""
    base = load()
    config = LogitDifferenceConfig(base=place, weight=offset.scale, tau=0.0, relative=True)
    if offset.assistant is None:
        config.layers = layer_count(base, offset.layers)
        return Models(LogitDifferenceForCausalLM(config, base, lora=_adapter(offset.r)))
    config.start = loading.whereabouts(offset.assistant)
    assistant, start = load(offset.assistant), load(offset.assistant)
    difference = LogitDifferenceForCausalLM(config, base, assistant=assistant, start=start)
    return Models(difference, saved_like=offset.assistant)


def _adapter(r: int) -> Any:
    """The assistant's LoRA; which layers it goes on is for its owner to say."""
    from peft import LoraConfig

    return LoraConfig(r=r, lora_alpha=2 * r, task_type="CAUSAL_LM")


def teaching(method: Method) -> Method:
    """The method that trains a student's teacher, at its own pace and not the student's."""
    assert isinstance(method.forget, ULDDistilled)
    kept = method.train.model_dump(exclude_unset=True, exclude={"learning_rate", "num_train_epochs", "max_steps"})
    return method.model_copy(update={"forget": method.forget.teaching, "train": type(method.train)(**kept)})


def refusals(recipe: Recipe) -> list[str]:
    """Answers that a method may prefer to the forget answers.

    Raises `UserError` for a file that holds something else.
    """
    if recipe.data is None or recipe.data.refusals is None:
        return list(REFUSALS)
    rows = read_rows(recipe.data.refusals)
    if "text" not in rows[0]:
        raise UserError(
            f"{recipe.data.refusals}: refusals are rows with the column text; this file has {', '.join(rows[0])}."
        )
    return [row["text"] for row in rows]
