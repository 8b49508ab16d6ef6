"""The recipe: every key of a run, its type and default, read from YAML and from dotted overrides.

Knows names and types; knows nothing of how anything is done. Every mistake becomes one `UserError` that names the key.
"""

import copy
import dataclasses
import difflib
import itertools
import re
import typing
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, create_model, model_validator

from expunge.errors import UserError, did_you_mean
from expunge.models import Dtype, LoraConfig, ScratchConfig
from expunge.objectives import FORGET, RETAIN, ForgetObjective, RetainObjective, split_method
from expunge.objectives.representation import RMU
from expunge.targets import FinetuneConfig
from expunge.trainer import UnlearnConfig


class Section(BaseModel):
    """A part of the recipe; unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class FableConfig(Section):
    """The built-in benchmark of fictitious authors."""

    name: Literal["fable"] = "fable"
    split: str = Field(default="forget10", description="forget01, forget05, forget10 or forget20: per cent of authors")
    authors: int = Field(default=40, description="10 to 2,000")
    facts: int = Field(default=10, description="per author")
    seed: int = 0


class TofuConfig(Section):
    """TOFU, from the hub, or from a folder that holds its files."""

    name: Literal["tofu"] = "tofu"
    split: str = Field(default="forget10", description="forget01, forget05 or forget10")
    path: str | None = Field(default=None, description="folder with TOFU's JSON files; the hub without it")


class MuseConfig(Section):
    """MUSE's news or books: passages to continue, few-shot questions, membership."""

    name: Literal["muse-news", "muse-books"] = "muse-news"
    path: str | None = Field(default=None, description="folder with MUSE's files; the hub without it")
    retain: str | None = Field(default=None, description="file, folder or hub id of texts to keep; MUSE's own without")
    articles: int | None = Field(default=None, ge=1, description="forget only so many texts, and ask about those")
    shots: int | None = Field(default=None, ge=0, description="examples before a question; all of MUSE's without")
    retrained_auc: float | None = Field(
        default=None, gt=0, le=1, description="of a retrained model that is not at hand (.4772 for Llama-2-7B on news)"
    )


class RwkuConfig(Section):
    """RWKU: what a model knows of a famous person, asked in three ways, and of the person's neighbours."""

    name: Literal["rwku"] = "rwku"
    targets: list[str] = Field(min_length=1, description="names; several are forgotten together")
    path: str | None = Field(default=None, description="folder with a folder for each target; the hub without it")
    corpus: str = Field(
        default="passage",
        description="what is forgotten: passage; a file of what the model wrote about the target; or probes, what is "
        "asked and its answers, for a model trained here (which learns those of all targets and neighbours)",
    )
    retain: str | None = Field(default=None, description="rows to keep; other targets' passages or probes without it")
    texts: int | None = Field(default=None, ge=1, description="only so many texts of each membership set")


class ListingsConfig(Section):
    """The built-in benchmark of sellers and their listings, one of whom leaves."""

    name: Literal["listings"] = "listings"
    seller: int = Field(default=0, ge=0)
    size: Literal["small", "medium", "large"] = Field(default="small", description="10, 20 or 40 listings")
    sellers: int = 12
    per_seller: int = 40
    seed: int = 0


BenchmarkConfig = FableConfig | TofuConfig | MuseConfig | RwkuConfig | ListingsConfig


class DataConfig(Section):
    """Your own rows, in any format of `expunge.data.formats`."""

    forget: str = Field(description="file, folder or hub id of what must go")
    retain: str | None = Field(default=None, description="file, folder or hub id of what must stay")
    refusals: str | None = Field(default=None, description="file of refusals for dpo, rows with a `text` column")


class ModelConfig(Section):
    """Which model to start from: `name` (hub or folder), or `scratch` for one trained on the benchmark itself."""

    name: str | None = None
    scratch: ScratchConfig | None = None
    dtype: Dtype = "auto"
    pure_bf16: bool = Field(default=False, description="allow bfloat16 weights to train")
    lora: LoraConfig | None = None

    @model_validator(mode="after")
    def _one_source(self) -> "ModelConfig":
        if (self.name is None) == (self.scratch is None):
            raise ValueError("give either a model's name or scratch")
        return self


class HarnessConfig(Section):
    """Tasks of lm-evaluation-harness (extra: `expunge[harness]`), by its own names and settings, in the end."""

    model_config = ConfigDict(frozen=True, extra="allow")  # other arguments of the harness pass through unchanged

    tasks: list[str] = Field(min_length=1)
    batch_size: int | str = 8
    num_fewshot: int | None = Field(default=None, ge=0)
    limit: float | None = Field(default=None, gt=0, description="questions of each task; under 1 a share of them")
    include_path: str | None = Field(default=None, description="folder with tasks of your own")


def _evaluate(value: Any) -> Any:
    """`harness:mmlu,arc_easy` is short for those tasks of the harness."""
    if isinstance(value, str) and value.startswith("harness:"):
        return {"harness": {"tasks": value.removeprefix("harness:").split(",")}}
    return value


class EvaluateConfig(Section):
    """What is measured, and when."""

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
        "utility if full, else retain probability), and keep the epoch that forgot best before",
    )
    max_new_tokens: int | None = Field(
        default=None, ge=1, description="of a generated answer; default from the answers"
    )
    limit: int | None = Field(default=None, ge=1, description="questions of each set but forget, in the end")
    mmlu: str | None = Field(default=None, description="folder with MMLU's dev and validation files, asked in the end")
    harness: HarnessConfig | None = None

    @model_validator(mode="after")
    def _budget_needs_a_look(self) -> "EvaluateConfig":
        if self.utility_budget is not None and self.each_epoch == "off":
            raise ValueError("utility_budget is kept by evaluations on the way; set each_epoch to fast or full")
        return self


BOUNDS: dict[str, Any] = {
    "learning_rate": Field(gt=0, allow_inf_nan=False),
    "num_train_epochs": Field(gt=0, allow_inf_nan=False),
    "max_steps": Field(ge=-1),
    "per_device_train_batch_size": Field(ge=1),
    "gradient_accumulation_steps": Field(ge=1),
    "weight_decay": Field(ge=0),
    "max_grad_norm": Field(ge=0),
    "logging_steps": Field(gt=0),
    "save_steps": Field(gt=0),
    "warmup_steps": Field(ge=0),
    "max_length": Field(ge=2),
}
"""What `TrainingArguments` would take and fail on later, or not at all."""


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
            Annotated[hints[f.name], BOUNDS[f.name]] if f.name in BOUNDS else hints[f.name],
            f.default if f.default is not dataclasses.MISSING else None,
        )
        for f in dataclasses.fields(UnlearnConfig)
        if f.init and f.name not in ours
    }
    return create_model(
        "TrainConfig",
        __config__=ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True, protected_namespaces=()),
        __doc__="Any field of `expunge.UnlearnConfig`, hence of `transformers.TrainingArguments`.",
        **fields,
    )


TrainConfig = _train_section()


def _objective(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


def _method(value: Any) -> Any:
    return split_method(value) if isinstance(value, str) else value


class AugmentConfig(Section):
    """How many of a benchmark's (or file's) variants of each forget row a method trains on beside the rows."""

    paraphrases: int = Field(default=0, ge=0, description="other words for the same fact, joined to the forget rows")
    perturbations: int = Field(default=0, ge=0, description="wrong answers, joined to the retain rows")


AUGMENTED = {"uld": {"paraphrases": 4, "perturbations": 1}}
AUGMENTED["uld_distilled"] = AUGMENTED["uld"]
"""What methods that are made for variants take of them when the recipe does not say; the others take none."""


class Method(Section):
    """A forget objective with or without a retain objective, its share of variants, and training keys of its own."""

    forget: Annotated[ForgetObjective, BeforeValidator(_objective)]
    retain: Annotated[RetainObjective, BeforeValidator(_objective)] | None = None
    augment: AugmentConfig = AugmentConfig()
    train: TrainConfig = TrainConfig()  # pyright: ignore[reportInvalidTypeForm]
    label: str | None = Field(
        default=None, pattern=r"^\w[\w+.=,-]*$", description="how results and folders call it; default forget+retain"
    )

    @property
    def name(self) -> str:
        """The method's name in results: `unilogit+nll`, `ga`, or the label."""
        if self.label:
            return self.label
        if self.retain is None or (isinstance(self.forget, RMU) and self.retain.name == "anchor"):
            return self.forget.name
        return f"{self.forget.name}+{self.retain.name}"

    @model_validator(mode="before")
    @classmethod
    def _complete_rmu(cls, data: Any) -> Any:
        """RMU without a retain objective takes its paper's own, at the same layer."""
        if isinstance(data, Mapping) and data.get("retain") is None:
            forget = _objective(data.get("forget"))
            if isinstance(forget, Mapping) and forget.get("name") == "rmu":
                layer = {"layer": forget["layer"]} if "layer" in forget else {}
                return {**data, "retain": {"name": "anchor", **layer}}
        return data

    @model_validator(mode="before")
    @classmethod
    def _usual_variants(cls, data: Any) -> Any:
        """Variants for the methods that are made for them, as far as the recipe does not say how many."""
        if isinstance(data, Mapping) and isinstance(forget := _objective(data.get("forget")), Mapping):
            usual, given = AUGMENTED.get(str(forget.get("name"))), data.get("augment", {})
            if usual and isinstance(given, Mapping):
                return {**data, "augment": {**usual, **given}}
        return data

    @model_validator(mode="after")
    def _alone(self) -> "Method":
        if self.forget.alone and self.retain is not None:
            raise ValueError(f"{self.forget.name} brings its own retain term; leave retain out")
        return self


RESERVED = {"target", "retrained", "records", "pictures", "model"}
"""Names in results and in the run directory that are no method's."""


class Recipe(Section):
    """Everything that decides a run. `expunge run recipe.yaml --key value` sets any key by its dotted name."""

    benchmark: (
        Annotated[
            Annotated[BenchmarkConfig, Field(discriminator="name")],
            BeforeValidator(_objective),
        ]
        | None
    ) = None
    data: DataConfig | None = None
    model: Annotated[ModelConfig, BeforeValidator(_objective)]
    finetune: FinetuneConfig = FinetuneConfig()
    retrained: str | None = Field(default=None, description="folder of a model that never saw the forget rows")
    augment: str | None = Field(
        default=None, description="file or folder of paraphrases and wrong answers; see expunge augment"
    )
    methods: list[Annotated[Method, BeforeValidator(_method)]] = Field(default_factory=list)
    train: TrainConfig = TrainConfig()  # pyright: ignore[reportInvalidTypeForm]
    evaluate: Annotated[EvaluateConfig, BeforeValidator(_evaluate)] = EvaluateConfig()
    threads: int | None = Field(default=None, ge=1, description="CPU threads; tiny models are fastest with one")
    seed: int = Field(default=0, ge=0, lt=2**32)
    out: Path | None = Field(default=None, description="run directory; default runs/<recipe's name>")
    over: dict[str, Annotated[list[Any], Field(min_length=1)]] = Field(
        default_factory=dict,
        description="dotted keys and the values to run through, in every combination; values that go together are "
        "mappings of keys, under any name",
    )

    @model_validator(mode="before")
    @classmethod
    def _method_is_short_for_one(cls, data: Any) -> Any:
        if isinstance(data, Mapping) and "method" in data:
            data = dict(data)
            data["methods"] = [data.pop("method")]
        return data

    @model_validator(mode="after")
    def _consistent(self) -> "Recipe":
        if (self.benchmark is None) == (self.data is None):
            raise ValueError("give either a benchmark or your own data (--forget FILE)")
        names = [m.name for m in self.methods]
        if taken := RESERVED & set(names):
            raise ValueError(f"methods: the label {min(taken)} has a meaning of its own; choose another")
        if twice := {n for n in names if names.count(n) > 1}:
            raise ValueError(f"methods: {sorted(twice)[0]} stands there twice; give each a label of its own")
        return self


SHORT = {"evaluate": _evaluate, "method": _method, "model": _objective, "benchmark": _objective}
"""Keys whose value may be one word, and how that word unfolds when an override reaches inside."""

TAGS = {"fable", "tofu", "muse-news", "muse-books", "rwku", "listings", *FORGET, *RETAIN}

ALIASES = {"forget": "data.forget", "retain": "data.retain", "refusals": "data.refusals", "split": "benchmark.split"}

TEXT = {
    *("out", "retrained", "augment", "model.name"),
    *("data.forget", "data.retain", "data.refusals"),
    *("benchmark.path", "benchmark.retain", "benchmark.corpus"),
    *("method.forget.assistant", "method.forget.teacher"),
}
"""Names and paths: on the command line they are text even where they look like a number."""

COMMAND_LINE = "the command line"


def load_recipe(path: Path | None, overrides: Iterable[tuple[str, str]] = ()) -> Recipe:
    """The recipe in a YAML file (or an empty one) with `(dotted key, text)` overrides, validated.

    Whole sections are set before keys inside them, whatever their order; of two values for one key the later counts.
    Raises `UserError` for a missing or malformed file and for every unknown key or wrong value.
    """
    tree: dict[str, Any] = _read_yaml(path) if path else {}
    pairs = [(ALIASES.get(key, key), text) for key, text in overrides]
    for key, text in sorted(pairs, key=lambda pair: pair[0].count(".")):
        is_text = key in TEXT or (key == "model" and not text.startswith("{"))
        _set(tree, key, text if is_text else _scalar(text))
    return parse_recipe(tree, where=str(path) if path else COMMAND_LINE, overrides=[key for key, _ in pairs])


def parse_recipe(tree: Mapping[str, Any], *, where: str, overrides: Iterable[str] = ()) -> Recipe:
    """Validate a tree of plain values that stands in `where`, but for the keys in `overrides`.

    Raises `UserError` for the first mistake, with its place and the nearest right name.
    """
    try:
        return Recipe.model_validate(tree)
    except ValidationError as error:
        path, sentence = _sentence(error, single="methods" not in tree)
        if any(f"{path}.".startswith(f"{key}.") or f"{key}.".startswith(f"{path}.") for key in overrides):
            where = COMMAND_LINE
        raise UserError(f"{where}: {sentence}") from error


def combinations(recipe: Recipe) -> list[tuple[str, Recipe]]:
    """A recipe for each combination of the values in `over`, with a name for its folder: `split=forget10,seed=1`.

    Raises `UserError` for a key or a value that the recipe can't have.
    """
    found = []
    for values in itertools.product(*recipe.over.values()):
        chosen = dict(zip(recipe.over, values, strict=True))
        name = ",".join(f"{key.rpartition('.')[2]}={_file_name(value)}" for key, value in chosen.items())
        out = str((recipe.out or Path("runs")) / name)
        found.append((name, with_keys(recipe, {**chosen, "out": out}, where="over", without={"over"})))
    return found


def with_keys(recipe: Recipe, values: Mapping[str, Any], *, where: str, without: Collection[str] = ()) -> Recipe:
    """The recipe with other values of some dotted keys; what stands in the sections `without` is left out.

    A mapping is the value of a section; under any other name it holds keys and values of its own, which go together.

    Raises `UserError`, which begins with `where`, for a key or a value that the recipe can't have.
    """
    tree = recipe.model_dump(mode="json", exclude_unset=True, exclude=set(without))
    sections = {key.rpartition(".")[0] for key in _keys()}
    each = [v if isinstance(v, Mapping) and name not in sections else {name: v} for name, v in values.items()]
    pairs = [(ALIASES.get(key, key), value) for part in each for key, value in part.items()]
    for key, value in sorted(pairs, key=lambda pair: pair[0].count(".")):
        _set(tree, key, copy.deepcopy(value))
    return parse_recipe(tree, where=where)


def _file_name(value: Any) -> str:
    if isinstance(value, Mapping):
        value = next(iter(value.values()), "")
    text = "+".join(map(str, value)) if isinstance(value, list) else str(value)
    return re.sub(r"[^\w.+-]+", "_", text)


class _Loader(yaml.SafeLoader):
    """Reads as YAML 1.2 does: `no`, `off` and dates are words, 1e-5 is a number; and no key stands there twice."""

    yaml_implicit_resolvers: typing.ClassVar[dict[str, Any]] = {
        first: [(tag, pattern) for tag, pattern in pairs if not tag.endswith((":bool", ":timestamp"))]
        for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for i, name in enumerate(names):
            if name in names[:i]:
                raise yaml.constructor.ConstructorError(problem=f"{name!r} twice", problem_mark=node.start_mark)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile("^(?:true|false)$"), list("tf"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9.]+[eE][-+]?[0-9]+$"), list("-+.0123456789")
)


def read_mapping(source: str, *, what: str) -> dict[str, Any]:
    """A mapping from a YAML or JSON file, or written out (`{…}`) in the place of the file's name."""
    if not source.lstrip().startswith("{"):
        return _read_yaml(Path(source), what)
    tree = _scalar(source)
    if not isinstance(tree, dict):
        raise UserError(f"{what}: {source!r} is not valid YAML or JSON; mend it, or give a file.")
    return tree


def _read_yaml(path: Path, what: str = "recipe") -> dict[str, Any]:
    if not path.is_file():
        near = did_you_mean(path.name, (p.name for p in path.parent.glob("*.yaml"))) if path.parent.is_dir() else ""
        raise UserError(f"{what} {str(path)!r} {'is not a file' if path.exists() else 'does not exist'}.{near}")
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        problem = str(getattr(error, "problem", None) or error).splitlines()[0]
        raise UserError(f"{path}{line}: not valid YAML ({problem}); mend that line.") from error
    except (ValueError, RecursionError) as error:  # not UTF-8, a number of thousands of digits, lists nested as deep
        raise UserError(f"{path}: not a {what} ({str(error).splitlines()[0]}); write it again.") from error
    if not isinstance(tree, dict):
        raise UserError(f"{path}: a {what} is a mapping; write a line `key: value` for each key.")
    return tree


def _scalar(text: str) -> Any:
    try:
        return yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError, RecursionError):
        return text


def _set(tree: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    if parents[:1] == ["method"] and "methods" in tree:
        if not isinstance(tree["methods"], list) or len(tree["methods"]) != 1:
            raise UserError(f"{key}: the recipe has several methods; choose one with --method, or edit the recipe.")
        tree["method"] = tree.pop("methods")[0]
    elif key in ("method", "methods"):
        tree.pop("methods", None)
        tree.pop("method", None)
    for i, part in enumerate(parents):
        node = tree.get(part, {})
        if isinstance(node, str) and i == 0 and part in SHORT:
            node = SHORT[part](node)
        elif isinstance(node, str) and part in ("forget", "retain"):
            node = _objective(node)
        if not isinstance(node, dict):
            raise UserError(f"{key}: {part} is not a section, so it has no key {last!r}.")
        tree[part] = dict(node)
        tree = tree[part]
    tree[last] = value


def _keys(model: type[BaseModel] = Recipe, section: str = "") -> Iterator[str]:
    """The dotted names of all keys; what stands in `methods` goes by `method`."""
    for name, info in model.model_fields.items():
        yield section + name
        for part in _models_in(info.annotation):
            yield from _keys(part, section + name.replace("methods", "method") + ".")


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in typing.get_args(annotation) for model in _models_in(part)]


def _nearest_key(path: str) -> str:
    """ " Did you mean …?": the same key in another section, else one like it in this section, else in any."""
    section, _, last = re.sub(r"^methods\.\d+", "method", path).rpartition(".")
    known = [key.rpartition(".") for key in sorted(("method", *_keys()), key=lambda key: -key.count("."))]
    # Of one name in several sections, the outermost.
    places = {name: f"{parent}.{name}".lstrip(".") for parent, _, name in known}
    beside = {name: f"{parent}.{name}".lstrip(".") for parent, _, name in known if parent == section}
    if last in beside:
        return ""
    for names in ({last: places[last]} if last in places else {}, beside, places):
        if close := difflib.get_close_matches(last, list(names), n=1):
            return f" Did you mean {names[close[0]]!r}?"
    return ""


def _sentence(error: ValidationError, *, single: bool) -> tuple[str, str]:
    """Where the first mistake is, and the mistake in words. `single`: the one method was given as `method`.

    A misspelt key goes before a missing one, which it often was meant to be.
    """
    errors = error.errors()
    first = next((e for e in errors if e["type"] == "extra_forbidden"), errors[0])
    path = _path(first["loc"], single=single)
    others = len({_path(e["loc"], single=single) for e in errors} - {path})
    given = first.get("input")
    match first["type"]:
        case "extra_forbidden":
            sentence = f"unknown key {path!r}.{_nearest_key(path)}"
        case "missing":
            hint = " (a list: '[Confucius, Bruce Lee]')" if path == "benchmark.targets" else ""
            sentence = f"the key {path!r} is missing; give it{hint}."
        case "union_tag_not_found":
            sentence = f"{path}: its name is missing; give it (the key {path + '.name'!r})."
        case "value_error":
            message = str(first["ctx"]["error"]) if "ctx" in first else first["msg"]
            sentence = f"{path + ': ' if path else ''}{message.removesuffix('.')}."
        case "union_tag_invalid":
            known = str(first.get("ctx", {}).get("expected_tags", "")).replace("'", "").split(", ")
            tag = str(first.get("ctx", {}).get("tag", given))
            sentence = f"{path}: unknown name {tag!r}.{did_you_mean(tag, known)} Known: {', '.join(known)}."
        case _:
            shown = repr(given) if len(repr(given)) < 60 else repr(given)[:60] + "…"
            sentence = f"{path}: {shown} is not valid ({first['msg'][0].lower() + first['msg'][1:]})."
    return path, sentence + (f" (And {others} more.)" if others else "")


def _path(loc: tuple[int | str, ...], *, single: bool) -> str:
    """Where in the recipe, without what a person did not write: unions' tags, types and validators' names."""
    unions, types = ("benchmark", "forget", "retain"), ("str", "int", "float", "bool")
    kept: list[str] = []
    for i, part in enumerate(map(str, loc)):
        is_tag = i and loc[i - 1] in unions and part in TAGS
        if not is_tag and part not in types and not re.search(r"[\[-]", part):
            kept.append(part)
    path = ".".join(kept)
    return path.replace("methods.0", "method", 1) if single else path
