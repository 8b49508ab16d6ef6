"""The head's part of a forward: which passes it makes over a batch's tokens, and what each gives.

The numbers themselves are `logprobs.py`'s.

Shapes: N supervised tokens laid end to end, C tokens of a chunk, D hidden size.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from expunge.data.pairs import Role
from expunge.modeling import logprobs
from expunge.modeling.logprobs import CHUNK, Chunk, Head
from expunge.objectives.base import Needs, ScoreName, Share, Signals
from expunge.training.layout import Layout
from expunge.training.reference import Reference, ReferenceSignals


@dataclass(frozen=True)
class AtHead:
    """Runs in the head's place: hidden states → what each role `needs` of the head, by the route with fewest passes."""

    layout: Layout
    needs: Mapping[Role, Needs]
    known: Mapping[Role, Signals]
    reference: Reference | None
    start: Mapping[Role, ReferenceSignals]
    shares: Mapping[Role, Share]

    def __call__(self, hidden_ND: Tensor, head: Head) -> dict[tuple[Role, str], Tensor]:
        """One pass over all tokens, gradients included, where the head trains and the loss is foreseen for every role.

        Else a pass over the tokens whose scores are wanted, and one for each role that is compared with the reference's
        distribution. The first saves a third of the head's work.
        """
        trains = head.linear is not None and head.linear.requires_grad and torch.is_grad_enabled()
        if trains and all(map(self._foreseen, self.needs)):
            return self._in_one_pass(hidden_ND, head)
        scored: list[tuple[Role, ScoreName]] = [
            (role, score) for role, needs in self.needs.items() for score in needs.scores
        ]
        results: dict[tuple[Role, str], Tensor] = {}
        if scored:
            hidden = torch.cat([hidden_ND[self.layout.tokens[role]] for role, _ in scored])
            target = torch.cat([self.layout.target_of(role) for role, _ in scored])
            sizes = [sum(self.layout.lengths[role]) for role, _ in scored]
            asked: list[tuple[ScoreName, int]] = [(score, size) for (_, score), size in zip(scored, sizes, strict=True)]
            numbers = logprobs.token_scores(hidden, target, head, asked).split(sizes)
            results = {(role, f"{score}_N"): x_N for (role, score), x_N in zip(scored, numbers, strict=True)}
        for role, needs in self.needs.items():
            if needs.divergence is not None:
                theirs, ours_ND = self._reference_of(role), hidden_ND[self.layout.tokens[role]]
                results[role, "divergence_N"] = logprobs.token_divergence(
                    ours_ND, head, *theirs, self.layout.target_of(role), needs.divergence
                )
        return results

    def _foreseen(self, role: Role) -> bool:
        """Whether the loss's gradient by a chunk's numbers is known as soon as these are."""
        if role not in self.shares or not self.needs[role].number:
            return False
        return self.shares[role].objective.per == "token" or max(self.layout.lengths[role]) <= CHUNK

    def _in_one_pass(self, hidden_ND: Tensor, head: Head) -> dict[tuple[Role, str], Tensor]:
        chunks: list[Chunk] = []
        end = 0
        for role, needs in self.needs.items():
            for tokens, sequences in self.layout.chunks(role, CHUNK):
                target_C = self.layout.target_of(role)[tokens]
                if needs.divergence is None:
                    measure = logprobs.score_of(needs.scores[0], target_C)
                else:
                    theirs_ND, their_head = self._reference_of(role)
                    measure = logprobs.divergence_from(theirs_ND[tokens], their_head, target_C, needs.divergence)
                gradient = partial(self.shares[role].gradient, self.known[role].part(tokens, sequences), needs.number)
                chunks.append(Chunk(slice(end, end + len(target_C)), measure, gradient))
                end += len(target_C)
        hidden = torch.cat([hidden_ND[self.layout.tokens[role]] for role in self.needs])
        numbers = logprobs.token_numbers(hidden, head, chunks).split([sum(self.layout.lengths[r]) for r in self.needs])
        return {(role, self.needs[role].number): x_N for role, x_N in zip(self.needs, numbers, strict=True)}

    def _reference_of(self, role: Role) -> tuple[Tensor, Head]:
        """The starting model's hidden states of the role's tokens, and the head that belongs to them."""
        hidden_ND = self.start[role].hidden_ND
        assert self.reference is not None and hidden_ND is not None
        return hidden_ND, self.reference.head_for(role)
