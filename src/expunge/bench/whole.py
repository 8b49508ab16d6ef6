"""Whole steps of a training of every parameter by the trainer: their time, and their memory beside the estimate.

Forward, backward, clipping and the optimizer's update, with what a single large GPU needs: bfloat16 weights with
stochastic rounding, 8-bit optimizer states, activation checkpointing.
"""

import gc
import statistics
import tempfile
import time
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState

from expunge.bench.shapes import SHAPES, Shape, word_tokenizer
from expunge.bench.turns import own_cache, page, synchronize, title, utilisation
from expunge.objectives import split_method
from expunge.report.table import Table, left, right
from expunge.system.machine import peak_memory, resident, versions
from expunge.training import memory
from expunge.training.arguments import UnlearnConfig
from expunge.training.trainer import UnlearnTrainer

METHODS = ("npo+kl", "unilogit+nll")
"""Those of the recipe for eight billion parameters on one GPU."""
OPTIM = "adamw_torch_8bit"
WARM_UP = 2
"""Steps that do not count: the optimizer is compiled in the first, and its states are made there."""


class _StepTimes(TrainerCallback):
    """Milliseconds of every step, until the device has done it."""

    def __init__(self) -> None:
        self.ms: list[float] = []
        self._begun = 0.0

    def on_step_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        synchronize()
        self._begun = time.perf_counter()

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        synchronize()
        self.ms.append(1000 * (time.perf_counter() - self._begun))


def measure(
    shape: str, *, methods: tuple[str, ...] = METHODS, sequences: int = 16, length: int = 512, rounds: int = 5,
    threads: int | None = None, optim: str = OPTIM,
) -> dict[str, Any]:  # fmt: skip
    """`{shape, device, …, rows}`; a row: `{objective, parameters, step_ms, mfu, peak_mib, estimate_mib}`.

    `step_ms` is the median of `rounds` steps on `sequences` of `length` tokens, half of them to forget, every token but
    the first supervised. `mfu` is the share of the device's dense bfloat16 speed that the model's own operations take:
    what checkpointing computes twice counts once. `peak_mib` is all that was held from the model's making on;
    `estimate_mib` is what `expunge run --dry-run` says of the same training.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    about, size = versions(), SHAPES[shape]
    rows = [{"objective": m, **_row(m, size, sequences, length, rounds, about["device"], optim)} for m in methods]
    return {"shape": shape, "sequences": sequences, "length": length, **about, "rows": rows}


def table(result: dict[str, Any]) -> Table:
    """The rows of `measure`."""
    rows = [
        [
            row["objective"],
            f"{row['parameters'] / 1e9:.2f}",
            f"{row['step_ms']:,.0f}",
            "–" if row["mfu"] is None else f"{100 * row['mfu']:.0f} %",
            "–" if row["peak_mib"] is None else f"{row['peak_mib'] / 1024:.1f}",
            f"{row['estimate_mib'] / 1024:.1f}",
        ]
        for row in result["rows"]
    ]
    heads = right("parameters,\nbillions", "step,\nms", "MFU", "peak,\nGiB", "estimate,\nGiB")
    return Table([*left("method"), *heads], rows, title(result))


def markdown(result: dict[str, Any], *, command: str) -> str:
    """The same as a page, with the command that repeats it and what it ran on."""
    return page(
        f"""# What a whole step of every parameter costs

Forward, backward, clipping and update of {result["sequences"]} sequences of {result["length"]} tokens, half of them to
forget, by the trainer: bfloat16 weights with stochastic rounding, 8-bit optimizer states, activation checkpointing:""",
        command,
        table(result),
        "MFU: share of the device's dense bfloat16 speed; what checkpointing computes twice counts once. Estimate: of "
        "`expunge run --dry-run`.",
        result,
    )


def _row(method: str, size: Shape, sequences: int, length: int, rounds: int, device: str, optim: str) -> dict[str, Any]:
    tokenizer = word_tokenizer(size.vocab)
    generator = torch.Generator().manual_seed(0)
    count = sequences // 2 * (rounds + WARM_UP)
    ids = torch.randint(2, size.vocab, (2, count, length), generator=generator).tolist()
    forget, retain = ([{"input_ids": row} for row in of_role] for of_role in ids)
    terms = split_method(method)
    with own_cache(), tempfile.TemporaryDirectory() as folder:
        args = UnlearnConfig(
            output_dir=folder, max_steps=rounds + WARM_UP, per_device_train_batch_size=sequences // 2,
            optim=optim, optim_args="bf16_stochastic_round=True" if optim == OPTIM else None,
            activation_checkpointing=True, save_strategy="no", disable_tqdm=True,
        )  # fmt: skip
        gc.collect()
        cuda = torch.cuda.is_available()
        before = 0.0 if cuda else resident()
        with peak_memory() as during:
            model = size.build(torch.device("cuda" if cuda else "cpu"), torch.bfloat16).train()
            parameters = sum(p.numel() for p in model.parameters())
            times = _StepTimes()
            trainer = UnlearnTrainer(
                model, args, objective=terms["forget"]["name"], retain=terms["retain"]["name"], forget_dataset=forget,
                retain_dataset=retain, processing_class=tokenizer, callbacks=[times],
            )  # fmt: skip
            trainer.train()
        outline = size.build(torch.device("meta"), torch.bfloat16)
        batch = memory.largest_batch(trainer.sets, trainer.needs, args)
        reference = memory.reference_bytes(outline, trainer.needs, trainer.sets, args)
        estimate = memory.peak(outline, batch, trainer.needs, args, reference)
    ms = statistics.median(times.ms[WARM_UP:])
    return {
        "parameters": parameters,
        "step_ms": ms,
        "mfu": utilisation(_useful(size, parameters, sequences, length), ms, device) if cuda else None,
        "peak_mib": None if during.mib is None or before is None else during.mib - before,
        "estimate_mib": estimate.total,
    }


def _useful(size: Shape, parameters: int, sequences: int, length: int) -> int:
    """Operations of forward and backward: six for every parameter that multiplies and token, and attention's.

    Chowdhery et al. 2022, arXiv 2204.02311, appendix B.
    """
    multiply = parameters - size.vocab * size.hidden  # the embedding is looked up
    return sequences * length * (6 * multiply + 12 * size.layers * size.hidden * length)
