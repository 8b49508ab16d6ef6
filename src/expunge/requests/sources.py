"""Everything that is to be searched: files, folders with all that lies in them, data sets of the hub → records."""

import json
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from expunge.data.files import READERS, SourceRecord, local_path, read_records
from expunge.errors import UserError

log = logging.getLogger(__name__)

SHOWN = 5
"""Kinds of files that are named of those that can't be read."""


def search_in(sources: Sequence[str | Path], *, but: Path | None = None) -> list[SourceRecord]:
    """The records of all sources, every file of a folder and of the folders in it; not what lies in the folder `but`.

    A warning says how many files of a folder are of a kind that can't be read: a person may be in them. Raises
    `UserError` for what can't be read, as `read_records` does, and for a folder without a file that can.
    """
    records: list[SourceRecord] = []
    for source in sources:
        path = local_path(source, "in")
        if path.is_dir():
            records += _folder(path, None if but is None else but.resolve())
        else:
            records += read_records(source)
    return records


def _folder(folder: Path, but: Path | None) -> list[SourceRecord]:
    records: list[SourceRecord] = []
    left: Counter[str] = Counter()
    found = 0
    for path in _walk(folder, but):
        if path.is_dir():
            found += 1
            records += _saved(path)
        elif path.suffix.lower() not in READERS:
            left[path.suffix.lower() or "without an extension"] += 1
        elif path.stat().st_size:
            found += 1
            records += read_records(path)
    if not found:
        raise UserError(f"{folder} has no data file; put a {', '.join(READERS)} file in it.")
    if left:
        kinds = ", ".join(f"{count} {kind}" for kind, count in left.most_common(SHOWN))
        more = ", …" if len(left) > SHOWN else ""
        log.warning("%s: not searched: %s%s (files of other kinds); write them as text", folder, kinds, more)
    return records


def _walk(folder: Path, but: Path | None) -> Iterator[Path]:
    """Files, and folders of `save_to_disk` as a whole, by name; nothing hidden, nothing behind a link to a folder."""
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        yield folder
        return
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.resolve() == but:
            continue
        if path.is_dir():
            if not path.is_symlink():
                yield from _walk(path, but)
        elif path.is_file():
            yield path


def _saved(folder: Path) -> list[SourceRecord]:
    listing = folder / "dataset_dict.json"
    if not listing.is_file():
        return read_records(folder)
    splits = json.loads(listing.read_text(encoding="utf-8"))["splits"]
    return [record for split in splits for record in read_records(folder, split=split)]


def text_of(record: Any) -> str:
    """Every text and number of a record on lines of their own, in order; the names of columns are none."""
    return "\n".join(_values(record))


def _values(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _values(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _values(part)
    elif value is not None and not isinstance(value, bool | bytes):
        yield str(value)
