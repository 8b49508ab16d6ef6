"""Comparisons → pictures with titles, captions and descriptions.

Knows which metrics go on which axis, where a trajectory begins, and what a reader must be told to read a picture. Knows
nothing of how lines and labels are drawn (`drawing.py`) or where pictures stand on the page.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from expunge.report import drawing, strips
from expunge.report.canvas import FLOOR, Axis
from expunge.report.comparison import KEEP, LEVEL, Entry, Section
from expunge.report.glossary import FORGET_AXES, METRICS, RETAIN_AXES, number, show
from expunge.report.overview import Overview, find


class Figure(NamedTuple):
    """A picture with its title, the same in words for who cannot see it, and sentences on how to read it."""

    name: str
    title: str
    svg: str
    alt: str
    reading: list[str]


def figures(section: Section) -> list[Figure]:
    """The pictures that this comparison's numbers allow: none is drawn without values for both of its axes."""
    return [f for f in (_tradeoff(section), _trajectory(section), _epochs(section)) if f]


def overview(found: Overview) -> Figure:
    """Every split of a benchmark in one picture."""
    methods = {e.label: e.inference for e in found.entries if e.role == "method"}
    columns = []
    for split, (group, name) in zip(found.splits, found.heads, strict=True):
        models = {e.label: [_cell(e, metric) for metric in found.metrics] for e in split.entries}
        columns.append(strips.Column(group, name, models))
    words = [METRICS[name] for name in found.metrics]
    svg = strips.strips(columns, panels=[f"{m.label} ({m.range}); good is {m.good}" for m in words], methods=methods)
    lines = [e.label for e in found.entries if e.role != "method"]
    reading = [
        "Within a column the marks stand in the order of the key.",
        "Solid line: the target, before unlearning." if "target" in lines else "",
        "Dotted line: the retrained model, which never saw the forget set." if "retrained" in lines else "",
        "Filled marks change the weights; hollow marks suppress at inference and leave the weights as they were.",
        "A mark is the median of its seeds, the line through it reaches from the lowest to the highest."
        if any(len(e.runs) > 1 for split in found.splits for e in split.methods)
        else "",
        *_faults(found),
    ]
    *first, last = [m.label for m in words]
    title = f"{_title(', '.join(first))} and {last} on every split"
    ends = "; ".join(f"{e.label} {' / '.join(found.cell(found.mean, e.label))}" for e in found.entries)
    alt = f"{title}. Means over {len(found.splits)} splits: {ends}."
    return Figure("overview", title, svg, alt, [r for r in reading if r])


def _cell(entry: Entry, metric: str) -> strips.Cell | None:
    value, values = entry.value(metric), entry.values(metric)
    if value is None:
        return None
    return strips.Cell(value, min(values), max(values), f"{METRICS[metric].label} {show(metric, value)}")


def _faults(found: Overview) -> Iterator[str]:
    """What two metrics don't show: a model that lost the rest, and forgetting that is broken text."""
    lost, garbled = "less than half of the rest is left", "a fifth or more of the forget answers is broken text"
    for which, words in ((Section.collapsed, lost), (Section.broken, garbled)):
        splits = {
            e.label: sum(which(split, own) for split in found.splits if (own := find(split, e.label)))
            for e in found.entries
            if e.role == "method"
        }
        who = ", ".join(f"{label} {times}" for label, times in splits.items() if times)
        if who:
            yield f"Splits, of {len(found.splits)}, where {words}: {who}."


def _tradeoff(section: Section) -> Figure | None:
    keep, aim = section.axis(RETAIN_AXES), section.axis(FORGET_AXES)
    if keep is None or aim is None:
        return None
    points = []
    for entry in section.entries:
        x, y = entry.value(keep), entry.value(aim)
        if x is None or y is None:
            continue
        pairs = [(number(r["metrics"].get(keep)), number(r["metrics"].get(aim))) for r in entry.runs]
        seeds = tuple((a, b) for a, b in pairs if a is not None and b is not None) if len(pairs) > 1 else ()
        points.append(drawing.Point(entry.label, x, y, entry.role, entry.inference, seeds))
    if not any(p.role == "method" for p in points):
        return None
    target, retrained = section.reference("target"), section.reference("retrained")
    base = target.value(keep) if target else None
    by_quality = aim == "forget_quality"
    goal = LEVEL if by_quality else (retrained.value(aim) if retrained else None)
    svg = drawing.tradeoff(
        points,
        x=_axis(keep),
        y=_axis(aim),
        methods=[e.label for e in section.methods],
        level=goal,
        keep=KEEP * base if base else None,
        level_label="p = .05" if by_quality else "retrained",
    )
    low = [p.name for p in points if by_quality and p.y <= FLOOR]
    corner = f"The tinted corner holds the models that keep 80\u00a0% of the target's {METRICS[keep].label}"
    corner += " and that the KS test cannot tell from the retrained model." if by_quality else " and forget enough."
    reading = [
        "Right: more of the rest is kept. " + ("Up: more is forgotten." if by_quality else "Down: more is forgotten."),
        corner if base and goal is not None else "",
        "Filled marks change the weights; hollow marks suppress at inference and leave the weights as they were.",
        "Small marks are single seeds, the large one their median." if any(p.seeds for p in points) else "",
        f"Below 10⁻³⁰, drawn there: {', '.join(low)}." if low else "",
    ]
    title = f"{METRICS[aim].label} against {METRICS[keep].label}"
    alt = "; ".join(
        f"{p.name}: {METRICS[keep].label} {show(keep, p.x)}, {METRICS[aim].label} {show(aim, p.y)}" for p in points
    )
    return Figure("tradeoff", _title(title), svg, f"{title}. {alt}.", [r for r in reading if r])


def _trajectory(section: Section) -> Figure | None:
    steps = {e.label: _steps(e) for e in section.methods}
    keep = _covered(("model_utility", *RETAIN_AXES), steps.values())
    aim = _covered(FORGET_AXES, steps.values())
    if keep is None or aim is None:
        return None
    references = []
    for entry in (section.reference("target"), section.reference("retrained")):
        x, y = (entry.value(keep), entry.value(aim)) if entry else (None, None)
        if entry and x is not None and y is not None:
            references.append(drawing.Point(entry.label, x, y, entry.role))
    lines, turned = [], []
    for entry in section.methods:
        way = [
            (at, x, y)
            for at, m in steps[entry.label]
            if (x := number(m.get(keep))) is not None and (y := number(m.get(aim))) is not None
        ]
        if not way:
            continue
        start = [(p.x, p.y) for p in references if p.role == "target" and way[0][0] > 0 and not entry.inference]
        lines.append(drawing.Line(entry.label, (*start, *((x, y) for _, x, y in way)), entry.inference))
        top = max(way, key=lambda p: p[2])
        if aim == "forget_quality" and top[2] >= LEVEL > way[-1][2]:
            turned.append(
                f"{entry.label} ({_unit(section)} {top[0]:g}: {show(aim, top[2])}, end: {show(aim, way[-1][2])})"
            )
    if not lines:
        return None
    svg = drawing.trajectory(
        lines,
        references,
        x=_axis(keep),
        y=_axis(aim),
        methods=[e.label for e in section.methods],
        level=LEVEL if aim == "forget_quality" else None,
    )
    reading = [
        f"Every dot is an evaluation after one more {_unit(section)}; the named mark is the end.",
        "Lines begin at the target, the model before unlearning."
        if references and references[0].role == "target"
        else "",
        f"Passed .05 on the way and fell below it again: {', '.join(turned)}." if turned else "",
        f"Seed {section.seeds[0]}; the other seeds are in results.json." if len(section.seeds) > 1 else "",
    ]
    title = f"Trajectory: {METRICS[aim].label} against {METRICS[keep].label}"
    alt = "; ".join(
        f"{line.name} ends at {show(keep, line.points[-1][0])}, {show(aim, line.points[-1][1])}" for line in lines
    )
    return Figure("trajectory", title, svg, f"{title}. {alt}.", [r for r in reading if r])


def _epochs(section: Section) -> Figure | None:
    steps = {e.label: _steps(e) for e in section.methods}
    forget, retain = "forget_probability", "retain_probability"
    target, retrained = section.reference("target"), section.reference("retrained")
    panels = []
    for entry in section.methods:
        curves = []
        for name in (forget, retain):
            curve = [(at, v) for at, m in steps[entry.label] if (v := number(m.get(name))) is not None]
            start = target.value(name) if target and curve and curve[0][0] > 0 and not entry.inference else None
            curves.append(tuple([(0.0, start), *curve] if start is not None else curve))
        if any(curves):
            panels.append(drawing.Panel(entry.label, *curves))
    if not panels:
        return None
    words = METRICS[forget].label, METRICS[retain].label
    svg = drawing.epochs(
        panels,
        unit=_unit(section),
        forget=words[0],
        retain=words[1],
        goal=retrained.value(forget) if retrained else None,
    )
    reading = ["The solid line should fall to the dotted one and stay there; the dashed line should stay up."]
    reading += [] if retrained else ["Without a retrained model it is not known how far the solid line should fall."]
    title = _title(f"{words[0]} and {words[1]}, {_unit(section)} by {_unit(section)}")
    ends = "; ".join(f"{p.name} ends at {show('', (p.forget or p.retain)[-1][1])}" for p in panels)
    return Figure("epochs", title, svg, f"{title}. {ends}.", reading)


def _steps(entry: Entry) -> list[tuple[float, dict[str, float | None]]]:
    """(epoch, metrics) of the first seed that has a trajectory, in order; steps count where epochs are not given."""
    steps = next((r["trajectory"] for r in entry.runs if r.get("trajectory")), [])
    found = [(s.get("epoch") if s.get("epoch") is not None else s.get("step"), s["metrics"]) for s in steps]
    return sorted(((float(at), m) for at, m in found if at is not None), key=lambda pair: pair[0])


def _unit(section: Section) -> str:
    steps = [s for e in section.methods for r in e.runs for s in r.get("trajectory") or []]
    return "epoch" if any(s.get("epoch") is not None for s in steps) else "step"


def _axis(name: str) -> Axis:
    metric = METRICS[name]
    if name == "forget_quality":
        return Axis(f"{metric.label} (p-value; log scale, stretched towards 1)", log=True)
    return Axis(metric.label, best="low" if metric.hint == "↓" else "high")


def _title(text: str) -> str:
    return text[0].upper() + text[1:]


def _covered(names: Sequence[str], ways: Iterable[Sequence[tuple[float, dict[str, Any]]]]) -> str | None:
    """The first metric that every evaluation on the way has, else the first that any has."""
    evaluations = [m for way in ways for _, m in way]
    having = {n: sum(number(m.get(n)) is not None for m in evaluations) for n in names}
    return next((n for n in names if 0 < having[n] == len(evaluations)), next((n for n in names if having[n]), None))
