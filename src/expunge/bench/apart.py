"""One measurement in a process of its own, where nothing of another is left.

All come from one server that has imported torch and run nothing, so each begins at once.
"""

import logging
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import forkserver, get_context
from typing import Any, TypeVar

from expunge.bench.turns import environment
from expunge.system.logs import quiet_libraries

R = TypeVar("R")

log = logging.getLogger(__name__)

GIVES_BACK = {"MALLOC_TRIM_THRESHOLD_": "0", "MALLOC_MMAP_THRESHOLD_": "65536"}
"""glibc: what is freed leaves the process at once, so that its peak is that of what it holds."""


def in_own_process(measure: Callable[..., R], *args: Any, **options: Any) -> R | None:
    """`measure(*args, **options)` in a new process; `None`, with a warning, where that process was killed."""
    context = get_context("forkserver")
    context.set_forkserver_preload(["expunge.bench.training"])
    with environment(**GIVES_BACK):
        forkserver.ensure_running()
    try:
        with ProcessPoolExecutor(1, context) as pool:
            return pool.submit(_quietly, measure, *args, **options).result()
    except BrokenProcessPool:
        log.warning("a measurement's process was killed, most likely for memory: %s", options)
        return None


def _quietly(measure: Callable[..., R], *args: Any, **options: Any) -> R:
    quiet_libraries()
    return measure(*args, **options)
