"""Several splits of one benchmark in one table, after Unilogit's figure 4 (arXiv 2505.06027)."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from expunge.evals.glossary import METRICS, OVERVIEW_AXES, show
from expunge.report.comparison import Entry, ReportSection, means

MOST = 24
"""Splits that a reader can still look at one by one; of more, only the mean says something."""


@dataclass(frozen=True)
class Overview:
    """The splits of a benchmark, their mean, and two or three `metrics`: forget, retain, general ability."""

    splits: tuple[ReportSection, ...]
    mean: ReportSection
    metrics: tuple[str, ...]

    @property
    def benchmark(self) -> str:
        return self.mean.benchmark

    @property
    def title(self) -> str:
        return f"{self.benchmark} · every split"

    @property
    def entries(self) -> list[Entry]:
        """Every model once, references first, from the first split that has it."""
        entries = {e.label: e for split in reversed(self.splits) for e in reversed(split.entries)}
        order = dict.fromkeys(e.label for split in self.splits for e in split.entries)
        return sorted((entries[label] for label in order), key=lambda e: e.role == "method")

    @property
    def heads(self) -> list[tuple[str, str]]:
        """(group, name) of every split: `seller0-small` is `small` of `seller0` if all groups have the same names."""
        parts = [(group, name) for group, _, name in (split.split.rpartition("-") for split in self.splits)]
        first, *others = ([name for _, name in same] for _, same in groupby(parts, key=lambda part: part[0]))
        if all(group for group, _ in parts) and others and len(first) > 1 and all(names == first for names in others):
            return parts
        return [("", split.split) for split in self.splits]

    def cell(self, split: ReportSection, label: str) -> list[str]:
        """The metrics of one model on one split (or the mean), as people write them."""
        entry = find(split, label)
        return [show(name, entry.value(name) if entry else None) for name in self.metrics]

    @property
    def legend(self) -> list[str]:
        """The kind of number in a cell."""
        return [f"{METRICS[name].label} {METRICS[name].hint}" for name in self.metrics]


def overviews(sections: Sequence[ReportSection]) -> list[Overview]:
    """One for each benchmark of 2 to `MOST` splits where something was forgotten and something else measured."""
    together = []
    for mean in means(sections):
        splits = tuple(section for section in sections if section.benchmark == mean.benchmark)
        forget, *others = (_first(splits, names) for names in OVERVIEW_AXES)
        kept = [name for name in others if name]
        if forget and kept and len(splits) <= MOST:
            together.append(Overview(splits, mean, (forget, *kept)))
    return together


def find(section: ReportSection, label: str) -> Entry | None:
    return next((e for e in section.entries if e.label == label), None)


def _first(splits: Sequence[ReportSection], names: Sequence[str]) -> str | None:
    """The first of the metrics that a method has, unless it is 0 for all: a small model answers no question at all."""
    for name in names:
        measured = any(e.values(name) for split in splits for e in split.methods)
        if measured and any(any(e.values(name)) for split in splits for e in split.entries):
            return name
    return None
