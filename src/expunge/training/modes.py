"""Parts of a model that train, and parts that are random while it trains."""

import copy
import re
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from expunge.errors import UserError, did_you_mean
from expunge.modeling.adapter import under_adapter
from expunge.modeling.forward import decoder_layers, supervised_logps
from expunge.system import ranks

RANDOM = re.compile("drop|jitter")
"""Names of attributes that hold how often a model drops, or how much it shakes, while it trains."""


def train_only(model: nn.Module, layers: range, modules: tuple[str, ...]) -> None:
    """Freeze everything but what is trainable now in these decoder layers, or in the `modules` of each."""
    keep: set[int] = set()
    for i in layers:
        layer = decoder_layers(model)[i]
        if missing := [name for name in modules if name not in dict(layer.named_modules())]:
            known = [name for name, module in layer.named_modules() if name and any(True for _ in module.parameters())]
            raise UserError(
                f"method.forget.modules: layer {i} has no {missing[0]}.{did_you_mean(missing[0], known)} "
                f"It has {', '.join(known)}."
            )
        parts = [layer.get_submodule(name) for name in modules] or [layer]
        keep |= {id(p) for part in parts for p in part.parameters() if p.requires_grad}
    for p in model.parameters():
        p.requires_grad_(id(p) in keep)


def switch_off_dropout(model: nn.Module) -> None:
    """Set every rate of dropout in the model to 0, an adapter's too; its config, which is saved, stays as it is.

    A rate is a module's `p`, another attribute of a module, or in a config that a module reads as it runs.
    """
    quiet: dict[int, Any] = {}
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        _set_to_zero(module)
        config = vars(module).get("config")
        if isinstance(config, PreTrainedConfig) and not isinstance(module, PreTrainedModel):
            if id(config) not in quiet:
                quiet[id(config)] = copy.copy(config)
                _set_to_zero(quiet[id(config)])
            module.config = quiet[id(config)]


def check_modes(model: nn.Module) -> None:
    """Raise `UserError` if the model says something else while it trains than in evaluation, as its reference does.

    Two forwards of eight tokens must agree to 8 units in the last place of the model's dtype (0.001 in float32).
    """
    base, training = ranks.inside(model), model.training
    device = next(model.parameters()).device
    ids_BT = torch.arange(8, device=device)[None]
    logps = []
    with torch.no_grad(), torch.random.fork_rng([device] if device.type == "cuda" else []):
        for mode in (True, False):
            model.train(mode)
            logps.append(supervised_logps(model, ids_BT, torch.ones_like(ids_BT), ids_BT))
    model.train(training)
    ulps = 8 * torch.finfo(base.dtype).eps
    if not torch.allclose(*logps, rtol=ulps, atol=max(ulps, 1e-3)):
        named = under_adapter(base)
        raise UserError(
            f"model: {type(named).__name__} says something else while it trains (log-probabilities are off by "
            f"{(logps[0] - logps[1]).abs().max():.2g}) than the reference that it is compared with, which does not "
            f"train; set train.keep_dropout to accept that."
        )


def _set_to_zero(thing: Any) -> None:
    for name, value in vars(thing).items():
        if RANDOM.search(name) and isinstance(value, float):
            vars(thing)[name] = 0.0
