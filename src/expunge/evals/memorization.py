"""How much of an answer comes out by itself, from one forward: which argmaxes are the true tokens.

`hits` is bool [T], one entry per supervised token of one answer, its end token among them: whether the argmax at that
position, given the true tokens before it, is the true token.
"""

import numpy as np


def extraction_strength(hits: np.ndarray) -> float:
    """1 − k/T, k the length of the smallest prefix of the answer after which every argmax is right.

    Range [0, 1]: 1 when greedy decoding gives the whole answer from the prompt alone, 0 when the last argmax is wrong.
    Good: on the forget set not above the retrained model's (not 0: commonplace endings can be guessed), elsewhere as
    before unlearning.
    Source: Carlini et al. 2021, arXiv 2012.07805; for unlearning Wang et al. 2024, arXiv 2406.09179. OpenUnlearning's
    code (arXiv 2506.12618) gives 1/T instead of 0 when the last argmax is wrong.
    """
    hits = _checked(hits)
    misses = np.flatnonzero(~hits)
    prefix = int(misses[-1]) + 1 if misses.size else 0
    return 1.0 - prefix / hits.size


def exact_memorization(hits: np.ndarray) -> float:
    """Share of the answer's tokens that are the argmax, each given the true tokens before it.

    Range [0, 1], never below `extraction_strength`. Good: on the forget set not above the retrained model's (grammar
    alone makes many hits, so 0 is a broken model), elsewhere as before unlearning.
    Source: Tirumala et al. 2022, arXiv 2205.10770.
    """
    return float(_checked(hits).mean())


def _checked(hits: np.ndarray) -> np.ndarray:
    hits = np.asarray(hits)
    assert hits.ndim == 1 and hits.size > 0, "an answer has at least its end token"
    # ~ of an integer array is not its negation, and a log-probability passed by mistake would count as a hit.
    assert hits.dtype == np.bool_, f"hits are booleans, not {hits.dtype}"
    return hits
