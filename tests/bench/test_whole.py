"""The benchmark of whole steps: what it counts as useful is what a model multiplies, and the page of the GPU check."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

from expunge.bench import head, training, whole
from expunge.bench.shapes import SHAPES, Shape
from expunge.bench.turns import count_flops

SMALLEST = Shape(layers=4, hidden=64, intermediate=96, heads=2, kv_heads=1, vocab=300)


def test_useful_operations_are_those_that_are_counted() -> None:
    model = SMALLEST.build(torch.device("cpu"), torch.float32)
    ids_BT = torch.zeros(4, 48, dtype=torch.long)
    counted = count_flops(lambda: model(input_ids=ids_BT, labels=ids_BT).loss.backward())
    parameters = sum(p.numel() for p in model.parameters())
    assert whole._useful(SMALLEST, parameters, 4, 48) == pytest.approx(counted, rel=0.1)


@pytest.mark.slow
def test_a_row_of_the_trainers_own_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SHAPES, "tiny", SMALLEST)
    found = whole.measure("tiny", methods=("npo+kl",), sequences=4, length=8, rounds=2, threads=1, optim="adamw_torch")
    (row,) = found["rows"]
    assert row["step_ms"] > 0 and row["mfu"] is None
    assert row["parameters"] == sum(
        p.numel() for p in SMALLEST.build(torch.device("meta"), torch.bfloat16).parameters()
    )
    assert "npo+kl" in whole.markdown(found, command="expunge bench whole")


# -- scripts/gpu-check -------------------------------------------------------------------------------------------------


@pytest.fixture
def check() -> Any:
    path = Path(__file__).parents[2] / "scripts" / "gpu_check.py"
    spec = importlib.util.spec_from_file_location("gpu_check", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_has_every_part_that_was_measured(check: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SHAPES, "8b", SMALLEST)
    steps = training.measure("8b", methods=("ga+nll",), sequences=2, length=8, rounds=1, threads=1, memory=False)
    results = {
        "tests": {"found": {"exit": 0, "said": "passed"}},
        "ceilings": {"found": {"bf16_tflops": 790.4, "copy_tb": 4.24}},
        "training-8b": {"found": steps},
        "whole-8b": {"failed": "Traceback"},
        "head-8b": {"found": head.measure("8b", tokens=16, rounds=2, threads=1)},
        "decode-8b": {"skipped": "5 minutes were over"},
    }
    page = check.page(results)
    titles = [line for line in page.splitlines() if line.startswith("#")]
    assert titles == [
        "# On one GPU",
        "## What an unlearning step costs: 8 billion parameters",
        "## What the loss at the head costs: 8 billion parameters",
    ]
    assert page.count(f"- torch: {torch.__version__.partition('+')[0]}") == 1 and "790 TFLOP/s" in page
    assert "scripts/gpu-check --only training-8b" in page


def test_without_a_device_it_says_so(check: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for words, says in (([], "no CUDA device is here"), (["--only", "test"], "unknown part 'test'")):
        monkeypatch.setattr("sys.argv", ["gpu_check.py", "--out", str(tmp_path / "out"), *words])
        with pytest.raises(SystemExit, match=says):
            check.main()
    assert not (tmp_path / "out").exists()
