"""Requests of an evaluation to a model: score every distinct sequence once, generate every distinct answer once.

Shapes: `B` rows of a batch, `T` padded positions, `N` supervised tokens of a batch laid end to end.
"""

import sys
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers import GenerationConfig

from expunge.data.encode import Encoded, decoded, encode, question_row
from expunge.errors import UserError
from expunge.evals.decoding import How, answering, greedy, own_generation_config_set_aside
from expunge.evals.reading import ReadAtHead, at_trees, reads_trees
from expunge.evals.trees import grow
from expunge.modeling.agreement import ways_of
from expunge.modeling.causal import CausalLM
from expunge.modeling.logprobs import token_logps, token_statistics
from expunge.system import ranks

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

T = TypeVar("T")

SCORE_BUDGET = 4_096
GENERATE_BUDGET = 16_384
"""Padded tokens of one batch: what bounds memory, whatever the number of sequences.

Past 4,096 a forward gains nothing any more and only pads more (measured on a CPU core: a quarter slower at 16,384);
decoding gains until about 8,192, since every step is one token a sequence.
"""
TOP_P = 0.9
"""Probability of the tokens that a sampled answer draws from; the unlikeliest are where small models ramble."""
DENSE_LOGITS = 2**26
"""Logits of one batch, where a model must be asked for all of them: 256 MiB in float32."""


@dataclass(frozen=True)
class Ask:
    """The numbers to find at the supervised tokens of some sequences."""

    sequences: Sequence[Encoded]
    at_head: ReadAtHead


class Measure(Protocol):
    """Something that is found out by asking a model along with everything else."""

    def asks(self, model: CausalLM, tokenizer: "PreTrainedTokenizerBase") -> list[Ask]: ...

    def metrics(self, values: Sequence[Sequence[Tensor]]) -> dict[str, float]:
        """From the answers to each of `asks`."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Score:
    """The model's numbers for one sequence, an entry for each supervised token (float32, nats).

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
    def begins(self) -> int:
        """With how many of these tokens the model begins its own greedy answer; needs `details`."""
        assert self.hits is not None
        return int(np.cumprod(self.hits).sum())

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
    model: CausalLM,
    sequences: Sequence[Encoded],
    *,
    token_budget: int = SCORE_BUDGET,
    details: bool = False,
    progress: bool = True,
) -> list[Score]:
    """Log-probabilities of the supervised tokens of each sequence, in the order given; all of `Score` with `details`.

    Equal to one forward per sequence: see `at_answers`. A first position can't be predicted and is not scored, nor is
    what lies past the model's context length.

    Raises `UserError` when the model gives NaN (no metric of it would mean anything) and for a prompt that fills the
    context.
    """
    ask = ask_scores(sequences, details=details)
    return scores(ask, *at_answers(model, [ask], token_budget=token_budget, progress=progress))


def ask_scores(sequences: Sequence[Encoded], *, details: bool = False) -> Ask:
    """The sequences that `scores` scores."""
    at_head = token_statistics if details else token_logps
    return Ask(sequences, lambda _where, *at: at_head(*at))


def scores(ask: Ask, values: Sequence[Tensor]) -> list[Score]:
    """The scores of an `ask_scores`, one object for a sequence however often it was asked about."""
    made: dict[Encoded, Score] = {}
    for sequence, part in zip(ask.sequences, values, strict=True):
        if sequence not in made:
            numbers = part.float().numpy()
            details = () if numbers.ndim == 1 else (numbers[:, 1] > 0, numbers[:, 2], numbers[:, 3])
            made[sequence] = Score(numbers if numbers.ndim == 1 else numbers[:, 0], *details)
    return [made[sequence] for sequence in ask.sequences]


def at_answers(
    model: CausalLM, asks: Sequence[Ask], *, token_budget: int = SCORE_BUDGET, progress: bool = True
) -> list[list[Tensor]]:
    """For each of `asks`, what its `at_head` finds at the supervised tokens of its sequences, [T, …], on the CPU.

    All asks are answered by one forward of every distinct sequence, and sequences that begin alike are read as one
    row (`reading`) by models that can do so. Rows are padded on the right and batched longest first, at most
    `token_budget` padded tokens a batch. The model keeps its training or evaluation mode. Errors are those of `score`.

    Of several ranks each runs a part of the batches, and all get everything; where the model's weights are spread over
    them, all run all of it, in step.
    """
    fitted = [fit(model, ask.sequences) for ask in asks]
    distinct = dict.fromkeys(sequence for sequences in fitted for sequence in sequences)
    if not distinct:
        return [[] for _ in asks]
    longest = max(map(len, distinct))
    ways = ways_of(model, longest)
    trees = grow(distinct, shared=reads_trees(model, ways, longest))
    if ways.dense:
        token_budget = min(token_budget, max(1, DENSE_LOGITS // ways.vocab_size))
    token_budget = token_budget if ways.padded else 1
    wanted = [(set(sequences), ask.at_head) for sequences, ask in zip(fitted, asks, strict=True)]
    parts_of: list[dict[Encoded, Tensor]] = [{} for _ in asks]
    with _evaluating(model), tqdm(total=len(distinct), desc="score", leave=False, disable=not progress or None) as bar:
        for batch in _own_part(model, _batches([len(tree) for tree in trees], token_budget)):
            rows = [trees[i] for i in batch]
            for by_sequence, parts in zip(parts_of, at_trees(model, rows, wanted, dense=ways.dense), strict=True):
                by_sequence.update(parts)
            bar.update(sum(len(tree.sequences) for tree in rows))
    whole = [ranks.merged(by_sequence) for by_sequence in parts_of]
    return [[by_sequence[s] for s in sequences] for by_sequence, sequences in zip(whole, fitted, strict=True)]


def fit(model: CausalLM, sequences: Sequence[Encoded]) -> list[Encoded]:
    """The sequences without what lies past the model's context length; `UserError` for a prompt that fills it."""
    context = context_length(model)
    if any(s.start >= context for s in sequences):
        raise UserError(f"a question fills the model's context of {context} tokens; shorten it or leave it out.")
    return [s.cut(context) for s in sequences]


def generate(
    model: CausalLM,
    tokenizer: "PreTrainedTokenizerBase",
    prompts: Sequence[tuple[int, ...]],
    *,
    max_new_tokens: int,
    begun: Sequence[tuple[int, ...]] | None = None,
    others: Collection[int] = (),
    token_budget: int = GENERATE_BUDGET,
    progress: bool = True,
) -> list[Generation]:
    """Greedy answers to the prompts (token ids), in the order given, each of at most `max_new_tokens` tokens.

    Equal to generating one by one: prompts are padded on the left and begun longest first, at most `token_budget`
    tokens of cache under way (`decoding`), and a prompt that occurs twice is answered once. Ranks share the prompts as
    in `at_answers`. `begun` are the tokens with which the model is known to answer each prompt (`Score.begins`): they
    are not decoded again.
    The model's own sampling settings (temperature, repetition penalty, …) take no part; `end_tokens` and `others` end
    an answer, and so does the model's context length.
    """
    context = context_length(model)
    ends = [*dict.fromkeys((*end_tokens(model, tokenizer), *others))]
    stops = set(ends)
    config = GenerationConfig(
        do_sample=False,
        num_beams=1,
        use_cache=True,
        return_dict_in_generate=True,
        max_new_tokens=max_new_tokens,
        pad_token_id=ends[0] if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
        eos_token_id=ends,
    )
    answers: dict[tuple[int, ...], tuple[int, ...]] = dict.fromkeys(prompts, ())
    caps = {p: max(0, min(max_new_tokens, context - len(p))) for p in answers}
    for prompt, first in zip(prompts, begun or [()] * len(prompts), strict=True):
        over = next((i + 1 for i, token in enumerate(first) if token in stops), len(first))
        answers[prompt] = max(answers[prompt], first[: min(over, caps[prompt])], key=len)
    going = [p for p, known in answers.items() if len(known) < caps[p] and not stops.intersection(known[-1:])]
    asked = _own_part(model, sorted(going, key=lambda p: len(p) + len(answers[p]), reverse=True))
    rows = max(1, token_budget // (max(map(len, asked)) + max_new_tokens)) if asked else 0
    texts, left = [p + answers[p] for p in asked], [caps[p] - len(answers[p]) for p in asked]
    longest = max((len(text) + cap for text, cap in zip(texts, left, strict=True)), default=0)
    how: How = answering(model, longest) if asked else "alone"
    with (
        _evaluating(model),
        own_generation_config_set_aside(model),
        tqdm(total=len(asked), desc="generate", leave=False, disable=not progress or None) as bar,
    ):
        new_tokens = greedy(model, texts, left, config, rows=rows, how=how, ended=bar.update)
    answers |= ranks.merged({p: (*answers[p], *new) for p, new in zip(asked, new_tokens, strict=True)})
    generations: dict[tuple[int, ...], Generation] = {}
    for prompt, new in answers.items():
        finished = bool(stops.intersection(new[-1:]))
        new = new[:-1] if finished else new
        generations[prompt] = Generation(decoded(new, tokenizer).strip(), new, finished)
    return [generations[p] for p in prompts]


def sample(
    model: Any,
    tokenizer: "PreTrainedTokenizerBase",
    prompts: Sequence[tuple[int, ...]],
    *,
    each: int,
    max_new_tokens: int,
    seed: int,
    top_p: float = TOP_P,
) -> list[list[Generation]]:
    """`each` answers to every prompt, drawn from the likeliest tokens that have `top_p` of the probability.

    The answers are the same for a `seed`. One prompt after the other, so that what else is asked changes nothing.
    """
    ends = end_tokens(model, tokenizer)
    padding = ends[0] if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    drawn: list[list[Generation]] = []
    with _evaluating(model), own_generation_config_set_aside(model), torch.random.fork_rng():
        for i, prompt in enumerate(tqdm(prompts, desc="sample", leave=False)):
            torch.manual_seed(seed + i)
            cap = max(1, min(max_new_tokens, context_length(model) - len(prompt)))
            config = GenerationConfig(
                do_sample=True, top_k=0, top_p=top_p, num_return_sequences=each, max_new_tokens=cap,
                pad_token_id=padding, eos_token_id=ends,
            )  # fmt: skip
            ids_BT = torch.tensor([prompt], device=model.device)
            out = model.generate(input_ids=ids_BT, attention_mask=torch.ones_like(ids_BT), generation_config=config)
            drawn.append([])
            for new in out[:, len(prompt) :].tolist():
                end = next((j for j, token in enumerate(new) if token in ends), None)
                kept = tuple(new[:end])
                drawn[-1].append(Generation(decoded(kept, tokenizer).strip(), kept, end is not None))
    return drawn


def context_length(model: CausalLM) -> int:
    """The longest sequence that the model has positions for, tokens."""
    # XLNet, which has no limit, says −1.
    return max(0, getattr(model.config.get_text_config(), "max_position_embeddings", None) or 0) or sys.maxsize


def end_tokens(model: CausalLM, tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """Every token that ends an answer: the tokenizer's, the one that training supervises last, the model's own.

    A chat template's end of turn is often not the tokenizer's end of sequence, and a model may list several.
    """
    ends = model.generation_config.eos_token_id
    ends = ends if isinstance(ends, list) else [ends]
    supervised = encode(question_row("?", "!"), tokenizer).input_ids[-1]
    return list(dict.fromkeys(cast(int, t) for t in (tokenizer.eos_token_id, supervised, *ends) if t is not None))


def _own_part(model: CausalLM, items: Iterable[T]) -> list[T]:
    """The part of `items` that this rank asks `model` about."""
    return list(items) if ranks.is_sharded(model) else ranks.share(items)


def _batches(lengths: Sequence[int], token_budget: int) -> Iterator[list[int]]:
    """Indices by falling length, cut so that rows × longest row ≤ `token_budget` (at least one row a batch)."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    first = 0
    while first < len(order):
        rows = max(1, token_budget // lengths[order[first]])
        yield order[first : first + rows]
        first += rows


@contextmanager
def _evaluating(model: CausalLM) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():  # not inference mode: what a model keeps of its forwards, training may need
            yield
    finally:
        model.train(was_training)
