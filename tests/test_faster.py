"""A training that gets nowhere takes a higher learning rate, and a resumed one the same."""

from pathlib import Path
from typing import Any

import pytest
import torch

from expunge.errors import UserError
from expunge.recipe.parsing import load_recipe
from expunge.training.arguments import UnlearnConfig
from expunge.training.faster import FasterWhenStuck
from expunge.training.trainer import UnlearnTrainer

STUCK = (0.9, 0.89, 0.88, 0.5, 0.4, 0.3)
"""Forget probability after each epoch: after two of six next to nothing is forgotten, after four enough."""


def test_the_rate_is_raised_where_nearly_nothing_is_forgotten() -> None:
    faster = FasterWhenStuck(before=0.9, goal=0.1)
    assert [faster.see(epoch, 6, p) for epoch, p in enumerate(STUCK, 1)] == [False, True, False, False, False, False]
    assert faster.words == "after epoch 2 the learning rate was trebled, since little had been forgotten"
    never, always = FasterWhenStuck(0.9, 0.1), FasterWhenStuck(0.9, 0.1)
    assert [never.see(epoch, 3, 0.6) for epoch in (1, 2, 3)] == [False] * 3 and never.words == ""
    assert [always.see(epoch, 3, 0.9) for epoch in (1, 2, 3)] == [True, True, False]
    assert always.words.startswith("after epoch 1 and 2 the learning rate")


def trainer(folder: Path, model: Any, tokenizer: Any, rows: Any, *, after: int = 0) -> UnlearnTrainer:
    """A training whose evaluations find `STUCK`, from the epoch `after` on."""
    left = iter(STUCK[after:])
    made = UnlearnTrainer(
        model,
        UnlearnConfig(
            output_dir=str(folder), num_train_epochs=6, per_device_train_batch_size=2, learning_rate=1e-3,
            eval_strategy="epoch", save_strategy="epoch", save_total_limit=6, logging_steps=1, report_to=[],
            disable_tqdm=True, use_cpu=True,
        ),
        objective="npo", retain="nll", forget_dataset=rows[0], retain_dataset=rows[1],
        processing_class=tokenizer, evaluate=lambda _: {"forget_probability": next(left)},
    )  # fmt: skip
    made.add_callback(FasterWhenStuck(before=0.9, goal=0.1))
    return made


def test_a_resumed_training_goes_on_with_the_higher_rate(
    tiny_model: Any, tiny_tokenizer: Any, tiny_rows: Any, tmp_path: Path
) -> None:
    whole = trainer(tmp_path / "whole", tiny_model(), tiny_tokenizer, tiny_rows)
    whole.train()
    steps = whole.state.max_steps // 6
    rates = [row["learning_rate"] for row in whole.state.log_history if "learning_rate" in row]
    schedule: Any = whole.lr_scheduler
    plain = schedule.lr_lambdas[0]
    expected = [1e-3 * plain(step) * (1 if step <= 2 * steps else 3) for step in range(6 * steps)]
    assert rates == pytest.approx(expected)

    for epoch in (2, 4):  # right after it was raised, and later
        again = trainer(tmp_path / f"{epoch}", tiny_model(), tiny_tokenizer, tiny_rows, after=epoch)
        again.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{epoch * steps}"))
        for name, weight in whole.model.state_dict().items():
            assert torch.equal(weight, again.model.state_dict()[name]), name


def test_it_needs_a_goal() -> None:
    with pytest.raises(UserError, match="raise_rate needs the goal of stop_when_forgotten"):
        load_recipe(None, [("evaluate.raise_rate", "true"), ("benchmark", "fable"), ("model.scratch", "{}")])
