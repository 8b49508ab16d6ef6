"""Evidence of a run: what stands in it and what must not, and that any change of it is found and named."""

import base64
import json
import random
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from expunge.cli.main import main
from expunge.errors import UserError
from expunge.pipeline.inputs import load_benchmark
from expunge.pipeline.run import run
from expunge.recipe.parsing import load_recipe, parse_recipe
from tests.small import FABLE

pytest.importorskip("cryptography", reason="needs the extra expunge[requests]")
pytest.importorskip("cyclonedx", reason="needs the extra expunge[requests]")

from expunge.requests import evidence, signing
from expunge.requests.verification import Check, verify

FILES = ("evidence.json", "evidence.dsse.json", "key.pub", "index.html", "rows.jsonl", "sbom.cdx.json")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of two methods."""
    out = tmp_path_factory.mktemp("evidence") / "run"
    run(parse_recipe({**FABLE, "methods": ["npo+nll", "undial+nll"], "out": str(out)}, where="test"))
    return out


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("keys") / "key"
    signing.make_keys(path)
    return path


@pytest.fixture(scope="module")
def written(finished: Path, key: Path) -> Path:
    return evidence.write(finished, finished.parent / "evidence", key=key, method="npo+nll", reference="2026-17")


@pytest.fixture
def copied(written: Path, tmp_path: Path) -> Path:
    return shutil.copytree(written, tmp_path / "copy")


@pytest.fixture(scope="module")
def forget(finished: Path) -> list[dict[str, str]]:
    return load_benchmark(load_recipe(finished / "recipe.yaml")).forget


def lines(path: Path, rows: list[dict[str, str]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def failed(checks: list[Check]) -> list[Check]:
    return [check for check in checks if check.holds is False]


def public(key: Path) -> Path:
    return key.with_name(f"{key.name}.pub")


def test_who_has_rows_and_model_finds_all_as_it_was(
    written: Path, finished: Path, key: Path, forget: list[Any], tmp_path: Path
) -> None:
    model = str(finished / "npo+nll" / "model")
    checks = verify(written, key=public(key), data=lines(tmp_path / "rows.jsonl", forget), model=model)
    assert [(check.what, check.holds) for check in checks] == [
        (what, True) for what in ("signature", "files", "rows", "model", "numbers")
    ]


def test_its_files_and_folder_are_their_owners_alone(written: Path) -> None:
    assert {file.name for file in written.iterdir()} == set(FILES)
    assert stat.S_IMODE(written.stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in written.iterdir()} == {0o600}


def test_no_row_and_no_path_stands_in_it(written: Path, finished: Path, forget: list[Any]) -> None:
    text = "".join(file.read_text() for file in written.iterdir())
    payload = json.loads((written / "evidence.dsse.json").read_text())["payload"]
    text += base64.b64decode(payload).decode()
    private = [cell for row in forget for cell in row.values()] + [str(finished), str(Path.home())]
    assert [cell for cell in private if cell in text] == []


def test_metrics_and_what_nobody_looked_at_are_those_of_the_run(written: Path, finished: Path) -> None:
    about = json.loads((written / "evidence.json").read_text())["predicate"]
    (row,) = (r for r in json.loads((finished / "results.json").read_text()) if r["method"] == "npo+nll")
    assert {name: metric["value"] for name, metric in about["metrics"]["after"].items()} == row["metrics"]
    measured = about["metrics"]["after"]["forget_probability"]
    assert measured["low"] <= measured["value"] <= measured["high"] and measured["questions"] > 0
    assert about["removal"] == "weights" and about["request"] == {"reference": "2026-17"}
    untested = " ".join(about["not tested"])
    assert all(attack in untested for attack in ("relearning", "quantization", "sampling", "wording"))


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("known", [True, False], ids=["sender's key", "key in the folder"])
def test_a_changed_byte_of_any_file_is_found_and_named(copied: Path, key: Path, name: str, known: bool) -> None:
    file, draw = copied / name, random.Random(name)
    whole = file.read_bytes()
    for at in {0, len(whole) - 1, *(draw.randrange(len(whole)) for _ in range(20))}:
        changed = bytes([whole[at] ^ draw.choice([1, 2, 4, 32])])
        file.write_bytes(whole[:at] + changed + whole[at + 1 :])
        found = failed(verify(copied, key=public(key) if known else None))
        assert found and any(name in check.found for check in found), (at, found)
    file.write_bytes(whole)
    assert not failed(verify(copied, key=public(key) if known else None))


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(copied: Path, name: str) -> None:
    (copied / name).unlink()
    assert any(name in check.found for check in failed(verify(copied)))


def test_a_file_that_was_put_in_is_named(copied: Path, key: Path) -> None:
    (copied / "more.txt").write_text("more")
    assert [check.found for check in failed(verify(copied, key=public(key)))] == [
        "more.txt was not there when the folder was written"
    ]


def test_another_key_is_named_by_both_ids(written: Path, tmp_path: Path, key: Path) -> None:
    other = signing.make_keys(tmp_path / "other")
    (check,) = failed(verify(written, key=tmp_path / "other.pub"))
    mine = signing.key_id(signing.read_public_key(public(key)))
    assert mine[:16] in check.found and other[:16] in check.found


def test_evidence_that_nobody_signed_does_not_hold(finished: Path, tmp_path: Path) -> None:
    out = evidence.write(finished, tmp_path / "unsigned", method="npo+nll")
    assert [check.what for check in failed(verify(out))] == ["signature"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda rows: rows[1:], "1 further rows are as well"),
        (lambda rows: [*rows, {"question": "Who?", "answer": "Somebody else."}], "is not meant by this evidence"),
        (lambda rows: [{"question": "Who?", "answer": "Somebody else."}], "row 1 of 1 is not meant"),
    ],
    ids=["a row less", "a row more", "somebody else's"],
)
def test_rows_that_are_not_those_that_are_meant(
    written: Path, key: Path, forget: list[Any], tmp_path: Path, change: Callable[[list[Any]], list[Any]], words: str
) -> None:
    (check,) = failed(verify(written, key=public(key), data=lines(tmp_path / "rows.jsonl", change(forget))))
    assert check.what == "rows" and words in check.found


def test_rows_in_other_columns_and_letters_are_the_same_rows(
    written: Path, key: Path, forget: list[Any], tmp_path: Path
) -> None:
    rows = [{"prompt": row["question"].upper(), "completion": f" {row['answer']} "} for row in forget]
    assert not failed(verify(written, key=public(key), data=lines(tmp_path / "rows.jsonl", rows)))


def test_another_model_is_named_by_its_file_and_answers_otherwise(
    written: Path, finished: Path, key: Path, forget: list[Any], tmp_path: Path
) -> None:
    other = str(finished / "undial+nll" / "model")
    checks = verify(written, key=public(key), data=lines(tmp_path / "rows.jsonl", forget), model=other)
    assert {check.what: check.found for check in failed(checks)}["model"] == "model.safetensors is another"


def test_the_signature_is_dsse_as_it_is_defined(written: Path, key: Path) -> None:
    envelope = json.loads((written / "evidence.dsse.json").read_text())
    payload, kind = base64.b64decode(envelope["payload"]), envelope["payloadType"]
    (signature,) = envelope["signatures"]
    signed = f"DSSEv1 {len(kind)} {kind} {len(payload)} ".encode() + payload
    signing.read_public_key(public(key)).verify(base64.b64decode(signature["sig"]), signed)  # raises where it differs
    assert payload == (written / "evidence.json").read_bytes()


def test_keys_are_encrypted_where_a_passphrase_is_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(signing.PASSPHRASE, "a word")
    name = signing.make_keys(tmp_path / "key")
    assert signing.key_id(signing.private_key(tmp_path / "key").public_key()) == name
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600
    monkeypatch.delenv(signing.PASSPHRASE)
    with pytest.raises(UserError, match=signing.PASSPHRASE):
        signing.private_key(tmp_path / "key")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("evidence {run}", "give a new folder with --out"),
        ("evidence {run} --out {new}", "holds 2 methods; name one: --method"),
        ("evidence {run} --out {new} --method npo", "has none of that name. Did you mean"),
        ("evidence {run} --out {run} --method npo+nll", "is there already"),
        ("evidence {new} --out {new}", "has no readable results.json"),
        ("evidence {run} --out {new} --method npo+nll --key {run}/recipe.yaml", "is no private key"),
        ("evidence {run} --out {new} --method npo+nll --received soon", "must be a day such as"),
        ("evidence {run} --out {new} --data x", "--data is not used without verify"),
        ("evidence verify {run} --out {new}", "--out is not used with verify"),
        ("evidence verify {new}", "is no folder"),
        ("evidence verify {run} --key {run}/recipe.yaml", "is no public ed25519 key"),
        ("evidence verify {run}", "evidence.json is missing"),
        ("keys --out {key}", "is there already"),
    ],
)
def test_what_does_not_fit_is_one_sentence_and_writes_nothing(
    finished: Path, key: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: str, said: str
) -> None:
    new = tmp_path / "new"
    assert main(words.format(run=finished, new=new, key=key).split()) == 2
    assert said in (error := capsys.readouterr().err) and error.count("\n") == 1
    assert not new.exists()


def test_a_run_that_is_not_whole_gives_no_evidence(finished: Path, tmp_path: Path) -> None:
    run_copy = shutil.copytree(finished, tmp_path / "run")
    weights = run_copy / "npo+nll" / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\0")
    with pytest.raises(UserError, match="no evidence can be made"):
        evidence.write(run_copy, tmp_path / "new", method="npo+nll")
    assert not (tmp_path / "new").exists()


def test_the_command_says_what_holds(
    written: Path, key: Path, copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evidence", "verify", str(written), "--key", str(public(key)), "--json"]) == 0
    assert [check["holds"] for check in json.loads(capsys.readouterr().out)] == [True, True]
    (copied / "index.html").write_text("nothing")
    assert main(["evidence", "verify", str(copied)]) == 2
    assert "index.html" in capsys.readouterr().err
