"""`UnlearnTrainer`: one forward for all roles, the signals its objectives ask for, and their weighted sum.

A `transformers.Trainer` in everything else: arguments, optimizers, schedules, checkpoints, callbacks, launchers.
Knows nothing of benchmarks or of any particular objective.
"""

import math
import shutil
from collections.abc import Callable, Sequence
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
)
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, TrainOutput, rotate_checkpoints

from expunge.data.benchmark import Row
from expunge.data.encode import prepare_tokenizer
from expunge.data.pairs import Collator, PairedDataset, PairSampler, Role, Sets
from expunge.errors import UserError
from expunge.modeling.adapter import adapt, check_adapter
from expunge.modeling.agreement import check_training, ways_of
from expunge.modeling.checkpoint import fit_tokenizer
from expunge.modeling.difference import LogitDifferenceForCausalLM, assistant_weights
from expunge.modeling.loading import load, load_for_training, load_tokenizer_and_config
from expunge.modeling.saving import name_base, same_vocabulary
from expunge.objectives import Objective
from expunge.system import manifest, ranks
from expunge.system.disk import private, writing
from expunge.training.arguments import UnlearnConfig
from expunge.training.history import EvaluateEvery, LossBar, MetricsFile, Pace, checkpoint_damage, last_checkpoint
from expunge.training.layout import Layout
from expunge.training.modes import check_modes, switch_off_dropout, train_only
from expunge.training.prepare import arguments_for, check_keywords, check_terms, encode_sets, objectives_of, rows_of
from expunge.training.reference import build_reference
from expunge.training.signals import Share, gather_signals, needs_by_role


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
        model: any causal LM with one output head, or its folder or name on the hub.
        args: `UnlearnConfig`; its defaults, and the folder `<name of the model>-unlearned`, without it.
        objective: a forget objective, such as `objectives.NPO(beta=0.1)`, or a name as in recipes: `"npo"`, `"npo+kl"`.
        retain: a retain objective, such as `objectives.NLL()`, or its name.
        forget_dataset: rows to forget, in any format of `expunge.data.formats` (lists of dicts or `datasets.Dataset`).
        retain_dataset: rows to keep, likewise.
        refusals: answers to draw from for objectives that prefer a refusal (DPO).
        processing_class: the tokenizer; the one that belongs to the model's name without it.
        peft_config: train a LoRA adapter instead of the weights.
        teacher: the model that references are asked of, in place of the starting model, but for the retain rows.
        evaluate: called with the model when `args.eval_strategy` says so; its numbers are logged as `eval_*`.
        **kwargs: `callbacks`, `optimizers` and `optimizer_cls_and_kwargs`, as `transformers.Trainer` has them.

    Raises:
        UserError: for data or objectives that can't be used, before anything is written.
    """

    # The loss is divided by the counts of the whole optimizer step already, so micro-batches simply add up.
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        model: nn.Module | str | Path,
        args: UnlearnConfig | None = None,
        *,
        objective: Objective | str | None = None,
        retain: Objective | str | None = None,
        forget_dataset: Sequence[Row] = (),
        retain_dataset: Sequence[Row] = (),
        refusals: Sequence[str] = (),
        processing_class: Any = None,
        peft_config: Any = None,
        teacher: nn.Module | None = None,
        evaluate: Callable[[nn.Module], dict[str, float]] | None = None,
        **kwargs: Any,
    ) -> None:
        check_keywords(kwargs)
        args = arguments_for(model, args, evaluates=evaluate is not None)
        self.objective, self.retain = objectives_of(objective, retain)
        self.needs = needs_by_role(self.objective, self.retain)
        data: dict[str, Any] = {
            "forget_rows": rows_of(forget_dataset, "forget_dataset"),
            "retain_rows": rows_of(retain_dataset, "retain_dataset"),
            "refusals": refusals,
        }
        start, tokenizer = _loaded(model, processing_class, adapter=peft_config is not None)
        tokenizer = fit_tokenizer(tokenizer, start.config)
        data["config"] = start.config
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
        start = adapt(start, peft_config) if peft_config is not None else start
        check_adapter(start, "model.lora")
        name_base(start)
        if not any(p.requires_grad for p in start.parameters()):
            raise UserError("model: none of its weights trains (requires_grad); load it for training.")
        use_cache = getattr(start.config, "use_cache", None)
        if self.objective is not None and self.objective.parts is not None:
            train_only(start, *self.objective.parts)
        needs = self.needs[Role.FORGET] | self.needs[Role.RETAIN]
        if needs.reference and not args.keep_dropout:
            switch_off_dropout(start)
        check_training(start, max(len(row) for role in Role for row in self.sets.of(role)))
        self.settings = args
        self.evaluator = evaluate
        self.reference = None
        self._terms: list[tuple[int, dict[str, Tensor]]] = []
        self._loss_before = 0.0  # sum over the steps before the checkpoint that training goes on from
        with private():  # it makes its folder
            super().__init__(
                model=start,
                args=args,
                data_collator=Collator(self.sets, tokenizer.pad_token_id),
                train_dataset=PairedDataset(self.sets, refusals=self.needs[Role.FORGET].refusal),
                # Trainer wants to see something to evaluate on; `evaluate` below never looks at it.
                eval_dataset=[] if evaluate is not None else None,  # pyright: ignore[reportArgumentType]
                processing_class=tokenizer,
                **kwargs,
            )
        # The trainer switches it off for its forwards, which never ask for one here, and it would be saved so.
        if use_cache is not None:
            start.config.use_cache = use_cache
        # One bar instead of a printed line a step; every line is in metrics.jsonl.
        self.remove_callback(PrinterCallback)
        if not args.disable_tqdm:
            self.remove_callback(ProgressCallback)
            self.add_callback(LossBar)
        self.add_callback(EpochsOrder())
        order = {"rows_per_step": args.rows_per_step, "rows": self._get_train_sampler().rows, "seed": args.order_seed}
        self.pace = Pace(order)
        self.add_callback(self.pace)
        self.add_callback(EvaluateEvery(args.eval_every))
        self.add_callback(MetricsFile(Path(str(args.output_dir))))
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            start.to(args.device)  # where it is spread out from, later on: what is asked of it before is asked there
        if needs.reference:
            if not args.keep_dropout:
                check_modes(start)
            self.reference = build_reference(
                start,
                self.needs,
                self.sets,
                pad_token_id=tokenizer.pad_token_id,
                kind=args.reference,
                teacher=None if teacher is None else teacher.to(args.device),
                batch_size=args.per_device_train_batch_size * 2,
                retain_rows=self._get_train_sampler().retain_rows(self._epochs()),
            )
        self.surprisal_V = _unigram_surprisal(self.sets, start) if needs.surprisal else None

    # -- the step ------------------------------------------------------------------------------------------------

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Tensor:
        counts = num_items_in_batch.tolist()
        # Gradients are averaged over the ranks, and their sum is wanted; divided by infinity, a filler adds nothing.
        times = math.inf if "filler" in inputs else 1 / self.args.world_size
        shares = {
            role: Share(objective, times * max(1, own[0 if objective.per == "token" else 1]))
            for role, objective, own in (
                (Role.FORGET, self.objective, counts[:2]),
                (Role.RETAIN, self.retain, counts[2:]),
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
        cut up.
        """
        counts = torch.zeros(4, dtype=torch.long)
        for batch in batch_samples:
            if "filler" in batch:
                continue
            lengths = Layout.of(batch).lengths
            for i, role, own in ((0, Role.FORGET, self.objective), (2, Role.RETAIN, self.retain)):
                skips = own.skips if own is not None else 0
                counts[i] += sum(max(0, length - skips) for length in lengths.get(role, []))
                counts[i + 1] += len(lengths.get(role, []))
        counts = counts.to(device)
        if self.args.world_size > 1:
            counts = torch.as_tensor(self.accelerator.reduce(counts, "sum"))
        return counts

    # -- order, evaluation, logs -----------------------------------------------------------------------------------

    def _get_train_sampler(self, train_dataset: Any = None) -> PairSampler:
        return PairSampler(
            self.sets,
            batch_size=self.settings.rows_per_step,
            seed=self.settings.order_seed,
            ranks=self.args.world_size,
            per_rank=self.args.train_batch_size,
        )

    def _epochs(self) -> int:
        """How many times training will go through the forget rows, begun ones counted."""
        if self.args.max_steps <= 0:
            return math.ceil(self.args.num_train_epochs)
        # One more, since the last step of an epoch may be a short one.
        return math.ceil(self.args.max_steps * self.settings.rows_per_step / self._get_train_sampler().rows) + 1

    def evaluate(self, eval_dataset: Any = None, *_args: Any, **_kwargs: Any) -> dict[str, float]:
        if self.evaluator is None or eval_dataset is not None:
            raise UserError(
                "evaluate: there is no loss of a data set to measure; give UnlearnTrainer(evaluate=…) a function of "
                "the model that returns numbers by name, or use expunge eval on the saved model."
            )
        try:
            found = self.evaluator(self.accelerator.unwrap_model(self.model))
        except UserError as error:
            raise TrainingDiverged(f"after step {self.state.global_step} {error}") from error
        metrics = {f"eval_{k}": v for k, v in found.items()}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def predict(self, *_args: Any, **_kwargs: Any) -> Any:
        raise UserError(
            "predict: an unlearned model is an ordinary causal LM; call its own generate, or load the saved one with "
            "expunge.load."
        )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs = {**logs, **self._means()}
            self._terms.clear()
        if "train_loss" in logs:  # the trainer's own leaves out the steps before a resume
            logs["train_loss"] = (self._loss_before + self._total_loss_scalar) / max(1, self.state.global_step)
        super().log(logs, start_time)

    def _finalize_training(self, trial: Any, num_train_samples: Any, start_time: Any) -> TrainOutput:
        self._means()  # what was never logged must not be NaN either
        output = super()._finalize_training(trial, num_train_samples, start_time)
        return output._replace(training_loss=output.metrics["train_loss"])

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
        if isinstance(self.model, LogitDifferenceForCausalLM):
            self.model.load_assistant(assistant_weights(Path(resume_from_checkpoint)))
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _init_training_state(
        self, max_steps: Any, num_update_steps_per_epoch: Any, num_train_epochs: Any, resume_from_checkpoint: Any,
        trial: Any,
    ) -> tuple[int, int]:  # fmt: skip
        self._loss_before = 0.0
        if resume_from_checkpoint is not None:
            checkpoint = Path(resume_from_checkpoint)
            self._loss_before = self.pace.loss_before(checkpoint)
            spread = self.is_fsdp_enabled or self.is_deepspeed_enabled  # where the optimizer goes by other names
            if not spread and not (checkpoint / "optimizer.pt").exists():
                raise UserError(
                    f"{checkpoint}: it holds no state of the optimizer (save_only_model), so training can't go on from "
                    f"it; start it over."
                )
        return super()._init_training_state(
            max_steps, num_update_steps_per_epoch, num_train_epochs, resume_from_checkpoint, trial
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
        try:
            with private(), writing(out):
                return super().train(checkpoint, *args, **kwargs)
        finally:
            for callback in self.callback_handler.callbacks:
                if isinstance(callback, LossBar):
                    callback.close()

    def _check_whole(self, checkpoint: Path) -> None:
        if wrong := ranks.told(lambda: checkpoint_damage(checkpoint)):
            raise UserError(wrong)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        with same_vocabulary():
            super().save_model(output_dir, _internal_call)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Save a checkpoint and seal it; older ones go only then, so that a kill at any moment leaves a whole one."""
        self._means()  # never save what a NaN has touched
        since_log = torch.as_tensor(self.accelerator.gather(self._tr_loss)).mean().item()
        self.pace.loss = self._loss_before + self._total_loss_scalar + since_log
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

    def _means(self) -> dict[str, float]:
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
        return means


def _loaded(model: Any, tokenizer: Any, *, adapter: bool) -> tuple[Any, Any]:
    """The model and the tokenizer, loaded where only a name is given."""
    if isinstance(model, str | Path):
        model, own = load(model, merged=True) if adapter else load_for_training(model)
        return model, own if tokenizer is None else prepare_tokenizer(tokenizer)
    if tokenizer is None:
        name = getattr(getattr(model, "config", None), "_name_or_path", "")
        if not name:
            raise UserError("processing_class is missing, and the model does not say where its tokenizer is; give it.")
        return model, load_tokenizer_and_config(name)[0]
    return model, prepare_tokenizer(tokenizer)


def _unigram_surprisal(sets: Sets, model: nn.Module) -> Tensor:
    """−log frequency of every token among the supervised tokens of the training data (add-one), nats, [V]."""
    size = ways_of(model).vocab_size
    tokens = [t for role in (Role.FORGET, Role.RETAIN) for e in sets.of(role) for t in e.targets]
    counts = torch.bincount(torch.tensor(tokens), minlength=size).float() + 1
    return -(counts / counts.sum()).log()
