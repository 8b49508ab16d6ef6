"""What is asked of models without weights: against what autograd really keeps, and where they can't say."""

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, MixtralConfig

from expunge.data.pairs import Role
from expunge.objectives.base import Divergence, Needs
from expunge.training import memory
from expunge.training.arguments import UnlearnConfig

SIZE: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
}
BATCH = memory.BatchSize(4, 16, {Role.FORGET: 20, Role.RETAIN: 20, Role.REFUSAL: 0})
NEEDS = {Role.FORGET: Needs(logp=True), Role.RETAIN: Needs(divergence=Divergence("forward")), Role.REFUSAL: Needs()}


def arguments(**keys: Any) -> UnlearnConfig:
    return UnlearnConfig(output_dir="unused", use_cpu=True, **keys)


def outline(config: Any) -> Any:
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def peak(config: Any, **keys: Any) -> memory.Memory:
    return memory.peak(outline(config), BATCH, NEEDS, arguments(**keys), 0.0)


def test_activations_are_what_autograd_keeps() -> None:
    config = LlamaConfig(**SIZE)
    model = AutoModelForCausalLM.from_config(config).train()
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(x: torch.Tensor) -> torch.Tensor:
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage()
        return x

    ids = torch.ones(BATCH.sequences, BATCH.positions, dtype=torch.long)
    mask = ids.clone()
    mask[0, -1] = 0  # a batch with padding, as nearly all are
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        _held = model.model(input_ids=ids, attention_mask=mask, use_cache=False)
    real = sum(storage.nbytes() for place, storage in kept.items() if place not in own) / memory.MIB
    assert peak(config).activations == pytest.approx(real, rel=0.03)


def test_the_two_moments() -> None:
    """What is given back counts once: gradients come when activations go."""
    config = LlamaConfig(**SIZE)
    kept, freed = (
        memory.peak(outline(config), BATCH, NEEDS, arguments(), 0.0, gives_back=given) for given in (False, True)
    )
    assert freed.total < kept.total
    assert kept.gradients == pytest.approx(kept.weights, rel=0.01)
    head = 300 * 32 * 4 / memory.MIB
    # In the head: one gradient of it for log-probabilities and divergence, and 3 rows of logits a token.
    assert freed.gradients == pytest.approx(head)
    assert freed.logits == pytest.approx(3 * 20 * 300 * 4 / memory.MIB)


def test_accumulation_keeps_gradients() -> None:
    config = LlamaConfig(**SIZE)
    usual = memory.peak(outline(config), BATCH, NEEDS, arguments(), 0.0, gives_back=True)
    more = arguments(gradient_accumulation_steps=2)
    held = memory.peak(outline(config), BATCH, NEEDS, more, 0.0, gives_back=True)
    assert held.gradients == pytest.approx(usual.gradients + held.weights, rel=0.01)


def test_low_precision_halves_activations() -> None:
    config = LlamaConfig(**SIZE)
    assert 0.4 < peak(config, bf16=True).activations / peak(config).activations < 1


def test_a_way_that_depends_on_values_is_counted_otherwise() -> None:
    found = peak(MixtralConfig(**SIZE, num_local_experts=2, num_experts_per_tok=1))
    assert found.weights > 0 and 0.5 < found.activations / peak(LlamaConfig(**SIZE)).activations < 2
