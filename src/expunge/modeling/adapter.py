"""The LoRA adapter of a recipe: which layers it goes on, whether it can, and what two of them are together."""

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import Field
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from expunge.errors import UserError, did_you_mean, first_line
from expunge.modeling.causal import CausalLM
from expunge.system.options import Options

if TYPE_CHECKING:
    from peft import LoraConfig as PeftLoraConfig
    from peft import PeftConfig, PeftModel

Factors = dict[str, tuple[Tensor, Tensor]]
"""By the name of a layer: A [r, in] and s·B [out, r], whose product an adapter adds to the layer's weight."""


class LoraConfig(Options):
    """A LoRA adapter (PEFT) on every linear layer but the head; `quantize` holds these in 4 bits under it (QLoRA)."""

    r: int = Field(default=16, ge=1, description="rank")
    alpha: int = Field(default=32, ge=1, description="the adapter's output is scaled by alpha/r")
    dropout: float = Field(
        default=0.0, ge=0, lt=1, description="share of the adapter's inputs that are dropped in training"
    )
    targets: str | list[str] = Field(
        default="all-linear", description="names of the layers that get an adapter, or a regular expression"
    )
    quantize: Literal["nf4"] | None = Field(default=None, description="extra: expunge[lean]")

    def peft(self) -> "PeftLoraConfig":
        """The same as `peft.LoraConfig`."""
        from peft import LoraConfig as PeftLoraConfig

        return PeftLoraConfig(
            r=self.r,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            target_modules=self.targets,
            task_type="CAUSAL_LM",
        )


def under_adapter(model: nn.Module) -> nn.Module:
    """The model that a PEFT adapter is on; without one, the model itself."""
    base = getattr(model, "get_base_model", None)
    return model if base is None else base()


@contextmanager
def without_adapter(adapted: "PeftModel") -> Iterator[None]:
    """Run the base alone. PEFT leaves every adapter weight trainable afterwards; here frozen ones stay frozen."""
    frozen = [p for p in adapted.parameters() if not p.requires_grad]
    try:
        with adapted.disable_adapter():
            yield
    finally:
        for p in frozen:
            p.requires_grad_(False)


def adapt(model: CausalLM, config: "PeftLoraConfig") -> "PeftModel":
    """`model` under a new adapter as `config` (`peft.LoraConfig`) says.

    Raises `UserError` for a model that has an adapter already, and for an adapter that the model can't have.
    """
    from peft import get_peft_model

    if hasattr(model, "peft_config"):
        raise UserError(
            "model: it has an adapter already, on which another would be put; give model.merge_and_unload(), or leave "
            "the new adapter (peft_config) out to train the one that is there."
        )
    named = [name for name, _ in model.named_modules()]
    for target in config.target_modules if isinstance(config.target_modules, list | set) else ():
        if not any(f".{name}".endswith(f".{target}") for name in named):  # one of several, PEFT passes over in silence
            near = did_you_mean(target, {name.rpartition(".")[2] for name in named})
            raise UserError(f"model.lora.targets: the model has no module {target!r}.{near}")
    config.fan_in_fan_out = any(isinstance(module, Conv1D) for module in model.modules())
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*tie_word_embeddings=True")  # an error, below
            adapted = get_peft_model(model, config)
    except (ValueError, TypeError, re.error) as error:
        raise UserError(
            f"model.lora.targets: {first_line(error)}; give names of its layers, a regular expression that some match, "
            f"or all-linear."
        ) from error
    check_adapter(adapted, "model.lora")
    return adapted


def check_adapter(model: nn.Module, key: str) -> None:
    """Raise `UserError` for adapters of more dimensions than their layers have, and for one on weights that are tied.

    A head that is the embedding too can't be changed alone: merged or not, the two would be different models.
    """
    sizes = [min(_features(layer)) for layer in adapted_layers(model)]
    ranks = [int(r) for config in getattr(model, "peft_config", {}).values() if (r := getattr(config, "r", None))]
    if sizes and ranks and max(ranks) > max(sizes):
        raise UserError(
            f"{key}.r must be at most {max(sizes)}, the smaller side of the largest layer that it adapts, got "
            f"{max(ranks)}."
        )
    if not getattr(model.config.get_text_config(), "tie_word_embeddings", False):  # pyright: ignore
        return
    for part in (model.get_input_embeddings(), model.get_output_embeddings()):  # pyright: ignore
        if hasattr(part, "base_layer") or hasattr(part, "original_module"):
            raise UserError(
                f"{key}.targets: the model's head and its embedding are the same weights (tie_word_embeddings), so "
                f"neither can have an adapter of its own; leave lm_head and the embedding out."
            )


def adapted_layers(model: nn.Module) -> list[nn.Linear | Conv1D]:
    """The linear layers under an adapter, GPT-2's (`Conv1D`) among them."""
    under = (getattr(module, "base_layer", None) for module in model.modules())
    return [layer for layer in under if isinstance(layer, nn.Linear | Conv1D)]


def _features(layer: nn.Linear | Conv1D) -> tuple[int, int]:
    """Inputs and outputs; a weight that is packed in 4 bits or held by other ranks has another shape."""
    return (layer.nx, layer.nf) if isinstance(layer, Conv1D) else (layer.in_features, layer.out_features)


def bytes_saved(model: nn.Module) -> float:
    """Bytes that the linear layers under an adapter take less in NF4: half a byte a weight, and its share of scales."""
    weights = [layer.weight for layer in adapted_layers(model) if isinstance(layer, nn.Linear)]
    return sum(weight.numel() * (weight.itemsize - 0.5 - 1 / 64) for weight in weights)


def check_mergeable(name: str, config: "PeftConfig") -> None:
    """Raise `UserError` for a PEFT adapter that is not a change of weights."""
    from peft import PeftType

    kinds = {PeftType.LORA, PeftType.ADALORA, PeftType.LOHA, PeftType.LOKR, PeftType.OFT, PeftType.BOFT, PeftType.VERA}
    if config.peft_type not in kinds:
        kind = getattr(config.peft_type, "value", config.peft_type)
        raise UserError(
            f"model: {name!r} is an adapter of the kind {kind}, which does not change weights; give a LoRA adapter or "
            f"a whole model."
        )


def is_plain_lora(config: "PeftConfig") -> bool:
    """Whether an adapter is a product of two matrices a layer and nothing else."""
    more = ("use_dora", "modules_to_save", "trainable_token_indices", "target_parameters", "lora_bias")
    kind, bias = getattr(config.peft_type, "value", config.peft_type), getattr(config, "bias", None)
    return kind == "LORA" and bias == "none" and not any(getattr(config, key, None) for key in more)


@dataclass(frozen=True)
class Merged:
    """The LoRA adapter that was added to a model's weights: on which base, and its factors.

    `factors` is `None` where the adapter was more than products, so that no other can be joined to it.
    """

    base: str
    factors: Factors | None

    @classmethod
    def of(cls, adapted: "PeftModel", below: "Merged | None", *, base: str) -> "Merged":
        """Read a model with its adapter on, which may lie on another that was merged (`below`)."""
        factors = factors_of(adapted)
        if below is None:
            return cls(base, factors)
        return cls(below.base, None if factors is None or below.factors is None else _joined(below.factors, factors))

    def save(self, adapted: "PeftModel", path: Path) -> None:
        """Write this adapter and the one on `adapted` as one on the base: their ranks add up, their sum is exact."""
        from peft import LoraConfig as PeftLoraConfig

        factors = factors_of(adapted)
        assert self.factors is not None and factors is not None, "refused when it was loaded"
        both = _joined(self.factors, factors)
        ranks = {name: len(a) for name, (a, _) in both.items()}
        widest = max(ranks.values())
        others = {re.escape(name): r for name, r in ranks.items() if r != widest}
        config = PeftLoraConfig(
            r=widest,
            lora_alpha=widest,
            rank_pattern=others,
            alpha_pattern=dict(others),
            target_modules=sorted(both),
            fan_in_fan_out=getattr(next(iter(adapted.peft_config.values())), "fan_in_fan_out", False),
            task_type="CAUSAL_LM",
            inference_mode=True,
            base_model_name_or_path=self.base,
        )
        path.mkdir(parents=True, exist_ok=True)
        config.save_pretrained(str(path))
        weights = {
            f"base_model.model.{name}.lora_{side}.weight": x.detach().float().cpu().contiguous()
            for name, pair in both.items()
            for side, x in zip("AB", pair, strict=True)
        }
        save_file(weights, path / "adapter_model.safetensors", {"format": "pt"})


def factors_of(adapted: "PeftModel") -> Factors | None:
    """The factors of the one adapter on a model, or `None` where it is more than products of two matrices."""
    from peft.tuners.lora import LoraLayer

    ((adapter, config),) = adapted.peft_config.items()
    if not is_plain_lora(config):
        return None
    factors: Factors = {}
    for name, module in adapted.get_base_model().named_modules():
        if isinstance(module, LoraLayer):
            layer: Any = module
            if adapter not in layer.lora_A or not isinstance(layer.lora_A[adapter], nn.Linear):
                return None
            factors[name] = (
                layer.lora_A[adapter].weight.detach(),
                layer.lora_B[adapter].weight.detach() * layer.scaling[adapter],
            )
    return factors


def _joined(first: Factors, second: Factors) -> Factors:
    def both(name: str, side: int) -> Tensor:
        parts = [factors[name][side] for factors in (first, second) if name in factors]
        return torch.cat([part.float().cpu() for part in parts], dim=side)

    return {name: (both(name, 0), both(name, 1)) for name in {**first, **second}}
