"""The attacks by name."""

import logging
from collections.abc import Iterator, Sequence

from expunge.stress import quantization as _quantization
from expunge.stress.attack import Attack, Victim
from expunge.stress.options import AttackName
from expunge.stress.outcome import Outcome
from expunge.stress.quantization import quantization
from expunge.stress.relearning import relearning
from expunge.stress.sampling import sampling
from expunge.stress.wording import wording

log = logging.getLogger(__name__)

KINDS: dict[AttackName, Attack] = {
    "relearning": relearning,
    "quantization": quantization,
    "sampling": sampling,
    "wording": wording,
}


def check(names: Sequence[AttackName]) -> None:
    """Raise `UserError` where an attack lacks what it needs, before any model is loaded."""
    if "quantization" in names:
        _quantization.check()


def attacked(victim: Victim, names: Sequence[AttackName], who: str) -> Iterator[tuple[AttackName, list[Outcome]]]:
    """The outcomes of one attack after another on a model that goes by the name `who`."""
    for name in names:
        log.info("%s: %s", who, name)
        yield name, KINDS[name](victim)
