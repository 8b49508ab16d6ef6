"""Checks of a folder of evidence: signature, files, rows, model, and the model's numbers again."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from expunge.data.encode import encode
from expunge.data.files import read_records
from expunge.data.formats import rows_of_records
from expunge.errors import UserError
from expunge.requests import signing
from expunge.requests.fingerprints import Salt
from expunge.requests.folder import ENVELOPE, KEY, PREDICATE, ROWS, STATEMENT, files_of
from expunge.system import manifest
from expunge.system.disk import printable

SAMPLE = 50
"""Rows whose numbers are measured again."""
CLOSE = 0.02
"""How far a probability may lie from the noted one: other machines and releases add up numbers in another order."""


@dataclass(frozen=True)
class Check:
    """One thing that was looked at: whether it holds (`None`: it was not looked at), and what was found."""

    what: str
    holds: bool | None
    found: str


def verify(
    folder: Path,
    *,
    key: Path | None = None,
    data: str | None = None,
    model: str | None = None,
) -> list[Check]:
    """Look at a folder of evidence; with `data` at the rows, with `model` at its files, with both at its numbers.

    A failed check is in the list; `UserError` for arguments that can't be read.
    """
    return list(_checks(Path(folder), key, data, model))


def _checks(folder: Path, key: Path | None, data: str | None, model: str | None) -> Iterator[Check]:
    public = signing.read_public_key(key) if key is not None else None
    if not folder.is_dir():
        raise UserError(f"{printable(folder)} is no folder; give the one that expunge evidence wrote.")
    try:
        payload = (folder / STATEMENT).read_bytes()
    except OSError:
        yield Check("statement", False, f"{STATEMENT} is missing")
        return
    signature = _signature(folder, payload, public)
    yield signature
    try:
        statement = json.loads(payload)
        about, subject = statement["predicate"], statement["subject"]
        listed, salt = about["files"], Salt(**about["rows"])
        sums = {entry["name"].removeprefix("model/"): entry["digest"]["sha256"] for entry in subject}
        assert statement["predicateType"] == PREDICATE
    except (ValueError, KeyError, TypeError, AttributeError, AssertionError, RecursionError):
        yield Check("statement", False, f"{STATEMENT} is damaged")
        return
    whole = _files(folder, listed)
    yield whole
    if data is None and model is None:
        return
    numbers = _numbers(folder) if whole.holds else {}
    meant: dict[str, Any] = {}
    if data is not None:
        rows = rows_of_records(read_records(data))
        hashes = salt.of_all(rows)
        meant = {each: row for each, row in zip(hashes, rows, strict=True) if each in numbers}
        yield _rows(hashes, numbers)
    if model is not None:
        yield _model(Path(model), sums)
    if meant and model is not None:
        yield _again(model, {each: (meant[each], numbers[each]) for each in list(meant)[:SAMPLE]})


def _signature(folder: Path, payload: bytes, public: Any) -> Check:
    """Whether the statement is what was signed, and by whom; without a key of one's own by the one in the folder."""
    try:
        envelope = (folder / ENVELOPE).read_text(encoding="utf-8")
    except FileNotFoundError:
        return Check("signature", False, f"{ENVELOPE} is missing: nobody signed this, and anybody can have changed it")
    except (OSError, ValueError):
        return Check("signature", False, f"{ENVELOPE} can't be read")
    try:
        own = public if public is not None else signing.public_key((folder / KEY).read_bytes(), KEY)
        signed = signing.verified(envelope, own)
    except OSError:
        return Check("signature", False, f"{KEY} is missing; give the sender's with --key")
    except UserError as error:
        return Check("signature", False, str(error))
    except signing.Unproven as error:
        return Check("signature", False, f"{ENVELOPE} {error}")
    if signed != payload:
        return Check("signature", False, f"{STATEMENT} is not what was signed")
    whose = "" if public is not None else "; whose key that is, this folder can't tell: give the sender's with --key"
    return Check("signature", True, f"by the key {signing.key_id(own)[:16]}…{whose}")


def _files(folder: Path, listed: manifest.Entries) -> Check:
    """Whether the other files are those that the statement lists."""
    there = {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()}
    if strange := sorted(there - listed.keys() - {STATEMENT, ENVELOPE}):
        return Check("files", False, f"{printable(strange[0])} was not there when the folder was written")
    if wrong := manifest.damage_of(folder, listed):
        return Check("files", False, wrong)
    return Check("files", True, f"all {len(listed)} as they were written")


def _numbers(folder: Path) -> dict[str, Mapping[str, Any]]:
    lines = (folder / ROWS).read_text(encoding="utf-8").splitlines()
    return {entry["row"]: entry for entry in map(json.loads, lines)}


def _rows(hashes: list[str], numbers: Mapping[str, Any]) -> Check:
    """Whether the rows are those that are meant, all of them and no others."""
    strange = [k for k, each in enumerate(hashes, start=1) if each not in numbers]
    missing = len(numbers.keys() - set(hashes))
    if strange:
        more = f" and {len(strange) - 1} more" if len(strange) > 1 else ""
        return Check("rows", False, f"row {strange[0]}{more} of {len(hashes)} is not meant by this evidence")
    if missing:
        return Check("rows", False, f"all {len(hashes)} are meant, but {missing} further rows are as well")
    return Check("rows", True, f"these {len(numbers)} and no others are meant")


def _model(folder: Path, sums: Mapping[str, str]) -> Check:
    """Whether a folder holds the files of the unlearned model."""
    if not folder.is_dir():
        raise UserError(f"--model {printable(folder)} is no folder; give the one that holds the model's files.")
    found = files_of(folder)
    if name := next((name for name, total in sums.items() if found.get(name) != total), None):
        return Check("model", False, f"{name} {'is another' if name in found else 'is missing'}")
    return Check("model", True, f"its {len(sums)} files are those of the evidence")


def _again(model: str, sample: Mapping[str, tuple[Any, Mapping[str, Any]]]) -> Check:
    """Whether the model finds the answers of some rows as likely as is noted."""
    noted = {each: numbers["after"]["probability"] for each, (_, numbers) in sample.items() if "after" in numbers}
    if not noted:
        return Check("numbers", None, "none of these rows was asked about one by one")
    from expunge.evals import requests
    from expunge.evals.metrics import probability
    from expunge.pipeline.measure import load

    loaded, tokenizer = load(model, use_cpu=False)
    scores = requests.score(loaded, [encode(sample[each][0], tokenizer) for each in noted], progress=False)
    found = [probability(score.total, score.tokens) for score in scores]
    most = max(abs(a - b) for a, b in zip(found, noted.values(), strict=True))
    words = f"{len(noted)} rows measured again, the probability of an answer differs by {most:.4f} at most"
    return Check("numbers", most <= CLOSE, words)
