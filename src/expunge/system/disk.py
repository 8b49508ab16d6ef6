"""How files are written: for their owner alone, never by half, and with a sentence where the disk refuses.

Imports nothing heavy, since pages are written without torch.
"""

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from expunge.errors import MachineError, UserError

PARTIAL = ".partial"
"""Ends the name of what is not written to its end."""

LOCK = ".lock"

ROOM = "make room"


class DiskError(MachineError):
    """An error of the file system; a caller that knows how to go on afterwards may add it."""


REMEDIES = {
    errno.ENOSPC: ROOM,
    errno.EDQUOT: ROOM,
    errno.EFBIG: ROOM,
    errno.EROFS: "take a folder that can be written",
    errno.EACCES: "take a folder that is yours, or change its permissions",
    errno.EPERM: "take a folder that is yours, or change its permissions",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ELOOP: "mend the links",
    errno.ENOTDIR: "take another folder",
    errno.EEXIST: "take another folder",
    errno.EISDIR: "take another name",
    errno.EIO: "look at the disk",
}
"""Remedies for errors of the file system."""

FULL = re.compile(
    r"no space left|disk quota|os error 28|os error 122|PytorchStreamWriter failed|unexpected pos \d+ vs \d+", re.I
)
"""How libraries that write by themselves (safetensors, torch) say that a disk is full."""


@contextmanager
def private() -> Iterator[None]:
    """Make files and folders inside this context their owner's alone (0600, 0700), whatever the umask."""
    usual = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(usual)


@contextmanager
def writing(place: Path, then: str = "") -> Iterator[None]:
    """Raise `DiskError` for what the file system refuses inside this context; it names the file, else `place`.

    `then` is what to do after the remedy, such as "go on with --resume".
    """
    after = f", then {then}" if then else ""
    try:
        yield
    except DiskError as error:
        if not then or ", then " in str(error):
            raise
        raise DiskError(f"{str(error).removesuffix('.')}{after}.") from error
    except OSError as error:
        if error.errno not in REMEDIES:
            raise
        where = printable(error.filename) if isinstance(error.filename, str | bytes | os.PathLike) else printable(place)
        raise DiskError(f"{where}: {os.strerror(error.errno)}; {REMEDIES[error.errno]}{after}.") from error
    except UserError:
        raise
    except Exception as error:
        if not FULL.search(str(error)):
            raise
        raise DiskError(f"{printable(place)}: {os.strerror(errno.ENOSPC)}; {ROOM}{after}.") from error


def printable(path: str | bytes | os.PathLike[str] | os.PathLike[bytes]) -> str:
    """A path as text that can be printed; a long one is cut."""
    text = os.fsencode(path).decode("utf-8", "backslashreplace").replace("\n", "\\n")
    return text if len(text) <= 300 else f"{text[:100]}…{text[-60:]}"


def partial_of(path: Path) -> Path:
    """Where a file or folder is until it is written to its end."""
    return path.with_name(path.name + PARTIAL)


def write_whole(path: Path, text: str) -> None:
    """Write a file that is never there by half, for its owner alone."""
    with private(), writing(path):
        partial_of(path).write_text(text, encoding="utf-8")
        flush(partial_of(path))
        partial_of(path).replace(path)


def flush(path: Path) -> None:
    """Have the system put a file, or the names in a folder, on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """Delete a file or a whole folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def make_folder(folder: Path) -> list[Path]:
    """Make a folder and those above it that are missing, for their owner alone; those that were made, innermost first.

    Raises `OSError` where that can't be; then none of them is left.
    """
    missing = [p for p in (folder, *folder.parents) if not os.path.lexists(p)]
    try:
        with private():
            folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        remove_empty(missing)
        raise
    return missing


@contextmanager
def alone(folder: Path, name: str = LOCK, *, at: Path | None = None) -> Iterator[None]:
    """Hold the lock `name` in a folder, which is made if need be, so that no other process writes `at` (the folder).

    The lock dies with its process. It leaves no file, and no folder that was made for it and stayed empty. Raises
    `MachineError` where another process holds it, and where no file can be written in the folder.
    """
    made: list[Path] = []
    lock = FileLock(folder / name, timeout=0.2)
    try:
        made = make_folder(folder)
        (folder / name).touch(0o600)
        lock.acquire()
    except Timeout:
        where = printable(at or folder)
        raise MachineError(
            f"another expunge is at work in {where}; wait until it has ended, or give another --out."
        ) from None
    except OSError as error:
        remove_empty(made)
        why = f"{printable(folder)} can't be written ({error.strerror or error})"
        if isinstance(error, FileExistsError | NotADirectoryError):
            file = next((p for p in (folder, *folder.parents) if p.is_file()), folder)
            why = f"{printable(file)} is a file, so nothing can be written to {printable(folder)}"
        raise MachineError(f"{why}; give another --out.") from None
    try:
        yield
    finally:
        with suppress(OSError):
            (folder / name).unlink()  # while it is held: who waits for it then waits for the next one
        lock.release()
        remove_empty(made)


def remove_empty(folders: list[Path]) -> None:
    """Delete these folders, innermost first, as far as they are empty."""
    with suppress(OSError):
        for folder in folders:
            if folder.exists():
                folder.rmdir()
