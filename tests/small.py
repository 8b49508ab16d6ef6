"""A recipe so small that a run of it takes seconds."""

from typing import Any

FABLE: dict[str, Any] = {
    "benchmark": {"name": "fable", "authors": 10, "facts": 3, "split": "forget20"},
    "model": {"scratch": {"layers": 1, "hidden": 16, "heads": 2, "vocab": 400, "context": 96}},
    "finetune": {"epochs": 1},
    "train": {"num_train_epochs": 1, "per_device_train_batch_size": 2, "learning_rate": 1e-3},
    "evaluate": {"max_new_tokens": 4, "limit": 2, "each_epoch_limit": 2},
}
