"""A run directory is written by one process, verified before a run goes on, private, and redacted if asked."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock

from expunge.cli.main import main
from expunge.errors import MachineError, UserError
from expunge.modeling.loading import save
from expunge.pipeline.run import evaluate_only, run, run_all
from expunge.pipeline.rundir import alone_in
from expunge.recipe.parsing import load_recipe
from expunge.system import cache, manifest
from expunge.training.history import MetricsFile
from tests.small import changed

Monkeypatch = pytest.MonkeyPatch
Capture = pytest.CaptureFixture[str]
forked = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")

KEYS = {
    "model": "model",
    "forget": "forget.jsonl",
    "retain": "retain.jsonl",
    "out": "out",
    "train.num_train_epochs": "2",
    "train.learning_rate": "1e-3",
    "train.per_device_train_batch_size": "2",
    "evaluate.max_new_tokens": "4",
    "evaluate.limit": "3",
}
WORDS = [word for key, value in KEYS.items() for word in (f"--{key}", value)]
METHODS = "[npo+kl, undial+nll]"
ULD = "{forget: {name: uld, epochs: 1}}"
DISTILLED = "{forget: {name: uld_distilled, epochs: 1}}"
SECRET = "Zanzibarquay"


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: Monkeypatch, tiny_model: Callable[..., Any], tiny_tokenizer: Any) -> Path:
    """A folder with a model, rows, and a cache of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EXPUNGE_CACHE", str(tmp_path / "cache"))
    save(tiny_model(layers=2, hidden=16), tiny_tokenizer, tmp_path / "model")
    for name, numbers in (("forget", range(4)), ("retain", range(4, 12))):
        rows = [{"question": f"Where is {SECRET} {i}?", "answer": f"In {SECRET} town {i}."} for i in numbers]
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def recipe(**keys: str) -> Any:
    return load_recipe(None, [*KEYS.items(), *((key.replace("__", "."), value) for key, value in keys.items())])


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def cut_off(monkeypatch: Monkeypatch, keys: Any, step: int, folder: str) -> None:
    """Run until a step of one method is logged, and no further."""
    logged = MetricsFile.on_log

    def until(self: MetricsFile, args: Any, state: Any, *rest: Any, **kwargs: Any) -> None:
        logged(self, args, state, *rest, **kwargs)
        if self.path.parent.name == folder and state.global_step == step:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(MetricsFile, "on_log", until)
        run(keys)


# -- one process -----------------------------------------------------------------------------------------------------

COMMANDS: dict[str, Callable[[], object]] = {
    "run": lambda: main(["run", *WORDS]),
    "resume": lambda: main(["run", *WORDS, "--resume"]),
    "overwrite": lambda: main(["run", *WORDS, "--overwrite"]),
    "seeds": lambda: main(["run", *WORDS, "--seeds", "2"]),
    "workers": lambda: main(["run", *WORDS, "--seeds", "2", "--workers", "2"]),
    "demo": lambda: main(["demo", "--out", "out"]),
    "eval": lambda: main(["eval", *WORDS[1:]]),
    "sweep": lambda: main(["sweep", *WORDS, "--space", "{method: {choices: [ga, npo]}}", "--search", "grid"]),
    "Python": lambda: run(recipe()),
    "Python, all": lambda: run_all(recipe(over="{seed: [0, 1]}")),
    "Python, evaluation": lambda: evaluate_only(recipe()),
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("begun", [False, True])
def test_the_second_is_told_and_writes_nothing(place: Path, capsys: Capture, command: str, begun: bool) -> None:
    Path("out").mkdir()
    if begun and command != "sweep":  # which refuses a folder with a run anyway
        (place / "out" / "recipe.yaml").write_text("{}")
    with FileLock(place / "out" / ".lock"):
        before = tree(place)
        try:
            assert COMMANDS[command]() == 2
            said = capsys.readouterr().err
        except MachineError as error:
            said = f"expunge: {error}"
        assert said.strip().splitlines()[-1] == (
            "expunge: another expunge is at work in out; wait until it has ended, or give another --out."
        )
        assert tree(place) == before


def test_distill_and_reproduce_are_told_too(place: Path, capsys: Capture) -> None:
    assert main(["run", *changed(WORDS, "--method", ULD, "--out", "uld")]) == 0
    Path("out").mkdir()
    with FileLock(place / "out" / ".lock"):
        before = tree(place)
        words = [w for i, w in enumerate(WORDS) if "--model" not in (w, WORDS[i - 1])]
        assert main(["distill", "uld", *words]) == 2
        assert "another expunge is at work in out" in capsys.readouterr().err
        assert tree(place) == before


@forked
def test_a_lock_dies_with_its_process_and_leaves_an_empty_folder_empty(place: Path) -> None:
    child = os.fork()
    if not child:
        with alone_in(Path("out")):
            time.sleep(60)
        os._exit(0)
    while not Path("out/.lock").exists():
        time.sleep(0.01)
    time.sleep(0.1)
    with pytest.raises(MachineError, match="at work in out"), alone_in(Path("out")):
        pass
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    run(recipe(method="ga"))  # a folder with nothing but a dead lock holds no run
    assert not Path("out/.lock").exists()
    with alone_in(Path("new/er")):
        assert Path("new/er/.lock").exists()
    assert not Path("new").exists()


# -- verified --------------------------------------------------------------------------------------------------------


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 64] = bytes(b ^ 0x15 for b in data[middle : middle + 64])
    file.write_bytes(data)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-7])


def add(file: Path) -> None:
    file.with_name("added.bin").touch()


def retype(file: Path) -> None:
    file.write_text("[1]")


DAMAGES = {"flipped": flip, "cut": cut, "missing": Path.unlink, "another type": retype, "added": add}


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory, tiny_model: Any, tiny_tokenizer: Any) -> Path:
    """A run of two methods, cut off in the second epoch of the second one."""
    folder = tmp_path_factory.mktemp("interrupted")
    with Monkeypatch.context() as patch:
        place.__wrapped__(folder, patch, tiny_model, tiny_tokenizer)  # pyright: ignore
        cut_off(patch, recipe(methods=METHODS), 3, "undial+nll")
    return folder / "out"


BUILT_UPON = [
    "results.json",
    "recipe.yaml",
    "manifest.json",
    "records/target.forget.jsonl",
    "records/npo+kl.retain.jsonl",
    "npo+kl/metrics.jsonl",
    "npo+kl/model/model.safetensors",
    *(f"undial+nll/checkpoint-2/{name}" for name in ("model.safetensors", "optimizer.pt", "scheduler.pt")),
    *(f"undial+nll/checkpoint-2/{name}" for name in ("rng_state.pth", "trainer_state.json", "manifest.json")),
]


@pytest.mark.parametrize("kind", DAMAGES)
@pytest.mark.parametrize("name", BUILT_UPON)
def test_a_run_goes_on_upon_nothing_that_is_damaged(place: Path, interrupted: Path, name: str, kind: str) -> None:
    shutil.copytree(interrupted, "out")
    file = Path("out", name)
    may = ("npo+kl/", "results.json", "recipe.yaml", "manifest.json") if kind == "added" else ()
    if name.startswith(may):
        pytest.skip("what lies beside these is the user's")
    DAMAGES[kind](file)
    before = tree(place)
    with pytest.raises(UserError) as caught:
        run(recipe(methods=METHODS), resume=True)
    said = str(caught.value)
    named = file.with_name("added.bin") if kind == "added" else file
    if name.endswith("checkpoint-2/manifest.json") and kind == "missing":
        named = file.parent
    assert (
        str(named) in said and "\n" not in said and ("--overwrite" in said or "start over" in said or "--out" in said)
    )
    assert tree(place) == before


def test_undamaged_it_goes_on_from_the_checkpoint_to_the_same_end(place: Path, interrupted: Path) -> None:
    shutil.copytree(interrupted, "out")
    Path("out/undial+nll/checkpoint-4").mkdir()  # what a kill left of a newer one
    manifest.begin(Path("out/undial+nll/checkpoint-4"))
    rows = run(recipe(methods=METHODS), resume=True)
    whole = run(recipe(methods=METHODS, out="whole"))
    assert [row["metrics"] for row in rows] == [row["metrics"] for row in whole]
    assert tree(Path("out")).keys() == tree(Path("whole")).keys()
    logs = [Path(out, "undial+nll/metrics.jsonl").read_text().splitlines() for out in ("out", "whole")]
    once, again = ([(r["step"], r.get("loss"), r.get("grad_norm")) for r in map(json.loads, log)] for log in logs)
    assert once == again
    assert not list(Path("out").rglob("checkpoint-*"))


def test_python_resumes_from_nothing_that_is_damaged(
    place: Path, interrupted: Path, tiny_model: Any, tiny_tokenizer: Any
) -> None:
    from expunge import UnlearnConfig, UnlearnTrainer, objectives

    rows = [json.loads(line) for line in Path("forget.jsonl").read_text().splitlines()]
    args = UnlearnConfig(output_dir="own", num_train_epochs=1, disable_tqdm=True)
    trainer = UnlearnTrainer(
        tiny_model(), args, objective=objectives.GA(), forget_dataset=rows, processing_class=tiny_tokenizer
    )
    trainer.train()
    (checkpoint,) = Path("own").glob("checkpoint-*")
    flip(checkpoint / "optimizer.pt")
    for asked in (True, str(checkpoint)):
        with pytest.raises(UserError, match=r"optimizer.pt is not as it was written"):
            trainer.train(resume_from_checkpoint=asked)


@pytest.mark.parametrize("kind", ["flipped", "added"])
def test_a_cached_model_that_is_damaged_is_trained_again(
    place: Path, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    from expunge.modeling.loading import ScratchConfig
    from expunge.training.targets import FinetuneConfig, Lesson, Nothing, taught

    def train() -> Path:
        rows = [{"question": "Where?", "answer": "Here."}] * 4
        sizes = ScratchConfig(layers=1, hidden=16, heads=2, vocab=300, context=64)
        return taught(Lesson(rows, Nothing(sizes, rows), FinetuneConfig(epochs=1), 0, "target"))

    folder = train()
    before = tree(folder)
    written = (folder / "model.safetensors").stat().st_mtime_ns
    assert train() == folder and (folder / "model.safetensors").stat().st_mtime_ns == written
    DAMAGES[kind](folder / "model.safetensors")
    caplog.set_level("WARNING", logger="expunge")
    assert train() == folder and tree(folder) == before
    assert any("the target model is trained again" in message and str(folder) in message for message in caplog.messages)


def test_a_line_separator_in_an_answer_is_no_end_of_a_record(place: Path) -> None:
    rows = [{"question": f"Where\u2028is\x85it {i}?", "answer": f"In\u2028town {i}."} for i in range(3)]
    Path("forget.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    keys = {"retrained": "model", "methods": "[ga, npo+nll]"}
    whole = [row["metrics"] for row in run(recipe(**keys, out="whole"))]
    with Monkeypatch.context() as patch:
        cut_off(patch, recipe(**keys), 1, "npo+nll")
    assert [row["metrics"] for row in run(recipe(**keys), resume=True)] == whole


# -- private and redacted --------------------------------------------------------------------------------------------


@pytest.fixture
def open_umask() -> Iterator[None]:
    usual = os.umask(0)
    yield
    os.umask(usual)


@pytest.mark.slow
def test_everything_is_its_owners_alone_whatever_the_umask(
    place: Path, open_umask: None, monkeypatch: Monkeypatch
) -> None:
    before = set(place.rglob("*"))
    assert main(["run", *WORDS, "--methods", METHODS]) == 0
    assert main(["run", *changed(WORDS, "--method", ULD, "--out", "uld")]) == 0
    assert main(["run", *changed(WORDS, "--over", "{seed: [0, 1]}", "--out", "several", "--method", "npo+nll")]) == 0
    assert main(["eval", *changed(WORDS[1:], "--out", "evaluated")]) == 0
    assert main(["report", "out", "--out", "pages/page.html"]) == 0
    assert main(["report", "out", "--markdown", "pages/page.md"]) == 0
    scratch = "{layers: 2, hidden: 16, heads: 2, vocab: 400, context: 96}"
    words = [w for i, w in enumerate(WORDS) if "--model" not in (w, WORDS[i - 1])]
    words = changed(
        words, "--model.scratch", scratch, "--finetune.epochs", "1", "--method", DISTILLED, "--out", "scratch"
    )
    assert main(["run", *words]) == 0
    cut_off(monkeypatch, recipe(out="cut", method="undial+nll"), 3, "cut")
    assert list(Path("cut").glob("checkpoint-*/optimizer.pt")) and list(Path("cache").glob("references/*/*"))
    made = set(place.rglob("*")) - before
    assert {path.suffix for path in made} >= {".json", ".jsonl", ".safetensors", ".html", ".md", ".svg", ".lock", ".pt"}
    wrong = {
        str(p): oct(p.stat().st_mode & 0o777) for p in made if p.stat().st_mode & 0o777 != (0o600, 0o700)[p.is_dir()]
    }
    assert not wrong
    (place / "mine").touch()
    assert (place / "mine").stat().st_mode & 0o777 == 0o666  # the umask is the user's again


def test_redacted_runs_hold_no_text_and_the_same_numbers(place: Path) -> None:
    words = [*WORDS, "--retrained", "model", "--methods", METHODS]
    assert main(["run", *words]) == 0
    assert main(["run", "--redact", *changed(words, "--out", "silent")]) == 0
    assert main(["report", "out", "--redact", "--out", "page.html"]) == 0
    assert main(["eval", *changed(WORDS[1:], "--out", "evaluated"), "--redact"]) == 0
    assert SECRET in Path("out/report.html").read_text()
    outputs = [Path("page.html"), *Path("evaluated").rglob("*"), *Path("silent").rglob("*")]
    texts = [path for path in outputs if path.is_file() and "model" not in path.parts]
    assert not [str(path) for path in texts if SECRET in path.read_text()]
    for page in ("page.html", "silent/report.html", "evaluated/report.html"):
        assert "Redacted: questions, answers, passages and generated texts are left out" in Path(page).read_text()
        assert "row 2" in Path(page).read_text()
    said, silent = (json.loads(Path(out, "results.json").read_text()) for out in ("out", "silent"))
    assert [row["metrics"] for row in said] == [row["metrics"] for row in silent]
    for file in Path("out/records").iterdir():
        for whole, short in zip(
            *(Path(d, "records", file.name).read_text().splitlines() for d in ("out", "silent")), strict=True
        ):
            full, rest = json.loads(whole), json.loads(short)
            left_out = rest.pop("redacted")
            assert rest == {key: value for key, value in full.items() if key not in left_out}
            assert left_out and all(isinstance(full[key], str) for key in left_out)


def test_a_redacted_run_goes_on(place: Path, monkeypatch: Monkeypatch) -> None:
    keys = {"retrained": "model", "methods": METHODS, "redact": "true"}
    whole = [row["metrics"] for row in run(recipe(**keys, out="whole"))]
    cut_off(monkeypatch, recipe(**keys), 1, "undial+nll")
    with pytest.raises(UserError, match="redact differs"):
        run(recipe(**keys | {"redact": "false"}), resume=True)
    assert [row["metrics"] for row in run(recipe(**keys), resume=True)] == whole


def test_what_is_kept_is_listed_and_wiped(place: Path, capsys: Capture) -> None:
    scratch = "{layers: 2, hidden: 16, heads: 2, vocab: 400, context: 96}"
    words = [w for i, w in enumerate(WORDS) if "--model" not in (w, WORDS[i - 1])]
    assert main(["run", *words, "--model.scratch", scratch, "--finetune.epochs", "1", "--method", "npo+kl"]) == 0
    capsys.readouterr()

    def listed() -> list[dict[str, Any]]:
        assert main(["cache", "list", "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    rows = listed()
    assert [row["kind"] for row in rows] == ["targets", "targets", "references"]
    assert {row["what"].partition(":")[0] for row in rows[:2]} == {"target", "retrained"}
    assert "forget.logp_N" in rows[2]["what"] and all(row["bytes"] > 0 and row["used"][:2] == "20" for row in rows)
    assert main(["cache", "list", "targets", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == rows[:2]
    assert main(["cache", "list"]) == 0 and rows[0]["name"][:8] in capsys.readouterr().out
    held = cache.cache_directory() / "targets" / rows[0]["name"]
    with cache.lock_of(held):
        assert main(["cache", "clear", "targets"]) == 0
        assert f"left targets/{held.name}: a process is writing it" in capsys.readouterr().err
    assert [row["name"] for row in listed()] == [rows[0]["name"], rows[2]["name"]]
    assert main(["cache", "clear", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["deleted"]) == 2
    assert listed() == [] and not [path for path in Path("cache").rglob("*") if path.is_file()]
    assert (
        main(["run", *words, "--model.scratch", scratch, "--finetune.epochs", "1", "--method", "ga", "--overwrite"])
        == 0
    )


# -- what the file system refuses ------------------------------------------------------------------------------------


def _loop() -> str:
    Path("one").symlink_to("two")
    Path("two").symlink_to("one")
    return "one/out"


BAD: dict[str, Callable[[], str]] = {
    "too long": lambda: "x" * 256,
    "too long inside": lambda: "y/" + "x" * 256 + "/z",
    "a loop": _loop,
    "proc": lambda: "/proc/nowhere",
    "proc, one that is there": lambda: "/proc/sys",
    "not UTF-8": lambda: "out\udcff",
    "a file": lambda: "forget.jsonl",
    "below a file": lambda: "forget.jsonl/a/b",
    "a device": lambda: "/dev/null",
}


@pytest.mark.parametrize("command", ["run", "eval", "demo", "sweep"])
@pytest.mark.parametrize("case", BAD)
def test_folders_that_cannot_be(place: Path, capsys: Capture, case: str, command: str) -> None:
    out = BAD[case]()
    before = tree(place)
    space = ["--space", "{method: {choices: [ga, npo]}}", "--search", "grid"] if command == "sweep" else []
    words = WORDS[1:] if command == "eval" else WORDS if command != "demo" else []
    assert main([command, *changed([*words, *space], "--out", out)]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1 and said[0].startswith("expunge: ") and len(said[0]) < 400
    assert tree(place) == before


@pytest.mark.parametrize(
    "name", ["records", "pictures", "model", "recipe.yaml", "results.json", "report.html", "npo+kl"]
)
def test_a_file_where_a_folder_is_written_and_the_reverse(place: Path, name: str) -> None:
    Path("out").mkdir()
    if "." in name:
        Path("out", name).mkdir()
    else:
        Path("out", name).touch()
    before = tree(place)
    with pytest.raises(UserError, match=f"out/{name}".replace("+", r"\+").replace(".", r"\.")):
        run(recipe(methods=METHODS))
    assert tree(place) == before


def test_a_model_of_yours_in_the_folder_is_not_replaced(place: Path) -> None:
    before = tree(place)
    for overwrite in (False, True):
        with pytest.raises(UserError, match=r"model is of no run and would be replaced|would delete model"):
            run(recipe(out="."), overwrite=overwrite)
    assert tree(place) == before


@pytest.mark.parametrize("what", ["--forget", "--model", "--augment", "--retrained"])
@pytest.mark.parametrize("path", ["x" * 256, "~nouser/x.jsonl", "loop/x.jsonl"])
def test_inputs_that_cannot_be(place: Path, capsys: Capture, what: str, path: str) -> None:
    Path("loop").symlink_to("loop")
    before = tree(place)
    assert main(["run", *changed(WORDS, what, path)]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert said[-1].startswith("expunge: ") and "Traceback" not in "".join(said)
    assert tree(place) == before


@contextmanager
def mounted(folder: str, options: str) -> Iterator[None]:
    """A file system of its own in memory; skips the test where mounting is not permitted."""
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("mounts a file system of its own")
    Path(folder).mkdir()
    words = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder]
    if subprocess.run(words, capture_output=True).returncode:
        pytest.skip("mounting is not permitted")
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


def remount(folder: str, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", folder], check=True)


def test_folders_that_are_read_only(place: Path, capsys: Capture, monkeypatch: Monkeypatch) -> None:
    scratch = ["--model.scratch", "{layers: 2, hidden: 16, heads: 2, vocab: 400, context: 96}"]
    words = [w for i, w in enumerate(WORDS) if "--model" not in (w, WORDS[i - 1])]
    assert main(["run", *changed(WORDS, "--out", "done", "--method", "npo+nll")]) == 0
    capsys.readouterr()
    with mounted("ro", "ro,size=1m"):
        before = tree(place)
        for command in (
            ["run", *changed(WORDS, "--out", "ro/out")],
            ["eval", *changed(WORDS[1:], "--out", "ro/out")],
            ["report", "done", "--out", "ro/page.html"],
            ["report", "done", "--markdown", "ro/page.md"],
            ["augment", *WORDS[2:4], "--model", "model", "--out", "ro/variants.jsonl"],
        ):
            assert main(command) == 2
            said = capsys.readouterr().err.strip().splitlines()
            assert len(said) == 1 and "ro" in said[0] and "Read-only file system" in said[0]
        monkeypatch.setenv("EXPUNGE_CACHE", "ro/cache")
        for command in (["run", *words, *scratch], ["run", *WORDS, "--method", "npo+nll"]):
            assert main(command) == 2
            said = capsys.readouterr().err.strip().splitlines()[-1]
            assert "Read-only file system" in said and "EXPUNGE_CACHE" in said
            assert command == ["run", *WORDS, "--method", "npo+nll"] or tree(place) == before


@pytest.mark.parametrize("size", [*(pytest.param(n, marks=pytest.mark.slow) for n in (1, 40, 200, 400)), 100])
def test_a_full_disk_is_one_sentence_and_costs_nothing_finished(place: Path, capsys: Capture, size: int) -> None:
    """On a disk of so many KiB, at whatever file it fills up."""
    words = changed(WORDS, "--methods", METHODS, "--out", "small/out")
    results = Path("small/out/results.json")
    with mounted("small", f"size={size}k"):
        assert main(["run", *words]) == 2
        said = capsys.readouterr().err.strip().splitlines()[-1]
        assert "No space left on device; make room, then go on with --resume." in said and "small" in said
        rows = json.loads(results.read_text()) if results.exists() else []
        models = [file for row in rows for file in Path("small/out").glob(f"{row['method']}/model/*")]
        times = {file: file.stat().st_mtime_ns for file in models}
        remount("small", "size=64m")
        assert main(["run", *words, "--resume"]) == 0
        assert {file: file.stat().st_mtime_ns for file in times} == times
        assert json.loads(results.read_text())[: len(rows)] == rows
        assert not list(Path("small").rglob("*.partial")) and not list(Path("small").rglob("checkpoint-*"))


def test_a_report_on_edited_results_is_refused(capsys: Capture) -> None:
    run(recipe(method="ga"))
    results = Path("out/results.json")
    results.write_text(results.read_text().replace('"seed": 0', '"seed": 1'))
    assert main(["report", "out"]) == 2
    assert "report: out/results.json is not as it was written" in capsys.readouterr().err
    Path("out/manifest.json").unlink()
    assert main(["report", "out"]) == 0


@pytest.mark.parametrize("name", ["forget", "retain"])
def test_a_run_goes_on_upon_the_rows_that_it_began_with(name: str) -> None:
    """Rows that were edited under the same path are told, and nothing is written."""
    own = recipe(methods="[ga, npo]")
    run(own)
    file = Path(f"{name}.jsonl")
    before, written = file.read_text(), Path("out/results.json").read_text()
    file.write_text(before.replace("town", "city", 1))
    assert file.read_text() != before
    with pytest.raises(UserError, match=rf"out/results\.json: {name} rows were others when the run began"):
        run(own, resume=True)
    assert Path("out/results.json").read_text() == written
    file.write_text(before)
    assert run(own, resume=True) == json.loads(written)


@pytest.mark.parametrize(
    ("key", "says"),
    [
        ({"method": "ga"}, "the files of model.name"),
        ({"method": "ga", "retrained": "other"}, "the files of retrained"),
        (
            {"method": "{forget: {name: offset-npo, assistant: other}, retain: nll}"},
            "the files of offset-npo+nll's as",
        ),
    ],
)
def test_a_run_does_not_go_on_with_other_weights(
    place: Path, tiny_model: Callable[..., Any], tiny_tokenizer: Any, key: dict[str, str], says: str
) -> None:
    changed = "model" if "other" not in str(key) else "other"
    save(tiny_model(layers=2, hidden=16), tiny_tokenizer, place / "other")
    own = recipe(**key, train__num_train_epochs="1")
    rows = run(own)
    assert run(own, resume=True) == rows
    before = tree(place / "out")
    save(tiny_model(layers=2, hidden=16, seed=5), tiny_tokenizer, place / changed)
    with pytest.raises(UserError, match=rf"out/results\.json: {re.escape(says)}.* were others when the run began"):
        run(own, resume=True)
    assert tree(place / "out") == before
