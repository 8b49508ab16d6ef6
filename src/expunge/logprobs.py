"""Per-token signals from (hidden state, output head, target) without ever holding [B, T, V] logits.

Knows the shape of a Hugging Face causal LM (decoder layers, then one output head); knows nothing of objectives,
references or batches' roles. The dense oracle that the tests hold this against is `dense_logps`.

Shapes: B sequences, T positions, N supervised tokens laid end to end, C tokens of a chunk, D hidden size, V vocabulary.
"""

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from accelerate.utils import extract_model_from_parallel
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from expunge.errors import UserError
from expunge.objectives.base import Divergence

IGNORE = -100
CHUNK = 256
"""Tokens whose logits are held at once. torch's own choice for CPU is 5 to 11 times slower."""

R = TypeVar("R")


class _LayerReached(Exception):
    """Leaves a forward early, once the layer that was asked for has run."""


@dataclass
class Head:
    """The output head with what the model does to its logits afterwards.

    `forward` maps [C, D] to raw logits [C, V], newly made at every call; `linear` is set when it is a plain matrix
    product by that weight.
    """

    forward: Callable[[Tensor], Tensor]
    vocab_size: int
    linear: Tensor | None = None
    softcap: float | None = None
    scale: float = 1.0

    @classmethod
    def of(cls, model: nn.Module, module: nn.Module | None = None) -> "Head":
        """The head of `model`, or `module` in its place with the same treatment of the logits."""
        base = extract_model_from_parallel(model)
        module = module if module is not None else base.get_output_embeddings()
        config = base.config.get_text_config()
        linear = module.weight if type(module) is nn.Linear and module.bias is None else None
        scale = 1.0
        if getattr(config, "logits_scaling", None):  # Granite divides
            scale = 1 / config.logits_scaling
        elif getattr(config, "logit_scale", None):  # Cohere multiplies
            scale = config.logit_scale
        return cls(
            forward=partial(type(module).forward, module),  # the class's own: see `forward_supervised`
            vocab_size=vocabulary_size(base),
            linear=linear,
            softcap=getattr(config, "final_logit_softcapping", None),
            scale=scale,
        )

    @classmethod
    def at_start(cls, model: nn.Module) -> "Head":
        """The head as it is now, safe from training: the module under an adapter, itself if frozen, else a copy."""
        module = extract_model_from_parallel(model).get_output_embeddings()
        under_adapter = getattr(module, "base_layer", None) or getattr(module, "original_module", None)
        if under_adapter is not None:
            return cls.of(model, under_adapter)
        if any(p.requires_grad for p in module.parameters()):
            module = deepcopy(module).requires_grad_(False)
        return cls.of(model, module)

    def to(self, device: torch.device) -> "Head":
        """The head of a model on `device`: itself where its weights are there already, else a copy."""
        assert isinstance(self.forward, partial), "made by `of` or `at_start`"
        (module,) = self.forward.args
        if all(p.device == device for p in module.parameters()):
            return self
        module = deepcopy(module).to(device)
        linear = None if self.linear is None else module.weight
        return replace(self, forward=partial(type(module).forward, module), linear=linear)

    def logits(self, hidden_CD: Tensor, out: Tensor | None = None) -> Tensor:
        """Logits in float32 (float64 stays), as the model itself would give them, [C, V].

        With `out`, of that shape and dtype, nothing else of this size is made, unless they are scaled or capped.
        """
        if out is None:
            z = self.forward(hidden_CD)
            z = z.float() if z.dtype in (torch.bfloat16, torch.float16) else z
        elif (
            self.linear is not None
            and self.linear.dtype == hidden_CD.dtype == out.dtype
            and not torch.is_autocast_enabled(hidden_CD.device.type)
        ):
            z = torch.mm(hidden_CD, self.linear.T, out=out)
        else:
            z = out.copy_(self.forward(hidden_CD))
        z = z * self.scale if self.scale != 1.0 else z
        return z if self.softcap is None else torch.tanh(z / self.softcap) * self.softcap


class Workspace:
    """Tensors [C, V] in float32 (float64 stays) that every chunk writes to again.

    Fresh memory costs a CPU more than what is written there.
    """

    def __init__(self, vocab_size: int, like: Tensor) -> None:
        self._new = partial(torch.empty, dtype=torch.promote_types(like.dtype, torch.float32), device=like.device)
        self._vocab_size = vocab_size
        self._held: dict[int, Tensor] = {}

    def at(self, i: int, rows: int) -> Tensor:
        """The `i`-th, [rows, V], with what was last written there."""
        if i not in self._held or len(self._held[i]) < rows:
            self._held[i] = self._new(rows, self._vocab_size)
        return self._held[i][:rows]


Measure = Callable[[Tensor, Workspace], tuple[Tensor, Tensor]]
"""Logits of a chunk [C, V] → a number for each of its tokens [C], and its slope by the logits [C, V].

Both the logits and the workspace, at whose place 0 the logits may lie, are written over; the slope may lie there.
"""


@dataclass(frozen=True)
class Chunk:
    """Tokens whose logits are held together, at most `CHUNK` of them.

    `slope(number_C)` is the loss's slope by these numbers [C], up to a factor that is the same for every chunk that
    goes through the head with this one; `None` where it can't be said before the loss is there.
    """

    own: slice
    measure: Measure
    slope: Callable[[Tensor], Tensor] | None = None


def vocabulary_size(model: nn.Module) -> int:
    """V, the rows of the output head, also where its weights are spread over ranks."""
    weight: Any = extract_model_from_parallel(model).get_output_embeddings().weight
    return getattr(weight, "ds_shape", weight.shape)[0]  # ZeRO-3 leaves an empty tensor behind


def token_numbers(hidden_ND: Tensor, head: Head, chunks: Sequence[Chunk]) -> Tensor:
    """What the chunks' `measure` say at a linear head, [N]; the chunks are all the tokens, in their order.

    The gradients are taken while the logits are there, instead of making them again in the backward: a third less work
    in the head. If the head is trained, every chunk must have its `slope`; where the loss turns out to be another one,
    the result is the same.
    """
    return _LinearTokens.apply(hidden_ND, head.linear, head, chunks)


def token_logps(hidden_ND: Tensor, target_N: Tensor, head: Head) -> Tensor:
    """log p of each target, [N]. Equivalent to `log_softmax(head(hidden))[range(N), target]`."""
    if not torch.is_grad_enabled():
        return _of_logps(lambda logp_CV, target_C1, _: logp_CV.gather(-1, target_C1)[:, 0], hidden_ND, target_N, head)
    if head.linear is not None and not head.linear.requires_grad:
        return token_numbers(hidden_ND, head, [Chunk(own, logp_of(target_N[own])) for own in _chunks(len(target_N))])
    if (
        head.linear is not None
        and head.softcap is None
        and head.scale == 1.0
        and hidden_ND.dtype == head.linear.dtype
        and hidden_ND.dtype in (torch.float32, torch.float64)
        and hasattr(F, "linear_cross_entropy")
        and len(target_N)
    ):
        options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=CHUNK, chunking_method=None)
        return -F.linear_cross_entropy(hidden_ND, head.linear, target_N, reduction="none", options=options)

    def chunk(hidden_CD: Tensor, target_C: Tensor) -> Tensor:
        return -F.cross_entropy(head.logits(hidden_CD), target_C, reduction="none")

    return _by_chunks(chunk, hidden_ND, target_N)


def token_statistics(hidden_ND: Tensor, target_N: Tensor, head: Head) -> Tensor:
    """[N, 4]: log p of each target, whether it is the likeliest token, and mean and deviation of log p under p.

    No gradient flows through them.
    """

    def find(logp_CV: Tensor, target_C1: Tensor, workspace: Workspace) -> Tensor:
        p_CV = torch.exp(logp_CV, out=workspace.at(0, len(logp_CV)))
        logp_C1 = logp_CV.gather(-1, target_C1)
        hit_C1 = (logp_CV.argmax(-1, keepdim=True) == target_C1).to(logp_C1)
        mean_C1 = torch.mul(p_CV, logp_CV, out=workspace.at(2, len(logp_CV))).sum(-1, keepdim=True)
        variance_C1 = logp_CV.sub_(mean_C1).square_().mul_(p_CV).sum(-1, keepdim=True)
        return torch.cat([logp_C1, hit_C1, mean_C1, variance_C1.sqrt()], -1)

    return _of_logps(find, hidden_ND, target_N, head)


@torch.no_grad()
def _of_logps(
    find: Callable[[Tensor, Tensor, Workspace], Tensor], hidden_ND: Tensor, target_N: Tensor, head: Head
) -> Tensor:
    """What `find` makes of a chunk's log-probabilities [C, V] and targets [C, 1], [N, …], without gradients."""
    workspace, found = Workspace(head.vocab_size, hidden_ND), []
    for own in _chunks(len(target_N)):
        rows = len(target_N[own])
        z_CV = head.logits(hidden_ND[own], workspace.at(0, rows))
        found.append(find(torch.log_softmax(z_CV, -1, out=workspace.at(1, rows)), target_N[own, None], workspace))
    return torch.cat(found)


def uniform_cross_entropy(hidden_ND: Tensor, target_N: Tensor, logp_N: Tensor, head: Head) -> Tensor:
    """Cross-entropy from the uniform distribution to the model's, −mean_v log p_v = logsumexp(z) − mean(z), nats, [N].

    A linear head needs no logits for it: the mean logit is h·w̄ by the mean row of the head, and the logsumexp is
    z_y − log p_y for the target's own logit and `logp_N`, its log-probability as `token_logps` gives it.
    """
    if head.linear is not None and head.softcap is None:
        target_logit_N = (hidden_ND * head.linear[target_N]).sum(-1)
        mean_logit_N = hidden_ND @ head.linear.mean(0)
        return head.scale * (target_logit_N - mean_logit_N).to(logp_N.dtype) - logp_N

    def chunk(hidden_CD: Tensor) -> Tensor:
        z_CV = head.logits(hidden_CD)
        return z_CV.logsumexp(-1) - z_CV.mean(-1)

    return _by_chunks(chunk, hidden_ND)


def token_divergence(
    hidden_ND: Tensor, head: Head, reference_ND: Tensor, reference_head: Head, target_N: Tensor, divergence: Divergence
) -> Tensor:
    """The divergence between the model's and the reference's next-token distribution, [N].

    Gradient flows to `hidden_ND` and `head` only. See `objectives.base.Divergence` for the kinds.
    """

    def chunk(hidden_CD: Tensor, reference_CD: Tensor, target_C: Tensor) -> Tensor:
        logq_CV = _reference_logps(reference_CD, reference_head, target_C, divergence)
        logp_CV = head.logits(hidden_CD).log_softmax(-1)
        if divergence.kind == "reverse":
            return (logp_CV.exp() * (logp_CV - logq_CV)).sum(-1)
        return (logq_CV.exp() * ((logq_CV if divergence.kind == "forward" else 0) - logp_CV)).sum(-1)

    if head.linear is None or not torch.is_grad_enabled():
        return _by_chunks(chunk, hidden_ND, reference_ND, target_N)
    chunks = [
        Chunk(own, divergence_from(reference_ND[own], reference_head, target_N[own], divergence), torch.ones_like)
        for own in _chunks(len(target_N))
    ]
    return token_numbers(hidden_ND, head, chunks)


def logp_of(target_C: Tensor) -> Measure:
    """The `measure` of a chunk that `token_logps` takes. It needs no tensor [C, V] but the logits."""

    def measure(z_CV: Tensor, _workspace: Workspace) -> tuple[Tensor, Tensor]:
        target_C1 = target_C[:, None]
        z_CV.sub_(z_CV.amax(-1, keepdim=True))
        z_C1 = z_CV.gather(-1, target_C1)
        sum_C1 = z_CV.exp_().sum(-1, keepdim=True)
        slope_CV = z_CV.mul_(-1 / sum_C1)
        return (z_C1 - sum_C1.log())[:, 0], slope_CV.scatter_add_(-1, target_C1, torch.ones_like(sum_C1))

    return measure


def divergence_from(reference_CD: Tensor, reference_head: Head, target_C: Tensor, divergence: Divergence) -> Measure:
    """The `measure` of a chunk that `token_divergence` takes. It holds three tensors [C, V] at most."""
    reference_CD = reference_CD.detach()

    def measure(z_CV: Tensor, workspace: Workspace) -> tuple[Tensor, Tensor]:
        first_CV, second_CV, third_CV = (workspace.at(i, len(z_CV)) for i in range(3))
        logp_CV = torch.log_softmax(z_CV, -1, out=second_CV)
        logq_CV = _reference_logps(reference_CD, reference_head, target_C, divergence, first_CV, third_CV)
        if divergence.kind == "reverse":
            p_CV, change_CV = torch.exp(logp_CV, out=first_CV), logp_CV.sub_(logq_CV)
            value_C = torch.mul(p_CV, change_CV, out=third_CV).sum(-1)
            return value_C, change_CV.sub_(value_C[:, None]).mul_(p_CV)
        q_CV = torch.exp(logq_CV, out=first_CV)
        gap_CV = logq_CV.sub_(logp_CV) if divergence.kind == "forward" else torch.neg(logp_CV, out=third_CV)
        return gap_CV.mul_(q_CV).sum(-1), logp_CV.exp_().sub_(q_CV)

    return measure


@torch.no_grad()
def _reference_logps(
    reference_CD: Tensor, head: Head, target_C: Tensor, divergence: Divergence,
    logits_at: Tensor | None = None, out: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """log q of every token as the divergence wants it of the reference, [C, V]."""
    z_CV = head.logits(reference_CD, logits_at)
    if divergence.shift:
        z_CV[torch.arange(len(target_C), device=target_C.device), target_C] -= divergence.shift
    z_CV = z_CV.div_(divergence.temperature) if divergence.temperature != 1 else z_CV
    return torch.log_softmax(z_CV, -1, out=out)


class _LinearTokens(torch.autograd.Function):
    """`token_numbers`: the gradient of the hidden states is that of any loss, by the closed form of the slopes.

    The gradient of the head is taken for the loss that is foreseen; for any other all chunks are gone through again.
    """

    @staticmethod
    def forward(ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, head: Head, chunks: Sequence[Chunk]) -> Tensor:
        ctx.head, ctx.chunks = head, chunks
        number_N, *gradients = _go_through(hidden_ND, weight_VD, head, chunks, trains=ctx.needs_input_grad[1])
        ctx.save_for_backward(hidden_ND, weight_VD, *gradients)
        return number_N

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (slope_N,) = grads
        hidden_ND, weight_VD, d_hidden_ND, d_weight_VD, foreseen_N = ctx.saved_tensors
        if d_weight_VD is not None and len(slope_N):
            factor = slope_N.dot(foreseen_N) / foreseen_N.dot(foreseen_N)
            off = (slope_N - factor * foreseen_N).abs().max()
            ulps = 64 * torch.finfo(slope_N.dtype).eps
            if bool(off <= ulps * slope_N.abs().max()):
                d_weight_VD.mul_(factor.to(d_weight_VD.dtype))  # in place: it may be the largest tensor there is
            else:
                known = [replace(chunk, slope=lambda _number_C, own=chunk.own: slope_N[own]) for chunk in ctx.chunks]
                _, _, d_weight_VD, _ = _go_through(hidden_ND, weight_VD, ctx.head, known, trains=True)
        return d_hidden_ND * slope_N[:, None].to(d_hidden_ND.dtype), d_weight_VD, None, None


def _go_through(
    hidden_ND: Tensor, weight_VD: Tensor, head: Head, chunks: Sequence[Chunk], *, trains: bool
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Numbers [N], their gradients by their own hidden states [N, D], and where the head `trains` its gradient by the
    chunks' slopes, [V, D], and these slopes, [N]."""
    numbers, seen, d_hidden_ND = [], [], torch.empty_like(hidden_ND)
    workspace = Workspace(len(weight_VD), hidden_ND)
    d_weight_VD = torch.zeros_like(weight_VD) if trains else None
    for chunk in chunks:
        hidden_CD = hidden_ND[chunk.own]
        z_CV = head.logits(hidden_CD, workspace.at(0, len(hidden_CD)))
        capped_CV = None if head.softcap is None else 1 - (z_CV / head.softcap).square()  # tanh's own slope
        number_C, slope_CV = chunk.measure(z_CV, workspace)
        if capped_CV is not None:
            slope_CV = slope_CV.mul_(capped_CV)
        numbers.append(number_C)
        slope_CV = (slope_CV * head.scale if head.scale != 1.0 else slope_CV).to(weight_VD.dtype)
        d_hidden_ND[chunk.own] = slope_CV @ weight_VD
        if d_weight_VD is not None:
            assert chunk.slope is not None  # see `token_numbers`
            seen.append(chunk.slope(number_C))
            # Under autocast the hidden state may be of another dtype than the weight.
            weighted_CD = hidden_CD.to(weight_VD.dtype) * seen[-1][:, None].to(weight_VD.dtype)
            d_weight_VD.addmm_(slope_CV.T, weighted_CD)
    return torch.cat(numbers), d_hidden_ND, d_weight_VD, torch.cat(seen) if seen else None


def _chunks(tokens: int) -> list[slice]:
    """`CHUNK` tokens at a time; one empty chunk of none."""
    return [slice(i, min(i + CHUNK, tokens)) for i in range(0, max(1, tokens), CHUNK)]


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
) -> tuple[R | None, Tensor | None]:
    """One forward of `model` whose head sees only the hidden states of the positions that predict a supervised token.

    Those are `predicts`, [B, T] bool or two indices [N], of rows and positions in them. `attention_mask` is [B, T], or
    [B, 1, T, T] where rows are more than one sequence; `position_ids_BT` is for such rows.

    `at_head(hidden_ND, head)` runs in the head's place, inside the model's own forward, so that weights gathered for
    that forward (FSDP) are there; its result is returned first. The second result is the output of decoder layer
    `layer` at the same positions, [N, D]. Without `at_head` the forward ends at that layer.
    """
    base = extract_model_from_parallel(model)
    module = base.get_output_embeddings()
    results: list[R] = []
    captured: list[Tensor] = []

    def in_place_of_head(hidden_BTD: Tensor) -> Tensor:
        assert at_head is not None  # without it the forward has ended at the layer
        results.append(at_head(hidden_BTD[predicts], Head.of(base)))
        return hidden_BTD.new_zeros(*hidden_BTD.shape[:-1], 1)

    def capture(_module: nn.Module, _inputs: Any, output: Any) -> None:
        captured.append((output[0] if isinstance(output, tuple) else output)[predicts])
        if at_head is None:
            raise _LayerReached

    hook = decoder_layers(base)[layer].register_forward_hook(capture) if layer is not None else None
    own = vars(module).get("forward")  # accelerate keeps its hooks in such a forward
    module.forward = in_place_of_head
    try:
        positions = {} if position_ids_BT is None else {"position_ids": position_ids_BT}
        model(input_ids=input_ids_BT, attention_mask=attention_mask, use_cache=False, **positions)
    except _LayerReached:
        pass
    finally:
        del module.forward  # the class's own forward shows again
        if own is not None:
            module.forward = own
        if hook is not None:
            hook.remove()
    return (results[0] if results else None), (captured[0] if captured else None)


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


def check_head(model: nn.Module) -> None:
    """Raise `UserError` if the model treats its logits in a way that `Head` does not know.

    Two forwards of four tokens, one through `Head`, one through the model's own head, must agree to 8 units in the last
    place of the model's dtype (0.001 in float32): the model itself may round what it does to its logits.
    """
    base, training = extract_model_from_parallel(model), model.training
    ids_BT = torch.arange(4, device=next(model.parameters()).device)[None]
    model.eval()
    with torch.no_grad():
        fast_N, dense_N = (fn(model, ids_BT, torch.ones_like(ids_BT), ids_BT) for fn in (supervised_logps, dense_logps))
    model.train(training)
    ulps = 8 * torch.finfo(base.dtype).eps
    if not torch.allclose(fast_N, dense_N, rtol=ulps, atol=max(ulps, 1e-3)):
        named = base.get_base_model() if hasattr(base, "get_base_model") else base  # under an adapter
        raise UserError(
            f"model: {type(named).__name__} does something to its logits that expunge does not know (log-probabilities "
            f"would be off by {(fast_N - dense_N).abs().max():.2g}); use a model that at most scales or soft-caps them."
        )


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    """The decoder's layers, wherever the architecture keeps them."""
    base = extract_model_from_parallel(model)
    count = base.config.get_text_config().num_hidden_layers
    return next(m for m in base.modules() if isinstance(m, nn.ModuleList) and len(m) == count)


def _by_chunks(fn: Callable[..., Tensor], *columns: Tensor) -> Tensor:
    """Apply `fn` to `CHUNK` rows at a time; logits are made again in the backward instead of being kept."""
    if not torch.is_grad_enabled():
        return torch.cat([fn(*(c[i : i + CHUNK] for c in columns)) for i in range(0, max(1, len(columns[0])), CHUNK)])
    parts = []
    for i in range(0, max(1, len(columns[0])), CHUNK):
        parts.append(checkpoint(fn, *(c[i : i + CHUNK] for c in columns), use_reentrant=False))
    return torch.cat(parts)
