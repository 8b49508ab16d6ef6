"""A recipe so small that a run of it takes seconds, and words of a command."""

from collections.abc import Sequence
from typing import Any

FABLE: dict[str, Any] = {
    "benchmark": {"name": "fable", "authors": 10, "facts": 3, "split": "forget20"},
    "model": {"scratch": {"layers": 1, "hidden": 16, "heads": 2, "vocab": 400, "context": 96}},
    "finetune": {"epochs": 1},
    "train": {"num_train_epochs": 1, "per_device_train_batch_size": 2, "learning_rate": 1e-3},
    "evaluate": {"max_new_tokens": 4, "limit": 2, "each_epoch_limit": 2},
}


def changed(words: Sequence[str], *new: str) -> list[str]:
    """A command's words with other options after them, in place of those of the same name: each is given once."""
    kept = list(words)
    for option in new:
        if option.startswith("--") and option in kept:
            i = kept.index(option)
            del kept[i : i + 2]
    return [*kept, *new]
