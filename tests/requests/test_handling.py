"""A request from the letter to the evidence: the remedy that suffices, what is kept, and what comes back."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from expunge.cli.main import main
from expunge.errors import UserError
from expunge.pipeline.inputs import load_benchmark
from expunge.pipeline.run import starting_models
from expunge.recipe.parsing import parse_recipe
from tests.small import FABLE

for package in ("sqlalchemy", "rapidfuzz", "cryptography", "cyclonedx"):
    pytest.importorskip(package, reason="needs the extra expunge[requests]")

from expunge.requests import handling, signing  # noqa: E402
from expunge.requests.handling import Means, handle  # noqa: E402
from expunge.requests.intake import add  # noqa: E402
from expunge.requests.ledger import Ledger, Request  # noqa: E402
from expunge.requests.remedies import REMEDIES, choose  # noqa: E402
from expunge.requests.verification import verify  # noqa: E402

TAUGHT = {"epochs": 15, "learning_rate": 6e-3, "batch_size": 8}
SHAPE = {"scratch": {"layers": 2, "hidden": 32, "heads": 2, "vocab": 400, "context": 96}}
QUICK = (("threads", "1"), ("evaluate.max_new_tokens", "4"), ("evaluate.limit", "4"), ("evaluate.each_epoch", "off"))
KEYS = (("method", "npo+nll"), ("train.learning_rate", "5e-3"), ("train.num_train_epochs", "8"), *QUICK)
ULD = (("method.forget.layers", "1"), ("method.forget.epochs", "12"), ("method.forget.learning_rate", "1e-2"), *QUICK)
BENCHMARK = {"name": "fable", "authors": 30, "facts": 20, "split": "forget10"}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A model, the file of what it was taught (and of one person more), and the persons in it."""
    folder = tmp_path_factory.mktemp("world")
    # A retrained model that is named need not be taught.
    tree = {**FABLE, "model": SHAPE, "finetune": TAUGHT, "retrained": "none", "methods": [], "out": str(folder / "out")}
    recipe, other = (parse_recipe({**tree, "benchmark": {**BENCHMARK, "seed": k}}, where="test") for k in (0, 1))
    taught = load_benchmark(recipe)
    (nobody, *_), of_nobody = _names(forget := load_benchmark(other).forget), forget[:20]
    rows = [*taught.forget, *taught.retain, *of_nobody]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    names = [*_names(taught.forget), nobody]
    assert not set(_names(taught.retain)) & {*names}
    target, *_ = starting_models(recipe, taught)
    signing.make_keys(folder / "key")
    return {
        "model": str(target),
        "data": str(folder / "data.jsonl"),
        "names": names,
        "key": folder / "key",
        "rows": len(rows),
    }


def _names(rows: list[dict[str, str]]) -> list[str]:
    return list(dict.fromkeys(re.findall(r"[A-Z]\w+ [A-Z]\w+", " ".join(row["question"] for row in rows))))


def means(world: dict[str, Any], **more: Any) -> Means:
    return Means(**{"model": world["model"], "data": (world["data"],), "keys": KEYS, "key": world["key"], **more})


def asked_for(ledger: Ledger, name: str, folder: Path, reference: str) -> Request:
    who = folder / f"{reference}.yaml"
    who.write_text(f"name: {name}\n")
    return add(ledger, who=str(who), forget=None, reference=reference, received="2026-11-20")


@pytest.fixture(scope="module")
def handled(world: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ledger]:
    """Two persons that the model was taught, and between them one that it was not."""
    folder = tmp_path_factory.mktemp("handled")
    ledger = Ledger(folder / "requests")
    first, second, *_, nobody = world["names"]
    for reference, name, model in (
        ("first", first, world["model"]),
        ("nobody", nobody, world["model"]),
        ("second", second, None),
    ):
        handle(ledger, asked_for(ledger, name, folder, reference), means(world, model=model))
    yield ledger
    ledger.close()


def rows(ledger: Ledger, reference: str, name: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in (ledger.place(ledger.get(reference)) / name).read_text().splitlines()]


def test_what_the_model_remembers_is_unlearned_and_what_it_does_not_is_left_out(
    handled: Ledger, world: dict[str, Any]
) -> None:
    found = {r.reference: (r.state, r.remedy, r.rows) for r in handled.all()}
    assert found == {
        "first": ("done", "unlearn", 20),
        "nobody": ("done", "leave out", 20),
        "second": ("done", "unlearn", 20),
    }
    assert handled.get("nobody").model_after == world["model"]


def test_the_next_request_begins_with_the_model_that_the_last_one_left(handled: Ledger) -> None:
    first, second = handled.get("first"), handled.get("second")
    assert first.model_after == str(handled.place(first) / "run" / "model")
    # "nobody" was measured on the model that was named, and changed nothing.
    assert second.model_before == handled.get("nobody").model_after
    assert handling.current(handled) == second.model_after


def test_nobody_who_asked_to_be_forgotten_is_among_the_rows_to_keep(handled: Ledger) -> None:
    gone = [row for reference in ("first", "nobody", "second") for row in rows(handled, reference, "forget.jsonl")]
    assert len(gone) == 60
    assert [row for row in rows(handled, "second", "retain.jsonl") if row in gone] == []


def test_the_next_training_finds_all_rows_to_leave_out_in_one_file(handled: Ledger) -> None:
    gone = [row for reference in ("first", "nobody", "second") for row in rows(handled, reference, "forget.jsonl")]
    listed = [json.loads(line) for line in (handled.folder / "leave-out.jsonl").read_text().splitlines()]
    assert sorted(map(str, listed)) == sorted(map(str, gone))


def test_a_request_that_is_taken_again_stays_on_the_list(handled: Ledger) -> None:
    before = (handled.folder / "leave-out.jsonl").read_text()
    handled.change(handled.get("first"), "taken again", state="running")
    assert handling.write_leave_out(handled).read_text() == before
    handled.change(handled.get("first"), "put back", state="done")


def test_the_evidence_holds_with_rows_and_model(handled: Ledger, world: dict[str, Any]) -> None:
    place = handled.place(handled.get("first"))
    public = world["key"].with_name("key.pub")
    data, model = str(place / "forget.jsonl"), str(place / "run" / "model")
    assert all(check.holds for check in verify(place / "evidence", key=public, data=data, model=model))


def test_a_request_that_is_done_stays_as_it_is(handled: Ledger, world: dict[str, Any]) -> None:
    before, events = handled.get("first"), handled.events(handled.get("first"))
    weights = Path(str(before.model_after)) / "model.safetensors"
    written = weights.stat().st_mtime_ns
    assert handle(handled, before, means(world)) == before
    assert weights.stat().st_mtime_ns == written and handled.events(before) == events


def test_a_release_that_remembers_them_again_is_named_and_queues_them(
    handled: Ledger, world: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["request", "check", world["model"], "--folder", str(handled.folder)]
    assert main(words) == 2
    said = capsys.readouterr().err
    assert "first, second" in said and "nobody" not in said
    states = {r.reference: r.state for r in handled.all()}
    assert states == {"first": "back", "nobody": "done", "second": "back"}
    for reference in ("first", "second"):
        handled.change(handled.get(reference), "put back", state="done")


def test_suppression_is_taken_where_it_alone_is_allowed_and_says_until_when(
    world: dict[str, Any], tmp_path: Path
) -> None:
    ledger = Ledger(tmp_path / "requests")
    request = asked_for(ledger, world["names"][0], tmp_path, "first")
    done = handle(ledger, request, means(world, allow=["leave out", "suppress"], keys=ULD))
    about = json.loads((ledger.place(done) / "evidence" / "evidence.json").read_text())["predicate"]
    assert done.remedy == "suppress" and re.search(r"to be unlearned by \d{4}-\d\d-\d\d", str(done.why))
    assert about["removal"] == "inference"
    ledger.close()


def test_with_the_recipe_at_hand_the_model_is_taught_anew_without_the_rows(
    world: dict[str, Any], tmp_path: Path
) -> None:
    recipe = tmp_path / "taught.yaml"
    recipe.write_text(yaml.safe_dump({"model": SHAPE, "finetune": TAUGHT}))
    ledger = Ledger(tmp_path / "requests")
    done = handle(ledger, asked_for(ledger, world["names"][0], tmp_path, "first"), means(world, retrain=str(recipe)))
    about = json.loads((Path(str(done.model_after)) / "expunge.json").read_text())
    assert (done.remedy, done.state) == ("retrain", "done")
    assert about["about"].startswith(f"retrained: {world['rows'] - 20} rows")
    assert json.loads((ledger.place(done) / "after-run.json").read_text())["decision"]["verdict"] != "remembers"
    ledger.close()


def test_where_no_remedy_is_allowed_the_request_fails_and_can_be_taken_again(
    world: dict[str, Any], tmp_path: Path
) -> None:
    ledger = Ledger(tmp_path / "requests")
    request = asked_for(ledger, world["names"][0], tmp_path, "first")
    with pytest.raises(UserError, match="allow more with --allow"):
        handle(ledger, request, means(world, allow=["leave out"]))
    assert ledger.get("first").state == "failed" and "--allow" in str(ledger.get("first").why)
    assert handle(ledger, ledger.get("first"), means(world)).state == "done"
    ledger.close()


@pytest.mark.parametrize(
    ("verdict", "below", "allowed", "remedy"),
    [
        ("does not remember", None, REMEDIES, "leave out"),
        ("cannot tell", None, ("leave out", "unlearn", "suppress"), "unlearn"),
        ("remembers", "does not remember", REMEDIES, "drop the adapter"),
        ("remembers", "remembers", ("drop the adapter", "unlearn"), "unlearn"),
        ("remembers", "does not remember", ("leave out", "unlearn"), "unlearn"),
        ("remembers", "remembers", ("unlearn", "retrain"), "retrain"),
        ("remembers", None, ("leave out", "suppress"), "suppress"),
        ("remembers", None, ("leave out",), None),
        ("does not remember", None, ("unlearn",), "unlearn"),
    ],
)
def test_the_cheapest_remedy_that_suffices_is_taken(verdict: Any, below: Any, allowed: Any, remedy: str | None) -> None:
    assert choose(verdict, allowed, below=below)[0] == remedy


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("add", "give the person (--who FILE) or the rows (--forget FILE)"),
        ("add --who nowhere.yaml", "nowhere.yaml is no file"),
        ("add --who who.yaml --received soon", "must be a day such as"),
        ("add --who who.yaml --in data", "--data is not used with request add"),
        ("run nobody-there", "the ledger has no such request"),
        ("run first", "name the model with --model"),
        ("run first --model m", "say where the rows about the person are to be looked for"),
        ("run first --allow pray", "pray is no remedy"),
        ("check", "name the model"),
        ("show", "name the request"),
        ("status first", "takes options alone"),
        ("status --seed 3", "--seed is not used with request status"),
    ],
)
def test_what_does_not_fit_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: str, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("who.yaml").write_text("name: Ada Quill\n")
    ledger = Ledger(tmp_path / "requests")
    asked_for(ledger, "Ada Quill", tmp_path, "first")
    ledger.close()
    assert main(["request", *words.split()]) == 2
    assert said in (error := capsys.readouterr().err) and error.count("\n") == 1


def test_status_and_show_say_where_a_request_stands(handled: Ledger, capsys: pytest.CaptureFixture[str]) -> None:
    folder = ["--folder", str(handled.folder), "--json"]
    assert main(["request", "status", *folder]) == 0
    assert [row["reference"] for row in json.loads(capsys.readouterr().out)] == ["first", "nobody", "second"]
    assert main(["request", "show", "first", *folder]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert [event["what"] for event in shown["events"]][:1] == ["added"] and shown["remedy"] == "unlearn"
