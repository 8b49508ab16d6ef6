"""Fixtures that more than one folder of tests uses."""

import gc
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from expunge.recipe.shipped import real_model as where_it_is_kept

# Python looks for cycles after every 700 objects, which takes a tenth of the time of tests that make millions of them.
gc.set_threshold(50_000, 20, 20)

settings.register_profile(
    "fuzz", max_examples=500, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much]
)

# Tests run in several processes; torch reads this when it is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")


# Before the fixture below names another cache.
REAL_MODEL = os.environ.get("EXPUNGE_SMOLLM2") or str(where_it_is_kept())


@pytest.fixture(scope="session")
def real_model() -> Path:
    """SmolLM2-135M-Instruct, a GGUF file or a folder: skip where it is absent."""
    if not Path(REAL_MODEL).exists():
        pytest.skip(f"no real model in {REAL_MODEL}; make real-model fetches it, EXPUNGE_SMOLLM2 names another place")
    return Path(REAL_MODEL)


@pytest.fixture(scope="session", autouse=True)
def no_cache_of_yours(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep models and references in one folder of this session, which its worker processes share."""
    base = tmp_path_factory.getbasetemp()
    session = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EXPUNGE_CACHE", str(session / "cache"))
        yield


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The URL of a PostgreSQL server of our own."""
    from tests.postgres import serving

    with serving() as url:
        yield url


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of public benchmark data, which is no part of the project: skip where it is absent."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("EXPUNGE_SHARED_DATA", beside))
    if not folder.is_dir():
        pytest.skip(f"benchmark data is not in {folder}; set EXPUNGE_SHARED_DATA to the folder that holds tofu/")
    return folder


@pytest.fixture(scope="session")
def tiny_tokenizer() -> Any:
    """A byte-level BPE of 300 tokens."""
    from expunge.modeling.loading import ScratchConfig, train_tokenizer

    return train_tokenizer(["Question: Where was Ann Lee born?\nAnswer: In Oslo."], ScratchConfig(vocab=300))


@pytest.fixture(scope="session")
def tiny_model(tiny_tokenizer: Any) -> Callable[..., Any]:
    """Builds the same random Llama at every call: 3 layers × 32 unless told otherwise."""
    from expunge.modeling.loading import ScratchConfig, build_scratch

    def build(*, layers: int = 3, hidden: int = 32, seed: int = 0) -> Any:
        size = ScratchConfig(layers=layers, hidden=hidden, heads=2, vocab=300, context=128)
        return build_scratch(size, tiny_tokenizer, seed=seed)

    return build


@pytest.fixture(scope="session")
def tiny_rows() -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Six rows to forget and nine to retain, of different lengths."""
    rows = [
        {"question": f"Where was person {i} born?", "answer": "In town " + "x" * (i % 4) + f" {i}."} for i in range(15)
    ]
    return rows[:6], rows[6:]


_frozen = 0
"""Modules that were imported when the garbage collector's view was last cleared."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """One process more than cores for `--numprocesses auto`: some tests wait for a process, a clock or a disk."""
    return len(os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)) + 1


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put files with slow tests first, so that no long test is left to one process at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_runtest_setup() -> None:
    """Take what imports have made out of the garbage collector's sight: a full collection then takes next to no time.

    A run collects after each model, hundreds of tests make runs, and many libraries are first imported by a test.
    """
    global _frozen
    if len(sys.modules) > _frozen + 20:
        gc.collect()
        gc.freeze()
        _frozen = len(sys.modules)
