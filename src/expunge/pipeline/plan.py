"""What a recipe would do, without doing it: rows, steps, parameters, memory.

Knows which models a method trains and which it keeps beside them; loads no weights and trains nothing.
"""

import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from expunge.data.benchmark import Benchmark
from expunge.modeling import loading
from expunge.modeling.assistant import first_layers, layer_count, linear_names
from expunge.modeling.difference import LogitDifferenceConfig, LogitDifferenceForCausalLM
from expunge.objectives import RMU, ULD, Offset, ULDDistilled
from expunge.pipeline.inputs import (
    check_data,
    check_methods,
    check_recipe,
    load_benchmark,
    tokenizer_and_config,
    training_arguments,
    with_default_method,
)
from expunge.pipeline.methods import Material, retain_term
from expunge.recipe.config import Method, Recipe
from expunge.training import memory
from expunge.training.memory import Memory
from expunge.training.modes import switch_off_dropout, train_only
from expunge.training.prepare import encode_sets
from expunge.training.signals import needs_by_role


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
    benchmark = load_benchmark(recipe)
    recipe = with_default_method(recipe, benchmark)
    check_data(benchmark)
    check_methods(recipe, benchmark)
    tokenizer, config = tokenizer_and_config(recipe, benchmark)
    return [asdict(_plan(recipe, method, benchmark, tokenizer, config)) for method in recipe.methods]


def _plan(recipe: Recipe, method: Method, benchmark: Benchmark, tokenizer: Any, config: Any) -> Plan:
    material, retain = Material.of(recipe, method, benchmark), retain_term(method)
    args = training_arguments(recipe, method, Path("unused"))
    sets = encode_sets(
        method.forget,
        retain,
        forget_rows=material.forget,
        retain_rows=material.retain if retain is not None else [],
        refusals=material.refusals,
        tokenizer=tokenizer,
        config=config,
        max_length=args.max_length,
        overflow=args.overflow,
        overlap=args.overlap,
        assistant_turns=args.assistant_turns,
        seed=recipe.seed,
    )
    world = args.per_device_train_batch_size * args.gradient_accumulation_steps
    steps = math.ceil(math.ceil(len(sets.forget) / world) * args.num_train_epochs)
    needs = needs_by_role(method.forget, retain)
    batch = memory.largest_batch(sets, needs, args)
    with torch.device("meta"):
        outline = _outline(recipe, method, config)
    if any(own.reference for own in needs.values()) and not args.keep_dropout:
        switch_off_dropout(outline.trained)
    total = loading.parameter_count(outline.whole or outline.trained)
    trainable = sum(p.numel() for p in outline.trained.parameters() if p.requires_grad)
    reference = memory.reference_bytes(outline.trained, needs, sets, args, teacher=outline.teacher)
    by_assistant = isinstance(method.forget, ULD | Offset) and not isinstance(method.forget, ULDDistilled)
    quantized = recipe.model.lora is not None and recipe.model.lora.quantize is not None and not by_assistant
    saved = loading.bytes_saved(outline.trained) / memory.MIB if quantized else 0.0
    peak = memory.peak(outline.trained, batch, needs, args, reference)
    peak = replace(peak, weights=peak.weights - saved)
    return Plan(
        benchmark=benchmark.name,
        split=benchmark.split,
        method=method.name,
        forget_rows=len(sets.forget),
        retain_rows=len(sets.retain),
        tokens=sum(len(e) for part in (sets.forget, sets.refusal, sets.retain) for e in part),
        steps=args.max_steps if args.max_steps > 0 else steps,
        parameters=total,
        trainable=trainable,
        memory_mib=peak.total,
        memory=peak,
    )


@dataclass(frozen=True)
class _Outline:
    """Models without weights, as `methods.prepare` makes them: what trains, the whole of what that is a part of, and a
    teacher."""

    trained: Any
    whole: Any = None
    teacher: Any = None


def _outline(recipe: Recipe, method: Method, config: Any) -> _Outline:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    forget, lora = method.forget, recipe.model.lora

    def build(*, trains: bool = False) -> Any:
        dtype = getattr(torch, recipe.model.dtype, None)  # none for auto: the checkpoint's, or float32 to train it
        if dtype is None:
            dtype = torch.float32 if trains and lora is None else getattr(config, "dtype", None) or torch.float32
        return AutoModelForCausalLM.from_config(config, dtype=dtype)

    def difference(base: Any, forget: ULD | Offset) -> Any:
        layers = layer_count(config, forget.layers)
        settings = LogitDifferenceConfig(layers=layers, relative=isinstance(forget, Offset))
        return LogitDifferenceForCausalLM(settings, base, lora=LoraConfig(r=forget.r, task_type="CAUSAL_LM"))

    if isinstance(forget, Offset) and forget.assistant is not None:
        _, small = loading.load_tokenizer_and_config(forget.assistant)
        others = [AutoModelForCausalLM.from_config(small, dtype=torch.float32) for _ in range(2)]
        settings = LogitDifferenceConfig(tau=0.0, relative=True)
        return _Outline(LogitDifferenceForCausalLM(settings, build(), assistant=others[0], start=others[1]))
    if isinstance(forget, Offset):
        return _Outline(difference(build(), forget))
    if isinstance(forget, ULD) and not isinstance(forget, ULDDistilled):
        base = build()
        layers = layer_count(config, forget.layers)
        small = first_layers(base, layers)
        adapter = LoraConfig(r=forget.r, target_modules=linear_names(small, layers), task_type="CAUSAL_LM")
        return _Outline(get_peft_model(small, adapter), whole=difference(base, forget))
    model = build(trains=True)
    if lora is not None:
        model = get_peft_model(model, lora.peft())
    if isinstance(forget, RMU):
        train_only(model, forget)
    return _Outline(model, teacher=difference(build(), forget) if isinstance(forget, ULDDistilled) else None)
