"""Several processes that carry out one run together: who writes, who waits, and who does what of a list.

A process by itself is the first of one.
"""

import os
from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn

T = TypeVar("T")
K = TypeVar("K")
V = TypeVar("V")

PATIENCE = timedelta(hours=6)
"""How long ranks wait for each other: one may save a model while the others stand."""


def join() -> None:
    """Meet the other processes that a launcher (`accelerate launch`, `torchrun`) has started, if there are any."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        from accelerate import PartialState

        PartialState(cpu=not torch.accelerator.is_available(), timeout=PATIENCE)


def leave() -> None:
    """Part from them, all at once: who left first would take the others' connections along."""
    if count() > 1:
        wait()
        dist.destroy_process_group()


def count() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if count() > 1 else 0


def first() -> bool:
    """Whether this is the process that writes and speaks for all."""
    return rank() == 0


def wait() -> None:
    """Until all are here."""
    if count() > 1:
        dist.barrier()


def broadcast(find: Callable[[], T]) -> T:
    """Give every process what `find` returns in the first; the others do not call it."""
    values: list[Any] = [find() if first() else None]
    if count() > 1:
        dist.broadcast_object_list(values)
    return values[0]


def merged(entries: Mapping[K, V]) -> dict[K, V]:
    """The entries of all processes, for all."""
    if count() == 1:
        return dict(entries)
    parts: list[Any] = [None] * count()
    dist.all_gather_object(parts, dict(entries))
    return {key: value for part in parts for key, value in part.items()}


def is_sharded(model: nn.Module) -> bool:
    """Whether each process holds a part of the weights only (FSDP2, ZeRO-3), so that all must run it in step."""
    from torch.distributed.tensor import DTensor

    return any(isinstance(p, DTensor) or hasattr(p, "ds_id") for p in model.parameters())


def inside(model: nn.Module) -> Any:
    """The model without what runs it in parallel (DDP, FSDP1, DeepSpeed), as accelerate's own function gives it."""
    if not (hasattr(model, "module") or hasattr(model, "_orig_mod")):
        return model  # accelerate looks at every module, and whether DeepSpeed is installed, at each call
    from accelerate.utils import extract_model_from_parallel

    return extract_model_from_parallel(model)


def share(items: Iterable[T]) -> list[T]:
    """The part of `items` that is this process's to deal with: one in turn for each."""
    return list(items)[rank() :: count()]
