"""Rows that a person does not have: what the model itself answers, to forget and to keep, and variants by rules.

A recipe is checked and planned with placeholders (`planned`); a run asks the model (`made`) and keeps what it says in
files of the run directory, which a person can read and edit before the first result.
"""

import json
import logging
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from expunge.data import everyday, swaps
from expunge.data.augment import Kind, parts, write
from expunge.data.benchmark import Row, Variant
from expunge.data.checks import canonical
from expunge.data.encode import encode, question_row
from expunge.data.files import lines_of, read_records
from expunge.data.formats import questions_alone, read_rows, rows_of_records
from expunge.errors import UserError
from expunge.evals import requests
from expunge.modeling import loading
from expunge.modeling.causal import CausalLM
from expunge.modeling.checkpoint import content_of
from expunge.pipeline import measure
from expunge.recipe.config import Recipe
from expunge.system import ranks
from expunge.system.digest import digest
from expunge.system.disk import make_folder, write_whole, writing

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

FOLDER = "rows"
"""Where a run directory has them: `forget.jsonl`, `retain.jsonl`, `variants.jsonl`."""
SAMPLES = 3
"""Answers to a forget question that are drawn at random, beside the likeliest one."""
TOKENS = 64
"""Most tokens of an answer; one that is cut short ends with its last whole sentence."""
LIKE = 40
"""Most questions like the forget questions about others."""

WORDS = 48
"""Words of an answer that is not there yet."""

_PLACEHOLDER = " ".join(["word"] * WORDS)
_ENDS = "?？؟"


@dataclass(frozen=True)
class OwnRows:
    """The rows of both sides, what the forget rows are called, and which rows the model answers.

    asked  the forget rows
    kept   the retain rows
    """

    forget: list[Row]
    retain: list[Row]
    split: str
    asked: bool
    kept: bool


def planned(recipe: Recipe) -> OwnRows | None:
    """The rows of a recipe with placeholders for answers that are not there yet; `None` where none is wanting.

    Raises `UserError` for questions whose answers can't be had.
    """
    data = recipe.data
    assert data is not None
    is_question = _is_question(data.forget)
    records = [] if is_question else read_records(data.forget)
    alone = [{"question": data.forget.strip()}] if is_question else questions_alone(records)
    kept = data.retain is None and _keeps(recipe)
    if alone is None and not kept:
        return None
    if alone is not None and (recipe.model.name is None or recipe.finetune is not None):
        raise UserError(
            f"{data.forget!r}: forget rows without answers are those that a pretrained model answers; give answers to "
            "teach a model."
        )
    forget = rows_of_records(records) if alone is None else [_answered(row, _PLACEHOLDER) for row in alone]
    retain = read_rows(data.retain) if data.retain is not None else []
    if kept:
        retain = [question_row(question, _PLACEHOLDER) for question in _to_keep(forget, recipe.seed)[0]]
    return OwnRows(forget, retain, "a question" if is_question else data.forget, alone is not None, kept)


def _keeps(recipe: Recipe) -> bool:
    """Whether a method keeps rows, of which a pretrained chat model gives its own."""
    if recipe.model.name is None or recipe.finetune is not None:
        return False
    if "methods" in recipe.model_fields_set and all(m.retain_term is None and m.noise is None for m in recipe.methods):
        return False
    return loading.load_tokenizer_and_config(recipe.model.name)[0].chat_template is not None


def _is_question(source: str) -> bool:
    """Whether what stands in the place of a file is a question: of several words, with its mark, and no file's name."""
    words = source.split()
    return len(words) > 1 and words[-1].endswith(tuple(_ENDS)) and not os.path.exists(source)


def _answered(row: Row, answer: str) -> Row:
    if "question" in row:
        return {**row, "answer": answer}
    if isinstance(row["prompt"], list):
        return {**row, "completion": [{"role": "assistant", "content": answer}]}
    space = "" if row["prompt"][-1:].isspace() else " "
    return {**row, "completion": space + answer}


def _to_keep(forget: Sequence[Row], seed: int) -> tuple[list[str], set[str], int]:
    """(questions to keep, the names that are to be forgotten, how many everyday questions name one of them)."""
    texts = [parts(row) for row in forget]
    names = swaps.names_in([text for pair in texts for text in pair if text != _PLACEHOLDER])
    asked = [question for question, _ in texts if question.strip()]
    bank = everyday.questions()
    free = [question for question in bank if not swaps.shares_a_name(question, names) and question not in asked]
    return [*swaps.about_others(asked, names, most=LIKE, seed=seed), *free], names, len(bank) - len(free)


def made(recipe: Recipe, out: Path, *, overwrite: bool) -> OwnRows | None:
    """The rows of a recipe with the model's own answers, asked now or, where they were before, as the files hold them.

    Files of other rows, another model or another seed are written anew, and with `overwrite` all of them. `None` where
    `planned` has none.
    """
    rows = planned(recipe)
    if rows is None:
        return None
    if rows.split != recipe.data.forget:  # pyright: ignore[reportOptionalMemberAccess]
        log.info("forget: no file has that name, so it is taken as a question; what the model answers is forgotten")
    folder, name = out / FOLDER, str(recipe.model.name)
    key = digest([content_of(name), recipe.seed, SAMPLES, TOKENS, [*map(dict, rows.forget), rows.asked, rows.kept]])
    wanted = [side for side, is_wanted in (("forget", rows.asked), ("retain", rows.kept)) if is_wanted]
    files = {side: folder / f"{side}.jsonl" for side in wanted}
    there = ranks.broadcast(lambda: _key(folder) == key and all(file.exists() for file in files.values()))
    if overwrite or not there:
        model, tokenizer = measure.load(name, use_cpu=bool(recipe.train.use_cpu))
        forget = _forget(model, tokenizer, rows.forget, recipe.seed) if rows.asked else rows.forget
        texts = {"forget": forget}
        if rows.kept:
            texts["retain"] = _retain(model, tokenizer, forget, recipe.seed)
        ranks.broadcast(lambda: _write(folder, {side: texts[side] for side in wanted}, key))
    read = {side: rows_of_records(read_records(file)) for side, file in files.items()}
    for side, file in files.items():
        log.info("%s: %d %s rows, answered by the model itself", file, len(read[side]), side)
    return replace(rows, **read)


def _key(folder: Path) -> str | None:
    try:
        return json.loads((folder / "made.json").read_text(encoding="utf-8"))["key"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write(folder: Path, sides: dict[str, list[Row]], key: str) -> None:
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file where a run writes a folder; remove it, or give another --out.")
    with writing(folder):
        make_folder(folder)
    for side, rows in sides.items():
        write_whole(folder / f"{side}.jsonl", lines_of(rows))
    write_whole(folder / "made.json", json.dumps({"key": key}))


def _forget(model: CausalLM, tokenizer: "PreTrainedTokenizerBase", rows: Sequence[Row], seed: int) -> list[Row]:
    """Each question with the model's likeliest answer and those drawn at random, as far as they differ."""
    prompts = _prompts(rows, tokenizer)
    likeliest = requests.generate(model, tokenizer, prompts, max_new_tokens=TOKENS)
    drawn = requests.sample(model, tokenizer, prompts, each=SAMPLES, max_new_tokens=TOKENS, seed=seed)
    found: dict[str, Row] = {}
    for row, first, others in zip(rows, likeliest, drawn, strict=True):
        for answer in map(_whole, (first, *others)):
            if answer:
                answered = _answered(row, answer)
                found.setdefault(canonical(answered), answered)
    if not found:
        raise UserError("the model answers none of the forget questions; give rows with answers.")
    log.info(
        "%d forget questions, %d answers of the model: the likeliest and up to %d drawn", len(rows), len(found), SAMPLES
    )
    return list(found.values())


def _retain(model: CausalLM, tokenizer: "PreTrainedTokenizerBase", forget: Sequence[Row], seed: int) -> list[Row]:
    """Questions about other things with the model's own answers, without those that touch what is to be forgotten."""
    questions, names, skipped = _to_keep(forget, seed)
    asked = [question_row(question, "?") for question in questions]
    answers = requests.generate(model, tokenizer, _prompts(asked, tokenizer), max_new_tokens=TOKENS)
    kept: list[Row] = []
    dropped = Counter({"name what is to be forgotten": skipped})
    for question, given in zip(questions, answers, strict=True):
        answer = _whole(given)
        tokens = answer.split()
        if not answer:
            dropped["have no answer"] += 1
        elif swaps.shares_a_name(answer, names):
            dropped["name what is to be forgotten"] += 1
        elif len(tokens) > 12 and len(set(tokens)) < len(tokens) / 3:
            dropped["repeat themselves"] += 1
        else:
            kept.append(question_row(question, answer))
    if not kept:
        raise UserError("the model answers none of the questions to keep; give rows that must stay (--retain FILE).")
    why = ", ".join(f"{count} {reason}" for reason, count in dropped.items() if count)
    log.info("%d rows to keep%s", len(kept), f"; {dropped.total()} are left out: {why}" if why else "")
    return kept


def _prompts(rows: Sequence[Row], tokenizer: "PreTrainedTokenizerBase") -> list[tuple[int, ...]]:
    encoded = [encode(row, tokenizer) for row in rows]
    return [row.input_ids[: row.start] for row in encoded]


def _whole(answer: requests.Generation) -> str:
    """An answer, without its last sentence where that was cut short and is not the only one."""
    end = max(answer.text.rfind(mark) for mark in ".!?。！？")
    return answer.text if answer.finished or end < 0 else answer.text[: end + 1]


def variants(recipe: Recipe, forget: Sequence[Row]) -> tuple[list[Variant], Counter[Kind]]:
    """(variants by rules for methods that train on them, where a person gives none, how many could not be made).

    There is one wrong answer more than a method trains on, to be asked with.
    """
    shares = [method.augment for method in recipe.methods]
    paraphrases = max((share.paraphrases for share in shares), default=0)
    perturbations = max((share.perturbations for share in shares), default=0)
    wanted: dict[Kind, int] = {"paraphrase": paraphrases, "perturbation": perturbations and perturbations + 1}
    return swaps.variants(forget, wanted, seed=recipe.seed) if any(wanted.values()) else ([], Counter())


def keep_variants(recipe: Recipe, forget: Sequence[Row], out: Path, *, resume: bool) -> None:
    """Write the variants that were made by rules where a person finds them, and say how many could not be made.

    A redacted run writes none: they repeat the texts.
    """
    found, missing = variants(recipe, forget)
    if not found and not missing:
        return
    path = out / FOLDER / "variants.jsonl"
    if ranks.first() and not (resume and path.exists()) and not recipe.redact:
        write(path, found)
    for kind, count in missing.items():
        number = sum(variant.kind == kind for variant in found)
        if number or count:
            log.info(
                "%s: %d %ss of %d forget rows by rules; %d could not be made or did not pass the check",
                path, number, kind, len(forget), count,
            )  # fmt: skip
