"""Noise on unlearned weights, into which the unlearned model is distilled, where a method asks for it."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers.trainer_utils import IntervalStrategy

from expunge.data.benchmark import Benchmark
from expunge.objectives import Distilled
from expunge.pipeline.inputs import training_arguments
from expunge.pipeline.methods import Load, Material
from expunge.pipeline.pace import learning_rate, width
from expunge.recipe.config import Method, Recipe
from expunge.training.trainer import UnlearnTrainer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)


def distilled(
    recipe: Recipe,
    method: Method,
    benchmark: Benchmark,
    unlearned: Any,
    tokenizer: "PreTrainedTokenizerBase",
    load: Load,
    directory: Path,
) -> tuple[Any, float]:
    """(a model with the noised weights of `unlearned`, trained towards it on all rows, seconds of that).

    An interrupted distillation begins again.
    """
    noise = method.noise
    assert noise is not None
    student, draw = load(trains=True), torch.Generator().manual_seed(recipe.seed)
    known = dict(unlearned.named_parameters())
    with torch.no_grad():
        for name, weight in student.named_parameters():
            weight.copy_(noise.noised(known[name].to(weight), draw))
    material = Material.of(recipe, method, benchmark)
    args = training_arguments(recipe, distilling(recipe, method), directory)
    args.eval_strategy = IntervalStrategy.NO
    log.info("%s: distilled into its noised weights, %g epochs at %g", method.name, noise.epochs, args.learning_rate)
    trainer = UnlearnTrainer(
        student,
        args,
        objective=Distilled(),
        forget_dataset=[*material.forget, *material.retain],
        processing_class=tokenizer,
        teacher=unlearned.eval(),
    )
    trainer.train()
    return trainer.whole_model().eval(), trainer.state.log_history[-1].get("seconds", 0.0)


def distilling(recipe: Recipe, method: Method) -> Method:
    """The method of the distillation, at its own pace."""
    noise, size = method.noise, width(recipe)
    assert noise is not None
    pace: dict[str, Any] = {
        "num_train_epochs": noise.epochs,
        "max_steps": -1,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.1,
        "save_strategy": "no",
    }
    rate = noise.learning_rate or (None if size is None else learning_rate(Distilled(), size, lora=False))
    pace |= {} if rate is None else {"learning_rate": rate}
    train = type(method.train)(**{**method.train.model_dump(exclude_unset=True), **pace})
    return method.model_copy(update={"forget": Distilled(), "train": train})
