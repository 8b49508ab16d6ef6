"""The trials as they stand, and the one that is chosen."""

from collections.abc import Sequence
from typing import Any

from optuna import Study
from optuna.trial import FrozenTrial, TrialState

from expunge.sweep.definition import Objectives
from expunge.sweep.study import direction, params, point

TrialRow = dict[str, Any]

STATES = ("finished", "running", "waiting", "failed", "lost")
"""States of a trial. `failed`: its settings can't be run, which is a result; `lost`: the next command runs it again."""


def trial_rows(study: Study, objectives: Objectives, keep: float) -> list[TrialRow]:
    """A row per point: the trial that counts, whether it is on the Pareto front, and whether it is chosen."""
    counts: dict[int, FrozenTrial] = {}
    for trial in study.get_trials(deepcopy=False):
        number = point(trial)
        if number is not None and trial.state != TrialState.PRUNED:
            counts[number] = min(trial, counts.get(number, trial), key=lambda t: STATES.index(_state(t)))
    front = {trial.number for trial in study.best_trials}
    rows = [_row(number, t, objectives) | {"front": t.number in front} for number, t in sorted(counts.items())]
    best = choose(rows, objectives, keep)
    return [row | {"best": row is best} for row in rows]


def choose(rows: Sequence[TrialRow], objectives: Objectives, keep: float) -> TrialRow | None:
    """The best first objective, then second, among the trials that keep the share `keep` of the target's second."""
    keepers = [row for row in rows if row["state"] == "finished" and (keep <= 0 or (row["kept"] or 0.0) >= keep)]
    signs = {name: 1 if direction(name) == "maximize" else -1 for name in objectives}
    return max(keepers, key=lambda row: [sign * row["metrics"][n] for n, sign in signs.items()], default=None)


def _state(trial: FrozenTrial) -> str:
    match trial.state:
        case TrialState.COMPLETE:
            return "finished"
        case TrialState.FAIL:
            return "failed" if "error" in trial.user_attrs else "lost"
    return trial.state.name.lower()


def _row(number: int, trial: FrozenTrial, objectives: Objectives) -> TrialRow:
    attrs, finished = trial.user_attrs, trial.state == TrialState.COMPLETE
    return {
        "trial": number,
        "state": _state(trial),
        "keys": params(trial),
        "metrics": dict(zip(objectives, trial.values, strict=True)) if finished else {},
        "kept": _share(trial.values[1], attrs["target"], objectives[1]) if finished else None,
        "seconds": trial.duration.total_seconds() if finished and trial.duration else None,
        **{name: attrs.get(name) for name in ("place", "worker", "folder", "error")},
    }


def _share(value: float, target: float, metric: str) -> float | None:
    """How much of the target's value is kept: 1 is as good as the target. Undefined where one would divide by 0."""
    over, under = (value, target) if direction(metric) == "maximize" else (target, value)
    return over / under if under else None
