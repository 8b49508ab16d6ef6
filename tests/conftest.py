"""Fixtures that more than one folder of tests uses."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of public benchmark data, which is no part of the project: skip where it is absent."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("EXPUNGE_SHARED_DATA", beside))
    if not folder.is_dir():
        pytest.skip(f"benchmark data is not in {folder}; set EXPUNGE_SHARED_DATA to the folder that holds tofu/")
    return folder
