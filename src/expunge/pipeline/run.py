"""The main path: recipe → data → target and retrained model → unlearn → evaluate → report.

Read from `run` downwards: `unlearn` carries out one method, `make_trainer` makes its trainer.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers.trainer_utils import IntervalStrategy, set_seed

from expunge.data.benchmark import Benchmark
from expunge.data.checks import summarise
from expunge.errors import UserError
from expunge.evals.divergence import SoftLabels
from expunge.evals.retrained import Distance
from expunge.evals.tofu import Evaluation
from expunge.modeling import loading
from expunge.modeling.causal import CausalLM
from expunge.modeling.difference import checkpoint_of
from expunge.modeling.interpolation import Line
from expunge.objectives import Step, ULDDistilled
from expunge.pipeline import own_rows
from expunge.pipeline.inputs import (
    check_answered,
    check_data,
    check_methods,
    check_recipe,
    load_benchmark,
    load_with_method,
    training_arguments,
    with_general_questions,
)
from expunge.pipeline.lessons import lessons, taught_meanwhile
from expunge.pipeline.methods import Material, Models, build, teaching, weights
from expunge.pipeline.nearest import FURTHER, keep_nearest
from expunge.pipeline.noise import distilled
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
from expunge.pipeline.session import Session
from expunge.recipe.config import Method, Recipe
from expunge.recipe.parsing import combinations, complete
from expunge.report import write_markdown, write_report
from expunge.system import machine, ranks
from expunge.training.budget import ForgetGoal, UtilityBudget
from expunge.training.faster import FasterWhenStuck
from expunge.training.history import last_checkpoint, trajectory
from expunge.training.stepping import StepTrainer
from expunge.training.targets import taught
from expunge.training.trainer import UnlearnTrainer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

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
    each = [single for _, single in combinations(recipe)]
    for single in each:
        check_recipe(single)
        # A run that is there was written with its method and pace.
        complete = load_with_method(single)[0] if resume else single
        check_run_directory(complete, resume=resume, overwrite=overwrite)
    out = directory_of(recipe)
    results: list[list[Result]] = []
    with alone_in(out):
        if workers > 1:
            results = side_by_side(partial(run, resume=resume, overwrite=overwrite), each, workers=workers)
        else:
            for i, single in enumerate(each):
                log.info("%d of %d: %s", i + 1, len(each), directory_of(single).name)
                results.append(run(single, resume=resume, overwrite=overwrite))
        folders = [directory_of(single) for single in each]
        _report(folders, out / "report.html", redact=recipe.redact)
        if ranks.first():
            write_markdown(folders, out / "results.md")
    return [row for rows in results for row in rows]


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
        recipe, benchmark = load_with_method(recipe)
        check_data(benchmark)
        check_run_directory(recipe, resume=resume, overwrite=overwrite)
        check_methods(recipe, benchmark)
        if resume:
            check_whole(recipe, out)
        rows = own_rows.made(recipe, out, overwrite=overwrite) if recipe.data is not None else None
        if rows is not None:
            benchmark = load_benchmark(recipe, rows)
            check_data(benchmark)
        benchmark = with_general_questions(recipe, benchmark)
        results = Results(out, recipe, benchmark, resume=resume)
        session = Session(recipe, benchmark, results, *starting_models(recipe, benchmark))
        if not all(results.has(name) for name in ("target", *(method.name for method in recipe.methods))):
            if rows is None or not rows.asked:  # its own answers it knows
                session.look()
            session.measure_before_unlearning()
            if recipe.data is not None and recipe.augment is None:
                own_rows.keep_variants(recipe, benchmark.forget, out, resume=resume)
            for method in recipe.methods:
                if not results.has(method.name):
                    session.add(*unlearn(session, method))
                    discard_training(method_directory(recipe, method, out))
        session.measure_checkpoints()
        for method in recipe.methods:
            discard_training(method_directory(recipe, method, out))  # what a kill left of it
        session.stress()
        session.tell_what_is_unknown()
        _report([out], out / "report.html", redact=recipe.redact)
    log.info("report: %s", out / "report.html")
    return results.rows


def evaluate_only(recipe: Recipe, *, resume: bool = False, overwrite: bool = False) -> list[Result]:
    """Measure the recipe's model as it is, against the retrained one where it is named; rows as `run` writes them.

    Checkpoints are measured beside it, and attacks made, as in `run`; with `resume` what is there is kept.
    """
    if recipe.methods:
        raise UserError("eval measures a model as it is; leave the method out, or use expunge run.")
    check_recipe(recipe)
    check_answered(recipe, "eval")
    out = directory_of(recipe)
    with alone_in(out, then="give the command again with --overwrite"):
        benchmark = with_general_questions(recipe, load_benchmark(recipe))
        check_data(benchmark)
        check_run_directory(recipe, resume=resume, overwrite=overwrite, resumable=False)
        check_methods(recipe, benchmark)
        if resume:
            check_whole(recipe, out)
        results = Results(out, recipe, benchmark, resume=resume)
        session = Session(recipe, benchmark, results, *starting_models(recipe, benchmark))
        log.info("broken text is judged by itself: the model before unlearning, which could judge it, is not known")
        session.measure_references()
        session.measure_checkpoints()
        session.stress()
        session.tell_what_is_unknown()
        _report([out], out / "report.html", redact=recipe.redact)
    return results.rows


def starting_models(recipe: Recipe, benchmark: Benchmark) -> tuple[Path | str, Sequence[Path | str]]:
    """Where the model to unlearn and the retrained ones are: as named, or taught the benchmark (`finetune`)."""
    named = [] if recipe.retrained is None else [recipe.retrained, *recipe.cloud]
    if recipe.model.name is not None and recipe.finetune is None:
        return recipe.model.name, named
    lesson, others = lessons(recipe, benchmark)
    if named:
        return taught(lesson), named
    with taught_meanwhile(recipe, lesson, others[0]):
        target = taught(lesson)
    retrained = [taught(other) for other in others]
    log.info("target model: %s; retrained: %s", target, " and ".join(map(str, retrained)))
    return target, retrained


def unlearn(session: Session, method: Method) -> tuple[Result, Evaluation]:
    """One method on the target model: train, evaluate, save `model/`; the result row and the evaluation behind it."""
    recipe, gold, start = session.recipe, session.gold, session.start
    assert start is not None, "the target is measured first"
    directory = method_directory(recipe, method, session.results.out)
    distance: Distance | None = None
    share, way_back = recipe.evaluate.utility_budget, recipe.evaluate.keep_nearest and session.goal is not None
    budget = None if share is None else UtilityBudget(share, session.before, way_back=way_back)
    further = FURTHER if way_back else 1
    goal = None if session.goal is None else ForgetGoal(session.goal, further=further)
    faster = _faster(session)

    def on_the_way(model: CausalLM) -> dict[str, float]:
        return session.on_the_way(model, training.tokenizer, distance, session.usual)

    with machine.peak_memory() as peak:
        evaluate = None if recipe.evaluate.each_epoch == "off" else on_the_way
        training = make_trainer(recipe, method, session.benchmark, session.target, directory, evaluate=evaluate)
        trainer = training.trainer
        start.check(training.start, method.name, exact=recipe.model.lora is None or recipe.model.lora.quantize is None)
        if gold is not None:
            labels = SoftLabels.of(method.forget)
            distance = Distance(gold)
            if labels is not None:
                distance = gold.distance_towards(labels, training.unlearned(), training.tokenizer)
        log.info("%s: %s", method.name, loading.describe(trainer.model))
        for name in ("forget", "retain"):
            if encoded := getattr(trainer.sets, name):
                log.info("%s", summarise(name, encoded))
        if trainer.reference is not None:
            log.info("reference: %s", trainer.reference.kind)
        if budget is not None:
            trainer.add_callback(budget)
        if goal is not None:
            trainer.add_callback(goal)
        if faster is not None:
            trainer.add_callback(faster)
        training.train()
        ended_by = budget if budget is not None and budget.over else goal or budget
        stopped = None if ended_by is None else ended_by.outcome()
        if stopped is not None and budget is not None:
            stopped = budget.choice(stopped)
        if stopped is not None and faster is not None and faster.raised:
            stopped = {**stopped, "why": f"{stopped['why']}; {faster.words}"}
        if stopped is not None:
            log.info("%s: %s", method.name, stopped["why"])
        if budget is not None and budget.kept is not None:
            trainer.restore(budget.kept.step)
        model = training.unlearned()
        if stopped is not None and goal is not None and way_back:
            line = Line(model, None if recipe.model.lora else weights(recipe, session.target)(trains=True))
            forgets = partial(session.forget_probability, model, training.tokenizer)
            nearest = keep_nearest(line, forgets, goal.most, budget=budget, metrics=partial(on_the_way, model))
            if nearest is not None:
                log.info("%s: %s", method.name, nearest)
                stopped = {**stopped, "share": nearest.share, "why": f"{stopped['why']}; {nearest}"}
        seconds = training.seconds
        if method.noise is not None:
            load, place = weights(recipe, session.target), directory / "noise"
            model, more = distilled(recipe, method, session.benchmark, model, training.tokenizer, load, place)
            seconds += more
    unlearned = loading.as_saved(model, training.dtype)
    evaluation = session.measure(unlearned, training.tokenizer, distance)
    if ranks.first():
        loading.save(unlearned, training.tokenizer, directory / "model")
    history = trainer.state.log_history
    teacher, rows = recipe.teacher_of(method), session.results.rows
    before = 0.0 if teacher is None else next(row["seconds"] for row in rows if row["method"] == teacher.name)
    return {
        "method": method.name,
        "removal": method.forget.removal,
        "metrics": evaluation.metrics,
        "seconds": history[-1].get("seconds", 0.0) + seconds + before,
        "peak_memory_mib": peak.mib,
        "trajectory": trajectory(history),
        **({} if stopped is None else {"stopped": stopped}),
    }, evaluation


def _faster(session: Session) -> FasterWhenStuck | None:
    """The callback that raises the learning rate where next to nothing is forgotten, if the recipe asks for it."""
    if session.goal is None or not session.recipe.evaluate.raise_rate:
        return None
    (before,) = (row["metrics"]["forget_probability"] for row in session.results.rows if row["method"] == "target")
    return FasterWhenStuck(before, session.goal)


@dataclass(frozen=True)
class Training:
    """A trainer ready to train, and the unlearned model as its training stands.

    `dtype` is what the unlearned model is saved in (`None`: as it is); `seconds` were spent before it.
    """

    trainer: UnlearnTrainer
    tokenizer: "PreTrainedTokenizerBase"
    models: Models
    dtype: torch.dtype | None
    seconds: float

    @property
    def start(self) -> Any:
        """The model that is to be unlearned, as training finds it."""
        return self.trainer.model if self.models.base is None else self.models.base

    def train(self) -> None:
        """Train to the end, from the last checkpoint where there is one."""
        checkpoint = last_checkpoint(Path(str(self.trainer.args.output_dir)))
        self.trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)

    def unlearned(self) -> Any:
        return self.models.unlearned(self.trainer.whole_model())


def make_trainer(
    recipe: Recipe,
    method: Method,
    benchmark: Benchmark,
    target: Path | str,
    directory: Path,
    *,
    evaluate: Callable[[Any], dict[str, float]] | None,
    observed: bool = True,
) -> Training:
    """The method's training on the model in `target`; nothing is trained yet but for a teacher.

    `evaluate` is called with the unlearned model as the training arguments say, but for a training not `observed`.
    """
    args = training_arguments(recipe, method, directory)
    args.eval_strategy = args.eval_strategy if observed else IntervalStrategy.NO
    material = Material.of(recipe, method, benchmark)
    teacher, seconds = None, 0.0
    if method.forget.trains == "student":
        teacher, seconds = _teacher(recipe, method, benchmark, target, directory / "teacher")
    set_seed(recipe.seed)  # adapters are drawn before the trainer sets it
    models = build(recipe, method, weights(recipe, target), place=loading.whereabouts(target))
    tokenizer, _ = loading.load_tokenizer_and_config(target)
    common: dict[str, Any] = {
        "forget_dataset": material.forget,
        "processing_class": tokenizer,
        "evaluate": None if evaluate is None else lambda trained: evaluate(models.unlearned(trained)),
    }
    if isinstance(method.forget, Step):
        trainer = StepTrainer(models.trained, args, step=method.forget, **common)
    else:
        trainer = UnlearnTrainer(
            models.trained,
            args,
            objective=method.forget,
            retain=method.retain_term,
            retain_dataset=material.retain if method.retain_term is not None else (),
            refusals=material.refusals,
            peft_config=models.adapter,
            teacher=teacher,
            **common,
        )
    if models.base is not None:
        models.base.to(args.device)  # its first layers are there already, with the assistant
    dtype = None if models.saved_like is None else saved_dtype(recipe, models.saved_like)
    return Training(trainer, tokenizer, models, dtype, seconds)


def saved_dtype(recipe: Recipe, start: str) -> torch.dtype | None:
    """The dtype of the saved weights: the recipe's, or the one before training made float32 of them."""
    chosen = recipe.model.save_dtype
    return loading.stored_dtype(start) if chosen == "auto" else getattr(torch, chosen)


def _teacher(
    recipe: Recipe, method: Method, benchmark: Benchmark, target: Path | str, directory: Path
) -> tuple[Any, float]:
    """The difference that is to be distilled, and the seconds of its training.

    It is loaded as named, trained now or found as this run has left it.
    """
    forget = method.forget
    assert isinstance(forget, ULDDistilled)
    if forget.teacher is not None:
        earlier = recipe.teacher_of(method)
        given = Path(forget.teacher) if earlier is None else method_directory(recipe, earlier, directory_of(recipe))
        teacher = loading.load(checkpoint_of(given)[0])[0]
        chosen = forget.model_fields_set
        teacher.config.weight = -forget.alpha if "alpha" in chosen else teacher.config.weight
        teacher.config.tau = forget.tau if "tau" in chosen else teacher.config.tau
        return teacher, 0.0
    done = directory / "model"
    if done.exists():  # it is renamed when it is whole, and whoever resumes has looked at it
        return loading.load(done)[0], 0.0
    training = make_trainer(recipe, teaching(method), benchmark, target, directory, evaluate=None, observed=False)
    training.train()
    difference = training.unlearned()
    if ranks.first():
        loading.save(difference, training.tokenizer, done)
    ranks.wait()
    return difference, training.trainer.state.log_history[-1].get("seconds", 0.0)


def _report(directories: list[Path], path: Path, *, redact: bool) -> None:
    if ranks.first():
        write_report(directories, path, redact=redact, settings=complete)
