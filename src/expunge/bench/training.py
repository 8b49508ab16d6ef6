"""What an unlearning step costs beside plain fine-tuning on the same tokens, and beside the usual way to write it.

    floor   one forward of all sequences, dense cross-entropy, backward
    naive   `naive.py`: a forward for each role and each model, dense float32 logits
    ours    the trainer's step; references cached before

The step is forward and backward; the optimizer's update is the same for all three. Times are medians of turns taken
in one process; memory is the peak of one step, in a process of its own, beyond weights and gradients.
"""

import json
import logging
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor

from expunge.bench import naive
from expunge.bench.shapes import SHAPES, Shape
from expunge.bench.turns import milliseconds, page
from expunge.data.encode import Encoded
from expunge.data.pairs import Collator, Role, Sets
from expunge.measure import peak_memory, versions

log = logging.getLogger(__name__)

METHODS = (
    "ga+nll", "npo+nll", "simnpo+nll", "wga+nll", "unilogit+nll", "npo+kl", "unilogit+kl", "undial+nll", "undial+kl",
    "dpo+nll", "uld",
)  # fmt: skip
KINDS = ("floor", "naive", "ours")

Step = Callable[[], Tensor]


def measure(
    shape: str, *, methods: tuple[str, ...] = METHODS, sequences: int = 8, length: int = 256,
    rounds: int = 5, threads: int | None = None, memory: bool = True,
) -> dict[str, Any]:  # fmt: skip
    """`{shape, device, …, rows}`; a row: `{objective, shape, device, step_ms, peak_mib}`, each by kind.

    `sequences` of `length` tokens, half of them to forget, every token supervised. ULD's naive step is a dense one of
    the whole model on both sides; its own runs the assistant's layers alone.
    """
    from tqdm.auto import tqdm

    if threads is not None:
        torch.set_num_threads(threads)
    about = versions()
    rows = []
    for method in tqdm(methods, desc="bench", leave=False):
        steps = prepare(method, SHAPES[shape], sequences, length)
        row: dict[str, Any] = {"objective": method, "shape": shape, "device": about["device"]}
        row["step_ms"] = _race(steps, rounds)
        del steps
        if memory:
            options = {"method": method, "shape": shape, "sequences": sequences, "length": length}
            row["peak_mib"] = {kind: _apart({**options, "kind": kind, "threads": threads}) for kind in KINDS}
        rows.append(row)
    return {"shape": shape, "sequences": sequences, "length": length, **about, "rows": rows}


def prepare(method: str, size: Shape, sequences: int, length: int, kinds: tuple[str, ...] = KINDS) -> dict[str, Step]:
    """A step for each kind on the same random batch: it leaves gradients and returns the loss."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    model = size.build(device, dtype).train()
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(2, size.vocab, (2 * sequences, length), generator=generator).tolist()
    half = sequences // 2
    rows = [Encoded(tuple(row), 1) for row in ids]
    needs_refusal = method.startswith("dpo")
    sets = Sets(forget=rows[:half], retain=rows[half : 2 * half], refusal=rows[-half:] if needs_refusal else [])
    roles = (Role.FORGET, Role.REFUSAL, Role.RETAIN) if needs_refusal else (Role.FORGET, Role.RETAIN)
    collate = Collator(sets, 0)
    batch = {k: v.to(device) for k, v in collate([[(role, i)] for role in roles for i in range(half)]).items()}
    parts = {role: {k: v[batch["role"] == role] for k, v in batch.items()} for role in roles}

    def floor() -> Tensor:
        out = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=batch["labels"])
        return out.loss

    steps: dict[str, Step] = {"floor": floor}
    if "naive" in kinds:
        name = "ga+nll" if method == "uld" else method
        needs_start = name.split("+")[0] in ("npo", "dpo", "undial") or name.endswith("+kl")
        start = deepcopy(model).requires_grad_(False) if needs_start else None
        steps["naive"] = lambda: naive.loss(
            name, model, start, parts[Role.FORGET], parts[Role.RETAIN], parts.get(Role.REFUSAL)
        )
    if "ours" in kinds:
        steps["ours"] = _ours(method, model, sets, batch)
    chosen = {kind: steps[kind] for kind in kinds}
    return {kind: _with_backward(step, model) for kind, step in chosen.items()}


HEADS = ("method", "ms: floor", "naive", "ours", "ours / floor", "naive / ours", "MiB: floor", "naive", "ours")


def cells(found: dict[str, Any]) -> list[list[str]]:
    """The rows of `measure` as text, under `HEADS`."""
    table = []
    for row in found["rows"]:
        ms, mib = row["step_ms"], row.get("peak_mib") or dict.fromkeys(KINDS)
        line = [row["objective"], *(f"{ms[kind]:.0f}" for kind in KINDS)]
        line += [f"{ms['ours'] / ms['floor']:.2f}", f"{ms['naive'] / ms['ours']:.2f}"]
        table.append([*line, *("–" if mib[kind] is None else f"{mib[kind]:,.0f}" for kind in KINDS)])
    return table


def markdown(found: dict[str, Any], *, command: str) -> str:
    """The same as a page, with the command that repeats it and what it ran on."""
    return page(
        f"""# What an unlearning step costs

Forward and backward of {found["sequences"]} sequences of {found["length"]} tokens, half of them to forget, every token
supervised; medians in one process, and the peak of memory beyond weights and gradients in a process for each:""",
        command,
        [HEADS, [":--", *["--:"] * (len(HEADS) - 1)], *cells(found)],
        "Floor: plain fine-tuning on the same tokens. Naive: a forward for each role and each model, dense float32 "
        "logits, a\ncopied reference model. For `uld`, naive is a dense step of the whole model.",
        found,
    )


def _ours(method: str, model: Any, sets: Sets, batch: dict[str, Tensor]) -> Step:
    from expunge.objectives import FORGET, RETAIN, ULD, Needs, Objective, Uniform
    from expunge.reference import build_reference
    from expunge.signals import Share, gather_signals

    terms: tuple[Objective, Objective]
    if method == "uld":
        model = assistant(model)
        terms = ULD(), Uniform(weight=5.0)
    else:
        forget, _, kept = method.partition("+")
        terms = FORGET[forget](), RETAIN[kept]()
    objective, retain = terms
    needs = {
        Role.FORGET: objective.needs,
        Role.RETAIN: retain.needs,
        Role.REFUSAL: objective.needs if objective.needs.refusal else Needs(),
    }
    wanted = objective.needs | retain.needs
    reference = build_reference(model, needs, sets, pad_token_id=0) if wanted.reference else None

    shares: dict[Role, Share] = {}
    for role, term in ((Role.FORGET, objective), (Role.RETAIN, retain)):
        tokens = sum(len(row) - row.start for row in sets.of(role))
        shares[role] = Share(term, 1 / (tokens if term.per == "token" else len(sets.of(role))))

    def step() -> Tensor:
        signals = gather_signals(model, batch, needs, reference, None, shares)
        return torch.stack([share.objective.weight * share.term(signals[role]) for role, share in shares.items()]).sum()

    return step


def assistant(model: Any) -> Any:
    from peft import LoraConfig, get_peft_model

    from expunge.assistant import first_layers, layer_count, linear_names

    layers = layer_count(model, None)
    small = first_layers(model, layers).requires_grad_(False)
    return get_peft_model(small, LoraConfig(r=16, lora_alpha=32, target_modules=linear_names(small, layers)))


def _with_backward(step: Step, model: Any) -> Step:
    def whole() -> Tensor:
        for p in model.parameters():
            if p.grad is not None:
                p.grad.zero_()
        loss = step()
        loss.backward()
        return loss.detach()

    return whole


def _race(steps: dict[str, Step], rounds: int) -> dict[str, float]:
    """Median milliseconds, in turns; the first turn of each warms up."""
    times: dict[str, list[float]] = {kind: [] for kind in steps}
    for turn in range(rounds + 1):
        for kind, step in steps.items():
            took = milliseconds(step)
            if turn:
                times[kind].append(took)
    return {kind: statistics.median(values) for kind, values in times.items()}


def _apart(options: dict[str, Any]) -> float | None:
    """`peak` in a process of its own, where nothing of another step is left."""
    words = [sys.executable, "-m", "expunge.bench.training", json.dumps(options)]
    environment = {**os.environ, "MALLOC_TRIM_THRESHOLD_": "0", "MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(words, capture_output=True, text=True, env=environment)
    if done.returncode:
        log.warning("memory of %s (%s) is not known: %s", options["method"], options["kind"], done.stderr[-300:])
        return None
    return json.loads(done.stdout)


def peak(method: str, shape: str, kind: str, sequences: int, length: int, threads: int | None) -> float | None:
    """MiB that one step holds at most, beyond weights, gradients, references and the batch."""
    if threads is not None:
        torch.set_num_threads(threads)
    (step,) = prepare(method, SHAPES[shape], sequences, length, (kind,)).values()
    step()  # allocates the gradients
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated() / 2**20
    else:
        before = _resident()
    with peak_memory() as found:
        step()
    return None if found.mib is None or before is None else found.mib - before


def _resident() -> float | None:
    try:
        with open("/proc/self/status", encoding="ascii") as stream:
            return int(stream.read().split("VmRSS:")[1].split()[0]) / 1024
    except OSError:
        return None


if __name__ == "__main__":
    print(json.dumps(peak(**json.loads(sys.argv[1]))))
