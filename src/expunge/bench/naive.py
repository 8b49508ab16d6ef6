"""The same losses as OpenUnlearning and its kin write them, for `bench` to measure against; an oracle for the tests.

A forward for each role and each model, with labels, so that the model's own loss is computed every time, wanted or not;
whole logits of every position in float32; and under KL the retain rows go through the model twice.

Shapes: B sequences, T positions, V vocabulary; labels [B, T] are −100 where nothing is supervised.
"""

from math import log
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from expunge.modeling.causal import CausalLM

Batch = dict[str, Tensor]
LossAndOutput = tuple[Tensor, Any]
"""A loss, and what the model said."""

Start = CausalLM | None
"""A frozen copy of the model before training, where the method compares with it."""


def loss(
    name: str, model: CausalLM, reference: Start, forget: Batch, retain: Batch | None, refusal: Batch | None
) -> Tensor:
    """The loss of method `name` (`npo+kl`), weight 1 and default options; `reference` is a frozen copy of the start."""
    first, _, second = name.partition("+")
    total, _kept = FORGET[first](model, reference, forget, refusal)  # outputs are returned with the loss, so they stay
    return total if retain is None or not second else total + RETAIN[second](model, reference, retain)


def _forward(model: CausalLM, batch: Batch) -> Any:
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}
    return model(**inputs, use_cache=False)


@torch.no_grad()
def _start(reference: Start, batch: Batch) -> Any:
    assert reference is not None
    return _forward(reference, batch)


def _shifted(outputs: Any, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Logits [B, T−1, V], the tokens that they predict (0 where none), and where there is one."""
    labels_BT = batch["labels"][:, 1:]
    return outputs.logits[:, :-1].float().contiguous(), labels_BT.clamp(min=0), labels_BT != -100


def _token_logps(outputs: Any, batch: Batch) -> tuple[Tensor, Tensor]:
    z_BTV, target_BT, mask_BT = _shifted(outputs, batch)
    return -F.cross_entropy(z_BTV.transpose(1, 2), target_BT, reduction="none") * mask_BT, mask_BT


def _mean(x_BT: Tensor, mask_BT: Tensor) -> Tensor:
    return (x_BT * mask_BT).sum() / mask_BT.sum()


def _log_ratio(model: CausalLM, reference: Start, batch: Batch) -> tuple[Tensor, Any]:
    outputs = _forward(model, batch)
    own_BT, _ = _token_logps(outputs, batch)
    start = _start(reference, batch)
    start_BT, _ = _token_logps(start, batch)
    return own_BT.sum(-1) - start_BT.sum(-1), outputs


def _ga(model: CausalLM, _reference: Start, batch: Batch, _refusal: Batch | None) -> LossAndOutput:
    outputs = _forward(model, batch)
    return -outputs.loss, outputs


def _wga(model: CausalLM, _reference: Start, batch: Batch, _refusal: Batch | None) -> LossAndOutput:
    outputs = _forward(model, batch)
    logp_BT, mask_BT = _token_logps(outputs, batch)
    return _mean(logp_BT.exp().detach() * logp_BT, mask_BT), outputs


def _npo(model: CausalLM, reference: Start, batch: Batch, _refusal: Batch | None, beta: float = 0.1) -> LossAndOutput:
    ratio_B, outputs = _log_ratio(model, reference, batch)
    return -2 / beta * F.logsigmoid(-beta * ratio_B).mean(), outputs


def _dpo(model: CausalLM, reference: Start, batch: Batch, refusal: Batch | None, beta: float = 0.1) -> LossAndOutput:
    assert refusal is not None
    won_B, won = _log_ratio(model, reference, refusal)
    lost_B, lost = _log_ratio(model, reference, batch)
    return -2 / beta * F.logsigmoid(beta * (won_B - lost_B)).mean(), (won, lost)


def _simnpo(
    model: CausalLM, _reference: Start, batch: Batch, _refusal: Batch | None, beta: float = 4.5
) -> LossAndOutput:
    outputs = _forward(model, batch)
    own_BT, mask_BT = _token_logps(outputs, batch)
    return -2 / beta * F.logsigmoid(-beta * own_BT.sum(-1) / mask_BT.sum(-1)).mean(), outputs


def _unilogit(model: CausalLM, _reference: Start, batch: Batch, _refusal: Batch | None) -> LossAndOutput:
    outputs = _forward(model, batch)
    z_BTV, target_BT, mask_BT = _shifted(outputs, batch)
    vocabulary = z_BTV.shape[-1]
    with torch.no_grad():
        index_BT1 = target_BT[..., None]
        rest_BT1 = z_BTV.scatter(-1, index_BT1, float("-inf")).logsumexp(-1, keepdim=True)
        soft_BTV = z_BTV.scatter(-1, index_BT1, rest_BT1 - log(vocabulary - 1)).log_softmax(-1)
    logp_BTV = z_BTV.log_softmax(-1)
    return _mean((logp_BTV.exp() * (logp_BTV - soft_BTV)).sum(-1), mask_BT), outputs


def _undial(
    model: CausalLM, reference: Start, batch: Batch, _refusal: Batch | None, beta: float = 10.0
) -> LossAndOutput:
    outputs = _forward(model, batch)
    z_BTV, target_BT, mask_BT = _shifted(outputs, batch)
    start_BTV, _, _ = _shifted(_start(reference, batch), batch)
    struck_BTV = torch.zeros_like(start_BTV).scatter(-1, target_BT[..., None], beta)
    soft_BTV = (start_BTV - struck_BTV).softmax(-1)
    return _mean(-(soft_BTV * z_BTV.log_softmax(-1)).sum(-1), mask_BT), outputs


def _jensen_shannon(p_BTV: Tensor, q_BTV: Tensor, mask_BT: Tensor) -> Tensor:
    """As JensUn's authors have it, but for their clamps: probabilities, their midpoint and its logarithm."""
    log_m_BTV = (0.5 * (p_BTV + q_BTV)).log()
    first_BT, second_BT = ((torch.xlogy(x, x) - x * log_m_BTV).sum(-1) for x in (p_BTV, q_BTV))
    return _mean(0.5 * (first_BT + second_BT), mask_BT)


def _jensun(model: CausalLM, _reference: Start, batch: Batch, _refusal: Batch | None) -> LossAndOutput:
    outputs = _forward(model, batch)
    z_BTV, wanted_BT, mask_BT = _shifted(outputs, batch)
    certain_BTV = torch.zeros_like(z_BTV).scatter(-1, wanted_BT[..., None], 1.0)
    return _jensen_shannon(certain_BTV, z_BTV.softmax(-1), mask_BT), outputs


def _pdu(model: CausalLM, _reference: Start, batch: Batch, _refusal: Batch | None) -> LossAndOutput:
    outputs = _forward(model, batch)
    z_BTV, _, mask_BT = _shifted(outputs, batch)
    return _mean((z_BTV.max(-1).values - z_BTV.mean(-1)).square(), mask_BT), outputs


def _jsd(model: CausalLM, reference: Start, batch: Batch) -> Tensor:
    start = _start(reference, batch)
    outputs = _forward(model, batch)
    start_BTV, own_BTV = (out.logits[:, :-1].float().softmax(-1) for out in (start, outputs))
    return _jensen_shannon(start_BTV, own_BTV, batch["labels"][:, 1:] != -100)


def _nll(model: CausalLM, _reference: Start, batch: Batch) -> Tensor:
    return _forward(model, batch).loss


def _kl(model: CausalLM, reference: Start, batch: Batch) -> Tensor:
    _replaced = _forward(model, batch)  # asked for its loss before the divergence is there instead, and kept until then
    start = _start(reference, batch)
    start_BTV = start.logits.float().log_softmax(-1)
    outputs = _forward(model, batch)
    own_BTV = outputs.logits.float().log_softmax(-1)
    kl_BT = F.kl_div(own_BTV, start_BTV, reduction="none", log_target=True).sum(-1)
    return _mean(kl_BT[:, :-1], batch["labels"][:, 1:] != -100)


FORGET = {
    "ga": _ga, "wga": _wga, "npo": _npo, "dpo": _dpo, "simnpo": _simnpo, "unilogit": _unilogit, "undial": _undial,
    "jensun": _jensun, "pdu": _pdu,
}  # fmt: skip
RETAIN = {"nll": _nll, "kl": _kl, "jsd": _jsd}
