"""Objectives on whole answers: sums of log-probabilities through a log-sigmoid."""

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor
from torch.nn.functional import logsigmoid

from expunge.objectives.base import Needs, Objective, Signals, WrongAnswers


class NPO(Objective):
    """Negative preference optimization: −(2/β) log σ(−β(ℓ − ℓ⁰)).

    Use when forgetting must level off by itself: its push fades as the answer falls below the starting model's.
    Source: Zhang et al. 2024, arXiv 2404.05868, eq. 3.
    """

    name: Literal["npo"] = "npo"
    per: ClassVar[Literal["token", "sequence"]] = "sequence"
    beta: float = Field(default=0.1, gt=0, description="inverse temperature; the push fades sooner when it is larger")

    @property
    def needs(self) -> Needs:
        return Needs(logp=True, reference_logp=True)

    def loss(self, s: Signals) -> Tensor:
        log_ratio = s.sequence_sum(s.logp_N - s.reference_logp_N)
        return -2 / self.beta * logsigmoid(-self.beta * log_ratio)


class DPO(Objective):
    """Direct preference optimization towards a refusal: −(2/β) log σ(β[(ℓ_idk − ℓ⁰_idk) − (ℓ − ℓ⁰)]).

    Use when the model should say that it does not know. Needs refusals.
    Source: Rafailov et al. 2023, arXiv 2305.18290, eq. 7; factor 2/β as in Zhang et al. 2024.
    """

    name: Literal["dpo"] = "dpo"
    per: ClassVar[Literal["token", "sequence"]] = "sequence"
    beta: float = Field(default=0.1, gt=0, description="inverse temperature; the push fades sooner when it is larger")

    @property
    def needs(self) -> Needs:
        return Needs(logp=True, reference_logp=True, refusal=True)

    def loss(self, s: Signals) -> Tensor:
        wins = s.refusal.sequence_sum(s.refusal.logp_N - s.refusal.reference_logp_N)
        loses = s.sequence_sum(s.logp_N - s.reference_logp_N)
        return -2 / self.beta * logsigmoid(self.beta * (wins - loses))


class AltPO(DPO):
    """DPO towards another answer that is as plausible as the right one, in place of a refusal.

    Use when the answer to a forgotten question should read like any other. Needs wrong answers (`perturbations`).
    Source: Mekala et al. 2024, arXiv 2409.13474, eq. 2; their alternate answers are sampled from the model itself.
    """

    variants: ClassVar[Mapping[str, int]] = {"perturbations": 1}
    wrong_answers: ClassVar[WrongAnswers] = "preferred"

    name: Literal["altpo"] = "altpo"  # pyright: ignore[reportIncompatibleVariableOverride]


class SimNPO(Objective):
    """NPO without a reference, normalised by length: −(2/β) log σ(−(β/T) ℓ − γ).

    Use when no reference can be afforded. Source: Fan et al. 2024, arXiv 2410.07163, eq. 4.
    """

    name: Literal["simnpo"] = "simnpo"
    per: ClassVar[Literal["token", "sequence"]] = "sequence"
    beta: float = Field(default=4.5, gt=0, description="inverse temperature of the mean log-probability of an answer")
    gamma: float = Field(default=0.0, ge=0, description="margin; β times that of the published code")

    @property
    def needs(self) -> Needs:
        return Needs(logp=True)

    def loss(self, s: Signals) -> Tensor:
        mean_logp = s.sequence_sum(s.logp_N) / s.sequence_length()
        return -2 / self.beta * logsigmoid(-self.beta * mean_logp - self.gamma)
