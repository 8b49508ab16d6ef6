"""The method that is taken when a recipe names none, and why. docs/choosing.md has the comparisons behind it."""

from dataclasses import dataclass
from typing import Any

from expunge.data.benchmark import Benchmark


@dataclass(frozen=True)
class Recommendation:
    """A recipe's `method`, and a sentence for the person who did not name one."""

    method: dict[str, Any]
    why: str


def recommend(benchmark: Benchmark) -> Recommendation:
    """The method that changes weights and does best on such data: questions or texts, with or without retain rows."""
    if not benchmark.retain:
        return Recommendation(
            {"forget": "undial"},
            "without retain rows it is the one that too high a learning rate does not ruin; a retain set "
            "(--retain FILE) is worth more than any choice of method",
        )
    return Recommendation(
        {"forget": "uld_distilled"},
        "of the methods that change the weights it comes nearest to a model that never saw the forget rows, and writes "
        "no broken text; --method uld takes half the time where suppression in use is enough",
    )
