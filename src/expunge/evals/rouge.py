"""ROUGE-L of one text against another, by the definitions of the benchmarks that report it.

ROUGE is Lin 2004, "ROUGE: A Package for Automatic Evaluation of Summaries". `docs/metrics.md` says which benchmark uses
which definition.
"""

import functools
from typing import Any

import numpy as np

from expunge.data.words import caseless, words


def rouge_l_recall(generated: str, answer: str) -> float:
    """ROUGE-L recall: the share of the answer's words that come, in order, in the generated text (stemmed).

    By `rouge-score`, with words of every script (`data.words`); of ASCII texts it is `rouge-score`'s own value. An
    answer without words (an emoji, a formula) is recalled by the same characters alone.

    Range [0, 1]. Saying more costs nothing, so it asks "is it said", not "is it well said".
    Good: near 1 on the retain set; on the forget set near the retrained model's (.40 for TOFU's Llama-2-7B:
    the form of an answer alone gives that much).
    """
    if not words(answer):
        return _same(generated, answer)
    return float(_scorer(stem=True).score(answer, generated)["rougeL"].recall)


def rouge_l_f1(generated: str, answer: str, *, stem: bool = False) -> float:
    """ROUGE-L F1: `rouge_l_recall` and the share of the generated words that are the answer's, balanced.

    Range [0, 1]. Good: on the forget set near the retrained model's, elsewhere as before unlearning.
    MUSE (Shi et al. 2024, arXiv 2407.06460) measures verbatim and knowledge memorisation with it, without a stemmer.
    """
    if not words(answer):
        return _same(generated, answer)
    return float(_scorer(stem=stem).score(answer, generated)["rougeL"].fmeasure)


def rwku_rouge_l_recall(generated: str, answer: str) -> float:
    """ROUGE-L recall as RWKU's evaluation code has it, which takes it from the package `rouge`.

    Upper and lower case differ, nothing is stemmed, punctuation belongs to the word it touches, and words are what
    white space separates. Both texts are cut into sentences at every full stop. What counts is the number of
    *different* words in the longest common subsequences of any two sentences, over the number of different words of
    the answer. Equal to `rouge` 1.0.1 (`tests/evals/test_rouge.py`), which is no dependency since nobody keeps it up.

    Range [0, 1]; 0 where nothing is said. Source: RWKU, Jin et al. 2024, arXiv 2406.10890.
    """
    said, wanted = _sentences(generated), _sentences(answer)
    known = set().union(*wanted)
    common = set().union(*(_common(theirs, ours) for theirs in wanted for ours in said))
    return len(common) / len(known) if known else 0.0


class _Words:
    """`rouge-score`'s tokenizer for texts of every script."""

    def __init__(self, *, stem: bool) -> None:
        from nltk.stem.porter import PorterStemmer  # which takes a second, and scikit-learn where that is installed

        self._stem = functools.cache(PorterStemmer().stem) if stem else lambda word: word

    def tokenize(self, text: str) -> list[str]:
        return [self._stem(word) if len(word) > 3 else word for word in words(text)]


@functools.cache
def _scorer(*, stem: bool) -> Any:
    from rouge_score import rouge_scorer

    tokenizer: Any = _Words(stem=stem)  # it asks for `tokenize` alone
    return rouge_scorer.RougeScorer(["rougeL"], tokenizer=tokenizer)


def _same(generated: str, answer: str) -> float:
    return float(caseless(generated).split() == caseless(answer).split())


def _sentences(text: str) -> list[list[str]]:
    # `rouge` splits "a. " into "a" and "", which is a word to it.
    return [" ".join(sentence.split()).split(" ") for sentence in text.split(".") if sentence]


def _common(a: list[str], b: list[str]) -> set[str]:
    """The different words of the longest common subsequence; of several the one that `rouge` finds."""
    length = np.zeros((len(a) + 1, len(b) + 1), dtype=np.int64)
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            length[i + 1, j + 1] = length[i, j] + 1 if x == y else max(length[i, j + 1], length[i + 1, j])
    i, j, common = len(a), len(b), set[str]()
    while i and j:
        if a[i - 1] == b[j - 1]:
            common.add(a[i - 1])
            i, j = i - 1, j - 1
        elif length[i - 1, j] > length[i, j - 1]:
            i -= 1
        else:
            j -= 1
    return common
