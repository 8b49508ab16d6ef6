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


PLAIN = {
    "forget_quality": "how like a model that never saw it",
    "forget_probability": "how likely it still finds the forget answers",
    "forget_rouge_l_recall": "how much it still says of the forget answers",
    "retain_probability": "how likely it finds the answers that should stay",
    "retain_rouge_l_recall": "how much it says of the answers that should stay",
    "model_utility": "how well it answers all else",
}
"""The names of metrics on an axis; a metric's name in tables stands in the picture's title."""


def axis_of(name: str) -> Axis:
    metric = METRICS.get(name, UNKNOWN)
    label = PLAIN.get(name, metric.label or name)
    return Axis(label, log=name == "forget_quality", best="low" if metric.hint == "↓" else "high")


def says(who: str, **metrics: float | None) -> str:
    """Tooltip text of a mark."""
    return f"{who}: " + ", ".join(f"{METRICS.get(n, UNKNOWN).label or n} {show(n, v)}" for n, v in metrics.items())


def capital(text: str) -> str:
    return text[0].upper() + text[1:]
