"""Several seeds: what `--seeds` runs, and the intervals that the tables give."""

import itertools
import json
import math
import statistics
from pathlib import Path

import pytest

from expunge.cli.main import main
from expunge.report.interval import mean_interval


def test_the_interval_is_that_of_all_resamples() -> None:
    values = [0.1, 0.4, 0.5, 0.7, 0.9]
    means = sorted(statistics.fmean(drawn) for drawn in itertools.product(values, repeat=len(values)))
    exact = means[round(0.025 * len(means))], means[round(0.975 * len(means)) - 1]
    mean, low, high = mean_interval(values)
    assert mean == pytest.approx(0.52) and (low, high) == pytest.approx(exact, abs=0.011)
    assert mean_interval(values) == (mean, low, high)


def test_three_values_span_their_interval() -> None:
    """All three draws are the lowest in 1 of 27 resamples, more often than 2.5 %."""
    assert mean_interval([5.0, 0.0, 1.0]) == (2.0, 0.0, 5.0)
    mean, low, high = mean_interval([1e-8, 1e-4, 1e-3], log=True)
    assert (low, high) == pytest.approx((1e-8, 1e-3))
    assert math.log10(mean) == pytest.approx(-5)


@pytest.mark.parametrize("values", [[0.5], [0.5, 0.5, 0.5]])
def test_values_that_do_not_differ(values: list[float]) -> None:
    assert mean_interval(values) == (0.5, 0.5, 0.5)


def test_seeds_are_runs_of_their_own_with_a_mean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXPUNGE_CACHE", str(tmp_path / "cache"))
    words = ["--benchmark", "{name: fable, authors: 10, facts: 3, split: forget20}", "--method", "npo+nll"]
    words += ["--model.scratch", "{layers: 1, hidden: 16, heads: 2, vocab: 400, context: 96}", "--finetune.seed", "0"]
    words += ["--finetune.epochs", "1", "--train.num_train_epochs", "1", "--train.learning_rate", "1e-3"]
    words += ["--evaluate", "{max_new_tokens: 4, limit: 2, each_epoch: 'off'}", "--seed", "3"]
    assert main(["run", *words, "--seeds", "2", "--out", str(tmp_path / "r")]) == 0
    rows = [json.loads((tmp_path / "r" / f"seed={k}" / "results.json").read_text())[-1] for k in (3, 4)]
    values = [row["metrics"]["forget_probability"] for row in rows]
    assert [row["seed"] for row in rows] == [3, 4]
    page = (tmp_path / "r" / "results.md").read_text()
    assert "Means over seeds and their 95 % intervals" in page
    (line,) = [line for line in page.splitlines() if line.startswith("| npo+nll | 2 |")]
    assert f"{statistics.fmean(values):.3f}".lstrip("0") in line
