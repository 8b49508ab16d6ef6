"""Detours to a forgotten fact: through another fact, by a part of a name, late in a conversation.

The benchmark knows the facts behind its rows, so that an answer is checked by them alone. Sources: two-hop questions
after Yang et al. 2024, arXiv 2402.16837; conversations that close in after Li et al. 2024, arXiv 2408.15221.
"""

import math
from collections.abc import Sequence
from statistics import fmean
from typing import TYPE_CHECKING

from expunge.data.benchmark import Benchmark, Detour, Row
from expunge.data.encode import QUESTION_FORMAT, Encoded, encode, question_row
from expunge.evals import requests
from expunge.evals.tofu import longest_answer
from expunge.modeling.causal import CausalLM
from expunge.stress.attack import Clock, Victim
from expunge.stress.outcome import Outcome, Point

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

QUICK_ROWS = 32
"""Facts that are asked for where a rough answer will do, spread over the forget rows."""

Candidates = list[Encoded]
"""The right answer to a question and after it the wrong ones, all behind the same prompt."""


def reasoning(victim: Victim) -> list[Outcome]:
    """Measure the facts that the model reaches by each kind of way.

    `greedy answers`: the share of facts whose value a greedy answer states. `right among wrong`: the probability of the
    right answer among that and the question's wrong ones, which are alike to a model that knows nothing; counted from
    their chance, and in the mean over the ways of a kind, since the luckiest of several guesses is none.
    Ways that do not fit into the context are left out. Where the benchmark knows no detours, there is no outcome.
    """
    clock = Clock()
    ways = ways_to_ask(victim.benchmark, quick=victim.quick)
    if not ways:
        return []
    model, tokenizer = victim.load()
    context = requests.context_length(model)
    asked = [(way, _candidates(way, tokenizer)) for way in ways]
    fitting = [(way, texts) for way, texts in asked if max(map(len, texts)) <= context]
    ways, texts = [way for way, _ in fitting], [texts for _, texts in fitting]
    stated = _by_kind(ways, _stated(model, tokenizer, ways, texts))
    points = tuple(Point(kind, fmean(map(max, facts))) for kind, facts in stated.items())
    greedy = Outcome("reasoning", "greedy answers", "way", "share of facts stated", points, clock.lap())
    chosen = _by_kind(ways, _chosen(model, texts))
    points = tuple(Point(kind, max(0.0, fmean(map(fmean, facts)))) for kind, facts in chosen.items())
    measure = "probability of the right answer, from chance"
    return [greedy, Outcome("reasoning", "right among wrong", "way", measure, points, clock.lap())]


def ways_to_ask(benchmark: Benchmark, *, quick: bool) -> list[Detour]:
    """The detours, the plain ones among them; `quick`: to some facts, the first of each kind."""
    rows = sorted({detour.row for detour in benchmark.detours})
    rows = rows[:: max(1, len(rows) // QUICK_ROWS)][:QUICK_ROWS] if quick else rows
    found: dict[tuple[int, str, int], Detour] = {}
    for number, detour in enumerate(benchmark.detours):
        if detour.row in rows:
            found.setdefault((detour.row, detour.kind, 0 if quick else number), detour)
    return list(found.values())


def lacks(benchmark: Benchmark) -> str | None:
    """Say why a benchmark's rows can't be so attacked."""
    return None if benchmark.detours else f"{benchmark.name} has no other ways to ask for its facts"


def row_of(way: Detour, answer: str, *, chats: bool) -> Row:
    """The question with an answer, after the turns before it; without a chat template they are one text."""
    turns = [(each.question, each.answer) for each in way.before]
    if not turns:
        return question_row(way.question.question, answer)
    if chats:
        turns = [*turns, (way.question.question, answer)]
        said = [({"role": "user", "content": q}, {"role": "assistant", "content": a}) for q, a in turns]
        return {"messages": [message for turn in said for message in turn]}
    ask, tell = QUESTION_FORMAT
    before = [ask.format(question=q) + tell.format(answer=a) for q, a in turns]
    prompt = "\n\n".join([*before, ask.format(question=way.question.question)])
    return {"prompt": prompt, "completion": tell.format(answer=answer)}


def _candidates(way: Detour, tokenizer: "PreTrainedTokenizerBase") -> Candidates:
    answers = (way.question.answer, *way.question.perturbed_answers)
    return [encode(row_of(way, answer, chats=bool(tokenizer.chat_template)), tokenizer) for answer in answers]


def _stated(
    model: CausalLM, tokenizer: "PreTrainedTokenizerBase", ways: Sequence[Detour], texts: Sequence[Candidates]
) -> list[float]:
    """Whether the greedy answer to each question holds the value: 0 or 1."""
    right = [text for text, *_ in texts]
    prompts = [text.input_ids[: text.start] for text in right]
    answers = requests.generate(model, tokenizer, prompts, max_new_tokens=longest_answer(right), progress=False)
    return [float(way.value.lower() in answer.text.lower()) for way, answer in zip(ways, answers, strict=True)]


def _chosen(model: CausalLM, texts: Sequence[Candidates]) -> list[float]:
    """The probability of the right answer to each question among all, from 0 at their chance to 1."""
    scores = iter(requests.score(model, [text for each in texts for text in each], progress=False))
    found = []
    for each in texts:
        right, *wrong = (next(scores).total for _ in each)
        chance = 1 / len(each)
        probability = 1 / (1 + sum(math.exp(min(700.0, other - right)) for other in wrong))
        found.append((probability - chance) / (1 - chance))
    return found


def _by_kind(ways: Sequence[Detour], values: Sequence[float]) -> dict[str, list[list[float]]]:
    """The values of every kind: a list for each fact."""
    found: dict[str, dict[int, list[float]]] = {}
    for way, value in zip(ways, values, strict=True):
        found.setdefault(way.kind, {}).setdefault(way.row, []).append(value)
    return {kind: list(of_row.values()) for kind, of_row in found.items()}
