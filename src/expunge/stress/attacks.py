"""The attacks by name."""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache

from expunge.data.benchmark import Benchmark
from expunge.errors import UserError
from expunge.stress import membership as _membership
from expunge.stress import quantization as _quantization
from expunge.stress import reasoning as _reasoning
from expunge.stress.attack import Attack, Victim
from expunge.stress.membership import membership
from expunge.stress.options import AttackName
from expunge.stress.outcome import Outcome
from expunge.stress.quantization import quantization
from expunge.stress.reasoning import reasoning
from expunge.stress.relearning import relearning
from expunge.stress.sampling import sampling
from expunge.stress.wording import wording

log = logging.getLogger(__name__)

KINDS: dict[AttackName, Attack] = {
    "relearning": relearning,
    "quantization": quantization,
    "sampling": sampling,
    "wording": wording,
    "reasoning": reasoning,
    "membership": membership,
}
CHANGES: tuple[AttackName, ...] = ("relearning", "quantization")
"""Attacks that change the weights."""
LACKS: dict[AttackName, Callable[[Benchmark], str | None]] = {
    "reasoning": _reasoning.lacks,
    "membership": _membership.lacks,
}
"""Attacks that not every benchmark has the rows for, and the reason why one lacks them."""


def check(names: Sequence[AttackName]) -> None:
    """Raise `UserError` where an attack lacks what it needs, before any model is loaded."""
    if "quantization" in names:
        _quantization.check()


def possible(names: Sequence[AttackName], benchmark: Benchmark) -> list[AttackName]:
    """The attacks that the benchmark has rows for; of each other the log says why.

    Raises `UserError` where that leaves none.
    """
    whys: dict[AttackName, str | None] = {name: LACKS[name](benchmark) if name in LACKS else None for name in names}
    said = "; ".join(f"{name}: {why}" for name, why in whys.items() if why)
    made: list[AttackName] = [name for name, why in whys.items() if why is None]
    if not made:
        raise UserError(f"stress: no attack can be made ({said}); name others: {', '.join(KINDS)}.")
    if said:
        log.warning("attacks left out: %s", said)
    return made


def attacked(victim: Victim, names: Sequence[AttackName], who: str) -> Iterator[tuple[AttackName, list[Outcome]]]:
    """The outcomes of one attack after another on a model that goes by the name `who`.

    Attacks that ask alone, and follow each other, share one copy of the model.
    """
    asked: Victim | None = None
    for name in names:
        log.info("%s: %s", who, name)
        asked = None if name in CHANGES else asked or replace(victim, load=cache(victim.load))
        yield name, KINDS[name](asked or victim)
