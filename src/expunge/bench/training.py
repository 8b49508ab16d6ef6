"""Cost of an unlearning step beside plain fine-tuning on the same tokens, and beside the usual way to write it.

    floor   one forward of all sequences, dense cross-entropy, backward
    naive   `naive.py`: as the usual frameworks do it, a forward for each role and each model, dense float32 logits
    ours    the trainer's step; references cached before

The step is forward and backward; the optimizer's update is the same for all three. Times are medians of turns taken
in one process; memory is the peak of one step beyond weights and optimizer: gradients, activations, logits, and what a
reference holds. On a CPU, where the peak is the process's, each step is measured in a process of its own.
"""

import gc
import statistics
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from expunge.bench import naive, picture
from expunge.bench.apart import in_own_process
from expunge.bench.shapes import SHAPES, Shape
from expunge.bench.turns import count_flops, own_cache, page, take_turns, title, utilisation
from expunge.data.encode import Encoded
from expunge.data.pairs import Collator, Role, Sets
from expunge.modeling.agreement import ways_of
from expunge.modeling.causal import CausalLM
from expunge.objectives import FORGET, RETAIN, Needs, Objective
from expunge.objectives.base import Share
from expunge.report.table import Table, left, right
from expunge.system.machine import allocated, peak_memory, resident, versions
from expunge.training.layout import LaidOut
from expunge.training.signals import gather_signals, needs_by_role

METHODS = (
    "ga+nll", "npo+nll", "simnpo+nll", "wga+nll", "unilogit+nll", "npo+kl", "unilogit+kl", "undial+nll", "undial+kl",
    "dpo+nll", "jensun+nll", "jensun+jsd", "pdu+nll", "uld",
)  # fmt: skip
KINDS = ("floor", "naive", "ours")

StepFunction = Callable[[], Tensor]


@dataclass(frozen=True)
class Step:
    """Forward and backward of a kind; the gradients are made anew, as after an optimizer's update.

    `held_mib` is what its reference takes beside the model on CUDA.
    """

    model: CausalLM
    loss: StepFunction
    held_mib: float

    def __call__(self) -> Tensor:
        self.model.zero_grad()
        loss = self.loss()
        loss.backward()
        return loss.detach()


def measure(
    shape: str, *, methods: tuple[str, ...] = METHODS, sequences: int = 8, length: int = 256,
    checkpointing: bool = False, rounds: int | None = None, threads: int | None = None, memory: bool = True,
) -> dict[str, Any]:  # fmt: skip
    """`{shape, device, …, rows}`; a row: `{objective, shape, device, step_ms, peak_mib, tokens_per_s, mfu}`.

    The last four are by kind; MFU, which only CUDA has, is the share of the device's dense bfloat16 speed that the
    operations of plain fine-tuning on these tokens take. `sequences` of `length` tokens, half of them to forget, every
    token supervised; with `checkpointing` all three make their layers' activations again in the backward. ULD's naive
    step is a dense one of the whole model on both sides; its own runs the assistant's layers alone.
    """
    from tqdm.auto import tqdm

    if threads is not None:
        torch.set_num_threads(threads)
    about, size = versions(), replace(SHAPES[shape], checkpointing=checkpointing)
    rounds = rounds or (3 if shape == "tiny" else 5)
    floors: dict[int, float | None] = {}
    rows = []
    for method in tqdm(methods, desc="bench", leave=False):
        with own_cache():
            steps = prepare_steps(method, size, sequences, length)
            row: dict[str, Any] = {"objective": method, "shape": shape, "device": about["device"]}
            row["step_ms"] = race(steps, rounds)
            useful = count_flops(steps["floor"]) if torch.cuda.is_available() else 0
            if memory and torch.cuda.is_available():
                row["peak_mib"] = {kind: _peak_on_device(step) for kind, step in steps.items()}
        del steps
        count = len(_roles(method)) * (sequences // 2)
        if memory and not torch.cuda.is_available():
            options = {"sequences": sequences, "length": length, "threads": threads}
            if count not in floors:  # the same for all methods that see as many sequences
                floors[count] = in_own_process(measure_peak, method, size, "floor", **options)
            peaks = {kind: in_own_process(measure_peak, method, size, kind, **options) for kind in KINDS[1:]}
            row["peak_mib"] = {"floor": floors[count], **peaks}
        row["tokens_per_s"] = {kind: 1000 * count * length / ms for kind, ms in row["step_ms"].items()}
        if torch.cuda.is_available() and method != "uld":  # whose steps are of different models
            row["mfu"] = {kind: utilisation(useful, ms, about["device"]) for kind, ms in row["step_ms"].items()}
        rows.append(row)
    size_of = {"shape": shape, "sequences": sequences, "length": length, "checkpointing": checkpointing}
    return {**size_of, **about, "rows": rows}


def prepare_steps(
    method: str, size: Shape, sequences: int, length: int, kinds: tuple[str, ...] = KINDS, layers: int | None = None
) -> dict[str, Step]:
    """A step for each kind on the same random batch: it leaves gradients and returns the loss.

    `layers` are those of ULD's assistant, by default a quarter of the model's.
    """
    model, half = build(size), sequences // 2
    sets = random_sets(method, size.vocab, half, length)
    batch = batch_of(method, sets, range(half), model.device)
    # An assistant freezes the layers that it is cut from.
    models = {"ours": build(size)} if method == "uld" and len(kinds) > 1 else {}
    return {kind: step_of(kind, method, models.get(kind, model), sets, batch, layers) for kind in kinds}


def build(size: Shape) -> Any:
    """A model of random weights in training mode; bfloat16 on CUDA, float32 on the CPU."""
    cuda = torch.cuda.is_available()
    return size.build(torch.device("cuda" if cuda else "cpu"), torch.bfloat16 if cuda else torch.float32).train()


def random_sets(method: str, vocab: int, rows: int, length: int) -> Sets:
    """`rows` random rows for each role that `method` sees, every token supervised."""
    generator = torch.Generator().manual_seed(0)
    roles = _roles(method)
    ids = torch.randint(2, vocab, (len(roles), rows, length), generator=generator).tolist()
    encoded = {role: [Encoded(tuple(row), 1) for row in of_role] for role, of_role in zip(roles, ids, strict=True)}
    return Sets(encoded[Role.FORGET], encoded[Role.RETAIN], encoded.get(Role.REFUSAL, []))


def batch_of(method: str, sets: Sets, rows: range, device: torch.device) -> dict[str, Any]:
    """These rows of every role."""
    batch = LaidOut(Collator(sets, 0))([[(role, i)] for role in _roles(method) for i in rows])
    return {name: x.to(device) for name, x in batch.items()}


def step_of(
    kind: str, method: str, model: CausalLM, sets: Sets, batch: dict[str, Any], layers: int | None = None
) -> Step:
    """One step of a kind."""
    if kind == "ours" and method == "uld":
        model = assistant(model, layers)
    make = {
        "floor": lambda: _floor(model, batch),
        "naive": lambda: _naive(method, model, batch),
        "ours": lambda: partial(ours(method, model, sets), batch),
    }
    before = allocated()
    loss = make[kind]()
    return Step(model, loss, allocated() - before)


def table(result: dict[str, Any]) -> Table:
    """The rows of `measure`; tokens a second are ours."""
    heads = ("ms:\nfloor", "naive", "ours", "ours /\nfloor", "naive /\nours")
    more = ("MiB:\nfloor", "naive", "ours", "naive /\nours", "tokens/s")
    rows = []
    for row in result["rows"]:
        ms, mib = row["step_ms"], row.get("peak_mib") or dict.fromkeys(KINDS)
        line = [row["objective"], *(f"{ms[kind]:.0f}" for kind in KINDS)]
        line += [f"{ms['ours'] / ms['floor']:.2f}", f"{ms['naive'] / ms['ours']:.2f}"]
        line += ["–" if mib[kind] is None else f"{mib[kind]:,.0f}" for kind in KINDS]
        naive, expunge = mib["naive"], mib["ours"]
        line.append(f"{naive / expunge:.2f}" if naive and expunge else "–")
        rows.append([*line, f"{row['tokens_per_s']['ours']:,.0f}"])
    return Table([*left("method"), *right(*heads, *more)], rows, title(result))


def markdown(costs: dict[str, Any], *, command: str) -> str:
    """The same as a page, with the command that repeats it and what it ran on."""
    again = ", activation checkpointing" if costs["checkpointing"] else ""
    return page(
        f"""# What an unlearning step costs

Forward and backward of {costs["sequences"]} sequences of {costs["length"]} tokens, half of them to forget, every token
supervised{again}; medians in one process, and the peak of memory beyond weights and optimizer:""",
        command,
        table(costs),
        "Floor: plain fine-tuning on the same tokens. Naive: as OpenUnlearning's trainers do it, a forward for each "
        "role and model,\nthe model's own loss computed each time, dense float32 logits, a copied reference model, "
        "KL's retain rows twice. For\n`uld`, naive is a dense step of the whole model. Tokens/s are ours.",
        costs,
    )


def svg(costs: dict[str, Any]) -> str:
    """Time and memory of every method: floor, naive and ours."""
    return picture.step_costs(costs["rows"])


def _roles(method: str) -> tuple[Role, ...]:
    return (Role.FORGET, Role.REFUSAL, Role.RETAIN) if method.startswith("dpo") else (Role.FORGET, Role.RETAIN)


def _floor(model: CausalLM, batch: dict[str, Any]) -> StepFunction:
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}
    return lambda: model(**inputs).loss


def _naive(method: str, model: CausalLM, batch: dict[str, Any]) -> StepFunction:
    name = "ga+nll" if method == "uld" else method
    needs_start = name.split("+")[0] in ("npo", "dpo", "undial") or name.endswith(("+kl", "+jsd"))
    start = deepcopy(model).requires_grad_(False) if needs_start else None
    names = ("input_ids", "attention_mask", "labels")
    parts = {role: {name: batch[name][batch["role"] == role] for name in names} for role in _roles(method)}
    return lambda: naive.loss(name, model, start, parts[Role.FORGET], parts[Role.RETAIN], parts.get(Role.REFUSAL))


def ours(method: str, model: CausalLM, sets: Sets) -> Callable[[dict[str, Any]], Tensor]:
    """The trainer's loss of a batch; what the starting model says of `sets` is cached first.

    For ULD, `model` is the assistant.
    """
    from expunge.training.reference import build_reference

    objective, retain = terms(method)
    needs = needs_of(method)
    wanted = objective.needs | retain.needs
    reference = build_reference(model, needs, sets, pad_token_id=0) if wanted.reference else None
    shares: dict[Role, Share] = {}
    for role, term in ((Role.FORGET, objective), (Role.RETAIN, retain)):
        tokens = sum(row.supervised for row in sets.of(role))
        shares[role] = Share(term, tokens if term.per == "token" else len(sets.of(role)))

    ways_of(model)  # measured once for each model, before training: no part of a step

    def loss(batch: dict[str, Any]) -> Tensor:
        signals = gather_signals(model, batch, needs, reference, None, shares)
        return torch.stack([share.objective.weight * share.term(signals[role]) for role, share in shares.items()]).sum()

    return loss


def terms(method: str) -> tuple[Objective, Objective]:
    """The forget and the retain objective of `npo+kl`, as their defaults are; ULD brings its own retain objective."""
    forget, _, kept = method.partition("+")
    objective = FORGET[forget]()
    retain = RETAIN[kept]() if kept else objective.own_retain
    assert retain is not None
    return objective, retain


def needs_of(method: str) -> dict[Role, Needs]:
    return needs_by_role(*terms(method))


def assistant(model: CausalLM, layers: int | None = None) -> Any:
    """ULD's: the first `layers` of the model under a LoRA adapter."""
    from peft import LoraConfig, get_peft_model

    from expunge.modeling.assistant import first_layers, layer_count, linear_names

    layers = layer_count(model, layers)
    small = first_layers(model, layers).requires_grad_(False)
    return get_peft_model(small, LoraConfig(r=16, lora_alpha=32, target_modules=linear_names(small, layers)))


def race(steps: Mapping[str, Callable[[], object]], rounds: int, *, warm: bool = False) -> dict[str, float]:
    """Median milliseconds, in turns; unless they are `warm`, the first turn of each does not count."""
    times = take_turns(steps, rounds, uncounted=0 if warm else 1)
    return {kind: statistics.median(values) for kind, values in times.items()}


def measure_peak(
    method: str, size: Shape, kind: str, sequences: int, length: int, threads: int | None, layers: int | None = None
) -> float | None:
    """MiB that one step holds at most beyond weights and optimizer, its reference included."""

    def step(model: CausalLM, sequences: int, length: int) -> None:
        half = sequences // 2
        sets = random_sets(method, size.vocab, half, length)
        step_of(kind, method, model, sets, batch_of(method, sets, range(half), model.device), layers)()

    return beyond_weights(size, lambda model: step(model, 2, 8), lambda model: step(model, sequences, length), threads)


def _peak_on_device(step: Step) -> float:
    """MiB of CUDA memory that `step` holds at most beyond weights, its reference included."""
    step.model.zero_grad()
    before = allocated()
    with peak_memory() as during:
        step()
    assert during.mib is not None
    return during.mib - before + step.held_mib


def beyond_weights(
    size: Shape, warm_up: Callable[[Any], object], work: Callable[[Any], object], threads: int | None
) -> float | None:
    """MiB that `work` holds at most beyond the model that it gets. A `warm_up` goes before: what libraries hold from
    their first use on is not the work's."""
    if threads is not None:
        torch.set_num_threads(threads)
    with own_cache():
        model = build(size)
        warm_up(model)
        model.zero_grad()
        gc.collect()
        before = allocated() if torch.cuda.is_available() else resident()
        with peak_memory() as during:
            work(model)
    return None if during.mib is None or before is None else during.mib - before
