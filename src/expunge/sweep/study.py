"""The trials of a sweep as a queue that workers share: an Optuna study, in a file or on a database server."""

import logging
import socket
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Literal

import numpy as np
import optuna
import sqlalchemy
from filelock import FileLock
from optuna.exceptions import ExperimentalWarning, StorageInternalError, UpdateFinishedTrialError
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import exc

from expunge.errors import UserError, first_line
from expunge.evals.glossary import METRICS, UNKNOWN
from expunge.secrets import masked_text, remember
from expunge.sweep.space import STARTUP, Params, Search
from expunge.system.disk import private

log = logging.getLogger(__name__)

HEARTBEAT, GRACE = 15, 120
"""Seconds between two signs of life of a trial in a database; and how long without one until it counts as given up."""

Direction = Literal["minimize", "maximize"]

RunTrial = Callable[[optuna.Trial, int], tuple[float, float]]
"""Runs the trial of a point and gives the two objectives."""


def direction(metric: str) -> Direction:
    """Which way a metric gets better; `UserError` for one that is best at the retrained model's value."""
    hint = METRICS.get(metric, UNKNOWN).hint
    if hint == "≈":
        raise UserError(f"--objectives: {metric} is best at the retrained model's value; take one to raise or lower.")
    return "minimize" if hint == "↓" else "maximize"


def place(out: Path) -> str:
    """Where a trial is run: the machine and the sweep's folder on it."""
    return f"{socket.gethostname()}:{out.resolve()}"


class _Lock(JournalFileOpenLock):
    """Goes when its process ends, however that ends; Optuna's own is a file, which outlives a killed process."""

    def __init__(self, path: Path) -> None:
        super().__init__(str(path))
        self.held = FileLock(f"{path}.lock", mode=0o600)

    def acquire(self) -> bool:
        self.held.acquire()
        return True

    def release(self) -> None:
        self.held.release()


def connect(storage: str | None, out: Path) -> BaseStorage:
    """The storage at a database URL, with its tables; without one the journal in `out`, a folder that is there.

    Raises `UserError` for a URL that is none, a driver that is missing, and a server that can't be reached.
    """
    if storage is None:
        path = out / "study.journal"
        with private():
            return JournalStorage(JournalFileBackend(str(path), lock_obj=_Lock(path)))
    try:
        remember(storage)
        url = sqlalchemy.make_url(storage)
        shown = masked_text(url.render_as_string())
    except exc.ArgumentError:
        raise UserError("--storage: not a database's URL; write postgresql://user:password@host/database.") from None
    if url.drivername in ("postgresql", "postgres"):
        url = url.set(drivername="postgresql+psycopg", query={"connect_timeout": "10", **url.query})
    for attempt in range(4):
        try:
            with _experimental():
                return RDBStorage(
                    url.render_as_string(hide_password=False),
                    engine_kwargs={"pool_pre_ping": True},
                    heartbeat_interval=HEARTBEAT,
                    grace_period=GRACE,
                    heartbeat_stale_trial_callback=put_back,
                )
        except ImportError as error:
            package = {"psycopg": "psycopg[binary]"}.get(cause := _missing(error), cause)
            raise UserError(f"--storage {shown} needs the package {package}; pip install '{package}'.") from error
        except (exc.IntegrityError, exc.ProgrammingError) as error:
            # Two machines made the tables at the same time; the next look finds them.
            if attempt == 3:
                raise UserError(f"--storage {shown}: {_first_line(error)}; give an empty database.") from error
            time.sleep(0.5)
        except (exc.SQLAlchemyError, StorageInternalError, RuntimeError) as error:
            raise UserError(f"--storage {shown} can't be used ({_first_line(error)}); is it running?") from error
    raise AssertionError


@contextmanager
def opened(storage: BaseStorage) -> Iterator[BaseStorage]:
    """The storage while it is used; `UserError` for a database that goes away."""
    try:
        yield storage
    except (exc.SQLAlchemyError, StorageInternalError) as error:
        raise UserError(f"--storage went away ({_first_line(error)}); the same command goes on.") from error
    finally:
        if isinstance(storage, RDBStorage):
            storage.remove_session()
            storage.engine.dispose()


def open_study(name: str, storage: BaseStorage, objectives: Sequence[str]) -> optuna.Study:
    """The study of this name, new or as it stands."""
    directions: list[StudyDirection | Direction] = [direction(objective) for objective in objectives]
    study = optuna.create_study(study_name=name, storage=storage, directions=directions, load_if_exists=True)
    with _experimental():
        study.set_metric_names(list(objectives))
    return study


def fill(study: optuna.Study, points: Sequence[Params | None]) -> None:
    """Queue a trial for every point that has none; one that was left to Optuna keeps what its lost trial was given."""
    trials = study.get_trials(deepcopy=False)
    settled = {point(t) for t in trials if _settled(t)}
    given = {point(t): params(t) for t in trials}
    for number, fixed in enumerate(points):
        if number not in settled:
            study.enqueue_trial(fixed or given.get(number, {}), user_attrs={"point": number})


def put_back(study: optuna.Study, trial: FrozenTrial) -> None:
    """Queue a trial again."""
    study.enqueue_trial(params(trial), user_attrs={"point": point(trial)})


def give_up(study: optuna.Study, dead: Callable[[FrozenTrial], bool]) -> None:
    """Mark the running trials that nobody runs any more; `fill` queues them again."""
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if dead(trial):
            study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)


def left_behind(trial: FrozenTrial, here: str) -> bool:
    """Whether a running trial belongs to this folder, whose workers are dead, or to nobody: killed as it was drawn."""
    started = trial.datetime_start
    if owner := trial.user_attrs.get("place"):
        return owner == here
    return started is not None and datetime.now() - started > timedelta(seconds=GRACE)


def work(
    study: optuna.Study,
    run: RunTrial,
    *,
    search: Search,
    seed: int,
    here: str,
    worker: int,
    until: float | None = None,
    shared: bool = False,
) -> None:
    """Draw trials and run them until none waits; of a `shared` queue, until no machine runs one that it might lose.

    A trial whose `run` raises fails, and the next one is drawn. After `until` (in `time.time()`) none is begun.
    """

    def objective(trial: optuna.Trial) -> tuple[float, float]:
        number = trial.user_attrs.get("point")
        twins = [t for t in study.get_trials(deepcopy=False) if point(t) == number and t.number < trial.number]
        if number is None or any(_settled(t) for t in twins):
            raise optuna.TrialPruned("drawn from an empty queue, or queued twice")
        trial.set_user_attr("place", here)
        trial.set_user_attr("worker", worker)
        return run(trial, number)

    while until is None or time.time() < until:
        trials = study.get_trials(deepcopy=False)
        if any(t.state == TrialState.WAITING for t in trials):
            started = sum(t.state in (TrialState.RUNNING, TrialState.COMPLETE) for t in trials)
            study.sampler = _sampler(search, [seed, started, worker])
            try:
                study.optimize(objective, n_trials=1, catch=(Exception,))
            except (UpdateFinishedTrialError, ValueError) as error:
                log.warning("a trial that another machine took for dead has ended (%s)", error)
        elif not shared or not any(_runs(t) for t in trials):
            break
        else:
            time.sleep(2)
            with _experimental():
                optuna.storages.fail_stale_trials(study)


def point(trial: FrozenTrial) -> int | None:
    return trial.user_attrs.get("point")


def params(trial: FrozenTrial) -> Params:
    """The values of the trial, also before a worker draws it."""
    return {**trial.system_attrs.get("fixed_params", {}), **trial.params}


def _settled(trial: FrozenTrial) -> bool:
    """Whether the trial's point needs no other: it has or will have a result, which may be that it can't be run."""
    return trial.state in (TrialState.WAITING, TrialState.RUNNING, TrialState.COMPLETE) or "error" in trial.user_attrs


def _runs(trial: FrozenTrial) -> bool:
    return trial.state == TrialState.RUNNING and "place" in trial.user_attrs


def _sampler(search: Search, seed: Sequence[int]) -> BaseSampler:
    """A stream of its own for each trial: no worker proposes what another, or the same before a kill, has proposed."""
    drawn = int(np.random.SeedSequence(seed).generate_state(1)[0])
    return TPESampler(seed=drawn, n_startup_trials=STARTUP) if search == "tpe" else RandomSampler(seed=drawn)


@contextmanager
def _experimental() -> Iterator[None]:
    """Optuna calls heartbeats and metrics' names experimental, and says so at every call."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        yield


def _missing(error: ImportError) -> str:
    cause = error if error.name or error.__cause__ is None else error.__cause__
    return getattr(cause, "name", None) or str(cause)


def _first_line(error: Exception) -> str:
    return first_line(error.__cause__ or error)
