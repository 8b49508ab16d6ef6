"""Whatever stands in a file of rows: sequences that hold what is promised of them, or one sentence about the file."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from expunge.benchmarks import mmlu, muse, rwku, tofu
from expunge.data import augment
from expunge.data.encode import Encoded, encode_rows
from expunge.data.files import READERS
from expunge.data.formats import read_rows
from expunge.errors import UserError
from tests.data.templates import BACKENDS, SPECIAL, TEMPLATES, tokenizer_of

pytestmark = pytest.mark.fuzz

KEYS = ["role", "content", "tool_calls", "tool_call_id", "name", "reasoning_content", "weight", "function", "arguments"]
COLUMNS = ["text", "prompt", "completion", "messages", "question", "answer", "tools", "documents", "other"]
TEXT = st.text(max_size=20) | st.sampled_from([*SPECIAL, "", " ", "\n", "\0", "None", "{{ x }}", "[INST]", "a" * 300])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(KEYS) | TEXT, inner, max_size=4),
    max_leaves=12,
)
CONTENT = TEXT | st.none() | st.lists(st.fixed_dictionaries({"type": st.just("text"), "text": TEXT}), max_size=2) | JSON
MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "system", "tool"]) | TEXT, "content": CONTENT},
    optional={key: JSON for key in KEYS[2:]},
)
PLAIN = st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "system"]), "content": TEXT})
TURNS = st.lists(PLAIN, max_size=5).map(lambda m: [*m, {"role": "assistant", "content": "so."}])
MESSAGES = TURNS | st.lists(MESSAGE, max_size=5) | JSON
ROW = st.one_of(
    st.dictionaries(st.sampled_from(COLUMNS) | TEXT, JSON | TEXT | MESSAGES, max_size=5),
    st.fixed_dictionaries({"messages": MESSAGES}, optional={"tools": JSON, "documents": JSON}),
    st.fixed_dictionaries({"question": TEXT, "answer": TEXT}, optional={"tools": JSON}),
    st.fixed_dictionaries({"prompt": TEXT | MESSAGES, "completion": TEXT | MESSAGES}),
    st.fixed_dictionaries({"text": TEXT}),
)
LENGTHS = st.fixed_dictionaries(
    {
        "max_length": st.none() | st.integers(1, 60),
        "overflow": st.sampled_from(["error", "truncate", "split"]),
        "overlap": st.integers(0, 5),
        "assistant_turns": st.sampled_from(["all", "last"]),
    }
)
TOKENIZERS = st.tuples(st.sampled_from(sorted(BACKENDS)), st.none() | st.sampled_from(sorted(TEMPLATES)))
ANY_FILE = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


@ANY_FILE
@given(rows=st.lists(ROW, min_size=1, max_size=3), kind=TOKENIZERS, options=LENGTHS, data=st.data())
def test_rows(
    tmp_path: Path,
    rows: list[dict[str, Any]],
    kind: tuple[str, str | None],
    options: dict[str, Any],
    data: st.DataObject,
):
    path = tmp_path / "rows.jsonl"
    content = b"\n".join(json.dumps(row).encode() for row in rows)
    if data.draw(st.integers(0, 4)) == 0:
        cut, end = sorted(data.draw(st.tuples(*[st.integers(0, len(content))] * 2)))
        content = content[:cut] + data.draw(st.binary(max_size=8)) + content[end:]
    path.write_bytes(content)
    _encodes_or_explains(path, tokenizer_of(*kind), options)


@ANY_FILE
@given(content=st.binary(max_size=200), ending=st.sampled_from(sorted(READERS)), kind=TOKENIZERS, options=LENGTHS)
def test_bytes(tmp_path: Path, content: bytes, ending: str, kind: tuple[str, str | None], options: dict[str, Any]):
    path = tmp_path / f"rows{ending}"
    path.write_bytes(content)
    _encodes_or_explains(path, tokenizer_of(*kind), options)


QA = {"question": "Q?", "answer": "a"}
ASKED = {**QA, "perturbed_answer": ["x", "y"], "paraphrased_answer": "b", "paraphrased_question": "P?"}
SOLVED = {"question": "e", "choices": ["w", "x", "y", "z"], "answer": 3, "subject": "s"}
FOLDERS = {
    "tofu": {
        "forget10.json": QA,
        "retain90.json": {"question": "R?", "answer": "r"},
        **{f"{name}_perturbed.json": ASKED for name in ("forget10", "retain", "real_authors", "world_facts")},
    },
    "muse": {
        **{
            f"{name}.json": {"text": "a text"}
            for name in ("raw/forget", "raw/retain1", "privleak/forget", "privleak/holdout")
        },
        **{f"knowmem/{side}_qa{icl}.json": QA for side in ("forget", "retain") for icl in ("", "_icl")},
        "verbmem/forget.json": {"prompt": "a", "gt": "text"},
    },
    "rwku": {
        f"1_Ann/{name}.json": row
        for name, row in {
            **{
                f"{side}_level{n}": {"query": "q?", "answer": "a", "type": "t"}
                for side in ("forget", "neighbor")
                for n in (1, 2)
            },
            "forget_level3": {"query": "q?", "answer": "a", "type": "t"},
            **{name: {"text": "t"} for name in ("forget_mia", "retain_mia", "passage")},
            "retain_mmlu": {**SOLVED, "task": "s", "examples": [SOLVED] * 5},
            "retain_bbh": {"task": "t", "cot": "c", "question": "q", "answer": "a"},
            "truthful": {"question": "q", "mc1_targets": {"choices": ["x", "y"], "labels": [0, 1]}},
            "triviaqa": {"question": "q", "answers": ["a", "b"]},
            "fluency": {"instruction": "i"},
        }.items()
    },
    "mmlu": {
        "mmlu_all_val.json": SOLVED,
        "dev/s_dev.csv": "question,choice0,choice1,choice2,choice3,answer\n" + "e,w,x,y,z,3\n" * 5,
    },
    "variants": {"x_paraphrase.csv": "Q?,a,\"['P?']\",\"['b']\"\n", "x_perturb.csv": "Q?,a,P?,\"['b']\"\n"},
}
LOADERS = {
    "tofu": lambda path: tofu.load(path=path),
    "muse": lambda path: muse.load(path=path),
    "rwku": lambda path: rwku.load(target="Ann", path=path),
    "mmlu": mmlu.load,
    "variants": lambda path: augment.read(path, [QA]),
}


@pytest.mark.parametrize("name", FOLDERS)
@settings(ANY_FILE, max_examples=settings().max_examples // 4)
@given(data=st.data())
def test_benchmarks(tmp_path: Path, name: str, data: st.DataObject):
    """A folder of a benchmark, one of its files damaged: a cell, a row, some bytes, or gone."""
    folder = tmp_path / name
    for file, row in FOLDERS[name].items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text(row if isinstance(row, str) else json.dumps([row]))
    LOADERS[name](folder)
    file = folder / data.draw(st.sampled_from(sorted(FOLDERS[name])))
    row, content = FOLDERS[name][str(file.relative_to(folder))], file.read_bytes()
    kind = data.draw(st.sampled_from(["bytes", "gone", "rows", "cell"]))
    if kind == "gone":
        file.unlink()
    elif kind == "rows":
        file.write_text(json.dumps(data.draw(JSON)))
    elif kind == "cell" and isinstance(row, dict):
        file.write_text(json.dumps([row | {data.draw(st.sampled_from(sorted(row))): data.draw(JSON)}]))
    else:
        cut, end = sorted(data.draw(st.tuples(*[st.integers(0, len(content))] * 2)))
        file.write_bytes(content[:cut] + data.draw(st.binary(max_size=8)) + content[end:])
    try:
        LOADERS[name](folder)
    except UserError as error:
        assert "\n" not in str(error) and len(str(error)) < 2_000
        assert str(folder) in str(error) or name in str(error) or "mmlu" in str(error), error


def _encodes_or_explains(path: Path, tokenizer: Any, options: dict[str, Any]):
    try:
        rows = read_rows(path)
        encoded = encode_rows(rows, tokenizer, name="forget", **options)
    except UserError as error:
        said = str(error)
        assert "\n" not in said and len(said) < 2_000
        assert str(path) in said or "train." in said, said
    else:
        assert len(encoded) >= len(rows)
        for sequence in encoded:
            _holds(sequence, tokenizer, options)


def _holds(sequence: Encoded, tokenizer: Any, options: dict[str, Any]):
    assert 1 <= sequence.start < len(sequence)
    assert sequence.supervised == len(sequence.targets) > 0
    edges = [edge for span in sequence.spans for edge in span]
    assert edges == sorted(set(edges)) and edges[0] == sequence.start and edges[-1] == len(sequence)
    assert all(0 <= token < len(tokenizer) for token in sequence.input_ids)
    assert options["max_length"] is None or len(sequence) <= options["max_length"]
    assert options["assistant_turns"] == "all" or not sequence.given
