"""`UnlearnConfig`: what training may be given, and every mistake in it as one sentence.

A field of `transformers.TrainingArguments` either does here what it says, or stands in `REFUSED` or `NEEDS` and is
refused by name.
"""

import math
import os
import typing
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields
from importlib.util import find_spec
from typing import Any

import torch
from transformers import Trainer, get_scheduler
from transformers.debug_utils import DebugOption
from transformers.integrations.integration_utils import get_reporting_integration_callbacks
from transformers.trainer_pt_utils import AcceleratorConfig
from transformers.trainer_utils import IntervalStrategy, SaveStrategy, SchedulerType
from transformers.training_args import OptimizerNames, trainer_log_levels

from expunge.data.encode import AssistantTurns, Overflow
from expunge.errors import UserError, did_you_mean, first_line
from expunge.secrets import is_secret
from expunge.training.checkpointing import Arguments
from expunge.training.reference import ReferenceKind

Bound = tuple[float, float]

BOUNDS: dict[str, Bound] = {
    "per_device_train_batch_size": (1, math.inf),
    "gradient_accumulation_steps": (1, math.inf),
    "num_train_epochs": (1e-9, 1e6),
    "learning_rate": (1e-30, math.inf),
    "sam_rho": (1e-30, math.inf),
    "adam_beta1": (0, 1 - 1e-12),
    "adam_beta2": (0, 1 - 1e-12),
    "adam_epsilon": (1e-300, math.inf),
    "logging_steps": (1e-12, math.inf),
    "save_steps": (1e-12, math.inf),
    "eval_steps": (1e-12, math.inf),
    "save_total_limit": (1, math.inf),
    "seed": (0, 2**32 - 1),
    "data_seed": (0, 2**32 - 1),
    "dataloader_num_workers": (0, max(16, 4 * (os.cpu_count() or 1))),
    "dataloader_prefetch_factor": (1, math.inf),
    "torch_empty_cache_steps": (1, math.inf),
    "ddp_bucket_cap_mb": (1, math.inf),
    "ddp_timeout": (1, math.inf),
    "max_length": (2, math.inf),
    "eval_every": (1, math.inf),
    "max_steps": (-1, math.inf),
    "local_rank": (-1, math.inf),
}
"""Smallest and largest value; of every other number the smallest is 0."""

CHOICES: dict[str, typing.Collection[str]] = {
    "reference": typing.get_args(ReferenceKind),
    "overflow": typing.get_args(Overflow),
    "assistant_turns": typing.get_args(AssistantTurns),
    "optim": tuple(kind.value for kind in OptimizerNames),
    "lr_scheduler_type": tuple(kind.value for kind in SchedulerType),
    "eval_strategy": tuple(kind.value for kind in IntervalStrategy),
    "save_strategy": tuple(kind.value for kind in SaveStrategy),
    "logging_strategy": tuple(kind.value for kind in IntervalStrategy),
    "log_level": tuple(trainer_log_levels),
    "log_level_replica": tuple(trainer_log_levels),
    "include_num_input_tokens_seen": ("all", "non_padding", "no"),
    "ddp_backend": ("nccl", "gloo", "mpi", "xccl", "hccl", "cncl", "mccl", "ucc"),
}
"""Names that `TrainingArguments` takes without a look, or refuses without naming the field."""

_NO_LOGITS = "evaluations are made by `evaluate`, which has no batches of labels"
_UPLOAD = "nothing is uploaded while training; upload the finished model with `hf upload`"
_LAUNCH = "how weights are spread is for the launcher to say (expunge recipes --launch)"
_BEST = "no epoch is chosen by a loss here; a utility budget (evaluate.utility_budget) keeps the best one"
_BATCHES = "the order of rows and what a step holds do not depend on it"
_SCRIPT = "it is a flag for scripts of your own"
_COMPILE = "the forward stops at the head, which compiled code would not"

REFUSED: dict[str, str] = {
    "label_smoothing_factor": "no objective smooths its labels",
    "average_tokens_across_devices": "a loss is always a mean over the tokens of all devices",
    "bf16_full_eval": "evaluations keep the model's dtype",
    "fp16_full_eval": "evaluations keep the model's dtype",
    "torch_compile": _COMPILE,
    "torch_compile_backend": _COMPILE,
    "torch_compile_mode": _COMPILE,
    "optim_target_modules": "optimizers of the GaLore and APOLLO kind are not offered; use model.lora",
    "use_liger_kernel": "log-probabilities are made without logits already, and it would change the model after its "
    "reference was asked",
    "liger_kernel_config": "Liger kernels are not used",
    "use_cache": "a training forward keeps no cache",
    "neftune_noise_alpha": "noise would make the model differ from what it is compared with",
    "auto_find_batch_size": "it would begin again with other steps from weights that have moved; expunge run --dry-run "
    "says what memory a batch takes",
    "logging_nan_inf_filter": "training stops at a NaN",
    "per_device_eval_batch_size": _NO_LOGITS,
    "prediction_loss_only": _NO_LOGITS,
    "eval_do_concat_batches": _NO_LOGITS,
    "eval_use_gather_object": _NO_LOGITS,
    "eval_accumulation_steps": _NO_LOGITS,
    "include_for_metrics": _NO_LOGITS,
    "batch_eval_metrics": _NO_LOGITS,
    "label_names": _NO_LOGITS,
    "enable_jit_checkpoint": "a half-trained model would be taken for the result; an interrupted run goes on with "
    "--resume",
    **dict.fromkeys(("push_to_hub", "hub_model_id", "hub_strategy", "hub_always_push", "hub_revision"), _UPLOAD),
    "load_best_model_at_end": _BEST,
    "metric_for_best_model": _BEST,
    "greater_is_better": _BEST,
    "ignore_data_skip": "a resumed training goes on with the rows that come next",
    "restore_callback_states_from_checkpoint": "callbacks take up their state from the log",
    "accelerator_config": "batches are dealt out to processes in one way",
    "parallelism_config": _LAUNCH,
    "fsdp": _LAUNCH,
    "fsdp_config": _LAUNCH,
    "deepspeed": _LAUNCH,
    "dataloader_drop_last": "an epoch passes over every forget row once, and its last step may be a short one",
    "dataloader_in_order": "rows would come in another order each time",
    "remove_unused_columns": "rows have no columns once they are encoded",
    "train_sampling_strategy": "rows are shuffled, and those of like length stand together",
    "length_column_name": "lengths are known from the encoded rows",
    "ddp_find_unused_parameters": "the losses leave the forward beside its outputs, where a search would find no "
    "parameter used",
    "do_train": _SCRIPT,
    "do_predict": _SCRIPT,
    "resume_from_checkpoint": "give it to `train(resume_from_checkpoint=…)`, or use expunge run --resume",
    "local_rank": "the launcher says it",
}
"""Fields that can't be set, and why: another value than the default would not do what the field says."""

Condition = Callable[[Any], bool]

NEEDS: dict[str, tuple[Condition, str]] = {
    "do_eval": (lambda a: a.eval_strategy != "no", "an eval_strategy"),
    "eval_delay": (lambda a: a.eval_strategy != "no", "an eval_strategy"),
    "eval_on_start": (lambda a: a.eval_strategy != "no", "an eval_strategy"),
    "eval_steps": (lambda a: a.eval_strategy == "steps", "eval_strategy: steps"),
    "eval_every": (lambda a: a.eval_strategy == "epoch", "eval_strategy: epoch"),
    "logging_steps": (lambda a: a.logging_strategy == "steps", "logging_strategy: steps"),
    "save_steps": (lambda a: a.save_strategy == "steps", "save_strategy: steps"),
    "save_total_limit": (lambda a: a.save_strategy != "no", "a save_strategy"),
    "save_only_model": (lambda a: a.save_strategy != "no", "a save_strategy"),
    "warmup_steps": (lambda a: a.lr_scheduler_type != "constant", "another lr_scheduler_type: constant_with_warmup"),
    "lr_scheduler_kwargs": (
        lambda a: a.lr_scheduler_type not in ("constant", "constant_with_warmup"),
        "another lr_scheduler_type, such as polynomial",
    ),
    "activation_checkpointing_kwargs": (lambda a: bool(a.activation_checkpointing), "activation_checkpointing"),
    "overlap": (lambda a: a.overflow == "split", "overflow: split"),
    "dataloader_persistent_workers": (lambda a: a.dataloader_num_workers > 0, "dataloader_num_workers"),
    "dataloader_prefetch_factor": (lambda a: a.dataloader_num_workers > 0, "dataloader_num_workers"),
    "dataloader_multiprocessing_context": (lambda a: a.dataloader_num_workers > 0, "dataloader_num_workers"),
    "run_name": (
        lambda a: bool({"wandb", "mlflow", "comet_ml", "trackio", "swanlab"} & {*a.report_to}),
        "report_to: wandb, mlflow, comet_ml, trackio or swanlab",
    ),
    **dict.fromkeys(
        ("project", "trackio_space_id", "trackio_bucket_id", "trackio_static_space_id", "hub_private_repo"),
        (lambda a: "trackio" in a.report_to, "report_to: trackio"),
    ),
}
"""Fields that do nothing on their own, and what they need beside them."""

OPTIMIZER = ("adam_beta1", "adam_beta2", "adam_epsilon", "optim_args")
"""Fields that only some optimizers read."""

_CHECKPOINTING = {
    *("use_reentrant", "context_fn", "determinism_check", "debug", "early_stop", "preserve_rng_state"),
    *("every_n_layers", "offload"),
}


@dataclass
class UnlearnConfig(Arguments):
    """`transformers.TrainingArguments` with the defaults of this field and the few keys that unlearning adds.

    Attributes:
        reference: where the starting model's signals come from: `cached_logps`, `cached_hidden`, `adapter_off`,
            `frozen_copy`; `auto` takes the cheapest that is enough.
        keep_dropout: keep the model's dropout where it is compared with a reference, which has none; without it dropout
            is off there, so that training starts from the model that it is compared with.
        max_length: longest sequence in tokens; `None` is the model's context length.
        overflow: what happens to longer sequences: `error`, `truncate`, or `split` (raw text in parts).
        overlap: tokens that each part repeats of the part before, so that no passage is only the start of a part.
        assistant_turns: which of the assistant's messages of a conversation are supervised: `all`, or the `last`.
        sam_rho: forget at θ + ρ g/‖g‖, with the gradient g of the forget loss: it is then low round the weights, and
            a little further training undoes less of it (SAM, arXiv 2502.05374). A step costs two more passes.
        eval_every: epochs between two evaluations when `eval_strategy` is `epoch`; the last epoch is always evaluated.

    Raises `UserError` for a value that can't be, and for one that would do nothing.
    """

    reference: ReferenceKind = "auto"
    keep_dropout: bool = False
    max_length: int | None = None
    overflow: Overflow = "error"
    overlap: int = 0
    assistant_turns: AssistantTurns = "all"
    eval_every: int = 1
    sam_rho: float | None = None

    learning_rate: float = 1e-5
    num_train_epochs: float = 5
    per_device_train_batch_size: int = 8
    lr_scheduler_type: str = "constant"
    weight_decay: float = 0.01
    logging_steps: float = 1
    save_strategy: str = "epoch"
    save_total_limit: int | None = 1
    report_to: None | str | list[str] = "none"  # noqa: RUF036  HfArgumentParser takes the second type
    remove_unused_columns: bool = False
    # The losses leave the forward beside its outputs, where a search for unused parameters would find none used.
    ddp_find_unused_parameters: bool | None = False
    # A NaN must reach us: the trainer stops on it instead of averaging it away.
    logging_nan_inf_filter: bool = False

    def __post_init__(self) -> None:
        check_values({field.name: getattr(self, field.name) for field in fields(self)})
        self.use_cpu = self.use_cpu or not torch.accelerator.is_available()
        try:
            super().__post_init__()
        except (ValueError, TypeError, KeyError, ImportError, OSError, NotImplementedError) as error:
            raise UserError(f"arguments: {first_line(error)}.") from error
        for name, (given, needed) in NEEDS.items():
            value = getattr(self, name)
            if value is not None and _is_set(name, value) and not given(self):
                raise UserError(f"{name} does nothing without {needed}; set that too, or leave {name} out.")
        _check_combination(self)

    def __getstate__(self) -> dict[str, Any]:
        """Without secrets: a checkpoint holds the arguments (`training_args.bin`)."""
        return {name: None if is_secret(name) else value for name, value in vars(self).items()}

    @property
    def rows_per_step(self) -> int:
        """Forget rows (or rows to learn) of one optimizer step, over all accumulation steps and processes."""
        return self.train_batch_size * self.gradient_accumulation_steps * self.world_size

    @property
    def order_seed(self) -> int:
        """The seed that the order of rows depends on."""
        return self.seed if self.data_seed is None else self.data_seed


FIELDS = {field.name: field for field in fields(UnlearnConfig)}

# Taken once: HfArgumentParser changes the types of the fields that it reads.
KINDS = {name: frozenset(typing.get_args(field.type) or (field.type,)) for name, field in FIELDS.items()}


def check_values(values: Mapping[str, Any]) -> None:
    """Raise `UserError` for the first value that its field can't have, whatever the others are."""
    for name, value in values.items():
        _check_value(name, value)
        if name in REFUSED and _is_set(name, value):
            shown = "set" if is_secret(name) else _shown(value)
            raise UserError(f"{name} can't be {shown}: {REFUSED[name]}.")


def _is_set(name: str, value: Any) -> bool:
    """Whether a field has another value than it would have had unasked."""
    if name == "accelerator_config":  # filled in by `TrainingArguments`, and there when a config is copied
        return value is not None and value != AcceleratorConfig()
    field = FIELDS[name]
    return value != (field.default_factory() if field.default_factory is not MISSING else field.default)


def _shown(value: Any) -> str:
    return repr(value) if len(repr(value)) < 60 else repr(value)[:60] + "…"


def _check_value(name: str, value: Any) -> None:
    """Raise `UserError` for a value of another kind than the field's, and for a number out of bounds."""
    kinds = KINDS[name]
    known = CHOICES.get(name)
    if known and value is not None and value not in known and not (bool in kinds and isinstance(value, bool)):
        hint = did_you_mean(str(value), known) or f" Known: {', '.join(known)}."
        raise UserError(f"{name}: {_shown(value)} is not known.{hint}")
    if value is None or str in kinds or not kinds & {int, float, bool} or kinds & {dict, list}:
        return
    if bool in kinds:
        if not isinstance(value, bool):
            raise UserError(f"{name} must be true or false, got {_shown(value)}.")
        return
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UserError(f"{name} must be a number, got {_shown(value)}.")
    if not math.isfinite(value):
        raise UserError(f"{name} must be finite, got {value}.")
    if float not in kinds and value != int(value):
        raise UserError(f"{name} must be a whole number, got {value}.")
    least, most = BOUNDS.get(name, (0, math.inf))
    if value < least:
        bound = "more than 0" if 0 < least < 1 else f"at least {int(least)}"
        raise UserError(f"{name} must be {bound}, got {value}.")
    if value > most:
        bound = "less than 1" if 0 < most < 1 else f"at most {int(most)}"
        raise UserError(f"{name} must be {bound}, got {value}.")


def _check_combination(args: UnlearnConfig) -> None:
    """Raise `UserError` for values that only fail, or do nothing, beside the others."""
    if args.max_steps == 0:
        raise UserError("max_steps must be at least 1, or -1 for whole epochs, got 0.")
    if args.warmup_steps > 1 and args.warmup_steps != int(args.warmup_steps):
        raise UserError(f"warmup_steps must be a whole number, or a share below 1, got {args.warmup_steps:g}.")
    if args.save_strategy == "best":
        raise UserError(f"save_strategy can't be 'best': {_BEST}.")
    if args.fp16 and args.device.type == "cpu":
        raise UserError("fp16 needs a GPU; use bf16, or leave it out.")
    if DebugOption.TPU_METRICS_DEBUG in args.debug:
        raise UserError("debug: tpu_metrics_debug does nothing without a TPU; leave it out.")
    for name in ("activation_checkpointing_kwargs", "lr_scheduler_kwargs"):
        if not isinstance(getattr(args, name), dict | None):
            raise UserError(f"{name} must be a mapping, got {_shown(getattr(args, name))}.")
    for key in args.activation_checkpointing_kwargs or {}:
        if key not in _CHECKPOINTING:
            raise UserError(f"activation_checkpointing_kwargs: unknown key {key!r}.{did_you_mean(key, _CHECKPOINTING)}")
    contexts = torch.multiprocessing.get_all_start_methods()
    if (context := args.dataloader_multiprocessing_context) is not None and context not in contexts:
        raise UserError(f"dataloader_multiprocessing_context: {context!r} is not known. Known: {', '.join(contexts)}.")
    if args.sam_rho is not None:
        for name, is_set in (
            ("gradient_accumulation_steps", args.gradient_accumulation_steps > 1),
            ("fp16", args.fp16),
        ):
            if is_set:
                raise UserError(
                    f"{name} can't be used with sam_rho, which moves the weights within a step; leave it out."
                )
        if args.world_size > 1:
            raise UserError("sam_rho moves the weights within a step, which only one process can do; leave it out.")
    _check_reporters(args)
    _check_optimizer(args)
    _check_schedule(args)


TRACKERS = {
    "mlflow": ["mlflow"],
    "tensorboard": ["tensorboard", "tensorboardX"],
    "trackio": ["trackio"],
    "wandb": ["wandb"],
}
"""Loggers of which expunge has an extra by the same name, each with the packages of which one is enough."""


def _check_reporters(args: UnlearnConfig) -> None:
    for name in args.report_to or ():
        if name in TRACKERS and not any(find_spec(package) for package in TRACKERS[name]):
            raise UserError(f"report_to: {name} is not installed; pip install 'expunge[{name}]'.")
        try:
            for reporter in get_reporting_integration_callbacks([name]):
                reporter()  # fails without its package
        except (ValueError, RuntimeError, ImportError) as error:
            raise UserError(f"report_to: {first_line(error)}.") from error


def _check_optimizer(args: UnlearnConfig) -> None:
    """Make the optimizer's settings, and see that it reads what was set for it."""
    name = OptimizerNames(args.optim).value
    if name.startswith(("galore", "apollo", "lomo", "adalomo")):
        raise UserError(f"optim can't be {name!r}: it takes the model apart; use LoRA, or an optimizer of few bits.")

    def made(given: Any) -> tuple[Any, Any]:
        return Trainer.get_optimizer_cls_and_kwargs(given)

    try:
        kind, options = made(args)
        if kind.__module__.startswith("torch.optim"):
            kind([torch.nn.Parameter(torch.zeros(1))], **options)
        for field in OPTIMIZER:
            usual = _Changed(args, **{field: FIELDS[field].default})
            if _is_set(field, getattr(args, field)) and made(usual) == (kind, options):
                raise UserError(f"{field} does nothing with optim {name}; leave it out, or take another optim.")
    except UserError:
        raise
    except (ValueError, TypeError, KeyError, ImportError, RuntimeError, NotImplementedError) as error:
        given = f" with optim_args {args.optim_args!r}" if args.optim_args else ""
        raise UserError(f"optim {name}{given}: {first_line(error)}.") from error


class _Changed:
    """Arguments with other values of some fields, unchecked."""

    def __init__(self, args: UnlearnConfig, **values: Any) -> None:
        self.__dict__.update({**vars(args), **values})


def _check_schedule(args: UnlearnConfig) -> None:
    """Make the schedule of the learning rate and take a step of it."""
    name = str(getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type))
    if name in ("reduce_lr_on_plateau", "greedy"):
        raise UserError(f"lr_scheduler_type can't be {name!r}: it follows a loss of evaluations, which have none here.")
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=args.learning_rate)
    options = dict(args.lr_scheduler_kwargs) if isinstance(args.lr_scheduler_kwargs, dict) else None
    try:
        schedule = get_scheduler(name, optimizer, args.get_warmup_steps(100), 100, scheduler_specific_kwargs=options)
        optimizer.step()
        schedule.step()
    except (ValueError, TypeError, KeyError, ZeroDivisionError) as error:
        raise UserError(f"lr_scheduler_type {name} with lr_scheduler_kwargs {options}: {first_line(error)}.") from error
