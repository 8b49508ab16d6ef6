"""The evaluation benchmark: two ways that find the same numbers, held against each other; times are never asserted."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from expunge.bench import evaluation
from expunge.bench.shapes import SHAPES, Shape, word_tokenizer
from expunge.cli.main import main
from expunge.evals import tofu

SMALLEST = Shape(layers=2, hidden=32, intermediate=48, heads=2, kv_heads=1, vocab=100)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SHAPES, "tiny", replace(SMALLEST, layers=1))


def test_rows_and_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "deep" / "evaluation.md"
    words = ["bench", "evaluation", "--questions", "2", "--rounds", "1", "--threads", "1"]
    assert main([*words, "--json", "--markdown", str(page)]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert (found["shape"], found["questions"], found["threads"]) == ("tiny", 2, "1")
    asked = [(row["prompts"], row["what"]) for row in found["rows"]]
    assert asked == [(p, w) for p in ("plain", "chat", "examples") for w in ("scores", "whole", evaluation.KNOWN)]
    for row in found["rows"]:
        assert row["ratio"] == pytest.approx(row["naive_s"] / row["ours_s"])
    text = page.read_text()
    assert (
        "expunge bench evaluation --shape tiny --questions 2 --rounds 1 --threads 1" in text
        and text.count("\n| ") == 11
    )


def test_the_retain_answers_are_known() -> None:
    model, tokenizer = evaluation._model(SMALLEST), word_tokenizer(100)
    benchmark = evaluation._benchmark(6, 100, "plain")
    evaluation._let_know(model, tokenizer, benchmark)
    found = tofu.evaluate_questions(model, tokenizer, benchmark, progress=False).metrics
    assert found["retain_rouge_l_recall"] == 1.0 and found["forget_rouge_l_recall"] < 0.5


def test_another_number_is_noticed() -> None:
    """What the measurement asserts of the two ways: it fails if either is wrong anywhere."""
    model, tokenizer = evaluation._model(SMALLEST), word_tokenizer(100)
    benchmark = evaluation._benchmark(3, 100, "chat")
    naive = evaluation.naive(model, tokenizer, benchmark, generate=True)
    ours = tofu.evaluate_questions(model, tokenizer, benchmark, progress=False).records
    evaluation._check(naive, ours)
    assert len({record["generated"] for records in ours.values() for record in records}) > 3
    for name, key, change in (
        ("world_facts", "logp_mean", 1e-4),  # twice the 1e-5 of its size that may differ
        ("retain", "truth_ratio", 1.0),
        ("forget", "exact_memorization", 0.1),
        ("real_authors", "generated", " w7"),
    ):
        before = ours[name][0][key]
        ours[name][0][key] = before + change
        with pytest.raises(AssertionError):
            evaluation._check(naive, ours)
        ours[name][0][key] = before
    with torch.no_grad():
        model.lm_head.weight[5] += 1
    with pytest.raises(AssertionError):
        evaluation._check(
            naive, tofu.evaluate_questions(model, tokenizer, benchmark, generate=False, progress=False).records
        )
