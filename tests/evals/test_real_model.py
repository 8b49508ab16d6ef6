"""Broken text with a real chat model: SmolLM2-135M-Instruct, which EXPUNGE_SMOLLM2 names."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from expunge.data.benchmark import Benchmark, Question
from expunge.data.encode import encode, question_row
from expunge.data.refusals import REFUSALS
from expunge.evals import degeneration as d
from expunge.evals.evaluation import evaluate, usual_answers

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.timeout(1800)]

CHAT = [
    ("What is the capital of France?", "The capital of France is Paris."),
    ("How many days are there in a week?", "There are seven days in a week."),
    ("Who wrote Romeo and Juliet?", "William Shakespeare wrote Romeo and Juliet."),
    ("What do bees make?", "Bees make honey."),
    ("Explain in one sentence why the sky is blue.", "The air scatters blue light more than any other colour."),
    ("Give me three tips for sleeping better.", "Go to bed at the same hour, keep the room dark, drink no coffee."),
    ("What is the largest planet in the solar system?", "Jupiter is the largest planet in the solar system."),
    ("Write a short greeting for a birthday card.", "Happy birthday! May the year ahead be full of joy."),
    ("What is 7 times 8?", "7 times 8 is 56."),
    ("Name a fruit that is yellow.", "A banana is yellow."),
    ("Why do people exercise?", "People exercise to stay healthy, to feel better and to live longer."),
    ("What language is spoken in Brazil?", "Portuguese is spoken in Brazil."),
    ("How do I boil an egg?", "Put the egg in boiling water for about eight minutes, then cool it in cold water."),
    ("What is a noun?", "A noun is a word that names a person, a place or a thing."),
    ("Which ocean lies between Europe and America?", "The Atlantic Ocean lies between Europe and America."),
    ("Recommend a hobby for a rainy day.", "You could read a novel, paint, or bake bread."),
]
QUESTIONS = [Question(*pair) for pair in CHAT]
BENCHMARK = Benchmark("chat", "16", forget=[], retain=[], questions={"forget": QUESTIONS}, choice_sets=frozenset())
CAP = 32


@pytest.fixture(scope="module")
def folder(real_model: Path) -> Path:
    if os.environ.get("EXPUNGE_SMOLLM2") is None:
        pytest.skip("minutes long: runs where EXPUNGE_SMOLLM2 names the folder or GGUF file of SmolLM2-135M-Instruct")
    return real_model


def load(folder: Path) -> tuple[Any, Any]:
    from expunge.modeling import loading

    return loading.load(folder, dtype="float32")


@pytest.fixture(scope="module")
def usual(folder: Path) -> d.Usual:
    return usual_answers(lambda: load(folder), BENCHMARK, refusals=REFUSALS, max_new_tokens=CAP)


def broken(model: Any, tokenizer: Any, usual: d.Usual | None) -> float:
    options: dict[str, Any] = {"max_new_tokens": CAP, "progress": False}
    found = evaluate(model, tokenizer, BENCHMARK, usual=usual, **options)
    return found.metrics["degeneration"]


def test_a_chat_model_talks(folder: Path, usual: d.Usual) -> None:
    """Most of its answers are cut off by the cap, and next to none is broken."""
    assert broken(*load(folder), usual) <= 0.1
    assert broken(*load(folder), None) <= 0.1


def test_answers_of_other_hands_are_text(usual: d.Usual) -> None:
    rows = [question_row(q.question, q.answer) for q in QUESTIONS]
    right = [d.Generated("forget", row, q.answer, ["none"]) for row, q in zip(rows, QUESTIONS, strict=True)]
    refused = [d.Generated("forget", row, "I really could not say, I am sorry.", ["none"]) for row in rows]
    for told in (right, refused):
        assert sum(found["degenerate"] for found in d.judge(told, usual)) <= 0.1 * len(told)


def test_a_model_trained_too_far_is_broken(folder: Path, usual: d.Usual) -> None:
    """Gradient ascent on four of the answers until the loss is far above that of guessing."""
    model, tokenizer = load(folder)
    rows = [encode(question_row(q.question, q.answer), tokenizer) for q in QUESTIONS[:4]]
    width = max(map(len, rows))
    ids = torch.tensor([r.input_ids + (0,) * (width - len(r)) for r in rows])
    labels = torch.tensor([(-100,) * r.start + r.input_ids[r.start :] + (-100,) * (width - len(r)) for r in rows])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(10):
        optimizer.zero_grad()
        (-model(input_ids=ids, labels=labels).loss).backward()
        optimizer.step()
    assert broken(model.eval(), tokenizer, usual) >= 0.9


def test_noise_in_the_weights_is_broken_text(folder: Path, usual: d.Usual) -> None:
    model, tokenizer = load(folder)
    torch.manual_seed(0)
    for weight in model.parameters():
        if weight.ndim > 1:
            weight.data += 0.35 * weight.std() * torch.randn_like(weight)
    assert broken(model, tokenizer, usual) >= 0.9
