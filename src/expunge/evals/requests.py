"""What evaluation asks of a model: score every distinct sequence once, generate every distinct answer once.

Knows batches, padding and when to stop; knows nothing of questions, benchmarks or metrics.

Shapes: `B` sequences of a batch, `T` padded positions, `N` supervised tokens of a batch laid end to end.
"""

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers import GenerationConfig

from expunge.data.encode import Encoded, encode, question_row
from expunge.errors import UserError
from expunge.logprobs import IGNORE, Head, supervised_logps, token_logps, token_statistics

SCORE_BUDGET = 4_096
GENERATE_BUDGET = 16_384
"""Padded tokens of one batch: what bounds memory, whatever the number of sequences.

Past 4,096 a forward gains nothing any more and only pads more (measured on a CPU core: a quarter slower at 16,384);
decoding gains until about 8,192, since every step is one token a sequence.
"""

AtHead = Callable[[Sequence[Encoded], Tensor, Tensor, Head], Tensor]
"""(the sequences of a batch, their hidden states [N, D], targets [N], the head) → something for each token, [N, …]."""


@dataclass(frozen=True, slots=True, eq=False)
class Score:
    """What the model says of one sequence, an entry for each supervised token (float32, nats).

    `logps` are natural log-probabilities. With `details`, also whether the token is the likeliest (`hits`) and the
    mean and standard deviation of the log-probability under the model's own next-token distribution.
    """

    logps: np.ndarray
    hits: np.ndarray | None = None
    means: np.ndarray | None = None
    deviations: np.ndarray | None = None

    @property
    def tokens(self) -> int:
        """Number of supervised tokens (the end token is one)."""
        return len(self.logps)

    @property
    def total(self) -> float:
        """Log-probability of the answer, in nats."""
        return float(self.logps.sum(dtype=np.float64))

    @property
    def mean(self) -> float:
        """Log-probability per token, in nats."""
        return self.total / self.tokens


@dataclass(frozen=True, slots=True)
class Generation:
    """A greedy answer: its text, its token ids without the end token, and whether an end token came in time."""

    text: str
    tokens: tuple[int, ...]
    finished: bool


def score(
    model: Any,
    sequences: Sequence[Encoded],
    *,
    token_budget: int = SCORE_BUDGET,
    details: bool = False,
    progress: bool = True,
) -> list[Score]:
    """Log-probabilities of the supervised tokens of each sequence, in the order given; all of `Score` with `details`.

    Equal to one forward per sequence: sequences are padded on the right and batched longest first, at most
    `token_budget` padded tokens a batch, and a sequence that occurs twice is scored once.
    The model keeps its training or evaluation mode. A first position can't be predicted and is not scored, nor is
    what lies past the model's context length.

    Raises `UserError` when the model gives NaN (no metric of it would mean anything) and for a prompt that fills the
    context.
    """
    at_head = token_statistics if details else token_logps
    found = at_answers(model, sequences, lambda _rows, *at: at_head(*at), token_budget=token_budget, progress=progress)
    parts = {sequence: part.float().numpy() for sequence, part in zip(sequences, found, strict=True)}
    if details:
        scores = {s: Score(part[:, 0], part[:, 1] > 0, part[:, 2], part[:, 3]) for s, part in parts.items()}
    else:
        scores = {s: Score(part) for s, part in parts.items()}
    return [scores[s] for s in sequences]


def at_answers(
    model: Any,
    sequences: Sequence[Encoded],
    at_head: AtHead,
    *,
    token_budget: int = SCORE_BUDGET,
    progress: bool = True,
) -> list[Tensor]:
    """What `at_head` finds at the supervised tokens of each sequence, [T, …], on the CPU.

    Batches, order and errors are those of `score`.
    """
    sequences = fit(model, sequences)
    distinct = list(dict.fromkeys(sequences))
    found: dict[Encoded, Tensor] = {}
    with _evaluating(model), tqdm(total=len(distinct), desc="score", leave=False, disable=not progress) as bar:
        for batch in _batches([len(s) for s in distinct], token_budget):
            rows = [distinct[i] for i in batch]
            found.update(zip(rows, _batch_at_answers(model, rows, at_head), strict=True))
            bar.update(len(rows))
    return [found[s] for s in sequences]


def fit(model: Any, sequences: Sequence[Encoded]) -> list[Encoded]:
    """The sequences without what lies past the model's context length; `UserError` for a prompt that fills it."""
    context = context_length(model)
    if any(s.start >= context for s in sequences):
        raise UserError(f"a question fills the model's context of {context} tokens; shorten it or leave it out.")
    return [s if len(s) <= context else Encoded(s.input_ids[:context], s.start) for s in sequences]


def generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[tuple[int, ...]],
    *,
    max_new_tokens: int,
    token_budget: int = GENERATE_BUDGET,
    progress: bool = True,
) -> list[Generation]:
    """Greedy answers to the prompts (token ids), in the order given, each of at most `max_new_tokens` tokens.

    Equal to generating one by one: prompts are padded on the left and batched longest first, at most `token_budget`
    tokens of cache a batch, and a prompt that occurs twice is answered once.
    The model's own sampling settings (temperature, repetition penalty, …) take no part; `end_tokens` end an answer,
    and so does the model's context length.
    """
    distinct = list(dict.fromkeys(prompts))
    context = context_length(model)
    ends = end_tokens(model, tokenizer)
    config = GenerationConfig(
        do_sample=False,
        num_beams=1,
        use_cache=True,
        max_new_tokens=max_new_tokens,
        pad_token_id=ends[0] if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
        eos_token_id=ends,
    )
    answers: dict[tuple[int, ...], Generation] = {}
    with (
        _evaluating(model),
        _own_generation_config_set_aside(model),
        tqdm(total=len(distinct), desc="generate", leave=False, disable=not progress) as bar,
    ):
        tight = [p for p in distinct if len(p) + max_new_tokens > context]
        roomy = [p for p in distinct if len(p) + max_new_tokens <= context]
        batches = [[roomy[i] for i in b] for b in _batches([len(p) + max_new_tokens for p in roomy], token_budget)]
        # A prompt near the end of the context is alone, so that its shorter cap is nobody else's.
        for rows in [*batches, *([p] for p in tight)]:
            config.max_new_tokens = min(max_new_tokens, context - len(rows[0]))
            full = len(rows[0]) >= context
            news = [[] for _ in rows] if full else _generate_batch(model, rows, config)
            for prompt, new in zip(rows, news, strict=True):
                length = next((i for i, token in enumerate(new) if token in ends), len(new))
                text = tokenizer.decode(new[:length], skip_special_tokens=True).strip()
                answers[prompt] = Generation(text, tuple(new[:length]), finished=length < len(new))
            bar.update(len(rows))
    return [answers[p] for p in prompts]


def context_length(model: Any) -> int:
    """The longest sequence that the model has positions for, tokens."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None) or sys.maxsize


def end_tokens(model: Any, tokenizer: Any) -> list[int]:
    """Every token that ends an answer: the tokenizer's, the one that training supervises last, the model's own.

    A chat template's end of turn is often not the tokenizer's end of sequence, and a model may list several.
    """
    own = model.generation_config.eos_token_id
    own = own if isinstance(own, list) else [own]
    supervised = encode(question_row("?", "!"), tokenizer).input_ids[-1]
    return list(dict.fromkeys(t for t in (tokenizer.eos_token_id, supervised, *own) if t is not None))


def _batch_at_answers(model: Any, rows: Sequence[Encoded], at_head: AtHead) -> Iterable[Tensor]:
    width = len(rows[0])  # longest first
    input_ids_BT = torch.zeros(len(rows), width, dtype=torch.long)  # causal: what stands in the padding is never seen
    attention_mask_BT = torch.zeros_like(input_ids_BT)
    labels_BT = torch.full_like(input_ids_BT, IGNORE)
    counts = []
    for b, row in enumerate(rows):
        ids = torch.tensor(row.input_ids)
        start = max(row.start, 1)
        assert start < len(row), "a sequence with nothing to score"
        input_ids_BT[b, : len(row)] = ids
        attention_mask_BT[b, : len(row)] = 1
        labels_BT[b, start : len(row)] = ids[start:]
        counts.append(len(row) - start)
    device = model.device
    found = supervised_logps(
        model,
        input_ids_BT.to(device),
        attention_mask_BT.to(device),
        labels_BT.to(device),
        at_head=lambda *at: at_head(rows, *at),
    ).cpu()
    if found.isnan().any():
        raise UserError("the model's log-probabilities are NaN: training has diverged; lower the learning rate.")
    return found.split(counts)


def _generate_batch(model: Any, rows: Sequence[tuple[int, ...]], config: GenerationConfig) -> list[list[int]]:
    width = len(rows[0])  # longest first
    input_ids_BT = torch.full((len(rows), width), config.pad_token_id, dtype=torch.long)
    attention_mask_BT = torch.zeros_like(input_ids_BT)
    for b, row in enumerate(rows):
        input_ids_BT[b, width - len(row) :] = torch.tensor(row)
        attention_mask_BT[b, width - len(row) :] = 1
    output_BT = model.generate(
        input_ids=input_ids_BT.to(model.device),
        attention_mask=attention_mask_BT.to(model.device),
        generation_config=config,
    )
    return output_BT[:, width:].tolist()


def _batches(lengths: Sequence[int], token_budget: int) -> Iterator[list[int]]:
    """Indices by falling length, cut so that rows × longest row ≤ `token_budget` (at least one row a batch)."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    first = 0
    while first < len(order):
        rows = max(1, token_budget // lengths[order[first]])
        yield order[first : first + rows]
        first += rows


@contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(was_training)


@contextmanager
def _own_generation_config_set_aside(model: Any) -> Iterator[None]:
    """`generate` fills every setting we leave open from the model's own; an evaluation must not depend on those.

    The owner may lie inside (the base of a PEFT model), hence the search.
    """
    owners = [(m, m.generation_config) for m in model.modules() if "generation_config" in vars(m)]
    try:
        for module, _ in owners:
            module.generation_config = GenerationConfig()
        yield
    finally:
        for module, own in owners:
            module.generation_config = own
