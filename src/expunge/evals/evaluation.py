"""Measuring a model on a benchmark: its questions, its probes and the distance to the retrained model, all at once."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from expunge.data.benchmark import Benchmark
from expunge.evals import probes, tofu
from expunge.evals.degeneration import LoadTarget, Prompts, Usual
from expunge.evals.retrained import Distance
from expunge.evals.tofu import Evaluation, Record
from expunge.modeling.causal import CausalLM

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def evaluate(
    model: CausalLM,
    tokenizer: "PreTrainedTokenizerBase",
    benchmark: Benchmark,
    *,
    retrained_records: Mapping[str, Sequence[Record]] | None = None,
    distance: Distance | None = None,
    generate: bool = True,
    limit: int | None = None,
    max_new_tokens: int | None = None,
    usual: Usual | None = None,
    progress: bool = True,
) -> Evaluation:
    """Everything that `benchmark` asks: `evaluate_questions` and `evaluate_probes` say which metrics and arguments.

    `distance` measures how far the model is from the retrained one (`retrained.Retrained`), if there is one. `usual`
    is the target model as a judge of broken text; without it the text alone is looked at.
    """
    common: dict[str, Any] = {"generate": generate, "limit": limit, "usual": usual, "progress": progress}
    evaluation = Evaluation({}, {})
    if benchmark.questions:
        known = retrained_records if "forget" in benchmark.questions else None
        evaluation = tofu.evaluate_questions(
            model, tokenizer, benchmark, retrained_records=known, max_new_tokens=max_new_tokens, also=distance, **common
        )
    if benchmark.probes:
        metrics, records = probes.evaluate_probes(
            model, tokenizer, benchmark.probes, retrained_records=retrained_records, **common
        )
        evaluation = Evaluation({**evaluation.metrics, **metrics}, {**evaluation.records, **records})
    return evaluation


def usual_answers(
    load: LoadTarget, benchmark: Benchmark, *, refusals: Sequence[str], max_new_tokens: int | None = None
) -> Usual:
    """How the target that `load` gives usually answers what `benchmark` asks about the forget set."""

    def asked(tokenizer: "PreTrainedTokenizerBase", context: int) -> dict[str, Prompts]:
        of_probes = probes.prompts(benchmark.probes)
        if not benchmark.questions.get("forget"):
            return of_probes
        return {"forget": tofu.prompts(benchmark, tokenizer, context, max_new_tokens), **of_probes}

    return Usual(load, asked, refusals=refusals)
