"""Scoring and generating in batches against the plain way, one sequence at a time."""

import logging
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    GenerationConfig,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from expunge.data.encode import Encoded, encode, question_row
from expunge.errors import UserError
from expunge.evals import decoding, reading, requests
from expunge.modeling.difference import LogitDifferenceConfig, LogitDifferenceForCausalLM
from expunge.modeling.logprobs import Head

ANSWERS = ["Ann Lee was born in Oslo.", "Oslo", "In Rome, I think, or it may well have been Paris.", "No."]


@pytest.fixture
def sequences(tokenizer: Any) -> list[Encoded]:
    rows = [question_row("Where was Ann Lee born?", a) for a in ANSWERS]
    rows += [question_row("Who?", "Ann Lee."), {"text": "Ann Lee was born in Oslo."}]
    return [encode(row, tokenizer) for row in rows]


@pytest.fixture
def prompts(sequences: list[Encoded]) -> list[tuple[int, ...]]:
    return [s.input_ids[: s.start] for s in sequences if s.start] + [(50, 60), (70,)]


@dataclass
class Read:
    """One forward of a decoder: the rows that it read, and whether they were trees."""

    shape: torch.Size
    trees: bool


@pytest.fixture
def forwards(monkeypatch: pytest.MonkeyPatch) -> list[Read]:
    """Those that requests make, without the ones that find out how a model may be asked."""
    made: list[Read] = []
    original = reading.forward_supervised

    def counting(model: Any, ids_BT: torch.Tensor, mask: torch.Tensor, *rest: Any, **kwargs: Any) -> Any:
        made.append(Read(ids_BT.shape, mask.dim() == 4))
        return original(model, ids_BT, mask, *rest, **kwargs)

    def asking(*args: Any, **kwargs: Any) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(reading, "forward_supervised", counting)
            return reading.at_trees(*args, **kwargs)

    monkeypatch.setattr(requests, "at_trees", asking)
    return made


def plain_logps(model: Any, sequence: Encoded) -> np.ndarray:
    ids = torch.tensor([sequence.input_ids])
    with torch.no_grad():
        logps = model.eval()(input_ids=ids).logits[0].log_softmax(-1)
    start = max(sequence.start, 1)
    return logps[start - 1 : -1].gather(-1, ids[0, start:, None])[:, 0].numpy()


def plain_greedy(model: Any, prompt: tuple[int, ...], max_new_tokens: int, ends: list[int]) -> tuple[int, ...]:
    ids = list(prompt)
    for _ in range(max_new_tokens):
        with torch.no_grad():
            token = int(model.eval()(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
        if token in ends:
            break
        ids.append(token)
    return tuple(ids[len(prompt) :])


@pytest.mark.parametrize("token_budget", [1, 60, requests.SCORE_BUDGET])
def test_score_is_the_plain_forward(model: Any, sequences: list[Encoded], token_budget: int) -> None:
    scores = requests.score(model, sequences, token_budget=token_budget, progress=False)
    for score, sequence in zip(scores, sequences, strict=True):
        expected = plain_logps(model, sequence)
        np.testing.assert_allclose(score.logps, expected, atol=1e-5)
        assert score.tokens == len(sequence) - max(sequence.start, 1)
        assert score.logps.dtype == np.float32
        assert score.total == pytest.approx(float(expected.sum()), abs=1e-4)
        assert score.mean == pytest.approx(float(expected.mean()), abs=1e-5)


KINDS = ["llama", "eager", "gpt2", "lora", "difference", "apart", "window", "narrow window", "bloom", "mamba"]


@pytest.fixture
def built(request: pytest.FixtureRequest, llama: Any, gpt2: Any) -> Any:
    """A model of each of `KINDS`: those whose rows can be trees, then those for which they can't."""
    size: dict[str, Any] = {"vocab_size": 320, "hidden_size": 32, "num_hidden_layers": 2, "initializer_range": 0.3}
    mistral = {**size, "intermediate_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1}
    lora = LoraConfig(r=4, init_lora_weights=False, target_modules="all-linear")
    match request.param:
        case "llama":
            return llama
        case "eager":
            llama.set_attn_implementation("eager")
            return llama
        case "gpt2":
            return gpt2
        case "lora":
            return get_peft_model(llama, lora)
        case "difference":
            return LogitDifferenceForCausalLM(LogitDifferenceConfig(layers=1), llama, lora=lora)
        case "apart":
            return LogitDifferenceForCausalLM(LogitDifferenceConfig(), llama, assistant=deepcopy(llama))
        case "window":
            return MistralForCausalLM(MistralConfig(**mistral, sliding_window=64))
        case "narrow window":
            return MistralForCausalLM(MistralConfig(**mistral, sliding_window=8))
        case "bloom":
            return BloomForCausalLM(BloomConfig(**size, n_head=2))
        case _:
            return MambaForCausalLM(MambaConfig(**size, state_size=4))


@pytest.mark.parametrize("built", KINDS, indirect=True)
@pytest.mark.filterwarnings("ignore::UserWarning")  # of Mamba, whose fast kernels are not here
def test_a_question_is_read_once_where_that_is_right(
    built: Any, request: pytest.FixtureRequest, tokenizer: Any, forwards: list[Read]
) -> None:
    """Whatever the model, scores are those of one forward for each answer."""
    kind = request.node.callspec.params["built"]
    asked = [question_row(f"Where was {name} born?", a) for name in ("Ann Lee", "Bo") for a in ANSWERS]
    sequences = [encode(row, tokenizer) for row in asked]
    found = requests.score(built, sequences, progress=False)
    detailed = requests.score(built, sequences, details=True, progress=False)
    for sequence, score, details in zip(sequences, found, detailed, strict=True):
        np.testing.assert_allclose(score.logps, plain_logps(built, sequence), atol=1e-5)
        np.testing.assert_allclose(details.logps, score.logps, atol=1e-5)
    can = kind not in KINDS[-3:]
    assert all(read.trees is can for read in forwards)
    assert (sum(read.shape.numel() for read in forwards) < 2 * sum(map(len, sequences))) is can
    assert max(map(len, sequences)) < 64, "the wider window holds them"


def test_under_autocast_too(llama: Any, sequences: list[Encoded], forwards: list[Read]) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        found = requests.score(llama, sequences, progress=False)
        alone = [requests.score(llama, [s], progress=False)[0] for s in sequences]
    assert forwards[0].trees
    for a, b, sequence in zip(found, alone, sequences, strict=True):
        error = np.abs(b.logps - plain_logps(llama, sequence)).max()  # what this dtype does to any forward
        np.testing.assert_allclose(a.logps, b.logps, atol=2 * error + 1e-5)


def test_every_ask_has_its_own(llama: Any, sequences: list[Encoded]) -> None:
    """Tokens that two sequences share are looked at once, and each ask sees only its own sequences' tokens."""
    seen: list[list[tuple[Encoded, int]]] = []

    def at_head(where: Any, hidden_ND: torch.Tensor, target_N: torch.Tensor, head: Head) -> torch.Tensor:
        assert target_N.tolist() == [s.input_ids[s.start + i] for s, i in where] and len(hidden_ND) == len(where)
        seen.append(where)
        return target_N.float()

    again = Encoded((*sequences[0].input_ids[:-1], 60, 0), sequences[0].start)
    mine = [sequences[2], sequences[0], again]
    scores, found = requests.at_answers(
        llama, [requests.ask_scores(sequences), requests.Ask(mine, at_head)], progress=False
    )
    assert [len(s) for s in scores] == [len(s) - s.start for s in sequences]
    assert [x.tolist() for x in found] == [list(map(float, s.input_ids[s.start :])) for s in mine]
    (where,) = seen
    alike = len(sequences[0]) - sequences[0].start - 1
    assert len(where) == sum(len(s) - s.start for s in mine) - alike


def test_score_answers_in_the_caller_s_order(llama: Any, sequences: list[Encoded]) -> None:
    forward = requests.score(llama, sequences, progress=False)
    backward = requests.score(llama, sequences[::-1], progress=False)
    for a, b in zip(forward, backward[::-1], strict=True):
        np.testing.assert_allclose(a.logps, b.logps, atol=1e-5)


def test_a_sequence_is_scored_once(llama: Any, sequences: list[Encoded], forwards: list[Read]) -> None:
    scores = requests.score(llama, sequences * 3, token_budget=120, progress=False)
    assert scores[0] is scores[len(sequences)] is scores[2 * len(sequences)]
    assert sum(read.shape[0] for read in forwards) <= len(sequences)
    assert all(read.shape.numel() <= 120 or read.shape[0] == 1 for read in forwards)
    assert len(forwards) > 1
    other_span = Encoded(sequences[0].input_ids, sequences[0].start + 1)
    assert requests.score(llama, [sequences[0], other_span], progress=False)[1].tokens == scores[0].tokens - 1


def test_nothing_to_do(llama: Any, tokenizer: Any) -> None:
    assert requests.score(llama, [], progress=False) == []
    assert requests.generate(llama, tokenizer, [], max_new_tokens=3, progress=False) == []


@pytest.mark.parametrize("training", [True, False])
def test_model_keeps_its_mode(llama: Any, tokenizer: Any, sequences: list[Encoded], training: bool) -> None:
    llama.train(training)
    requests.score(llama, sequences, progress=False)
    assert llama.training is training
    requests.generate(llama, tokenizer, [(50, 60)], max_new_tokens=2, progress=False)
    assert llama.training is training
    with pytest.raises(IndexError):
        requests.score(llama, [Encoded((10**6, 50), 1)], progress=False)
    assert llama.training is training


def test_training_goes_on_after_scoring(llama: Any, sequences: list[Encoded]) -> None:
    requests.score(llama, sequences, progress=False)
    ids = torch.tensor([sequences[0].input_ids])
    llama(input_ids=ids, labels=ids).loss.backward()
    assert llama.lm_head.weight.grad is not None


def test_nan_is_an_error(llama: Any, sequences: list[Encoded]) -> None:
    llama.lm_head.weight.data.fill_(float("nan"))
    with pytest.raises(UserError, match="diverged"):
        requests.score(llama, sequences, progress=False)


def test_bfloat16_scores_are_float32(llama: Any, sequences: list[Encoded]) -> None:
    score, *_ = requests.score(llama.bfloat16(), sequences, progress=False)
    assert score.logps.dtype == np.float32


@pytest.mark.parametrize("token_budget", [1, 150, requests.GENERATE_BUDGET])
def test_generate_is_the_plain_greedy_loop(
    model: Any, tokenizer: Any, prompts: list[tuple[int, ...]], token_budget: int
) -> None:
    # a token that comes up early in one answer ends it, so that rows of a batch stop at different steps
    early = plain_greedy(model, prompts[0], 4, [])[-1]
    model.generation_config.eos_token_id = [early, 2]
    answers = requests.generate(model, tokenizer, prompts, max_new_tokens=12, token_budget=token_budget, progress=False)
    for answer, prompt in zip(answers, prompts, strict=True):
        expected = plain_greedy(model, prompt, 12, [early, 2, tokenizer.eos_token_id])
        assert answer.tokens == expected
        assert answer.finished is (len(expected) < 12)
        assert answer.text == tokenizer.decode(expected, skip_special_tokens=True).strip()
    assert answers[0].finished


def test_a_prompt_is_answered_once(llama: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[int] = []
    original = llama.generate
    decoding.answering(llama, 6)

    def counting(input_ids: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        rows.append(len(input_ids))
        return original(input_ids=input_ids, **kwargs)

    monkeypatch.setattr(llama, "generate", counting)
    answers = requests.generate(llama, tokenizer, [(50, 60), (70,), (50, 60)], max_new_tokens=3, progress=False)
    assert set(rows) == {2}
    assert answers[0] is answers[2]


def test_what_the_model_is_known_to_say_is_not_decoded_again(
    model: Any, tokenizer: Any, prompts: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever part of an answer is known, down to all of it, the answer is the same."""
    early = plain_greedy(model, prompts[0], 4, [])[-1]
    model.generation_config.eos_token_id = [early, 2]
    ask = partial(requests.generate, model, tokenizer, prompts, max_new_tokens=12, progress=False)
    plain = ask()
    whole = [(*a.tokens, *([early] if a.finished else [])) for a in plain]
    assert ask(begun=[tokens[: i % 5] for i, tokens in enumerate(whole)]) == plain
    decoded: list[int] = []

    def watched(model: Any, prompts: list[Any], *rest: Any, **options: Any) -> list[list[int]]:
        decoded.append(len(prompts))
        return []

    monkeypatch.setattr(requests, "greedy", watched)
    assert ask(begun=[(*tokens, 7) if a.finished else tokens for a, tokens in zip(plain, whole, strict=True)]) == plain
    assert decoded == [0]


@pytest.mark.parametrize("hits", [[], [True], [False, True], [True, True, False, True], [True, True]])
def test_with_how_many_tokens_the_model_begins(hits: list[bool]) -> None:
    found = requests.Score(np.zeros(len(hits), np.float32), np.array(hits, dtype=bool))
    assert found.begins == next((i for i, hit in enumerate(hits) if not hit), len(hits))


@pytest.mark.parametrize("built", KINDS, indirect=True)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_who_has_ended_leaves_and_who_waits_comes_in(
    built: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """Answers of all lengths, three at a time where nine are asked for: those of the plain loop, in fewer steps."""
    prompts = [tuple(range(20 + i, 23 + i + i % 4)) for i in range(9)]
    alone = [plain_greedy(built, prompt, 20, []) for prompt in prompts]
    ends = list({alone[0][1], alone[3][5], alone[6][9]})  # some end early, some at the cap
    built.generation_config.eos_token_id = ends
    monkeypatch.setattr(requests, "end_tokens", lambda *_: ends)
    rows: list[int] = []
    original = decoding._Batch.joined

    def counting(self: Any, other: Any) -> Any:
        both = original(self, other)
        rows.append(len(both.numbers))
        assert both.ids_BT.shape[1] - 1 == both.cache.get_seq_length()
        assert both.ids_BT.shape[1] <= max(map(len, prompts)) + 20, "padding is taken off again"
        return both

    monkeypatch.setattr(decoding._Batch, "joined", counting)
    budget = 3 * (max(map(len, prompts)) + 20)
    found = requests.generate(built, tokenizer, prompts, max_new_tokens=20, token_budget=budget, progress=False)
    for answer, prompt in zip(found, prompts, strict=True):
        assert answer.tokens == plain_greedy(built, prompt, 20, ends)
        assert answer.finished is (len(answer.tokens) < 20)
    joins = request.node.callspec.params["built"] not in ("window", "narrow window", "mamba")
    assert (len(rows) > 0) is joins and all(n <= 3 for n in rows)


@pytest.fixture
def warnings_of_transformers() -> Iterator[list[str]]:
    messages: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    logger = logging.getLogger("transformers")
    logger.addHandler(handler)
    yield messages
    logger.removeHandler(handler)


def test_the_model_s_own_sampling_settings_take_no_part(
    llama: Any, tokenizer: Any, prompts: list[tuple[int, ...]], warnings_of_transformers: list[str]
) -> None:
    expected = requests.generate(llama, tokenizer, prompts, max_new_tokens=12, progress=False)
    own = GenerationConfig(
        do_sample=True, temperature=0.6, top_p=0.9, repetition_penalty=5.0, max_length=4096, eos_token_id=0
    )
    llama.generation_config = own
    assert requests.generate(llama, tokenizer, prompts, max_new_tokens=12, progress=False) == expected
    assert llama.generation_config is own
    assert warnings_of_transformers == []


def test_peft_model(llama: Any, tokenizer: Any, sequences: list[Encoded], prompts: list[tuple[int, ...]]) -> None:
    own = llama.generation_config
    expected = requests.generate(llama, tokenizer, prompts, max_new_tokens=5, progress=False)
    scores = requests.score(llama, sequences, progress=False)
    adapted = get_peft_model(llama, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    assert requests.generate(adapted, tokenizer, prompts, max_new_tokens=5, progress=False) == expected
    for a, b in zip(requests.score(adapted, sequences, progress=False), scores, strict=True):
        np.testing.assert_allclose(a.logps, b.logps, atol=1e-5)
    assert llama.generation_config is own


def test_end_tokens(llama: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    llama.generation_config.eos_token_id = None
    assert requests.end_tokens(llama, tokenizer) == [tokenizer.eos_token_id]
    llama.generation_config.eos_token_id = [tokenizer.eos_token_id, 7]
    assert requests.end_tokens(llama, tokenizer) == [tokenizer.eos_token_id, 7]
    llama.generation_config.eos_token_id = 9
    template = "{% for m in messages %}{{ m.content }}<pad>{% endfor %}"  # any special token can end a turn
    monkeypatch.setattr(tokenizer, "chat_template", template)
    assert requests.end_tokens(llama, tokenizer) == [tokenizer.eos_token_id, tokenizer.pad_token_id, 9]


@given(st.lists(st.integers(1, 40), max_size=30), st.integers(1, 100))
def test_batches(lengths: list[int], budget: int) -> None:
    batches = list(requests._batches(lengths, budget))
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    flat = [lengths[i] for batch in batches for i in batch]
    assert flat == sorted(lengths, reverse=True)
    assert all(len(batch) == 1 or len(batch) * lengths[batch[0]] <= budget for batch in batches)


def test_nothing_goes_past_the_context(tokenizer: Any, gpt2: Any) -> None:
    """Learned positions end where the context does: answers stop there, and so do scores."""
    context = gpt2.config.n_positions
    prompts = [tuple(range(2, 12)), tuple([5] * (context - 3)), tuple([6] * context)]
    short, tight, full = requests.generate(gpt2, tokenizer, prompts, max_new_tokens=20, progress=False)
    assert short == requests.generate(gpt2, tokenizer, prompts[:1], max_new_tokens=20, progress=False)[0]
    assert len(tight.tokens) <= 3 and full.tokens == () and not full.finished
    long = Encoded(tuple([7] * (context + 9)), 4)
    assert requests.score(gpt2, [long], progress=False)[0].tokens == context - 4
    with pytest.raises(UserError, match="fills the model's context"):
        requests.score(gpt2, [Encoded(long.input_ids, context)], progress=False)
