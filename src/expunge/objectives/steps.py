"""Steps on the weights: changes that are worked out once, with no loss to minimise and no optimizer.

Shapes: O outputs, I inputs of a matrix, n singular components.
"""

from abc import abstractmethod
from collections.abc import Mapping
from math import fsum, sqrt
from typing import ClassVar, Literal, Protocol

import torch
from pydantic import Field
from torch import Tensor

from expunge.objectives.base import Needs, Way
from expunge.objectives.distill import KL
from expunge.objectives.likelihood import GA
from expunge.system.options import Options


class Source(Protocol):
    """The weights and gradients that a step may ask for; `training/stepping.py` gives them."""

    def weights(self) -> Mapping[str, Tensor]:
        """The matrices that move, by name: those of the MLPs."""
        ...

    def gradients(self, *, rank: int, rate: float) -> Mapping[str, Tensor]:
        """The gradient of the forget rows' mean log-probability by each of these matrices, summed over one epoch.

        A LoRA of rank `rank`, trained before for an epoch of SGD at the learning rate `rate` to say the forget
        answers, is on while they are summed.
        """
        ...


class Step(Way):
    """A whole change of the weights, made in `epochs` equal parts; between them the model is measured and may stop."""

    alone: ClassVar[bool] = True

    epochs: int = Field(default=20, ge=1, description="equal parts of the change, after each of which is measured")

    @property
    def pace(self) -> dict[str, float]:
        return {"num_train_epochs": self.epochs}

    @property
    def needs(self) -> Needs:
        """The signals that a forward on the forget rows must give, as an objective's."""
        return self.objective.needs

    @property
    def objective(self) -> GA:
        """The objective whose gradients it is given."""
        return GA()

    @abstractmethod
    def changes(self, source: Source) -> dict[str, Tensor]:
        """The whole change of each weight that moves, by name."""


class RepSelect(Step):
    """Move the MLPs against the forget gradient, without the directions that it shares with everything else.

    G is the gradient of the forget rows' log-probability by an MLP matrix, summed over an epoch while a LoRA that was
    taught them (rank `rank`, SGD at `lora_rate`) is on. With G ≈ U S Vᵀ of `components` singular values, the part of
    each component is divided by S/S_min twice, through V and through U, which leaves all others as they are:
        G̃ = G − U (S − S_min²/S) Vᵀ,   W ← W − η G̃ in each epoch.
    η is such that all matrices together move by `distance` of their norm.
    Use when what was forgotten must stay forgotten under fine-tuning, with a utility budget to say how far to go.
    Source: Sondej et al. 2026, arXiv 2606.17168.
    """

    name: Literal["repselect"] = "repselect"
    distance: float = Field(default=0.3, gt=0, description="norm of the whole change, as a share of the weights' norm")
    components: int = Field(
        default=512, ge=1, description="singular components that are divided; of a small matrix at most half"
    )
    rank: int = Field(default=8, ge=1, description="rank of the LoRA that is taught the forget rows")
    lora_rate: float = Field(default=0.01, ge=0, description="its learning rate; 0 leaves the model as it is")

    def changes(self, source: Source) -> dict[str, Tensor]:
        gradients = source.gradients(rank=self.rank, rate=self.lora_rate)
        moves = {name: collapsed(G_OI, self.components) for name, G_OI in gradients.items()}
        eta = self.distance * norm(source.weights()) / norm(moves)
        return {name: -eta * move_OI for name, move_OI in moves.items()}


def collapsed(G_OI: Tensor, components: int) -> Tensor:
    """G − U (S − S_min²/S) Vᵀ over the first components of G, at most half of them."""
    G_OI = G_OI.to(torch.promote_types(G_OI.dtype, torch.float32))
    n = max(1, min(components, min(G_OI.shape) // 2))
    if 4 * n < min(G_OI.shape):  # much faster, and near enough
        U_On, S_n, V_In = torch.svd_lowrank(G_OI, q=n)
    else:
        U_OK, S_K, V_KI = torch.linalg.svd(G_OI, full_matrices=False)
        U_On, S_n, V_In = U_OK[:, :n], S_K[:n], V_KI[:n].mT
    return G_OI - (U_On * (S_n - S_n[-1].square() / S_n)) @ V_In.mT


def norm(tensors: Mapping[str, Tensor]) -> float:
    """The Euclidean norm of all numbers of all tensors."""
    return sqrt(fsum(float(x.detach().double().square().sum()) for x in tensors.values()))


class Noise(Options):
    """Shrink the unlearned weights, add noise, and distil the unlearned model back into them (UNDO).

    θ ← (1 − α) θ + α β N, with N uniform in ±√(6/(O + I)) for a matrix (Xavier's) and 0 for a vector; then KL from the
    unlearned model to the noised one, over forget and retain rows, is minimised for `epochs`. What lies in the weights
    without showing in these answers is not learnt again. Nor is what no row shows, so that the rows to keep must stand
    for all that the model should know.
    Use when what a method suppressed must not come back, and rows to keep are many.
    Source: Lee et al. 2025, arXiv 2506.06278, eqs. 1-2.
    """

    alpha: float = Field(default=0.25, gt=0, le=1, description="share of the weights that is lost")
    beta: float = Field(default=0.1, ge=0, le=1, description="noise in its place, as a share of fresh weights'")
    epochs: float = Field(default=8, gt=0, description="passes over forget and retain rows, to distil into the noise")
    learning_rate: float | None = Field(
        default=None, gt=0, description="peak of its schedule, a cosine; default by the model's width"
    )

    def noised(self, weight: Tensor, generator: torch.Generator) -> Tensor:
        """(1 − α) θ + α β N. The numbers are drawn on the CPU."""
        if weight.dim() < 2:
            return (1 - self.alpha) * weight
        fan_out, fan_in = weight.shape[0], weight[0].numel()
        drawn = torch.rand(weight.shape, generator=generator, dtype=weight.dtype)
        N = (2 * drawn - 1) * sqrt(6 / (fan_in + fan_out))
        return (1 - self.alpha) * weight + self.alpha * self.beta * N.to(weight.device)


class Distilled(KL):
    """KL(p_teacher ‖ p) on any rows. Use to distil a model into another one. Source: Hinton 2015, arXiv 1503.02531."""

    rate_factor: ClassVar[float] = 6.0

    name: Literal["distilled"] = "distilled"  # pyright: ignore[reportIncompatibleVariableOverride]
