"""Which ways agree with a model's own plain forward is measured, once, without a trace."""

import logging
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from accelerate.utils import compile_regions, extract_model_from_parallel
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import BertConfig, BertLMHeadModel, LlamaForCausalLM

from expunge import UnlearnConfig, UnlearnTrainer, objectives
from expunge.data.encode import Encoded
from expunge.errors import UserError
from expunge.evals import decoding, requests
from expunge.modeling import agreement
from expunge.modeling.agreement import distance, plain_logits, probe_length, tokens_of, ways_of
from expunge.modeling.difference import LogitDifferenceConfig, LogitDifferenceForCausalLM
from expunge.system import ranks


class Capped(LlamaForCausalLM):
    """Soft-caps its logits, under a name that nobody knows."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output: Any = super().forward(*args, **kwargs)
        output.logits = torch.tanh(output.logits / 30) * 30
        return output


class CountsPadding(LlamaForCausalLM):
    """Says something else in a row that is padded."""

    def forward(self, input_ids: Any = None, *args: Any, **kwargs: Any) -> Any:
        padded = (kwargs["attention_mask"] == 0).any(-1, keepdim=True)
        return super().forward((input_ids + padded) % 292, *args, **kwargs)


class LooksAhead(LlamaForCausalLM):
    """Adds to every position what stands at the last one."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output: Any = super().forward(*args, **kwargs)
        output.logits = output.logits + output.logits[:, -1:]
        return output


@pytest.fixture
def llama(tiny_model: Callable[..., Any]) -> LlamaForCausalLM:
    return tiny_model(layers=2)


def as_a(kind: type[nn.Module], model: nn.Module) -> Any:
    model.__class__ = kind
    return model


def test_it_is_measured_once_and_said_once(llama: Any, caplog: pytest.LogCaptureFixture) -> None:
    model, forwards = as_a(Capped, llama), []
    model.register_forward_hook(lambda *_: forwards.append(1))
    with caplog.at_level(logging.INFO, "expunge"):
        assert ways_of(model).dense
        assert (first := len(forwards)) < 9
        assert ways_of(model, 100) == ways_of(model)
    assert len(forwards) == first
    assert [r.getMessage().split(" ")[0] for r in caplog.records] == ["Capped"]


@pytest.mark.parametrize("std", [1e-4, 0.02, 1.0])
def test_a_head_is_tried_with_large_logits(llama: Any, std: float) -> None:
    """A cap of 30 changes the logits of an untrained model by a millionth, and those of a trained one by all."""
    nn.init.normal_(llama.lm_head.weight, std=std)
    assert not ways_of(deepcopy(llama)).dense
    assert ways_of(as_a(Capped, llama)).dense


def test_nothing_is_left_behind(llama: Any) -> None:
    llama.train()
    llama.lm_head.eval()
    random, weights = torch.get_rng_state(), {k: v.clone() for k, v in llama.state_dict().items()}
    with torch.autocast("cpu", torch.bfloat16):
        ways_of(llama)
        decoding.answering(llama, 12)
    assert torch.equal(torch.get_rng_state(), random)
    assert llama.training and llama.model.training and not llama.lm_head.training
    assert all(torch.equal(v, weights[k]) for k, v in llama.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in llama.modules())
    assert not any("forward" in vars(m) for m in llama.modules())


def test_another_form_of_a_model_is_measured_again(llama: Any) -> None:
    assert ways_of(llama).vocab_size == llama.config.vocab_size
    llama.resize_token_embeddings(320)
    assert ways_of(llama.bfloat16()).vocab_size == 320


def rows(count: int) -> list[dict[str, str]]:
    return [{"question": f"Where was person {i} born?", "answer": f"In town {'x' * i} {i}."} for i in range(count)]


def trainer(model: Any, tokenizer: Any, folder: Any, **options: Any) -> UnlearnTrainer:
    return UnlearnTrainer(
        model,
        UnlearnConfig(str(folder)),
        objective=objectives.NPO(),
        forget_dataset=rows(3),
        processing_class=tokenizer,
        **options,
    )


def test_padding_that_counts_is_left_out_in_evaluation_and_refused_in_training(
    llama: Any, tiny_tokenizer: Any, tmp_path: Any
) -> None:
    model = as_a(CountsPadding, llama)
    assert not ways_of(model).padded
    sequences = [Encoded(tuple(tokens_of(model, n, seed=n)), 2) for n in (5, 8, 9)]
    found = requests.score(model, sequences, progress=False)
    for score, sequence in zip(found, sequences, strict=True):
        logp_TV = plain_logits(model.eval(), sequence.input_ids).log_softmax(-1)
        expected = logp_TV[1:-1].gather(-1, torch.tensor(sequence.input_ids)[2:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(score.logps), expected.detach(), rtol=0, atol=1e-5)
    with pytest.raises(UserError, match="CountsPadding gives a sequence other log-probabilities in a padded batch"):
        trainer(model, tiny_tokenizer, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_looks_ahead_is_refused_everywhere(llama: Any, tiny_tokenizer: Any, tmp_path: Any) -> None:
    bert = BertConfig(vocab_size=300, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    for model in (as_a(LooksAhead, llama), BertLMHeadModel(bert)):
        ask = [Encoded((5, 6, 7, 8), 2)]
        with pytest.raises(UserError, match="when other tokens follow it"):
            requests.score(model, ask, progress=False)
        with pytest.raises(UserError, match="when other tokens follow it"):
            requests.generate(model, tiny_tokenizer, [(5, 6)], max_new_tokens=2, progress=False)
        with pytest.raises(UserError, match="when other tokens follow it"):
            trainer(model, tiny_tokenizer, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_no_difference_is_made_of_a_head_that_is_not_known(llama: Any) -> None:
    model = LogitDifferenceForCausalLM(LogitDifferenceConfig(), as_a(Capped, llama), assistant=deepcopy(llama))
    with pytest.raises(UserError, match=r"Capped does something to its logits.* single-model method"):
        ways_of(model)


def test_an_error_of_the_model_is_one_sentence(llama: Any) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise ValueError("pixel_values are missing.\nsecond line")

    llama.model.forward = broken
    with pytest.raises(UserError, match=r"can't read a plain text \(ValueError: pixel_values are missing\); use"):
        ways_of(llama)


def test_long_sequences_are_tried_where_a_setting_may_tell_them_apart(llama: Any) -> None:
    assert probe_length(llama, 100) == agreement.PROBE
    llama.config.some_window = 50
    assert probe_length(llama, 50) == agreement.PROBE
    assert probe_length(llama, 51) == 64
    assert probe_length(llama, 10**6) == llama.config.max_position_embeddings - 1


def test_how_far_apart() -> None:
    torch.manual_seed(0)
    z_NV = torch.randn(3, 50)
    assert distance(z_NV + 7, z_NV) < 1e-6, "a constant changes no probability"
    assert 0.01 < distance(1.01 * z_NV, z_NV) < 0.03
    assert 0.01 < distance(1.01e-5 * z_NV, 1e-5 * z_NV) < 0.03, "whatever the size of the logits"
    assert distance(z_NV[:2], z_NV) == float("inf")
    ruled_out_NV = z_NV.clone()
    ruled_out_NV[:, 3] = torch.finfo(torch.float32).min
    assert 0.01 < distance(1.01 * ruled_out_NV, ruled_out_NV) < 0.03
    assert distance(z_NV, ruled_out_NV) == float("inf")


def test_the_model_inside_is_the_one_that_accelerate_gives(tiny_model: Any) -> None:
    plain = tiny_model()
    compiled, regions = torch.compile(plain, backend="eager"), compile_regions(plain, backend="eager")
    adapted = get_peft_model(tiny_model(), LoraConfig(r=2, task_type="CAUSAL_LM"))
    assert ranks.inside(torch.nn.DataParallel(plain)) is plain
    wrapped: tuple[Any, ...] = (plain, compiled, regions, adapted, torch.nn.DataParallel(adapted))
    for model in wrapped:
        assert ranks.inside(model) is extract_model_from_parallel(model)
