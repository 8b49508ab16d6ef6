"""The pictures of what things cost: time and memory by method, and by what makes them grow.

Kinds differ in the shape of their marks and the dashes of their lines, so that nothing needs colour.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from expunge.report.canvas import MUTED, Titles, figure, plain_axes, to_svg
from expunge.report.drawing import COLOURS, DASHES, key

MARKS = {"floor": "o", "naive": "s", "ours": "D"}
NAMES = {"floor": "floor (plain fine-tuning)", "naive": "naive", "ours": "ours"}
TIME, MEMORY = "step_ms", "peak_mib"
UNITS = {TIME: "time, ms", MEMORY: "peak beyond weights and optimizer, MiB"}
WORDS = {
    "vocabulary": "vocabulary, tokens",
    "length": "length of a sequence, tokens",
    "rows": "forget rows (an epoch and its references)",
    "layers": "layers of ULD's assistant, K",
}


def step_costs(rows: Sequence[Mapping[str, Any]]) -> str:
    """A line for each method: where its step stands in time and in memory beside the naive one and the floor."""
    titles = Titles()
    with figure(8.35, 1.15 + 0.3 * len(rows)) as fig:
        panels = fig.subplots(1, 2, sharey=True)
        for ax, (what, unit) in zip(panels, UNITS.items(), strict=True):
            plain_axes(ax)
            ax.grid(axis="y", color="#eaeef2", lw=0.8)
            for y, row in enumerate(rows):
                values = {kind: value for kind, value in (row.get(what) or {}).items() if value is not None}
                for kind, value in values.items():
                    said = f"{row['objective']}, {NAMES[kind]}: {value:,.0f} {unit.split()[-1]}"
                    titles.put(ax.plot(value, y, **_style(kind), zorder=3), said)
                if values.get("naive") and values.get("ours"):
                    text = f"{values['naive'] / values['ours']:.1f}×"
                    spot = (max(values.values()), y)
                    ax.annotate(text, spot, (9, -3), textcoords="offset points", size=8, color=MUTED)
            ax.set_xlim(0, 1.2 * ax.get_xlim()[1])
            ax.set_xlabel(unit)
        panels[0].set_yticks(range(len(rows)), [row["objective"] for row in rows])
        panels[0].set_ylim(len(rows) - 0.4, -0.6)
        lines = key(fig, {NAMES[kind]: _style(kind) for kind in MARKS})
        height = fig.get_size_inches()[1]
        _note(fig, "n×: naive over ours")
        fig.subplots_adjust(0.13, 0.55 / height, 0.97, 1 - (0.1 + 0.23 * lines) / height, wspace=0.08)
        return to_svg(fig, "steps", titles)


def growth(rows: Sequence[Mapping[str, Any]]) -> str:
    """Both axes logarithmic: a straight line is a power, whose exponent stands in the corner, expected in brackets."""
    causes = list(dict.fromkeys(row["by"] for row in rows))
    titles = Titles()
    with figure(8.35, 5.2) as fig:
        grid = fig.subplots(2, len(causes), squeeze=False, sharex="col")
        for column, cause in enumerate(causes):
            of_cause = [row for row in rows if row["by"] == cause]
            for line, (what, unit) in enumerate(UNITS.items()):
                ax = grid[line][column]
                _panel(
                    ax, [row for row in of_cause if all(row[what])], what, titles
                )  # of nothing there is no logarithm
                if column == 0:
                    ax.set_ylabel(unit.replace("weights and", "weights\nand"), size=8.5)
            grid[1][column].set_xlabel(WORDS[cause].replace(" (", "\n("), size=8.5)
        lines = key(fig, {NAMES[kind]: _style(kind) for kind in MARKS if any(row["kind"] == kind for row in rows)})
        _note(fig, "fitted exponent (expected)")
        fig.subplots_adjust(0.11, 0.13, 0.98, 0.975 - 0.032 * lines, wspace=0.34, hspace=0.1)
        return to_svg(fig, "growth", titles)


def short(size: int) -> str:
    """4,096 → 4k, as one says of powers of two."""
    return f"{size // 1024}k" if size >= 2048 and size % 1024 == 0 else f"{size:,}"


def _panel(ax: Any, rows: Sequence[Mapping[str, Any]], what: str, titles: Titles) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    plain_axes(ax)
    if not rows:
        ax.set_yticks([])
        return
    ax.grid(color="#eaeef2", lw=0.8)
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    said = []
    for row in rows:
        style, x, y = _style(row["kind"]), row["sizes"], row[what]
        ax.plot(x, y, color=style["color"], ls=DASHES[list(MARKS).index(row["kind"])], lw=1.1, zorder=2)
        for size, value in zip(x, y, strict=True):
            title = f"{NAMES[row['kind']]}, {row['by']} {size:,}: {value:,.0f} {'ms' if what == TIME else 'MiB'}"
            titles.put(ax.plot(size, value, **style | {"ms": 5}, zorder=3), title)
        fitted, expected = row["exponent"][what], row["expected"][what]
        said.append(f"{row['kind']} {fitted:.2f} ({expected:.2f})" if fitted is not None else "")
    sizes = sorted({size for row in rows for size in row["sizes"]})
    ax.set_xticks(sizes, [short(size) for size in sizes], size=7.5)
    ax.minorticks_off()
    low, high = ax.get_ylim()
    ax.set_ylim(low / 1.15, high * (high / low) ** (0.16 * len(said)))  # room for the words
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    ax.yaxis.set_minor_formatter(NullFormatter())
    ax.text(0.03, 0.98, "\n".join(said), transform=ax.transAxes, va="top", size=8, color=MUTED)


def _note(fig: Any, words: str) -> None:
    fig.text(0.985, 0.995, words, ha="right", va="top", size=8.5, color=MUTED)


def _style(kind: str) -> dict[str, Any]:
    colour = COLOURS[list(MARKS).index(kind)]
    face = "white" if kind == "naive" else colour
    return {"marker": MARKS[kind], "color": colour, "mfc": face, "mec": colour, "ms": 6.5, "ls": "", "mew": 1.2}
