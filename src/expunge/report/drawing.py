"""The report's pictures: plain numbers and names → SVG text, the same bytes for the same input.

Knows axes, marks and colours. Knows nothing of results, metrics or verdicts: `figures.py` decides what is drawn and
what it is called.

Every mark differs in shape as well as colour and carries its name, so a picture survives a black-and-white printer.
Filled marks are methods that change the weights, hollow ones act at inference only.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from expunge.report.canvas import FLOOR, INK, MUTED, Axis, axes, corner, figure, plain_axes, to_svg
from expunge.report.comparison import Role
from expunge.report.labels import Box, around, leader, place_labels

FORGET, RETAIN = "#b3261e", "#0b5cad"
MARKERS = ("o", "s", "^", "D", "v", "P", "h", "<", "p", ">")
COLOURS = ("#0b5cad", "#b3410b", "#1a7f4b", "#8a3fa0", "#a3123f", "#00708a", "#6b5900", "#4b4fc4")


@dataclass(frozen=True)
class Point:
    """One model in the plane; `seeds` are the single runs when (x, y) is their median."""

    name: str
    x: float
    y: float
    role: Role = "method"
    hollow: bool = False
    seeds: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True)
class Line:
    """One method's way through its epochs."""

    name: str
    points: tuple[tuple[float, float], ...]
    hollow: bool = False


@dataclass(frozen=True)
class Panel:
    """One small picture: two curves over epochs, each a tuple of (epoch, value)."""

    name: str
    forget: tuple[tuple[float, float], ...]
    retain: tuple[tuple[float, float], ...]


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
    with figure(8.35, 5.1) as fig:
        data = [(p.x, p.y) for p in points] + [s for p in points for s in p.seeds]
        ax = axes(fig, x, y, data if keep is None else [*data, (keep, data[0][1])])
        corner(ax, x, y, keep, level, level_label)
        anchors, blocked = [], []
        for point in points:
            px, py = x.at(point.x), y.at(point.y)
            style = mark_style(point.name, point.role, point.hollow, methods)
            for seed in point.seeds:
                ax.plot(x.at(seed[0]), y.at(seed[1]), **style | {"ms": 3.5, "alpha": 0.45}, zorder=2)
            ax.plot(px, py, **style, zorder=4 if point.role == "method" else 3)
            if y.log and point.y <= FLOOR:
                ax.annotate(
                    "", (px, py), (0, -13), textcoords="offset points", arrowprops={"arrowstyle": "<-", "lw": 0.8}
                )
            anchors.append(ax.transData.transform((px, py)))
            blocked += [around(ax.transData.transform((x.at(a), y.at(b))), 3) for a, b in point.seeds]
        _label(ax, [p.name for p in points], anchors, blocked, bold=[p.role != "method" for p in points])
        return to_svg(fig, "tradeoff")


def trajectory(
    lines: Sequence[Line],
    references: Sequence[Point],
    *,
    x: Axis,
    y: Axis,
    methods: Sequence[str],
    level: float | None = None,
) -> str:
    """Every method's way from epoch to epoch; the small dots are epochs, the large mark with the name is the end."""
    everything = [p for line in lines for p in line.points] + [(p.x, p.y) for p in references]
    with figure(8.35, 5.1) as fig:
        ax = axes(fig, x, y, everything)
        corner(ax, x, y, None, level, "p = .05" if y.log else "")
        names, anchors, blocked = [], [], []
        for line in lines:
            style = mark_style(line.name, "method", line.hollow, methods)
            way = [(x.at(a), y.at(b)) for a, b in line.points]
            ax.plot(*zip(*way, strict=True), **style | {"ls": "-", "ms": 3, "lw": 1.1}, zorder=3)
            ax.plot(*way[-1], **style, zorder=5)
            blocked += [around(ax.transData.transform(p), 2.5) for p in _dense(way)]
            names.append(line.name)
            anchors.append(ax.transData.transform(way[-1]))
        for point in references:
            where = (x.at(point.x), y.at(point.y))
            ax.plot(*where, **mark_style(point.name, point.role, False, methods), zorder=4)
            names.append(point.name)
            anchors.append(ax.transData.transform(where))
        _label(ax, names, anchors, blocked, bold=[False] * len(lines) + [True] * len(references))
        return to_svg(fig, "trajectory")


def epochs(panels: Sequence[Panel], *, unit: str, forget: str, retain: str, goal: float | None = None) -> str:
    """Small multiples on shared axes: forgotten and kept, epoch by epoch; `goal` is the retrained model's forget."""
    from matplotlib.ticker import MaxNLocator

    columns = min(4, len(panels))
    rows = math.ceil(len(panels) / columns)
    with figure(8.35, 0.62 + 1.42 * rows) as fig:
        height = fig.get_figheight()
        grid = fig.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        right = 0.985 if columns > 2 else (0.27 if columns == 1 else 0.52)
        fig.subplots_adjust(0.055, 0.42 / height, right, 1 - 0.5 / height, wspace=0.12, hspace=0.42)
        for k, ax in enumerate(grid.flat):
            plain_axes(ax)
            if k >= len(panels):
                ax.axis("off")
                continue
            panel = panels[k]
            if goal is not None:
                ax.axhline(goal, color=INK, lw=0.9, ls=":")
            for curve, colour, face, line, mark in (
                (panel.retain, RETAIN, "white", (0, (4, 2)), "s"),
                (panel.forget, FORGET, FORGET, "-", "o"),
            ):
                if curve:
                    ax.plot(
                        *zip(*curve, strict=True), color=colour, mfc=face, ls=line, marker=mark, ms=3.2, lw=1.2, mew=0.9
                    )
            ax.set_title(panel.name, fontsize=8.5, loc="left", pad=3, weight="bold", parse_math=False)
            ax.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=[1, 2, 5, 10]))
            ax.set_ylim(-0.04, 1.06)
            ax.set_yticks([0, 0.5, 1], ["0", ".5", "1"])
            if k + columns >= len(panels):
                ax.tick_params(labelbottom=True)
                ax.set_xlabel(unit, fontsize=8, color=MUTED, labelpad=1)
        _key(fig, height, forget, retain, goal)
        return to_svg(fig, "epochs")


def swatch(name: str, role: Role, hollow: bool, methods: Sequence[str]) -> str:
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


def mark_style(name: str, role: Role, hollow: bool, methods: Sequence[str]) -> dict[str, Any]:
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


def _label(ax: Any, names: Sequence[str], anchors: Sequence[Any], blocked: Sequence[Box], bold: Sequence[bool]) -> None:
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


def _key(fig: Any, height: float, forget: str, retain: str, goal: float | None) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=FORGET, marker="o", ms=4, lw=1.3, label=forget),
        Line2D([], [], color=RETAIN, marker="s", mfc="white", ms=4, lw=1.3, ls=(0, (4, 2)), label=retain),
    ]
    if goal is not None:
        handles.append(Line2D([], [], color=INK, lw=1, ls=":", label=f"{forget} of the retrained model"))
    fig.legend(
        handles=handles,
        loc="upper left",
        bbox_to_anchor=(0.04, 1.0),
        ncols=3,
        frameon=False,
        fontsize=8.5,
        borderaxespad=0.2,
        handlelength=2.6,
    )
