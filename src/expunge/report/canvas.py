"""The sheet that pictures are drawn on: a matplotlib figure, its axes and their ideal corner, and its text as SVG.

Matplotlib is imported when a figure is made, and its global settings stay as they were.
"""

import html
import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

INK, MUTED = "#1f2328", "#59636e"
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, 'DejaVu Sans', sans-serif"
HALO = "paint-order: stroke; stroke: #fff; stroke-width: 2.5px; stroke-opacity: 0.75"

FLOOR = 1e-30
"""Smaller p-values, zero among them, are drawn here: a log axis has no zero, and below this nothing is left to tell."""
POWERS = (0, math.log10(0.5), -1, -2, -4, -6, -10, -15, -20, -30)
"""log10 of the p-values that a log axis may name."""


ALIKE = "alike ↑"
ALIKE_READING = (
    "How like a model that never saw it is the p-value of a KS test (forget quality), drawn on a log scale that is "
    "stretched towards 1. From the dashed line up, p = .05, the test cannot tell the two."
)


@dataclass(frozen=True)
class Axis:
    """One direction of a picture; `log` is for p-values, and cuts them off at `FLOOR`.

    It draws −√(−log10 p), not log10 p: from 1e-30 to 1, what matters (is it .01, .2 or .9?) would be a thirtieth of the
    height, and every good method and the retrained model would lie on one spot.
    """

    label: str
    log: bool = False
    best: Literal["high", "low"] = "high"

    def at(self, value: float) -> float:
        return -math.sqrt(max(0.0, -math.log10(max(value, FLOOR)))) if self.log else value


@contextmanager
def figure(width: float, height: float) -> Iterator[Any]:
    """A figure whose pixels are SVG points, its size in inches; the caller's matplotlib settings stay as they are."""
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
    defaults: Any = {key: value for key, value in matplotlib.rcParamsDefault.items() if key != "backend"}
    with matplotlib.rc_context(defaults | settings):
        fig = Figure(figsize=(width, height), dpi=72)
        FigureCanvasAgg(fig)
        yield fig


def to_svg(fig: Any, name: str, titles: Mapping[str, str] | None = None) -> str:
    """The figure without prolog, metadata or dates; its ids begin with `name`, so that pictures can share one page.

    `titles`: what a reader is told who points at the artist of this gid.
    """
    buffer = io.StringIO()
    fig.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    for gid, title in (titles or {}).items():
        text = text.replace(f'<g id="{gid}">', f'<g id="{gid}"><title>{html.escape(title)}</title>')
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", text)
    text = re.sub(r"font-family: [^;]*;", "", text)
    text = text.replace("*{stroke", f"svg text{{{HALO}}} svg *{{stroke")
    return text.replace("<svg ", f'<svg style="font-family: {FONT}" ', 1)


class Titles(dict[str, str]):
    """Tooltip texts of marks, for `to_svg`."""

    def put(self, artists: Sequence[Any], words: str) -> None:
        """Add the text of the one artist that a call of `plot` returns."""
        (artist,), gid = artists, f"mark-{len(self)}"
        artist.set_gid(gid)
        self[gid] = words


def plain_axes(ax: Any) -> None:
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color("#8c959f")
    ax.tick_params(color="#8c959f", labelcolor=MUTED, length=3, labelsize=8.5)
    ax.set_axisbelow(True)


def axes(fig: Any, x: Axis, y: Axis, data: Sequence[tuple[float, float]]) -> Any:
    from matplotlib.ticker import MaxNLocator

    ax = fig.subplots()
    fig.subplots_adjust(0.085, 0.105, 0.935, 0.935)
    plain_axes(ax)
    ax.grid(color="#eaeef2", lw=0.8)
    for axis, which, values in ((x, ax.xaxis, [p[0] for p in data]), (y, ax.yaxis, [p[1] for p in data])):
        at = [axis.at(v) for v in values]
        if axis.log:
            low, high = min(*at, -1.5), 0.0
            ticks = [axis.at(10.0**p) for p in POWERS]
            texts = [_power(p) for p in POWERS]
        else:
            high = ceiling(at)
            low = 0.0 if min(at) < 0.4 * high else min(0.9, math.floor(min(at) / high * 10) / 10) * high
            ticks = [float(t) for t in MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)]
            texts = [tick(t) for t in ticks]
        shown = [k for k, t in enumerate(ticks) if low <= t <= high + 1e-9]
        which.set_ticks([ticks[k] for k in shown], [texts[k] for k in shown])
        pad = 0.05 * (high - low)
        (ax.set_xlim if which is ax.xaxis else ax.set_ylim)(low - pad, high + pad)
    ax.set_xlabel(x.label, parse_math=False)
    ax.set_ylabel(y.label, parse_math=False)
    return ax


def corner(ax: Any, x: Axis, y: Axis, keep: float | None, level: float | None, level_label: str) -> None:
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
    (left, _), up = ax.get_xlim(), y.best == "high"
    ax.annotate(
        f"ideal corner {'↓' if up else '↑'}",  # the words stand outside, over or under it
        (right if x.best == "high" else left, top if up else bottom),
        (0, 5) if up else (0, -32),
        textcoords="offset points",
        ha="right" if x.best == "high" else "left",
        size=8.5,
        color="#1a6b3c",
        weight="bold",
    )


def ceiling(values: Sequence[float]) -> float:
    """Where an axis of these values ends: 1 for shares that come near it, else the next round number."""
    highest = max(values)
    size = 10.0 ** math.floor(math.log10(highest)) if highest > 0 else 1.0
    return 1.0 if 0.8 < highest <= 1 else max(1, math.ceil(highest / size)) * size


def tick(value: float) -> str:
    return f"{value:.3g}".replace("0.", ".", 1) if 0 < value < 1 else f"{value:.3g}"


def _power(exponent: float) -> str:
    if exponent > -2:
        return f"{10**exponent:.1g}".replace("0.", ".", 1)
    return "10" + str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
