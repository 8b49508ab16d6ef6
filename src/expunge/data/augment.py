"""Variants of the forget rows: the same facts in other words, and wrong answers to the same questions.

Reads them from a file that a person can edit or from the folder of ULD's authors, writes that file, and draws from
them.

    {"row": 3, "kind": "paraphrase", "question": "Which town is Ann Lee from?", "answer": "Ann Lee is from Oslo."}
    {"row": 3, "kind": "perturbation", "question": "Where was Ann Lee born?", "answer": "Ann Lee was born in Rome."}

`row` counts the forget rows from 0; the other columns are those of the forget row itself.
"""

import ast
import json
import logging
import random
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from expunge.data.benchmark import Row, Variant
from expunge.data.conversation import asked, given_of, said
from expunge.data.encode import question_row, with_answer
from expunge.data.files import SourceRecord, local_path, read_csv, read_records
from expunge.data.formats import PlacedRow, columns_of, keeping, normalise
from expunge.errors import UserError, did_you_mean
from expunge.system.disk import make_folder, write_whole, writing

log = logging.getLogger(__name__)

Kind = Literal["paraphrase", "perturbation"]
KINDS: tuple[Kind, ...] = ("paraphrase", "perturbation")


def choose(variants: Sequence[Variant], kind: Kind, per_row: int, *, seed: int) -> list[Row]:
    """At most `per_row` variants of `kind` for every forget row, in row order; none when `per_row` is 0.

    Each row is drawn for by itself, so what the other rows have changes nothing.
    """
    by_row: dict[int, list[Row]] = {}
    for variant in variants:
        if variant.kind == kind:
            by_row.setdefault(variant.row, []).append(variant.text)
    return [
        text
        for row, texts in sorted(by_row.items())
        for text in random.Random(f"{seed} {kind} {row}").sample(texts, min(per_row, len(texts)))
    ]


def read(path: str | Path, forget: Sequence[Row]) -> list[Variant]:
    """The variants of `forget` in a file of `write` (or edited by hand), or in a folder of ULD's CSV files.

    Repeated variants are left out, and so are paraphrases that are the row itself.

    Raises `UserError` for a path that does not exist, a line that is no variant of a forget row (with file and line),
    a wrong answer in a file that is the true one, and a folder that is about other questions.
    """
    path = local_path(path, "augment")
    if not path.exists():
        raise UserError(f"augment: {path} does not exist; write it with expunge augment, or leave augment out.")
    given = _read_folder(path, forget) if path.is_dir() else _read_file(path, forget)
    unchanged = {_key(Variant(i, "paraphrase", row)) for i, row in enumerate(forget)}
    distinct = {_key(variant): variant for variant in given}
    variants = [variant for key, variant in distinct.items() if key not in unchanged]
    for kind in KINDS:
        of_kind = [variant.row for variant in variants if variant.kind == kind]
        log.info("augment: %d %ss of %d of %d forget rows", len(of_kind), kind, len(set(of_kind)), len(forget))
    return variants


def write(path: Path, variants: Iterable[Variant]) -> None:
    """One JSON object a line, as `read` reads it; the file is replaced whole, never half-written."""
    with writing(path.parent):
        make_folder(path.parent)
    write_whole(path, "".join(map(line, variants)))


def line(variant: Variant) -> str:
    """The line of a variant in its file."""
    return json.dumps({"row": variant.row, "kind": variant.kind, **variant.text}, ensure_ascii=False) + "\n"


def parts(row: Row) -> tuple[str, str]:
    """The question and the answer of a row, as text; a raw text asks nothing and answers itself.

    Of a conversation only the user's last question and the last answer count.
    """
    if "question" in row:
        return row["question"], row["answer"]
    if "text" in row:
        return "", row["text"]
    if isinstance(row.get("prompt"), str):
        return row["prompt"].strip(), row["completion"].strip()
    messages = row.get("messages") or [*row["prompt"], *row["completion"]]
    question = asked(messages)
    return "" if question is None else said(messages[question]), said(messages[-1])


def reworded(row: Row, question: str, answer: str) -> Row:
    """The same row, of the same columns, with the parts given. What stands around them stays."""
    if "question" in row:
        return keeping(row, {**question_row(question, answer), **given_of(row)})
    if "text" in row:
        return {"text": answer}
    column = "messages" if "messages" in row else "prompt"
    before = row[column]
    if isinstance(before, str):
        # White space at the ends belongs to how prompts are put together, not to the question.
        head, tail = before[: len(before) - len(before.lstrip())], before[len(before.rstrip()) :]
        return with_answer({**row, "prompt": f"{head}{question}{tail}" if before.strip() else before}, answer)
    position = asked(before if column == "messages" else [*before, *row["completion"]])
    if position is not None:
        before = [*before[:position], {**before[position], "content": question}, *before[position + 1 :]]
    return with_answer({**row, column: before}, answer)


def _key(variant: Variant) -> tuple[int, Kind, str]:
    return variant.row, variant.kind, json.dumps(variant.text, sort_keys=True)


# ---- our file --------------------------------------------------------------------------------------------------


def _read_file(path: Path, forget: Sequence[Row]) -> list[Variant]:
    return [_variant(record, where, forget) for where, record in read_records(path)]


def _variant(record: Any, where: str, forget: Sequence[Row]) -> Variant:
    if not isinstance(record, dict):
        raise UserError(f"{where}: a variant is an object with row, kind and the columns of its row; write it as one.")
    row, kind = record.get("row"), record.get("kind")
    if kind not in KINDS:
        hint = did_you_mean(kind, KINDS) if isinstance(kind, str) else ""
        raise UserError(f"{where}: kind is {kind!r}; set it to {' or '.join(KINDS)}.{hint}")
    if type(row) is not int or not 0 <= row < len(forget):
        raise UserError(
            f"{where}: row is {row!r}; set it to the number of the forget row that is varied, 0 to {len(forget) - 1}."
        )
    text = normalise({name: cell for name, cell in record.items() if name not in ("row", "kind")}, where)
    if columns_of(text) != columns_of(forget[row]):
        raise UserError(
            f"{where} has the columns {' and '.join(columns_of(text))} but forget row {row} has "
            f"{' and '.join(columns_of(forget[row]))}; give a variant the columns of its row."
        )
    text = PlacedRow({**given_of(forget[row]), **text}, where)
    if kind == "perturbation" and parts(text)[1].strip() == parts(forget[row])[1].strip():
        raise UserError(
            f"{where}: this wrong answer is the true answer of forget row {row}; change it or drop the line."
        )
    return Variant(row, kind, text)


# ---- the folder of ULD's authors -------------------------------------------------------------------------------


def _read_folder(folder: Path, forget: Sequence[Row]) -> list[Variant]:
    """`forgetNN_paraphrase.csv` and `forgetNN_perturb.csv`: question, answer, question(s), list of answers; no header.

    The wrong answers exist for forget10 alone, of which the other splits are parts, so a question finds its row
    whatever the file is called. A question of forget01 has other paraphrases in every split's file; the file of the
    same split is taken: the one that knows most of the rows and, of several, the fewest others.
    """
    numbers = {question.strip(): i for i, row in reversed([*enumerate(forget)]) if (question := parts(row)[0])}
    tables, wrong = ([_read_csv(f) for f in sorted(folder.glob(f"*_{end}.csv"))] for end in ("paraphrase", "perturb"))
    tables.sort(key=lambda records: (-sum(cells[0].strip() in numbers for _, cells in records), len(records)))
    variants = [
        *_variants([record for records in tables[:1] for record in records], "paraphrase", numbers, forget),
        *_variants([record for records in wrong for record in records], "perturbation", numbers, forget),
    ]
    if not variants:
        names = sorted(file.name for file in folder.iterdir())
        listed = ", ".join(names[:8]) + (", …" if len(names) > 8 else "") or "nothing"
        raise UserError(
            f"augment: {folder} has no variants of these {len(forget)} forget rows (it holds {listed}); give the "
            "folder with forgetNN_paraphrase.csv and forgetNN_perturb.csv for the same questions, or a .jsonl file."
        )
    return sorted(variants, key=lambda variant: variant.row)


def _variants(
    records: Iterable[SourceRecord], kind: Kind, numbers: dict[str, int], forget: Sequence[Row]
) -> Iterator[Variant]:
    for where, cells in records:
        row = numbers.get(cells[0].strip())
        if row is None:
            continue  # of another split
        answers = _texts(cells[3], f"{where}: the fourth column")
        if kind == "paraphrase":
            questions = _texts(cells[2], f"{where}: the third column")
        else:
            questions = [parts(forget[row])[0].strip()] * len(answers)
        if len(questions) != len(answers):
            raise UserError(f"{where} has {len(questions)} questions but {len(answers)} answers; mend that line.")
        true = parts(forget[row])[1].strip()
        for question, answer in zip(questions, answers, strict=True):
            if question and answer and not (kind == "perturbation" and answer == true):
                yield Variant(row, kind, normalise(reworded(forget[row], question, answer), where))


def _read_csv(file: Path) -> list[SourceRecord]:
    """(file:line, four cells) from the very first line on; read with a header, the first question would be lost."""
    try:
        lines = read_csv(file)
    except OSError as error:
        raise UserError(f"{file} can't be read ({error.strerror or error}); get it again.") from None
    for where, cells in lines:
        if len(cells) != 4:
            raise UserError(
                f"{where} has {len(cells)} columns instead of question, answer, questions and answers; mend that line."
            )
    return list(lines)


def _texts(cell: str, where: str) -> list[str]:
    """A list of strings, stripped, from how Python writes one."""
    try:
        texts = ast.literal_eval(cell.strip())
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        texts = None
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise UserError(f"{where} is not a list of texts as Python writes one, like ['…', '…']; mend that line.")
    return [text.strip() for text in texts]
