"""The weight of a retain term with a budget: after each step, however a step is cut up, and after a resume."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from expunge import UnlearnConfig, UnlearnTrainer, UserError
from expunge.objectives import JSD, KL, NLL, PDU, RETAIN, Anchor, Kept

Rows = tuple[list[dict[str, str]], list[dict[str, str]]]
Train = Callable[..., UnlearnTrainer]


@pytest.fixture
def make(tmp_path: Path, tiny_model: Callable[..., Any], tiny_tokenizer: Any, tiny_rows: Rows) -> Train:
    def trainer(retain: Kept, out: str = "run", **settings: Any) -> UnlearnTrainer:
        defaults = {"per_device_train_batch_size": 3, "save_strategy": "no", "learning_rate": 3e-2, "optim": "sgd"}
        return UnlearnTrainer(
            tiny_model(),
            UnlearnConfig(output_dir=str(tmp_path / out), **{**defaults, **settings}),
            objective=PDU(weight=0.1),
            retain=retain,
            forget_dataset=tiny_rows[0],
            retain_dataset=tiny_rows[1][:6],
            processing_class=tiny_tokenizer,
        )

    return trainer


def rows(trainer: UnlearnTrainer) -> list[dict[str, float]]:
    return [row for row in trainer.state.log_history if "loss" in row]


@pytest.mark.parametrize("retain", [
    NLL(budget=5.0, weight=0.2), NLL(budget=8.0, budget_rate=0.1), KL(budget=1e-6, budget_rate=1e3, weight=0),
    JSD(budget=0.0), Anchor(budget=1e-3, budget_rate=100, layer=1),
], ids=["over", "under, down to 0", "kl from 0", "jsd", "anchor"])  # fmt: skip
def test_the_weight_follows_the_loss_of_each_step(make: Train, retain: Kept) -> None:
    trainer = make(retain, num_train_epochs=4)
    trainer.train()
    weight, seen = retain.weight, []
    assert retain.budget is not None
    for row in rows(trainer):
        assert row["loss"] == pytest.approx(0.1 * row["forget_loss"] + weight * row["retain_loss"], rel=1e-5)
        weight = max(0.0, weight + retain.budget_rate * (row["retain_loss"] - retain.budget))
        assert row["retain_weight"] == pytest.approx(weight, rel=1e-6)
        seen.append(weight)
    assert len({retain.weight, *seen}) > 2, "it did not move"
    assert (seen[-1] == 0) == (retain.budget == 8.0)


def test_every_retain_objective_may_have_a_budget() -> None:
    assert all(issubclass(cls, Kept) for cls in RETAIN.values())


def test_a_step_in_parts_has_one_weight(make: Train) -> None:
    """6 × 1 and 1 × 6, logged every other step: three steps with the same weights of model and term."""
    ends = []
    for size, parts in ((6, 1), (1, 6)):
        trainer = make(
            NLL(budget=5.0), per_device_train_batch_size=size, gradient_accumulation_steps=parts, logging_steps=2,
            num_train_epochs=4,
        )  # fmt: skip
        trainer.train()
        ends.append(([row["retain_weight"] for row in rows(trainer)], torch.nn.utils.parameters_to_vector(
            trainer.model.parameters()
        )))  # fmt: skip
    assert len(ends[0][0]) == 2
    assert ends[0][0] == pytest.approx(ends[1][0], rel=1e-5)
    torch.testing.assert_close(ends[0][1], ends[1][1], rtol=1e-5, atol=1e-6)


def test_a_resumed_training_has_the_weight_of_its_checkpoint(make: Train, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"num_train_epochs": 4, "save_strategy": "epoch", "save_total_limit": 9}
    whole = make(NLL(budget=5.0), **settings)
    whole.train()
    again = make(NLL(budget=5.0), **settings)
    again.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-4"))
    assert [(row["step"], row["retain_weight"]) for row in rows(again)] == [
        (row["step"], row["retain_weight"]) for row in rows(whole)
    ]
    logged = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["retain_weight"] for row in logged if "loss" in row] == [row["retain_weight"] for row in rows(whole)]
    again.train()  # from the start, and so from the first weight
    assert rows(again)[0]["retain_weight"] == pytest.approx(1 + rows(again)[0]["retain_loss"] - 5)


def test_a_checkpoint_without_a_budget(make: Train, tmp_path: Path) -> None:
    make(NLL(), num_train_epochs=1, save_strategy="epoch").train()
    with pytest.raises(UserError, match="its retain term had no budget; leave budget out, or start over"):
        make(NLL(budget=1.0), num_train_epochs=2).train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))


def test_a_rate_without_a_budget_is_refused() -> None:
    with pytest.raises(UserError, match="NLL: budget_rate does nothing without a budget; give one, or leave"):
        NLL(budget_rate=0.5)
    with pytest.raises(UserError, match="KL: budget must be at least 0, got -1"):
        KL(budget=-1)
