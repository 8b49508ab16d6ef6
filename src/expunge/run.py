"""The main path: recipe → data → target and retrained model → unlearn → evaluate → report.

Read from `run` downwards. Knows the order of things; knows nothing of losses or metrics.
"""

import logging
import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers.integrations.integration_utils import get_reporting_integration_callbacks

from expunge import measure, models
from expunge.assistant import layer_count
from expunge.budget import UtilityBudget
from expunge.config import (
    FableConfig,
    ListingsConfig,
    Method,
    MuseConfig,
    Recipe,
    RwkuConfig,
    TofuConfig,
    combinations,
    parse_recipe,
)
from expunge.data import custom, fable, listings, mmlu, muse, rwku, tofu
from expunge.data.augment import read as read_variants
from expunge.data.benchmark import Benchmark, Variant
from expunge.data.checks import check_disjoint, check_not_empty, near_duplicates, summarise
from expunge.difference import checkpoint_of
from expunge.errors import UserError
from expunge.evals.aggregate import aggregate
from expunge.evals.divergence import SoftLabels
from expunge.evals.evaluation import evaluate
from expunge.evals.metrics import forget_quality
from expunge.evals.probes import of_retrained
from expunge.evals.retrained import Distance, Retrained
from expunge.evals.tofu import Evaluation
from expunge.history import last_checkpoint
from expunge.methods import Material, prepare, retain_term
from expunge.objectives import ULD, Needs, Objective, Offset, ULDDistilled
from expunge.parallel import side_by_side
from expunge.prepare import check_terms, encode_sets
from expunge.reference import check_kind
from expunge.report import write_markdown, write_report
from expunge.rundir import Result, Results, check_run_directory
from expunge.targets import row_texts, train_from_scratch
from expunge.trainer import UnlearnConfig

log = logging.getLogger(__name__)


def run_all(recipe: Recipe, *, resume: bool = False, overwrite: bool = False, workers: int = 1) -> list[Result]:
    """Carry out a recipe once for each combination of `over`, each in a folder of its own, and report on all of them.

    Every combination is checked before the first begins. Finished ones are kept under `resume`. `workers` of them run
    at a time, each in a process of its own.
    """
    if workers < 1 or (workers > 1 and not recipe.over):
        what = (
            f"{workers} can't work"
            if workers < 1
            else "a single run can't be shared out (--seeds, or `over`, makes several)"
        )
        raise UserError(f"--workers: {what}; give 1, or leave it out.")
    if not recipe.over:
        return run(recipe, resume=resume, overwrite=overwrite)
    each = [own for _, own in combinations(recipe)]
    for own in each:
        check_run_directory(own, resume=resume, overwrite=overwrite)
    found: list[list[Result]] = []
    if workers > 1:
        found = side_by_side(partial(run, resume=resume, overwrite=overwrite), each, workers=workers)
    else:
        for i, own in enumerate(each):
            assert own.out is not None
            log.info("%d of %d: %s", i + 1, len(each), own.out.name)
            found.append(run(own, resume=resume, overwrite=overwrite))
    assert recipe.out is not None
    folders = [own.out for own in each if own.out is not None]
    write_report(folders, recipe.out / "report.html")
    tables = recipe.out / "results.md"
    write_markdown(folders, tables, command=f"expunge report {' '.join(map(str, folders))} --markdown {tables}")
    return [row for rows in found for row in rows]


def run(recipe: Recipe, *, resume: bool = False, overwrite: bool = False) -> list[Result]:
    """Carry out a recipe and return the rows of its `results.json`.

    Nothing is written before data, model and objectives have been looked at, and nothing of an older run is deleted
    before there is a first result. With `resume`, finished methods are kept and the one that was interrupted goes on
    from its last checkpoint.
    Raises `UserError` for anything that a person can mend.
    """
    if recipe.threads is not None:
        torch.set_num_threads(recipe.threads)
    benchmark = load_benchmark(recipe)
    recipe = with_default_method(recipe, benchmark)
    check_data(benchmark)
    out = check_run_directory(recipe, resume=resume, overwrite=overwrite)
    check_methods(recipe, benchmark)
    target, retrained = starting_models(recipe, benchmark)

    results = Results(out, recipe, benchmark, resume=resume)
    if not all(results.has(name) for name in ("target", *(method.name for method in recipe.methods))):
        gold = evaluate_retrained(retrained, recipe, benchmark, results) if retrained is not None else None
        evaluate_target(target, recipe, benchmark, results, gold)
        before = on_the_way_before(target, recipe, benchmark, results, gold)
        for method in recipe.methods:
            if not results.has(method.name):
                row, evaluation = unlearn(recipe, method, benchmark, target, gold, out, before)
                results.add(with_aggregate(row, results), evaluation)
    tell_what_is_unknown(benchmark, retrained)
    write_report([out], out / "report.html")
    log.info("report: %s", out / "report.html")
    return results.rows


def evaluate_only(recipe: Recipe, *, overwrite: bool = False) -> list[Result]:
    """Measure the recipe's model as it is, against the retrained one where it is named; rows as `run` writes them."""
    if recipe.methods:
        raise UserError("eval measures a model as it is; leave the method out, or use expunge run.")
    benchmark = load_benchmark(recipe)
    check_data(benchmark)
    out = check_run_directory(recipe, resume=False, overwrite=overwrite)
    check_methods(recipe, benchmark)
    target, retrained = starting_models(recipe, benchmark)
    results = Results(out, recipe, benchmark, resume=False)
    gold = evaluate_retrained(retrained, recipe, benchmark, results) if retrained is not None else None
    evaluate_target(target, recipe, benchmark, results, gold)
    tell_what_is_unknown(benchmark, retrained)
    write_report([out], out / "report.html")
    return results.rows


def load_benchmark(recipe: Recipe) -> Benchmark:
    """The data that the recipe names."""
    variants: list[Variant] = []
    match recipe.benchmark:
        case FableConfig() as c:
            world: dict[str, Any] = {"split": c.split, "authors": c.authors, "facts": c.facts, "seed": c.seed}
            benchmark, variants = fable.load(**world), fable.variants(**world)
        case ListingsConfig() as c:
            shop: dict[str, Any] = c.model_dump(exclude={"name"})
            benchmark, variants = listings.load(**shop), listings.variants(**shop)
        case MuseConfig() as c:
            corpus: Any = c.name.removeprefix("muse-")
            benchmark = muse.load(corpus=corpus, **c.model_dump(exclude={"name"}))
        case RwkuConfig() as c:
            benchmark = rwku.load_batch(c.targets, c.path, corpus=c.corpus, retain=c.retain, texts=c.texts)
        case TofuConfig() as c:
            benchmark = tofu.load(split=c.split, path=c.path)
        case _:
            assert recipe.data is not None
            benchmark = custom.load(forget=recipe.data.forget, retain=recipe.data.retain, seed=recipe.seed)
    if recipe.augment is not None:
        variants = read_variants(recipe.augment, benchmark.forget)
    wanting = [m.name for m in recipe.methods if any(m.augment.model_dump().values())]
    if recipe.data is not None and variants:
        single = sum(n == 1 for n in Counter((v.row, v.kind) for v in variants).values())
        benchmark, variants = custom.ask_with(variants, benchmark, seed=recipe.seed)
        if wanting and single:
            log.warning(
                "%s trains on variants that its truth ratio is measured with: %d times there is only one paraphrase or "
                "wrong answer of a row; give two of each (expunge augment --perturbations 2)",
                " and ".join(wanting), single,
            )  # fmt: skip
    if recipe.evaluate.mmlu is not None:
        benchmark = replace(benchmark, probes=[*benchmark.probes, mmlu.load(recipe.evaluate.mmlu)])
    if wanting and not variants:
        log.warning(
            "%s trains on the forget rows alone, which teaches it their wording: no paraphrases and wrong answers are "
            "given (--augment FILE; expunge augment writes one)",
            " and ".join(wanting),
        )
    return replace(benchmark, variants=variants)


def with_default_method(recipe: Recipe, benchmark: Benchmark) -> Recipe:
    """Unilogit, with NLL on the retain rows where there are any, when the recipe does not say which methods.

    An empty list says that there are none: a baseline, of which only the starting models are measured.
    """
    if "methods" in recipe.model_fields_set:
        return recipe
    method = "unilogit+nll" if benchmark.retain else "unilogit"
    log.info("no method named; taking %s", method)
    return parse_recipe({**recipe.model_dump(exclude_unset=True), "method": method}, where="recipe")


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


def check_methods(recipe: Recipe, benchmark: Benchmark) -> None:
    """Everything that would stop a method later, found out now: no weights are loaded and nothing is written."""
    if recipe.model.scratch is None:
        models.check_dtype(recipe.model.dtype, lora=recipe.model.lora is not None, pure_bf16=recipe.model.pure_bf16)
    tokenizer, config = tokenizer_and_config(recipe, benchmark)
    if recipe.retrained is not None:
        models.load_tokenizer_and_config(recipe.retrained)
    if recipe.model.lora is not None:
        _check_lora(recipe.model.lora, config)
    encoded: set[Any] = set()
    for method in recipe.methods:
        check_method(recipe, method, benchmark, tokenizer, config, encoded)


def tokenizer_and_config(recipe: Recipe, benchmark: Benchmark) -> tuple[Any, Any]:
    """Those of the model to unlearn, which need not be there yet."""
    scratch = recipe.model.scratch
    if scratch is None:
        assert recipe.model.name is not None
        return models.load_tokenizer_and_config(recipe.model.name)
    tokenizer = models.train_tokenizer(row_texts(benchmark.learnt), scratch)
    return tokenizer, models.scratch_config(scratch, tokenizer)


def check_method(
    recipe: Recipe, method: Method, benchmark: Benchmark, tokenizer: Any, config: Any, encoded: set[Any]
) -> None:
    """`check_methods` for one of them; `encoded` remembers which sets have been encoded already."""
    material, retain = Material.of(recipe, method, benchmark), retain_term(method)
    data: dict[str, Any] = {
        "forget_rows": material.forget,
        "retain_rows": material.retain,
        "refusals": material.refusals,
        "config": config,
    }
    check_terms(method.forget, retain, **data)
    args = training_arguments(recipe, method, Path("unused"))
    needs = method.forget.needs | (retain.needs if retain is not None else Needs())
    has_adapter = recipe.model.lora is not None and not isinstance(method.forget, ULD | Offset)
    check_kind(args.reference, needs, has_adapter=has_adapter)
    check_assistant(method.forget, config, recipe)
    lengths: dict[str, Any] = {"max_length": args.max_length, "overflow": args.overflow, "overlap": args.overlap}
    key = (retain is None, needs.refusal, *method.augment.model_dump().values(), *lengths.values())
    if key not in encoded:
        encode_sets(method.forget, retain, **data, **lengths, tokenizer=tokenizer, seed=recipe.seed)
        encoded.add(key)


def check_assistant(forget: Objective, config: Any, recipe: Recipe) -> None:
    """Raise `UserError` for an assistant that can't be had; say so where a setting has no use."""
    if not isinstance(forget, ULD | Offset):
        return
    if recipe.model.lora is not None and not isinstance(forget, ULDDistilled):
        log.warning("model.lora is not used by %s, whose assistant has an adapter of its own (r)", forget.name)
    if isinstance(forget, Offset) and forget.assistant is not None:
        _, found = models.load_tokenizer_and_config(forget.assistant)
        remedy = "take a small model of the same family"
        _check_vocabulary(f"method.forget.assistant: {forget.assistant!r}", found, config, remedy)
    elif isinstance(forget, ULDDistilled) and forget.teacher is not None:
        _, found = checkpoint_of(Path(forget.teacher))
        remedy = f"distil into the model that it was trained for, {found.base}"
        _check_vocabulary(f"method.forget.teacher: {forget.teacher!r}", found, config, remedy)
    else:
        layer_count(config, forget.layers)


def _check_vocabulary(name: str, found: Any, config: Any, remedy: str) -> None:
    own, other = (c.get_text_config().vocab_size for c in (found, config))
    if own != other:
        raise UserError(f"{name} has a vocabulary of {own} tokens and the model one of {other}; {remedy}.")


def starting_models(recipe: Recipe, benchmark: Benchmark) -> tuple[Path | str, Path | str | None]:
    """Where the model to unlearn and the retrained one are: as named, or trained from scratch on the benchmark."""
    scratch = recipe.model.scratch
    if scratch is None:
        assert recipe.model.name is not None
        return recipe.model.name, recipe.retrained
    everything = benchmark.learnt
    seed = recipe.seed if recipe.finetune.seed is None else recipe.finetune.seed
    common: dict[str, Any] = {"scratch": scratch, "finetune": recipe.finetune, "seed": seed}
    target = train_from_scratch(everything, everything, title="target", **common)
    if recipe.retrained is not None:
        return target, recipe.retrained
    kept = [*benchmark.retain, *benchmark.utility]
    retrained = train_from_scratch(kept, everything, title="retrained", **common)
    log.info("target model: %s; retrained: %s", target, retrained)
    return target, retrained


def evaluate_retrained(path: Path | str, recipe: Recipe, benchmark: Benchmark, results: Results) -> Retrained:
    """What is kept of the retrained model, which every other is measured against; its row, if it is not there yet."""
    model, tokenizer = _load(path, recipe)
    asked = benchmark.questions.get("forget", [])
    if results.has("retrained"):
        return Retrained(model, tokenizer, asked, results.records("retrained"))
    log.info("evaluating the retrained model")
    evaluation = _evaluate(recipe, benchmark, model, tokenizer)
    gold = Retrained(model, tokenizer, asked, evaluation.records)
    evaluation.metrics.update(gold.distance(model, tokenizer) | of_retrained(benchmark.probes, evaluation.records))
    if "forget_truth_ratio" in evaluation.metrics:
        ratios = [ratio for r in evaluation.records["forget"] if (ratio := r["truth_ratio"]) is not None]
        evaluation.metrics["forget_quality"] = forget_quality(ratios, ratios)
    results.add({"method": "retrained", "removal": "weights", "metrics": evaluation.metrics}, evaluation)
    return gold


def evaluate_target(
    path: Path | str, recipe: Recipe, benchmark: Benchmark, results: Results, gold: Retrained | None
) -> None:
    """The row of the model before unlearning, if it is not there yet."""
    if results.has("target"):
        return
    log.info("evaluating the target model")
    model, tokenizer = _load(path, recipe)
    evaluation = _evaluate(recipe, benchmark, model, tokenizer, gold)
    if "kl_unlearned" in evaluation.metrics:
        evaluation.metrics["kl_start"] = evaluation.metrics["kl_unlearned"]
    elif gold is not None and benchmark.questions.get("forget"):
        log.warning("the retrained model sees other tokens in the forget answers, so no distance to it is measured")
    results.add({"method": "target", "removal": "weights", "metrics": evaluation.metrics}, evaluation)


def on_the_way_before(
    path: Path | str, recipe: Recipe, benchmark: Benchmark, results: Results, gold: Retrained | None
) -> dict[str, float]:
    """What evaluations on the way would have found of the target; nothing where no utility budget asks."""
    if recipe.evaluate.utility_budget is None:
        return {}
    if recipe.evaluate.each_epoch == "full":
        return next(row["metrics"] for row in results.rows if row["method"] == "target")
    return _on_the_way(recipe, benchmark, *_load(path, recipe), gold, None)


def with_aggregate(row: Result, results: Results) -> Result:
    """The row with its one number (`evals/aggregate.py`), where target and retrained model give what it needs."""
    references = {found["method"]: found["metrics"] for found in results.rows}
    value = aggregate(row["metrics"], references["target"], references.get("retrained"))
    return row if value is None else {**row, "metrics": {**row["metrics"], "aggregate": value}}


def tell_what_is_unknown(benchmark: Benchmark, retrained: Path | str | None) -> None:
    """Say in a sentence why forget quality is not among the results, and what would bring it."""
    asked = benchmark.questions.get("forget", [])
    wanting = ["such a model (--retrained PATH)"] if retrained is None else []
    if not any(question.perturbed_answers for question in asked):
        rows = "questions in place of raw texts, and " if all("text" in row for row in benchmark.forget) else ""
        wanting.append(f"{rows}wrong answers to the forget questions (--augment FILE; expunge augment writes one)")
    if asked and wanting:
        log.warning(
            "forget quality (is the result like a model that never saw the forget rows?) stays unknown without %s",
            " and ".join(wanting),
        )


def unlearn(
    recipe: Recipe,
    method: Method,
    benchmark: Benchmark,
    target: Path | str,
    gold: Retrained | None,
    out: Path,
    before: Mapping[str, float],
) -> tuple[Result, Evaluation]:
    """One method on the target model: train, evaluate, save `model/`; the result row and the evaluation behind it.

    `before` is what evaluations on the way find of the target, for a utility budget.
    """
    directory = method_directory(recipe, method, out)
    distance: Distance | None = None
    share = recipe.evaluate.utility_budget
    budget = None if share is None else UtilityBudget(share, before)

    def trajectory(model: Any) -> dict[str, float]:
        return _on_the_way(recipe, benchmark, model, tokenizer, gold, distance)

    with measure.peak_memory() as peak:
        training, tokenizer = prepare(
            recipe,
            method,
            benchmark,
            target,
            directory,
            arguments=partial(training_arguments, recipe),
            evaluate=None if recipe.evaluate.each_epoch == "off" else trajectory,
        )
        trainer = training.trainer
        if gold is not None:
            labels = SoftLabels.of(method.forget)
            start = training.unlearned
            distance = Distance(gold) if labels is None else gold.distance_towards(labels, start(), tokenizer)
        log.info("%s: %s", method.name, models.describe(trainer.model))  # pyright: ignore[reportArgumentType]
        for name in ("forget", "retain"):
            if encoded := getattr(trainer.sets, name):
                log.info("%s", summarise(name, encoded))
        if trainer.reference is not None:
            log.info("reference: %s", trainer.reference.kind)
        checkpoint = last_checkpoint(directory)
        if budget is not None:
            trainer.add_callback(budget)
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        stopped = None if budget is None else budget.outcome()
        if budget is not None and stopped is not None:
            log.info("%s: %s", method.name, stopped["why"])
            if budget.kept is not None:
                trainer.restore(budget.kept.step)
    unlearned = training.unlearned()
    evaluation = _evaluate(recipe, benchmark, unlearned, tokenizer, gold, distance)
    models.save(unlearned, tokenizer, directory / "model")
    for stale in (*directory.glob("checkpoint-*"), *directory.glob("teacher")):
        shutil.rmtree(stale)
    history = trainer.state.log_history
    return {
        "method": method.name,
        "removal": method.forget.removal,
        "metrics": evaluation.metrics,
        "seconds": history[-1].get("seconds", 0.0) + training.seconds,
        "peak_memory_mib": peak.mib,
        "trajectory": [
            {
                "epoch": row["epoch"],
                "step": row["step"],
                "seconds": row.get("seconds"),
                "metrics": {k.removeprefix("eval_"): v for k, v in row.items() if k.startswith("eval_")},
            }
            for row in history
            if any(k.startswith("eval_") for k in row)
        ],
        **({} if stopped is None else {"stopped": stopped}),
    }, evaluation


def method_directory(recipe: Recipe, method: Method, out: Path) -> Path:
    """The run directory itself for a single method, a folder of its own for each of several."""
    return out if len(recipe.methods) == 1 else out / method.name


def training_arguments(recipe: Recipe, method: Method, directory: Path) -> UnlearnConfig:
    """The recipe's training keys, then an assistant's pace, then the method's own keys."""
    own: dict[str, Any] = {}
    if isinstance(method.forget, ULD) and not isinstance(method.forget, ULDDistilled):
        own = {"learning_rate": method.forget.learning_rate, "num_train_epochs": method.forget.epochs}
    settings = {**recipe.train.model_dump(exclude_unset=True), **own, **method.train.model_dump(exclude_unset=True)}
    try:
        args = UnlearnConfig(
            **settings,
            output_dir=str(directory),
            seed=recipe.seed,
            eval_strategy="no" if recipe.evaluate.each_epoch == "off" else "epoch",
            eval_every=recipe.evaluate.every,
        )
        get_reporting_integration_callbacks(args.report_to)  # knows the names, and is asked for them too late otherwise
        return args
    except (ValueError, TypeError, ImportError) as error:
        raise UserError(f"train: {str(error).strip().splitlines()[0]}") from error


def _check_lora(lora: models.LoraConfig, config: Any) -> None:
    """Put the adapter on a model without weights: `UserError` where the model has no such layers."""
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        outline = AutoModelForCausalLM.from_config(config)
    try:
        get_peft_model(outline, lora.peft())
    except ValueError as error:
        raise UserError(f"model.lora.targets: {str(error).splitlines()[0]}") from error


def _load(path: Path | str, recipe: Recipe) -> tuple[Any, Any]:
    model, tokenizer = models.load(path)
    if torch.accelerator.is_available() and not recipe.train.use_cpu:
        model.to(torch.accelerator.current_accelerator())
    return model, tokenizer


def _on_the_way(
    recipe: Recipe, benchmark: Benchmark, model: Any, tokenizer: Any, gold: Retrained | None, distance: Distance | None
) -> dict[str, float]:
    """What the recipe asks of a model after an epoch."""
    options, full = recipe.evaluate, recipe.evaluate.each_epoch == "full"
    return evaluate(
        model,
        tokenizer,
        benchmark,
        retrained_records=gold.records if gold is not None else None,
        distance=distance,
        generate=full,
        limit=options.limit if full else options.each_epoch_limit,
        max_new_tokens=options.max_new_tokens,
    ).metrics


def _evaluate(
    recipe: Recipe,
    benchmark: Benchmark,
    model: Any,
    tokenizer: Any,
    gold: Retrained | None = None,
    distance: Distance | None = None,
) -> Evaluation:
    """Everything that the recipe asks of a model in the end, against the retrained one where there is one."""
    options = recipe.evaluate
    evaluation = evaluate(
        model,
        tokenizer,
        benchmark,
        retrained_records=gold.records if gold is not None else None,
        distance=distance or (Distance(gold) if gold is not None else None),
        limit=options.limit,
        max_new_tokens=options.max_new_tokens,
    )
    if options.harness is not None:
        from expunge.evals import harness

        evaluation.metrics.update(harness.run(model, tokenizer, **options.harness.model_dump(), log_samples=False)[0])
    return evaluation
