"""A model's final numbers as a recipe's `evaluate` asks for them: of the target, the retrained model and any other."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from expunge.data.benchmark import Benchmark
from expunge.evals.degeneration import Usual
from expunge.evals.evaluation import evaluate
from expunge.evals.metrics import forget_quality
from expunge.evals.own import user_metrics
from expunge.evals.probes import of_retrained
from expunge.evals.retrained import Distance, Retrained
from expunge.evals.tofu import Evaluation
from expunge.modeling import loading
from expunge.modeling.causal import CausalLM
from expunge.recipe.config import EvaluateConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)


def load(path: Path | str, *, use_cpu: bool) -> tuple[Any, Any]:
    """(model, tokenizer) on the accelerator, where there is one and `use_cpu` does not keep them from it."""
    model, tokenizer = loading.load(path)
    if torch.accelerator.is_available() and not use_cpu:
        model.to(torch.accelerator.current_accelerator())
    return model, tokenizer


def measure_model(
    model: CausalLM,
    tokenizer: "PreTrainedTokenizerBase",
    benchmark: Benchmark,
    options: EvaluateConfig,
    *,
    gold: Retrained | None = None,
    distance: Distance | None = None,
    usual: Usual | None = None,
) -> Evaluation:
    """Everything that `options` asks of a model in the end, against the retrained one where there is one."""
    evaluation = evaluate(
        model,
        tokenizer,
        benchmark,
        retrained_records=gold.records if gold is not None else None,
        distance=distance or (Distance(gold) if gold is not None else None),
        limit=options.limit,
        max_new_tokens=options.max_new_tokens,
        usual=usual,
    )
    evaluation.metrics.update(of_own(evaluation, options))
    if options.harness is not None:
        from expunge.evals import harness

        evaluation.metrics.update(harness.run(model, tokenizer, **options.harness.model_dump(), log_samples=False)[0])
    return evaluation


def of_own(evaluation: Evaluation, options: EvaluateConfig) -> dict[str, float]:
    """The numbers of the user's own metrics."""
    return {metric.name: metric.measure(evaluation.records) for metric in user_metrics(options.metrics)}


def measure_target(
    model: CausalLM,
    tokenizer: "PreTrainedTokenizerBase",
    benchmark: Benchmark,
    options: EvaluateConfig,
    *,
    gold: Retrained | None = None,
    usual: Usual | None = None,
) -> Evaluation:
    """The model before unlearning; its distance to the retrained model is where every method's begins."""
    evaluation = measure_model(model, tokenizer, benchmark, options, gold=gold, usual=usual)
    if "kl_unlearned" in evaluation.metrics:
        evaluation.metrics["kl_start"] = evaluation.metrics["kl_unlearned"]
    elif gold is not None and benchmark.questions.get("forget"):
        log.warning("the retrained model sees other tokens in the forget answers, so no distance to it is measured")
    return evaluation


def measure_retrained(
    model: CausalLM,
    tokenizer: "PreTrainedTokenizerBase",
    benchmark: Benchmark,
    options: EvaluateConfig,
    *,
    usual: Usual | None = None,
) -> tuple[Retrained, Evaluation]:
    """The retrained model as every other is measured against it, and its own numbers."""
    evaluation = measure_model(model, tokenizer, benchmark, options, usual=usual)
    gold = Retrained(model, tokenizer, benchmark.questions.get("forget", []), evaluation.records)
    evaluation.metrics.update(gold.distance(model, tokenizer) | of_retrained(benchmark.probes, evaluation.records))
    if "forget_truth_ratio" in evaluation.metrics:
        ratios = [ratio for r in evaluation.records["forget"] if (ratio := r["truth_ratio"]) is not None]
        evaluation.metrics["forget_quality"] = forget_quality(ratios, ratios)
    return gold, evaluation
