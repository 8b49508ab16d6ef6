"""Conversation → text, by the tokenizer's chat template, and the characters that the assistant says in it.

Nothing of a message is lost without a word: a key or a message that the template never reads is an error.
"""

import json
import re
from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import TYPE_CHECKING, Any

from expunge.data.benchmark import Row
from expunge.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Messages = list[dict[str, Any]]

RENDERED = ("tools", "documents")
"""Columns of a row that a chat template renders beside the messages."""

_MARK = "@@the answer stands here@@"
"""Rendered in a turn's place to see what a chat template writes before and after it."""
_REASONS = ("reasoning_content", "reasoning", "thinking")
_SAID = (*_REASONS, "tool_calls", "function_call")
"""Keys of an assistant message that hold its words beside `content`."""
_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
"""How a template marks what the assistant says; transformers searches for the same."""


def messages_of(row: Row) -> Messages | None:
    """The row as a conversation, without the keys that hold nothing; `None` for plain text."""
    if "messages" in row:
        messages = row["messages"]
    elif "question" in row:
        messages = [{"role": "user", "content": row["question"]}, {"role": "assistant", "content": row["answer"]}]
    elif isinstance(row["prompt"], list):
        messages = [*row["prompt"], *row["completion"]]
    else:
        return None
    return [{k: v for k, v in message.items() if v is not None} for message in messages]


def given_of(row: Row) -> dict[str, Any]:
    """Return what the template renders beside the messages."""
    return {name: row[name] for name in RENDERED if row.get(name)}


def said(message: Mapping[str, Any]) -> str:
    """The words of a message: what it reasons, what it says, then the tools that it calls, as JSON."""
    calls = message.get("tool_calls") or []
    words = [*(message.get(key) for key in _REASONS), message.get("content")]
    words += [json.dumps(call.get("function", call), ensure_ascii=False) for call in calls]
    return "\n".join(word for word in words if isinstance(word, str) and word)


def asked(messages: Sequence[Mapping[str, Any]]) -> int | None:
    """Which message asks what the last one answers: the user's last, else the one before it, if there is one."""
    before = range(len(messages) - 1)
    return next((i for i in reversed(before) if messages[i]["role"] == "user"), before[-1] if before else None)


def marks_generation(tokenizer: "PreTrainedTokenizerBase", given: Mapping[str, Any]) -> bool:
    """Whether the template itself says what the assistant generates."""
    return bool(_GENERATION.search(tokenizer.get_chat_template(None, given.get("tools"))))


def render(messages: Messages, tokenizer: "PreTrainedTokenizerBase", given: Mapping[str, Any], **options: Any) -> Any:
    """`apply_chat_template`, as text unless `options` say otherwise; `UserError` where the template can't."""
    try:
        return tokenizer.apply_chat_template(messages, **{"tokenize": False, **options}, **given)
    except Exception as error:  # a template is a program, and stops with whatever its author did not think of
        raise UserError(
            f"the chat template of {_name(tokenizer)} refuses the conversation ({_words(error)}); change "
            "its roles or keys."
        ) from error


def check_read(messages: Messages, tokenizer: "PreTrainedTokenizerBase", given: Mapping[str, Any], text: str) -> None:
    """Raise `UserError` for a key or a message without which the template renders the same `text`."""
    keys = (k for m in messages for k, v in m.items() if k not in ("role", "content") and v not in ("", [], {}))
    for key in dict.fromkeys(keys):
        if _renders([{k: v for k, v in m.items() if k != key} for m in messages], tokenizer, given) == text:
            raise _unread(f"the key {key!r} of the messages", tokenizer)
    for name in given:
        if _renders(messages, tokenizer, {k: v for k, v in given.items() if k != name}) == text:
            raise _unread(f"the column {name!r}", tokenizer)
    for i, message in enumerate(messages):
        content = message.get("content", "").strip()
        if (
            content not in text
            and _renders(_with(messages, i, {**message, "content": _MARK}), tokenizer, given) == text
        ):
            raise _unread(f"message {i} (of the role {message['role']!r})", tokenizer)


def turns(
    messages: Messages, tokenizer: "PreTrainedTokenizerBase", given: Mapping[str, Any], text: str, *, every: bool
) -> list[tuple[int, int]]:
    """(first character, one past the last) in `text` of what the assistant says, each turn; the last one only without
    `every`.

    What the template writes before a turn (role headers, an empty thinking block) and after it is none of it.
    Raises `UserError` for a turn that the template rewrites.
    """
    wanted = [i for i, m in enumerate(messages) if m["role"] == "assistant"] if every else [len(messages) - 1]
    spans: list[tuple[int, int]] = []
    for i in wanted:
        rich = any(messages[i].get(key) for key in _SAID)
        turn = (_rich_turn if rich else _plain_turn)(messages, i, tokenizer, given, text)
        if turn is None or (spans and turn[0] < spans[-1][1]):
            raise _rewritten(messages, i, tokenizer)
        spans.append(turn)
    return spans


def generated(
    messages: Messages, tokenizer: "PreTrainedTokenizerBase", given: Mapping[str, Any]
) -> list[tuple[int, int]]:
    """(first character, one past the last) of all that stands in the template's own `{% generation %}` marks."""
    from transformers.utils.chat_template_utils import render_jinja_template

    template = tokenizer.get_chat_template(None, given.get("tools"))
    options: dict[str, Any] = {**tokenizer.special_tokens_map, **given}
    rendered: Any = render_jinja_template(
        [messages], chat_template=template, return_assistant_tokens_mask=True, **options
    )
    spans = [(first, end) for first, end in rendered[1][0] if end > first]
    if not spans:
        raise UserError(
            f"the chat template of {_name(tokenizer)} marks nothing of the conversation as the assistant's; end it "
            "with a message of the role that the template marks."
        )
    return spans


def _plain_turn(
    messages: Messages, i: int, tokenizer: "PreTrainedTokenizerBase", given: Mapping[str, Any], text: str
) -> tuple[int, int] | None:
    """Where the content of a message stands: as it is, or without the white space around it."""
    content = messages[i].get("content", "")
    # Searching the text for the answer would find a short one in the end-of-turn marker ("im" in "<|im_end|>").
    rendered = render(_with(messages, i, {**messages[i], "content": _MARK}), tokenizer, given)
    before, mark, after = rendered.rpartition(_MARK)
    end = len(text) - len(after)
    inside = text[len(before) : end]
    is_plain = mark and text == before + inside + after and inside.strip() == content.strip()
    return (len(before), end) if is_plain else None


def _rich_turn(
    messages: Messages, i: int, tokenizer: "PreTrainedTokenizerBase", given: Mapping[str, Any], text: str
) -> tuple[int, int] | None:
    """Where a turn stands that calls tools or reasons: all that is other than where plain content stands in its place.

    Where the template refuses that (roles must alternate, but for tool calls), without the messages after it.
    """
    for shown in (messages, messages[: i + 1]):
        whole = text if shown is messages else _renders(shown, tokenizer, given)
        others = {key: cell for key, cell in messages[i].items() if key not in _SAID}
        marked = _renders(_with(shown, i, {**others, "content": _MARK}), tokenizer, given)
        if whole is None or marked is None or marked.count(_MARK) != 1:
            continue
        before, _, after = marked.partition(_MARK)
        first = _common(before, whole)
        end = len(whole) - _common(after[::-1], whole[first:][::-1])
        same = text.startswith(whole[:end])
        if (
            same
            and first >= _end_of_message(messages, i - 1, tokenizer, given, text)
            and _tells(whole[first:end], messages[i])
        ):
            return first, end
    return None


def _tells(text: str, message: Mapping[str, Any]) -> bool:
    """Whether all that a message says stands in `text`."""
    calls = [call.get("function", call) for call in message.get("tool_calls") or []]
    reasons = [message.get(key) for key in _REASONS]
    words = [message.get("content", ""), *reasons, *(call.get("name", "") for call in calls)]
    return all(word.strip() in text for word in words if isinstance(word, str))


def _end_of_message(
    messages: Messages, i: int, tokenizer: "PreTrainedTokenizerBase", given: Mapping[str, Any], text: str
) -> int:
    """Where in `text` the content of a message ends (0 before the first), or its end where that is not to be seen."""
    if i < 0:
        return 0
    if not messages[i].get("content", "").strip():
        return _end_of_message(messages, i - 1, tokenizer, given, text)
    marked = _renders(_with(messages, i, {**messages[i], "content": _MARK}), tokenizer, given)
    after = marked.rpartition(_MARK)[2] if marked and _MARK in marked else None
    return len(text) - len(after) if after is not None and text.endswith(after) else len(text)


def _common(a: str, b: str) -> int:
    """How many characters `a` and `b` begin with alike."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False)))


def _with(messages: Messages, i: int, message: dict[str, Any]) -> Messages:
    return [*messages[:i], message, *messages[i + 1 :]]


def _renders(messages: Messages, tokenizer: "PreTrainedTokenizerBase", given: Mapping[str, Any]) -> str | None:
    try:
        return render(messages, tokenizer, given)
    except UserError:
        return None


def _unread(what: str, tokenizer: "PreTrainedTokenizerBase") -> UserError:
    return UserError(
        f"the chat template of {_name(tokenizer)} does not read {what}, so what it says would be lost; drop it from "
        "the rows, or take a model whose template reads it."
    )


def _rewritten(messages: Messages, i: int, tokenizer: "PreTrainedTokenizerBase") -> UserError:
    last = i == len(messages) - 1
    which = "the last message" if last else f"message {i}"
    remedy = "" if last else "supervise the last turn alone (train.assistant_turns: last), or "
    return UserError(
        f"the chat template of {_name(tokenizer)} does not render {which} as it is written "
        f"({said(messages[i])[:40]!r}…), so its tokens can't be found; {remedy}give prompt and completion as text "
        "instead."
    )


def _words(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _name(tokenizer: "PreTrainedTokenizerBase") -> str:
    return tokenizer.name_or_path or "the tokenizer"
