"""The weights of a checkpoint, all of them or none: whatever is missing, of another shape or left over is named."""

import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoModelForCausalLM
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from expunge.errors import UserError
from expunge.modeling.adapter import Merged, check_adapter, check_mergeable
from expunge.modeling.bases import check_bases
from expunge.modeling.causal import CausalLM
from expunge.modeling.checkpoint import (
    asking_for,
    base_of,
    check_unchanged,
    folder_of,
    is_adapter,
    load_config,
    not_loaded,
    whereabouts,
)
from expunge.modeling.gguf import is_gguf
from expunge.modeling.saving import keep_weights

if TYPE_CHECKING:
    from peft import PeftModel

log = logging.getLogger(__name__)


def load_weights(name: str | Path, *, merged: bool = False, **options: Any) -> Any:
    """The model in `name`, with a LoRA adapter that is there on it or, where `merged`, in its weights.

    Merging is in float32 unless a dtype is given, since bfloat16 would round an adapter's small changes away.
    `options` go to `from_pretrained`. Raises `UserError` unless every weight of the model is there.
    """
    name = str(name)
    load_config(name)
    # Every process has the whole model until it trains; with DeepSpeed about, transformers would spread it out at once.
    unset_hf_deepspeed_config()
    try:
        if not is_adapter(name):
            model = _load_plain(name, options)
            check_unchanged(name)  # after checks that name the weights
            check_bases(name)
            return model
        if merged and options.get("dtype") in (None, "auto"):
            options["dtype"] = torch.float32
        adapted = _load_adapted(name, options)
        check_unchanged(name)
        check_bases(name)
        return _merge(adapted, name) if merged else adapted
    except Exception as error:
        raise not_loaded(name, error) from error


def check_weights(name: str | Path, *, merged: bool = False) -> None:
    """Raise `UserError` unless the folder holds every weight of its model; none is read. Passes names on the hub.

    With `merged` an adapter must be one that can go into the weights.
    """
    if Path(folder_of(name)).is_dir():
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*to a meta parameter in the current model, which is a no-op")
            model = load_weights(name, device_map="meta")
        if merged:
            check_adapter(model, f"model: {str(name)!r}: adapter")


def _load_plain(name: str, options: dict[str, Any]) -> Any:
    with _report_unsaid(), asking_for(name):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder_of(name),
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported below, by name
            trust_remote_code=False,
            **options,
        )
    model, info = loaded
    if hasattr(model, "peft_config") and not Path(name).is_dir():
        raise UserError(f"model: {name!r} is an adapter; download it, and give its folder.")
    model.packed_in = whereabouts(name) if is_gguf(whereabouts(name)) else None
    _check_keys(name, model, info)
    keep_weights(model)
    return model


def _load_adapted(name: str, options: dict[str, Any]) -> "PeftModel":
    from peft import PeftConfig, PeftModelForCausalLM

    config = PeftConfig.from_pretrained(name)
    check_mergeable(name, config)
    config.inference_mode = True
    base = load_weights(base_of(name), merged=True, **options)
    model = PeftModelForCausalLM(base, config)
    # Read where the base is, or on the CPU where the base is nowhere; shapes are looked at all the same.
    nowhere = base.device.type == "meta"
    device = "cpu" if nowhere else str(base.device)
    try:
        report = model.load_adapter(name, "default", torch_device=device, low_cpu_mem_usage=nowhere)
    except RuntimeError as error:
        shapes = re.findall(r"size mismatch for (\S+): .*?Size\((.*?)\).*?Size\((.*?)\)", str(error))
        _refuse(
            name,
            "holds weights of another shape than its adapter_config.json and its base say",
            [f"{key} {here}, not {wanted}" for key, here, wanted in shapes],
            "put back r and the layers that it was trained with, or give the base that it was trained on",
        )
        raise
    remedy = "give an adapter that was trained on this base"
    _refuse(name, "lacks weights of its adapter", sorted(report.missing_keys), remedy)
    _refuse(name, "holds weights that its adapter_config.json has no place for", sorted(report.unexpected_keys), remedy)
    return model


def _merge(adapted: "PeftModel", name: str) -> Any:
    """The model with its adapter in the weights, which remembers what was merged."""
    check_adapter(adapted, f"model: {name!r}: adapter")
    below = getattr(adapted.get_base_model(), "merged_adapter", None)
    merged = Merged.of(adapted, below, base=whereabouts(base_of(name)))
    model = adapted.merge_and_unload(safe_merge=True).requires_grad_(True)  # PEFT froze it
    model.merged_adapter = merged
    model.name_or_path = whereabouts(name)
    return model


def _check_keys(name: str, model: CausalLM, info: dict[str, Any]) -> None:
    """Raise `UserError` for weights that would be drawn at random, and for those that show the model to be another."""
    missing, unexpected = sorted(info["missing_keys"]), sorted(info["unexpected_keys"])
    remedy = "give a checkpoint whose weights and config.json belong together"
    wrapper = next((key.removesuffix(lost) for lost in missing for key in unexpected if key.endswith(f".{lost}")), None)
    if wrapper is not None:
        remedy = f"its weights are named {wrapper}…, so save the model that is inside the wrapper"
    _refuse(name, "lacks weights of its model", missing, remedy)
    shapes = sorted(f"{key} {list(here)}, not {list(wanted)}" for key, here, wanted in info["mismatched_keys"])
    _refuse(name, "holds weights of another shape than its config.json says", shapes, remedy)
    ours = [key for key in unexpected if _belongs(model, key)]
    _refuse(name, "holds weights for which the model of its config.json has no place", ours, remedy)
    if unexpected:
        log.warning("%s holds weights that %s does not use: %s", name, type(model).__name__, _listed(unexpected))


def _refuse(name: str, what: str, keys: list[str], remedy: str) -> None:
    if keys:
        raise UserError(f"model: {name!r} {what}: {_listed(keys)}; {remedy}.")


def _listed(keys: list[str]) -> str:
    more = "" if len(keys) <= 3 else ", …"
    return f"{', '.join(keys[:3])}{more} ({len(keys)} in all)"


def _belongs(model: CausalLM, key: str) -> bool:
    """Whether a weight that found no place would be a part of the text decoder or of the head."""
    parts = [model.get_decoder(), model.get_output_embeddings()]
    inside = {id(module) for part in parts if part is not None and part is not model for module in part.modules()}
    module = model
    for word in key.split("."):
        child = module._modules.get(word)
        if child is None:
            break
        module = child
    return id(module) in inside


@contextmanager
def _report_unsaid() -> Iterator[None]:
    """Leave out transformers' table of keys, of which `_check_keys` says everything."""
    logger = logging.getLogger("transformers.modeling_utils")

    def other(record: logging.LogRecord) -> bool:
        return "LOAD REPORT" not in record.getMessage()

    logger.addFilter(other)
    try:
        yield
    finally:
        logger.removeFilter(other)
