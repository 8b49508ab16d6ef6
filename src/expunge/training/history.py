"""The log of a training run, and where an interrupted one left off."""

import json
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import ProgressCallback, TrainerCallback, TrainerControl, TrainerState
from transformers.trainer_callback import ExportableState

from expunge.errors import UserError
from expunge.system import manifest, ranks
from expunge.system.disk import private, write_whole, writing

log = logging.getLogger(__name__)

METRICS_FILE = "metrics.jsonl"


class MetricsFile(TrainerCallback):
    """Keeps `metrics.jsonl`: a row per logged step and per evaluation, with the seconds of training so far.

    The file always agrees with the trainer's own history, so a resumed run takes it up without a gap or a repeat.
    """

    def __init__(self, directory: Path) -> None:
        self.path = directory / METRICS_FILE
        self.seconds = 0.0
        self._since: float | None = None

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.seconds = next((r["seconds"] for r in reversed(state.log_history) if "seconds" in r), 0.0)
        if not state.is_world_process_zero:
            return
        with private(), writing(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(self.path, "".join(json.dumps(row) + "\n" for row in state.log_history))

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self._since = time.perf_counter()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        if self._since is not None:
            self.seconds += time.perf_counter() - self._since

    def on_log(self, args: Any, state: TrainerState, control: TrainerControl, logs: Any = None, **kwargs: Any) -> None:
        row = state.log_history[-1]
        row["seconds"] = round(self.seconds, 3)
        if not state.is_world_process_zero:
            return
        with writing(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


SAME = {
    "rows_per_step": "give as many as then (train.per_device_train_batch_size × train.gradient_accumulation_steps × "
    "processes)",
    "rows": "give the same rows",
    "seed": "give the same seed",
}
"""Settings that the order of rows depends on beside the epoch, and the remedy where a checkpoint's differ."""


class Pace(TrainerCallback, ExportableState):
    """Writes into every checkpoint what the order of rows depends on, and the sum of the losses of its steps."""

    def __init__(self, order: Mapping[str, int]) -> None:
        self.order = dict(order)
        self.loss = 0.0

    def state(self) -> dict[str, Any]:
        return {"args": {"order": self.order}, "attributes": {"loss": self.loss}}

    def loss_before(self, checkpoint: Path) -> float:
        """The sum of the losses up to a checkpoint that training is to go on from.

        Raises `UserError` for a checkpoint of another order: the rows of its next step would be others.
        """
        state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
        saved = state.get("stateful_callbacks", {}).get(type(self).__name__)
        if saved is None:
            raise UserError(f"{checkpoint}: it does not say which rows its steps had; start the training over.")
        then = saved["args"]["order"]
        for name, now in self.order.items():
            if then[name] != now:
                what = name.replace("_", " ")
                raise UserError(f"{checkpoint}: {what} was {then[name]} and is {now} now; {SAME[name]}.")
        return float(saved["attributes"]["loss"])


class EvaluateEvery(TrainerCallback):
    """Leaves out the evaluations between every `epochs`-th one; the trainer's own strategies know only each epoch."""

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs

    def on_epoch_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        epoch = round(state.epoch or 0)
        if epoch % self.epochs and state.global_step < state.max_steps:
            control.should_evaluate = False


class LossBar(ProgressCallback):
    """The trainer's progress bar with the last losses beside it, instead of a printed line a step."""

    def on_log(self, args: Any, state: TrainerState, control: TrainerControl, logs: Any = None, **kwargs: Any) -> None:
        if self.training_bar is not None and logs and "loss" in logs:
            shown = {k.removesuffix("_loss"): f"{v:.3g}" for k, v in logs.items() if k.endswith("_loss")}
            self.training_bar.set_postfix(shown, refresh=False)

    def close(self) -> None:
        """Take the bar down where training ended by an error: it would be drawn again below the error's sentence."""
        if self.training_bar is not None:
            self.training_bar.close()
            self.training_bar = None


def trajectory(log_history: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The evaluations on the way, of a trainer's log: each one's epoch, step, seconds and metrics."""
    return [
        {
            "epoch": row["epoch"],
            "step": row["step"],
            "seconds": row.get("seconds"),
            "metrics": {k.removeprefix("eval_"): v for k, v in row.items() if k.startswith("eval_")},
        }
        for row in log_history
        if any(k.startswith("eval_") for k in row)
    ]


def last_checkpoint(directory: Path) -> Path | None:
    """The newest whole checkpoint in `directory`, or `None`; what a kill left of newer ones is removed.

    Every rank gets the same. Raises `UserError` for a checkpoint whose files are no longer as they were written.
    """
    checkpoint, wrong = ranks.broadcast(lambda: _last_checkpoint(directory))
    if wrong is not None:
        raise UserError(wrong)
    return checkpoint


def _last_checkpoint(directory: Path) -> tuple[Path | None, str | None]:
    """(the checkpoint, what is wrong with it)"""
    for path in checkpoints(directory):
        if manifest.is_begun(path):
            log.info("%s was not written to its end, so training goes on from before it", path)
            manifest.discard(path)
        else:
            return path, checkpoint_damage(path)
    return None, None


def checkpoint_damage(path: Path) -> str | None:
    """The fault of a checkpoint and its remedy, in a sentence."""
    wrong = manifest.damage(path)
    return wrong and f"{wrong}; delete {path} to go on from before it, or start over."


def checkpoints(directory: Path) -> list[Path]:
    """Every checkpoint in `directory`, whole or not, the newest first."""
    steps = {path: path.name.rpartition("-")[2] for path in directory.glob("checkpoint-*") if path.is_dir()}
    return sorted((path for path in steps if steps[path].isdecimal()), key=lambda path: -int(steps[path]))
