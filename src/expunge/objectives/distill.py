"""Objectives that pull the next-token distribution towards another one: a shifted copy of itself or of the start."""

from math import log, log1p
from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor
from torch.nn.functional import logsigmoid

from expunge.objectives.base import Divergence, Kept, Needs, Objective, Signals, Wanted


class Unilogit(Objective):
    """Uniform-target self-distillation: KL(p ‖ p̃), where p̃ is the model's own distribution with p̃_y = 1/V.

    p̃ keeps the other tokens' proportions, so only the split {y} against the rest differs, and exactly
        KL(p ‖ p̃) = p log(V p) + (1 − p) log((1 − p) V/(V − 1)),
    whose gradient is that of the definition with p̃ detached: no soft labels, no teacher, no [V] tensor.
    `direction="forward"` is KL(p̃ ‖ p). `min_surprisal` (nats) leaves tokens alone that are commoner than that in
    the training data, such as function words; they count as zero in the mean.

    Use when answers must become unpredictable and there is no strength to tune. The push fades as p → 1.
    Source: Vasilev et al. 2025, arXiv 2505.06027, eqs. 4–6; selection, there by predictive entropy:
    Koh et al. 2026, arXiv 2604.17785.
    """

    rate_factor: ClassVar[float] = 0.5

    name: Literal["unilogit"] = "unilogit"
    direction: Literal["reverse", "forward"] = Field(
        default="reverse", description="`reverse` is KL(p ‖ p̃), `forward` is KL(p̃ ‖ p)"
    )
    min_surprisal: float = Field(
        default=0.0, ge=0, description="nats; tokens that are commoner in the training data are left alone"
    )

    @property
    def needs(self) -> Needs:
        return Needs(log_odds=True, surprisal=self.min_surprisal > 0)

    def loss(self, s: Signals) -> Tensor:
        V = s.vocab_size
        logp, log_rest = logsigmoid(s.log_odds_N), logsigmoid(-s.log_odds_N)  # log p, log (1 − p)
        to_target = logp + log(V)  # log p/(1/V)
        to_rest = log_rest - log1p(-1 / V)  # log (1−p)/((V−1)/V)
        if self.direction == "reverse":
            # exp(log_rest), not 1 − p, which has no digits left near p = 1.
            kl = logp.exp() * to_target + log_rest.exp() * to_rest
        else:
            kl = -to_target / V - (1 - 1 / V) * to_rest
        return kl * (s.surprisal_N >= self.min_surprisal) if self.min_surprisal > 0 else kl


class UnDIAL(Objective):
    """Self-distillation from the starting model with the target's logit lowered by β: CE(softmax(z⁰ − β e_y), p).

    Use when a fixed, stable target is worth one look at the reference.
    Source: Dong et al. 2024, arXiv 2402.10052, eq. 4.
    """

    rate_factor: ClassVar[float] = 4.0

    name: Literal["undial"] = "undial"
    beta: float = Field(default=10.0, ge=0, description="by how much the target token's logit is lowered")

    @property
    def needs(self) -> Needs:
        return Needs(divergence=Divergence("cross_entropy", shift=self.beta))

    def loss(self, s: Signals) -> Tensor:
        return s.divergence_N


class JensUn(Objective):
    """JSD between the model and one that says `text` for certain, whatever part of the answer it has read.

    The target y at an answer's i-th position is the text's i-th token; the text begins again where it ends. Of the
    midpoint ½ (e_y + p) only p = p(y) counts, so that the divergence costs what cross-entropy does:
        JSD(e_y ‖ p) = log 2 + ½ [p log p − (1 + p) log(1 + p)], from 0 to log 2.
    Used with `JSD` on the retain rows.
    Use when forgetting must not overshoot: the loss is bounded, and at rest where the model says the text. The push
    fades where the text is very unlikely. Source: Singh et al. 2025, arXiv 2509.02820.
    """

    name: Literal["jensun"] = "jensun"
    text: str = Field(default="No idea", min_length=1, description="what the model should say in place of the answer")
    ends: bool = Field(
        default=False,
        description="end the answer after the text, and only then begin again; the paper repeats the text",
    )

    @property
    def needs(self) -> Needs:
        return Needs(logp=True)

    @property
    def wanted(self) -> Wanted:
        return Wanted(self.text, self.ends)

    @property
    def own_retain(self) -> Objective:
        return JSD()

    def loss(self, s: Signals) -> Tensor:
        p_N = s.logp_N.exp()
        return log(2) + (p_N * s.logp_N - (1 + p_N) * p_N.log1p()) / 2


class PDU(Objective):
    """Logit-margin flattening, (max z − mean z)²: 0 where every token is equally likely, and no softmax.

    The push does not fade where the model is certain, and the answer's own token has no part in it.
    Use with a retain term that has a `budget`, as the paper does: the loss is large, and the weight follows.
    Source: Entesari et al. 2025, arXiv 2506.05314.
    """

    name: Literal["pdu"] = "pdu"

    @property
    def needs(self) -> Needs:
        return Needs(margin=True)

    def loss(self, s: Signals) -> Tensor:
        return s.margin_N.square()


class JSD(Kept):
    """JensUn's retain term, JSD(p⁰ ‖ p): stay close to the starting model on the retain rows.

    Bounded by log 2 a token, where `kl` lets a few tokens that the model has lost outweigh the rest.
    Use with `jensun`. Source: Singh et al. 2025, arXiv 2509.02820.
    """

    name: Literal["jsd"] = "jsd"

    @property
    def needs(self) -> Needs:
        return Needs(divergence=Divergence("jensen_shannon"))

    def loss(self, s: Signals) -> Tensor:
        return s.divergence_N


class KL(Kept):
    """Stay close to the starting model on the retain rows.

    `forward` is KL(p⁰ ‖ p), as the published codes have it; `reverse` is KL(p ‖ p⁰), as the papers print it.
    Use when utility beyond the retain answers' exact words must be kept. Source: Maini et al. 2024, arXiv 2401.06121.
    """

    name: Literal["kl"] = "kl"
    direction: Literal["forward", "reverse"] = Field(
        default="forward", description="`forward` is KL(p⁰ ‖ p), `reverse` is KL(p ‖ p⁰)"
    )

    @property
    def needs(self) -> Needs:
        return Needs(divergence=Divergence(self.direction))

    def loss(self, s: Signals) -> Tensor:
        return s.divergence_N
