"""Sharpness-aware unlearning: the step against its definition, what it leaves alone, and what it is refused with."""

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from expunge import UnlearnConfig, UnlearnTrainer, UserError
from expunge.data.pairs import Role
from expunge.modeling.forward import dense_logps
from expunge.modeling.loading import LoraConfig
from expunge.objectives import GA, KL, NLL, NPO, RMU, Anchor, Objective, OffsetGA
from expunge.objectives.steps import RepSelect
from expunge.training.prepare import check_sharpness
from expunge.training.sharpness import uphill

Rows = tuple[list[dict[str, str]], list[dict[str, str]]]
Make = Callable[..., UnlearnTrainer]


@pytest.fixture
def make(tmp_path: Path, tiny_model: Callable[..., Any], tiny_tokenizer: Any, tiny_rows: Rows) -> Make:
    def trainer(
        objective: Objective | None, retain: Objective | None, *, lora: bool = False, **settings: Any
    ) -> UnlearnTrainer:
        defaults = {
            "per_device_train_batch_size": 6, "save_strategy": "no", "optim": "sgd", "learning_rate": 0.3,
            "weight_decay": 0.0, "max_grad_norm": 0.0, "sam_rho": 0.2, "num_train_epochs": 1,
        }  # fmt: skip
        return UnlearnTrainer(
            tiny_model().double(),
            UnlearnConfig(output_dir=str(tmp_path / "run"), **{**defaults, **settings}),
            objective=objective,
            retain=retain,
            forget_dataset=tiny_rows[0] if objective is not None else (),
            retain_dataset=tiny_rows[1][:6] if retain is not None else (),
            processing_class=tiny_tokenizer,
            peft_config=LoraConfig(r=2).peft() if lora else None,
        )

    return trainer


@pytest.mark.parametrize("retain", [NLL(weight=0.5), None], ids=["nll", "alone"])
def test_the_step_is_that_of_the_definition(make: Make, retain: Objective | None) -> None:
    """θ − η [w_f ∇L_f(θ + ρ g/‖g‖) + w_r ∇L_r(θ)], g = ∇L_f(θ), from dense logits."""
    trainer = make(GA(weight=0.7), retain)
    (batch,) = trainer.get_train_dataloader()
    model: Any = deepcopy(trainer.model)
    weights = list(model.parameters())

    def loss(role: Role) -> Tensor:
        """Times its weight at once: a Llama's norms are in float32, where a factor before and one after round apart."""
        rows = batch["role"] == role
        logp_N = dense_logps(model, *(batch[name][rows] for name in ("input_ids", "attention_mask", "labels")))
        return 0.7 * logp_N.mean() if role == Role.FORGET else 0.5 * -logp_N.mean()

    start = [w.detach().clone() for w in weights]
    g = torch.autograd.grad(loss(Role.FORGET), weights)
    norm = torch.cat([x.flatten() for x in g]).norm()
    kept = torch.autograd.grad(loss(Role.RETAIN), weights) if retain is not None else [torch.zeros_like(w) for w in g]
    with torch.no_grad():
        for w, x in zip(weights, g, strict=True):
            w.add_(0.2 * x / norm)
    there = loss(Role.FORGET)
    up = torch.autograd.grad(there, weights)
    trainer.train()
    for w, before, a, b in zip(trainer.model.parameters(), start, up, kept, strict=True):
        torch.testing.assert_close(w.data, before - 0.3 * (a + b), rtol=1e-10, atol=1e-12)
    row = trainer.state.log_history[0]
    assert row["forget_loss"] == pytest.approx(there.item() / 0.7, rel=1e-6)
    assert row["loss"] == pytest.approx(0.7 * row["forget_loss"] + 0.5 * row.get("retain_loss", 0.0), rel=1e-6)


@pytest.mark.parametrize(
    ("objective", "retain", "lora"),
    [(NPO(), KL(), False), (NPO(), KL(), True), (RMU(layer=1), Anchor(layer=1), False)],
    ids=["npo+kl", "npo+kl lora", "rmu"],
)
def test_it_goes_with_any_objective(make: Make, objective: Objective, retain: Objective, lora: bool) -> None:
    """Another training than without; what does not train stays, and a step logs each term once."""
    ends: list[dict[str, Tensor]] = []
    for rho in (None, 0.2):
        trainer = make(
            objective, retain, lora=lora, sam_rho=rho, num_train_epochs=2, per_device_train_batch_size=3,
            learning_rate=1e-2, reference="adapter_off" if lora else "auto",
        )  # fmt: skip
        before = {name: p.detach().clone() for name, p in trainer.model.named_parameters() if not p.requires_grad}
        trainer.train()
        own = dict(trainer.model.named_parameters())
        assert all(torch.equal(own[name], value) for name, value in before.items())
        ends.append({name: p.detach() for name, p in own.items() if p.requires_grad})
        logged = [row for row in trainer.state.log_history if "loss" in row]
        assert len(logged) == 4
        for row in logged:
            terms = objective.weight * row["forget_loss"] + retain.weight * row["retain_loss"]
            assert row["loss"] == pytest.approx(terms, rel=1e-5)
    assert any(not torch.equal(p, ends[1][name]) for name, p in ends[0].items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_weights_come_back_bit_by_bit(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layer = torch.nn.Linear(5, 7).to(dtype)
    unused = torch.nn.Parameter(torch.ones(2))
    layer(torch.randn(3, 5, dtype=dtype)).square().sum().backward()
    before = [p.detach().clone() for p in layer.parameters()]
    with uphill([*layer.parameters(), unused], 0.1):
        away = torch.stack(
            [(p.detach() - b).float().square().sum() for p, b in zip(layer.parameters(), before, strict=True)]
        ).sum()
        assert away.sqrt().item() == pytest.approx(0.1, rel=2e-2)
        assert all(p.grad is None for p in layer.parameters())
    assert all(torch.equal(p, b) for p, b in zip(layer.parameters(), before, strict=True))
    assert torch.equal(unused, torch.ones(2))


def test_where_nothing_points_anywhere_the_weights_stay() -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    weight.grad = torch.zeros(3)
    with uphill([weight], 0.1):
        assert torch.equal(weight, torch.ones(3))


def test_what_it_is_refused_with(make: Make) -> None:
    for settings, says in (
        ({"gradient_accumulation_steps": 2}, "gradient_accumulation_steps can't be used with sam_rho, which moves the"),
        ({"sam_rho": 0.0}, "sam_rho must be more than 0, got 0"),
    ):
        with pytest.raises(UserError, match=says):
            make(GA(), NLL(), **settings)
    with pytest.raises(UserError, match=r"sam_rho makes forgetting hold .* and nothing is forgotten; leave it out"):
        make(None, NLL())
    with pytest.raises(UserError, match="and offset-ga trains an assistant; leave it out"):
        make(OffsetGA(), None)


def test_adam_without_memory_takes_steps_of_the_sign(make: Make) -> None:
    """−η sign(g), as docs/papers.md says; g from a step of plain gradient descent."""
    moves: list[list[Tensor]] = []
    for settings in (
        {"optim": "sgd", "learning_rate": 1.0},
        {"optim": "adamw_torch", "learning_rate": 1e-3, "adam_beta1": 0.0, "adam_beta2": 0.0, "adam_epsilon": 1e-30},
    ):
        trainer = make(GA(), NLL(), sam_rho=None, **settings)
        before = [p.detach().clone() for p in trainer.model.parameters()]
        trainer.train()
        moves.append([p.detach() - b for p, b in zip(trainer.model.parameters(), before, strict=True)])
    for plain, sign in zip(*moves, strict=True):
        clear = plain.abs() > 1e-12  # the rest may be rounding
        torch.testing.assert_close(sign[clear], 1e-3 * plain[clear].sign(), rtol=1e-9, atol=0)


def test_a_step_on_the_weights_has_no_use_for_it() -> None:
    with pytest.raises(UserError, match="and repselect trains nothing; leave it out"):
        check_sharpness(RepSelect(), UnlearnConfig(sam_rho=0.1))
