"""Steps of every measurement: take the time of one turn, count its operations, and write its table as a page."""

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from expunge.report.table import Table
from expunge.system.escaping import escaped, one_line

DENSE_BF16 = {"H100 PCIe": 756e12, "H100": 989e12, "H200": 989e12, "A100": 312e12}
"""Operations a second without sparsity, as the maker's data sheets say, by a part of the device's name."""


def milliseconds(step: Callable[[], object]) -> float:
    """The time of one `step`, on CUDA until the device has done it."""
    synchronize()
    begun = time.perf_counter()
    step()
    synchronize()
    return 1000 * (time.perf_counter() - begun)


def take_turns(steps: Mapping[str, Callable[[], object]], rounds: int, *, uncounted: int) -> dict[str, list[float]]:
    """Milliseconds of `rounds` turns of every step, in which each follows the other; `uncounted` turns go before."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(uncounted + rounds):
        for name, step in steps.items():
            took = milliseconds(step)
            if turn >= uncounted:
                times[name].append(took)
    return times


def count_flops(step: Callable[[], object]) -> int:
    """Floating-point operations of one `step` in matrix products and attention."""
    from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

    # torch's own counts know neither a CPU's attention nor queries with more heads than keys and values have.
    def forward(query: Any, key: Any, value: Any, *_args: Any, **_options: Any) -> int:
        return sdpa_flop_count(query, *(_with_heads(x, query) for x in (key, value)))

    def backward(gradient: Any, query: Any, key: Any, value: Any, *_args: Any, **_options: Any) -> int:
        return sdpa_backward_flop_count(gradient, query, *(_with_heads(x, query) for x in (key, value)))

    aten: Any = torch.ops.aten
    counts = {}
    for kind in ("flash_attention", "flash_attention_for_cpu", "efficient_attention", "cudnn_attention"):
        counts[getattr(aten, f"_scaled_dot_product_{kind}")] = forward
        counts[getattr(aten, f"_scaled_dot_product_{kind}_backward")] = backward
    with FlopCounterMode(display=False, custom_mapping=counts) as counter:
        step()
    return counter.get_total_flops()


def _with_heads(shape: Any, query: Any) -> tuple[int, ...]:
    """The shape of keys or values as if every head of the query had its own."""
    rows, _, *rest = shape
    return (rows, query[1], *rest)


def utilisation(flops: int, ms: float, device: str) -> float | None:
    """Share of a device's bfloat16 speed that `flops` operations in `ms` milliseconds reach; `None` if unknown."""
    speed = next((speed for name, speed in DENSE_BF16.items() if name in device), None)
    return None if speed is None else 1000 * flops / ms / speed


@contextmanager
def environment(**values: str) -> Iterator[None]:
    """Environment variables that are as before afterwards."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def own_cache() -> Iterator[None]:
    """References are computed, not found: expunge's cache is an empty folder meanwhile."""
    with tempfile.TemporaryDirectory() as folder, environment(EXPUNGE_CACHE=folder):
        yield


def title(result: Mapping[str, Any]) -> str:
    """The lines above the table in a terminal: the model's size and the machine."""
    return f"{result['shape']}, {result['device']}, {result['threads']} threads"


def page(head: str, command: str, table: Table, legend: str, result: Mapping[str, Any]) -> str:
    """Markdown: what was measured, the command that repeats it, the table, how to read it, and what it ran on."""
    machine = "".join(f"- {name}: {escaped(str(result[name]))}\n" for name in result if name != "rows")
    return f"{head}\n\n    {one_line(command)}\n\n{table.markdown()}\n{legend}\n\n{machine}"


def synchronize() -> None:
    """Wait until the device has done what it was given; on a CPU nothing."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
