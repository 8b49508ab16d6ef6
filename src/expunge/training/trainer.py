"""`UnlearnTrainer`: one forward for all roles, the signals its objectives ask for, and their weighted sum.

Read `compute_loss` first. A `transformers.Trainer` in everything else: arguments, optimizers, schedules, callbacks,
launchers; its logs and checkpoints are in `keeping.py`.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState

from expunge.data.benchmark import Row
from expunge.data.checks import check_kept
from expunge.data.encode import prepare_tokenizer
from expunge.data.pairs import Collator, PairedDataset, PairSampler, Role, Sets
from expunge.errors import UserError
from expunge.modeling.adapter import adapt, check_adapter
from expunge.modeling.agreement import check_training, ways_of
from expunge.modeling.causal import CausalLM
from expunge.modeling.checkpoint import fit_tokenizer
from expunge.modeling.loading import load, load_for_training, load_tokenizer_and_config
from expunge.modeling.saving import keep_weights, name_base
from expunge.objectives import Kept, Objective
from expunge.objectives.base import Share
from expunge.training.arguments import UnlearnConfig
from expunge.training.dual import RetainWeight
from expunge.training.keeping import KeptTrainer
from expunge.training.layout import LaidOut, Layout, part_of
from expunge.training.modes import check_modes, switch_off_dropout, train_only
from expunge.training.prepare import (
    arguments_for,
    check_keywords,
    check_kinds,
    check_sharpness,
    check_terms,
    check_used,
    checked,
    encode_sets,
    objectives_of,
    rows_of,
    tell_unread,
)
from expunge.training.reference import build_reference
from expunge.training.sharpness import uphill
from expunge.training.signals import gather_signals, needs_by_role

if TYPE_CHECKING:
    from peft import LoraConfig
    from transformers import PreTrainedTokenizerBase


class EpochsOrder(TrainerCallback):
    """Tells the sampler which epoch begins: the trainer does not reach it where several ranks take one up midway."""

    def on_epoch_begin(
        self, args: Any, state: TrainerState, control: TrainerControl, train_dataloader: Any = None, **kwargs: Any
    ) -> None:
        sampler = train_dataloader.batch_sampler
        while not isinstance(sampler, PairSampler):
            sampler = sampler.batch_sampler if hasattr(sampler, "batch_sampler") else sampler.sampler
        sampler.set_epoch(int(state.epoch or 0))


class UnlearnTrainer(KeptTrainer):
    """Unlearn `forget_dataset` under `objective` while `retain` holds on to `retain_dataset`.

    Either side may be missing: without `objective` the model simply learns `retain_dataset` under `retain`.

    Args:
        model: any causal LM with one output head, or its folder or name on the hub.
        args: `UnlearnConfig`; its defaults, and the folder `<name of the model>-unlearned`, without it.
        objective: a forget objective, such as `objectives.NPO(beta=0.1)`, or a name as in recipes: `"npo"`, `"npo+kl"`.
        retain: a retain objective, such as `objectives.NLL()`, or its name.
        forget_dataset: rows to forget, in any format of `expunge.data.formats`: a list of dicts, a `datasets.Dataset`,
            or a file, a folder or a hub name.
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

    model: CausalLM

    # The loss is divided by the counts of the whole optimizer step already, so micro-batches simply add up.
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        model: CausalLM | str | Path,
        args: UnlearnConfig | None = None,
        *,
        objective: Objective | str | None = None,
        retain: Objective | str | None = None,
        forget_dataset: Sequence[Row] = (),
        retain_dataset: Sequence[Row] = (),
        refusals: Sequence[str] = (),
        processing_class: "PreTrainedTokenizerBase | None" = None,
        peft_config: "LoraConfig | None" = None,
        teacher: nn.Module | None = None,
        evaluate: Callable[[CausalLM], dict[str, float]] | None = None,
        **kwargs: Any,
    ) -> None:
        check_keywords(kwargs)
        check_kinds(
            model=model, refusals=refusals, processing_class=processing_class, peft_config=peft_config,
            teacher=teacher, evaluate=evaluate, callbacks=kwargs.get("callbacks"),
        )  # fmt: skip
        args = arguments_for(model, args, evaluates=evaluate is not None)
        self.objective, self.retain = objectives_of(objective, retain)
        self.needs = needs_by_role(self.objective, self.retain)
        forget, kept = rows_of(forget_dataset, "forget_dataset"), rows_of(retain_dataset, "retain_dataset")
        check_used(self.objective, self.retain, forget, kept)
        check_kept(kept, "rejected")
        data: dict[str, Any] = {
            "forget_rows": checked(forget, "forget"),
            "retain_rows": checked(kept, "retain"),
            "refusals": refusals,
        }
        tell_unread(self.objective, forget, "chosen")
        start, tokenizer = _loaded(model, processing_class, adapter=peft_config is not None)
        tokenizer = fit_tokenizer(tokenizer, start.config)
        data["config"] = start.config
        check_terms(self.objective, self.retain, **data)
        check_sharpness(self.objective, args)
        self.sets = encode_sets(self.objective, self.retain, **data, tokenizer=tokenizer, args=args)
        start = adapt(start, peft_config) if peft_config is not None else start
        check_adapter(start, "model.lora")
        name_base(start)
        keep_weights(start)
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
        self.reference = None
        super().__init__(
            evaluate,
            model=start,
            args=args,
            data_collator=LaidOut(Collator(self.sets, tokenizer.pad_token_id)),
            train_dataset=PairedDataset(self.sets, refusals=self.needs[Role.FORGET].refusal),
            processing_class=tokenizer,
            **kwargs,
        )
        # The trainer switches it off for its forwards, which never ask for one here, and it would be saved so.
        if use_cache is not None:
            start.config.use_cache = use_cache
        self.add_callback(EpochsOrder())
        if isinstance(self.retain, Kept) and self.retain.budget is not None:
            self.retain_weight = RetainWeight(self.retain, partial(self._loss_of, "retain"))
            self.add_callback(self.retain_weight)
        order = {"rows_per_step": args.rows_per_step, "rows": self._get_train_sampler().rows, "seed": args.order_seed}
        self.keep(order, every=args.eval_every)
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            start.to(args.device)  # before it is sharded: the reference's pass runs first
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

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """Forward and backward of a micro-batch: the loss.

        With `sam_rho`, the forget loss and its gradient are those at `uphill`'s weights, the retain loss's here.
        """
        rho = self.settings.sam_rho
        if rho is None:
            return super().training_step(model, inputs, num_items_in_batch)
        batch = self._prepare_inputs(inputs)
        forget, retain = part_of(batch, (Role.FORGET, Role.REFUSAL)), part_of(batch, (Role.RETAIN,))
        super().training_step(model, forget, num_items_in_batch)
        self._terms.pop()
        with uphill(model.parameters(), rho):
            loss = super().training_step(model, forget, num_items_in_batch)
        if len(retain["row"]):
            loss = loss + super().training_step(model, retain, num_items_in_batch)
            step, kept = self._terms.pop()
            self._terms[-1] = (step, {**self._terms[-1][1], **kept})
        return loss

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
            role: Share(objective, times * max(1, totals[0 if objective.per == "token" else 1]))
            for role, objective, totals in (
                (Role.FORGET, self.objective, counts[:2]),
                (Role.RETAIN, self.retain if self.retain_weight is None else self.retain_weight.term, counts[2:]),
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
            for i, role, term in ((0, Role.FORGET, self.objective), (2, Role.RETAIN, self.retain)):
                skips = term.skips if term is not None else 0
                counts[i] += sum(max(0, length - skips) for length in lengths.get(role, []))
                counts[i + 1] += len(lengths.get(role, []))
        if self.args.world_size > 1:
            counts = torch.as_tensor(self.accelerator.reduce(counts.to(device), "sum"))
        return counts.cpu()

    # -- the order of rows -----------------------------------------------------------------------------------------

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


def _loaded(
    model: CausalLM | str | Path, tokenizer: "PreTrainedTokenizerBase | None", *, adapter: bool
) -> tuple[Any, Any]:
    """The model and the tokenizer, loaded where only a name is given."""
    if isinstance(model, str | Path):
        model, saved_tokenizer = load(model, merged=True) if adapter else load_for_training(model)
        return model, saved_tokenizer if tokenizer is None else prepare_tokenizer(tokenizer)
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
