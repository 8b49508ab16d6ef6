"""The benchmark of the loss at the head: ours is cross-entropy, and the rows say what was measured."""

import json
from pathlib import Path

import pytest
import torch

from expunge.bench import head
from expunge.bench.shapes import SHAPES, Shape
from expunge.cli.main import main
from expunge.modeling.logprobs import CHUNK


def test_ours_is_cross_entropy_with_all_gradients() -> None:
    generator = torch.Generator().manual_seed(0)
    tokens = 2 * CHUNK + 7
    start = torch.randn(tokens, 8, generator=generator), torch.randn(50, 8, generator=generator)
    target_N = torch.randint(50, (tokens,), generator=generator)
    found = []
    for way in (head.dense, head.ours):
        hidden_ND, weight_VD = (x.clone().requires_grad_() for x in start)
        loss = way(hidden_ND, weight_VD, target_N)
        loss.backward()
        found.append((loss.detach(), hidden_ND.grad, weight_VD.grad))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-6)


def test_rows_and_page(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SHAPES, "tiny", Shape(layers=1, hidden=16, intermediate=16, heads=1, kv_heads=1, vocab=300))
    page = tmp_path / "head.md"
    words = ["bench", "head", "--tokens", "300", "--rounds", "2", "--threads", "1"]
    assert main([*words, "--json", "--markdown", str(page)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["way"] for row in found["rows"]][:2] == ["dense", head.OURS]
    assert all(row["ms"] > 0 and row["error"] < 1e-5 for row in found["rows"])
    assert "Cross-entropy of 300 tokens" in page.read_text() and shown(words, capsys)


def shown(words: list[str], capsys: pytest.CaptureFixture[str]) -> bool:
    return main(words) == 0 and "/ ours" in capsys.readouterr().out
