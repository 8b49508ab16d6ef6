"""One forward of the model and one look at the reference → the signals of every role in the batch.

Knows how a batch is laid out and which signals are asked for; knows nothing of what objectives make of them.

Shapes: B sequences, T positions, N supervised tokens laid end to end, D hidden size, V vocabulary.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from expunge.data.pairs import Role
from expunge.modeling.agreement import ways_of
from expunge.modeling.forward import forward_supervised, supervised
from expunge.modeling.logprobs import (
    CHUNK,
    Chunk,
    Head,
    Measure,
    divergence_from,
    score_of,
    token_divergence,
    token_numbers,
    token_scores,
)
from expunge.objectives.base import Needs, Objective, Score, Signals
from expunge.training.reference import Reference, ReferenceSignals, slices_of


@dataclass(frozen=True)
class Share:
    """What one role's signals add to the loss: the objective's weight times their term of it."""

    objective: Objective
    count: Tensor | float
    """Of the tokens or sequences that the term is a mean over."""

    def term(self, signals: Signals) -> Tensor:
        return self.objective.loss(signals).sum() / self.count


def needs_by_role(objective: Objective | None, retain: Objective | None) -> dict[Role, Needs]:
    """What is asked of each role's sequences: the forget objective's needs, of refusals too where it has them."""
    forget = objective.needs if objective is not None else Needs()
    return {
        Role.FORGET: forget,
        Role.REFUSAL: forget if forget.refusal else Needs(),
        Role.RETAIN: retain.needs if retain is not None else Needs(),
    }


def one_number(needs: Needs) -> str:
    """The one signal that is asked of the head; empty where it is more than one, or refusals matter too."""
    asked = [f"{name}_N" for name in (*needs.scores, *(["divergence"] if needs.divergence is not None else []))]
    return "" if len(asked) != 1 or needs.refusal or needs.layer is not None else asked[0]


def gather_signals(
    model: nn.Module,
    batch: Mapping[str, Tensor],
    needs: Mapping[Role, Needs],
    reference: Reference | None,
    surprisal_V: Tensor | None,
    shares: Mapping[Role, Share] | None = None,
) -> dict[Role, Signals]:
    """The signals of each role that has sequences in `batch`, computing what `needs` asks for and nothing else.

    `shares` say what the loss will make of the signals. Where that is known of every token before the loss is there,
    the head goes over all of them once, gradients included: a third less work in it. Else it runs over the tokens whose
    scores are wanted, and once more per role over those that are compared with the reference's distribution.
    Where no role needs the head, the forward ends at the wanted layer.
    """
    predicts_BT, target_N = supervised(batch["labels"])
    sequence_N = predicts_BT.nonzero()[:, 0]
    place_N = predicts_BT.cumsum(-1)[predicts_BT] - 1
    # Rows stand in the batch by role, so each role is one slice of the N tokens and one of the B sequences.
    roles_B, lengths_B = torch.stack([batch["role"], predicts_BT.sum(-1)]).tolist()
    lengths = {role: [n for own, n in zip(roles_B, lengths_B, strict=True) if own == role] for role in Role}
    sequences = [len(lengths[role]) for role in Role]
    tokens = [sum(lengths[role]) for role in Role]
    slices = dict(zip(Role, slices_of(tokens), strict=True))
    ways = ways_of(model)

    def within(role: Role, own: slice) -> slice:
        """Where `own` of the batch's tokens are among the role's."""
        return slice(own.start - slices[role].start, own.stop - slices[role].start)

    def signals_of(role: Role, own: slice, sequence_N: Tensor, sequences: int, **found: Any) -> Signals:
        """Of some of a role's tokens, `own` among the batch's: `found`, and what is known without the model."""
        at = within(role, own)
        known = start.get(role, ReferenceSignals())
        others = {
            "reference_logp_N": None if known.logp_N is None else known.logp_N[at],
            "reference_layer_ND": None if known.layer_ND is None else known.layer_ND[at],
            "surprisal_N": None if surprisal_V is None else surprisal_V.to(target_N.device)[target_N[own]],
            "place_N": place_N[own],
        }
        given: dict[str, Any] = {name: x for name, x in others.items() if x is not None}
        return Signals(vocab_size=ways.vocab_size, sequence_N=sequence_N, sequences=sequences, **found, **given)

    present = [role for role in Role if sequences[role]]
    start = reference(dict(batch)) if reference is not None else {}

    def measure_of(role: Role, own: slice) -> Measure:
        """What the head is asked for at `own` of the batch's tokens."""
        divergence, hidden = needs[role].divergence, start.get(role, ReferenceSignals()).hidden_ND
        if divergence is None:
            return score_of(needs[role].scores[0], target_N[own])
        assert reference is not None and hidden is not None
        return divergence_from(hidden[within(role, own)], reference.head_for(role), target_N[own], divergence)

    def at_head(hidden_ND: Tensor, head: Head) -> dict[Role, dict[str, Tensor]]:
        found: dict[Role, dict[str, Tensor]] = {role: {} for role in Role}
        wanted = [role for role in present if needs[role].head]
        chunks = None
        trained = head.linear is not None and head.linear.requires_grad and torch.is_grad_enabled()
        if shares is not None and trained:
            chunks = _foresee(wanted, needs, lengths, slices, shares, measure_of, signals_of)
        if chunks is not None:
            number_N = token_numbers(torch.cat([hidden_ND[slices[role]] for role in wanted]), head, chunks)
            for role, part in zip(wanted, number_N.split([tokens[role] for role in wanted]), strict=True):
                found[role][one_number(needs[role])] = part
            return found
        scored: list[tuple[Role, Score]] = [(role, score) for role in present for score in needs[role].scores]
        if scored:
            hidden = torch.cat([hidden_ND[slices[role]] for role, _ in scored])
            target = torch.cat([target_N[slices[role]] for role, _ in scored])
            sizes = [tokens[role] for role, _ in scored]
            asked: list[tuple[Score, int]] = [(score, tokens[role]) for role, score in scored]
            parts = token_scores(hidden, target, head, asked).split(sizes)
            for (role, score), part in zip(scored, parts, strict=True):
                found[role][f"{score}_N"] = part
        for role in present:
            divergence, own = needs[role].divergence, slices[role]
            if divergence is not None:
                assert reference is not None
                hidden = start[role].hidden_ND
                assert hidden is not None
                found[role]["divergence_N"] = token_divergence(
                    hidden_ND[own], head, hidden, reference.head_for(role), target_N[own], divergence
                )
        return found

    found, layer_ND = forward_supervised(
        model,
        batch["input_ids"],
        batch["attention_mask"],
        predicts_BT,
        at_head=at_head if any(needs[role].head for role in present) else None,
        layer=next((needs[role].layer for role in present if needs[role].layer is not None), None),
        dense=ways.dense,
    )
    result: dict[Role, Signals] = {}
    for role in present:
        own = slices[role]
        given = dict(found[role]) if found else {}
        if layer_ND is not None:
            given["layer_ND"] = layer_ND[own]
        result[role] = signals_of(role, own, sequence_N[own] - sum(sequences[:role]), sequences[role], **given)
    if Role.REFUSAL in result:
        result[Role.FORGET].refusal = result[Role.REFUSAL]
    return result


def _foresee(
    wanted: Sequence[Role],
    needs: Mapping[Role, Needs],
    lengths: Mapping[Role, Sequence[int]],
    slices: Mapping[Role, slice],
    shares: Mapping[Role, Share],
    measure_of: Callable[[Role, slice], Measure],
    signals_of: Callable[..., Signals],
) -> list[Chunk] | None:
    """The tokens of these roles laid end to end, each chunk knowing what the loss will make of its numbers.

    `None` where that can't be said: an objective must read one number of one token at a time, or of sequences that fit
    a chunk.
    """
    for role in wanted:
        if role not in shares or not one_number(needs[role]):
            return None
        if shares[role].objective.per == "sequence" and max(lengths[role]) > CHUNK:
            return None

    def slope(role: Role, place: slice, sizes: list[int], number_C: Tensor) -> Tensor:
        with torch.enable_grad():
            number_C = number_C.detach().requires_grad_()
            size_B = torch.tensor(sizes, device=number_C.device)
            sequence_C = torch.arange(len(sizes), device=number_C.device)
            sequence_C = sequence_C.repeat_interleave(size_B, output_size=sum(sizes))
            signals = signals_of(role, place, sequence_C, len(sizes), **{one_number(needs[role]): number_C})
            term = shares[role].term(signals)
        return shares[role].objective.weight * torch.autograd.grad(term, number_C)[0]

    chunks: list[Chunk] = []
    end = 0
    for role in wanted:
        first = slices[role].start
        for sizes in _together(lengths[role]):
            size = sum(sizes)
            place = slice(first, first + size)
            own = slice(end, end + size)
            chunks.append(Chunk(own, measure_of(role, place), partial(slope, role, place, sizes)))
            first, end = first + size, end + size
    return chunks


def _together(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Sequences by their lengths, as many at a time as fit a chunk; longer ones in parts."""
    chunk: list[int] = []
    for length in (part for whole in lengths for part in [*[CHUNK] * ((whole - 1) // CHUNK), (whole - 1) % CHUNK + 1]):
        if sum(chunk) + length > CHUNK:
            yield chunk
            chunk = []
        chunk.append(length)
    yield chunk
