"""The answers of a verdict, as data: is it forgotten, what else was damaged, is it gone from the weights, how sure.

Their words stand in `wording`, what to do next in `advice`. Nothing here is a statement beyond the numbers of
`results.json` and of the records behind it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any, Literal

from expunge.evals.glossary import FORGET_AXES
from expunge.report.comparison import Entry, ReportSection
from expunge.report.harm import Damage, damage
from expunge.report.interval import half_width
from expunge.report.records import Reader, nothing, score
from expunge.report.stress import returned
from expunge.stress.summary import Returned

DONE, UNDONE = 0.1, 0.9
"""Shares of the way from the target to the goal that are left: up to the one it is forgotten, from the other not."""
HALF = 0.5
"""The same of a model that is measured as it is, from knowing all; and of the target's own where no goal is known."""
KNOWN = 0.3
"""A forget metric from which on a model plainly knows the answers."""
GAP = 0.1
"""Least distance between the target and the retrained model by which forgetting can be seen."""
STAYS, BACK = 0.2, 0.5
"""Shares of what the target knew that an attack finds: up to the one it stays gone, from the other it comes back."""
GARBLED = 0.5
"""Share of broken text from which on answers say nothing about what is known."""
FEWEST = 8
"""Questions that an interval takes."""
CLOSE, ROUGH = 0.05, 0.15
"""Half of an interval: up to the one a number is known well, up to the other roughly."""

State = Literal["yes", "partly", "no", "cannot be told"]
Against = Literal["retrained", "goal", "target", "nothing"]
Why = Literal["", "suppressed", "broken text", "never known", "how low is not known", "not measured"]


@dataclass(frozen=True)
class Measure:
    """A forget metric of a model: its `value`, that of the model `before` unlearning, and the `goal` it is to reach."""

    name: str
    value: float
    before: float | None = None
    goal: float | None = None

    @property
    def left(self) -> float:
        """The share of the way to the goal that is still to go: 0 at the goal or past it, 1 at the target."""
        start, end = 1.0 if self.before is None else self.before, self.goal or 0.0
        return max(0.0, (self.value - end) / (start - end)) if start > end else float(self.value > end)

    @property
    def past(self) -> bool:
        """Whether it lies so far below the goal that the removal itself shows."""
        return self.goal is not None and self.before is not None and self.value < self.goal - DONE * self.before


@dataclass(frozen=True)
class Forgotten:
    """Whether it is forgotten, what that is held against, the metrics that say so, and why it can't be said."""

    state: State
    against: Against
    measures: tuple[Measure, ...]
    why: Why = ""


@dataclass(frozen=True)
class Returns:
    """Whether what is forgotten would come back: what each attack finds, and the worst of them."""

    state: Literal["not tested", "yes", "partly", "no", "cannot be told"] = "not tested"
    attacks: tuple[Returned, ...] = ()

    @property
    def worst(self) -> Returned | None:
        return max(self.attacks, key=lambda each: each.after, default=None)


@dataclass(frozen=True)
class Certainty:
    """How well the numbers are known: forget questions, runs, and a 95 % interval of the metric `name` over both."""

    state: Literal["well", "roughly", "poorly", "not known"]
    questions: int | None
    seeds: int
    name: str | None = None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Judgement:
    """The answers about one model. `unlearned`: whether anything was to be forgotten, or a model measured as it is."""

    label: str
    unlearned: bool
    forgotten: Forgotten
    damage: Damage
    removal: Literal["weights", "inference", "not known"]
    returns: Returns
    certainty: Certainty


def judge(section: ReportSection, entry: Entry, records: Reader = nothing) -> Judgement:
    """The answers about a model of a comparison; `records` are those behind its numbers."""
    unlearned = entry.role == "method"
    kind = entry.runs[0].get("removal")
    return Judgement(
        entry.label,
        unlearned,
        forgotten(section, entry),
        damage(section, entry, records),
        kind if unlearned and kind is not None else "not known",
        would_return(section, entry),
        certainty(section, entry, records),
    )


def forgotten(section: ReportSection, entry: Entry) -> Forgotten:
    """Held against the retrained model, else what the target can't know, else the target alone."""
    measures = _measures(section, entry)
    if not measures:
        return Forgotten("cannot be told", "nothing", (), "not measured")
    against = _against(section, measures, entry)
    if entry.role == "method" and _never_known(section, measures, against):
        return Forgotten("cannot be told", against, tuple(measures), "never known")
    if (entry.value("degeneration") or 0.0) >= GARBLED and section.broken(entry):
        return Forgotten("cannot be told", against, tuple(measures), "broken text")
    if entry.inference:
        return Forgotten("no", against, tuple(measures), "suppressed")
    told = [m for m in measures if against != "retrained" or _tells(m)]
    state = _state(told, against, unlearned=entry.role == "method")
    return Forgotten(state, against, tuple(measures), "how low is not known" if state == "cannot be told" else "")


def would_return(section: ReportSection, entry: Entry) -> Returns:
    """Held against models that never knew: an attack teaches these, too, so that without one it can't be told."""
    found = Returns(attacks=tuple(returned(section, entry)))
    if found.worst is None:
        return Returns()
    share = found.worst.after
    state: Any = "yes" if share >= BACK else "partly" if share > STAYS else "no"
    return replace(found, state=state if found.worst.control else "cannot be told")


def certainty(section: ReportSection, entry: Entry, records: Reader = nothing) -> Certainty:
    """An interval over questions (Student's t is the normal one at these numbers), or else the range over seeds."""
    seeds = len(entry.runs)
    name, values = _by_question(section, entry, records)
    if name is None:
        return Certainty("not known", None, seeds)
    if len(values) < FEWEST:
        return Certainty("poorly" if values else "not known", len(values) or None, seeds, name)
    half = half_width(values)
    over = entry.values(name) or [fmean(values)]
    low, high = max(0.0, min(fmean(values) - half, *over)), min(1.0, max(fmean(values) + half, *over))
    wide = (high - low) / 2
    state = "well" if wide <= CLOSE and seeds > 1 else "roughly" if wide <= ROUGH else "poorly"
    return Certainty(state, len(values), seeds, name, low, high)


def _measures(section: ReportSection, entry: Entry) -> list[Measure]:
    """Generated answers first, then how likely they are; what a benchmark declares where it has neither."""
    usual = ["forget_rouge_l_recall", "forget_probability"]
    names = [n for n in usual if entry.value(n) is not None]
    names = names or [n for n in FORGET_AXES if n not in (*usual, "forget_quality") and entry.value(n) is not None]
    target, retrained = section.reference("target"), section.reference("retrained")
    found = []
    for name in names:
        value, before = entry.value(name), target.value(name) if target else None
        goal = retrained.value(name) if retrained else section.goal(name)
        if value is not None:
            found.append(Measure(name, value, before if entry.role == "method" else None, goal))
    return found


def _against(section: ReportSection, measures: Sequence[Measure], entry: Entry) -> Against:
    if any(m.goal is not None for m in measures):
        return "retrained" if section.reference("retrained") else "goal"
    return "target" if any(m.before is not None for m in measures) or entry.role == "target" else "nothing"


def _tells(measure: Measure) -> bool:
    """Whether the retrained model does so much worse than the target that forgetting can be seen."""
    return measure.goal is not None and (measure.before is None or measure.before - measure.goal >= GAP)


def _never_known(section: ReportSection, measures: Sequence[Measure], against: Against) -> bool:
    before = [m for m in measures if m.before is not None]
    if against == "retrained":
        return bool(before) and not any(map(_tells, before))
    return bool(before) and all((m.before or 0.0) < max(KNOWN, m.goal or 0.0) for m in before)


def _state(measures: Sequence[Measure], against: Against, *, unlearned: bool) -> State:
    """The answer where nothing stands in its way; `unlearned` is false of a model that is measured as it is."""
    lefts = [m.left for m in measures]
    undone = UNDONE if unlearned else HALF
    if not measures or against == "nothing":
        return "cannot be told"
    if against == "retrained":
        return "yes" if max(lefts) <= DONE else "no" if min(lefts) >= undone else "partly"
    if against == "goal":
        # The goal is a probability. What a model says without knowing is not known, only that it must say less.
        likely = [m for m in measures if m.goal is not None]
        said = [m for m in measures if m.goal is None and (m.before or 0.0) >= HALF]
        reached = all(m.value <= (m.goal or 0.0) for m in likely) and all(m.left < UNDONE for m in said)
        return "yes" if reached else "no" if min(m.left for m in likely) >= undone else "partly"
    if not unlearned:
        return (
            "no" if any(m.value >= KNOWN and m.name != "forget_rouge_l_recall" for m in measures) else "cannot be told"
        )
    return "no" if min(lefts) >= UNDONE else "partly" if max(lefts) >= HALF else "cannot be told"


def _by_question(section: ReportSection, entry: Entry, records: Reader) -> tuple[str | None, list[float]]:
    """The first forget metric that was measured, and its value for each question."""
    for measure in _measures(section, entry):
        name = measure.name
        sets = {"forget_all": ("forget_fb", "forget_qa", "forget_aa")}.get(name, (name,))
        sets = ("forget",) if name in ("forget_rouge_l_recall", "forget_probability") else sets
        rows = [row for part in sets for row in records(entry, part).values()]
        values = [row.get("probability") if name == "forget_probability" else score(row) for row in rows]
        return name, [float(v) for v in values if v is not None]
    return None, []
