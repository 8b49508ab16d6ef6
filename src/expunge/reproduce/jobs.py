"""Jobs of a reproduction: which are finished, and how the rest is run, by `expunge run` and `expunge sweep`."""

import gc
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from expunge.errors import UserError
from expunge.pipeline.rundir import first_difference, is_pending, results_damage
from expunge.recipe.config import Recipe
from expunge.recipe.parsing import load_recipe, parse_recipe, read_mapping
from expunge.report import load_results
from expunge.reproduce.definition import Job

log = logging.getLogger(__name__)


def missing(job: Job) -> list[str]:
    """The work that is left: models without a result, with their folder where the job has several, or trials.

    Raises `UserError` where a folder holds another run or sweep than the job's.
    """
    if job.space is not None:
        return _trials(job)
    return [
        name if recipe.out == job.out else f"{recipe.out.name}: {name}"
        for recipe in job.each
        if recipe.out is not None
        for name in _models(recipe, recipe.out)
    ]


def _models(recipe: Recipe, out: Path) -> list[str]:
    written = out / "recipe.yaml"
    models = ["target", *(method.name for method in recipe.methods)]
    if not written.exists():
        return models
    _check(load_recipe(written), recipe, written)
    if wrong := results_damage(out):
        raise UserError(f"{wrong}; put it back as it was, or delete {out} to run it again.")
    if is_pending(out):
        return models
    rows = load_results(out) if (out / "results.json").exists() else []
    return [name for name in models if name not in [row["method"] for row in rows]]


def _trials(job: Job) -> list[str]:
    written, trials = job.out / "sweep.yaml", job.out / "trials.json"
    if not written.exists():
        return ["every trial"]
    tree = read_mapping(str(written), what="sweep")
    _check(parse_recipe(tree.get("recipe", {}), where=str(written)), job.recipe, written)
    if not trials.exists():
        return ["every trial that is not finished"]
    rows = load_trials(trials)
    return [f"trial {row['trial']}" for row in rows if row["state"] not in ("finished", "failed")]


def load_trials(path: Path) -> list[dict[str, Any]]:
    """The rows of a sweep's `trials.json`; `UserError` for a file that is none."""
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        assert all({"trial", "state", "keys", "metrics", "front", "best"} <= row.keys() for row in rows)
    except (ValueError, TypeError, AttributeError, AssertionError, RecursionError):
        raise UserError(f"{path} is damaged; give the same command again to write it anew.") from None
    return rows


def _check(written: Recipe, wanted: Recipe, where: Path) -> None:
    """Raise `UserError` where another recipe was run than the wanted one at the pace that a run of it takes."""
    if first_difference(written, wanted) is None:
        return
    from expunge.pipeline.inputs import load_with_method

    if key := first_difference(written, load_with_method(wanted)[0]):
        raise UserError(
            f"{where} is another recipe than the one to reproduce: {key} differs; give the same keys, or other --runs."
        )


def carry_out(jobs: Sequence[Job]) -> None:
    """Run what is missing, in order; what is there is left as it is.

    Every job is looked at before the first begins. Interrupted at any moment, the same call goes on.
    """
    from expunge.pipeline.run import run

    todo = [(job, left) for job in jobs if (left := missing(job))]
    log.info("%d of %d runs are there already", len(jobs) - len(todo), len(jobs))
    for k, (job, left) in enumerate(todo, start=1):
        log.info("%d of %d: %s (%d to do)", k, len(todo), job.out, len(left))
        if job.space is not None:
            from expunge.sweep import Space, sweep

            sweep(job.recipe, Space.parse(job.space), out=job.out, search="grid", objectives=job.objectives)
        else:
            for recipe in job.each:
                if recipe.out is not None and _models(recipe, recipe.out):
                    run(recipe, resume=True)
        gc.collect()  # a trainer and its model hold each other


def folders(job: Job) -> list[Path]:
    """The run directories of a job that have results."""
    if job.space is not None:
        every = sorted([*job.out.glob("trials/*/results.json"), *job.out.glob("trials/*/*/results.json")])
        return [path.parent for path in every]
    return [recipe.out for recipe in job.each if recipe.out is not None and (recipe.out / "results.json").exists()]
