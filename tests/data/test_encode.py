"""The supervised span is exactly the answer and its end token, for every format, template and text."""

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from expunge.data.benchmark import Row
from expunge.data.encode import Encoded, encode, encode_rows, opened, prepare_tokenizer, question_row, with_answer
from expunge.errors import UserError
from expunge.objectives import Wanted

# In the manner of Qwen 3: a line break after every turn, an empty thinking block before the last answer.
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n\n</think>\n\n{% endif %}"
)
# In the manner of Llama 3: contents are trimmed, roles must alternate, the template writes the beginning itself.
HEADERS = (
    "<|bos|>{% for m in messages %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
    "<|header|>{{ m.role }}<|/header|>\n\n{{ m.content | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|header|>assistant<|/header|>\n\n{% endif %}"
)
SPECIAL = ["<|eos|>", "<|bos|>", "<|im_start|>", "<|im_end|>", "<|header|>", "<|/header|>", "<|eot_id|>"]
# GPT-2's rule splits "\n\n" before a word; that of the models with chat templates keeps line breaks together.
WORDS = r" ?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
CORPUS = ["Question: Where was Ada born?\nAnswer: in London. im end id user assistant think \n\n é 東京 🙂"] * 4


def _tokenizer(*, bos: bool = False, eos: str = "<|eos|>", template: str | None = None, trim: bool = True):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if template:
        split = pre_tokenizers.Split(Regex(WORDS), behavior="isolated")
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=trim)
    if bos:
        begin = processors.TemplateProcessing(single="<|bos|> $A", special_tokens=[("<|bos|>", 1)])
        tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=trim), begin])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=eos, bos_token="<|bos|>" if bos else None)
    fast.chat_template = template
    return prepare_tokenizer(fast)


PLAIN = _tokenizer()
WITH_BOS = _tokenizer(bos=True)
QWEN = _tokenizer(eos="<|im_end|>", template=CHATML)
LLAMA = _tokenizer(bos=True, eos="<|eos|>", template=HEADERS)


def _halves(encoded: Encoded, tokenizer: Any) -> tuple[str, str]:
    """What is given and what is supervised, as text with every special token in sight."""
    return tokenizer.decode(encoded.input_ids[: encoded.start]), tokenizer.decode(encoded.input_ids[encoded.start :])


QUESTION = question_row("Where was Ada born?", "in London.")
MESSAGES = {
    "messages": [{"role": "user", "content": QUESTION["question"]}, {"role": "assistant", "content": "in London."}]
}
PAIR = {"prompt": MESSAGES["messages"][:1], "completion": MESSAGES["messages"][1:]}


@pytest.mark.parametrize(("tokenizer", "begin"), [(PLAIN, ""), (WITH_BOS, "<|bos|>")])
def test_a_question_is_written_plainly_without_a_template(tokenizer: Any, begin: str):
    given, supervised = _halves(encode(QUESTION, tokenizer), tokenizer)
    assert given == begin + "Question: Where was Ada born?\nAnswer:"
    assert supervised == " in London.<|eos|>"


@pytest.mark.parametrize("row", [QUESTION, MESSAGES, PAIR], ids=["question", "messages", "prompt"])
def test_chatml_supervises_the_answer_and_its_end_of_turn(row: Row):
    given, supervised = _halves(encode(row, QWEN), QWEN)
    asked = "<|im_start|>user\nWhere was Ada born?<|im_end|>\n"
    assert given == asked + "<|im_start|>assistant\n<think>\n\n</think>\n\n"
    assert supervised == "in London.<|im_end|>"  # without the line break that the template ends with


@pytest.mark.parametrize(("tokenizer", "said"), [(PLAIN, " id"), (QWEN, "id"), (LLAMA, "id")])
def test_a_wanted_answer_is_said_over_and_over_at_the_answer_s_positions(tokenizer: Any, said: str):
    row = question_row("Where was Ada born?", "in London in London.")
    (plain,), (encoded,) = encode_rows([row], tokenizer), encode_rows([row], tokenizer, wanted=Wanted("id user"))
    words = tokenizer(f"{said} user", add_special_tokens=False)["input_ids"]
    assert (encoded.input_ids, encoded.spans) == (plain.input_ids, plain.spans)
    assert encoded.targets == tuple(words[i % len(words)] for i in range(plain.supervised))
    assert plain.supervised > len(words) > 1
    (ending,) = encode_rows([row], tokenizer, wanted=Wanted("id user", ends=True))
    assert ending.targets[: len(words) + 2] == (*words, plain.input_ids[-1], words[0])
    cut = encoded.cut(encoded.start + 2)
    assert cut.targets == encoded.targets[:2] and len(cut.wanted) == len(cut)


def test_each_turn_of_a_conversation_begins_the_wanted_answer_anew():
    turns = [{"role": r, "content": c} for r, c in (("user", "Who?"), ("assistant", "Ada."), ("user", "Where?"))]
    row = {"messages": [*turns, {"role": "assistant", "content": "in London."}]}
    (encoded,) = encode_rows([row], LLAMA, wanted=Wanted("id"), assistant_turns="all")
    words = LLAMA("id", add_special_tokens=False)["input_ids"]
    assert len(encoded.spans) == 2 and len(words) > 1
    for first, end in encoded.spans:
        assert encoded.wanted[first:end] == tuple(words[i % len(words)] for i in range(end - first))
    assert encoded.input_ids == encode(row, LLAMA, assistant_turns="all").input_ids


def test_a_text_and_its_parts_say_the_wanted_answer_too():
    row = {"text": "Ada was born in London in London in London."}
    (whole,) = encode_rows([row], WITH_BOS, wanted=Wanted("id user"))
    words = WITH_BOS("id user", add_special_tokens=False)["input_ids"]
    assert whole.targets == tuple(words[i % len(words)] for i in range(whole.supervised))
    parts = encode_rows([row], WITH_BOS, wanted=Wanted("id user"), max_length=8, overflow="split")
    assert len(parts) > 1 and sum((part.targets for part in parts), ()) == whole.targets


def test_a_wanted_answer_has_tokens():
    with pytest.raises(UserError, match="data: row 0: the wanted answer '  ' has no tokens; give words"):
        encode_rows([MESSAGES], LLAMA, wanted=Wanted("  "))


@pytest.mark.parametrize("row", [QUESTION, MESSAGES, PAIR], ids=["question", "messages", "prompt"])
def test_the_end_of_turn_need_not_be_the_tokenizer_s_end_token(row: Row):
    encoded = encode(row, LLAMA)
    given, supervised = _halves(encoded, LLAMA)
    asked = "<|bos|><|header|>user<|/header|>\n\nWhere was Ada born?<|eot_id|>"
    assert given == asked + "<|header|>assistant<|/header|>\n\n"
    assert supervised == "in London.<|eot_id|>"
    assert encoded.input_ids.count(LLAMA.bos_token_id) == 1


@pytest.mark.parametrize("tokenizer", [QWEN, LLAMA], ids=["chatml", "headers"])
@pytest.mark.parametrize("answer", ["im", "id", "m", "user", "assistant", "think", "in", "|", "\\1", "{{ x }}"])
def test_an_answer_that_stands_in_the_template_too_is_found_where_it_was_said(tokenizer: Any, answer: str):
    row = question_row("Where? im id m user in | \\1 {{ x }}", answer)
    encoded = encode(row, tokenizer)
    assert tokenizer.decode(encoded.input_ids[encoded.start : -1]) == answer
    prompt = [{"role": "user", "content": row["question"]}]
    text = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
    assert list(encoded.input_ids[: encoded.start]) == tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("tokenizer", [QWEN, LLAMA], ids=["chatml", "headers"])
def test_the_words_that_open_an_answer_are_given_and_not_supervised(tokenizer: Any):
    row = opened(question_row("Where was Ada born?\n", "London."), "Answer:")
    encoded = encode(row, tokenizer)
    asked = [{"role": "user", "content": row["question"]}]
    text = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True) + "Answer:"
    assert list(encoded.input_ids[: encoded.start]) == tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(encoded.input_ids[encoded.start : -1]) == " London."
    assert encode(opened(QUESTION, ""), tokenizer) == encode(QUESTION, tokenizer)
    refused = encode(with_answer(row, "Who?"), tokenizer)
    assert refused.input_ids[: refused.start] == encoded.input_ids[: encoded.start]


@pytest.mark.parametrize(
    ("question", "opening", "prompt"),
    [
        ("Where was Ada born?\n", "Answer:", "Where was Ada born?\nAnswer:"),
        ("Q: Where was Ada born?", "A:", "Q: Where was Ada born?\nA:"),
        ("Where was Ada born? Sure, she was born", "", "Where was Ada born? Sure, she was born"),
    ],
)
def test_without_a_template_they_follow_the_question_as_it_is_written(question: str, opening: str, prompt: str):
    given, supervised = _halves(encode(opened(question_row(question, "in London."), opening), PLAIN), PLAIN)
    assert (given, supervised) == (prompt, " in London.<|eos|>")


@pytest.mark.parametrize("tokenizer", [QWEN, LLAMA], ids=["chatml", "headers"])
def test_ids_are_those_of_the_template_up_to_the_end_of_turn(tokenizer: Any):
    turns = [("user", "Hi"), ("assistant", "in London."), ("user", "Where?"), ("assistant", "in London.")]
    messages = [{"role": role, "content": content} for role, content in turns]
    whole = tokenizer.apply_chat_template(messages)["input_ids"]
    encoded = encode({"messages": messages}, tokenizer)
    assert list(encoded.input_ids) == whole[: len(encoded)]
    assert tokenizer.decode(whole[len(encoded) :]).strip() == ""
    assert _halves(encoded, tokenizer)[1].startswith("in London.<")


def test_the_template_decides_about_white_space_around_the_answer():
    row = question_row("Where?", " in London. \n")
    assert _halves(encode(row, QWEN), QWEN)[1] == " in London. \n<|im_end|>"
    assert _halves(encode(row, LLAMA), LLAMA)[1] == "in London.<|eot_id|>"


def test_a_template_without_an_end_of_turn_gets_the_end_token():
    bare = _tokenizer(template="{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}")
    assert _halves(encode(QUESTION, bare), bare)[1] == " in London.<|eos|>"  # " in" is one token, and straddles


def test_padding_with_the_end_token_leaves_the_real_one_supervised():
    assert PLAIN.pad_token_id == PLAIN.eos_token_id
    encoded = encode(question_row("Where?", "in<|eos|>"), PLAIN)
    assert encoded.input_ids[-1] == PLAIN.eos_token_id and len(encoded) > encoded.start + 1


def test_a_token_over_the_border_is_supervised():
    encoded = encode({"prompt": "Where was Ada bo", "completion": "rn?"}, PLAIN)
    given, supervised = _halves(encoded, PLAIN)
    assert given + supervised == "Where was Ada born?<|eos|>"
    assert supervised == " born?<|eos|>"


def test_text_is_supervised_from_the_first_token_that_something_predicts():
    plain, begun = encode({"text": "in London."}, PLAIN), encode({"text": "in London."}, WITH_BOS)
    assert _halves(begun, WITH_BOS) == ("<|bos|>", "in London.<|eos|>")
    assert plain == Encoded(begun.input_ids[1:], 1) and begun.start == 1


def test_an_empty_prompt_leaves_the_first_token_unpredicted():
    row = {"prompt": "", "completion": "in London."}
    assert encode(row, PLAIN).start == 1
    assert _halves(encode(row, WITH_BOS), WITH_BOS) == ("<|bos|>", "in London.<|eos|>")


TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(lambda text: "<|" not in text)


@settings(max_examples=200, deadline=None)
@given(question=TEXT, answer=TEXT)
def test_any_text_comes_back_from_its_span(question: str, answer: str):
    for tokenizer in (PLAIN, WITH_BOS):
        encoded = encode(question_row(question, answer), tokenizer)
        assert tokenizer.decode(encoded.input_ids[encoded.start : -1]) == " " + answer
        assert tokenizer.decode(encoded.input_ids[: encoded.start]).endswith(f"Question: {question}\nAnswer:")


@settings(max_examples=200, deadline=None)
@given(question=TEXT, answer=TEXT.filter(str.strip))
def test_any_text_comes_back_from_its_span_in_a_chat(question: str, answer: str):
    for tokenizer in (QWEN, LLAMA):
        encoded = encode(question_row(question, answer), tokenizer)
        supervised = tokenizer.decode(encoded.input_ids[encoded.start : -1])
        said = answer if tokenizer is QWEN else answer.strip()
        # The answer's first white space may share a token with the header's line breaks before it.
        assert supervised.endswith(said) and not supervised.removesuffix(said).strip("\n")
        assert supervised == said or said[0].isspace()


def test_untrimmed_offsets_give_the_same_span():
    untrimmed = _tokenizer(trim=False)
    for answer in ["in London.", " in", "  two", "\n", "é"]:
        row = question_row("Where?", answer)
        assert encode(row, untrimmed) == encode(row, PLAIN)


def test_rows_are_cut_only_if_asked():
    short, long = question_row("Where?", "in"), question_row("Where?", "in London. " * 9)
    length = len(encode(short, PLAIN))
    with pytest.raises(UserError, match=rf"forget: 1 of 2 rows are longer than {length} tokens \(first: row 1"):
        encode_rows([short, long], PLAIN, max_length=length, name="forget")
    kept, cut = encode_rows([short, long], PLAIN, max_length=length, overflow="truncate")
    assert kept == encode(short, PLAIN)
    assert cut == Encoded(encode(long, PLAIN).input_ids[:length], encode(long, PLAIN).start)
    assert encode_rows([short, long], PLAIN) == [encode(short, PLAIN), encode(long, PLAIN)]
    with pytest.raises(UserError, match=r"row 0 has a prompt of .* no room for an answer"):
        encode_rows([short], PLAIN, max_length=kept.start, overflow="truncate")


def test_raw_text_is_split_and_nothing_is_lost():
    """Consecutive parts; the first token of each has nothing before it. A question can't be split."""
    text = {"text": "in London. " * 9}
    whole = encode(text, PLAIN)
    parts = encode_rows([text, {"text": "in"}], PLAIN, max_length=8, overflow="split")
    assert sum((p.input_ids for p in parts[:-1]), ()) == whole.input_ids
    assert all(p.start == 1 and len(p) <= 8 for p in parts)
    assert parts[-1] == encode({"text": "in"}, PLAIN)
    with pytest.raises(UserError, match="1 of 1 rows are longer than 8 tokens"):
        encode_rows([question_row("Where?", "in London. " * 9)], PLAIN, max_length=8, overflow="split")


@given(st.integers(2, 40), st.integers(1, 12), st.data())
def test_parts_may_overlap(words: int, room: int, data: st.DataObject):
    """A part begins with the last `overlap` tokens of the one before; the last one ends where the text does."""
    length = room + 1
    overlap = data.draw(st.integers(0, length - 1))
    text = {"text": "in London. " * words}
    ids = encode(text, PLAIN).input_ids
    parts = encode_rows([text], PLAIN, max_length=length, overflow="split", overlap=overlap)
    at, first = 0, parts[0].input_ids
    assert first == ids[: len(first)]
    for part in parts[1:]:
        at += length - overlap
        assert part.input_ids == ids[at : at + length] and len(part) > overlap
    assert at + length >= len(ids) - (overlap == 0)


def test_what_a_template_refuses_is_said_with_the_row():
    wrong = {"messages": [{"role": "assistant", "content": "in London."}]}
    with pytest.raises(UserError, match=r"^retain: row 1: the chat template of .* \(roles must alternate\)"):
        encode_rows([MESSAGES, wrong], LLAMA, name="retain")


@pytest.mark.parametrize("expression", ["m.content | upper", "''"])
def test_a_template_that_rewrites_the_answer_is_an_error(expression: str):
    rewriting = _tokenizer(template="{% for m in messages %}{{ " + expression + " }}{% endfor %}")
    with pytest.raises(UserError, match=r"does not (render the last message as it is written|read message)"):
        encode(MESSAGES, rewriting)


@pytest.mark.parametrize("row", [MESSAGES, PAIR], ids=["messages", "prompt"])
def test_messages_need_a_template(row: Row):
    with pytest.raises(UserError, match="no chat template"):
        encode(row, PLAIN)


@pytest.mark.parametrize("row", [QUESTION, MESSAGES, PAIR], ids=["question", "messages", "prompt"])
def test_with_answer_asks_the_same(row: Row):
    before, after = encode(row, QWEN), encode(with_answer(row, "I can't say."), QWEN)
    assert after.input_ids[: after.start] == before.input_ids[: before.start]
    assert _halves(after, QWEN)[1] == "I can't say.<|im_end|>"


def test_with_answer_keeps_the_space_before_a_completion_and_needs_a_question():
    assert with_answer({"prompt": "Q:", "completion": " a"}, "b") == {"prompt": "Q:", "completion": " b"}
    assert with_answer({"prompt": "Q: ", "completion": "a"}, "b") == {"prompt": "Q: ", "completion": "b"}
    with pytest.raises(UserError, match="raw text"):
        with_answer({"text": "a"}, "b")


def test_a_tokenizer_without_an_end_or_without_offsets_is_refused():
    endless = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()))
    with pytest.raises(UserError, match="no end-of-sequence token"):
        prepare_tokenizer(endless)

    slow: Any = SimpleNamespace(name_or_path="slow-tokenizer", is_fast=False)
    with pytest.raises(UserError, match=r"slow-tokenizer .* fast version"):
        prepare_tokenizer(slow)
