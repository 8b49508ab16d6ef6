"""Does a model know some rows at all? Facts that its answers state, beside facts of the same kind that others could.

A model that never saw the rows states their facts about as often as those of other rows. No training and no other model
is needed.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Literal

from expunge.data.augment import parts
from expunge.data.benchmark import Row
from expunge.data.encode import encode, question_row
from expunge.data.facts import alternatives, facts, invented
from expunge.evals import requests
from expunge.evals.metrics import probability
from expunge.evals.tofu import longest_answer
from expunge.modeling.causal import CausalLM

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ROWS = 24
"""Rows that are looked at: enough for the interval, and seconds for a small model."""
OTHERS = 8
"""Facts of other rows for each fact."""
LEAST = 8
"""Rows with facts that it takes to tell: where none of fewer is known, a third still might be (Wilson's interval)."""
UNKNOWN = 1 / 3
"""Share of the facts under which the whole interval lies where the rows are not known."""


@dataclass(frozen=True)
class Knowledge:
    """Facts that a model states when it is asked for them.

    stated    share of the facts of each row that its greedy answer holds
    chance    the same of other rows' facts: what is stated without being known
    """

    stated: tuple[float, ...]
    chance: tuple[float, ...]

    @property
    def mean(self) -> float:
        return fmean(self.stated)

    @property
    def interval(self) -> tuple[float, float]:
        """95 % confidence interval of stated less chance, from Student's t over rows."""
        above = [a - b for a, b in zip(self.stated, self.chance, strict=True)]
        half = _half_width(above)
        return max(-1.0, fmean(above) - half), min(1.0, fmean(above) + half)

    @property
    def verdict(self) -> Literal["knows", "does not know", "cannot tell"]:
        low, high = self.interval
        return "does not know" if high < UNKNOWN else "knows" if low > UNKNOWN else "cannot tell"

    def __str__(self) -> str:
        return (
            f"asked {len(self.stated)} of the forget rows, the model states {100 * self.mean:.0f} % of their facts (of "
            f"other rows' facts {100 * fmean(self.chance):.0f} %)"
        )


def unknown_probability(
    model: CausalLM,
    tokenizer: "PreTrainedTokenizerBase",
    rows: Sequence[Row],
    others: Sequence[Row] = (),
    *,
    seed: int,
    progress: bool = True,
) -> float | None:
    """How probable answers may be that `model` can't know: the upper end of a 95 % interval, in [0, 1].

    The answers are those of `rows` with names and numbers of others in place of theirs, in question and answer alike;
    where too few of them can be so changed, those of `others` as well. The probability is length-normalised, as in
    `forget_probability`. `None` where too few of both can be changed.
    """
    pairs = [(row["question"], row["answer"]) for row in (*rows, *others) if "question" in row]
    first = sum("question" in row for row in rows)
    made = [pair for pair in invented(pairs[:first], pairs[first:], seed=seed) if pair is not None]
    if len(made) < LEAST:
        more = invented(pairs[first:], pairs[:first], seed=seed)
        made += [pair for pair in more if pair is not None][: ROWS - len(made)]
    if len(made) < LEAST:
        return None
    scores = requests.score(model, [encode(question_row(*pair), tokenizer) for pair in made], progress=progress)
    found = [probability(score.total, score.tokens) for score in scores]
    return min(1.0, fmean(found) + _half_width(found))


def _half_width(values: Sequence[float]) -> float:
    from scipy.stats import t as student

    return float(student.ppf(0.975, len(values) - 1)) * stdev(values) / math.sqrt(len(values))


def look(
    model: CausalLM,
    tokenizer: "PreTrainedTokenizerBase",
    rows: Sequence[Row],
    others: Sequence[Row] = (),
    *,
    seed: int,
    progress: bool = True,
) -> Knowledge | None:
    """Ask `model` some of `rows`, and look for their facts in its answers; `None` where too few have facts to tell.

    `others` are rows whose facts are looked for as well. Raw texts ask nothing and are left out.
    """
    asking = [row for row in rows if "text" not in row]
    usable = [row for row in asking if facts(*parts(row))]
    chosen = usable[:: max(1, len(usable) // ROWS)][:ROWS]
    if len(chosen) < LEAST:
        return None
    more = (parts(row) for row in (*asking, *others) if "text" not in row)
    known = alternatives([parts(row) for row in chosen], more, most=OTHERS, seed=seed)
    encoded = [encode(row, tokenizer) for row in chosen]
    answers = requests.generate(
        model,
        tokenizer,
        [row.input_ids[: row.start] for row in encoded],
        max_new_tokens=longest_answer(encoded),
        progress=progress,
    )
    stated, chance = [], []
    for answer, of_row in zip(answers, known, strict=True):
        text = answer.text.lower()
        stated.append(fmean(fact.lower() in text for fact, _ in of_row))
        instead = [other.lower() in text for _, others_of in of_row for other in others_of]
        chance.append(fmean(instead) if instead else 0.0)
    return Knowledge(tuple(stated), tuple(chance))
