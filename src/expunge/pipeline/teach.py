"""A model that knows a benchmark or one's own rows, to try things on: taught as a run teaches its target, and kept."""

import shutil
from pathlib import Path

from expunge.data.files import lines_of
from expunge.errors import UserError
from expunge.pipeline.inputs import check_data, check_recipe, load_benchmark
from expunge.pipeline.run import starting_models
from expunge.recipe.config import Recipe
from expunge.system.disk import make_folder, partial_of, printable, private, remove, write_whole, writing

FILES = ("all.jsonl", "forget.jsonl", "retain.jsonl")


def teach(recipe: Recipe, out: Path) -> list[Path]:
    """Write the target, the retrained models and their rows to the new folder `out`; the paths of all.

    `target` learnt all.jsonl. `retrained` learnt the same without forget.jsonl; with `finetune.retrained` above 1 there
    are `retrained-2` and so on. Raises `UserError` for a recipe that teaches nothing and a folder that is there.
    """
    if recipe.model.scratch is None and recipe.finetune is None:
        raise UserError(
            "teach: the recipe teaches nothing; give --model.scratch '{}', or --model NAME --finetune '{}'."
        )
    if out.exists():
        raise UserError(f"{printable(out)} is there already; give a new folder with --out.")
    recipe = recipe.model_copy(update={"methods": []})
    check_recipe(recipe)
    benchmark = load_benchmark(recipe)
    check_data(benchmark)
    target, retrained = starting_models(recipe, benchmark)
    staged = partial_of(out)
    with writing(out), private():
        remove(staged)
        make_folder(staged)
        shutil.copytree(target, staged / "target")
        for k, model in enumerate(retrained, start=1):
            shutil.copytree(model, staged / ("retrained" if k == 1 else f"retrained-{k}"))
        for name, rows in zip(FILES, (benchmark.taught, benchmark.forget, benchmark.retain), strict=True):
            write_whole(staged / name, lines_of(rows))
        staged.rename(out)
    return sorted(out.iterdir())
