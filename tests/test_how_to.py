"""Run the code of the pages about extending expunge, word for word, on a smaller world."""

import json
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from expunge.cli.main import main
from expunge.recipe.parsing import recipe_of

PAGES = Path(__file__).parents[1] / "docs" / "how-to"
BLOCK = re.compile(r"^```(\w+)(?: title=\"([\w.]+)\")?\n(.*?)^```$", flags=re.DOTALL | re.MULTILINE)

SMALL = {
    "model": {"scratch": {"layers": 1, "hidden": 16, "heads": 2, "vocab": 400, "context": 96}},
    "finetune": {"epochs": 1},
    "train": {"num_train_epochs": 1},
    "evaluate": {"limit": 2, "max_new_tokens": 4, "each_epoch": "off"},
}
"""Keys that make a run small; the page's own keys follow them."""


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder from which modules are imported, as `PYTHONPATH=.` says."""
    torch.set_num_threads(1)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("my_losses", "my_world", "my_metrics"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path


def follow(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write the page's files, run its commands and its Python, in their order; read its YAML as part of a recipe."""
    world = {"name": "fable", "authors": 10, "facts": 3}
    Path("small.yaml").write_text(json.dumps(SMALL), encoding="utf-8")
    base: dict[str, Any] = {"benchmark": world, **SMALL}
    kinds = []
    for kind, title, text in BLOCK.findall((PAGES / page).read_text(encoding="utf-8")):
        kinds.append(kind)
        if title:
            Path(title).write_text(text, encoding="utf-8")
        elif kind == "sh":
            export, command = text.splitlines()
            assert export == "export PYTHONPATH=."
            _, run, *words = shlex.split(command)
            assert main([run, "small.yaml", *smaller(words, world)]) == 0
        elif kind == "python":
            common = "".join(f"{key!r}: {value!r}, " for key, value in SMALL.items() if key != "model")
            text = text.replace('"benchmark": "fable",', f'"benchmark": {world!r}, {common}')
            text = text.replace('"fable"', repr(world))
            text = text.replace('{"layers": 2, "hidden": 64}', repr(SMALL["model"]["scratch"]))
            exec(compile(text, page, "exec"), {})
        elif kind == "yaml":
            recipe_of({**base, **yaml.safe_load(text)})
        else:
            assert kind == "toml"
    assert {"sh", "python", "yaml"} <= set(kinds)


def smaller(words: list[str], world: dict[str, Any]) -> list[str]:
    swaps = {"fable": json.dumps(world), "{layers: 2, hidden: 64}": json.dumps(SMALL["model"]["scratch"])}
    return [swaps.get(word, word) for word in words]


def rows(folder: str) -> list[dict[str, Any]]:
    return json.loads(Path(folder, "results.json").read_text(encoding="utf-8"))


def test_an_objective(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    follow("objective.md", monkeypatch)
    by_command, by_python = rows("runs/floor"), rows("runs/floor-python")
    assert by_command[-1]["method"] == by_python[-1]["method"] == "floor+nll"


def test_a_benchmark(workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    follow("benchmark.md", monkeypatch)
    (found,) = [row for row in rows("runs/cities") if row["method"] == "npo+nll"]
    assert (found["benchmark"], found["split"]) == ("cities", "4 of 16")
    assert f"\n{found['metrics']['recited']} " in "\n" + capsys.readouterr().out
    page = Path("runs/cities/report.html").read_text(encoding="utf-8")
    assert "ROUGE-L of completed sentences" in page


def test_a_metric(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    follow("metric.md", monkeypatch)
    assert all(0 <= row["metrics"]["silence"] <= 1 for row in rows("runs/silence"))
    # Who reads the results needs no package of the author's.
    monkeypatch.delitem(sys.modules, "my_metrics")
    Path("my_metrics.py").unlink()
    assert main(["report", "runs/silence", "--markdown", "page.md"]) == 0
    assert "silence ↓" in Path("page.md").read_text(encoding="utf-8")
