"""The run directory: who may write there, what a run leaves in it, and in what order nothing gets lost."""

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml

from expunge import secrets
from expunge.data.benchmark import Benchmark
from expunge.data.files import lines_of
from expunge.errors import MachineError, UserError
from expunge.evals.glossary import as_json
from expunge.evals.tofu import Evaluation, Record
from expunge.modeling.checkpoint import content_of
from expunge.recipe.config import Method, Recipe, declarations
from expunge.recipe.parsing import load_recipe
from expunge.report import load_results
from expunge.report.box import row_verdict
from expunge.report.comparison import Entry, compare
from expunge.report.records import Records, of_entry
from expunge.report.redaction import redacted
from expunge.system import machine, manifest, ranks
from expunge.system.digest import digest
from expunge.system.disk import PARTIAL, alone, make_folder, printable, remove, write_whole, writing
from expunge.training.history import METRICS_FILE, checkpoint_damage, checkpoints

Result = dict[str, Any]

FIRST = {"target": 0, "retrained": 1}
"""Where the rows that every method is compared with stand in results.json."""

CUT = ("per_device_train_batch_size", "gradient_accumulation_steps")
"""With another number of processes a step of as many sequences is cut up in another way; the trainer counts them."""

FILES = ("results.json", manifest.NAME, METRICS_FILE, "report.html", "recipe.yaml")
FOLDERS = ("records", "pictures", "model", "teacher", "noise")
"""Names that a run leaves in its directory, besides one folder a method where there are several."""

LONGEST = 180
"""Bytes of a method's name, which files are called by."""


def directory_of(recipe: Recipe) -> Path:
    """Where the run will be written. Raises `UserError` for a path that can't be a folder; nothing is written."""
    out = recipe.out or Path("runs") / "run"
    try:
        str(out).encode()
    except UnicodeEncodeError:
        raise UserError(f"{printable(out)} is not UTF-8; give another --out.") from None
    try:
        nearest = next((p for p in (out, *out.parents) if p.exists()), Path())
    except OSError as error:
        raise UserError(f"{printable(out)}: {error.strerror}; give another --out.") from None
    if not nearest.is_dir():
        raise UserError(f"{nearest} is a file, so a run can't be written to {out}; give another --out.")
    return out


@contextmanager
def alone_in(out: Path, *, then: str = "go on with --resume") -> Iterator[None]:
    """Hold a run directory until this context ends, so that no other process writes there; one launch's ranks share it.

    The lock dies with its process. A folder that was made for it goes again if nothing is written. `then` is what a
    person does after the disk was full. Raises `MachineError` where another process holds the folder, where none can be
    made, and for what the disk refuses inside.
    """
    with ExitStack() as held:

        def hold() -> str | None:
            try:
                held.enter_context(alone(out))
            except MachineError as error:
                return str(error)
            return None

        if wrong := ranks.broadcast(hold):
            raise MachineError(wrong)
        with writing(out, then):
            yield


def check_run_directory(recipe: Recipe, *, resume: bool, overwrite: bool, resumable: bool = True) -> Path:
    """Where the run will be written; nothing is written yet.

    Raises `UserError` for a path that can't be a folder and for one that holds something else than this run.
    """
    out = directory_of(recipe)
    written = out / "recipe.yaml"
    _check_room(recipe, out)
    if resume and overwrite:
        raise UserError("--resume goes on with a run and --overwrite starts it over; give one of them.")
    if overwrite:
        for model in (recipe.model.name, recipe.retrained, *recipe.cloud, *recipe.checkpoints):
            if model is not None and Path(os.path.realpath(model)).is_relative_to(os.path.realpath(out)):
                raise UserError(f"--overwrite would delete {model}, which this run reads; give another --out.")
    elif written.exists() and not resume:
        on = "go on with --resume, " if resumable else ""
        raise UserError(f"{out} already holds a run; {on}start over with --overwrite, or give --out.")
    elif written.exists() and (key := first_difference(_written(written), recipe)):
        raise UserError(
            f"{written} is another recipe than the one to resume: {key} differs; give the same keys, or another --out."
        )
    return out


def _written(path: Path) -> Recipe:
    """The recipe of the run that is to be resumed."""
    try:
        return load_recipe(path)
    except UserError as error:
        raise UserError(f"{error} Put it back as it was, or start over with --overwrite.") from error


def _check_room(recipe: Recipe, out: Path) -> None:
    """Raise `UserError` where something that is no run's stands where this one writes."""
    names = [method.name for method in recipe.methods]
    if long := next((name for name in names if len(name.encode()) > LONGEST), None):
        raise UserError(f"method.label: {long[:40]}… is longer than {LONGEST} bytes; choose a shorter one.")
    several = names if len(names) > 1 else []
    for name in (*FILES, *FOLDERS, *several):
        path, folder = out / name, name not in FILES
        if path.exists() and path.is_dir() != folder:
            kinds = ("a file", "a folder") if folder else ("a folder", "a file")
            raise UserError(f"{path} is {kinds[0]} where a run writes {kinds[1]}; remove it, or give another --out.")
    if (out / "sweep.yaml").exists():
        raise UserError(f"{out} holds a sweep; give another --out.")
    strange = [name for name in (*FILES, *FOLDERS, *several) if (out / name).exists()]
    if strange and not (out / "recipe.yaml").exists():
        if manifest.is_sealed(out):
            raise UserError(f"{out / 'recipe.yaml'} is missing; put it back as it was, or give another --out.")
        raise UserError(f"{out / strange[0]} is of no run and would be replaced; move it, or give another --out.")


def check_whole(recipe: Recipe, out: Path) -> None:
    """Look at what a run that goes on is built upon, after finishing what a kill interrupted.

    Raises `UserError`, which names the file, for results, records, logs, models and checkpoints that are not as they
    were written. Every rank raises the same.
    """
    if wrong := ranks.broadcast(lambda: _first_damage(recipe, out)):
        raise UserError(wrong)


def results_damage(out: Path) -> str | None:
    """The fault of the results in a run directory that is only read, in words; `None` too for an older version's.

    A `commit` that a kill interrupted is not damage; who resumes the run finishes it.
    """
    try:
        listed = manifest.read(out) or {}
    except ValueError as error:
        return str(error)
    return None if is_pending(out) else manifest.damage_of(out, listed)


def is_pending(out: Path) -> bool:
    """Whether a kill interrupted the writing of results."""
    return any(out.glob(f"*{PARTIAL}")) or any(out.glob(f"records/*{PARTIAL}"))


def _first_damage(recipe: Recipe, out: Path) -> str | None:
    try:
        manifest.recover(out)
        listed = manifest.read(out) or {}
    except ValueError as error:
        return f"{error}; start over with --overwrite."
    unlisted = [file for file in (out / "results.json", *sorted(out.glob("records/*"))) if file.exists()]
    unlisted = [file for file in unlisted if str(file.relative_to(out)) not in listed]
    wrong = manifest.damage_of(out, listed)
    if wrong is None and unlisted:
        wrong = f"{unlisted[0]} is not in {out / manifest.NAME}, so nobody knows whether it is as it was written"
    if wrong is not None:
        return f"{wrong}; put it back as it was, or start over with --overwrite."
    finished = {row["method"] for row in load_results(out)} if (out / "results.json").exists() else set()
    for method in recipe.methods:
        folder = method_directory(recipe, method, out)
        if method.name in finished:
            model = folder / "model"
            wrong = manifest.damage(model, extra=False) if model.exists() else None
            wrong = wrong and f"{wrong}; put it back as it was, or start over with --overwrite."
        else:
            wrong = _training_damage(folder) or _training_damage(folder / "teacher")
        if wrong is not None:
            return wrong
    return None


def _training_damage(folder: Path) -> str | None:
    newest = next((path for path in checkpoints(folder) if not manifest.is_begun(path)), None)
    model = folder / "model"
    if folder.name == "teacher" and model.exists() and (wrong := manifest.damage(model)):
        return f"{wrong}; delete {model} to train it again, or start over with --overwrite."
    return newest and checkpoint_damage(newest)


def method_directory(recipe: Recipe, method: Method, out: Path) -> Path:
    """The run directory itself for a single method, a folder of its own for each of several."""
    return out if len(recipe.methods) == 1 else out / method.name


def discard_training(directory: Path) -> None:
    """Remove what a method's training needed to go on, once its result is written."""
    if ranks.first():
        for stale in (*directory.glob("checkpoint-*"), directory / "teacher", directory / "noise"):
            remove(stale)


def open_run_directory(recipe: Recipe, out: Path) -> None:
    """Clear away an older run, leaving everything that no run has written, and write `recipe.yaml`.

    The older results go first and its recipe last, so that a kill never leaves results under another recipe.
    """
    written = out / "recipe.yaml"
    if written.exists():
        methods: list[str] = []
        with suppress(UserError):  # of a version with other keys, or damaged: its folders stay
            methods = [method.name for method in load_recipe(written).methods]
        first = [out / name for name in FILES if name != written.name]
        for path in (*first, *out.glob("checkpoint-*"), *(out / name for name in (*methods, *FOLDERS)), written):
            remove(path)
    make_folder(out)
    write_whole(written, yaml.safe_dump(tree_of(recipe), sort_keys=False, allow_unicode=True))


def tree_of(recipe: Recipe) -> dict[str, Any]:
    """The content of `recipe.yaml`: every key that was set, without secrets and without where the run is written."""
    return secrets.masked(recipe.model_dump(mode="json", exclude_unset=True, exclude={"out"}))


def adopt(folder: Path, recipe: Recipe, out: Path) -> None:
    """Begin a run with the results and records of the run in `folder`, as if it had been interrupted after them."""
    open_run_directory(recipe, out)
    files = (folder / "results.json", *folder.glob("records/*.jsonl"))
    texts = {str(file.relative_to(folder)): file.read_text(encoding="utf-8") for file in files}
    manifest.commit(out, texts, also=["recipe.yaml"])


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


def digests(recipe: Recipe, benchmark: Benchmark) -> dict[str, str]:
    """SHA-256 sums of what a run reads, by which a resumed one knows that it reads the same."""
    parts = {
        "forget rows": benchmark.forget,
        "retain rows": [benchmark.retain, benchmark.utility, benchmark.world],
        "variants": benchmark.variants,
        "questions": [benchmark.questions, benchmark.probes],
    }
    sums = {name: digest(part, default=_plain) for name, part in parts.items()}
    models = {"model.name": recipe.model.name, "retrained": recipe.retrained}
    models |= {path: path for path in (*recipe.cloud, *recipe.checkpoints)}
    for method in recipe.methods:
        if recipe.teacher_of(method) is None:  # else this run makes it
            models |= {f"{method.name}'s {key}": getattr(method.forget, key, None) for key in ("assistant", "teacher")}
    return sums | {f"the files of {key}": content_of(name) for key, name in models.items() if name is not None}


def _plain(value: Any) -> Any:
    """Questions, variants and probes as JSON holds them."""
    if isinstance(value, frozenset | set):
        return sorted(value)
    if is_dataclass(value):
        return {field.name: getattr(value, field.name) for field in fields(value)}
    return repr(value)


class Results:
    """`results.json` and `records/`, written again after every method so that nothing finished is lost.

    The first result opens the run directory. Every rank holds the rows, the first one writes them.
    """

    def __init__(self, out: Path, recipe: Recipe, benchmark: Benchmark, *, resume: bool) -> None:
        self.out, self.recipe, self.benchmark = out, recipe, benchmark
        self.path = out / "results.json"
        self.rows: list[Result] = load_results(out) if resume and self.path.exists() else []
        self.inputs = digests(recipe, benchmark)
        then = self.rows[0].get("inputs", self.inputs) if self.rows else self.inputs
        if changed := [name for name, now in self.inputs.items() if then.get(name, now) != now]:
            raise UserError(
                f"{self.path}: {changed[0]} were others when the run began; give those again, or another --out."
            )

    def has(self, method: str) -> bool:
        return any(row["method"] == method for row in self.rows)

    def records(self, name: str) -> dict[str, list[dict[str, Any]]]:
        """The records of a method that is there already, by question set."""
        records: dict[str, list[dict[str, Any]]] = {}
        for file in (self.out / "records").glob("*.jsonl"):
            method, kind, _ = file.name.rsplit(".", 2)
            if method == name:
                lines = file.read_text(encoding="utf-8").split("\n")  # and at no other separator, which texts may hold
                records[kind] = [json.loads(line) for line in lines if line]
        for kind, questions in self.benchmark.questions.items():
            for record in records.get(kind, []):
                record.setdefault("question", questions[record["index"]].question)  # which redaction leaves out
        return records

    def add(self, row: Result, evaluation: Evaluation) -> None:
        if not self.rows and ranks.first():
            open_run_directory(self.recipe, self.out)
        metrics, axes = declarations(self.recipe)
        self.rows.append(
            {
                "date": time.strftime("%Y-%m-%d"),
                "method": row["method"],
                "benchmark": self.benchmark.name,
                "split": self.benchmark.split,
                "seed": self.recipe.seed,
                "seconds": None,
                "peak_memory_mib": None,
                "trajectory": [],
                **row,
                **({"declares": as_json(metrics, axes)} if metrics else {}),
                "inputs": self.inputs,
                "versions": machine.versions(),
            }
        )
        if row["method"] not in FIRST or (row["method"] == "target" and not self.recipe.methods):
            self.rows[-1]["verdict"] = self._verdict(row["method"], evaluation.records)
        self.rows.sort(key=lambda r: FIRST.get(r["method"], 2))
        if ranks.first():
            self._write(row["method"], evaluation.records)
        ranks.wait()

    def attach(self, method: str, stress: dict[str, Any], metrics: Mapping[str, float] = MappingProxyType({})) -> None:
        """Put what attacks found into the row of a method that is there already, with metrics that follow from it."""
        (row,) = (row for row in self.rows if row["method"] == method)
        row.update(stress=stress, metrics={**row["metrics"], **metrics})
        if "verdict" in row:
            row["verdict"] = self._verdict(method, self.records(method))
        if ranks.first():
            self._write(method, {})
        ranks.wait()

    def row(self, method: str) -> Result | None:
        return next((row for row in self.rows if row["method"] == method), None)

    def _verdict(self, method: str, records: Mapping[str, Sequence[Record]]) -> dict[str, Any]:
        """The answers about a method beside the references, as far as these records tell."""
        (section,) = compare([(self.out, row) for row in self.rows if row["method"] in (method, *FIRST)])
        entry = next(e for e in section.entries if e.method == method)

        def reader(of: Entry, name: str) -> Records:
            return {r["index"]: r for r in records.get(name, [])} if of is entry else of_entry(of, name)

        return row_verdict(section, entry, reader, tree_of(self.recipe))

    def _write(self, method: str, records: Mapping[str, Sequence[Record]]) -> None:
        """Write results and records at once, and note the method's log as it is now."""
        texts = {
            f"records/{method}.{name}.jsonl": lines_of(redacted(r) if self.recipe.redact else r for r in rows)
            for name, rows in records.items()
        }
        texts["results.json"] = json.dumps(self.rows, indent=1, ensure_ascii=False)
        folder = self.out if len(self.recipe.methods) == 1 else self.out / method
        logs = [str(file.relative_to(self.out)) for file in [folder / METRICS_FILE] if file.exists()]
        manifest.commit(self.out, texts, also=["recipe.yaml", *(logs if method not in FIRST else [])])
