"""Objectives that read nothing but the model's own log-probabilities, token by token.

Notation: ℓ = log p of the target token, p = exp ℓ.
"""

from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor
from torch.nn.functional import logsigmoid

from expunge.objectives.base import Kept, Needs, Objective, Signals


class GA(Objective):
    """Gradient ascent: raise the negative log-likelihood of the forget answers. Loss ℓ, unbounded below.

    Use as the baseline that shows collapse; hardly ever for a model that is to be used.
    Source: Jang et al. 2023, arXiv 2210.01504, eq. 2.
    """

    rate_factor: ClassVar[float] = 0.5

    name: Literal["ga"] = "ga"

    @property
    def needs(self) -> Needs:
        return Needs(logp=True)

    def loss(self, s: Signals) -> Tensor:
        return s.logp_N


class WGA(Objective):
    """Weighted gradient ascent: sg(p)^β · ℓ, so that tokens already forgotten are left alone.

    Use when GA's direction is wanted without its collapse. Source: Wang et al. 2025, arXiv 2502.19301.
    """

    name: Literal["wga"] = "wga"
    beta: float = Field(default=1.0, ge=0, description="power of p that weighs a token; 0 is `ga`")

    @property
    def needs(self) -> Needs:
        return Needs(log_odds=True)

    def loss(self, s: Signals) -> Tensor:
        logp = logsigmoid(s.log_odds_N)
        return (self.beta * logp.detach()).exp() * logp


class SatImp(Objective):
    """Saturation and importance: sg(p)^β1 · (1 − sg(p))^β2 · ℓ.

    Use when both the forgotten and the over-confident tokens should weigh less.
    Source: Yang et al. 2025, arXiv 2505.11953.
    """

    name: Literal["satimp"] = "satimp"
    beta1: float = Field(default=5.0, ge=0, description="power of p: how much tokens count that are known well")
    beta2: float = Field(default=1.0, ge=0, description="power of 1 − p: how much tokens count that are not known yet")

    @property
    def needs(self) -> Needs:
        return Needs(log_odds=True)

    def loss(self, s: Signals) -> Tensor:
        logp = logsigmoid(s.log_odds_N)
        log_rest = logsigmoid(-s.log_odds_N)  # log (1 − p)
        return (self.beta1 * logp + self.beta2 * log_rest).detach().exp() * logp


class CEU(Objective):
    """Cross-entropy unlearning: pull the model to its own distribution q with the target token removed.

    q_i = p_i / (1 − p) for i ≠ y, detached. CE(q, p) = H(q) − log(1 − p) and the entropy carries no gradient,
    so the loss is −log(1 − p): the same gradient, no [V] tensor. `skip_first` leaves out that many tokens at the start
    of each answer; the paper's experiments and the published code leave out one.
    Use when the rest of the distribution should keep its shape. Source: Yang 2025, arXiv 2503.01224.
    """

    name: Literal["ceu"] = "ceu"
    skip_first: int = Field(
        default=0,
        ge=0,
        description="tokens at the start of each answer that the loss leaves out; the published code has 1",
    )

    @property
    def needs(self) -> Needs:
        return Needs(log_odds=True)

    @property
    def skips(self) -> int:
        return self.skip_first

    def loss(self, s: Signals) -> Tensor:
        loss = -logsigmoid(-s.log_odds_N)  # −log (1 − p)
        return loss if not self.skip_first else loss * (s.place_N >= self.skip_first)


class NLL(Kept):
    """Negative log-likelihood on the retain rows ("GD", gradient descent, in the papers).

    Use as the default retain objective: it costs nothing beyond the forward.
    Source: Liu et al. 2022, arXiv 2203.12817 (gradient difference).
    """

    name: Literal["nll"] = "nll"
    alias: ClassVar[str] = "gd"

    @property
    def needs(self) -> Needs:
        return Needs(logp=True)

    def loss(self, s: Signals) -> Tensor:
        return -s.logp_N
