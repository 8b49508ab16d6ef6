"""The remedies, cheapest first, and which of them a request needs.

Source of the order: arXiv 2508.12220, which takes exact remedies before approximate ones.
"""

from collections.abc import Sequence
from typing import Literal, get_args

from expunge.requests.decision import Verdict

Remedy = Literal["leave out", "drop the adapter", "retrain", "unlearn", "suppress"]
REMEDIES: tuple[Remedy, ...] = get_args(Remedy)

USUAL: tuple[Remedy, ...] = ("leave out", "unlearn")
"""Those that are taken without being asked for: the others throw something away, or leave the rows in the weights."""


def choose(verdict: Verdict, allowed: Sequence[Remedy], *, below: Verdict | None = None) -> tuple[Remedy | None, str]:
    """The cheapest remedy that suffices, and why; `None` where none that is allowed does.

    verdict: what a probe says of the model.
    below: what a probe says of the model under its adapter; `None` where it has none.
    """
    if verdict == "does not remember" and "leave out" in allowed:
        return "leave out", "the probe finds that the model does not remember the rows"
    remembers = f"the probe says: {verdict}"
    if below == "does not remember" and "drop the adapter" in allowed:
        return "drop the adapter", f"{remembers}; the model under the adapter does not remember the rows"
    if "retrain" in allowed:
        return "retrain", f"{remembers}; the recipe that taught the model is at hand"
    if "unlearn" in allowed:
        why = "" if below is None else "; the adapter holds other things as well, or the model under it remembers too"
        return "unlearn", f"{remembers}{why}"
    if "suppress" in allowed:
        return "suppress", f"{remembers}, and unlearning is not allowed"
    return None, f"{remembers}, and none of the remedies that are allowed helps ({', '.join(allowed)})"
