"""Damage beside what was to be forgotten: sets of questions, and the rows that got worse."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import zip_longest
from statistics import fmean
from typing import Literal

from expunge.evals.glossary import RETAIN_AXES
from expunge.report.comparison import COLLAPSE, KEEP, Entry, ReportSection, ResultRow
from expunge.report.interval import half_width
from expunge.report.records import Reader, score

INTACT = 0.95
"""Share of the target's answers from which on a set counts as whole."""
WORSE = 0.3
"""Share of an answer's words by which one row got clearly worse."""
GARBLED = 0.1
"""Broken text beyond the target's own that counts as a little; `ReportSection.broken` counts as much."""

GENERAL = "general"
LIKELIHOODS = ("retain_probability", "model_utility")
"""Metrics of what should stay that stand in only where no answers were generated."""
ENDING = "_rouge_l_recall"
PROBES = {"neighbor_all": ("neighbor_fb", "neighbor_qa")}
"""The sets of questions behind a metric that is a mean over several."""

Extent = Literal["none", "little", "much", "most", "not known"]
EXTENTS: tuple[Extent, ...] = ("none", "little", "much", "most")


@dataclass(frozen=True)
class Worse:
    """A question that should stay, what was answered before and after, and the share of right words in either."""

    index: int
    of: str
    before: ResultRow
    after: ResultRow

    @property
    def drop(self) -> float:
        return (score(self.before) or 0.0) - (score(self.after) or 0.0)


@dataclass(frozen=True)
class Kept:
    """A set of questions that should stay: its metric before and after.

    asked: questions with a generated answer; None where no records say so. rows: those that got clearly worse, worst
    first. by_chance: whether the difference is one that other questions might not show.
    """

    of: str
    metric: str
    before: float
    after: float
    asked: int | None = None
    rows: tuple[Worse, ...] = field(default=(), repr=False)
    by_chance: bool = False

    @property
    def extent(self) -> Extent:
        """The loss in a word; `not known` where the metric was 0 before."""
        if self.before <= 0:
            return "not known"
        share = self.after / self.before
        if share >= INTACT or self.by_chance:
            return "none"
        return "little" if share >= KEEP else "much" if share >= COLLAPSE else "most"


@dataclass(frozen=True)
class Damage:
    """The whole damage in a word, each set of questions, and the share of broken answers after and before."""

    state: Extent
    kept: tuple[Kept, ...]
    broken: float | None = None
    usual: float | None = None

    @property
    def rows(self) -> list[Worse]:
        """The rows that got clearly worse, worst first."""
        return sorted((row for kept in self.kept for row in kept.rows), key=lambda row: (-row.drop, row.of, row.index))

    def some(self, most: int) -> list[Worse]:
        """The worst rows of every set, as many of each as there is room for, worst first."""
        sets = [kept.rows for kept in self.kept if kept.rows]
        in_turn = [row for place in zip_longest(*sets) for row in place if row is not None]
        return sorted(in_turn[:most], key=lambda row: (-row.drop, row.of, row.index))


def damage(section: ReportSection, entry: Entry, records: Reader) -> Damage:
    """Every set of questions that should stay beside the target's answers, and broken text beside the target's."""
    target = section.reference("target")
    broken = entry.value("degeneration")
    usual = target.value("degeneration") if target else None
    if entry.role != "method" or target is None:
        return Damage("not known", (), broken, usual)
    kept = tuple(_kept(section, entry, target, records))
    extents: list[Extent] = [k.extent for k in kept if k.extent != "not known"]
    if section.broken(entry):
        extents.append("much")
    elif broken is not None and broken - (usual or 0.0) >= GARBLED:
        extents.append("little")
    return Damage(max(extents, key=EXTENTS.index) if extents else "not known", kept, broken, usual)


def _kept(section: ReportSection, entry: Entry, target: Entry, records: Reader) -> Iterator[Kept]:
    names = [n for n in section.metrics() if n.endswith(ENDING) and not n.startswith("forget")]
    names += [n for n in RETAIN_AXES if n not in (*LIKELIHOODS, *names)]  # a benchmark's own
    names = sorted(names, key=lambda name: name != f"retain{ENDING}")
    names = [n for n in names if entry.values(n) and target.values(n)] or [section.keep or ""]
    for name in [*names, GENERAL]:
        before, after = target.value(name), entry.value(name)
        if before is None or after is None:
            continue
        of = name.removesuffix(ENDING).removesuffix("_probability")
        pairs = [
            Worse(i, part, was, now)
            for part in PROBES.get(of, (of,))
            for was, now in _pairs(target, entry, part, records)
            if (i := int(now["index"])) >= 0
        ]
        rows = sorted((p for p in pairs if p.drop >= WORSE), key=lambda p: -p.drop)
        yield Kept(of, name, before, after, len(pairs) or None, tuple(rows), _by_chance([p.drop for p in pairs]))


def _pairs(target: Entry, entry: Entry, of: str, records: Reader) -> Iterator[tuple[ResultRow, ResultRow]]:
    """The records of the same question before and after, where both answers were generated."""
    before, after = records(target, of), records(entry, of)
    for index in sorted(before.keys() & after.keys()):
        if score(before[index]) is not None and score(after[index]) is not None:
            yield before[index], after[index]


def _by_chance(drops: list[float]) -> bool:
    """Whether a mean of as many such differences may as well be none: its 95 % interval holds 0."""
    if len(drops) < 2:
        return False
    return fmean(drops) <= half_width(drops)
