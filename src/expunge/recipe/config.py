"""The recipe: every key of a run, its type and default."""

import dataclasses
import os
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializationInfo,
    create_model,
    field_serializer,
    model_validator,
)

from expunge import secrets
from expunge.benchmarks.base import BenchmarkConfig
from expunge.benchmarks.registry import BenchmarkSection
from expunge.evals.glossary import Axes, Metric
from expunge.evals.own import UserMetric, user_metrics
from expunge.modeling.checkpoint import checkpoint_name
from expunge.modeling.loading import Dtype, LoraConfig, ScratchConfig
from expunge.objectives import (
    METHODS,
    ForgetObjective,
    Noise,
    Objective,
    RetainObjective,
    Step,
    Way,
    split_method,
    written,
)
from expunge.stress.options import StressOptions
from expunge.system.imports import is_ours, is_path
from expunge.system.options import Options
from expunge.training.arguments import UnlearnConfig, check_values
from expunge.training.targets import FinetuneConfig


class Section(Options):
    """A part of the recipe; unknown keys are errors."""


class DataConfig(Section):
    """Your own rows, in any format of `expunge.data.formats`."""

    forget: str = Field(
        description="file, folder or hub id of what must go, or a question, of which the model's own answers must go"
    )
    retain: str | None = Field(
        default=None,
        description="file, folder or hub id of what must stay; default a chat model's own answers to other questions",
    )
    refusals: str | None = Field(default=None, description="file of refusals for dpo, rows with a `text` column")


class ModelConfig(Section):
    """Which model to start from: `name` (hub or folder), or `scratch` for one trained on the benchmark itself."""

    name: str | None = Field(
        default=None, description="folder or hub name of a causal language model, or of a LoRA adapter"
    )
    scratch: ScratchConfig | None = None
    dtype: Dtype = Field(
        default="auto", description="of the weights; auto is float32 where all of them train, else the checkpoint's"
    )
    attention: str | None = Field(
        default=None,
        description="transformers' attn_implementation: sdpa, eager, or flash_attention_2 or 3, which read no padding",
    )
    pure_bf16: bool = Field(default=False, description="allow bfloat16 weights to train")
    save_dtype: Dtype = Field(default="auto", description="of the saved weights; auto is what they had before training")
    lora: LoraConfig | None = None

    @model_validator(mode="after")
    def _one_source(self) -> "ModelConfig":
        if (self.name is None) == (self.scratch is None):
            raise ValueError("give either a model's name or scratch")
        return self


class HarnessConfig(Section):
    """Tasks of lm-evaluation-harness (extra: `expunge[harness]`), by its own names and settings, in the end."""

    # Other arguments of the harness pass through unchanged.
    model_config = ConfigDict(frozen=True, extra="allow", allow_inf_nan=False)

    tasks: list[str] = Field(min_length=1, description="names of the harness")
    batch_size: int | str = Field(default=8, description="sequences at a time, or auto")
    num_fewshot: int | None = Field(
        default=None, ge=0, description="examples before a question; the task's own without it"
    )
    limit: float | None = Field(default=None, gt=0, description="questions of each task; under 1 a share of them")
    include_path: str | None = Field(default=None, description="folder with tasks of your own")


def unfold_evaluate(value: Any) -> Any:
    """`harness:mmlu,arc_easy` is short for those tasks of the harness."""
    if isinstance(value, str) and value.startswith("harness:"):
        return {"harness": {"tasks": value.removeprefix("harness:").split(",")}}
    return value


def _metric_paths(value: Any) -> Any:
    """Names with commas, and metrics as they are in Python, as a list of import paths."""
    if isinstance(value, str):
        value = value.split(",")
    if isinstance(value, Sequence):
        return [part.path if isinstance(part, UserMetric) else part for part in value]
    return value


def _known_metrics(names: list[str]) -> list[str]:
    user_metrics(names)
    return names


def _stress(value: Any) -> Any:
    """`true` is short for every attack, `quick` for a rough answer."""
    return (
        {True: {}, False: None, "quick": {"quick": True}}.get(value, value) if isinstance(value, bool | str) else value
    )


_StressInput = StressOptions | bool | Literal["quick"] | None
"""The values that a recipe may give for attacks, for the schema."""


class EvaluateConfig(Section):
    """The evaluation: its metrics, and when they are measured."""

    each_epoch: Literal["fast", "full", "off"] = Field(
        default="fast", description="trajectory: fast scores without generating; full is the final evaluation"
    )
    every: int = Field(default=1, ge=1, description="epochs between two evaluations on the way")
    each_epoch_limit: int | None = Field(default=100, ge=1, description="questions of each set but forget, while fast")
    utility_budget: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="stop when an evaluation on the way finds less than this share of the target's utility (model "
        "utility if full, else retain probability), and keep the epoch that forgot best before; with keep_nearest only "
        "less than half of it stops, and the budget is judged after the way back",
    )
    stop_when_forgotten: bool = Field(
        default=False,
        description="stop when an evaluation on the way finds the forget answers no likelier than answers of the same "
        "form that the target can't know",
    )
    keep_nearest: bool = Field(
        default=False,
        description="with stop_when_forgotten: train somewhat further, then go back on the line towards the target's "
        "weights as far as that still holds, or further where a utility_budget asks for it",
    )
    raise_rate: bool = Field(
        default=False,
        description="with stop_when_forgotten: treble the learning rate after a third of the training, and again "
        "after two, where less than a third of the way to that goal is done",
    )
    depth: bool = Field(
        default=False,
        description="measure unlearning depth: patch hidden states of the result into the target, layer by layer; "
        "needs a retrained model",
    )
    stress: Annotated[StressOptions | None, BeforeValidator(_stress, json_schema_input_type=_StressInput)] = Field(
        default=None,
        description="attack the result in the end, beside the target and the retrained model; true for all",
    )
    max_new_tokens: int | None = Field(
        default=None, ge=1, description="of a generated answer; default from the answers"
    )
    limit: int | None = Field(default=None, ge=1, description="questions of each set but forget, in the end")
    general: bool | None = Field(
        default=None, description="ask 60 questions of general knowledge; default where a pretrained model chats"
    )
    mmlu: str | None = Field(default=None, description="folder with MMLU's dev and validation files, asked in the end")
    harness: HarnessConfig | None = None
    metrics: Annotated[list[str], BeforeValidator(_metric_paths), AfterValidator(_known_metrics)] = Field(
        default_factory=list, description="metrics of your own: import paths, package.module:function, or entry points"
    )

    @model_validator(mode="after")
    def _budget_needs_a_look(self) -> "EvaluateConfig":
        if self.utility_budget is not None and self.each_epoch == "off":
            raise ValueError("utility_budget is kept by evaluations on the way; set each_epoch to fast or full")
        if self.stop_when_forgotten and self.each_epoch == "off":
            raise ValueError("stop_when_forgotten needs evaluations on the way; set each_epoch to fast or full")
        for key in ("keep_nearest", "raise_rate"):
            if getattr(self, key) and not self.stop_when_forgotten:
                raise ValueError(f"{key} needs the goal of stop_when_forgotten; set both or neither")
        return self


class _TrainSection(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True, protected_namespaces=())

    @model_validator(mode="after")
    def _can_be(self) -> Any:
        check_values({name: getattr(self, name) for name in self.model_fields_set})
        return self


def _train_section() -> type[BaseModel]:
    """Every field of `UnlearnConfig` that a recipe may set, with its type, none of them required."""
    hints = typing.get_type_hints(UnlearnConfig)
    ours = {
        "output_dir",
        "seed",
        "eval_strategy",
        "eval_every",
        "do_train",
        "do_eval",
        "do_predict",
        "resume_from_checkpoint",
    }
    fields: dict[str, Any] = {
        f.name: (
            hints[f.name],
            f.default if f.default is not dataclasses.MISSING else None,
        )
        for f in dataclasses.fields(UnlearnConfig)
        if f.init and f.name not in ours
    }
    return create_model(
        "TrainConfig",
        __base__=_TrainSection,
        __doc__="Any field of `expunge.UnlearnConfig`, hence of `transformers.TrainingArguments`.",
        **fields,
    )


TrainConfig = _train_section()


def _refuse_class(value: Any) -> None:
    """Raise `ValueError` for a class in the place of what it makes."""
    if isinstance(value, type):
        raise ValueError(f"{value.__name__} is a class; give what it makes, {value.__name__}(…)")


def unfold_objective(value: Any) -> Any:
    """A word is short for a section with that name; an objective made in Python is written out as one."""
    _refuse_class(value)
    if isinstance(value, Way):
        return value if is_path(value.recipe_name()) else written(value)
    return {"name": value} if isinstance(value, str) else value


def unfold_benchmark(value: Any) -> Any:
    """A word is short for a section with that name; a benchmark made in Python is written out as one."""
    _refuse_class(value)
    if isinstance(value, BenchmarkConfig):
        return value.written() if is_ours(type(value)) else value
    return {"name": value} if isinstance(value, str) else value


def unfold_method(value: Any) -> Any:
    """`npo+kl` is short for both objectives, an objective alone for a method without a retain term."""
    _refuse_class(value)
    if isinstance(value, Mapping) and "name" in value and "forget" not in value:
        raise ValueError("the name and options of its objective stand under forget: {forget: {name: npo, beta: 0.1}}")
    if isinstance(value, Way):
        return {"forget": value}
    return split_method(value) if isinstance(value, str) else value


def _several(value: Any) -> Any:
    if isinstance(value, Way):  # a sequence of its options, to pydantic
        raise ValueError("must be a list; give [objective], or the key method")
    return value


def _folder(value: Any) -> Any:
    if isinstance(value, str) and not value.strip():
        raise ValueError("is empty; give a folder")
    return value


class AugmentConfig(Section):
    """How many of a benchmark's (or file's) variants of each forget row a method trains on beside the rows."""

    paraphrases: int = Field(default=0, ge=0, description="other words for the same fact, joined to the forget rows")
    perturbations: int = Field(default=0, ge=0, description="wrong answers, joined to the retain rows")


class Method(Section):
    """A forget objective with or without a retain objective, or a step on the weights; its share of variants, and
    training keys of its own."""

    forget: Annotated[ForgetObjective, BeforeValidator(unfold_objective)] = Field(
        description="objective on the rows to forget, or a step on the weights"
    )
    retain: Annotated[RetainObjective, BeforeValidator(unfold_objective)] | None = Field(
        default=None, description="objective on the rows to keep"
    )
    noise: Noise | None = Field(
        default=None, description="noise on the unlearned weights, into which the unlearned model is distilled"
    )
    augment: AugmentConfig = AugmentConfig()
    train: TrainConfig = TrainConfig()  # pyright: ignore[reportInvalidTypeForm]
    label: str | None = Field(
        default=None,
        pattern=r"^\w[\w+.=,-]*$",
        max_length=50,  # of a name of files; a letter may take four bytes
        description="how results and folders call it; default forget+retain",
    )

    @property
    def name(self) -> str:
        """The method's name in results: `unilogit+nll`, `ga`, with noise `ga-undo`, or the label."""
        if self.label:
            return self.label
        undo = "" if self.noise is None else "-undo"
        if self.retain is None or type(self.retain) is type(self.forget.own_retain):
            return f"{self.forget.title}{undo}"
        return f"{self.forget.title}+{self.retain.title}{undo}"

    @field_serializer("forget", "retain")
    def _written(self, value: Way | None, info: SerializationInfo) -> dict[str, Any] | None:
        """A class of a user's own is no part of the declared types and has no field for its name."""
        mode = "json" if info.mode == "json" else "python"
        return None if value is None else written(value, mode=mode, only_set=bool(info.exclude_unset))

    @property
    def assisted(self) -> bool:
        """Whether an assistant trains beside the model, whose own weights stay as they are."""
        return self.forget.trains in ("assistant", "difference")

    @property
    def objective(self) -> Objective:
        """The forget objective, or the one whose gradients a step takes."""
        return self.forget.objective if isinstance(self.forget, Step) else self.forget

    @property
    def retain_term(self) -> Objective | None:
        """The retain objective of the training: the recipe's, or the one that the forget objective brings."""
        return self.retain if self.retain is not None else self.forget.own_retain

    @model_validator(mode="before")
    @classmethod
    def _complete_rmu(cls, data: Any) -> Any:
        """RMU without a retain objective takes its paper's own, at the same layer and reduced alike."""
        if isinstance(data, Mapping) and data.get("retain") is None:
            forget = unfold_objective(data.get("forget"))
            if isinstance(forget, Mapping) and forget.get("name") == "rmu":
                shared = {key: forget[key] for key in ("layer", "reduction") if key in forget}
                return {**data, "retain": {"name": "anchor", **shared}}
        return data

    @model_validator(mode="before")
    @classmethod
    def _usual_variants(cls, data: Any) -> Any:
        """Variants for the methods that are made for them, as far as the recipe does not say how many."""
        if isinstance(data, Mapping) and isinstance(forget := unfold_objective(data.get("forget")), Mapping):
            kind, given = METHODS.get(str(forget.get("name"))), data.get("augment", {})
            if kind is not None and kind.variants and isinstance(given, Mapping):
                return {**data, "augment": {**kind.variants, **given}}
        return data

    @model_validator(mode="after")
    def _alone(self) -> "Method":
        if isinstance(self.forget, Step) and self.retain is not None:
            raise ValueError(f"{self.forget.title} is a step on the weights and has no retain term; leave retain out")
        if self.forget.alone and self.retain is not None:
            raise ValueError(f"{self.forget.title} brings its own retain term; leave retain out")
        return self


MOST_THREADS = max(64, 8 * (os.cpu_count() or 1))
"""More only wait for each other, and far more end the process."""

RESERVED = {
    *("target", "retrained", "records", "pictures", "model", "teacher", "noise", "rows"),
    *("recipe.yaml", "results.json", "metrics.jsonl", "manifest.json", "report.html"),
}
"""Names in results and in the run directory that are no method's."""


def _paths(value: Any) -> Any:
    """Paths with commas as a list."""
    return [path.strip() for path in value.split(",")] if isinstance(value, str) else value


class Recipe(Section):
    """Everything that decides a run. `expunge run recipe.yaml --key value` sets any key by its dotted name."""

    benchmark: (
        Annotated[
            BenchmarkSection,
            BeforeValidator(unfold_benchmark),
        ]
        | None
    ) = Field(default=None, description="which benchmark; your own rows go into `data` instead")
    data: DataConfig | None = None
    model: Annotated[ModelConfig, BeforeValidator(unfold_objective)]
    finetune: FinetuneConfig | None = Field(
        default=None,
        description="how the model learns the benchmark first; a pretrained model learns it only if this is given",
    )
    retrained: str | None = Field(default=None, description="folder of a model that never saw the forget rows")
    cloud: Annotated[list[str], BeforeValidator(_paths)] = Field(
        default_factory=list, description="more such models, with other seeds, which attacks are held against"
    )
    checkpoints: Annotated[list[str], BeforeValidator(_paths)] = Field(
        default_factory=list, description="models that were unlearned already, measured beside those of `methods`"
    )
    augment: str | None = Field(
        default=None, description="file or folder of paraphrases and wrong answers; see expunge augment"
    )
    methods: Annotated[list[Annotated[Method, BeforeValidator(unfold_method)]], BeforeValidator(_several)] = Field(
        default_factory=list
    )
    train: TrainConfig = TrainConfig()  # pyright: ignore[reportInvalidTypeForm]
    evaluate: Annotated[EvaluateConfig, BeforeValidator(unfold_evaluate)] = EvaluateConfig()
    anyway: bool = Field(default=False, description="unlearn rows though the model shows no knowledge of them")
    redact: bool = Field(default=False, description="write records and report without texts; numbers stay")
    threads: int | None = Field(
        default=None, ge=1, le=MOST_THREADS, description="CPU threads; tiny models are fastest with one"
    )
    seed: int = Field(default=0, ge=0, lt=2**32, description="of initial weights, order of rows and drawn refusals")
    out: Annotated[Path | None, BeforeValidator(_folder)] = Field(
        default=None, description="run directory; default runs/<recipe's name>"
    )
    over: dict[str, Annotated[list[Any], Field(min_length=1)]] = Field(
        default_factory=dict,
        description="dotted keys and the values to run through, in every combination; values that go together are "
        "mappings of keys, under any name",
    )

    @field_serializer("benchmark")
    def _written(self, value: BenchmarkConfig | None, info: SerializationInfo) -> dict[str, Any] | None:
        """A class of a user's own is no part of the declared types and has no field for its name."""
        mode = "json" if info.mode == "json" else "python"
        return None if value is None else value.written(mode=mode, only_set=bool(info.exclude_unset))

    @model_validator(mode="before")
    @classmethod
    def _secrets_are_known(cls, data: Any) -> Any:
        """Before anything is checked, so that no error about a value shows a secret."""
        secrets.remember(data)
        return data

    @model_validator(mode="before")
    @classmethod
    def _method_is_short_for_one(cls, data: Any) -> Any:
        if isinstance(data, Mapping) and "method" in data:
            if "methods" in data:
                raise ValueError("method and methods: the one is short for the other; give one of them")
            data = dict(data)
            data["methods"] = [data.pop("method")]
        return data

    @model_validator(mode="after")
    def _consistent(self) -> "Recipe":
        if (self.benchmark is None) == (self.data is None):
            raise ValueError("give either a benchmark or your own data (--forget FILE; in Python forget=)")
        taught = self.model.scratch is not None or self.finetune is not None
        if self.evaluate.depth and self.retrained is None and not taught:
            raise ValueError("evaluate.depth: it is measured against a retrained model; name one (--retrained MODEL)")
        if self.cloud and self.retrained is None:
            raise ValueError("cloud: these are further models beside `retrained`; give one of them there")
        taken = {*RESERVED, *(method.name for method in self.methods)}
        for name in map(checkpoint_name, self.checkpoints):
            if name in taken:
                raise ValueError(f"checkpoints: {name!r} can't name a row of its own; rename the folder")
            taken.add(name)
        if named := secrets.secret_name(self.over):
            raise ValueError(f"over: {named} is a secret, and values of over name folders; set it outside of over")
        if self.model.scratch is not None and self.finetune is not None and self.finetune.lora is not None:
            raise ValueError("finetune.lora: a model from nothing learns with all of its weights; leave lora out")
        names = [m.name for m in self.methods]
        if taken := RESERVED & set(names):
            raise ValueError(f"methods: the label {min(taken)} has a meaning of its own; choose another")
        if twice := {n for n in names if names.count(n) > 1}:
            raise ValueError(f"methods: {sorted(twice)[0]} is listed twice; give each a label of its own")
        for i, method in enumerate(self.methods):
            teacher = self.teacher_of(method)
            if teacher is not None and not teacher.assisted:
                raise ValueError(f"methods: {method.name} has the teacher {teacher.name}, which trains no assistant; "
                                 "name a method of uld, or a folder")  # fmt: skip
            if teacher is not None and teacher not in self.methods[:i]:
                raise ValueError(f"methods: {teacher.name} is the teacher of {method.name}; list it first")
        return self

    def teacher_of(self, method: Method) -> Method | None:
        """The method of this recipe that `method` names as its teacher; `None` where it names none, or a folder."""
        name = getattr(method.forget, "teacher", None)
        return next((other for other in self.methods if other.name == name and other is not method), None)


def declarations(recipe: Recipe) -> tuple[dict[str, Metric], Axes]:
    """The metrics and axes of classes and functions outside the package that a recipe names."""
    metrics = {metric.name: metric.about for metric in user_metrics(recipe.evaluate.metrics)}
    if recipe.benchmark is None or is_ours(type(recipe.benchmark)):
        return metrics, Axes()
    return {**recipe.benchmark.metrics, **metrics}, recipe.benchmark.axes


SHORT = {"evaluate": unfold_evaluate, "method": unfold_method, "model": unfold_objective, "benchmark": unfold_benchmark}
"""Keys whose value may be one word, and how that word unfolds when an override reaches inside."""
