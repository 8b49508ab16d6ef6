"""One trial: the run of its recipe, with the target and the retrained model evaluated once for all trials."""

import gc
import logging
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from filelock import FileLock
from optuna.trial import Trial

from expunge.errors import MachineError, UserError
from expunge.evals.glossary import number
from expunge.pipeline.inputs import load_with_method
from expunge.pipeline.run import run, run_all
from expunge.pipeline.rundir import Result, adopt, alone_in, check_whole
from expunge.recipe.config import Recipe
from expunge.recipe.parsing import parse_recipe
from expunge.report import load_results
from expunge.report.comparison import role
from expunge.sweep.definition import Sweep
from expunge.system.digest import digest
from expunge.system.disk import make_folder, remove

log = logging.getLogger(__name__)


def run_trial(sweep: Sweep, trial: Trial, point: int) -> tuple[float, float]:
    """Run the recipe of a point, or what is left of it, and give its objectives: means over its seeds.

    The trial keeps its folder, the second objective of the target, and why its settings can't be run (`UserError`).
    """
    try:
        recipe, runs = sweep.runs_of(point, sweep.space.suggest(trial))
        trial.set_user_attr("folder", str(sweep.folder(point).resolve()))
        log.info("trial %d: %s", point, trial.params)
        for single in runs:
            hand_over(references(single, sweep.out), load_with_method(single)[0])
        rows = run_all(recipe, resume=True)
        first, second = (_mean(rows, "method", name) for name in sweep.objectives)
        trial.set_user_attr("target", _mean(rows, "target", sweep.objectives[1]))
        return first, second
    except MachineError:
        raise  # the next command tries again
    except UserError as error:
        trial.set_user_attr("error", str(error))
        raise
    finally:
        gc.collect()  # a trainer and its model hold each other


def references(recipe: Recipe, out: Path) -> Path:
    """The run directory of the target and the retrained model that a run starts from: evaluated now, or before.

    They depend on everything in a recipe but how it unlearns. Two processes never evaluate the same at once.
    """
    apart = {"methods", "train", "threads", "over", "out"}
    tree = recipe.model_dump(mode="json", exclude_unset=True, exclude=apart)
    tree |= {"methods": [], "train": {"use_cpu": recipe.train.use_cpu}}
    folder = out / "references" / digest(tree)[:16]
    make_folder(folder.parent)
    with FileLock(f"{folder}.lock", mode=0o600):
        evaluation = parse_recipe({**tree, "out": str(folder)}, where="sweep")
        try:
            check_whole(evaluation, folder)
        except UserError as error:
            log.warning("%s; it is evaluated again", str(error).partition(";")[0])
            remove(folder)
        if not (folder / "report.html").exists():  # what a run writes last
            run(evaluation, resume=True)
    return folder


def hand_over(folder: Path, recipe: Recipe) -> None:
    """Give a run that has not begun the references of `folder`, as if it had been interrupted after evaluating them."""
    assert recipe.out is not None
    with alone_in(recipe.out):
        if not (recipe.out / "results.json").exists():
            adopt(folder, recipe, recipe.out)


def target_metrics(folder: Path) -> dict[str, float | None]:
    """The metrics of the target of these references."""
    return next(row["metrics"] for row in load_results(folder) if row["method"] == "target")


def _mean(rows: Sequence[Result], which: str, name: str) -> float:
    values = [number(row["metrics"].get(name)) for row in rows if role(row) == which]
    defined = [value for value in values if value is not None]
    if len(defined) < len(values):
        raise UserError(f"{name} is undefined for this trial; choose other --objectives, or other values.")
    return fmean(defined)
