"""From-scratch models: the target that learnt everything and its retrained twin that never saw the forget rows.

Trained once and kept by the hash of all that decides them (rows, sizes, settings, seed).
"""

import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from expunge.data.benchmark import Row
from expunge.data.encode import QUESTION_FORMAT
from expunge.errors import UserError
from expunge.modeling.loading import ScratchConfig, build_scratch, save, train_tokenizer
from expunge.objectives import NLL
from expunge.system import cache, manifest, ranks
from expunge.system.disk import partial_of, remove, write_whole, writing

log = logging.getLogger(__name__)

FORMAT = 1
"""Raise when the same inputs would give another model, so that older ones are not taken for it."""


class FinetuneConfig(BaseModel):
    """How a from-scratch model learns its rows: AdamW, cosine schedule with a tenth of warm-up."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    epochs: int = Field(default=30, ge=1, le=1_000_000, description="passes over the rows")
    learning_rate: float = Field(default=2e-3, gt=0, allow_inf_nan=False, description="peak of the schedule")
    batch_size: int = Field(default=32, ge=1, description="rows a step")
    bf16: bool = Field(default=False, description="bfloat16 autocast over float32 weights")
    overlap: int = Field(
        default=0, ge=0, description="tokens that each part of a text too long for the context repeats"
    )
    seed: int | None = Field(default=None, ge=0, description="of these models; default the recipe's")


def train_from_scratch(
    rows: Sequence[Row],
    vocabulary_rows: Sequence[Row],
    *,
    scratch: ScratchConfig,
    finetune: FinetuneConfig,
    seed: int,
    title: str,
) -> Path:
    """The folder of a model that has learnt `rows`; trained now or found in the cache.

    The tokenizer is trained on `vocabulary_rows`, which target and twin must share so that their numbers compare.
    An interrupted training goes on where its last epoch ended; two processes never train the same model at once. A
    model whose files are no longer as they were written is trained again.
    """
    recipe = {
        "format": FORMAT,
        "scratch": scratch.model_dump(),
        "finetune": finetune.model_dump(exclude={"seed", *(() if finetune.overlap else ("overlap",))}),
        "seed": seed,
        "rows": _digest(rows),
        "vocabulary": _digest(vocabulary_rows),
    }
    final = cache.cache_directory() / "targets" / _digest(recipe)[:16]
    if ranks.count() > 1:
        if wrong := ranks.told(lambda: manifest.damage(final)):
            raise UserError(
                f"models trained from scratch are trained by one process, and {wrong}; give the same command without a "
                "launcher first, which keeps them, or name a trained model with --model."
            )
        return final
    with cache.lock_of(final), writing(final, cache.ELSEWHERE):
        partial = partial_of(final)
        if final.exists() and (wrong := manifest.damage(final)):
            log.warning("%s; the %s model is trained again", wrong, title)
            remove(final)
        if not final.exists():
            log.info("training %s (%d rows, %d epochs) into %s", title, len(rows), finetune.epochs, final)
            _train(rows, vocabulary_rows, scratch, finetune, seed, partial, title)
            about = f"{title}: {len(rows)} rows, {finetune.epochs} epochs, {scratch.layers} layers × {scratch.hidden}"
            told = json.dumps({**recipe, "title": title, "about": about}, indent=1)
            write_whole(partial / "model" / "expunge.json", told)
            manifest.seal(partial / "model")
            (partial / "model").replace(final)
        remove(partial)  # one that a kill left, too
        cache.used(final)
    return final


def _train(
    rows: Sequence[Row],
    vocabulary_rows: Sequence[Row],
    scratch: ScratchConfig,
    finetune: FinetuneConfig,
    seed: int,
    partial: Path,
    title: str,
) -> None:
    from expunge.training.arguments import UnlearnConfig
    from expunge.training.history import last_checkpoint
    from expunge.training.trainer import UnlearnTrainer

    tokenizer = train_tokenizer(row_texts(vocabulary_rows), scratch)
    args = UnlearnConfig(
        output_dir=str(partial),
        num_train_epochs=finetune.epochs,
        learning_rate=finetune.learning_rate,
        per_device_train_batch_size=finetune.batch_size,
        lr_scheduler_type="cosine",
        warmup_steps=0.1,
        bf16=finetune.bf16,
        overflow="split",
        overlap=finetune.overlap,
        seed=seed,
        logging_steps=20,
        save_strategy="epoch" if finetune.epochs * len(rows) > 20_000 else "no",
    )
    trainer = UnlearnTrainer(
        build_scratch(scratch, tokenizer, seed=seed),
        args,
        retain=NLL(),
        retain_dataset=rows,
        processing_class=tokenizer,
    )
    try:
        checkpoint = last_checkpoint(partial)
    except UserError as error:
        log.warning("%s; the %s model is trained from the start", str(error).partition(";")[0], title)
        remove(partial)
        checkpoint = None
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    save(trainer.accelerator.unwrap_model(trainer.model), tokenizer, partial / "model")


def row_texts(rows: Sequence[Row]) -> list[str]:
    """All the words of every row, as the BPE of a from-scratch model should see them."""
    return ["".join(QUESTION_FORMAT).format(**row) if "question" in row else _words(row) for row in rows]


def _words(value: Any) -> str:
    """Every string in a row of whatever format, one after the other."""
    if isinstance(value, str):
        return value
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return " ".join(_words(part) for part in parts)


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
