"""Carries a request from its rows to the evidence; killed at any moment, the same command goes on.

Every step leaves a file in the request's folder and a line in the ledger, and is not done again where both are there:

    who.yaml         whom the letter names
    forget.jsonl     the rows about the person
    retain.jsonl     rows about others, to keep
    before.json      what the model remembered
    run/             unlearning, as any run directory; run-again/ where that was not enough
    after-run.json   what the model remembers now
    evidence/        for others
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from expunge.data.benchmark import Row
from expunge.data.files import lines_of
from expunge.errors import MachineError, UserError
from expunge.modeling.checkpoint import base_of, content_of, is_adapter
from expunge.pipeline import measure
from expunge.pipeline.lessons import lesson
from expunge.pipeline.run import run_all
from expunge.recipe.parsing import load_recipe, read_mapping
from expunge.recipe.shipped import find as find_recipe
from expunge.requests import evidence
from expunge.requests.decision import Decision, Verdict
from expunge.requests.find import TAKEN
from expunge.requests.ledger import Ledger, Request
from expunge.requests.probe import probe
from expunge.requests.remedies import USUAL, Remedy, choose
from expunge.requests.rows import FORGET, RETAIN, WHO, others_at, rest_of, rows_at, rows_of
from expunge.system.digest import digest
from expunge.system.disk import make_folder, partial_of, private, remove, write_whole
from expunge.training.targets import taught

BEFORE, BELOW, EVIDENCE, LEAVE_OUT = "before.json", "below.json", "evidence", "leave-out.jsonl"
KEPT = (WHO, FORGET, RETAIN, BEFORE)
"""The files that stay where a request is begun again."""


@dataclass(frozen=True)
class Attempt:
    """A way to unlearn: the folder of its run, and keys of its recipe that a person did not set."""

    folder: str
    keys: tuple[tuple[str, str], ...] = ()


ASKED = ("evaluate.limit", "200")
FURTHER = tuple((f"evaluate.{key}", "false") for key in ("keep_nearest", "stop_when_forgotten", "raise_rate"))
ATTEMPTS = (Attempt("run", (ASKED,)), Attempt("run-again", (ASKED, *FURTHER)))
"""The smallest change that reaches the goal; where a probe still says that the model remembers, as much of it as the
utility budget allows."""
SUPPRESSED = 30
"""Days by which what is only suppressed is to be unlearned."""


@dataclass(frozen=True)
class Means:
    """The model, data and permissions that a request is handled with.

    model   the model as it is now; without it what the last request left behind
    data    everything that the model was tuned on, where the rows about the person are looked for
    allow   the remedies that may be taken
    least   score from which on a row that is found is taken
    retrain  the recipe that taught the model; with it the model is taught anew without the rows
    key     private key that signs the evidence; without it there is none
    keys    keys of the recipe that unlearns
    """

    model: str | None = None
    data: Sequence[str] = ()
    allow: Sequence[Remedy] = USUAL
    least: float = TAKEN
    retrain: str | None = None
    key: Path | None = None
    keys: Sequence[tuple[str, str]] = ()
    seed: int = 0


def handle(ledger: Ledger, request: Request, means: Means) -> Request:
    """Carry a request from where it stands to its end; one that is done stays as it is.

    Raises `UserError` where something is in the way, which the ledger notes too, and `MachineError` where another
    process is at work on it. Earlier requests whose rows the model remembers again are queued and named at the end.
    """
    with ledger.held(request) as request:
        if request.state == "done":
            return request
        model = request.model_before if request.state == "running" else means.model or current(ledger)
        if model is None:
            raise UserError("request run: name the model with --model; the ledger knows of none yet.")
        if request.state in ("back", "failed"):
            model = _set_aside(ledger.place(request), model)
        request = ledger.change(request, f"work begins on {model}", state="running", model_before=model)
        try:
            request = _handled(ledger, request, model, means)
        except MachineError:
            raise
        except UserError as error:
            ledger.change(request, f"failed: {error}", state="failed", why=str(error))
            raise
        back = [] if request.remedy == "leave out" else _back(probed(ledger, str(request.model_after), but=request))
        request = ledger.end(request)
        write_leave_out(ledger)
    if back:
        raise UserError(f"{request.reference} is done, but {_named(back)}")
    return request


def _handled(ledger: Ledger, request: Request, model: str, means: Means) -> Request:
    place = ledger.place(request)
    rows = rows_of(place, means.data, gone=_of_others(ledger, request), least=means.least, seed=means.seed)
    request = ledger.change(request, f"{len(rows)} rows", rows=len(rows), data=digest(rows))
    if not rows:
        why = "no row about the person was found"
        return ledger.change(request, why, remedy="leave out", why=why, model_after=model)
    others = others_at(place)
    before = _remembered(place / BEFORE, model, rows, others, means.seed)
    ledger.change(request, f"{model}: {before.verdict}")
    below = None
    if is_adapter(model) and "drop the adapter" in means.allow:
        below = _remembered(place / BELOW, base_of(model), rows, others, means.seed).verdict
    allowed: list[Remedy] = [*means.allow, *(("retrain",) if means.retrain is not None else ())]
    remedy, why = choose(before.verdict, allowed, below=below)
    if remedy is None:
        raise UserError(f"{request.reference}: {why}; allow more with --allow.")
    if remedy == "suppress":
        until = date.today() + timedelta(days=SUPPRESSED)
        why = f"{why}; to be unlearned by {until.isoformat()}"
    for attempt in ATTEMPTS if remedy == "unlearn" else ATTEMPTS[:1]:
        after = _carried_out(ledger, request, remedy, model, means, attempt)
        request = ledger.change(request, f"remedy: {remedy}, since {why}", remedy=remedy, why=why, model_after=after)
        if remedy == "leave out":
            return request
        left = _remembered(place / f"after-{attempt.folder}.json", after, rows, others, means.seed)
        ledger.change(request, f"{after}: {left.verdict}")
        if left.verdict != "remembers":
            break
    else:
        raise UserError(
            f"{request.reference}: the model still remembers the rows after this remedy: {remedy}; allow another one "
            f"(--allow), or change how it unlearns (--method …, --train.num_train_epochs …)."
        )
    out = place / EVIDENCE
    if remedy in ("unlearn", "suppress") and means.key is not None and not out.exists():
        about = {"reference": request.reference, "received": request.received}
        evidence.write(place / attempt.folder, out, key=means.key, **about)
    return request


def check(ledger: Ledger, model: str) -> dict[str, Verdict]:
    """Probe a model for the rows of every request that is done; verdicts by reference.

    Raises `UserError` that names those whose rows it remembers; they are queued again.
    """
    found = probed(ledger, model)
    if back := _back(found):
        raise UserError(f"{model}: {_named(back)}")
    return found


def probed(ledger: Ledger, model: str, *, but: Request | None = None) -> dict[str, Verdict]:
    """The verdict on each request that is done; one whose rows the model remembers is queued again."""
    asked = [r for r in ledger.all() if r.state == "done" and r.rows and (but is None or r.id != but.id)]
    if not asked:
        return {}
    loaded, found = measure.load(model, use_cpu=False), {}
    for request in tqdm(asked, "earlier requests", delay=5, leave=False, disable=None):
        place = ledger.place(request)
        decision = probe(*loaded, rows_at(place / FORGET), others=others_at(place), samples=0, progress=False).whole
        found[request.reference] = decision.verdict
        if decision.verdict == "remembers":
            ledger.change(request, f"{model}: remembers the rows again", state="back", why=f"it came back in {model}")
        else:
            ledger.change(request, f"{model}: {decision.verdict}")
    return found


def _back(found: Mapping[str, Verdict]) -> list[str]:
    return [reference for reference, verdict in found.items() if verdict == "remembers"]


def _named(back: Sequence[str]) -> str:
    return f"the model remembers what was to be forgotten: {', '.join(back)}; expunge request run takes them again."


def current(ledger: Ledger) -> str | None:
    """The model that the last request left behind."""
    done = [r for r in ledger.all() if r.turn is not None and r.model_after is not None]
    return max(done, key=lambda r: r.turn or 0).model_after if done else None


def write_leave_out(ledger: Ledger) -> Path:
    """Write all rows of all requests that were ever done to one file, for the next training to leave out."""
    done = (r for r in ledger.all() if r.turn is not None and r.rows)
    rows = [row for r in done for row in rows_at(ledger.place(r) / FORGET)]
    path = ledger.folder / LEAVE_OUT
    write_whole(path, lines_of(rows, default=str))
    return path


def _of_others(ledger: Ledger, request: Request) -> list[Row]:
    """The rows of all other requests, as far as they are known."""
    files = (ledger.place(other) / FORGET for other in ledger.all() if other.id != request.id)
    return [row for file in files if file.exists() for row in rows_at(file)]


def _remembered(path: Path, model: str, rows: Sequence[Row], others: Sequence[Row], seed: int) -> Decision:
    """The decision of a probe of a model, kept in a file with the model's sum."""
    name = content_of(model)
    try:
        noted = json.loads(path.read_text(encoding="utf-8"))
        if noted["model"] == name:
            return Decision(**noted["decision"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    found = probe(*measure.load(model, use_cpu=False), rows, others=others, samples=0, seed=seed)
    numbers = [{"row": row.row, "rank": row.rank, "controls": row.controls, **row.numbers} for row in found.rows]
    noted = {"model": name, "decision": asdict(found.whole), "rows": numbers}
    write_whole(path, json.dumps(noted, indent=1) + "\n")
    return found.whole


def _carried_out(ledger: Ledger, request: Request, remedy: Remedy, model: str, means: Means, attempt: Attempt) -> str:
    """Carry out a remedy; the model after it."""
    place = ledger.place(request)
    match remedy:
        case "leave out":
            return model
        case "drop the adapter":
            return base_of(model)
        case "retrain":
            gone = [*rows_at(place / FORGET), *_of_others(ledger, request)]
            return _retrained(rest_of(means.data, gone=gone), place, means)
    out = place / attempt.folder
    pairs = {"data.forget": place / FORGET, "data.retain": place / RETAIN, "model.name": model, "out": out}
    keys = [(key, str(value)) for key, value in pairs.items()]
    keys += [("anyway", "true"), ("seed", str(means.seed))]  # the probe has looked whether it knows the rows
    keys += [("method", "uld")] if remedy == "suppress" else []
    keys += [pair for pair in attempt.keys if pair[0] not in dict(means.keys)]
    rows = run_all(load_recipe(None, [*keys, *means.keys]), resume=(out / "recipe.yaml").exists())
    if cost := _over_budget(rows):
        raise UserError(
            f"{request.reference}: {cost}; allow another remedy (--allow), or lower evaluate.utility_budget."
        )
    return str(out / "model")


def _over_budget(rows: Sequence[Mapping[str, Any]]) -> str:
    """In words, that unlearning cost more than the utility budget of a run; empty where it did not."""
    stopped = rows[-1].get("stopped") or {}
    over = "kept" in stopped and stopped["kept"] is None
    return f"to unlearn the rows costs more than the utility budget allows ({stopped['why']})" if over else ""


def _set_aside(place: Path, model: str) -> str:
    """Put what was done about a request into a folder of its own, before it is begun again; where the model is then."""
    k = 1 + sum(path.name.startswith("earlier-") for path in place.iterdir())
    aside = place / f"earlier-{k}"
    make_folder(aside)
    for path in list(place.iterdir()):
        if path.name not in KEPT and not path.name.startswith("earlier-"):
            path.rename(aside / path.name)
    own = Path(model).resolve()
    return str(aside / own.relative_to(place.resolve())) if own.is_relative_to(place.resolve()) else model


def _retrained(rows: Sequence[Row], place: Path, means: Means) -> str:
    """The model that the recipe of the first training makes of these rows alone."""
    path = find_recipe(str(means.retrain))
    data = [("data.forget", str(place / FORGET)), ("data.retain", str(place / RETAIN))]
    recipe = load_recipe(path, [] if "benchmark" in read_mapping(str(path), what="recipe") else data)
    if recipe.model.scratch is None and recipe.finetune is None:
        raise UserError(f"--retrain {means.retrain} teaches nothing; give the recipe that taught the model.")
    folder = taught(lesson(recipe, rows, "retrained", vocabulary=rows))
    out = place / "retrained"
    if not out.exists():
        remove(partial_of(out))
        with private():
            shutil.copytree(folder, partial_of(out))
        partial_of(out).rename(out)
    return str(out)
