"""Whatever is asked wrongly is refused in one sentence, at once, and nothing is written.

A sample runs by default; `EXPUNGE_BAD_INPUTS=all` runs every case of `bad_inputs.py`, a number that many of them.
"""

import faulthandler
import hashlib
import importlib.util
import os
import random
import re
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

import pytest
import torch

from expunge.cli.main import main
from tests import forked

SECONDS = 10


def _bad_inputs() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bad_inputs", Path(__file__).with_name("bad_inputs.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["bad_inputs"] = module
    spec.loader.exec_module(module)
    return module


bad_inputs: Any = _bad_inputs()
CASES = bad_inputs.cases()
ASKED = os.environ.get("EXPUNGE_BAD_INPUTS", "25")
CHOSEN = CASES if ASKED == "all" else random.Random(0).sample(CASES, int(ASKED))


class TookTooLong(BaseException):
    """No `except Exception` may take it for an ordinary error."""


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("bad") / "base"
    bad_inputs.make_base(folder)
    return folder


@pytest.fixture
def place(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the base, which is the current folder; its cache is inside."""
    folder = tmp_path / "here"
    shutil.copytree(base, folder, symlinks=True)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("EXPUNGE_CACHE", str(folder / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return folder


@pytest.fixture
def watchdog() -> Iterator[None]:
    def stop(_signal: int, _frame: FrameType | None) -> None:
        raise TookTooLong

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(5 * SECONDS)  # by the clock, for what waits; a busy machine takes longer than its processor
    faulthandler.dump_traceback_later(10 * SECONDS, exit=True)  # where no signal is heard
    begun = time.process_time()
    yield
    took = time.process_time() - begun
    faulthandler.cancel_dump_traceback_later()
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)
    assert took < SECONDS


def listing(folder: Path) -> dict[str, str]:
    """Every file below with a digest of what it holds."""
    found = {}
    for path in sorted(folder.rglob("*")):
        plain = path.is_file() and not path.is_symlink()
        found[str(path.relative_to(folder))] = hashlib.sha256(path.read_bytes()).hexdigest() if plain else ""
    return found


def is_one_sentence(text: str) -> None:
    """Before it progress and warnings may be seen; after it nothing is."""
    lines = [line for line in re.split(r"[\r\n]+", text) if line.strip()]
    assert "Traceback" not in text
    assert lines and sum(line.startswith("expunge: ") for line in lines) == 1, text[-3000:]
    assert lines[-1].startswith("expunge: ") and lines[-1].endswith((".", ")", "?")), lines[-1]
    assert len(lines[-1]) < 1_000, len(lines[-1])


def test_there_are_enough() -> None:
    assert len(CASES) >= 500


@pytest.mark.parametrize("case", CHOSEN, ids=lambda case: case.name[:120])
def test_refused(case: Any, place: Path, capfd: pytest.CaptureFixture[str], watchdog: None) -> None:
    if case.change is not None:
        case.change(place)
    before = listing(place)
    capfd.readouterr()
    code = main(list(case.words))
    told = capfd.readouterr().err
    assert code == 2, (code, told[-3000:])
    is_one_sentence(told)
    assert listing(place) == before


REAL = ("key threads = 100000", "run: forget is a pipe", "run: recipe is aliases in place", "words: rnu")


@pytest.mark.slow
@pytest.mark.parametrize("name", REAL)
def test_refused_by_a_process_of_its_own(name: str, place: Path) -> None:
    (case,) = [case for case in CASES if case.name == name]
    if case.change is not None:
        case.change(place)
    before, begun = listing(place), os.times()
    done = forked.run(
        [sys.executable, "-m", "expunge", *case.words], capture_output=True, text=True, timeout=250, check=False
    )
    assert done.returncode == 2, done.stderr[-3000:]
    assert os.times().children_user - begun.children_user < 3 * SECONDS  # the import of torch counts here
    is_one_sentence(done.stderr)
    assert listing(place) == before
