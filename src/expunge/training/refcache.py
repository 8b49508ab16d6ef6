"""The starting model's numbers for the training rows, computed once and kept on disk for every run that asks the same.

Tables of numbers, one row a token, named by the hash of all that decides them and mapped into memory, so that only the
rows of a batch are ever read.
"""

import hashlib
import logging
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from math import prod
from pathlib import Path

import torch
from filelock import Timeout
from torch import Tensor, nn

from expunge.errors import MachineError
from expunge.system import cache, manifest, ranks
from expunge.system.disk import partial_of, private, remove

log = logging.getLogger(__name__)

FORMAT = 1
"""Raise when the same inputs would give other numbers, so that older tables are not taken for them."""

KEEP_BYTES = 32 * 2**30
"""Tables longest unused are deleted when all together take more than this."""

TableShape = tuple[tuple[int, ...], torch.dtype]
"""Shape of a table, rows first."""

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


def cached_tables(key: str, shapes: Mapping[str, TableShape], fill: Callable[[Write], None]) -> dict[str, Tensor]:
    """The tables of these `shapes` under `key`, mapped: found on disk, or written there by `fill`.

    With several ranks all call this, `fill` writes each one's share, and their union is every row. Two runs never
    write the same tables at once, and tables show under their name when they are whole. Tables that are found are read
    once to compare their SHA-256 sums (about a second a GiB and thread), and written again where these differ.
    Raises `MachineError` where they can't be written.
    """
    folder = cache.cache_directory() / "references" / key
    partial = partial_of(folder)

    def write(name: str, first: int, rows: Tensor) -> None:
        with (partial / name).open("r+b") as file:
            file.seek(first * prod(rows.shape[1:]) * rows.element_size())
            file.write(_raw(rows))

    try:
        with cache.lock_of(folder) if ranks.first() else nullcontext():
            if not ranks.broadcast(lambda: _is_whole(folder)):
                if ranks.first():
                    remove(partial)  # of a writer that was killed
                    manifest.begin(partial)
                    with private():
                        for name in shapes:
                            (partial / name).touch()
                ranks.wait()
                fill(write)
                ranks.wait()
                if ranks.first():
                    manifest.seal(partial)
                    partial.replace(folder)
            else:
                log.info("reference: found in %s", folder)
            if ranks.first():
                remove(partial)
                cache.used(folder)
                with suppress(FileNotFoundError):  # another run makes room, too
                    _make_room(folder)
            ranks.wait()
            mapped = {name: _map(folder / name, *shape) for name, shape in shapes.items()}
            ranks.wait()  # the lock is held until all have mapped them: nobody deletes them before
        return mapped
    except (OSError, MachineError) as error:
        cause = error.__cause__ if isinstance(error, MachineError) else error
        reason = getattr(cause, "strerror", None) or cause
        size = sum(prod(shape) * dtype.itemsize for shape, dtype in shapes.values()) / 2**20
        raise MachineError(
            f"train.reference: {size:.0f} MiB of what the starting model says can't be kept in {folder.parent} "
            f"({reason}); set EXPUNGE_CACHE to a folder with room that every process sees, or take "
            f"frozen_copy or adapter_off."
        ) from error


def _is_whole(folder: Path) -> bool:
    """Whether the tables are there as they were written; damaged ones are removed."""
    if not folder.is_dir():
        return False
    if wrong := manifest.damage(folder):
        log.warning("reference: %s; it is computed again", wrong)
        remove(folder)
        return False
    return True


def _map(path: Path, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A table as it is on disk: read page by page as its rows are asked for, and never written."""
    path.stat()  # torch's own error for a file that is not there is no OSError
    return torch.from_file(str(path), shared=False, size=prod(shape), dtype=dtype).view(shape)


def _raw(x: Tensor) -> memoryview:
    return x.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def _make_room(newest: Path) -> None:
    """Delete the tables that were used longest ago until the rest fits; who has mapped them keeps them."""
    folders = sorted((p for p in newest.parent.iterdir() if p.is_dir()), key=lambda p: -p.stat().st_mtime)
    total = 0
    for folder in folders:
        total += sum(file.stat().st_size for file in folder.iterdir() if file.name != manifest.NAME)
        if total > KEEP_BYTES and folder != newest:
            with suppress(Timeout), cache.lock_of(folder.with_suffix(""), timeout=0):
                remove(folder)
