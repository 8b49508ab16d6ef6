"""A GGUF file as an ordinary checkpoint: its weights as floating-point numbers, its tokenizer and its chat template.

The checkpoint is made once and kept in the cache by the file's content. What training makes of it names the file.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from expunge.errors import UserError, first_line
from expunge.system import cache as kept
from expunge.system import manifest
from expunge.system.disk import private, remove

log = logging.getLogger(__name__)

SUFFIX = ".gguf"


def is_gguf(name: str | Path) -> bool:
    return Path(name).suffix == SUFFIX and Path(name).is_file()


def unpacked(file: Path) -> Path:
    """The folder of a checkpoint in float32 that computes what the GGUF file does, made now or found in the cache.

    Raises `UserError` without the package `gguf`, and for a file that transformers can't read.
    """
    if find_spec("gguf") is None:
        raise UserError(f"model: {str(file)!r} is a GGUF file, and the package that reads it is not installed; "
                        "pip install 'expunge[gguf]'.")  # fmt: skip
    stat = file.stat()
    return _unpacked(file, stat.st_size, stat.st_mtime_ns)


@cache
def _unpacked(file: Path, _size: int, _changed: int) -> Path:
    """The same, looked for once in a process."""
    digest = manifest.entries_once(file.parent, [file.name])[file.name]["sha256"]
    final = kept.cache_directory() / "unpacked" / digest[:16]

    def make(partial: Path) -> Path:
        log.info("unpacking %s into %s", file, final)
        with private():
            remove(partial)
            manifest.begin(partial)
            _unpack(file, partial)
            manifest.seal(partial)
        return partial

    return kept.kept_or_made(final, make, again=f"{file} is unpacked again")


def _unpack(file: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        with _read_once():
            tokenizer = AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name)
            packed = AutoModelForCausalLM.from_pretrained(str(file.parent), gguf_file=file.name, dtype=torch.float32)
    except Exception as error:
        raise UserError(
            f"model: {str(file)!r} can't be read as a GGUF file ({first_line(error)}); copy it again, or give the "
            f"checkpoint that it was made from."
        ) from error
    config: Any = packed.config
    del config.quantization_config  # transformers refuses to save what it says is quantised
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(packed.state_dict(), assign=True)
    model.generation_config = packed.generation_config
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@contextmanager
def _read_once() -> Iterator[None]:
    """Let transformers read a file's header and list its architecture's tensors once, not again for every use."""
    import gguf

    slow = {name: getattr(gguf, name) for name in ("GGUFReader", "get_tensor_name_map")}
    try:
        for name, make in slow.items():
            setattr(gguf, name, cache(make))
        yield
    finally:
        for name, make in slow.items():
            setattr(gguf, name, make)
