"""The questions in other words, and answers that are begun already.

Source: Patil et al. 2024, arXiv 2309.17410, who attack with rephrasings; Jin et al. 2024, arXiv 2406.10890 (RWKU),
whose adversarial probes begin the answer, among others.
"""

import math
from collections.abc import Callable, Sequence
from statistics import fmean
from typing import TYPE_CHECKING

from expunge.data.augment import parts, reworded
from expunge.data.benchmark import Benchmark, Row
from expunge.data.encode import encode
from expunge.data.swaps import FRAMES
from expunge.evals import requests
from expunge.modeling.causal import CausalLM
from expunge.stress.attack import PROBABILITY, Clock, Victim
from expunge.stress.outcome import Outcome, Point

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BEGUN = 1 / 3
"""Share of the answer's tokens that are given, where it is begun."""


def wording(victim: Victim) -> list[Outcome]:
    """The probability of the answers as they are asked for, and with the wording that suits each row's best."""
    clock = Clock()
    model, tokenizer = victim.load()
    rows = victim.benchmark.forget
    scores = _scores(model, tokenizer, rows)
    plain, begun = _probabilities(scores), _probabilities(scores, after=BEGUN)
    wordings = [_probabilities(_scores(model, tokenizer, asked)) for asked in others(victim.benchmark)]
    other = [max(values) for values in zip(*wordings, strict=True)]
    ways = {"as it was": plain, "in other words": other, "begun": begun}
    worst = [max(values) for values in zip(*ways.values(), strict=True)]
    points = tuple(Point(name, fmean(values)) for name, values in {**ways, "the worst": worst}.items())
    return [Outcome("wording", "worst of each row", "wording", PROBABILITY, points, clock.lap())]


def others(benchmark: Benchmark) -> list[list[Row]]:
    """The forget rows in other words: a list for each way, of all rows; raw text stands as it is."""
    ways = [[_asked(row, frame.format) for row in benchmark.forget] for frame in FRAMES]
    said = {
        question.question: question.paraphrased_question
        for question in benchmark.questions.get("forget", [])
        if question.paraphrased_question is not None
    }
    if said:
        ways.append([_asked(row, lambda question: said.get(question, question)) for row in benchmark.forget])
    return ways


def _asked(row: Row, word: Callable[[str], str]) -> Row:
    """The row with its question as `word` puts it; raw text has none."""
    if "text" in row:
        return row
    question, answer = parts(row)
    return reworded(row, word(question), answer)


def _scores(model: CausalLM, tokenizer: "PreTrainedTokenizerBase", rows: Sequence[Row]) -> list[requests.Score]:
    return requests.score(model, [encode(row, tokenizer) for row in rows], progress=False)


def _probabilities(scores: Sequence[requests.Score], *, after: float = 0.0) -> list[float]:
    """Length-normalised probability of each answer, of what follows its first tokens where `after` is a share."""
    return [math.exp(float(score.logps[int(after * (score.tokens - 1)) :].mean())) for score in scores]
