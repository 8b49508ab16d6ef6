"""The cache between runs: where it is, what it is of, how large, when it was last used; and how it is wiped.

Every kept folder `KIND/NAME` has a lock `KIND/NAME.lock` beside it, and is `KIND/NAME.partial` until it is whole. Who
makes or replaces it holds the lock. Imports nothing heavy.
"""

import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from expunge.errors import UserError
from expunge.system import manifest
from expunge.system.disk import PARTIAL, partial_of, private, remove, writing

log = logging.getLogger(__name__)

KINDS = ("targets", "references", "unpacked")

ELSEWHERE = "or set EXPUNGE_CACHE to another folder"


@dataclass(frozen=True)
class Kept:
    """A folder that is kept: `what` it holds in words, and in `bytes` what it takes with its unfinished part."""

    kind: str
    name: str
    what: str
    bytes: int
    used: float

    @property
    def folder(self) -> Path:
        return cache_directory() / self.kind / self.name


def cache_directory() -> Path:
    """`$EXPUNGE_CACHE`, else `~/.cache/expunge`."""
    named = os.environ.get("EXPUNGE_CACHE")
    try:
        return Path(named) if named else Path.home() / ".cache" / "expunge"
    except RuntimeError:
        raise UserError("there is no home folder to keep models in; set EXPUNGE_CACHE to a folder.") from None


def lock_of(folder: Path, *, timeout: float = -1) -> FileLock:
    """The lock of a kept folder, whose parent is made for its owner alone."""
    with private(), writing(folder.parent, ELSEWHERE):
        folder.parent.mkdir(parents=True, exist_ok=True)
        path = folder.with_name(f"{folder.name}.lock")
        path.touch(0o600)  # says what is wrong with the folder, where FileLock would try again
    return FileLock(path, timeout=timeout)


def kept_or_made(final: Path, make: Callable[[Path], Path], *, again: str) -> Path:
    """The sealed folder `final` of the cache, which `make` makes if it is not there or not as it was sealed.

    `make` is given the unfinished folder beside `final`, whatever a kill has left in it, and returns the sealed folder
    that takes the name `final`. `again` says in the log what is done about a damaged one. No other process makes it at
    the same time.
    """
    with lock_of(final), writing(final, ELSEWHERE):
        partial = partial_of(final)
        if final.exists() and (wrong := manifest.damage(final)):
            log.warning("%s; %s", wrong, again)
            remove(final)
        if not final.exists():
            make(partial).replace(final)
        remove(partial)
        used(final)
    return final


def used(folder: Path) -> None:
    """Note that a kept folder has been used now."""
    with writing(folder, ELSEWHERE):
        os.utime(folder)


def cache_entries() -> list[Kept]:
    """Everything that is kept, of each kind the most recently used first."""
    return [entry for kind in KINDS for entry in sorted(_of_kind(kind), key=lambda e: -e.used)]


def clear(kinds: Sequence[str]) -> tuple[list[Kept], list[Kept]]:
    """Delete what is kept of these kinds; (deleted, left because a process is writing it)."""
    gone: list[Kept] = []
    left: list[Kept] = []
    for entry in cache_entries():
        if entry.kind in kinds:
            (gone if _deleted(entry) else left).append(entry)
    return gone, left


def _deleted(entry: Kept) -> bool:
    lock = lock_of(entry.folder, timeout=0)
    try:
        with lock, writing(entry.folder):
            remove(entry.folder.with_name(entry.name + PARTIAL))
            remove(entry.folder)
            remove(Path(lock.lock_file))  # while it is held: who waits for it then waits for the next one
    except Timeout:
        return False
    return True


def _of_kind(kind: str) -> Iterator[Kept]:
    parent = cache_directory() / kind
    names = {path.name.removesuffix(PARTIAL) for path in parent.glob("*") if path.is_dir()}
    for name in names:
        folder, unfinished = parent / name, parent / (name + PARTIAL)
        whole = folder.is_dir()
        files = [file for top in (folder, unfinished) for file in top.rglob("*") if file.is_file()]
        what = _what(kind, folder) if whole else "unfinished"
        when = max((path.stat().st_mtime for path in (folder, unfinished) if path.is_dir()), default=time.time())
        yield Kept(kind, name, what, sum(file.stat().st_size for file in files), when)


def _what(kind: str, folder: Path) -> str:
    if kind == "references":
        tables = sorted(file.name for file in folder.iterdir() if "." in file.name and file.suffix != ".json")
        return ", ".join(tables)
    try:
        about = json.loads((folder / "expunge.json").read_text(encoding="utf-8"))
        return str(about.get("about", about["title"]))
    except (OSError, ValueError, KeyError):
        return "a model"
