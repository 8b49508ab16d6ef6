"""What the starting model says of the training rows, computed once and kept on disk for every run that asks the same.

Tables of numbers, one row a token, named by the hash of all that decides them and mapped into memory, so that only the
rows of a batch are ever read. Knows files, locks and names; knows nothing of roles or losses.
"""

import hashlib
import logging
import os
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from math import prod
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from torch import Tensor, nn

from expunge import ranks
from expunge.errors import UserError
from expunge.targets import cache_directory

log = logging.getLogger(__name__)

FORMAT = 1
"""Raise when the same inputs would give other numbers, so that older tables are not taken for them."""

KEEP_BYTES = 32 * 2**30
"""Tables longest unused are deleted when all together take more than this."""

Shape = tuple[tuple[int, ...], torch.dtype]
"""Of a table: rows first."""

Write = Callable[[str, int, Tensor], None]
"""Put rows into a table: (its name, the first row's number, the rows [n, …])."""


def fingerprint(model: nn.Module) -> str:
    """A hash of every weight and buffer of `model`, tied ones once."""
    held = [*model.named_parameters(), *model.named_buffers()]
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:  # hashing lets other threads run
        contents = list(pool.map(lambda named: digest(named[1]), held))
    return digest(*(f"{name} {content}" for (name, _), content in zip(held, contents, strict=True)))


def digest(*parts: Tensor | object) -> str:
    """A hash of tensors, bit by bit, and of whatever else by how it is written."""
    sha = hashlib.sha256()
    for part in parts:
        if isinstance(part, Tensor):
            sha.update(f"{part.dtype} {tuple(part.shape)}".encode())
            sha.update(_raw(part))
        else:
            sha.update(f"{part!r} ".encode())
    return sha.hexdigest()


def kept(key: str, shapes: Mapping[str, Shape], fill: Callable[[Write], None]) -> dict[str, Tensor]:
    """The tables of these `shapes` under `key`, mapped: found on disk, or written there by `fill`.

    With several ranks all call this, `fill` writes each one's share, and their union is every row. Two runs never
    write the same tables at once, and tables show under their name when they are whole.
    Raises `UserError` where they can't be written.
    """
    folder = cache_directory() / "references" / key
    partial = folder.with_suffix(".partial")

    def write(name: str, first: int, rows: Tensor) -> None:
        with (partial / name).open("r+b") as file:
            file.seek(first * prod(rows.shape[1:]) * rows.element_size())
            file.write(_raw(rows))

    try:
        if ranks.first():
            folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock") if ranks.first() else nullcontext():
            if not ranks.told(folder.is_dir):
                if ranks.first():
                    shutil.rmtree(partial, ignore_errors=True)  # of a writer that was killed
                    partial.mkdir()
                    for name in shapes:
                        (partial / name).touch()
                ranks.wait()
                fill(write)
                ranks.wait()
                if ranks.first():
                    for path in partial.iterdir():
                        with path.open("r+b") as file:
                            os.fsync(file.fileno())
                    partial.replace(folder)
            else:
                log.info("reference: found in %s", folder)
            if ranks.first():
                os.utime(folder)
                with suppress(FileNotFoundError):  # another run makes room, too
                    _make_room(folder)
            ranks.wait()
            mapped = {name: _map(folder / name, *shape) for name, shape in shapes.items()}
            ranks.wait()  # the lock is held until all have mapped them: nobody deletes them before
        return mapped
    except OSError as error:
        size = sum(prod(shape) * dtype.itemsize for shape, dtype in shapes.values()) / 2**20
        raise UserError(
            f"train.reference: {size:.0f} MiB of what the starting model says can't be kept in {folder.parent} "
            f"({error.strerror or error}); set EXPUNGE_CACHE to a folder with room that every process sees, or take "
            f"frozen_copy or adapter_off."
        ) from error


def _map(path: Path, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A table as it is on disk: read page by page as its rows are asked for, and never written."""
    path.stat()  # torch's own error for a file that is not there is no OSError
    return torch.from_file(str(path), shared=False, size=prod(shape), dtype=dtype).view(shape)


def _raw(x: Tensor) -> memoryview:
    return x.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def _make_room(newest: Path) -> None:
    """Delete the tables that were used longest ago until the rest fits; who has mapped them keeps them."""
    found = sorted((p for p in newest.parent.iterdir() if p.is_dir()), key=lambda p: -p.stat().st_mtime)
    total = 0
    for folder in found:
        total += sum(file.stat().st_size for file in folder.iterdir())
        if total > KEEP_BYTES and folder != newest:
            with suppress(Timeout), FileLock(f"{folder.with_suffix('')}.lock", timeout=0):
                shutil.rmtree(folder)
