"""What a training run writes down as it goes, and where an interrupted one left off.

Knows the trainer's history and its checkpoints; knows nothing of losses.
"""

import json
import time
from pathlib import Path
from typing import Any

from transformers import ProgressCallback, TrainerCallback, TrainerControl, TrainerState

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
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text("".join(json.dumps(row) + "\n" for row in state.log_history), encoding="utf-8")

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
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


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


def last_checkpoint(directory: Path) -> Path | None:
    """The newest checkpoint in `directory` that was written to its end, or `None`.

    The trainer writes `trainer_state.json` last, so a checkpoint without a readable one was cut off.
    """
    found = sorted(directory.glob("checkpoint-*"), key=lambda p: int(p.name.rpartition("-")[2]), reverse=True)
    for path in found:
        try:
            json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        return path
    return None
