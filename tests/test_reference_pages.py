"""The reference pages of the site hold every key, option and objective that the code has, each with a description."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from expunge.cli.main import _parser, main
from expunge.objectives import METHODS, RETAIN
from expunge.recipe.parsing import _keys
from expunge.recipe.schema import recipe_schema
from expunge.training.arguments import REFUSED, UnlearnConfig
from scripts import reference

ROOT = Path(__file__).parents[1]
RECIPES = sorted([*(ROOT / "recipes").rglob("*.yaml"), *(ROOT / "src" / "expunge" / "recipe").glob("*.yaml")])
PAGES = reference.pages()


def _described(page: str) -> dict[str, str]:
    """The description of each key in a page's tables."""
    rows = re.findall(r"^\| `([^`]+)`(?: \(Python\))? \|(?:.* \|)? (.*) \|$", page, flags=re.MULTILINE)
    return dict(rows)


def test_every_key_of_a_recipe_is_described() -> None:
    told = _described(PAGES["reference/recipe.md"])
    keys = {re.sub(r"^method(?=\.|$)", "methods[]", key) for key in _keys()}
    keys = {key for key in keys if not re.search(r"(^|\.)(train|forget|retain)\.", key) or key.startswith("data.")}
    assert len(keys) > 50
    assert not {key for key in keys if key != "methods[]" and not told.get(key)}


def test_every_training_key_is_described() -> None:
    told = _described(PAGES["reference/train.md"])
    assert not {field.name for field in dataclasses.fields(UnlearnConfig) if field.init and not told.get(field.name)}


def test_every_objective_is_there_with_its_paper_and_its_options() -> None:
    parts = re.split(r"^### ", PAGES["reference/objectives.md"], flags=re.MULTILINE)[1:]
    of = {part.partition("\n")[0].strip("`"): part for part in parts}
    for name, cls in {**METHODS, **RETAIN}.items():
        assert "Source: " in of[name], name
        assert not {key for key in cls.model_fields if key != "name" and not _described(of[name]).get(key)}, name


def test_every_option_of_every_command_is_there() -> None:
    page = PAGES["reference/commands.md"]
    names = dict(reference.commands(_parser()))
    assert {"run", "sweep", "demo", "eval"} <= names.keys()
    for name, parser in names.items():
        section = page.partition(f"# expunge {name}\n")[2].partition("```\n")[0]
        for action in parser._actions:
            assert all(option in section for option in action.option_strings), (name, action.option_strings)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_the_schema_takes_every_recipe(path: Path) -> None:
    recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
    # PyYAML reads 1e-5 as text; YAML 1.2, which editors read, has a number there.
    numbers = json.loads(re.sub(r'"(\d+(?:\.\d+)?e[-+]?\d+)"', r"\1", json.dumps(recipe)))
    assert not list(Draft202012Validator(recipe_schema()).iter_errors(numbers))


@pytest.mark.parametrize(
    "mistake",
    [
        {"trian": {}},
        {"train": {"learning_rat": 1e-5}},
        {"train": {"torch_compile": True}},
        {"model": {"nmae": "m"}},
        {"seed": -1},
        {"benchmark": {"name": "tofu", "splitt": "forget01"}},
        {"methods": [{"forget": {"name": "npo", "betta": 1}}]},
    ],
)
def test_the_schema_marks_a_mistake(mistake: dict[str, Any]) -> None:
    recipe = {"model": "m", "data": {"forget": "f.jsonl"}, "method": "npo+kl"}
    validator = Draft202012Validator(recipe_schema())
    assert validator.is_valid(recipe)
    assert validator.is_valid({**recipe, "method": {"forget": {"name": "own.losses:Mine", "floor": -3}}})
    own = {"model": "m", "benchmark": {"name": "cities", "cities": 3}}
    assert validator.is_valid(own)
    assert not validator.is_valid({**recipe, **mistake})


def test_the_command_prints_the_schema(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", "--schema"]) == 0
    assert json.loads(capsys.readouterr().out) == recipe_schema() == json.loads(PAGES["reference/recipe.schema.json"])


def test_the_table_of_files_names_every_module_and_no_other() -> None:
    page = (ROOT / "docs" / "explanation" / "files.md").read_text(encoding="utf-8")
    package = ROOT / "src" / "expunge"
    named = set(
        re.findall(r"`((?:\w+/)*\w+\.py|(?:\w+/)+)`", "\n".join(re.findall(r"^\| ([^|]+) \|", page, re.MULTILINE)))
    )
    gone = {name for name in named if not (package / name).exists()}
    assert not gone, "take these rows out of docs/explanation/files.md"
    modules = {path.relative_to(package).as_posix() for path in package.rglob("*.py")}
    modules = {name for name in modules if not re.search(r"(^|/)__\w+__\.py$|_words\.py$", name)}
    folders = tuple(name for name in named if name.endswith("/"))
    new = {name for name in modules - named if not name.startswith(folders)}
    assert not new, "add a row for each to docs/explanation/files.md"


def test_the_command_line_lists_every_key(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--help-keys"]) == 0
    printed = re.findall(r"^  --(\S+)  \((.+)\)$", capsys.readouterr().out, flags=re.MULTILINE)
    told = dict(printed)
    keys = {key for key in _keys() if not re.search(r"(^|\.)(methods|method)\.train\.|^methods?$", key)}
    keys = {re.sub(r"^methods?\b", "method", key) for key in keys if not key.startswith("method.train.")}
    keys -= {f"train.{name}" for name in REFUSED} | {key for key in keys if re.search(r"\.(forget|retain)\.name$", key)}
    assert len(keys) > 150
    assert not keys - told.keys()
    assert told["seed"] == "whole number, at least 0, less than 4,294,967,296; default 0"
    assert told["data.forget"] == "text; required"
