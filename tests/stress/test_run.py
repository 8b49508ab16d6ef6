"""Attacks at the end of a run, and on checkpoints that are there already."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from expunge.cli.main import main
from expunge.errors import UserError
from expunge.pipeline import session
from expunge.pipeline.inputs import load_benchmark
from expunge.pipeline.run import run, starting_models
from expunge.recipe.parsing import parse_recipe
from expunge.stress.options import ATTACKS as ATTACKS_BY_NAME
from tests.small import FABLE

pytest.importorskip("gguf", reason="needs the extra expunge[gguf]")

ATTACKS = "quantization,wording"
TAUGHT = {"epochs": 15, "learning_rate": 6e-3, "batch_size": 8, "retrained": 2}
SHAPE = {"scratch": {"layers": 2, "hidden": 32, "heads": 2, "vocab": 400, "context": 96}}


def recipe(out: Path, **more: Any) -> Any:
    tree = {**FABLE, "model": SHAPE, "out": str(out), **more}
    tree["evaluate"] = {**FABLE["evaluate"], "each_epoch": "off", "stress": {"attacks": ATTACKS, "quick": True}}
    return parse_recipe(tree, where="test")


@pytest.fixture(scope="module")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of a method that changes the weights and of one that does not, with two models that never knew."""
    out = tmp_path_factory.mktemp("attacked") / "run"
    run(recipe(out, methods=["npo+nll", "uld"], finetune=TAUGHT))
    return out


def rows(out: Path) -> dict[str, dict[str, Any]]:
    return {row["method"]: row for row in json.loads((out / "results.json").read_text())}


def test_every_model_is_attacked_but_one_that_only_suppresses(attacked: Path) -> None:
    found = rows(attacked)
    models = {name: len(row.get("stress", {}).get("models", [])) for name, row in found.items()}
    assert models == {"target": 1, "retrained": 2, "npo+nll": 1, "uld": 0}
    for name in ("target", "retrained", "npo+nll"):
        for model in found[name]["stress"]["models"]:
            assert model["done"] == ATTACKS.split(",")
            assert [each["attack"] for each in model["outcomes"]] == model["done"]
    one, other = found["retrained"]["stress"]["models"]
    assert one["outcomes"][0]["points"] != other["outcomes"][0]["points"], "another seed is another model"
    returns = {name: found[name]["verdict"]["returns"] for name in ("npo+nll", "uld")}
    assert returns["npo+nll"]["state"] in ("yes", "partly", "no") and len(returns["npo+nll"]["attacks"]) == 2
    assert found["npo+nll"]["metrics"]["comes_back"] == max(each["after"] for each in returns["npo+nll"]["attacks"])
    assert returns["uld"]["words"].startswith("Yes. Whoever has the files takes the assistant off")
    assert "comes_back" not in found["target"]["metrics"] and found["uld"]["metrics"]["comes_back"] == 1.0
    page = (attacked / "report.html").read_text()
    share = round(100 * found["npo+nll"]["metrics"]["comes_back"])
    assert re.search(rf">(Yes|Partly|Hardly), {share}\u00a0%<", page), "a number for every method"
    assert "Attacks: does it come back?" in page and "or with a third of the answer given" in page


def test_a_run_that_was_killed_makes_only_the_attacks_that_are_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[tuple[str, str]] = []
    real = session.attacked

    def counted(victim: Any, names: Any, who: str) -> Any:
        for name, outcomes in real(victim, names, who):
            made.append((who, name))
            yield name, outcomes
            if made == [("target", "quantization"), ("target", "wording"), ("retrained", "quantization")]:
                raise KeyboardInterrupt

    monkeypatch.setattr(session, "attacked", counted)
    with pytest.raises(KeyboardInterrupt):
        run(recipe(tmp_path / "run", method="npo"))
    run(recipe(tmp_path / "run", method="npo"), resume=True)
    assert made == [(who, name) for who in ("target", "retrained", "npo") for name in ATTACKS.split(",")]


def test_a_checkpoint_is_attacked_as_it_was_in_its_run(
    attacked: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained = recipe(attacked, finetune=TAUGHT)
    target, never = starting_models(trained, load_benchmark(trained))
    words = ["stress", str(attacked / "npo+nll" / "model"), "--benchmark", json.dumps(FABLE["benchmark"])]
    words += ["--evaluate.limit", "2", "--evaluate.max_new_tokens", "4", "--attacks", ATTACKS, "--quick", "--json"]
    beside = ["--target", str(target), "--retrained", ",".join(map(str, never))]
    for _ in range(2):  # the second time everything is there
        assert main([*words, *beside, "--out", str(tmp_path / "beside")]) == 0
        found = {row["method"]: row for row in json.loads(capsys.readouterr().out)}
        assert list(found) == ["target", "retrained", "npo+nll"] and len(found["retrained"]["stress"]["models"]) == 2
        once = rows(attacked)["npo+nll"]
        assert found["npo+nll"]["metrics"]["comes_back"] == pytest.approx(once["metrics"]["comes_back"])
        assert found["npo+nll"]["verdict"]["next"]["words"].startswith("Ask it yourself")
    # Alone, nothing says how much of what was known the numbers are.
    assert main([*words, "--out", str(tmp_path / "alone")]) == 0
    (alone,) = json.loads(capsys.readouterr().out)
    assert alone["method"] == "target" and "comes_back" not in alone["metrics"] and alone["stress"]["models"]
    assert alone["verdict"]["returns"]["state"] == "not tested"


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["--attacks", "relearnin"], "relearnin"),
        (["--attacks", ""], "--attacks is empty"),
        (["--target", "gone"], "gone"),
        (["--retrained", "gone"], "gone"),
        (["--evaluate.stress", "true"], "evaluate.stress"),
    ],
)
def test_what_does_not_fit_is_said_before_anything_is_written(
    words: list[str], error: str, attacked: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, out = str(attacked / "npo+nll" / "model"), tmp_path / "out"
    assert main(["stress", model, "--benchmark", "fable", "--out", str(out), *words]) == 2
    assert error in (said := capsys.readouterr().err.splitlines()[-1]) and said.startswith("expunge: ")
    assert not out.exists()


def test_attacks_that_a_benchmark_has_no_rows_for_are_refused_where_nothing_else_is_asked_for(
    attacked: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["stress", str(attacked / "npo+nll" / "model"), "--benchmark", "listings", "--out", str(tmp_path / "out")]
    assert main([*words, "--attacks", "reasoning,membership"]) == 2
    (said,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("expunge: "))
    assert "no attack can be made (reasoning: listings has no other ways to ask for its facts; membership: " in said
    assert not (tmp_path / "out").exists()


def test_the_help_of_the_command_names_every_attack(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["stress", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert f"with commas: {', '.join(ATTACKS_BY_NAME)} (default all)" in said


def test_two_rows_of_one_name() -> None:
    for more in ({"checkpoints": ["a/npo", "b/npo/model"]}, {"checkpoints": ["a/npo"], "method": "npo"}):
        with pytest.raises(UserError, match="checkpoints: 'npo' can't name a row of its own"):
            parse_recipe({**FABLE, **more}, where="test")
    with pytest.raises(UserError, match="cloud: these are further models beside `retrained`"):
        parse_recipe({**FABLE, "cloud": ["a"]}, where="test")
