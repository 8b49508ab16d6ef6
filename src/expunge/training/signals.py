"""One forward of the model and one look at the reference → the signals of every role in the batch.

Which passes the head makes is for `at_head.py` to say.

Shapes: B sequences, T positions, N supervised tokens laid end to end, D hidden size, V vocabulary.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from expunge.data.pairs import Role
from expunge.modeling.agreement import ways_of
from expunge.modeling.forward import forward_supervised
from expunge.objectives.base import Needs, Objective, Share, Signals
from expunge.objectives.trial import needs_of
from expunge.training.at_head import AtHead
from expunge.training.layout import Layout
from expunge.training.reference import Reference


def needs_by_role(objective: Objective | None, retain: Objective | None) -> dict[Role, Needs]:
    """The needs of each role's sequences: the forget objective's, for refusals too where it has them."""
    forget = needs_of(objective) if objective is not None else Needs()
    return {
        Role.FORGET: forget,
        Role.REFUSAL: forget if forget.refusal else Needs(),
        Role.RETAIN: needs_of(retain) if retain is not None else Needs(),
    }


def gather_signals(
    model: nn.Module,
    batch: Mapping[str, Any],
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
    start = reference(batch) if reference is not None else {}
    everything = Signals(ways.vocab_size, layout.sequence_N, len(batch["labels"]), layout.place_N)
    if surprisal_V is not None:
        everything.surprisal_N = surprisal_V.to(layout.target_N.device)[layout.target_N]
    signals = {role: everything.part(tokens, layout.sequences[role]) for role, tokens in layout.tokens.items()}
    for role, known in start.items():
        theirs = {"reference_logp_N": known.logp_N, "reference_layer_ND": known.layer_ND}
        signals[role] = replace(signals[role], **{name: x for name, x in theirs.items() if x is not None})
    asked = {role: needs[role] for role in signals if needs[role].head}
    numbers, layer_ND = forward_supervised(
        model,
        batch["input_ids"],
        batch["attention_mask"],
        layout.predicts,
        at_head=AtHead(layout, asked, signals, reference, start, shares or {}) if asked else None,
        layer=next((needs[role].layer for role in signals if needs[role].layer is not None), None),
        dense=ways.dense,
    )
    for (role, name), x_N in (numbers or {}).items():
        setattr(signals[role], name, x_N)
    if layer_ND is not None:
        for role, tokens in layout.tokens.items():
            signals[role].layer_ND = layer_ND[tokens]
    if Role.REFUSAL in signals:
        signals[Role.FORGET].refusal = signals[Role.REFUSAL]
    return signals
