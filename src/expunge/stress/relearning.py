"""Fine-tuning after unlearning: how soon is the rest of what was forgotten back, when a few rows are shown again?

Sources: Hu et al. 2024, arXiv 2406.13356 (relearning on a few forget rows, or on none); Łucki et al. 2024, arXiv
2409.18025 (on unrelated data).
"""

import random
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from expunge.benchmarks import general
from expunge.data.benchmark import Benchmark, Row
from expunge.objectives import NLL
from expunge.stress.attack import PROBABILITY, Clock, Victim, known_probability
from expunge.stress.outcome import Outcome, Point

SHARES = (0.05, 0.2)
"""Shares of the forget rows that are shown to the model; what it knows of all others is measured."""
MOST = max(SHARES)
RATES = (0.06, 0.2)
"""Learning rate times hidden size; from there on a pretrained model is damaged rather than taught."""
ADAPTER = 10
"""Times that, for an adapter."""
STEPS, QUICK_STEPS, EVERY = 30, 15, 5
"""Optimizer steps, of a quick answer fewer, and steps between two measurements."""
BATCH = 8
OTHERS = 64
"""Rows that are no forget rows, where the model is shown such."""


@dataclass(frozen=True)
class Lesson:
    """Rows that the model is shown, and how."""

    what: str
    rows: Sequence[Row]
    rate: float
    lora: bool = False

    @property
    def setting(self) -> str:
        return f"{self.what}, {'LoRA' if self.lora else 'all weights'}, {self.rate:g} / width"


def relearning(victim: Victim) -> list[Outcome]:
    """Measure, over the steps of each lesson, what the model knows of forget rows that it is not shown."""
    _, asked = parted(victim.benchmark.forget, seed=victim.seed)
    found = []
    for lesson in lessons(victim.benchmark, quick=victim.quick, seed=victim.seed):
        clock = Clock()
        points = tuple(_taught(victim, lesson, asked))
        found.append(Outcome("relearning", lesson.setting, "steps", PROBABILITY, points, clock.lap()))
    return found


def parted(forget: Sequence[Row], *, seed: int) -> tuple[list[Row], list[Row]]:
    """(rows that a lesson may show, all others): the same for every model and lesson."""
    order = random.Random(seed).sample(range(len(forget)), len(forget))
    shown = max(1, round(MOST * len(forget)))
    return [forget[i] for i in order[:shown]], [forget[i] for i in sorted(order[shown:])]


def lessons(benchmark: Benchmark, *, quick: bool, seed: int) -> Iterator[Lesson]:
    """The lessons. A quick answer takes those that mostly find most: a fifth of the forget rows, all weights."""
    shown, _ = parted(benchmark.forget, seed=seed)
    few = {share: shown[: max(1, round(share * len(benchmark.forget)))] for share in SHARES}
    if quick:
        yield from (Lesson(_share(MOST), few[MOST], rate) for rate in RATES)
        return
    for share, rows in few.items():
        for rate in RATES:
            yield Lesson(_share(share), rows, rate)
    yield Lesson(_share(SHARES[0]), few[SHARES[0]], ADAPTER * RATES[0], lora=True)
    if benchmark.retain:
        rows = random.Random(seed).sample(benchmark.retain, min(OTHERS, len(benchmark.retain)))
        yield Lesson("rows to keep", rows, RATES[0])
    yield Lesson("general questions", general.load().rows, RATES[0])


def _share(share: float) -> str:
    return f"{100 * share:g} % of the forget rows"


def _taught(victim: Victim, lesson: Lesson, asked: Sequence[Row]) -> Iterator[Point]:
    """The points of a lesson: before it, and after every few steps."""
    from peft import LoraConfig

    from expunge.training.arguments import UnlearnConfig
    from expunge.training.trainer import UnlearnTrainer

    model, tokenizer = victim.load()
    yield Point(0, known_probability(model, tokenizer, asked))
    width = model.config.get_text_config().hidden_size
    with tempfile.TemporaryDirectory() as folder:
        trainer = UnlearnTrainer(
            model,
            UnlearnConfig(
                output_dir=folder,
                max_steps=QUICK_STEPS if victim.quick else STEPS,
                learning_rate=lesson.rate / width,
                per_device_train_batch_size=min(BATCH, len(lesson.rows)),
                lr_scheduler_type="constant",
                eval_strategy="steps",
                eval_steps=EVERY,
                save_strategy="no",
                overflow="split",
                report_to=[],
                disable_tqdm=True,
                seed=victim.seed,
            ),
            retain=NLL(),
            retain_dataset=lesson.rows,
            processing_class=tokenizer,
            peft_config=LoraConfig(r=8, lora_alpha=16, target_modules="all-linear") if lesson.lora else None,
            evaluate=lambda trained: {"known": known_probability(trained, tokenizer, asked)},
        )
        trainer.train()
    log: list[dict[str, Any]] = trainer.state.log_history
    yield from (Point(row["step"], row["eval_known"]) for row in log if "eval_known" in row)
