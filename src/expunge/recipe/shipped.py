"""Files that come with expunge: recipes, reproductions of papers' tables and figures, and launch configs.

It also knows where the real model is kept that does not come with it.
"""

from pathlib import Path

from expunge.errors import UserError, did_you_mean
from expunge.system.cache import cache_directory

HERE = Path(__file__).parents[1]


def recipes() -> Path:
    """The folder of recipes: an installed package carries them inside, a checkout has them at its top."""
    return next(path for path in (HERE / "recipes", HERE.parents[1] / "recipes") if path.is_dir())


def named() -> dict[str, Path]:
    """The recipes by their names: `tofu/scratch/forget10.yaml` is `tofu-scratch-forget10`."""
    folder = recipes()
    return {"-".join(path.relative_to(folder).with_suffix("").parts): path for path in sorted(folder.rglob("*.yaml"))}


def find(name: str | Path) -> Path:
    """The file that a person names: one of their own, or a recipe that comes with expunge, by its name or its path.

    Raises `UserError` for the beginning of several names, and for a word that is no file and no name.
    """
    path, known = Path(name), named()
    if path.exists():
        return path
    word = "-".join(path.with_suffix("").parts if path.suffix == ".yaml" else path.parts)
    begun = [word] if word in known else [other for other in known if other.startswith(f"{word}-")]
    if len(begun) == 1:
        return known[begun[0]]
    if begun:
        raise UserError(f"{str(name)!r} is the beginning of {len(begun)} recipes; name one: {', '.join(begun)}.")
    if path.suffix or path.is_absolute():
        return path
    raise UserError(
        f"recipe {str(name)!r} is no file, and none comes with expunge by that name.{did_you_mean(word, known)} "
        "expunge recipes lists those."
    )


def reproductions() -> dict[str, Path]:
    """The files of `expunge reproduce` by their names."""
    return {path.stem: path for path in sorted((HERE / "reproduce").glob("*.yaml"))}


def launchers() -> dict[str, Path]:
    """The configs of `accelerate launch` by their names."""
    return {path.stem: path for path in sorted((HERE / "recipe" / "launch").glob("*.yaml"))}


def demo(name: str) -> Path:
    """The recipe of `expunge demo`, or of `expunge demo --real`."""
    return HERE / "recipe" / f"{name}.yaml"


def real_model() -> Path:
    """Where `make real-model` keeps the model of `expunge demo --real`, be it there or not."""
    return cache_directory() / "real" / "SmolLM2-135M-Instruct.Q4_1.gguf"


def first_comment(path: Path) -> str:
    """The comment that a file opens with, up to its first stop."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.lstrip("# "))
    return " ".join(lines).split(". ")[0].rstrip(".")
