"""Lessons of a run's models; the retrained one can be taught in a process of its own.

`python -m expunge.pipeline.lessons` teaches the retrained model of the recipe that it reads from its input.
"""

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch

from expunge.data.benchmark import Benchmark, Row
from expunge.pipeline.inputs import load_benchmark
from expunge.recipe.config import Recipe
from expunge.system import ranks
from expunge.system.logs import quiet_libraries
from expunge.training.targets import FinetuneConfig, Lesson, Nothing, Pretrained, taught

LONG = 5_000
"""Rows read in all epochs from which on a lesson takes longer than a process to begin."""


def lessons(recipe: Recipe, benchmark: Benchmark) -> tuple[Lesson, list[Lesson]]:
    """The lesson of the target, which is all of the benchmark, and those of the retrained models."""
    named = recipe.model.name is not None
    everything = benchmark.taught if named else benchmark.learnt
    rows = [*benchmark.retain, *([] if named else benchmark.utility)]  # what a pretrained model knows is not taught
    target = lesson(recipe, everything, "target", vocabulary=everything)
    retrained = replace(target, rows=rows, title="retrained")
    return target, [replace(retrained, seed=retrained.seed + i) for i in range(retrained.finetune.retrained)]


def lesson(recipe: Recipe, rows: Sequence[Row], title: str, *, vocabulary: Sequence[Row]) -> Lesson:
    """The lesson that teaches `rows` as the recipe says; a model from nothing has its tokenizer from `vocabulary`."""
    scratch, finetune = recipe.model.scratch, recipe.finetune or FinetuneConfig()
    start = Nothing(scratch, vocabulary) if scratch is not None else Pretrained(str(recipe.model.name))
    return Lesson(rows, start, finetune, recipe.seed if finetune.seed is None else finetune.seed, title)


@contextmanager
def taught_meanwhile(recipe: Recipe, target: Lesson, retrained: Lesson) -> Iterator[None]:
    """Teach the retrained model in another process while the body teaches the target, where there are cores for both.

    Only models from nothing, since two pretrained ones may not fit into memory, and only under `threads`, which both
    then have: a model's last digits depend on their number. A process that fails says nothing: whoever asks for its
    model next teaches it, or says why that cannot be.
    """
    epochs = retrained.settings().epochs or 0
    alone = recipe.model.scratch is None or recipe.data is not None or torch.cuda.is_available() or ranks.count() > 1
    short = epochs * len(retrained.rows) < LONG or any(lesson.folder.exists() for lesson in (target, retrained))
    if alone or short or recipe.threads is None or 2 * recipe.threads > _cores():
        yield
        return
    with subprocess.Popen(
        [sys.executable, "-m", "expunge.pipeline.lessons"],
        env={**os.environ, "TQDM_DISABLE": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as other:
        assert other.stdin is not None
        other.stdin.write(recipe.model_dump_json(exclude_unset=True).encode())
        other.stdin.close()
        try:
            yield
        except BaseException:
            other.kill()
            raise


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _main() -> None:
    recipe = Recipe.model_validate_json(sys.stdin.read())
    quiet_libraries()
    if recipe.threads is not None:
        torch.set_num_threads(recipe.threads)
    taught(lessons(recipe, load_benchmark(recipe))[1][0])


if __name__ == "__main__":
    _main()
