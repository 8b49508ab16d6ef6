"""Greedy answers to many prompts at once: who has ended leaves, who waits comes in.

`transformers`' own `generate` decodes, a few tokens at a time; between two such rounds the batch changes.

Shapes: `B` answers under way, `T` tokens read of each, padded on the left.
"""

from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from expunge.modeling.agreement import agree, plain_logits, probe_length, remembered, say, tokens_of, ways_of
from expunge.modeling.causal import CausalLM

ROUND = 8
"""Tokens decoded between two looks at who has ended."""


@dataclass
class _Batch:
    """Answers under way: which prompts they are to, all their tokens, which of these count, and the cache of all but
    the last."""

    numbers: list[int]
    ids_BT: Tensor
    mask_BT: Tensor
    cache: Any = None

    @property
    def takes_more(self) -> bool:
        """Whether others can join: every layer keeps all that it has read."""
        return all(type(layer) is DynamicLayer for layer in self.cache.layers)

    def joined(self, other: "_Batch") -> "_Batch":
        """Both as one, padded to one width."""
        parts = [self._trimmed(), other._trimmed()]
        width = max(part.ids_BT.shape[1] for part in parts)
        mine, theirs = (part._widened(width) for part in parts)
        for a, b in zip(mine.cache.layers, theirs.cache.layers, strict=True):
            a.keys, a.values = torch.cat([a.keys, b.keys]), torch.cat([a.values, b.values])
        ids_BT, mask_BT = torch.cat([mine.ids_BT, theirs.ids_BT]), torch.cat([mine.mask_BT, theirs.mask_BT])
        return _Batch(mine.numbers + theirs.numbers, ids_BT, mask_BT, mine.cache)

    def _trimmed(self) -> "_Batch":
        """Without the padding that all have."""
        first = int(self.mask_BT.any(0).int().argmax())
        for layer in self.cache.layers:
            layer.keys, layer.values = layer.keys[:, :, first:], layer.values[:, :, first:]
        return _Batch(self.numbers, self.ids_BT[:, first:], self.mask_BT[:, first:], self.cache)

    def _widened(self, width: int) -> "_Batch":
        more = width - self.ids_BT.shape[1]
        for layer in self.cache.layers:
            layer.keys, layer.values = (F.pad(x, (0, 0, more, 0)) for x in (layer.keys, layer.values))
        return _Batch(self.numbers, F.pad(self.ids_BT, (more, 0)), F.pad(self.mask_BT, (more, 0)), self.cache)


How = Literal["refilled", "batched", "alone", "uncached"]
"""The ways to decode, each plainer than the one before: with prompts that come in where answers have ended, one batch
after another, one prompt after another, without a cache."""


def answering(model: CausalLM, longest: int) -> How:
    """The fastest way in which a model decodes as its own plain forward does, in texts of up to `longest` tokens.

    Tried on a few prompts of unlike lengths. Models that ignore the mask of a padded batch, or count positions in it
    another way, answer alone; those whose cache keeps something else than they read answer without it. Raises
    `UserError` as `ways_of` does.
    """
    ways_of(model, longest)

    def measure(length: int) -> How:
        how: How = next(way for way in get_args(How) if way == "uncached" or _decodes_plainly(model, length, way))
        if how in WORDS:
            say(model, WORDS[how])
        return how

    return remembered(model, ("answers", probe_length(model, longest)), measure)


WORDS = {
    "alone": "decodes other tokens in padded batches: prompts are answered one at a time",
    "uncached": "decodes other tokens from its cache than from the whole text: answers are decoded without it, slowly",
}


def _decodes_plainly(model: CausalLM, length: int, how: How) -> bool:
    """Whether the logits at every step of a few answers are those of a forward of the whole text."""
    tokens, caps = tokens_of(model, length), [2, 4, 3, 3]
    prompts = [tuple(tokens[-n:]) for n in (length - 4, length // 2, 3 * length // 4, length // 3)]
    config = GenerationConfig(
        do_sample=False, num_beams=1, use_cache=True, return_dict_in_generate=True, output_logits=True, pad_token_id=0
    )

    def read() -> tuple[Tensor, Tensor]:
        steps: list[list[Tensor]] = [[] for _ in prompts]
        with own_generation_config_set_aside(model):
            answers = greedy(model, prompts, caps, config, rows=2, how=how, ended=lambda _: None, steps=steps)
        texts = [(*prompt, *answer) for prompt, answer in zip(prompts, answers, strict=True)]
        plain = [plain_logits(model, text)[-cap - 1 : -1] for text, cap in zip(texts, caps, strict=True)]
        return torch.stack([z_V for logits, cap in zip(steps, caps, strict=True) for z_V in logits[:cap]]), torch.cat(
            plain
        )

    return agree(model, read, None)


def greedy(
    model: Any,
    prompts: Sequence[tuple[int, ...]],
    caps: Sequence[int],
    config: GenerationConfig,
    *,
    rows: int,
    how: How,
    ended: Callable[[int], object],
    steps: list[list[Tensor]] | None = None,
) -> list[list[int]]:
    """The tokens that follow each prompt: up to one of `config.eos_token_id`, itself included, or to its cap.

    At most `rows` answers are under way; more prompts come in, in the order given, when a quarter of the places is
    free, if `how` (`answering`) and the model's cache let them. `ended` is called with the number of answers that have
    just ended. `steps` takes up the logits of each answer's tokens, [V], if `config` asks for them.
    """
    divisible = not any(part._is_stateful for part in model.modules() if isinstance(part, PreTrainedModel))
    ends = set(config.eos_token_id or ())
    answers: list[list[int]] = [[] for _ in prompts]
    if how == "uncached":
        for i, (prompt, cap) in enumerate(zip(prompts, caps, strict=True)):
            answers[i] = _uncached(model, prompt, cap, ends)
            ended(1)
        return answers
    rows = 1 if how == "alone" else rows
    waiting = deque(range(len(prompts)))
    active: _Batch | None = None

    def advance(batch: _Batch, tokens: int) -> _Batch | None:
        config.max_new_tokens = tokens
        out = model.generate(
            input_ids=batch.ids_BT, attention_mask=batch.mask_BT, past_key_values=batch.cache, generation_config=config
        )
        new_BT = out.sequences[:, batch.ids_BT.shape[1] :]
        going = []
        for b, (number, new) in enumerate(zip(batch.numbers, new_BT.tolist(), strict=True)):
            if steps is not None:
                steps[number].extend(z_BV[b] for z_BV in out.logits)
            over = next((i + 1 for i, token in enumerate(new) if token in ends), None)
            answers[number] = [*answers[number], *new[:over]][: caps[number]]
            if over is None and len(answers[number]) < caps[number]:
                going.append(b)
        ended(len(batch.numbers) - len(going))
        if not going:
            return None
        index = torch.tensor(going, device=new_BT.device)
        out.past_key_values.batch_select_indices(index)
        mask_BT = torch.cat([batch.mask_BT, torch.ones_like(new_BT)], -1)[index]
        return _Batch([batch.numbers[b] for b in going], out.sequences[index], mask_BT, out.past_key_values)

    while waiting or active is not None:
        free = rows - (len(active.numbers) if active is not None else 0)
        if waiting and (active is None or (how == "refilled" and 4 * free >= rows and active.takes_more)):
            numbers = [waiting.popleft() for _ in range(min(free, len(waiting)))]
            width = max(len(prompts[number]) for number in numbers)
            padded = [[0] * (width - len(prompts[number])) for number in numbers]
            ids = [[*pad, *prompts[number]] for pad, number in zip(padded, numbers, strict=True)]
            mask = [[*pad, *[1] * (width - len(pad))] for pad in padded]
            fresh = _Batch(numbers, torch.tensor(ids).to(model.device), torch.tensor(mask).to(model.device))
            whole = not divisible or how == "alone"
            fresh = advance(fresh, max(caps[number] for number in numbers) if whole else 1)
            if fresh is not None:
                active = fresh if active is None else active.joined(fresh)
        elif active is not None:
            active = advance(active, min(ROUND, *(caps[n] - len(answers[n]) for n in active.numbers)))
    return answers


def _uncached(model: CausalLM, prompt: tuple[int, ...], cap: int, ends: Collection[int]) -> list[int]:
    """The plain greedy loop, a forward of the whole text for every token."""
    answer: list[int] = []
    while len(answer) < cap and not (answer and answer[-1] in ends):
        answer.append(int(plain_logits(model, (*prompt, *answer))[-1].argmax()))
    return answer


@contextmanager
def own_generation_config_set_aside(model: CausalLM) -> Iterator[None]:
    """`generate` fills every setting we leave open from the model's own; an evaluation must not depend on those.

    The owner may lie inside (the base of a PEFT model), hence the search.
    """
    owners: list[tuple[Any, Any]] = [
        (m, m.generation_config) for m in model.modules() if "generation_config" in vars(m)
    ]
    try:
        for module, _ in owners:
            module.generation_config = GenerationConfig()
        yield
    finally:
        for module, config in owners:
            module.generation_config = config
