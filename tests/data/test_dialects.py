"""Rows in the formats of other libraries are read, or refused in one sentence that says why."""

import json
from pathlib import Path
from typing import Any

import pytest

from expunge.benchmarks.custom import of_rows
from expunge.data.encode import encode
from expunge.data.formats import normalise, read_rows
from expunge.errors import UserError
from tests.data.templates import tokenizer_of

HUMAN, GPT = {"from": "human", "value": "Who?"}, {"from": "gpt", "value": "Ann."}
USER, SAID = {"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Ann."}
OTHER = {"role": "assistant", "content": "No idea."}

READ: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "alpaca": (
        {"instruction": "Who wrote it?", "input": "", "output": "Ann."},
        {"question": "Who wrote it?", "answer": "Ann."},
    ),
    "alpaca without input": ({"instruction": "Who?", "output": "Ann."}, {"question": "Who?", "answer": "Ann."}),
    "alpaca with input": (
        {"instruction": "Who wrote it?", "input": "A poem.", "output": "Ann."},
        {"question": "Who wrote it?\n\nA poem.", "answer": "Ann."},
    ),
    "sharegpt": ({"conversations": [HUMAN, GPT]}, {"messages": [USER, SAID]}),
    "sharegpt in messages": ({"messages": [HUMAN, GPT]}, {"messages": [USER, SAID]}),
    "sharegpt with roles": ({"conversations": [USER, SAID]}, {"messages": [USER, SAID]}),
    "sharegpt with a system prompt and tools": (
        {"conversations": [HUMAN, GPT], "system": "Be brief.", "tools": '[{"name": "look"}]'},
        {"messages": [{"role": "system", "content": "Be brief."}, USER, SAID], "tools": [{"name": "look"}]},
    ),
    "preferences as text": (
        {"prompt": "Who? ", "chosen": "No idea.", "rejected": "Ann."},
        {"prompt": "Who? ", "completion": "Ann.", "preferred": "No idea."},
    ),
    "preferences of messages": (
        {"prompt": [USER], "chosen": [OTHER], "rejected": [SAID]},
        {"prompt": [USER], "completion": [SAID], "preferred": "No idea."},
    ),
    "preferences with the prompt in both": (
        {"chosen": [USER, OTHER], "rejected": [USER, SAID]},
        {"prompt": [USER], "completion": [SAID], "preferred": "No idea."},
    ),
    "preferences with the prompt beside both": (
        {"prompt": "Who?", "chosen": [USER, OTHER], "rejected": [USER, SAID]},
        {"prompt": [USER], "completion": [SAID], "preferred": "No idea."},
    ),
    "preferences of messages after a text": (
        {"prompt": "Who?", "chosen": [OTHER], "rejected": [SAID]},
        {"prompt": [USER], "completion": [SAID], "preferred": "No idea."},
    ),
    "tokens": (
        {"input_ids": [5, 6, 7, 0, 0], "labels": [-100, 6, 7, -100, -100], "attention_mask": [1, 1, 1, 0, 0]},
        {"input_ids": [5, 6, 7], "labels": [-100, 6, 7]},
    ),
    "tokens that are all supervised": ({"input_ids": [5, 6]}, {"input_ids": [5, 6], "labels": [5, 6]}),
    "tokens padded on the left": (
        {"input_ids": [0, 5, 6], "labels": [-100, -100, 6], "attention_mask": [0, 1, 1]},
        {"input_ids": [5, 6], "labels": [-100, 6]},
    ),
}


@pytest.mark.parametrize("name", READ)
def test_records_are_read_as_rows(name: str, tmp_path: Path) -> None:
    record, row = READ[name]
    assert normalise(record, "here") == row
    assert normalise(row, "here") | {"preferred": row.get("preferred")} == row | {"preferred": row.get("preferred")}
    (tmp_path / "rows.jsonl").write_text(json.dumps(record) + "\n", encoding="utf-8")
    assert read_rows(tmp_path / "rows.jsonl") == [row]


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "two formats": (
        {"instruction": "Who?", "output": "Ann.", "text": "Who? Ann."},
        "has text, and instruction and output too, which are two rows' columns; drop one",
    ),
    "a speaker": ({"conversations": [{"from": "narrator", "value": "x"}, GPT]}, "[0] is from 'narrator'; known are"),
    "no answer": ({"conversations": [HUMAN]}, "the last message of conversations has the role 'user'"),
    "an empty output": ({"instruction": "Who?", "output": " "}, "output is empty; fill it in"),
    "half of a preference": ({"prompt": "Who?", "chosen": "Ann."}, "the column 'rejected' is missing"),
    "preferences without a prompt": (
        {"chosen": "Q: Who? A: No idea.", "rejected": "Q: Who? A: Ann."},
        "chosen and rejected are texts without a prompt",
    ),
    "preferences of two prompts": (
        {"chosen": [{"role": "user", "content": "What?"}, OTHER], "rejected": [USER, SAID]},
        "differ before their last message",
    ),
    "preferences beside another prompt": (
        {"prompt": "What?", "chosen": [USER, OTHER], "rejected": [USER, SAID]},
        "prompt is no message of chosen and rejected",
    ),
    "answers alone": ({"chosen": [OTHER], "rejected": [SAID]}, "have no message before the answer; give the prompt"),
    "texts in place of tokens": ({"input_ids": "abc"}, "input_ids must be a list of whole numbers, got text"),
    "a token below 0": ({"input_ids": [5, -1]}, "input_ids[1] is -1; a token must be at least 0"),
    "the first token below 0": ({"input_ids": [-1, 5]}, "input_ids[0] is -1; a token must be at least 0"),
    "fewer labels": ({"input_ids": [5, 6], "labels": [5]}, "labels has 1 numbers and input_ids 2; give as many"),
    "labels that are shifted": ({"input_ids": [5, 6], "labels": [6, -100]}, "labels[0] is 6 where input_ids has 5"),
    "nothing supervised": ({"input_ids": [5, 6], "labels": [5, -100]}, "no token after the first is supervised"),
    "holes": ({"input_ids": [5, 6, 7], "attention_mask": [1, 0, 1]}, "attention_mask hides tokens between others"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_records_that_say_too_little_are_refused(name: str) -> None:
    record, sentence = REFUSED[name]
    with pytest.raises(UserError) as error:
        normalise(record, "rows.jsonl:3")
    assert str(error.value).startswith("rows.jsonl:3") and sentence in str(error.value)


def test_tokens_are_what_their_text_is_encoded_as() -> None:
    chat_tokenizer = tokenizer_of("byte-level", "chatml")
    turns = [USER, SAID, {"role": "user", "content": "Where?"}, {"role": "assistant", "content": "Here."}]
    expected = encode({"messages": turns}, chat_tokenizer, assistant_turns="all")
    assert expected.given, "the conversation has two answers"
    labels = [-100] * len(expected)
    for first, end in expected.spans:
        labels[first:end] = expected.input_ids[first:end]
    row = normalise({"input_ids": list(expected.input_ids), "labels": labels}, "here")
    assert encode(row, chat_tokenizer) == expected


def test_a_run_needs_text_and_one_answer_to_keep() -> None:
    tokens = [normalise({"input_ids": [1, 2]}, "here")]
    with pytest.raises(UserError, match="forget: row 0 is token ids, which evaluation can't ask"):
        of_rows(tokens, [], split="own", seed=0)
    text, preference = [{"question": "Who?", "answer": "Ann."}], [normalise(READ["preferences as text"][0], "here")]
    with pytest.raises(UserError, match="retain: row 0 has chosen and rejected, of which the rejected answer"):
        of_rows(text, preference, split="own", seed=0)
    assert of_rows(preference, [{"text": "Of Bob."}], split="own", seed=0).forget[0]["preferred"] == "No idea."


def test_text_files_are_one_text_each(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("Of Ann.\n\nAnd more.", encoding="utf-8")
    assert read_rows(tmp_path / "b.txt") == [{"text": "Of Ann.\n\nAnd more."}]
    (tmp_path / "a.txt").write_text("Of Bob.", encoding="utf-8")
    assert [row["text"] for row in read_rows(tmp_path)] == ["Of Bob.", "Of Ann.\n\nAnd more."]
    (tmp_path / "c.txt").write_text("", encoding="utf-8")
    with pytest.raises(UserError, match=r"c\.txt: text is empty"):
        read_rows(tmp_path)
    (tmp_path / "rows.jsonl").write_text('{"text": "x"}', encoding="utf-8")
    assert read_rows(tmp_path) == [{"text": "x"}], "beside data, a text is a note about it"
