"""A run under way: its data, its results, and the two models that every other is measured against."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from expunge.data.benchmark import Benchmark
from expunge.errors import UserError
from expunge.evals.aggregate import aggregate
from expunge.evals.degeneration import Usual
from expunge.evals.depth import UnlearningDepth
from expunge.evals.evaluation import evaluate, usual_answers
from expunge.evals.knowledge import look, unknown_probability
from expunge.evals.retrained import Distance, Retrained
from expunge.evals.tofu import Evaluation
from expunge.modeling.causal import CausalLM
from expunge.modeling.checkpoint import checkpoint_name
from expunge.modeling.difference import LogitDifferenceForCausalLM, removal_of
from expunge.pipeline import measure
from expunge.pipeline.methods import refusals
from expunge.pipeline.rundir import FIRST, Result, Results, method_directory
from expunge.pipeline.start import Start
from expunge.recipe.config import Recipe
from expunge.stress import summary
from expunge.stress.attack import Victim
from expunge.stress.attacks import attacked, possible
from expunge.stress.options import AttackName, StressOptions

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

KNOWS = {
    "knows": "knows these rows",
    "does not know": "does not know these rows, and training can only harm it",
    "cannot tell": "may or may not know these rows",
}


@dataclass
class Session:
    """The state of a run from its beginning to its end.

    target      where the model before unlearning is
    never       where the retrained models are, if there are any: all metrics are of the first, attacks are on each
    gold        what is kept of the first retrained model
    usual       how the target answers, by which broken text is judged; unknown where nothing is unlearned
    start       what every method must start from
    before      the metrics of the target that a utility budget compares with
    unknown     how probable answers are that the target can't know, where nothing else shows how low is low
    """

    recipe: Recipe
    benchmark: Benchmark
    results: Results
    target: Path | str
    never: Sequence[Path | str]
    gold: Retrained | None = None
    usual: Usual | None = None
    start: Start | None = None
    before: dict[str, float] = field(default_factory=dict)
    unknown: float | None = None

    @property
    def retrained(self) -> Path | str | None:
        return next(iter(self.never), None)

    @property
    def goal(self) -> float | None:
        """`unknown` where training stops at it."""
        return self.unknown if self._stops else None

    @property
    def _stops(self) -> bool:
        return self.recipe.evaluate.stop_when_forgotten and bool(self.recipe.methods)

    def measure_references(self) -> None:
        """Measure the retrained model and the target, as far as their rows are not there yet."""
        if self.retrained is not None:
            self._measure_retrained(self.retrained)
        self._measure_target()

    def look(self) -> None:
        """Ask the target for facts of the forget rows: `UserError` where it knows none, since training would only harm.

        Takes seconds. A model that this run has taught the rows is not asked.
        """
        recipe, rows = self.recipe, self.benchmark
        if recipe.model.scratch is not None or recipe.finetune is not None or self.results.has("target"):
            return
        knowledge = look(*self.load(self.target), rows.forget, rows.retain, seed=recipe.seed)
        if knowledge is None:
            return
        if knowledge.verdict == "does not know" and not recipe.anyway:
            raise UserError(
                f"{knowledge}: it does not know these rows, so there is nothing to unlearn; name the model that learnt "
                f"them (--model), or unlearn all the same with --anyway."
            )
        log.info("%s: it %s", knowledge, KNOWS[knowledge.verdict])

    def measure_before_unlearning(self) -> None:
        """The same, and what methods need of the target: how it answers, and its metrics on the way."""
        recipe = self.recipe
        self.usual = usual_answers(
            lambda: self.load(self.target),
            self.benchmark,
            refusals=refusals(recipe),
            max_new_tokens=recipe.evaluate.max_new_tokens,
        )
        self.measure_references()
        if recipe.evaluate.utility_budget is None:
            return
        if recipe.evaluate.each_epoch == "full":
            self.before = next(row["metrics"] for row in self.results.rows if row["method"] == "target")
        else:
            self.before = self.on_the_way(*self.load(self.target))

    def measure_checkpoints(self) -> None:
        """Measure the models that were unlearned already, as far as their rows are not there yet."""
        for path in self.recipe.checkpoints:
            name = checkpoint_name(path)
            if not self.results.has(name):
                log.info("evaluating %s", path)
                evaluation = self.measure(*self.load(path), None)
                row = {"method": name, "removal": removal_of(path), "checkpoint": path, "metrics": evaluation.metrics}
                self.add(row, evaluation)

    def _measure_retrained(self, path: Path | str) -> None:
        model, tokenizer = self.load(path)
        if self.results.has("retrained"):
            asked = self.benchmark.questions.get("forget", [])
            self.gold = Retrained(model, tokenizer, asked, self.results.records("retrained"))
            return
        log.info("evaluating the retrained model")
        options = self.recipe.evaluate
        self.gold, evaluation = measure.measure_retrained(model, tokenizer, self.benchmark, options, usual=self.usual)
        self.results.add({"method": "retrained", "removal": "weights", "metrics": evaluation.metrics}, evaluation)

    def _measure_target(self) -> None:
        model, tokenizer = self.load(self.target)
        self.start = Start.of(model, tokenizer, self.benchmark.forget)
        if self._stops or (self.retrained is None and not self.results.has("target")):
            self._look_at_unknown(model, tokenizer)
        if self.results.has("target"):
            return
        log.info("evaluating the target model")
        known: dict[str, Any] = {"gold": self.gold, "usual": self.usual}
        evaluation = measure.measure_target(model, tokenizer, self.benchmark, self.recipe.evaluate, **known)
        row: Result = {"method": "target", "removal": "weights", "metrics": evaluation.metrics}
        if self.unknown is not None:
            row["goal"] = {"forget_probability": self.unknown}
        self.results.add(row, evaluation)

    def _look_at_unknown(self, model: CausalLM, tokenizer: "PreTrainedTokenizerBase") -> None:
        rows = self.benchmark
        self.unknown = unknown_probability(model, tokenizer, rows.forget, rows.retain, seed=self.recipe.seed)
        if not self._stops:
            return
        if self.unknown is None:
            log.warning("no goal: too few rows have a name or a number of their own; training takes all its epochs")
        else:
            log.info("answers that the target can't know have a probability of %.3f at most", self.unknown)

    def load(self, path: Path | str) -> tuple[Any, Any]:
        return measure.load(path, use_cpu=bool(self.recipe.train.use_cpu))

    def measure(self, model: CausalLM, tokenizer: "PreTrainedTokenizerBase", distance: Distance | None) -> Evaluation:
        """Everything that the recipe asks of an unlearned model."""
        known: dict[str, Any] = {"gold": self.gold, "usual": self.usual, "distance": distance}
        evaluation = measure.measure_model(model, tokenizer, self.benchmark, self.recipe.evaluate, **known)
        # Of a difference of models the layers are those of the target.
        if self.recipe.evaluate.depth and not isinstance(model, LogitDifferenceForCausalLM):
            evaluation.metrics.update(self.depth(model).metrics())
        return evaluation

    @cached_property
    def depth(self) -> UnlearningDepth:
        """The measure of unlearning depth; it holds the target as long as there are models to measure."""
        assert self.retrained is not None, "the recipe was checked"
        target, tokenizer = self.load(self.target)
        return UnlearningDepth(target, self.load(self.retrained)[0], tokenizer, self.benchmark.forget)

    def on_the_way(
        self,
        model: CausalLM,
        tokenizer: "PreTrainedTokenizerBase",
        distance: Distance | None = None,
        usual: Usual | None = None,
    ) -> dict[str, float]:
        """The evaluation of a model after an epoch, as the recipe asks."""
        options, full = self.recipe.evaluate, self.recipe.evaluate.each_epoch == "full"
        evaluation = evaluate(
            model,
            tokenizer,
            self.benchmark,
            retrained_records=self.gold.records if self.gold is not None else None,
            distance=distance,
            generate=full,
            limit=options.limit if full else options.each_epoch_limit,
            max_new_tokens=options.max_new_tokens,
            usual=usual,
        )
        return evaluation.metrics | (measure.of_own(evaluation, options) if full else {})

    def forget_probability(self, model: CausalLM, tokenizer: "PreTrainedTokenizerBase") -> float:
        """The metric of that name, alone."""
        only = replace(self.benchmark, questions={"forget": self.benchmark.questions["forget"]}, probes=[])
        return evaluate(model, tokenizer, only, generate=False, progress=False).metrics["forget_probability"]

    def add(self, row: Result, evaluation: Evaluation) -> None:
        """Keep a method's row, with its one number (`evals/aggregate.py`) where both references give what it needs."""
        references = {reference["method"]: reference["metrics"] for reference in self.results.rows}
        value = aggregate(row["metrics"], references["target"], references.get("retrained"))
        if value is not None:
            row = {**row, "metrics": {**row["metrics"], "aggregate": value}}
        self.results.add(row, evaluation)

    def stress(self) -> None:
        """Attack the target, the retrained model and every method's result, as far as `evaluate.stress` asks for it.

        What is there already is kept. A method that only suppresses is not attacked: its weights are the target's, and
        all of it comes back.
        """
        options = self.recipe.evaluate.stress
        if options is None:
            return
        options = options.model_copy(update={"attacks": possible(options.attacks, self.benchmark)})
        paths: dict[str, Sequence[Path | str]] = {"target": [self.target], "retrained": self.never}
        for method in self.recipe.methods:
            paths[method.name] = [method_directory(self.recipe, method, self.results.out) / "model"]
        paths |= {checkpoint_name(path): [path] for path in self.recipe.checkpoints}
        for name, places in paths.items():
            row = self.results.row(name)
            if row is None or row["removal"] == "weights":
                attack(self.results, name, [self._victim(place, options) for place in places], options)
            elif "comes_back" not in row["metrics"]:
                self.results.attach(name, {"quick": options.quick, "models": []}, {"comes_back": 1.0})

    def _victim(self, path: Path | str, options: StressOptions) -> Victim:
        return Victim(lambda: self.load(path), self.benchmark, quick=options.quick, seed=self.recipe.seed)

    def tell_what_is_unknown(self) -> None:
        """Say in a sentence why forget quality is not among the results, and what would bring it."""
        benchmark = self.benchmark
        asked = benchmark.questions.get("forget", [])
        wanting = ["such a model (--retrained PATH)"] if self.retrained is None else []
        if not any(question.perturbed_answers for question in asked):
            rows = "questions in place of raw texts, and " if all("text" in row for row in benchmark.forget) else ""
            wanting.append(f"{rows}wrong answers to the forget questions (--augment FILE; expunge augment writes one)")
        if asked and wanting:
            log.warning(
                "forget quality (is the result like a model that never saw the forget rows?) stays unknown without %s",
                " and ".join(wanting),
            )


def attack(results: Results, name: str, victims: Sequence[Victim], options: StressOptions) -> None:
    """Make the attacks that the row of `name` lacks on each of its models, and write its row after each attack."""
    for number, victim in enumerate(victims):
        row = results.row(name)
        assert row is not None, "it is measured first"
        stress = row.get("stress") or {"quick": options.quick, "models": []}
        models = [*stress["models"], *([{"done": [], "outcomes": []}] if len(stress["models"]) <= number else [])]
        model = models[number]
        left: list[AttackName] = [kind for kind in options.attacks if kind not in model["done"]]
        for kind, outcomes in attacked(victim, left, name if number == 0 else f"{name} {number + 1}"):
            model = {
                "done": [*model["done"], kind],
                "outcomes": [*model["outcomes"], *(outcome.as_json() for outcome in outcomes)],
            }
            models = [*models[:number], model, *models[number + 1 :]]
            stress = {**stress, "models": models}
            target, retrained = results.row("target"), results.row("retrained")
            found = [] if name in FIRST else summary.of_rows(target, {"stress": stress}, retrained)
            results.attach(name, stress, summary.metrics(found))
