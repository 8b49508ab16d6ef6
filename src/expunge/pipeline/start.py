"""The check that every method starts from the model that was measured as the target.

Compares two models' log-probabilities of a few rows.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from expunge.data.benchmark import Row
from expunge.data.encode import encode
from expunge.errors import UserError
from expunge.modeling.causal import CausalLM
from expunge.modeling.forward import dense_logps

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Start:
    """The evaluated target's numbers for a few forget rows: every method must start from a model with the same."""

    sequences: list[list[int]]
    logps: list[Tensor]
    eps: float

    @classmethod
    def of(cls, model: CausalLM, tokenizer: "PreTrainedTokenizerBase", rows: Sequence[Row]) -> "Start":
        sequences = [list(encode(row, tokenizer).input_ids[:128]) for row in rows[:4]]
        return cls(sequences, _token_logps(model, sequences), torch.finfo(model.dtype).eps)

    def check(self, model: CausalLM, method: str, *, exact: bool = True) -> None:
        """Raise `UserError` unless `model` gives the rows the same log-probabilities, up to rounding.

        Without `exact` (weights held in 4 bits) the difference is logged.
        """
        logps = _token_logps(model, self.sequences)
        off = (torch.cat(logps) - torch.cat(self.logps)).abs().mean().item()
        if not exact:
            log.info("%s: 4 bits a weight move the target's log-probabilities by %.2g nats a token", method, off)
        elif not off <= max(1e-3, 16 * max(self.eps, torch.finfo(model.dtype).eps)):
            raise UserError(
                f"{method}: training would start from another model than the target that was measured (the "
                f"log-probabilities of the forget rows differ by {off:.2g} nats a token); give a target that is one "
                f"plain checkpoint."
            )


@torch.no_grad()
def _token_logps(model: CausalLM, sequences: list[list[int]]) -> list[Tensor]:
    """Log p of every token but the first of each sequence, by the model's plain forward, on the CPU."""
    training, device = model.training, next(model.parameters()).device
    model.eval()
    logps: list[Tensor] = []
    for sequence in sequences:
        ids_BT = torch.tensor([sequence], device=device)
        logps.append(dense_logps(model, ids_BT, torch.ones_like(ids_BT), ids_BT).cpu())
    model.train(training)
    return logps
