"""The picture of several splits: a panel a metric, a column a split, and in every column a mark a method.

`figures.py` decides what is drawn and what it is called.
"""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, groupby, pairwise
from typing import Any, NamedTuple

from expunge.report.canvas import INK, MUTED, Titles, ceiling, figure, plain_axes, tick, to_svg
from expunge.report.drawing import mark_style

WIDTH, LEFT, RIGHT = 601, 30, 6
PANEL, TITLE, LINE, SPACE = 92, 24, 12, 14
"""Heights in points: of a panel, of the title over it, of a line of names, between bands."""
STEP, NARROW, WIDE, GAP = 6.5, 44, 185, 14
"""Points: least from mark to mark; least and most of a column; between groups of columns."""
LETTER = 5.2
"""Points that a letter of a name takes, on average."""

LINES: dict[str, dict[str, Any]] = {
    "target": {"color": MUTED, "lw": 1.1, "ls": "-", "zorder": 1},
    "retrained": {"color": INK, "lw": 1.5, "ls": (0, (1, 1.5)), "zorder": 2},
}
SMALL = {"ms": 5.5, "mew": 1.1}


@dataclass(frozen=True)
class Estimate:
    """A model's value of one metric, the lowest and highest of its seeds, and the same in words."""

    value: float
    low: float
    high: float
    words: str


@dataclass(frozen=True)
class Split:
    """One split: for every model a cell per panel, None where it was not measured."""

    group: str
    name: str
    models: Mapping[str, Sequence[Estimate | None]]


class _Words(NamedTuple):
    """A line of text under the panels, `line` lines down."""

    text: str
    middle: float
    line: int
    bold: bool


def strips(
    columns: Sequence[Split], *, panels: Sequence[str], methods: Mapping[str, bool], name: str = "overview"
) -> str:
    """A panel per title in `panels`; the models `target` and `retrained` are lines across their columns.

    `methods`: every method and whether its mark is hollow, in the order of the marks. Columns that find no room go on
    in a further band of panels; no group is broken that fits into a band.
    """
    bands, width = _bands(columns, len(methods) + 1)
    feet = [_feet(band, width) for band in bands]
    heights = [len(panels) * (TITLE + PANEL) + LINE * max(f.line + 1 for f in foot) + SPACE for foot in feet]
    named = [name for name in (*methods, *LINES) if any(name in column.models for column in columns)]
    rows, across = _key_size(named)
    total = sum(heights) + LINE * rows + 8
    tops = [ceiling([c.high for column in columns for c in _panel(column, p)] or [1.0]) for p in range(len(panels))]
    titles = Titles()
    with figure(WIDTH / 72, total / 72) as fig:
        _key(fig, named, methods, across)
        above = LINE * rows + 8
        for band, foot, height in zip(bands, feet, heights, strict=True):
            starts = _starts(band, width)
            for p, title in enumerate(panels):
                bottom = total - above - (p + 1) * (TITLE + PANEL)
                end = starts[-1] + width
                ax = fig.add_axes((LEFT / WIDTH, bottom / total, end / WIDTH, PANEL / total))
                _frame(ax, title, end, tops[p])
                for start, column in zip(starts, band, strict=True):
                    _column(ax, start, width, column, p, methods, titles)
            above += height
            for words in foot:
                up = total - above + SPACE + LINE * (max(w.line for w in foot) - words.line) + 1
                look: dict[str, Any] = {"weight": "bold"} if words.bold else {"color": MUTED}
                x, y = (LEFT + words.middle) / WIDTH, up / total
                fig.text(x, y, words.text, size=8.5, ha="center", parse_math=False, **look)
        return to_svg(fig, name, titles)


def _bands(columns: Sequence[Split], slots: int) -> tuple[list[Sequence[Split]], float]:
    """The columns in bands that the picture is wide enough for, and a column's width."""
    size = len(list(next(groupby(columns, key=lambda c: c.group))[1])) if columns[0].group else 1
    share = GAP / size if columns[0].group else 0.0  # of the gap after its group
    room = WIDTH - LEFT - RIGHT
    most = int(room // (max(slots * STEP, NARROW) + share)) or 1
    most = most - most % size or most
    width = min(WIDE, room / min(most, len(columns)) - share)
    return [columns[k : k + most] for k in range(0, len(columns), most)], width


def _starts(band: Sequence[Split], width: float) -> list[float]:
    """Where each column begins, in points from the axes' left."""
    starts = [0.0]
    for before, column in pairwise(band):
        starts.append(starts[-1] + width + GAP * (column.group != before.group))
    return starts


def _frame(ax: Any, title: str, end: float, top: float) -> None:
    plain_axes(ax)
    ax.set_xlim(0, end)
    ax.set_ylim(-0.06 * top, 1.08 * top)
    ax.set_xticks([])
    ax.set_yticks([0, top / 2, top], [tick(v) for v in (0, top / 2, top)])
    ax.grid(axis="y", color="#eaeef2", lw=0.8)
    ax.spines[["bottom"]].set_visible(False)
    ax.set_title(title, fontsize=8.5, loc="left", pad=3, x=-LEFT / end + 0.005, parse_math=False)


def _column(
    ax: Any, start: float, width: float, column: Split, panel: int, methods: Mapping[str, bool], titles: Titles
) -> None:
    ax.axvspan(start + 2, start + width - 2, color="#f6f8fa", lw=0, zorder=0)
    split = " ".join(filter(None, (column.group, column.name)))
    step = width / (len(methods) + 1)
    for model, cells in column.models.items():
        cell = cells[panel]
        if cell is None:
            continue
        if model in LINES:
            drawn = ax.plot([start + 2, start + width - 2], [cell.value] * 2, **LINES[model])
        else:
            x = start + step * (1 + list(methods).index(model))
            if cell.high > cell.low:
                ax.plot([x, x], [cell.low, cell.high], color=INK, lw=0.8, zorder=3)
            drawn = ax.plot(x, cell.value, **mark_style(model, "method", methods[model], list(methods)) | SMALL)
        titles.put(drawn, f"{model}, {split}: {cell.words}")


def _feet(band: Sequence[Split], width: float) -> list[_Words]:
    """The columns' names under the axes, and under those the groups', each in as many lines as it needs."""
    starts = _starts(band, width)
    feet = [
        _Words(line, start + width / 2, k, bold=False)
        for start, column in zip(starts, band, strict=True)
        for k, line in enumerate(textwrap.wrap(column.name, int(width / LETTER)))
    ]
    below = max((words.line for words in feet), default=0) + 1
    for group, members in groupby(zip(starts, band, strict=True), key=lambda pair: pair[1].group):
        at = [start for start, _ in members]
        lines = textwrap.wrap(group, int(len(at) * width / LETTER * 0.9))
        feet += [_Words(line, (at[0] + at[-1] + width) / 2, below + k, bold=True) for k, line in enumerate(lines)]
    return feet


def _panel(column: Split, panel: int) -> list[Estimate]:
    return [cell for cells in column.models.values() if (cell := cells[panel]) is not None]


def _key_size(names: Sequence[str]) -> tuple[int, int]:
    """Rows and columns of the key, as many columns as there is room for."""
    sizes = [len(name) * LETTER + 38 for name in names]
    fitting = (n for n in range(len(sizes), 1, -1) if sum(max(sizes[k::n]) for k in range(n)) <= WIDTH)
    across = next(fitting, 1)
    return -(-len(sizes) // across), across


def _key(fig: Any, names: Sequence[str], methods: Mapping[str, bool], across: int) -> None:
    from matplotlib.lines import Line2D

    marks: dict[str, dict[str, Any]] = {
        name: mark_style(name, "method", hollow, list(methods)) | SMALL for name, hollow in methods.items()
    }
    handles = [Line2D([], [], **(marks | LINES)[name], label=name) for name in names]
    by_row = list(chain.from_iterable(handles[k::across] for k in range(across)))  # matplotlib fills column by column
    fig.legend(
        handles=by_row,
        loc="upper left",
        bbox_to_anchor=(0, 1),
        ncols=across,
        frameon=False,
        fontsize=8.5,
        borderaxespad=0.2,
        handlelength=1.8,
        columnspacing=1.4,
        labelspacing=0.35,
    )
