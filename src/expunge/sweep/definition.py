"""A sweep as `sweep.yaml` keeps it, and the run of each point's trial."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from expunge import secrets
from expunge.errors import UserError
from expunge.pipeline.rundir import first_difference
from expunge.recipe.config import Recipe
from expunge.recipe.parsing import combinations, parse_recipe, read_mapping, with_keys
from expunge.sweep.space import Params, Search, Space

Objectives = tuple[str, str]
"""Two metrics, as `results.json` calls them."""


@dataclass(frozen=True)
class Sweep:
    """The space that is searched, and where trials are kept. Their number is not in it: a sweep may go on with more."""

    recipe: Recipe
    space: Space
    search: Search
    objectives: Objectives
    study: str
    out: Path

    @classmethod
    def load(cls, out: Path) -> "Sweep":
        """The sweep in `out`."""
        written = str(out / "sweep.yaml")
        tree = read_mapping(written, what="sweep")
        try:
            first, second = tree["objectives"]
            keys = {name: tree[name] for name in ("recipe", "space", "search", "study")}
        except (KeyError, ValueError, TypeError) as error:
            raise UserError(f"{written} is damaged ({error}); put it back as it was, or give another --out.") from None
        recipe, space = parse_recipe(keys["recipe"], where=written), Space.parse(keys["space"])
        return cls(recipe, space, keys["search"], (first, second), keys["study"], out)

    def plain_recipe(self) -> dict[str, Any]:
        """The recipe with its secrets, for a worker's pipe."""
        return self.recipe.model_dump(mode="json", exclude_unset=True, exclude={"out"})

    def tree(self) -> dict[str, Any]:
        """The text that `load` reads; the recipe's secrets are masked."""
        return {
            "recipe": secrets.masked(self.plain_recipe()),
            "space": {key: values.model_dump(mode="json") for key, values in self.space.keys.items()},
            "search": self.search,
            "objectives": list(self.objectives),
            "study": self.study,
        }

    def first_difference(self, other: "Sweep") -> str | None:
        """The differences between the two, in words."""
        mine, theirs = self.tree(), other.tree()
        if key := first_difference(self.recipe, other.recipe):
            return f"the recipe's {key}"
        return next((key for key in mine if key != "recipe" and mine[key] != theirs[key]), None)

    def folder(self, point: int) -> Path:
        return self.out / "trials" / f"trial-{point:03d}"

    def runs_of(self, point: int, params: Params) -> tuple[Recipe, list[Recipe]]:
        """The recipe of a point's trial, in a directory of its own, and one for each seed.

        Over several seeds the method is called by its trial, so that a report takes the seeds together.
        """
        recipe = self.space.recipe(self.recipe, params)
        folder = self.folder(point)
        keys = {"out": str(folder)}
        if recipe.over:
            keys["method.label"] = f"{recipe.methods[0].name},{folder.name}"
        recipe = with_keys(recipe, keys, where=folder.name)
        return recipe, [single for _, single in combinations(recipe)] if recipe.over else [recipe]
