"""Signals without logits against the model's own dense logits: values, gradients, memory, and what is left behind.

Models are tiny, random and far from uniform (initializer_range 0.3), in float64 where exactness is the point.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AttentionInterface, AutoConfig, AutoModelForCausalLM, LlamaForCausalLM, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from expunge.modeling import logprobs
from expunge.modeling.agreement import Ways, ways_of
from expunge.modeling.forward import (
    IGNORE,
    decoder_layers,
    dense_logps,
    forward_supervised,
    supervised,
    supervised_logps,
)
from expunge.modeling.logprobs import (
    BLOCK,
    CHUNK,
    Chunk,
    Head,
    score_of,
    token_divergence,
    token_logps,
    token_numbers,
    token_scores,
)
from expunge.objectives import Divergence
from expunge.objectives.base import ScoreName
from expunge.training.checkpointing import checkpoint_activations

ROTARY = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 32,
    "initializer_range": 0.3,
    "bos_token_id": None,
    "eos_token_id": 0,
    "pad_token_id": 1,
}
GROUPED = {**ROTARY, "num_key_value_heads": 1}
# What each of them does to its logits or calls its parts is what makes it worth a row.
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": GROUPED,
    "qwen3": {**GROUPED, "head_dim": 8},
    "mistral": GROUPED,
    "gemma2": {**GROUPED, "head_dim": 8, "query_pre_attn_scalar": 8, "final_logit_softcapping": 5.0},
    "phi3": GROUPED,
    "gpt_neox": ROTARY,
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32}
    | {k: ROTARY[k] for k in ("initializer_range", "bos_token_id", "eos_token_id", "pad_token_id")},
    "granite": {**GROUPED, "logits_scaling": 4.0},
    "cohere": {**GROUPED, "logit_scale": 0.25},
}
KINDS = ["forward", "reverse", "jensen_shannon", "cross_entropy"]


@dataclass
class Batch:
    """A ragged batch as the trainer makes it: labels are −100 on prompt and padding."""

    input_ids_BT: Tensor
    attention_mask_BT: Tensor
    labels_BT: Tensor

    def __iter__(self) -> Iterator[Tensor]:
        return iter((self.input_ids_BT, self.attention_mask_BT, self.labels_BT))


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def build() -> Callable[..., Any]:
    """`build("llama", vocabulary)`: a random model in evaluation mode, always the same."""

    def make(architecture: str, vocabulary: int = 252, **options: Any) -> Any:
        torch.manual_seed(0)
        config = AutoConfig.for_model(architecture, vocab_size=vocabulary, **{**ARCHITECTURES[architecture], **options})
        # Gemma 2 caps its attention scores, which only the eager attention does.
        return AutoModelForCausalLM.from_config(
            config, attn_implementation="eager" if architecture == "gemma2" else None
        ).eval()

    return make


@pytest.fixture
def ragged() -> Callable[..., Batch]:
    """Four sequences of 12, 9, 5 and 7 tokens with prompts of 4, 1, 2 and all tokens, padded right or left."""

    def make(vocabulary: int = 252, side: str = "right") -> Batch:
        generator = torch.Generator().manual_seed(1)
        rows = []
        for length, prompt in ((12, 4), (9, 1), (5, 2), (7, 7)):
            ids = torch.randint(2, vocabulary, (length,), generator=generator)
            labels = torch.where(torch.arange(length) < prompt, IGNORE, ids)
            pad = (0, 12 - length) if side == "right" else (12 - length, 0)
            rows.append(
                [
                    nn.functional.pad(x, pad, value=fill)
                    for x, fill in ((ids, 1), (torch.ones_like(ids), 0), (labels, IGNORE))
                ]
            )
        return Batch(*(torch.stack(column) for column in zip(*rows, strict=True)))

    return make


def values_and_gradients(fn: Callable[..., Tensor], model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    """log-probabilities, and every trained parameter's gradient of a function with a different slope at every token."""
    model.zero_grad()
    logp_N = fn(model, *batch)
    (logp_N.double() * torch.linspace(-1, 2, len(logp_N)).double()).sum().backward()
    return logp_N.detach(), {
        name: p.grad.clone() if p.grad is not None else torch.zeros_like(p)
        for name, p in model.named_parameters()
        if p.requires_grad
    }


def assert_gradients_close(ours: dict[str, Tensor], theirs: dict[str, Tensor], tolerance: float) -> None:
    """Each parameter's gradient, relative to its largest element."""
    assert ours.keys() == theirs.keys()
    for name, expected in theirs.items():
        error = (ours[name] - expected).abs().max() / expected.abs().max().clamp(min=1e-30)
        assert error <= tolerance, name


# -- log-probabilities of whole models ---------------------------------------------------------------------------


def test_supervised_tokens_are_predicted_one_position_earlier() -> None:
    labels_BT = torch.tensor([[IGNORE, 5, 6, IGNORE], [7, 8, IGNORE, 9], [IGNORE] * 4])
    predicts_BT, target_N = supervised(labels_BT)
    assert predicts_BT.tolist() == [[True, True, False, False], [True, False, True, False], [False] * 4]
    assert target_N.tolist() == [5, 6, 8, 9]  # the first token of a sequence, 7, is predicted by nothing


@pytest.mark.parametrize("vocabulary", [252, 507])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_equals_dense(
    build: Callable[..., Any], ragged: Callable[..., Batch], architecture: str, vocabulary: int
) -> None:
    batch, model = ragged(vocabulary), build(architecture, vocabulary)
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-10)):
        model = model.to(dtype)
        fast_N, fast = values_and_gradients(supervised_logps, model, batch)
        dense_N, dense = values_and_gradients(dense_logps, model, batch)
        assert fast_N.dtype == dtype
        assert len(fast_N) == 8 + 8 + 3
        torch.testing.assert_close(fast_N, dense_N, rtol=0, atol=tolerance)
        assert_gradients_close(fast, dense, tolerance)


@pytest.mark.parametrize("autocast", [False, True], ids=["bf16-weights", "autocast"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_low_precision_is_no_worse_than_dense(build: Callable[..., Any], architecture: str, autocast: bool) -> None:
    """Against float32 with the same weights, the fast path may make the dense path's own error and no more.

    Both read the same hidden states, and all that follows them the fast path does in float32. So its error is the same
    or smaller (0.90 to 1.00 of the dense path's was seen); 5 % is room for the scatter of a mean over 496 tokens.
    """
    truth = build(architecture).bfloat16().float()
    model = deepcopy(truth) if autocast else deepcopy(truth).bfloat16()
    ids_BT = torch.randint(2, 252, (16, 32))
    batch = Batch(ids_BT, torch.ones_like(ids_BT), ids_BT)
    errors = []
    with torch.no_grad():
        exact_N = dense_logps(truth, *batch)
        for fn in (supervised_logps, dense_logps):
            with torch.autocast("cpu", torch.bfloat16) if autocast else nullcontext():
                logp_N = fn(model, *batch)
            assert logp_N.dtype == torch.float32
            errors.append((logp_N - exact_N).square().mean().sqrt().item())
    fast, dense = errors
    assert dense > 1e-3, "nothing was rounded"
    assert fast <= 1.05 * dense


def test_autocast_gradients_are_no_worse_than_dense(build: Callable[..., Any], ragged: Callable[..., Batch]) -> None:
    """The usual recipe: float32 weights, bfloat16 arithmetic. The backward runs outside of the autocast region."""
    model, batch = build("llama"), ragged()
    _, exact = values_and_gradients(dense_logps, model, batch)

    def under_autocast(fn: Callable[..., Tensor]) -> float:
        def call(*args: Any) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                return fn(*args)

        _, found = values_and_gradients(call, model, batch)
        return sum((found[name] - g).square().sum().item() for name, g in exact.items()) ** 0.5

    assert under_autocast(supervised_logps) <= 1.1 * under_autocast(dense_logps)


def test_padding_side_does_not_matter(build: Callable[..., Any], ragged: Callable[..., Batch]) -> None:
    model = build("llama").double()
    right_N, left_N = (supervised_logps(model, *ragged(side=side)) for side in ("right", "left"))
    # Left padding moves every position; transformers computes the rotary angles in float32 for any model.
    torch.testing.assert_close(left_N, right_N, rtol=0, atol=1e-5)


@pytest.fixture
def ends() -> Iterator[list[list[int]]]:
    """Makes transformers know an attention, `flash_by_sequence`, that is told as flash attention is where sequences
    end, and is sdpa within each; gives what it was told. Flash attention itself runs on GPUs alone."""
    told: list[list[int]] = []

    def attend(
        module: Any, q_BHTD: Tensor, k_BHTD: Tensor, v_BHTD: Tensor, attention_mask: Any,
        *, cu_seq_lens_q: Tensor, cu_seq_lens_k: Tensor, max_length_q: int, max_length_k: int, **kwargs: Any,
    ) -> tuple[Tensor, None]:  # fmt: skip
        assert attention_mask is None and len(q_BHTD) == 1 and torch.equal(cu_seq_lens_q, cu_seq_lens_k)
        told.append(cu_seq_lens_q.tolist())
        assert max_length_q == max_length_k >= max(b - a for a, b in pairwise(told[-1]))
        each = [
            sdpa_attention_forward(module, q_BHTD[:, :, a:b], k_BHTD[:, :, a:b], v_BHTD[:, :, a:b], None, **kwargs)[0]
            for a, b in pairwise(told[-1])
        ]
        return torch.cat(each, 1), None

    AttentionInterface.register("flash_by_sequence", attend)
    yield told
    del AttentionInterface._global_mapping["flash_by_sequence"]


@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "made again"])
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("architecture", sorted(set(ARCHITECTURES) - {"gemma2"}))
def test_without_padding(
    build: Callable[..., Any],
    ragged: Callable[..., Batch],
    ends: list[list[int]],
    architecture: str,
    side: str,
    checkpointing: bool,
) -> None:
    model, batch = build(architecture).double(), ragged()
    dense, expected = values_and_gradients(dense_logps, model, batch)
    model.config._attn_implementation = "flash_by_sequence"
    model.train()
    if checkpointing:
        checkpoint_activations(model, {"use_reentrant": False})
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    found, gradients = values_and_gradients(supervised_logps, model, ragged(side=side))
    torch.testing.assert_close(found, dense, rtol=0, atol=1e-6)
    assert_gradients_close(gradients, expected, 1e-6)  # some norms are in float32 whatever the model is
    assert len(ends) >= 2 and all(own == [0, 12, 21, 26, 33] for own in ends)


def test_indices_without_padding(
    build: Callable[..., Any], ragged: Callable[..., Batch], ends: list[list[int]]
) -> None:
    model, batch = build("llama").double(), ragged()
    at = (torch.tensor([2, 0, 3]), torch.tensor([4, 11, 0]))

    def hidden() -> Tensor:
        found, _ = forward_supervised(model, batch.input_ids_BT, batch.attention_mask_BT, at, at_head=lambda h, _: h)
        assert found is not None
        return found

    padded = hidden()
    model.config._attn_implementation = "flash_by_sequence"
    torch.testing.assert_close(hidden(), padded, rtol=0, atol=1e-12)
    assert ends


def test_row_alone_is_the_row_in_a_batch(build: Callable[..., Any], ragged: Callable[..., Batch]) -> None:
    model, batch = build("llama").double(), ragged()
    together_N = supervised_logps(model, *batch)
    alone_N = torch.cat([supervised_logps(model, *(x[[i]] for x in batch)) for i in range(4)])
    torch.testing.assert_close(alone_N, together_N, rtol=0, atol=1e-10)


def test_nothing_supervised(build: Callable[..., Any], ragged: Callable[..., Batch]) -> None:
    model, batch = build("llama"), ragged()
    batch.labels_BT = torch.full_like(batch.labels_BT, IGNORE)
    logp_N, gradients = values_and_gradients(supervised_logps, model, batch)
    assert logp_N.shape == (0,)
    assert all(g.abs().max() == 0 for g in gradients.values())


# -- adapters, and the head as it was at the start ---------------------------------------------------------------


def adapted(model: Any, **options: Any) -> Any:
    """`model` under a LoRA adapter that already says something (B is not zero)."""
    torch.manual_seed(2)
    return get_peft_model(model, LoraConfig(r=3, init_lora_weights=False, task_type="CAUSAL_LM", **options)).eval()


ADAPTERS = {
    "layers": {"target_modules": ["q_proj", "down_proj"]},
    "layers and head": {"target_modules": ["q_proj", "lm_head"]},
    "head in full": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
}


@pytest.mark.parametrize("options", ADAPTERS.values(), ids=ADAPTERS.keys())
def test_equals_dense_under_lora(build: Callable[..., Any], ragged: Callable[..., Batch], options: dict) -> None:
    batch, plain = ragged(), build("llama").double()
    before_N = dense_logps(plain, *batch).detach()
    model = adapted(plain, **options).double()
    fast_N, fast = values_and_gradients(supervised_logps, model, batch)
    dense_N, dense = values_and_gradients(dense_logps, model, batch)
    torch.testing.assert_close(fast_N, dense_N, rtol=0, atol=1e-10)
    assert_gradients_close(fast, dense, 1e-10)
    assert all(g.abs().max() > 0 for g in dense.values())
    assert (fast_N - before_N).abs().max() > 0.1
    with model.disable_adapter():
        torch.testing.assert_close(supervised_logps(model, *batch), before_N, rtol=0, atol=1e-10)


@pytest.mark.parametrize("options", [None, *ADAPTERS.values()], ids=["full", *ADAPTERS.keys()])
def test_head_at_start_outlives_training(
    build: Callable[..., Any], ragged: Callable[..., Batch], options: dict | None
) -> None:
    """Whatever trains, the head taken before still maps the old hidden states to the old logits."""
    batch, model = ragged(), build("llama").double()
    if options:
        model = adapted(model, **options).double()
    predicts_BT, target_N = supervised(batch.labels_BT)
    with torch.no_grad(), model.disable_adapter() if options else nullcontext():
        before_N = dense_logps(model, *batch)
        hidden_ND, _ = forward_supervised(
            model, batch.input_ids_BT, batch.attention_mask_BT, predicts_BT, at_head=lambda hidden_ND, head: hidden_ND
        )
    assert hidden_ND is not None
    head = Head.at_start(model)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(torch.randn_like(p))
    after_N = token_logps(hidden_ND, target_N, head)
    torch.testing.assert_close(after_N, before_N, rtol=0, atol=1e-10)
    assert not after_N.requires_grad


def test_head_at_start_copies_only_what_trains(build: Callable[..., Any]) -> None:
    model = build("llama")
    trained, weight = Head.at_start(model).linear, model.lm_head.weight
    assert trained is not None
    assert trained.data_ptr() != weight.data_ptr()
    weight.requires_grad_(False)
    assert Head.at_start(model).linear is weight


# -- tokens and chunks -------------------------------------------------------------------------------------------


@pytest.fixture
def make_head() -> Callable[..., tuple[Head, nn.Linear]]:
    """`make_head(kind)`: a head of 6 × 37 in float64, and its layer; `bare` takes torch's fused path."""
    treatments: dict[str, dict[str, Any]] = {
        "bare": {},
        "softcap": {"softcap": 2.0},
        "scale": {"scale": 0.25},
        "both": {"softcap": 2.0, "scale": 3.0},
        "bias": {},
    }

    def make(kind: str) -> tuple[Head, nn.Linear]:
        torch.manual_seed(5)
        layer = nn.Linear(6, 37, bias=kind == "bias", dtype=torch.float64)
        linear = layer.weight if kind != "bias" else None
        return Head(forward=layer, vocab_size=37, linear=linear, **treatments[kind]), layer

    return make


def dense_logits(hidden_ND: Tensor, head: Head, layer: nn.Linear) -> Tensor:
    z_NV = head.scale * layer(hidden_ND)
    return z_NV if head.softcap is None else head.softcap * torch.tanh(z_NV / head.softcap)


SIZES = [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 77]


ASKED: list[tuple[ScoreName, ...]] = [
    ("logp",), ("uniform_ce", "log_odds"), ("log_odds", "logp", "uniform_ce", "logp"), ("margin",),
    ("margin", "uniform_ce", "margin", "log_odds"),
]  # fmt: skip


def divided(tokens: int, scores: tuple[ScoreName, ...]) -> list[tuple[ScoreName, int]]:
    """Which score of how many tokens, the last of the scores taking what is left."""
    size = tokens // 4
    return [*((score, size) for score in scores[:-1]), (scores[-1], tokens - size * (len(scores) - 1))]


def dense_scores(z_NV: Tensor, target_N: Tensor, asked: list[tuple[ScoreName, int]]) -> Tensor:
    p_NV, at = z_NV.softmax(-1), (torch.arange(len(target_N)), target_N)
    p_N = p_NV[at]
    rest_N = p_NV.sum(-1) - p_N
    literal = {"logp": p_N.log(), "log_odds": (p_N / rest_N).log(), "uniform_ce": -p_NV.log().mean(-1)}
    literal["margin"] = z_NV.amax(-1) - z_NV.mean(-1)
    owner = [score for score, size in asked for _ in range(size)]
    return torch.stack([literal[score][i] for i, score in enumerate(owner)]) if owner else p_N


@pytest.mark.parametrize("trained", [True, False], ids=["trained", "frozen"])
@pytest.mark.parametrize("kind", ["bare", "softcap", "scale", "both", "bias"])
@pytest.mark.parametrize("scores", ASKED, ids="+".join)
@pytest.mark.parametrize("tokens", [0, 1, CHUNK, CHUNK + 1, 2 * CHUNK + 77])
def test_token_scores_at_chunk_boundaries(
    make_head: Callable[..., tuple[Head, nn.Linear]],
    tokens: int,
    scores: tuple[ScoreName, ...],
    kind: str,
    trained: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(logprobs, "BLOCK", 16)  # a frozen head's vocabulary in three parts
    head, layer = make_head(kind)
    layer.requires_grad_(trained)
    hidden_ND = torch.randn(tokens, 6, dtype=torch.float64, requires_grad=True)
    target_N = torch.randint(37, (tokens,))
    slope_N = torch.randn(tokens, dtype=torch.float64)
    asked = divided(tokens, scores)
    wanted = [hidden_ND, *(layer.parameters() if trained else [])]

    score_N = token_scores(hidden_ND, target_N, head, asked)
    ours = torch.autograd.grad(score_N, wanted, slope_N, materialize_grads=True)
    expected_N = dense_scores(dense_logits(hidden_ND, head, layer), target_N, asked)
    theirs = torch.autograd.grad(expected_N, wanted, slope_N, materialize_grads=True)

    assert score_N.shape == (tokens,)
    torch.testing.assert_close(score_N, expected_N, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    with torch.no_grad():
        again_N = token_scores(hidden_ND, target_N, head, asked)
    torch.testing.assert_close(again_N, score_N.detach(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", ["bare", "softcap", "scale", "both"])
@pytest.mark.parametrize("tokens", SIZES)
@pytest.mark.parametrize("right", [True, False], ids=["right", "wrong"])
def test_a_loss_foreseen_is_a_gradient_taken_once(
    make_head: Callable[..., tuple[Head, nn.Linear]],
    tokens: int,
    kind: str,
    right: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The loss Σ c·p² of what was foreseen, c unknown, or any other loss: the gradients are the dense ones."""
    head, layer = make_head(kind)
    hidden_ND = torch.randn(tokens, 6, dtype=torch.float64, requires_grad=True)
    target_N = torch.randint(37, (tokens,))
    wanted = [hidden_ND, *layer.parameters()]
    made, logits = [], Head.logits

    def counted(self: Head, hidden_CD: Tensor, out: Tensor | None = None) -> Tensor:
        made.append(len(hidden_CD))
        return logits(self, hidden_CD, out)

    monkeypatch.setattr(Head, "logits", counted)
    places = [slice(i, min(i + 100, tokens)) for i in range(0, max(tokens, 1), 100)]
    chunks = [Chunk(own, score_of("logp", target_N[own]), lambda logp_C: (2 * logp_C).exp()) for own in places]
    power = 2 if right else 3
    logp_N = token_numbers(hidden_ND, head, chunks)
    ours = torch.autograd.grad(-5 * (power * logp_N).exp().sum(), wanted, materialize_grads=True)
    expected_N = dense_logits(hidden_ND, head, layer).log_softmax(-1)[torch.arange(tokens), target_N]
    theirs = torch.autograd.grad(-5 * (power * expected_N).exp().sum(), wanted, materialize_grads=True)
    torch.testing.assert_close(logp_N, expected_N, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    if tokens > 1:
        assert sum(made) == (tokens if right else 2 * tokens)


def test_a_frozen_head_needs_no_foresight(make_head: Callable[..., tuple[Head, nn.Linear]]) -> None:
    head, layer = make_head("bare")
    layer.requires_grad_(False)
    hidden_ND = torch.randn(CHUNK + 9, 6, dtype=torch.float64, requires_grad=True)
    target_N, slope_N = torch.randint(37, (CHUNK + 9,)), torch.randn(CHUNK + 9, dtype=torch.float64)
    expected_N = dense_logits(hidden_ND, head, layer).log_softmax(-1)[torch.arange(CHUNK + 9), target_N]
    (theirs,) = torch.autograd.grad(expected_N, hidden_ND, slope_N)
    (ours,) = torch.autograd.grad(token_logps(hidden_ND, target_N, head), hidden_ND, slope_N)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def test_uniform_cross_entropy_in_float32(large_vocabulary: tuple[Any, Batch]) -> None:
    """V = 128,256, where a sum over the vocabulary is long: still 1e-6 from the softmax in float64."""
    model, _ = large_vocabulary
    hidden_ND, target_N, head = torch.randn(50, 8), torch.randint(V, (50,)), Head.of(model)
    uniform_N = token_scores(hidden_ND, target_N, head, [("uniform_ce", len(target_N))])
    exact_N = -(hidden_ND.double() @ model.lm_head.weight.double().T).log_softmax(-1).mean(-1)
    torch.testing.assert_close(uniform_N.double(), exact_N, rtol=1e-6, atol=0)


@pytest.mark.parametrize("trained", [True, False], ids=["trained", "frozen"])
def test_uniform_cross_entropy_in_bfloat16_is_no_worse_than_dense(trained: bool) -> None:
    """Against float32 with the same weights and hidden states; .035 a token was once seen, where dense makes .008."""
    torch.manual_seed(0)
    layer = nn.Linear(64, 1_000, bias=False).bfloat16().requires_grad_(trained)
    head = Head(forward=layer, vocab_size=1_000, linear=layer.weight)
    hidden_ND = (8 * torch.randn(2 * CHUNK, 64)).bfloat16().requires_grad_()
    target_N = torch.randint(1_000, (2 * CHUNK,))
    exact_N = -(hidden_ND.float() @ layer.weight.float().T).log_softmax(-1).mean(-1)
    dense_N = -layer(hidden_ND).float().log_softmax(-1).mean(-1)
    ours_N = token_scores(hidden_ND, target_N, head, [("uniform_ce", 2 * CHUNK)])
    ours, dense = ((x_N - exact_N).square().mean().sqrt().item() for x_N in (ours_N, dense_N))
    assert ours_N.dtype == torch.float32
    assert dense > 1e-3, "nothing was rounded"
    assert ours <= 1.05 * dense


@pytest.mark.parametrize("kind", KINDS[:3])
@pytest.mark.parametrize("plain", [True, False], ids=["linear", "other"])
@pytest.mark.parametrize("near", [0.0, 1e-6, 1e-4, 1e-2])
def test_a_divergence_near_0_in_float32(kind: Any, plain: bool, near: float) -> None:
    """Never negative, and no further from float64 than log-probabilities of the same float32 logits are."""
    torch.manual_seed(0)
    weight_VD, hidden_ND = 2 * torch.randn(500, 32), 2 * torch.randn(300, 32, requires_grad=True)
    reference_ND = hidden_ND.detach() + near * torch.randn(300, 32)
    head = Head(forward=lambda h: h @ weight_VD.T, vocab_size=500, linear=weight_VD if plain else None)
    target_N = torch.zeros(300, dtype=torch.long)
    ours_N = token_divergence(hidden_ND, head, reference_ND, head, target_N, Divergence(kind))

    def dense(dtype: torch.dtype) -> Tensor:
        logq, logp = ((h @ weight_VD.T).detach().to(dtype).log_softmax(-1) for h in (reference_ND, hidden_ND))
        if kind == "jensen_shannon":
            logm = torch.logaddexp(logp, logq) - math.log(2)
            return (logp.exp() * (logp - logm) + logq.exp() * (logq - logm)).sum(-1) / 2
        p, q = (logp, logq) if kind == "reverse" else (logq, logp)
        return (p.exp() * (p - q)).sum(-1)

    exact_N, dense_N = dense(torch.float64), dense(torch.float32)
    assert (ours_N >= 0).all()
    assert (ours_N - exact_N).abs().max() <= 1.1 * (dense_N - exact_N).abs().max() + 1e-7


@pytest.mark.parametrize("shift", [0.0, 10.0])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tokens", SIZES)
def test_token_divergence(
    make_head: Callable[..., tuple[Head, nn.Linear]], tokens: int, kind: Any, shift: float
) -> None:
    """Model and reference have heads of different weights and treatment; gradient goes to the model alone."""
    (head, layer), (reference_head, reference_layer) = make_head("softcap"), make_head("scale")
    with torch.no_grad():
        reference_layer.weight.add_(0.3 * torch.randn_like(reference_layer.weight))
    hidden_ND = torch.randn(tokens, 6, dtype=torch.float64, requires_grad=True)
    reference_ND = torch.randn(tokens, 6, dtype=torch.float64, requires_grad=True)
    target_N = torch.randint(37, (tokens,))
    slope_N = torch.randn(tokens, dtype=torch.float64)
    wanted = [hidden_ND, *layer.parameters()]
    divergence = Divergence(kind, shift=shift)

    ours_N = token_divergence(hidden_ND, head, reference_ND, reference_head, target_N, divergence)
    ours = torch.autograd.grad(ours_N, wanted, slope_N, materialize_grads=True)

    p = dense_logits(hidden_ND, head, layer).softmax(-1)
    one_hot_NV = nn.functional.one_hot(target_N, 37)
    p0 = (dense_logits(reference_ND, reference_head, reference_layer) - shift * one_hot_NV).softmax(-1).detach()
    theirs_N = {
        "forward": p0 * (p0 / p).log(),
        "reverse": p * (p / p0).log(),
        "jensen_shannon": (p * (2 * p / (p + p0)).log() + p0 * (2 * p0 / (p + p0)).log()) / 2,
        "cross_entropy": -p0 * p.log(),
    }[kind].sum(-1)
    theirs = torch.autograd.grad(theirs_N, wanted, slope_N, materialize_grads=True)

    assert ours_N.shape == (tokens,)
    torch.testing.assert_close(ours_N, theirs_N, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    if tokens:
        untouched = [reference_ND, *reference_layer.parameters()]
        again_N = token_divergence(hidden_ND, head, reference_ND, reference_head, target_N, divergence)
        assert torch.autograd.grad(again_N.sum(), untouched, allow_unused=True) == (None, None)


@pytest.mark.parametrize("kind", ["bare", "softcap"])
def test_no_logits_wait_for_the_backward(make_head: Callable[..., tuple[Head, nn.Linear]], kind: str) -> None:
    """Logits are made again in the backward: of all that autograd keeps, nothing is as large as one chunk of them."""
    head, layer = make_head(kind)
    hidden_ND = torch.randn(3 * CHUNK, 6, dtype=torch.float64, requires_grad=True)
    target_N = torch.randint(37, (3 * CHUNK,))

    def largest_kept(fn: Callable[[], Tensor]) -> int:
        kept = [0]

        def pack(x: Tensor) -> Tensor:
            kept.append(x.numel())
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            fn()
        return max(kept)

    chunk = CHUNK * 37
    assert largest_kept(lambda: token_logps(hidden_ND, target_N, head)) < chunk
    divergence = Divergence("reverse")
    assert largest_kept(lambda: token_divergence(hidden_ND, head, hidden_ND, head, target_N, divergence)) < chunk
    assert largest_kept(lambda: dense_logits(hidden_ND, head, layer).log_softmax(-1)) >= chunk


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_divergence_of_whole_models(build: Callable[..., Any], ragged: Callable[..., Batch], architecture: str) -> None:
    """z⁰ made again from the reference's hidden states is the reference model's own distribution."""
    batch, model = ragged(), build(architecture).double()
    reference = deepcopy(model)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn_like(p))
    ids, mask, labels = batch
    predicts_BT, target_N = supervised(labels)
    with torch.no_grad():
        reference_ND, _ = forward_supervised(reference, ids, mask, predicts_BT, at_head=lambda hidden, head: hidden)
        assert reference_ND is not None
        p_NV, p0_NV = (m(ids, attention_mask=mask).logits[predicts_BT].softmax(-1) for m in (model, reference))
        kl_N, _ = forward_supervised(
            model,
            ids,
            mask,
            predicts_BT,
            at_head=lambda hidden, head: token_divergence(
                hidden, head, reference_ND, Head.at_start(reference), target_N, Divergence("reverse")
            ),
        )
    assert kl_N is not None
    assert kl_N.min() > 1e-4
    torch.testing.assert_close(kl_N, (p_NV * (p_NV / p0_NV).log()).sum(-1), rtol=1e-9, atol=1e-10)


# -- the forward: what runs, what is captured, what is left behind -------------------------------------------------


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gpt_neox", "gpt2", "cohere"])
@pytest.mark.parametrize("layer", [0, 1, 2])
def test_layer_is_the_hidden_state_behind_it(
    build: Callable[..., Any], ragged: Callable[..., Batch], architecture: str, layer: int
) -> None:
    """`hidden_states[l + 1]` is the output of layer l, but the last entry has been through the final norm."""
    depth = {"n_layer": 3} if architecture == "gpt2" else {"num_hidden_layers": 3}
    model = build(architecture, **depth)
    ids, mask, labels = ragged()
    predicts_BT, target_N = supervised(labels)
    _, layer_ND = forward_supervised(model, ids, mask, predicts_BT, layer=layer)
    states = model(ids, attention_mask=mask, output_hidden_states=True).hidden_states
    norms = [m for name, m in model.base_model.named_children() if "norm" in name or name == "ln_f"]
    norm = norms[0] if layer == 2 else nn.Identity()
    torch.testing.assert_close(norm(layer_ND), states[layer + 1][predicts_BT])

    logp_N, also_ND = forward_supervised(
        model, ids, mask, predicts_BT, at_head=lambda hidden, head: token_logps(hidden, target_N, head), layer=layer
    )
    torch.testing.assert_close(norm(also_ND), norm(layer_ND))
    torch.testing.assert_close(logp_N, dense_logps(model, ids, mask, labels), rtol=0, atol=1e-5)


def test_forward_ends_at_the_layer(build: Callable[..., Any], ragged: Callable[..., Batch]) -> None:
    model = build("llama", num_hidden_layers=4)
    called: list[str] = []
    names = {f"layer {i}": m for i, m in enumerate(decoder_layers(model))} | {"norm": model.model.norm}
    names["head"] = model.lm_head
    for name, module in names.items():
        module.register_forward_pre_hook(lambda *_, name=name: called.append(name))
    ids, mask, labels = ragged()
    predicts_BT, _ = supervised(labels)

    nothing, layer_ND = forward_supervised(model, ids, mask, predicts_BT, layer=1)
    assert called == ["layer 0", "layer 1"]
    assert nothing is None
    assert layer_ND is not None
    layer_ND.sum().backward()
    reached = [any(p.grad is not None for p in m.parameters()) for m in decoder_layers(model)]
    assert reached == [True, True, False, False]

    called.clear()
    forward_supervised(model, ids, mask, predicts_BT, layer=1, at_head=lambda hidden, head: hidden)
    assert called == list(names)


@pytest.mark.skipif(
    not hasattr(PreTrainedModel, "activation_checkpointing_enable"),
    reason="before transformers 5.23 a recomputed forward ends at the layer, which torch refuses by itself",
)
def test_layer_under_gradient_checkpointing(build: Callable[..., Any], ragged: Callable[..., Batch]) -> None:
    model = build("llama", num_hidden_layers=3).double()
    ids, mask, labels = ragged()

    def gradients() -> dict[str, Tensor]:
        def loss(*_: Any) -> Tensor:
            return forward_supervised(model, ids, mask, supervised(labels)[0], layer=1)[1].square().sum(-1)  # pyright: ignore

        return values_and_gradients(loss, model, Batch(ids, mask, labels))[1]

    plain = gradients()
    model.train()
    checkpoint_activations(model)
    assert_gradients_close(gradients(), plain, 1e-10)


def test_the_loss_hangs_on_the_heads_own_output(build: Callable[..., Any], ragged: Callable[..., Batch]) -> None:
    """ZeRO-3 gathers a module's weights again when the gradient reaches what the module has returned."""
    model = build("llama")
    reached = []

    def tie(_module: nn.Module, _inputs: Any, output: tuple[Tensor, ...]) -> None:
        for x in output:
            x.register_hook(lambda grad: reached.append(grad.shape))

    model.lm_head.register_forward_hook(tie)
    logp_N = supervised_logps(model, *ragged())
    logp_N.sum().backward()
    assert reached == [logp_N.shape]


def test_head_sees_supervised_positions_only(build: Callable[..., Any], ragged: Callable[..., Batch]) -> None:
    model, (ids, mask, labels) = build("llama"), ragged()
    predicts_BT, _ = supervised(labels)
    seen: list[Tensor] = []
    forward_supervised(model, ids, mask, predicts_BT, at_head=lambda hidden, head: seen.append(hidden))
    states = model(ids, attention_mask=mask, output_hidden_states=True).hidden_states
    assert len(seen) == 1
    torch.testing.assert_close(seen[0], states[-1][predicts_BT])


def test_the_model_is_left_as_it_was(build: Callable[..., Any], ragged: Callable[..., Batch]) -> None:
    """Also when `at_head` raises, and when the forward ends early: the head's own forward is back, no hook stays."""
    model, (ids, mask, labels) = build("llama"), ragged()
    predicts_BT, _ = supervised(labels)
    before = model(ids, attention_mask=mask).logits

    def fail(hidden_ND: Tensor, head: Head) -> None:
        raise RuntimeError("no")

    supervised_logps(model, ids, mask, labels)
    forward_supervised(model, ids, mask, predicts_BT, layer=0)
    with pytest.raises(RuntimeError, match="no"):
        forward_supervised(model, ids, mask, predicts_BT, at_head=fail, layer=0)
    assert "forward" not in vars(model.lm_head)
    assert not any(m._forward_hooks for m in model.modules())
    assert torch.equal(model(ids, attention_mask=mask).logits, before)


def test_a_hooked_head_keeps_its_hook(build: Callable[..., Any], ragged: Callable[..., Batch]) -> None:
    """accelerate places and offloads modules through a forward of the instance; it must survive ours."""
    model, batch = build("llama"), ragged()
    ran: list[bool] = []

    class Hook(ModelHook):
        def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
            ran.append(True)
            return args, kwargs

    add_hook_to_module(model.lm_head, Hook())
    fast_N = supervised_logps(model, *batch)
    assert not ran
    torch.testing.assert_close(dense_logps(model, *batch), fast_N, rtol=0, atol=1e-5)
    assert ran == [True]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_decoder_layers(build: Callable[..., Any], architecture: str) -> None:
    layers = decoder_layers(build(architecture))
    assert len(layers) == 2
    assert all(len(list(layer.parameters())) > 3 for layer in layers)


# -- heads that are not known ----------------------------------------------------------------------------------------


class DoublingLlama(LlamaForCausalLM):
    """Doubles its logits, which no key of its config tells."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output: Any = super().forward(*args, **kwargs)
        output.logits = 2 * output.logits
        return output


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_known_heads_are_found_to_be_known(build: Callable[..., Any], architecture: str, dtype: torch.dtype) -> None:
    model = build(architecture).to(dtype)
    model.train()  # with GPT-2's dropout on, two forwards would differ
    random = torch.get_rng_state()
    assert ways_of(model) == Ways(dense=False, padded=True, vocab_size=model.get_output_embeddings().weight.shape[0])
    assert model.training and torch.equal(torch.get_rng_state(), random)
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_of_an_unknown_head_its_own_logits_are_taken(
    build: Callable[..., Any], ragged: Callable[..., Batch], dtype: torch.dtype
) -> None:
    model: Any = DoublingLlama(build("llama").config)
    model.to(dtype).eval()
    assert ways_of(model).dense and ways_of(adapted(model, target_modules=["q_proj"])).dense
    assert not model.training
    predicts_BT, target_N = supervised((batch := ragged()).labels_BT)
    logp_N, _ = forward_supervised(
        model,
        batch.input_ids_BT,
        batch.attention_mask_BT,
        predicts_BT,
        at_head=lambda hidden_ND, head: token_logps(hidden_ND, target_N, head),
        dense=True,
    )
    torch.testing.assert_close(logp_N, dense_logps(model, *batch))


def test_a_scale_of_the_same_name_may_mean_the_opposite() -> None:
    """Granite divides by `logits_scaling`, HyperCLOVA X multiplies by it."""
    torch.manual_seed(0)
    config = AutoConfig.for_model("hyperclovax", vocab_size=252, **GROUPED, logits_scaling=0.25)
    assert ways_of(AutoModelForCausalLM.from_config(config)).dense


# -- memory --------------------------------------------------------------------------------------------------------


class TooLarge(AssertionError):
    """An operation made a tensor that was never to exist."""


class LargestTensor(TorchDispatchMode):
    """Looks at the outputs of every operation, forward and backward, and stops at one of `limit` elements or more.

    Every tensor that PyTorch makes is the output of some operation below autograd, where this mode sits; on a CPU the
    backward runs in the same thread. What it can't see is scratch space inside a compiled kernel. torch's fused linear
    cross-entropy is one operation whose kernel is Python: it is sent to that kernel with the mode still on, so that
    the operations inside are seen too.
    """

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit, self.largest = limit, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "aten":
            out = func(*args, **(kwargs or {}))
        else:
            with self:
                out = func.redispatch(torch._C.DispatchKeySet(torch._C.DispatchKey.CPU), *args, **(kwargs or {}))
        size = max((x.numel() for x in tree_leaves(out) if isinstance(x, Tensor)), default=0)
        self.largest = max(self.largest, size)
        if size >= self.limit:
            raise TooLarge(f"{func} made {size:,} elements")
        return out


B, T, V = 4, 256, 128_256


@pytest.fixture
def large_vocabulary(build: Callable[..., Any]) -> tuple[Any, Batch]:
    """Llama 3's vocabulary on a tiny model, and a batch of 4 × 256 tokens whose second half is supervised."""
    model = build("llama", V, num_hidden_layers=1, hidden_size=8, max_position_embeddings=T)
    ids_BT = torch.randint(V, (B, T))
    labels_BT = torch.where(torch.arange(T) < T // 2, IGNORE, ids_BT)
    return model, Batch(ids_BT, torch.ones_like(ids_BT), labels_BT)


def test_log_probabilities_hold_one_chunk_of_logits(large_vocabulary: tuple[Any, Batch]) -> None:
    """[B, T, V] here is 131 million elements, one chunk of logits 33 million; the chunk is the largest tensor there is.

    All tokens are supervised: the bound does not come from leaving positions out.
    """
    model, (ids, mask, _) = large_vocabulary
    with LargestTensor(limit=B * T * V) as seen:
        supervised_logps(model, ids, mask, ids).mean().backward()
    assert model.lm_head.weight.grad is not None
    assert seen.largest == CHUNK * V  # equal, not below: the mode does see the logits


@pytest.mark.parametrize("trained", [True, False], ids=["trained", "frozen"])
@pytest.mark.parametrize("score", ["log_odds", "uniform_ce", "margin"])
def test_scores_hold_one_chunk_of_logits(large_vocabulary: tuple[Any, Batch], score: ScoreName, trained: bool) -> None:
    """A trained head's largest tensor is a chunk of logits, a frozen one's a block of the logits of all tokens."""
    head = Head.of(large_vocabulary[0])
    assert head.linear is not None
    head.linear.requires_grad_(trained)
    hidden_ND = torch.randn(B * T, 8, requires_grad=True)
    target_N = torch.randint(V, (B * T,))
    with LargestTensor(limit=CHUNK * V + 1) as seen:
        token_scores(hidden_ND, target_N, head, [(score, B * T)]).mean().backward()
    assert hidden_ND.grad is not None
    assert seen.largest == (CHUNK * V if trained else B * T * BLOCK)


def test_divergence_holds_one_chunk_of_logits(large_vocabulary: tuple[Any, Batch]) -> None:
    model, (ids, mask, labels) = large_vocabulary
    predicts_BT, target_N = supervised(labels)
    assert len(target_N) > CHUNK  # more than one chunk
    start = Head.at_start(model)
    with LargestTensor(limit=B * T * V) as seen:
        divergence_N, _ = forward_supervised(
            model,
            ids,
            mask,
            predicts_BT,
            at_head=lambda hidden, head: token_divergence(
                hidden, head, hidden.detach(), start, target_N, Divergence("cross_entropy", shift=10.0)
            ),
        )
        assert divergence_N is not None
        divergence_N.mean().backward()
    assert model.lm_head.weight.grad is not None
    assert seen.largest == CHUNK * V


def test_dense_logits_trip_the_detector(large_vocabulary: tuple[Any, Batch]) -> None:
    model, batch = large_vocabulary
    with torch.no_grad(), LargestTensor(limit=B * T * V), pytest.raises(TooLarge, match="131,334,144 elements"):
        dense_logps(model, *batch)
