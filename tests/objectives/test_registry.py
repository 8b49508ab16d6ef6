"""The objectives by name: what a method's name means, what is said of each objective, what all of them promise."""

from collections.abc import Callable
from dataclasses import MISSING, fields

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from expunge.errors import UserError
from expunge.objectives import (
    FORGET,
    NPO,
    RETAIN,
    RMU,
    STEPS,
    ForgetObjective,
    Needs,
    Objective,
    Signals,
    Way,
    describe,
    split_method,
)

SignalsOf = Callable[[Objective, Tensor], Signals]
EVERY = [pytest.param(cls, id=name) for name, cls in {**FORGET, **RETAIN}.items()]


@pytest.mark.parametrize(
    ("method", "forget", "retain"),
    [
        ("ga", "ga", None),
        ("unilogit+nll", "unilogit", "nll"),
        ("npo+gd", "npo", "nll"),
        ("npo+kl", "npo", "kl"),
        ("idk+kl", "dpo", "kl"),
        ("rmu+anchor", "rmu", "anchor"),
        (" NPO + KL ", "npo", "kl"),
    ],
)
def test_split_method(method: str, forget: str, retain: str | None) -> None:
    expected = {"forget": {"name": forget}} | ({"retain": {"name": retain}} if retain else {})
    assert split_method(method) == expected


@pytest.mark.parametrize("forget", [name for name, cls in FORGET.items() if not cls.alone])
@pytest.mark.parametrize("retain", RETAIN)
def test_every_pair_has_a_name(forget: str, retain: str) -> None:
    assert split_method(f"{forget}+{retain}") == {"forget": {"name": forget}, "retain": {"name": retain}}


@pytest.mark.parametrize(
    ("method", "says"),
    [
        ("unilogitt", r"'unilogitt' is not a forget objective\. Did you mean 'unilogit'\? Known: ga, dpo, altpo, npo"),
        ("npo+nl", r"'nl' is not a retain objective\. Did you mean 'nll'\? Known: nll, kl, jsd, anchor"),
        ("npo+idk", r"'idk' is not a retain objective\. Known"),
        ("gd", r"'gd' is not a forget objective\."),
        ("kl+npo", r"'kl' is a retain objective; name a forget objective before it: npo\+kl"),
        ("npo+", r"'' is not a retain objective\. Known"),
        ("", r"'' is not a forget objective\. Known"),
        ("uld+kl", "'uld\\+kl': uld brings its own retain term; name it without \\+kl"),
        ("repselect+kl", "'repselect\\+kl': repselect is a step on the weights and has no retain term; name it alone"),
        ("npo+nll+kl", r"'nll\+kl' is not a retain objective\."),
    ],
)
def test_unknown_names(method: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        split_method(method)


@pytest.mark.parametrize(("registry", "kind"), [(FORGET, "forget"), (RETAIN, "retain"), (STEPS, "step")])
def test_describe(registry: dict[str, type[Way]], kind: str) -> None:
    for name, cls in registry.items():
        row = describe(cls, kind)
        assert (row["name"], row["kind"]) == (name, kind)
        assert row["use_when"], f"{cls.__name__} does not say when to use it"
        assert "Source" not in row["use_when"]
        assert "arXiv" in row["source"], f"{cls.__name__} does not name its paper"
        assert row["options"] == {k: v for k, v in cls().model_dump().items() if k != "name"}


def test_describe_reads_what_is_declared() -> None:
    said = {name: describe(cls, "forget") for name, cls in FORGET.items()}
    assert (said["ga"]["reads"], said["ga"]["reference"]) == (["logp"], False)
    assert (said["npo"]["reads"], said["npo"]["reference"]) == (["logp", "reference_logp"], True)
    assert (said["dpo"]["reads"], said["dpo"]["reference"]) == (["logp", "reference_logp", "refusal"], True)
    assert (said["undial"]["reads"], said["undial"]["reference"]) == (["divergence"], True)
    assert (said["rmu"]["reads"], said["rmu"]["reference"]) == (["layer"], False)
    assert said["npo"]["options"] == {"weight": 1.0, "beta": 0.1}


@pytest.mark.parametrize("cls", EVERY)
def test_configs_are_frozen_and_strict(cls: type[Objective]) -> None:
    with pytest.raises(ValidationError, match="frozen"):
        cls().weight = 2.0
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        cls.model_validate({"strength": 1.0})
    with pytest.raises(ValidationError, match="greater than or equal to 0"):
        cls.model_validate({"weight": -1.0})
    assert cls.model_validate_json(cls().model_dump_json()) == cls()


@pytest.mark.parametrize("cls", EVERY)
def test_made_in_python_a_mistake_is_one_sentence(cls: type[Objective]) -> None:
    name = cls.__name__
    for options, says in (
        ({"weight": -1}, f"{name}: weight must be at least 0, got -1."),
        ({"weight": "much"}, f"{name}: weight: 'much' is not valid (input should be a valid number"),
        ({"weigth": 1, "weight": -1}, f"{name}: unknown option 'weigth'. Did you mean 'weight'? Known: weight"),
    ):
        with pytest.raises(UserError) as error:
            cls(**options)
        assert str(error.value).startswith(says) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "config",
    [{"name": "npo", "beta": 0}, {"name": "simnpo", "gamma": -1}, {"name": "undial", "beta": -1}, {"name": "nll"}],
)
def test_a_recipe_cannot_ask_for_nonsense(config: dict) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(ForgetObjective).validate_python(config)


def test_a_recipe_names_its_objective() -> None:
    adapter = TypeAdapter(ForgetObjective)
    assert adapter.validate_python({"name": "npo", "beta": 0.5}) == NPO(beta=0.5)
    assert adapter.validate_python({"name": "rmu", "layer": 0}) == RMU(layer=0)


@pytest.mark.parametrize("cls", EVERY)
def test_one_value_per_token_or_sequence(cls: type[Objective], signals_of: SignalsOf, logits_NV: Tensor) -> None:
    """From the declared signals alone: every other field of `Signals` is absent here."""
    s = signals_of(cls(), logits_NV.requires_grad_())
    loss = cls().loss(s)
    assert loss.shape == ((len(s.sequence_N),) if cls.per == "token" else (s.sequences,))
    assert loss.requires_grad
    assert loss.dtype == torch.float64


@pytest.mark.parametrize("cls", EVERY)
@pytest.mark.parametrize("margin", [0.0, 30.0, 200.0, -30.0, -200.0])
def test_finite_at_both_ends_in_float32(
    cls: type[Objective], signals_of: SignalsOf, logits_NV: Tensor, target_N: Tensor, margin: float
) -> None:
    """Targets certain to the last bit of a float32 (ℓ = 0) and targets below its smallest number (p = 0)."""
    z_NV = logits_NV.float()
    z_NV[torch.arange(len(z_NV)), target_N] += margin
    z_NV.requires_grad_()
    loss = cls().loss(signals_of(cls(), z_NV))
    loss.sum().backward()
    assert loss.isfinite().all()
    assert z_NV.grad is not None
    assert z_NV.grad.isfinite().all()


def test_every_need_is_a_signal_and_every_optional_signal_a_need() -> None:
    """A need that no signal answers, or a signal that nothing can ask for, is a slip."""
    optional = [f for f in fields(Signals) if f.default is not MISSING and f.name != "place_N"]
    assert {f.name for f in fields(Needs)} == {f.name.removesuffix("_N").removesuffix("_ND") for f in optional}
