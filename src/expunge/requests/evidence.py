"""The evidence of a run: a folder that somebody else can check without the data.

    evidence.json        what was asked, done, measured, attacked and not tested: an in-toto statement about the model
    evidence.dsse.json   the same, signed (with a key)
    key.pub              the public key that belongs to the signature
    index.html           the same for people
    rows.jsonl           a salted hash for each row, with its numbers before and after
    sbom.cdx.json        every package that was installed, as a CycloneDX list

No text of a row stands in it, and no path of the machine.
"""

import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from expunge import __version__
from expunge.data.encode import question_row
from expunge.data.files import lines_of
from expunge.errors import UserError
from expunge.modeling.checkpoint import content_of, folder_of
from expunge.pipeline import rundir
from expunge.recipe.config import Recipe
from expunge.report import records
from expunge.report.comparison import ResultRow
from expunge.report.interval import mean_interval
from expunge.requests import signing
from expunge.requests.fingerprints import Salt
from expunge.requests.finished import Finished, finished
from expunge.requests.folder import ENVELOPE, KEY, PAGE, PREDICATE, ROWS, SBOM, STATEMENT, files_of
from expunge.requests.page import page
from expunge.stress.options import ATTACKS
from expunge.system import manifest
from expunge.system.disk import make_folder, partial_of, printable, remove, write_whole, writing

NUMBERS = ("probability", "rouge_l_recall")
"""Numbers of a question that stand beside its row's hash."""
SETS = ("forget", "retain", "held_out", "general")
LEFT_OUT = "(left out)"
PRIVATE = ("data", "augment", "out", "retrained", "checkpoints", "path", "earlier")
"""Keys of a recipe whose values are a person's own paths or texts."""
PLAIN = re.compile(r"[\w.+:,=-]{0,60}")

ALWAYS = (
    "Training data, backups, logs, search indexes, and models derived from this one.",
    "Knowledge of the same facts in other words than the attacks and questions named above.",
)


def write(
    run: Path,
    out: Path,
    *,
    key: Path | None = None,
    method: str | None = None,
    reference: str | None = None,
    received: str | None = None,
) -> Path:
    """Write the evidence of a method's result in the run directory `run` to the new folder `out`, whole or not at all.

    key: file of the private key that signs; without one whoever has the folder can change it.
    method: which, where the run has several.
    reference, received: the request's number and day.

    Raises `UserError`, before anything is written, for a run that is not whole, kept no model, or whose rows are not
    those of its beginning.
    """
    signer = signing.private_key(key) if key is not None else None
    bill = _bill_of_materials()
    found = finished(run, method)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{printable(out)} is there already; give a new folder with --out.")
    salt = Salt.new()
    texts = {ROWS: _rows(found, salt), SBOM: bill}
    if signer is not None:
        texts[KEY] = signing.public_pem(signer.public_key())
    about = predicate(found, salt, {"reference": reference, "received": received})
    texts[PAGE] = page(found, about, signer and signing.key_id(signer.public_key()))
    staged = partial_of(out)
    with writing(out):
        remove(staged)
        make_folder(staged)
    for name, text in texts.items():
        write_whole(staged / name, text)
    statement = {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [
            {"name": f"model/{name}", "digest": {"sha256": sha}} for name, sha in files_of(found.model).items()
        ],
        "predicateType": PREDICATE,
        "predicate": {**about, "files": manifest.entries(staged, texts)},
    }
    payload = json.dumps(statement, indent=1, ensure_ascii=False) + "\n"
    write_whole(staged / STATEMENT, payload)
    if signer is not None:
        write_whole(staged / ENVELOPE, signing.sign(payload.encode(), signer))
    with writing(out):
        staged.rename(out)
    return out


def predicate(found: Finished, salt: Salt, request: Mapping[str, str | None]) -> dict[str, Any]:
    """The predicate of the statement, without the sums of the folder's own files."""
    row, target = found.row, found.target
    return {
        "made": time.strftime("%Y-%m-%d"),
        "by": {"name": "expunge", "version": __version__},
        "request": {key: value for key, value in request.items() if value is not None},
        "run": {"date": row.get("date"), "method": row["method"], "seed": row["seed"], "seconds": row.get("seconds")},
        "recipe": settings(rundir.tree_of(found.recipe)),
        "data": {"forget rows": len(found.benchmark.forget), "sha256": row.get("inputs", {})},
        "rows": salt.as_json(),
        "model before": _before(found.recipe),
        "removal": row.get("removal"),
        "metrics": {
            "after": _metrics(found, row),
            **({"before": _metrics(found, target)} if target is not None else {}),
            **({"never saw the rows": _metrics(found, r)} if (r := found.references.get("retrained")) else {}),
        },
        "verdict": {
            key: {k: v for k, v in answer.items() if k in ("state", "words", "low", "high", "name")}
            for key, answer in row.get("verdict", {}).items()
            if key != "next"
        },
        "attacks": {name: each["stress"] for name, each in _attacked(found).items()},
        "not tested": list(not_tested(found)),
        "environment": row.get("versions", {}),
    }


def _attacked(found: Finished) -> dict[str, ResultRow]:
    rows = {"after": found.row, "before": found.target, "never saw the rows": found.references.get("retrained")}
    return {name: row for name, row in rows.items() if row is not None and "stress" in row}


def _metrics(found: Finished, row: ResultRow) -> dict[str, Any]:
    """Every metric; those that are means over questions with their 95 % interval and the number of questions."""
    metrics = {name: {"value": value} for name, value in row["metrics"].items()}
    for kind in SETS:
        of_set = records.read(found.run / "records" / f"{row['method']}.{kind}.jsonl").values()
        for number in (*NUMBERS, "states"):
            name = kind if number == "states" else f"{kind}_{number}"
            values = [record[number] for record in of_set if isinstance(record.get(number), int | float)]
            if name in metrics and values and abs(fmean(values) - row["metrics"][name]) < 1e-6:
                _, low, high = mean_interval(values)
                metrics[name] |= {"low": low, "high": high, "questions": len(values)}
    return metrics


def not_tested(found: Finished) -> Iterator[str]:
    """A sentence for each thing that was not tested."""
    row = found.row
    made = {
        outcome["attack"] for model in row.get("stress", {}).get("models", []) for outcome in model.get("outcomes", [])
    }
    for name, what in ATTACKS.items():
        if name not in made:
            yield f"An attack by {name}: {what}."
    if "retrained" not in found.references:
        yield "A model that never saw the rows: none was measured beside this one."
    if "general" not in row["metrics"]:
        yield "General questions that nobody taught the model."
    if not any(name.startswith("membership") for name in row["metrics"]):
        yield "Membership: whether the rows can be told from rows that the model never saw."
    if "unlearning_depth" not in row["metrics"]:
        yield "The model's inner layers: what they still hold of the rows (unlearning depth)."
    yield from ALWAYS


def settings(tree: Any, key: str = "") -> Any:
    """A recipe's keys without paths and texts, which may name a person."""
    if key in PRIVATE:
        return LEFT_OUT
    if isinstance(tree, Mapping):
        return {name: settings(value, str(name)) for name, value in tree.items()}
    if isinstance(tree, Sequence) and not isinstance(tree, str):
        return [settings(value) for value in tree]
    return tree if not isinstance(tree, str) or PLAIN.fullmatch(tree) else LEFT_OUT


def _before(recipe: Recipe) -> dict[str, Any]:
    """The model that the run started from: its files, or its commit on the hub; what it was taught is in the recipe."""
    name = recipe.model.name
    if name is None:
        return {"from": "nothing: this run made it and taught it"}
    folder = folder_of(name)
    taught = {"then": "taught by this run"} if recipe.finetune is not None else {}
    if not Path(folder).is_dir():
        return {"from": content_of(name), **taught}
    return {"from": "a folder", "sha256": files_of(folder), **taught}


def _rows(found: Finished, salt: Salt) -> str:
    """A line for each forget row: its hash, and its numbers before and after where its question was asked."""
    numbers: dict[str, dict[str, Any]] = {each: {} for each in salt.of_all(found.benchmark.forget)}
    asked = found.benchmark.questions.get("forget", [])
    for when, row in (("before", found.target), ("after", found.row)):
        if row is None:
            continue
        for index, record in records.read(found.run / "records" / f"{row['method']}.forget.jsonl").items():
            if index < len(asked):
                question = asked[index]
                each = salt.of(question.row or question_row(question.question, question.answer))
                if each in numbers:
                    numbers[each][when] = {name: record[name] for name in NUMBERS if name in record}
    return lines_of({"row": each, **values} for each, values in numbers.items())


def _bill_of_materials() -> str:
    """The packages of this environment as CycloneDX 1.6; `UserError` without the package that writes it."""
    from importlib.metadata import distributions

    try:
        from cyclonedx.model.bom import Bom
        from cyclonedx.model.component import Component, ComponentType
        from cyclonedx.output.json import JsonV1Dot6
        from packageurl import PackageURL
    except ImportError:
        raise UserError("evidence: cyclonedx-python-lib is missing; pip install 'expunge[requests]'.") from None
    names = {d.metadata["Name"]: d.version for d in distributions() if d.metadata["Name"]}
    bill: Any = Bom()
    component: Any = Component  # its decorator hides the arguments from type checkers
    for name, version in sorted(names.items()):
        url = PackageURL("pypi", None, name.lower().replace("_", "-"), version)
        kind = ComponentType.LIBRARY
        bill.components.add(component(name=name, version=version, type=kind, bom_ref=f"{name}=={version}", purl=url))
    return JsonV1Dot6(bill).output_as_string(indent=1) + "\n"
