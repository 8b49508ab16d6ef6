"""One forward of the model and one look at the reference → the signals of every role in the batch.

Read from `gather_signals` downwards. Knows which signals are asked for and how the head gives them with the fewest
passes; knows nothing of what objectives make of them.

Shapes: B sequences, T positions, N supervised tokens laid end to end, C tokens of a chunk, D hidden size, V vocabulary.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from expunge.data.pairs import Role
from expunge.modeling import logprobs
from expunge.modeling.agreement import ways_of
from expunge.modeling.forward import forward_supervised
from expunge.modeling.logprobs import CHUNK, Chunk, Head
from expunge.objectives.base import Needs, Objective, Signals
from expunge.training.layout import Layout
from expunge.training.reference import Reference, ReferenceSignals


@dataclass(frozen=True)
class Share:
    """What one role's signals add to the loss: the objective's weight times their term of it."""

    objective: Objective
    count: Tensor | float
    """Of the tokens or sequences that the term is a mean over."""

    def term(self, signals: Signals) -> Tensor:
        return self.objective.loss(signals).sum() / self.count

    def slope(self, known: Signals, name: str, number_C: Tensor) -> Tensor:
        """The loss's gradient by a chunk's numbers: the signal `name`, beside those that are `known`."""
        with torch.enable_grad():
            number_C = number_C.detach().requires_grad_()
            term = self.term(replace(known, **{name: number_C}))
        return self.objective.weight * torch.autograd.grad(term, number_C)[0]


def needs_by_role(objective: Objective | None, retain: Objective | None) -> dict[Role, Needs]:
    """What is asked of each role's sequences: the forget objective's needs, of refusals too where it has them."""
    forget = objective.needs if objective is not None else Needs()
    return {
        Role.FORGET: forget,
        Role.REFUSAL: forget if forget.refusal else Needs(),
        Role.RETAIN: retain.needs if retain is not None else Needs(),
    }


def gather_signals(
    model: nn.Module,
    batch: Mapping[str, Tensor],
    needs: Mapping[Role, Needs],
    reference: Reference | None,
    surprisal_V: Tensor | None,
    shares: Mapping[Role, Share] | None = None,
) -> dict[Role, Signals]:
    """The signals of each role that has sequences in `batch`, computing what `needs` asks for and nothing else.

    `shares` say what the loss will make of the signals, which can save a pass through the head (`AtHead`).
    Where no role needs the head, the forward ends at the wanted layer.
    """
    layout, ways = Layout.of(batch), ways_of(model)
    start = reference(dict(batch)) if reference is not None else {}
    everything = Signals(ways.vocab_size, layout.sequence_N, len(batch["labels"]), layout.place_N)
    if surprisal_V is not None:
        everything.surprisal_N = surprisal_V.to(layout.target_N.device)[layout.target_N]
    signals = {role: everything.part(own, layout.sequences[role]) for role, own in layout.tokens.items()}
    for role, own in start.items():
        signals[role].reference_logp_N, signals[role].reference_layer_ND = own.logp_N, own.layer_ND
    asked = {role: needs[role] for role in signals if needs[role].head}
    found, layer_ND = forward_supervised(
        model,
        batch["input_ids"],
        batch["attention_mask"],
        layout.predicts_BT,
        at_head=AtHead(layout, asked, signals, reference, start, shares or {}) if asked else None,
        layer=next((needs[role].layer for role in signals if needs[role].layer is not None), None),
        dense=ways.dense,
    )
    for (role, name), x_N in (found or {}).items():
        setattr(signals[role], name, x_N)
    for role, own in layout.tokens.items():
        signals[role].layer_ND = layer_ND[own] if layer_ND is not None else None
    if Role.REFUSAL in signals:
        signals[Role.FORGET].refusal = signals[Role.REFUSAL]
    return signals


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
        scored = [(role, score) for role, needs in self.needs.items() for score in needs.scores]
        found: dict[tuple[Role, str], Tensor] = {}
        if scored:
            hidden = torch.cat([hidden_ND[self.layout.tokens[role]] for role, _ in scored])
            target = torch.cat([self.layout.target_of(role) for role, _ in scored])
            sizes = [sum(self.layout.lengths[role]) for role, _ in scored]
            asked = [(score, size) for (_, score), size in zip(scored, sizes, strict=True)]
            numbers = logprobs.token_scores(hidden, target, head, asked).split(sizes)
            found = {(role, f"{score}_N"): x_N for (role, score), x_N in zip(scored, numbers, strict=True)}
        for role, needs in self.needs.items():
            if needs.divergence is not None:
                theirs, own = self._reference_of(role), hidden_ND[self.layout.tokens[role]]
                found[role, "divergence_N"] = logprobs.token_divergence(
                    own, head, *theirs, self.layout.target_of(role), needs.divergence
                )
        return found

    def _foreseen(self, role: Role) -> bool:
        """Whether the loss's gradient by a chunk's numbers is known as soon as these are."""
        if role not in self.shares or not self.needs[role].number:
            return False
        return self.shares[role].objective.per == "token" or max(self.layout.lengths[role]) <= CHUNK

    def _in_one_pass(self, hidden_ND: Tensor, head: Head) -> dict[tuple[Role, str], Tensor]:
        chunks: list[Chunk] = []
        end = 0
        for role, needs in self.needs.items():
            for own, sequences in self.layout.chunks(role, CHUNK):
                target_C = self.layout.target_of(role)[own]
                if needs.divergence is None:
                    measure = logprobs.score_of(needs.scores[0], target_C)
                else:
                    theirs_ND, their_head = self._reference_of(role)
                    measure = logprobs.divergence_from(theirs_ND[own], their_head, target_C, needs.divergence)
                slope = partial(self.shares[role].slope, self.known[role].part(own, sequences), needs.number)
                chunks.append(Chunk(slice(end, end + len(target_C)), measure, slope))
                end += len(target_C)
        hidden = torch.cat([hidden_ND[self.layout.tokens[role]] for role in self.needs])
        numbers = logprobs.token_numbers(hidden, head, chunks).split([sum(self.layout.lengths[r]) for r in self.needs])
        return {(role, self.needs[role].number): x_N for role, x_N in zip(self.needs, numbers, strict=True)}

    def _reference_of(self, role: Role) -> tuple[Tensor, Head]:
        """The starting model's hidden states of the role's tokens, and the head that belongs to them."""
        hidden_ND = self.start[role].hidden_ND
        assert self.reference is not None and hidden_ND is not None
        return hidden_ND, self.reference.head_for(role)
