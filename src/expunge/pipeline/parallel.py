"""Several runs of one recipe at a time, each in a process of its own with its share of the threads."""

import logging
import os
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from multiprocessing import get_context

import torch
from tqdm.auto import tqdm

from expunge import secrets
from expunge.pipeline.rundir import Result
from expunge.recipe.config import Recipe

log = logging.getLogger(__name__)


def side_by_side(
    do: Callable[[Recipe], list[Result]], recipes: Sequence[Recipe], *, workers: int
) -> list[list[Result]]:
    """The results of `do` for each recipe, in their order, `workers` at a time; a bar counts those that are done.

    The first error stops the others before their next recipe and is raised.
    """
    workers = min(workers, len(recipes))
    began = time.monotonic()
    # Forking a process that has started torch's threads can hang it.
    with ProcessPoolExecutor(
        workers, get_context("spawn"), _begin, (max(1, torch.get_num_threads() // workers), secrets.given())
    ) as pool:
        futures: dict[Future[list[Result]], Recipe] = {pool.submit(do, recipe): recipe for recipe in recipes}
        try:
            for future in tqdm(as_completed(futures), total=len(futures), desc="runs"):
                future.result()
                log.info("%s done after %.0f s", futures[future].out, time.monotonic() - began)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        return [future.result() for future in futures]


def _begin(threads: int, known: frozenset[str]) -> None:
    secrets.note(known)
    os.environ["TQDM_DISABLE"] = "1"
    for notice in (DeprecationWarning, PendingDeprecationWarning, FutureWarning):  # for who programs, as in `terminal`
        warnings.filterwarnings("ignore", category=notice)
    handler = logging.StreamHandler()
    handler.setFormatter(secrets.MaskedFormatter("%(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    torch.set_num_threads(threads)
