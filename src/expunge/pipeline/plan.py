"""The plan of a recipe, which is not carried out: rows, steps, parameters, memory."""

import logging
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from expunge.data.benchmark import Benchmark
from expunge.modeling import loading
from expunge.objectives import Step
from expunge.pipeline import own_rows
from expunge.pipeline.inputs import (
    check_data,
    check_methods,
    check_recipe,
    load_with_method,
    tokenizer_and_config,
    training_arguments,
)
from expunge.pipeline.methods import Material, build, outlines, teaching
from expunge.recipe.config import Method, Recipe
from expunge.training import memory
from expunge.training.memory import Memory
from expunge.training.modes import switch_off_dropout, train_only
from expunge.training.prepare import encode_sets
from expunge.training.signals import needs_by_role
from expunge.training.stepping import only_mlps

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase


log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """One method of a recipe: what it trains on, for how long, and what that takes.

    `memory_mib` is the sum of the parts in `memory`: training's peak beyond what the process held before (`memory.py`).
    """

    benchmark: str
    split: str
    method: str
    forget_rows: int
    retain_rows: int
    tokens: int
    steps: int
    parameters: int
    trainable: int
    memory_mib: float
    memory: Memory


def plan(recipe: Recipe) -> list[dict[str, Any]]:
    """A row for each method; raises the `UserError` that the run itself would raise before it begins."""
    check_recipe(recipe)
    recipe, benchmark = load_with_method(recipe)
    if recipe.data is not None and own_rows.planned(recipe) is not None:
        log.info("the model is not asked yet: its own answers are planned with %d words each", own_rows.WORDS)
    check_data(benchmark)
    check_methods(recipe, benchmark)
    tokenizer, config = tokenizer_and_config(recipe, benchmark)
    return [asdict(_plan(recipe, method, benchmark, tokenizer, config)) for method in recipe.methods]


def _plan(
    recipe: Recipe,
    method: Method,
    benchmark: Benchmark,
    tokenizer: "PreTrainedTokenizerBase",
    config: "PretrainedConfig",
) -> Plan:
    material, retain = Material.of(recipe, method, benchmark), method.retain_term
    args = training_arguments(recipe, method, Path("unused"))
    sets = encode_sets(
        method.objective,
        retain,
        forget_rows=material.forget,
        retain_rows=material.retain if retain is not None else [],
        refusals=material.refusals,
        tokenizer=tokenizer,
        config=config,
        args=args,
    )
    world = args.per_device_train_batch_size * args.gradient_accumulation_steps
    each = 1 if isinstance(method.forget, Step) else math.ceil(len(sets.forget) / world)
    steps = args.max_steps if args.max_steps > 0 else math.ceil(each * args.num_train_epochs)
    if method.noise is not None:
        steps += math.ceil((len(material.forget) + len(material.retain)) / world * method.noise.epochs)
    needs = needs_by_role(method.objective, retain)
    batch = memory.largest_batch(sets, needs, args)
    with torch.device("meta"):
        load = outlines(recipe, config)
        models = build(recipe, method, load)
        trained = models.trained if models.adapter is None else loading.adapt(models.trained, models.adapter)
        teacher = build(recipe, teaching(method), load).difference if method.forget.trains == "student" else None
    if isinstance(method.forget, Step):
        only_mlps(trained)
    elif method.forget.parts is not None:
        train_only(trained, *method.forget.parts)
    if any(need.reference for need in needs.values()) and not args.keep_dropout:
        switch_off_dropout(trained)
    total = loading.parameter_count(models.difference or trained)
    trainable = sum(p.numel() for p in trained.parameters() if p.requires_grad)
    reference = memory.reference_bytes(trained, needs, sets, args, teacher=teacher)
    quantized = recipe.model.lora is not None and recipe.model.lora.quantize is not None and not method.assisted
    saved = loading.bytes_saved(trained) / memory.MIB if quantized else 0.0
    peak = memory.peak(trained, batch, needs, args, reference)
    peak = replace(peak, weights=peak.weights - saved)
    if method.noise is not None:  # the unlearned model, which is distilled
        peak = replace(peak, reference=peak.reference + peak.weights)
    return Plan(
        benchmark=benchmark.name,
        split=benchmark.split,
        method=method.name,
        forget_rows=len(sets.forget),
        retain_rows=len(sets.retain),
        tokens=sum(len(e) for part in (sets.forget, sets.refusal, sets.retain) for e in part),
        steps=steps,
        parameters=total,
        trainable=trainable,
        memory_mib=peak.total,
        memory=peak,
    )
