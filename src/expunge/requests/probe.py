"""Does a model remember rows? Its numbers for each row beside those for the row's controls, and what follows.

No training. Every sequence is scored once; some of the rows are asked, for answers that a person can read.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import TYPE_CHECKING, Any

from expunge.data.augment import parts
from expunge.data.benchmark import Row
from expunge.data.encode import Encoded, decoded, encode
from expunge.errors import UserError
from expunge.evals import requests
from expunge.evals.membership import min_k_score
from expunge.evals.memorization import exact_memorization, extraction_strength
from expunge.evals.metrics import rouge_l_recall
from expunge.evals.requests import Score
from expunge.evals.tofu import longest_answer
from expunge.modeling.causal import CausalLM
from expunge.requests.controls import Stratum, swapped
from expunge.requests.decision import LEVEL, Decision, Scores, decide

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CONTROLS = 32
"""Controls of a row: two rows of one person are then enough for a verdict."""
SAMPLES = 8
ASKED = 48
"""Rows that are asked for answers to read, spread over all persons."""
MOST_TOKENS = 128
"""Most tokens of an answer to read."""

NUMBERS = {
    "probability": "probability of the answer (geometric mean over its tokens)",
    "extraction_strength": "share of the answer that follows from its beginning alone",
    "exact_memorization": "share of the answer's tokens that are the likeliest, each after the true ones before it",
    "verbatim": "share of the answer with which the model's own greedy answer begins",
    "min_k": "mean log-probability of the least likely 40 % of the tokens (membership), nats",
    "leak": "share of the answer's words in the best of {samples} sampled answers",
}
"""The numbers of a row, as results call them, with what they are."""


@dataclass(frozen=True)
class Measured:
    """The findings about a row.

    rank      its place among its controls by log-probability, 1 above all of them; `None` without controls
    controls  how many it has
    numbers   its own, by the names of `NUMBERS`; `beside` has the means over its controls
    said      the model's greedy answer, where it was asked
    """

    row: int
    rank: int | None
    controls: int
    numbers: dict[str, float]
    beside: dict[str, float]
    said: str | None = None


@dataclass(frozen=True)
class Probe:
    """The decision about all rows, one for each person, and the numbers behind them, row by row."""

    whole: Decision
    people: dict[str, Decision]
    rows: tuple[Measured, ...]
    persons: Mapping[str, Sequence[int]] = field(repr=False)

    def of(self, name: str) -> list[Measured]:
        """The rows of a person."""
        wanted = set(self.persons[name])
        return [row for row in self.rows if row.row in wanted]


def mean_of(rows: Sequence[Measured], number: str, *, beside: bool = False) -> float | None:
    """The mean of a number over the rows that have it for themselves and for controls."""
    found = [(row.beside if beside else row.numbers)[number] for row in rows if number in row.beside]
    return fmean(found) if found else None


def probe(
    model: CausalLM,
    tokenizer: "PreTrainedTokenizerBase",
    rows: Sequence[Row],
    *,
    persons: Mapping[str, Sequence[int]] | None = None,
    control: Sequence[Row] | None = None,
    others: Sequence[Row] = (),
    base: tuple[CausalLM, "PreTrainedTokenizerBase"] | None = None,
    most: int = CONTROLS,
    samples: int = SAMPLES,
    level: float = LEVEL,
    seed: int = 0,
    progress: bool = True,
) -> Probe:
    """Measure what `model` remembers of `rows`. Use when a person asks what a model knows of her.

    Args:
        persons: a name and the numbers of the rows about it; all rows are one person's without it.
        control: rows of the same form that the model can't know: their facts alone make the controls.
        others: rows about others; without `control`, their facts and those of `rows` make the controls.
        base: the model before it was taught. What it finds likely without having been taught then counts for nothing.
        most: controls of a row that are made.
        samples: answers that are drawn for leak@k; 0 leaves it out.
        level: probability of one wrong "remembers" or more.
    """
    for name, value, least in (("controls", most, 4), ("samples", samples, 0)):
        if value < least:
            raise UserError(f"{name} must be at least {least}, got {value}.")
    if not 0 < level < 1:
        raise UserError(f"level must be more than 0 and less than 1, got {level:g}.")
    persons = persons or {"all rows": range(len(rows))}
    first = {i: k for k, numbers in reversed(list(enumerate(persons.values()))) for i in numbers}
    pool, whose = others if control is None else control, [first.get(i, -1) for i in range(len(rows))]
    strata = swapped(rows, pool, whose, own=control is None, texts=base is not None, most=most, seed=seed)
    encoded = [encode(row, tokenizer) for row in rows]
    theirs = [[[encode(row, tokenizer) for row in of] for of in stratum.controls] for stratum in strata]
    sequences = [*encoded, *(e for stratum in theirs for of in stratum for e in of)]
    found = dict(zip(sequences, requests.score(model, sequences, details=True, progress=progress), strict=True))
    total = {e: score.total for e, score in found.items()}
    if base is not None:
        texts = [*rows, *(row for stratum in strata for of in stratum.controls for row in of)]
        before = requests.score(base[0], [encode(row, base[1]) for row in texts], progress=progress)
        total = {e: found[e].total - b.total for e, b in zip(sequences, before, strict=True)}
    scores = [
        Scores(
            tuple(total[encoded[i]] / found[encoded[i]].tokens for i in stratum.rows),
            tuple(tuple(total[e] / found[e].tokens for e in of) for of in lists),
        )
        for stratum, lists in zip(strata, theirs, strict=True)
    ]
    asked = [_about(strata, scores, None), *(_about(strata, scores, set(of)) for of in persons.values())]
    # One person is all rows, and the same question is not asked twice.
    whole, *each = decide(asked if len(persons) > 1 else asked[:1], level=level, seed=seed)
    decisions = dict(zip(persons, each or [whole], strict=True))
    measured = _measured(rows, encoded, strata, theirs, scores, found)
    said = _say(
        model, tokenizer, rows, encoded, strata, _spread(persons), samples=samples, seed=seed, progress=progress
    )
    return Probe(whole, decisions, tuple(_with(m, said.get(m.row)) for m in measured), persons)


def _about(strata: Sequence[Stratum], scores: Sequence[Scores], wanted: set[int] | None) -> list[Scores]:
    """The scores of some rows, or of all of them."""
    kept: list[Scores] = []
    for stratum, s in zip(strata, scores, strict=True):
        chosen = [k for k, i in enumerate(stratum.rows) if wanted is None or i in wanted]
        if chosen:
            kept.append(Scores(tuple(s.rows[k] for k in chosen), tuple(s.controls[k] for k in chosen)))
    return kept


def _measured(
    rows: Sequence[Row],
    encoded: Sequence[Encoded],
    strata: Sequence[Stratum],
    theirs: Sequence[Sequence[Sequence[Encoded]]],
    scores: Sequence[Scores],
    found: Mapping[Encoded, Score],
) -> list[Measured]:
    beside: dict[int, tuple[int, int, dict[str, float]]] = {}
    for stratum, lists, s in zip(strata, theirs, scores, strict=True):
        for k, i in enumerate(stratum.rows):
            own = [_numbers(found[e]) for e in lists[k]]
            beside[i] = s.rank(k), len(own), {name: fmean(n[name] for n in own) for name in own[0]}
    return [
        Measured(i, *beside.get(i, (None, 0))[:2], _numbers(found[encoded[i]]), beside[i][2] if i in beside else {})
        for i in range(len(rows))
    ]


def _numbers(score: Score) -> dict[str, float]:
    assert score.hits is not None
    return {
        "probability": math.exp(score.mean),
        "extraction_strength": extraction_strength(score.hits),
        "exact_memorization": exact_memorization(score.hits),
        "verbatim": score.begins / score.tokens,
        "min_k": min_k_score(score.logps),
    }


def _spread(persons: Mapping[str, Sequence[int]]) -> list[int]:
    """At most `ASKED` rows, one of each person after the other."""
    chosen: dict[int, None] = {}
    for turn in range(ASKED):
        for numbers in persons.values():
            if turn < len(numbers) and len(chosen) < ASKED:
                chosen.setdefault(numbers[turn])
    return list(chosen)


@dataclass(frozen=True)
class _Said:
    """A greedy answer, and the share of the right answer's words in the best sample, of the row and of controls."""

    text: str
    leak: float | None
    beside: float | None


def _say(
    model: CausalLM,
    tokenizer: "PreTrainedTokenizerBase",
    rows: Sequence[Row],
    encoded: Sequence[Encoded],
    strata: Sequence[Stratum],
    chosen: Sequence[int],
    *,
    samples: int,
    seed: int,
    progress: bool,
) -> dict[int, _Said]:
    controls = {i: of for s in strata for i, of in zip(s.rows, s.controls, strict=True)}
    questions = [_question(rows[i], encoded[i], tokenizer) for i in chosen]
    longest = min(MOST_TOKENS, longest_answer(encoded[i] for i in chosen))
    prompts = [prompt for prompt, _ in questions]
    texts = requests.generate(model, tokenizer, prompts, max_new_tokens=longest, progress=progress)
    options: dict[str, Any] = {"max_new_tokens": longest, "seed": seed, "top_p": 1.0}
    drawn = requests.sample(model, tokenizer, prompts, each=samples, **options) if samples else [[]] * len(prompts)
    said: dict[int, _Said] = {}
    for i, text, (_, answer), of in zip(chosen, texts, questions, drawn, strict=True):
        found = [each.text for each in of]
        others = [_question(row, encode(row, tokenizer), tokenizer)[1] for row in controls.get(i, ())]
        beside = fmean(_best(found, other) for other in others) if found and others else None
        said[i] = _Said(text.text, _best(found, answer) if found else None, beside)
    return said


def _question(row: Row, encoded: Encoded, tokenizer: "PreTrainedTokenizerBase") -> tuple[tuple[int, ...], str]:
    """(the prompt, the answer) of a row; of a raw text, its two halves."""
    if "text" not in row:
        return encoded.input_ids[: encoded.start], parts(row)[1]
    ids = encoded.input_ids
    half = max(1, min(len(ids) // 2, len(ids) - 1))
    return ids[:half], decoded(ids[half : half + MOST_TOKENS], tokenizer)


def _best(samples: Sequence[str], answer: str) -> float:
    return max(rouge_l_recall(sample, answer) for sample in samples)


def _with(measured: Measured, said: _Said | None) -> Measured:
    if said is None:
        return measured
    numbers = measured.numbers if said.leak is None else {**measured.numbers, "leak": said.leak}
    beside = measured.beside if said.beside is None else {**measured.beside, "leak": said.beside}
    return replace(measured, numbers=numbers, beside=beside, said=said.text)
