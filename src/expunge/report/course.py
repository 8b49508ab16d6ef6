"""Pictures of the way: what every evaluation between the first and the last training step measured.

Source of the first two: ULD's figures on training stability and efficiency, Ji et al. 2024, arXiv 2406.08607.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from expunge.evals.glossary import FORGET_AXES, METRICS, RETAIN_AXES, number, show
from expunge.report import drawing, panels
from expunge.report.canvas import ALIKE_READING, Axis
from expunge.report.comparison import LEVEL, Entry, ReportSection, ResultRow
from expunge.report.picture import Figure, axis_of, capital, says


class EvaluationPoint(NamedTuple):
    """An evaluation on the way: the epoch (or step), the seconds of training until then, and its metrics."""

    at: float
    seconds: float | None
    metrics: dict[str, float | None]


def steps(entry: Entry) -> list[EvaluationPoint]:
    """Evaluations of the first seed that has a trajectory, in order; steps count where epochs are not given."""
    looks = next((r["trajectory"] for r in entry.runs if r.get("trajectory")), [])
    each = [(s["step"] if s.get("epoch") is None else s["epoch"], s) for s in looks if {"epoch", "step"} & s.keys()]
    return sorted((EvaluationPoint(float(at), s.get("seconds"), s["metrics"]) for at, s in each if at is not None))


def unit(section: ReportSection) -> str:
    """The unit of the evaluations on the way."""
    looks = [s for e in section.methods for r in e.runs for s in r.get("trajectory") or []]
    return "epoch" if any(s.get("epoch") is not None for s in looks) else "step"


def trajectory(section: ReportSection) -> Figure | None:
    """How the retain metric and the forget metric move together from epoch to epoch."""
    ways = {e.label: steps(e) for e in section.methods}
    keep = _covered(("model_utility", *RETAIN_AXES), ways.values())
    aim = _covered(FORGET_AXES, ways.values())
    if keep is None or aim is None:
        return None
    references = []
    for entry in (section.reference("target"), section.reference("retrained")):
        x, y = (entry.value(keep), entry.value(aim)) if entry else (None, None)
        if entry and x is not None and y is not None:
            words = says(entry.names[0], **{keep: x, aim: y})
            references.append(drawing.Point(entry.label, x, y, entry.role, says=words))
    lines, turned = [], []
    for entry in section.methods:
        who = f"{_run(entry)}, {unit(section)}"
        way = [
            (step.at, x, y)
            for step in ways[entry.label]
            if (x := number(step.metrics.get(keep))) is not None and (y := number(step.metrics.get(aim))) is not None
        ]
        if not way:
            continue
        start = [(p.x, p.y, p.says) for p in references if p.role == "target" and way[0][0] > 0 and not entry.inference]
        after = [(x, y, says(f"{who} {at:g}", **{keep: x, aim: y})) for at, x, y in way]
        lines.append(drawing.Curve(entry.label, (*start, *after), entry.inference))
        top = max(way, key=lambda p: p[2])
        if aim == "forget_quality" and top[2] >= LEVEL > way[-1][2]:
            turned.append(
                f"{entry.label} ({unit(section)} {top[0]:g}: {show(aim, top[2])}, end: {show(aim, way[-1][2])})"
            )
    if not lines:
        return None
    svg = drawing.trajectory(
        lines,
        references,
        name="trajectory",
        x=axis_of(keep),
        y=axis_of(aim),
        methods=[e.label for e in section.methods],
        level=LEVEL if aim == "forget_quality" else None,
    )
    reading = [
        ALIKE_READING if aim == "forget_quality" else "",
        f"Every dot is an evaluation on the way, by {unit(section)}; the named mark is the end.",
        "Lines begin at the target, the model before unlearning; an assistant's difference begins elsewhere."
        if references and references[0].role == "target"
        else "",
        f"Passed .05 on the way and fell below it again: {', '.join(turned)}." if turned else "",
        _other_seeds(section),
    ]
    title = f"Trajectory: {METRICS[aim].label} against {METRICS[keep].label}"
    alt = "; ".join(
        f"{line.name} ends at {show(keep, line.points[-1][0])}, {show(aim, line.points[-1][1])}" for line in lines
    )
    return Figure("trajectory", title, svg, f"{title}. {alt}.", [r for r in reading if r])


def efficiency(section: ReportSection) -> Figure | None:
    """Cost of forgetting: the forget metric against training time, as a multiple of ULD's, else of the longest."""
    aim = section.axis(FORGET_AXES)
    timed = [(e, run) for e in section.methods if (run := _timed(e, aim)) is not None]
    if aim is None or len(timed) < 2:
        return None
    standard, run = max(timed, key=lambda pair: (pair[0].method == "uld", pair[1]["seconds"]))
    whole, target = float(run["seconds"]), section.reference("target")
    start = target.value(aim) if target else None
    lines = []
    for entry, run in timed:
        who, end = _run(entry), float(run["seconds"])
        on_the_way = [s for s in steps(entry) if s.seconds is not None and number(s.metrics.get(aim)) is not None]
        # What was spent before the first step of this trajectory: a teacher, for the distilled ULD.
        before = max(0.0, end - max((s.seconds or 0.0 for s in on_the_way), default=end))
        way = [
            (seconds / whole, value, says(f"{who}, {unit(section)} {s.at:g}, {seconds:.0f} s", **{aim: value}))
            for s in on_the_way
            if (seconds := before + (s.seconds or 0.0)) < 0.999 * end
            and (value := number(s.metrics.get(aim))) is not None
        ]
        if way and start is not None and target is not None and not entry.inference:
            way.insert(0, (0.0, start, says(target.names[0], **{aim: start})))
        last = run["metrics"][aim]
        way.append((end / whole, last, says(f"{who}, the end, {end:.0f} s", **{aim: last})))
        lines.append(drawing.Curve(entry.label, tuple(way), entry.inference))
    svg = drawing.trajectory(
        lines,
        [],
        name="efficiency",
        x=Axis(f"training time ({standard.label} = 1)", best="low"),
        y=axis_of(aim),
        methods=[e.label for e in section.methods],
        level=LEVEL if aim == "forget_quality" else None,
    )
    reading = [
        f"Left: less training, evaluation apart; {standard.label} took {whole:,.0f} s. "
        + ("Up: more is forgotten." if axis_of(aim).best == "high" else "Down: more is forgotten."),
        "Dots on a line are evaluations on the way, the named mark is the end." if any(
            len(line.points) > 1 for line in lines
        ) else "",
        "What it costs the rest is not seen here: read it beside the trade-off.",
        _other_seeds(section),
    ]  # fmt: skip
    title = f"Efficiency: {METRICS[aim].label} against training time"
    ends = "; ".join(f"{line.name} {line.points[-1][0]:.2f} times, {show(aim, line.points[-1][1])}" for line in lines)
    return Figure("efficiency", title, svg, f"{title}. {ends}.", [r for r in reading if r])


def epochs(section: ReportSection) -> Figure | None:
    """Small multiples: forgotten and kept, epoch by epoch."""
    ways = {e.label: steps(e) for e in section.methods}
    forget, retain = "forget_probability", "retain_probability"
    target, retrained = section.reference("target"), section.reference("retrained")
    drawn = []
    for entry in section.methods:
        curves = []
        for name in (forget, retain):
            curve = [(s.at, v) for s in ways[entry.label] if (v := number(s.metrics.get(name))) is not None]
            start = target.value(name) if target and curve and curve[0][0] > 0 and not entry.inference else None
            curves.append(tuple([(0.0, start), *curve] if start is not None else curve))
        if any(curves):
            drawn.append(panels.Panel(entry.label, *curves, says=_run(entry)))
    if not drawn:
        return None
    words = METRICS[forget].label, METRICS[retain].label
    svg = panels.epochs(
        drawn,
        unit=unit(section),
        forget=words[0],
        retain=words[1],
        goal=retrained.value(forget) if retrained else None,
    )
    reading = ["The solid line should fall to the dotted one and stay there; the dashed line should stay up."]
    reading += [] if retrained else ["Without a retrained model it is not known how far the solid line should fall."]
    title = capital(f"{words[0]} and {words[1]}, {unit(section)} by {unit(section)}")
    ends = "; ".join(f"{p.name} ends at {show('', (p.forget or p.retain)[-1][1])}" for p in drawn)
    return Figure("epochs", title, svg, f"{title}. {ends}.", reading)


def _timed(entry: Entry, aim: str | None) -> ResultRow | None:
    """The first run whose training took time and whose end was measured."""
    return next((r for r in entry.runs if number(r.get("seconds")) and number(r["metrics"].get(aim)) is not None), None)


def _run(entry: Entry) -> str:
    """The run whose trajectory is drawn."""
    names = zip(entry.runs, entry.names, strict=True)
    return next((name for run, name in names if run.get("trajectory")), entry.names[0])


def _other_seeds(section: ReportSection) -> str:
    return f"Seed {section.seeds[0]}; the other seeds are in results.json." if len(section.seeds) > 1 else ""


def _covered(names: Sequence[str], ways: Iterable[Sequence[EvaluationPoint]]) -> str | None:
    """The first metric that every evaluation on the way has, else the first that any has."""
    evaluations: list[dict[str, Any]] = [step.metrics for way in ways for step in way]
    having = {n: sum(number(m.get(n)) is not None for m in evaluations) for n in names}
    return next((n for n in names if 0 < having[n] == len(evaluations)), next((n for n in names if having[n]), None))
