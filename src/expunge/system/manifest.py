"""Folders that are whole: a manifest of names, sizes and SHA-256 sums, written last and checked before use.

Two forms. A *sealed* folder (a checkpoint, a model, a table) is written once: `begin`, its files, `seal`. A folder that
*grows* (a run directory) takes up several files at once with `commit`; after a kill `recover` finishes or undoes that.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

from expunge.system.disk import PARTIAL, flush, partial_of, private, remove, write_whole, writing

NAME = "manifest.json"

Entries = dict[str, dict[str, Any]]
"""`bytes` and `sha256` of each file, by its path inside the folder."""


def begin(folder: Path) -> None:
    """Make a folder that is to be sealed, and mark it as not whole yet."""
    with private(), writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        partial_of(folder / NAME).touch()  # first, so that no kill leaves files with neither mark nor manifest
        (folder / NAME).unlink(missing_ok=True)


def seal(folder: Path) -> None:
    """Write the manifest of every file in a folder, after these are on the disk."""
    with writing(folder):
        files = _files(folder)
        for file in files:
            flush(folder / file)
        for inner in {folder, *((folder / file).parent for file in files)}:
            flush(inner)
        _write(folder, entries(folder, files))


def is_sealed(folder: Path) -> bool:
    return (folder / NAME).is_file()


def is_begun(folder: Path) -> bool:
    """Whether the folder's writing was begun and not ended. A kill inside `begin` leaves an empty folder."""
    return not is_sealed(folder) and (partial_of(folder / NAME).exists() or not any(folder.iterdir()))


def discard(folder: Path) -> None:
    """Delete a folder whose writing was begun. A kill at any moment leaves a folder that `is_begun`, or none."""
    for path in folder.iterdir():
        if path.name != NAME + PARTIAL:
            remove(path)
    remove(folder)


def damage(folder: Path, *, extra: bool = True) -> str | None:
    """The first file that is not as it was when the folder was sealed, in words; `None` if the folder is whole.

    `extra=False` lets files be added. Costs one read of every byte, at the speed of SHA-256 on each thread.
    """
    try:
        listed = read(folder)
    except ValueError as error:
        return str(error)
    if listed is None:
        return f"{folder} has no {NAME}, which is written last"
    if extra and (added := sorted({*_files(folder)} - listed.keys())):
        return f"{folder / added[0]} was not there when the folder was written"
    return damage_of(folder, listed)


def damage_of(folder: Path, listed: Entries) -> str | None:
    """The first of the listed files that is missing or has other content, in words."""
    for name, entry in listed.items():
        file = folder / name
        if not file.is_file():
            return f"{file} is missing"
        if (size := file.stat().st_size) != entry["bytes"]:
            return f"{file} has {size} bytes and was written with {entry['bytes']}"
    for name, entry in entries(folder, listed).items():
        if entry["sha256"] != listed[name]["sha256"]:
            return f"{folder / name} is not as it was written (its SHA-256 sum is another)"
    return None


def read(folder: Path) -> Entries | None:
    """The manifest of a folder, `None` without one; `ValueError` says in words that it is damaged."""
    try:
        listed = json.loads((folder / NAME).read_bytes())["files"]
        assert all(isinstance(e["bytes"], int) and isinstance(e["sha256"], str) for e in listed.values())
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError, AttributeError, AssertionError, RecursionError):
        raise ValueError(f"{folder / NAME} is damaged") from None
    return listed


def entries(folder: Path, files: Iterable[str]) -> Entries:
    """Size and SHA-256 sum of each file; several at a time, since hashing lets other threads run."""
    names = list(files)
    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        return dict(zip(names, pool.map(lambda name: _entry(folder / name), names), strict=True))


def entries_once(folder: Path, files: Iterable[str]) -> Entries:
    """As `entries`, but read again in this process only where a file's size or time of change is another."""
    stats = ((name, (folder / name).stat()) for name in files)
    return _read_once(folder, tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats))


@cache
def _read_once(folder: Path, files: tuple[tuple[str, int, int], ...]) -> Entries:
    return entries(folder, (name for name, *_ in files))


def commit(folder: Path, texts: Mapping[str, str], also: Iterable[str] = ()) -> None:
    """Write several files at once: after a kill at any moment `recover` leaves all of the new ones, or none.

    The manifest then lists them, the files in `also`, which are in place already, and all that it listed before.
    Its own renaming is the moment from which the new files count.
    """
    with private(), writing(folder):
        for name, text in texts.items():
            staged = partial_of(folder / name)
            staged.parent.mkdir(exist_ok=True)
            staged.write_text(text, encoding="utf-8")
            flush(staged)
        new = {name: _entry(partial_of(folder / name)) for name in texts}
        _write(folder, {**(read(folder) or {}), **entries(folder, also), **new})
        for name in texts:
            partial_of(folder / name).replace(folder / name)


def recover(folder: Path) -> None:
    """Finish the `commit` that a kill interrupted, or remove what it had staged."""
    listed = read(folder) or {}
    for staged in [*folder.glob(f"*{PARTIAL}"), *folder.glob(f"*/*{PARTIAL}")]:
        name = str(staged.relative_to(folder)).removesuffix(PARTIAL)
        if name != NAME and staged.name == NAME + PARTIAL:
            continue  # the mark of a folder whose own writing was begun
        if staged.is_file() and listed.get(name) == _entry(staged):
            staged.replace(folder / name)
        else:
            remove(staged)


def _files(folder: Path) -> list[str]:
    paths = (path for path in folder.rglob("*") if not path.is_dir())
    names = (str(path.relative_to(folder)) for path in paths)
    return sorted(name for name in names if name not in (NAME, NAME + PARTIAL))


def _entry(file: Path) -> dict[str, Any]:
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
        return {"bytes": os.fstat(stream.fileno()).st_size, "sha256": digest}


def _write(folder: Path, listed: Entries) -> None:
    write_whole(folder / NAME, json.dumps({"files": listed}, indent=1, sort_keys=True) + "\n")
    flush(folder)
