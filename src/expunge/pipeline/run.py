"""The main path: recipe → data → target and retrained model → unlearn → evaluate → report.

Read from `run` downwards. Knows the order of things; knows nothing of losses or metrics.
"""

import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from expunge.data.benchmark import Benchmark
from expunge.data.checks import summarise
from expunge.errors import UserError
from expunge.evals.aggregate import aggregate
from expunge.evals.degeneration import Usual
from expunge.evals.divergence import SoftLabels
from expunge.evals.evaluation import evaluate, usual_answers
from expunge.evals.retrained import Distance, Retrained
from expunge.evals.tofu import Evaluation
from expunge.modeling import loading
from expunge.pipeline.inputs import (
    check_data,
    check_methods,
    check_recipe,
    load_benchmark,
    training_arguments,
    with_default_method,
)
from expunge.pipeline.measure import load, measure, measure_retrained, measure_target
from expunge.pipeline.methods import Start, prepare, refusals
from expunge.pipeline.parallel import side_by_side
from expunge.pipeline.rundir import (
    Result,
    Results,
    alone_in,
    check_run_directory,
    check_whole,
    directory_of,
    discard_training,
    method_directory,
)
from expunge.recipe.config import Method, Recipe
from expunge.recipe.parsing import combinations
from expunge.report import write_markdown, write_report
from expunge.system import machine, ranks
from expunge.training.budget import UtilityBudget
from expunge.training.history import last_checkpoint
from expunge.training.targets import train_from_scratch

log = logging.getLogger(__name__)


def run_all(recipe: Recipe, *, resume: bool = False, overwrite: bool = False, workers: int = 1) -> list[Result]:
    """Carry out a recipe once for each combination of `over`, each in a folder of its own, and report on all of them.

    Every combination is checked before the first begins. Finished ones are kept under `resume`. `workers` of them run
    at a time, each in a process of its own.
    """
    if workers < 1:
        raise UserError(f"--workers must be at least 1, got {workers}.")
    if workers > 1 and not recipe.over:
        raise UserError("--workers: a single run uses one worker; leave it out, or give --seeds or `over`.")
    if not recipe.over:
        return run(recipe, resume=resume, overwrite=overwrite)
    each = [own for _, own in combinations(recipe)]
    for own in each:
        check_recipe(own)
        check_run_directory(own, resume=resume, overwrite=overwrite)
    out = directory_of(recipe)
    found: list[list[Result]] = []
    with alone_in(out):
        if workers > 1:
            found = side_by_side(partial(run, resume=resume, overwrite=overwrite), each, workers=workers)
        else:
            for i, own in enumerate(each):
                log.info("%d of %d: %s", i + 1, len(each), directory_of(own).name)
                found.append(run(own, resume=resume, overwrite=overwrite))
        folders = [directory_of(own) for own in each]
        _report(folders, out / "report.html", redact=recipe.redact)
        if ranks.first():
            write_markdown(folders, out / "results.md")
    return [row for rows in found for row in rows]


def run(recipe: Recipe, *, resume: bool = False, overwrite: bool = False) -> list[Result]:
    """Carry out a recipe and return the rows of its `results.json`.

    Nothing is written before data, model and objectives have been looked at, and nothing of an older run is deleted
    before there is a first result. With `resume`, finished methods are kept and the one that was interrupted goes on
    from its last checkpoint, if all of that is as it was written. No other process writes there meanwhile.
    Raises `UserError` for anything that a person can mend.
    """
    check_recipe(recipe)
    if recipe.threads is not None:
        torch.set_num_threads(recipe.threads)
    out = directory_of(recipe)
    with alone_in(out):
        benchmark = load_benchmark(recipe)
        recipe = with_default_method(recipe, benchmark)
        check_data(benchmark)
        check_run_directory(recipe, resume=resume, overwrite=overwrite)
        check_methods(recipe, benchmark)
        if resume:
            check_whole(recipe, out)
        target, retrained = starting_models(recipe, benchmark)

        results = Results(out, recipe, benchmark, resume=resume)
        if not all(results.has(name) for name in ("target", *(method.name for method in recipe.methods))):
            usual = usual_answers(
                partial(_load, target, recipe),
                benchmark,
                refusals=refusals(recipe),
                max_new_tokens=recipe.evaluate.max_new_tokens,
            )
            gold = evaluate_retrained(retrained, recipe, benchmark, results, usual) if retrained is not None else None
            start = evaluate_target(target, recipe, benchmark, results, gold, usual)
            before = on_the_way_before(target, recipe, benchmark, results, gold)
            for method in recipe.methods:
                if not results.has(method.name):
                    row, evaluation = unlearn(recipe, method, benchmark, target, start, gold, usual, out, before)
                    results.add(with_aggregate(row, results), evaluation)
                    discard_training(method_directory(recipe, method, out))
        for method in recipe.methods:
            discard_training(method_directory(recipe, method, out))  # what a kill left of it
        tell_what_is_unknown(benchmark, retrained)
        _report([out], out / "report.html", redact=recipe.redact)
    log.info("report: %s", out / "report.html")
    return results.rows


def evaluate_only(recipe: Recipe, *, overwrite: bool = False) -> list[Result]:
    """Measure the recipe's model as it is, against the retrained one where it is named; rows as `run` writes them."""
    if recipe.methods:
        raise UserError("eval measures a model as it is; leave the method out, or use expunge run.")
    check_recipe(recipe)
    out = directory_of(recipe)
    with alone_in(out, then="give the command again with --overwrite"):
        benchmark = load_benchmark(recipe)
        check_data(benchmark)
        check_run_directory(recipe, resume=False, overwrite=overwrite)
        check_methods(recipe, benchmark)
        target, retrained = starting_models(recipe, benchmark)
        results = Results(out, recipe, benchmark, resume=False)
        log.info("broken text is told by itself alone: the model before unlearning, which could judge it, is not known")
        gold = evaluate_retrained(retrained, recipe, benchmark, results) if retrained is not None else None
        evaluate_target(target, recipe, benchmark, results, gold)
        tell_what_is_unknown(benchmark, retrained)
        _report([out], out / "report.html", redact=recipe.redact)
    return results.rows


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


def evaluate_retrained(
    path: Path | str, recipe: Recipe, benchmark: Benchmark, results: Results, usual: Usual | None = None
) -> Retrained:
    """What is kept of the retrained model, which every other is measured against; its row, if it is not there yet."""
    model, tokenizer = _load(path, recipe)
    if results.has("retrained"):
        return Retrained(model, tokenizer, benchmark.questions.get("forget", []), results.records("retrained"))
    log.info("evaluating the retrained model")
    gold, evaluation = measure_retrained(model, tokenizer, benchmark, recipe.evaluate, usual=usual)
    results.add({"method": "retrained", "removal": "weights", "metrics": evaluation.metrics}, evaluation)
    return gold


def evaluate_target(
    path: Path | str,
    recipe: Recipe,
    benchmark: Benchmark,
    results: Results,
    gold: Retrained | None,
    usual: Usual | None = None,
) -> Start:
    """The row of the model before unlearning, if it is not there yet, and what every method must start from."""
    model, tokenizer = _load(path, recipe)
    start = Start.of(model, tokenizer, benchmark.forget)
    if results.has("target"):
        return start
    log.info("evaluating the target model")
    evaluation = measure_target(model, tokenizer, benchmark, recipe.evaluate, gold=gold, usual=usual)
    results.add({"method": "target", "removal": "weights", "metrics": evaluation.metrics}, evaluation)
    return start


def on_the_way_before(
    path: Path | str, recipe: Recipe, benchmark: Benchmark, results: Results, gold: Retrained | None
) -> dict[str, float]:
    """What evaluations on the way would have found of the target; nothing where no utility budget asks."""
    if recipe.evaluate.utility_budget is None:
        return {}
    if recipe.evaluate.each_epoch == "full":
        return next(row["metrics"] for row in results.rows if row["method"] == "target")
    return _on_the_way(recipe, benchmark, *_load(path, recipe), gold, None, None)


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
    known: Start,
    gold: Retrained | None,
    usual: Usual,
    out: Path,
    before: Mapping[str, float],
) -> tuple[Result, Evaluation]:
    """One method on the target model: train, evaluate, save `model/`; the result row and the evaluation behind it.

    `known` is what the method must start from; `before` is what evaluations on the way find of the target, for a
    utility budget; `usual` how it answers.
    """
    directory = method_directory(recipe, method, out)
    distance: Distance | None = None
    share = recipe.evaluate.utility_budget
    budget = None if share is None else UtilityBudget(share, before)

    def trajectory(model: Any) -> dict[str, float]:
        return _on_the_way(recipe, benchmark, model, tokenizer, gold, distance, usual)

    with machine.peak_memory() as peak:
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
        known.check(training.start, method.name, exact=recipe.model.lora is None or recipe.model.lora.quantize is None)
        if gold is not None:
            labels = SoftLabels.of(method.forget)
            start = training.unlearned
            distance = Distance(gold) if labels is None else gold.distance_towards(labels, start(), tokenizer)
        log.info("%s: %s", method.name, loading.describe(trainer.model))  # pyright: ignore[reportArgumentType]
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
    unlearned = loading.as_saved(training.unlearned(), training.dtype)
    evaluation = measure(unlearned, tokenizer, benchmark, recipe.evaluate, gold=gold, distance=distance, usual=usual)
    if ranks.first():
        loading.save(unlearned, tokenizer, directory / "model")
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


def _report(directories: list[Path], path: Path, *, redact: bool) -> None:
    if ranks.first():
        write_report(directories, path, redact=redact)


def _load(path: Path | str, recipe: Recipe) -> tuple[Any, Any]:
    return load(path, use_cpu=bool(recipe.train.use_cpu))


def _on_the_way(
    recipe: Recipe,
    benchmark: Benchmark,
    model: Any,
    tokenizer: Any,
    gold: Retrained | None,
    distance: Distance | None,
    usual: Usual | None,
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
        usual=usual,
    ).metrics
