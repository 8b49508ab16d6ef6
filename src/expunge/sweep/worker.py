"""A worker: a process that draws trials from the queue until none is left; `command.py` starts it.

`python -m expunge.sweep.worker` reads its orders, a line of JSON, from the pipe that it lives by: when that closes, as
it does however the command ends, the worker is gone too. What it says goes to `workers/<k>.log`.
"""

import json
import logging
import os
import sys
import threading
from dataclasses import replace
from functools import partial
from pathlib import Path

import optuna
from filelock import FileLock

from expunge.recipe.parsing import parse_recipe
from expunge.secrets import remember
from expunge.sweep.definition import Sweep
from expunge.sweep.study import connect, open_study, place, work
from expunge.sweep.trial import run_trial
from expunge.system.logs import quiet_libraries


def main() -> None:
    orders = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_the_pipe, daemon=True).start()
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s")
    quiet_libraries()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    optuna.logging.disable_default_handler()  # its own would write tracebacks without looking for secrets
    optuna.logging.enable_propagation()
    remember(orders["storage"])
    out, worker = Path(orders["out"]), orders["worker"]
    with FileLock(out / "workers" / f"{worker}.lock", mode=0o600):
        sweep = replace(Sweep.load(out), recipe=parse_recipe(orders["recipe"], where="sweep"))
        work(
            open_study(sweep.study, connect(orders["storage"], out), sweep.objectives),
            partial(run_trial, sweep),
            search=sweep.search,
            seed=sweep.recipe.seed,
            here=place(out),
            worker=worker,
            until=orders["until"],
            shared=orders["storage"] is not None,
        )


def _end_with_the_pipe() -> None:
    while os.read(0, 1):
        pass
    os._exit(1)


if __name__ == "__main__":
    main()
