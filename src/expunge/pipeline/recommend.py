"""The method that is taken when a recipe names none, and why. docs/choosing.md has the comparisons behind it."""

from dataclasses import dataclass
from typing import Any

from expunge.data.benchmark import Benchmark


@dataclass(frozen=True)
class Recommendation:
    """A recipe's `method`, and a sentence for the person who did not name one."""

    method: dict[str, Any]
    why: str


def recommend(benchmark: Benchmark, *, chats: bool = False) -> Recommendation:
    """The method that changes weights and does best on such data: questions or texts, with or without retain rows.

    chats: whether the model is a pretrained one that chats.
    """
    if chats and benchmark.retain and benchmark.questions.get("forget"):
        return Recommendation(
            {"forget": "npo", "retain": "nll"},
            "on a pretrained chat model it comes nearest to a model that never saw the forget rows and keeps what it "
            "knows; training stops when the forget answers are no likelier than ones that it can't know",
        )
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


def pace(width: int, *, lora: bool) -> dict[str, dict[str, Any]]:
    """Keys of a recipe for a pretrained model `width` numbers wide, where the recipe does not say: rate, epochs, stop.

    The rate falls with the width, and an adapter takes ten times as much; training ends by what is forgotten and kept.
    """
    rate = 0.02 / width * (10 if lora else 1)
    return {
        "train": {"learning_rate": float(f"{rate:.2g}"), "num_train_epochs": 10},
        "evaluate": {"utility_budget": 0.9, "stop_when_forgotten": True},
    }
