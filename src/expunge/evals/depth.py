"""Unlearning depth: in how many of the layers that hold a fact it is erased, by patching hidden states into the target.

A model may no longer say what its middle layers still hold. Both scores need the model before unlearning (the target)
and one that never knew; both are 0 for the target and 1 for the retrained model.

Shapes: R rows, L decoder layers, N tokens of facts laid end to end, D hidden size.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from expunge.data.augment import parts
from expunge.data.benchmark import Row
from expunge.data.dialects import IGNORE
from expunge.data.encode import Encoded, decoded, encode
from expunge.data.facts import facts
from expunge.evals.requests import fit
from expunge.modeling.assistant import final_norm
from expunge.modeling.causal import CausalLM
from expunge.modeling.forward import decoder_layers, forward_supervised, supervised
from expunge.modeling.logprobs import Head, token_logps

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

THRESHOLD = 0.05
"""Nats by which a patched layer must lower a fact's log-probability to count as one that holds it."""
BATCH = 16
"""Rows of one forward."""


@dataclass(frozen=True)
class DepthScores:
    """Two scores of a model; `None` where no layer of the target holds a fact that the retrained one's lacks.

    depth  unlearning depth score: patching the model's own hidden states into the target
    lens   the same of what the target's norm and head read from each layer's hidden states (logit lens)
    """

    depth: float | None
    lens: float | None

    def metrics(self) -> dict[str, float]:
        named = {"unlearning_depth": self.depth, "logit_lens": self.lens}
        return {name: value for name, value in named.items() if value is not None}


@dataclass(frozen=True)
class _Batch:
    """Rows padded on the right; `predicts` are the positions that predict a fact's token, and `target` those tokens."""

    input_ids_BT: Tensor
    attention_mask_BT: Tensor
    predicts: tuple[Tensor, Tensor]
    target_N: Tensor


class UnlearningDepth:
    """Measures models against a target and a retrained model, both of which are asked once.

    A fact is a name or a number in an answer that its question lacks (`data/facts.py`); rows without one count with all
    tokens of their answer.

    Source: arXiv 2605.24614. Δ¹ is the drop of a fact's mean log-probability in the target when the output of a layer,
    at the positions that predict the fact, is replaced by the retrained model's; Δ² is that with the unlearned model's.
    A row's score is Σ Δ¹ · clip(Δ²/Δ¹, 0, 1) / Σ Δ¹ over the layers with Δ¹ > .05, and the model's the mean over rows.
    The published code takes the last layer's output after the final norm; here it is taken before, like all others.
    """

    def __init__(
        self, target: CausalLM, retrained: CausalLM, tokenizer: "PreTrainedTokenizerBase", rows: Sequence[Row]
    ) -> None:
        self.target = target
        marked = [_marked(row, tokenizer) for row in rows]
        sequences = fit(target, [sequence for sequence, _ in marked])
        pairs = [(s, labels[: len(s)]) for s, (_, labels) in zip(sequences, marked, strict=True)]
        pairs = [pair for pair in pairs if any(label != IGNORE for label in pair[1][1:])]
        pad = tokenizer.pad_token_id if isinstance(tokenizer.pad_token_id, int) else 0
        self.batches = [_batch(pairs[i : i + BATCH], pad, target.device) for i in range(0, len(pairs), BATCH)]
        self._plain_LR = self._measured(target)
        self._first_LR = self._drops(retrained)

    def __call__(self, model: CausalLM) -> DepthScores:
        depth, lens = (_score(a, b) for a, b in zip(self._first_LR, self._drops(model), strict=True))
        return DepthScores(depth, lens)

    def _drops(self, source: CausalLM) -> tuple[Tensor, Tensor]:
        """By how much both of `_measured` are lower than with the target's own states, [L, R] each."""
        patched, read = self._measured(source)
        return self._plain_LR[0] - patched, self._plain_LR[1] - read

    def _measured(self, source: CausalLM) -> tuple[Tensor, Tensor]:
        """Mean log-probability of each row's facts, by layer, [L, R] each, from the layers' outputs in `source`.

        (in the target with one layer's output replaced, as the target's norm and head read each layer's output)
        """
        patched, read = [], []
        for batch in self.batches:
            states = _states(source, batch)
            patched.append(torch.stack([self._logps(batch, layer, state) for layer, state in enumerate(states)]))
            read.append(torch.stack([self._read(batch, state) for state in states]))
        return torch.cat(patched, dim=1), torch.cat(read, dim=1)

    def _logps(self, batch: _Batch, layer: int, state_ND: Tensor) -> Tensor:
        with _replaced(decoder_layers(self.target)[layer], batch.predicts, state_ND):
            logps = _forward(self.target, batch)
        return _by_row(logps, batch)

    @torch.no_grad()
    def _read(self, batch: _Batch, state_ND: Tensor) -> Tensor:
        head = Head.of(self.target)
        return _by_row(token_logps(final_norm(self.target)(state_ND), batch.target_N, head), batch)


def _score(first_LR: Tensor, second_LR: Tensor) -> float | None:
    """The mean over rows of Σ Δ¹ · clip(Δ²/Δ¹, 0, 1) / Σ Δ¹ over layers that hold the row's facts."""
    scores = []
    for first, second in zip(first_LR.T.double(), second_LR.T.double(), strict=True):
        holds = first > THRESHOLD
        if holds.any():
            erased = (second[holds] / first[holds]).clamp(0, 1)
            scores.append(float((first[holds] * erased).sum() / first[holds].sum()))
    return fmean(scores) if scores else None


def _marked(row: Row, tokenizer: "PreTrainedTokenizerBase") -> tuple[Encoded, list[int]]:
    """The row's tokens, and labels of the tokens that facts of its answer touch; of all the answer without facts."""
    encoded = encode(row, tokenizer)
    ids = list(encoded.input_ids)
    labels = [IGNORE] * len(ids)
    spans = [] if "text" in row else _spans(row, ids[encoded.start :], tokenizer)
    inside = [encoded.start + i for i in spans] or range(encoded.start, len(ids))
    for i in inside:
        labels[i] = ids[i]
    return encoded, labels


def _spans(row: Row, answer_ids: Sequence[int], tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """Indices of the answer's tokens that a fact touches."""
    question, answer = parts(row)
    ends = [len(decoded(answer_ids[: i + 1], tokenizer)) for i in range(len(answer_ids))]
    text = decoded(answer_ids, tokenizer)
    shift = text.find(answer)
    if shift < 0:
        return []
    found = [(shift + fact.begin, shift + fact.end) for fact in facts(question, answer)]
    starts = [0, *ends[:-1]]
    return [
        i
        for i, (begin, end) in enumerate(zip(starts, ends, strict=True))
        if any(begin < last and first < end for first, last in found)
    ]


def _batch(pairs: Sequence[tuple[Encoded, list[int]]], pad: int, device: torch.device) -> _Batch:
    longest = max(len(sequence) for sequence, _ in pairs)
    ids = [[*s.input_ids, *[pad] * (longest - len(s))] for s, _ in pairs]
    mask = [[1] * len(s) + [0] * (longest - len(s)) for s, _ in pairs]
    labels = [[*of_row, *[IGNORE] * (longest - len(of_row))] for _, of_row in pairs]
    predicts_BT, target_N = supervised(torch.tensor(labels))
    rows, positions = predicts_BT.nonzero(as_tuple=True)
    return _Batch(
        torch.tensor(ids, device=device),
        torch.tensor(mask, device=device),
        (rows.to(device), positions.to(device)),
        target_N.to(device),
    )


@torch.no_grad()
def _forward(model: CausalLM, batch: _Batch) -> Tensor:
    """Log-probability of every fact's token, [N]."""
    logps, _ = forward_supervised(
        model,
        batch.input_ids_BT,
        batch.attention_mask_BT,
        batch.predicts,
        at_head=lambda hidden_ND, head: token_logps(hidden_ND, batch.target_N, head),
    )
    assert logps is not None
    return logps


def _states(model: CausalLM, batch: _Batch) -> list[Tensor]:
    """The output of every decoder layer where a fact's token is predicted, [N, D] each."""
    states: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
        states.append((output[0] if isinstance(output, tuple) else output)[batch.predicts])

    with ExitStack() as stack:
        for layer in decoder_layers(model):
            stack.callback(layer.register_forward_hook(keep).remove)
        _forward(model, batch)
    return states


@contextmanager
def _replaced(layer: nn.Module, where: tuple[Tensor, Tensor], state_ND: Tensor) -> Iterator[None]:
    """Replace the layer's output at some positions meanwhile."""

    def replace(_module: nn.Module, _inputs: Any, output: Any) -> Any:
        hidden = (output[0] if isinstance(output, tuple) else output).clone()
        hidden[where] = state_ND.to(hidden.dtype)
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    handle = layer.register_forward_hook(replace)
    try:
        yield
    finally:
        handle.remove()


def _by_row(logps_N: Tensor, batch: _Batch) -> Tensor:
    """The mean over each row's tokens, [B]."""
    rows, _ = batch.predicts
    count = len(batch.input_ids_BT)
    total = logps_N.new_zeros(count).index_add(0, rows, logps_N)
    return (total / torch.bincount(rows, minlength=count)).cpu()
