"""Markdown that our pages hold shows exactly the text it was made of, whatever that is."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from expunge.bench.turns import page
from expunge.report import write_markdown, write_report
from expunge.report.markdown import picture_line
from expunge.report.table import Table, left, right
from expunge.system.escaping import code, escaped, one_line

EVIL = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "a | b \\| c \\\\| d",
    "`x` ``y`` `",
    "*x* **y** _z_ __w__ a_b ~~s~~",
    "[x](javascript:alert(1)) ![i](http://a/b) [r]: x [a][b]",
    "two\n\n# lines\r\n| more |",
    "&lt;b&gt; &amp; &#60;",
    "# no heading",
    "- no list",
    "1. none either",
    "12) nor this",
    "> no quote",
    "\x1b[31mred\u2028x",
    "--- | ---",
]
TEXT = st.text(alphabet="ab <>&|`*_~[]()!#\\+-.:;/\"'\n1=x", max_size=30) | st.sampled_from(EVIL) | st.text(max_size=20)


class Shown(HTMLParser):
    """The elements of a page and its text."""

    def __init__(self, markdown: str) -> None:
        super().__init__()
        self.names: list[str] = []
        self.text: list[str] = []
        self.feed(MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(markdown))

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.names.append(tag)

    def handle_data(self, data: str) -> None:
        self.text.append(data)


@given(TEXT)
def test_text_within_a_line(text: str) -> None:
    wanted = one_line(text)
    for before, names in (("", ["p"]), ("Name: ", ["p"]), ("## ", ["h2"]), ("- ", ["ul", "li"])):
        shown = Shown(f"{before}{escaped(text)} x\n")
        assert shown.names == names
        assert "".join(shown.text).strip() == f"{before.lstrip('#- ')}{wanted} x".strip()
    assert Shown(f"so {code(text)}").names == ["p", "code"] if wanted else not code(text)


@given(st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=3))
def test_cells_of_a_table(rows: list[tuple[str, str]]) -> None:
    shown = Shown(Table([*left("a"), *right("b")], rows).markdown())
    assert set(shown.names) == {"table", "thead", "tbody", "tr", "th", "td"}
    assert shown.names.count("td") == 2 * len(rows)


@pytest.mark.parametrize("text", EVIL)
def test_pages_of_benches_and_pictures(text: str) -> None:
    table = Table([*left(text), *right("b")], [[text, text]], notes=[text])
    written = page("# Head", text, table, "Legend.", {"device": text, "rows": []})
    assert not {"script", "img", "a", "em", "strong"} & set(Shown(written).names)
    assert Shown(picture_line(text, "a b(c).svg")).names == ["p", "img"]


@pytest.mark.parametrize("text", EVIL)
def test_reports(tmp_path: Path, text: str) -> None:
    """Labels, splits, versions and folders of a run whose results were edited by somebody else."""
    folder = tmp_path / re.sub("[/\x00]", "_", text)
    folder.mkdir()
    common = {
        "benchmark": text,
        "split": text,
        "seed": 0,
        "versions": {text: text},
        "metrics": {"forget_probability": 0.1, text: 1},
    }
    rows = [{"method": "target", **common}, {"method": text, "removal": "weights", **common}]
    (folder / "results.json").write_text(json.dumps(rows))
    written = write_markdown([folder], tmp_path / "page.md").read_text(encoding="utf-8")
    assert not {"script", "img", "a", "em", "strong"} & set(Shown(written).names)
    html = write_report([folder], tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<script>alert" not in html and "<img src=x" not in html
