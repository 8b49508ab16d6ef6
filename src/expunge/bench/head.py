"""The loss at the output head: ours beside dense logits and beside the fused kernels that others bring.

Plain cross-entropy, forward and backward with the gradients of hidden states and head, since that is what all of them
can do. Liger Kernel and Apple's cut cross-entropy run on CUDA, where they are installed.
"""

import statistics
from collections.abc import Callable
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from expunge.bench.shapes import SHAPES
from expunge.bench.turns import page, take_turns, title
from expunge.modeling.logprobs import CHUNK, Chunk, Head, score_of, token_numbers
from expunge.report.table import Table, left, right
from expunge.system.machine import allocated, peak_memory, versions

Way = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(hidden states [N, D], head [V, D], targets [N]) → mean cross-entropy."""


def measure(shape: str, *, tokens: int = 2_048, rounds: int = 7, threads: int | None = None) -> dict[str, Any]:
    """`{shape, tokens, device, …, rows}`; a row: `{way, ms, spread_ms, peak_mib, error}`.

    `ms` is the median of turns taken in one process and `spread_ms` the distance from the first to the third quarter of
    them. `peak_mib` is what a turn holds beyond hidden states and head, on CUDA. `error` is the distance of the head's
    gradient from the one of dense float32 logits, as a share of its length.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    size, cuda = SHAPES[shape], torch.cuda.is_available()
    device, dtype = ("cuda", torch.bfloat16) if cuda else ("cpu", torch.float32)
    generator = torch.Generator().manual_seed(0)
    hidden_ND = torch.randn(tokens, size.hidden, generator=generator).to(device, dtype).requires_grad_()
    weight_VD = (0.02 * torch.randn(size.vocab, size.hidden, generator=generator)).to(device, dtype).requires_grad_()
    target_N = torch.randint(size.vocab, (tokens,), generator=generator).to(device)

    def turn(way: Way) -> None:
        hidden_ND.grad = weight_VD.grad = None
        way(hidden_ND, weight_VD, target_N).backward()

    exact_ND, wide_VD = (x.detach().float().requires_grad_() for x in (hidden_ND, weight_VD))
    dense(exact_ND, wide_VD, target_N).backward()
    exact_VD = wide_VD.grad
    assert exact_VD is not None
    ways = _ways(cuda)
    # Kernels are compiled and tuned in the turns that do not count.
    times = take_turns({name: partial(turn, way) for name, way in ways.items()}, rounds, uncounted=2)
    rows = []
    for name, way in ways.items():
        hidden_ND.grad = weight_VD.grad = None
        before = allocated()
        with peak_memory() as during:
            turn(way)
        assert weight_VD.grad is not None
        first, _, third = statistics.quantiles(times[name], n=4)
        rows.append(
            {
                "way": name,
                "ms": statistics.median(times[name]),
                "spread_ms": third - first,
                "peak_mib": during.mib - before if cuda and during.mib is not None else None,
                "error": ((weight_VD.grad.float() - exact_VD).norm() / exact_VD.norm()).item(),
            }
        )
    return {"shape": shape, "tokens": tokens, "dtype": str(dtype).removeprefix("torch."), **versions(), "rows": rows}


def table(result: dict[str, Any]) -> Table:
    """The rows of `measure`."""
    ours = next(row["ms"] for row in result["rows"] if row["way"] == OURS)
    rows = [
        [
            row["way"], f"{row['ms']:.1f}", f"{row['spread_ms']:.1f}", f"{row['ms'] / ours:.2f}",
            "–" if row["peak_mib"] is None else f"{row['peak_mib']:,.0f}", f"{row['error']:.1e}",
        ]
        for row in result["rows"]
    ]  # fmt: skip
    return Table([*left("way"), *right("ms", "spread", "/ ours", "MiB", "error")], rows, title(result))


def markdown(result: dict[str, Any], *, command: str) -> str:
    """The same as a page, with the command that repeats it and what it ran on."""
    return page(
        f"""# What the loss at the head costs

Cross-entropy of {result["tokens"]:,} tokens, forward and backward with all gradients, by turns in one process:""",
        command,
        table(result),
        "Spread: from the first quarter of the turns to the third. MiB: held beyond hidden states and head. Error: "
        "distance of\nthe head's gradient from that of dense float32 logits, as a share of its length.",
        result,
    )


OURS = "expunge"


def dense(hidden_ND: Tensor, weight_VD: Tensor, target_N: Tensor) -> Tensor:
    """All logits at once, in float32."""
    return F.cross_entropy((hidden_ND @ weight_VD.t()).float(), target_N)


def ours(hidden_ND: Tensor, weight_VD: Tensor, target_N: Tensor) -> Tensor:
    """A chunk of logits at a time, gradients taken in the same pass, as the trainer does where the loss is foreseen."""
    head = Head(lambda x_CD: x_CD @ weight_VD.t(), len(weight_VD), linear=weight_VD)
    parts = [slice(i, min(i + CHUNK, len(target_N))) for i in range(0, len(target_N), CHUNK)]
    share = -1 / len(target_N)
    chunks = [Chunk(at, score_of("logp", target_N[at]), lambda x_C: torch.full_like(x_C, share)) for at in parts]
    return share * token_numbers(hidden_ND, head, chunks).sum()


def _ways(cuda: bool) -> dict[str, Way]:
    ways: dict[str, Way] = {"dense": dense, OURS: ours}
    if cuda and find_spec("liger_kernel") is not None:
        liger_kernel = import_module("liger_kernel.ops.fused_linear_cross_entropy")

        def liger(hidden_ND: Tensor, weight_VD: Tensor, target_N: Tensor) -> Tensor:
            return liger_kernel.LigerFusedLinearCrossEntropyFunction.apply(hidden_ND, weight_VD, target_N)[0]

        ways["Liger Kernel"] = liger
    if cuda and find_spec("cut_cross_entropy") is not None:
        cut = import_module("cut_cross_entropy").linear_cross_entropy
        ways["cut cross-entropy"] = cut
        ways["cut cross-entropy, exact"] = partial(cut, filter_eps=None)
    return ways
