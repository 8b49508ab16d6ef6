"""The forward that stops at the head: hidden states of the positions that predict a supervised token, and no others.

The oracle that the tests hold this against is `dense_logps`.

Shapes: B sequences, T positions, N supervised tokens laid end to end, D hidden size, V vocabulary.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten
from transformers import PreTrainedModel
from transformers.utils.generic import is_flash_attention_requested

from expunge.data.dialects import IGNORE
from expunge.errors import UserError
from expunge.modeling.logprobs import Head, token_logps
from expunge.system import ranks

R = TypeVar("R")


class _LayerReached(Exception):
    """Leaves a forward early, once the layer that was asked for has run."""


def supervised(labels_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Where supervised tokens are predicted, [B, T] bool, and the tokens themselves in row-major order, [N].

    Labels are aligned with the input ids; position t predicts the token at t + 1.
    """
    target_BT = torch.nn.functional.pad(labels_BT[:, 1:], (0, 1), value=IGNORE)
    predicts_BT = target_BT != IGNORE
    return predicts_BT, target_BT[predicts_BT]


def forward_supervised(
    model: nn.Module,
    input_ids_BT: Tensor,
    attention_mask: Tensor,
    predicts: Tensor | tuple[Tensor, Tensor],
    *,
    at_head: Callable[[Tensor, Head], R] | None = None,
    layer: int | None = None,
    position_ids_BT: Tensor | None = None,
    dense: bool = False,
) -> tuple[R | None, Tensor | None]:
    """One forward of `model` whose head sees only the hidden states of the positions that predict a supervised token.

    Those are `predicts`, [B, T] bool or two indices [N], of rows and positions in them. `attention_mask` is [B, T], or
    [B, 1, T, T] where rows are more than one sequence; `position_ids_BT` is for such rows. Attention that can be told
    where sequences end (flash attention) reads them end to end, without the padding.

    `at_head(hidden_ND, head)` runs in the head's place, inside the model's own forward, so that weights gathered for
    that forward and its backward (FSDP, ZeRO-3) are there; its result is returned first. The second result is the
    output of decoder layer `layer` at the same positions, [N, D]. Without `at_head` the forward ends at that layer.

    `dense` is for models whose head is not known (`agreement.Ways`): `at_head` runs after the model's forward and gets
    its own logits there, [N, V], with a head that returns what it is given.
    """
    base = ranks.inside(model)
    results: list[R] = []
    captured: list[Tensor] = []

    def find(hidden_BTD: Tensor) -> R:
        assert at_head is not None  # without it the forward has ended at the layer
        return at_head(hidden_BTD[predicts], Head.of(base))

    def capture(_module: nn.Module, _inputs: Any, output: Any) -> None:
        captured.append((output[0] if isinstance(output, tuple) else output)[predicts])
        if at_head is None:
            raise _LayerReached

    if _takes_lengths(base) and position_ids_BT is None:
        inputs, predicts = _end_to_end(input_ids_BT, attention_mask, predicts)
    else:
        positions = {} if position_ids_BT is None else {"position_ids": position_ids_BT}
        inputs = {"input_ids": input_ids_BT, "attention_mask": attention_mask, **positions}
    with ExitStack() as stack:
        if layer is not None:
            hook = decoder_layers(base)[layer].register_forward_hook(capture)
            stack.callback(hook.remove)
        if not dense:
            stack.enter_context(_head_replaced(base.get_output_embeddings(), find, results))
        stack.enter_context(suppress(_LayerReached))
        outputs = model(**inputs, use_cache=False)
        if dense and at_head is not None:
            logits_NV = outputs.logits[predicts]
            results.append(at_head(logits_NV, Head.identity(logits_NV.shape[-1])))
        assert results, "the model did not call its head"
    return (results[0] if results else None), (captured[0] if captured else None)


@contextmanager
def _head_replaced(module: nn.Module, find: Callable[[Tensor], R], results: list[R]) -> Iterator[None]:
    """`find(hidden_BTD)` runs where `module` would; what it finds is appended to `results`."""
    specs: list[TreeSpec] = []

    def in_its_place(hidden_BTD: Tensor) -> tuple[Any, ...]:
        leaves, spec = tree_flatten(find(hidden_BTD))
        specs.append(spec)
        return tuple(leaves)

    def take(_module: nn.Module, inputs: tuple[Tensor], leaves: tuple[Any, ...]) -> Tensor:
        # Taken last, after ZeRO-3 has tied its backward to the result; the model goes on with something like logits.
        results.append(tree_unflatten(list(leaves), specs[-1]))
        return inputs[0].new_zeros(*inputs[0].shape[:-1], 1)

    hook = module.register_forward_hook(take)
    replaced = vars(module).get("forward")  # accelerate keeps its hooks in such a forward
    module.forward = in_its_place
    try:
        yield
    finally:
        del module.forward  # the class's own forward shows again
        if replaced is not None:
            module.forward = replaced
        hook.remove()


def _takes_lengths(model: nn.Module) -> bool:
    """Whether attention alone connects tokens, and can be told where in a row one sequence ends and another begins."""
    parts = [part for part in model.modules() if isinstance(part, PreTrainedModel)]
    return bool(parts) and all(
        part._supports_flash_attn and not part._is_stateful and is_flash_attention_requested(part.config)
        for part in parts
    )


def _end_to_end(
    input_ids_BT: Tensor, attention_mask_BT: Tensor, predicts: Tensor | tuple[Tensor, Tensor]
) -> tuple[dict[str, Any], Tensor | tuple[Tensor, Tensor]]:
    """The sequences of a batch as one row [1, B·T less padding] with their own positions and ends; `predicts` in it."""
    reads_BT = attention_mask_BT.bool()
    ends = torch.nn.functional.pad(reads_BT.sum(-1).cumsum(0, dtype=torch.int32), (1, 0))
    longest = input_ids_BT.shape[1]  # an upper bound will do, and asking the device for the true one would wait for it
    inputs = {
        "input_ids": input_ids_BT[reads_BT][None],
        "position_ids": (reads_BT.cumsum(-1) - 1)[reads_BT][None],
        "attention_mask": None,
        "cu_seq_lens_q": ends,
        "cu_seq_lens_k": ends,
        "max_length_q": longest,
        "max_length_k": longest,
    }
    if isinstance(predicts, Tensor):
        return inputs, predicts[reads_BT][None]
    place_N = (reads_BT.flatten().cumsum(0) - 1).view_as(reads_BT)[predicts]
    return inputs, (torch.zeros_like(place_N), place_N)


def supervised_logps(
    model: nn.Module,
    input_ids_BT: Tensor,
    attention_mask_BT: Tensor,
    labels_BT: Tensor,
    *,
    at_head: Callable[[Tensor, Tensor, Head], Tensor] = token_logps,
) -> Tensor:
    """log p of every supervised token in row-major order, [N]; labels as in `transformers`, −100 = not supervised.

    `at_head` takes something else there, such as `token_statistics`.
    """
    predicts_BT, target_N = supervised(labels_BT)
    logp_N, _ = forward_supervised(
        model,
        input_ids_BT,
        attention_mask_BT,
        predicts_BT,
        at_head=lambda hidden_ND, head: at_head(hidden_ND, target_N, head),
    )
    assert logp_N is not None
    return logp_N


def dense_logps(model: nn.Module, input_ids_BT: Tensor, attention_mask_BT: Tensor, labels_BT: Tensor) -> Tensor:
    """The oracle for `supervised_logps`: the model's own [B, T, V] logits, and nothing clever."""
    predicts_BT, target_N = supervised(labels_BT)
    logits_BTV = model(input_ids=input_ids_BT, attention_mask=attention_mask_BT, use_cache=False).logits
    logits_NV = logits_BTV[predicts_BT]
    logits_NV = logits_NV if logits_NV.dtype == torch.float64 else logits_NV.float()
    return logits_NV.log_softmax(-1).gather(-1, target_N[:, None])[:, 0]


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    """The text decoder's layers, wherever the architecture keeps them; a vision tower's are never meant.

    Raises `UserError` for an architecture that keeps no list of layers.
    """
    base = ranks.inside(model)
    count = base.config.get_text_config().num_hidden_layers
    lists = (m for m in base.get_decoder().modules() if isinstance(m, nn.ModuleList) and len(m) == count)
    if (layers := next(lists, None)) is None:
        raise UserError(
            f"model: {type(base).__name__} keeps its {count} layers where they are not looked for; take a method that "
            f"names no layer."
        )
    return layers
