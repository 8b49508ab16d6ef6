"""Row → token ids and which of them are supervised: exactly what is answered, each with its end token."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, cycle, islice, pairwise
from typing import TYPE_CHECKING, Any, Literal, cast

from expunge.data.benchmark import Row
from expunge.data.conversation import (
    Messages,
    check_read,
    generated,
    given_of,
    marks_generation,
    messages_of,
    render,
    turns,
)
from expunge.data.dialects import IGNORE
from expunge.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from expunge.objectives.base import Wanted

Overflow = Literal["error", "truncate", "split"]
"""Ways to handle a sequence that is longer than the context."""

AssistantTurns = Literal["all", "last"]
"""Which of the assistant's messages of a conversation are supervised."""

QUESTION_FORMAT = ("Question: {question}\nAnswer:", " {answer}")
"""How a question and its answer are written for a tokenizer without a chat template."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """Token ids of one sequence. Supervised are the positions from `start` (at least 1) on that are not `given`.

    `given` are (first position, one past the last) of what stands between the answers of a conversation, in order; the
    last token is always supervised. `input_ids[:start]` is also the prompt from which a single answer is generated, and
    the last id, unless the sequence was cut, the token at which generation ends.

    `wanted`, as long as `input_ids`, holds what the supervised positions should say in place of their own tokens.
    """

    input_ids: tuple[int, ...]
    start: int
    given: tuple[tuple[int, int], ...] = ()
    wanted: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def spans(self) -> list[tuple[int, int]]:
        """(first position, one past the last) of each supervised stretch; nothing predicts position 0."""
        edges = [max(self.start, 1), *chain(*self.given), len(self)]
        return list(zip(edges[::2], edges[1::2], strict=True))

    @property
    def supervised(self) -> int:
        """Number of supervised tokens."""
        return sum(end - first for first, end in self.spans)

    @property
    def targets(self) -> tuple[int, ...]:
        """The supervised tokens, or those that are wanted in their place."""
        ids = self.wanted or self.input_ids
        return tuple(chain(*(ids[first:end] for first, end in self.spans)))

    def wanting(self, tokens: Sequence[int]) -> "Encoded":
        """The same sequence, of which each supervised stretch should say `tokens`, over and over."""
        wanted = list(self.input_ids)
        for first, end in self.spans:
            wanted[first:end] = islice(cycle(tokens), end - first)
        return replace(self, wanted=tuple(wanted))

    def cut(self, length: int) -> "Encoded":
        """Keep the first `length` tokens, up to the last supervised one; `length` must exceed `start`."""
        assert length > self.start, "nothing supervised is left"
        if len(self) <= length:
            return self
        given = [(first, end) for first, end in self.given if first < length]
        if given and given[-1][1] >= length:
            length = given.pop()[0]
        return Encoded(self.input_ids[:length], self.start, tuple(given), self.wanted[:length])


def prepare_tokenizer(tokenizer: "PreTrainedTokenizerBase") -> Any:
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


def beginning(tokenizer: "PreTrainedTokenizerBase") -> tuple[int, ...]:
    """The tokens that the tokenizer puts before every text (a beginning-of-sequence token, mostly); often none."""
    return _tokens("a", tokenizer, begin=True)[2]


def encode(row: Row, tokenizer: "PreTrainedTokenizerBase", *, assistant_turns: AssistantTurns = "last") -> Encoded:
    """Encode one row of any supported format.

    With a chat template, the answer's span is found in the rendered conversation (where the template marks it with
    `{% generation %}`, that is the span), so whatever the template puts before it (role headers, an empty thinking
    block) belongs to the prompt, and of what it puts after it only the end-of-turn token is supervised. Of a
    conversation (`messages`) the assistant's last turn is supervised, or `all` of its turns. Raw `text` is supervised
    from its second token (the first after a beginning-of-sequence token): nothing predicts the first. A question whose
    answer opens with given words (`opened`) has those in its prompt.

    A text that begins with the tokenizer's beginning-of-sequence token, or ends with a special token, gets no second
    one: it has been through a template already.

    Raises `UserError` if the chat template is missing, refuses the conversation, rewrites an answer, or never reads
    something that the row says.
    """
    if "text" in row:
        return _encode_plain("", row["text"], tokenizer)
    if "input_ids" in row:
        return _encode_tokens(row["input_ids"], row["labels"])
    messages = messages_of(row)
    if messages is not None and tokenizer.chat_template:
        every = assistant_turns == "all" and "messages" in row
        return _encode_chat(messages, tokenizer, given_of(row), row.get("opening", ""), every=every)
    if messages is not None and ("question" not in row or given_of(row)):
        raise UserError(
            f"the rows hold {'messages' if 'question' not in row else 'tools or documents'} but the tokenizer has no "
            "chat template; give prompt and completion as text, or use a tokenizer with a chat template."
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
    return _encode_plain(prompt, completion, tokenizer)


def encode_rows(
    rows: Sequence[Row],
    tokenizer: "PreTrainedTokenizerBase",
    *,
    max_length: int | None = None,
    overflow: Overflow = "error",
    overlap: int = 0,
    assistant_turns: AssistantTurns = "last",
    wanted: "Wanted | None" = None,
    name: str = "data",
) -> list[Encoded]:
    """Encode all rows of one set, and hold them to the context length (tokens).

    What is longer is an error, or `truncate` cuts its end off, or `split` makes several sequences of it: raw text in
    consecutive parts, each of which begins as the tokenizer begins a text and repeats the last `overlap` tokens of the
    one before; anything else can't be split and is an error. With `wanted`, the tokens of that answer, over and over,
    are the targets in place of each answer's own.

    Raises `UserError` with the number of rows that are too long, and what `encode` raises, with the row and where it
    was read.
    """
    encoded: list[Encoded] = []
    for i, row in enumerate(rows):
        try:
            sequence = encode(row, tokenizer, assistant_turns=assistant_turns)
            encoded.append(sequence if wanted is None else sequence.wanting(answer_tokens(row, wanted, tokenizer)))
        except UserError as error:
            raise UserError(f"{name}: {place(i, row)}: {error}") from error
    if max_length is None:
        return encoded
    if overflow == "split":
        begin = beginning(tokenizer)
        if not 0 <= overlap < max_length - len(begin):
            raise UserError(f"train.overlap must be from 0 to {max_length - len(begin) - 1}, got {overlap}.")
        whole = zip(encoded, rows, strict=True)
        pairs = [
            (part, i)
            for i, (e, row) in enumerate(whole)
            for part in _parts(e, max_length, overlap, begin, "text" in row)
        ]
    else:
        pairs = [(e, i) for i, e in enumerate(encoded)]
    too_long = [(e, i) for e, i in pairs if len(e) > max_length]
    if too_long and overflow != "truncate":
        longest = max(len(e) for e, _ in too_long)
        raise UserError(
            f"{name}: {len(too_long)} of {len(rows)} rows are longer than {max_length} tokens "
            f"(first: {place(too_long[0][1], rows[too_long[0][1]])}, longest: {longest}); shorten them, set "
            "train.overflow to truncate (split, for raw text), or raise train.max_length as far as the model's context "
            "allows."
        )
    for e, i in too_long:
        if e.start >= max_length:
            raise UserError(
                f"{name}: {place(i, rows[i])} has a prompt of {e.start} tokens, which leaves no room for an answer in "
                f"{max_length}; shorten it, or raise train.max_length."
            )
    return [e if len(e) <= max_length else e.cut(max_length) for e, _ in pairs]


def place(number: int, row: Row | None) -> str:
    """A row as its owner finds it: its number in the set, and where it was read, where that is known."""
    where = getattr(row, "where", None)
    return f"row {number} ({where})" if where else f"row {number}"


def _parts(encoded: Encoded, length: int, overlap: int, begin: tuple[int, ...], is_text: bool) -> Iterator[Encoded]:
    if not is_text or len(encoded) <= length:
        yield encoded
        return
    ids, wanted = encoded.input_ids[len(begin) :], encoded.wanted[len(begin) :]
    room = length - len(begin)
    for first in range(0, len(ids) - overlap, room - overlap):
        # Without a beginning, the first token of a part has nothing before it that could predict it.
        if len(part := begin + ids[first : first + room]) > 1:
            yield Encoded(part, max(len(begin), 1), wanted=wanted and begin + wanted[first : first + room])


def shortened(encoded: Encoded, room: int, tokenizer: "PreTrainedTokenizerBase") -> Encoded:
    """The same answer after at most `room` tokens of its prompt: what the tokenizer begins with, and the prompt's end.

    Use where a prompt is a stretch of text, of which a model with a short context gets the end. Unchanged where `room`
    is too small for a prompt at all.
    """
    begin = beginning(tokenizer)
    kept = len(begin) if encoded.input_ids[: len(begin)] == begin else 0
    over = encoded.start - room
    if over <= 0 or room <= kept:
        return encoded
    assert not encoded.given
    return Encoded(encoded.input_ids[:kept] + encoded.input_ids[kept + over :], room)


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
    """The same row answered by `answer`, a conversation in its last turn. `UserError` for raw text: it asks nothing."""
    if "question" in row:
        return {**row, "answer": answer}
    if "messages" in row:
        return {**row, "messages": [*row["messages"][:-1], {"role": "assistant", "content": answer}]}
    if "prompt" in row and isinstance(row["prompt"], list):
        return {**row, "completion": [{"role": "assistant", "content": answer}]}
    if "prompt" in row:
        space = " " if row["completion"][:1].isspace() else ""
        return {**row, "completion": space + answer}
    what = "token ids have no answer" if "input_ids" in row else "raw text asks nothing"
    raise UserError(f"{what} that could be refused; dpo needs prompts and answers, so use npo instead.")


def refused(row: Row, answer: str, *, assistant_turns: AssistantTurns = "last") -> Row:
    """The same row with `answer` in place of every turn that is supervised; what tools said to those turns is gone."""
    if assistant_turns == "last" or "messages" not in row:
        return with_answer(row, answer)
    refusal = {"role": "assistant", "content": answer}
    kept = [refusal if m["role"] == "assistant" else m for m in row["messages"] if m["role"] != "tool"]
    return {**row, "messages": [m for before, m in pairwise([None, *kept]) if m is not before or m is not refusal]}


def answer_tokens(row: Row, wanted: "Wanted", tokenizer: "PreTrainedTokenizerBase") -> tuple[int, ...]:
    """The tokens of a wanted answer after the row's prompt, or on its own where the row asks nothing.

    Raises `UserError` for an answer of no tokens.
    """
    if "text" in row or "input_ids" in row:
        ids = (*_tokens(wanted.text, tokenizer, begin=False)[0], end_token(tokenizer))
    else:
        ids = encode(with_answer(row, wanted.text), tokenizer).targets
    if len(ids) == 1:
        raise UserError(f"the wanted answer {wanted.text!r} has no tokens; give words.")
    return ids if wanted.ends else ids[:-1]


# ---- tokens ----------------------------------------------------------------------------------------------------


def decoded(ids: Sequence[int], tokenizer: "PreTrainedTokenizerBase") -> str:
    """The text of tokens, without the special ones."""
    return cast(str, tokenizer.decode(list(ids), skip_special_tokens=True))


def end_token(tokenizer: "PreTrainedTokenizerBase") -> int:
    """The token that ends a text; every tokenizer that is prepared has one."""
    return cast(int, tokenizer.eos_token_id)


def _encode_tokens(ids: Sequence[int], labels: Sequence[int]) -> Encoded:
    """Tokens as they were given, of which those with a label are supervised, but for the first."""
    shown = [i for i, label in enumerate(labels) if i and label != IGNORE]
    gaps = tuple((a + 1, b) for a, b in pairwise(shown) if b > a + 1)
    return Encoded(tuple(ids), shown[0], gaps)


def _encode_plain(prompt: str, completion: str, tokenizer: "PreTrainedTokenizerBase") -> Encoded:
    """The completion after its prompt, begun as the tokenizer begins a text, and ended by a special token."""
    text = prompt + completion
    ids, offsets, begin = _tokens(text, tokenizer, begin=True)
    first = _between(len(prompt), len(text), offsets)[0] if prompt else 0
    first = max(first, len(begin), 1)  # nothing predicts what a text begins with
    if (end := _own_end(text, ids, offsets, first, len(ids), tokenizer)) is not None:
        return Encoded(tuple(ids[:end]), first)
    return Encoded((*ids, end_token(tokenizer)), first)


def _encode_chat(
    messages: Messages, tokenizer: "PreTrainedTokenizerBase", given: dict[str, Any], opening: str, *, every: bool
) -> Encoded:
    if opening:
        messages = [*messages[:-1], {**messages[-1], "content": f"{opening} {messages[-1]['content']}"}]
    text = render(messages, tokenizer, given)
    check_read(messages, tokenizer, given, text)
    marked = marks_generation(tokenizer, given) and not opening
    said = generated(messages, tokenizer, given) if marked else turns(messages, tokenizer, given, text, every=every)
    if opening:
        said = [(said[0][0] + len(opening), said[0][1])]
    ids, offsets, _ = _tokens(text, tokenizer, begin=False)
    special_ids = specials(tokenizer)
    spans: list[tuple[int, int, bool]] = []
    for begun, ended in said if every else said[-1:]:
        first, last = _between(begun, ended, offsets)
        # A template's own marks may have the end of turn in them. What is found by its words has it only where the
        # token takes the white space before it as a part of itself (`lstrip`).
        taken = last > first and ids[last - 1] in special_ids and offsets[last - 1][1] > ended
        ended_at = _own_end(text[:ended], ids, offsets, first, last, tokenizer) if marked else None
        spans.append((first, last if ended_at is None else ended_at, taken or ended_at is not None))
    return _supervising(ids, spans, tokenizer)


def _supervising(ids: list[int], spans: list[tuple[int, int, bool]], tokenizer: "PreTrainedTokenizerBase") -> Encoded:
    """Supervise the `spans` of `ids` (first, one past the last, whether the end token is inside), and their end tokens.

    That is the first special token that the template writes after the last of them, or else the tokenizer's. Nothing
    after it is kept. An earlier one has none where the template writes it at the end of a conversation alone.
    """
    special_ids = specials(tokenizer)
    *_, (first, last, ended) = spans
    end = last - 1 if ended else next((i for i in range(last, len(ids)) if ids[i] in special_ids), None)
    last_token = end_token(tokenizer) if end is None else ids[end]
    ids = [*ids[:last], last_token] if end is None else ids[: end + 1]
    supervised: list[tuple[int, int]] = []
    for (first, last, ended), (following, *_) in pairwise([*spans, (len(ids), len(ids), True)]):
        following = max(following, last)
        special = next((i for i in range(last, following) if ids[i] in special_ids), None)
        if not ended and special is not None and ids[special] == last_token:
            last = special + 1
        first = max(first, supervised[-1][1] if supervised else 1)
        if supervised and first == supervised[-1][1]:
            supervised[-1] = (supervised[-1][0], max(first, last))  # nothing stands between two turns
        elif last > first:
            supervised.append((first, last))
    return Encoded(tuple(ids), supervised[0][0], tuple((end, first) for (_, end), (first, _) in pairwise(supervised)))


def _tokens(
    text: str, tokenizer: "PreTrainedTokenizerBase", *, begin: bool
) -> tuple[list[int], list[tuple[int, int]], tuple[int, ...]]:
    """(ids of `text`, the characters of each, those at their head that the tokenizer begins a text with, if it does).

    `begin` puts these there unless `text` has them. What a tokenizer puts after a text is left to the caller.
    """
    # Not verbose: what is too long is reported by `encode_rows`, or cut on purpose.
    options: dict[str, Any] = {"return_offsets_mapping": True, "return_special_tokens_mask": True, "verbose": False}
    encoding = tokenizer(text, add_special_tokens=begin, **options)
    ids, offsets, added = encoding["input_ids"], encoding["offset_mapping"], encoding["special_tokens_mask"]
    first = next((i for i, extra in enumerate(added) if not extra), len(ids))
    end = next((i for i in range(first, len(ids)) if added[i]), len(ids))
    head = tuple(ids[:first])
    if tuple(ids[first : first + len(head)]) == head:
        return ids[first:end], offsets[first:end], head
    return ids[:end], offsets[:end], head


def _between(begun: int, ended: int, offsets: list[tuple[int, int]]) -> tuple[int, int]:
    """(first, one past the last) of the tokens that the characters from `begun` to `ended` are in.

    Decided by where tokens end: of white space, some tokenizers say that it begins where it ends. A token may straddle.
    """
    first = next((i for i, (_, end) in enumerate(offsets) if end > begun), len(offsets))
    last = next((i for i, (_, end) in enumerate(offsets) if end > ended), len(offsets))
    if last < len(offsets) and offsets[last][0] < ended:
        last += 1
    return first, max(first, last)


def _own_end(
    text: str,
    ids: list[int],
    offsets: list[tuple[int, int]],
    first: int,
    last: int,
    tokenizer: "PreTrainedTokenizerBase",
) -> int | None:
    """One past the special token, among those from `first` to `last`, with which `text` ends but for white space."""
    special_ids = specials(tokenizer)
    end = next((i + 1 for i in reversed(range(first, last)) if ids[i] in special_ids), None)
    return end if end is not None and not text[offsets[end - 1][1] :].strip() else None


def specials(tokenizer: "PreTrainedTokenizerBase") -> set[int]:
    """The special tokens, those without a name too: many tokenizers' `all_special_ids` lacks `<|eot_id|>`."""
    return {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}
