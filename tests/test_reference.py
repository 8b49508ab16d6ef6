"""Four ways to ask the starting model, one answer."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from expunge import UnlearnConfig, UnlearnTrainer, UserError, objectives
from expunge.data.pairs import Role
from expunge.modeling.forward import supervised
from expunge.modeling.loading import LoraConfig
from expunge.objectives import Objective
from expunge.training import reference

Rows = tuple[list[dict[str, str]], list[dict[str, str]]]

NPO, KL, UNDIAL = objectives.NPO(), objectives.KL(), objectives.UnDIAL()
RMU, ANCHOR = objectives.RMU(layer=1), objectives.Anchor(layer=1, weight=1.0)


@pytest.fixture
def losses(tmp_path: Path, tiny_model: Callable[..., Any], tiny_tokenizer: Any, tiny_rows: Rows) -> Callable[..., Any]:
    """Losses of six steps with one kind of reference, and the kind that was chosen."""

    def train(objective: Objective, retain: Objective, kind: str, lora: bool) -> tuple[list[float], str]:
        trainer = UnlearnTrainer(
            tiny_model(),
            UnlearnConfig(
                output_dir=str(tmp_path),
                num_train_epochs=2,
                per_device_train_batch_size=2,
                learning_rate=1e-2,
                save_strategy="no",
                reference=kind,  # pyright: ignore[reportArgumentType]
            ),
            objective=objective,
            retain=retain,
            forget_dataset=tiny_rows[0],
            retain_dataset=tiny_rows[1],
            processing_class=tiny_tokenizer,
            peft_config=LoraConfig(r=2).peft() if lora else None,
        )
        trainer.train()
        assert trainer.reference is not None
        return [row["loss"] for row in trainer.state.log_history if "loss" in row], trainer.reference.kind

    return train


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize(
    ("objective", "retain"),
    [(NPO, objectives.NLL()), (NPO, KL), (UNDIAL, KL), (RMU, ANCHOR)],
    ids=["npo+nll", "npo+kl", "undial+kl", "rmu"],
)
def test_all_kinds_give_the_same_losses(
    losses: Callable[..., Any], objective: Objective, retain: Objective, lora: bool
) -> None:
    kinds = ["cached_hidden", "frozen_copy"]
    if lora:
        kinds.append("adapter_off")
    if not (objective.needs.divergence or retain.needs.divergence or retain.needs.reference_layer):
        kinds.append("cached_logps")
    runs = {kind: losses(objective, retain, kind, lora)[0] for kind in kinds}
    first = runs.pop("cached_hidden")
    assert len(first) == 6
    assert abs(first[-1] - first[0]) > 1e-4  # training moves, so the reference is more than the model itself
    for kind, values in runs.items():
        assert values == pytest.approx(first, rel=1e-5, abs=1e-6), kind


def test_the_automatic_choice(losses: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    assert losses(NPO, objectives.NLL(), "auto", False)[1] == "cached_logps"
    assert losses(NPO, KL, "auto", False)[1] == "cached_hidden"
    monkeypatch.setattr(reference, "CACHE_BYTES", 0)
    assert losses(NPO, KL, "auto", False)[1] == "frozen_copy"
    assert losses(NPO, KL, "auto", True)[1] == "adapter_off"


@pytest.mark.parametrize(
    ("kind", "retain", "says"),
    [
        ("cached_logps", KL, "whole distributions"),
        ("adapter_off", KL, "full fine-tuning"),
        ("cached_logp", KL, "Did you mean 'cached_logps'"),
    ],
)
def test_impossible_kinds(losses: Callable[..., Any], kind: str, retain: Objective, says: str) -> None:
    with pytest.raises(UserError, match=says):
        losses(NPO, retain, kind, False)


def test_a_distribution_recovered_from_hidden_states_is_the_starting_models(
    tiny_model: Callable[..., Any], tiny_tokenizer: Any, tiny_rows: Rows, tmp_path: Path
) -> None:
    """KL to the start is zero at the start and only there, with the head itself among what trains."""
    trainer = UnlearnTrainer(
        tiny_model(),
        UnlearnConfig(output_dir=str(tmp_path), max_steps=3, learning_rate=1e-2, save_strategy="no"),
        objective=objectives.GA(),
        retain=KL,
        forget_dataset=tiny_rows[0],
        retain_dataset=tiny_rows[1],
        processing_class=tiny_tokenizer,
    )
    trainer.train()
    values = [row["retain_loss"] for row in trainer.state.log_history if "retain_loss" in row]
    assert abs(values[0]) < 1e-6
    assert all(value > 1e-4 for value in values[1:])
    assert torch.isfinite(torch.tensor(values)).all()


def test_only_rows_that_training_sees_are_cached(
    tiny_model: Callable[..., Any], tiny_tokenizer: Any, tiny_rows: Rows, tmp_path: Path
) -> None:
    """Two forget rows meet four retain rows in two epochs; the other five are never looked up."""
    trainer = UnlearnTrainer(
        tiny_model(),
        UnlearnConfig(output_dir=str(tmp_path), num_train_epochs=2, per_device_train_batch_size=2, save_strategy="no"),
        objective=objectives.GA(),
        retain=KL,
        forget_dataset=tiny_rows[0][:2],
        retain_dataset=tiny_rows[1],
        processing_class=tiny_tokenizer,
    )
    assert isinstance(trainer.reference, reference.CachedReference)
    assert len(trainer.reference.rows) == 4
    trainer.train()


def test_a_trainer_without_a_forget_set_caches_every_retain_row(
    tiny_model: Callable[..., Any], tiny_tokenizer: Any, tiny_rows: Rows, tmp_path: Path
) -> None:
    trainer = UnlearnTrainer(
        tiny_model(),
        UnlearnConfig(output_dir=str(tmp_path), num_train_epochs=1, per_device_train_batch_size=2, save_strategy="no"),
        retain=KL,
        retain_dataset=tiny_rows[1],
        processing_class=tiny_tokenizer,
    )
    assert isinstance(trainer.reference, reference.CachedReference)
    assert len(trainer.reference.rows) == 9
    trainer.train()


@pytest.mark.parametrize("kind", ["cached_hidden", "frozen_copy"])
def test_a_teacher_speaks_of_the_forget_rows_and_the_start_of_the_others(
    tiny_model: Callable[..., Any], tiny_tokenizer: Any, tiny_rows: Rows, tmp_path: Path, kind: Any
) -> None:
    model, teacher = tiny_model(), tiny_model()
    with torch.no_grad():
        for p in teacher.parameters():
            p.mul_(1.1)
    trainer = UnlearnTrainer(
        model,
        UnlearnConfig(output_dir=str(tmp_path), per_device_train_batch_size=2, save_strategy="no", reference=kind),
        objective=objectives.ULDDistilled(match="forward"),
        retain=KL,
        forget_dataset=tiny_rows[0],
        retain_dataset=tiny_rows[1],
        processing_class=tiny_tokenizer,
        teacher=teacher,
    )
    batch = next(iter(trainer.get_train_dataloader()))
    assert trainer.reference is not None
    found = trainer.reference(batch)
    for role, speaker in ((Role.FORGET, teacher), (Role.RETAIN, model)):
        mine = batch["role"] == role
        ids, mask, labels = (batch[name][mine] for name in ("input_ids", "attention_mask", "labels"))
        with torch.no_grad():
            expected_NV = speaker(input_ids=ids, attention_mask=mask).logits[supervised(labels)[0]]
        hidden_ND = found[role].hidden_ND
        assert hidden_ND is not None
        torch.testing.assert_close(trainer.reference.head_for(role).logits(hidden_ND), expected_NV)
    trainer.train()
