"""Every field of `TrainingArguments` does what it says, or is refused by name; every mistake is one sentence."""

import dataclasses
import math
import typing
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from transformers import HfArgumentParser, TrainingArguments, trainer
from transformers.utils import logging
from transformers.utils.logging import log_levels

from expunge import UnlearnConfig, UnlearnTrainer, UserError
from expunge.objectives import KL, NLL, NPO
from expunge.pipeline.inputs import check_recipe
from expunge.recipe.config import TrainConfig
from expunge.recipe.parsing import load_recipe
from expunge.training.arguments import FIELDS, KINDS, NEEDS, REFUSED
from expunge.training.history import LossBar


def config(**keys: Any) -> UnlearnConfig:
    return UnlearnConfig(output_dir="out", **keys)


@dataclass
class Run:
    trainer: Any
    evaluations: list[float]
    folder: Path

    @property
    def weights(self) -> torch.Tensor:
        return torch.cat([p.detach().flatten() for p in self.trainer.model.parameters()])

    @property
    def steps(self) -> int:
        return self.trainer.state.global_step

    @property
    def loader(self) -> Any:
        return self.trainer.get_train_dataloader()

    @property
    def can_go_on(self) -> bool:
        return (self.folder / "checkpoint-6" / "optimizer.pt").exists()

    @property
    def parts(self) -> int:
        return len(self.trainer.sets.forget)

    @property
    def longest(self) -> int:
        return max(map(len, self.trainer.sets.forget))

    @property
    def logged(self) -> list[float]:
        return [row["step"] for row in self.losses]

    @property
    def losses(self) -> list[dict[str, float]]:
        return [row for row in self.trainer.state.log_history if "loss" in row]

    @property
    def checkpoints(self) -> list[str]:
        return sorted(path.name for path in self.folder.glob("checkpoint-*"))


Train = Callable[..., Run]


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory, tiny_model: Callable[..., Any], tiny_tokenizer: Any) -> Train:
    """Two epochs of three steps on a tiny model; other settings than these as given."""
    rows = [{"question": f"Where was {i} born?", "answer": f"In {'x' * (i % 3)}{i}."} for i in range(12)]
    tmp_path = tmp_path_factory.mktemp("runs")
    count = iter(range(1000))

    def do(*, starts: bool = True, texts: bool = False, **settings: Any) -> Run:
        folder = tmp_path / str(next(count))
        looks: list[float] = []
        common = {"output_dir": str(folder), "num_train_epochs": 2, "per_device_train_batch_size": 2}
        common |= {"learning_rate": 1e-3, "save_strategy": "no", "disable_tqdm": True}
        args = UnlearnConfig(**{**common, **settings})

        def evaluate(_model: Any) -> dict[str, float]:
            looks.append(made.state.epoch or 0)
            return {"x": 1.0}

        made = UnlearnTrainer(
            tiny_model(layers=2, hidden=16),
            args,
            objective=NPO(),
            retain=KL() if "reference" in settings else NLL(),
            forget_dataset=[{"text": "word " * 200}] if texts else rows[:6],
            retain_dataset=rows[6:],
            processing_class=tiny_tokenizer,
            evaluate=evaluate,
        )
        if starts:
            made.train()
        return Run(made, looks, Path(args.output_dir or ""))

    return do


@dataclass(frozen=True)
class Effect:
    """A setting, what else both runs have, and how the run with it is seen to differ from the one without."""

    value: Any
    seen: Callable[[Run, Run], bool]
    beside: dict[str, Any] = field(default_factory=dict)
    starts: bool = True


def moves_elsewhere(run: Run, usual: Run) -> bool:
    return not torch.equal(run.weights, usual.weights)


def loader(name: str, value: Any) -> Callable[[Run, Run], bool]:
    return lambda run, usual: getattr(run.loader, name) == value != getattr(usual.loader, name)


def checkpointed(run: Run) -> int:
    return sum(bool(getattr(layer, "gradient_checkpointing", False)) for layer in run.trainer.model.model.layers)


def ddp(name: str) -> Callable[[Run, Run], bool]:
    return lambda run, usual: (
        getattr(run.trainer.accelerator.ddp_handler, name) != getattr(usual.trainer.accelerator.ddp_handler, name)
    )


SAVES = {"save_strategy": "steps", "save_steps": 2, "save_total_limit": None}
LOOKS = {"eval_strategy": "epoch"}
CUT = {"overflow": "truncate", "texts": True}
WORKERS = {"dataloader_num_workers": 1}

EFFECTS: dict[str, Effect] = {
    "output_dir": Effect("", lambda run, _: (run.folder / "metrics.jsonl").exists()),
    "per_device_train_batch_size": Effect(3, moves_elsewhere),
    "num_train_epochs": Effect(1, lambda run, usual: (run.steps, usual.steps) == (3, 6)),
    "max_steps": Effect(1, lambda run, _: run.steps == 1),
    "learning_rate": Effect(1e-4, moves_elsewhere),
    "lr_scheduler_type": Effect("linear", moves_elsewhere),
    "lr_scheduler_kwargs": Effect({"power": 3.0}, moves_elsewhere, {"lr_scheduler_type": "polynomial"}),
    "warmup_steps": Effect(3, moves_elsewhere, {"lr_scheduler_type": "constant_with_warmup"}),
    "optim": Effect("sgd", moves_elsewhere),
    "optim_args": Effect("momentum=0.9", moves_elsewhere, {"optim": "sgd"}),
    "weight_decay": Effect(0.5, moves_elsewhere),
    "adam_beta1": Effect(0.5, moves_elsewhere),
    "adam_beta2": Effect(0.9, moves_elsewhere),
    "adam_epsilon": Effect(1e-2, moves_elsewhere),
    "gradient_accumulation_steps": Effect(3, lambda run, _: run.steps == 2),
    "max_grad_norm": Effect(1e-3, moves_elsewhere, {"optim": "sgd"}),
    "bf16": Effect(True, moves_elsewhere),
    "activation_checkpointing": Effect(True, lambda run, usual: (checkpointed(run), checkpointed(usual)) == (2, 0)),
    "activation_checkpointing_kwargs": Effect(
        {"every_n_layers": 2},
        lambda run, usual: (checkpointed(run), checkpointed(usual)) == (1, 2),
        {"activation_checkpointing": True},
    ),
    "gradient_checkpointing": Effect(True, lambda run, _: checkpointed(run) == 2),
    "gradient_checkpointing_kwargs": Effect(
        {"every_n_layers": 2}, lambda run, _: checkpointed(run) == 1, {"gradient_checkpointing": True}
    ),
    "logging_strategy": Effect("epoch", lambda run, usual: (len(run.losses), len(usual.losses)) == (2, 6)),
    "logging_steps": Effect(2, lambda run, _: run.logged == [2, 4, 6]),
    "logging_first_step": Effect(True, lambda run, _: run.logged == [1, 2, 4, 6], {"logging_steps": 2}),
    "include_num_input_tokens_seen": Effect("all", lambda run, _: run.trainer.state.num_input_tokens_seen > 0),
    "log_level": Effect("error", lambda run, _: logging.get_verbosity() == log_levels["error"], starts=False),
    "disable_tqdm": Effect(
        False, lambda run, _: any(isinstance(c, LossBar) for c in run.trainer.callback_handler.callbacks), starts=False
    ),
    "eval_strategy": Effect("epoch", lambda run, usual: (run.evaluations, usual.evaluations) == ([1, 2], [])),
    "eval_steps": Effect(4, lambda run, _: run.evaluations == [4 / 3, 2], {"eval_strategy": "steps"}),
    "eval_delay": Effect(2, lambda run, _: run.evaluations == [2], LOOKS),
    "eval_on_start": Effect(True, lambda run, _: run.evaluations == [0, 1, 2], LOOKS),
    "eval_every": Effect(2, lambda run, _: run.evaluations == [2], LOOKS),
    "sam_rho": Effect(0.2, lambda run, usual: run.losses[0] != usual.losses[0]),
    "save_strategy": Effect("epoch", lambda run, _: run.checkpoints == ["checkpoint-6"]),
    "save_steps": Effect(3, lambda run, _: run.checkpoints == ["checkpoint-3", "checkpoint-6"], SAVES),
    "save_total_limit": Effect(2, lambda run, _: run.checkpoints == ["checkpoint-4", "checkpoint-6"], SAVES),
    "save_only_model": Effect(
        True,
        lambda run, usual: (run.can_go_on, usual.can_go_on) == (False, True),
        SAVES,
    ),
    "seed": Effect(7, moves_elsewhere),
    "data_seed": Effect(7, moves_elsewhere),
    "use_cpu": Effect(True, lambda run, _: run.trainer.args.device.type == "cpu", starts=False),
    "dataloader_num_workers": Effect(1, loader("num_workers", 1), starts=False),
    "dataloader_pin_memory": Effect(False, lambda run, _: not run.loader.pin_memory, starts=False),
    "dataloader_persistent_workers": Effect(True, loader("persistent_workers", True), WORKERS, starts=False),
    "dataloader_prefetch_factor": Effect(5, loader("prefetch_factor", 5), WORKERS, starts=False),
    "dataloader_multiprocessing_context": Effect(
        "spawn", lambda run, _: run.loader.multiprocessing_context.get_start_method() == "spawn",
        WORKERS, starts=False,
    ),
    "ddp_bucket_cap_mb": Effect(3, ddp("bucket_cap_mb"), starts=False),
    "ddp_broadcast_buffers": Effect(False, ddp("broadcast_buffers"), starts=False),
    "ddp_static_graph": Effect(True, ddp("static_graph"), starts=False),
    "ddp_timeout": Effect(60, lambda run, _: run.trainer.args.ddp_timeout_delta == timedelta(seconds=60), starts=False),
    "skip_memory_metrics": Effect(
        False, lambda run, _: "train_mem_cpu_alloc_delta" in run.trainer.state.log_history[-1]
    ),
    "reference": Effect("frozen_copy", lambda run, _: run.trainer.reference.kind == "frozen_copy", starts=False),
    "max_length": Effect(40, lambda run, usual: (run.longest, usual.longest) == (40, 128), CUT, starts=False),
    "overflow": Effect("split", lambda run, usual: run.parts > usual.parts, {**CUT, "max_length": 40}, starts=False),
    "overlap": Effect(
        20, lambda run, usual: run.parts > usual.parts, {**CUT, "max_length": 40, "overflow": "split"}, starts=False
    ),
}  # fmt: skip
"""Fields that act in one process on a CPU."""

ELSEWHERE = {
    **dict.fromkeys(("fp16", "tf32"), "a GPU; test_what_needs_a_gpu_is_refused_without"),
    **dict.fromkeys(("log_on_each_node", "log_level_replica", "save_on_each_node"), "test_what_other_processes_do"),
    "ddp_backend": "test_two_ranks_take_the_steps_of_one_process names gloo",
    "torch_empty_cache_steps": "test_what_transformers_is_told",
    "full_determinism": "test_what_transformers_is_told",
    "debug": "test_what_transformers_is_told",
    "report_to": "test_a_reporter_is_there_or_missing",
    "keep_dropout": "test_modes.py",
    "assistant_turns": "test_turns.py",
    "hub_token": "a credential, which is masked: test_secrets.py",
    **dict.fromkeys(
        ("run_name", "project", "hub_private_repo", "trackio_space_id", "trackio_bucket_id", "trackio_static_space_id"),
        "a reporter that reads it, without which it is refused",
    ),
    "do_eval": "eval_strategy sets it, without which it is refused",
}


def test_every_field_is_classified() -> None:
    """A field that a later transformers adds stands nowhere yet."""
    known = [*REFUSED, *EFFECTS, *ELSEWHERE]
    assert sorted(known) == sorted(FIELDS), set(known) ^ set(FIELDS)
    assert set(NEEDS) <= set(FIELDS) - set(REFUSED)


@pytest.fixture(autouse=True)
def verbosity() -> Iterator[None]:
    before = logging.get_verbosity()
    yield
    logging.set_verbosity(before)


USUAL: dict[str, Run] = {}
"""Runs without the setting, by what both have: many fields share one."""


@pytest.mark.parametrize("name", EFFECTS)
def test_a_field_acts(train: Train, name: str) -> None:
    effect = EFFECTS[name]
    own = {**effect.beside, **({} if name == "output_dir" else {name: effect.value})}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`gradient_checkpointing")
        shared = f"{effect.starts} {effect.beside}"
        without = USUAL[shared] if shared in USUAL else train(starts=effect.starts, **effect.beside)
        USUAL[shared] = without
        with_it = train(starts=effect.starts, **own)
    assert effect.seen(with_it, without)


def other_values(name: str) -> Iterator[Any]:
    """Values of the field's type that are not its default."""
    kinds = KINDS[name]
    default = FIELDS[name].default
    for value in (True, False, 3, 0.5, "x", {"a": 1}, ["x"]):
        plain = {typing.get_origin(kind) or kind for kind in kinds}
        if value != default and (type(value) in plain or (isinstance(value, str) and not plain & {bool, int, float})):
            yield value


@pytest.mark.parametrize("name", REFUSED)
def test_a_field_is_refused_by_name(name: str) -> None:
    values = list(other_values(name))
    assert values
    for value in values:
        with pytest.raises(UserError, match=rf"^{name} (can't be|must be)") as caught:
            config(**{name: value})
        assert "\n" not in str(caught.value)
        if name in TrainConfig.model_fields:
            with pytest.raises(UserError, match=rf"train\.{name}"):
                load_recipe(None, [("model", "M"), ("forget", "f"), (f"train.{name}", str(value))])


NUMBERS = [name for name, kinds in KINDS.items() if name not in REFUSED and {int, float} & kinds]


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -7, "many", True])
def test_a_number_out_of_bounds_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(UserError, match=rf"^{name} must be"):
        config(**{name: value})


@pytest.mark.parametrize("name", NEEDS)
def test_what_does_nothing_alone_is_refused(name: str) -> None:
    """Without what it needs; where that is there by default, it is taken away."""
    away: dict[str, Any] = {"logging_steps": {"logging_strategy": "epoch"}}
    away |= {key: {"save_strategy": "no"} for key in ("save_total_limit", "save_only_model")}
    values: dict[str, Any] = {
        "eval_delay": 1,
        "eval_steps": 4,
        "eval_every": 2,
        "logging_steps": 3,
        "save_steps": 3,
        "warmup_steps": 3,
    }
    values |= {"save_total_limit": 2, "overlap": 3, "dataloader_prefetch_factor": 3, "lr_scheduler_kwargs": {"a": 1}}
    value = values.get(name, next(other_values(name), None))
    if name == "activation_checkpointing_kwargs":
        value = {"every_n_layers": 2}
    with pytest.raises(UserError, match=rf"^{name} does nothing without|^arguments: .*{name}"):
        config(**{name: value}, **away.get(name, {}))


MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "beta": ({"adam_beta1": 2}, "adam_beta1 must be less than 1, got 2"),
    "no whole number": ({"gradient_accumulation_steps": 1.5}, "must be a whole number"),
    "no steps": ({"max_steps": 0}, "max_steps must be at least 1, or -1"),
    "a word for a bool": ({"bf16": "maybe"}, "bf16 must be true or false"),
    "optimizer": ({"optim": "adamw_trch"}, "optim: 'adamw_trch' is not known. Did you mean 'adamw_torch'?"),
    "an optimizer that takes the model apart": ({"optim": "galore_adamw"}, "optim can't be 'galore_adamw'"),
    "an optimizer without such a number": (
        {"optim": "sgd", "adam_beta1": 0.5},
        "adam_beta1 does nothing with optim sgd",
    ),
    "arguments of no optimizer": ({"optim_args": "momentum=0.9"}, "optim_args does nothing with optim adamw_torch"),
    "broken arguments": ({"optim": "sgd", "optim_args": "momentum"}, "optim sgd with optim_args 'momentum'"),
    "schedule": ({"lr_scheduler_type": "cosin"}, "lr_scheduler_type: 'cosin' is not known. Did you mean 'cosine'?"),
    "a schedule that follows a loss": (
        {"lr_scheduler_type": "greedy", "eval_strategy": "epoch"},
        "lr_scheduler_type can't be",
    ),
    "a schedule without its key": ({"lr_scheduler_type": "cosine_with_min_lr"}, "lr_scheduler_type cosine_with_min_lr"),
    "a schedule with another's": ({"lr_scheduler_type": "linear", "lr_scheduler_kwargs": {"power": 2}}, "power"),
    "a schedule with a word": ({"lr_scheduler_type": "linear", "lr_scheduler_kwargs": "fast"}, "must be a mapping"),
    "warm-up": ({"lr_scheduler_type": "linear", "warmup_steps": 1.5}, "warmup_steps must be a whole number"),
    "save the best": ({"save_strategy": "best"}, "save_strategy"),
    "reporter": ({"report_to": "wandbb"}, "report_to: wandbb is not supported"),
    "log level": ({"log_level": "loud"}, "log_level: 'loud' is not known"),
    "tokens seen": ({"include_num_input_tokens_seen": "some"}, "include_num_input_tokens_seen: 'some' is not known"),
    "reference": ({"reference": "frozen"}, "reference: 'frozen' is not known. Did you mean 'frozen_copy'"),
    "checkpointing": (
        {"activation_checkpointing": True, "activation_checkpointing_kwargs": {"every": 2}},
        "activation_checkpointing_kwargs: unknown key 'every'",
    ),
    "far too many workers": ({"dataloader_num_workers": 100_000}, "dataloader_num_workers must be at most"),
    "start method": ({"dataloader_num_workers": 1, "dataloader_multiprocessing_context": "x"}, "'x' is not known"),
    "debug": ({"debug": "everything"}, "everything is not a valid DebugOption"),
    "TPU": ({"debug": "tpu_metrics_debug"}, "without a TPU"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_sentence_in_python_and_in_a_recipe(name: str) -> None:
    keys, says = MISTAKES[name]
    with pytest.raises(UserError) as caught:
        config(**keys)
    assert says in str(caught.value) and "\n" not in str(caught.value)
    own = [(f"train.{key}", str(value)) for key, value in keys.items() if key != "eval_strategy"]
    with pytest.raises(UserError, match=r"train|method"):
        check_recipe(load_recipe(None, [("model", "M"), ("forget", "f"), *own]))


@pytest.mark.skipif(torch.accelerator.is_available(), reason="has one")
@pytest.mark.parametrize("name", ["fp16", "tf32"])
def test_what_needs_a_gpu_is_refused_without(name: str) -> None:
    with pytest.raises(UserError, match=name):
        config(**{name: True})


def test_what_other_processes_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(UnlearnConfig, "process_index", 2)
    monkeypatch.setattr(UnlearnConfig, "local_process_index", 0)
    args = UnlearnConfig(output_dir="out", save_on_each_node=True, log_on_each_node=False, log_level_replica="critical")
    assert args.should_save and not UnlearnConfig(output_dir="out").should_save
    assert not args.should_log and UnlearnConfig(output_dir="out").should_log
    assert args.get_process_log_level() == log_levels["critical"]


def test_what_transformers_is_told(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []
    monkeypatch.setattr(trainer, "clear_device_cache", lambda: called.append("cache"))
    monkeypatch.setattr(trainer, "DebugUnderflowOverflow", lambda model: called.append("debug"))
    try:
        train(torch_empty_cache_steps=2, debug="underflow_overflow", full_determinism=True)
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
    assert called == ["debug", "cache", "cache", "cache"]


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "trackio", "mlflow"])
def test_a_reporter_is_there_or_missing(name: str) -> None:
    if find_spec(name) is not None:
        assert UnlearnConfig(output_dir="out", report_to=name).report_to == [name]
        return
    with pytest.raises(UserError, match=rf"^report_to: {name} is not installed; pip install 'expunge\[{name}\]'\.$"):
        UnlearnConfig(output_dir="out", report_to=name)
    assert f"\n{name} = [" in (Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8")


def test_a_config_is_copied_and_parsed() -> None:
    args = UnlearnConfig(output_dir="out", eval_strategy="epoch", learning_rate=1e-3)
    assert dataclasses.replace(args, learning_rate=1e-4).learning_rate == 1e-4
    words = ["--output_dir", "out", "--reference", "frozen_copy", "--max_length", "64", "--keep_dropout"]
    (parsed,) = HfArgumentParser(cast(Any, UnlearnConfig)).parse_args_into_dataclasses(words)
    assert (parsed.reference, parsed.max_length, parsed.keep_dropout) == ("frozen_copy", 64, True)
    assert isinstance(parsed, TrainingArguments)


def test_what_is_not_saved_whole_is_not_gone_on_from(train: Train) -> None:
    run = train(save_strategy="epoch", save_only_model=True)
    with pytest.raises(UserError, match="holds no state of the optimizer"):
        run.trainer.train(resume_from_checkpoint=str(run.folder / "checkpoint-6"))
