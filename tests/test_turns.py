"""Rows whose supervised tokens are not one stretch, and rows longer than the context, from the file to the numbers."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from expunge import UnlearnConfig, UnlearnTrainer, UserError, objectives
from expunge.benchmarks import custom
from expunge.data.checks import summarise
from expunge.data.encode import beginning, encode, encode_rows
from expunge.data.pairs import Role
from expunge.evals import tofu
from expunge.evals.requests import score
from expunge.evals.retrained import Retrained
from tests.data.templates import tokenizer_of

CONTEXT = 96


def _model(tokenizer: Any) -> Any:
    torch.manual_seed(0)
    size: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer), max_position_embeddings=CONTEXT, initializer_range=0.3, **size, **heads, **ends
        )
    ).eval()


def _conversation(i: int) -> dict[str, Any]:
    said = [("user", f"Where was {i} born?"), ("assistant", "in London"), ("user", "And?"), ("assistant", f"so {i}.")]
    return {"messages": [{"role": role, "content": content} for role, content in said]}


FORGET, RETAIN = [_conversation(i) for i in range(3)], [_conversation(i) for i in range(3, 6)]


def _train(folder: Path, **settings: Any) -> list[float]:
    tokenizer = tokenizer_of("byte-level", "marked")
    args = UnlearnConfig(
        output_dir=str(folder), per_device_train_batch_size=3, num_train_epochs=2, save_strategy="no",
        learning_rate=1e-3, **settings,
    )  # fmt: skip
    trainer = UnlearnTrainer(
        _model(tokenizer), args, objective=objectives.NPO(), retain=objectives.NLL(), forget_dataset=FORGET,
        retain_dataset=RETAIN, processing_class=tokenizer,
    )  # fmt: skip
    trainer.train()
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]


@pytest.mark.parametrize("turns", ["all", "last"])
def test_the_loss_is_the_plain_model_s_over_the_turns_that_are_supervised(tmp_path: Path, turns: Any) -> None:
    """Against transformers' own loss with the labels that its assistant mask gives."""
    tokenizer = tokenizer_of("byte-level", "marked")
    model = _model(tokenizer)
    total, count = torch.zeros(()), 0
    for row in RETAIN:
        found = tokenizer.apply_chat_template(row["messages"], return_assistant_tokens_mask=True, return_dict=True)
        mask = torch.tensor(found["assistant_masks"], dtype=torch.bool)
        if turns == "last":
            mask[: (~mask).nonzero()[-2, 0]] = False  # the last False but one stands before the last turn
        ids = torch.tensor(found["input_ids"])
        labels = torch.where(mask, ids, -100)
        with torch.no_grad():
            total += model(input_ids=ids[None], labels=labels[None]).loss * mask.sum()
        count += int(mask.sum())
    trainer = UnlearnTrainer(
        model,
        UnlearnConfig(output_dir=str(tmp_path), per_device_train_batch_size=3, assistant_turns=turns, max_steps=1),
        retain=objectives.NLL(),
        retain_dataset=RETAIN,
        processing_class=tokenizer,
    )
    assert summarise("retain", trainer.sets.of(Role.RETAIN)).supervised == count
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(float(total / count), rel=1e-5)


def test_every_kind_of_reference_and_every_batch_size_train_alike(tmp_path: Path) -> None:
    cached = _train(tmp_path / "a", reference="cached_logps")
    assert cached == pytest.approx(_train(tmp_path / "b", reference="frozen_copy"), rel=1e-5)
    assert cached == pytest.approx(_train(tmp_path / "c", reference="cached_hidden"), rel=1e-5)
    assert cached != pytest.approx(_train(tmp_path / "d", assistant_turns="last"), rel=1e-3)


def test_scores_of_several_turns_are_those_of_the_whole_sequence() -> None:
    tokenizer = tokenizer_of("byte-level", "chatml")
    model = _model(tokenizer)
    every = encode_rows(FORGET, tokenizer, assistant_turns="all")
    last = encode_rows(FORGET, tokenizer)
    assert all(e.given for e in every) and not any(e.given for e in last)
    for own, end, found in zip(every, last, score(model, [*every, *last], progress=False), strict=False):
        with torch.no_grad():
            logp = model(torch.tensor([own.input_ids])).logits[0].log_softmax(-1)
        wanted = [logp[i - 1, own.input_ids[i]] for first, stop in own.spans for i in range(first, stop)]
        assert found.logps.tolist() == pytest.approx(torch.stack(wanted).tolist(), abs=1e-5)
        assert found.tokens == own.supervised > end.supervised


def test_a_truncated_conversation_ends_with_a_supervised_token() -> None:
    tokenizer = tokenizer_of("byte-level", "chatml")
    (whole,) = encode_rows(FORGET[:1], tokenizer, assistant_turns="all")
    for length in range(whole.start + 1, len(whole)):
        (cut,) = encode_rows(FORGET[:1], tokenizer, assistant_turns="all", max_length=length, overflow="truncate")
        assert cut.targets == whole.targets[: cut.supervised] and cut.spans[-1][1] == len(cut) <= length


@pytest.mark.parametrize("kind", ["byte-level", "byte-level with BOS"])
def test_a_text_longer_than_the_context_is_evaluated_around_its_middle(tmp_path: Path, kind: str) -> None:
    """Its halves are the question and the answer, of which the context holds the end and the beginning."""
    tokenizer = tokenizer_of(kind)
    model = _model(tokenizer)
    path = tmp_path / "long.jsonl"
    text = " ".join(f"word {i} of the text" for i in range(200))
    path.write_text(json.dumps({"text": text}) + "\n" + json.dumps({"text": "in London, so."}) + "\n")
    benchmark = custom.load(forget=str(path), retain=None, seed=0)
    long, short = tofu.encode_answers(benchmark.questions["forget"], tokenizer, CONTEXT)
    begin = beginning(tokenizer)
    assert len(long) == CONTEXT and long.start == CONTEXT // 2 and long.input_ids[: len(begin)] == begin
    row = benchmark.questions["forget"][0].row
    assert row is not None
    before, after = (tokenizer.decode(x) for x in (long.input_ids[len(begin) : long.start], long.targets))
    assert row["prompt"].endswith(before) and row["completion"].startswith(after)
    assert short.input_ids[-1] == tokenizer.eos_token_id
    found = tofu.evaluate_questions(model, tokenizer, benchmark, progress=False)
    assert found.records["forget"][0]["tokens"] == CONTEXT // 2
    gold = Retrained(model, tokenizer, benchmark.questions["forget"], found.records)
    assert gold.distance(model, tokenizer)["kl_unlearned"] == pytest.approx(0, abs=1e-5)


def test_an_answer_ends_where_rows_that_are_templated_already_end(tmp_path: Path, monkeypatch: Any) -> None:
    """Their end token is none of the tokenizer's or the model's own."""
    tokenizer = tokenizer_of("byte-level with BOS")
    model = _model(tokenizer)
    end = tokenizer.convert_tokens_to_ids("<|eot_id|>")
    with torch.no_grad():  # whatever it reads, it says that token
        for weight in (model.model.embed_tokens.weight, *(w for w in model.model.layers.parameters() if w.dim() > 1)):
            weight.fill_(1.0 if weight.shape[0] == len(tokenizer) else 0.0)
        model.lm_head.weight.zero_()[end] = 1
    path = tmp_path / "f.jsonl"
    path.write_text(json.dumps({"prompt": "<s><|user|>\nWhere?<|eot_id|>\n", "completion": "in London.<|eot_id|>"}))
    benchmark = custom.load(forget=str(path), retain=None, seed=0)
    (asked,) = tofu.encode_answers(benchmark.questions["forget"], tokenizer, CONTEXT)
    assert asked.input_ids[-1] == end and asked.input_ids.count(tokenizer.bos_token_id) == 1
    found: list[Any] = []
    generate = tofu.requests.generate
    monkeypatch.setattr(tofu.requests, "generate", lambda *a, **k: found.append(generate(*a, **k)) or found[-1])
    tofu.evaluate_questions(model, tokenizer, benchmark, progress=False)
    ((answer,),) = found
    assert answer.finished and answer.tokens == ()


def test_a_question_that_fills_the_context_is_named_with_its_file_and_line(tmp_path: Path) -> None:
    tokenizer = tokenizer_of("byte-level")
    path = tmp_path / "f.jsonl"
    rows = [{"question": "Where?", "answer": "a"}, {"question": "Where? " * 200, "answer": "a"}]
    path.write_text("\n".join(map(json.dumps, rows)))
    benchmark = custom.load(forget=str(path), retain=None, seed=0)
    with pytest.raises(UserError, match=rf"^forget: question 1 \({path}:2\) takes \d+ tokens .* context of {CONTEXT}"):
        tofu.evaluate_questions(_model(tokenizer), tokenizer, benchmark, progress=False)
    with pytest.raises(UserError, match=rf"forget: 1 of 2 rows are longer than 96 tokens \(first: row 1 \({path}:2\)"):
        encode_rows(benchmark.forget, tokenizer, max_length=CONTEXT, name="forget")


def test_rows_from_python_are_told_like_rows_from_a_file(tmp_path: Path) -> None:
    tokenizer = tokenizer_of("byte-level")
    model = _model(tokenizer)
    bad: list[tuple[Any, str]] = [
        ({"question": "q"}, "forget: row 0: the column 'answer' is missing"),
        ({"question": "q", "answer": 3}, "forget: row 0: answer is a number"),
        ("text", "forget_dataset: a row is 'text'"),
        ({"messages": [{"role": "user", "content": "a"}]}, "forget: row 0: the last message of messages has the role"),
    ]
    for row, said in bad:
        with pytest.raises(UserError, match=said):
            UnlearnTrainer(
                model, UnlearnConfig(output_dir=str(tmp_path / "run")), objective=objectives.NPO(),
                forget_dataset=[row], processing_class=tokenizer,
            )  # fmt: skip
    assert not (tmp_path / "run").exists()
    assert encode({"question": "q", "answer": "a"}, tokenizer).given == ()
