"""Wherever a path leads: one sentence that names it, at once, from every reader of files."""

import json
import os
from pathlib import Path

import pytest

from expunge.benchmarks import custom, mmlu, muse, rwku, tofu
from expunge.data import augment
from expunge.data.files import read_csv
from expunge.data.formats import read_rows
from expunge.errors import UserError

READERS = {
    "rows": read_rows,
    "variants": lambda path: augment.read(path, [{"text": "a"}]),
    "own rows": lambda path: custom.load(forget=path, retain=None, seed=0),
    "rows to retain": lambda path: custom.load(forget=path, retain=path, seed=0),
    "tofu": lambda path: tofu.load(path=path),
    "muse": lambda path: muse.load(path=path),
    "rwku": lambda path: rwku.load(target="1", path=path),
    "mmlu": mmlu.load,
}


def _pipe(folder: Path):
    os.mkfifo(folder / "rows.jsonl")
    return folder / "rows.jsonl"


def _link(folder: Path, to: Path | str):
    (folder / "rows.jsonl").symlink_to(to)
    return folder / "rows.jsonl"


def _loop(folder: Path):
    (folder / "b.jsonl").symlink_to(folder / "rows.jsonl")
    return _link(folder, folder / "b.jsonl")


def _file(folder: Path, content: bytes = b""):
    (folder / "rows.jsonl").write_bytes(content)
    return folder / "rows.jsonl"


def _folder(folder: Path):
    (folder / "rows.jsonl").mkdir()
    return folder / "rows.jsonl"


PATHS = {
    "a name too long": lambda folder: folder / ("a" * 300 + ".jsonl"),
    "a path too long": lambda folder: "/a" * 5_000,
    "no such user": lambda folder: "~nouser/rows.jsonl",
    "bytes that are no text": lambda folder: os.fsdecode(os.fsencode(folder) + b"/\xff.jsonl"),
    "a zero byte": lambda folder: f"{folder}/a\0b.jsonl",
    "a pipe": _pipe,
    "a device": lambda folder: _link(folder, "/dev/zero"),
    "what the system makes up": lambda folder: _link(folder, "/proc/kmsg"),
    "memory": lambda folder: _link(folder, "/proc/self/mem"),
    "a link to itself": _loop,
    "a link to nothing": lambda folder: _link(folder, folder / "nothing"),
    "an empty file": _file,
    "an empty folder": _folder,
    "zeros": lambda folder: _file(folder, b"\0" * 5_000),
    "within a file": lambda folder: _file(folder) / "rows.jsonl",
}


@pytest.mark.timeout(10)
@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("kind", PATHS)
def test_a_path_that_leads_to_no_rows_is_explained(tmp_path: Path, kind: str, reader: str):
    path = PATHS[kind](tmp_path)
    with pytest.raises(UserError) as caught:
        READERS[reader](path)
    said = str(caught.value)
    assert "\n" not in said and said.isprintable() and len(said) < 1_000
    assert "rows.jsonl" in said or ascii(str(path))[1:60] in said


@pytest.mark.timeout(10)
def test_a_long_word_is_refused_and_a_long_cell_is_read(tmp_path: Path):
    """The csv module alone stops at 131,072 characters; its limit is as before afterwards."""
    import csv

    limit = csv.field_size_limit()
    long = "some words " * 100_000
    (tmp_path / "a.csv").write_text(f'question,answer\n"{long}",b\n')
    assert read_rows(tmp_path / "a.csv") == [{"question": long, "answer": "b"}]
    assert csv.field_size_limit() == limit
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "a"}) + "\n" + json.dumps({"text": "x" * 20_000_000}))
    with pytest.raises(UserError, match=r"a\.jsonl:2: text holds 20,000,000 characters without a space"):
        read_rows(tmp_path / "a.jsonl")


def test_variants_may_have_long_cells(tmp_path: Path):
    long = "some words " * 20_000
    (tmp_path / "x_paraphrase.csv").write_text(f"Q?,A.,\"['{long}?']\",\"['A!']\"\n")
    (variant,) = augment.read(tmp_path, [{"question": "Q?", "answer": "A."}])
    assert variant.text == {"question": f"{long}?".strip(), "answer": "A!"}
    assert len(read_csv(tmp_path / "x_paraphrase.csv")) == 1
