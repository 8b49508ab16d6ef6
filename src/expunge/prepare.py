"""What must hold before training can begin, and the encoded sets that it begins with.

Knows objectives' needs, rows, the tokenizer and the model's config; needs no weights, so it can run before any load.
"""

from collections.abc import Sequence
from typing import Any

import torch

from expunge.data.benchmark import Row
from expunge.data.checks import check_disjoint, check_not_empty
from expunge.data.encode import AssistantTurns, Overflow, encode_rows, refused
from expunge.data.formats import keeping, normalise
from expunge.data.pairs import Sets
from expunge.errors import UserError
from expunge.objectives import Objective


def check_terms(
    objective: Objective | None,
    retain: Objective | None,
    *,
    forget_rows: Sequence[Row],
    retain_rows: Sequence[Row],
    refusals: Sequence[str],
    config: Any,
) -> None:
    """Raise `UserError` for objectives that can't do what is asked of them with these rows and this model."""
    if objective is not None:
        check_not_empty(forget_rows, "forget")
    if retain is not None and not len(retain_rows):
        raise UserError(
            f"retain objective {type(retain).__name__} has no rows to keep; give a retain set, or a method without a "
            f"retain objective."
        )
    if objective is not None and objective.needs.refusal and not refusals:
        raise UserError("dpo prefers a refusal to the answer, and there are no refusals; give some, or use npo.")
    layers = config.get_text_config().num_hidden_layers
    for term in (objective, retain):
        if term is not None and term.needs.layer is not None and term.needs.layer >= layers:
            raise UserError(
                f"method: layer {term.needs.layer} of {type(term).__name__} is out of range; the model has layers "
                f"0 to {layers - 1}."
            )
    if objective is not None and retain is not None:
        check_disjoint(forget_rows, retain_rows)


def encode_sets(
    objective: Objective | None,
    retain: Objective | None,
    *,
    forget_rows: Sequence[Row],
    retain_rows: Sequence[Row],
    refusals: Sequence[str],
    tokenizer: Any,
    config: Any,
    max_length: int | None,
    overflow: Overflow,
    seed: int,
    overlap: int = 0,
    assistant_turns: AssistantTurns = "all",
) -> Sets:
    """Encode the rows of every role that the objectives use; refusals are drawn for the forget rows by `seed`.

    A row that says what is `preferred` to its answer has that in place of a refusal.
    Sequences are held to `max_length`, or to the model's context length without it, as `encode_rows` says.
    Raises `UserError` for what is no row of a known format, too, since rows come from Python as well.
    """
    forget = _checked(forget_rows, "forget") if objective is not None else []
    kept = _checked(retain_rows, "retain") if retain is not None else []
    limit = max_length or getattr(config.get_text_config(), "max_position_embeddings", None)
    if limit is not None and not 0 <= overlap < limit:
        raise UserError(f"train.overlap is {overlap} tokens of parts of at most {limit}; choose 0 to {limit - 1}.")
    options: dict[str, Any] = {
        "max_length": limit,
        "overflow": overflow,
        "overlap": overlap,
        "assistant_turns": assistant_turns,
    }
    refusal_rows: list[Row] = []
    if objective is not None and objective.needs.refusal:
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randint(len(refusals), (len(forget),), generator=generator).tolist()
        said = [row.get("preferred", refusals[int(i)]) for row, i in zip(forget, drawn, strict=True)]
        refusal_rows = [
            refused(row, text, assistant_turns=assistant_turns) for row, text in zip(forget, said, strict=True)
        ]
    return Sets(
        forget=encode_rows(forget, tokenizer, name="forget", **options),
        retain=encode_rows(kept, tokenizer, name="retain", **options),
        refusal=encode_rows(refusal_rows, tokenizer, name="refusals", **options),
    )


def _checked(rows: Sequence[Row], name: str) -> list[Row]:
    """The rows as `read_rows` would give them, with the columns that a benchmark adds."""
    return [
        keeping(
            row, {**normalise(row, f"{name}: row {i}"), **{c: row[c] for c in ("opening", "preferred") if c in row}}
        )
        for i, row in enumerate(rows)
    ]
