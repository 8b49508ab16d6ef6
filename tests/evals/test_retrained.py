"""The distance to the retrained model against dense logits in float64, whatever the model is made of."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from scipy.special import softmax
from scipy.stats import entropy

from expunge.data.benchmark import Benchmark, Question
from expunge.data.encode import encode, question_row
from expunge.evals.divergence import SoftLabels
from expunge.evals.evaluation import evaluate
from expunge.evals.retrained import Distance, Retrained
from expunge.modeling.difference import LogitDifferenceConfig, LogitDifferenceForCausalLM
from expunge.modeling.logprobs import CHUNK, Head

QUESTIONS = [
    *(Question(f"Where was person {i} born?", "In a town " + "far " * i + f"{i}.") for i in range(9)),
    Question("", "", row={"prompt": "Of person 10 is", "completion": " known that " + "nothing " * 3}),
    Question("Where was person 3 born?", "In a town far far far 3."),  # asked twice, it counts twice
]
ROWS = [q.row or question_row(q.question, q.answer) for q in QUESTIONS]

Build = Callable[..., Any]


@pytest.fixture
def build(tiny_model: Build) -> Build:
    """A random model far from uniform: a Llama, one under an adapter, or one less an assistant."""

    def make(kind: str = "llama", *, seed: int = 0) -> Any:
        model = tiny_model(seed=seed)
        with torch.no_grad():
            for weight in model.parameters():
                weight.mul_(4 if weight.dim() > 1 else 1)
        torch.manual_seed(seed)
        lora = LoraConfig(r=4, init_lora_weights=False, target_modules="all-linear")
        if kind == "lora":
            return get_peft_model(model, lora)
        if kind == "difference":
            return LogitDifferenceForCausalLM(LogitDifferenceConfig(layers=2), model, lora=lora)
        return model

    return make


def logits(model: Any, tokenizer: Any) -> tuple[np.ndarray, np.ndarray]:
    """Of every token of every answer in turn: the model's logits, [N, V] in float64, and the token, [N]."""
    found, targets = [], []
    model.eval()
    for row in ROWS:
        e = encode(row, tokenizer)
        with torch.no_grad():
            found.append(model(input_ids=torch.tensor([e.input_ids])).logits[0, e.start - 1 : -1].double().numpy())
        targets += e.input_ids[e.start :]
    return np.concatenate(found), np.array(targets)


def kl(p_NV: np.ndarray, q_NV: np.ndarray) -> float:
    return float(np.mean(entropy(p_NV, q_NV, axis=-1)))


def unilogit_labels(z_NV: np.ndarray, target_N: np.ndarray) -> np.ndarray:
    p_NV, V = softmax(z_NV, -1), z_NV.shape[-1]
    rows = np.arange(len(p_NV))
    p_NV[rows, target_N] = 0
    p_NV *= (1 - 1 / V) / p_NV.sum(-1, keepdims=True)
    p_NV[rows, target_N] = 1 / V
    return p_NV


def undial_labels(z_NV: np.ndarray, target_N: np.ndarray, beta: float) -> np.ndarray:
    z_NV = z_NV.copy()
    z_NV[np.arange(len(z_NV)), target_N] -= beta
    return softmax(z_NV, -1)


def close(expected: float) -> Any:
    return pytest.approx(expected, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("kind", ["llama", "lora", "difference"])
def test_every_distance_is_its_plain_definition(kind: str, build: Build, tiny_tokenizer: Any) -> None:
    retrained, model = build(seed=1), build(kind).train()
    p_NV, (z_NV, target_N) = softmax(logits(retrained, tiny_tokenizer)[0], -1), logits(model.eval(), tiny_tokenizer)
    assert len(z_NV) > CHUNK, "of more than one chunk"
    gold = Retrained(retrained, tiny_tokenizer, QUESTIONS, {})
    del retrained
    expected = kl(p_NV, softmax(z_NV, -1))
    assert gold.distance(model.train(), tiny_tokenizer) == {"kl_unlearned": close(expected)}
    assert model.training and expected > 0.1
    labels = {
        SoftLabels("unilogit"): unilogit_labels(z_NV, target_N),
        SoftLabels("undial", 4.0): undial_labels(z_NV, target_N, 4.0),
    }
    for asked, q_NV in labels.items():
        found = gold.distance(model, tiny_tokenizer, asked)
        assert found == {"kl_unlearned": close(expected), "kl_soft_labels": close(kl(p_NV, q_NV))}


@pytest.mark.parametrize("kind", ["llama", "lora", "difference"])
def test_of_the_retrained_model_itself_it_is_nothing(kind: str, build: Build, tiny_tokenizer: Any) -> None:
    """Also where that is a model of two."""
    gold = Retrained(build(kind), tiny_tokenizer, QUESTIONS, {})
    assert gold.distance(build(kind), tiny_tokenizer) == {"kl_unlearned": pytest.approx(0, abs=1e-6)}


def test_what_is_kept_is_small_and_safe_from_training(build: Build, tiny_tokenizer: Any) -> None:
    model = build()
    gold = Retrained(model, tiny_tokenizer, QUESTIONS, {})
    assert {h.shape[-1] for h in gold.hidden.values()} == {32} and len(gold.hidden) == len(QUESTIONS) - 1
    before = gold.distance(build(seed=1), tiny_tokenizer)
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
    assert gold.distance(build(seed=1), tiny_tokenizer) == before


def test_labels_follow_the_model_or_stay_as_they_were_at_the_start(build: Build, tiny_tokenizer: Any) -> None:
    gold, start, later = Retrained(build(seed=2), tiny_tokenizer, QUESTIONS, {}), build(), build(seed=1)
    for labels in (SoftLabels("unilogit"), SoftLabels("undial")):
        first, then = (gold.distance(m, tiny_tokenizer, labels) for m in (start, later))
        assert first["kl_soft_labels"] != then["kl_soft_labels"]
        found = gold.distance_towards(labels, start, tiny_tokenizer)(later, tiny_tokenizer)
        assert found == {
            "kl_unlearned": close(then["kl_unlearned"]),
            "kl_soft_labels": (then if labels.moves else first)["kl_soft_labels"],
            "kl_soft_labels_start": first["kl_soft_labels"],
        }


def test_what_cannot_be_compared_has_no_distance(build: Build, tiny_tokenizer: Any) -> None:
    from expunge.modeling.loading import ScratchConfig, train_tokenizer

    gold = Retrained(build(), tiny_tokenizer, QUESTIONS, {})
    wider = build()
    wider.resize_token_embeddings(301)
    assert gold.distance(wider, tiny_tokenizer) == {}
    assert gold.distance_towards(SoftLabels("undial"), wider, tiny_tokenizer)(wider, tiny_tokenizer) == {}
    other = train_tokenizer(["Of whom is it known that in a far town"] * 3, ScratchConfig(vocab=300))
    assert gold.distance(build(), other) == {}
    assert Retrained(build(), tiny_tokenizer, [], {}).distance(build(), tiny_tokenizer) == {}


def test_it_is_part_of_every_evaluation(build: Build, tiny_tokenizer: Any) -> None:
    benchmark = Benchmark("own", "all", forget=[], retain=[], questions={"forget": QUESTIONS})
    gold = Retrained(build(seed=1), tiny_tokenizer, QUESTIONS, {})
    model = build()
    found = evaluate(
        model, tiny_tokenizer, benchmark, distance=Distance(gold), generate=False, limit=1, progress=False
    ).metrics
    assert found["kl_unlearned"] == gold.distance(model, tiny_tokenizer)["kl_unlearned"], "the set is measured whole"


def test_a_head_on_another_device(build: Build) -> None:
    head = Head.at_start(build())
    assert head.to(torch.device("cpu")) is head
    there = head.to(torch.device("meta"))
    assert there.logits(torch.zeros(3, 32, device="meta")).shape == (3, head.vocab_size)
    assert there.linear is not None and there.linear.device.type == "meta"
    assert head.logits(torch.zeros(3, 32)).device.type == "cpu", "the head itself stays"
