"""`import expunge` is cheap, and its public names are all there."""

import json
import subprocess
import sys
from importlib import metadata

import pytest

import expunge
from tests import forked

PROBE = """
import json, sys, time
start = time.process_time()
import expunge
from tests import forked
seconds = time.process_time() - start
print(json.dumps({"seconds": seconds, "modules": sorted(sys.modules), "dir": dir(expunge)}))
"""


@pytest.fixture(scope="module")
def bare() -> dict:
    """What a fresh interpreter looks like after `import expunge`."""
    done = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=True, timeout=60)
    return json.loads(done.stdout)


def test_import_loads_no_heavy_module(bare: dict) -> None:
    heavy = {"torch", "transformers", "peft", "accelerate", "datasets", "numpy", "pydantic", "matplotlib"}
    assert heavy.isdisjoint(bare["modules"])


def test_import_takes_little(bare: dict) -> None:
    assert bare["seconds"] < 0.5  # about 0.01 on an idle machine; torch alone takes more than one second


def test_names_are_listed_before_they_are_loaded(bare: dict) -> None:
    assert set(expunge.__all__) <= set(bare["dir"])


@pytest.mark.parametrize("name", expunge.__all__)
def test_public_name_resolves(name: str) -> None:
    assert getattr(expunge, name) is getattr(expunge, name)


def test_names_come_from_their_modules() -> None:
    from expunge import UnlearnConfig, UnlearnTrainer, load, objectives
    from expunge.modeling import loading
    from expunge.training import arguments, trainer

    assert (UnlearnConfig, UnlearnTrainer) == (arguments.UnlearnConfig, trainer.UnlearnTrainer)
    assert load is loading.load
    assert objectives.__name__ == "expunge.objectives"


def test_version_is_the_distribution_s() -> None:
    assert expunge.__version__ == metadata.version("expunge")


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match=r"module 'expunge' has no attribute 'UnlernTrainer'"):
        _ = expunge.UnlernTrainer  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(ImportError):
        from expunge import nothing_of_the_kind  # noqa: F401  # pyright: ignore[reportAttributeAccessIssue]


def test_what_only_some_metrics_use_is_not_imported_by_every_command() -> None:
    late = ("nltk", "rouge_score", "scipy.stats", "sklearn")
    program = f"""
import sys
def late():
    return [name for name in sys.modules if name.startswith({late!r})]
for name in late():
    del sys.modules[name]
import expunge.pipeline.run
print(late())
"""
    assert forked.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "[]\n"
