"""The difference of two models as one model: against two separate models and an uncached loop, in every way to decode.

Tiny random models of seven architectures, far from uniform (initializer_range 0.3).
"""

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from expunge.errors import UserError
from expunge.modeling.agreement import Ways, ways_of
from expunge.modeling.assistant import first_layers, linear_names
from expunge.modeling.difference import ASSISTANT, LogitDifferenceConfig, LogitDifferenceForCausalLM, neutralise
from expunge.modeling.forward import dense_logps, supervised_logps
from expunge.modeling.loading import load, save
from expunge.modeling.pairing import linear_of_pair

SIZE = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 1,
}
GROUPED = {**SIZE, "num_key_value_heads": 2}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": GROUPED,
    "qwen3": {**GROUPED, "head_dim": 8},
    "mistral": {**GROUPED, "sliding_window": 8},
    "gemma2": {
        **GROUPED,
        "head_dim": 8,
        "query_pre_attn_scalar": 8,
        "final_logit_softcapping": 5.0,
        "sliding_window": 8,
    },
    "phi3": GROUPED,
    "gpt_neox": SIZE,
    "gpt2": SIZE,
}
LAYERS, ALPHA, TAU, NEW = 2, 0.8, 0.01, 12
Two = tuple[LogitDifferenceForCausalLM, Any, Any]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def build() -> Callable[..., Two]:
    """(the difference, the base alone, the assistant alone) for an architecture; the last two share nothing."""

    def make(
        architecture: str = "llama", *, tau: float = TAU, seed: int = 0, dtype: Any = torch.float32, **config: Any
    ) -> Two:
        torch.manual_seed(seed)
        size = {**ARCHITECTURES[architecture], **config}
        base = AutoModelForCausalLM.from_config(AutoConfig.for_model(architecture, **size)).to(dtype).eval()
        alone, small = deepcopy(base), deepcopy(first_layers(base, LAYERS))
        adapter = LoraConfig(r=4, target_modules=linear_names(small, LAYERS), fan_in_fan_out=architecture == "gpt2")
        small.add_adapter(adapter, adapter_name=ASSISTANT)
        settings = LogitDifferenceConfig(weight=-ALPHA, tau=tau, layers=LAYERS)
        model = LogitDifferenceForCausalLM(settings, base, lora=LoraConfig(r=4, init_lora_weights=False)).eval()
        trained = {name: x for name, x in base.named_parameters() if "lora_" in name}
        assert not small.load_state_dict(trained, strict=False).unexpected_keys
        return model, alone, small.eval()

    return make


def batch() -> tuple[Tensor, Tensor]:
    """Three prompts of different length, padded on the left."""
    torch.manual_seed(1)
    ids_BT = torch.randint(2, 300, (3, 20))
    mask_BT = torch.ones_like(ids_BT)
    mask_BT[0, :5] = mask_BT[1, :2] = 0
    return ids_BT, mask_BT


def positions(mask_BT: Tensor) -> Tensor:
    """From 0 at the first token that is no padding, which absolute positions (GPT-2) need to be told."""
    return (mask_BT.cumsum(-1) - 1).clamp(min=0)


def two_models(base: Any, small: Any, ids_BT: Tensor, mask_BT: Tensor, tau: float = TAU) -> Tensor:
    """The definition: logits of one model minus those of another, no cache, [B, T, V]; positions as `generate` has."""
    inputs = {"attention_mask": mask_BT, "position_ids": positions(mask_BT)}
    z, a = (m(input_ids=ids_BT, **inputs, use_cache=False).logits for m in (base, small))
    return z - ALPHA * neutralise(a, z, tau)


def loop(base: Any, small: Any, ids_BT: Tensor, mask_BT: Tensor, steps: int = NEW) -> Tensor:
    for _ in range(steps):
        next_B1 = two_models(base, small, ids_BT, mask_BT)[:, -1:].argmax(-1)
        ids_BT, mask_BT = torch.cat([ids_BT, next_B1], 1), torch.cat([mask_BT, torch.ones_like(next_B1)], 1)
    return ids_BT


# -- the filter ------------------------------------------------------------------------------------------------------


def test_filter_by_hand() -> None:
    """V = 4, τ = 0.25, so k = 1: the threshold is log(0.25) under the largest, −1.386."""
    base = torch.tensor([[0.0, -1.0, -2.0, -9.0]])
    assistant = torch.tensor([[4.0, -4.0, -2.0, 2.0]])  # mean 0
    # 0 and 1 are plausible. 2 is not and would gain: it counts as the mean. 3 is not and loses as before.
    assert neutralise(assistant, base, 0.25).tolist() == [[4.0, -4.0, 0.0, 2.0]]
    assert neutralise(assistant, base, 0.0) is assistant


@pytest.mark.parametrize("vocabulary", [3, 50, 99, 100, 101, 1000])
def test_filter_keeps_the_likeliest_whatever_the_vocabulary(vocabulary: int) -> None:
    """Also where V < 1/τ, which would make k zero."""
    torch.manual_seed(0)
    base, assistant = 30 * torch.randn(2, 7, vocabulary)
    kept = neutralise(assistant, base, 0.01) == assistant
    k = max(1, int(0.01 * vocabulary))
    for row, top in zip(kept, base.topk(k).indices, strict=True):
        assert row[top].all()
    logp = base.log_softmax(-1)
    threshold = torch.minimum(logp.topk(k).values[:, -1:], logp.amax(-1, keepdim=True) + torch.tensor(0.01).log())
    neutral = torch.maximum(assistant, assistant.mean(-1, keepdim=True))
    expected = torch.where(logp >= threshold, assistant, neutral)
    assert torch.allclose(neutralise(assistant, base, 0.01), expected)


def test_an_implausible_token_never_gains() -> None:
    torch.manual_seed(0)
    base, assistant = 5 * torch.randn(2, 50, 200)
    plain = base - ALPHA * assistant.mean(-1, keepdim=True)
    filtered = base - ALPHA * neutralise(assistant, base, TAU)
    implausible = base < torch.minimum(base.topk(2).values[:, -1:], base.amax(-1, keepdim=True) - 4.61)
    assert implausible.any()
    assert (filtered <= plain + 1e-5)[implausible].all()


# -- one model against two -------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("tau", [0.0, TAU])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_logits_equal_two_models(build: Callable[..., Two], architecture: str, tau: float) -> None:
    model, base, small = build(architecture, tau=tau)
    ids_BT, mask_BT = batch()
    ours = model(input_ids=ids_BT, attention_mask=mask_BT, position_ids=positions(mask_BT)).logits
    theirs = two_models(base, small, ids_BT, mask_BT, tau)
    real = mask_BT.bool()
    assert torch.allclose(ours[real], theirs[real], atol=1e-5)
    assert (theirs - base(input_ids=ids_BT, attention_mask=mask_BT).logits)[real].abs().max() > 0.1  # it does something


@torch.no_grad()
@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_greedy_equals_an_uncached_loop(build: Callable[..., Two], architecture: str, cache: str) -> None:
    """Three prompts padded on the left, token for token."""
    model, base, small = build(architecture)
    ids_BT, mask_BT = batch()
    options = {"cache_implementation": "static"} if cache == "static" else {}
    ours = model.generate(input_ids=ids_BT, attention_mask=mask_BT, max_new_tokens=NEW, do_sample=False, **options)
    assert ours.tolist() == loop(base, small, ids_BT, mask_BT).tolist()


@torch.no_grad()
@pytest.mark.parametrize("prompt", [1, 7])
def test_a_single_prompt_equals_an_uncached_loop(build: Callable[..., Two], prompt: int) -> None:
    """One pair of rows a step takes a path of its own on a CPU."""
    model, base, small = build()
    ids_BT = batch()[0][2:, :prompt]
    ours = model.generate(input_ids=ids_BT, max_new_tokens=30, do_sample=False)
    assert ours.tolist() == loop(base, small, ids_BT, torch.ones_like(ids_BT), steps=30).tolist()


@torch.no_grad()
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_sampling_draws_from_the_same_logits(build: Callable[..., Two], architecture: str) -> None:
    # Gemma 2 alone gives NaN in float64 where eager attention meets padding.
    dtype = torch.float32 if architecture == "gemma2" else torch.float64
    model, base, small = build(architecture, dtype=dtype)
    ids_BT, mask_BT = batch()
    torch.manual_seed(2)
    sampled = model.generate(
        input_ids=ids_BT, attention_mask=mask_BT, max_new_tokens=NEW, do_sample=True, top_k=0,
        output_logits=True, return_dict_in_generate=True,
    )  # fmt: skip
    whole = torch.cat([mask_BT, torch.ones(3, NEW, dtype=torch.long)], 1)
    expected = two_models(base, small, sampled.sequences, whole)[:, 19:-1].double()
    assert torch.allclose(torch.stack(sampled.logits, 1).double(), expected, rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("architecture", ["llama", "mistral"])
def test_beam_search_equals_one_without_a_cache(build: Callable[..., Two], architecture: str) -> None:
    model, *_ = build(architecture)
    ids_BT, mask_BT = batch()
    options = {"attention_mask": mask_BT, "max_new_tokens": NEW, "num_beams": 3, "do_sample": False}
    cached = model.generate(input_ids=ids_BT, **options)
    assert cached.tolist() == model.generate(input_ids=ids_BT, use_cache=False, **options).tolist()


@torch.no_grad()
def test_the_cache_holds_an_assistant_beside_its_layers_only(build: Callable[..., Two]) -> None:
    """Layers 1..K hold the pair's keys and values, the others the base's: no second cache."""
    model, base, _ = build()
    ids_BT, _ = batch()
    ours, alone = (m(input_ids=ids_BT, use_cache=True).past_key_values for m in (model, base))
    heads = [tuple(layer.keys.shape) for layer in ours.layers]
    assert heads == [(3, 2 * 2, 20, 8)] * LAYERS + [(3, 2, 20, 8)] * (4 - LAYERS)
    assert [tuple(layer.keys.shape) for layer in alone.layers] == [(3, 2, 20, 8)] * 4


def test_it_adds_the_adapter_and_nothing_else(build: Callable[..., Two], tmp_path: Path) -> None:
    """In memory no tensor but the LoRA weights; on disk their file, and some kilobytes of text."""
    model, base, _ = build()
    own = {id(p): p for p in (*model.parameters(), *model.buffers())}
    added = sum(p.numel() for p in own.values()) - sum(p.numel() for p in (*base.parameters(), *base.buffers()))
    adapter = {name: p for name, p in model.named_parameters() if "lora_" in name}
    assert added == sum(p.numel() for p in adapter.values()) == 4 * 2 * (2 * 64 + 2 * 48 + 3 * 80)
    model.save_pretrained(tmp_path)
    weights = [p for p in tmp_path.rglob("*") if p.suffix in (".safetensors", ".bin")]
    assert [p.name for p in weights] == ["adapter_model.safetensors"]
    assert weights[0].stat().st_size < 4 * added + 4096
    assert sum(p.stat().st_size for p in tmp_path.rglob("*") if p.is_file() and p not in weights) < 20_000


def test_the_assistant_shares_the_models_tensors(build: Callable[..., Two]) -> None:
    _, base, _ = build()
    small = first_layers(base, 1)
    assert {id(p) for p in small.parameters()} < {id(p) for p in base.parameters()}
    assert len(small.get_decoder().layers) == small.config.num_hidden_layers == 1
    assert len(base.get_decoder().layers) == base.config.num_hidden_layers == 4


# -- scoring, saving -------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_scores_go_through_the_same_head(build: Callable[..., Two], architecture: str) -> None:
    model, *_ = build(architecture)
    ids_BT, _ = batch()
    assert ways_of(model) == Ways(dense=False, padded=True, vocab_size=model.get_output_embeddings().weight.shape[0])
    mask_BT, labels_BT = torch.ones_like(ids_BT), ids_BT.masked_fill(torch.arange(20) < 9, -100)
    fast, dense = (fn(model, ids_BT, mask_BT, labels_BT) for fn in (supervised_logps, dense_logps))
    assert torch.allclose(fast, dense, atol=1e-5)


@torch.no_grad()
def test_saved_and_loaded_it_is_the_same(build: Callable[..., Two], tiny_tokenizer: Any, tmp_path: Path) -> None:
    model, base, _ = build()
    save(base, tiny_tokenizer, tmp_path / "base")
    model.config.base = str(tmp_path / "base")
    save(model, tiny_tokenizer, tmp_path / "difference")
    ids_BT, mask_BT = batch()
    expected = model(input_ids=ids_BT, attention_mask=mask_BT).logits
    for again in (load(tmp_path / "difference")[0], AutoModelForCausalLM.from_pretrained(tmp_path / "difference")):
        assert torch.equal(again(input_ids=ids_BT, attention_mask=mask_BT).logits, expected)
        assert not any(p.requires_grad for p in again.parameters())


def test_a_base_that_is_gone_is_a_sentence(build: Callable[..., Two], tiny_tokenizer: Any, tmp_path: Path) -> None:
    model, *_ = build()
    model.config.base = str(tmp_path / "gone")
    save(model, tiny_tokenizer, tmp_path / "difference")
    with pytest.raises(UserError, match=r"its base .*gone is gone; put it back, or change base in config\.json"):
        load(tmp_path / "difference")


# -- Offset ----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_offset_is_relative_to_the_start(build: Callable[..., Two]) -> None:
    """z = z_base + w (z_assistant − z⁰_assistant), the latter being the first layers without their adapter."""
    _, base, small = build()
    start = first_layers(base, LAYERS)
    model = LogitDifferenceForCausalLM(
        LogitDifferenceConfig(weight=1.5, tau=0.0, layers=LAYERS, relative=True), deepcopy(base), lora=LoraConfig(r=4)
    )
    ids_BT, _ = batch()
    z, a, a0 = (m(input_ids=ids_BT).logits for m in (base, small, start))
    assert torch.equal(model(input_ids=ids_BT).logits, z)  # before training nothing is offset
    model.load_assistant(_adapter_of(small))
    assert torch.allclose(model(input_ids=ids_BT).logits, z + 1.5 * (a - a0), atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("relative", [False, True])
def test_a_separate_assistant(build: Callable[..., Two], relative: bool, tiny_tokenizer: Any, tmp_path: Path) -> None:
    """Of another width and depth; greedy, padded, cached, saved and loaded."""
    _, base, _ = build()
    _, assistant, _ = build("qwen3", seed=1, hidden_size=16, num_hidden_layers=3)
    _, start, _ = build("qwen3", seed=2, hidden_size=16, num_hidden_layers=3)
    for name, part in {"base": base, "start": start}.items():
        save(part, tiny_tokenizer, tmp_path / name)
    config = LogitDifferenceConfig(
        base=str(tmp_path / "base"), weight=0.5, tau=0.0, relative=relative, start=str(tmp_path / "start")
    )
    model = LogitDifferenceForCausalLM(config, base, assistant=assistant, start=start if relative else None).eval()
    ids_BT, mask_BT = batch()
    cached = model.generate(input_ids=ids_BT, attention_mask=mask_BT, max_new_tokens=NEW, do_sample=False)
    whole_BT, grown_BT = ids_BT, mask_BT
    for _ in range(NEW):
        z, a, a0 = (m(input_ids=whole_BT, attention_mask=grown_BT).logits[:, -1:] for m in (base, assistant, start))
        next_B1 = (z + 0.5 * (a - a0 if relative else a)).argmax(-1)
        whole_BT, grown_BT = torch.cat([whole_BT, next_B1], 1), torch.cat([grown_BT, torch.ones_like(next_B1)], 1)
    assert cached.tolist() == whole_BT.tolist()
    save(model, tiny_tokenizer, tmp_path / "difference")
    again = load(tmp_path / "difference")[0]
    assert torch.equal(again(input_ids=ids_BT).logits, model(input_ids=ids_BT).logits)


def test_another_vocabulary_is_a_sentence(build: Callable[..., Two]) -> None:
    _, base, _ = build()
    _, other, _ = build(vocab_size=301)
    with pytest.raises(UserError, match="has 301 tokens and the model's 300"):
        LogitDifferenceForCausalLM(LogitDifferenceConfig(), base, assistant=other)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(2, 1, 16), (1, 2, 16), (2, 16), (4, 1, 16), (2, 3, 16)])
def test_the_product_of_a_pair(shape: tuple[int, ...], bias: bool) -> None:
    torch.manual_seed(0)
    linear, x = torch.nn.Linear(16, 24, bias=bias), torch.randn(shape)
    with torch.no_grad():
        assert torch.allclose(linear_of_pair(linear, x), linear(x), atol=1e-6)
    assert linear_of_pair(linear, x).requires_grad


def _adapter_of(small: Any) -> dict[str, Tensor]:
    return {name.replace(f".{ASSISTANT}.", "."): p for name, p in small.named_parameters() if "lora_" in name}
