"""The report's pictures: plain numbers and names → SVG text, the same bytes for the same input.

`figures.py` decides what is drawn and what it is called.

Every mark differs in shape as well as colour and carries its name, so a picture survives a black-and-white printer.
Filled marks are methods that change the weights, hollow ones act at inference only.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from expunge.report.canvas import ALIKE, FLOOR, INK, Axis, Titles, axes, corner, figure, to_svg
from expunge.report.comparison import EntryRole
from expunge.report.labels import Box, around, leader, place_labels

MARKERS = ("o", "s", "^", "D", "v", "P", "h", "<", "p", ">")
COLOURS = ("#0b5cad", "#b3410b", "#1a7f4b", "#8a3fa0", "#a3123f", "#00708a", "#6b5900", "#4b4fc4")
DASHES: tuple[Any, ...] = (
    *("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (7, 2, 1.5, 2))),
    *((0, (3, 1, 1, 1, 1, 1)), (0, (10, 2.5)), (0, (5, 1.5, 1, 1.5, 1, 1.5, 1, 1.5))),
)
"""Their number and that of the marks share no divisor, so that a mark's next round has another dash."""

LETTER = 5.6
"""Points that a letter of a name takes, at most on average."""

Spot = tuple[float, float, str]
"""x, y, and what a reader is told who points there."""


@dataclass(frozen=True)
class Point:
    """One model in the plane; `seeds` are the single runs when (x, y) is their median."""

    name: str
    x: float
    y: float
    role: EntryRole = "method"
    hollow: bool = False
    says: str = ""
    seeds: tuple[Spot, ...] = ()


@dataclass(frozen=True)
class Trial:
    """One trial of a sweep: its number, its place, whether no other beats it, and whether it is the chosen one."""

    name: str
    x: float
    y: float
    says: str
    front: bool
    best: bool


@dataclass(frozen=True)
class Curve:
    """One method's way through its epochs."""

    name: str
    points: tuple[Spot, ...]
    hollow: bool = False


def tradeoff(
    points: Sequence[Point],
    *,
    x: Axis,
    y: Axis,
    methods: Sequence[str],
    keep: float | None = None,
    level: float | None = None,
    level_label: str = "",
) -> str:
    """Scatter of every model; `keep` and `level` bound the ideal corner, `methods` fixes each name's mark."""
    titles = Titles()
    with figure(8.35, 5.1) as fig:
        data = [(p.x, p.y) for p in points] + [s[:2] for p in points for s in p.seeds]
        ax = axes(fig, x, y, data if keep is None else [*data, (keep, data[0][1])])
        corner(ax, x, y, keep, level, level_label)
        anchors, blocked = [], []
        for point in points:
            px, py = x.at(point.x), y.at(point.y)
            style = mark_style(point.name, point.role, point.hollow, methods)
            for sx, sy, said in point.seeds:
                titles.put(ax.plot(x.at(sx), y.at(sy), **style | {"ms": 3.5, "alpha": 0.45}, zorder=2), said)
            titles.put(ax.plot(px, py, **style, zorder=4 if point.role == "method" else 3), point.says)
            if y.log and point.y <= FLOOR:
                ax.annotate(
                    "", (px, py), (0, -13), textcoords="offset points", arrowprops={"arrowstyle": "<-", "lw": 0.8}
                )
            anchors.append(ax.transData.transform((px, py)))
            blocked += [around(ax.transData.transform((x.at(a), y.at(b))), 3) for a, b, _ in point.seeds]
        label(ax, [p.name for p in points], anchors, blocked, bold=[p.role != "method" for p in points])
        return to_svg(fig, "tradeoff", titles)


def trajectory(
    lines: Sequence[Curve],
    references: Sequence[Point],
    *,
    name: str,
    x: Axis,
    y: Axis,
    methods: Sequence[str],
    level: float | None = None,
) -> str:
    """Every method's way from epoch to epoch; the small dots are epochs, the large mark with the name is the end."""
    everything = [p[:2] for line in lines for p in line.points] + [(p.x, p.y) for p in references]
    titles = Titles()
    with figure(8.35, 5.1) as fig:
        ax = axes(fig, x, y, everything)
        corner(ax, x, y, None, level, ALIKE if y.log else "")
        names, anchors, blocked = [], [], []
        for line in lines:
            style = mark_style(line.name, "method", line.hollow, methods)
            way = [(x.at(a), y.at(b)) for a, b, _ in line.points]
            dashes = DASHES[list(methods).index(line.name) % len(DASHES)]
            ax.plot(*zip(*way, strict=True), color=style["color"], ls=dashes, lw=1.1, zorder=3)
            for k, (spot, (_, _, said)) in enumerate(zip(way, line.points, strict=True)):
                last = k == len(way) - 1
                titles.put(ax.plot(*spot, **style | ({} if last else {"ms": 3}), zorder=5 if last else 4), said)
            blocked += [around(ax.transData.transform(p), 2.5) for p in _dense(way)]
            names.append(line.name)
            anchors.append(ax.transData.transform(way[-1]))
        for point in references:
            where = (x.at(point.x), y.at(point.y))
            titles.put(ax.plot(*where, **mark_style(point.name, point.role, False, methods), zorder=4), point.says)
            names.append(point.name)
            anchors.append(ax.transData.transform(where))
        label(ax, names, anchors, blocked, bold=[False] * len(lines) + [True] * len(references))
        return to_svg(fig, name, titles)


def trials(
    points: Mapping[str, Sequence[Trial]],
    references: Sequence[Point],
    *,
    x: Axis,
    y: Axis,
    hollow: Mapping[str, bool],
    level: float | None = None,
) -> str:
    """Every method's trials with the line of those that none of its own beats; numbers only on the front of all."""
    methods, titles = list(points), Titles()
    everything = [(t.x, t.y) for own_trials in points.values() for t in own_trials] + [(p.x, p.y) for p in references]
    with figure(8.35, 5.3) as fig:
        ax = axes(fig, x, y, everything)
        rows = key(fig, {name: mark_style(name, "method", hollow[name], methods) for name in methods})
        fig.subplots_adjust(top=0.915 - 0.032 * rows)
        corner(ax, x, y, None, level, ALIKE if y.log else "")
        names, anchors, blocked, bold = [], [], [], []
        for name, own_trials in points.items():
            style = mark_style(name, "method", hollow[name], methods)
            way = [(x.at(t.x), y.at(t.y)) for t in _front(own_trials, x, y)]
            dashes = DASHES[methods.index(name) % len(DASHES)]
            ax.plot(*zip(*way, strict=True), color=style["color"], ls=dashes, lw=1, zorder=2)
            blocked += [around(ax.transData.transform(p), 2.5) for p in _dense(way)]
            for trial in own_trials:
                spot = x.at(trial.x), y.at(trial.y)
                titles.put(ax.plot(*spot, **style | {"ms": 5.5}, zorder=4), trial.says)
                blocked.append(around(ax.transData.transform(spot), 4))
                if trial.best:
                    ax.plot(*spot, marker="o", ms=14, mfc="none", mec=INK, mew=1, zorder=3)
                if trial.front:
                    names.append(trial.name)
                    anchors.append(ax.transData.transform(spot))
                    bold.append(trial.best)
        for point in references:
            spot = x.at(point.x), y.at(point.y)
            titles.put(ax.plot(*spot, **mark_style(point.name, point.role, False, methods), zorder=3), point.says)
            names.append(point.name)
            anchors.append(ax.transData.transform(spot))
        label(ax, names, anchors, blocked, bold=bold + [True] * len(references))
        return to_svg(fig, "pareto", titles)


def _front(of_method: Sequence[Trial], x: Axis, y: Axis) -> list[Trial]:
    """Those that no other one beats in both directions, from left to right."""
    signs = [1 if axis.best == "high" else -1 for axis in (x, y)]

    def beaten(trial: Trial) -> bool:
        mine = signs[0] * trial.x, signs[1] * trial.y
        others = [(signs[0] * t.x, signs[1] * t.y) for t in of_method]
        return any(other[0] >= mine[0] and other[1] >= mine[1] and other != mine for other in others)

    return sorted((t for t in of_method if not beaten(t)), key=lambda t: (t.x, t.y))


def key(fig: Any, styles: Mapping[str, dict[str, Any]]) -> int:
    """Marks and their names along the top of the figure, in as many rows as they need, which it returns."""
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], **style, label=name) for name, style in styles.items()]
    columns = max(1, min(len(handles), int(580 // (38 + LETTER * max(map(len, styles))))))
    look: dict[str, Any] = {"frameon": False, "fontsize": 9, "borderaxespad": 0.2, "handlelength": 1.5}
    fig.legend(handles=handles, loc="upper left", bbox_to_anchor=(0.03, 1), ncols=columns, labelspacing=0.3, **look)
    return -(-len(handles) // columns)


def swatch(name: str, role: EntryRole, hollow: bool, methods: Sequence[str]) -> str:
    """The model's mark alone, to stand in a line of text: the table and the pictures name things alike."""
    from matplotlib.markers import MarkerStyle
    from matplotlib.path import Path
    from matplotlib.transforms import Affine2D

    style = mark_style(name, role, hollow, methods)
    mark: Any = MarkerStyle(style["marker"])
    shape = mark.get_transform() + Affine2D().scale(style["ms"], -style["ms"])
    path = mark.get_path().transformed(shape)
    letters = {Path.MOVETO: "M", Path.LINETO: "L", Path.CURVE3: "Q", Path.CURVE4: "C", Path.CLOSEPOLY: "Z"}
    steps = [
        letters[code] + ("" if code == Path.CLOSEPOLY else " ".join(f"{v:.2f}" for v in points))
        for points, code in path.iter_segments(simplify=False, curves=True)
    ]
    fill, edge = style.get("mfc", style["color"]), style["mec"] if role == "method" else "none"
    return (
        '<svg class="mark" viewBox="-7 -7 14 14" aria-hidden="true">'
        f'<path d="{"".join(steps)}" fill="{fill}" stroke="{edge}" stroke-width="1.2"/></svg>'
    )


def _dense(way: Sequence[tuple[float, float]]) -> Iterator[tuple[float, float]]:
    """The way's corners and points between them, so that labels avoid the lines and not only the dots."""
    yield way[0]
    for (x0, y0), (x1, y1) in pairwise(way):
        yield from ((x0 + (x1 - x0) * k / 6, y0 + (y1 - y0) * k / 6) for k in range(1, 7))


def mark_style(name: str, role: EntryRole, hollow: bool, methods: Sequence[str]) -> dict[str, Any]:
    if role == "target":
        return {"marker": "X", "color": INK, "ms": 9, "ls": "", "mec": "white", "mew": 0.6}
    if role == "retrained":
        return {"marker": "*", "color": INK, "ms": 13, "ls": "", "mec": "white", "mew": 0.6}
    k = list(methods).index(name)
    colour = COLOURS[k % len(COLOURS)]
    face = "white" if hollow else colour
    return {
        "marker": MARKERS[k % len(MARKERS)],
        "color": colour,
        "mfc": face,
        "mec": colour,
        "ms": 6.5,
        "ls": "",
        "mew": 1.2,
    }


def label(ax: Any, names: Sequence[str], anchors: Sequence[Any], blocked: Sequence[Box], bold: Sequence[bool]) -> None:
    """Write every name beside its anchor (pixels), off the others and off what is `blocked`."""
    renderer, frame = ax.figure.canvas.get_renderer(), ax.get_window_extent()
    texts = [
        ax.annotate(
            name,
            (0, 0),
            xycoords="figure pixels",
            size=9,
            weight="bold" if b else "normal",
            color=INK,
            parse_math=False,
            zorder=6,
        )
        for name, b in zip(names, bold, strict=True)
    ]
    extents = [t.get_window_extent(renderer) for t in texts]
    spots = [(float(a[0]), float(a[1])) for a in anchors]
    inside = (frame.x0 + 2, frame.y0 + 2, frame.x1, frame.y1 - 1)
    sizes, radii = [(e.width, e.height) for e in extents], [7.0 if b else 4.5 for b in bold]
    boxes = place_labels(spots, sizes, radii, inside, blocked)
    for text, spot, box in zip(texts, spots, boxes, strict=True):
        text.set_position((box[0], box[1] + 2))  # text sits on its baseline, boxes start below the descenders
        line = leader(spot, box)
        if line:
            ax.annotate(
                "",
                line[2:],
                line[:2],
                xycoords="figure pixels",
                textcoords="figure pixels",
                zorder=2,
                arrowprops={"arrowstyle": "-", "lw": 0.6, "color": "#8c959f", "shrinkA": 4, "shrinkB": 0},
            )
