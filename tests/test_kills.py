"""Commands killed at chosen file operations lose nothing; `python tests/kills.py --kills 100` does all of it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.skipif("EXPUNGE_KILLS" not in os.environ, reason="minutes: EXPUNGE_KILLS says how many kills")
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_kill_at_any_file_operation_loses_nothing_and_doubles_nothing() -> None:
    """`EXPUNGE_KILLS` says how many."""
    words = ["--kills", os.environ["EXPUNGE_KILLS"]]
    program = Path(__file__).with_name("kills.py")
    done = subprocess.run([sys.executable, str(program), *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 with something lost, double or other" in done.stdout
