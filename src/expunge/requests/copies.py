"""Near-copies: texts that share most of their three-word runs with a text that is known, in whole or in a part.

The known texts are few and those searched are many, so one table of the known runs and one pass over the others compare
every pair exactly.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from expunge.data.facts import facts
from expunge.data.words import words

RUN = 3
FEWEST = 6
"""Runs that a text has at least: of fewer, all may stand elsewhere by chance."""
PIECE, STEP = 60, 30
"""Words of a piece of a long text, and from one piece to the next."""


@dataclass(frozen=True)
class Copy:
    """The known text that is most like another: its number, the share of runs, and whether the other has own names.

    `share` is the number of common runs over that of the shorter text (the overlap coefficient), in [0, 1]. `others`
    says whether the text has names or numbers that the known one lacks: it may be the same form, about somebody else.
    """

    known: int
    share: float
    others: bool


class Copies:
    """Looks for near-copies of some known texts. Use when these are few; pieces of long texts count as texts."""

    def __init__(self, known: Sequence[str]) -> None:
        self._known = known
        self._pieces = [(i, runs) for i, text in enumerate(known) for runs in _pieces(text)]
        self._where: dict[tuple[str, ...], list[int]] = {}
        for k, (_, runs) in enumerate(self._pieces):
            for run in runs:
                self._where.setdefault(run, []).append(k)

    def of(self, text: str, least: float) -> Copy | None:
        """The best near-copy with a share of at least `least`, or `None`."""
        found, share = None, least
        for runs in _pieces(text) if self._where else ():
            common = Counter(k for run in runs for k in self._where.get(run, ()))
            for k, count in common.items():
                i, theirs = self._pieces[k]
                if (now := count / min(len(runs), len(theirs))) >= share:
                    found, share = i, now
        return None if found is None else Copy(found, share, _has_others(text, self._known[found]))


def _pieces(text: str) -> Iterator[set[tuple[str, ...]]]:
    """The runs of a text, of a long one piece by piece."""
    said = words(text)
    starts = range(0, max(1, len(said) - STEP), STEP) if len(said) > PIECE + STEP else (0,)
    for start in starts:
        piece = said[start : start + PIECE] if len(said) > PIECE + STEP else said
        runs = set(zip(*(piece[i:] for i in range(RUN)), strict=False))
        if len(runs) >= FEWEST:
            yield runs


def _has_others(text: str, known: str) -> bool:
    there = set(words(known))
    return any(not there.issuperset(words(fact.text)) for fact in facts("", text))
