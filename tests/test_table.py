"""A table shows exactly the text that it was made of, in every place."""

import io
import json
from html.parser import HTMLParser

from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from expunge.report.table import Column, Line, Part, Table, left, metrics, right

TEXT = st.text(alphabet="ab <>&\"'|[]/\\=\x1b\x07\u202e\r", min_size=1, max_size=20) | st.sampled_from(
    ["<script>alert(1)</script>", "[red]x[/red]", "[link=http://a]b[/link]", ":smile:", "\x1b[31mred", "&lt;b&gt;"]
)
SPLITS = [Column(head=name, group=group, kind="value") for group, name in (("one", "a"), ("one", "b"), ("two", "a"))]


class Elements(HTMLParser):
    """Elements with their classes, and the text of cells."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.cells: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_data(self, data: str) -> None:
        if self.cells and data != "\n":
            self.cells[-1] += data

    def classes(self, tag: str) -> list[str | None]:
        return [attributes.get("class") for name, attributes in self.found if name == tag]


def shown(table: Table, width: int = 80) -> str:
    console = Console(width=width, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    console.print(table.rich())
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@given(st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=3))
def test_html_is_the_text(rows: list[tuple[str, str]]) -> None:
    table = Table(
        [*left("a & b"), *right("<i>")], [[name, (value, Part(value, "spread"))] for name, value in rows], "<t>"
    )
    page = Elements(table.html())
    assert {tag for tag, _ in page.found} == {"div", "table", "thead", "tbody", "tr", "th", "td", "span"}
    whole = [cell.replace("\r\n", "\n").replace("\r", "\n") for name, value in rows for cell in (name, value + value)]
    assert [cell.replace("\r\n", "\n").replace("\r", "\n") for cell in page.cells] == ["a & b", "<i>", *whole]


@given(TEXT)
def test_a_terminal_is_neither_styled_nor_steered(text: str) -> None:
    plain = shown(Table([*left("x"), *right("y")], [["a", "b"]], "t", ["n"]))
    out = shown(Table([*left("x"), *right("y")], [[text, text]], text, [text]), width=200)
    escapes = {part.partition("m")[0] for part in plain.split("\x1b")[1:]}
    assert {part.partition("m")[0] for part in out.split("\x1b")[1:]} <= escapes
    assert not {"\x07", "\u202e", "\r"} & set(out)
    words = text.replace("\x1b", "\\x1b").replace("\x07", "\\x07").replace("\u202e", "\\u202e").replace("\r", "\\r")
    assert words.strip() in out


def test_groups_references_and_marks() -> None:
    rows = [
        Line(["target", *"123"], reference=True),
        Line(["ga", *"456"], tag="best"),
        Line(["npo", *"789"], tag="collapsed"),
    ]
    table = Table(
        [*left("Model"), *SPLITS, *right("mean")], [Line([*r.cells, "5"], r.mark, r.reference, r.tag) for r in rows]
    )
    page = Elements(table.html())
    assert page.classes("tr") == ["groups", None, "reference last", "best", "collapsed"]
    assert [a.get("colspan") for tag, a in page.found if tag == "th"][:4] == [None, "2", "1", None]
    assert page.classes("td")[:4] == ["value first", "value", "value first", "first"]
    assert [attributes["class"] for tag, attributes in page.found if tag == "span"] == ["tag good", "tag bad"]


def test_one_head_is_broken_in_a_terminal_alone() -> None:
    table = Table([*left("method"), *metrics("model_utility"), *right("naive /\nours")], [["ga", ".5", "2"]])
    assert table.markdown() == "| method | model utility ↑ | naive / ours |\n| :-- | --: | --: |\n| ga | .5 | 2 |\n"
    lines = shown(table).splitlines()
    assert sum("naive /" in line for line in lines) == 1 == sum("ours" in line for line in lines)
    assert not any("naive" in line and "ours" in line for line in lines)


def test_json_is_what_the_rows_were_made_of() -> None:
    records = [{"name": "a", "bytes": 2048, "path": "/x"}]
    table = Table.of(records, {"name": "name", "size": lambda row: f"{row['bytes'] // 1024} KiB"}, notes=["so"])
    assert json.loads(table.json()) == records
    assert table.markdown() == "| name | size |\n| :-- | :-- |\n| a | 2 KiB |\n\nso\n"
    assert json.loads(Table(table.columns, table.rows).json()) == [{"name": "a", "size": "2 KiB"}]


def test_a_table_without_rows_has_its_head() -> None:
    table = Table(left("a", "b"), [])
    assert "<th" in table.html() and table.markdown().startswith("| a") and json.loads(table.json()) == []
    assert "a" in shown(table)
