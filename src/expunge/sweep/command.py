"""The order of a sweep: check, queue, work off, choose, report.

Read from `sweep` downwards.
"""

import difflib
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import torch
import yaml
from filelock import FileLock, Timeout
from optuna import Study
from optuna.storages import BaseStorage
from optuna.trial import TrialState

from expunge.errors import MachineError, UserError, did_you_mean
from expunge.evals.glossary import METRICS, declare, number
from expunge.pipeline.inputs import check_data, check_methods, check_recipe, load_benchmark, with_default_method
from expunge.pipeline.rundir import alone_in, check_run_directory, results_damage
from expunge.recipe.config import Recipe, declarations
from expunge.recipe.parsing import complete
from expunge.report import write_markdown, write_report
from expunge.report.pareto import pareto
from expunge.sweep.choice import TrialRow, trial_rows
from expunge.sweep.definition import Objectives, Sweep
from expunge.sweep.space import Params, Search, Space
from expunge.sweep.study import connect, direction, fill, give_up, left_behind, open_study, opened, place
from expunge.sweep.trial import references, target_metrics
from expunge.system.digest import digest
from expunge.system.disk import make_folder, private, remove, write_whole
from expunge.system.imports import is_ours

log = logging.getLogger(__name__)


def sweep(
    recipe: Recipe,
    space: Space,
    *,
    out: Path,
    search: Search = "tpe",
    trials: int | None = None,
    objectives: Objectives = ("forget_quality", "model_utility"),
    keep: float = 0.95,
    workers: int = 1,
    minutes: float | None = None,
    storage: str | None = None,
    study: str | None = None,
    watch: Callable[[list[TrialRow]], None] = lambda rows: None,
) -> list[TrialRow]:
    """Search, or go on searching, and return a row per trial; `out` then holds what docs/explanation/sweeps.md lists.

    trials: how many points; a grid has its own number. More than before carry a sweep on.
    objectives: two metrics, each maximised or, where less is better, minimised. Chosen is the trial with the best first
        one among those that keep at least the share `keep` of the target's second one.
    workers: processes on this machine, each with its share of the threads.
    minutes: no trial begins after this time; those that run are finished.
    storage: a database's URL; the same sweep with the same one on another machine works off the same queue.
    study: the sweep's name there; without it a hash of all that decides the sweep.
    watch: called about once a second with the rows as they stand.

    Raises `UserError` for anything that a person can mend, before the first trial and with no sweep begun.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    began, threads = time.time(), torch.get_num_threads()
    declare(*declarations(recipe))
    _check_options(objectives, keep=keep, workers=workers, minutes=minutes)
    points = space.points(search, trials, seed=recipe.seed)
    with ExitStack() as held:
        held.enter_context(_alone(out))
        this = _named(Sweep(_checked(recipe, space, points, objectives), space, search, objectives, study or "", out))
        database = None if storage is None else held.enter_context(opened(connect(storage, out)))
        _check_objectives(this)
        if not (out / "sweep.yaml").exists():
            write_whole(out / "sweep.yaml", yaml.safe_dump(this.tree(), sort_keys=False, allow_unicode=True))
        queue = _queue(this, database)
        give_up(queue, lambda trial: database is None or left_behind(trial, place(out)))
        fill(queue, points)

        def look() -> list[TrialRow]:
            rows = trial_rows(queue, objectives, keep)
            _drop_models(rows, this)
            watch(rows)
            return rows

        orders = {"out": str(out), "storage": storage, "until": None if minutes is None else began + 60 * minutes}
        orders["recipe"] = this.plain_recipe()
        _work_off(queue, orders, look, workers=workers, threads=threads)
        return _conclude(look(), this)


def _queue(this: Sweep, database: BaseStorage | None) -> Study:
    """The study; `UserError` for a journal that can't be read."""
    try:
        return open_study(this.study, database or connect(None, this.out), this.objectives)
    except (ValueError, KeyError, TypeError) as error:
        if database is not None or isinstance(error, UserError):
            raise
        journal = this.out / "study.journal"
        raise UserError(f"{journal} is damaged ({error}); put it back as it was, or give another --out.") from error


# -- before a sweep begins -------------------------------------------------------------------------------------------


def _check_options(objectives: Objectives, *, keep: float, workers: int, minutes: float | None) -> None:
    if len(set(objectives)) < 2:
        raise UserError(f"--objectives: {objectives[0]} is listed twice; give two metrics.")
    for name in objectives:
        direction(name)
    if workers < 1:
        raise UserError(f"--workers must be at least 1, got {workers}.")
    if minutes is not None and not minutes > 0:
        raise UserError(f"--minutes must be positive, got {minutes:g}.")
    if not keep >= 0:
        raise UserError(f"--keep must be a share of the target's {objectives[1]}, 0 or more, got {keep:g}.")


def _check_metrics(first: Recipe, objectives: Objectives) -> None:
    """Raise `UserError` for a metric of which the recipe of the first point alone tells that its target has it not."""
    open_ended = first.evaluate.harness is not None or not (first.benchmark is None or is_ours(type(first.benchmark)))
    for name in objectives:
        near = difflib.get_close_matches(name, METRICS, n=1, cutoff=0.85)
        if name not in METRICS and (near or not open_ended):
            raise UserError(f"--objectives: {name} is not a metric.{did_you_mean(name, METRICS)}")
    learns = first.model.scratch is not None or first.finetune is not None
    if "forget_quality" in objectives and first.retrained is None and not learns:
        raise UserError(
            "--objectives: forget_quality needs a retrained model and wrong answers; give --retrained, or two other "
            "metrics."
        )


def _checked(recipe: Recipe, space: Space, points: Sequence[Params | None], objectives: Objectives) -> Recipe:
    """The recipe, with a method if nothing names one; every point is a recipe, and every method can be trained."""
    if others := [key for key in recipe.over if key != "seed"]:
        raise UserError(f"over: a sweep repeats its trials for seeds only; put {others[0]} into the space.")
    if recipe.over and "seed" in space.keys:
        raise UserError("space: seed is searched, and every trial is repeated for seeds of its own; take one of them.")
    check_recipe(recipe)
    around = space.around()
    first = space.recipe(recipe, around[0])
    _check_metrics(first, objectives)
    if "methods" not in first.model_fields_set:
        recipe = with_default_method(recipe, load_benchmark(first))
    seen: set[str] = set()
    for params in [*around, *(p for p in points if p is not None)]:
        drawn = space.recipe(recipe, params)
        if len(drawn.methods) != 1:
            raise UserError(
                f"a trial runs one method, and the recipe has {len(drawn.methods)}; put them into the space "
                "({method: {choices: [a, b]}}), or choose one with --method."
            )
        if drawn.methods[0].name not in seen:
            seen.add(drawn.methods[0].name)
            benchmark = load_benchmark(drawn)
            check_data(benchmark)
            check_methods(drawn, benchmark)
    return recipe


def _named(this: Sweep) -> Sweep:
    """With its study's name: as named, as before, or a hash. `UserError` where `out` can't be used for this sweep."""
    written = this.out / "sweep.yaml"
    if written.exists():
        before = Sweep.load(this.out)
        this = replace(this, study=this.study or before.study)
        if other := this.first_difference(before):
            raise UserError(f"{written} is another sweep: {other} differs; give the same again, or another --out.")
        return this
    if (this.out / "recipe.yaml").exists():
        raise UserError(f"{this.out} holds a run; give another --out.")
    check_run_directory(this.recipe.model_copy(update={"out": this.out}), resume=False, overwrite=False)
    return replace(this, study=this.study or f"expunge-{digest(this.tree())[:16]}")


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Nobody else sweeps in `out`: neither another command nor the workers of a killed one, which end with it."""
    with alone_in(out, then="give the same command again"):
        for path in (out / "workers").glob("*.lock"):
            try:
                with FileLock(path, timeout=30):
                    pass
            except Timeout:
                raise MachineError(
                    f"a worker of another expunge sweep is at work in {out}; wait for it, or give another --out."
                ) from None
        yield


def _check_objectives(this: Sweep) -> None:
    """Evaluate the target of the first point; raise `UserError` for a metric that it does not have."""
    _, runs = this.runs_of(0, this.space.around()[0])
    measured = target_metrics(references(runs[0], this.out))
    for name in this.objectives:
        if name == this.objectives[0] == "aggregate":  # of a method and the target together; the target has none
            continue
        if number(measured.get(name)) is None:
            near = " It needs a retrained model and wrong answers." if name == "forget_quality" else ""
            raise UserError(f"--objectives: {name} is not measured here.{near or did_you_mean(name, measured)}")


# -- the workers -----------------------------------------------------------------------------------------------------


def _work_off(
    queue: Study, orders: Mapping[str, Any], look: Callable[[], object], *, workers: int, threads: int
) -> None:
    """Start the workers and `look` every second until they have ended; they end when this does.

    Raises `UserError` where all of them ended early.
    """
    out = Path(orders["out"])
    make_folder(out / "workers")
    waiting = len(queue.get_trials(deepcopy=False, states=(TrialState.WAITING,)))
    late = orders["until"] is not None and time.time() >= orders["until"]
    running: dict[int, subprocess.Popen[str]] = {}
    try:
        for k in range(0 if late else min(workers, waiting)):
            running[k] = _start({**orders, "worker": k}, out / "workers" / f"{k}.log", _share(k, workers, threads))
        codes: dict[int, int] = {}
        while running:
            look()
            time.sleep(1)
            for k in [k for k, process in running.items() if process.poll() is not None]:
                if code := _end(running.pop(k)):
                    codes[k] = code
                    log.warning("worker %d ended early (%d); %s says why", k, code, out / "workers" / f"{k}.log")
                    worker = {"place": place(out), "worker": k}
                    give_up(queue, lambda trial, worker=worker: worker.items() <= trial.user_attrs.items())
        if codes and len(codes) == min(workers, waiting):
            raise UserError(
                f"every worker ended early; the files in {out / 'workers'} say why. The same command goes on."
            )
    finally:
        for process in running.values():
            _end(process)


def _start(orders: Mapping[str, Any], said: Path, share: Mapping[str, str]) -> subprocess.Popen[str]:
    with private(), said.open("a", encoding="utf-8") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "expunge.sweep.worker"],
            stdin=subprocess.PIPE,
            stdout=file,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, **share},
            start_new_session=True,  # Ctrl-C is for the command, which ends its workers
        )
    assert process.stdin is not None
    process.stdin.write(json.dumps(orders) + "\n")
    process.stdin.flush()
    return process


def _end(process: subprocess.Popen[str]) -> int:
    """Close the pipe that a worker lives by; its exit code."""
    assert process.stdin is not None
    process.stdin.close()
    return process.wait()


def _share(worker: int, workers: int, threads: int) -> dict[str, str]:
    """A worker's part of the machine: threads, and one of several GPUs."""
    share = {"OMP_NUM_THREADS": str(max(1, threads // workers)), "TQDM_DISABLE": "1"}
    if (count := torch.cuda.device_count()) > 1:
        devices = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(count)))
        share["CUDA_VISIBLE_DEVICES"] = devices.split(",")[worker % count]
    return share


# -- what is left ----------------------------------------------------------------------------------------------------


def _finished_here(rows: Sequence[TrialRow], this: Sweep) -> Iterator[tuple[TrialRow, Path]]:
    """The finished trials of this folder, with the run directories of each: one, or one a seed."""
    for row in rows:
        if row["state"] == "finished" and row["place"] == place(this.out):
            folder = this.folder(row["trial"])
            for path in sorted([*folder.glob("results.json"), *folder.glob("*/results.json")]):
                yield row, path.parent


def _drop_models(rows: Sequence[TrialRow], this: Sweep) -> None:
    """Remove the checkpoints of trials that another one beats in both objectives; their results and records stay."""
    for row, folder in _finished_here(rows, this):
        if not row["front"] and not row["best"]:
            remove(folder / "model")


def _conclude(rows: list[TrialRow], this: Sweep) -> list[TrialRow]:
    """Write `trials.json`, the report over the finished trials of this folder, and `best`."""
    write_whole(this.out / "trials.json", json.dumps(rows, indent=1, ensure_ascii=False))
    failed = [row for row in rows if row["state"] == "failed"]
    if len(failed) == len(rows):
        raise UserError(f"every trial failed; trial {failed[0]['trial']}: {failed[0]['error']}")
    folders = [folder for _, folder in _finished_here(rows, this)]
    if wrong := next(filter(None, map(results_damage, folders)), None):
        raise UserError(f"{wrong}; put it back as it was, or delete that trial's folder to leave it out of the report.")
    if folders:
        picture = pareto(this.out)
        write_report(folders, this.out / "report.html", first=[picture] if picture else [], settings=complete)
        write_markdown(folders, this.out / "results.md")
    link = this.out / "best"
    link.unlink(missing_ok=True)
    for row in rows:
        if row["best"] and row["place"] == place(this.out):
            link.symlink_to(this.folder(row["trial"]).relative_to(this.out), target_is_directory=True)
    return rows
