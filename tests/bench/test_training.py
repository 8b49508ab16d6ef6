"""The training benchmark: the naive way is the same loss, and the rows say what was asked for."""

import json
import os
import shlex
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

from expunge.bench import training
from expunge.bench.apart import in_own_process
from expunge.bench.shapes import SHAPES, Shape
from expunge.bench.turns import count_flops, utilisation
from expunge.cli.main import _parser, main

SMALLEST = Shape(layers=4, hidden=32, intermediate=48, heads=2, kv_heads=1, vocab=100)


@pytest.mark.parametrize("method", [m for m in training.METHODS if m != "uld"])
def test_naive_and_ours_are_one_loss(method: str) -> None:
    """Value and gradients, to what float32 leaves: an oracle that shares no code with the objectives."""
    steps = training.prepare_steps(method, SMALLEST, 4, 12)
    naive, ours = steps["naive"](), steps["ours"]()
    torch.testing.assert_close(naive, ours, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", ["npo+kl", "unilogit+nll", "undial+nll"])
def test_their_gradients_are_one(method: str) -> None:
    gradients = [_gradient(method, kind) for kind in ("naive", "ours")]
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-6)


def _gradient(method: str, kind: str) -> torch.Tensor:
    model = SMALLEST.build(torch.device("cpu"), torch.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Shape, "build", lambda *_args: model)
        (step,) = training.prepare_steps(method, SMALLEST, 4, 12, (kind,)).values()
    step()
    return torch.cat([p.grad.flatten() for p in model.parameters()])


def test_rows_and_page(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SHAPES, "tiny", SMALLEST)
    monkeypatch.setattr(training, "in_own_process", lambda measure, *args, **options: 1.0)
    page, svg = tmp_path / "deep" / "training.md", tmp_path / "deep" / "training.svg"
    words = ["bench", "training", "--methods", "npo+kl,uld", "--sequences", "4", "--length", "8", "--threads", "1"]
    assert main([*words, "--json", "--markdown", str(page), "--svg", str(svg)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["objective"] for row in found["rows"]] == ["npo+kl", "uld"]
    for row in found["rows"]:
        assert {"objective", "shape", "device", "step_ms", "peak_mib", "tokens_per_s"} <= set(row)
        assert set(row["step_ms"]) == set(row["peak_mib"]) == set(row["tokens_per_s"]) == {"floor", "naive", "ours"}
        assert row["tokens_per_s"]["ours"] == pytest.approx(4 * 8 * 1000 / row["step_ms"]["ours"])
    assert page.read_text().count("\n| ") == 4 and "--methods npo+kl,uld" in page.read_text()
    picture = svg.read_text()
    ElementTree.fromstring(picture)
    for words_in_it in (
        "npo+kl",
        "uld",
        "floor (plain fine-tuning)",
        "time, ms",
        "peak beyond weights and optimizer, MiB",
    ):
        assert words_in_it in picture
    assert main(words) == 0 and "naive" in capsys.readouterr().out


def test_memory_is_what_a_step_holds() -> None:
    """In processes of their own: logits as many as are counted for what `growth` expects, and ours without them."""
    size = replace(SMALLEST, vocab=8_192)
    found = {kind: in_own_process(training.measure_peak, "npo+kl", size, kind, 8, 256, 1) for kind in training.KINDS}
    peaks = {kind: peak for kind, peak in found.items() if peak is not None}
    if len(peaks) < len(found):
        pytest.skip("the peak of a process's memory can't be measured here")
    logits = 8 * 255 * 8_192 * 4 / 2**20
    assert peaks["floor"] == pytest.approx(3 * logits, rel=0.25)
    assert peaks["naive"] == pytest.approx(6.5 * logits, rel=0.25)
    assert peaks["ours"] < 0.2 * peaks["naive"]


def test_an_assistant_leaves_the_other_steps_as_they_were() -> None:
    """The floor of ULD trains every weight, although the assistant's layers are frozen."""
    alone = count_flops(training.prepare_steps("ga+nll", SMALLEST, 4, 12, ("floor",))["floor"])
    steps = training.prepare_steps("uld", SMALLEST, 4, 12)
    assert count_flops(steps["floor"]) == alone
    assert count_flops(steps["ours"]) < alone


def test_a_killed_measurement_is_said(caplog: pytest.LogCaptureFixture) -> None:
    assert in_own_process(os._exit, 9) is None
    assert "was killed" in caplog.text


def test_utilisation() -> None:
    assert utilisation(989 * 10**9, 2.0, "NVIDIA H100 80GB HBM3") == pytest.approx(0.5)
    assert utilisation(10**9, 1.0, "x86_64") is None


def test_what_cannot_be_measured(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "training", "--sequences", "3"]) == 2
    assert "--sequences must be even, for half of them are to forget; got 3" in capsys.readouterr().err
    assert main(["bench", "evaluation", "--questions", "0"]) == main(["bench", "training", "--threads", "0"]) == 2
    assert "--questions must be at least 1, got 0" in (said := capsys.readouterr().err)
    assert "--threads must be at least 1, got 0" in said
    assert main(["bench"]) == 2
    assert "the following arguments are required: kind; see expunge bench --help." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kind", "option"),
    [("decode", "--svg"), ("decode", "--rounds"), ("growth", "--methods"), ("evaluation", "--length"),
     ("training", "--questions")],
)  # fmt: skip
def test_an_option_of_another_kind(kind: str, option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", kind, option, "1"]) == 2
    assert f"unrecognized arguments: {option} 1; see expunge bench {kind} --help." in capsys.readouterr().err


@pytest.mark.parametrize("page", ["bench", "growth", "decode", "evaluation"])
def test_the_command_on_a_page_is_one_that_there_is(page: str) -> None:
    text = (Path(__file__).parents[2] / "docs" / "results" / f"{page}.md").read_text(encoding="utf-8")
    (command,) = (line for line in text.splitlines() if line.startswith("    expunge bench "))
    args = _parser().parse_args(shlex.split(command)[1:])
    assert args.kind == {"bench": "training"}.get(page, page) and args.shape in SHAPES


def test_an_unknown_method(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "training", "--methods", "npo+nl"]) == 2
    assert "unknown method 'npo+nl'. Did you mean 'npo+nll'?" in capsys.readouterr().err
