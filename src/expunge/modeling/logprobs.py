"""Per-token signals from (hidden state, output head, target) without ever holding [B, T, V] logits.

Shapes: B sequences, T positions, N supervised tokens laid end to end, C tokens of a chunk, D hidden size, V vocabulary.
"""

import math
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from expunge.objectives.base import Divergence, ScoreName
from expunge.system import ranks

CHUNK = 256
"""Tokens whose logits are held at once. torch's own choice for CPU is 5 to 11 times slower."""
BLOCK = 2_048
"""Tokens of the vocabulary whose logits a frozen head holds at once on a CPU: as many as its caches hold."""


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
        base = ranks.inside(model)
        head: nn.Module = module if module is not None else base.get_output_embeddings()
        config = base.config.get_text_config()
        linear = head.weight if type(head) is nn.Linear and head.bias is None else None
        scale = 1.0
        if getattr(config, "logits_scaling", None):  # Granite divides
            scale = 1 / config.logits_scaling
        elif getattr(config, "logit_scale", None):  # Cohere multiplies
            scale = config.logit_scale
        return cls(
            forward=partial(type(head).forward, head),  # the class's own: see `forward_supervised`
            vocab_size=vocabulary_size(base),
            linear=linear,
            softcap=getattr(config, "final_logit_softcapping", None),
            scale=scale,
        )

    @classmethod
    def at_start(cls, model: nn.Module) -> "Head":
        """The head as it is now, safe from training: the module under an adapter, itself if frozen, else a copy."""
        module = ranks.inside(model).get_output_embeddings()
        under_adapter = getattr(module, "base_layer", None) or getattr(module, "original_module", None)
        if under_adapter is not None:
            return cls.of(model, under_adapter)
        if any(p.requires_grad for p in module.parameters()):
            module = deepcopy(module).requires_grad_(False)
        return cls.of(model, module)

    @classmethod
    def identity(cls, vocab_size: int) -> "Head":
        """A head without weights, for logits that stand where hidden states do."""
        return cls(forward=torch.clone, vocab_size=vocab_size)

    def to(self, device: torch.device) -> "Head":
        """The head of a model on `device`: itself where its weights are there already, else a copy."""
        if self.forward is torch.clone:
            return self
        assert isinstance(self.forward, partial), "made by `of` or `at_start`"
        (module,) = self.forward.args
        if all(p.device == device for p in module.parameters()):
            return self
        module = deepcopy(module).to(device)
        linear = None if self.linear is None else module.weight
        return replace(self, forward=partial(type(module).forward, module), linear=linear)

    def part(self, tokens: slice) -> "Head":
        """The head of these tokens of the vocabulary alone, where it is linear."""
        assert self.linear is not None
        weight = self.linear[tokens]
        return replace(self, forward=partial(F.linear, weight=weight), vocab_size=len(weight), linear=weight)

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


NumberAndGradient = Callable[[Tensor, Workspace], tuple[Tensor, Tensor]]
"""Logits of a chunk [C, V] → a number for each of its tokens [C], and its gradient by the logits [C, V].

A measure overwrites the logits and the workspace. The logits may lie at the workspace's place 0, and so may the
gradient.
"""


@dataclass(frozen=True)
class Chunk:
    """Tokens whose logits are held together, at most `CHUNK` of them.

    `gradient(number_C)` is the loss's gradient with respect to these numbers [C], up to a factor that is the same for
    every chunk that goes through the head with this one; `None` where it depends on the rest of the loss.
    """

    own: slice
    measure: NumberAndGradient
    gradient: Callable[[Tensor], Tensor] | None = None


def vocabulary_size(model: nn.Module) -> int:
    """V, the rows of the output head, also where its weights are spread over ranks."""
    weight: Any = ranks.inside(model).get_output_embeddings().weight
    return getattr(weight, "ds_shape", weight.shape)[0]  # ZeRO-3 leaves an empty tensor behind


def token_numbers(hidden_ND: Tensor, head: Head, chunks: Sequence[Chunk]) -> Tensor:
    """The results of the chunks' `measure` at a linear head, [N]; the chunks are all the tokens, in their order.

    The gradients are taken while the logits are there, so the backward need not recompute them: a third less work in
    the head. If the head is trained, every chunk must have its `gradient`; where the loss turns out to be another one,
    the result is the same.
    """
    return _LinearTokens.apply(hidden_ND, head.linear, head, chunks)


def token_logps(hidden_ND: Tensor, target_N: Tensor, head: Head) -> Tensor:
    """log p of each target, [N]. Equivalent to `log_softmax(head(hidden))[range(N), target]`."""
    return token_scores(hidden_ND, target_N, head, [("logp", len(target_N))])


def token_scores(hidden_ND: Tensor, target_N: Tensor, head: Head, asked: Sequence[tuple[ScoreName, int]]) -> Tensor:
    """The score of each token, [N]; `asked` says which score of how many tokens, in their order.

    With logits z and target y, `logp` is z_y − logsumexp(z), `log_odds` is z_y − logsumexp of the other logits,
    `uniform_ce` is logsumexp(z) − mean(z), and `margin` is max(z) − mean(z). The log-odds, log p/(1 − p), keep every
    digit of p and of 1 − p that the logits determine; log p in float32 keeps none of a 1 − p below 1e-7.
    """
    frozen = head.linear is not None and not (torch.is_grad_enabled() and head.linear.requires_grad)
    if frozen and head.softcap is None:
        return _FrozenScores.apply(hidden_ND, target_N, head, asked)
    if frozen and torch.is_grad_enabled():
        measured = [
            Chunk(slice(part.start + first, part.stop + first), score_of(score, target_N[first : first + size][part]))
            for score, first, size in _spans(asked)
            for part in _chunks(size)
        ]
        return token_numbers(hidden_ND, head, measured)
    parts = [
        _scores(score, hidden_ND[first : first + size], target_N[first : first + size], head)
        for score, first, size in _spans(asked)
    ]
    return torch.cat(parts)


def _spans(asked: Sequence[tuple[ScoreName, int]]) -> list[tuple[ScoreName, int, int]]:
    """(score, first token, number of tokens) of the longest runs of tokens with one score."""
    spans: list[tuple[ScoreName, int, int]] = []
    end = 0
    for score, size in asked:
        if spans and spans[-1][0] == score:
            spans[-1] = (score, spans[-1][1], spans[-1][2] + size)
        else:
            spans.append((score, end, size))
        end += size
    return spans


def _scores(score: ScoreName, hidden_ND: Tensor, target_N: Tensor, head: Head) -> Tensor:
    """`token_scores` of one score for heads that are trained, or are no plain matrix."""
    if score == "logp" and not torch.is_grad_enabled():
        return _of_logps(lambda logp_CV, target_C1, _: logp_CV.gather(-1, target_C1)[:, 0], hidden_ND, target_N, head)
    if (
        score == "logp"
        and head.linear is not None
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
        z_CV, target_C1 = head.logits(hidden_CD), target_C[:, None]
        if score == "logp":
            return -F.cross_entropy(z_CV, target_C, reduction="none")
        if score == "uniform_ce":
            return z_CV.logsumexp(-1) - z_CV.mean(-1)
        if score == "margin":
            return z_CV.max(-1).values - z_CV.mean(-1)
        z_C1 = z_CV.gather(-1, target_C1)
        return z_C1[:, 0] - z_CV.scatter_(-1, target_C1, -torch.inf).logsumexp(-1)  # in place: they are newly made

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
    """The results of `find` for a chunk's log-probabilities [C, V] and targets [C, 1], [N, …], without gradients."""
    workspace, parts = Workspace(head.vocab_size, hidden_ND), []
    for part in _chunks(len(target_N)):
        rows = len(target_N[part])
        z_CV = head.logits(hidden_ND[part], workspace.at(0, rows))
        parts.append(find(torch.log_softmax(z_CV, -1, out=workspace.at(1, rows)), target_N[part, None], workspace))
    return torch.cat(parts)


def token_divergence(
    hidden_ND: Tensor, head: Head, reference_ND: Tensor, reference_head: Head, target_N: Tensor, divergence: Divergence
) -> Tensor:
    """The divergence between the model's and the reference's next-token distribution, [N].

    Gradient flows to `hidden_ND` and `head` only. See `objectives.base.Divergence` for the kinds.
    """

    def chunk(hidden_CD: Tensor, reference_CD: Tensor, target_C: Tensor) -> Tensor:
        logq_CV = _reference_logits(reference_CD, reference_head, target_C, divergence).log_softmax(-1)
        logp_CV = head.logits(hidden_CD).log_softmax(-1)
        if divergence.kind == "cross_entropy":
            return -(logq_CV.exp() * logp_CV).sum(-1)
        if divergence.kind == "jensen_shannon":
            logm_CV = torch.logaddexp(logp_CV, logq_CV) - math.log(2)
            jsd_C = (logp_CV.exp() * (logp_CV - logm_CV) + logq_CV.exp() * (logq_CV - logm_CV)).sum(-1) / 2
            return jsd_C + (-jsd_C).clamp(min=0).detach()
        ours, theirs = (logp_CV, logq_CV) if divergence.kind == "reverse" else (logq_CV, logp_CV)
        kl_C = (ours.exp() * (ours - theirs)).sum(-1)
        return kl_C + (-kl_C).clamp(min=0).detach()  # rounding alone can bring equal distributions below 0

    if head.linear is None or not torch.is_grad_enabled():
        return _by_chunks(chunk, hidden_ND, reference_ND, target_N)
    chunks = [
        Chunk(part, divergence_from(reference_ND[part], reference_head, target_N[part], divergence), torch.ones_like)
        for part in _chunks(len(target_N))
    ]
    return token_numbers(hidden_ND, head, chunks)


def score_of(score: ScoreName, target_C: Tensor) -> NumberAndGradient:
    """The `measure` of a chunk that `token_scores` takes. It needs no tensor [C, V] but the logits."""

    def measure(z_CV: Tensor, _workspace: Workspace) -> tuple[Tensor, Tensor]:
        target_C1 = target_C[:, None]
        if score == "uniform_ce":
            mean_C1 = z_CV.mean(-1, keepdim=True)
            top_C1, log_total_C1 = _softmax(z_CV, out=z_CV)
            return (top_C1 - mean_C1 + log_total_C1)[:, 0], z_CV.sub_(1 / z_CV.shape[-1])
        if score == "margin":
            top_C1, largest_C1 = z_CV.max(-1, keepdim=True)
            margin_C = (top_C1 - z_CV.mean(-1, keepdim=True))[:, 0]
            return margin_C, z_CV.fill_(-1 / z_CV.shape[-1]).scatter_add_(-1, largest_C1, torch.ones_like(top_C1))
        z_C1 = z_CV.gather(-1, target_C1)
        if score == "log_odds":
            z_CV.scatter_(-1, target_C1, -torch.inf)  # leaves the target out of the softmax
        top_C1, log_total_C1 = _softmax(z_CV, out=z_CV)
        grad_CV = z_CV.neg_().scatter_add_(-1, target_C1, torch.ones_like(z_C1))
        return (z_C1 - top_C1 - log_total_C1)[:, 0], grad_CV

    return measure


def divergence_from(
    reference_CD: Tensor, reference_head: Head, target_C: Tensor, divergence: Divergence
) -> NumberAndGradient:
    """The `measure` of a chunk that `token_divergence` takes. It holds three tensors [C, V] at most, four for
    `jensen_shannon`.

    With z and y the two's logits, KL(q ‖ p) = Σ q (y − z) − logsumexp(y) + logsumexp(z), and likewise for the others:
    no log-probabilities are made, only probabilities.
    """
    reference_CD = reference_CD.detach()

    def measure(z_CV: Tensor, workspace: Workspace) -> tuple[Tensor, Tensor]:
        y_CV = _reference_logits(reference_CD, reference_head, target_C, divergence, workspace.at(1, len(z_CV)))
        p_CV = workspace.at(2, len(z_CV))
        z_top_C1, z_total_C1 = _softmax(z_CV, out=p_CV)
        if divergence.kind == "reverse":
            gap_CV = z_CV.sub_(y_CV)
            y_top_C1, y_total_C1 = _softmax(y_CV, out=y_CV)
            mean_C1 = torch.mul(p_CV, gap_CV, out=y_CV).sum(-1, keepdim=True)
            # Difference by difference: a logsumexp, rounded as a whole, would lose what the totals differ by.
            value_C1 = mean_C1 - (z_top_C1 - y_top_C1) - (z_total_C1 - y_total_C1)
            return value_C1[:, 0].clamp_(min=0), gap_CV.sub_(mean_C1).mul_(p_CV)
        if divergence.kind == "jensen_shannon":
            _softmax(y_CV, out=y_CV)
            return _jensen_shannon(p_CV, y_CV, workspace.at(3, len(z_CV)), out=z_CV)
        gap_CV = torch.sub(y_CV, z_CV, out=z_CV) if divergence.kind == "forward" else z_CV.neg_()
        (y_top_C1, y_total_C1), q_CV = _softmax(y_CV, out=y_CV), y_CV
        value_C1 = gap_CV.mul_(q_CV).sum(-1, keepdim=True)
        if divergence.kind == "cross_entropy":
            return (value_C1 + z_top_C1 + z_total_C1)[:, 0], p_CV.sub_(q_CV)
        value_C1 = value_C1 - (y_top_C1 - z_top_C1) - (y_total_C1 - z_total_C1)
        return value_C1[:, 0].clamp_(min=0), p_CV.sub_(q_CV)

    return measure


def _jensen_shannon(p_CV: Tensor, q_CV: Tensor, term_CV: Tensor, *, out: Tensor) -> tuple[Tensor, Tensor]:
    """JSD(q ‖ p) of each token [C] and its gradient by p's logits [C, V], which is written to `out`.

    Each term of the sum over V is at least 0 by itself, so that near equal distributions nothing cancels.
    """
    eps = torch.finfo(p_CV.dtype).eps
    total_CV = torch.add(p_CV, q_CV, out=out).clamp_(min=torch.finfo(p_CV.dtype).tiny)
    theirs_CV = torch.div(q_CV, total_CV, out=out).mul_(2).clamp_(min=eps)  # q/m
    torch.log(theirs_CV, out=term_CV).mul_(q_CV)
    log_CV = theirs_CV.neg_().add_(2).clamp_(min=eps).log_()  # log p/m
    value_C = term_CV.addcmul_(p_CV, log_CV).sum(-1).div_(2)
    mean_C1 = torch.mul(p_CV, log_CV, out=term_CV).sum(-1, keepdim=True)
    return value_C.clamp_(min=0), log_CV.sub_(mean_C1).mul_(p_CV).div_(2)


def _softmax(z_CV: Tensor, *, out: Tensor) -> tuple[Tensor, Tensor]:
    """Write the softmax to `out`, which may be the logits themselves; largest logit and log Σ exp(z − largest), [C, 1].

    Their sum is the logsumexp. Apart, each keeps its own digits.
    """
    top_C1 = z_CV.amax(-1, keepdim=True)
    if out is not z_CV or z_CV.device.type == "cpu":  # there in one pass, which reads a row before it writes it
        torch.softmax(z_CV, -1, out=out)
        return top_C1, -out.amax(-1, keepdim=True).log()
    total_C1 = out.sub_(top_C1).exp_().sum(-1, keepdim=True)
    out.div_(total_C1)
    return top_C1, total_C1.log()


@torch.no_grad()
def _reference_logits(
    reference_CD: Tensor, head: Head, target_C: Tensor, divergence: Divergence, out: Tensor | None = None
) -> Tensor:
    """The reference's logits as the divergence wants them, [C, V]."""
    y_CV = head.logits(reference_CD, out)
    if divergence.shift:
        y_CV[torch.arange(len(target_C), device=target_C.device), target_C] -= divergence.shift
    return y_CV.div_(divergence.temperature) if divergence.temperature != 1 else y_CV


class _FrozenScores(torch.autograd.Function):
    """`token_scores` of a linear head that is not trained, all tokens at once and a block of the vocabulary at a time.

    As in attention, with the head's rows for keys and values: a score is ±(own − logsumexp(z)), with the target's logit
    or the mean logit for `own`, and its gradient by the hidden state is the target's row, or the mean row, less the
    rows' mean by their softmax, both kept up from block to block (Rabe & Staats 2021, arXiv 2112.05682). For log-odds
    the target takes no part in the logsumexp; a margin has the largest logit, and its row, in the logsumexp's place.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, target_N: Tensor, head: Head, asked: Sequence[tuple[ScoreName, int]]
    ) -> Tensor:
        assert head.linear is not None
        count, wide = len(target_N), torch.promote_types(hidden_ND.dtype, torch.float32)
        block = BLOCK if hidden_ND.device.type == "cpu" else max(BLOCK, CHUNK * head.vocab_size // max(1, count))
        own_N1 = hidden_ND.new_zeros(count, 1, dtype=wide)
        top_N1, total_N1 = own_N1.new_full((count, 1), -torch.inf), own_N1.new_zeros(count, 1)
        sum_ND = own_N1.new_zeros(hidden_ND.shape) if ctx.needs_input_grad[0] else None
        spans = _spans(asked)
        margins = [slice(start, start + size) for score, start, size in spans if score == "margin"]
        largest_N1 = target_N[:, None].clone()  # the likeliest token, where margins are asked for
        workspace = Workspace(min(block, head.vocab_size), hidden_ND)
        for first in range(0, head.vocab_size, block):
            part = head.part(slice(first, first + block))
            z_NV = part.logits(hidden_ND, workspace.at(0, count)[:, : part.vocab_size])
            at_N1 = target_N[:, None] - first
            here_N1 = (at_N1 >= 0) & (at_N1 < part.vocab_size)
            at_N1 = at_N1.clamp(0, part.vocab_size - 1)
            z_N1 = z_NV.gather(-1, at_N1)
            own_N1 = torch.where(here_N1, z_N1, own_N1)
            for score, start, size in spans:
                if score == "log_odds":
                    rows = slice(start, start + size)
                    left_C1 = z_N1[rows].masked_fill(here_N1[rows], -torch.inf)
                    z_NV[rows].scatter_(-1, at_N1[rows], left_C1)
            for rows in margins:
                z_C1, at_C1 = z_NV[rows].max(-1, keepdim=True)
                largest_N1[rows] = torch.where(z_C1 > top_N1[rows], at_C1 + first, largest_N1[rows])
            higher_N1 = torch.maximum(top_N1, z_NV.amax(-1, keepdim=True))
            shrink_N1 = (top_N1 - higher_N1).exp_()
            total_N1 = total_N1.mul_(shrink_N1).add_(z_NV.sub_(higher_N1).exp_().sum(-1, keepdim=True))
            if sum_ND is not None:
                sum_ND.mul_(shrink_N1).add_(z_NV.to(head.linear.dtype) @ head.linear[first : first + block])
            top_N1 = higher_N1
        uniform = [slice(start, start + size) for score, start, size in spans if score == "uniform_ce"]
        mean_D = head.linear.mean(0, dtype=wide) if uniform or margins else own_N1.new_zeros(())
        for rows in (*uniform, *margins):
            # No matrix product, which autocast would round.
            own_N1[rows] = head.scale * (hidden_ND[rows].to(wide) * mean_D).sum(-1, keepdim=True)
        for rows in margins:
            total_N1[rows] = 1.0
        score_N = (own_N1 - top_N1 - total_N1.log())[:, 0]
        if sum_ND is not None:
            for rows in margins:
                sum_ND[rows] = head.linear[largest_N1[rows, 0]].to(wide)
            grad_hidden_ND = head.linear[target_N].to(wide)
            for rows in (*uniform, *margins):
                grad_hidden_ND[rows] = mean_D
            grad_hidden_ND.sub_(sum_ND.div_(total_N1)).mul_(head.scale)
            for rows in (*uniform, *margins):
                grad_hidden_ND[rows].neg_()
            ctx.save_for_backward(grad_hidden_ND.to(hidden_ND.dtype))
        for rows in (*uniform, *margins):
            score_N[rows].neg_()
        return score_N

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (grad_N,), (grad_hidden_ND,) = grads, ctx.saved_tensors
        return grad_hidden_ND * grad_N[:, None].to(grad_hidden_ND.dtype), None, None, None


class _LinearTokens(torch.autograd.Function):
    """`token_numbers`: the gradient of the hidden states is that of any loss, by the closed form of the gradients.

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
        (grad_N,) = grads
        hidden_ND, weight_VD, d_hidden_ND, d_weight_VD, foreseen_N = ctx.saved_tensors
        if d_weight_VD is not None and len(grad_N):
            largest = foreseen_N.abs().argmax()
            factor = grad_N[largest] / foreseen_N[largest]  # a ratio of sums of squares would underflow
            off = (grad_N - factor * foreseen_N).abs().max()
            ulps = 64 * torch.finfo(grad_N.dtype).eps
            if bool(off <= ulps * grad_N.abs().max()):
                d_weight_VD.mul_(factor.to(d_weight_VD.dtype))  # in place: it may be the largest tensor there is
            else:
                known = [
                    replace(chunk, gradient=lambda _number_C, part=chunk.own: grad_N[part]) for chunk in ctx.chunks
                ]
                _, _, d_weight_VD, _ = _go_through(hidden_ND, weight_VD, ctx.head, known, trains=True)
        return d_hidden_ND * grad_N[:, None].to(d_hidden_ND.dtype), d_weight_VD, None, None


def _go_through(
    hidden_ND: Tensor, weight_VD: Tensor, head: Head, chunks: Sequence[Chunk], *, trains: bool
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Numbers [N] and their gradients with respect to their own hidden states [N, D]. Where the head `trains`, also its
    gradient [V, D] for the chunks' gradients, and these gradients [N]."""
    numbers, seen, d_hidden_ND = [], [], torch.empty_like(hidden_ND)
    workspace = Workspace(len(weight_VD), hidden_ND)
    d_weight_VD = torch.zeros_like(weight_VD) if trains else None
    for chunk in chunks:
        hidden_CD = hidden_ND[chunk.own]
        z_CV = head.logits(hidden_CD, workspace.at(0, len(hidden_CD)))
        capped_CV = None if head.softcap is None else 1 - (z_CV / head.softcap).square()  # tanh's own gradient
        number_C, grad_CV = chunk.measure(z_CV, workspace)
        if capped_CV is not None:
            grad_CV = grad_CV.mul_(capped_CV)
        numbers.append(number_C)
        grad_CV = (grad_CV * head.scale if head.scale != 1.0 else grad_CV).to(weight_VD.dtype)
        d_hidden_ND[chunk.own] = grad_CV @ weight_VD
        if d_weight_VD is not None:
            assert chunk.gradient is not None  # see `token_numbers`
            seen.append(chunk.gradient(number_C))
            # Under autocast the hidden state may be of another dtype than the weight.
            weighted_CD = hidden_CD.to(weight_VD.dtype) * seen[-1][:, None].to(weight_VD.dtype)
            d_weight_VD.addmm_(grad_CV.T, weighted_CD)
    return torch.cat(numbers), d_hidden_ND, d_weight_VD, torch.cat(seen) if seen else None


def _chunks(tokens: int) -> list[slice]:
    """`CHUNK` tokens at a time; one empty chunk of none."""
    return [slice(i, min(i + CHUNK, tokens)) for i in range(0, max(1, tokens), CHUNK)]


def _by_chunks(fn: Callable[..., Tensor], *columns: Tensor) -> Tensor:
    """Apply `fn` to `CHUNK` rows at a time; the backward recomputes the logits instead of keeping them."""
    if not torch.is_grad_enabled():
        return torch.cat([fn(*(c[i : i + CHUNK] for c in columns)) for i in range(0, max(1, len(columns[0])), CHUNK)])
    parts = []
    for i in range(0, max(1, len(columns[0])), CHUNK):
        parts.append(checkpoint(fn, *(c[i : i + CHUNK] for c in columns), use_reentrant=False))
    return torch.cat(parts)
