"""Inputs of a run, and whether it can begin: rows, methods and their arguments, as far as a recipe tells.

Loads no weights and writes nothing. Raises `UserError` for everything that would stop a run later.
"""

import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from expunge.benchmarks import custom, general, mmlu
from expunge.data.augment import parts
from expunge.data.augment import read as read_variants
from expunge.data.benchmark import Benchmark, Variant
from expunge.data.checks import check_disjoint, check_not_empty, near_duplicates
from expunge.errors import UserError
from expunge.evals.glossary import declare
from expunge.modeling import loading
from expunge.modeling.difference import checkpoint_of
from expunge.objectives import Distilled, Needs
from expunge.pipeline import own_rows
from expunge.pipeline.methods import Material, build, outlines, teaching
from expunge.pipeline.own_rows import OwnRows
from expunge.pipeline.pace import with_pace
from expunge.pipeline.recommend import recommend
from expunge.pipeline.steps import check_noise, check_step
from expunge.recipe.config import Method, Recipe, declarations
from expunge.recipe.parsing import parse_recipe
from expunge.stress import attacks
from expunge.system import ranks
from expunge.training.arguments import FIELDS, UnlearnConfig
from expunge.training.prepare import check_sharpness, check_terms, encode_sets, tell_unread
from expunge.training.reference import check_kind
from expunge.training.targets import row_texts

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

log = logging.getLogger(__name__)


def check_recipe(recipe: Recipe) -> None:
    """Raise `UserError` for what can be known from the recipe alone: before data is read, and in a second or two.

    Makes the metrics known that the recipe's own benchmark and functions declare.
    """
    declare(*declarations(recipe))
    for method in recipe.methods:
        if method.forget.trains != "model" and getattr(method.forget, "teacher", None) is None:
            _check_launcher(method.forget.title)
        check_step(recipe, method)
        check_noise(recipe, method)
        training_arguments(recipe, method, Path("unused"))
    if not recipe.methods:
        _arguments(recipe, recipe.train.model_dump(exclude_unset=True), Path("unused"))
    if recipe.model.scratch is not None:
        _check_size(recipe.model.scratch)
    if recipe.evaluate.stress is not None:
        attacks.check(recipe.evaluate.stress.attacks)
        if ranks.count() > 1:
            raise UserError("evaluate.stress: attacks run in one process; leave it out and give expunge stress MODEL.")
    if recipe.evaluate.harness is not None:
        from expunge.evals import harness

        harness.check(recipe.evaluate.harness.tasks, recipe.evaluate.harness.include_path)


def _check_launcher(name: str) -> None:
    """Raise `UserError` where weights that assistant and base share would be spread over ranks."""
    if any(os.environ.get(f"ACCELERATE_USE_{kind}", "false").lower() == "true" for kind in ("FSDP", "DEEPSPEED")):
        raise UserError(
            f"{name} trains an assistant on the base model's own weights, which FSDP and DeepSpeed would take apart; "
            f"launch it without them: accelerate launch --multi_gpu -m expunge run."
        )


def _check_size(scratch: loading.ScratchConfig) -> None:
    """Raise `UserError` for a model from scratch that this machine's memory can't hold."""
    hidden = scratch.hidden
    numbers = 2 * scratch.vocab * hidden + scratch.layers * (4 * hidden * hidden + 8 * hidden * hidden)
    each = 4 if torch.accelerator.is_available() else 16  # weights; with gradients and two numbers of the optimizer
    held = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if each * numbers > held:
        raise UserError(
            f"model.scratch: {numbers:.2g} parameters (from {scratch.layers} layers, hidden {hidden} and vocab "
            f"{scratch.vocab}) take {each * numbers / 2**30:.3g} GiB to train and this machine has "
            f"{held / 2**30:.3g}; give smaller ones."
        )


def load_benchmark(recipe: Recipe, rows: OwnRows | None = None) -> Benchmark:
    """The data that the recipe names; where the model itself is to answer, `rows`, or else placeholders."""
    if recipe.benchmark is not None:
        benchmark = recipe.benchmark.load()
        return with_additions(recipe, benchmark, benchmark.variants)
    assert recipe.data is not None
    rows = rows or own_rows.planned(recipe)
    if rows is None:
        given = custom.load(forget=recipe.data.forget, retain=recipe.data.retain, seed=recipe.seed)
    else:
        given = custom.of_rows(rows.forget, rows.retain, split=rows.split, seed=recipe.seed)
    return with_additions(recipe, given)


def load_with_method(recipe: Recipe) -> tuple[Recipe, Benchmark]:
    """The recipe with a method and its pace, and its data, with the variants that the method trains on."""
    benchmark = load_benchmark(recipe)
    chosen = with_default_method(recipe, benchmark)
    if chosen is not recipe and recipe.data is not None:
        benchmark = load_benchmark(chosen)
    return with_pace(chosen, benchmark), benchmark


def check_answered(recipe: Recipe, what: str) -> None:
    """Raise `UserError` where forget rows are questions alone and `what` does not ask the model for their answers."""
    rows = own_rows.planned(recipe) if recipe.data is not None else None
    if rows is not None and rows.asked:
        raise UserError(f"{what}: the forget rows are questions alone; give answers, such as expunge run writes them.")


def with_additions(recipe: Recipe, benchmark: Benchmark, variants: Sequence[Variant] = ()) -> Benchmark:
    """The benchmark with its own variants, or those of the recipe's `augment`, and the probes of its `evaluate`."""
    if recipe.augment is not None:
        variants = read_variants(recipe.augment, benchmark.forget)
    # A paraphrase by rules has the answer of its row, so evaluation has no use for it.
    by_rules = recipe.augment is None and recipe.data is not None
    made = own_rows.variants(recipe, benchmark.forget)[0] if by_rules else []
    reworded = [variant for variant in made if variant.kind == "paraphrase"]
    variants = [*variants, *(variant for variant in made if variant.kind != "paraphrase")]
    if recipe.data is not None and variants:
        benchmark, variants = custom.ask_with(variants, benchmark, seed=recipe.seed)
    variants = [*reworded, *variants]
    if recipe.evaluate.mmlu is not None:
        benchmark = replace(benchmark, probes=[*benchmark.probes, mmlu.load(recipe.evaluate.mmlu)])
    return replace(benchmark, variants=list(variants))


def with_general_questions(recipe: Recipe, benchmark: Benchmark) -> Benchmark:
    """The benchmark with general questions, as the recipe says or where a pretrained model has a chat template."""
    asks = recipe.evaluate.general
    if asks is None and recipe.model.name is not None:
        asks = loading.load_tokenizer_and_config(recipe.model.name)[0].chat_template is not None
    return replace(benchmark, probes=[*benchmark.probes, general.load()]) if asks else benchmark


def with_default_method(recipe: Recipe, benchmark: Benchmark) -> Recipe:
    """The recommended method when the recipe does not say which (`recommend.py`).

    An empty list says that there are none: a baseline, of which only the starting models are measured.
    """
    if "methods" in recipe.model_fields_set:
        return recipe
    name = recipe.model.name
    chats = name is not None and loading.load_tokenizer_and_config(name)[0].chat_template is not None
    advice = recommend(benchmark, chats=chats, written=recipe.data is None or recipe.augment is not None)
    log.info("no method named; taking %s: %s", advice.name, advice.why)
    tree = recipe.model_dump(exclude_unset=True)
    evaluate = dict(advice.evaluate)
    if "learning_rate" in recipe.train.model_fields_set:
        evaluate.pop("raise_rate", None)
    tree = {**tree, "evaluate": {**evaluate, **tree.get("evaluate", {})}, "method": advice.method}
    return parse_recipe(tree, where="recipe")


def check_data(benchmark: Benchmark) -> None:
    """Look at the rows before anything else happens: none missing, none on both sides, none nearly so unseen."""
    check_not_empty(benchmark.forget, "forget")
    check_disjoint(benchmark.forget, benchmark.retain)
    if close := near_duplicates(benchmark.forget, benchmark.retain):
        worst = max(close, key=lambda d: d.similarity)
        log.warning(
            "%d forget rows are nearly the same as a retain row (closest: forget row %d, similarity %.2f); "
            "what one asks to forget the other asks to keep",
            len(close), worst.forget, worst.similarity,
        )  # fmt: skip


def tell_about_variants(recipe: Recipe, benchmark: Benchmark) -> None:
    """Warn where a method that trains on variants has none, or has those that its truth ratio is measured with."""
    wanting = " and ".join(m.name for m in recipe.methods if any(m.augment.model_dump().values()))
    if not wanting:
        return
    if not benchmark.variants:
        log.warning(
            "%s trains on the forget rows alone, which teaches it their wording: no paraphrases and wrong answers are "
            "given (--augment FILE; expunge augment writes one)",
            wanting,
        )
    asked = {a for q in benchmark.questions.get("forget", []) for a in (q.paraphrased_answer, *q.perturbed_answers)}
    twice = sum(parts(variant.text)[1].strip() in asked for variant in benchmark.variants)
    if recipe.data is not None and twice:
        log.warning(
            "%s trains on variants that its truth ratio is measured with: %d times there is only one paraphrase or "
            "wrong answer of a row; give two of each (expunge augment --perturbations 2)",
            wanting, twice,
        )  # fmt: skip


def check_methods(recipe: Recipe, benchmark: Benchmark) -> None:
    """Everything that would stop a method later, found out now: no weights are loaded and nothing is written."""
    tell_about_variants(recipe, benchmark)
    if recipe.evaluate.stress is not None:
        attacks.possible(recipe.evaluate.stress.attacks, benchmark)
    if recipe.model.scratch is None:
        loading.check_dtype(recipe.model.dtype, lora=recipe.model.lora is not None, pure_bf16=recipe.model.pure_bf16)
    tokenizer, config = tokenizer_and_config(recipe, benchmark)
    check_answers(recipe, config)
    loading.check_attention(config, recipe.model.attention)
    if recipe.model.name is not None:
        loading.check_weights(recipe.model.name, merged=bool(recipe.methods))
        if recipe.methods:
            loading.check_start(recipe.model.name, recipe.model.lora)
        if recipe.finetune is not None:
            loading.check_start(recipe.model.name, recipe.finetune.lora)
            if recipe.finetune.lora is not None:
                _check_lora(recipe.finetune.lora, config)
    for name in (recipe.retrained, *recipe.cloud, *recipe.checkpoints):
        if name is not None:
            loading.load_tokenizer_and_config(name)
            loading.check_weights(name)
    if recipe.model.lora is not None:
        _check_lora(recipe.model.lora, config)
    encoded: set[Any] = set()
    for method in recipe.methods:
        check_method(recipe, method, benchmark, tokenizer, config, encoded)


def check_answers(recipe: Recipe, config: "PretrainedConfig") -> None:
    """Raise `UserError` for generated answers that the model's context can't hold beside a question."""
    most, context = recipe.evaluate.max_new_tokens, getattr(config.get_text_config(), "max_position_embeddings", None)
    if most is not None and context is not None and 0 < context <= most:
        raise UserError(
            f"evaluate.max_new_tokens must be less than {context}, the model's context, which holds the question too, "
            f"got {most}."
        )


def tokenizer_and_config(recipe: Recipe, benchmark: Benchmark) -> tuple[Any, Any]:
    """Those of the model to unlearn, which need not be there yet."""
    scratch = recipe.model.scratch
    if scratch is None:
        assert recipe.model.name is not None
        return loading.load_tokenizer_and_config(recipe.model.name)
    tokenizer = loading.train_tokenizer(row_texts(benchmark.learnt), scratch)
    return tokenizer, loading.scratch_config(scratch, tokenizer)


def check_method(
    recipe: Recipe,
    method: Method,
    benchmark: Benchmark,
    tokenizer: "PreTrainedTokenizerBase",
    config: "PretrainedConfig",
    encoded: set[Any],
) -> None:
    """`check_methods` for one of them; `encoded` remembers which sets have been encoded already."""
    material, retain = Material.of(recipe, method, benchmark), method.retain_term
    data: dict[str, Any] = {
        "forget_rows": material.forget,
        "retain_rows": material.retain,
        "refusals": material.refusals,
        "config": config,
    }
    check_terms(method.objective, retain, **data)
    if recipe.data is not None:
        tell_unread(method.objective, material.forget)
    if recipe.evaluate.keep_nearest and method.forget.trains not in ("model", "student"):
        raise UserError(
            f"evaluate.keep_nearest: {method.forget.title} leaves the model's own weights as they are, so there is no "
            f"way back to go; leave keep_nearest out."
        )
    args = training_arguments(recipe, method, Path("unused"))
    check_sharpness(method.forget, args)
    needs = method.objective.needs | (retain.needs if retain is not None else Needs())
    check_kind(args.reference, needs, has_adapter=recipe.model.lora is not None and not method.assisted)
    check_assistant(recipe, method, config)
    names = ("max_length", "overflow", "overlap", "assistant_turns")
    lengths = (getattr(args, name) for name in names)
    key = (retain is None, needs.refusal, method.objective.wanted, *method.augment.model_dump().values(), *lengths)
    if method.noise is not None:
        if not material.retain:
            raise UserError("method.noise: without rows to keep, noise destroys all that no row shows; give --retain.")
        rows = {**data, "forget_rows": [*material.forget, *material.retain]}
        encode_sets(Distilled(), None, **rows, tokenizer=tokenizer, args=args)
    if key not in encoded:
        encode_sets(method.objective, retain, **data, tokenizer=tokenizer, args=args)
        encoded.add(key)


def check_assistant(recipe: Recipe, method: Method, config: "PretrainedConfig") -> None:
    """Raise `UserError` for an assistant that can't be had; say so where a setting has no use."""
    forget: Any = method.forget
    if recipe.teacher_of(method) is not None:
        return  # it is looked at as a method of its own
    if method.assisted and recipe.model.lora is not None:
        log.warning("model.lora is not used by %s, whose assistant has an adapter of its own (r)", forget.title)
    if forget.trains == "difference" and forget.assistant is not None:
        _, its_config = loading.load_tokenizer_and_config(forget.assistant)
        loading.check_weights(forget.assistant)
        remedy = "take a small model of the same family"
        _check_vocabulary(f"method.forget.assistant: {forget.assistant!r}", its_config, config, remedy)
    elif forget.trains == "student" and forget.teacher is not None:
        folder, its_config = checkpoint_of(Path(forget.teacher))
        loading.check_weights(folder)
        remedy = f"distil into the model that it was trained for, {its_config.base}"
        _check_vocabulary(f"method.forget.teacher: {forget.teacher!r}", its_config, config, remedy)
    elif forget.trains != "model":
        with torch.device("meta"):
            build(recipe, teaching(method) if forget.trains == "student" else method, outlines(recipe, config))


def training_arguments(recipe: Recipe, method: Method, directory: Path) -> UnlearnConfig:
    """The recipe's training keys, then an assistant's pace, then the method's own keys."""
    common, of_method = (section.model_dump(exclude_unset=True) for section in (recipe.train, method.train))
    return _arguments(recipe, {**common, **method.forget.pace, **of_method}, directory)


def _arguments(recipe: Recipe, settings: dict[str, Any], directory: Path) -> UnlearnConfig:
    looks: dict[str, Any] = {"eval_strategy": "epoch", "eval_every": recipe.evaluate.every}
    try:
        args = UnlearnConfig(
            **settings,
            **({} if recipe.evaluate.each_epoch == "off" else looks),
            output_dir=str(directory),
            seed=recipe.seed,
        )
    except UserError as error:
        message = str(error)
        known = message.split()[0].rstrip(":") in FIELDS
        raise UserError(f"train.{message}" if known else f"train: {message}") from error
    if args.eval_on_start and recipe.evaluate.utility_budget is not None:
        raise UserError("train.eval_on_start: a utility budget keeps a trained epoch; leave one of the two out.")
    return args


def _check_vocabulary(name: str, other_config: "PretrainedConfig", config: "PretrainedConfig", remedy: str) -> None:
    size, expected = (c.get_text_config().vocab_size for c in (other_config, config))
    if size != expected:
        raise UserError(f"{name} has a vocabulary of {size} tokens and the model one of {expected}; {remedy}.")


def _check_lora(lora: loading.LoraConfig, config: "PretrainedConfig") -> None:
    """Put the adapter on a model without weights: `UserError` where the model has no such layers, or nothing here holds
    them in few bits."""
    if lora.quantize is not None and find_spec("bitsandbytes") is None:
        raise UserError("model.lora.quantize: bitsandbytes is not installed; pip install 'expunge[lean]'.")
    outline = loading.outline(config)
    with torch.device("meta"):
        loading.adapt(outline, lora.peft())
    sizes = [(layer.weight.shape[1], layer.weight.shape[0]) for layer in loading.adapted_layers(outline)]
    odd = next((size for size in sizes if size[0] % 64 or size[1] % 32), None)
    if lora.quantize is not None and odd is not None and not torch.cuda.is_available():
        raise UserError(
            f"model.lora.quantize: on a CPU bitsandbytes takes layers from multiples of 64 to multiples of 32, and this"
            f" model has one from {odd[0]} to {odd[1]}; take another size, or a GPU."
        )
