"""Objectives on hidden states: misdirect them on the forget rows, anchor them on the retain rows."""

from functools import cache
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from expunge.objectives.base import Kept, Needs, Objective, Signals


class RMU(Objective):
    """Representation misdirection: ‖h_l − c·u‖², u a fixed random unit vector.

    Only decoder layers l−2..l train, of them all weights or those of `modules` ("mlp.down_proj" in the published code),
    and the forward stops at layer l when no other term needs the head. `reduction` is over the hidden size: the paper's
    norm is the `sum`, the published code takes the `mean`.
    Used with `Anchor` on the retain rows. Use when knowledge, rather than answers, should become unusable.
    Source: Li et al. 2024, arXiv 2403.03218, eqs. 1–3.
    """

    name: Literal["rmu"] = "rmu"
    layer: int = Field(default=7, ge=0, description="decoder layer whose hidden states are misdirected, from 0")
    coefficient: float = Field(default=6.5, gt=0, description="c, the length of the goal")
    vector_seed: int = Field(default=0, description="seed of the random direction u")
    reduction: Literal["sum", "mean"] = Field(
        default="sum", description="over the hidden size: the paper has the sum, the published code the mean"
    )
    modules: tuple[str, ...] = Field(
        default=(), description="names of the weights that train in layers l−2 to l; all of them without it"
    )

    @property
    def needs(self) -> Needs:
        return Needs(layer=self.layer)

    @property
    def own_retain(self) -> Objective:
        return Anchor(layer=self.layer, reduction=self.reduction)

    @property
    def parts(self) -> tuple[range, tuple[str, ...]]:
        return range(max(0, self.layer - 2), self.layer + 1), self.modules

    def direction(self, size: int, device: torch.device | str = "cpu") -> Tensor:
        """The fixed random unit vector u, [D]."""
        return _unit_vector(self.vector_seed, size, device)

    def loss(self, s: Signals) -> Tensor:
        target = self.coefficient * self.direction(s.layer_ND.shape[-1], s.layer_ND.device).to(s.layer_ND)
        return _squared(s.layer_ND - target, self.reduction)


class Anchor(Kept):
    """RMU's retain term, ‖h_l − h⁰_l‖²: hidden states on the retain rows stay the starting model's.

    Use with `rmu`, at the same layer and with the same `reduction`.
    Source: Li et al. 2024, arXiv 2403.03218, eq. 2; weight 1200 is its α.
    """

    name: Literal["anchor"] = "anchor"
    weight: float = Field(default=1200.0, ge=0, description="α of the paper")
    layer: int = Field(default=7, ge=0, description="decoder layer whose hidden states stay, from 0; that of `rmu`")
    reduction: Literal["sum", "mean"] = Field(default="sum", description="over the hidden size; that of `rmu`")

    @property
    def needs(self) -> Needs:
        return Needs(layer=self.layer, reference_layer=True)

    def loss(self, s: Signals) -> Tensor:
        return _squared(s.layer_ND - s.reference_layer_ND, self.reduction)


@cache
def _unit_vector(seed: int, size: int, device: torch.device | str) -> Tensor:
    u = torch.rand(size, generator=torch.Generator().manual_seed(seed))
    return (u / u.norm()).to(device)


def _squared(gap_ND: Tensor, reduction: Literal["sum", "mean"]) -> Tensor:
    square_ND = gap_ND.square()
    return square_ND.sum(-1) if reduction == "sum" else square_ND.mean(-1)
