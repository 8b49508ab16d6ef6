"""The run directory: who may write there, what a run leaves in it, and in what order nothing gets lost.

Knows `recipe.yaml`, `results.json` and `records/`; knows nothing of how a number comes about.
"""

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from expunge import measure, ranks, secrets
from expunge.config import Recipe
from expunge.data.benchmark import Benchmark
from expunge.errors import UserError
from expunge.evals.tofu import Evaluation, Record
from expunge.parsing import load_recipe
from expunge.report import load_results

Result = dict[str, Any]

FIRST = {"target": 0, "retrained": 1}
"""Where the rows that every method is compared with stand in results.json."""

CUT = ("per_device_train_batch_size", "gradient_accumulation_steps")
"""With another number of processes a step of as many sequences is cut up in another way; the trainer counts them."""

WRITTEN = ("recipe.yaml", "results.json", "metrics.jsonl", "report.html", "records", "pictures", "model")
"""What a run leaves in its directory, besides one folder a method where there are several."""


def check_run_directory(recipe: Recipe, *, resume: bool, overwrite: bool) -> Path:
    """Where the run will be written; nothing is written yet.

    Raises `UserError` for a path that can't be a folder and for one that holds another run.
    """
    out = recipe.out or Path("runs") / "run"
    written = out / "recipe.yaml"
    nearest = next(p for p in (out, *out.parents) if p.exists())
    if not nearest.is_dir():
        raise UserError(f"{nearest} is a file, so a run can't be written to {out}; give another --out.")
    if not os.access(nearest, os.W_OK):
        raise UserError(f"{nearest} is not writable, so a run can't be written to {out}; give another --out.")
    if resume and overwrite:
        raise UserError("--resume goes on with a run and --overwrite starts it over; give one of them.")
    if overwrite:
        for model in (recipe.model.name, recipe.retrained):
            if model is not None and Path(model).resolve().is_relative_to(out.resolve()):
                raise UserError(f"--overwrite would delete {model}, which this run reads; give another --out.")
    elif written.exists() and not resume:
        raise UserError(f"{out} already holds a run; go on with --resume, start over with --overwrite, or give --out.")
    elif written.exists() and (key := first_difference(load_recipe(written), recipe)):
        raise UserError(
            f"{written} is another recipe than the one to resume: {key} differs; give the same keys, or another --out."
        )
    return out


def open_run_directory(recipe: Recipe, out: Path) -> None:
    """Clear away an older run, leaving everything that no run has written, and write `recipe.yaml`."""
    written = out / "recipe.yaml"
    if written.exists():
        folders: list[str] = []
        with suppress(UserError):  # of a version with other keys, or damaged: its folders stay
            folders = [method.name for method in load_recipe(written).methods]
        for path in [*out.glob("checkpoint-*"), *(out / name for name in (*folders, *WRITTEN))]:
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    out.mkdir(parents=True, exist_ok=True)
    tree = secrets.masked(recipe.model_dump(mode="json", exclude_unset=True, exclude={"out"}))
    written.write_text(yaml.safe_dump(tree, sort_keys=False, allow_unicode=True), encoding="utf-8")


def first_difference(old: Recipe, new: Recipe) -> str | None:
    """The first key that two recipes do not share, but for secrets, where they are written and how steps are cut up."""
    a, b = (dict(_leaves(secrets.masked(recipe.model_dump(mode="json", exclude={"out"})))) for recipe in (old, new))
    differ = (key for key in {**a, **b} if a.get(key) != b.get(key) and not secrets.is_secret(key))
    return next((key for key in differ if not key.endswith(CUT)), None)


def _leaves(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if not isinstance(tree, dict | list):
        yield path, tree
        return
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
        yield from _leaves(value, f"{path}.{key}".lstrip("."))


def write_whole(path: Path, text: str) -> None:
    """Write a file that is never there by half."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


class Results:
    """`results.json` and `records/`, written again after every method so that nothing finished is lost.

    The first result opens the run directory. Every rank holds the rows, the first one writes them.
    """

    def __init__(self, out: Path, recipe: Recipe, benchmark: Benchmark, *, resume: bool) -> None:
        self.out, self.recipe, self.benchmark = out, recipe, benchmark
        self.path = out / "results.json"
        self.rows: list[Result] = load_results(out) if resume and self.path.exists() else []

    def has(self, method: str) -> bool:
        return any(row["method"] == method for row in self.rows)

    def records(self, name: str) -> dict[str, list[dict[str, Any]]]:
        """The records of a method that is there already, by question set."""
        return {
            file.name.split(".")[-2]: [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
            for file in (self.out / "records").glob(f"{name}.*.jsonl")
        }

    def add(self, row: Result, evaluation: Evaluation) -> None:
        if not self.rows and ranks.first():
            open_run_directory(self.recipe, self.out)
        self.rows.append(
            {
                "method": row["method"],
                "benchmark": self.benchmark.name,
                "split": self.benchmark.split,
                "seed": self.recipe.seed,
                "seconds": None,
                "peak_memory_mib": None,
                "trajectory": [],
                **row,
                "versions": measure.versions(),
            }
        )
        self.rows.sort(key=lambda r: FIRST.get(r["method"], 2))
        if ranks.first():
            self._write(row["method"], evaluation.records)
        ranks.wait()

    def _write(self, method: str, found: Mapping[str, Sequence[Record]]) -> None:
        records = self.out / "records"
        records.mkdir(exist_ok=True)
        for name, rows in found.items():
            text = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows)
            (records / f"{method}.{name}.jsonl").write_text(text, encoding="utf-8")
        write_whole(self.path, json.dumps(self.rows, indent=1, ensure_ascii=False))
