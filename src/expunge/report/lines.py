"""Pictures of lines in panels on one scale from 0 to 1, each line with its name at its end.

`attack_pictures.py` decides what is drawn and what it is called.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from expunge.report.canvas import MUTED, Titles, figure, plain_axes, tick, to_svg
from expunge.report.comparison import EntryRole
from expunge.report.drawing import DASHES, LETTER, Spot, mark_style
from expunge.report.strips import LINES

WIDTH, LEFT, PLOT = 601, 38, 94
"""Points: of the picture, left of the first panel, and the least that a panel's lines have."""
NAME, LEAST = 12.5, 150
"""Heights in points: of a name at the end of a line, and the least of a panel."""
TITLE, FOOT, GAP = 13, 40, 24
"""Points: of a line of a panel's title, below a panel, and beside the names."""
BAND = "#dfe4ea"


@dataclass(frozen=True)
class Line:
    """One model's line; `band` is the lowest and the highest at each of its points, where it is of several models."""

    name: str
    points: tuple[Spot, ...]
    role: EntryRole = "method"
    hollow: bool = False
    band: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True)
class Panel:
    """The lines of one setting, and its title in one line or several."""

    title: str
    lines: Sequence[Line]


def lines(
    panels: Sequence[Panel], *, name: str, x: str, y: str, ticks: Mapping[float, str], methods: Sequence[str]
) -> str:
    """The panels in rows. `ticks` name places on the horizontal axis, `methods` fixes each method's mark."""
    names = LETTER * max(len(line.name) for panel in panels for line in panel.lines) + GAP
    across = max(1, min(len(panels), int((WIDTH - LEFT) // (PLOT + names))))
    down = -(-len(panels) // across)
    width, height = (WIDTH - LEFT) / across - names, max(LEAST, NAME * max(len(panel.lines) for panel in panels))
    above = 8 + TITLE * max(panel.title.count("\n") + 1 if panel.title else 0 for panel in panels)
    each = above + height + FOOT
    titles = Titles()
    with figure(WIDTH / 72, down * each / 72) as fig:
        for k, panel in enumerate(panels):
            left, bottom = LEFT + k % across * (width + names), (down - 1 - k // across) * each + FOOT
            frame = left / WIDTH, bottom / (down * each), width / WIDTH, height / (down * each)
            ax = fig.add_axes(frame)
            _frame(ax, panel, x, ticks)
            if k % across:
                ax.tick_params(labelleft=False)
            else:
                ax.set_ylabel(y, fontsize=8.5, color=MUTED, labelpad=2)
            for line in panel.lines:
                _line(ax, line, methods, titles)
            _names(ax, panel.lines, NAME / height)
        return to_svg(fig, name, titles)


def _frame(ax: Any, panel: Panel, x: str, ticks: Mapping[float, str]) -> None:
    plain_axes(ax)
    pad = 0.05 * (max(ticks) - min(ticks)) or 1.0
    ax.set_xlim(min(ticks) - pad, max(ticks) + pad)
    ax.set_xticks(list(ticks), list(ticks.values()))
    ax.set_xlabel(x, fontsize=8.5, color=MUTED, labelpad=1)
    ax.set_ylim(-0.03, 1.03)
    ax.set_yticks([k / 4 for k in range(5)], [tick(k / 4) for k in range(5)])
    ax.grid(axis="y", color="#eaeef2", lw=0.8)
    ax.set_title(panel.title, fontsize=8.5, loc="left", pad=5, parse_math=False)


def _line(ax: Any, line: Line, methods: Sequence[str], titles: Titles) -> None:
    """A method's line with a mark at each point, a reference's with one at its end."""
    style = mark_style(line.name, line.role, line.hollow, methods)
    look = LINES.get(line.role) or {
        "color": style["color"],
        "ls": DASHES[list(methods).index(line.name) % len(DASHES)],
        "lw": 1.2,
        "zorder": 3,
    }
    places = [x for x, _, _ in line.points]
    if line.band:
        ax.fill_between(places, [b[0] for b in line.band], [b[1] for b in line.band], color=BAND, lw=0, zorder=0.5)
    ax.plot(places, [y for _, y, _ in line.points], **look)
    for x, y, said in line.points if line.role == "method" else line.points[-1:]:
        titles.put(ax.plot(x, y, **style | {"ms": 0.7 * style["ms"]}, zorder=4, clip_on=False), said)


def _names(ax: Any, drawn: Sequence[Line], step: float) -> None:
    """The names right of the panel, from the highest end to the lowest, at least `step` apart."""
    ordered = sorted(drawn, key=lambda line: -line.points[-1][1])
    heights = [line.points[-1][1] for line in ordered]
    for k in range(1, len(heights)):
        heights[k] = min(heights[k], heights[k - 1] - step)
    heights[-1] = max(heights[-1], 0.0)
    for k in reversed(range(len(heights) - 1)):
        heights[k] = max(heights[k], heights[k + 1] + step)
    (low, right), width = ax.get_xlim(), ax.get_window_extent().width
    point = (right - low) / width
    start = right + (GAP - 12) * point
    for line, height in zip(ordered, heights, strict=True):
        x, y, _ = line.points[-1]
        if abs(height - y) > step / 4:
            ax.plot([x, start], [y, height], color="#8c959f", lw=0.6, zorder=1, clip_on=False)
        bold: dict[str, Any] = {} if line.role == "method" else {"weight": "bold"}
        ax.text(start + 3 * point, height, line.name, size=9, va="center_baseline", parse_math=False, **bold)
