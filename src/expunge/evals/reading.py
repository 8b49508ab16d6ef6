"""A batch of trees through a model: what is found at the supervised tokens of their sequences.

Shapes: `B` trees of a batch, `T` padded positions, `N` supervised tokens of a batch laid end to end.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from expunge.data.encode import Encoded
from expunge.errors import UserError
from expunge.evals.trees import Tree, grow
from expunge.modeling.agreement import NAN, Ways, agree, plain_logits, probe_length, probes, remembered, say, tokens_of
from expunge.modeling.causal import CausalLM
from expunge.modeling.forward import forward_supervised
from expunge.modeling.logprobs import Head

ReadAtHead = Callable[[Sequence[tuple[Encoded, int]], Tensor, Tensor, Head], Tensor]
"""(where N tokens are: (sequence, index of its supervised token); their hidden states [N, D]; the tokens
[N]; the head) → something for each, [N, …]. Sequences that begin alike share the tokens that they begin with."""


def reads_trees(model: CausalLM, ways: Ways, longest: int) -> bool:
    """Whether a model reads trees of sequences of up to `longest` tokens as it reads the sequences.

    Each token must learn what to attend to, and at which depth it is, from whatever connects tokens in the model: no
    state may run from token to token, and no window count other branches in. That is tried on a small tree, but for
    attention that takes no such mask.
    """
    parts = [part for part in model.modules() if isinstance(part, PreTrainedModel)]
    takes_masks = all(part.config.get_text_config()._attn_implementation in ("sdpa", "eager") for part in parts)
    if not takes_masks or any(part._is_stateful for part in parts) or not ways.padded:
        return False

    def measure(length: int) -> bool:
        first, second = probes(model, length)
        third = first[: 3 * length // 4] + tokens_of(model, 2, seed=2)
        sequences = [Encoded(tuple(tokens), 1) for tokens in (first, second, third, second[1:])]
        trees = sorted(grow(sequences), key=len, reverse=True)
        whole = (sequences, lambda _where, hidden_ND, _target_N, head: head.logits(hidden_ND))
        plain = torch.cat([plain_logits(model, s.input_ids)[:-1] for s in sequences])

        def read() -> Tensor:
            (numbers,) = at_trees(model, trees, [whole], dense=ways.dense)
            return torch.cat([numbers[s] for s in sequences])

        holds = agree(model, read, plain)
        if not holds:
            say(model, "gives other numbers for sequences that share a row: each is read by itself")
        return holds

    return remembered(model, ("trees", probe_length(model, longest)), measure)


def at_trees(
    model: CausalLM, trees: Sequence[Tree], asks: Sequence[tuple[Collection[Encoded], ReadAtHead]], *, dense: bool
) -> list[dict[Encoded, Tensor]]:
    """For each of `asks`, (sequences, what to find), what is found at those of its sequences that are in the batch.

    `dense` as for `forward_supervised`. Raises `UserError` for NaN.
    """
    width = len(trees[0])  # longest first
    input_ids_BT = torch.zeros(len(trees), width, dtype=torch.long)  # causal: what stands in the padding is never seen
    mask, positions_BT = torch.zeros_like(input_ids_BT), None
    for b, tree in enumerate(trees):
        input_ids_BT[b, : len(tree)] = torch.tensor(tree.tokens)
        mask[b, : len(tree)] = 1
    if any(len(tree.sequences) > 1 for tree in trees):
        mask, positions_BT = _branches(model, trees, width)
    lots = [_TreeBatch.of(trees, wanted) for wanted, _ in asks]
    row_N, node_N, target_N = torch.tensor([at for lot in lots for at in lot.tokens]).to(model.device).unbind(-1)
    sizes = [len(lot.tokens) for lot in lots]

    def at_head(hidden_ND: Tensor, head: Head) -> list[Tensor | None]:
        parts = zip(lots, asks, hidden_ND.split(sizes), target_N.split(sizes), strict=True)
        return [find(lot.where, h_ND, t_N, head) if lot.where else None for lot, (_, find), h_ND, t_N in parts]

    numbers, _ = forward_supervised(
        model,
        input_ids_BT.to(model.device),
        mask.to(model.device),
        (row_N, node_N),
        at_head=at_head,
        position_ids_BT=None if positions_BT is None else positions_BT.to(model.device),
        dense=dense,
    )
    assert numbers is not None
    columns = [None if x is None else x.cpu() for x in numbers]
    if any(x is not None and x.isnan().any() for x in columns):
        raise UserError(NAN)
    return [
        {s: x[i] for s, i in lot.indices.items()} if x is not None else {} for lot, x in zip(lots, columns, strict=True)
    ]


@dataclass(frozen=True)
class _TreeBatch:
    """The tokens that one ask is about in a batch of trees, each once: (row, node that predicts it, token)."""

    tokens: list[tuple[int, int, int]]
    where: list[tuple[Encoded, int]]
    indices: dict[Encoded, list[int]]
    """For each sequence, which of them are its supervised tokens."""

    @classmethod
    def of(cls, trees: Sequence[Tree], wanted: Collection[Encoded]) -> "_TreeBatch":
        known: dict[tuple[int, int, int], int] = {}
        where: list[tuple[Encoded, int]] = []
        indices: dict[Encoded, list[int]] = {}
        for b, tree in enumerate(trees):
            for sequence, nodes in tree.predicting():
                if sequence not in wanted:
                    continue
                keys = [(b, *at) for at in zip(nodes, sequence.targets, strict=True)]
                where.extend((sequence, i) for i, at in enumerate(keys) if at not in known)
                indices[sequence] = [known.setdefault(at, len(known)) for at in keys]
        return cls(list(known), where, indices)


def _branches(model: CausalLM, trees: Sequence[Tree], width: int) -> tuple[Tensor, Tensor]:
    """The attention mask [B, 1, T, T] of trees, in the form that the model's attention takes, and positions [B, T]."""
    sees_BTT = torch.eye(width, dtype=torch.bool).repeat(len(trees), 1, 1)  # padding sees itself: softmax needs one
    positions_BT = torch.zeros(len(trees), width, dtype=torch.long)
    for b, tree in enumerate(trees):
        sees_BTT[b, : len(tree), : len(tree)] = tree.sees()
        positions_BT[b, : len(tree)] = torch.tensor(tree.depths)
    if model.config.get_text_config()._attn_implementation == "sdpa":
        return sees_BTT[:, None], positions_BT
    return torch.where(sees_BTT[:, None], 0.0, torch.finfo(model.dtype).min).to(model.dtype), positions_BT
