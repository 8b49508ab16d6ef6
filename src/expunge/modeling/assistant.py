"""The assistant of ULD and Offset: the first layers of a model with a LoRA adapter, on the model's own tensors."""

from copy import copy, deepcopy
from typing import TYPE_CHECKING, Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from expunge.errors import UserError
from expunge.modeling.causal import CausalLM
from expunge.modeling.forward import decoder_layers

if TYPE_CHECKING:
    from transformers import PretrainedConfig

NORMS = ("norm", "final_layernorm", "final_layer_norm", "ln_f")
"""Names of the normalisation between the last layer and the head."""


def layer_count(model_or_config: "CausalLM | PretrainedConfig", layers: int | None) -> int:
    """How many layers the assistant has: `layers`, or a quarter of the model's, at least two where it has more.

    Raises `UserError` unless it is at least one and fewer than the model has, and for a model of more than text.
    """
    whole: Any = getattr(model_or_config, "config", model_or_config)
    config = whole.get_text_config()
    if config is not whole:
        raise UserError(
            f"method: an assistant is cut from a model of text alone, and {whole.model_type} has other parts; use a "
            f"single-model method, or the family's text model."
        )
    total = config.num_hidden_layers
    chosen = layers if layers is not None else min(max(2, total // 4), total - 1)
    if not 1 <= chosen < total:
        raise UserError(
            f"method: an assistant of {chosen} layers can't be cut from a model of {total}; set layers to a number "
            f"from 1 to {total - 1}."
            if total > 1
            else "method: a model of one layer has no smaller assistant."
        )
    return chosen


def first_layers(model: CausalLM, layers: int) -> Any:
    """A model of the first `layers` layers, the final norm and the head of `model`, on the very same tensors.

    Modules are new, parameters and buffers are shared, so the copy costs no memory and sees the original's values.
    """
    shared = {id(t): t for t in (*model.parameters(), *model.buffers())}
    small = deepcopy(model, shared)
    for module in small.modules():
        if hasattr(module, "config"):
            module.config = _shortened(small.config, layers)
    kept = decoder_layers_of(small)
    del kept[layers:]
    return small


def decoder_layers_of(model: CausalLM) -> nn.ModuleList:
    """The decoder's list of layers, however many the configuration says."""
    return next(m for m in model.get_decoder().modules() if isinstance(m, nn.ModuleList))


def final_norm(model: CausalLM) -> nn.Module:
    """The normalisation between the last layer and the head.

    Raises `UserError` for an architecture that keeps it where we do not look.
    """
    decoder = model.get_decoder()
    for name in NORMS:
        if isinstance(module := getattr(decoder, name, None), nn.Module):
            return module
    raise UserError(
        f"model: the final norm of {type(model).__name__} was not found (looked for {', '.join(NORMS)}), so no "
        f"assistant can be cut from it; use a single-model method."
    )


def linear_names(model: CausalLM, layers: int) -> list[str]:
    """Dotted names of every linear layer of the first `layers` decoder layers."""
    inside = {id(m) for layer in decoder_layers(model)[:layers] for m in layer.modules()}
    return [name for name, m in model.named_modules() if id(m) in inside and isinstance(m, nn.Linear | Conv1D)]


def _shortened(config: "PretrainedConfig", layers: int) -> Any:
    config = copy(config)
    config.num_hidden_layers = layers
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:layers]
    return config
