"""Every metric against values worked out by hand, and against the evaluation log of a Llama-2-7B."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from expunge.evals import metrics as m

LOG_SETS = {
    "forget": "eval_log_forget.json",
    "retain": "eval_log.json",
    "real_authors": "eval_real_author_wo_options.json",
    "world_facts": "eval_real_world_wo_options.json",
}
log_probabilities = st.floats(-1e4, 0)


def close(expected: float) -> Any:
    return pytest.approx(expected, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize(
    ("logp_sum", "tokens", "expected"),
    [(0.0, 3, 1.0), (2 * math.log(0.5), 2, 0.5), (math.log(0.1) + math.log(0.4), 2, 0.2), (-3e6, 3, 0.0)],
)
def test_probability(logp_sum: float, tokens: int, expected: float) -> None:
    assert m.probability(logp_sum, tokens) == close(expected)


@pytest.mark.parametrize(
    ("right", "every", "expected"),
    [(0.2, [0.2, 0.2, 0.4], 0.25), (1.0, [1.0, 0.0, 0.0], 1.0), (0.3, [0.3] * 4, 0.25), (0.0, [0.0, 0.0], 0.0)],
)
def test_choice_probability(right: float, every: list[float], expected: float) -> None:
    assert m.choice_probability(right, every) == close(expected)


@pytest.mark.parametrize(
    ("paraphrased", "perturbed", "expected"),
    [
        (math.log(0.5), [math.log(0.1), math.log(0.4)], 0.4),
        (-1.5, [-1.5, -1.5, -1.5], 1.0),
        (-1.0, [-1.0 + math.log(8), -1.0 - math.log(8)], 1.0),
        (-1.0, [-3000.0], 0.0),
        (-3000.0, [-3000.0 + math.log(2)], 2.0),  # both probabilities underflow; their ratio must not
        (-3000.0, [-1.0], math.exp(700)),
    ],
)
def test_truth_ratio(paraphrased: float, perturbed: list[float], expected: float) -> None:
    assert m.truth_ratio(paraphrased, perturbed) == close(expected)


@given(log_probabilities, st.lists(log_probabilities, min_size=1, max_size=6))
def test_truth_ratio_is_finite(paraphrased: float, perturbed: list[float]) -> None:
    ratio = m.truth_ratio(paraphrased, perturbed)
    assert ratio >= 0 and math.isfinite(ratio)
    assert 0 <= m.truth_score(ratio) <= 1


@pytest.mark.parametrize(("ratio", "expected"), [(0.0, 1.0), (0.25, 0.75), (1.0, 0.0), (math.exp(700), 0.0)])
def test_truth_score(ratio: float, expected: float) -> None:
    assert m.truth_score(ratio) == close(expected)


@pytest.mark.parametrize(
    ("ratios", "retrained", "expected"),
    [
        ([0.5, 0.7, 0.9], [0.5, 0.7, 0.9], 1.0),
        ([0.1, 0.2], [0.8, 0.9], 1 / 3),  # 2 of the C(4, 2) orders are this far apart
        ([0.1, 0.2, 0.3, 0.4, 0.5], [1.0, 2.0, 3.0, 4.0, 5.0], 2 / 252),
        ([0.0] * 40, [math.exp(700)] * 40, 2 / math.comb(80, 40)),
    ],
)
def test_forget_quality(ratios: list[float], retrained: list[float], expected: float) -> None:
    assert m.forget_quality(ratios, retrained) == pytest.approx(expected, rel=1e-9)


def test_model_utility() -> None:
    ones = dict.fromkeys(m.UTILITY_TERMS, 1.0)
    assert m.model_utility(ones) == close(1.0)
    assert m.model_utility(dict.fromkeys(m.UTILITY_TERMS, 0.3)) == close(0.3)
    assert m.model_utility(ones | {"retain_truth_score": 0.1}) == close(0.5)
    assert m.model_utility(ones | {"world_facts_probability": 0.0}) == 0.0
    assert m.model_utility(ones | {"forget_probability": 0.0}) == close(1.0)


def test_model_utility_names_what_is_missing() -> None:
    terms = dict.fromkeys(m.UTILITY_TERMS[1:], 1.0)
    with pytest.raises(ValueError, match="missing: retain_probability"):
        m.model_utility(terms)


@pytest.mark.parametrize(
    ("generated", "answer", "expected"),
    [
        ("the cat sat on the mat", "the cat sat on the mat", 1.0),
        ("the cat sat", "the cat sat on the mat", 0.5),
        ("He wrote, on the whole, novels about dogs running.", "novel about running dogs", 0.75),  # in order, stemmed
        ("mat cat", "cat mat", 0.5),
        ("", "cat", 0.0),
    ],
)
def test_rouge_l_recall(generated: str, answer: str, expected: float) -> None:
    assert m.rouge_l_recall(generated, answer) == close(expected)


@pytest.fixture(scope="module")
def log(shared_data: Path) -> dict[str, Any]:
    """A Llama-2-7B without the forget set, evaluated by TOFU's own code: losses per token, texts, their scores."""
    path = shared_data / "tofu_reference" / "retain90_llama2_eval_log_aggregated.json"
    raw = json.loads(path.read_text())
    return {name: raw[key] for name, key in LOG_SETS.items()}


def our_ratios(rows: dict[str, Any]) -> list[float]:
    pairs = zip(rows["avg_paraphrased_loss"], rows["average_perturb_loss"], strict=True)
    return [m.truth_ratio(-right, [-w for w in wrong]) for right, wrong in pairs]


def plain_ratios(rows: dict[str, Any]) -> np.ndarray:
    return np.exp(np.array(rows["avg_paraphrased_loss"]) - np.array(rows["average_perturb_loss"]).mean(-1))


@pytest.mark.parametrize("name", LOG_SETS)
def test_truth_ratio_on_real_losses(log: dict[str, Any], name: str) -> None:
    np.testing.assert_allclose(our_ratios(log[name]), plain_ratios(log[name]), rtol=1e-9)


def test_forget_quality_on_real_losses(log: dict[str, Any]) -> None:
    ours, plain = our_ratios(log["forget"]), plain_ratios(log["forget"])
    assert m.forget_quality(ours, ours) == 1.0
    shifted = [r + 0.05 for r in ours]
    for other in (shifted, our_ratios(log["retain"])):
        expected = stats.ks_2samp(plain, np.array(other))[1]
        assert m.forget_quality(ours, other) == pytest.approx(expected, rel=1e-9)
    assert m.forget_quality(ours, our_ratios(log["retain"])) < 1e-10  # what it learned and what it did not


@pytest.mark.parametrize("name", LOG_SETS)
def test_rouge_on_real_texts(log: dict[str, Any], name: str) -> None:
    """Equal where both texts are ASCII; `rouge-score` cuts accented words to pieces, which moves no mean by .002."""
    texts = [(generated, answer) for _, generated, answer in log[name]["generated_text"]]
    ours, theirs = np.array([m.rouge_l_recall(*pair) for pair in texts]), np.array(log[name]["rougeL_recall"])
    plain = np.array([(generated + answer).isascii() for generated, answer in texts])
    np.testing.assert_allclose(ours[plain], theirs[plain], rtol=1e-9)
    assert plain.mean() > 0.85 and abs(ours.mean() - theirs.mean()) < 0.002


def test_model_utility_on_real_losses(log: dict[str, Any]) -> None:
    terms, plain = {}, []
    for name in m.UTILITY_SETS:
        rows = log[name]
        right = [m.probability(-loss, n) for loss, n in zip(rows["gt_loss"], rows["num_token_gt"], strict=True)]
        wrong = np.exp(-np.array(rows["average_perturb_loss"]))
        probabilities = np.exp(-np.array(rows["gt_loss"]) / np.array(rows["num_token_gt"]))
        if name != "retain":
            right = [m.choice_probability(r, [r, *w]) for r, w in zip(right, wrong, strict=True)]
            probabilities = probabilities / (probabilities + wrong.sum(-1))
        terms[f"{name}_probability"] = float(np.mean(right))
        terms[f"{name}_rouge_l_recall"] = float(np.mean(rows["rougeL_recall"]))
        terms[f"{name}_truth_score"] = float(np.mean([m.truth_score(r) for r in our_ratios(rows)]))
        plain += [probabilities.mean(), np.mean(rows["rougeL_recall"]), np.maximum(0, 1 - plain_ratios(rows)).mean()]
    assert m.model_utility(terms) == pytest.approx(stats.hmean(plain), rel=1e-9)
    assert m.model_utility(terms) == pytest.approx(0.6203436494, abs=1e-9)


# -- texts against texts ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("generated", "answer", "expected"),
    [
        ("the cat sat", "the cat sat", 1.0),
        ("dogs bark", "the cat sat", 0.0),
        ("the cat", "the cat sat down", 2 * 1.0 * 0.5 / 1.5),
        ("running dogs", "run dog", 0.0),
        ("", "the cat", 0.0),
    ],
)
def test_rouge_l_f1(generated: str, answer: str, expected: float) -> None:
    assert m.rouge_l_f1(generated, answer) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    ("generated", "answer", "expected"),
    [
        ("The Eiffel Tower!", "eiffel tower", 1.0),
        ("tower", "Eiffel Tower", 2 / 3),
        ("a a b", "b b", 2 / 3),  # "a" is an article
        ("London", "Paris", 0.0),
        ("the", "a", 1.0),
        ("", "Paris", 0.0),
        ("“Paris”…", "Paris", 1.0),
        ("=", "=", 1.0),
        ("+", "=", 0.0),
        ("", "=", 0.0),
    ],
)
def test_token_f1(generated: str, answer: str, expected: float) -> None:
    assert m.token_f1(generated, answer) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    ("generated", "answer", "expected"),
    [
        ("True and False is False. So the answer is False.\n\nQ: next", "False", 1.0),
        ("So the answer is (B). The answer is (C).", "(B)", 1.0),
        ("The answer is 3.5", "3.5", 1.0),
        ("(A)\nwhy?", "(a)", 1.0),
        ("I don't know", "(A)", 0.0),
        ("", "yes", 0.0),
        ("(B)", "(A)", 0.0),
        ("So the answer is ] ) }", "] ) }", 1.0),
        ("So the answer is ] > }", "] ) }", 0.0),
    ],
)
def test_exact_match(generated: str, answer: str, expected: float) -> None:
    assert m.exact_match(generated, answer) == expected


@pytest.mark.parametrize(
    ("generated", "answer", "expected"),
    [
        ("It is hot. So the answer is (B).", "(B)", 1.0),
        ("So the answer is (B)", "(B)", 0.0),  # no full stop, so all of it is the answer
        ("(B)", "(b)", 1.0),
        ("So the answer is ] ) }.", "] ) }", 1.0),
        ("So the answer is ] > }.", "] ) }", 0.0),
    ],
)
def test_rwku_exact_match(generated: str, answer: str, expected: float) -> None:
    assert m.rwku_exact_match(generated, answer) == expected


def test_ngram_entropy() -> None:
    """Bigrams weigh 2/3, trigrams 4/3, halved."""
    assert m.ngram_entropy("") == m.ngram_entropy("one") == m.ngram_entropy("a a a a") == 0.0
    four = m.ngram_entropy("a b c d e")  # 4 bigrams, 3 trigrams, all different
    assert four == pytest.approx((2 / 3 * 2 + 4 / 3 * math.log2(3)) / 2, abs=1e-9)
    two = m.ngram_entropy("a b a b")  # ab ba ab; aba bab
    assert two == pytest.approx((2 / 3 * (math.log2(3) - 2 / 3) + 4 / 3 * 1) / 2, abs=1e-9)
