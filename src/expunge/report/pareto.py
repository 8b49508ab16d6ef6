"""The picture of a sweep: every trial in the plane of its two objectives, after figures 2-4 of Unilogit.

Source: Vasilev et al. 2025, arXiv 2505.06027.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from expunge.errors import UserError
from expunge.evals.glossary import METRICS, UNKNOWN, number, show
from expunge.report import drawing
from expunge.report.comparison import LEVEL, ResultRow, load_results, role
from expunge.report.picture import Figure, axis_of, capital, says


def pareto(folder: Path) -> Figure | None:
    """The trials of the sweep in `folder` that are finished and have their runs here; None where there are none.

    Across stands the second objective, what is kept; upwards the first, what is forgotten. Raises `UserError` for a
    folder without a sweep's `trials.json`.
    """
    trials = [(t, rows) for t in _trials(folder) if t["metrics"] and (rows := _results(folder, t))]
    if not trials:
        return None
    aim, keep = trials[0][0]["metrics"]
    points: dict[str, list[drawing.Trial]] = {}
    hollow: dict[str, bool] = {}
    for trial, rows in trials:
        row = next(row for row in rows if role(row) == "method")
        # Over several seeds a sweep calls a method by its trial.
        method = row["method"].removesuffix(f",trial-{trial['trial']:03d}")
        words = says(f"{folder.name}, trial {trial['trial']} ({keys_in_words(trial['keys'])})", **trial["metrics"])
        place = trial["metrics"][keep], trial["metrics"][aim]
        points.setdefault(method, []).append(
            drawing.Trial(str(trial["trial"]), *place, words, front=trial["front"], best=trial["best"])
        )
        hollow[method] = row.get("removal") == "inference"
    references = [
        drawing.Point(name, x, y, name, says=says(f"{folder.name}, {name}", **{keep: x, aim: y}))
        for name in ("target", "retrained")
        if (x := _mean(trials[0][1], name, keep)) is not None and (y := _mean(trials[0][1], name, aim)) is not None
    ]
    svg = drawing.trials(
        points,
        references,
        x=axis_of(keep),
        y=axis_of(aim),
        hollow=hollow,
        level=LEVEL if aim == "forget_quality" else None,
    )
    best = [f"{method}, trial {t.name}" for method, of_method in points.items() for t in of_method if t.best]
    reading = [
        "A mark is a trial, its shape the method; lines join the trials of a method that no other trial of it beats in "
        "both directions.",
        "Numbers name the trials on the front of all methods"
        + (f"; the ring is around the one that is chosen ({best[0]})." if best else "."),
        "Filled marks change the weights; hollow marks suppress at inference and leave the weights as they were.",
    ]
    title = capital(f"{_label(aim)} against {_label(keep)}, {sum(map(len, points.values()))} trials")
    ends = "; ".join(
        f"{method} {show(keep, t.x)}, {show(aim, t.y)}"
        for method, of_method in points.items()
        for t in of_method
        if t.front
    )
    return Figure("pareto", title, svg, f"{title}. On the front: {ends}.", reading)


def keys_in_words(keys: Mapping[str, Any]) -> str:
    """Keys and values that a trial sets: "beta 0.1, learning_rate 1e-05"."""
    return ", ".join(f"{key.rpartition('.')[2]} {value_in_words(value)}" for key, value in keys.items())


def value_in_words(value: Any) -> str:
    return f"{value:.2g}" if isinstance(value, float) else "" if value is None else str(value)


def _trials(folder: Path) -> Sequence[ResultRow]:
    path = folder / "trials.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        raise UserError(f"{path} can't be read: give the folder of a sweep that has ended once.") from None


def _results(folder: Path, trial: ResultRow) -> list[ResultRow]:
    """The rows of a trial's runs, one or one a seed."""
    place = folder / "trials" / f"trial-{trial['trial']:03d}"
    return [
        row
        for path in sorted([*place.glob("results.json"), *place.glob("*/results.json")])
        for row in load_results(path.parent)
    ]


def _mean(rows: Sequence[ResultRow], method: str, metric: str) -> float | None:
    values = [v for r in rows if r["method"] == method and (v := number(r["metrics"].get(metric))) is not None]
    return sum(values) / len(values) if values else None


def _label(metric: str) -> str:
    return METRICS.get(metric, UNKNOWN).label or metric
