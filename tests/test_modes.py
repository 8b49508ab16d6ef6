"""What is compared with a reference has no dropout, unless it is asked for; plain learning keeps it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, FalconConfig, GPT2Config, LlamaConfig, OPTConfig, PersimmonConfig

from expunge import UnlearnConfig, UnlearnTrainer, UserError
from expunge.modeling.loading import LoraConfig
from expunge.objectives import GA, KL, NLL, NPO, RMU, Anchor, Objective, UnDIAL
from expunge.training.modes import check_modes, switch_off_dropout

ROWS = [{"question": f"Where was {i} born?", "answer": f"In {'x' * (i % 3)}{i}."} for i in range(12)]
SIZE: dict[str, Any] = {"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2, "vocab_size": 300}
DENSE: dict[str, Any] = SIZE | {"intermediate_size": 48}

DROPPING: dict[str, Callable[[], Any]] = {
    "GPT-2, modules": lambda: GPT2Config(n_embd=32, n_head=2, n_layer=2, vocab_size=300),
    "Llama, an attribute": lambda: LlamaConfig(**DENSE, attention_dropout=0.3),
    "OPT, several attributes": lambda: OPTConfig(
        **SIZE, ffn_dim=48, word_embed_proj_dim=32, dropout=0.2, layerdrop=0.5
    ),
    "Falcon, the config as it runs": lambda: FalconConfig(**SIZE, hidden_dropout=0.2, attention_dropout=0.2),
    "Persimmon, the config as it runs": lambda: PersimmonConfig(**DENSE, attention_dropout=0.3, hidden_dropout=0.2),
}


def model(kind: str) -> Any:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(DROPPING[kind](), dtype=torch.float32)


@pytest.fixture
def first(tmp_path: Path, tiny_tokenizer: Any) -> Callable[..., dict[str, float]]:
    """The first logged row of a training that hardly moves."""

    def do(
        kind: str, objective: Objective | None, retain: Objective | None, *, dropout: float | None = None, **keys: Any
    ) -> Any:
        lora = None if dropout is None else LoraConfig(r=2, dropout=dropout).peft()
        trainer = UnlearnTrainer(
            model(kind),
            UnlearnConfig(
                output_dir=str(tmp_path / "run"), learning_rate=1e-9, max_steps=2, save_strategy="no", **keys
            ),
            objective=objective,
            retain=retain,
            forget_dataset=ROWS[:6] if objective is not None else (),
            retain_dataset=ROWS[6:] if retain is not None else (),
            processing_class=tiny_tokenizer,
            peft_config=lora,
        )
        trainer.train()
        return trainer.state.log_history[-2]

    return do


@pytest.mark.parametrize("kind", DROPPING)
def test_training_begins_at_its_reference(first: Callable[..., dict[str, float]], kind: str) -> None:
    """−2/β·log σ(0) and no divergence."""
    found = first(kind, NPO(), KL())
    assert found["forget_loss"] == pytest.approx(13.8629, abs=1e-3)
    assert found["retain_loss"] == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("reference", ["adapter_off", "cached_hidden", "frozen_copy"])
def test_an_adapter_drops_nothing_either(first: Callable[..., dict[str, float]], reference: str) -> None:
    found = first("Llama, an attribute", NPO(), KL(), dropout=0.3, reference=reference)
    assert found["forget_loss"] == pytest.approx(13.8629, abs=1e-3)
    assert found["retain_loss"] == pytest.approx(0, abs=1e-5)


def is_random(model: Any) -> bool:
    """Whether the model says something else of the same tokens each time, while it trains."""
    ids = torch.arange(8)[None]
    with torch.no_grad():
        first, second = (model.train()(input_ids=ids).logits for _ in range(2))
    return not torch.equal(first, second)


@pytest.mark.parametrize("kind", DROPPING)
def test_dropout_stays_where_it_is_asked_for_and_where_nothing_is_compared(
    tmp_path: Path, tiny_tokenizer: Any, kind: str
) -> None:
    def trained(objective: Objective | None, retain: Objective, **keys: Any) -> Any:
        return UnlearnTrainer(
            model(kind),
            UnlearnConfig(output_dir=str(tmp_path / "run"), **keys),
            objective=objective,
            retain=retain,
            forget_dataset=ROWS[:6] if objective is not None else (),
            retain_dataset=ROWS[6:],
            processing_class=tiny_tokenizer,
        ).model

    assert is_random(trained(NPO(), KL(), keep_dropout=True))
    assert is_random(trained(GA(), NLL())) and is_random(trained(None, NLL()))
    for objective, retain in ((NPO(), NLL()), (GA(), KL()), (UnDIAL(), NLL()), (RMU(layer=1), Anchor(layer=1))):
        assert not is_random(trained(objective, retain))


@pytest.mark.parametrize("kind", DROPPING)
def test_the_config_that_is_saved_stays_as_it_was(kind: str) -> None:
    own = model(kind).eval()
    before = own.config.to_dict()
    with pytest.raises(UserError, match="says something else while it trains"):
        check_modes(own)
    switch_off_dropout(own)
    check_modes(own)
    assert own.config.to_dict() == before and not own.training


def test_what_can_not_be_switched_off_is_refused(
    tmp_path: Path, tiny_model: Callable[..., Any], tiny_tokenizer: Any
) -> None:
    own = tiny_model()
    shake = own.model.layers[0].mlp.register_forward_hook(
        lambda module, _given, out: out * 1.5 if module.training else out
    )
    with pytest.raises(UserError, match="keep_dropout to accept that"):
        UnlearnTrainer(
            own, UnlearnConfig(output_dir=str(tmp_path / "run")), objective=NPO(), forget_dataset=ROWS[:6],
            processing_class=tiny_tokenizer,
        )  # fmt: skip
    shake.remove()
