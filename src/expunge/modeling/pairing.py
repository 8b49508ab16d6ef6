"""Runs the first layers of a decoder on pairs of rows: the model's own, and the same under a LoRA adapter.

The weights are read once for both.

Shapes: B rows, T positions, D hidden size; a pair's rows stand next to each other, the model's own first.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache

from expunge.modeling.assistant import decoder_layers_of
from expunge.modeling.causal import CausalLM


class PairedLayers:
    """Makes the first `layers` decoder layers of `model` run on pairs of rows while `running`.

    Before layer 0 every row is doubled, before layer `layers` the second of each pair is taken out again; masks and
    position embeddings are doubled alike. The LoRA adapter's output is zeroed on the base's rows. Cached keys and
    values of a pair lie in one row of twice the heads, so that the cache's rows are the batch's rows and every kind
    of cache, beam reordering and cropping work as they are.
    """

    def __init__(self, model: CausalLM, layers: int, adapter: str) -> None:
        self.layers = layers
        self.active = False
        self.rows = 0
        self.seen: dict[int, Any] = {}
        self.adapter = adapter
        self.base_BTD: Tensor | None = None
        self.assistant_BTD: Tensor | None = None
        for i, layer in enumerate(decoder_layers_of(model)[: layers + 1]):
            layer.register_forward_pre_hook(partial(self._before_layer, i), with_kwargs=True)
            for name, module in layer.named_modules() if i < layers else ():
                if name.endswith(f"lora_B.{adapter}"):
                    module.register_forward_hook(self._after_adapter)
                elif name.endswith("base_layer") and type(module) is nn.Linear:
                    module.forward = partial(linear_of_pair, module)  # pyright: ignore[reportAttributeAccessIssue]
                elif adapter in getattr(module, "lora_A", {}):
                    module.forward = partial(self._adapted, module, module.forward)

    @contextmanager
    def running(self, rows: int) -> Iterator[None]:
        self.active, self.rows = True, rows
        try:
            yield
        finally:
            self.active = False
            self.seen.clear()

    def _before_layer(self, index: int, _layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not self.active:
            return None
        hidden, *rest = args
        if index == self.layers:
            self.base_BTD, self.assistant_BTD = hidden[0::2], hidden[1::2]
            return (self.base_BTD, *rest), kwargs
        if index == 0:
            hidden = hidden.repeat_interleave(2, dim=0)
        return (hidden, *map(self._paired, rest)), {name: self._paired(x) for name, x in kwargs.items()}

    def _adapted(self, module: Any, forward: Callable[..., Tensor], x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The layer under its adapter, without gradients: the adapter's two products for its own rows alone.

        PEFT's own forward makes them for all rows and launches three times as many kernels, which is what a decoded
        token waits for on a GPU.
        """
        plain = self.active and not (args or kwargs or torch.is_grad_enabled() or module.training)
        if not (plain and module.active_adapters == [self.adapter] and not (module.disable_adapters or module.merged)):
            return forward(x, *args, **kwargs)
        first, second = module.lora_A[self.adapter], module.lora_B[self.adapter]
        if self.adapter in module.lora_variant or second.bias is not None or type(first) is not nn.Linear:
            return forward(x)
        y = module.base_layer(x)
        change = second.forward(first(x[1::2].to(first.weight.dtype)))
        y[1::2] += (change * module.scaling[self.adapter]).to(y.dtype)
        return y

    def _after_adapter(self, _module: nn.Module, _args: Any, output: Tensor) -> Tensor | None:
        if not self.active:
            return None
        is_assistant = torch.arange(output.shape[0], device=output.device) % 2
        return output * is_assistant.view(-1, *[1] * (output.dim() - 1)).to(output.dtype)

    def _paired(self, x: Any) -> Any:
        if isinstance(x, tuple):
            return tuple(map(self._paired, x))
        if isinstance(x, Cache):
            return self._once(x, lambda: PairedCache(x))
        if isinstance(x, Tensor) and x.dim() > 1 and x.shape[0] == self.rows:
            return self._once(x, lambda: x.repeat_interleave(2, dim=0))
        return x

    def _once(self, x: Any, make: Callable[[], Any]) -> Any:
        """The same result for all layers of one forward; `x` is kept so that its id stays its own."""
        if id(x) not in self.seen:
            self.seen[id(x)] = (x, make())
        return self.seen[id(x)][1]


class PairedCache:
    """A cache seen by paired layers: the two rows of a pair are one row of twice the heads."""

    def __init__(self, cache: Cache) -> None:
        self.cache = cache

    def update(self, keys: Tensor, values: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        rows, heads = keys.shape[:2]
        keys, values = (x.reshape(rows // 2, 2 * heads, *x.shape[2:]) for x in (keys, values))
        keys, values = self.cache.update(keys, values, layer_idx, *args, **kwargs)
        return keys.reshape(rows, heads, *keys.shape[2:]), values.reshape(rows, heads, *values.shape[2:])

    def __getattr__(self, name: str) -> Any:
        return getattr(self.cache, name)


def linear_of_pair(linear: nn.Linear, x: Tensor) -> Tensor:
    """`linear(x)`, for one pair of rows on a CPU as W·xᵀ: the same numbers, up to rounding.

    Two rows through x·Wᵀ cost a CPU 1.5 to 2.2 times one row, as W·xᵀ 0.5 to 1.5 times (16 layers of 1,024, MKL).
    """
    if x.shape[:-1].numel() != 2 or x.device.type != "cpu" or torch.is_grad_enabled():
        return type(linear).forward(linear, x)
    y = torch.mm(linear.weight, x.reshape(2, -1).t()).t().reshape(*x.shape[:-1], -1)
    return y if linear.bias is None else y + linear.bias
