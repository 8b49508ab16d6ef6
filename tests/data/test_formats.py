"""Every file type gives back the rows that were written; every defect gives one sentence with its place."""

import copy
import csv
import itertools
import json
import pickle
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from expunge.data.benchmark import Row
from expunge.data.files import read_records
from expunge.data.formats import FORMATS, normalise, read_rows
from expunge.errors import UserError

# Every example overwrites the same file; a busy machine is no reason to fail.
CHECKS = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
IN_TMP = settings(deadline=None, max_examples=60, suppress_health_check=CHECKS)
ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]))
TEXT = ANY_TEXT.filter(str.strip)


def _turn(role: str):
    return st.fixed_dictionaries({"role": st.just(role), "content": TEXT})


ANSWER = st.lists(_turn("assistant"), min_size=1, max_size=1)
ROWS = {
    "question": st.fixed_dictionaries({"question": TEXT, "answer": TEXT}),
    "prompt": st.fixed_dictionaries({"prompt": ANY_TEXT, "completion": TEXT}),
    "messages": st.builds(lambda asked, said: {"messages": asked + said}, st.lists(_turn("user"), max_size=2), ANSWER),
    "text": st.fixed_dictionaries({"text": TEXT}),
    "pair": st.fixed_dictionaries({"prompt": st.lists(_turn("user"), min_size=1, max_size=2), "completion": ANSWER}),
}
MANY_ROWS = st.sampled_from(sorted(ROWS)).flatmap(lambda name: st.lists(ROWS[name], min_size=1, max_size=4))


def _write_jsonl(path: Path, rows: list[Row]):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8", newline="")


def _write_json(path: Path, rows: list[Row]):
    path.write_text(json.dumps(rows, indent=2), encoding="utf-8")


def _write_csv(path: Path, rows: list[Row]):
    cells = [{k: v if isinstance(v, str) else json.dumps(v) for k, v in row.items()} for row in rows]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(cells[0]))
        writer.writeheader()
        writer.writerows(cells)


def _write_parquet(path: Path, rows: list[Row]):
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


WRITERS = {".jsonl": _write_jsonl, ".json": _write_json, ".csv": _write_csv, ".parquet": _write_parquet}


@pytest.mark.parametrize("extension", WRITERS)
@IN_TMP
@given(rows=MANY_ROWS)
def test_round_trip(tmp_path: Path, extension: str, rows: list[Row]):
    if extension == ".csv" and isinstance(rows[0].get("prompt"), list):
        return  # a string of JSON in prompt is a prompt
    path = tmp_path / f"rows{extension}"
    WRITERS[extension](path, rows)
    assert read_rows(path) == rows
    assert read_rows(str(path)) == rows
    assert read_rows(tmp_path) == rows


@pytest.mark.parametrize("extension", WRITERS)
@IN_TMP
@given(rows=MANY_ROWS, data=st.data())
def test_damaged_files_give_user_errors_or_rows(tmp_path: Path, extension: str, rows: list[Row], data: st.DataObject):
    path = tmp_path / f"rows{extension}"
    WRITERS[extension](path, rows)
    content = path.read_bytes()
    cut, end = sorted(data.draw(st.tuples(*[st.integers(0, len(content))] * 2)))
    path.write_bytes(content[:cut] + data.draw(st.binary(max_size=8)) + content[end:])
    _reads_or_explains(path)


@pytest.mark.parametrize("extension", WRITERS)
@IN_TMP
@given(content=st.binary() | st.text('[]{}",:\\\n\r\t 0u\ud800', max_size=30).map(lambda s: s.encode(errors="ignore")))
def test_garbage_gives_user_errors_or_rows(tmp_path: Path, extension: str, content: bytes):
    path = tmp_path / f"rows{extension}"
    path.write_bytes(content)
    _reads_or_explains(path)


def _reads_or_explains(path: Path):
    try:
        rows = read_rows(path)
    except UserError as error:
        assert str(path) in str(error)
    else:
        assert rows and all(row.keys() in [set(columns) for columns in FORMATS] for row in rows)


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["role", "content"]), inner),
    max_leaves=8,
)


@IN_TMP
@given(st.dictionaries(st.sampled_from([*(name for columns in FORMATS for name in columns), "other"]), JSON) | JSON)
def test_normalise_gives_one_format_or_a_user_error(record: Any):
    try:
        row = normalise(record, "here")
    except UserError as error:
        assert str(error).startswith("here")
    else:
        assert tuple(row) in FORMATS
        assert normalise(row, "here") == row


FILLED = {
    "question": {"question": "q", "answer": "a"},
    "prompt": {"prompt": "", "completion": "c"},
    "messages": {"messages": [{"role": "assistant", "content": "m"}]},
    "text": {"text": "t"},
}


@pytest.mark.parametrize(("first", "second"), [*itertools.combinations(FILLED, 2)])
def test_a_row_of_two_formats_is_refused(tmp_path: Path, first: str, second: str):
    rows = [FILLED[first], {"id": 1, **FILLED[second], **FILLED[first]}]
    _write_jsonl(tmp_path / "rows.jsonl", rows)
    columns = [" and ".join(FILLED[name]) for name in (first, second)]
    with pytest.raises(UserError) as error:
        read_rows(tmp_path / "rows.jsonl")
    assert str(error.value) == (
        f"{tmp_path / 'rows.jsonl'}:2 has {columns[0]}, and {columns[1]} too, which are two rows' columns; drop one of "
        f"the two."
    )


@pytest.mark.parametrize("blank", [None, ""])
@pytest.mark.parametrize(("first", "second"), [*itertools.permutations(FILLED, 2)])
def test_other_columns_and_empty_ones_are_dropped(first: str, second: str, blank: str | None):
    half = dict.fromkeys(FILLED[second], blank if second != "prompt" else None)
    assert normalise({"id": 1, **half, **FILLED[first]}, "") == FILLED[first]
    assert normalise({**dict(list(FILLED[second].items())[1:]), **FILLED[first]}, "") == FILLED[first]


CALL = {"type": "function", "function": {"name": "get", "arguments": {"x": 1}}}


def test_whatever_a_template_may_read_is_kept():
    """Nulls are what tables fill in, and one part of text is that text."""
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "Weather?"}], "name": "Ann", "tool_calls": None},
        {"role": "assistant", "content": None, "tool_calls": [CALL], "reasoning_content": "hm"},
        {"tool_call_id": "1", "role": "tool", "content": "sunny"},
        {"role": "assistant", "content": "", "tool_calls": [{**CALL, "id": None}]},
    ]
    kept = [
        {"role": "user", "content": "Weather?", "name": "Ann"},
        {"role": "assistant", "tool_calls": [CALL], "reasoning_content": "hm"},
        {"role": "tool", "content": "sunny", "tool_call_id": "1"},
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
    ]
    tools = [{"name": "get"}]
    for cell in (messages, json.dumps(messages)):
        row = {"messages": cell, "tools": json.dumps(tools), "documents": [], "id": 1}
        assert normalise(row, "") == {"messages": kept, "tools": tools}
    question = {"question": "q", "answer": "a", "tools": tools}
    assert normalise(question, "") == question
    assert normalise({"text": "t", "tools": tools}, "") == {"text": "t"}


def test_a_row_knows_where_it_was_read(tmp_path: Path):
    path = tmp_path / "rows.jsonl"
    path.write_text('\n{"text": "a"}\n{"text": "b", "id": 1}\n')
    rows: list[Any] = list(read_rows(path))
    assert [row.where for row in rows] == [f"{path}:2", f"{path}:3"]
    copied = pickle.loads(pickle.dumps(copy.deepcopy(rows[0])))
    assert copied == {"text": "a"} and copied.where == f"{path}:2"


def test_json_lines_in_a_json_file_with_line_separators_a_mark_and_blank_lines(tmp_path: Path):
    path = tmp_path / "rows.json"
    path.write_bytes(b"\xef\xbb\xbf" + '{"text": "a\u2028b"}\r\n\r\n{"text": "c\\nd"}'.encode())
    assert read_rows(path) == [{"text": "a\u2028b"}, {"text": "c\nd"}]
    assert [where for where, _ in read_records(path)] == [f"{path}:1", f"{path}:3"]


def test_csv_counts_the_lines_inside_cells(tmp_path: Path):
    path = tmp_path / "rows.csv"
    path.write_bytes(b'text,id\r\n"a\r\nb",1\r\n\r\nc,2\r\n')
    assert read_records(path) == [(f"{path}:2", {"text": "a\r\nb", "id": "1"}), (f"{path}:5", {"text": "c", "id": "2"})]


BAD_FILES = {
    "empty": ("a.jsonl", "", r"a\.jsonl has no rows"),
    "empty list": ("a.json", "[]", "has no rows"),
    "only a header": ("a.csv", "question,answer\n", "has no rows"),
    "malformed line": ("a.jsonl", '{"text": "a"}\n{"text": b}\n', r"a\.jsonl:2 is not valid JSON \(Expecting value"),
    "malformed list": ("a.json", '[{"text": "a"},\n{"text": b}]', r"a\.json:2 is not valid JSON"),
    "cut off": ("a.jsonl", '{"text": "a', r"a\.jsonl:1 is not valid JSON"),
    "deep": ("a.jsonl", '{"a":' * 99_999, r"a\.jsonl:1 is not valid JSON"),
    "huge number": ("a.jsonl", '{"text": ' + "9" * 5000 + "}", r"a\.jsonl:1 is not valid JSON"),
    "strings": ("a.json", '["a"]', r"a\.json: row 0 is text instead of an object"),
    "no columns": ("a.jsonl", "{}", "no known column .found: none.; rows need question and answer, prompt"),
    "unknown columns": ("a.csv", "q,a\nx,y\n", r"a\.csv:2: no known column \(found: 'q', 'a'\)"),
    "missing column": ("a.csv", "question,anwser\nx,y\n", "'answer' is missing .*Rename 'anwser' to 'answer'"),
    "mixed": ("a.jsonl", '{"text": "a"}\n{"prompt": "a", "completion": "b"}', r":2 has the columns .* the first row"),
    "number": ("a.jsonl", '{"question": "q", "answer": 1472}', r":1: answer is a number instead of text"),
    "null": ("a.jsonl", '{"question": "q", "answer": null}', r":1: answer is missing \(null\)"),
    "empty answer": ("a.csv", 'question,answer\nx,y\nx," "\n', r"a\.csv:3: answer is empty; fill it in or drop"),
    "too many cells": ("a.csv", "text\nwell, then\n", r"a\.csv:2 has 2 cells but the header has 1"),
    "open quote": ("a.csv", 'text\nx\n"y\n', r"a\.csv:3 is not valid CSV"),
    "large word": ("a.csv", "text\n" + "x" * 1_100_000, r"a\.csv:2: text holds 1,100,000 characters without a space"),
    "key twice": ("a.jsonl", '{"text": "a"}\n{"text": "b", "text": "c"}', r"a\.jsonl:2 has the key 'text' twice"),
    "key twice within": ("a.json", '[{"text": "a",\n"x": {"b": 1, "b": 2}}]', r"a\.json has the key 'b' twice"),
    "column twice": ("a.csv", "text,text\na,b\n", r"a\.csv has the column 'text' twice"),
    "image": (
        "a.jsonl",
        '{"messages": [{"role": "user", "content": [{"type": "image"}]}]}',
        r"content is a list of 1 parts \('image'\)",
    ),
    "two parts": (
        "a.jsonl",
        '{"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]}',
        r":1: messages\[0\].content is a list of 2 parts \('text', 'text'\); write it as one text",
    ),
    "tools": ("a.jsonl", '{"question": "q", "answer": "a", "tools": "none"}', "tools is text instead of a list of"),
    "calls": (
        "a.jsonl",
        '{"messages": [{"role": "assistant", "content": "x", "tool_calls": [3]}]}',
        r"messages\[0\].tool_calls is a list with a number instead of objects",
    ),
    "deep call": (
        "a.jsonl",
        '{"messages": [{"role": "assistant", "content": "x", "k": ' + "[" * 70 + "]" * 70 + "}]}",
        r"messages\[0\].k is nested more than 64 levels deep",
    ),
    "surrogate": ("a.jsonl", '{"text": "a\\ud800"}', "half a surrogate pair at character 1"),
    "messages": ("a.jsonl", '{"messages": "hello"}', r":1: messages is text instead of a list"),
    "no messages": ("a.jsonl", '{"messages": []}', "messages is empty instead of a list"),
    "a message": ("a.jsonl", '{"messages": [{"role": "user"}]}', r"messages\[0\] is not an object with role"),
    "tool call": ("a.jsonl", '{"messages": [{"role": "a", "content": null}]}', r"\[0\].content is missing"),
    "last role": ("a.jsonl", '{"messages": [{"role": "user", "content": "x"}]}', "has the role 'user'"),
    "two answers": (
        "a.jsonl",
        json.dumps({"prompt": [{"role": "user", "content": "x"}], "completion": [{"role": "u", "content": "x"}] * 2})
        .replace('"u"', '"assistant"'),
        "completion has 2 messages",
    ),
    "half a pair": (
        "a.jsonl",
        '{"prompt": [{"role": "user", "content": "x"}], "completion": 3}',
        "completion is a number instead of a list",
    ),
    "extension": ("a.xlsx", "", r"a\.xlsx has the unknown extension '\.xlsx'; use \.jsonl"),
    "parquet": ("a.parquet", "PAR1", r"a\.parquet can't be read as Parquet"),
}  # fmt: skip


@pytest.mark.parametrize(("name", "content", "message"), BAD_FILES.values(), ids=BAD_FILES)
def test_a_bad_file_is_explained(tmp_path: Path, name: str, content: str, message: str):
    path = tmp_path / name
    path.write_text(content, encoding="utf-8", newline="")
    with pytest.raises(UserError, match=message) as caught:
        read_rows(path)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


def test_other_encodings_are_named(tmp_path: Path):
    path = tmp_path / "a.csv"
    path.write_bytes("text\ncafé\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"is not UTF-8 \(byte 8\); save it in that encoding"):
        read_rows(path)


def test_a_missing_file_names_its_nearest_neighbour(tmp_path: Path):
    _write_jsonl(tmp_path / "forget.jsonl", [{"text": "a"}])
    with pytest.raises(UserError, match=r"forgot\.jsonl does not exist.* Did you mean 'forget\.jsonl'"):
        read_rows(tmp_path / "forgot.jsonl")
    with pytest.raises(UserError, match="nor does its folder"):
        read_rows(tmp_path / "nowhere" / "forget.jsonl")
    with pytest.raises(UserError, match="is a single file, which has no split 'test'"):
        read_rows(tmp_path / "forget.jsonl", split="test")


def test_a_folder_with_a_file_a_split(tmp_path: Path):
    with pytest.raises(UserError, match="has no data file"):
        read_rows(tmp_path)
    _write_jsonl(tmp_path / "forget.jsonl", [{"text": "f"}])
    assert read_rows(tmp_path) == [{"text": "f"}]
    _write_csv(tmp_path / "retain.csv", [{"text": "r"}])
    assert read_rows(tmp_path, split="retain") == [{"text": "r"}]
    with pytest.raises(UserError, match="several splits; choose one of forget, retain"):
        read_rows(tmp_path)
    with pytest.raises(UserError, match=r"no split 'retian'; choose one of forget, retain\. Did you mean 'retain'"):
        read_rows(tmp_path, split="retian")
    _write_csv(tmp_path / "train.csv", [{"text": "t"}])
    assert read_rows(tmp_path) == [{"text": "t"}]
    _write_json(tmp_path / "train.json", [{"text": "t"}])
    with pytest.raises(UserError, match=r"has train\.csv and train\.json; name the file"):
        read_rows(tmp_path)


def test_folders_that_datasets_saved(tmp_path: Path):
    rows = [{"question": "q", "answer": "a"}, {"question": "é", "answer": "b"}]
    one = datasets.Dataset.from_list([{**row, "id": 1} for row in rows])
    one.save_to_disk(tmp_path / "one")
    assert read_rows(tmp_path / "one") == rows
    with pytest.raises(UserError, match="single data set, which has no split 'test'"):
        read_rows(tmp_path / "one", split="test")
    datasets.DatasetDict({"forget": one, "retain": one.select([1])}).save_to_disk(tmp_path / "two")
    assert read_rows(tmp_path / "two", split="retain") == rows[1:]
    with pytest.raises(UserError, match="several splits; choose one of forget, retain"):
        read_rows(tmp_path / "two")
    with pytest.raises(UserError, match=r"two has no split 'forgot'.* Did you mean 'forget'"):
        read_rows(tmp_path / "two", split="forgot")
    (tmp_path / "one" / "state.json").write_text("{")
    with pytest.raises(UserError, match="can't be read by datasets"):
        read_rows(tmp_path / "one")


def test_hub_ids(monkeypatch: pytest.MonkeyPatch):
    asked = []

    def load_dataset(name: str, config: str | None, *, split: str):
        asked.append((name, config, split))
        if name == "nobody/nothing":
            raise ConnectionError("Couldn't reach the hub.\nDetails")
        return datasets.Dataset.from_list([{"text": "a", "id": 1}])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert read_rows("locuslab/TOFU:forget10") == [{"text": "a"}]
    assert read_rows("wikitext", split="test") == [{"text": "a"}]
    assert asked == [("locuslab/TOFU", "forget10", "train"), ("wikitext", None, "test")]
    with pytest.raises(UserError, match=r"nobody/nothing .*no local file.*Couldn't reach the hub\); check the path"):
        read_rows("nobody/nothing")
    for path in ["./no/thing", "../nothing", "data/forget.jsonl", "a/b/c", Path("nobody/nothing")]:
        with pytest.raises(UserError, match="does not exist"):
            read_rows(path)
    assert len(asked) == 3


def test_the_public_files(shared_data: Path):
    assert len(read_rows(shared_data / "tofu" / "full.json")) == 4000
    assert len(read_rows(shared_data / "tofu" / "holdout10.json")) == 400
    assert set(read_rows(shared_data / "rwku" / "1_Stephen_King" / "passage.json")[0]) == {"text"}
    with pytest.raises(UserError, match=r"forget10_perturb\.csv has the column 'What is .*' twice"):
        read_rows(shared_data / "tofu_augmented" / "forget10_perturb.csv")
