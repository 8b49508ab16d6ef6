"""Comparisons → pictures with titles, captions and descriptions."""

from collections.abc import Callable, Iterator, Sequence

from expunge.evals.glossary import FORGET_AXES, METRICS, number, show
from expunge.report import course, drawing, strips
from expunge.report.canvas import ALIKE, ALIKE_READING, FLOOR
from expunge.report.comparison import KEEP, LEVEL, Entry, ReportSection
from expunge.report.distance import distance
from expunge.report.overview import Overview, find
from expunge.report.picture import Figure, axis_of, capital, says


def figures(section: ReportSection) -> list[Figure]:
    """The pictures that this comparison's numbers allow: none is drawn without values for both of its axes."""
    return [f for draw in PICTURES.values() if draw is not _utility and (f := draw(section))]


def overview(over_splits: Overview) -> Figure:
    """Every split of a benchmark in one picture."""
    methods = {e.label: e.inference for e in over_splits.entries if e.role == "method"}
    columns = []
    for split, (group, name) in zip(over_splits.splits, over_splits.heads, strict=True):
        models = {e.label: [_cell(e, metric) for metric in over_splits.metrics] for e in split.entries}
        columns.append(strips.Split(group, name, models))
    words = [METRICS[name] for name in over_splits.metrics]
    svg = strips.strips(columns, panels=[f"{m.label} ({m.range}); good is {m.good}" for m in words], methods=methods)
    lines = [e.label for e in over_splits.entries if e.role != "method"]
    reading = [
        "Within a column the marks stand in the order of the key.",
        "Solid line: the target, before unlearning." if "target" in lines else "",
        "Dotted line: the retrained model, which never saw the forget set." if "retrained" in lines else "",
        "Filled marks change the weights; hollow marks suppress at inference and leave the weights as they were.",
        "A mark is the median of its seeds, the line through it reaches from the lowest to the highest."
        if any(len(e.runs) > 1 for split in over_splits.splits for e in split.methods)
        else "",
        *_faults(over_splits),
    ]
    *first, last = [m.label for m in words]
    title = f"{capital(', '.join(first))} and {last} on every split"
    ends = "; ".join(
        f"{e.label} {' / '.join(over_splits.cell(over_splits.mean, e.label))}" for e in over_splits.entries
    )
    alt = f"{title}. Means over {len(over_splits.splits)} splits: {ends}."
    return Figure("overview", title, svg, alt, [r for r in reading if r])


def _cell(entry: Entry, metric: str) -> strips.Estimate | None:
    value, values = entry.value(metric), entry.values(metric)
    if value is None:
        return None
    title = f"{METRICS[metric].label} {show(metric, value)} ({', '.join(entry.names)})"
    return strips.Estimate(value, min(values), max(values), title)


def _faults(over_splits: Overview) -> Iterator[str]:
    """Faults that two metrics don't show: a model that lost the rest, and forgetting that is broken text."""
    lost, garbled = "less than half of the rest is left", "a fifth or more of the forget answers is broken text"
    for which, words in ((ReportSection.collapsed, lost), (ReportSection.broken, garbled)):
        splits = {
            e.label: sum(which(split, entry) for split in over_splits.splits if (entry := find(split, e.label)))
            for e in over_splits.entries
            if e.role == "method"
        }
        who = ", ".join(f"{label} {times}" for label, times in splits.items() if times)
        if who:
            yield f"Splits, of {len(over_splits.splits)}, where {words}: {who}."


def _utility(section: ReportSection) -> Figure | None:
    """The trade-off with model utility on the axis, as TOFU's tables have it."""
    figure = _tradeoff(section, ("model_utility",))
    return figure and figure._replace(name="utility")


def _tradeoff(section: ReportSection, kept: Sequence[str] = ()) -> Figure | None:
    keep, aim = section.axis(kept) if kept else section.keep, section.axis(FORGET_AXES)
    if keep is None or aim is None:
        return None
    points = []
    for entry in section.entries:
        x, y = entry.value(keep), entry.value(aim)
        if x is None or y is None:
            continue
        pairs = [
            (a, b, says(name, **{keep: a, aim: b}))
            for r, name in zip(entry.runs, entry.names, strict=True)
            if (a := number(r["metrics"].get(keep))) is not None and (b := number(r["metrics"].get(aim))) is not None
        ]
        seeds = tuple(pairs) if len(entry.runs) > 1 else ()
        name = f"{entry.label}, median of {len(seeds)} seeds" if seeds else entry.names[0]
        words = says(name, **{keep: x, aim: y})
        points.append(drawing.Point(entry.label, x, y, entry.role, entry.inference, words, seeds))
    if not any(p.role == "method" for p in points):
        return None
    target, retrained = section.reference("target"), section.reference("retrained")
    base = target.value(keep) if target else None
    by_quality = aim == "forget_quality"
    goal = LEVEL if by_quality else (retrained.value(aim) if retrained else None)
    svg = drawing.tradeoff(
        points,
        x=axis_of(keep),
        y=axis_of(aim),
        methods=[e.label for e in section.methods],
        level=goal,
        keep=KEEP * base if base else None,
        level_label=ALIKE if by_quality else "retrained",
    )
    low = [p.name for p in points if by_quality and p.y <= FLOOR]
    corner = f"The tinted corner holds the models that keep 80\u00a0% of the target's {METRICS[keep].label}"
    corner += " and that the KS test cannot tell from the retrained model." if by_quality else " and forget enough."
    reading = [
        "Right: more of the rest is kept. " + ("Up: more is forgotten." if by_quality else "Down: more is forgotten."),
        ALIKE_READING if by_quality else "",
        corner if base and goal is not None else "",
        "Filled marks change the weights; hollow marks suppress at inference and leave the weights as they were.",
        "Small marks are single seeds, the large one their median." if any(p.seeds for p in points) else "",
        f"Below 10⁻³⁰, drawn there: {', '.join(low)}." if low else "",
    ]
    title = f"{METRICS[aim].label} against {METRICS[keep].label}"
    alt = "; ".join(
        f"{p.name}: {METRICS[keep].label} {show(keep, p.x)}, {METRICS[aim].label} {show(aim, p.y)}" for p in points
    )
    return Figure("tradeoff", capital(title), svg, f"{title}. {alt}.", [r for r in reading if r])


PICTURES: dict[str, Callable[[ReportSection], Figure | None]] = {
    "tradeoff": _tradeoff,
    "utility": _utility,
    "trajectory": course.trajectory,
    "efficiency": course.efficiency,
    "epochs": course.epochs,
    "distance": distance,
}
"""Every picture of a comparison; the report shows all of them but `utility`, whose like `tradeoff` is."""
