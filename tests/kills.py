"""Kill a command at its n-th file operation, go on with it, and compare with the uninterrupted one.

    python tests/kills.py --kills 100 [--only run,demo] [--seed 0]

Every scenario is a command. It is run once to its end, which counts the operations that change files below its own
folder (open to write, fsync, rename, remove, mkdir, rmdir, symlink). For each kill it begins again in a fresh folder,
in a process that SIGKILLs itself before the chosen operation, and goes on with the command that a person would give:

- the folder holds the same files as the uninterrupted one: none is missing and none left over;
- results, records, models and variants are equal, and `metrics.jsonl` has no gap and no double;
- what was finished at the kill was not made again: kept models, results and models of finished methods (but for the
  demo, which is written anew);
- a training beyond its first epoch had a whole checkpoint.

Processes are forked from one that has imported everything, so that a run takes a second. A worker of a sweep is a
process of its own, which `sitecustomize` in `tests/kill_hook` kills instead.
"""

import argparse
import json
import os
import random
import shutil
import signal
import sqlite3
import sys
import tempfile
import threading
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent / "kill_hook"))

import file_operations

KEYS = {
    "benchmark": "{name: fable, authors: 10, facts: 3, split: forget20}",
    "model.scratch": "{layers: 2, hidden: 16, heads: 2, vocab: 300, context: 128}",
    "finetune.epochs": "1",
    "train.num_train_epochs": "2",
    "train.per_device_train_batch_size": "2",
    "train.learning_rate": "1e-3",
    "evaluate": "{max_new_tokens: 4, limit: 2, each_epoch_limit: 2}",
    "threads": "1",
}
WORDS = [word for key, value in KEYS.items() for word in (f"--{key}", value)]
SMALL = [w for i, w in enumerate(WORDS) if "--benchmark" not in (w, WORDS[i - 1])]
METHODS = ["--methods", "[npo+kl, undial+nll]"]
SPACE = ["--space", "{train.learning_rate: {choices: [1e-3, 2e-3]}}", "--search", "grid"]
OBJECTIVES = ["--objectives", "forget_probability,retain_probability"]
VARYING = ("seconds", "peak_memory_mib", "versions", "date")
LOGGED = ("total_flos", "train_loss")
"""What a log's last row says of the part since the last start."""


@dataclass(frozen=True)
class Scenario:
    """A command, how one goes on with it, and where it writes; `warm` finds its models trained already."""

    name: str
    words: list[str]
    again: list[str]
    out: str
    warm: bool = True
    worker: bool = False
    epoch_steps: int = 0
    letters: bool = False
    """Whether a model, its data and a letter are there already."""


def _scenarios(url: str) -> list[Scenario]:
    run = ["run", *WORDS, *METHODS, "--out", "out"]
    demo = ["demo", *SMALL, "--benchmark.authors", "10", "--benchmark.facts", "3", "--benchmark.split", "forget20"]
    demo += ["--train.save_strategy", "no", "--methods", "[ga, npo+kl]", "--out", "runs/demo"]
    uld = [*WORDS, "--method", "uld_distilled", "--method.forget.epochs", "2", "--out", "out"]
    distill = ["distill", "uld", *SMALL[2:], "--benchmark", KEYS["benchmark"], "--out", "out"]
    sweep = ["sweep", *WORDS, "--method", "npo+nll", *SPACE, *OBJECTIVES, "--out", "out"]
    augment = [
        "augment",
        *WORDS[:2],
        "--model",
        "m",
        "--url",
        url,
        "--perturbations",
        "2",
        "--out",
        "out/variants.jsonl",
    ]
    training = [w for key in KEYS if "train." in key or key == "evaluate" for w in (f"--{key}", KEYS[key])]
    request = [
        "request",
        "run",
        "--model",
        "world/target",
        "--in",
        "world/all.jsonl",
        "--folder",
        "out",
        "--key",
        "key",
    ]
    request += [*training, "--method", "npo+nll", "--allow", "unlearn"]
    return [
        Scenario("request", request, request, "out", letters=True),
        Scenario("run", run, [*run, "--resume"], "out", epoch_steps=3),
        Scenario("demo", demo, demo, "runs/demo"),
        Scenario("teacher", ["run", *uld], ["run", *uld, "--resume"], "out"),
        Scenario("distill", distill, [*distill, "--resume"], "out"),
        Scenario("sweep", sweep, sweep, "out"),
        Scenario("worker", sweep, sweep, "out", worker=True),
        Scenario("augment", augment, augment, "out"),
        Scenario("caches", run, [*run, "--resume"], "out", warm=False, epoch_steps=3),
    ]


def _letters() -> list[list[str]]:
    """The commands that make a model, its data, a key and a letter."""
    taught = [
        w for key in ("benchmark", "model.scratch", "finetune.epochs", "threads") for w in (f"--{key}", KEYS[key])
    ]
    add = ["request", "add", "--forget", "world/forget.jsonl", "--reference", "first", "--folder", "out"]
    return [["teach", *taught, "--out", "world"], ["keys", "--out", "key"], add]


# -- an endpoint that writes variants --------------------------------------------------------------------------------


class _Writer(BaseHTTPRequestHandler):
    """Answers with as many variants as are asked for, the same for the same prompt."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        prompt = body["messages"][0]["content"]
        key = f"{prompt.partition('Question: ')[2][:60]} {body['seed']}"
        lines = [json.dumps({"question": f"{key} {i}?", "answer": f"Answer {i} to {key}."}) for i in range(4)]
        reply = {"choices": [{"index": 0, "message": {"role": "assistant", "content": "\n".join(lines)}}]}
        text = json.dumps(reply | {"id": "x", "created": 0, "model": "m", "object": "chat.completion"}).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, format: str, *args: Any) -> None:
        pass


# -- one command in a process of its own -----------------------------------------------------------------------------


def _command(
    words: list[str], place: Path, watched: list[Path], kill_at: int, *, worker: bool = False
) -> tuple[int, int]:
    """(exit code or minus the signal, operations counted); output goes to `place`/said.txt."""
    counted = place / "count"
    child = os.fork()
    if not child:
        os.chdir(place)
        said = os.open("said.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(said, 1)
        os.dup2(said, 2)
        os.environ["EXPUNGE_CACHE"] = str(place / "cache")
        orders = {"below": [str(path) for path in watched], "at": kill_at, "count": str(counted)}
        if worker:
            os.environ[file_operations.ORDERS] = json.dumps(orders)
            os.environ["PYTHONPATH"] = os.pathsep.join([sys.path[0], os.environ.get("PYTHONPATH", "")])
        else:
            file_operations.watch(**orders)
        code = 70
        try:
            from expunge.cli.main import main

            code = main(words)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            file_operations.leave()
            os._exit(code)
    _, status = os.waitpid(child, 0)
    count = int(counted.read_text()) if counted.exists() else 0
    counted.unlink(missing_ok=True)
    return os.waitstatus_to_exitcode(status), count


# -- what must be equal ----------------------------------------------------------------------------------------------


def _without(value: Any) -> Any:
    """Results without what differs between two runs that do the same."""
    if isinstance(value, dict):
        return {k: _without(v) for k, v in value.items() if k not in VARYING}
    return [_without(v) for v in value] if isinstance(value, list) else value


def _content(file: Path) -> Any:
    name = file.name
    if name == "ledger.db":
        with closing(sqlite3.connect(file)) as ledger:
            requests = ledger.execute("SELECT reference, state, remedy, why, rows, data, turn FROM expunge_requests")
            done = ledger.execute("SELECT count(*) FROM expunge_events WHERE what = 'done'")
            return requests.fetchall(), done.fetchall()
    if "evidence" in file.parts:
        return None  # salted and signed
    if name == "results.json":
        return _without(json.loads(file.read_text()))
    if name == "metrics.jsonl":
        rows = map(json.loads, file.read_text().splitlines())
        return [
            {k: v for k, v in row.items() if "second" not in k and "runtime" not in k and k not in LOGGED}
            for row in rows
        ]
    if name == "trials.json":
        rows = json.loads(file.read_text())
        return [{k: row[k] for k in ("trial", "state", "keys", "metrics", "front", "best")} for row in rows]
    if file.suffix in (".safetensors", ".jsonl", ".json") and name != "manifest.json":
        return file.read_bytes()
    return None  # pages, pictures, logs: that they are there is what counts


def _files(top: Path) -> dict[str, Path]:
    """Every file but locks and what workers said, whose number a kill may change."""
    found = (
        path for path in top.rglob("*") if path.is_file() and path.suffix not in (".lock", ".log", ".db-wal", ".db-shm")
    )
    return {str(path.relative_to(top)): path for path in found if "workers" not in path.parts}


@dataclass
class _Finished:
    """What was finished at the kill, and when it was written."""

    times: dict[Path, int] = field(default_factory=dict)

    @classmethod
    def of(cls, place: Path, out: Path) -> "_Finished":
        kept = [path for path in (place / "cache").glob("*/*/manifest.json")]
        for results in out.rglob("results.json") if out.name != "demo" else ():
            for row in json.loads(results.read_text()):
                several, single = results.parent / row["method"], results.parent
                model = several / "model" if several.is_dir() else single / "model"
                if row["method"] not in ("target", "retrained"):
                    kept.append(model / "model.safetensors")
        return cls({path: path.stat().st_mtime_ns for path in kept if path.exists()})

    def made_again(self) -> list[str]:
        return [str(path) for path, time in self.times.items() if path.exists() and path.stat().st_mtime_ns != time]


def _lost(out: Path, epoch_steps: int) -> str | None:
    """A training beyond its first epoch that has no whole checkpoint and no result."""
    if not epoch_steps:
        return None
    rows = json.loads((out / "results.json").read_text()) if (out / "results.json").exists() else []
    for log in out.glob("*/metrics.jsonl"):
        steps = [row["step"] for row in map(json.loads, log.read_text().splitlines()) if "loss" in row]
        finished = log.parent.name in [row["method"] for row in rows]
        whole = list(log.parent.glob("checkpoint-*/manifest.json"))
        if steps and max(steps) > epoch_steps and not finished and not whole:
            return f"{log.parent.name} is in its second epoch and has no whole checkpoint"
    return None


# -- the campaign ----------------------------------------------------------------------------------------------------


def _prepare(top: Path, scenario: Scenario, name: str) -> Path:
    place = top / f"{scenario.name}-{name}"
    place.mkdir()
    if scenario.warm and scenario.name != "augment":
        shutil.copytree(top / "warm" / "cache", place / "cache")
    if scenario.letters:
        for name in ("world", "out", "key"):
            (shutil.copytree if (top / "warm" / name).is_dir() else shutil.copy)(top / "warm" / name, place / name)
    if scenario.name == "distill":
        shutil.copytree(top / "warm" / "uld", place / "uld")
    return place


def _watched(scenario: Scenario, place: Path) -> list[Path]:
    return [place / scenario.out] if scenario.warm else [place / "cache"]


def try_once(top: Path, scenario: Scenario, whole: Path, at: int) -> list[str]:
    """What is wrong after a kill before operation `at`."""
    place = _prepare(top, scenario, f"{at}")
    out = place / scenario.out
    code, _ = _command(scenario.words, place, _watched(scenario, place), at, worker=scenario.worker)
    wrong: list[str] = []
    if not scenario.worker and code != -signal.SIGKILL:
        wrong.append(f"exit code {code} in place of the kill")
    if not scenario.worker and (lost := _lost(out, scenario.epoch_steps)):
        wrong.append(lost)
    finished = _Finished.of(place, out)
    code, _ = _command(scenario.again, place, [], 0)
    if code:
        said = (place / "said.txt").read_text().strip().splitlines()
        return [*wrong, f"exit code {code} of the second command: {said[-1] if said else ''}"]
    wrong += [f"{path} was made again" for path in finished.made_again()]
    pairs = [(whole / scenario.out, out)]
    if scenario.name != "augment":
        pairs += [(whole / "cache", place / "cache")]
    for expected, found in pairs:
        a, b = _files(expected), _files(found)
        wrong += [f"{name} is missing" for name in sorted(a.keys() - b.keys())]
        wrong += [f"{name} is left over" for name in sorted(b.keys() - a.keys())]
        for name in sorted(a.keys() & b.keys()):
            if name == "study.journal" or name.endswith("/study.journal"):
                continue
            if _content(a[name]) != _content(b[name]):
                wrong.append(f"{name} is another")
    if not wrong:
        shutil.rmtree(place)
    return wrong


def campaign(kills: int, only: list[str], seed: int, say: Callable[[str], None]) -> int:
    """Kill so many times, spread over the scenarios and over each one's operations; the number of failures."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Writer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    scenarios = [s for s in _scenarios(f"http://127.0.0.1:{server.server_port}/v1") if not only or s.name in only]
    top, failures, done = Path(tempfile.mkdtemp(prefix="expunge-kills-")), 0, 0
    warm = top / "warm"
    warm.mkdir()
    words = ["run", *WORDS, "--method", "uld", "--method.forget.epochs", "1", "--out", "uld"]
    code, _ = _command(words, warm, [], 0)
    assert code == 0, (warm / "said.txt").read_text()
    for words in _letters():
        code, _ = _command(words, warm, [], 0)
        assert code == 0, (warm / "said.txt").read_text()
    shutil.rmtree(warm / "cache" / "references", ignore_errors=True)
    for k, scenario in enumerate(scenarios):
        whole = _prepare(top, scenario, "whole")
        code, count = _command(scenario.words, whole, _watched(scenario, whole), 0, worker=scenario.worker)
        assert code == 0 and count, (whole / "said.txt").read_text()
        number = kills // len(scenarios) + (k < kills % len(scenarios))
        points = sorted(random.Random(f"{seed} {scenario.name}").sample(range(1, count + 1), min(number, count)))
        say(f"{scenario.name}: {count} file operations, killed before {', '.join(map(str, points))}")
        for at in points:
            wrong = try_once(top, scenario, whole, at)
            done += 1
            failures += bool(wrong)
            for line in wrong[:6]:
                say(f"  {scenario.name} {at}: {line}")
    server.shutdown()
    say(f"{done} kills, {failures} with something lost, double or other")
    if failures:
        say(f"see {top}")
    else:
        shutil.rmtree(top)
    return failures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--only", default="", help="scenarios, with commas")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ["HF_HUB_OFFLINE"] = os.environ["TQDM_DISABLE"] = "1"
    import expunge.pipeline.methods
    import expunge.pipeline.run
    import expunge.pipeline.writer
    import expunge.requests.handling
    import expunge.sweep.trial  # noqa: F401  forked processes find all of it imported

    return int(
        bool(
            campaign(
                args.kills, [name for name in args.only.split(",") if name], args.seed, lambda t: print(t, flush=True)
            )
        )
    )


if __name__ == "__main__":
    sys.exit(main())
