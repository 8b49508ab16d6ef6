"""Flash attention, 4-bit weights and 8-bit optimizers on CUDA, and the same answers there as on a CPU."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AttentionInterface, LlamaConfig, LlamaForCausalLM

from expunge import evaluate, run
from expunge.data.encode import Encoded
from expunge.data.pairs import Collator, Role, Sets
from expunge.modeling.forward import dense_logps, supervised_logps
from expunge.modeling.loading import load, save
from tests.test_golden import folder, trainer_of  # noqa: F401 (a fixture)

CUDA = "cuda"


@pytest.fixture(scope="module")
def model() -> Any:
    """Two layers, 64 wide, with the vocabulary of Llama 3; bfloat16 holds its weights exactly."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=128_256, hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=1024, initializer_range=0.1, pad_token_id=0, bos_token_id=None,
        eos_token_id=None,
    )  # fmt: skip
    model: Any = LlamaForCausalLM(config).bfloat16()
    return model.to(CUDA)


@pytest.fixture(scope="module")
def batch() -> dict[str, Tensor]:
    """Six sequences of different lengths, in all more tokens than one chunk."""
    generator = torch.Generator().manual_seed(0)
    rows = [
        Encoded(tuple(torch.randint(2, 128_256, (n,), generator=generator).tolist()), 5)
        for n in (300, 17, 111, 260, 6, 64)
    ]
    made = Collator(Sets(rows, []), 0)([[(Role.FORGET, i)] for i in range(len(rows))])
    return {name: x.to(CUDA) for name, x in made.items() if name in ("input_ids", "attention_mask", "labels")}


@pytest.fixture
def flash() -> Iterator[str]:
    """An attention that is FlashAttention's own kernel, as torch brings it, told where sequences end."""
    varlen = pytest.importorskip("torch.nn.attention.varlen")

    def attend(
        module: Any, q_BHTD: Tensor, k_BHTD: Tensor, v_BHTD: Tensor, attention_mask: Any,
        *, cu_seq_lens_q: Tensor, cu_seq_lens_k: Tensor, max_length_q: int, max_length_k: int, **kwargs: Any,
    ) -> tuple[Tensor, None]:  # fmt: skip
        assert attention_mask is None and len(q_BHTD) == 1
        q, k, v = (x[0].transpose(0, 1) for x in (q_BHTD, k_BHTD, v_BHTD))
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
        ends_q, ends_k = cu_seq_lens_q.int(), cu_seq_lens_k.int()
        causal: dict[str, Any] = {"is_causal": True}
        if "window_size" in varlen.varlen_attn.__code__.co_varnames:
            causal = {"window_size": (-1, 0)}
        out = varlen.varlen_attn(q, k, v, ends_q, ends_k, max_length_q, max_length_k, **causal)
        return (out[0] if isinstance(out, tuple) else out)[None], None

    AttentionInterface.register("flash_of_torch", attend)
    yield "flash_of_torch"
    del AttentionInterface._global_mapping["flash_of_torch"]


Way = Callable[..., Tensor]


def values_and_gradient(way: Way, model: Any, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    model.zero_grad()
    logp_N = way(model, batch["input_ids"], batch["attention_mask"], batch["labels"])
    logp_N.mean().backward()
    return logp_N.detach().double(), torch.cat([p.grad.flatten().double() for p in model.parameters()])


def distance(found: Tensor, expected: Tensor) -> float:
    return ((found - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_log_probabilities_at_a_large_vocabulary(model: Any, batch: dict[str, Tensor], dtype: torch.dtype) -> None:
    """No farther from float64 than dense logits are, but for the order of sums."""
    exact = values_and_gradient(dense_logps, model.double(), batch)
    dense = values_and_gradient(dense_logps, model.to(dtype), batch)
    found = values_and_gradient(supervised_logps, model.to(dtype), batch)
    for ours, theirs, true in zip(found, dense, exact, strict=True):
        assert distance(ours, true) <= 1.2 * distance(theirs, true) + 1e-6


def test_flash_attention_reads_no_padding(model: Any, batch: dict[str, Tensor], flash: str) -> None:
    exact = values_and_gradient(dense_logps, model.double(), batch)
    padded = values_and_gradient(supervised_logps, model.bfloat16(), batch)
    model.config._attn_implementation = flash
    try:
        found = values_and_gradient(supervised_logps, model, batch)
    finally:
        model.config._attn_implementation = "sdpa"
    for ours, theirs, true in zip(found, padded, exact, strict=True):
        assert distance(ours, true) <= 1.5 * distance(theirs, true)


@pytest.fixture
def wide(folder: Path, tiny_model: Callable[..., Any]) -> Path:  # noqa: F811
    """The folder with a model whose layers bitsandbytes can hold in 4 bits."""
    _, tokenizer = load(folder / "model")
    save(tiny_model(hidden=192), tokenizer, folder / "model")
    return folder


def test_four_bit_weights_train_an_adapter(wide: Path) -> None:
    """The reference is the adapter's absence, so the first forget loss of NPO is 2/β·log 2; training lowers it."""
    pytest.importorskip("bitsandbytes")
    trainer = trainer_of("npo+kl", wide, **{"model.lora": "{r: 4, quantize: nf4}"})
    assert any(p.dtype == torch.uint8 for p in trainer.model.parameters())
    trainer.train()
    losses = [row["forget_loss"] for row in trainer.state.log_history if "forget_loss" in row]
    assert losses[0] == pytest.approx(20 * 0.6931, rel=1e-3)
    assert losses[-1] < losses[0]


@pytest.mark.filterwarnings("default")  # of torch's compiler
@pytest.mark.parametrize(
    ("optim", "needs"),
    [("adamw_torch_8bit", "torchao"), ("adamw_torch_4bit", "torchao"), ("adamw_bnb_8bit", "bitsandbytes")],
)
def test_optimizers_of_few_bits_take_steps(wide: Path, optim: str, needs: str) -> None:
    pytest.importorskip(needs)
    trainer = trainer_of("npo+kl", wide, **{"train.optim": optim})
    trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert losses[-1] < losses[0]


def test_an_evaluation_is_that_of_the_cpu(folder: Path) -> None:  # noqa: F811
    model, tokenizer = load(folder / "model")
    data = {"forget": folder / "forget.jsonl", "retain": folder / "retain.jsonl", "max_new_tokens": 12}
    on_cpu = evaluate(model, tokenizer, **data)
    on_device = evaluate(model.to(CUDA), tokenizer, **data)
    assert on_device.metrics == pytest.approx(on_cpu.metrics, rel=1e-4, abs=1e-5, nan_ok=True)
    said = [
        [r["generated"] for rows in e.records.values() for r in rows if "generated" in r] for e in (on_cpu, on_device)
    ]
    assert said[0] and said[0] == said[1]


@pytest.mark.parametrize("method", ["npo+nll", "uld", "uld_distilled"])
def test_a_run_ends_in_numbers(folder: Path, method: str) -> None:  # noqa: F811
    """From the recipe to the report; a logit difference is evaluated, generates and is loaded again."""
    rows = run(
        {
            "model": str(folder / "model"), "method": method, "out": str(folder / "out"),
            "data": {name: str(folder / f"{name}.jsonl") for name in ("forget", "retain")},
            "augment": str(folder / "variants.jsonl"), "train": {"num_train_epochs": 2, "learning_rate": 1e-3},
            "evaluate": {"max_new_tokens": 8, "limit": 4}, "anyway": True,
        }
    )  # fmt: skip
    assert {row["method"] for row in rows} >= {"target"} and (folder / "out" / "report.html").exists()
    saved = next((folder / "out").rglob("config.json")).parent
    model, tokenizer = load(saved)
    out = model.to(CUDA).generate(**tokenizer("Where", return_tensors="pt").to(CUDA), max_new_tokens=4)
    assert out.device.type == "cuda"


def test_save_and_load_on_the_device(folder: Path, tmp_path: Path) -> None:  # noqa: F811
    model, tokenizer = load(folder / "model")
    save(model.to(CUDA), tokenizer, tmp_path / "again")
    again, _ = load(tmp_path / "again")
    for one, other in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(one.cpu(), other)
