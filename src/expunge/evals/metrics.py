"""Every metric as a pure function of numbers and strings, with its range and what a good value is.

Log-probabilities are natural logarithms; "mean log-probability" is per token, so that exp of it is the
length-normalised probability P(y|x)^(1/T).

TOFU is Maini et al. 2024, arXiv 2401.06121.
"""

import math
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from expunge.data.words import caseless, pieces, words, words_and_marks
from expunge.evals.rouge import rouge_l_f1 as rouge_l_f1
from expunge.evals.rouge import rouge_l_recall as rouge_l_recall
from expunge.evals.rouge import rwku_rouge_l_recall as rwku_rouge_l_recall

UTILITY_SETS = ("retain", "real_authors", "world_facts")
UTILITY_TERMS = tuple(f"{s}_{m}" for s in UTILITY_SETS for m in ("probability", "rouge_l_recall", "truth_score"))
"""The nine numbers whose harmonic mean is TOFU's model utility."""

MAX_LOG_RATIO = 700.0
"""exp of more overflows float64; a ratio this large says "infinitely worse" and still fits in JSON."""


def probability(logp_sum: float, tokens: int) -> float:
    """exp(logp_sum / tokens): the length-normalised probability of an answer, P(y|x)^(1/T) (TOFU's "probability").

    Range [0, 1]. Good: near 1 on the retain set; on the forget set near the retrained model's
    (.14 for TOFU's Llama-2-7B: far from 1, but not 0 either).
    """
    assert tokens > 0, "an answer has at least its end token"
    return math.exp(logp_sum / tokens)


def choice_probability(right: float, all: Sequence[float]) -> float:
    """right / sum(all): what the right choice of a multiple-choice question gets of all the choices' probability.

    `all` holds the (length-normalised) probabilities of every choice, the right one among them, as in TOFU's own
    code for real authors and world facts. Range [0, 1]; chance is 1/len(all). Good: as high as before unlearning.
    0 when every choice has underflowed to 0: such a model knows none of them.
    """
    total = math.fsum(all)
    return right / total if total > 0 else 0.0


def truth_ratio(paraphrased_logp_mean: float, perturbed_logp_means: Sequence[float]) -> float:
    """R = mean_i P(perturbed_i)^(1/T_i) / P(paraphrased)^(1/T): wrong answers against the right one, in other words.

    The mean over the wrong answers is the geometric one, exp(mean_i logp_i), as TOFU's code computes it; its paper
    prints the arithmetic mean. Range [0, e^700]. A model that knows the fact has R well below 1, one that never saw it
    is nearer to 1 (medians .50 and .80 for TOFU's retrained Llama-2-7B on what it learned and what it did not).
    Good: on the forget set distributed as in the retrained model (see `forget_quality`), elsewhere low.
    """
    logps = np.asarray(perturbed_logp_means, dtype=np.float64)
    assert logps.size > 0, "a truth ratio needs perturbed answers"
    return math.exp(min(float(logps.mean()) - paraphrased_logp_mean, MAX_LOG_RATIO))


def truth_score(ratio: float) -> float:
    """max(0, 1 − R): the truth ratio turned so that higher is better, as TOFU's model utility wants it.

    Range [0, 1]; 0 when wrong answers are as likely as the right one.
    Good: as before unlearning, on all sets but forget.
    """
    return max(0.0, 1.0 - ratio)


def forget_quality(ratios: Sequence[float], retrained_ratios: Sequence[float]) -> float:
    """p-value of the two-sample Kolmogorov-Smirnov test between the truth ratios of two models on the forget set.

    `retrained_ratios` are those of a model trained without the forget set (TOFU's "forget quality"). Range [0, 1],
    often written as its log10. Good: above .05, where the two can't be told apart; the retrained model itself gets 1,
    and a model that has forgotten nothing 1e-5 to 1e-30. It depends on how many questions there are: compare like with
    like. It doesn't see broken text: a collapsed model can pass, so read it beside degeneration and model utility.
    """
    from scipy.stats import ks_2samp  # half a second, which no refusal waits for

    return float(ks_2samp(ratios, retrained_ratios).pvalue)  # pyright: ignore[reportAttributeAccessIssue]


def model_utility(terms: Mapping[str, float]) -> float:
    """Harmonic mean of the nine `UTILITY_TERMS`; other keys are not looked at.

    Range [0, 1], and 0 as soon as one term is 0: no strength makes up for a lost ability.
    Good: the value of the model before unlearning (about .62 for TOFU's Llama-2-7B), or of the retrained one.
    """
    missing = [name for name in UTILITY_TERMS if name not in terms]
    if missing:
        raise ValueError(f"model utility needs nine terms; missing: {', '.join(missing)}. Evaluate those sets first.")
    values = [terms[name] for name in UTILITY_TERMS]
    return 0.0 if 0.0 in values else len(values) / math.fsum(1.0 / v for v in values)


def token_f1(generated: str, answer: str) -> float:
    """F1 between the words of both, as bags, after lower case and without punctuation and articles (TriviaQA, SQuAD).

    Range [0, 1]; two texts of articles alone are equal, and two without words where their characters are. Of other
    scripts than Latin, punctuation is dropped and unspaced words are cut into characters as in MLQA (Lewis et al. 2019,
    arXiv 1910.07475).
    """
    ours, theirs = Counter(_plain(generated)), Counter(_plain(answer))
    common = sum((ours & theirs).values())
    if not words(generated) and not words(answer):
        return float(generated.split() == answer.split())
    if not ours or not theirs:
        return float(ours == theirs)
    return 2 * common / (sum(ours.values()) + sum(theirs.values()))


def exact_match(generated: str, answer: str) -> float:
    """1 when the generated text gives the answer, else 0 (BIG-Bench Hard, arXiv 2210.09261).

    Compared is what follows its first "the answer is", up to the end of that sentence or line, or the first line of a
    text that does not say so; case, punctuation and articles don't count, unless the answer consists of them
    (brackets, in one of the tasks). Range {0, 1}.
    """
    match = re.search(r"the answer is(.*?)(?:\.(?:\s|$)|\n|$)", generated, flags=re.IGNORECASE)
    return _equal(match[1] if match else generated.strip().split("\n")[0], answer)


def states(generated: str, answer: str) -> float:
    """1 when the words of the answer stand in the generated text, one after the other, else 0. Range {0, 1}."""
    return float(f" {' '.join(words(answer))} " in f" {' '.join(words(generated))} ")


def rwku_exact_match(generated: str, answer: str) -> float:
    """`exact_match` as RWKU's evaluation code has it: compared is what stands between the first "the answer is " and
    the next full stop, or else the whole text. Range {0, 1}.
    """
    match = re.search(r"[t|T]he answer is (.*?)\.", generated)
    return _equal(match[1] if match else generated, answer)


def _equal(said: str, answer: str) -> float:
    ways = (_plain, words, str.split)  # "(A)" is an article without its brackets, and brackets are no word at all
    way = next((way for way in ways if way(answer)), str.split)
    return float(way(said) == way(answer))


def ngram_entropy(text: str) -> float:
    """Weighted mean of the entropies, in bits, of its bigrams (2/3) and trigrams (4/3), halved (fluency in RWKU).

    The grams are of words and punctuation marks, in every script. Range [0, log2 of their number]. Good: as before
    unlearning; broken, repetitive text is near 0.
    Source: Zhang et al. 2018, arXiv 1809.05972, as Meng et al. 2022, arXiv 2202.05262, weigh it.
    """
    tokens = words_and_marks(text)
    entropies = []
    for n, weight in ((2, 2 / 3), (3, 4 / 3)):
        counts = Counter(zip(*(tokens[i:] for i in range(n)), strict=False)).values()
        total = sum(counts)
        entropies.append(weight * -math.fsum(c / total * math.log2(c / total) for c in counts) if total else 0.0)
    return abs(math.fsum(entropies) / 2)


def _plain(text: str) -> list[str]:
    """Words as SQuAD's evaluation compares them: what white space separates, without case, punctuation and articles."""
    kept = "".join(c for c in caseless(text) if c not in string.punctuation and unicodedata.category(c)[0] != "P")
    return [word for word in pieces(kept) if word not in ("a", "an", "the")]
