"""Metrics of a user's own: pure functions of an evaluation's records, with their range and best value."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata

from expunge.errors import UserError, first_line
from expunge.evals.glossary import GOAL, METRICS, Metric
from expunge.evals.tofu import Record
from expunge.system.imports import attribute, is_path

GROUP = "expunge.metrics"
"""The entry point group by which an installed package gives its metrics names."""

Records = Mapping[str, Sequence[Record]]
"""Question set or probe → a record for each of its questions, as a run writes them to `records/`."""


@dataclass(frozen=True)
class UserMetric:
    """A function of records with what a reader needs to know of its number; `name` is what results call it."""

    function: Callable[[Records], float]
    name: str
    range: tuple[float | None, float | None]
    best: float | None
    about: Metric

    @property
    def path(self) -> str:
        return f"{self.function.__module__}:{self.name}"

    def __call__(self, records: Records) -> float:
        return self.function(records)

    def measure(self, records: Records) -> float:
        """The number. Raises `UserError` where the function fails or leaves its range."""
        try:
            value = float(self.function(records))
        except Exception as error:  # a stranger's function may raise anything
            raise UserError(
                f"evaluate.metrics: {self.path} raises {type(error).__name__} ({first_line(error)}); mend it."
            ) from error
        low, high = self.range
        if math.isnan(value) or (low is not None and value < low) or (high is not None and value > high):
            raise UserError(f"evaluate.metrics: {self.path} must be {_span(low, high)}, got {value:g}; mend it.")
        return value


def metric(
    *,
    range: tuple[float | None, float | None],
    best: float | None,
    label: str | None = None,
    group: str = "",
) -> Callable[[Callable[[Records], float]], UserMetric]:
    """Make a function of records a metric that recipes can name; its docstring's first line says what it measures.

    Use when a number of your own belongs into results, tables and the report.

    Args:
        range: its least and its greatest value; `None` where there is no bound.
        best: its best value, one end of the range or between both; `None` for that of the retrained model.
        label: its name in tables; the function's name without underscores by default.
        group: "forget" or "retain" puts it in the main table, beside the metrics of that set.
    """

    def declared(function: Callable[[Records], float]) -> UserMetric:
        low, high = range
        hint = "≈" if best is None or best not in range else "↓" if best == low else "↑"
        what = next(iter((function.__doc__ or "").strip().splitlines()), "").rstrip(".")
        good = GOAL if best is None else f"{best:g}"
        about = Metric(label or function.__name__.replace("_", " "), hint, _span(low, high), good, what, group)
        return UserMetric(function, function.__name__, range, best, about)

    return declared


def user_metrics(names: Iterable[str]) -> list[UserMetric]:
    """The metrics at import paths, or of entry points by their names.

    Raises `UserError` for a path that leads to no metric and for a name that another metric has.
    """
    metrics: list[UserMetric] = []
    for name in names:
        path = name if is_path(name) else _entry_point(name)
        value = attribute(path, "a metric")
        if not isinstance(value, UserMetric):
            raise UserError(
                f"{path} is no metric; put @expunge.evals.own.metric(range=(0, 1), best=0) above a function."
            )
        if METRICS.get(value.name, value.about) != value.about or value.name in (other.name for other in metrics):
            raise UserError(f"{path}: another metric is called {value.name}; give the function another name.")
        metrics.append(value)
    return metrics


def _entry_point(name: str) -> str:
    known = {entry.name: entry.value for entry in metadata.entry_points(group=GROUP)}
    if name not in known:
        listed = f" Known: {', '.join(known)}." if known else ""
        raise UserError(f"no metric is called {name!r}; give its import path, package.module:function.{listed}")
    return known[name]


def _span(low: float | None, high: float | None) -> str:
    if low is None:
        return "any number" if high is None else f"at most {high:g}"
    return f"{low:g} and up" if high is None else f"{low:g} to {high:g}"
