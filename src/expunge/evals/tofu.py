"""TOFU's protocol (Maini et al. 2024, arXiv 2401.06121): which requests, which metrics, a record per question.

Any benchmark of questions with wrong answers can be measured in this way, a set that is absent is left out.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from statistics import fmean, median
from typing import TYPE_CHECKING, Any

from expunge.data.benchmark import Benchmark, Question, Row
from expunge.data.encode import Encoded, encode, place, question_row, shortened, specials, with_answer
from expunge.errors import UserError
from expunge.evals import metrics as m
from expunge.evals import requests
from expunge.evals.degeneration import SAMPLE, Generated, Prompts, Usual, judge
from expunge.evals.memorization import exact_memorization, extraction_strength
from expunge.evals.requests import Measure, Score
from expunge.modeling.causal import CausalLM

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Record = dict[str, Any]

FORGET = "forget"


@dataclass(frozen=True)
class Evaluation:
    """`metrics` by name, and for each question set a record per question: the numbers behind them.

    A record holds `index`, `question`, `answer`, `probability`, `logp_mean` (nats per token), `tokens` (of the answer),
    `paraphrased_probability`, `perturbed_probabilities`, `truth_ratio` (None without perturbed answers), and, None
    where nothing was generated, `generated` and `rouge_l_recall`. One of the forget set then also holds
    `extraction_strength`, `exact_memorization` and what `degeneration.judge` finds.
    """

    metrics: dict[str, float]
    records: dict[str, list[Record]]


@dataclass(frozen=True, slots=True)
class _Asked:
    """A question as token sequences: the answer, its paraphrase (or itself), and the perturbed answers."""

    question: Question
    sequences: tuple[Encoded, ...]

    @property
    def prompt(self) -> tuple[int, ...]:
        return self.sequences[0].input_ids[: self.sequences[0].start]

    @property
    def answer(self) -> tuple[int, ...]:
        return self.sequences[0].targets


def evaluate_questions(
    model: CausalLM,
    tokenizer: "PreTrainedTokenizerBase",
    benchmark: Benchmark,
    *,
    retrained_records: Mapping[str, Sequence[Record]] | None = None,
    generate: bool = True,
    limit: int | None = None,
    max_new_tokens: int | None = None,
    usual: Usual | None = None,
    also: Measure | None = None,
    progress: bool = True,
) -> Evaluation:
    """Measure `model` on every question set of `benchmark`, scoring and generating everything once.

    `also` is measured by the same forwards, and its metrics come with the others.

    For each set `s` (`forget`, `retain`, `real_authors`, `world_facts`), metrics in [0, 1] unless stated:

    - `s_probability`: mean probability of the answer; of the right choice among all in `benchmark.choice_sets`;
    - `s_truth_ratio`: median of R, in [0, e^700] (the mean would follow a few outliers);
    - `s_truth_score`: mean of max(0, 1 − R); not for `forget`, where neither high nor low is good;
    - `s_rouge_l_recall`: mean over the generated answers;
    - `forget_extraction_strength`, `forget_exact_memorization`: means over the forget answers (see `memorization`);
    - `degeneration`: share of generated forget answers that are broken text, by themselves and, given `usual`, to the
      target model (see `degeneration`);
    - `forget_quality`: given `retrained_records` (the `records` of a model trained without the forget set), where the
      forget questions have wrong answers;
    - `model_utility`: when all nine terms of it are there.

    As in TOFU's own code, the paraphrased and perturbed answers answer the original question, and where there is
    no paraphrase the answer stands in.

    `limit` evaluates the first `limit` questions of each set, for a quick look during training. The forget set is
    scored whole all the same: the p-value behind forget quality depends on how many questions there are, so a part of
    the set would always look better forgotten. Only its generated answers are limited.

    `max_new_tokens` caps generated answers. By default it is one and a half times the benchmark's longest answer plus
    8 tokens (TOFU's own code stops at 200, prompt included): room for a wordier right answer, while a broken model,
    which never stops, can't take all day. The cap is one for all sets, and `limit` doesn't change it.

    Raises `UserError` when `retrained_records` are of other forget questions.
    """
    if limit is not None and limit < 1:
        raise UserError(f"evaluate.limit must be at least 1, got {limit}; leave it out to evaluate everything.")
    questions = {name: rows for name, rows in benchmark.questions.items() if rows}
    context = requests.context_length(model)
    asked = {
        name: _ask(rows if name == FORGET else rows[:limit], tokenizer, context, name)
        for name, rows in questions.items()
    }
    originals = requests.ask_scores([a.sequences[0] for rows in asked.values() for a in rows], details=generate)
    flat = requests.ask_scores([sequence for rows in asked.values() for a in rows for sequence in a.sequences[1:]])
    asks = also.asks(model, tokenizer) if also is not None else []
    of_originals, of_others, *others = requests.at_answers(model, [originals, flat, *asks], progress=progress)
    answers, scores = iter(requests.scores(originals, of_originals)), iter(requests.scores(flat, of_others))
    answered = {name: list(islice(answers, len(rows))) for name, rows in asked.items()}
    records = {
        name: [
            _record(i, a.question, [answer, *islice(scores, len(a.sequences) - 1)], name in benchmark.choice_sets)
            for i, (a, answer) in enumerate(zip(rows, answered[name], strict=True))
        ]
        for name, rows in asked.items()
    }
    if generate:
        for record, answer in zip(records.get(FORGET, []), answered.get(FORGET, []), strict=True):
            assert answer.hits is not None
            record["extraction_strength"] = extraction_strength(answer.hits)
            record["exact_memorization"] = exact_memorization(answer.hits)
        cap = max_new_tokens or answer_cap(questions.values(), tokenizer, context)
        generating = [
            (records[name][i], a, answered[name][i]) for name, rows in asked.items() for i, a in enumerate(rows[:limit])
        ]
        generations = requests.generate(
            model,
            tokenizer,
            [a.prompt for _, a, _ in generating],
            begun=[a.answer[: answer.begins] for _, a, answer in generating],
            others=specials(tokenizer).intersection(
                a.answer[-1] for _, a, _ in generating
            ),  # with which rows end as text
            max_new_tokens=cap,
            progress=progress,
        )
        for (record, _, _), generation in zip(generating, generations, strict=True):
            record["generated"] = generation.text
            record["rouge_l_recall"] = m.rouge_l_recall(generation.text, record["answer"])
        gone = [r for r in records.get(FORGET, []) if r["generated"] is not None]
        rows = [_row(q) for q in questions.get(FORGET, [])[: len(gone)]]
        texts = [Generated(FORGET, row, r["generated"], [r["answer"]]) for row, r in zip(rows, gone, strict=True)]
        for record, fields in zip(gone, judge(texts, usual), strict=True):
            record.update(fields)
    metrics = _summary(records)
    if retrained_records is not None and _present(records.get(FORGET, []), "truth_ratio"):
        metrics["forget_quality"] = _forget_quality(records[FORGET], retrained_records.get(FORGET, []))
    if also is not None:
        metrics.update(also.metrics(others))
    return Evaluation(metrics, records)


def encode_answers(
    questions: Iterable[Question], tokenizer: "PreTrainedTokenizerBase", context: int, name: str = FORGET
) -> list[Encoded]:
    """Every question with its own answer, as it was trained on, for a model with a context of `context` tokens.

    Raises `UserError` for a question that can't be encoded or fills the context, with its number and its row's place.
    """
    return [a.sequences[0] for a in _ask(questions, tokenizer, context, name, alone=True)]


def _ask(
    questions: Iterable[Question], tokenizer: "PreTrainedTokenizerBase", context: int, name: str, *, alone: bool = False
) -> list[_Asked]:
    """Each question with its answer, or all of its answers but for `alone`."""
    asked: list[_Asked] = []
    for i, question in enumerate(questions):
        row = _row(question)
        where = place(i, question.row).replace("row", "question", 1)
        try:
            sequences = [encode(r, tokenizer) for r in (row, *(() if alone else _others(question, row)))]
        except UserError as error:
            raise UserError(f"{name}: {where}: {error}") from error
        if "passage" in row:
            sequences = [_around_the_middle(s, context, tokenizer) for s in sequences]
        if (longest := max(s.start for s in sequences)) >= context:
            raise UserError(
                f"{name}: {where} takes {longest} tokens before its answer and fills the model's context of {context}; "
                "shorten it or leave it out."
            )
        asked.append(_Asked(question, tuple(sequences)))
    return asked


def prompts(
    benchmark: Benchmark, tokenizer: "PreTrainedTokenizerBase", context: int, max_new_tokens: int | None = None
) -> Prompts:
    """The questions about the forget set, filled up with those of other sets where it is small."""
    cap = max_new_tokens or answer_cap(benchmark.questions.values(), tokenizer, context)
    forget = [_row(q) for q in benchmark.questions[FORGET]]
    others = (name for name in benchmark.questions if name != FORGET and name not in benchmark.choice_sets)
    more = [_row(q) for name in others for q in benchmark.questions[name]]
    return Prompts([*forget, *more[: max(0, SAMPLE - len(forget))]], cap)


def _row(question: Question) -> Row:
    return question.row or question_row(question.question, question.answer)


def _others(question: Question, row: Row) -> Iterator[Row]:
    paraphrase = question.answer if question.paraphrased_answer is None else question.paraphrased_answer
    return (with_answer(row, answer) for answer in (paraphrase, *question.perturbed_answers))


def _around_the_middle(encoded: Encoded, context: int, tokenizer: "PreTrainedTokenizerBase") -> Encoded:
    """The end of a passage's first half and the beginning of its second, each at most half of the context."""
    if len(encoded) <= context:
        return encoded
    return shortened(encoded, context - context // 2, tokenizer).cut(context)


def answer_cap(sets: Iterable[Sequence[Question]], tokenizer: "PreTrainedTokenizerBase", context: int) -> int:
    """Tokens after which a generated answer is cut off by default; see `evaluate_questions`."""
    answers = [answer for questions in sets for answer in encode_answers(questions, tokenizer, context)]
    return longest_answer(answers)


def longest_answer(answers: Iterable[Encoded]) -> int:
    """Tokens that are enough for an answer half as long again as the longest of `answers`."""
    return math.ceil(1.5 * max((answer.supervised for answer in answers), default=0)) + 8


def _record(index: int, question: Question, scores: Sequence[Score], choice: bool) -> Record:
    answer, paraphrased, *perturbed = scores
    probabilities = [m.probability(s.total, s.tokens) for s in scores]
    given, wrong = probabilities[0], probabilities[2:]
    return {
        "index": index,
        "question": question.question,
        "answer": question.answer,
        "probability": m.choice_probability(given, [given, *wrong]) if choice else given,
        "truth_ratio": m.truth_ratio(paraphrased.mean, [s.mean for s in perturbed]) if perturbed else None,
        "logp_mean": answer.mean,
        "tokens": answer.tokens,
        "paraphrased_probability": probabilities[1],
        "perturbed_probabilities": wrong,
        "generated": None,
        "rouge_l_recall": None,
    }


def _summary(records: Mapping[str, Sequence[Record]]) -> dict[str, float]:
    metrics: dict[str, float] = {}
    for name, rows in records.items():
        metrics[f"{name}_probability"] = fmean(r["probability"] for r in rows)
        if ratios := _present(rows, "truth_ratio"):
            metrics[f"{name}_truth_ratio"] = median(ratios)
            if name != FORGET:
                metrics[f"{name}_truth_score"] = fmean(map(m.truth_score, ratios))
        if recalls := _present(rows, "rouge_l_recall"):
            metrics[f"{name}_rouge_l_recall"] = fmean(recalls)
    for name in ("extraction_strength", "exact_memorization"):
        if FORGET in records and (shares := _present(records[FORGET], name)):
            metrics[f"{FORGET}_{name}"] = fmean(shares)
    if FORGET in records and (broken := _present(records[FORGET], "degenerate")):
        metrics["degeneration"] = fmean(broken)
    if all(term in metrics for term in m.UTILITY_TERMS):
        metrics["model_utility"] = m.model_utility(metrics)
    return metrics


def _forget_quality(rows: Sequence[Record], retrained: Sequence[Record]) -> float:
    if [r["question"] for r in rows] != [r["question"] for r in retrained]:
        raise UserError(
            f"the retrained model's records are of other forget questions ({len(retrained)}) than this benchmark's "
            f"({len(rows)}); evaluate the retrained model on the same benchmark and split."
        )
    return m.forget_quality(_present(rows, "truth_ratio"), _present(retrained, "truth_ratio"))


def _present(rows: Sequence[Record], key: str) -> list[float]:
    return [r[key] for r in rows if r.get(key) is not None]
