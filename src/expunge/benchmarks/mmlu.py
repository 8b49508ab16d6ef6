"""MMLU (arXiv 2009.03300): multiple choice after five solved examples, as lm-evaluation-harness's task `mmlu` asks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from expunge.data.benchmark import Choices, Row
from expunge.data.cells import text_of
from expunge.data.files import SourceRecord
from expunge.data.source import Source
from expunge.errors import UserError, did_you_mean

HUB_ID = "cais/mmlu"
REMEDY = (
    "put mmlu_all_val.json there, and for every subject dev/<subject>_dev.csv, both from the hub data set " + HUB_ID
)
LETTERS = "ABCD"

DESCRIPTION = "The following are multiple choice questions (with answers) about {subject}.\n\n"
QUESTION = "{question}\nA. {a}\nB. {b}\nC. {c}\nD. {d}\nAnswer:"
BETWEEN = "\n\n"


@dataclass(frozen=True, slots=True)
class MultipleChoice:
    """One question of `subject` (`abstract_algebra`) with its four choices and the index of the right one."""

    subject: str
    question: str
    choices: tuple[str, str, str, str]
    answer: int


def probe(
    questions: Sequence[MultipleChoice],
    dev: Mapping[str, Sequence[MultipleChoice]],
    *,
    shots: int = 5,
    name: str = "mmlu",
) -> Choices:
    """Every question after the first `shots` examples in `dev` of its subject, with the letters as choices.

    Raises `UserError` for a subject that has fewer examples.
    """
    for subject in dict.fromkeys(item.subject for item in questions):
        solved = dev.get(subject, ())
        if len(solved) < shots:
            hint = "" if solved else did_you_mean(subject, dev)
            raise UserError(
                f"{name}: {subject} has {len(solved)} of the {shots} examples that stand before its questions; "
                f"add them to its dev file, or ask for fewer shots.{hint}"
            )
    choices = [choice_rows(item, dev.get(item.subject, ())[:shots]) for item in questions]
    return Choices(name, choices, [item.answer for item in questions])


def choice_rows(item: MultipleChoice, examples: Sequence[MultipleChoice]) -> list[Row]:
    """A row for each letter that may follow the question, after the `examples` with theirs."""
    head = DESCRIPTION.format(subject=item.subject.replace("_", " "))
    solved = [_asked(example) + _letter(example.answer) for example in examples]
    prompt = head + BETWEEN.join([*solved, _asked(item)])
    return [{"prompt": prompt, "completion": _letter(i)} for i in range(len(LETTERS))]


def load(path: str | Path, *, shots: int = 5) -> Choices:
    """The questions of `<path>/mmlu_all_val.json`, with examples from `<path>/dev/<subject>_dev.csv`.

    Raises `UserError` for a file that is missing or has other columns.
    """
    source = Source.at(path, title="MMLU", hub_id=HUB_ID, remedy=REMEDY, key="evaluate.mmlu")
    questions = [read_item(cells, where) for where, cells in source.read("mmlu_all_val.json")]
    subjects = dict.fromkeys(item.subject for item in questions)
    dev = {s: [_of_csv(record, s) for record in source.read(f"dev/{s}_dev.csv")] for s in subjects}
    return probe(questions, dev, shots=shots)


def read_item(cells: Any, where: str) -> MultipleChoice:
    """A question from its columns: `subject`, `question`, `choices` (a list) and `answer` (0 to 3).

    `where` opens the message of the `UserError` for a column that is missing or of another kind.
    """
    match cells:
        case {
            "subject": str(subject),
            "question": str(question),
            "choices": [str(a), str(b), str(c), str(d)],
            "answer": 0 | 1 | 2 | 3 | "0" | "1" | "2" | "3" as answer,
        }:
            for text in (subject, question, a, b, c, d):
                text_of(text, "a cell", where, may_be_empty=True)
            return MultipleChoice(subject, question, (a, b, c, d), int(answer))
    raise UserError(
        f"{where} is not one of MMLU's questions: it needs a subject, a question, four choices and an answer from "
        f"0 to 3; take the file from the hub data set {HUB_ID}."
    )


def _of_csv(record: SourceRecord, subject: str) -> MultipleChoice:
    where, cells = record
    choices = [cells.get(f"choice{i}") for i in range(len(LETTERS))]
    return read_item({**cells, "subject": subject, "choices": choices}, where)


def _asked(item: MultipleChoice) -> str:
    a, b, c, d = item.choices
    return QUESTION.format(question=item.question.strip(), a=a, b=b, c=c, d=d)


def _letter(index: int) -> str:
    return f" {LETTERS[index]}"
