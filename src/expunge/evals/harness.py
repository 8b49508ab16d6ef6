"""Any task of lm-evaluation-harness, by its own name and settings: what else a model can still do, as others measure.

The harness is the extra `expunge[harness]` and is imported only when a task is asked for.
"""

import difflib
import logging
import math
import random
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from expunge.errors import UserError, first_line
from expunge.evals.requests import context_length
from expunge.modeling.causal import CausalLM

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def run(
    model: CausalLM,
    tokenizer: "PreTrainedTokenizerBase",
    tasks: Sequence[str],
    *,
    batch_size: int | str = 8,
    num_fewshot: int | None = None,
    limit: int | float | None = None,
    include_path: str | Path | None = None,
    **settings: Any,
) -> tuple[dict[str, float], dict[str, Any]]:
    """(metrics, the harness's results) of `lm_eval.simple_evaluate` on a model in memory, on the device it is on.

    Metrics are `<task>_<metric>`, groups such as `mmlu` included; a filter other than `none` is appended
    (`gsm8k_exact_match_strict-match`). Only finite numbers are among them, and no standard errors: those, the version
    of every task and the log-likelihood of every answer are in the harness's results, which json can write.

    tasks: names of tasks, groups or tags, or YAML files of tasks.
    num_fewshot, limit: as the harness has them: `None` is the task's own number and all questions; a `limit` below 1
        is a share of them.
    include_path: a folder of tasks of your own, beside the harness's.
    settings: any other argument of `simple_evaluate`, unchanged (`apply_chat_template`, `system_instruction`, …).

    The model keeps its mode and random numbers go on as if nothing had been evaluated, so that it can stand between
    two steps of a training. A prompt longer than the model's context loses its beginning, with a warning.

    Raises `UserError` without the extra, for an unknown task and for data that can't be loaded.
    """
    wrap, simple_evaluate = _harness()
    context = context_length(model)
    with _untouched(model), _quiet(logging.WARNING):
        manager = _manager(include_path)
        loaded = _load(tasks, manager)
        with _quiet(logging.ERROR):  # it warns of being handed a model and not a name
            lm = wrap(
                pretrained=model,
                tokenizer=tokenizer,
                backend="causal",
                batch_size=batch_size,
                # The harness looks for it in the configuration, where the difference of two models has none.
                max_length=context if context < sys.maxsize else None,
            )
        results = simple_evaluate(
            lm,
            tasks=loaded,
            batch_size=batch_size,
            num_fewshot=num_fewshot,
            limit=limit,
            task_manager=manager,
            **settings,
        )
    raw = _plain(results)
    return _metrics(raw), raw


def check(tasks: Sequence[str], include_path: str | Path | None = None) -> None:
    """Raise `UserError` without the extra, for a folder that is none, and for an unknown task; no data is loaded."""
    _harness()
    with _quiet(logging.WARNING):
        _check_names(tasks, _manager(include_path))


def _harness() -> tuple[Any, Any]:
    try:
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM
    except ImportError as error:
        raise UserError(f"harness: {error.name or error} is missing; pip install 'expunge[harness]'.") from error
    return HFLM, simple_evaluate


def _metrics(results: dict[str, Any]) -> dict[str, float]:
    metrics = {}
    for task, values in {**results["results"], **results.get("groups", {})}.items():
        for key, value in values.items():
            metric, comma, way = key.partition(",")  # "acc,none"; what has no comma is no metric
            if not comma or metric.endswith("_stderr") or isinstance(value, bool) or not isinstance(value, int | float):
                continue
            metrics[f"{task}_{metric}" if way == "none" else f"{task}_{metric}_{way}"] = float(value)
    return metrics


def _check_names(tasks: Sequence[str], manager: Any) -> None:
    if not tasks:
        raise UserError("harness: no task is named; name one or more, such as mmlu.")
    known = set(manager.all_tasks)
    for task in tasks:
        if task in known or (task.endswith((".yaml", ".yml")) and Path(task).is_file()):
            continue
        near = difflib.get_close_matches(task, sorted(known), n=3)
        hint = f"did you mean {' or '.join(map(repr, near))}?" if near else "`lm-eval ls tasks` lists them all."
        raise UserError(f"harness: unknown task {task!r}; {hint}")


def _load(tasks: Sequence[str], manager: Any) -> list[Any]:
    """The outermost groups and tasks of these names, with their data."""
    _check_names(tasks, manager)
    try:
        loaded = manager.load(list(tasks))
    except OSError as error:
        raise UserError(
            f"harness: the data of {', '.join(tasks)} can't be read ({first_line(error)}); data of the hub needs a "
            f"network the first time, data of your own the right path in the task's YAML."
        ) from error
    except Exception as error:  # a task is code and data of others: packages it lacks, formats that are no more
        raise UserError(
            f"harness: {', '.join(tasks)} can't be loaded ({first_line(error)}); mend or omit it."
        ) from error
    inner = {name for children in loaded["group_map"].values() for name in children}
    return [task for name, task in (loaded["groups"] | loaded["tasks"]).items() if name not in inner]


def _manager(include_path: str | Path | None) -> Any:
    """The index of all tasks; with tasks of one's own it is read anew, since those may have changed."""
    if include_path is None:
        return _own_manager()
    if not Path(include_path).is_dir():
        raise UserError(f"harness: include_path {str(include_path)!r} is not a folder; give one that holds YAML tasks.")
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=str(include_path))


@cache
def _own_manager() -> Any:
    from lm_eval.tasks import TaskManager  # reads fourteen thousand YAML files, some seconds

    return TaskManager()


def _plain(value: Any) -> Any:
    """`value` as json can write it: the harness's dtypes and functions by their names, what is not finite as null."""
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set):
        return [_plain(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)


@contextmanager
def _quiet(level: int) -> Iterator[None]:
    log = logging.getLogger("lm_eval")
    before = log.level
    log.setLevel(level)
    try:
        yield
    finally:
        log.setLevel(before)


@contextmanager
def _untouched(model: CausalLM) -> Iterator[None]:
    """Undo what the harness does: it switches the model to evaluation, and draws from and seeds every generator."""
    was_training, python, numpy = model.training, random.getstate(), np.random.get_state()
    devices = [model.device] if model.device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        model.train(was_training)
