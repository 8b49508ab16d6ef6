"""How each kind of method trains: which model, on which rows, under which terms, and which model it leaves behind.

Most train the model itself. ULD trains an assistant cut from it, Offset an assistant through the difference with it,
and the distilled ULD first the one, then the model towards it. Knows nothing of losses, evaluation or results.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.pytorch_utils import Conv1D
from transformers.trainer_utils import IntervalStrategy, set_seed

from expunge.data.augment import choose
from expunge.data.benchmark import Benchmark, Row
from expunge.data.encode import encode
from expunge.data.formats import read_rows
from expunge.data.refusals import REFUSALS
from expunge.errors import UserError
from expunge.modeling import loading
from expunge.modeling.assistant import first_layers, layer_count, linear_names
from expunge.modeling.difference import LogitDifferenceConfig, LogitDifferenceForCausalLM
from expunge.modeling.forward import dense_logps
from expunge.modeling.saving import same_vocabulary
from expunge.objectives import KL, ULD, Objective, Offset, ULDDistilled, Uniform
from expunge.recipe.config import Method, Recipe
from expunge.system import ranks
from expunge.training.arguments import UnlearnConfig
from expunge.training.history import last_checkpoint
from expunge.training.trainer import UnlearnTrainer

log = logging.getLogger(__name__)

Evaluate = Callable[[Any], dict[str, float]]


@dataclass(frozen=True)
class Material:
    """What a method trains on: the benchmark's rows, the variants that it asks for, and refusals."""

    forget: list[Row]
    retain: list[Row]
    refusals: list[str]

    @classmethod
    def of(cls, recipe: Recipe, method: Method, benchmark: Benchmark) -> "Material":
        """Raises `UserError` for a file of refusals that holds something else."""
        variants, augment = benchmark.variants, method.augment
        said = choose(variants, "paraphrase", augment.paraphrases, seed=recipe.seed)
        wrong = choose(variants, "perturbation", augment.perturbations, seed=recipe.seed)
        if isinstance(method.forget, ULDDistilled):
            # The difference says what to answer to all of these; wrong answers are no rows to keep.
            return cls([*benchmark.forget, *said, *wrong], benchmark.retain, refusals(recipe))
        return cls([*benchmark.forget, *said], [*benchmark.retain, *wrong], refusals(recipe))


@dataclass(frozen=True)
class Training:
    """A trainer ready to train, and the unlearned model as its training stands.

    `start` is the model that is to be unlearned, as training finds it, `dtype` what the unlearned model is saved in
    (`None`: as it is), and `seconds` were spent before it.
    """

    trainer: UnlearnTrainer
    unlearned: Callable[[], Any]
    start: Any
    dtype: torch.dtype | None = None
    seconds: float = 0.0


@dataclass(frozen=True)
class Start:
    """What the evaluated target says of a few forget rows: every method must start from a model that says the same."""

    sequences: list[list[int]]
    logps: list[Tensor]
    eps: float

    @classmethod
    def of(cls, model: Any, tokenizer: Any, rows: Sequence[Row]) -> "Start":
        sequences = [list(encode(row, tokenizer).input_ids[:128]) for row in rows[:4]]
        return cls(sequences, _token_logps(model, sequences), torch.finfo(model.dtype).eps)

    def check(self, model: Any, method: str, *, exact: bool = True) -> None:
        """Raise `UserError` unless `model` gives the rows the same log-probabilities, up to rounding.

        Without `exact` (weights held in 4 bits) the difference is logged.
        """
        found = _token_logps(model, self.sequences)
        off = (torch.cat(found) - torch.cat(self.logps)).abs().mean().item()
        if not exact:
            log.info("%s: 4 bits a weight move the target's log-probabilities by %.2g nats a token", method, off)
        elif not off <= max(1e-3, 16 * max(self.eps, torch.finfo(model.dtype).eps)):
            raise UserError(
                f"{method}: training would start from another model than the target that was measured (the "
                f"log-probabilities of the forget rows differ by {off:.2g} nats a token); give a target that is one "
                f"plain checkpoint."
            )


@torch.no_grad()
def _token_logps(model: Any, sequences: list[list[int]]) -> list[Tensor]:
    """Log p of every token but the first of each sequence, by the model's plain forward, on the CPU."""
    training, device = model.training, next(model.parameters()).device
    model.eval()
    found: list[Tensor] = []
    for sequence in sequences:
        ids_BT = torch.tensor([sequence], device=device)
        found.append(dense_logps(model, ids_BT, torch.ones_like(ids_BT), ids_BT).cpu())
    model.train(training)
    return found


def retain_term(method: Method) -> Objective | None:
    """The retain objective: the method's own where it brings one, else the recipe's."""
    match method.forget:
        case ULDDistilled() as own:
            return KL(weight=own.keep)
        case ULD() as own:
            return Uniform(weight=own.beta)
    return method.retain


def prepare(
    recipe: Recipe,
    method: Method,
    benchmark: Benchmark,
    target: Path | str,
    directory: Path,
    *,
    arguments: Callable[[Method, Path], UnlearnConfig],
    evaluate: Evaluate | None,
) -> tuple[Training, Any]:
    """The method's training on the model in `target`, and the tokenizer; nothing is trained yet but for a teacher.

    `arguments` gives the training arguments of a method in a directory; `evaluate` is called with the unlearned model.
    """
    material = Material.of(recipe, method, benchmark)
    common: dict[str, Any] = {
        "objective": method.forget,
        "retain": retain_term(method),
        "forget_dataset": material.forget,
        "retain_dataset": material.retain if retain_term(method) is not None else (),
        "refusals": material.refusals,
        "evaluate": evaluate,
    }
    args = arguments(method, directory)
    set_seed(recipe.seed)  # adapters are drawn before the trainer sets it
    match method.forget:
        case ULDDistilled():
            teacher, seconds = _teacher(recipe, method, benchmark, target, directory, arguments)
            set_seed(recipe.seed)
            training, tokenizer = _direct(recipe, target, args, {**common, "teacher": teacher})
            return replace(training, seconds=seconds), tokenizer
        case ULD():
            return _through_assistant(recipe, method.forget, target, args, common)
        case Offset():
            return _offset(recipe, method.forget, target, args, common)
    return _direct(recipe, target, args, common)


def _direct(recipe: Recipe, target: Path | str, args: UnlearnConfig, common: dict[str, Any]) -> tuple[Training, Any]:
    """The model itself learns, all of it or a LoRA adapter."""
    options, lora = recipe.model, recipe.model.lora
    model, tokenizer = loading.load_for_training(
        target, dtype=options.dtype, lora=lora, pure_bf16=options.pure_bf16, attention=options.attention
    )
    peft = lora.peft() if lora is not None else None
    trainer = UnlearnTrainer(model, args, processing_class=tokenizer, peft_config=peft, **common)
    dtype = saved_dtype(recipe, target) if peft is None else None
    return Training(trainer, trainer.whole_model, start=trainer.model, dtype=dtype), tokenizer


def saved_dtype(recipe: Recipe, start: Path | str) -> torch.dtype | None:
    """What the weights are saved in: what the recipe says, or what they had before training made float32 of them."""
    chosen = recipe.model.save_dtype
    return loading.stored_dtype(start) if chosen == "auto" else getattr(torch, chosen)


def _through_assistant(
    recipe: Recipe, uld: ULD, target: Path | str, args: UnlearnConfig, common: dict[str, Any]
) -> tuple[Training, Any]:
    """ULD: an adapter on the model's first layers learns, alone; the difference with the model is what it leaves."""
    from peft import get_peft_model_state_dict

    model, tokenizer = loading.load(target, dtype=recipe.model.dtype, attention=recipe.model.attention, merged=True)
    layers = layer_count(model, uld.layers)
    small = first_layers(model, layers)
    config = LogitDifferenceConfig(base=loading.whereabouts(target), weight=-uld.alpha, tau=uld.tau, layers=layers)
    difference = LogitDifferenceForCausalLM(config, model, lora=_adapter(uld.r)).requires_grad_(False)
    adapter = _adapter(uld.r)
    adapter.target_modules = linear_names(small, layers)
    adapter.fan_in_fan_out = any(isinstance(module, Conv1D) for module in small.modules())

    def joined(trained: Any) -> Any:
        with same_vocabulary():
            difference.load_assistant(get_peft_model_state_dict(trained))
        return difference.to(trained.device).eval()

    evaluate = common["evaluate"]
    common = {**common, "evaluate": None if evaluate is None else lambda trained: evaluate(joined(trained))}
    trainer = UnlearnTrainer(small, args, processing_class=tokenizer, peft_config=adapter, **common)
    model.to(args.device)
    return Training(trainer, lambda: joined(trainer.accelerator.unwrap_model(trainer.model)), start=model), tokenizer


def _offset(
    recipe: Recipe, offset: Offset, target: Path | str, args: UnlearnConfig, common: dict[str, Any]
) -> tuple[Training, Any]:
    """Offset: the loss is the difference's, and only the assistant in it learns."""
    model, tokenizer = loading.load(target, dtype=recipe.model.dtype, attention=recipe.model.attention, merged=True)
    config = LogitDifferenceConfig(base=loading.whereabouts(target), weight=offset.scale, tau=0.0, relative=True)
    if offset.assistant is None:
        config.layers = layer_count(model, offset.layers)
        difference = LogitDifferenceForCausalLM(config, model, lora=_adapter(offset.r))
    else:
        config.start = loading.whereabouts(offset.assistant)
        assistant, start = (loading.load(offset.assistant, dtype="float32", merged=True)[0] for _ in range(2))
        difference = LogitDifferenceForCausalLM(config, model, assistant=assistant, start=start)
    trainer = UnlearnTrainer(difference, args, processing_class=tokenizer, **common)
    dtype = None if offset.assistant is None else saved_dtype(recipe, offset.assistant)
    return Training(
        trainer, lambda: trainer.accelerator.unwrap_model(trainer.model), start=trainer.model, dtype=dtype
    ), tokenizer


def _teacher(
    recipe: Recipe,
    method: Method,
    benchmark: Benchmark,
    target: Path | str,
    directory: Path,
    arguments: Callable[[Method, Path], UnlearnConfig],
) -> tuple[Any, float]:
    """The difference that is to be distilled: as named, trained now or, in a run that goes on, found as it was left."""
    assert isinstance(method.forget, ULDDistilled)
    if method.forget.teacher is not None:
        teacher = loading.load(method.forget.teacher)[0]
        chosen = method.forget.model_fields_set
        teacher.config.weight = -method.forget.alpha if "alpha" in chosen else teacher.config.weight
        teacher.config.tau = method.forget.tau if "tau" in chosen else teacher.config.tau
        return teacher, 0.0
    folder = directory / "teacher"
    done = folder / "model"
    if done.exists():  # it is renamed when it is whole, and whoever resumes has looked at it
        return loading.load(done)[0], 0.0
    settings = {name: getattr(method.forget, name) for name in ULD.model_fields if name != "name"}
    # The method's own pace is the distillation's; its teacher's stands beside alpha.
    kept = method.train.model_dump(exclude_unset=True, exclude={"learning_rate", "num_train_epochs", "max_steps"})
    uld = method.model_copy(update={"forget": ULD(**settings), "train": type(method.train)(**kept)})

    def unobserved(method: Method, directory: Path) -> UnlearnConfig:
        args = arguments(method, directory)
        args.eval_strategy = IntervalStrategy.NO
        return args

    training, tokenizer = prepare(recipe, uld, benchmark, target, folder, arguments=unobserved, evaluate=None)
    checkpoint = last_checkpoint(folder)
    training.trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    difference = training.unlearned()
    if ranks.first():
        loading.save(difference, tokenizer, done)
    ranks.wait()
    return difference, training.trainer.state.log_history[-1].get("seconds", 0.0)


def _adapter(r: int) -> Any:
    """The assistant's LoRA; which layers it goes on is for its owner to say."""
    from peft import LoraConfig

    return LoraConfig(r=r, lora_alpha=2 * r, task_type="CAUSAL_LM")


def refusals(recipe: Recipe) -> list[str]:
    """What a method may prefer to the forget answers. Raises `UserError` for a file that holds something else."""
    if recipe.data is None or recipe.data.refusals is None:
        return list(REFUSALS)
    rows = read_rows(recipe.data.refusals)
    if "text" not in rows[0]:
        raise UserError(
            f"{recipe.data.refusals}: refusals are rows with the column text; this file has {', '.join(rows[0])}."
        )
    return [row["text"] for row in rows]
