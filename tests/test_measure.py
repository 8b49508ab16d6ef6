"""Peak memory is that of the stretch, and absent where nobody can tell; versions are strings."""

import json
from pathlib import Path

import pytest
import torch

from expunge.system import machine


def test_the_peak_is_of_the_stretch() -> None:
    with machine.peak_memory() as small:
        pass
    with machine.peak_memory() as large:
        torch.ones(64 * 2**18).sum()  # 64 MiB, gone before the stretch ends
    if small.mib is None or large.mib is None:
        pytest.skip("this system does not tell a process its peak")
    assert 48 < large.mib - small.mib < 200
    with machine.peak_memory() as after:
        pass
    assert after.mib is not None and after.mib < large.mib - 32


@pytest.mark.skipif(torch.cuda.is_available(), reason="the device tells")
def test_unknown_where_the_system_does_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> None:
        raise PermissionError

    monkeypatch.setattr(Path, "write_text", refused)
    with machine.peak_memory() as peak:
        pass
    assert peak.mib is None


def test_an_error_passes_through() -> None:
    with pytest.raises(KeyError), machine.peak_memory():
        raise KeyError


def test_versions_are_json() -> None:
    versions = machine.versions()
    assert {"python", "expunge", "torch", "transformers", "peft", "accelerate", "device", "threads"} == set(versions)
    assert json.loads(json.dumps(versions)) == versions
    assert all(isinstance(v, str) and v for v in versions.values())
