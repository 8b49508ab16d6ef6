"""Checkpoints that are not whole, not readable or not for us: one sentence that names the place, never a traceback.

A matrix of damages to the folder of a tiny random model, each against loading it and against the check without weights.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from expunge.errors import UserError
from expunge.modeling import loading

Damage = Callable[[Path], object]
WEIGHTS = "model.safetensors"


@pytest.fixture
def saved(tmp_path: Path, tiny_model: Callable[..., Any], tiny_tokenizer: Any) -> Path:
    loading.save(tiny_model(layers=2, hidden=16), tiny_tokenizer, tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def whole(saved: Path) -> Path:
    """A checkpoint as other programs write it: without a manifest."""
    (saved / "manifest.json").unlink()
    return saved


@pytest.fixture
def adapter(whole: Path, tiny_tokenizer: Any) -> Path:
    """An adapter on `whole` that says something."""
    model, _ = loading.load(whole)
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM"))
    torch.manual_seed(0)
    for name, p in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p, std=0.3)
    loading.save(adapted, tiny_tokenizer, whole.parent / "adapter")
    return whole.parent / "adapter"


def rename(change: Callable[[str], str | None], file: str = WEIGHTS) -> Damage:
    """The weights under the names that `change` gives them; without those that it gives none."""

    def damage(folder: Path) -> None:
        found = load_file(folder / file)
        kept = {new: x for name, x in found.items() if (new := change(name)) is not None}
        save_file(kept, folder / file, {"format": "pt"})

    return damage


def write(file: str, content: str | bytes) -> Damage:
    return lambda folder: (folder / file).write_bytes(content if isinstance(content, bytes) else content.encode())


def change(file: str, **keys: Any) -> Damage:
    def damage(folder: Path) -> None:
        found = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps({**found, **keys}))

    return damage


def cut(file: str, keep: float = 0.5) -> Damage:
    def damage(folder: Path) -> None:
        content = (folder / file).read_bytes()
        (folder / file).write_bytes(content[: int(len(content) * keep)])

    return damage


def directory(file: str) -> Damage:
    def damage(folder: Path) -> None:
        (folder / file).unlink(missing_ok=True)
        (folder / file).mkdir()

    return damage


def only_pickle(content: bytes) -> Damage:
    def damage(folder: Path) -> None:
        (folder / WEIGHTS).unlink()
        (folder / "pytorch_model.bin").write_bytes(content)

    return damage


def fifo(folder: Path) -> None:
    (folder / "config.json").unlink()
    os.mkfifo(folder / "config.json")


def more(key: str) -> Damage:
    def damage(folder: Path) -> None:
        found = load_file(folder / WEIGHTS)
        save_file({**found, key: torch.ones(3)}, folder / WEIGHTS, {"format": "pt"})

    return damage


DAMAGES: dict[str, tuple[Damage, str]] = {
    # weights that would be drawn at random
    "compiled": (rename(lambda n: f"_orig_mod.{n}"), r"lacks weights of its model: .*named _orig_mod\.…, so save"),
    "parallel": (rename(lambda n: f"module.{n}"), r"lacks weights of its model: .*named module\.…, so save"),
    "no head": (rename(lambda n: None if "lm_head" in n else n), r"lacks weights of its model: lm_head\.weight \(1 in"),
    "no q_proj": (rename(lambda n: None if "1.self_attn.q_proj" in n else n), r"model\.layers\.1\.self_attn\.q_proj"),
    "more layers": (change("config.json", num_hidden_layers=3), r"lacks .*model\.layers\.2\..* \(9 in all\)"),
    "another kind": (change("config.json", model_type="gpt_neox"), "lacks weights of its model"),
    # weights that another model would have
    "fewer layers": (change("config.json", num_hidden_layers=1), r"has no place: model\.layers\.1\..* \(9 in all\)"),
    "a bias": (
        more("model.layers.0.self_attn.q_proj.bias"),
        r"has no place: model\.layers\.0\.self_attn\.q_proj\.bias",
    ),
    "a norm": (more("model.layers.0.self_attn.q_norm.weight"), r"has no place: .*q_norm"),
    "another width": (
        change("config.json", intermediate_size=48),
        r"of another shape .*mlp.*\[40, 16\], not \[48, 16\]",
    ),
    "another vocabulary": (change("config.json", vocab_size=400), r"of another shape .*not \[400, 16\]"),
    # files
    "cut weights": (cut(WEIGHTS), r"model\.safetensors is damaged"),
    "cut header": (cut(WEIGHTS, 0.001), r"model\.safetensors is damaged"),
    "empty weights": (write(WEIGHTS, b""), r"model\.safetensors is damaged"),
    "weights in a folder": (directory(WEIGHTS), r"model\.safetensors is not a file"),
    "no pickle": (only_pickle(b"\x80\x05nothing of the kind"), "can't be loaded"),
    "empty pickle": (only_pickle(b""), "can't be loaded"),
    "a dangerous pickle": (only_pickle(b"cos\nsystem\n(S'true'\ntR."), "can't be loaded"),
    "index without map": (write("model.safetensors.index.json", "{}"), "does not say where each weight lies"),
    "index of numbers": (write("model.safetensors.index.json", '{"weight_map": {"a": 3}}'), "does not say where"),
    "index to nothing": (
        write("model.safetensors.index.json", '{"weight_map": {"a": "gone.safetensors"}}'),
        r"lacks 1 of the files of its weights \(gone\.safetensors\)",
    ),
    "no config": (lambda folder: (folder / "config.json").unlink(), "can't be loaded"),
    "cut config": (cut("config.json"), r"config\.json is not JSON"),
    "empty config": (write("config.json", ""), r"config\.json is not JSON"),
    "config of bytes": (write("config.json", b"\xff\xfe\x00"), r"config\.json is not JSON"),
    "nested config": (write("config.json", "[" * 100_000), r"config\.json is not JSON"),
    "config is a list": (write("config.json", "[1]"), r"config\.json holds no keys and values"),
    "config is a folder": (directory("config.json"), r"config\.json is not a file"),
    "config is a pipe": (fifo, r"config\.json is not a file"),
    "config without kind": (write("config.json", "{}"), "can't be loaded"),
    "config of an unknown kind": (change("config.json", model_type="nothing"), "can't be loaded"),
    "a kind that is a number": (change("config.json", model_type=3), "can't be loaded"),
    "layers as words": (change("config.json", num_hidden_layers="two"), "can't be loaded"),
    "negative width": (change("config.json", hidden_size=-16), "can't be loaded"),
    "no heads": (change("config.json", num_attention_heads=0), "can't be loaded"),
    "unknown activation": (change("config.json", hidden_act="nothing"), "can't be loaded"),
    "rope as a word": (change("config.json", rope_parameters="yes"), "can't be loaded"),
    "pad beyond": (change("config.json", pad_token_id=100_000), "can't be loaded"),
    "code of its own": (
        lambda folder: [
            change("config.json", model_type="own", auto_map={"AutoConfig": "own.C"})(folder),
            write("own.py", "raise SystemExit")(folder),
        ],
        "brings code of its own, which is not run here",
    ),
    # models that are not for us
    "gptq": (change("config.json", quantization_config={"quant_method": "gptq", "bits": 4}), r"is quantised \(gptq\)"),
    "awq": (change("config.json", quantization_config={"quant_method": "awq", "bits": 4}), r"is quantised \(awq\)"),
    "fp8": (change("config.json", quantization_config={"quant_method": "fp8"}), r"is quantised \(fp8\)"),
    "unknown bits": (change("config.json", quantization_config={}), "is quantised"),
    "an encoder": (change("config.json", model_type="bert"), r"is not a causal language model \(bert\)"),
    "a translator": (change("config.json", model_type="t5", is_encoder_decoder=True), r"has an encoder \(t5\)"),
    "gguf": (
        lambda folder: [p.unlink() for p in folder.iterdir()] + [write("model.gguf", b"GGUF")(folder)],
        r"holds a GGUF file; give the file itself: .*model\.gguf",
    ),
    # tokenizers
    "no tokenizer": (lambda folder: [p.unlink() for p in folder.glob("tokenizer*")], "can't be loaded"),
    "cut tokenizer": (cut("tokenizer.json"), r"tokenizer\.json is not JSON"),
    "tokenizer is a list": (write("tokenizer.json", "[]"), r"tokenizer\.json holds no keys and values"),
    "tokenizer of nothing": (write("tokenizer.json", "{}"), "can't be loaded"),
    "tokenizer is a folder": (directory("tokenizer.json"), r"tokenizer\.json is not a file"),
    "class of no tokenizer": (change("tokenizer_config.json", tokenizer_class=3), "can't be loaded"),
    "an end token of numbers": (change("tokenizer_config.json", eos_token=[1]), "can't be loaded"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_checkpoints_are_refused_by_name(whole: Path, damage: str) -> None:
    do, says = DAMAGES[damage]
    do(whole)
    with pytest.raises(UserError, match=says) as found:
        loading.load(whole)
    assert str(whole) in str(found.value) or "tokenizer" in str(found.value)
    with pytest.raises(UserError):  # and before anything is written, without reading weights
        loading.load_tokenizer_and_config(whole)
        loading.check_weights(whole)


ADAPTERS: dict[str, tuple[Damage, str]] = {
    "cut weights": (cut("adapter_model.safetensors"), r"adapter_model\.safetensors is damaged"),
    "cut config": (cut("adapter_config.json"), r"adapter_config\.json is not JSON"),
    "config is a list": (write("adapter_config.json", "[]"), r"adapter_config\.json holds no keys"),
    "no base": (change("adapter_config.json", base_model_name_or_path=None), "does not say which model it adapts"),
    "a number as base": (
        change("adapter_config.json", base_model_name_or_path=3),
        "does not say which model it adapts",
    ),
    "base gone": (change("adapter_config.json", base_model_name_or_path="/gone/model"), "/gone/model, is gone"),
    "its own base": (
        lambda folder: change("adapter_config.json", base_model_name_or_path=str(folder))(folder),
        "names itself as its base",
    ),
    "no kind": (change("adapter_config.json", peft_type="NOTHING"), "can't be loaded"),
    "rank as a word": (change("adapter_config.json", r="four"), "can't be loaded"),
    "another rank": (
        change("adapter_config.json", r=4),
        r"another shape than .*: base_model\S+ \[2, 16\], not \[4, 16\], .* \(8 in all\); put back r and the layers",
    ),
    "a regular expression": (change("adapter_config.json", target_modules="("), "can't be loaded"),
    "other layers": (
        change("adapter_config.json", target_modules=["q_proj", "up_proj"]),
        "weights of its adapter|no place",
    ),
    "more layers": (
        change("adapter_config.json", target_modules=["q_proj", "up_proj", "down_proj"]),
        "lacks weights of",
    ),
    "fewer layers": (change("adapter_config.json", target_modules=["q_proj"]), "has no place for"),
    "other names": (
        rename(lambda n: n.replace("self_attn", "attention"), "adapter_model.safetensors"),
        "lacks weights of its adapter",
    ),
    "one gone": (
        rename(lambda n: None if "1.self_attn.q_proj.lora_B" in n else n, "adapter_model.safetensors"),
        r"lacks weights of its adapter: .*lora_B.* \(1 in all\)",
    ),
    "prompt tuning": (
        change("adapter_config.json", peft_type="PROMPT_TUNING", num_virtual_tokens=2),
        "does not change weights",
    ),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("damage", ADAPTERS)
def test_damaged_adapters_are_refused_by_name(adapter: Path, damage: str) -> None:
    do, says = ADAPTERS[damage]
    do(adapter)
    with pytest.raises(UserError, match=says):
        loading.load(adapter)
    with pytest.raises(UserError):
        loading.load_tokenizer_and_config(adapter)
        loading.check_weights(adapter)


@pytest.mark.parametrize(
    "name",
    [
        *(
            "a" * 300,
            "/tmp/" + "b" * 300,
            "./" + "c" * 5000,
            "a/" * 200,
            "~nouser",
            "~nouser/model",
            "/proc",
            "/proc/self",
        ),
        *("/proc/self/mem", "/proc/self/fd", "/dev/null", "/", "nul\0byte", "loop", "./loop", "loop/model", ""),
    ],
)
def test_names_that_mean_no_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("loop").symlink_to("loop")
    for do in (loading.load, loading.load_tokenizer_and_config):
        with pytest.raises(UserError, match="model: "):
            do(name)


# -- tokens ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [None, 3, ["model"]])
def test_what_is_no_name_of_a_model(name: Any) -> None:
    for do in (loading.load, loading.load_for_training):
        with pytest.raises(UserError, match="model: give a folder or a name on the hub, got "):
            do(name)


def test_tokens_without_an_embedding_are_refused(whole: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(whole)
    tokenizer.add_tokens([f"word{i}" for i in range(10)])
    tokenizer.save_pretrained(whole)
    with pytest.raises(UserError, match=r"tokens for which the model has no embedding \('word0' is 2\d\d"):
        loading.load_tokenizer_and_config(whole)


def test_another_token_pads_where_padding_has_no_embedding(whole: Path, caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = AutoTokenizer.from_pretrained(whole)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.save_pretrained(whole)
    _, found = loading.load(whole)
    assert found.pad_token == found.eos_token and "pads in its place" in caplog.text


def test_special_tokens_that_nobody_writes_may_have_none(whole: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(whole)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<picture>"]})
    tokenizer.save_pretrained(whole)
    loading.load(whole)
    tokenizer.chat_template = "{% for m in messages %}<picture>{{ m['content'] }}{% endfor %}"
    tokenizer.save_pretrained(whole)
    with pytest.raises(UserError, match="'<picture>' is"):
        loading.load(whole)


# -- what loads ------------------------------------------------------------------------------------------------------


def test_what_is_left_over_elsewhere_is_said(whole: Path, caplog: pytest.LogCaptureFixture) -> None:
    more("score.weight")(whole)
    loading.load(whole)
    assert "holds weights that LlamaForCausalLM does not use: score.weight (1 in all)" in caplog.text


@pytest.mark.parametrize("kind", ["gpt2", "mixtral", "tied", "gpt_neox", "gemma2"])
def test_whole_checkpoints_pass(tmp_path: Path, tiny_tokenizer: Any, kind: str) -> None:
    """Where weights are tied, or are put together while they load, none is missing."""
    size = {"vocab_size": 300, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "bos_token_id": 0}
    more = {"intermediate_size": 24, "num_key_value_heads": 1, "head_dim": 8, "eos_token_id": 0, "pad_token_id": 1}
    config = AutoConfig.for_model("llama" if kind == "tied" else kind, **size, **(more if kind != "gpt2" else {}))
    config.tie_word_embeddings = kind in ("tied", "gpt2", "gemma2")
    before = AutoModelForCausalLM.from_config(config)
    loading.save(before, tiny_tokenizer, tmp_path / "model")
    loading.check_weights(tmp_path / "model")
    after, _ = loading.load(tmp_path / "model")
    assert all(torch.equal(x, after.state_dict()[name]) for name, x in before.state_dict().items())


def test_merged_and_applied_adapters_are_the_same_model(adapter: Path) -> None:
    applied, merged = loading.load(adapter)[0], loading.load(adapter, merged=True)[0]
    base = loading.load(adapter.parent / "model")[0]
    ids = torch.arange(20)[None]
    with torch.no_grad():
        a, m, b = (model(input_ids=ids).logits for model in (applied, merged, base))
    assert torch.allclose(a, m, atol=1e-5) and not torch.allclose(a, b, atol=1e-2)
    assert not hasattr(merged, "peft_config")


def flip(folder: Path) -> None:
    """Other numbers, in a file that is as long and as readable as before."""
    weights = load_file(folder / WEIGHTS)
    name = sorted(weights)[0]
    weights[name] = weights[name].flip(0).contiguous()
    save_file(weights, folder / WEIGHTS, {"format": "pt"})


@pytest.mark.parametrize(
    "damage", [flip, change("config.json", rms_norm_eps=0.1), change("generation_config.json", temperature=2.0)]
)
def test_a_file_that_changed_since_it_was_saved_is_named(saved: Path, damage: Damage) -> None:
    """Nothing but the manifest can tell; without it the folder is the user's own."""
    loading.load(saved)
    damage(saved)
    for call in (loading.load, loading.load_for_training, loading.check_weights):
        with pytest.raises(UserError, match=r"is not as it was written|bytes and was written with") as error:
            call(saved)
        assert str(error.value).startswith(f"model: {saved}") and "\n" not in str(error.value)
    (saved / "manifest.json").unlink()
    loading.load(saved)
    (saved / "manifest.json").write_text('{"name": "an app"}')
    loading.load(saved)
