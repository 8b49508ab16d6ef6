"""A PostgreSQL server for tests of what machines share."""

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest


@contextmanager
def serving() -> Iterator[str]:
    """Start a server of our own and give its URL; a test without the programs is skipped."""
    psycopg = pytest.importorskip("psycopg", reason="psycopg is not installed")
    initdb = shutil.which("initdb")
    if initdb is None:
        pytest.skip("no PostgreSQL here: initdb is not on the PATH")
    programs = Path(initdb).resolve().parent
    folder = Path(tempfile.mkdtemp(prefix="expunge-postgres-"))
    other: dict[str, Any] = {}
    if os.geteuid() == 0:  # which the server refuses
        other = {"user": "nobody", "group": pwd.getpwnam("nobody").pw_gid, "extra_groups": []}
        shutil.chown(folder, "nobody")
    options = ["-D", folder / "data", "-A", "trust", "-U", "postgres", "--no-sync", "-E", "UTF8"]
    subprocess.run([programs / "initdb", *options], check=True, capture_output=True, cwd=folder, **other)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = ["listen_addresses=127.0.0.1", "unix_socket_directories=", "fsync=off"]
    words = ["-D", folder / "data", "-p", str(port), *(word for setting in settings for word in ("-c", setting))]
    with (folder.with_suffix(".log")).open("w") as said:
        process = subprocess.Popen([programs / "postgres", *words], stdout=said, stderr=said, cwd=folder, **other)
    url = f"postgresql://postgres:secret@127.0.0.1:{port}/postgres"

    def answers() -> bool:
        assert process.poll() is None
        try:
            psycopg.connect(url).close()
        except psycopg.OperationalError:
            return False
        return True

    try:
        for _ in range(600):
            if answers():
                break
            time.sleep(0.1)
        else:
            raise TimeoutError("PostgreSQL did not start within a minute")
        yield url
    finally:
        process.send_signal(signal.SIGINT)
        process.wait()
        shutil.rmtree(folder)
        folder.with_suffix(".log").unlink()
