"""The method that is taken when a recipe names none, and why. docs/choosing.md has the comparisons behind it."""

from dataclasses import dataclass, field
from typing import Any

from expunge.data.benchmark import Benchmark


@dataclass(frozen=True)
class Recommendation:
    """A recipe's `method`, why for the person who named none, and the keys of `evaluate` that go with it."""

    method: dict[str, Any]
    why: str
    evaluate: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return "+".join(self.method[key] for key in ("forget", "retain") if key in self.method)


GOAL = {"utility_budget": 0.9, "stop_when_forgotten": True, "keep_nearest": True, "raise_rate": True}
"""Keys of `evaluate` that train until the forget answers are no likelier than ones that the target can't know."""


def recommend(benchmark: Benchmark, *, chats: bool = False, written: bool = True) -> Recommendation:
    """The method that changes weights and does best on such data: questions or texts, with or without retain rows.

    chats: whether the model is a pretrained one with a chat template.
    written: whether somebody has written paraphrases and wrong answers of the forget rows, or a benchmark brings them.
    """
    if not benchmark.retain:
        return Recommendation(
            {"forget": "undial"},
            "without retain rows it is the one that too high a learning rate does not ruin; a retain set "
            "(--retain FILE) is worth more than any choice of method",
        )
    if chats and benchmark.questions.get("forget"):
        return Recommendation(
            {"forget": "npo", "retain": "nll"},
            "on a pretrained chat model it comes nearest to a model that never saw the forget rows and keeps what it "
            "knows; of the way there only as much is kept as makes the forget answers no likelier than ones that it "
            "can't know",
            GOAL,
        )
    if not written:
        return Recommendation(
            {"forget": "undial", "retain": "nll"},
            "of the methods that need no paraphrases it forgets most before answers break; --augment FILE (expunge "
            "augment writes one) makes uld_distilled the better choice",
            GOAL,
        )
    return Recommendation(
        {"forget": "uld_distilled"},
        "of the methods that change the weights it comes nearest to a model that never saw the forget rows, and writes "
        "no broken text; --method uld takes half the time where suppression in use is enough",
    )
