"""Membership inference: was this text trained on? One score per text, and how well scores tell two sets apart.

Every score is oriented so that HIGHER means more likely a member, and is float64 whatever comes in. `logps` is [T]: the
natural log-probability of each supervised token of one text, as in `requests.Score`.
"""

import zlib
from collections.abc import Sequence

import numpy as np

Scores = Sequence[float] | np.ndarray

MIN_DEVIATION = 1e-3
"""Floor of min-k++'s standard deviation, nats, as in OpenUnlearning: a certain model has none to divide by."""


def loss_score(logps: np.ndarray) -> float:
    """Mean log-probability, nats per token: −loss.

    Range (−∞, 0]. Source: Yeom et al. 2018, arXiv 1709.01604.
    """
    return float(_row(logps).mean())


def zlib_score(logps: np.ndarray, text: str) -> float:
    """Mean log-probability over the zlib-compressed size of the text (UTF-8), nats per token and byte.

    The compressor stands for how predictable a text is to anyone: a repetitive text is likely, member or not.
    Range (−∞, 0]. Source: Carlini et al. 2021, arXiv 2012.07805, as in OpenUnlearning and in RWKU's code.
    """
    return loss_score(logps) / len(zlib.compress(text.encode()))


def zlib_sum_score(logps: np.ndarray, text: str) -> float:
    """`zlib_score` with the sum of log-probabilities, nats per byte: both sides grow with the text, so that a long
    text is not taken for a likely one.

    Range (−∞, 0].
    """
    return float(_row(logps).sum() / len(zlib.compress(text.encode())))


def min_k_score(logps: np.ndarray, k: float = 0.4) -> float:
    """Mean of the lowest k of the log-probabilities, ⌊kT⌋ of them but at least one, nats per token.

    A text never seen has a few tokens that nothing prepares for; the rest say little. Range (−∞, 0].
    Source: Shi et al. 2023, arXiv 2310.16789 ("Min-K% Prob"); k = .4 as in MUSE and OpenUnlearning.
    """
    return _lowest_mean(_row(logps), k)


def min_k_plus_plus_score(logps: np.ndarray, means: np.ndarray, deviations: np.ndarray, k: float = 0.4) -> float:
    """Mean of the lowest k of (logp − mean) / deviation, ⌊kT⌋ of them but at least one.

    `means` and `deviations` are [T]: the expectation and the standard deviation of log p(v) at each position when v
    is drawn from the model's own next-token distribution p. What counts is whether the token is likelier than the
    model's usual, so flat positions don't drown the rest. Range (−∞, ∞), no unit.
    Source: Zhang et al. 2024, arXiv 2404.02936 ("Min-K%++"); k = .4 as in OpenUnlearning, .2 in RWKU.
    """
    logps, means, deviations = _row(logps), _row(means), _row(deviations)
    assert logps.shape == means.shape == deviations.shape, "one mean and one deviation per token"
    return _lowest_mean((logps - means) / np.maximum(deviations, MIN_DEVIATION), k)


def auc(members: Scores, others: Scores) -> float:
    """Probability that a member's score exceeds another's, ties counting half: area under the ROC curve, exact.

    Range [0, 1]: 1 when every member scores above all others, .5 when scores say nothing, 0 when all are below.
    Good: with forget texts as members, what the retrained model has; not .5 unless the two sets are alike, and below
    it the text is not forgotten but suppressed, which gives it away too.
    Raises `ValueError` on an empty set or NaN.
    """
    from scipy.stats import rankdata  # half a second, which no refusal waits for

    sets = [np.asarray(scores, dtype=np.float64) for scores in (members, others)]
    for name, scores in zip(("members", "others"), sets, strict=True):
        if scores.size == 0:
            raise ValueError(f"AUC needs at least one score of {name}.")
        if np.isnan(scores).any():
            raise ValueError(f"AUC can't rank NaN, which is among the scores of {name}.")
    n_members, n_others = (scores.size for scores in sets)
    rank_sum = float(rankdata(np.concatenate(sets))[:n_members].sum())  # ties share the mean of their ranks
    wins = rank_sum - n_members * (n_members + 1) / 2  # the ranks that members have among themselves don't count
    return wins / (n_members * n_others)


def muse_auc(forget_scores: Scores, holdout_scores: Scores) -> float:
    """1 − AUC of telling the forget set from texts never seen, by `min_k_score` with k = .4: `privleak`'s orientation.

    Range [0, 1]: 0 for a model that remembers every forget text, near .5 for one that never saw any, 1 for one in
    which each is less likely than anything unseen. Good: the retrained model's.
    Source: MUSE, Shi et al. 2024, arXiv 2407.06460.

    >>> muse_auc([-0.1, -0.2], [-3.0, -4.0])  # remembered: forget texts are the likelier
    0.0
    >>> muse_auc([-0.1, -3.5], [-3.0, -4.0])  # one of four pairs is the other way round
    0.25
    """
    return 1.0 - auc(forget_scores, holdout_scores)


def privleak(auc: float, retrained_auc: float) -> float:
    """100 (AUC − AUC_retrain) / AUC_retrain, both by `muse_auc`: what membership inference says beyond retraining.

    Range [−100, 100 (1/AUC_retrain − 1)], percent: −100 when nothing is forgotten, 0 as after retraining (good), above
    0 when over-forgotten (MUSE-News, Llama-2-7B: AUC_retrain .4772, and −99.8 before unlearning).
    Raises `ValueError` when either is outside [0, 1] or the retrained model's is 0, which leaves nothing to compare to.
    Source: MUSE, Shi et al. 2024, arXiv 2407.06460.
    """
    if not (0 <= auc <= 1 and 0 <= retrained_auc <= 1):
        raise ValueError(f"an AUC lies between 0 and 1; got {auc} and, retrained, {retrained_auc}.")
    if retrained_auc == 0:
        raise ValueError("PrivLeak is undefined: the retrained model's AUC is 0, so it has seen the forget set.")
    return 100.0 * (auc - retrained_auc) / retrained_auc


def _row(values: np.ndarray) -> np.ndarray:
    values = np.asarray(values, dtype=np.float64)
    assert values.ndim == 1 and values.size > 0, "a text has at least one token to score"
    return values


def _lowest_mean(values: np.ndarray, k: float) -> float:
    assert 0 < k <= 1, f"k is a share in (0, 1], not {k}"
    count = max(1, int(k * values.size))
    return float(np.partition(values, count - 1)[:count].mean())
