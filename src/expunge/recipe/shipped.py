"""Files that come with expunge: recipes, reproductions of papers' tables and figures, and launch configs."""

from pathlib import Path

HERE = Path(__file__).parents[1]


def recipes() -> Path:
    """The folder of recipes: an installed package carries them inside, a checkout has them at its top."""
    return next(path for path in (HERE / "recipes", HERE.parents[1] / "recipes") if path.is_dir())


def reproductions() -> dict[str, Path]:
    """The files of `expunge reproduce` by their names."""
    return {path.stem: path for path in sorted((HERE / "reproduce").glob("*.yaml"))}


def launchers() -> dict[str, Path]:
    """The configs of `accelerate launch` by their names."""
    return {path.stem: path for path in sorted((HERE / "recipe" / "launch").glob("*.yaml"))}


def first_comment(path: Path) -> str:
    """The comment that a file opens with, up to its first stop."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.lstrip("# "))
    return " ".join(lines).split(". ")[0].rstrip(".")
