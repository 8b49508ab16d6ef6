"""Python programs in processes of their own that begin at once: forked from one that has imported the libraries.

`Popen` and `run` are `subprocess`'s own, and `ranks` is `torchrun`, for `[sys.executable, …]`; under `forking` whatever
is started or spawned is forked. The program has arguments, an environment, a folder, output, signals and an exit code
of its own, and imports expunge anew. It finds torch, transformers and their like imported, which takes a plain process
eight seconds. The starter is its parent: it waits for it and counts its time as ever. Whatever else is started is a
plain process, and so is everything on another system than Linux.
"""

import atexit
import ctypes
import fcntl
import gc
import importlib
import json
import multiprocessing.util
import os
import random
import runpy
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any

import pytest

LIBRARIES = (
    *("accelerate", "datasets", "jinja2", "matplotlib.backends.backend_svg", "optuna", "peft", "pydantic"),
    *("rouge_score.rouge_scorer", "scipy.stats", "sqlalchemy", "transformers.generation", "transformers.trainer"),
    *("transformers.models.llama.modeling_llama", "uvicorn"),
)
_plain = subprocess.Popen._execute_child  # pyright: ignore
THEIRS = "FORK_THEIRS_TOO"
"""Variable of a program's environment; what it starts is then forked too, from a process that it forks first."""
SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER of prctl(2): orphans become children of the process that calls it


# -- where a program is started ----------------------------------------------------------------------------------------


def _execute_child(
    self: Any, args: Any, executable: Any, preexec_fn: Any, close_fds: Any, pass_fds: Any, *rest: Any
) -> None:
    folder, environment, _, _, shell, *pipes = rest
    if executable or preexec_fn or pass_fds or shell or not _is_program(args):
        return _plain(self, args, executable, preexec_fn, close_fds, pass_fds, *rest)
    channels = [own if fd == -1 else fd for own, fd in enumerate((pipes[0], pipes[3], pipes[5]))]
    self.pid = _start(args, channels, folder=folder, environment=environment, session=bool(rest[-2]))
    self._child_created = True
    self._close_pipe_fds(*pipes[:6])


class Popen(subprocess.Popen[Any]):
    """A program in a process that is forked."""

    _execute_child = _execute_child


@contextmanager
def forking() -> Iterator[None]:
    """Every Python program that is started in here begins at once, with `multiprocessing` too where it spawns."""
    spawn = multiprocessing.util.spawnv_passfds

    def start(path: Any, words: Any, kept: Any) -> int:
        words = [os.fsdecode(word) for word in words]
        if "--multiprocessing-fork" not in words or not _is_program(words):
            return spawn(path, words, kept)
        return _start(words, [0, 1, 2], kept=sorted({int(fd) for fd in kept}))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subprocess.Popen, "_execute_child", _execute_child)
        patch.setattr(multiprocessing.util, "spawnv_passfds", start)
        yield


def _is_program(words: Any) -> bool:
    if sys.platform != "linux" or not isinstance(words, Sequence) or isinstance(words, str) or len(words) < 2:
        return False
    return words[0] == sys.executable and str(words[1])[:2] not in ("-I", "-W", "-X")


def _start(
    words: Any,
    channels: list[int],
    *,
    folder: Any = None,
    environment: Mapping[str, str] | None = None,
    session: bool = False,
    kept: Sequence[int] = (),
) -> int:
    """The number of a process that begins with three channels and whatever other files are `kept` open."""
    order = {
        "words": [os.fspath(word) for word in words[1:]],
        "folder": os.fspath(folder or os.getcwd()),
        "environment": dict(os.environ if environment is None else environment),
        "session": session,
        "files": [0, 1, 2, *kept],
    }
    server = _server()
    socket.send_fds(server, [json.dumps(order).encode()], [*channels, *kept])
    if not (told := server.recv(64)):
        raise RuntimeError(f"{__file__} has ended; run it by hand to see why")
    return int(told)


def run(words: list[Any], **options: Any) -> subprocess.CompletedProcess[Any]:
    """Run a program to its end, as `subprocess.run` does."""
    with forking():
        return subprocess.run(words, **options)


def ranks(words: list[Any], *, count: int, env: Mapping[str, str], timeout: float) -> None:
    """Run a program in `count` processes that are ranks of one another, as `torchrun` does; fails where one does."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    end = time.monotonic() + timeout
    with tempfile.TemporaryFile() as told:
        started: list[Popen] = []
        try:
            for rank in range(count):
                own = {name: str(value) for name, value in {**common, "RANK": rank, "LOCAL_RANK": rank}.items()}
                started.append(Popen(words, stdout=told, stderr=told, env={**env, **own}))
            while None in (codes := [process.poll() for process in started]):
                if any(codes) or time.monotonic() > end:
                    break
                time.sleep(0.02)
        finally:
            for process in started:
                process.kill()
                process.wait()
        told.seek(0)
        assert codes == [0] * count, f"{codes}\n{told.read().decode()[-6000:]}"


@cache
def _server() -> socket.socket:
    """A socket to the process that all are forked from, which ends when the socket closes."""
    ctypes.CDLL(None).prctl(SUBREAPER, 1, 0, 0, 0)
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    quiet: Any = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    words = [sys.executable, __file__, str(its.fileno())]
    server = subprocess.Popen(words, pass_fds=[its.fileno()], env=environment, **quiet)
    its.close()

    def end() -> None:
        ours.close()
        server.wait()

    atexit.register(end)
    return ours


# -- the process that all are forked from ------------------------------------------------------------------------------


def serve(asked: socket.socket) -> dict[str, Any] | None:
    """Fork for every order that comes; gives the order in each forked process, and `None` here when no more come."""
    while True:
        message, channels, _, _ = socket.recv_fds(asked, 1 << 20, 64)
        if not message:
            return None
        told, tell = os.pipe()
        between = os.fork()
        if not between:
            if (pid := os.fork()) == 0:
                asked.close()
                os.close(told)
                os.close(tell)
                return _place(json.loads(message), channels)
            os.write(tell, str(pid).encode())
            os._exit(0)
        os.waitpid(between, 0)  # its child is an orphan now, and the starter's
        asked.send(os.read(told, 64))
        for fd in (told, tell, *channels):
            os.close(fd)


def _place(order: dict[str, Any], channels: list[int]) -> dict[str, Any]:
    """Give files the numbers that the order names, and close all others."""
    top = max(*channels, *order["files"]) + 1
    above = [fcntl.fcntl(fd, fcntl.F_DUPFD, top) for fd in channels]
    os.closerange(3, top)
    for fd, own in zip(above, order["files"], strict=True):
        os.dup2(fd, own)
    os.closerange(top, max(above) + 1)
    return order


def begin(order: dict[str, Any], plain_path: list[str]) -> None:
    """Do what a Python interpreter does with these words."""
    if order["session"]:
        os.setsid()
    os.chdir(order["folder"])
    os.environ.clear()
    os.environ.update(order["environment"])
    random.seed()
    if os.environ.pop(THEIRS, None):
        _fork_server(plain_path)
        subprocess.Popen._execute_child = _execute_child  # pyright: ignore
    given = [word for word in order["words"][:2] if word not in ("-u", "-B")] + order["words"][2:]
    (kind, *words), added = given, os.environ.get("PYTHONPATH", "").split(os.pathsep)
    first = {"-m": order["folder"], "-c": ""}.get(kind, os.path.dirname(os.path.abspath(kind)))
    sys.path[:] = [first, *filter(None, added), *plain_path]
    if kind == "-m":
        sys.argv[:] = words
        runpy.run_module(words[0], run_name="__main__", alter_sys=True)
    elif kind == "-c":
        sys.argv[:] = ["-c", *words[1:]]
        exec(compile(words[0], "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.argv[:] = given
        runpy.run_path(kind, run_name="__main__")


def _fork_server(plain_path: list[str]) -> None:
    """Give this process a process of its own that what it starts is forked from."""
    ctypes.CDLL(None).prctl(SUBREAPER, 1, 0, 0, 0)
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if not os.fork():
        ours.close()
        if order := serve(its):
            leave(begin, order, plain_path)
        os._exit(0)
    its.close()
    globals()["_server"] = lambda: ours


def leave(program: Callable[..., object], *words: Any) -> None:
    """Run a program and end the process as Python does, but for a second that it takes to forget what is imported."""
    code = 0
    try:
        program(*words)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if not isinstance(end.code, int | None):
            print(end.code, file=sys.stderr)
    except BaseException as error:
        code = 1
        sys.excepthook(type(error), error, error.__traceback__)
    threading._shutdown()  # pyright: ignore
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    own = {os.path.dirname(os.path.abspath(__file__)), *os.environ.get("PYTHONPATH", "").split(os.pathsep)}
    plain_path = [place for place in sys.path if place not in own]
    for name in LIBRARIES:
        with suppress(ImportError):  # of an extra
            importlib.import_module(name)
    gc.collect()
    gc.freeze()
    if order := serve(socket.socket(fileno=int(sys.argv[1]))):
        leave(begin, order, plain_path)
