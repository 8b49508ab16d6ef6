"""Records in the columns of other libraries → one of our formats: Alpaca, ShareGPT, preferences, token ids.

instruction, output (and input)        question and answer
conversations                          messages, of `from` and `value`, or of role and content
prompt, chosen, rejected               the rejected answer after its prompt, and what is preferred to it
chosen, rejected                       the same of two conversations that differ in their last message
input_ids (and labels, attention_mask) token ids, of which those in labels are supervised
"""

from collections.abc import Callable
from typing import Any

from expunge.data.benchmark import Row
from expunge.data.cells import kind_of, messages_in, of_json, text_of
from expunge.errors import UserError

IGNORE = -100
"""The label of a token that is not supervised, as in PyTorch and transformers."""

PREFERRED = "preferred"
"""Column with the answer that a row prefers to its own; objectives with a refusal read it (DPO)."""

_ROLES = {
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "assistant", "chatgpt", "bard", "model"), "assistant"),
    "system": "system",
    **dict.fromkeys(("tool", "observation"), "tool"),
}
"""Names of the speakers in ShareGPT's data sets."""


def _alpaca(record: dict[str, Any], where: str) -> Row:
    question = text_of(record["instruction"], "instruction", where)
    if given := text_of(record.get("input") or "", "input", where, may_be_empty=True):
        question = f"{question}\n\n{given}"
    return {"question": question, "answer": text_of(record["output"], "output", where)}


def _sharegpt(record: dict[str, Any], where: str) -> Row:
    messages = conversation(record["conversations"], "conversations", where)
    if record.get("system"):
        messages = [{"role": "system", "content": text_of(record["system"], "system", where)}, *messages]
    return {"messages": messages}


def conversation(value: Any, name: str, where: str) -> list[dict[str, Any]]:
    """Messages that end with the assistant's, each of role and content, or of ShareGPT's `from` and `value`."""
    spoken = of_json(value, where, name)
    if isinstance(spoken, list):
        spoken = [_spoken(turn, f"{name}[{i}]", where) for i, turn in enumerate(spoken)]
    return messages_in(spoken, name, where, ends_with_assistant=True)


def _spoken(turn: Any, name: str, where: str) -> Any:
    if not isinstance(turn, dict) or "role" in turn or not {"from", "value"} <= turn.keys():
        return turn
    role = _ROLES.get(str(turn["from"]).lower())
    if role is None:
        raise UserError(f"{where}: {name} is from {str(turn['from'])[:40]!r}; known are {', '.join(_ROLES)}.")
    others = {key: cell for key, cell in turn.items() if key not in ("from", "value")}
    return {"role": role, "content": turn["value"], **others}


def _preference(record: dict[str, Any], where: str) -> Row:
    """The rejected answer is what must go, and the chosen one what is preferred to it."""
    prompt = record.get("prompt")
    chosen, rejected = (of_json(record[name], where, name) for name in ("chosen", "rejected"))
    if isinstance(chosen, str) and isinstance(rejected, str) and isinstance(prompt, str):
        row = {"prompt": text_of(prompt, "prompt", where, may_be_empty=True)}
        row |= {"completion": text_of(rejected, "rejected", where)}
        return row | {PREFERRED: text_of(chosen, "chosen", where).strip()}
    if prompt is None and isinstance(chosen, str):
        raise UserError(
            f"{where}: chosen and rejected are texts without a prompt, so nobody knows where their answers begin; "
            "give the prompt in a column of its own."
        )
    before = messages_in(prompt, "prompt", where) if isinstance(prompt, list) else []
    *asked, preferred = conversation(chosen, "chosen", where)
    *asked_too, answer = conversation(rejected, "rejected", where)
    if asked != asked_too:
        raise UserError(
            f"{where}: chosen and rejected differ before their last message; give one prompt with two answers."
        )
    if isinstance(prompt, str) and not asked:
        before = [{"role": "user", "content": text_of(prompt, "prompt", where)}]
    elif isinstance(prompt, str) and prompt.strip() not in (m.get("content", "").strip() for m in asked):
        raise UserError(
            f"{where}: prompt is no message of chosen and rejected, which have a prompt too; drop one of them."
        )
    elif before and asked[: len(before)] == before:
        before = []  # written out once more in both
    if not (before or asked):
        raise UserError(f"{where}: chosen and rejected have no message before the answer; give the prompt.")
    said = text_of(preferred.get("content"), "the last message of chosen", where)
    return {"prompt": [*before, *asked], "completion": [answer], PREFERRED: said}


def _tokens(record: dict[str, Any], where: str) -> Row:
    """The tokens up to the last supervised one, without padding, and their labels."""
    ids = _numbers(record, "input_ids", where)
    if (wrong := next((i for i, token in enumerate(ids) if token < 0), None)) is not None:
        raise UserError(f"{where}: input_ids[{wrong}] is {ids[wrong]}; a token must be at least 0.")
    labels = _numbers(record, "labels", where) if record.get("labels") is not None else ids
    mask = _numbers(record, "attention_mask", where) if record.get("attention_mask") is not None else [1] * len(ids)
    for name, cell in (("labels", labels), ("attention_mask", mask)):
        if len(cell) != len(ids):
            raise UserError(f"{where}: {name} has {len(cell)} numbers and input_ids {len(ids)}; give as many.")
    kept = [i for i, shown in enumerate(mask) if shown]
    if kept and kept[-1] - kept[0] >= len(kept):
        raise UserError(f"{where}: attention_mask hides tokens between others; it may hide padding at the ends alone.")
    ids, labels = ([cell[i] for i in kept] for cell in (ids, labels))
    for i, (token, label) in enumerate(zip(ids, labels, strict=True)):
        if label not in (IGNORE, token):
            raise UserError(
                f"{where}: labels[{i}] is {label} where input_ids has {token}; labels repeat the tokens that are "
                f"supervised, in their own places, and are {IGNORE} elsewhere."
            )
    end = max((i + 1 for i, label in enumerate(labels) if i and label != IGNORE), default=0)
    if not end:
        raise UserError(
            f"{where}: no token after the first is supervised; give labels with an answer, or drop the row."
        )
    return {"input_ids": ids[:end], "labels": labels[:end]}


def _numbers(record: dict[str, Any], name: str, where: str) -> list[int]:
    value = of_json(record[name], where, name)
    value = value.tolist() if hasattr(value, "tolist") else value  # arrays and tensors
    if not isinstance(value, list) or not all(type(number) in (int, bool) for number in value):
        given = "a list of others" if isinstance(value, list) and value else kind_of(value)
        raise UserError(f"{where}: {name} must be a list of whole numbers, got {given}.")
    return [int(number) for number in value]


DIALECTS: dict[tuple[str, ...], Callable[[dict[str, Any], str], Row]] = {
    ("instruction", "output"): _alpaca,
    ("conversations",): _sharegpt,
    ("chosen", "rejected"): _preference,
    ("input_ids",): _tokens,
}
"""The columns that tell a dialect, and what makes a row of ours of such a record."""
