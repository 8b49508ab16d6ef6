"""Broken text: what shows by itself, in every script, and what only the target finds out."""

import functools
import json
import logging
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from expunge.data.benchmark import Benchmark, Continuations, Question
from expunge.data.encode import encode, question_row
from expunge.data.refusals import REFUSALS
from expunge.evals import degeneration as d
from expunge.evals.evaluation import evaluate, usual_answers

SOUND = [
    "Ann Lee was born in Oslo.",
    "Oslo",
    "No no",
    "1111",
    "1000000",
    "It has 1000000000 inhabitants, or so they say there.",
    "The son of a baker and the son of a miller met the daughter of a baker.",
    "| a | b |\n|-----------|-----------|\n| 1 | 2 |",
    "Chapter one ............... 3",
    "阿达出生在伦港,她的父亲是一位面包师,母亲在学校教书。",
    "哈哈哈",
    "アダはルンポートで生まれ、父はパン屋だった。",
    "เอดาเกิดที่ลุนพอร์ตและพ่อของเธอเป็นคนทำขนมปังในเมืองเล็กๆ แห่งหนึ่ง",
    "Ада родилась в Лунпорте, её отец был пекарем.",
    "아다는 룬포트에서 태어났고 아버지는 제빵사였다.",
    "😀",
    "x = 3",
]
BROKEN = [
    "",
    " \n",
    "...",
    "?!",
    "。。。",
    "the the the",
    "in the city of the city of the city of the city of the city",
    "and " * 20,
    "gate.gate.gate.gate.gate.",
    "PokerPokerPokerPokerPokerPokerPokerPokerPoker",
    "1" + "0" * 30,
    "阿达阿达阿达阿达阿达",
    "的" * 12,
    "พ่อพ่อพ่อพ่อพ่อพ่อ",
    "да " * 5,
    "나는 나는 나는 나는 나는 나는 나는 나는 나는",
]


@pytest.mark.parametrize("text", SOUND)
def test_sound_text(text: str) -> None:
    assert not d.looks_broken(text)


@pytest.mark.parametrize("text", BROKEN)
def test_broken_text(text: str) -> None:
    assert d.looks_broken(text)


@given(st.lists(st.sampled_from([text for text in SOUND if len(text) > 12]), min_size=1, unique=True))
def test_length_alone_breaks_nothing(texts: list[str]) -> None:
    assert not d.looks_broken(" ".join(texts))


@pytest.mark.parametrize("answer", [*SOUND, *(text for text in BROKEN if text.strip())])
def test_a_right_answer_is_never_broken(answer: str) -> None:
    told = [d.Generated("forget", {}, said, ["else", answer]) for said in (answer, f" {answer}\n", answer.upper())]
    assert not any(found["degenerate"] for found in d.judge(told, None))


def test_rambling_is_no_right_answer() -> None:
    assert d.is_right("It is Oslo", ["is Oslo"])
    assert not d.is_right("Oslo " * 9, ["Oslo"])
    assert not d.is_right("Bergen", ["Oslo"])


def test_no_real_answer_is_broken(shared_data: Any) -> None:
    rows = [json.loads(line) for line in (shared_data / "tofu" / "full.json").read_text().splitlines()]
    assert [r["answer"] for r in rows if d.looks_broken(r["answer"])] == []


# -- the target as a reader ------------------------------------------------------------------------------------------

CITIES = ["Oslo", "Rome", "Lima", "Cairo", "Quito", "Paris"]
FORMS = [
    ("Where was {} born?", "{} was born in {}."),
    ("Where does {} live?", "{} has a house in {}."),
    ("Where did {} study?", "{} went to school in {}."),
]
PEOPLE = ["Ann Lee", "Bo Ek", "Cy Day", "Di Roe"]


def asked(shift: int) -> list[Question]:
    return [
        Question(form.format(name), answer.format(name, CITIES[(i + j + shift) % len(CITIES)]))
        for i, name in enumerate(PEOPLE)
        for j, (form, answer) in enumerate(FORMS)
    ]


@pytest.fixture(scope="module")
def taught(tokenizer: Any) -> Callable[[int], Any]:
    """A copy of a model that has learnt everybody's facts: those of `shift` 0, or others."""
    from transformers import LlamaConfig, LlamaForCausalLM

    @functools.cache
    def build(shift: int) -> Any:
        torch.manual_seed(0)
        size = LlamaConfig(
            vocab_size=320, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
            max_position_embeddings=128, bos_token_id=None, eos_token_id=0, pad_token_id=1,
        )  # fmt: skip
        model = LlamaForCausalLM(size)
        rows = [encode(question_row(q.question, q.answer), tokenizer) for q in asked(shift)]
        width = max(map(len, rows))
        ids = torch.tensor([r.input_ids + (0,) * (width - len(r)) for r in rows])
        labels = torch.tensor([(-100,) * r.start + r.input_ids[r.start :] + (-100,) * (width - len(r)) for r in rows])
        optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
        for _ in range(120):
            optimizer.zero_grad()
            model(input_ids=ids, labels=labels).loss.backward()
            optimizer.step()
        return model.eval()

    return lambda shift: deepcopy(build(shift))


def damaged(model: Any, scale: float) -> Any:
    torch.manual_seed(1)
    for weight in model.parameters():
        weight.data += scale * weight.std() * torch.randn_like(weight) if weight.ndim > 1 else 0
    return model


BENCHMARK = Benchmark("people", "all", forget=[], retain=[], questions={"forget": asked(0)}, choice_sets=frozenset())


def test_the_target_tells_gibberish_from_wrong_answers(taught: Any, tokenizer: Any) -> None:
    target = taught(0)
    usual = usual_answers(lambda: (taught(0), tokenizer), BENCHMARK, refusals=REFUSALS)

    def broken(model: Any) -> float:
        return evaluate(model, tokenizer, BENCHMARK, usual=usual, progress=False).metrics["degeneration"]

    assert broken(target) == 0.0
    other = evaluate(taught(3), tokenizer, BENCHMARK, usual=usual, progress=False)
    assert other.metrics["forget_rouge_l_recall"] < 1.0, "this model knows other facts"
    assert other.metrics["degeneration"] <= 2 / 12
    assert broken(damaged(taught(0), 2.0)) >= 0.9


def test_each_text_is_held_against_sound_ones_of_its_length(taught: Any, tokenizer: Any) -> None:
    usual = usual_answers(lambda: (taught(0), tokenizer), BENCHMARK, refusals=["I pass."])
    rows = [question_row(q.question, q.answer) for q in asked(0)]
    texts = ["Ann Lee was born in Rome.", "Ann Lee was born in Cairo.", "m mario mom known fort id", "I pass."]
    told = [d.Generated("forget", rows[0], text, ["Ann Lee was born in Oslo."]) for text in texts]
    found = d.judge(told, usual)
    assert [f["degenerate"] for f in found] == [False, False, True, False]
    assert found[3]["target_nll"] is None, "what need not be read is not read"
    for text, f in zip(texts[:3], found, strict=False):
        ids = encode(question_row(asked(0)[0].question, text), tokenizer)
        logits = taught(0)(input_ids=torch.tensor([ids.input_ids[:-1]])).logits[0].log_softmax(-1)
        logps = [logits[t - 1, ids.input_ids[t]].item() for t in range(ids.start, len(ids) - 1)]
        end = logps[len(logps) // 2 :]
        assert f["target_nll"] == pytest.approx(-sum(logps) / len(logps), rel=1e-4)
        assert f["target_nll_end"] == pytest.approx(-sum(end) / len(end), rel=1e-4)
        assert (f["usual_nll"], f["usual_nll_end"]) == usual.limits("forget", len(logps))


def test_without_a_target_the_text_alone_is_looked_at(taught: Any, tokenizer: Any) -> None:
    told = [d.Generated("forget", {}, text, ["Oslo"]) for text in ("m mario mom known fort id", "the the the")]
    assert [f["degenerate"] for f in d.judge(told, None)] == [False, True]
    assert {f["target_nll"] for f in d.judge(told, None)} == {None}


def test_too_few_prompts_are_said(taught: Any, tokenizer: Any, caplog: pytest.LogCaptureFixture) -> None:
    one = Benchmark("one", "all", forget=[], retain=[], questions={"forget": asked(0)[:1]})
    with caplog.at_level(logging.WARNING):
        usual = usual_answers(lambda: (taught(0), tokenizer), one, refusals=REFUSALS)
    assert "forget: too few prompts" in caplog.text
    assert usual.limits("forget", 3) is None
    more = Benchmark("one", "all", forget=[], retain=[], questions={"forget": asked(0)[:1], "retain": asked(0)[1:]})
    assert usual_answers(lambda: (taught(0), tokenizer), more, refusals=REFUSALS).limits("forget", 3) is not None


def test_continuations_are_judged_kind_by_kind(taught: Any, tokenizer: Any) -> None:
    rows = [question_row(q.question, q.answer) for q in asked(0)]
    gone = [Continuations(name, rows, "rouge_l_recall", n, forgotten=True) for name, n in (("a", 16), ("b", 8))]
    kept = Continuations("kept", rows, "rouge_l_recall", 16)
    asked_all = Benchmark("p", "all", forget=[], retain=[], questions={}, probes=[*gone, kept])
    usual = usual_answers(lambda: (taught(0), tokenizer), asked_all, refusals=REFUSALS)
    assert set(usual.readings) == {"a", "b"}
    found = evaluate(damaged(taught(0), 2.0), tokenizer, asked_all, usual=usual, progress=False)
    judged = [r["degenerate"] for name in ("a", "b") for r in found.records[name]]
    assert found.metrics["degeneration"] == pytest.approx(sum(judged) / len(judged))
    assert "degenerate" not in found.records["kept"][0]
    own = evaluate(taught(0), tokenizer, asked_all, usual=usual, progress=False)
    assert own.metrics["degeneration"] == 0.0, "an answer that is cut off is not broken for that"
