"""Whatever the template and the tokenizer: exactly the answers and their end tokens are supervised."""

import copy
import json
import unicodedata
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken

from expunge.data.benchmark import Row
from expunge.data.encode import Encoded, beginning, encode, encode_rows, refused, shortened
from expunge.data.formats import normalise
from expunge.data.pairs import pad
from expunge.errors import UserError
from tests.data.templates import BACKENDS, TEMPLATES, TRIMS, WRITES_BOS, tokenizer_of


def _said(role: str, content: str | None, **keys: Any):
    return {"role": role, "content": content, **keys}


CALL = [{"type": "function", "function": {"name": "weather", "arguments": {"town": "London"}}}]
TOOL = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
USED = [
    _said("user", "Rain?"),
    _said("assistant", None, tool_calls=CALL),
    _said("tool", "No."),
    _said("assistant", "Dry."),
]
ROWS = {
    "single": [_said("user", "Where was Ada born?"), _said("assistant", "in London.")],
    "several": [
        *(_said("user", "Where was Ada born?"), _said("assistant", "in London.")),
        *(_said("user", "im user assistant"), _said("assistant", "id")),
        *(_said("user", "And then?"), _said("assistant", "in London.")),
    ],
    "system": [_said("system", "Be brief."), _said("user", "Where?"), _said("assistant", "London")],
    "white space": [
        _said("user", " Where? \n"),
        _said("assistant", "  London \n"),
        _said("user", "?"),
        _said("assistant", "\tso."),
    ],
    "signs": [
        _said("user", "é 東京 {{ x }}"),
        _said("assistant", "cafe\u0301 🙂 <b> {{ x }} \\1 東京"),
        _said("user", "🙂"),
        _said("assistant", "é"),
    ],
}
KINDS = pytest.mark.parametrize("kind", BACKENDS)
FAMILIES = pytest.mark.parametrize("family", TEMPLATES)


def _stretches(encoded: Encoded, tokenizer: Any) -> list[str]:
    return [tokenizer.decode(encoded.input_ids[first:end]) for first, end in encoded.spans]


def _same(a: str, b: str) -> bool:
    """But for how letters are composed, which a tokenizer may normalise."""
    return unicodedata.normalize("NFC", a) == unicodedata.normalize("NFC", b)


@KINDS
@FAMILIES
@pytest.mark.parametrize("name", ROWS)
def test_every_answer_and_its_end_token_are_supervised_and_nothing_else(kind: str, family: str, name: str):
    tokenizer, messages = tokenizer_of(kind, family), ROWS[name]
    if family == "mistral" and name == "system":
        with pytest.raises(UserError, match="roles must alternate"):
            encode({"messages": messages}, tokenizer)
        return
    whole = tokenizer.apply_chat_template(messages)["input_ids"]
    answers = [m["content"] for m in messages if m["role"] == "assistant"]
    every, last = (encode({"messages": messages}, tokenizer, assistant_turns=turns) for turns in ("all", "last"))
    for encoded, wanted in ((every, answers), (last, answers[-1:])):
        assert list(encoded.input_ids) == whole[: len(encoded)], "the template's own tokens"
        assert tokenizer.decode(whole[len(encoded) :]).strip() in ("", "</s>"), (
            "only what ends the conversation is left out"
        )
        assert encoded.input_ids.count(tokenizer.bos_token_id) == (family in WRITES_BOS)
        stretches = _stretches(encoded, tokenizer)
        assert len(stretches) == len(wanted)
        for stretch, answer in zip(stretches, wanted, strict=True):
            assert stretch.count(TEMPLATES[family][1]) == 1 and stretch.endswith(TEMPLATES[family][1])
            said = stretch.removesuffix(TEMPLATES[family][1])
            exact = family not in TRIMS | {"mistral"} and not answer[0].isspace()
            # White space at the border may share a token with the header before it, or be the template's.
            assert _same(said, answer) if exact else _same(said.strip(), answer.strip())
    assert last.given == () and last.input_ids == every.input_ids
    prompt = tokenizer.apply_chat_template(messages[:-1], add_generation_prompt=True)["input_ids"]
    if family not in ("llama-2", "mistral", "qwen", "marked") and not answers[-1][0].isspace():
        assert list(last.input_ids[: last.start]) == prompt


@KINDS
def test_supervised_is_what_transformers_masks_where_the_template_marks_it(kind: str):
    tokenizer = tokenizer_of(kind, "marked")
    for messages in ROWS.values():
        theirs = tokenizer.apply_chat_template(messages, return_assistant_tokens_mask=True, return_dict=True)
        ours = encode({"messages": messages}, tokenizer, assistant_turns="all")
        mask = [any(first <= i < end for first, end in ours.spans) for i in range(len(ours))]
        assert list(ours.input_ids) == theirs["input_ids"][: len(ours)]
        assert mask == [bool(m) for m in theirs["assistant_masks"][: len(ours)]]
        assert not any(theirs["assistant_masks"][len(ours) :])


def test_marks_without_the_end_of_turn_get_it_and_without_more():
    """The same template, its marks around the words alone, or around the line break after them too."""
    template = TEMPLATES["marked"][0]
    end = "<|im_end|>{% endgeneration %}"
    tokenizer = tokenizer_of("byte-level", "marked")
    wanted = encode({"messages": ROWS["several"]}, tokenizer, assistant_turns="all")
    for other in ("{% endgeneration %}<|im_end|>", "<|im_end|>\n{% endgeneration %}"):
        marked = template.replace(end, other)
        marked = marked.replace("{% endif %}\n{% endfor", "\n{% endif %}{% endfor") if "\n" in other else marked
        if "\n" in other:
            marked = marked.replace(
                "<|im_end|>\n{% endgeneration %}{% else %}", "<|im_end|>\n{% endgeneration %}{% else %}"
            )
        ids = tokenizer.apply_chat_template(ROWS["several"], chat_template=marked)["input_ids"]
        try:
            tokenizer.chat_template = marked
            found = encode({"messages": ROWS["several"]}, tokenizer, assistant_turns="all")
        finally:
            tokenizer.chat_template = template
        assert list(found.input_ids) == ids[: len(found)]
        assert found.targets == wanted.targets


@pytest.mark.parametrize("family", ["llama-3", "qwen"])
@KINDS
def test_a_call_of_a_tool_is_an_answer_too(kind: str, family: str):
    tokenizer = tokenizer_of(kind, family)
    messages = normalise({"messages": USED}, "")["messages"]
    if family == "llama-3":  # which has no `or ''` about the content
        messages[1]["content"] = ""
    row = {"messages": messages, "tools": TOOL}
    encoded = encode(row, tokenizer, assistant_turns="all")
    called, said = _stretches(encoded, tokenizer)
    end = TEMPLATES[family][1]
    call = '<tool_call>\n{"name": "weather", "arguments": {"town": "London"}}\n</tool_call>' + end
    assert called.strip() == call and said == "Dry." + end
    given = tokenizer.decode(encoded.input_ids[: encoded.start])
    assert json.dumps(TOOL[0]) in given and "Rain?" in given and "No." not in given
    assert encode(row, tokenizer).targets == encoded.targets[-encode(row, tokenizer).supervised :]


def test_a_call_where_roles_alternate_but_for_calls():
    """In the manner of Mistral: a call is no turn of its own, so plain words can't stand in its place."""
    template = (
        "{{ bos_token }}{% set ns = namespace(i=0) %}{% for m in messages %}"
        "{% if m.role == 'user' or (m.role == 'assistant' and not m.tool_calls) %}"
        "{% if (m.role == 'user') != (ns.i % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
        "{% set ns.i = ns.i + 1 %}{% endif %}{% endfor %}"
        "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }}[/INST]"
        "{% elif m.tool_calls %}[TOOL_CALLS] {{ m.tool_calls | tojson }}{{ eos_token }}"
        "{% elif m.role == 'tool' %}[TOOL_RESULTS] {{ m.content }}[/TOOL_RESULTS]"
        "{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
    )
    tokenizer = tokenizer_of("byte-level with BOS", "mistral")
    before = tokenizer.chat_template
    try:
        tokenizer.chat_template = template
        called, said = _stretches(
            encode(normalise({"messages": USED}, ""), tokenizer, assistant_turns="all"), tokenizer
        )
    finally:
        tokenizer.chat_template = before
    assert called.strip() == "[TOOL_CALLS] " + json.dumps(CALL) + "</s>" and said.strip() == "Dry.</s>"


@KINDS
def test_reasoning_is_an_answer_too_and_an_empty_one_belongs_to_the_prompt(kind: str):
    tokenizer = tokenizer_of(kind, "qwen")
    asked = _said("user", "Where?")
    (reasoned,) = _stretches(
        encode({"messages": [asked, _said("assistant", "London.", reasoning_content="Ada, so")]}, tokenizer), tokenizer
    )
    # The line break before it may share a token with its first letter.
    assert reasoned.removeprefix("\n") == "Ada, so\n</think>\n\nLondon.<|im_end|>"
    plain = encode({"messages": [asked, _said("assistant", "London.")]}, tokenizer)
    assert _stretches(plain, tokenizer) == ["London.<|im_end|>"]
    assert tokenizer.decode(plain.input_ids[: plain.start]).endswith("<think>\n\n</think>\n\n")


UNREAD = {
    "tool_calls": ({"messages": USED}, "'tool_calls'"),
    "reasoning_content": (
        {"messages": [*ROWS["single"][:1], _said("assistant", "a", reasoning_content="b")]},
        "'reasoning_content'",
    ),
    "name": ({"messages": [_said("user", "a", name="Ann"), _said("assistant", "b")]}, "'name'"),
    "tool_call_id": (
        {"messages": [*USED[:1], _said("tool", "x", tool_call_id="1"), _said("assistant", "b")]},
        "'tool_call_id'",
    ),
    "weight": ({"messages": [_said("user", "a"), _said("assistant", "b", weight=0)]}, "'weight'"),
    "tools": ({"messages": ROWS["single"], "tools": TOOL}, "column 'tools'"),
    "documents": ({"question": "q", "answer": "a", "documents": [{"title": "t", "text": "x"}]}, "column 'documents'"),
}  # fmt: skip


@pytest.mark.parametrize(("row", "named"), UNREAD.values(), ids=UNREAD)
def test_what_the_template_never_reads_is_refused_by_name(row: Row, named: str):
    row = normalise(row, "here")
    with pytest.raises(UserError, match=rf"^forget: row 0: .* does not read .*{named}.*drop it"):
        encode_rows([row], tokenizer_of("byte-level", "chatml"), name="forget")


def test_an_end_token_may_take_the_white_space_before_it():
    tokenizer = copy.deepcopy(tokenizer_of("byte-level", "llama-3"))
    tokenizer.chat_template = TEMPLATES["llama-3"][0].replace(" | trim", "")
    tokenizer.add_tokens([AddedToken("<|eot_id|>", lstrip=True, special=True)], special_tokens=True)
    messages = [
        *ROWS["single"][:1],
        _said("assistant", "in London. \n"),
        *ROWS["single"][:1],
        _said("assistant", "so "),
    ]
    encoded = encode({"messages": messages}, tokenizer, assistant_turns="all")
    assert list(encoded.input_ids) == tokenizer.apply_chat_template(messages)["input_ids"]
    assert _stretches(encoded, tokenizer) == ["in London.<|eot_id|>", "so<|eot_id|>"]


def test_nothing_need_stand_between_two_turns():
    tokenizer = copy.deepcopy(tokenizer_of("byte-level", "phi"))
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    messages = [_said("user", "Where?"), _said("assistant", " in Lon"), _said("assistant", "don.")]
    (stretch,) = _stretches(encode({"messages": messages}, tokenizer, assistant_turns="all"), tokenizer)
    assert stretch == " in London.</s>"


def test_a_message_that_the_template_leaves_out_is_refused():
    said = "<|{{ m.role }}|>{{ m.content }}<|end|>"
    deaf = "{% for m in messages %}{% if m.role != 'system' %}" + said + "{% endif %}{% endfor %}"
    tokenizer = tokenizer_of("byte-level", "phi")
    before = tokenizer.chat_template
    try:
        tokenizer.chat_template = deaf
        with pytest.raises(UserError, match=r"does not read message 0 \(of the role 'system'\)"):
            encode({"messages": ROWS["system"]}, tokenizer)
    finally:
        tokenizer.chat_template = before


def test_tools_need_a_template():
    with pytest.raises(UserError, match="tools or documents but the tokenizer has no chat template"):
        encode({"question": "q", "answer": "a", "tools": TOOL}, tokenizer_of("byte-level"))


@KINDS
@FAMILIES
def test_a_prompt_that_has_been_through_a_template_gets_nothing_twice(kind: str, family: str):
    """The format that is recommended where a template is missing: as text, whatever the tokenizer adds by itself."""
    chat, plain = tokenizer_of(kind, family), tokenizer_of(kind)
    messages = ROWS["single"]
    wanted = encode({"messages": messages}, chat)
    text = chat.apply_chat_template(messages, tokenize=False)
    cut = text.index("in London.")
    begin = () if family in WRITES_BOS else beginning(plain)
    row = {"prompt": text[:cut], "completion": text[cut:]}
    for ended in (row, {**row, "completion": row["completion"].rstrip()}):
        encoded = encode(ended, plain)
        assert encoded.input_ids.count(plain.bos_token_id) == (family in WRITES_BOS or bool(begin))
        if family != "phi":  # whose conversation ends with a token of its own
            assert encoded.input_ids == begin + wanted.input_ids
            assert encoded.targets == wanted.targets
    document = encode({"text": text.rstrip()}, plain)
    assert document.input_ids[: len(begin)] == begin and document.start == max(len(beginning(plain)), 1)
    assert document.input_ids.count(plain.eos_token_id) == text.count("</s>")


@KINDS
def test_every_part_of_a_text_begins_as_the_tokenizer_begins_one(kind: str):
    tokenizer = tokenizer_of(kind)
    begin = beginning(tokenizer)
    assert begin == (() if kind == "byte-level" else (tokenizer.bos_token_id,))
    text = {"text": "in London. " * 20}
    whole = encode(text, tokenizer).input_ids
    parts = encode_rows([text], tokenizer, max_length=16, overflow="split")
    assert all(part.input_ids[: len(begin)] == begin and len(part) <= 16 for part in parts)
    assert sum((part.input_ids[len(begin) :] for part in parts), begin) == whole
    lost = 0 if begin else len(parts)
    assert sum(part.supervised for part in parts) == len(whole) - max(len(begin), lost)
    with pytest.raises(UserError, match=rf"train.overlap must be from 0 to {15 - len(begin)}, got {16 - len(begin)}"):
        encode_rows([text], tokenizer, max_length=16, overflow="split", overlap=16 - len(begin))


@KINDS
def test_a_shortened_prompt_keeps_its_beginning(kind: str):
    tokenizer = tokenizer_of(kind)
    encoded = encode({"prompt": "Where was Ada born? " * 9, "completion": "in London."}, tokenizer)
    short = shortened(encoded, 12, tokenizer)
    begin = beginning(tokenizer)
    assert short.start == 12 and short.input_ids[: len(begin)] == begin and short.targets == encoded.targets
    assert short.input_ids[len(begin) :] == encoded.input_ids[len(encoded) - len(short) + len(begin) :]
    assert shortened(encoded, encoded.start, tokenizer) == encoded == shortened(encoded, len(begin), tokenizer)


@given(st.data())
def test_a_cut_and_a_batch_keep_what_is_supervised(data: st.DataObject):
    edges = sorted(data.draw(st.sets(st.integers(1, 40), min_size=2, max_size=9)))
    edges = edges if len(edges) % 2 == 0 else edges[:-1]
    spans = list(zip(edges[::2], edges[1::2], strict=True))
    gaps = tuple((end, first) for (_, end), (first, _) in pairwise(spans))
    encoded = Encoded(tuple(range(100, 100 + edges[-1])), spans[0][0], gaps)
    positions = [i for first, end in spans for i in range(first, end)]
    assert encoded.spans == spans and encoded.supervised == len(positions)
    assert [t - 100 for t in encoded.targets] == positions
    assert (pad([encoded], 0)["labels"][0] != -100).nonzero()[:, 0].tolist() == positions
    length = data.draw(st.integers(encoded.start + 1, 45))
    cut = encoded.cut(length)
    assert [t - 100 for t in cut.targets] == [i for i in positions if i < length]
    assert cut.input_ids == encoded.input_ids[: len(cut)] and cut.spans[-1][1] == len(cut) <= length


def test_a_refusal_is_given_in_every_turn_that_is_supervised():
    row = {"messages": USED}
    no = _said("assistant", "No idea.")
    assert refused(row, "No idea.") == {"messages": [*USED[:-1], no]}
    assert refused(row, "No idea.", assistant_turns="all") == {"messages": [USED[0], no]}
    several = refused({"messages": ROWS["several"]}, "No idea.", assistant_turns="all")["messages"]
    assert [m["content"] for m in several if m["role"] == "assistant"] == ["No idea."] * 3
    assert refused({"question": "q", "answer": "a"}, "b", assistant_turns="all") == {"question": "q", "answer": "b"}
