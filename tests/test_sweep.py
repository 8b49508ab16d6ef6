"""Sweeps: nothing finished is lost or run twice, workers share one queue, and the right trial is chosen."""

import io
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml

from expunge.cli.main import main
from expunge.recipe.parsing import load_recipe
from tests import forked
from tests.small import changed

optuna = pytest.importorskip("optuna", reason="the extra expunge[sweep] is not installed")

from expunge.sweep import Space, choice, command, study, table, trial  # noqa: E402
from expunge.sweep.definition import Sweep  # noqa: E402

Run = Callable[..., tuple[int, str, str]]
Frozen = optuna.trial.FrozenTrial

TINY = """
benchmark: {name: fable, authors: 10, facts: 3, split: forget20}
model: {scratch: {layers: 1, hidden: 16, heads: 2, vocab: 400, context: 96}}
finetune: {epochs: 1}
train: {num_train_epochs: 2, per_device_train_batch_size: 2, learning_rate: 1.0e-3}
evaluate: {max_new_tokens: 4, limit: 2, each_epoch: "off"}
threads: 1
"""
SPACE = """
method: {choices: [npo+nll, unilogit+nll]}
train.learning_rate: {low: 1e-5, high: 1e-2, log: true}
"""
OBJECTIVES = ("forget_probability", "retain_probability")
WORDS = ["--search", "random", "--objectives", ",".join(OBJECTIVES), "--keep", "0.9"]
TRIALS = 4


@pytest.fixture(scope="module", autouse=True)
def one_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """From-scratch models are trained once for all the tests here; their folder also holds the recipe and the space."""
    folder = tmp_path_factory.mktemp("sweeps")
    (folder / "tiny.yaml").write_text(TINY)
    (folder / "space.yaml").write_text(SPACE)
    with pytest.MonkeyPatch.context() as patch, forked.forking():
        patch.setenv("EXPUNGE_CACHE", str(folder / "cache"))
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.chdir(folder)
        yield folder


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*words: str) -> tuple[int, str, str]:
        code = main(["sweep", "tiny.yaml", *words])
        out, err = capsys.readouterr()
        return code, out, err

    return call


def tiny(*overrides: tuple[str, str]) -> Any:
    return load_recipe(Path("tiny.yaml"), overrides)


def definition(out: Path, space: str = SPACE, *overrides: tuple[str, str], search: Any = "random") -> Sweep:
    return Sweep(tiny(*overrides), Space.parse(yaml.safe_load(space)), search, OBJECTIVES, "test", out)


def finished(out: Path) -> list[Path]:
    """The run directories of trials that have written all their results."""
    paths = sorted(out.glob("trials/*/results.json"))
    return [path.parent for path in paths if len(json.loads(path.read_text())) == 3]


def state(folder: Path) -> dict[str, tuple[int, bytes]]:
    """What a trial trained and measured, and when it wrote that."""
    files = [folder / "results.json", folder / "metrics.jsonl", *folder.glob("records/*")]
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


def wait_until(true: Callable[[], object], seconds: float = 200) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


# -- a sweep that is killed ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def killed(one_cache: Path) -> tuple[Path, dict[str, Any]]:
    """A sweep, killed with SIGKILL in the middle of a trial, and what was finished by then."""
    out = one_cache / "killed"
    words = ["sweep", "tiny.yaml", "--space", "space.yaml", "--trials", str(TRIALS - 1), *WORDS, "--out", str(out)]
    process = subprocess.Popen([sys.executable, "-m", "expunge", *words], stderr=subprocess.PIPE, text=True)

    def in_the_middle() -> bool:
        assert process.poll() is None, process.stderr and process.stderr.read()
        begun = {path.parent for path in out.glob("trials/*/metrics.jsonl") if path.stat().st_size}
        return bool(finished(out)) and bool(begun - set(finished(out)))

    wait_until(in_the_middle)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return out, {str(folder): state(folder) for folder in finished(out)}


@pytest.fixture(scope="module")
def resumed(killed: tuple[Path, dict[str, Any]]) -> list[dict[str, Any]]:
    """The same command again, with one trial and one worker more."""
    out, _ = killed
    words = ["sweep", "tiny.yaml", "--space", "space.yaml", "--trials", str(TRIALS), *WORDS, "--out", str(out)]
    assert main([*words, "--workers", "2"]) == 0
    return json.loads((out / "trials.json").read_text())


def trials_of(out: Path) -> list[Frozen]:
    return study.open_study(Sweep.load(out).study, study.connect(None, out), OBJECTIVES).trials


@pytest.mark.slow
def test_after_a_kill_no_finished_trial_is_run_twice_and_none_is_lost(
    killed: tuple[Path, dict[str, Any]], resumed: list[dict[str, Any]]
) -> None:
    out, before = killed
    assert 0 < len(before) < TRIALS
    assert {folder: state(Path(folder)) for folder in before} == before
    assert [(row["trial"], row["state"]) for row in resumed] == [(k, "finished") for k in range(TRIALS)]
    assert len(finished(out)) == TRIALS
    trials = trials_of(out)
    complete = [t for t in trials if t.state.name == "COMPLETE"]
    assert sorted(study.point(t) or 0 for t in complete) == list(range(TRIALS))
    lost = {study.point(t): study.params(t) for t in trials if t.state.name == "FAIL"}
    assert lost  # the kill came in the middle of something
    for row in resumed:
        assert row["trial"] not in lost or row["keys"] == lost[row["trial"]]


@pytest.mark.slow
def test_what_was_shared_was_evaluated_once(killed: tuple[Path, dict[str, Any]], resumed: list[dict[str, Any]]) -> None:
    out, _ = killed
    (references,) = [path for path in (out / "references").iterdir() if path.is_dir()]
    expected = json.loads((references / "results.json").read_text())
    for folder in finished(out):
        assert json.loads((folder / "results.json").read_text())[:2] == expected
        assert (folder / "records" / "target.forget.jsonl").exists()


@pytest.mark.slow
def test_what_a_sweep_leaves(killed: tuple[Path, dict[str, Any]], resumed: list[dict[str, Any]]) -> None:
    out, _ = killed
    (best,) = [row for row in resumed if row["best"]]
    assert best["kept"] >= 0.9
    others = [row for row in resumed if row["kept"] >= 0.9]
    assert best["metrics"]["forget_probability"] == min(row["metrics"]["forget_probability"] for row in others)
    assert (out / "best").resolve() == Path(best["folder"])
    assert (out / "best" / "model" / "model.safetensors").is_file()
    for row in resumed:
        assert (Path(row["folder"]) / "model").exists() == (row["front"] or row["best"])
    page = (out / "report.html").read_text()
    assert all(f"trial-{k:03d}" in page for k in range(TRIALS)) and (out / "results.md").exists()


@pytest.mark.slow
def test_a_folder_belongs_to_one_sweep(
    run: Run, killed: tuple[Path, dict[str, Any]], resumed: list[dict[str, Any]]
) -> None:
    out, _ = killed
    before = {path: path.read_bytes() for path in out.glob("*") if path.is_file()}
    common = ["--trials", str(TRIALS), *WORDS, "--out", str(out)]
    for words, says in (
        (["--space", "{method: [ga+nll, npo+nll]}"], "space differs"),
        (["--space", "space.yaml", "--search", "tpe"], "search differs"),
        (["--space", "space.yaml", "--objectives", "model_utility,retain_probability"], "objectives differs"),
        (["--space", "space.yaml", "--seed", "3"], "the recipe's seed differs"),
        (["--space", "space.yaml", "--study", "mine"], "study differs"),
    ):
        code, _, err = run(*changed(common, *words))
        assert code == 2 and f"is another sweep: {says}" in err and len(err.splitlines()) == 1
    with study.FileLock(out / ".lock"):
        code, _, err = run("--space", "space.yaml", *common)
    assert code == 2 and "another expunge is at work" in err
    assert {path: path.read_bytes() for path in before} == before


# -- machines that share a database ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_workers_on_a_database_make_the_same_trials(
    run: Run, postgres: str, resumed: list[dict[str, Any]], one_cache: Path
) -> None:
    """Beside them a machine that took a trial and went away, and one that queued everything again."""
    import psycopg

    out = one_cache / "shared"
    (out.with_name("elsewhere")).mkdir()
    this = definition(out.with_name("elsewhere"))
    points = this.space.points("random", TRIALS, seed=0)
    with study.opened(study.connect(postgres, out)) as storage:
        queue = study.open_study("shared", storage, OBJECTIVES)
        study.fill(queue, points)
        study.fill(study.open_study("shared", storage, OBJECTIVES), points)
        assert len(queue.trials) == TRIALS
        for point in points:
            queue.enqueue_trial(point or {}, user_attrs={"point": points.index(point)})
        with pytest.warns(UserWarning, match="Heartbeat"):  # which a machine that goes away does not send
            gone = queue.ask()
        gone.set_user_attr("place", "another machine:/sweep")
        queue._storage.record_heartbeat(gone._trial_id)  # pyright: ignore[reportAttributeAccessIssue]
        with psycopg.connect(postgres) as connection:
            connection.execute("update trial_heartbeats set heartbeat = heartbeat - interval '1 hour'")
        words = ["--space", "space.yaml", "--trials", str(TRIALS), *WORDS, "--out", str(out), "--json"]
        code, printed, _ = run(*words, "--storage", postgres, "--study", "shared", "--workers", "2")
        rows = json.loads(printed)
        assert code == 0
        assert [(r["trial"], r["keys"], r["metrics"]) for r in rows] == [
            (r["trial"], r["keys"], r["metrics"]) for r in resumed
        ]
        complete: list[Any] = [t for t in queue.get_trials() if t.state.name == "COMPLETE"]
        assert len(complete) == TRIALS and gone.number not in {t.number for t in complete}
        assert {row["worker"] for row in rows} == {0, 1}
        first, second = ([t for t in complete if t.user_attrs["worker"] == k] for k in (0, 1))
        together = [
            (a, b) for a in first for b in second
            if a.datetime_start < b.datetime_complete and b.datetime_start < a.datetime_complete
        ]  # fmt: skip
        assert together
        assert "secret" not in (out / "sweep.yaml").read_text()


def test_a_database_that_cannot_be_used(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["--space", "space.yaml", "--trials", "1", "--out", "never", "--storage"]
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        nobody = f"postgresql://me:secret@127.0.0.1:{closed.getsockname()[1]}/x"
        code, _, err = run(*words, nobody)
    assert code == 2 and "can't be used" in err and "secret" not in err and len(err.splitlines()) == 1
    code, _, err = run(*words, "my database")
    assert code == 2 and "not a database's URL" in err
    monkeypatch.setitem(sys.modules, "psycopg", None)
    code, _, err = run(*words, "postgresql://localhost/x")
    assert code == 2 and "pip install 'psycopg[binary]'" in err
    assert not Path("never").exists()


# -- what is refused, with nothing written ---------------------------------------------------------------------------


def test_without_optuna(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith(("optuna", "expunge.sweep"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "optuna", None)
    code, _, err = run("--space", "space.yaml")
    assert (code, err) == (2, "expunge: sweep: optuna is missing; pip install 'expunge[sweep]'.\n")


@pytest.mark.parametrize(
    ("space", "words", "says"),
    [
        ("{train.lerning_rate: [1e-3]}", [], "unknown key 'train.lerning_rate'. Did you mean 'train.learning_rate'?"),
        ("{train.learning_rate: [1e-3, fast]}", ["--method", "ga"], "train.learning_rate: 'fast' is not valid"),
        ("{method: [npo+nll, nop+nll]}", [], "Did you mean 'npo'?"),
        ("{method: {choices: []}}", [], "space: method.choices: list should have at least 1 item"),
        ("{method: [ga, ga]}", [], "space: method: ga is listed twice"),
        ("{seed: {low: 3, high: 3}}", [], "space: seed: high must be above low (3), got 3"),
        ("{train.learning_rate: {low: 0, high: 1, log: true}}", [], "low 0 has no logarithm"),
        ("{train.learning_rate: {low: 1e-5}}", [], "space: train.learning_rate.high: field required"),
        ("{train.learning_rate: 1e-5}", [], "a key takes {choices: [a, b]} or {low: 1, high: 2, log: true}"),
        ("{}", [], "space: no key to vary"),
        ("{method: [", [], "is not valid YAML or JSON"),
        ("spaces.yaml", [], "space 'spaces.yaml' does not exist. Did you mean 'space.yaml'?"),
        ("{out: [a, b]}", [], "space: out can't be searched; every trial has its own"),
        ("{train.learning_rate: [1e-3]}", ["--methods", "[ga, npo]"], "a trial runs one method, and the recipe has 2"),
        ("{method: [ga, rmu+nll]}", [], "layer 7 of RMU is out of range"),
        ("{method: [ga]}", ["--over", "{split: [forget10]}"], "put split into the space"),
        ("{method: [ga]}", ["--search", "grid"], "a grid has as many trials as combinations"),
        ("{seed: {low: 1, high: 3}}", ["--search", "grid"], "a grid needs choices, and seed is a range"),
        ("{method: [ga]}", ["--trials", "0"], "--trials must be at least 1, got 0"),
        ("{method: [ga]}", ["--workers", "0"], "--workers must be at least 1, got 0"),
        ("{method: [ga]}", ["--minutes", "0"], "--minutes must be positive, got 0"),
        ("{method: [ga]}", ["--keep", "nan"], "--keep must be a share of the target's"),
        ("{method: [ga]}", ["--seeds", "0"], "--seeds must be at least 1, got 0"),
        ("{seed: [0, 1]}", ["--seeds", "2"], "seed is searched, and every trial is repeated"),
        ("{method: [ga]}", ["--objectives", "model_utility"], "--objectives must be two metrics"),
        ("{method: [ga]}", ["--objectives", "privleak,model_utility"], "privleak is best at the retrained model's"),
        ("{method: [ga]}", ["--objectives", "mmlu,mmlu"], "mmlu is listed twice"),
        ("{method: [ga]}", ["--objectives", "forget_quality,model_utilty"], "Did you mean 'model_utility'"),
        ("{method: [ga]}", ["--objectives", "forget_quality,happiness"], "--objectives: happiness is not a metric."),
        (
            "{setting: [{model: M, finetune: null}]}",
            [],
            "--objectives: forget_quality needs a retrained model and wrong answers; give",
        ),
        ("{method: [ga]}", ["--out", "tiny.yaml"], "tiny.yaml is a file"),
    ],
)
def test_mistakes(run: Run, space: str, words: list[str], says: str) -> None:
    trials = [] if "--trials" in words else ["--trials", "2"]
    code, _, err = run(*changed(["--space", space, *trials, "--out", "never"], *words))
    assert code == 2 and says in err and len(err.strip().splitlines()) == 1
    assert not Path("never").exists()


def test_a_run_s_folder_is_not_a_sweep_s(run: Run) -> None:
    Path("taken").mkdir()
    Path("taken/recipe.yaml").write_text("seed: 0\n")
    code, _, err = run("--space", "space.yaml", "--trials", "1", "--out", "taken")
    assert code == 2 and "taken holds a run" in err
    assert [path.name for path in Path("taken").iterdir()] == ["recipe.yaml"]


# -- what is tried ---------------------------------------------------------------------------------------------------


def test_a_grid_is_every_combination() -> None:
    space = Space.parse({"method": ["ga", {"forget": "npo", "retain": "nll"}], "train.num_train_epochs": [3, 5]})
    points = space.points("grid", None, seed=0)
    recipes = [space.recipe(tiny(), point or {}) for point in points]
    assert [(r.methods[0].name, r.train.num_train_epochs) for r in recipes] == [
        ("ga", 3), ("ga", 5), ("npo+nll", 3), ("npo+nll", 5),
    ]  # fmt: skip


def test_values_that_go_together() -> None:
    space = Space.parse({"setting": [{"method": "npo+nll", "method.forget.beta": 0.5}, {"method": "unilogit+nll"}]})
    first, second = (space.recipe(tiny(), point or {}).methods[0] for point in space.points("grid", None, seed=0))
    assert (first.forget.model_dump()["beta"], second.name) == (0.5, "unilogit+nll")


def test_random_points_are_the_same_again_and_in_range() -> None:
    space = Space.parse(yaml.load(SPACE, yaml.SafeLoader) | {"seed": {"low": 1, "high": 4}})
    space.keys["train.learning_rate"] = Space.parse({"x": {"low": 1e-5, "high": 1e-2, "log": True}}).keys["x"]
    points = space.points("random", 40, seed=7)
    assert points[:9] == space.points("random", 9, seed=7) != space.points("random", 9, seed=8)
    rates = sorted(point["train.learning_rate"] for point in points if point)
    assert 1e-5 <= rates[0] < 1e-4 < 1e-3 < rates[-1] <= 1e-2
    assert {point["seed"] for point in points if point} == {1, 2, 3, 4}


def test_a_small_space_is_not_tried_twice() -> None:
    points = Space.parse({"method": ["ga", "npo"], "seed": [0, 1]}).points("random", 9, seed=0)
    assert len(points) == len({json.dumps(point) for point in points}) == 4


def test_tpe_learns_and_a_restart_does_not_repeat_itself() -> None:
    space = Space.parse({"train.learning_rate": {"low": 0.0, "high": 1.0}})
    queue = study.open_study("tpe", optuna.storages.InMemoryStorage(), OBJECTIVES)
    study.fill(queue, space.points("tpe", 30, seed=0))

    def peak(trial: Any, _: int) -> tuple[float, float]:
        x = space.suggest(trial)["train.learning_rate"]
        return abs(x - 0.3), -abs(x - 0.3)

    for limit in (12, 20, 30):  # a command that ends in the middle of a trial, and the next

        def until_the_limit(trial: Any, point: int, limit: int = limit) -> tuple[float, float]:
            if point >= limit:
                raise KeyboardInterrupt
            return peak(trial, point)

        with suppress(KeyboardInterrupt):
            study.work(queue, until_the_limit, search="tpe", seed=0, here="here", worker=0)
        study.fill(queue, space.points("tpe", 30, seed=0))
    complete = [t for t in queue.trials if t.state.name == "COMPLETE"]
    done = {t.user_attrs["point"]: t.params["train.learning_rate"] for t in complete}
    assert sorted(done) == list(range(30)) and len(set(done.values())) == 30
    first, last = ([abs(done[k] - 0.3) for k in ks] for ks in (range(10), range(20, 30)))
    assert sum(last) < sum(first) / 2


# -- one trial -------------------------------------------------------------------------------------------------------


def worked_off(this: Sweep, points: list[Any]) -> list[dict[str, Any]]:
    """The rows after one worker, here and now."""
    this.out.mkdir()
    queue = study.open_study(this.study, study.connect(None, this.out), this.objectives)
    study.fill(queue, points)
    study.work(queue, lambda t, k: trial.run_trial(this, t, k), search=this.search, seed=0, here="here", worker=0)
    study.fill(queue, points)
    return choice.trial_rows(queue, this.objectives, 0.5)


def test_a_setting_that_fails_is_a_result_and_the_others_go_on(tmp_path: Path) -> None:
    this = definition(tmp_path / "out", "{method: [npo+nll], train.learning_rate: [0.001, 1.0e+30]}", search="grid")
    rows = worked_off(this, this.space.points("grid", None, seed=0))
    assert [row["state"] for row in rows] == ["finished", "failed"]
    assert "became" in rows[1]["error"] and rows[0]["best"] and not rows[1]["front"]


def test_anything_else_that_fails_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    this = definition(tmp_path / "out", "{method: [npo+nll]}", search="grid")
    with monkeypatch.context() as patch:
        patch.setattr(trial, "run_all", lambda *_, **__: (_ for _ in ()).throw(OSError("disk full")))
        (row,) = worked_off(this, this.space.points("grid", None, seed=0))
    assert row["state"] == "waiting"


def test_objectives_are_means_over_seeds(tmp_path: Path) -> None:
    this = definition(tmp_path / "out", "{method: [npo+nll]}", ("over", "{seed: [0, 1]}"), ("finetune.seed", "0"))
    (row,) = worked_off(this, this.space.points("random", 1, seed=0))
    runs = [json.loads((Path(row["folder"]) / f"seed={k}" / "results.json").read_text()) for k in (0, 1)]
    assert {r[2]["method"] for r in runs} == {"npo+nll,trial-000"}
    for name in OBJECTIVES:
        values = [r[2]["metrics"][name] for r in runs]
        assert row["metrics"][name] == pytest.approx(sum(values) / 2) and values[0] != values[1]


# -- which trial is chosen, and how it looks -------------------------------------------------------------------------


def row(number: int, quality: float, utility: float, kept: float | None, **keys: Any) -> dict[str, Any]:
    metrics = {"forget_quality": quality, "model_utility": utility}
    own = {"trial": number, "state": "finished", "keys": {"method": "ga"}, "metrics": metrics, "kept": kept}
    return own | {"seconds": 1.0, "error": None, "front": False, "best": False, "place": "a:b", "folder": "c"} | keys


def test_the_best_forget_quality_of_those_that_keep_enough() -> None:
    rows = [row(0, 0.9, 0.1, 0.2), row(1, 0.5, 0.48, 0.96), row(2, 0.5, 0.49, 0.98), row(3, 0.1, 0.5, 1.0)]
    objectives = ("forget_quality", "model_utility")

    def chosen(keep: float) -> int | None:
        found = choice.choose(rows, objectives, keep)
        return None if found is None else found["trial"]

    assert [chosen(keep) for keep in (0.0, 0.95, 0.99, 1.01)] == [0, 2, 3, None]
    less = [row(k, 0, 0, 1.0) | {"metrics": {"degeneration": d, "mmlu": 0.3}} for k, d in enumerate((0.2, 0.1))]
    found = choice.choose(less, ("degeneration", "mmlu"), 0.95)
    assert found is not None and found["trial"] == 1


def test_tables_fit_a_terminal() -> None:
    from rich.console import Console

    keys = {"method": "npo+nll", "train.learning_rate": 1.234e-4, "train.num_train_epochs": 5}
    rows = [
        row(0, 0.31, 0.6, 0.97, keys=keys, front=True, best=True),
        row(1, 0, 0, None, keys=keys, state="running", metrics={}, seconds=None),
        row(2, 0, 0, None, keys={}, state="waiting", metrics={}, seconds=None),
        row(3, 0, 0, None, keys=keys, state="failed", metrics={}, seconds=None, error="the loss became nan"),
    ]
    console = Console(width=80, record=True, file=io.StringIO())
    objectives = ("forget_quality", "model_utility")
    console.print(table.Watch(objectives).table(rows))
    table.print_outcome(rows, objectives, Path("runs/x"), keep=0.95, console=console)
    text = console.export_text()
    assert "1 finished, 1 running, 1 waiting, 1 failed" in text
    assert "chosen: trial 0, best forget quality of those that keep 95% of the target's model utility" in text
    assert "trial 3 failed: the loss became nan" in text and "2 of 4 trials are not finished" in text
    assert max(map(len, text.splitlines())) <= 100


def test_a_metric_that_is_not_measured_and_no_time(run: Run) -> None:
    words = ["--space", "space.yaml", "--trials", "3", *WORDS, "--out", "late", "--minutes", "1e-9"]
    code, _, err = run(*changed(words, "--objectives", "forget_quality,retain_probabilty"))
    assert code == 2 and "retain_probabilty is not a metric. Did you mean 'retain_probability'?" in err
    assert not Path("late/sweep.yaml").exists()
    code, out, _ = run(*words)
    assert code == 0 and "3 of 3 trials are not finished; the same command goes on with them." in out
    assert not Path("late/trials").exists() and not Path("late/report.html").exists()


def test_workers_share_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    assert command._share(1, 3, 8)["OMP_NUM_THREADS"] == "2" and command._share(0, 9, 8)["OMP_NUM_THREADS"] == "1"
    monkeypatch.setattr(command.torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    assert [command._share(k, 3, 8)["CUDA_VISIBLE_DEVICES"] for k in range(3)] == ["5", "7", "5"]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert command._share(1, 3, 8)["CUDA_VISIBLE_DEVICES"] == "1"
