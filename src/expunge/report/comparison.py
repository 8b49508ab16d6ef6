"""Results rows → what may be compared with what, and who does well."""

import json
import math
import re
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import expunge.benchmarks.registry  # noqa: F401  its benchmarks declare their metrics
from expunge.errors import UserError
from expunge.evals.glossary import (
    FORGET_AXES,
    METRICS,
    MISSING,
    RETAIN_AXES,
    declare,
    main_metrics,
    number,
    of_json,
)

ResultRow = dict[str, Any]
EntryRole = Literal["target", "retrained", "method"]
ROLES: tuple[EntryRole, ...] = ("target", "retrained", "method")

KEEP, COLLAPSE = 0.8, 0.5
"""Shares of the target's retain metric: from .8 on the rest was kept, under .5 the model has collapsed."""
GENERATED = "retain_rouge_l_recall"
"""The retain metric of generated answers, which ranks methods where it is there: a likely answer may never be said."""
LEVEL = 0.05
"""A forget quality from here on: the KS test cannot tell the model from the retrained one."""
BROKEN = 0.2
"""A degeneration worth a sentence."""


@dataclass(frozen=True)
class Entry:
    """One model of a comparison: a results row per seed, and the directory that each came from."""

    label: str
    runs: tuple[ResultRow, ...]
    directories: tuple[Path, ...]

    @property
    def directory(self) -> Path:
        return self.directories[0]

    @property
    def names(self) -> list[str]:
        """Tooltip text of each run: its folder, the model and the seed."""
        pairs = zip(self.runs, self.directories, strict=True)
        return [f"{'/'.join(d.parts[-2:])}: {run['method']}, seed {run['seed']}" for run, d in pairs]

    @property
    def method(self) -> str:
        return self.runs[0]["method"]

    @property
    def role(self) -> EntryRole:
        return role(self.runs[0])

    @property
    def inference(self) -> bool:
        return self.runs[0].get("removal") == "inference"

    def values(self, name: str) -> list[float]:
        return [v for run in self.runs if (v := number(run["metrics"].get(name))) is not None]

    def value(self, name: str) -> float | None:
        """The median over seeds; of p-values on the log scale, where their differences lie."""
        values = self.values(name)
        if name == "forget_quality" and len(values) > 1 and min(values) > 0:
            return math.exp(statistics.median(map(math.log, values)))
        return statistics.median(values) if values else None


@dataclass(frozen=True)
class ReportSection:
    """Everything that may be compared: one benchmark and split, one target and retrained model."""

    name: str
    entries: tuple[Entry, ...]
    directories: tuple[Path, ...]

    @property
    def benchmark(self) -> str:
        return self.name.partition(" · ")[0]

    @property
    def split(self) -> str:
        return self.name.partition(" · ")[2]

    @property
    def methods(self) -> list[Entry]:
        return [e for e in self.entries if e.role == "method"]

    @property
    def seeds(self) -> list[int]:
        return sorted({run["seed"] for entry in self.entries for run in entry.runs})

    @property
    def stopped(self) -> list[str]:
        """For each run with a utility budget, when its training ended, which epoch is kept, and why."""
        return [
            f"{name} {run['stopped']['why']}."
            for entry in self.methods
            for name, run in zip(entry.names, entry.runs, strict=True)
            if run.get("stopped")
        ]

    def goal(self, name: str) -> float | None:
        """The value of a forget metric that answers have which the target can't know."""
        target = self.reference("target")
        values = [v for run in (target.runs if target else ()) if (v := number((run.get("goal") or {}).get(name)))]
        return statistics.median(values) if values else None

    def reference(self, which: EntryRole) -> Entry | None:
        return next((e for e in self.entries if e.role == which), None)

    def axis(self, names: Sequence[str]) -> str | None:
        """The first of these metrics that some method here has."""
        return next((n for n in names if any(e.values(n) for e in self.methods)), None)

    def metrics(self, *groups: str) -> list[str]:
        """The metrics that occur here, known ones first; with `groups`, those of the main table only."""
        names = {name for entry in self.entries for run in entry.runs for name in run["metrics"]}
        if groups:
            return main_metrics(names, *groups)
        return [n for n in METRICS if n in names] + sorted(names - METRICS.keys())

    @property
    def base(self) -> Entry | None:
        """The model that keeping is measured against: the target, else the retrained one."""
        return next((e for r in ROLES[:2] if (e := self.reference(r)) and any(map(e.values, RETAIN_AXES))), None)

    @property
    def keep(self) -> str | None:
        """The metric that says what was kept: generated answers to retain questions where there are some.

        One that is 0 for the target says nothing, and stands only where there is no other.
        """
        names = [n for n in (GENERATED, *RETAIN_AXES) if any(e.values(n) for e in self.methods)]
        return next((n for n in names if self.base and self.base.value(n)), names[0] if names else None)

    def kept(self, entry: Entry) -> float | None:
        """The share of the target's (else the retrained model's) `keep` that is left; None if unknown or 0."""
        keep, base = self.keep, self.base
        before, value = (e.value(keep) if e and keep else None for e in (base, entry))
        return None if not before or value is None else value / before

    def collapsed(self, entry: Entry) -> bool:
        return (share := self.kept(entry)) is not None and share < COLLAPSE

    def broken(self, entry: Entry) -> bool:
        """Whether enough of its forget answers are broken text, and more than of the references', to count."""
        usual = max((e.value("degeneration") or 0.0 for e in self.entries if e.role != "method"), default=0.0)
        return (entry.value("degeneration") or 0.0) >= max(BROKEN, usual + 0.1)

    def score(self, entry: Entry) -> float:
        """Higher has forgotten better: forget quality, else nearness to the retrained model, else least remembered."""
        aim = self.axis(FORGET_AXES)
        value = entry.value(aim) if aim else None
        if aim is None or value is None:
            return -math.inf
        retrained = self.reference("retrained")
        return value if aim == "forget_quality" else -abs(value - ((retrained and retrained.value(aim)) or 0.0))

    def keeps(self, entry: Entry) -> bool:
        """Whether at least `KEEP` is left, by a measured forget metric too."""
        return (self.kept(entry) or 0.0) >= KEEP and self.score(entry) > -math.inf

    def ranked(self) -> list[Entry]:
        """The methods, best first: who changes the weights, keeps the rest, writes whole text, and forgets most.

        In this order; of those that keep too little the one that keeps most comes first. A method that acts at
        inference only stands behind all others, since the weights still hold what it suppresses.
        """

        def rank(entry: Entry) -> tuple[bool, bool, bool, float]:
            keeps, share = self.keeps(entry), self.kept(entry)
            better = self.score(entry) if keeps or share is None else share
            return not entry.inference, keeps, not self.broken(entry), better

        return sorted(self.methods, key=rank, reverse=True)

    def keepers(self) -> list[Entry]:
        """The methods that keep at least `KEEP`, best first."""
        return [e for e in self.ranked() if self.keeps(e)]


def load_results(directory: Path) -> list[ResultRow]:
    """The checked rows of `directory/results.json`; `UserError` names the file, the row and the remedy."""
    path = Path(directory) / "results.json"
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise UserError(f"{directory} has no readable results.json: give the directory of a finished run.") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON ({error}): repeat the command that wrote it.") from None
    if not isinstance(rows, list) or not rows:
        raise UserError(f"{path} must hold a list of at least one row: repeat the command that wrote it.")
    for k, row in enumerate(rows, start=1):
        if problem := _problem(row):
            raise UserError(f"{path}, row {k}: {problem}; repeat the command that wrote it.")
        if "declares" in row:
            declare(*of_json(row["declares"]))
    return rows


def _problem(row: Any) -> str | None:
    if not isinstance(row, dict):
        return f"a row must be an object, got {row!r}"
    for key, kind in {"method": str, "benchmark": str, "split": str, "seed": int, "metrics": dict}.items():
        if not isinstance(row.get(key), kind):
            return f"{key!r} must be {kind.__name__}, got {row[key]!r}" if key in row else f"the key {key!r} is missing"
    if row.get("removal") not in (None, "weights", "inference"):
        return f"'removal' must be 'weights' or 'inference', got {row['removal']!r}"
    steps = row.get("trajectory") or []
    if not isinstance(steps, list) or not all(
        isinstance(s, dict) and isinstance(s.get("metrics"), dict) for s in steps
    ):
        return "'trajectory' must be a list of objects that have 'metrics'"
    if not isinstance(row.get("versions") or {}, dict):
        return f"'versions' must be an object, got {row['versions']!r}"
    if not isinstance(row.get("goal") or {}, dict):
        return f"'goal' must be an object, got {row['goal']!r}"
    if "declares" in row:
        try:
            of_json(row["declares"])
        except ValueError:
            return "'declares' must be an object of 'metrics' and 'axes'"
    costs = {key: row.get(key) for key in ("seconds", "peak_memory_mib")}
    places = {key: step.get(key) for step in steps for key in ("epoch", "step")}
    for numbers in (costs, places, row["metrics"], row.get("goal") or {}, *(s["metrics"] for s in steps)):
        for name, value in numbers.items():
            if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
                return f"{name!r} must be a number or null, got {value!r}"
    return None


def role(row: ResultRow) -> EntryRole:
    return row["method"] if row["method"] in ("target", "retrained") else "method"


def removal(row: ResultRow) -> str:
    return MISSING if role(row) != "method" else row.get("removal") or MISSING


def cost(row: ResultRow) -> tuple[str, str]:
    """Wall time and peak memory (MiB) of a row's training, for people."""
    seconds, memory = number(row.get("seconds")), number(row.get("peak_memory_mib"))
    time = MISSING
    if seconds is not None:
        unit, size = next(u for u in (("h", 3600), ("min", 60), ("s", 1)) if seconds >= 2 * u[1] or u[1] == 1)
        time = f"{seconds / size:.{0 if seconds / size >= 9.95 else 1}f} {unit}"
    return time, MISSING if memory is None else f"{memory:,.0f}"


def versions_used(rows: Iterable[ResultRow]) -> list[tuple[str, list[str]]]:
    """Versions and settings behind the rows: each name and, where rows differ, every value of it."""
    values: dict[str, list[str]] = {}
    for row in rows:
        for name, value in (row.get("versions") or {}).items():
            if str(value) not in values.setdefault(name, []):
                values[name].append(str(value))
    return list(values.items())


def sections(directories: Iterable[Path]) -> list[ReportSection]:
    """The rows of these directories as comparisons; see `compare`."""
    return compare([(Path(d), row) for d in directories for row in load_results(Path(d))])


def compare(loaded: Sequence[tuple[Path, ResultRow]]) -> list[ReportSection]:
    """Rows and their directories sorted: one comparison a benchmark and split, and one a directory where references
    disagree."""
    result = []
    for key in dict.fromkeys((row["benchmark"], row["split"]) for _, row in loaded):
        here = [(d, row) for d, row in loaded if (row["benchmark"], row["split"]) == key]
        paths = list(dict.fromkeys(d for d, _ in here))
        agree = len(paths) == 1 or _references_agree([row for _, row in here])
        for group in [paths] if agree else [[p] for p in paths]:
            name = " · ".join(key if agree else (*key, group[0].name))
            result.append(ReportSection(name, _entries([(d, row) for d, row in here if d in group]), tuple(group)))
    return result


def means(of_splits: Sequence[ReportSection]) -> list[ReportSection]:
    """For every benchmark of several splits, their mean: each method's value (over its seeds) averaged over splits.

    Methods that some split lacks are left out, and so are metrics that a method lacks where others have them. What no
    model has on a split, which asks nothing of the kind, is averaged over the other splits.
    """
    result = []
    for name in dict.fromkeys(section.benchmark for section in of_splits):
        parts = [section for section in of_splits if section.benchmark == name]
        if len(parts) < 2:
            continue
        entries, asked = [], Counter(metric for part in parts for metric in part.metrics())
        for entry in parts[0].entries:
            same = [next((e for e in part.entries if e.label == entry.label), None) for part in parts]
            if any(e is None for e in same):
                continue
            values = {
                metric: [v for e in same if e is not None and (v := e.value(metric)) is not None] for metric in asked
            }
            row = entry.runs[0] | {
                "split": f"mean of {len(parts)}",
                "metrics": {k: statistics.fmean(v) for k, v in values.items() if len(v) == asked[k]},
                "seconds": None,
                "peak_memory_mib": None,
                "stopped": None,
                "goal": None,
            }
            entries.append(Entry(entry.label, (row,), entry.directories[:1]))
        directories = tuple(d for part in parts for d in part.directories)
        result.append(ReportSection(f"{name} · mean of {len(parts)} splits", tuple(entries), directories))
    return result


def _references_agree(rows: Sequence[ResultRow]) -> bool:
    """Whether rows of one reference model and seed say the same, but for what another machine's rounding changes."""
    seen: dict[tuple[str, int], ResultRow] = {}
    for row in (r for r in rows if role(r) != "method"):
        first = seen.setdefault((row["method"], row["seed"]), row)["metrics"]
        for name in (row["metrics"].keys() & first.keys()) - {"forget_quality"}:
            a, b = number(first[name]), number(row["metrics"][name])
            if a is not None and b is not None and not math.isclose(a, b, rel_tol=0.01, abs_tol=0.005):
                return False
    return True


def _entries(rows: Sequence[tuple[Path, ResultRow]]) -> tuple[Entry, ...]:
    """A method's rows are its seeds; labels distinguish rows of the same seed that differ."""
    rows_of: dict[str, list[tuple[Path, ResultRow]]] = {}
    for directory, row in rows:
        mine = rows_of.setdefault(row["method"], [])
        again = [r for _, r in mine if r["seed"] == row["seed"]]
        if not again or (role(row) == "method" and row not in again):
            mine.append((directory, row))
    entries: dict[str, list[tuple[Path, ResultRow]]] = {}
    for method, mine in rows_of.items():
        clash = len({r["seed"] for _, r in mine}) < len(mine)
        for directory, row in mine:
            stem = f"{method} · {directory.name}" if clash and len({d for d, _ in mine}) > 1 else method
            labels = (stem if k == 1 else f"{stem} #{k}" for k in range(1, len(mine) + 1))
            label = next(x for x in labels if row["seed"] not in [r["seed"] for _, r in entries.get(x, [])])
            entries.setdefault(label, []).append((directory, row))
    made = []
    for label, pairs in entries.items():
        pairs.sort(key=lambda pair: pair[1]["seed"])
        made.append(Entry(label, tuple(row for _, row in pairs), tuple(directory for directory, _ in pairs)))
    return tuple(sorted(made, key=lambda e: ROLES.index(e.role)))


def slug(name: str) -> str:
    """The name of a section as an id or as a file's name."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "results"
