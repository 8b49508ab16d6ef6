"""Row → token ids and the supervised span: exactly the answer and its end token.

Knows the tokenizer and its chat template; knows nothing of batches, files or losses.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from jinja2 import TemplateError

from expunge.data.benchmark import Row
from expunge.errors import UserError

Overflow = Literal["error", "truncate", "split"]
"""What to do with a sequence that is longer than the context."""

QUESTION_FORMAT = ("Question: {question}\nAnswer:", " {answer}")
"""How a question and its answer are written for a tokenizer without a chat template."""

_MARK = "@@the answer stands here@@"
"""Rendered in the answer's place to see what a chat template writes before and after it."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """Token ids of one sequence; positions `start..len-1` are supervised, and `start` is at least 1.

    `input_ids[:start]` is also the prompt from which an answer is generated, and the last id, unless the sequence was
    truncated, the token at which generation ends.
    """

    input_ids: tuple[int, ...]
    start: int

    def __len__(self) -> int:
        return len(self.input_ids)


def prepare_tokenizer(tokenizer: Any) -> Any:
    """Check for an end token and character offsets, and let the end token stand in for a missing padding token.

    Changes `tokenizer` itself and returns it. Padding never hides a real end token: labels are set by position, not
    by id. Raises `UserError` for a tokenizer that can't be used.
    """
    name = tokenizer.name_or_path or "the tokenizer"
    if not tokenizer.is_fast:
        raise UserError(
            f"{name} does not say which characters a token stands for, which is how the answer is found; "
            "use its fast version (one with a tokenizer.json)."
        )
    if tokenizer.eos_token_id is None:
        raise UserError(f"{name} has no end-of-sequence token; set tokenizer.eos_token before training.")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def encode(row: Row, tokenizer: Any) -> Encoded:
    """Encode one row of any supported format.

    With a chat template, the answer's span is found in the rendered conversation, so whatever the template puts
    before it (role headers, an empty thinking block) belongs to the prompt, and of what it puts after it
    only the end-of-turn token is supervised. Raw `text` is supervised from its second token (the first after a
    beginning-of-sequence token): nothing predicts the first. A question whose answer opens with given words (`opened`)
    has those in its prompt.

    Raises `UserError` if the chat template is missing, refuses the conversation or rewrites its last message.
    """
    if "text" in row:
        return _finish(tokenizer(row["text"], verbose=False)["input_ids"], 1, tokenizer)
    messages = _as_messages(row)
    if messages is not None and tokenizer.chat_template:
        return _encode_chat(messages, tokenizer, row.get("opening", ""))
    if messages is not None and "question" not in row:
        raise UserError(
            "the rows hold messages but the tokenizer has no chat template; give prompt and completion as text, "
            "or use a tokenizer with a chat template."
        )
    if "opening" in row:
        break_ = "\n" if row["opening"] and not row["question"].endswith("\n") else ""
        prompt = f"{row['question']}{break_}{row['opening']}"
        completion = QUESTION_FORMAT[1].format(answer=row["answer"])
    elif "question" in row:
        prompt = QUESTION_FORMAT[0].format(question=row["question"])
        completion = QUESTION_FORMAT[1].format(answer=row["answer"])
    else:
        prompt, completion = row["prompt"], row["completion"]
    ids, start = _span(prompt + completion, len(prompt), tokenizer, add_special_tokens=True)
    return _finish(ids, start, tokenizer)


def encode_rows(
    rows: Sequence[Row],
    tokenizer: Any,
    *,
    max_length: int | None = None,
    overflow: Overflow = "error",
    overlap: int = 0,
    name: str = "data",
) -> list[Encoded]:
    """Encode all rows of one set, and hold them to the context length (tokens).

    What is longer is an error, or `truncate` cuts its end off, or `split` makes several sequences of it: raw text in
    consecutive parts, each of which begins with the last `overlap` tokens of the one before; anything else can't be
    split and is an error.

    Raises `UserError` with the number of rows that are too long, and what `encode` raises, with the row.
    """
    encoded: list[Encoded] = []
    for i, row in enumerate(rows):
        try:
            encoded.append(encode(row, tokenizer))
        except UserError as error:
            raise UserError(f"{name}: row {i}: {error}") from error
    if max_length is None:
        return encoded
    if overflow == "split":
        texts = ["text" in row for row in rows]
        encoded = [
            part for e, text in zip(encoded, texts, strict=True) for part in _parts(e, max_length, overlap, text)
        ]
    too_long = [i for i, e in enumerate(encoded) if len(e) > max_length]
    if too_long and overflow != "truncate":
        longest = max(len(encoded[i]) for i in too_long)
        raise UserError(
            f"{name}: {len(too_long)} of {len(encoded)} rows are longer than {max_length} tokens "
            f"(first: row {too_long[0]}, longest: {longest}); shorten them, set train.overflow to truncate (split, for "
            "raw text), or raise train.max_length as far as the model's context allows."
        )
    for i in too_long:
        if encoded[i].start >= max_length:
            raise UserError(
                f"{name}: row {i} has a prompt of {encoded[i].start} tokens, which leaves no room for an answer in "
                f"{max_length}; shorten it, or raise train.max_length."
            )
        encoded[i] = Encoded(encoded[i].input_ids[:max_length], encoded[i].start)
    return encoded


def _parts(encoded: Encoded, length: int, overlap: int, is_text: bool) -> Iterator[Encoded]:
    if not is_text or len(encoded) <= length:
        yield encoded
        return
    ids = encoded.input_ids
    for first in range(0, len(ids) - overlap, length - overlap):
        # The first token of a part has nothing before it that could predict it.
        if len(part := ids[first : first + length]) > 1:
            yield Encoded(part, 1)


def question_row(question: str, answer: str) -> Row:
    """The row that asks `question` and is answered by `answer`."""
    return {"question": question, "answer": answer}


def opened(row: Row, opening: str) -> Row:
    """The same question, whose answer opens with the words `opening`, which are given and not supervised.

    They stand at the beginning of the assistant's turn; without a chat template on the line after the question, which
    is then written as it is. With no words (`""`) the answer follows the question itself.
    """
    return {**row, "opening": opening}


def with_answer(row: Row, answer: str) -> Row:
    """The same row answered by `answer`. Raises `UserError` for raw text, which asks nothing."""
    if "question" in row:
        return {**row, "answer": answer}
    if "messages" in row:
        return {"messages": [*row["messages"][:-1], {"role": "assistant", "content": answer}]}
    if "prompt" in row and isinstance(row["prompt"], list):
        return {**row, "completion": [{"role": "assistant", "content": answer}]}
    if "prompt" in row:
        space = " " if row["completion"][:1].isspace() else ""
        return {**row, "completion": space + answer}
    raise UserError("raw text asks nothing that could be refused; dpo needs prompts and answers, so use npo instead.")


def _as_messages(row: Row) -> list[dict[str, str]] | None:
    if "messages" in row:
        return row["messages"]
    if "question" in row:
        return [{"role": "user", "content": row["question"]}, {"role": "assistant", "content": row["answer"]}]
    if isinstance(row["prompt"], list):
        return [*row["prompt"], *row["completion"]]
    return None


def _encode_chat(messages: list[dict[str, str]], tokenizer: Any, opening: str) -> Encoded:
    answer = messages[-1]["content"]
    if opening:
        answer = f"{opening} {answer}"
        messages = [*messages[:-1], {**messages[-1], "content": answer}]
    text = _render(messages, tokenizer)
    # Searching the text for the answer would find a short one in the end-of-turn marker ("im" in "<|im_end|>").
    before, mark, after = _render([*messages[:-1], {**messages[-1], "content": _MARK}], tokenizer).rpartition(_MARK)
    end = len(text) - len(after)
    rendered = text[len(before) : end]  # the answer as it is, or without the white space around it
    if not (mark and text == before + rendered + after and rendered.strip() == answer.strip()):
        raise UserError(
            f"the chat template of {tokenizer.name_or_path or 'the tokenizer'} does not render the last message as it "
            f"is written ({answer[:40]!r}…), so its tokens can't be found; give prompt and completion as text instead."
        )
    ids, start = _span(text[:end], len(before) + len(opening), tokenizer, add_special_tokens=False)
    return Encoded((*ids, _end_token(after, tokenizer)), start)


def _render(messages: list[dict[str, str]], tokenizer: Any) -> str:
    try:
        return tokenizer.apply_chat_template(messages, tokenize=False)
    except TemplateError as error:
        name = tokenizer.name_or_path or "the tokenizer"
        raise UserError(f"the chat template of {name} refuses the conversation ({error}); change its roles.") from error


def _end_token(after: str, tokenizer: Any) -> int:
    """The first special token that the template writes after the answer.

    Not `all_special_ids`: many tokenizers list there only the tokens with a name (eos, pad, …), not `<|eot_id|>`.
    """
    added = tokenizer.added_tokens_decoder
    tail = tokenizer(after, add_special_tokens=False)["input_ids"]
    return next((t for t in tail if t in added and added[t].special), tokenizer.eos_token_id)


def _span(text: str, start_char: int, tokenizer: Any, *, add_special_tokens: bool) -> tuple[list[int], int]:
    """Ids of `text` and the first token that reaches past `start_char` (a token may straddle the border)."""
    # Not verbose: what is too long is told by `encode_rows`, or cut on purpose.
    encoding = tokenizer(text, return_offsets_mapping=True, add_special_tokens=add_special_tokens, verbose=False)
    ids, ends = encoding["input_ids"], [end for _, end in encoding["offset_mapping"]]
    first = next((i for i, end in enumerate(ends) if end > start_char), len(ids))
    return ids, max(first, 1)


def _finish(ids: list[int], start: int, tokenizer: Any) -> Encoded:
    if not ids or ids[-1] != tokenizer.eos_token_id:
        ids = [*ids, tokenizer.eos_token_id]
    return Encoded(tuple(ids), start)
