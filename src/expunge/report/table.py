"""One table for every place where it stands: a Markdown page, a terminal, the HTML page, JSON.

A builder chooses cells, all of them plain text; escaping and alignment are done here alone.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby
from typing import TYPE_CHECKING, Any, Literal

from expunge.evals.glossary import metric_named
from expunge.system.escaping import escaped, visible

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

STACKED = ("qa", "glossary", "results attacks")
"""Classes of tables whose cells stand below each other on a narrow screen, each with its head beside it."""

STYLES = {"good": "green"}
"""How a terminal shows the kinds of `Part` that it tells apart."""


@dataclass(frozen=True)
class Part:
    """A piece of a cell that is set apart: `kind` is its class in HTML."""

    content: "Cell"
    kind: str


Frame = Literal["none", "cells", "rows"]
Tag = Literal["", "best", "collapsed"]
Cell = str | Part | tuple["str | Part", ...]


@dataclass(frozen=True, kw_only=True)
class Column:
    """A head and how the cells below it stand.

    head: plain text; a terminal breaks it at line breaks, everything else takes them for spaces.
    hint: which way is good: ↑, ↓ or ≈, or another short remark on the head.
    group: the heading that it shares with its neighbours.
    kind: class of its cells in HTML.
    wrap: how a narrow terminal treats cells: cuts them, breaks them between words, or anywhere ("fold"); `least` and
        `most` bound the width there.
    """

    head: str = ""
    hint: str = ""
    align: Literal["left", "right"] = "right"
    group: str = ""
    kind: str = ""
    wrap: Literal["", "words", "fold"] = ""
    least: int | None = None
    most: int | None = None


@dataclass(frozen=True)
class Line:
    """Cells, one a column. `mark` is SVG of ours that HTML shows before the first cell.

    reference: whether the others are held against it. tag: "best" or "collapsed".
    """

    cells: Sequence[Cell]
    mark: str = ""
    reference: bool = False
    tag: Tag = ""


def left(*heads: str, **options: Any) -> list[Column]:
    """Columns of words."""
    return [Column(head=head, align="left", **options) for head in heads]


def right(*heads: str, **options: Any) -> list[Column]:
    """Columns of numbers."""
    return [Column(head=head, **options) for head in heads]


def metrics(*names: str, **options: Any) -> list[Column]:
    """Columns of metrics, each with which way is good."""
    return [Column(head=about.label, hint=about.hint, **options) for about in map(metric_named, names)]


@dataclass(frozen=True)
class Table:
    """Columns, rows and notes below them.

    title: a terminal shows it above, HTML tells it to screen readers; in Markdown the text around has it.
    records: what the rows were made of, which JSON shows instead of them.
    """

    columns: Sequence[Column]
    rows: Sequence[Line | Sequence[Cell]]
    title: str = ""
    notes: Sequence[str] = ()
    records: Sequence[Mapping[str, Any]] | None = None

    @classmethod
    def of(
        cls,
        records: Sequence[Mapping[str, Any]],
        cells: Mapping[str, str | Callable[[Mapping[str, Any]], Cell]],
        *,
        title: str = "",
        notes: Sequence[str] = (),
    ) -> "Table":
        """A table of words: every head with the key that stands below it, or a function of the record."""
        first, *others = cells
        rows = [[row[how] if isinstance(how, str) else how(row) for how in cells.values()] for row in records]
        return cls([*left(first), *left(*others, wrap="words")], rows, title, notes, records)

    def markdown(self) -> str:
        """Lines of a Markdown table, and each note as a paragraph."""
        heads = [escaped(f"{column.head} {column.hint}") for column in self.columns]
        alignment = [":--" if column.align == "left" else "--:" for column in self.columns]
        cells = [[escaped(_plain(cell)) for cell in row.cells] for row in self._rows]
        lines = "".join(f"| {' | '.join(line)} |\n" for line in (heads, alignment, *cells))
        return "\n".join([lines, *(f"{escaped(note)}\n" for note in self.notes)])

    def rich(self, frame: Frame = "none") -> "RenderableType":
        """The table for a terminal; `frame` draws lines between the columns ("cells"), and between the rows too."""
        from rich.box import SIMPLE_HEAD
        from rich.console import Group
        from rich.table import Table as Grid
        from rich.text import Text

        look: Any = {"box": SIMPLE_HEAD, "collapse_padding": True, "pad_edge": False} if frame == "none" else {}
        title = Text(visible(self.title), "table.title") if self.title else None
        grid = Grid(title=title, show_lines=frame == "rows", **look)
        for column in self.columns:
            head = Text(visible("\n".join(filter(None, (column.head, column.hint)))))
            width = {"no_wrap": not column.wrap, "min_width": column.least, "max_width": column.most}
            grid.add_column(
                head, justify=column.align, overflow="fold" if column.wrap == "fold" else "ellipsis", **width
            )
        for row in self._rows:
            grid.add_row(*(_styled(cell) for cell in row.cells))
        return Group(grid, *(Text(visible(note)) for note in self.notes)) if self.notes else grid

    def html(self, kind: str = "results") -> str:
        """The table of class `kind` with its notes, nothing but elements and classes that the page's style knows."""
        starts = [k > 0 and c.group != self.columns[k - 1].group for k, c in enumerate(self.columns)]
        label = f' tabindex="0" role="region" aria-label="{escape(self.title)}"' if self.title else ""
        lines = [f'<div class="scroll"{label}>', f'<table class="{kind}">', "<thead>"]
        if any(column.group for column in self.columns):
            runs = [(group, len(list(same))) for group, same in groupby(column.group for column in self.columns)]
            spans = (f'<th class="first" colspan="{n}">{escape(g)}</th>' if g else "<th></th>" * n for g, n in runs)
            lines.append(f'<tr class="groups">{"".join(spans)}</tr>')
        heads = (
            _open("th", column.kind, start and "first", scope="col")
            + escape(column.head)
            + (" " + _html(Part(column.hint, "hint")) if column.hint else "")
            + "</th>"
            for column, start in zip(self.columns, starts, strict=True)
        )
        lines += [f"<tr>{''.join(heads)}</tr>", "</thead>", "<tbody>"]
        for row, following in zip(self._rows, [*self._rows, None][1:], strict=True):
            last = row.reference and following is not None and not following.reference
            tag = _html(Part(row.tag, f"tag {'good' if row.tag == 'best' else 'bad'}")) if row.tag else ""
            name, *cells = map(_html, row.cells)
            others = (
                f"{_open('td', column.kind, start and 'first', head=column.head if kind in STACKED else '')}{cell}</td>"
                for column, start, cell in zip(self.columns[1:], starts[1:], cells, strict=True)
            )
            opened = _open("tr", row.reference and "reference", last and "last", row.tag)
            lines += [f'{opened}<th scope="row">{row.mark}{name}{tag}</th>{"".join(others)}</tr>']
        lines += ["</tbody>", "</table>", "</div>", *(f'<p class="note">{escape(note)}</p>' for note in self.notes)]
        return "\n".join(lines)

    def json(self) -> str:
        """The records, or else the rows by their heads."""
        heads = [column.head for column in self.columns]
        plain = [dict(zip(heads, map(_plain, row.cells), strict=True)) for row in self._rows]
        return json.dumps(plain if self.records is None else self.records, indent=1)

    @property
    def _rows(self) -> list[Line]:
        return [row if isinstance(row, Line) else Line(row) for row in self.rows]


def _plain(cell: Cell) -> str:
    """The words of a cell, its parts with a space between them."""
    if isinstance(cell, Part):
        return _plain(cell.content)
    return cell if isinstance(cell, str) else " ".join(map(_plain, cell))


def _styled(cell: Cell) -> "Text":
    """The cell in a terminal, which its text can neither style nor steer."""
    from rich.text import Text

    parts = cell if isinstance(cell, tuple) else (cell,)
    styles = (STYLES.get(part.kind, "") if isinstance(part, Part) else "" for part in parts)
    return Text(" ").join(Text(visible(_plain(part)), style) for part, style in zip(parts, styles, strict=True))


def _html(cell: Cell) -> str:
    if isinstance(cell, Part):
        return f'<span class="{cell.kind}">{_html(cell.content)}</span>'
    return escape(cell) if isinstance(cell, str) else "".join(map(_html, cell))


def _open(name: str, *classes: str | Literal[False], scope: str = "", head: str = "") -> str:
    """The start of an element with those of the classes that there are."""
    attributes = {"scope": scope, "class": " ".join(kind for kind in classes if kind), "data-head": escape(head)}
    return f"<{name}" + "".join(f' {key}="{value}"' for key, value in attributes.items() if value) + ">"
