"""The measurement of decoding: its rows and what it says beside them; times themselves are never asserted."""

import json
from pathlib import Path
from typing import Any

import pytest

from expunge.bench import decode
from expunge.bench.shapes import SHAPES, Shape
from expunge.cli.main import main


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    smallest = Shape(layers=4, hidden=64, intermediate=64, heads=2, kv_heads=1, vocab=100)
    monkeypatch.setitem(SHAPES, "tiny", smallest)
    monkeypatch.setattr(decode, "STEPS", 1)


def test_rows_and_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "deep" / "decode.md"
    assert main(["bench", "decode", "--shape", "tiny", "--json", "--threads", "1", "--markdown", str(page)]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert (found["shape"], found["dtype"], found["threads"]) == ("tiny", "float32", "1")
    assert [row["layers"] for row in found["rows"]] == [1, 2]
    for row in found["rows"]:
        assert row["difference_ratio"] == pytest.approx(row["difference_ms"] / row["base_ms"])
        assert row["separate_ratio"] == pytest.approx(row["separate_ms"] / row["base_ms"])
        # LoRA of rank 16 on q, k, v, o, gate, up and down: r · (in + out) each, float32.
        sides = 2 * (64 + 64) + 2 * (64 + 32) + 3 * (64 + 64)
        assert row["adapter_mib"] * 2**20 == row["layers"] * 16 * sides * 4
        assert row["cache_bytes"] == row["layers"] * 2 * 32 * 4  # a key and a value of one head, float32
    text = page.read_text()
    assert "expunge bench decode --shape tiny --threads 1" in text and text.count("\n| ") == 4


def test_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "decode", "--shape", "tiny"]) == 0
    assert "difference" in capsys.readouterr().out


def test_an_unknown_shape(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "decode", "--shape", "tin"]) == 2
    assert "unknown shape 'tin'. Did you mean 'tiny'? Known: tiny, small" in capsys.readouterr().err
