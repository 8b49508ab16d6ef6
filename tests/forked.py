"""Python programs in processes of their own that begin at once: forked from one that has imported the libraries.

`Popen` and `run` are `subprocess`'s own, and `ranks` is `torchrun`, for `[sys.executable, …]`. The program has
arguments, an environment, a folder, output, signals and an exit code of its own, and imports expunge anew. It finds
torch, transformers and their like imported, which takes a plain process eight seconds. The starter is its parent: it
waits for it and counts its time as ever. Whatever else is started is a plain process, and so is everything on another
system than Linux.
"""

import atexit
import ctypes
import gc
import importlib
import json
import os
import random
import runpy
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache
from typing import Any

import pytest

LIBRARIES = (
    *("accelerate", "datasets", "jinja2", "matplotlib.backends.backend_svg", "optuna", "peft", "pydantic"),
    *("rouge_score.rouge_scorer", "scipy.stats", "sqlalchemy", "transformers.generation", "transformers.trainer"),
    *("transformers.models.llama.modeling_llama", "uvicorn"),
)
_plain = subprocess.Popen[Any]
SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER of prctl(2): orphans become children of the process that calls it


# -- where a program is started ----------------------------------------------------------------------------------------


class Popen(subprocess.Popen[Any]):
    """A program in a process that is forked."""

    def _execute_child(self, args: Any, executable: Any, preexec_fn: Any, close_fds: Any, *rest: Any) -> None:
        pass_fds, folder, environment, _, _, shell, *pipes = rest
        plain = executable or preexec_fn or pass_fds or shell or not isinstance(args, list) or len(args) < 2
        if sys.platform != "linux" or plain or args[0] != sys.executable or str(args[1])[:2] in ("-I", "-W", "-X"):
            return super()._execute_child(args, executable, preexec_fn, close_fds, *rest)  # pyright: ignore
        order = {
            "words": [os.fspath(word) for word in args[1:]],
            "folder": os.fspath(folder or os.getcwd()),
            "environment": dict(os.environ if environment is None else environment),
            "session": bool(rest[-2]),
        }
        channels = [own if fd == -1 else fd for own, fd in enumerate((pipes[0], pipes[3], pipes[5]))]
        server = _server()
        socket.send_fds(server, [json.dumps(order).encode()], channels)
        if not (told := server.recv(64)):
            raise RuntimeError(f"{__file__} has ended; run it by hand to see why")
        self.pid = int(told)
        self._child_created = True
        self._close_pipe_fds(*pipes[:6])  # pyright: ignore


def run(words: list[Any], **options: Any) -> subprocess.CompletedProcess[Any]:
    """Run a program to its end, as `subprocess.run` does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subprocess, "Popen", Popen)
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
    server = _plain(words, pass_fds=[its.fileno()], env=environment, **quiet)
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
        message, channels, _, _ = socket.recv_fds(asked, 1 << 20, 3)
        if not message:
            return None
        told, tell = os.pipe()
        between = os.fork()
        if not between:
            if (pid := os.fork()) == 0:
                asked.close()
                for own, fd in enumerate(channels):
                    os.dup2(fd, own)
                os.closerange(3, max(told, tell, *channels) + 1)
                return json.loads(message)
            os.write(tell, str(pid).encode())
            os._exit(0)
        os.waitpid(between, 0)  # its child is an orphan now, and the starter's
        asked.send(os.read(told, 64))
        for fd in (told, tell, *channels):
            os.close(fd)


def begin(order: dict[str, Any], plain_path: list[str]) -> None:
    """Do what a Python interpreter does with these words."""
    if order["session"]:
        os.setsid()
    os.chdir(order["folder"])
    os.environ.clear()
    os.environ.update(order["environment"])
    random.seed()
    (kind, *words), added = order["words"], os.environ.get("PYTHONPATH", "").split(os.pathsep)
    first = {"-m": order["folder"], "-c": ""}.get(kind, os.path.dirname(os.path.abspath(kind)))
    sys.path[:] = [first, *filter(None, added), *plain_path]
    if kind == "-m":
        sys.argv[:] = words
        runpy.run_module(words[0], run_name="__main__", alter_sys=True)
    elif kind == "-c":
        sys.argv[:] = ["-c", *words[1:]]
        exec(compile(words[0], "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.argv[:] = order["words"]
        runpy.run_path(kind, run_name="__main__")


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
