"""A picture of a page: its SVG with a title, the same in words, and how to read it."""

from typing import NamedTuple

from expunge.evals.glossary import METRICS, UNKNOWN, show
from expunge.report.canvas import Axis


class Figure(NamedTuple):
    """A picture with its title, the same in words for who cannot see it, and sentences on how to read it."""

    name: str
    title: str
    svg: str
    alt: str
    reading: list[str]


def axis_of(name: str) -> Axis:
    metric = METRICS.get(name, UNKNOWN)
    if name == "forget_quality":
        return Axis(f"{metric.label} (p-value; log scale, stretched towards 1)", log=True)
    return Axis(metric.label or name, best="low" if metric.hint == "↓" else "high")


def says(who: str, **metrics: float | None) -> str:
    """Tooltip text of a mark."""
    return f"{who}: " + ", ".join(f"{METRICS.get(n, UNKNOWN).label or n} {show(n, v)}" for n, v in metrics.items())


def capital(text: str) -> str:
    return text[0].upper() + text[1:]
