"""The report's pictures: plain numbers and names → SVG text, the same bytes for the same input.

Knows axes, marks and colours. Knows nothing of results, metrics or verdicts: `figures.py` decides what is drawn and
what it is called. Matplotlib is imported when a picture is drawn, never at import, and without its global state.

Every mark differs in shape as well as colour and carries its name, so a picture survives a black-and-white printer.
Filled marks are methods that change the weights, hollow ones act at inference only.
"""

import io
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

from expunge.report.comparison import Role
from expunge.report.labels import Box, around, leader, place_labels

FLOOR = 1e-30
"""Smaller p-values, zero among them, are drawn here: a log axis has no zero, and below this nothing is left to tell."""
POWERS = (0, math.log10(0.5), -1, -2, -4, -6, -10, -15, -20, -30)
"""log10 of the p-values that a log axis may name."""

INK, MUTED, FAINT = "#1f2328", "#59636e", "#d1d9e0"
FORGET, RETAIN = "#b3261e", "#0b5cad"
MARKERS = ("o", "s", "^", "D", "v", "P", "h", "<", "p", ">")
COLOURS = ("#0b5cad", "#b3410b", "#1a7f4b", "#8a3fa0", "#a3123f", "#00708a", "#6b5900", "#4b4fc4")
HALO = "paint-order: stroke; stroke: #fff; stroke-width: 2.5px; stroke-opacity: 0.75"
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, 'DejaVu Sans', sans-serif"


@dataclass(frozen=True)
class Axis:
    """What one direction of a picture means; `log` is for p-values, and cuts them off at `FLOOR`.

    It draws −√(−log10 p), not log10 p: from 1e-30 to 1, what matters (is it .01, .2 or .9?) would be a thirtieth of the
    height, and every good method and the retrained model would lie on one spot.
    """

    label: str
    log: bool = False
    best: Literal["high", "low"] = "high"

    def at(self, value: float) -> float:
        return -math.sqrt(max(0.0, -math.log10(max(value, FLOOR)))) if self.log else value


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
    with _figure(8.35, 5.1) as fig:
        data = [(p.x, p.y) for p in points] + [s for p in points for s in p.seeds]
        ax = _axes(fig, x, y, data if keep is None else [*data, (keep, data[0][1])])
        _corner(ax, x, y, keep, level, level_label)
        anchors, blocked = [], []
        for point in points:
            px, py = x.at(point.x), y.at(point.y)
            style = _style(point.name, point.role, point.hollow, methods)
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
        return _svg(fig, "tradeoff")


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
    with _figure(8.35, 5.1) as fig:
        ax = _axes(fig, x, y, everything)
        _corner(ax, x, y, None, level, "p = .05" if y.log else "")
        names, anchors, blocked = [], [], []
        for line in lines:
            style = _style(line.name, "method", line.hollow, methods)
            way = [(x.at(a), y.at(b)) for a, b in line.points]
            ax.plot(*zip(*way, strict=True), **style | {"ls": "-", "ms": 3, "lw": 1.1}, zorder=3)
            ax.plot(*way[-1], **style, zorder=5)
            blocked += [around(ax.transData.transform(p), 2.5) for p in _dense(way)]
            names.append(line.name)
            anchors.append(ax.transData.transform(way[-1]))
        for point in references:
            where = (x.at(point.x), y.at(point.y))
            ax.plot(*where, **_style(point.name, point.role, False, methods), zorder=4)
            names.append(point.name)
            anchors.append(ax.transData.transform(where))
        _label(ax, names, anchors, blocked, bold=[False] * len(lines) + [True] * len(references))
        return _svg(fig, "trajectory")


def epochs(panels: Sequence[Panel], *, unit: str, forget: str, retain: str, goal: float | None = None) -> str:
    """Small multiples on shared axes: forgotten and kept, epoch by epoch; `goal` is the retrained model's forget."""
    columns = min(4, len(panels))
    rows = math.ceil(len(panels) / columns)
    with _figure(8.35, 0.62 + 1.42 * rows) as fig:
        height = fig.get_figheight()
        grid = fig.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        right = 0.985 if columns > 2 else (0.27 if columns == 1 else 0.52)
        fig.subplots_adjust(0.055, 0.42 / height, right, 1 - 0.5 / height, wspace=0.12, hspace=0.42)
        for k, ax in enumerate(grid.flat):
            _bare(ax)
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
            ax.set_ylim(-0.04, 1.06)
            ax.set_yticks([0, 0.5, 1], ["0", ".5", "1"])
            if k + columns >= len(panels):
                ax.tick_params(labelbottom=True)
                ax.set_xlabel(unit, fontsize=8, color=MUTED, labelpad=1)
        _key(fig, height, forget, retain, goal)
        return _svg(fig, "epochs")


def swatch(name: str, role: Role, hollow: bool, methods: Sequence[str]) -> str:
    """The model's mark alone, to stand in a line of text: the table and the pictures name things alike."""
    from matplotlib.markers import MarkerStyle
    from matplotlib.path import Path
    from matplotlib.transforms import Affine2D

    style = _style(name, role, hollow, methods)
    mark = MarkerStyle(style["marker"])
    shape = mark.get_transform().frozen() + Affine2D().scale(style["ms"], -style["ms"])
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


def _style(name: str, role: Role, hollow: bool, methods: Sequence[str]) -> dict[str, Any]:
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


def _axes(fig: Any, x: Axis, y: Axis, data: Sequence[tuple[float, float]]) -> Any:
    from matplotlib.ticker import MaxNLocator

    ax = fig.subplots()
    fig.subplots_adjust(0.085, 0.105, 0.935, 0.935)
    _bare(ax)
    ax.grid(color="#eaeef2", lw=0.8)
    for axis, which, values in ((x, ax.xaxis, [p[0] for p in data]), (y, ax.yaxis, [p[1] for p in data])):
        at = [axis.at(v) for v in values]
        if axis.log:
            low, high = min(*at, -1.5), 0.0
            ticks = [axis.at(10.0**p) for p in POWERS]
            texts = [_power(p) for p in POWERS]
        else:
            high = 1.0 if 0.8 < max(at) <= 1 else math.ceil(max(at) * 10) / 10 or 1.0
            low = 0.0 if min(at) < 0.4 * high else math.floor(min(at) / high * 10) / 10 * high
            ticks = [float(t) for t in MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)]
            texts = [f"{t:.3g}".replace("0.", ".", 1) if 0 < t < 1 else f"{t:.3g}" for t in ticks]
        shown = [k for k, t in enumerate(ticks) if low <= t <= high + 1e-9]
        which.set_ticks([ticks[k] for k in shown], [texts[k] for k in shown])
        pad = 0.05 * (high - low)
        (ax.set_xlim if which is ax.xaxis else ax.set_ylim)(low - pad, high + pad)
    ax.set_xlabel(x.label, parse_math=False)
    ax.set_ylabel(y.label, parse_math=False)
    return ax


def _corner(ax: Any, x: Axis, y: Axis, keep: float | None, level: float | None, level_label: str) -> None:
    """Tint the corner one wants to be in and name its edges outside the axes, where no label can be in their way."""
    (_, right), (bottom, top) = ax.get_xlim(), ax.get_ylim()
    edge = None if level is None else y.at(level)
    if keep is not None and edge is not None:
        low, high = (edge, top) if y.best == "high" else (bottom, edge)
        ax.fill_between([x.at(keep), right], low, high, color="#dff0e4", lw=0, zorder=0)
    if keep is not None:
        ax.axvline(x.at(keep), color=MUTED, lw=0.8, ls=(0, (4, 3)), zorder=1)
        ax.annotate(
            "80 % kept", (x.at(keep), top), (-3, 5), textcoords="offset points", ha="right", size=8, color=MUTED
        )
    if edge is not None:
        ax.axhline(edge, color=MUTED, lw=0.8, ls=(0, (4, 3)), zorder=1)
        ax.annotate(level_label, (right, edge), (5, -3), textcoords="offset points", size=8, color=MUTED)
    where, shift, arrow = ((right, top), (0, 5), "↘") if y.best == "high" else ((right, bottom), (0, -32), "↗")
    ax.annotate(
        f"ideal corner {arrow}",
        where,
        shift,
        textcoords="offset points",
        ha="right",
        size=8.5,
        color="#1a6b3c",
        weight="bold",
    )


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


def _bare(ax: Any) -> None:
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color("#8c959f")
    ax.tick_params(color="#8c959f", labelcolor=MUTED, length=3, labelsize=8.5)
    ax.set_axisbelow(True)


def _power(exponent: float) -> str:
    if exponent > -2:
        return f"{10**exponent:.1g}".replace("0.", ".", 1)
    return "10" + str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


@contextmanager
def _figure(width: float, height: float) -> Iterator[Any]:
    """A figure of so many inches whose pixels are SVG points; the caller's matplotlib settings stay as they are."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # Labels are measured in DejaVu Sans, which is wider than the system fonts that will show them: gaps only grow.
    settings = {
        "svg.hashsalt": "expunge",
        "svg.fonttype": "none",
        "font.family": "DejaVu Sans",
        "font.size": 9.5,
        "axes.labelcolor": INK,
        "text.color": INK,
    }
    defaults: dict[Any, Any] = {key: value for key, value in matplotlib.rcParamsDefault.items() if key != "backend"}
    with matplotlib.rc_context(defaults | settings):
        fig = Figure(figsize=(width, height), dpi=72)
        FigureCanvasAgg(fig)
        yield fig


def _svg(fig: Any, name: str) -> str:
    """The figure without prolog, metadata or dates; its ids begin with `name`, so that pictures can share one page."""
    buffer = io.StringIO()
    fig.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", text)
    text = re.sub(r"font-family: [^;]*;", "", text)
    text = text.replace("*{stroke", f"svg text{{{HALO}}} svg *{{stroke")
    return text.replace("<svg ", f'<svg style="font-family: {FONT}" ', 1)
