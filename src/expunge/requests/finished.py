"""A finished run as evidence is made of it: whole, and with the rows that it began with."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from expunge.data.benchmark import Benchmark
from expunge.errors import UserError, did_you_mean
from expunge.pipeline import own_rows, rundir
from expunge.pipeline.inputs import load_benchmark
from expunge.recipe.config import Recipe
from expunge.recipe.parsing import load_recipe
from expunge.report import load_results
from expunge.report.comparison import ResultRow
from expunge.system import manifest
from expunge.system.digest import digest
from expunge.system.disk import printable


@dataclass(frozen=True)
class Finished:
    """A finished run of one method, and what it is about."""

    run: Path
    recipe: Recipe
    benchmark: Benchmark
    row: ResultRow
    references: Mapping[str, ResultRow]
    model: Path

    @property
    def target(self) -> ResultRow | None:
        return self.references.get("target")


def finished(run: Path, method: str | None = None) -> Finished:
    """A method's result in a run directory, whole and with the rows that it began with; else `UserError`."""
    rows = load_results(run)
    if wrong := rundir.results_damage(run):
        raise UserError(f"{wrong}; no evidence can be made of it.")
    methods = {row["method"]: row for row in rows if row["method"] not in rundir.FIRST}
    if not methods:
        raise UserError(f"{printable(run)} unlearned nothing; give the directory of expunge run.")
    if method is None and len(methods) > 1:
        raise UserError(f"{printable(run)} holds {len(methods)} methods; name one: --method {next(iter(methods))}.")
    name = method or next(iter(methods))
    if name not in methods:
        raise UserError(f"--method {name}: {printable(run)} has none of that name.{did_you_mean(name, methods)}")
    recipe = load_recipe(run / "recipe.yaml")
    which = next((each for each in recipe.methods if each.name == name), None)
    model = (rundir.method_directory(recipe, which, run) if which is not None else run) / "model"
    if not manifest.is_sealed(model):
        raise UserError(f"{printable(model)} is missing, so nothing can be said of the model's files; run again.")
    if wrong := manifest.damage(model, extra=False):
        raise UserError(f"{wrong}; no evidence can be made of it.")
    benchmark = load_benchmark(recipe, _own_rows(recipe, run))
    row = methods[name]
    if row.get("inputs", {}).get("forget rows") != digest(benchmark.forget):
        raise UserError(f"{printable(run)}: the forget rows are others than when the run began; put them back.")
    references = {row["method"]: row for row in rows if row["method"] in rundir.FIRST}
    return Finished(run, recipe, benchmark, row, references, model)


def _own_rows(recipe: Recipe, run: Path) -> own_rows.OwnRows | None:
    if recipe.data is None or own_rows.planned(recipe) is None:
        return None
    if not (run / own_rows.FOLDER / "made.json").exists():
        raise UserError(f"{run / own_rows.FOLDER} is missing, where the run kept the model's own answers; run again.")
    return own_rows.made(recipe, run, overwrite=False)
