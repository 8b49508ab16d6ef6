"""Checks for when something does not work: versions, device, caches, one tiny training step."""

import os
import tempfile
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from expunge.errors import first_line

PACKAGES = ("torch", "transformers", "peft", "accelerate", "pydantic", "scipy")


def examine() -> list[dict[str, Any]]:
    """Rows `{check, found, advice, fatal}`; `advice` is empty where all is well."""
    rows = [_package(name) for name in PACKAGES]
    if any(row["fatal"] for row in rows):
        return rows
    for check in (_device, _fused_head, _cache, _hub, _training_step):
        try:
            rows.append(check())
        except Exception as error:  # whatever it is, it is what the person came here to learn
            problem = f"{type(error).__name__}: {first_line(error)}"
            rows.append(
                _row(check.__name__.strip("_").replace("_", " "), problem, "repair the installation", fatal=True)
            )
    return rows


def _row(check: str, found: str, advice: str = "", fatal: bool = False) -> dict[str, Any]:
    return {"check": check, "found": found, "advice": advice, "fatal": fatal}


def _package(name: str) -> dict[str, Any]:
    wanted = next(r.specifier for r in map(Requirement, requires("expunge") or []) if r.name == name)
    try:
        installed = version(name)
    except PackageNotFoundError:
        return _row(name, "missing", f"pip install '{name}{wanted}'", fatal=True)
    return _row(
        name, installed, "" if wanted.contains(installed, prereleases=True) else f"pip install '{name}{wanted}'"
    )


def _device() -> dict[str, Any]:
    import torch

    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        return _row("device", f"{torch.cuda.get_device_name()}, {free / 2**30:.0f} of {total / 2**30:.0f} GiB free")
    return _row("device", f"CPU, {torch.get_num_threads()} threads", "fine for small models; a GPU for real ones")


def _fused_head() -> dict[str, Any]:
    import torch.nn.functional as F

    if hasattr(F, "linear_cross_entropy"):
        return _row("head without logits", "torch's linear_cross_entropy")
    return _row("head without logits", "chunked", "torch ≥ 2.13 has a faster one")


def _cache() -> dict[str, Any]:
    from expunge.system.cache import cache_directory

    path = cache_directory()
    parent = next(p for p in (path, *path.parents) if p.exists())
    if parent.is_dir() and os.access(parent, os.W_OK):
        return _row("cache", str(path))
    return _row("cache", f"{path} (not writable)", "set EXPUNGE_CACHE to a folder that is", fatal=True)


def _hub() -> dict[str, Any]:
    offline = os.environ.get("HF_HUB_OFFLINE", "0") not in ("0", "")
    return _row("hub", "offline (HF_HUB_OFFLINE)" if offline else "as the network allows")


def _training_step() -> dict[str, Any]:
    from expunge.modeling.loading import ScratchConfig, build_scratch, train_tokenizer
    from expunge.objectives import NLL, Unilogit
    from expunge.training.arguments import UnlearnConfig
    from expunge.training.trainer import UnlearnTrainer

    size = ScratchConfig(layers=1, hidden=16, heads=2, vocab=300, context=64)
    tokenizer = train_tokenizer(["a question and an answer"], size)
    with tempfile.TemporaryDirectory() as folder:
        trainer = UnlearnTrainer(
            build_scratch(size, tokenizer, seed=0),
            UnlearnConfig(output_dir=str(Path(folder)), max_steps=1, save_strategy="no", disable_tqdm=True),
            objective=Unilogit(),
            retain=NLL(),
            forget_dataset=[{"question": "a?", "answer": "b"}],
            retain_dataset=[{"question": "c?", "answer": "d"}],
            processing_class=tokenizer,
        )
        trainer.train()
    return _row("one unlearning step", f"loss {trainer.state.log_history[0]['loss']:.3f}")
