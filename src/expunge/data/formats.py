"""Bytes → rows: JSON lines, JSON, CSV, Parquet, a folder of them, or a data set on the hub.

Knows file types and the four column formats; knows nothing of tokens, templates or benchmarks.

    text                    documents
    prompt, completion      two strings, or two lists of messages
    messages                a conversation whose last message is the assistant's
    question, answer        rendered with the chat template, or plainly

Lines are counted from 1, as editors count them; rows from 0, as everything after this file counts them.
"""

import csv
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from expunge.data.benchmark import Row
from expunge.errors import UserError, did_you_mean

FORMATS: tuple[tuple[str, ...], ...] = (("question", "answer"), ("prompt", "completion"), ("messages",), ("text",))
"""The columns of each format; a row that has the columns of several is read as the first of them."""

FORMATS_IN_WORDS = "question and answer, prompt and completion, messages, or text"

Record = tuple[str, Any]
"""Where a row stands (`file:line` or `file: row i`) and the row as the file has it, nothing checked."""

_HUB_ID = re.compile(r"(?P<name>\w[\w.-]*(?:/[\w.-]+)?)(?::(?P<config>[\w.-]+))?")


def read_rows(source: str | Path, *, split: str | None = None) -> list[Row]:
    """Read a file, a folder or a hub data set as rows of one format.

    `source` is a `.jsonl`, `.json`, `.csv` or `.parquet` file; a folder with one such file, with one a split
    (`<split>.<ext>`), or written by `save_to_disk`; or a hub id such as `locuslab/TOFU:forget10` (name:config).
    `split` chooses within a folder or a hub data set; left out, it is the only one there is, or `train`.

    Raises `UserError` if the source is missing or unreadable, has no rows, or has a row in no known format or in
    another format than the first.
    """
    records = read_records(source, split=split)
    rows = [normalise(record, where) for where, record in records]
    for (where, _), row in zip(records, rows, strict=True):
        if row.keys() != rows[0].keys():
            raise UserError(
                f"{where} has the columns {' and '.join(row)} but the first row has {' and '.join(rows[0])}; "
                "give every row of a file the same columns."
            )
    return rows


def read_records(source: str | Path, *, split: str | None = None) -> list[Record]:
    """Like `read_rows`, with every column left as it is, each row with the place it stands in.

    Use when a benchmark has columns of its own, such as TOFU's `perturbed_answer`.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        records = _read_folder(path, split)
    elif path.is_file():
        if split is not None:
            raise UserError(f"{source} is a single file, which has no split {split!r}; leave the split out.")
        records = _read_file(path)
    elif isinstance(source, str) and (hub := _HUB_ID.fullmatch(source)) and path.suffix.lower() not in _READERS:
        records = _read_hub(hub["name"], hub["config"], split or "train")
    else:
        raise _missing(path)
    if not records:
        raise UserError(f"{source} has no rows; give a file with at least one.")
    return records


def normalise(record: Any, where: str) -> Row:
    """Keep the columns of the first of `FORMATS` that `record` has all of, checked; drop the others.

    Messages keep their role and content; a `messages` cell that is a string is read as JSON (CSV has no lists).
    `where` opens the message of the `UserError` for a missing column or a cell of the wrong type.
    """
    if not isinstance(record, dict):
        raise UserError(f"{where} is {_kind(record)} instead of an object with columns; rows need {FORMATS_IN_WORDS}.")
    columns = next((c for c in FORMATS if all(name in record for name in c)), None)
    if columns is None:
        raise _no_format(record, where)
    if columns == ("messages",):
        return {"messages": _messages(record["messages"], "messages", where, ends_with_assistant=True)}
    if columns == ("prompt", "completion") and isinstance(record["prompt"], list):
        prompt = _messages(record["prompt"], "prompt", where)
        completion = _messages(record["completion"], "completion", where, ends_with_assistant=True)
        if len(completion) > 1:
            raise UserError(
                f"{where}: completion has {len(completion)} messages, of which only the last would be supervised; "
                "keep the assistant's one message and move the others to the prompt."
            )
        return {"prompt": prompt, "completion": completion}
    return {name: _text(record[name], name, where, may_be_empty=name == "prompt") for name in columns}


def _no_format(record: dict[Any, Any], where: str) -> UserError:
    found = [str(name) for name in record]
    half = next((c for c in FORMATS if any(name in record for name in c)), None)
    missing = next((name for name in half if name not in record), None) if half else None
    problem = f"the column {missing!r} is missing" if missing else "no known column"
    listed = ", ".join(repr(name[:30]) for name in found[:8]) or "none"
    hint = did_you_mean(missing, found) if missing else ""
    return UserError(f"{where}: {problem} (found: {listed}); rows need {FORMATS_IN_WORDS}.{hint}")


def _text(value: Any, name: str, where: str, *, may_be_empty: bool = False) -> str:
    if not isinstance(value, str):
        raise UserError(f"{where}: {name} is {_kind(value)} instead of text; write it as a string.")
    if not value.strip() and not may_be_empty:
        raise UserError(f"{where}: {name} is empty; fill it in or drop the row.")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{where}: {name} holds half a surrogate pair at character {error.start}, which no tokenizer can read; "
            "repair or drop the row."
        ) from None
    return value


def _messages(value: Any, name: str, where: str, *, ends_with_assistant: bool = False) -> list[dict[str, str]]:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise UserError(
                f"{where}: {name} is text instead of a list of messages; write the list as JSON, like "
                '[{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}].'
            ) from None
    if not isinstance(value, list) or not value:
        raise UserError(f"{where}: {name} is {_kind(value)} instead of a list of messages.")
    messages = []
    for i, message in enumerate(value):
        if not isinstance(message, dict) or "role" not in message or "content" not in message:
            raise UserError(f"{where}: {name}[{i}] is not an object with role and content; write it as one.")
        is_last = i == len(value) - 1
        role = _text(message["role"], f"{name}[{i}].role", where)
        content = _text(message["content"], f"{name}[{i}].content", where, may_be_empty=not is_last)
        messages.append({"role": role, "content": content})
    if ends_with_assistant and messages[-1]["role"] != "assistant":
        raise UserError(
            f"{where}: the last message of {name} has the role {messages[-1]['role']!r}; "
            "end with the assistant's, which is the part that is supervised."
        )
    return messages


def _kind(value: Any) -> str:
    """What a person would call the type of a cell."""
    if value is None:
        return "missing (null)"
    if isinstance(value, (list, dict)) and not value:
        return "empty"
    names = {bool: "true or false", int: "a number", float: "a number", str: "text", list: "a list", dict: "an object"}
    return names.get(type(value), type(value).__name__)


def _missing(path: Path) -> UserError:
    if not path.parent.is_dir():
        return UserError(f"{path} does not exist, nor does its folder {path.parent}; check the path.")
    hint = did_you_mean(path.name, [entry.name for entry in path.parent.iterdir()])
    return UserError(f"{path} does not exist; check the path.{hint}")


# ---- one reader a file type ------------------------------------------------------------------------------------


def _read_file(path: Path) -> list[Record]:
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise UserError(
            f"{path} has the unknown extension {path.suffix!r}; use {', '.join(list(_READERS)[:-1])} or .parquet."
        )
    try:
        return reader(path)
    except OSError as error:
        raise UserError(f"{path} can't be read: {error.strerror or error}.") from error


def _decode(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 (byte {error.start}); save it in that encoding.") from None


def _read_json(path: Path) -> list[Record]:
    """JSON lines or one JSON list, told apart by the first character: the extensions are used for both."""
    content = _decode(path)
    if content.lstrip().startswith("["):
        return [(f"{path}: row {i}", record) for i, record in enumerate(_loads(content, path, 1))]
    # Not str.splitlines(), which also breaks at U+2028 and its like; JSON strings may hold those as they are.
    lines = enumerate(content.split("\n"), 1)
    return [(f"{path}:{number}", _loads(line, path, number)) for number, line in lines if line.strip()]


def _loads(text: str, path: Path, line: int) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        where = f"{path}:{line + error.lineno - 1}"
        problem = f"{error.msg} at character {error.colno}"
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, lists nested as deep
        where, problem = f"{path}:{line}", str(error)
    raise UserError(f"{where} is not valid JSON ({problem}); write one object a line, or one list of objects.")


def _read_csv(path: Path) -> list[Record]:
    reader = csv.reader(io.StringIO(_decode(path), newline=""), strict=True)
    records: list[Record] = []
    header: list[str] | None = None
    start = 1
    try:
        for cells in reader:
            where, start = f"{path}:{start}", reader.line_num + 1
            if not cells:
                continue
            if header is None:
                header = cells
                continue
            if len(cells) != len(header):
                raise UserError(
                    f"{where} has {len(cells)} cells but the header has {len(header)}; "
                    "put cells that hold commas or line breaks in double quotes."
                )
            records.append((where, dict(zip(header, cells, strict=True))))
    except csv.Error as error:
        raise UserError(f"{path}:{start} is not valid CSV ({error}); repair the line, or use JSON lines.") from None
    return records


def _read_parquet(path: Path) -> list[Record]:
    import pyarrow
    import pyarrow.parquet

    try:
        records = pyarrow.parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise UserError(f"{path} can't be read as Parquet ({_first_line(error)}); write it again.") from error
    return _numbered(records, str(path))


_READERS: dict[str, Callable[[Path], list[Record]]] = {
    ".jsonl": _read_json,
    ".json": _read_json,
    ".ndjson": _read_json,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}


# ---- sources with splits ---------------------------------------------------------------------------------------


def _read_folder(folder: Path, split: str | None) -> list[Record]:
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        return _read_saved(folder, split)
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in _READERS)
    if not files:
        raise UserError(f"{folder} has no data file; put a {', '.join(_READERS)} file in it.")
    if split is None and len(files) == 1:
        return _read_file(files[0])
    chosen = [file for file in files if file.stem == (split or "train")]
    if len(chosen) > 1:
        raise UserError(f"{folder} has {' and '.join(f.name for f in chosen)}; name the file that you mean.")
    if not chosen:
        raise _no_split(folder, split, [file.stem for file in files])
    return _read_file(chosen[0])


def _read_saved(folder: Path, split: str | None) -> list[Record]:
    import datasets

    try:
        saved = datasets.load_from_disk(folder)
    except Exception as error:  # a damaged folder: json, arrow and file system errors alike
        raise UserError(f"{folder} can't be read by datasets ({_first_line(error)}); save it again.") from error
    if isinstance(saved, datasets.Dataset):
        if split is not None:
            raise UserError(f"{folder} is a single data set, which has no split {split!r}; leave the split out.")
        return _numbered(saved.to_list(), str(folder))
    name = split or (next(iter(saved)) if len(saved) == 1 else "train")
    if name not in saved:
        raise _no_split(folder, split, [str(known) for known in saved])
    return _numbered(saved[name].to_list(), f"{folder}[{name}]")


def _no_split(folder: Path, split: str | None, known: list[str]) -> UserError:
    listed = ", ".join(known)
    if split is None:
        return UserError(f"{folder} holds several splits; choose one of {listed}.")
    return UserError(f"{folder} has no split {split!r}; choose one of {listed}.{did_you_mean(split, known)}")


def _read_hub(name: str, config: str | None, split: str) -> list[Record]:
    import datasets

    source = f"{name}:{config}" if config else name
    try:
        data = datasets.load_dataset(name, config, split=split)
    except Exception as error:  # of a dozen types: no network, no such data set, configuration or split, no access
        raise UserError(
            f"{source} (split {split}) is no local file or folder and could not be loaded from the hub "
            f"({type(error).__name__}: {_first_line(error)}); check the path or the name, and the network."
        ) from error
    return _numbered(list(data), f"{source}[{split}]")


def _numbered(records: list[Any], source: str) -> list[Record]:
    return [(f"{source}: row {i}", record) for i, record in enumerate(records)]


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:200].rstrip(".")
