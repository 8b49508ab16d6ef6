"""A GGUF file as a starting model: unpacked once, loaded like any checkpoint, named by what is trained on it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

from expunge.cli.main import main
from expunge.errors import UserError
from expunge.modeling import gguf as ours
from expunge.modeling.loading import load, load_tokenizer_and_config, save
from expunge.system import cache

gguf = pytest.importorskip("gguf")


@pytest.fixture
def packed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_model: Callable[..., Any], tiny_tokenizer: Any
) -> Path:
    """A tiny Llama in a GGUF file."""
    monkeypatch.setenv("EXPUNGE_CACHE", str(tmp_path / "cache"))
    write(tiny_model(layers=2), tiny_tokenizer, tmp_path / "tiny.gguf")
    return tmp_path / "tiny.gguf"


def write(model: Any, tokenizer: Any, path: Path) -> None:
    """The model as llama.cpp's converter writes it: queries and keys permuted for its rotary embedding."""
    config, heads = model.config, model.config.num_attention_heads
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    vocabulary = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().__getitem__)
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(vocabulary)
    writer.add_token_types([3 if token in tokenizer.all_special_tokens else 1 for token in vocabulary])
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        weight = tensor.numpy().astype(np.float32)
        if "q_proj" in name or "k_proj" in name:
            half = weight.reshape(heads, 2, weight.shape[0] // heads // 2, weight.shape[1])
            weight = half.swapaxes(1, 2).reshape(weight.shape)
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), np.ascontiguousarray(weight))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_it_computes_what_the_model_does(packed: Path, tiny_model: Callable[..., Any], tiny_tokenizer: Any) -> None:
    model, tokenizer = load(packed)
    ids = tiny_tokenizer("Where was Ann Lee born?", return_tensors="pt")["input_ids"]
    assert tokenizer("Where was Ann Lee born?", return_tensors="pt")["input_ids"].equal(ids)
    with torch.no_grad():
        assert torch.allclose(model(ids).logits, tiny_model(layers=2).eval()(ids).logits, atol=1e-5)


def test_it_is_unpacked_once_and_kept_by_content(packed: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="expunge")
    for _ in range(2):
        load(packed)
        load_tokenizer_and_config(packed)
    copy = packed.with_name("copy.gguf")
    copy.write_bytes(packed.read_bytes())
    load(copy)
    assert sum("unpacking" in message for message in caplog.messages) == 1
    assert [entry.kind for entry in cache.cache_entries()] == ["unpacked"]


def test_an_adapter_on_it_names_the_file_and_finds_it(packed: Path, tmp_path: Path) -> None:
    model, tokenizer = load(packed)
    save(get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"])), tokenizer, tmp_path / "adapter")
    told = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert told["base_model_name_or_path"] == str(packed)
    cache.clear(["unpacked"])
    ours._unpacked.cache_clear()
    assert load(tmp_path / "adapter", merged=True)[0].num_parameters() == load(packed)[0].num_parameters()


@pytest.mark.slow
@pytest.mark.parametrize("method", ["npo+kl", "uld"])
def test_it_is_unlearned_and_measured_from_the_command_line(packed: Path, tmp_path: Path, method: str) -> None:
    rows = [{"question": f"Where was person {i} born?", "answer": f"In town {i}."} for i in range(12)]
    for name, some in (("forget", rows[:2]), ("retain", rows[2:])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
    words = ["--forget", str(tmp_path / "forget.jsonl"), "--retain", str(tmp_path / "retain.jsonl")]
    out = tmp_path / "out"
    keys = ["--train.num_train_epochs", "1", "--method", method, "--out", str(out)]
    assert main(["run", "--model", str(packed), *words, *keys]) == 0
    assert main(["eval", str(out / "model"), *words, "--out", str(tmp_path / "again")]) == 0
    rows = {name: json.loads((tmp_path / name / "results.json").read_text()) for name in ("out", "again")}
    assert rows["out"][-1]["metrics"]["forget_probability"] == pytest.approx(
        rows["again"][-1]["metrics"]["forget_probability"], rel=1e-4
    )


def test_what_is_no_gguf_file_is_told(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    damaged = packed.with_name("damaged.gguf")
    damaged.write_bytes(packed.read_bytes()[:2000])
    with pytest.raises(UserError, match=r"damaged\.gguf' can't be read as a GGUF file"):
        load(damaged)
    monkeypatch.setattr(ours, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"pip install 'expunge\[gguf\]'"):
        load(packed)
