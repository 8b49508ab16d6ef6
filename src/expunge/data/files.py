"""Bytes → records: JSON lines, JSON, CSV, Parquet, plain text, a folder of them, or a data set on the hub.

Lines are counted from 1, as editors count them; rows from 0, as everything after this file counts them.
"""

import csv
import io
import json
import os
import re
import stat
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from expunge.errors import UserError, did_you_mean, first_line
from expunge.system import hub

SourceRecord = tuple[str, Any]
"""Where a record stands (`file:line` or `file: row i`) and the record as the file has it, nothing checked."""

_HUB_ID = re.compile(r"(?P<name>\w[\w.-]*(?:/[\w.-]+)?)(?::(?P<config>[\w.-]+))?")


def lines_of(records: Iterable[Mapping[str, Any]], **options: Any) -> str:
    """The content of a JSON lines file, which `read_records` reads. `options`: `json.dumps`'s."""
    return "".join(json.dumps(record, ensure_ascii=False, **options) + "\n" for record in records)


def read_records(source: str | Path, *, split: str | None = None) -> list[SourceRecord]:
    """The records of a file, a folder or a hub data set, with every column left as it is.

    `source` is a `.jsonl`, `.json`, `.csv` or `.parquet` file, or a `.txt` file, which is one text; a folder with one
    such file, with one a split (`<split>.<ext>`), with text files alone, each one record, or written by `save_to_disk`;
    or a hub id such as `locuslab/TOFU:forget10` (name:config).
    `split` chooses within a folder or a hub data set; left out, it is the only one there is, or `train`.

    Use where a benchmark has columns of its own, such as TOFU's `perturbed_answer`.
    Raises `UserError` if the source is missing or unreadable or holds nothing.
    """
    path = local_path(source, "data")
    try:
        if path.is_dir():
            records = _read_folder(path, split)
        elif path.is_file():
            if split is not None:
                raise UserError(f"{source} is a single file, which has no split {split!r}; leave the split out.")
            records = _read_file(path)
        elif path.exists():
            raise UserError(f"{path} is a pipe or a device; write the rows to a file.")
        elif isinstance(source, str) and (match := _HUB_ID.fullmatch(source)) and path.suffix.lower() not in READERS:
            records = _read_hub(match["name"], match["config"], split or "train")
        else:
            raise _missing(path)
    except OSError as error:
        raise UserError(f"{path} can't be read: {error.strerror or error}.") from error
    except MemoryError:
        raise UserError(f"{path} does not fit into memory; give a part of it.") from None
    if not records:
        raise UserError(f"{source} has no rows; give a file with at least one.")
    return records


def local_path(source: str | Path, name: str = "path") -> Path:
    """The path that a person means, `~` included. Raises `UserError` for one that no file can have."""
    try:
        path = Path(source).expanduser()
        str(path).encode()
        path.exists()  # asks the system, which knows the longest name
        if "\0" not in str(path):
            return path
        problem = "it holds a zero byte"
    except UnicodeEncodeError:
        problem = "it holds bytes that are not UTF-8"
    except RuntimeError:
        problem = "there is no such user"
    except (OSError, ValueError) as error:
        problem = str(getattr(error, "strerror", None) or error)
    shown = ascii(str(source))[1:-1]
    shown = shown if len(shown) <= 80 else f"{shown[:77]}..."
    raise UserError(f"{name}: {shown} can't be a path ({problem}); give another.")


def file_to_write(source: str | Path, name: str) -> Path:
    """The path of a file that is to be written. Raises `UserError` where something else has that name."""
    path = local_path(source, name)
    if not path.is_file() and os.path.lexists(path):
        raise UserError(
            f"{name}: {path} is not a file (a folder, a broken link, a pipe or a device); give another --out."
        )
    return path


def _missing(path: Path) -> UserError:
    if path.is_symlink():
        return UserError(f"{path} is a link that leads to no file; check where it leads.")
    if not path.parent.is_dir():
        return UserError(f"{path} does not exist, nor does its folder {path.parent}; check the path.")
    hint = did_you_mean(path.name, [entry.name for entry in path.parent.iterdir()])
    return UserError(f"{path} does not exist; check the path.{hint}")


# ---- one reader a file type ------------------------------------------------------------------------------------


def _read_file(path: Path) -> list[SourceRecord]:
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise UserError(
            f"{path} has the unknown extension {path.suffix!r}; use {', '.join(list(READERS)[:-1])} or {TEXT}."
        )
    if not path.stat().st_size:
        return []  # what the system makes up as it is read (/proc) says so too, and may never end
    return reader(path)


def read_text(path: Path) -> str:
    """A file's whole content. Raises `UserError` for another encoding than UTF-8 and for what is no file on a disk."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise UserError(f"{path} is not a file (a folder, a pipe or a device); write the rows to a file.")
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 (byte {error.start}); save it in that encoding.") from None


def _read_json(path: Path) -> list[SourceRecord]:
    """JSON lines or one JSON list, told apart by the first character: the extensions are used for both."""
    content = read_text(path)
    if content.lstrip().startswith("["):
        return [(f"{path}: row {i}", record) for i, record in enumerate(_loads(content, path, 1))]
    # Not str.splitlines(), which also breaks at U+2028 and its like; JSON strings may hold those as they are.
    lines = enumerate(content.split("\n"), 1)
    return [(f"{path}:{number}", _loads(line, path, number)) for number, line in lines if line.strip()]


class KeyTwice(Exception):
    """An object has one key twice, of which JSON readers would keep the last."""

    def __init__(self, key: str) -> None:
        self.key = key


def distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        keys = [key for key, _ in pairs]
        raise KeyTwice(next(key for key in keys if keys.count(key) > 1))
    return record


def _loads(text: str, path: Path, line: int) -> Any:
    try:
        return json.loads(text, object_pairs_hook=distinct)
    except KeyTwice as error:
        where = f"{path}:{line}" if line > 1 or "\n" not in text else f"{path}"
        raise UserError(f"{where} has the key {error.key[:60]!r} twice in one object; drop one of the two.") from None
    except json.JSONDecodeError as error:
        where = f"{path}:{line + error.lineno - 1}"
        problem = f"{error.msg} at character {error.colno}"
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, lists nested as deep
        where, problem = f"{path}:{line}", str(error)
    raise UserError(f"{where} is not valid JSON ({problem}); write one object a line, or one list of objects.")


def read_csv(path: Path) -> list[tuple[str, list[str]]]:
    """(`file:line`, cells) of every line that is not blank, the header among them; a cell may be of any length."""
    content = read_text(path)
    reader = csv.reader(io.StringIO(content, newline=""), strict=True)
    lines: list[tuple[str, list[str]]] = []
    start = 1
    try:
        with _cells_up_to(len(content)):
            for cells in reader:
                where, start = f"{path}:{start}", reader.line_num + 1
                if cells:
                    lines.append((where, cells))
    except csv.Error as error:
        raise UserError(f"{path}:{start} is not valid CSV ({error}); repair the line, or use JSON lines.") from None
    return lines


@contextmanager
def _cells_up_to(characters: int) -> Iterator[None]:
    """The csv module has one limit for the whole process."""
    before = csv.field_size_limit()
    csv.field_size_limit(min(max(before, characters), sys.maxsize, 2**31 - 1))
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _read_csv(path: Path) -> list[SourceRecord]:
    lines = read_csv(path)
    if not lines:
        return []
    (_, header), *others = lines
    if twice := next((name for name in header if header.count(name) > 1), None):
        raise UserError(f"{path} has the column {twice[:60]!r} twice; drop one of the two.")
    for where, cells in others:
        if len(cells) != len(header):
            raise UserError(
                f"{where} has {len(cells)} cells but the header has {len(header)}; "
                "put cells that hold commas or line breaks in double quotes."
            )
    return [(where, dict(zip(header, cells, strict=True))) for where, cells in others]


def _read_parquet(path: Path) -> list[SourceRecord]:
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
        names = table.column_names
        records = table.to_pylist()
    except Exception as error:  # of any type: a damaged file is found out anywhere in it
        raise UserError(f"{path} can't be read as Parquet ({first_line(error)}); write it again.") from error
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"{path} has the column {twice[:60]!r} twice; drop one of the two.")
    return _numbered(records, str(path))


def _read_plain(path: Path) -> list[SourceRecord]:
    return [(str(path), {"text": read_text(path)})]


TEXT = ".txt"

READERS: dict[str, Callable[[Path], list[SourceRecord]]] = {
    ".jsonl": _read_json,
    ".json": _read_json,
    ".ndjson": _read_json,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
    TEXT: _read_plain,
}


# ---- sources with splits ---------------------------------------------------------------------------------------


def _read_folder(folder: Path, split: str | None) -> list[SourceRecord]:
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        return _read_saved(folder, split)
    found = sorted(file for file in folder.iterdir() if file.suffix.lower() in READERS)
    files = [file for file in found if file.suffix.lower() != TEXT]  # beside data, a text is a note about it
    if found and not files and split is None:
        return [record for file in found for record in _read_plain(file)]
    files = files or found
    if not files:
        raise UserError(f"{folder} has no data file; put a {', '.join(READERS)} file in it.")
    if split is None and len(files) == 1:
        return _read_file(files[0])
    chosen = [file for file in files if file.stem == (split or "train")]
    if len(chosen) > 1:
        raise UserError(f"{folder} has {' and '.join(f.name for f in chosen)}; name the file that you mean.")
    if not chosen:
        raise _no_split(folder, split, [file.stem for file in files])
    return _read_file(chosen[0])


def _read_saved(folder: Path, split: str | None) -> list[SourceRecord]:
    import datasets

    try:
        saved = datasets.load_from_disk(folder)
    except Exception as error:  # a damaged folder: json, arrow and file system errors alike
        raise UserError(f"{folder} can't be read by datasets ({first_line(error)}); save it again.") from error
    if isinstance(saved, datasets.Dataset):
        if split is not None:
            raise UserError(f"{folder} is a single data set, which has no split {split!r}; leave the split out.")
        return _numbered(_listed(saved, folder), str(folder))
    name = split or (next(iter(saved)) if len(saved) == 1 else "train")
    if name not in saved:
        raise _no_split(folder, split, [str(known) for known in saved])
    return _numbered(_listed(saved[name], folder), f"{folder}[{name}]")


def _listed(data: Any, folder: Path) -> list[Any]:
    try:
        return data.to_list()
    except Exception as error:  # as above: what is mapped is read only now
        raise UserError(f"{folder} can't be read by datasets ({first_line(error)}); save it again.") from error


def _no_split(folder: Path, split: str | None, known: list[str]) -> UserError:
    listed = ", ".join(known)
    if split is None:
        return UserError(f"{folder} holds several splits; choose one of {listed}.")
    return UserError(f"{folder} has no split {split!r}; choose one of {listed}.{did_you_mean(split, known)}")


def _read_hub(name: str, config: str | None, split: str) -> list[SourceRecord]:
    import datasets

    source = f"{name}:{config}" if config else name
    try:
        with hub.asked():
            data = datasets.load_dataset(name, config, split=split)
    except Exception as error:  # of a dozen types: no network, no such data set, configuration or split, no access
        raise UserError(
            f"{source} (split {split}) is no local file or folder, and could not be loaded from the hub "
            f"({type(error).__name__}: {first_line(error)}); check the path or the name, and the network."
        ) from error
    return _numbered(list(data), f"{source}[{split}]")


def _numbered(records: list[Any], source: str) -> list[SourceRecord]:
    return [(f"{source}: row {i}", record) for i, record in enumerate(records)]
