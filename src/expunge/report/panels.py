"""Pictures of several small panels: curves over epochs, and the distances to the retrained model.

`course.py` and `distance.py` decide what is drawn and what it is called.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from expunge.report.canvas import INK, MUTED, Titles, ceiling, figure, plain_axes, tick, to_svg
from expunge.report.drawing import DASHES, LETTER, Spot, label, mark_style
from expunge.report.labels import around

FORGET, RETAIN = "#b3261e", "#0b5cad"


@dataclass(frozen=True)
class Panel:
    """One small picture: two curves over epochs, each a tuple of (epoch, value), and the run that they are of."""

    name: str
    forget: tuple[tuple[float, float], ...]
    retain: tuple[tuple[float, float], ...]
    says: str = ""


@dataclass(frozen=True)
class Stems:
    """A panel of one value a method, in (value, what it tells); the longest name decides the room at its left."""

    title: str
    values: Mapping[str, tuple[float, str]]


@dataclass(frozen=True)
class Curves:
    """A panel of lines over epochs, a method each."""

    title: str
    unit: str
    lines: Mapping[str, Sequence[Spot]]


def epochs(panels: Sequence[Panel], *, unit: str, forget: str, retain: str, goal: float | None = None) -> str:
    """Small multiples on shared axes: forgotten and kept, epoch by epoch; `goal` is the retrained model's forget."""
    from matplotlib.ticker import MaxNLocator

    titles = Titles()
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
                    look = {"color": colour, "mfc": face, "ls": line, "marker": mark, "ms": 3.2, "lw": 1.2, "mew": 0.9}
                    titles.put(ax.plot(*zip(*curve, strict=True), **look), panel.says)
            ax.set_title(panel.name, fontsize=8.5, loc="left", pad=3, weight="bold", parse_math=False)
            ax.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=[1, 2, 5, 10]))
            ax.set_ylim(-0.04, 1.06)
            ax.set_yticks([0, 0.5, 1], ["0", ".5", "1"])
            if k + columns >= len(panels):
                ax.tick_params(labelbottom=True)
                ax.set_xlabel(unit, fontsize=8, color=MUTED, labelpad=1)
        _key(fig, forget, retain, goal)
        return to_svg(fig, "epochs", titles)


def distances(
    parts: Sequence[Stems | Curves], *, base: tuple[float, str] | None, axis: str, methods: Mapping[str, bool]
) -> str:
    """The panels in a row, each on a scale of its own, of which `axis` names the unit.

    `base` is what all are held against, and its name: one value far out in one panel leaves the others readable.

    `methods`: every method and whether its mark is hollow, in the order of the marks.
    """
    rows = max(len(part.values) if isinstance(part, Stems) else 7 for part in parts)
    titles = Titles()
    width, height = 601, 64 + 17 * max(4, rows)
    with figure(width / 72, height / 72) as fig:
        gaps = [LETTER * max(map(len, p.values)) + 14 if isinstance(p, Stems) else 34 for p in parts]
        room = (min(width, 260 * len(parts) + sum(gaps)) - sum(gaps) - 30 * len(parts)) / len(parts)
        left = 0.0
        for part, gap in zip(parts, gaps, strict=True):
            left += gap
            ax = fig.add_axes((left / width, 34 / height, room / width, (height - 64) / height))
            plain_axes(ax)
            sheet = _Sheet(_top(part, base), rows, base, axis, methods, titles)
            if isinstance(part, Stems):
                _stems(ax, part, sheet)
            else:
                _curves(ax, part, sheet)
            ax.set_title(
                part.title, fontsize=9, loc="left", pad=14, x=-(gap - 6) / room, weight="bold", parse_math=False
            )
            left += room + 30
        return to_svg(fig, "distance", titles)


@dataclass(frozen=True)
class _Sheet:
    """Settings of a panel beside its values (see `distances`): its scale ends at `top`, stems have `rows` rows."""

    top: float
    rows: int
    base: tuple[float, str] | None
    axis: str
    methods: Mapping[str, bool]
    titles: Titles


def _stems(ax: Any, part: Stems, sheet: _Sheet) -> None:
    """A mark a method at its value, on a stem from 0, with the number beside it."""
    for row, (name, (value, said)) in enumerate(part.values.items()):
        style = mark_style(name, "method", sheet.methods[name], list(sheet.methods))
        ax.plot([0, value], [row, row], color=style["color"], lw=1.1, zorder=2)
        sheet.titles.put(ax.plot(value, row, **style, zorder=3), said)
        ax.annotate(
            f"{value:.2f}",
            (value, row),
            (7, -3),
            textcoords="offset points",
            size=8.5,
            color=INK,
            bbox={"fc": "white", "ec": "none", "pad": 0.6},
        )
    ax.set_yticks(range(len(part.values)), list(part.values), parse_math=False)
    ax.tick_params(axis="y", length=0, labelcolor=INK)
    ax.set_ylim(sheet.rows - 0.4, -0.6)
    _scale(ax.set_xlim, ax.set_xticks, sheet.top * 1.18, sheet.top)
    ax.set_xlabel(sheet.axis, fontsize=8.5, color=MUTED, labelpad=1, parse_math=False)
    if sheet.base is not None:
        ax.axvline(sheet.base[0], color=INK, lw=1, ls=(0, (4, 3)), zorder=1)
        words = {"textcoords": "offset points", "ha": "center", "size": 8, "color": MUTED}
        ax.annotate(sheet.base[1], (sheet.base[0], -0.6), (0, 3), **words)


def _curves(ax: Any, part: Curves, sheet: _Sheet) -> None:
    """A line a method, named at its end."""
    from matplotlib.ticker import MaxNLocator

    last = max(x for line in part.lines.values() for x, _, _ in line)
    ax.set_xlim(-0.05 * last, last * 1.45)
    ax.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=[1, 2, 5, 10]))
    _scale(ax.set_ylim, ax.set_yticks, sheet.top * 1.06, sheet.top)
    ax.set_xlabel(part.unit, fontsize=8.5, color=MUTED, labelpad=1)
    ax.set_ylabel(sheet.axis, fontsize=8.5, color=MUTED, labelpad=2, parse_math=False)
    anchors, blocked = [], []
    if sheet.base is not None:
        ax.axhline(sheet.base[0], color=INK, lw=1, ls=(0, (4, 3)), zorder=1)
        ax.annotate(
            sheet.base[1], (1, sheet.base[0]), (-2, 3), xycoords=("axes fraction", "data"), textcoords="offset points",
            ha="right", size=8, color=MUTED,
        )  # fmt: skip
        low, high = (ax.transData.transform((x, sheet.base[0])) for x in (0, last * 1.45))
        blocked += [
            (low[0], low[1] - 1, high[0], high[1] + 1),
            (high[0] - LETTER * len(sheet.base[1]), high[1], *(high + 12)),
        ]
    for name, line in part.lines.items():
        style = mark_style(name, "method", sheet.methods[name], list(sheet.methods))
        dashes = DASHES[list(sheet.methods).index(name) % len(DASHES)]
        ax.plot([x for x, _, _ in line], [y for _, y, _ in line], color=style["color"], ls=dashes, lw=1.2, zorder=2)
        for x, y, said in line:
            sheet.titles.put(ax.plot(x, y, **style | {"ms": 4.5}, zorder=3), said)
            blocked.append(around(ax.transData.transform((x, y)), 3))
        anchors.append(ax.transData.transform(line[-1][:2]))
    label(ax, list(part.lines), anchors, blocked, [False] * len(anchors))


def _top(part: Stems | Curves, base: tuple[float, str] | None) -> float:
    """Where the panel's scale ends: beyond all of its values and the base."""
    if isinstance(part, Stems):
        values = [value for value, _ in part.values.values()]
    else:
        values = [y for line in part.lines.values() for _, y, _ in line]
    return ceiling([*values, *([base[0]] if base else [])])


def _scale(set_limits: Any, set_ticks: Any, end: float, top: float) -> None:
    ticks = [top * k / 4 for k in range(5)] if top in (1.0, 2.0, 4.0, 8.0) else [0, top / 2, top]
    set_limits(0, end)
    set_ticks(ticks, [tick(t) for t in ticks])


def _key(fig: Any, forget: str, retain: str, goal: float | None) -> None:
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
