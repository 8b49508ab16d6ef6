"""Records of a training besides its loss: logs, evaluations on the way, whole checkpoints, and where to go on from.

How a loss comes about is for `trainer.py` to say.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, TrainOutput, rotate_checkpoints

from expunge.errors import UserError
from expunge.modeling.bases import record
from expunge.modeling.causal import CausalLM
from expunge.modeling.difference import LogitDifferenceForCausalLM, assistant_weights
from expunge.modeling.loading import load
from expunge.modeling.saving import keep_weights, same_vocabulary
from expunge.system import manifest, ranks
from expunge.system.disk import private, writing
from expunge.training.budget import ForgetGoal
from expunge.training.dual import RetainWeight
from expunge.training.history import EvaluateEvery, LossBar, MetricsFile, Pace, checkpoint_damage, last_checkpoint


class TrainingDiverged(UserError):
    """A term of the loss became NaN or infinite."""


class KeptTrainer(Trainer):
    """A trainer whose checkpoints are sealed, whose log has a mean for each term of the loss, and which can go back.

    A subclass appends (step, terms) to `_terms` for every forward.
    """

    def __init__(self, evaluate: Callable[[CausalLM], dict[str, float]] | None, **kwargs: Any) -> None:
        self.evaluator = evaluate
        self._terms: list[tuple[int, dict[str, Tensor]]] = []
        self.retain_weight: RetainWeight | None = None
        self._loss_before = 0.0  # sum over the steps before the checkpoint that training goes on from
        with private():  # it makes its folder
            # Trainer wants to see something to evaluate on; `evaluate` below never looks at it.
            super().__init__(eval_dataset=[] if evaluate is not None else None, **kwargs)  # pyright: ignore

    def keep(self, order: dict[str, Any], *, every: int) -> None:
        """Write down what training does; `order` decides on the order of rows, `every` how often it is evaluated."""
        # One bar instead of a printed line a step; every line is in metrics.jsonl.
        self.remove_callback(PrinterCallback)
        if not self.args.disable_tqdm:
            self.remove_callback(ProgressCallback)
            self.add_callback(LossBar)
        self.pace = Pace(order)
        self.add_callback(self.pace)
        self.add_callback(EvaluateEvery(every))
        self.add_callback(MetricsFile(Path(str(self.args.output_dir))))

    def evaluate(self, eval_dataset: Any = None, *_args: Any, **_kwargs: Any) -> dict[str, float]:
        if self.evaluator is None or eval_dataset is not None:
            raise UserError(
                "evaluate: there is no loss of a data set to measure; give UnlearnTrainer(evaluate=…) a function of "
                "the model that returns numbers by name, or use expunge eval on the saved model."
            )
        try:
            measured = self.evaluator(self.accelerator.unwrap_model(self.model))
        except UserError as error:
            raise TrainingDiverged(f"after step {self.state.global_step} {error}") from error
        metrics = {f"eval_{k}": v for k, v in measured.items()}
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
            if self.retain_weight is not None:
                logs["retain_weight"] = self.retain_weight.weight
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

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if isinstance(self.model, LogitDifferenceForCausalLM):
            self.model.load_assistant(assistant_weights(Path(resume_from_checkpoint)))
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _init_training_state(
        self, max_steps: Any, num_update_steps_per_epoch: Any, num_train_epochs: Any, resume_from_checkpoint: Any,
        trial: Any,
    ) -> tuple[int, int]:  # fmt: skip
        self._loss_before = 0.0
        checkpoint = None if resume_from_checkpoint is None else Path(resume_from_checkpoint)
        if self.retain_weight is not None:
            self.retain_weight.begin(checkpoint)
        if checkpoint is not None:
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
        if checkpoint is not None and self._is_over(Path(checkpoint)):
            return TrainOutput(self.state.global_step, self._loss_before / max(1, self.state.global_step), {})
        try:
            with private(), writing(out):
                return super().train(checkpoint, *args, **kwargs)
        finally:
            for callback in self.callback_handler.callbacks:
                if isinstance(callback, LossBar):
                    callback.close()

    def _is_over(self, checkpoint: Path) -> bool:
        """Whether training had ended with this checkpoint, by a callback's judgement; if so, take its weights and log.

        `transformers.Trainer` trains at least one more step, whatever its callbacks say when it begins.
        """
        state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
        callbacks = self.callback_handler.callbacks
        if not any(isinstance(each, ForgetGoal) and each.is_over(state.log_history) for each in callbacks):
            return False
        self._loss_before = self.pace.loss_before(checkpoint)
        self._load_from_checkpoint(str(checkpoint))
        self.state = state
        return True

    def _check_whole(self, checkpoint: Path) -> None:
        if wrong := ranks.broadcast(lambda: checkpoint_damage(checkpoint)):
            raise UserError(wrong)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        keep_weights(self.accelerator.unwrap_model(self.model))  # training has set the tokenizer's pad_token_id
        with same_vocabulary():
            super().save_model(output_dir, _internal_call)
        if ranks.first():
            record(Path(output_dir or str(self.args.output_dir)))

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

    def _loss_of(self, name: str, step: int) -> float:
        """The loss of one term in an optimizer step that was not logged yet."""
        parts = [terms[name] for at, terms in self._terms if at == step and name in terms]
        total = torch.stack(parts).float().sum()
        if self.args.world_size > 1:
            total = torch.as_tensor(self.accelerator.reduce(total, "mean"))
        return total.item()

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
