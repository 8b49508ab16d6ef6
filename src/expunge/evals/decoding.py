"""Greedy answers to many prompts at once: who has ended leaves, who waits comes in.

`transformers`' own `generate` decodes, a few tokens at a time; between two such rounds the batch changes. Knows token
ids, caches and when an answer is over; knows nothing of what is asked or of texts.

Shapes: `B` answers under way, `T` tokens read of each, padded on the left.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel
from transformers.cache_utils import DynamicLayer

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


def greedy(
    model: Any,
    prompts: Sequence[tuple[int, ...]],
    caps: Sequence[int],
    config: GenerationConfig,
    *,
    rows: int,
    ended: Callable[[int], object],
) -> list[list[int]]:
    """What follows each prompt: up to and with one of `config.eos_token_id`, or as many tokens as its cap says.

    At most `rows` answers are under way; more prompts come in, in the order given, when a quarter of the places is
    free. `ended` is called with the number of answers that have just ended. Models whose state can't be divided answer
    one batch after the other.
    """
    divisible = not any(part._is_stateful for part in model.modules() if isinstance(part, PreTrainedModel))
    ends = set(config.eos_token_id)
    told: list[list[int]] = [[] for _ in prompts]
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
            over = next((i + 1 for i, token in enumerate(new) if token in ends), None)
            told[number] = [*told[number], *new[:over]][: caps[number]]
            if over is None and len(told[number]) < caps[number]:
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
        if waiting and (active is None or (4 * free >= rows and active.takes_more)):
            numbers = [waiting.popleft() for _ in range(min(free, len(waiting)))]
            width = max(len(prompts[number]) for number in numbers)
            padded = [[0] * (width - len(prompts[number])) for number in numbers]
            ids = [[*pad, *prompts[number]] for pad, number in zip(padded, numbers, strict=True)]
            mask = [[*pad, *[1] * (width - len(pad))] for pad in padded]
            fresh = _Batch(numbers, torch.tensor(ids).to(model.device), torch.tensor(mask).to(model.device))
            fresh = advance(fresh, 1 if divisible else max(caps[number] for number in numbers))
            if fresh is not None:
                active = fresh if active is None else active.joined(fresh)
        elif active is not None:
            active = advance(active, min(ROUND, *(caps[n] - len(told[n]) for n in active.numbers)))
    return told
