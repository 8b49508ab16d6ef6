"""Load a causal LM with its tokenizer, for inference or for training, and what else of models is needed elsewhere."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from transformers import BitsAndBytesConfig

from expunge.errors import UserError, first_line
from expunge.modeling.adapter import LoraConfig, adapt, adapted_layers, bytes_saved, is_plain_lora
from expunge.modeling.checkpoint import (
    check_name,
    is_adapter,
    load_config,
    load_tokenizer,
    outline,
    stored_dtype,
    whereabouts,
)
from expunge.modeling.saving import as_saved, describe, name_base, parameter_count, save
from expunge.modeling.scratch import ScratchConfig, build_scratch, scratch_config, train_tokenizer
from expunge.modeling.weights import check_weights, load_weights

if TYPE_CHECKING:
    from transformers import PretrainedConfig

__all__ = [
    "Dtype", "LoraConfig", "ScratchConfig", "adapt", "adapted_layers", "as_saved", "build_scratch", "bytes_saved",
    "check_attention", "check_dtype", "check_start", "check_weights", "describe", "is_adapter", "load",
    "load_for_training", "load_tokenizer_and_config", "name_base", "outline", "parameter_count", "save",
    "scratch_config", "stored_dtype", "train_tokenizer", "whereabouts",
]  # fmt: skip

Dtype = Literal["auto", "float32", "bfloat16"]


def load(
    path: str | Path,
    *,
    dtype: Dtype = "auto",
    attention: str | None = None,
    quantize: str | None = None,
    merged: bool = False,
) -> tuple[Any, Any]:
    """(model, tokenizer) of any checkpoint of ours or any causal LM of the hub, ready for inference.

    A folder that holds a LoRA adapter gives its base model with the adapter on, or with `merged` a plain model whose
    weights include it, in float32 unless `dtype` says otherwise. `dtype="auto"` is the checkpoint's.
    `attention` is one of transformers' implementations; `quantize="nf4"` holds linear layers but the head in 4 bits
    (Dettmers et al. 2023, arXiv 2305.14314).
    Raises `UserError` for an unknown name, and unless every weight of the model is there and can be read.
    """
    check_name(path)
    path = str(path)
    import expunge.modeling.difference  # noqa: F401  makes transformers know our own kind of checkpoint

    options: dict[str, Any] = {"dtype": "auto" if dtype == "auto" else getattr(torch, dtype)}
    if attention is not None:
        options["attn_implementation"] = attention
    if quantize is not None:
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=quantize,
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.float32 if dtype == "float32" else torch.bfloat16,
        )
    tokenizer = load_tokenizer(path, load_config(path))
    model = load_weights(path, merged=merged, **options).eval()
    if quantize is not None:
        _keep_differentiable(model)
    return model, tokenizer


def _keep_differentiable(model: Any) -> None:
    """Forbid the packing that bitsandbytes gives 4-bit layers in evaluation mode on CPUs with AVX512-BF16.

    Its product with packed weights has no gradient, so that a training after an evaluation would lose nearly all of its
    own without an error.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def load_for_training(
    path: str | Path,
    *,
    dtype: Dtype = "auto",
    lora: LoraConfig | None = None,
    pure_bf16: bool = False,
    attention: str | None = None,
) -> tuple[Any, Any]:
    """(model, tokenizer) with weights in a dtype that training can use; an adapter in `path` is merged into its base.

    `auto` is float32 for full fine-tuning, whatever the checkpoint holds, since at unlearning's learning rates most
    updates of a bfloat16 weight are rounded away; under LoRA the frozen weights keep the checkpoint's dtype and the
    adapter is float32. Raises `UserError` for bfloat16 weights that would train, unless `pure_bf16` asks for it.
    """
    check_name(path)
    check_dtype(dtype, lora=lora is not None, pure_bf16=pure_bf16)
    check_start(path, lora)
    quantize = lora.quantize if lora is not None else None
    dtype = "float32" if dtype == "auto" and lora is None else dtype
    return load(path, dtype=dtype, attention=attention, quantize=quantize, merged=True)


def check_start(path: str | Path, lora: LoraConfig | None) -> None:
    """Raise `UserError` for a model that can't be started from, or an adapter with which none can be joined."""
    if load_config(str(path)).model_type == "logit_difference":
        raise UserError(
            f"model: {str(path)!r} is the difference of two models, whose weights are its base's; distil it into a "
            f"plain checkpoint first (expunge distill)."
        )
    if lora is None or not is_adapter(path):
        return
    from peft import PeftConfig

    if lora.quantize is not None:
        raise UserError(
            f"model.lora.quantize: {str(path)!r} is an adapter, and its sum with weights of 4 bits is not exact; merge "
            f"it into its base first, or leave quantize out."
        )
    if not is_plain_lora(PeftConfig.from_pretrained(str(path))):
        raise UserError(
            f"model.lora: {str(path)!r} is an adapter that is more than LoRA's products, so another can't be joined to "
            f"it; merge it into its base first, or train without model.lora."
        )


def check_attention(config: "PretrainedConfig", attention: str | None) -> None:
    """Raise `UserError` for an attention that this model, or this machine, does not have."""
    if attention is not None:
        try:
            outline(config, attn_implementation=attention)
        except UserError as error:
            raise UserError(f"model.attention: {first_line(error.__cause__)}.") from error


def check_dtype(dtype: Dtype, *, lora: bool, pure_bf16: bool) -> None:
    """Raise `UserError` for bfloat16 weights that would train without `pure_bf16`."""
    if not lora and dtype == "bfloat16" and not pure_bf16:
        raise UserError(
            "model.dtype: bfloat16 weights lose most updates of full fine-tuning; use float32 (with train.bf16 for "
            "speed), or model.lora, or set model.pure_bf16 to accept it."
        )


def load_tokenizer_and_config(path: str | Path) -> tuple[Any, Any]:
    """(tokenizer, config) of what `load` would load, without its weights; raises the same errors."""
    import expunge.modeling.difference  # noqa: F401  as in `load`

    config = load_config(str(path))
    return load_tokenizer(str(path), config), config
