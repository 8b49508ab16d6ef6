"""One forward of the model and one look at the reference → the signals of every role in the batch.

Knows how a batch is laid out and which signals are asked for; knows nothing of what objectives make of them.

Shapes: B sequences, T positions, N supervised tokens laid end to end, D hidden size, V vocabulary.
"""

from collections.abc import Mapping
from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel
from torch import Tensor, nn

from expunge.data.pairs import Role
from expunge.logprobs import Head, forward_supervised, supervised, token_divergence, token_logps, uniform_cross_entropy
from expunge.objectives.base import Needs, Signals
from expunge.reference import Reference, slices_of


def gather_signals(
    model: nn.Module,
    batch: Mapping[str, Tensor],
    needs: Mapping[Role, Needs],
    reference: Reference | None,
    surprisal_V: Tensor | None,
) -> dict[Role, Signals]:
    """The signals of each role that has sequences in `batch`, computing what `needs` asks for and nothing else.

    The head runs once over the tokens whose log-probability is wanted, and once more per role over those that are
    compared with the reference's distribution. Where no role needs the head, the forward ends at the wanted layer.
    """
    predicts_BT, target_N = supervised(batch["labels"])
    sequence_N = predicts_BT.nonzero()[:, 0]
    # Rows stand in the batch by role, so each role is one slice of the N tokens and one of the B sequences.
    sequences = torch.bincount(batch["role"], minlength=len(Role)).tolist()
    tokens = torch.bincount(batch["role"][sequence_N], minlength=len(Role)).tolist()
    slices = dict(zip(Role, slices_of(tokens), strict=True))
    present = [role for role in Role if sequences[role]]
    start = reference(dict(batch)) if reference is not None else {}

    def at_head(hidden_ND: Tensor, head: Head) -> dict[Role, dict[str, Tensor]]:
        found: dict[Role, dict[str, Tensor]] = {role: {} for role in Role}
        wanted = [role for role in present if needs[role].logp or needs[role].uniform_ce]
        if wanted:
            hidden = torch.cat([hidden_ND[slices[role]] for role in wanted])
            target = torch.cat([target_N[slices[role]] for role in wanted])
            logp = token_logps(hidden, target, head)
            for role, part in zip(wanted, logp.split([tokens[role] for role in wanted]), strict=True):
                found[role]["logp_N"] = part
                if needs[role].uniform_ce:
                    own = slices[role]
                    found[role]["uniform_ce_N"] = uniform_cross_entropy(hidden_ND[own], target_N[own], part, head)
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
    )
    vocab_size = extract_model_from_parallel(model).get_output_embeddings().weight.shape[0]
    result: dict[Role, Signals] = {}
    for role in present:
        own = slices[role]
        others: dict[str, Any] = {
            "layer_ND": layer_ND[own] if layer_ND is not None else None,
            "reference_logp_N": start[role].logp_N if role in start else None,
            "reference_layer_ND": start[role].layer_ND if role in start else None,
            "surprisal_N": surprisal_V.to(target_N.device)[target_N[own]] if surprisal_V is not None else None,
        }
        result[role] = Signals(
            vocab_size=vocab_size,
            sequence_N=sequence_N[own] - sum(sequences[:role]),
            sequences=sequences[role],
            **(found[role] if found else {}),
            **{name: x for name, x in others.items() if x is not None},
        )
    if Role.REFUSAL in result:
        result[Role.FORGET].refusal = result[Role.REFUSAL]
    return result
