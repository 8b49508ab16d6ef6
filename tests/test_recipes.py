"""Every recipe that the repository ships is one, says what it is, and can be run in all its combinations."""

from pathlib import Path

import pytest

from expunge.errors import UserError
from expunge.recipe.parsing import combinations, load_recipe, recipe_of
from expunge.recipe.shipped import find, named

RECIPES = Path(__file__).parents[1] / "recipes"
PATHS = sorted(RECIPES.rglob("*.yaml"))
each = pytest.mark.parametrize("path", PATHS, ids=lambda p: "-".join(p.relative_to(RECIPES).parts))


def test_there_are_recipes_for_every_benchmark() -> None:
    names = {
        recipe.benchmark.written()["name"] for path in PATHS if (recipe := load_recipe(path)).benchmark is not None
    }
    assert names >= {"tofu", "muse-news", "rwku", "listings"}


@each
def test_it_says_what_it_is(path: Path) -> None:
    first = path.read_text(encoding="utf-8").splitlines()[0]
    assert first.startswith("# ") and len(first) > 20


@each
def test_methods_have_names_of_their_own(path: Path) -> None:
    names = [method.name for method in load_recipe(path).methods]
    assert len(set(names)) == len(names)


@each
def test_every_combination_is_a_recipe(path: Path) -> None:
    recipe = load_recipe(path)
    if not recipe.over:
        return
    found = combinations(recipe)
    expected = 1
    for values in recipe.over.values():
        expected *= len(values)
    assert len({name for name, _ in found}) == len(found) == expected
    assert all(own.methods == recipe.methods and not own.over for _, own in found)


def test_a_recipe_that_comes_with_expunge_is_found_by_its_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    known = named()
    assert len(known) == len(PATHS)
    for word, path in known.items():
        assert find(word) == find(path.relative_to(RECIPES)) == find(path) == path
    assert recipe_of("rwku-npo").out == Path("runs/rwku-npo")
    with pytest.raises(UserError, match=r"'tofu-scratch' is the beginning of 13 recipes; name one: tofu-scratch-abl"):
        find("tofu-scratch")
    with pytest.raises(UserError, match="Did you mean 'rwku-npo'"):
        recipe_of("rwku-npoo")
    with pytest.raises(UserError, match=r"recipe 'mine\.yaml' does not exist"):
        recipe_of("mine.yaml")
    Path("rwku-npo").write_text("a file of one's own goes first", encoding="utf-8")
    assert find("rwku-npo") == Path("rwku-npo")
