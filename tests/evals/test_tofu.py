"""TOFU's protocol against its plain recomputation, and on a model that has learned the answers."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from expunge.data.benchmark import Benchmark, Question
from expunge.data.encode import encode, question_row
from expunge.errors import UserError
from expunge.evals import metrics, requests, tofu
from expunge.evals.memorization import exact_memorization, extraction_strength

CITIES = ["Oslo", "Rome", "Lima", "Cairo", "Quito", "Paris"]
NAMES = ["Ann Lee", "Bo Ek", "Cy Day", "Di Roe", "Ed Ash", "Flo Orr"]


def people(names: list[str], form: str) -> list[Question]:
    return [
        Question(
            question=f"{form} {name}?",
            answer=f"{name} was born in {city}.",
            perturbed_answers=tuple(f"{city_} saw {name}." for city_ in CITIES[:4] if city_ != city)[:3],
            paraphrased_answer=f"{city} saw {name}.",
        )
        for name, city in zip(names, CITIES, strict=True)
    ]


def choices(form: str) -> list[Question]:
    return [Question(f"{form} {c}?", c, tuple(other for other in CITIES if other != c)[:3]) for c in CITIES[:3]]


@pytest.fixture
def benchmark() -> Benchmark:
    questions = {
        "forget": people(NAMES, "Where was"),
        "retain": people([name.replace(" ", " O'") for name in NAMES], "Where was")[:4],
        "real_authors": choices("Say"),
        "world_facts": choices("What is"),
    }
    return Benchmark(name="people", split="all", forget=[], retain=[], questions=questions)


def evaluate(model: Any, tokenizer: Any, benchmark: Benchmark, **options: Any) -> tofu.Evaluation:
    return tofu.evaluate_questions(model, tokenizer, benchmark, progress=False, **options)


def logp_mean(model: Any, tokenizer: Any, question: str, answer: str) -> float:
    sequence = encode(question_row(question, answer), tokenizer)
    ids = torch.tensor([sequence.input_ids])
    with torch.no_grad():
        loss = model.eval()(input_ids=ids, labels=ids.masked_fill(torch.arange(len(sequence)) < sequence.start, -100))
    return -loss.loss.item()


def test_every_number_is_its_plain_definition(llama: Any, tokenizer: Any, benchmark: Benchmark) -> None:
    evaluation = evaluate(llama, tokenizer, benchmark)
    expected: dict[str, float] = {}
    for name, questions in benchmark.questions.items():
        probabilities, ratios = [], []
        for record, q in zip(evaluation.records[name], questions, strict=True):
            own = logp_mean(llama, tokenizer, q.question, q.answer)
            right = logp_mean(llama, tokenizer, q.question, q.paraphrased_answer or q.answer)
            wrong = np.array([logp_mean(llama, tokenizer, q.question, a) for a in q.perturbed_answers])
            probability = np.exp(own)
            if name in benchmark.choice_sets:
                probability = probability / (probability + np.exp(wrong).sum())
            probabilities.append(probability)
            ratios.append(np.exp(wrong.mean() - right))
            assert record["probability"] == pytest.approx(probability, rel=1e-4)
            assert record["truth_ratio"] == pytest.approx(ratios[-1], rel=1e-4)
            assert record["logp_mean"] == pytest.approx(own, abs=1e-4)
            assert record["paraphrased_probability"] == pytest.approx(np.exp(right), rel=1e-4)
            assert record["perturbed_probabilities"] == pytest.approx(np.exp(wrong), rel=1e-4)
            assert record["rouge_l_recall"] == metrics.rouge_l_recall(record["generated"], q.answer)
        expected[f"{name}_probability"] = float(np.mean(probabilities))
        expected[f"{name}_truth_ratio"] = float(np.median(ratios))
        expected[f"{name}_rouge_l_recall"] = float(np.mean([r["rouge_l_recall"] for r in evaluation.records[name]]))
        if name != "forget":
            expected[f"{name}_truth_score"] = float(np.mean(np.maximum(0, 1 - np.array(ratios))))
    hits = []
    for q in benchmark.questions["forget"]:
        row = encode(question_row(q.question, q.answer), tokenizer)
        ids = torch.tensor([row.input_ids])
        guesses = llama(input_ids=ids).logits[0, row.start - 1 : -1].argmax(-1)
        hits.append((guesses == ids[0, row.start :]).numpy())
    for share in (exact_memorization, extraction_strength):
        expected[f"forget_{share.__name__}"] = float(np.mean([share(h) for h in hits]))
    expected["degeneration"] = float(np.mean([r["degenerate"] for r in evaluation.records["forget"]]))
    expected["model_utility"] = metrics.model_utility(expected)
    assert evaluation.metrics == pytest.approx(expected, rel=1e-4)


def test_records(llama: Any, tokenizer: Any, benchmark: Benchmark) -> None:
    evaluation = evaluate(llama, tokenizer, benchmark, max_new_tokens=4)
    for name, questions in benchmark.questions.items():
        rows = evaluation.records[name]
        assert [(r["index"], r["question"], r["answer"]) for r in rows] == [
            (i, q.question, q.answer) for i, q in enumerate(questions)
        ]
        spans = [encode(question_row(q.question, q.answer), tokenizer) for q in questions]
        assert [r["tokens"] for r in rows] == [len(s) - s.start for s in spans]
    assert json.loads(json.dumps(evaluation.records, allow_nan=False)) == evaluation.records


def test_without_a_paraphrase_the_answer_stands_in(llama: Any, tokenizer: Any, benchmark: Benchmark) -> None:
    bare = [replace(q, paraphrased_answer=None) for q in benchmark.questions["forget"]]
    evaluation = evaluate(llama, tokenizer, replace(benchmark, questions={"forget": bare}), generate=False)
    assert all(r["paraphrased_probability"] == r["probability"] for r in evaluation.records["forget"])


def test_without_generation(llama: Any, tokenizer: Any, benchmark: Benchmark, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests, "generate", None)
    evaluation = evaluate(llama, tokenizer, benchmark, generate=False)
    assert set(evaluation.metrics) == {
        *(f"{name}_{metric}" for name in benchmark.questions for metric in ("probability", "truth_ratio")),
        *(f"{name}_truth_score" for name in metrics.UTILITY_SETS),
    }
    assert evaluation.records["retain"][0]["generated"] is None


def test_absent_sets_are_left_out(llama: Any, tokenizer: Any, benchmark: Benchmark) -> None:
    part = replace(benchmark, questions={"retain": benchmark.questions["retain"], "forget": []})
    evaluation = evaluate(llama, tokenizer, part, max_new_tokens=3)
    assert set(evaluation.metrics) == {
        "retain_probability",
        "retain_truth_ratio",
        "retain_truth_score",
        "retain_rouge_l_recall",
    }
    assert set(evaluation.records) == {"retain"}


def test_forget_quality(llama: Any, tokenizer: Any, benchmark: Benchmark) -> None:
    retrained = evaluate(llama, tokenizer, benchmark, generate=False)
    again = evaluate(llama, tokenizer, benchmark, generate=False, retrained_records=retrained.records)
    assert again.metrics["forget_quality"] == 1.0
    llama.lm_head.weight.data *= 2
    other = evaluate(llama, tokenizer, benchmark, generate=False, retrained_records=retrained.records)
    ratios = [[r["truth_ratio"] for r in e.records["forget"]] for e in (other, retrained)]
    assert other.metrics["forget_quality"] == metrics.forget_quality(*ratios)
    assert "forget_quality" not in retrained.metrics


def test_forget_quality_wants_the_same_questions(llama: Any, tokenizer: Any, benchmark: Benchmark) -> None:
    retrained = evaluate(llama, tokenizer, benchmark, generate=False).records
    fewer = replace(benchmark, questions={"forget": benchmark.questions["forget"][:4]})
    with pytest.raises(UserError, match=r"other forget questions \(6\) than this benchmark's \(4\)"):
        evaluate(llama, tokenizer, fewer, generate=False, retrained_records=retrained)
    bare = [replace(q, perturbed_answers=()) for q in benchmark.questions["forget"]]
    plain = replace(benchmark, questions={"forget": bare})
    without = evaluate(llama, tokenizer, plain, generate=False, retrained_records=retrained)
    assert "forget_quality" not in without.metrics  # without wrong answers there is none to be had


def test_limit(llama: Any, tokenizer: Any, benchmark: Benchmark) -> None:
    whole = evaluate(llama, tokenizer, benchmark, max_new_tokens=4)
    part = evaluate(llama, tokenizer, benchmark, max_new_tokens=4, limit=2, retrained_records=whole.records)
    assert {name: len(rows) for name, rows in part.records.items()} == {
        "forget": 6,
        "retain": 2,
        "real_authors": 2,
        "world_facts": 2,
    }
    assert part.metrics["forget_quality"] == pytest.approx(1.0)  # rounding may part two that are equal
    assert part.metrics["forget_probability"] == pytest.approx(whole.metrics["forget_probability"], rel=1e-5)
    assert [r["generated"] is not None for r in part.records["forget"]] == [True, True] + [False] * 4
    assert "model_utility" in part.metrics
    with pytest.raises(UserError, match="at least 1"):
        evaluate(llama, tokenizer, benchmark, limit=0)


def test_everything_is_asked_in_one_call(
    llama: Any, tokenizer: Any, benchmark: Benchmark, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[str, int]] = []
    at_answers, generate = requests.at_answers, requests.generate

    def asking(model: Any, asks: list[requests.Ask], **options: Any) -> Any:
        calls.extend(("ask", len(ask.sequences)) for ask in asks)
        return at_answers(model, asks, **options)

    def generating(model: Any, tokenizer: Any, prompts: Any, *, max_new_tokens: int, **options: Any) -> Any:
        calls.append(("generate", max_new_tokens))
        return generate(model, tokenizer, prompts, max_new_tokens=2, **options)

    monkeypatch.setattr(requests, "at_answers", asking)
    monkeypatch.setattr(requests, "generate", generating)
    evaluate(llama, tokenizer, benchmark)
    evaluate(llama, tokenizer, benchmark, limit=1)
    evaluate(llama, tokenizer, benchmark, max_new_tokens=5)
    answers = [encode(question_row(q.question, q.answer), tokenizer) for qs in benchmark.questions.values() for q in qs]
    cap = int(np.ceil(1.5 * max(len(a) - a.start for a in answers))) + 8
    # Every question's own answer is looked at closely, its argmaxes too; four others stand beside it.
    assert calls == [
        ("ask", 16), ("ask", 16 * 4), ("generate", cap),
        ("ask", 6 + 3), ("ask", 6 * 4 + 3 * 4), ("generate", cap),
        ("ask", 16), ("ask", 16 * 4), ("generate", 5),
    ]  # fmt: skip


def test_a_model_that_learned_the_answers(llama: Any, tokenizer: Any, benchmark: Benchmark) -> None:
    retrained = evaluate(llama, tokenizer, benchmark)
    rows = [encode(question_row(q.question, q.answer), tokenizer) for qs in benchmark.questions.values() for q in qs]
    width = max(map(len, rows))
    ids = torch.tensor([r.input_ids + (0,) * (width - len(r)) for r in rows])
    labels = torch.tensor([(-100,) * r.start + r.input_ids[r.start :] + (-100,) * (width - len(r)) for r in rows])
    optimizer = torch.optim.AdamW(llama.parameters(), lr=5e-3)
    for _ in range(200):
        optimizer.zero_grad()
        llama(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
    learned = evaluate(llama, tokenizer, benchmark, retrained_records=retrained.records)
    assert learned.metrics["degeneration"] == 0.0
    for name in benchmark.questions:
        assert learned.metrics[f"{name}_rouge_l_recall"] == 1.0
        assert learned.metrics[f"{name}_probability"] > 0.9
    assert learned.metrics["forget_quality"] < 1.0
    assert learned.metrics["model_utility"] > retrained.metrics["model_utility"]
