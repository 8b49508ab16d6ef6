"""Two ranks do what one process does: steps of a sharded model, evaluation, references, checkpoints."""

import importlib.util
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from expunge import UserError, load
from expunge.modeling.loading import save
from tests import forked

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SCRIPT = Path(__file__).with_name("two_ranks.py")


def script() -> Any:
    spec = importlib.util.spec_from_file_location("two_ranks", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def launch(*words: str, ranks: int, cache: Path) -> None:
    here = {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "EXPUNGE_CACHE": str(cache)}
    forked.ranks([sys.executable, *words], count=ranks, env={**os.environ, **here}, timeout=800)


@pytest.fixture(scope="module")
def one() -> Any:
    """The same, for one process to do."""
    return script()


@pytest.fixture(scope="module")
def folder(
    tmp_path_factory: pytest.TempPathFactory, tiny_model: Callable[..., Any], tiny_tokenizer: Any, one: Any
) -> Path:
    """Where two ranks have been at work, after one process left a checkpoint for them to go on from."""
    folder = tmp_path_factory.mktemp("ranks")
    save(tiny_model(layers=4), tiny_tokenizer, folder / "model")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EXPUNGE_CACHE", str(folder / "cache"))
        (folder / "one.json").write_text(json.dumps(one.losses(one.trainer(folder / "one", lora=True))))
    launch(str(SCRIPT), str(folder), ranks=2, cache=folder / "cache of two")
    return folder


@pytest.fixture
def found(folder: Path) -> dict[str, Any]:
    """What two ranks found."""
    return json.loads((folder / "found.json").read_text())


def test_sharded_steps_are_whole_steps(found: dict[str, Any], one: Any) -> None:
    asked = [(m, trains, kind) for m, ways in one.CASES.items() for trains, kinds in ways.items() for kind in kinds]
    assert found["ranks"] == 2
    assert [tuple(case[:3]) for case in found["steps"]] == asked
    assert max(case[3] for case in found["steps"]) < 1e-6, found["steps"]  # of how far the weights moved


def test_each_rank_scores_its_part(found: dict[str, Any], folder: Path, one: Any) -> None:
    alone, (read,) = one.scores(load(folder / "model")[0])
    assert found["scores"] == pytest.approx(alone, abs=1e-5)
    assert sum(found["read"]) == read and min(found["read"]) > 0


def test_each_row_of_a_reference_is_asked_about_once(found: dict[str, Any]) -> None:
    first, again = found["asked"]
    assert sum(first) == 20 and min(first) >= 8
    assert again == [4, 0]  # the batch that names it


def test_an_evaluation_is_that_of_one_process(found: dict[str, Any], folder: Path, one: Any) -> None:
    """Shared out among whole models, and in step by the parts of a sharded one."""
    alone = one.evaluated(*load(folder / "whole"), folder)
    assert alone["metrics"]["kl_unlearned"] > 1e-3  # the training before it has moved the model
    for kind in ("shared evaluation", "sharded evaluation"):
        assert found[kind]["metrics"] == pytest.approx(alone["metrics"], rel=1e-4, abs=1e-5)
        for name, rows in alone["records"].items():
            assert [row["generated"] for row in found[kind]["records"][name]] == [row["generated"] for row in rows]


def test_training_is_that_of_one_process(
    found: dict[str, Any], folder: Path, one: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EXPUNGE_CACHE", str(folder / "cache"))
    alone = one.losses(one.trainer(folder / "full"))
    assert len(alone) == 6 and abs(alone[-1][0] - alone[0][0]) > 0.1
    same(found["sharded"], alone)
    same(found["lora"], json.loads((folder / "one.json").read_text()))


def test_a_checkpoint_goes_on_with_another_number_of_ranks(
    found: dict[str, Any], folder: Path, one: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EXPUNGE_CACHE", str(folder / "cache"))
    alone = json.loads((folder / "one.json").read_text())
    same(found["one to two"], alone)
    same(one.losses(one.trainer(folder / "lora back", lora=True), resume=folder / "lora"), alone)
    launch(str(SCRIPT), str(folder), ranks=1, cache=folder / "cache")
    same(json.loads((folder / "back.json").read_text()), found["sharded"])


def test_a_checkpoint_of_other_steps_is_refused(folder: Path, one: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXPUNGE_CACHE", str(folder / "cache"))
    with pytest.raises(UserError, match="rows per step was 4 and is 2 now"):
        one.losses(one.trainer(folder / "other", lora=True, batch=2), resume=folder / "one")


def same(some: list[list[float]], others: list[list[float]]) -> None:
    """Losses of six steps, to 1e-5 of their size."""
    assert len(some) == len(others) == 6
    for a, b in zip(some, others, strict=True):
        assert a == pytest.approx(b, rel=1e-5, abs=1e-6)
