"""Your own forget and retain rows as a benchmark: what is asked of the model is what the rows hold."""

import logging
import random
import re
from collections.abc import Sequence
from dataclasses import replace

from expunge.data.augment import Kind, parts
from expunge.data.benchmark import Benchmark, Membership, Probe, Question, Row, Variant
from expunge.data.checks import check_disjoint, check_kept
from expunge.data.encode import place
from expunge.data.formats import keeping, read_rows
from expunge.errors import UserError

log = logging.getLogger(__name__)

HELD_OUT = 0.1
"""The share of retain rows that is never trained on, so that what is kept is measured on something unseen."""

QUESTIONS = 200
"""Most rows of a set that are asked about."""

_SPACE = re.compile(r"\s")


def load(*, forget: str, retain: str | None, seed: int) -> Benchmark:
    """`of_rows` of what both sources hold, which `read_rows` reads."""
    return of_rows(read_rows(forget), read_rows(retain) if retain else [], split=forget, seed=seed)


def of_rows(forget: list[Row], retain: list[Row], *, split: str, seed: int) -> Benchmark:
    """Hold a tenth of `retain` out for evaluation when there are at least ten rows.

    The questions of `forget` are the forget rows, those of `retain` are retain rows that training sees, and those of
    `held_out` are retain rows that it does not; membership inference tells `forget` from `held_out`.
    Raises `UserError` for rows that stand on both sides, for token ids, of which nothing can be asked, and for retain
    rows with a rejected answer.
    """
    for name, rows in (("forget", forget), ("retain", retain)):
        if (i := next((i for i, row in enumerate(rows) if "input_ids" in row), None)) is not None:
            raise UserError(
                f"{name}: {place(i, rows[i])} is token ids, which evaluation can't ask questions of; give text, or "
                "train on token ids with UnlearnTrainer in Python."
            )
    check_kept(retain)
    check_disjoint(forget, retain)
    order = list(range(len(retain)))
    random.Random(seed).shuffle(order)
    held_out = [retain[i] for i in sorted(order[: int(len(order) * HELD_OUT)])]
    kept = [retain[i] for i in sorted(order[int(len(order) * HELD_OUT) :])]
    sets = {"forget": forget, "retain": kept, "held_out": held_out}
    probes: list[Probe] = [Membership("membership", forget, held_out)] if held_out else []
    return Benchmark(
        name="custom",
        split=split,
        forget=forget,
        retain=kept,
        questions={name: _questions(rows, seed) for name, rows in sets.items() if rows},
        choice_sets=frozenset(),
        probes=probes,
    )


def ask_with(variants: Sequence[Variant], benchmark: Benchmark, *, seed: int) -> tuple[Benchmark, list[Variant]]:
    """(the benchmark whose forget questions know other answers, the variants that are left to train on).

    Of every row, the first paraphrase answers in other words, and the first half of the wrong answers are those that
    the truth ratio compares it with. Training does not see them, unless a row has no other of the kind.
    A raw text asks nothing that could be answered wrongly: all of its variants are left.
    """
    of_row: dict[tuple[int, Kind], list[Variant]] = {}
    for variant in variants:
        of_row.setdefault((variant.row, variant.kind), []).append(variant)
    asked: dict[tuple[int, Kind], list[str]] = {}
    left: list[Variant] = []
    for (row, kind), variants_of_row in of_row.items():
        count = 0
        if "text" not in benchmark.forget[row]:
            count = 1 if kind == "paraphrase" else max(1, len(variants_of_row) // 2)
            asked[row, kind] = [parts(variant.text)[1].strip() for variant in variants_of_row[:count]]
        left += variants_of_row[count:] or variants_of_row
    log.info("augment: %d are asked with, %d are left to train on", sum(map(len, asked.values())), len(left))
    questions = [
        replace(
            question,
            paraphrased_answer=next(iter(asked.get((i, "paraphrase"), [])), None),
            perturbed_answers=tuple(asked.get((i, "perturbation"), [])),
        )
        for i, question in zip(_chosen(benchmark.forget, seed), benchmark.questions["forget"], strict=True)
    ]
    return replace(benchmark, questions={**benchmark.questions, "forget": questions}), left


def _chosen(rows: Sequence[Row], seed: int) -> list[int]:
    return sorted(random.Random(seed).sample(range(len(rows)), min(QUESTIONS, len(rows))))


def _questions(rows: Sequence[Row], seed: int) -> list[Question]:
    return [_question(rows[i]) for i in _chosen(rows, seed)]


def _question(row: Row) -> Question:
    if "text" in row:
        # A text asks nothing; its first half asks for its second. Scripts without spaces are cut between characters.
        text = row["text"].strip()
        half = len(text) // 2
        cut = space.start() if (space := _SPACE.search(text, half, half + 40)) else half
        halves = keeping(row, {"prompt": text[:cut], "completion": text[cut:], "passage": True})
        return Question(text[:cut], text[cut:].strip(), row=halves)
    return Question(*parts(row), row=row)
