"""How a step's time and memory grow with the vocabulary, the sequences' length, the forget set and ULD's K.

Every size is measured as `training` measures; an exponent is the slope of log cost by log size, by least squares. The
expected one is the same slope of what is counted: operations in matrix products and attention for the time (an epoch
has as many steps as it has rows), and for memory the estimate of `expunge run --dry-run`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from expunge.bench import picture
from expunge.bench.apart import in_own_process
from expunge.bench.shapes import SHAPES, Shape
from expunge.bench.training import (
    KINDS,
    assistant,
    batch_of,
    beyond_weights,
    build,
    measure_peak,
    needs_of,
    ours,
    prepare_steps,
    race,
    random_sets,
)  # fmt: skip
from expunge.bench.turns import count_flops, milliseconds, own_cache, page, title
from expunge.data.pairs import Role
from expunge.errors import UserError, did_you_mean
from expunge.modeling.causal import CausalLM
from expunge.report.table import Table, left, right
from expunge.system.machine import versions
from expunge.training import memory
from expunge.training.arguments import UnlearnConfig

METHOD = "npo+kl"
"""It asks the starting model for both, log-probabilities and distributions, so that all that can grow does."""

TIME, MEMORY = picture.TIME, picture.MEMORY


@dataclass(frozen=True)
class Sizes:
    """The measurement: the batch that stays the same, and the sizes of what grows."""

    sequences: int
    length: int
    by: Mapping[str, Sequence[int]]


TINY = {
    "vocabulary": (4_096, 8_192, 16_384, 32_768),
    "length": (32, 64, 128, 256),
    "rows": (8, 16, 32, 64),
    "layers": (1, 2, 3),
}
LARGE = {
    "vocabulary": (8_192, 16_384, 32_768, 65_536, 131_072),
    "length": (64, 128, 256, 512, 1_024),
    "rows": (8, 16, 32, 64),
    "layers": (1, 2, 4, 8, 16),
}


def sizes_for(shape: str, given: Mapping[str, Any] | None = None, *, sequences: int = 8, length: int = 256) -> Sizes:
    """The usual sizes for a model, or only those `given`: `{vocabulary: [8192, 16384]}`.

    Raises `UserError` for another cause than the four, for a single size, or for one that the model can't have.
    """
    usual, total = TINY if shape == "tiny" else LARGE, SHAPES[shape].layers
    for cause, values in (given or {}).items():
        if cause not in usual:
            raise UserError(f"--by: unknown cause {cause!r}.{did_you_mean(cause, usual)} Known: {', '.join(usual)}.")
        low, high = {"vocabulary": (16, 2**20), "length": (2, 4096), "layers": (1, total - 1)}.get(cause, (4, 10**6))
        if not isinstance(values, list) or len(set(values)) < 2:
            raise UserError(f"--by: {cause} needs a list of two sizes at least.")
        if wrong := [v for v in values if not isinstance(v, int) or not low <= v <= high]:
            raise UserError(f"--by: {cause} can't be {wrong[0]!r} here; give numbers from {low:,} to {high:,}.")
    by = given or {**usual, "layers": [k for k in usual["layers"] if k < total]}
    return Sizes(sequences, length, {cause: sorted(set(values)) for cause, values in by.items()})


def measure(shape: str, sizes: Sizes, *, rounds: int = 3, threads: int | None = None) -> dict[str, Any]:
    """`{shape, …, rows}`; a row: `{by, kind, sizes, step_ms, peak_mib, exponent, expected}`, the last two by cost.

    Of a forget set, `step_ms` is that of computing the references and of an epoch.
    """
    from tqdm.auto import tqdm

    if threads is not None:
        torch.set_num_threads(threads)
    rows = []
    for cause, values in sizes.by.items():
        kinds = KINDS if cause in ("vocabulary", "length") else ("ours",)
        points = [_point(cause, value, SHAPES[shape], sizes) for value in values]
        measured = [p.measure(kinds, rounds, threads) for p in tqdm(points, desc=cause, leave=False)]
        for kind in kinds:
            row: dict[str, Any] = {"by": cause, "kind": kind, "sizes": list(values)}
            row |= {what: [point[kind][what] for point in measured] for what in (TIME, MEMORY)}
            row["exponent"] = {what: exponent(values, row[what]) for what in (TIME, MEMORY)}
            counted = {TIME: [point[kind]["flops"] for point in measured], MEMORY: [p.estimate(kind) for p in points]}
            row["expected"] = {what: exponent(values, counts) for what, counts in counted.items()}
            rows.append(row)
    batch = {"sequences": sizes.sequences, "length": sizes.length}
    return {"shape": shape, "method": f"{METHOD}, uld", **batch, **versions(), "rows": rows}


def exponent(sizes: Sequence[int], costs: Sequence[float | None]) -> float | None:
    """The slope of log cost by log size, by least squares; `None` where a cost is not known."""
    known = [cost for cost in costs if cost]
    return float(np.polyfit(np.log(sizes), np.log(known), 1)[0]) if len(known) == len(sizes) else None


def table(result: dict[str, Any]) -> Table:
    """The rows of `measure`."""
    rows = []
    for row in result["rows"]:
        line = [row["by"], row["kind"], " → ".join(picture.short(row["sizes"][i]) for i in (0, -1))]
        for what in (TIME, MEMORY):
            fitted, expected = row["exponent"][what], row["expected"][what]
            line += [_span(row[what]), "–" if fitted is None else f"{fitted:.2f} ({expected:.2f})"]
        rows.append(line)
    fit = "exponent\n(expected)"
    return Table([*left("by", "kind"), *right("sizes", "ms", fit, "MiB", fit)], rows, title(result))


def markdown(result: dict[str, Any], *, command: str) -> str:
    """The same as a page, with the command that repeats it and what it ran on."""
    return page(
        f"""# How the cost of unlearning grows

Forward and backward of {result["sequences"]} sequences of {result["length"]} tokens with `{METHOD}` (with `uld` by its
layers), where nothing else is said; medians in one process, the peak of memory beyond weights and optimizer in a
process for each:""",
        command,
        table(result),
        "From the smallest size to the largest. Exponent: slope of log cost by log size. Expected: the same slope of "
        "the\noperations counted, and of the memory estimated. Rows: of the forget set; references and an epoch.",
        result,
    )


def svg(result: dict[str, Any]) -> str:
    """Time and memory by each cause, on logarithmic axes."""
    return picture.growth(result["rows"])


@dataclass(frozen=True)
class _Point:
    """One size of one cause."""

    method: str
    model: Shape
    sequences: int
    length: int
    layers: int | None = None
    rows: int | None = None

    def measure(self, kinds: Sequence[str], rounds: int, threads: int | None) -> dict[str, dict[str, Any]]:
        """Milliseconds, MiB and operations, by kind."""
        batch = {"sequences": self.sequences, "length": self.length, "threads": threads}
        if self.rows is not None:
            model = build(self.model)
            epoch(model, self.sequences // 2, self.sequences, 8)
            took = milliseconds(lambda: epoch(model, self.rows or 0, self.sequences, self.length))
            mib = in_own_process(epoch_peak, self.model, self.rows, **batch)
            return {"ours": {TIME: took, MEMORY: mib, "flops": self.rows}}
        with own_cache():
            steps = prepare_steps(self.method, self.model, self.sequences, self.length, tuple(kinds), self.layers)
            flops = {kind: count_flops(step) for kind, step in steps.items()}
            times = race(steps, rounds, warm=True)
        peaks = {
            kind: in_own_process(measure_peak, self.method, self.model, kind, layers=self.layers, **batch)
            for kind in kinds
        }
        return {kind: {TIME: times[kind], MEMORY: peaks[kind], "flops": flops[kind]} for kind in kinds}

    def estimate(self, kind: str) -> float:
        """MiB beyond weights and optimizer, counted."""
        args = UnlearnConfig(output_dir="unused", per_device_train_batch_size=self.sequences // 2)
        cuda = torch.cuda.is_available()
        model = self.model.build(torch.device("meta"), torch.bfloat16 if cuda else torch.float32)
        needs, half = needs_of(self.method), self.sequences // 2
        tokens = half * (self.length - 1)
        batch = memory.BatchSize(
            self.sequences, self.length, {Role.FORGET: tokens, Role.RETAIN: tokens, Role.REFUSAL: 0}
        )
        sets = random_sets(self.method, self.model.vocab, self.rows or half, self.length)
        # Log-probabilities, two gradients. Naively logits and the log-probabilities of the model's own loss, of three
        # forwards with gradients; the objective's log-probabilities, the start's logits, and five for the divergence.
        dense = {"floor": 3.0 * 2 * tokens, "naive": 13.0 * tokens}.get(kind)
        if kind == "naive":
            reference = float(sum(t.nbytes for t in memory.tensors(model)))
        else:
            model = assistant(model, self.layers) if self.method == "uld" else model
            reference = memory.reference_bytes(model, needs, sets, args) if kind == "ours" else 0.0
        parts = memory.peak(model, batch, needs, args, reference, dense=dense, gives_back=True)
        return parts.total - parts.weights - parts.optimizer


def _point(cause: str, value: int, model: Shape, sizes: Sizes) -> _Point:
    usual = _Point(METHOD, model, sizes.sequences, sizes.length)
    match cause:
        case "vocabulary":
            return replace(usual, model=replace(model, vocab=value))
        case "length":
            return replace(usual, length=value)
        case "rows":
            return replace(usual, rows=value)
        case _:
            return replace(usual, method="uld", layers=value)


def epoch(model: CausalLM, rows: int, sequences: int, length: int) -> None:
    """The reference's numbers for a given number of rows to forget and to keep, and a step for each batch."""
    sets = random_sets(METHOD, model.config.vocab_size, rows, length)
    with own_cache():
        loss = ours(METHOD, model, sets)
        for i in range(0, rows, sequences // 2):
            model.zero_grad()
            loss(batch_of(METHOD, sets, range(i, min(rows, i + sequences // 2)), model.device)).backward()


def epoch_peak(size: Shape, rows: int, sequences: int, length: int, threads: int | None) -> float | None:
    """MiB that it holds at most beyond the weights."""
    return beyond_weights(
        size, lambda model: epoch(model, 1, 2, 8), lambda model: epoch(model, rows, sequences, length), threads
    )


def _span(values: Sequence[float | None]) -> str:
    first, last = values[0], values[-1]
    return "–" if first is None or last is None else f"{first:,.0f} → {last:,.0f}"
