"""Commands killed at chosen file operations lose nothing; `python tests/kills.py --kills 100` does all of it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_kill_at_any_file_operation_loses_nothing_and_doubles_nothing() -> None:
    """`EXPUNGE_KILLS` says how many; without it a handful, in the quick scenarios."""
    told = os.environ.get("EXPUNGE_KILLS")
    words = ["--kills", told] if told else ["--kills", "5", "--only", "run,caches,distill,augment,demo"]
    program = Path(__file__).with_name("kills.py")
    done = subprocess.run([sys.executable, str(program), *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 with something lost, double or other" in done.stdout
