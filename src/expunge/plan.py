"""What a recipe would do, without doing it: rows, steps, parameters, memory.

Knows sizes; loads no weights and trains nothing.
"""

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from expunge import models
from expunge.assistant import layer_count, linear_names
from expunge.config import Method, Recipe
from expunge.data.benchmark import Benchmark
from expunge.logprobs import CHUNK
from expunge.methods import Material, retain_term
from expunge.objectives import ULD, Offset, ULDDistilled
from expunge.prepare import encode_sets
from expunge.run import (
    check_data,
    check_methods,
    load_benchmark,
    tokenizer_and_config,
    training_arguments,
    with_default_method,
)


@dataclass(frozen=True)
class Plan:
    """One method of a recipe: what it trains on, for how long, and what that takes."""

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


def plan(recipe: Recipe) -> list[dict[str, Any]]:
    """A row for each method; raises the `UserError` that the run itself would raise before it begins."""
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
        seed=recipe.seed,
    )
    world = args.per_device_train_batch_size * args.gradient_accumulation_steps
    steps = math.ceil(math.ceil(len(sets.forget) / world) * args.num_train_epochs)
    text = config.get_text_config()
    layers = text.num_hidden_layers
    parts = [part for part in (sets.forget, sets.refusal, sets.retain) if part]
    longest = sum(max(map(len, part)) for part in parts)
    total, trainable, running = _parameters(recipe, method, config)
    return Plan(
        benchmark=benchmark.name,
        split=benchmark.split,
        method=method.name,
        forget_rows=len(sets.forget),
        retain_rows=len(sets.retain),
        tokens=sum(len(e) for part in parts for e in part),
        steps=args.max_steps if args.max_steps > 0 else steps,
        parameters=total,
        trainable=trainable,
        memory_mib=_memory(
            text,
            weights=total,
            trainable=trainable,
            tokens=longest * args.per_device_train_batch_size,
            layers=running or layers,
            checkpointing=bool(args.gradient_checkpointing),
        ),
    )


def _parameters(recipe: Recipe, method: Method, config: Any) -> tuple[int, int, int | None]:
    """(all, those that train, the layers that run where those are not all) of the method's model."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        outline = AutoModelForCausalLM.from_config(config)
    total = models.parameter_count(outline)
    forget = method.forget
    if isinstance(forget, ULD | Offset) and not isinstance(forget, ULDDistilled):
        if isinstance(forget, Offset) and forget.assistant is not None:
            _, small = models.load_tokenizer_and_config(forget.assistant)
            with torch.device("meta"):
                own = models.parameter_count(AutoModelForCausalLM.from_config(small))
            return total + 2 * own, own, None
        layers = layer_count(config, forget.layers)
        lora = LoraConfig(r=forget.r, target_modules=linear_names(outline, layers))
        adapter = _trainable(get_peft_model(outline, lora))
        return total + adapter, adapter, layers if isinstance(forget, ULD) else None
    if recipe.model.lora is not None:
        adapter = _trainable(get_peft_model(outline, recipe.model.lora.peft()))
        return total + adapter, adapter, None
    return total, total, None


def _trainable(model: Any) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def _memory(text: Any, *, weights: int, trainable: int, tokens: int, layers: int, checkpointing: bool) -> float:
    """MiB of weights, gradients, AdamW's two moments, activations of the largest batch, and one chunk of logits.

    float32 throughout. A layer keeps, for each token, about 9 vectors of its width and 4 of its MLP's; with gradient
    checkpointing one vector, and one layer in full at a time.
    """
    width, inner = text.hidden_size, getattr(text, "intermediate_size", None) or 4 * text.hidden_size
    layer = tokens * (9 * width + 4 * inner)
    activations = layers * tokens * width + layer if checkpointing else layers * layer
    logits = 3 * CHUNK * text.vocab_size
    return 4 * (weights + 3 * trainable + activations + logits) / 2**20
