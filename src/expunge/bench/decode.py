"""Cost of a decoded token of the logit difference beside the base model's alone, by the assistant's layers K.

For every K three models decode the same prompt in turn, step by step, so that a slow moment of the machine hits all:
the base, the difference, and two separate models (base and assistant, each with its own weights and cache), whose
logits are subtracted without any filter.
"""

import statistics
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
from transformers import DynamicCache

from expunge.bench.shapes import SHAPES
from expunge.bench.turns import milliseconds, page, title
from expunge.modeling.assistant import first_layers
from expunge.modeling.causal import CausalLM
from expunge.modeling.difference import LogitDifferenceConfig, LogitDifferenceForCausalLM
from expunge.report.table import Table, right
from expunge.system.machine import versions

PROMPT = 64
STEPS = 8
"""Tokens decoded by one model before the next has its turn."""


def measure(shape: str, *, rounds: int = 12, threads: int | None = None) -> dict[str, Any]:
    """Median milliseconds a token, batch 1, and what the assistant adds in bytes: `{shape, device, …, rows}`.

    Each row holds `layers` (K), `base_ms`, `difference_ms`, `separate_ms`, their ratios to the base,
    `adapter_mib` (on disk and in memory) and `cache_bytes` (more than the base's, a token).
    """
    from tqdm.auto import tqdm

    if threads is not None:
        torch.set_num_threads(threads)
    size = SHAPES[shape]
    cuda = torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "cpu")
    dtype = torch.bfloat16 if cuda else torch.float32
    base = size.build(device, dtype).requires_grad_(False)
    prompt_BT = torch.randint(size.vocab, (1, PROMPT), generator=torch.Generator().manual_seed(0)).to(device)
    rows = []
    choices = sorted({max(1, size.layers // part) for part in (16, 8, 4, 2)})
    for layers in tqdm(choices, desc="decode", leave=False):
        shared = {id(t): t for t in (*base.parameters(), *base.buffers())}
        alone, separate = deepcopy(base, shared), deepcopy(first_layers(base, layers))
        difference = _difference(deepcopy(base, shared), layers)
        steps = {
            "base": _stepper(lambda ids, model=alone, **kw: model(input_ids=ids, **kw).logits, prompt_BT, alone),
            "difference": _stepper(
                lambda ids, model=difference, **kw: model(input_ids=ids, **kw).logits, prompt_BT, difference
            ),
            "separate": _pair_stepper(alone, separate, prompt_BT),
        }
        times = _race(steps, rounds)
        adapter = [p for name, p in difference.named_parameters() if "lora_" in name]
        head = size.hidden // size.heads
        rows.append(
            {
                "layers": layers,
                **{f"{name}_ms": value for name, value in times.items()},
                "difference_ratio": times["difference"] / times["base"],
                "separate_ratio": times["separate"] / times["base"],
                "adapter_mib": sum(p.numel() * p.element_size() for p in adapter) / 2**20,
                "cache_bytes": 2 * layers * size.kv_heads * head * dtype.itemsize,
            }
        )
    return {"shape": shape, "dtype": str(dtype).removeprefix("torch."), **versions(), "rows": rows}


def table(result: dict[str, Any]) -> Table:
    """The rows of `measure`."""
    cells = {
        "K": ("layers", ""),
        "base ms": ("base_ms", ".2f"),
        "difference ms": ("difference_ms", ".2f"),
        "/ base": ("difference_ratio", ".2f"),
        "two models /\nbase": ("separate_ratio", ".2f"),
        "adapter MiB": ("adapter_mib", ".1f"),
        "cache B a token": ("cache_bytes", ","),
    }
    rows = [[format(row[key], form) for key, form in cells.values()] for row in result["rows"]]
    return Table(right(*cells), rows, title(result))


def markdown(result: dict[str, Any], *, command: str) -> str:
    """The same as a page, with the command that repeats it and what it ran on."""
    return page(
        f"""# What a decoded token of the logit difference costs

Batch 1, {PROMPT} tokens of prompt, medians in one process:""",
        command,
        table(result),
        "K: layers of the assistant. Two models: base and assistant apart, each with its own weights and cache. "
        "Adapter and\ncache are all that the difference adds to the base, on disk and in memory.",
        result,
    )


def _difference(base: Any, layers: int) -> Any:
    from peft import LoraConfig

    lora = LoraConfig(r=16, lora_alpha=32, init_lora_weights=False, task_type="CAUSAL_LM")
    return LogitDifferenceForCausalLM(LogitDifferenceConfig(layers=layers), base, lora=lora).requires_grad_(False)


DecodeLoop = tuple[Callable[[], None], Callable[[], None]]
"""(start with the prompt, decode one token)."""


def _stepper(logits: Callable[..., torch.Tensor], prompt_BT: torch.Tensor, model: CausalLM) -> DecodeLoop:
    state: dict[str, Any] = {}

    def start() -> None:
        state["cache"] = DynamicCache(config=model.config.get_text_config())
        state["token"] = _next(logits(prompt_BT, past_key_values=state["cache"], use_cache=True, logits_to_keep=1))

    def step() -> None:
        out = logits(state["token"], past_key_values=state["cache"], use_cache=True, logits_to_keep=1)
        state["token"] = _next(out)

    return start, step


def _pair_stepper(base: Any, assistant: Any, prompt_BT: torch.Tensor) -> DecodeLoop:
    caches: dict[str, Any] = {}

    def difference(ids: torch.Tensor, **_options: Any) -> torch.Tensor:
        z, a = (
            model(input_ids=ids, past_key_values=caches[name], use_cache=True, logits_to_keep=1).logits
            for name, model in (("base", base), ("assistant", assistant))
        )
        return z - 0.8 * a

    start, step = _stepper(difference, prompt_BT, base)

    def start_both() -> None:
        for name, model in (("base", base), ("assistant", assistant)):
            caches[name] = DynamicCache(config=model.config)
        start()

    return start_both, step


def _next(logits_BTV: torch.Tensor) -> torch.Tensor:
    return logits_BTV[:, -1:].argmax(-1)


@torch.inference_mode()
def _race(steps: dict[str, DecodeLoop], rounds: int) -> dict[str, float]:
    """Median milliseconds of a step for each, in turns; every turn's first step warms up and does not count."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, (start, step) in steps.items():
            start()
            step()
            for _ in range(STEPS):
                times[name].append(milliseconds(step))
    return {name: statistics.median(values) for name, values in times.items()}
