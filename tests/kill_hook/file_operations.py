"""Counts the operations that change files below some folders, and kills its own process before a chosen one."""

import os
import signal
import sys
from typing import Any

ORDERS = "EXPUNGE_KILL_ORDERS"
"""The environment variable that tells a worker what to watch, as JSON."""

_state: dict[str, Any] = {"on": False, "below": [], "at": 0, "count": 0, "file": None}

_EVENTS = {"os.rename": 2, "os.remove": 1, "os.rmdir": 1, "os.mkdir": 1, "os.symlink": 2, "os.truncate": 1}
"""Audit events, and how many of the first arguments are paths."""


def watch(*, below: list[str], at: int, count: str) -> None:
    """Watch these folders; at operation `at` (from 1; 0: never) the process ends. `count`: the file for the number."""
    _state.update(on=bool(below), below=[os.path.realpath(path) for path in below], at=at, file=count)
    real = os.fsync

    def fsync(descriptor: int) -> None:
        _happens([descriptor])
        real(descriptor)

    os.fsync = fsync
    sys.addaudithook(_hear)


def leave() -> None:
    """Write down how many operations there were."""
    if _state["on"]:
        _state["on"] = False
        with open(_state["file"], "w") as stream:
            stream.write(str(_state["count"]))


def _hear(event: str, args: tuple[Any, ...]) -> None:
    if not _state["on"]:
        return
    if event == "open":
        path, mode, flags = args
        writes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if writes or (isinstance(mode, str) and set(mode) & set("wax+")):
            _happens([path])
    elif event in _EVENTS:
        folder = args[-1] if event in ("os.remove", "os.rmdir", "os.mkdir") else -1
        _happens(list(args[: _EVENTS[event]]), folder if isinstance(folder, int) else -1)


def _happens(paths: list[Any], folder: int = -1) -> None:
    if not _state["on"] or not any(_is_below(path, folder) for path in paths):
        return
    _state["count"] += 1
    if _state["count"] == _state["at"]:
        os.kill(os.getpid(), signal.SIGKILL)


def _is_below(path: Any, folder: int) -> bool:
    if isinstance(path, int):
        path = os.readlink(f"/proc/self/fd/{path}")
    path = os.fsdecode(path)
    if folder >= 0 and not os.path.isabs(path):
        path = os.path.join(os.readlink(f"/proc/self/fd/{folder}"), path)
    path = os.path.join(os.path.realpath(os.path.dirname(os.path.abspath(path))), os.path.basename(path))
    return any(path == top or path.startswith(top + os.sep) for top in _state["below"])
