"""Checks before training: is there anything to forget, does it also stand in retain, how long is it."""

import json
import math
import statistics
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from expunge.data.benchmark import Row
from expunge.data.conversation import RENDERED, said
from expunge.data.dialects import PREFERRED
from expunge.data.encode import Encoded, place
from expunge.data.words import caseless, words
from expunge.errors import UserError

SHINGLE_WORDS = 3
"""Words a shingle. With three, one changed word in a row of thirty leaves a similarity of .8; with five, of .67."""


@dataclass(frozen=True, slots=True)
class NearDuplicate:
    """A forget row and the retain row that is most like it; `similarity` is 1 for the same words in the same order."""

    forget: int
    retain: int
    similarity: float


@dataclass(frozen=True, slots=True)
class Lengths:
    """How much a set holds, in tokens; `supervised` counts those that the loss sees. `str()` is one line for a log."""

    name: str
    rows: int
    tokens: int
    supervised: int
    shortest: int
    median: int
    longest: int

    def __str__(self) -> str:
        return (
            f"{self.name}: {self.rows:,} rows, {self.tokens:,} tokens of which {self.supervised:,} supervised, "
            f"length {self.shortest} / {self.median} / {self.longest} (min / median / max)"
        )


def check_not_empty(rows: Sequence[Row], name: str = "forget") -> None:
    """Raise `UserError` if the set has no rows."""
    if not rows:
        raise UserError(f"the {name} set has no rows; give at least one.")


def check_disjoint(forget: Sequence[Row], retain: Sequence[Row]) -> None:
    """Raise `UserError` if a forget row also stands in retain, but for case and white space.

    Such a row would be pushed down and pulled up at once. The message gives how many there are and
    the first, by its number: no text is shown.
    """
    in_retain: dict[str, int] = {}
    for i, row in enumerate(retain):
        in_retain.setdefault(canonical(_own(row)), i)
    shared = [(i, in_retain[key]) for i, row in enumerate(forget) if (key := canonical(_own(row))) in in_retain]
    if shared:
        first_forget, first_retain = shared[0]
        raise UserError(
            f"{len(shared)} of {len(forget)} forget rows also stand in retain (the first: forget row {first_forget} = "
            f"retain row {first_retain}); drop them from one of the two."
        )


def check_kept(retain: Sequence[Row], column: str = PREFERRED) -> None:
    """Raise `UserError` for retain rows with a `column` of a preference: it does not say which answer must stay."""
    if (i := next((i for i, row in enumerate(retain) if column in row), None)) is not None:
        raise UserError(
            f"retain: {place(i, retain[i])} has chosen and rejected, of which the rejected answer is what must go; "
            "give what must stay as prompt and completion."
        )


def near_duplicates(forget: Sequence[Row], retain: Sequence[Row], *, threshold: float = 0.8) -> list[NearDuplicate]:
    """For every forget row, the retain row most like it, if their similarity reaches `threshold` (in (0, 1]).

    The similarity is Jaccard's, |A ∩ B| / |A ∪ B|, over the sets of three-word shingles without case and punctuation,
    in every script (`data.words`). The result is exact: the same as comparing every pair, of which only those that can
    reach the threshold are.
    """
    shingles = [_shingles(row) for row in forget]
    where: defaultdict[int, list[int]] = defaultdict(list)
    for i, shingles_of_row in enumerate(shingles):
        for shingle in shingles_of_row:
            where[shingle].append(i)

    best: dict[int, NearDuplicate] = {}
    for j, row in enumerate(retain):
        theirs = _shingles(row)
        known = [shingle for shingle in theirs if shingle in where]
        # A match contains at least ⌈threshold·|theirs|⌉ of these shingles, so it misses at most `spare` of them.
        # Those that no forget row has are missed already; among the spare + 1 rarest others, one must be in the match.
        # (The 1e-9: 0.8 · 35 is 28.000000000000004 in floating point, and must not be rounded up to 29.)
        spare = len(known) - math.ceil(threshold * len(theirs) - 1e-9)
        if spare < 0:
            continue
        known.sort(key=lambda shingle: len(where[shingle]))
        for i in {i for shingle in known[: spare + 1] for i in where[shingle]}:
            common = len(shingles[i] & theirs)
            similarity = common / (len(shingles[i]) + len(theirs) - common)
            if similarity >= threshold and (i not in best or similarity > best[i].similarity):
                best[i] = NearDuplicate(i, j, similarity)
    return [best[i] for i in sorted(best)]


def summarise(name: str, encoded: Sequence[Encoded]) -> Lengths:
    """Count rows and tokens of one set (at least one row)."""
    lengths = [len(sequence) for sequence in encoded]
    return Lengths(
        name=name,
        rows=len(encoded),
        tokens=sum(lengths),
        supervised=sum(sequence.supervised for sequence in encoded),
        shortest=min(lengths),
        median=round(statistics.median(lengths)),
        longest=max(lengths),
    )


def _strings(row: Row) -> Iterator[str]:
    """The texts of a row, in order, without the roles: the same for the same exchange in any format."""
    for name, cell in row.items():
        if name == "labels":
            continue  # of the tokens beside it
        if isinstance(cell, str):
            yield cell
        elif name == "input_ids":
            yield " ".join(map(str, cell))
        elif name in RENDERED:
            yield json.dumps(cell, ensure_ascii=False, sort_keys=True)
        else:
            yield from map(said, cell)


def canonical(row: Row) -> str:
    """The row's words alone: rows that differ by case, white space and how accents are composed are one."""
    return " ".join(caseless(" ".join(_strings(row))).split())


def _own(row: Row) -> Row:
    """The row without the answer that it prefers to its own."""
    return {name: cell for name, cell in row.items() if name != PREFERRED}


def _shingles(row: Row) -> frozenset[int]:
    """Hashes of every run of three words, or of the whole row if it has fewer."""
    text = canonical(_own(row))
    tokens = words(text)
    runs = zip(*(tokens[i:] for i in range(SHINGLE_WORDS)), strict=False)
    return frozenset(map(hash, runs)) or frozenset([hash(text)])
