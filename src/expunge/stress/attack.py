"""The model and rows that an attack is given, and the measure of what a model knows."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any, Protocol

from expunge.data.benchmark import Benchmark, Row
from expunge.data.encode import encode
from expunge.evals import requests
from expunge.evals.metrics import probability
from expunge.stress.outcome import Outcome

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Victim:
    """A model that is attacked, and the rows that it is asked about.

    load       gives a fresh copy of model and tokenizer: an attack may change the weights
    benchmark  rows to forget and to keep
    quick      whether a rough answer will do
    seed       of every draw
    """

    load: Callable[[], tuple[Any, "PreTrainedTokenizerBase"]]
    benchmark: Benchmark
    quick: bool = False
    seed: int = 0


class Attack(Protocol):
    """Attacks a model in every setting that is asked for."""

    def __call__(self, victim: Victim) -> list[Outcome]: ...


PROBABILITY = "probability of the answer"


def known_probability(model: Any, tokenizer: "PreTrainedTokenizerBase", rows: Sequence[Row]) -> float:
    """Mean length-normalised probability of the rows' answers, in [0, 1], as `forget_probability`."""
    scores = requests.score(model, [encode(row, tokenizer) for row in rows], progress=False)
    return fmean(probability(score.total, score.tokens) for score in scores)


class Clock:
    """Seconds since it was made, or since it was last read."""

    def __init__(self) -> None:
        self._since = time.perf_counter()

    def lap(self) -> float:
        now = time.perf_counter()
        passed, self._since = now - self._since, now
        return passed
