"""An adapter, or a difference, is refused on a base whose weights are not those that it was trained on."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig, get_peft_model

from expunge import UnlearnConfig, UnlearnTrainer
from expunge.errors import UserError
from expunge.modeling import loading
from expunge.modeling.bases import NAME, weights_in
from expunge.modeling.difference import LogitDifferenceConfig, LogitDifferenceForCausalLM

Kind = Callable[[Path, Any], Path]
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # PEFT finds no config.json in an adapter's folder

LORA: dict[str, Any] = {"r": 2, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"}


@pytest.fixture
def base(tmp_path: Path, tiny_model: Callable[..., Any], tiny_tokenizer: Any) -> Path:
    """A model as other programs save it, without a manifest."""
    loading.save(tiny_model(layers=2, hidden=16), tiny_tokenizer, tmp_path / "base")
    (tmp_path / "base" / "manifest.json").unlink()
    return tmp_path / "base"


def adapter(base: Path, tokenizer: Any) -> Path:
    model = get_peft_model(loading.load(base)[0], LoraConfig(**LORA))
    loading.save(model, tokenizer, base.parent / "adapter")
    return base.parent / "adapter"


def trained_adapter(base: Path, tokenizer: Any) -> Path:
    """As a trainer in Python saves it."""
    args = UnlearnConfig(output_dir=str(base.parent / "out"), max_steps=1, save_strategy="no")
    rows = [{"question": "Where?", "answer": "Here."}]
    trainer = UnlearnTrainer(
        base, args, retain_dataset=rows, processing_class=tokenizer, peft_config=LoraConfig(**LORA)
    )
    trainer.save_model(str(base.parent / "trained"))
    tokenizer.save_pretrained(base.parent / "trained")
    return base.parent / "trained"


def joined_adapter(base: Path, tokenizer: Any) -> Path:
    """Two adapters, one after the other, saved as one on the base."""
    start, _ = loading.load_for_training(adapter(base, tokenizer), lora=loading.LoraConfig(r=2))
    loading.save(get_peft_model(start, LoraConfig(**LORA)), tokenizer, base.parent / "joined")
    return base.parent / "joined"


def difference(base: Path, tokenizer: Any) -> Path:
    config = LogitDifferenceConfig(base=str(base), layers=1)
    model = LogitDifferenceForCausalLM(config, loading.load(base)[0], lora=LoraConfig(r=2, task_type="CAUSAL_LM"))
    loading.save(model, tokenizer, base.parent / "difference")
    return base.parent / "difference"


def difference_of_three(base: Path, tokenizer: Any) -> Path:
    """Its assistant began as the model in `base`; the base that answers is another."""
    start = loading.load(base)[0]
    loading.save(start, tokenizer, base.parent / "other")
    config = LogitDifferenceConfig(base=str(base.parent / "other"), weight=1.0, tau=0.0, relative=True)
    config.start = str(base)
    models = [loading.load(base)[0] for _ in range(3)]
    model = LogitDifferenceForCausalLM(config, models[0], assistant=models[1], start=models[2])
    loading.save(model, tokenizer, base.parent / "three")
    return base.parent / "three"


@pytest.mark.parametrize("kind", [adapter, trained_adapter, joined_adapter, difference, difference_of_three])
def test_a_base_of_other_weights_is_refused(
    base: Path, tiny_model: Callable[..., Any], tiny_tokenizer: Any, kind: Kind
) -> None:
    saved = kind(base, tiny_tokenizer)
    loading.load(saved)
    loading.check_weights(saved)
    loading.save(tiny_model(layers=2, hidden=16, seed=1), tiny_tokenizer, base)
    for ask in (loading.load, loading.check_weights):
        with pytest.raises(UserError, match=rf"was trained on other weights than its base {base} holds now; put") as e:
            ask(saved)
        assert "\n" not in str(e.value)
    (saved / NAME).unlink()
    (saved / "manifest.json").unlink(missing_ok=True)
    loading.load(saved)


def test_an_edited_adapter_under_another_is_a_change_of_the_base(base: Path, tiny_tokenizer: Any) -> None:
    below = adapter(base, tiny_tokenizer)
    (below / "manifest.json").unlink()
    upper, _ = loading.load(below, merged=True)
    upper.name_or_path = str(below)
    saved = base.parent / "upper"
    model = get_peft_model(upper, LoraConfig(**LORA))
    del upper.merged_adapter
    loading.save(model, tiny_tokenizer, saved)
    loading.load(saved)
    config = json.loads((below / "adapter_config.json").read_text())
    (below / "adapter_config.json").write_text(json.dumps({**config, "lora_alpha": 99}))
    with pytest.raises(UserError, match=f"other weights than its base {below} holds"):
        loading.load(saved)


def test_a_missing_manifest_is_told(base: Path, tiny_tokenizer: Any, caplog: pytest.LogCaptureFixture) -> None:
    unsealed = trained_adapter(base, tiny_tokenizer)
    saved = adapter(base, tiny_tokenizer)
    with caplog.at_level(logging.WARNING):
        loading.load(unsealed)
        loading.load(saved)
        assert "was saved by expunge" not in caplog.text
        (saved / "manifest.json").unlink()
        loading.load(saved)
    assert "was saved by expunge and has no manifest.json now" in caplog.text


def test_arguments_and_states_of_a_training_are_no_weights(base: Path) -> None:
    before = weights_in(base)
    assert list(before) == ["model.safetensors"]
    (base / "training_args.bin").write_bytes(b"1")
    (base / "config.json").write_text((base / "config.json").read_text() + "\n")
    assert weights_in(base) == before
