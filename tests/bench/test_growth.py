"""How costs grow: the fit on known powers, the sizes that are taken, and every cause measured once."""

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from expunge.bench import growth
from expunge.bench.shapes import SHAPES, Shape
from expunge.cli.main import main

SMALLEST = Shape(layers=4, hidden=32, intermediate=48, heads=2, kv_heads=1, vocab=100)


def test_the_exponent_of_a_power() -> None:
    sizes = (8, 16, 64)
    assert growth.exponent(sizes, [3 * size**1.7 for size in sizes]) == pytest.approx(1.7)
    assert growth.exponent(sizes, [5.0] * 3) == pytest.approx(0, abs=1e-9)
    assert growth.exponent(sizes, [1.0, None, 2.0]) is None


def test_what_is_expected() -> None:
    """Whole logits make memory grow with the vocabulary nearly in proportion; chunks of them much less."""
    shape = Shape(layers=4, hidden=64, intermediate=128, heads=2, kv_heads=2, vocab=4_096)
    sizes = growth.Sizes(8, 256, {"vocabulary": (4_096, 16_384)})
    points = [growth._point("vocabulary", v, shape, sizes) for v in (4_096, 16_384)]
    slope = {kind: growth.exponent((4_096, 16_384), [p.estimate(kind) for p in points]) for kind in growth.KINDS}
    assert slope["ours"] is not None and slope["floor"] is not None and slope["naive"] is not None
    assert slope["ours"] + 0.1 < slope["floor"] < slope["naive"] < 1


def test_every_cause_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SHAPES, "tiny", SMALLEST)
    # Only the process is spared: what it would do is done here.
    monkeypatch.setattr(growth, "in_own_process", lambda measure, *args, **options: measure(*args, **options))
    page, svg = tmp_path / "growth.md", tmp_path / "growth.svg"
    by = "{vocabulary: [200, 400], length: [8, 16], rows: [4, 8], layers: [1, 3]}"
    words = ["bench", "growth", "--by", by, "--sequences", "4", "--length", "8", "--threads", "1"]
    assert main([*words, "--json", "--markdown", str(page), "--svg", str(svg)]) == 0
    rows: list[dict[str, Any]] = json.loads(capsys.readouterr().out)["rows"]
    kinds = ("floor", "naive", "ours")
    both = [(cause, kind) for cause in ("vocabulary", "length") for kind in kinds]
    assert [(row["by"], row["kind"]) for row in rows] == [*both, ("rows", "ours"), ("layers", "ours")]
    for row in rows:
        assert len(row["sizes"]) == len(row["step_ms"]) == len(row["peak_mib"]) == 2
        assert row["exponent"]["step_ms"] == pytest.approx(growth.exponent(row["sizes"], row["step_ms"]))
    expected = {(row["by"], row["kind"]): row["expected"]["step_ms"] for row in rows}
    assert expected["rows", "ours"] == pytest.approx(1)
    # A little more than in proportion, for attention; all but the output head's share of three layers to one.
    assert all(1 < expected["length", kind] < 1.25 for kind in kinds)
    assert 0 < expected["vocabulary", "floor"] < 1 and 0.5 < expected["layers", "ours"] < 1
    assert page.read_text().count("\n| ") == 2 + len(rows) and f"--by '{by}'" in page.read_text()
    picture = svg.read_text()
    ElementTree.fromstring(picture)
    for words_in_it in ("vocabulary, tokens", "time, ms", "peak beyond weights", "ours"):
        assert words_in_it in picture


@pytest.mark.parametrize(
    ("by", "says"),
    [
        ("{vocab: [200, 400]}", "unknown cause 'vocab'. Did you mean 'vocabulary'?"),
        ("{rows: 8}", "rows needs a list of two sizes at least"),
        ("{layers: [1, 4]}", "layers can't be 4 here; give numbers from 1 to 3"),
        ("{length: [8, x]}", "length can't be 'x' here"),
    ],
)
def test_sizes_that_cannot_be(by: str, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "growth", "--by", by]) == 2
    assert says in capsys.readouterr().err


def test_usual_sizes_fit_every_shape() -> None:
    for name, shape in SHAPES.items():
        sizes = growth.sizes_for(name)
        assert set(sizes.by) == {"vocabulary", "length", "rows", "layers"}
        assert max(sizes.by["layers"]) < shape.layers and all(len(values) > 1 for values in sizes.by.values())
