"""The outcome of an attack on one model."""

from dataclasses import asdict, dataclass
from typing import Any

from expunge.stress.options import AttackName


@dataclass(frozen=True)
class Point:
    """The knowledge of a model at one strength of an attack.

    at       the strength: an optimizer step, bits a weight, a number of answers, or a name
    known    in [0, 1]; 0 or near it where nothing is known
    """

    at: float | str
    known: float


@dataclass(frozen=True)
class Outcome:
    """The outcome of one attack in one setting on one model.

    axis     what `at` of the points counts
    measure  what `known` is
    """

    attack: AttackName
    setting: str
    axis: str
    measure: str
    points: tuple[Point, ...]
    seconds: float

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of_json(cls, found: dict[str, Any]) -> "Outcome":
        return cls(**{**found, "points": tuple(Point(**point) for point in found["points"])})
