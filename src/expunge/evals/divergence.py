"""How far a next-token distribution is from the retrained model's, and the soft labels that methods aim at.

Shapes: `N` supervised tokens of the forget set laid end to end, `V` vocabulary.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from expunge.objectives import UnDIAL, Unilogit, Way


def kl(p_logp_NV: Tensor, q_logp_NV: Tensor) -> Tensor:
    """KL(p ‖ q) = Σ_v p_v (log p_v − log q_v) of every token, [N], nats; at least float32.

    Range [0, ∞]: 0 when they are equal, ∞ when p gives something to a token that q rules out.
    A token of which p is 0 counts nothing, also where q is 0.
    """
    assert p_logp_NV.shape == q_logp_NV.shape and p_logp_NV.ndim == 2, "two distributions for every token"
    dtype = torch.promote_types(torch.promote_types(p_logp_NV.dtype, q_logp_NV.dtype), torch.float32)
    p_logp_NV, q_logp_NV = p_logp_NV.to(dtype), q_logp_NV.to(dtype)
    terms_NV = p_logp_NV.exp() * (p_logp_NV - q_logp_NV)
    kl_N = terms_NV.masked_fill(p_logp_NV == -math.inf, 0.0).sum(-1)
    return kl_N.clamp(min=0)  # rounding alone can bring equal distributions below 0; NaN stays NaN


@dataclass(frozen=True)
class SoftLabels:
    """The distribution that a self-distilling method aims at.

    - `unilogit`: the model's own distribution as it is being unlearned, with the target's logit replaced by logsumexp
      of the others − log(V − 1), so that its probability is exactly 1/V and the others keep their proportions.
      Source: Vasilev et al. 2025, arXiv 2505.06027, eqs. 4-5.
    - `undial`: that of the model before unlearning, with the target's logit lowered by `beta`.
      Source: Dong et al. 2024, arXiv 2402.10052, eq. 4.
    """

    kind: Literal["unilogit", "undial"]
    beta: float = 10.0

    @classmethod
    def of(cls, forget: Way) -> "SoftLabels | None":
        """Those of a forget objective, if it has any."""
        match forget:
            case Unilogit():
                return cls("unilogit")
            case UnDIAL():
                return cls("undial", forget.beta)
        return None

    @property
    def moves(self) -> bool:
        """Whether the labels follow the model through its training."""
        return self.kind == "unilogit"

    def __call__(self, z_NV: Tensor, target_N: Tensor) -> Tensor:
        """Their log-probabilities [N, V] from the model's logits and the targets; at least float32."""
        z_NV = z_NV.to(torch.promote_types(z_NV.dtype, torch.float32))
        target_N1 = target_N[:, None]
        if self.kind == "undial":
            return z_NV.scatter_add(-1, target_N1, torch.full_like(z_NV[:, :1], -self.beta)).log_softmax(-1)
        V = z_NV.shape[-1]
        assert V > 1, "a uniform share needs another token to share with"
        others_N1 = z_NV.scatter(-1, target_N1, -math.inf).logsumexp(-1, keepdim=True)
        return z_NV.scatter(-1, target_N1, others_N1 - math.log(V - 1)).log_softmax(-1)
