"""`expunge doctor` finds what is broken, says what to do, and never breaks itself."""

from pathlib import Path
from typing import Any

import pytest

from expunge.cli import doctor
from expunge.cli.main import main

Monkeypatch = pytest.MonkeyPatch


@pytest.fixture
def no_training(monkeypatch: Monkeypatch) -> None:
    monkeypatch.setattr(doctor, "_training_step", lambda: doctor._row("one unlearning step", "skipped"))


def examined() -> dict[str, dict[str, Any]]:
    return {row["check"]: row for row in doctor.examine()}


def test_a_healthy_machine(tmp_path: Path, monkeypatch: Monkeypatch) -> None:
    monkeypatch.setenv("EXPUNGE_CACHE", str(tmp_path / "not" / "yet" / "there"))
    rows = examined()
    assert set(rows) >= {*doctor.PACKAGES, "device", "cache", "hub", "one unlearning step"}
    assert not any(row["fatal"] for row in rows.values())
    assert all(set(row) == {"check", "found", "advice", "fatal"} for row in rows.values())
    assert rows["one unlearning step"]["found"].startswith("loss ")
    assert not (tmp_path / "not").exists(), "an examination writes nothing"


def test_a_missing_package_ends_it(monkeypatch: Monkeypatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(doctor, "PACKAGES", ("torch", "scipy"))

    def version(name: str) -> str:
        if name == "scipy":
            raise doctor.PackageNotFoundError(name)
        return "1.0"

    monkeypatch.setattr(doctor, "version", version)
    rows = examined()
    assert list(rows) == ["torch", "scipy"]
    assert rows["scipy"]["fatal"] and rows["scipy"]["advice"].startswith("pip install 'scipy>=")
    assert not rows["torch"]["fatal"] and rows["torch"]["advice"].startswith("pip install 'torch>="), "too old"
    assert main(["doctor"]) == 2
    out, err = capsys.readouterr()
    assert "missing" in out and err.startswith("expunge: this machine can't run expunge yet")


@pytest.mark.usefixtures("no_training")
def test_a_cache_that_is_no_folder(tmp_path: Path, monkeypatch: Monkeypatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("EXPUNGE_CACHE", str(tmp_path / "file" / "cache"))
    assert examined()["cache"]["fatal"] and "EXPUNGE_CACHE" in examined()["cache"]["advice"]


@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize(("value", "says"), [("1", "offline"), ("0", "as the network allows")])
def test_the_hub(monkeypatch: Monkeypatch, value: str, says: str) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", value)
    assert examined()["hub"]["found"].startswith(says)


def test_a_step_that_fails_is_a_finding(monkeypatch: Monkeypatch, capsys: pytest.CaptureFixture[str]) -> None:
    def broken() -> None:
        raise RuntimeError("no kernel image\nand much more")

    broken.__name__ = "_training_step"
    monkeypatch.setattr(doctor, "_training_step", broken)
    row = examined()["training step"]
    assert row["fatal"] and row["found"] == "RuntimeError: no kernel image"
    assert main(["doctor", "--json"]) == 2
    assert capsys.readouterr().out.startswith("[")
