"""`UnlearnTrainer`: one forward for all roles, the signals its objectives ask for, and their weighted sum.

A `transformers.Trainer` in everything else: arguments, optimizers, schedules, checkpoints, callbacks, launchers.
Knows nothing of benchmarks or of any particular objective.
"""

import json
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, rotate_checkpoints

from expunge import manifest, ranks
from expunge.data.benchmark import Row
from expunge.data.encode import AssistantTurns, Overflow, prepare_tokenizer
from expunge.data.pairs import Collator, PairedDataset, PairSampler, Role, Sets
from expunge.difference import LogitDifferenceForCausalLM, assistant_weights
from expunge.disk import private, writing
from expunge.errors import UserError, did_you_mean
from expunge.forward import check_head, decoder_layers
from expunge.history import EvaluateEvery, LossBar, MetricsFile, checkpoint_damage, last_checkpoint
from expunge.models import load
from expunge.objectives import NLL, RMU, Objective
from expunge.prepare import check_terms, encode_sets
from expunge.reference import ReferenceKind, build_reference
from expunge.secrets import is_secret
from expunge.signals import Share, gather_signals, needs_by_role


@dataclass
class UnlearnConfig(TrainingArguments):
    """`transformers.TrainingArguments` with the defaults of this field and the few keys that unlearning adds.

    reference    where the starting model's signals come from; see `expunge.reference`
    max_length   longest sequence in tokens; `None` is the model's context length
    overflow     what to do with longer ones: `error`, `truncate`, or `split` (raw text in parts)
    overlap      tokens that each part repeats of the one before, so that no passage stands at the start of a part alone
    assistant_turns  which of the assistant's messages of a conversation are supervised: `all` of them, or the `last`
    eval_every   epochs between two evaluations when `eval_strategy` is `epoch`; the last epoch is always evaluated
    """

    reference: ReferenceKind = "auto"
    max_length: int | None = None
    overflow: Overflow = "error"
    overlap: int = 0
    assistant_turns: AssistantTurns = "all"
    eval_every: int = 1

    learning_rate: float = 1e-5
    num_train_epochs: float = 5
    per_device_train_batch_size: int = 8
    lr_scheduler_type: str = "constant"
    weight_decay: float = 0.01
    logging_steps: float = 1
    save_strategy: str = "epoch"
    save_total_limit: int | None = 1
    report_to: str | list[str] | None = "none"
    remove_unused_columns: bool = False
    # The losses leave the forward beside its outputs, where a search for unused parameters would find none used.
    ddp_find_unused_parameters: bool | None = False
    # A NaN must reach us: the trainer stops on it instead of averaging it away.
    logging_nan_inf_filter: bool = False

    def __post_init__(self) -> None:
        self.use_cpu = self.use_cpu or not torch.accelerator.is_available()
        super().__post_init__()

    def __getstate__(self) -> dict[str, Any]:
        """Without secrets: a checkpoint holds the arguments (`training_args.bin`)."""
        return {name: None if is_secret(name) else value for name, value in vars(self).items()}


class EpochsOrder(TrainerCallback):
    """Tells the sampler which epoch begins: the trainer does not reach it where several ranks take one up midway."""

    def on_epoch_begin(
        self, args: Any, state: TrainerState, control: TrainerControl, train_dataloader: Any = None, **kwargs: Any
    ) -> None:
        sampler = train_dataloader.batch_sampler
        while not isinstance(sampler, PairSampler):
            sampler = sampler.batch_sampler if hasattr(sampler, "batch_sampler") else sampler.sampler
        sampler.set_epoch(int(state.epoch or 0))


class TrainingDiverged(UserError):
    """A term of the loss became NaN or infinite."""


class UnlearnTrainer(Trainer):
    """Unlearn `forget_dataset` under `objective` while `retain` holds on to `retain_dataset`.

    Either side may be missing: without `objective` the model simply learns `retain_dataset` under `retain`.

    Args:
        model: any causal LM with one output head.
        args: `UnlearnConfig`.
        objective: a forget objective, such as `objectives.NPO(beta=0.1)`.
        retain: a retain objective, such as `objectives.NLL()`.
        forget_dataset, retain_dataset: rows in any format of `expunge.data.formats` (lists of dicts or a
            `datasets.Dataset`).
        refusals: answers to draw from for objectives that prefer a refusal (DPO).
        processing_class: the tokenizer.
        peft_config: train a LoRA adapter instead of the weights.
        teacher: the model that references are asked of, in place of the starting model, but for the retain rows.
        evaluate: called with the model when `args.eval_strategy` says so; its numbers are logged as `eval_*`.

    Raises:
        UserError: for data or objectives that can't be used, before anything is written.
    """

    # The loss is divided by the counts of the whole optimizer step already, so micro-batches simply add up.
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        model: nn.Module,
        args: UnlearnConfig,
        *,
        objective: Objective | None = None,
        retain: Objective | None = None,
        forget_dataset: Sequence[Row] = (),
        retain_dataset: Sequence[Row] = (),
        refusals: Sequence[str] = (),
        processing_class: Any,
        peft_config: Any = None,
        teacher: nn.Module | None = None,
        evaluate: Callable[[nn.Module], dict[str, float]] | None = None,
        **kwargs: Any,
    ) -> None:
        tokenizer = prepare_tokenizer(processing_class)
        self.objective = objective
        self.retain = NLL() if objective is None and retain is None else retain
        self.needs = needs_by_role(self.objective, self.retain)
        data: dict[str, Any] = {
            "forget_rows": forget_dataset,
            "retain_rows": retain_dataset,
            "refusals": refusals,
            "config": model.config,
        }
        check_terms(self.objective, self.retain, **data)
        self.sets = encode_sets(
            self.objective,
            self.retain,
            **data,
            tokenizer=tokenizer,
            max_length=args.max_length,
            overflow=args.overflow,
            overlap=args.overlap,
            assistant_turns=args.assistant_turns,
            seed=args.seed,
        )
        if peft_config is not None:
            from peft import get_peft_model

            model = get_peft_model(model, peft_config)
        if isinstance(objective, RMU):
            train_only(model, objective)
        self.evaluator = evaluate
        self.reference = None
        self._terms: list[tuple[int, dict[str, Tensor]]] = []
        with private():  # it makes its folder
            super().__init__(
                model=model,
                args=args,
                data_collator=Collator(self.sets, tokenizer.pad_token_id),
                train_dataset=PairedDataset(self.sets, refusals=self.needs[Role.FORGET].refusal),
                # Trainer wants to see something to evaluate on; `evaluate` below never looks at it.
                eval_dataset=[] if evaluate is not None else None,  # pyright: ignore[reportArgumentType]
                processing_class=tokenizer,
                **kwargs,
            )
        # One bar instead of a printed line a step; every line is in metrics.jsonl.
        self.remove_callback(PrinterCallback)
        if not args.disable_tqdm:
            self.remove_callback(ProgressCallback)
            self.add_callback(LossBar)
        self.add_callback(EpochsOrder())
        self.add_callback(EvaluateEvery(args.eval_every))
        self.add_callback(MetricsFile(Path(str(args.output_dir))))
        check_head(model)
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            model.to(args.device)  # where it is spread out from, later on: what is asked of it before is asked there
        needs = self.needs[Role.FORGET] | self.needs[Role.RETAIN]
        if needs.reference:
            self.reference = build_reference(
                model,
                self.needs,
                self.sets,
                pad_token_id=tokenizer.pad_token_id,
                kind=args.reference,
                teacher=None if teacher is None else teacher.to(args.device),
                batch_size=args.per_device_train_batch_size * 2,
                retain_rows=self._get_train_sampler().retain_rows(self._epochs()),
            )
        self.surprisal_V = _unigram_surprisal(self.sets, model) if needs.surprisal else None

    # -- the step ------------------------------------------------------------------------------------------------

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Tensor:
        shares = {
            role: Share(objective, counts[0 if objective.per == "token" else 1])
            for role, objective, counts in (
                (Role.FORGET, self.objective, num_items_in_batch[:2]),
                (Role.RETAIN, self.retain, num_items_in_batch[2:]),
            )
            if objective is not None
        }
        signals = gather_signals(model, inputs, self.needs, self.reference, self.surprisal_V, shares)
        terms: dict[str, Tensor] = {}
        loss = torch.zeros((), device=inputs["labels"].device)
        for role, share in shares.items():
            if role in signals:
                term = share.term(signals[role])
                loss = loss + share.objective.weight * term
                terms[role.name.lower()] = term.detach()
        self._terms.append((self.state.global_step + 1, terms))
        return loss

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Tensor:
        """Supervised tokens and sequences of the whole optimizer step: [forget tokens, forget sequences, retain …].

        Counted over all accumulation steps and ranks, so that the loss is a mean over the global batch however it is
        cut up. Divided by the number of ranks, because gradients are averaged over them.
        """
        counts = torch.zeros(4)
        for batch in batch_samples:
            per_row = (batch["labels"][:, 1:] != -100).sum(-1)
            for i, role, own in ((0, Role.FORGET, self.objective), (2, Role.RETAIN, self.retain)):
                mine = batch["role"] == role
                skips = own.skips if own is not None else 0
                counts[i] += (per_row[mine] - skips).clamp(min=0).sum().cpu()
                counts[i + 1] += mine.sum().cpu()
        counts = counts.to(device)
        if self.args.world_size > 1:
            counts = torch.as_tensor(self.accelerator.reduce(counts, "sum")) / self.args.world_size
        return counts.clamp(min=1)

    # -- order, evaluation, logs -----------------------------------------------------------------------------------

    def _get_train_sampler(self, train_dataset: Any = None) -> PairSampler:
        world_batch = self._train_batch_size * self.args.world_size
        return PairSampler(self.sets, batch_size=world_batch, seed=self.args.seed)

    def _epochs(self) -> int:
        """How many times training will go through the forget rows, begun ones counted."""
        if self.args.max_steps <= 0:
            return math.ceil(self.args.num_train_epochs)
        batch = self._train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        # One more, since the last step of an epoch may be a short one.
        return math.ceil(self.args.max_steps * batch / len(self._get_train_sampler())) + 1

    def evaluate(self, *_args: Any, **_kwargs: Any) -> dict[str, float]:
        assert self.evaluator is not None
        try:
            found = self.evaluator(self.accelerator.unwrap_model(self.model))
        except UserError as error:
            raise TrainingDiverged(f"after step {self.state.global_step} {error}") from error
        metrics = {f"eval_{k}": v for k, v in found.items()}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs = {**logs, **self._flush_terms()}
        super().log(logs, start_time)

    def whole_model(self) -> Any:
        """The model as it is now with all its weights here: itself, or a copy where they are spread over ranks."""
        model = self.accelerator.unwrap_model(self.model)
        if not ranks.is_sharded(model):
            return model
        folder = Path(str(self.args.output_dir)) / "whole"
        with private(), writing(folder):
            self.save_model(str(folder))
        ranks.wait()
        copy, _ = load(folder)
        ranks.wait()
        if ranks.first():
            shutil.rmtree(folder)
        return copy.to(self.args.device)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        self._check_pace(Path(resume_from_checkpoint))
        if isinstance(self.model, LogitDifferenceForCausalLM):
            self.model.load_assistant(assistant_weights(Path(resume_from_checkpoint)))
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _check_pace(self, checkpoint: Path) -> None:
        """Raise `UserError` for a checkpoint whose steps had another number of sequences: its rows would be others."""
        state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
        batches = math.ceil(len(self._get_train_sampler()) / (self._train_batch_size * self.args.world_size))
        steps = math.ceil(batches / self.args.gradient_accumulation_steps)
        epochs, within = divmod(state["global_step"], steps)
        epoch = epochs + within * self.args.gradient_accumulation_steps / batches
        if abs(epoch - state["epoch"]) * steps > 0.5:
            raise UserError(
                f"{checkpoint}: {state['global_step']} steps were {state['epoch']:.2f} epochs and would be {epoch:.2f} "
                f"now; give as many sequences a step as then (train.per_device_train_batch_size × "
                f"train.gradient_accumulation_steps × processes)."
            )

    def restore(self, step: int) -> None:
        """Go back to the weights of the checkpoint that was saved after this step."""
        if step != self.state.global_step:
            checkpoint = Path(str(self.args.output_dir)) / f"{PREFIX_CHECKPOINT_DIR}-{step}"
            self._check_whole(checkpoint)
            self._load_from_checkpoint(str(checkpoint))

    def train(self, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
        """`transformers.Trainer.train`; checkpoints and logs are their owner's alone.

        Raises `UserError` for a checkpoint that is not as it was written, and `DiskError` for a full disk.
        """
        out = Path(str(self.args.output_dir))
        if resume_from_checkpoint is True:
            resume_from_checkpoint = last_checkpoint(out)
        elif resume_from_checkpoint:
            self._check_whole(Path(resume_from_checkpoint))
        checkpoint = str(resume_from_checkpoint) if resume_from_checkpoint else None
        with private(), writing(out):
            return super().train(checkpoint, *args, **kwargs)

    def _check_whole(self, checkpoint: Path) -> None:
        if wrong := ranks.told(lambda: checkpoint_damage(checkpoint)):
            raise UserError(wrong)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Save a checkpoint and seal it; older ones go only then, so that a kill at any moment leaves a whole one."""
        self._flush_terms()  # never save what a NaN has touched
        run_dir, limit = Path(self._get_output_dir(trial=trial)), self.args.save_total_limit
        folder = run_dir / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        if ranks.first():
            manifest.begin(folder)
        ranks.wait()
        self.args.save_total_limit = None
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self.args.save_total_limit = limit
        ranks.wait()
        if ranks.first():
            manifest.seal(folder)
            rotate_checkpoints(str(run_dir), limit, self.state.best_model_checkpoint)
        ranks.wait()

    def _flush_terms(self) -> dict[str, float]:
        """Mean of every term since the last log; raises `TrainingDiverged` at the first that is not finite."""
        if not self._terms:
            return {}
        names = self._terms[0][1]
        steps = [step for step, _ in self._terms]
        means: dict[str, float] = {}
        for name in names:
            values = torch.stack([terms[name] for _, terms in self._terms]).float()
            if self.args.world_size > 1:  # each rank has its own sequences' part, divided by their number over all
                values = torch.as_tensor(self.accelerator.reduce(values, "mean"))
            values = values.cpu()
            if not values.isfinite().all():
                step = steps[int((~values.isfinite()).nonzero()[0])]
                raise TrainingDiverged(
                    f"the {name} term became {values[~values.isfinite()][0].item()} at step {step}; the last good "
                    f"checkpoint, if one was due, is in {self.args.output_dir}. Lower train.learning_rate or the "
                    f"method's weight."
                )
            means[f"{name}_loss"] = values.sum().item() / len(set(steps))
        self._terms.clear()
        return means


def train_only(model: nn.Module, rmu: RMU) -> None:
    """Freeze everything but what is trainable now in the layers and modules that RMU trains."""
    keep: set[int] = set()
    for i in rmu.trainable_layers:
        layer = decoder_layers(model)[i]
        if missing := [name for name in rmu.modules if name not in dict(layer.named_modules())]:
            known = [name for name, module in layer.named_modules() if name and any(True for _ in module.parameters())]
            raise UserError(
                f"method.forget.modules: layer {i} has no {missing[0]}.{did_you_mean(missing[0], known)} "
                f"It has {', '.join(known)}."
            )
        parts = [layer.get_submodule(name) for name in rmu.modules] or [layer]
        keep |= {id(p) for part in parts for p in part.parameters() if p.requires_grad}
    for p in model.parameters():
        p.requires_grad_(id(p) in keep)


def _unigram_surprisal(sets: Sets, model: nn.Module) -> Tensor:
    """−log frequency of every token among the supervised tokens of the training data (add-one), nats, [V]."""
    size = model.get_output_embeddings().weight.shape[0]  # pyright: ignore
    tokens = [t for role in (Role.FORGET, Role.RETAIN) for e in sets.of(role) for t in e.targets]
    counts = torch.bincount(torch.tensor(tokens), minlength=size).float() + 1
    return -(counts / counts.sum()).log()
