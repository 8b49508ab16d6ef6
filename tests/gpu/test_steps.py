"""A step of every method on CUDA: loss and gradient beside float64, twenty steps beside the CPU, no waiting."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from expunge import UnlearnTrainer
from tests.test_golden import GOLDEN, METHODS, folder, trainer_of  # noqa: F401 (a fixture)

ERROR = {torch.float32: 1e-4, torch.bfloat16: 0.05}
"""The largest distance of a gradient from float64's, as a share of its length."""


def first_batch(trainer: UnlearnTrainer) -> tuple[dict[str, Tensor], Tensor]:
    """The batch of the first step, on the device, and its counts."""
    batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    return batch, trainer._get_num_items_in_batch([batch], trainer.args.device)


def move_away(model: torch.nn.Module) -> None:
    """Change what trains, as some steps would: the same change on every device, exact in bfloat16."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _, p in sorted(model.named_parameters()):
            if p.requires_grad:
                noise = 0.02 * torch.randn(p.shape, generator=generator)
                p.copy_((p.cpu().float() + noise).bfloat16().to(p))


def loss_and_gradient(trainer: UnlearnTrainer, dtype: torch.dtype) -> tuple[float, Tensor]:
    model: Any = trainer.model
    move_away(model)
    model.to(dtype)
    batch, counts = first_batch(trainer)
    loss = trainer.compute_loss(model, batch, num_items_in_batch=counts)
    loss.backward()
    parts = [p.grad.flatten().double().cpu() for _, p in sorted(model.named_parameters()) if p.grad is not None]
    return loss.item(), torch.cat(parts)


@pytest.fixture
def exact(folder: Path, tiny_model: Callable[..., Any]) -> Path:  # noqa: F811
    """The folder of the golden losses, with weights that bfloat16 holds exactly."""
    from expunge.modeling.loading import load, save

    _, tokenizer = load(folder / "model")
    save(tiny_model().bfloat16().float(), tokenizer, folder / "model")
    return folder


@pytest.mark.parametrize("method", METHODS)
def test_loss_and_gradient_are_those_of_float64(method: str, exact: Path) -> None:
    loss, gradient = loss_and_gradient(trainer_of(method, exact, **{"train.use_cpu": True}), torch.float64)
    for dtype, most in ERROR.items():
        found, of_device = loss_and_gradient(trainer_of(method, exact), dtype)
        assert found == pytest.approx(loss, rel=most, abs=most), dtype
        assert (of_device - gradient).norm() <= most * gradient.norm(), dtype


@pytest.mark.parametrize("method", METHODS)
def test_twenty_steps_are_those_of_the_cpu(method: str, folder: Path) -> None:  # noqa: F811
    trainer = trainer_of(method, folder)
    trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert losses == pytest.approx(json.loads(GOLDEN.read_text())[method], rel=2e-3, abs=2e-4)


@pytest.mark.parametrize("method", METHODS)
def test_a_step_waits_for_nothing(method: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    """Forward and backward are queued without the host waiting for the device, but where transformers itself asks the
    mask whether it hides anything."""
    monkeypatch.setattr("transformers.masking_utils._ignore_causal_mask_sdpa", lambda *_args, **_options: False)
    trainer = trainer_of(method, folder)
    batch, counts = first_batch(trainer)
    for wait in ("default", "error"):
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode(wait)
        try:
            trainer.compute_loss(trainer.model, batch, num_items_in_batch=counts).backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")
