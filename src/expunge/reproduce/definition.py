"""A reproduction: recipes for each set of models, the folders of their runs, and what is shown of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from expunge.errors import UserError, did_you_mean
from expunge.recipe import shipped
from expunge.recipe.config import Recipe, Section
from expunge.recipe.parsing import check_runs, combinations, load_recipe, read_mapping, with_keys

Overrides = Sequence[tuple[str, str]]

DECIDED = {
    **dict.fromkeys(("split", "benchmark.split"), "--splits"),
    **dict.fromkeys(("method", "methods", "over"), "a reproduction of your own (a YAML file)"),
    **{"seed": "--seeds", "out": "--runs"},
}
"""Keys of a recipe that a reproduction sets, and what to use instead."""

Picture = Literal["tradeoff", "utility", "trajectory", "efficiency", "epochs", "distance", "overview", "pareto"]


class PlannedRun(Section):
    """A recipe and the folder of its run; `{split}`, `{seed}` and `{runs}` stand for what they say in any text here."""

    recipe: str = Field(description="beside the reproduction's file, or among the recipes that come with expunge")
    out: str = Field(description="folder in --runs; where it names no seed, seeds after the recipe's own add theirs")
    keys: dict[str, Any] = Field(default_factory=dict, description="dotted keys of the recipe and their values")
    space: dict[str, Any] | None = Field(default=None, description="sweep over the grid of these values instead")
    objectives: tuple[str, str] = Field(default=("forget_quality", "model_utility"), description="of a sweep")


class RecipeSet(Section):
    """The runs for one kind of model, such as those trained here or Llama-2-7B."""

    splits: dict[str, dict[str, Any]] = Field(
        default_factory=dict,
        description="splits, the first being the default, with keys of their own; without any, recipes keep their own",
    )
    runs: list[PlannedRun] = Field(min_length=1)


@dataclass(frozen=True)
class Job:
    """A recipe with the folder of its run: one run, one for each combination of `over`, or a sweep over a `space`."""

    recipe: Recipe
    space: dict[str, Any] | None = None
    objectives: tuple[str, str] = ("forget_quality", "model_utility")

    @property
    def out(self) -> Path:
        assert self.recipe.out is not None
        return self.recipe.out

    @property
    def each(self) -> list[Recipe]:
        """The single runs of a job that is no sweep."""
        return [single for _, single in combinations(self.recipe)] if self.recipe.over else [self.recipe]


class Reproduction(Section):
    """A table or a figure: what is run for it, and what of the results is shown."""

    title: str
    about: str = Field(description="where it is published, and what is different here")
    sets: dict[str, RecipeSet] = Field(min_length=1, description="kinds of models; the first is the default")
    rows: dict[str, str] = Field(default_factory=dict, description="methods and what the table calls them, in order")
    columns: list[str] = Field(default_factory=list, description="metrics, and `seconds`")
    pictures: list[Picture] = Field(default_factory=list)

    @classmethod
    def load(cls, name: str) -> tuple["Reproduction", Path]:
        """One that comes with expunge, by its name, or a file of one's own; and where it stands.

        Raises `UserError` for a name that there is none of and for a file that holds something else.
        """
        known = shipped.reproductions()
        path = known.get(name, Path(name))
        if name not in known and path.suffix not in (".yaml", ".yml"):
            raise UserError(
                f"reproduce: unknown reproduction {name!r}.{did_you_mean(name, known)} Known: {', '.join(known)}."
            )
        try:
            return cls.model_validate(read_mapping(str(path), what="reproduction")), path
        except ValidationError as error:
            first = error.errors()[0]
            raise UserError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}.") from error

    def recipe_set(self, name: str | None) -> RecipeSet:
        """The set of this name, or the first."""
        name = name or next(iter(self.sets))
        if name not in self.sets:
            raise UserError(
                f"--recipe-set: unknown set {name!r}.{did_you_mean(name, self.sets)} Known: {', '.join(self.sets)}."
            )
        return self.sets[name]

    def jobs(
        self,
        path: Path,
        *,
        runs: Path,
        recipe_set: str | None = None,
        splits: Sequence[str] = (),
        seeds: int | None = None,
        overrides: Overrides = (),
    ) -> list[Job]:
        """The jobs to run, in order, with their folders in `runs`; `path` is this reproduction's file.

        `overrides` set further keys of every recipe; `augment` only of those with a method that trains on variants.
        Benchmarks that are generated, variants and all, take neither `benchmark.path` nor the variants beside it.
        All seeds unlearn the same target. Raises `UserError` for a split that the set does not know, for keys that are
        not to be set, and for `seeds` where runs have their base.
        """
        chosen = self.recipe_set(recipe_set)
        for key, _ in overrides:
            if key in DECIDED:
                raise UserError(f"--{key}: the reproduction decides it; use {DECIDED[key]}.")
        if unknown := [split for split in splits if split not in chosen.splits]:
            known = ", ".join(chosen.splits) or "none"
            raise UserError(
                f"--splits: unknown split {unknown[0]!r}.{did_you_mean(unknown[0], chosen.splits)} Known: {known}."
            )
        if seeds is not None and seeds < 1:
            raise UserError(f"--seeds must be at least 1, got {seeds}.")
        check_runs(seeds or 1, "--seeds")
        if seeds is not None and any("seed" in run.keys for run in chosen.runs):
            raise UserError(f"--seeds: {path.stem} names the seeds of its runs itself; leave the option out.")
        jobs: list[Job] = []
        for split in splits or list(chosen.splits)[:1] or [None]:
            for run in chosen.runs:
                jobs += self._jobs(run, path, runs, split, chosen.splits.get(split or "", {}), seeds, overrides)
        return jobs

    def _jobs(
        self,
        run: PlannedRun,
        path: Path,
        runs: Path,
        split: str | None,
        keys: Mapping[str, Any],
        seeds: int | None,
        overrides: Overrides,
    ) -> list[Job]:
        """A run for one split: a job for every seed, or a single one where the seeds are run together."""

        def recipe(seed: int | None = None) -> Recipe:
            base = load_recipe(_file(_filled(run.recipe, split=split), path))
            seed = base.seed if seed is None else seed
            placeholders = {"split": split, "seed": seed, "runs": runs}
            folder = run.out if "{seed}" in run.out or seed == base.seed else run.out + "-seed{seed}"
            place = _filled(folder, **placeholders | {"split": (split or "").replace(" ", "_")})
            given = {**keys, **run.keys, "out": str(runs / place)}
            given |= {"seed": seed} if seed != base.seed else {}
            if (
                base.model.scratch is not None
                and (base.finetune is None or base.finetune.seed is None)
                and seed != base.seed
            ):
                given["finetune.seed"] = base.seed
            return _with(
                _file(_filled(run.recipe, **placeholders), path), overrides, _filled(given, **placeholders), split
            )

        first = recipe()
        every = [first.seed + k for k in range(seeds or 1)]
        if run.space is None and not first.over:
            return [Job(recipe(seed)) for seed in every]
        over = {**first.over, "seed": every} if seeds else first.over
        return [Job(first.model_copy(update={"over": over}), run.space, run.objectives)]


def _with(path: Path, overrides: Overrides, keys: Mapping[str, Any], split: str | None) -> Recipe:
    """The recipe with these keys. A recipe of several splits is run for one; files go to who reads them."""
    without = {"over"} if split is not None and "over" not in keys else set()
    benchmark = load_recipe(path).benchmark
    generated = benchmark is not None and "path" not in type(benchmark).__annotations__
    unread = {"benchmark.path", "augment"} if generated and "benchmark.path" in dict(overrides) else set()
    read = [pair for pair in overrides if pair[0] not in unread]
    made = with_keys(load_recipe(path, read), keys, where=path.name, without=without)
    if made.augment is None or any(any(method.augment.model_dump().values()) for method in made.methods):
        return made
    others = [pair for pair in read if pair[0] != "augment"]
    return with_keys(load_recipe(path, others), keys, where=path.name, without=without)


def _file(recipe: str, beside: Path) -> Path:
    beside_it = beside.parent / recipe
    return beside_it if beside_it.is_file() else shipped.recipes() / recipe


def _filled(value: Any, **placeholders: Any) -> Any:
    """The value with `{split}` and the like replaced in all of its texts."""
    match value:
        case str():
            for name, text in placeholders.items():
                value = value.replace("{" + name + "}", str(text))
            return value
        case Mapping():
            return {key: _filled(inner, **placeholders) for key, inner in value.items()}
        case list():
            return [_filled(inner, **placeholders) for inner in value]
    return value
