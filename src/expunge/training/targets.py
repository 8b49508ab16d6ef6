"""Models that are taught a benchmark: the target that learnt all of it, its retrained twin all but the forget rows.

Trained once and kept by the hash of all that decides them (rows, sizes, settings, seed).
"""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import Field
from transformers.trainer_utils import set_seed

from expunge.data.benchmark import Row
from expunge.data.encode import QUESTION_FORMAT
from expunge.errors import UserError
from expunge.modeling.checkpoint import content_of
from expunge.modeling.loading import (
    LoraConfig,
    ScratchConfig,
    as_saved,
    build_scratch,
    load_for_training,
    save,
    stored_dtype,
    train_tokenizer,
)
from expunge.objectives import NLL
from expunge.system import cache, manifest, ranks
from expunge.system.digest import digest
from expunge.system.disk import remove, write_whole
from expunge.system.options import Options

log = logging.getLogger(__name__)

FORMAT = 1
"""Raise when the same inputs would give another model, so that older ones are not taken for it."""


class FinetuneConfig(Options):
    """How a model learns the benchmark's rows before some are to be forgotten: AdamW, cosine, a tenth of warm-up.

    Every default is for a model from nothing (`model.scratch`), then for a pretrained one (`model.name`).
    """

    epochs: int | None = Field(default=None, ge=1, le=1_000_000, description="passes over the rows; default 30, or 5")
    learning_rate: float | None = Field(
        default=None, gt=0, allow_inf_nan=False, description="peak of the schedule; default 2e-3, or 1e-4 (LoRA: 5e-4)"
    )
    batch_size: int | None = Field(default=None, ge=1, description="rows a step; default 32, or 8")
    bf16: bool = Field(default=False, description="bfloat16 autocast over float32 weights")
    overlap: int = Field(
        default=0, ge=0, description="tokens that each part of a text too long for the context repeats"
    )
    lora: LoraConfig | None = Field(
        default=None, description="teach a pretrained model by an adapter, which is merged into it"
    )
    seed: int | None = Field(default=None, ge=0, description="of these models; default the recipe's")
    retrained: int = Field(
        default=1, ge=1, le=100, description="models taught all but the forget rows, each with a seed of its own"
    )

    def complete(self, *, named: bool) -> "FinetuneConfig":
        """The same with the defaults for a model from nothing, or for a `named` one."""
        usual = {"epochs": 5, "learning_rate": 1e-4 if self.lora is None else 5e-4, "batch_size": 8}
        usual = usual if named else {"epochs": 30, "learning_rate": 2e-3, "batch_size": 32}
        return self.model_copy(update={key: usual[key] for key in usual if getattr(self, key) is None})


@dataclass(frozen=True)
class Nothing:
    """A start from random weights; the tokenizer is trained on `vocabulary`, which target and twin share.

    Their numbers would not compare otherwise.
    """

    scratch: ScratchConfig
    vocabulary: Sequence[Row]

    @property
    def shape(self) -> str:
        return f"{self.scratch.layers} layers × {self.scratch.hidden}"

    def identity(self) -> dict[str, Any]:
        """Everything about the start that decides the model."""
        return {"scratch": self.scratch.model_dump(), "vocabulary": digest(self.vocabulary, ensure_ascii=False)}

    def models(self, _: FinetuneConfig, *, seed: int) -> tuple[Any, Any, Any]:
        tokenizer = train_tokenizer(row_texts(self.vocabulary), self.scratch)
        return build_scratch(self.scratch, tokenizer, seed=seed), tokenizer, None


@dataclass(frozen=True)
class Pretrained:
    """A start from the model in the folder `name`, or of that name on the hub."""

    name: str

    @property
    def shape(self) -> str:
        return f"from {Path(self.name).name}"

    def identity(self) -> dict[str, Any]:
        """Everything about the start that decides the model: its files, wherever they are."""
        return {"model": content_of(self.name)}

    def models(self, finetune: FinetuneConfig, *, seed: int) -> tuple[Any, Any, Any]:
        set_seed(seed)
        model, tokenizer = load_for_training(self.name, lora=finetune.lora)
        return model, tokenizer, None if finetune.lora is None else finetune.lora.peft()


@dataclass(frozen=True)
class Lesson:
    """The model that has learnt `rows` from `start`; `title` is what logs call it."""

    rows: Sequence[Row]
    start: Nothing | Pretrained
    finetune: FinetuneConfig
    seed: int
    title: str

    def settings(self) -> FinetuneConfig:
        """How it is taught, with the defaults of its start."""
        return self.finetune.complete(named=isinstance(self.start, Pretrained))

    @cached_property
    def identity(self) -> dict[str, Any]:
        """Everything that decides the model."""
        finetune = self.settings()
        unused = {"seed", "retrained", *(key for key in ("overlap", "lora") if not getattr(finetune, key))}
        return {
            "format": FORMAT,
            **self.start.identity(),
            "finetune": finetune.model_dump(exclude=unused),
            "seed": self.seed,
            "rows": digest(self.rows, ensure_ascii=False),
        }

    @property
    def folder(self) -> Path:
        """Where the model is kept."""
        return cache.cache_directory() / "targets" / digest(self.identity, ensure_ascii=False)[:16]


def taught(lesson: Lesson) -> Path:
    """The folder of a model that has learnt its lesson; trained now or found in the cache.

    An interrupted training goes on where its last epoch ended; two processes never train the same model at once. A
    model whose files are no longer as they were written is trained again.
    """
    final, finetune, title = lesson.folder, lesson.settings(), lesson.title
    if ranks.count() > 1:
        if wrong := ranks.broadcast(lambda: manifest.damage(final)):
            raise UserError(
                f"one process teaches the {title} model, and {wrong}; give the same command without a launcher first, "
                "which keeps it, or name a trained model with --model."
            )
        return final

    def teach(partial: Path) -> Path:
        log.info("training %s (%d rows, %d epochs) into %s", title, len(lesson.rows), finetune.epochs, final)
        _train(lesson, partial)
        about = f"{title}: {len(lesson.rows)} rows, {finetune.epochs} epochs, {lesson.start.shape}"
        description = json.dumps({**lesson.identity, "title": title, "about": about}, indent=1)
        write_whole(partial / "model" / "expunge.json", description)
        manifest.seal(partial / "model")
        return partial / "model"

    return cache.kept_or_made(final, teach, again=f"the {title} model is trained again")


def _train(lesson: Lesson, partial: Path) -> None:
    from expunge.training.arguments import UnlearnConfig
    from expunge.training.history import last_checkpoint
    from expunge.training.trainer import UnlearnTrainer

    rows, start, seed, finetune = lesson.rows, lesson.start, lesson.seed, lesson.settings()
    assert finetune.epochs is not None and finetune.learning_rate is not None and finetune.batch_size is not None
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
        save_strategy="epoch" if isinstance(start, Pretrained) or finetune.epochs * len(rows) > 20_000 else "no",
    )
    model, tokenizer, adapter = start.models(finetune, seed=seed)
    trainer = UnlearnTrainer(
        model,
        args,
        retain=NLL(),
        retain_dataset=rows,
        processing_class=tokenizer,
        peft_config=adapter,
    )
    try:
        checkpoint = last_checkpoint(partial)
    except UserError as error:
        log.warning("%s; the %s model is trained from the start", str(error).partition(";")[0], lesson.title)
        remove(partial)
        checkpoint = None
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    trained: Any = trainer.accelerator.unwrap_model(trainer.model)
    trained = trained if adapter is None else trained.merge_and_unload(safe_merge=True)
    if isinstance(start, Pretrained):
        trained = as_saved(trained, stored_dtype(start.name))
    save(trained, tokenizer, partial / "model")


def row_texts(rows: Sequence[Row]) -> list[str]:
    """All the words of every row, as the BPE of a from-scratch model should see them."""
    return ["".join(QUESTION_FORMAT).format(**row) if "question" in row else _words(row) for row in rows]


def _words(value: Any) -> str:
    """Every string in a row of whatever format, one after the other."""
    if isinstance(value, str):
        return value
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return " ".join(_words(part) for part in parts)
