"""Text → recipe: YAML files and dotted keys, and every mistake in them as one sentence that names the key."""

import copy
import difflib
import itertools
import math
import re
import typing
from collections.abc import Collection, Iterable, Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from expunge import secrets
from expunge.benchmarks.registry import BENCHMARKS, NAMES, entry_points
from expunge.errors import UserError, did_you_mean, first_line, wrong_value
from expunge.objectives import METHODS, RETAIN
from expunge.recipe.config import SHORT, Recipe, unfold_objective
from expunge.recipe.shipped import find
from expunge.training.targets import FinetuneConfig


def _is_text(annotation: Any) -> bool:
    """Whether a key of this type holds text or nothing."""
    return {*(typing.get_args(annotation) or (annotation,))} <= {str, Path, type(None)}


TAGS = {*NAMES, *METHODS, *RETAIN}

ALIASES = {"forget": "data.forget", "retain": "data.retain", "refusals": "data.refusals", "split": "benchmark.split"}

TEXT = {
    *("out", "retrained", "augment", "model.name"),
    *("data.forget", "data.retain", "data.refusals"),
    *(
        f"benchmark.{name}"
        for cls in BENCHMARKS
        for name, info in cls.model_fields.items()
        if _is_text(info.annotation)
    ),
    *("method.forget.assistant", "method.forget.teacher"),
}
"""Names and paths: on the command line they are text even where they look like a number."""

COMMAND_LINE = "the command line"

MOST_RUNS = 10_000
MOST_BYTES = 1_000_000
"""Most runs of one recipe."""

LONGEST_NAME = 200
"""Bytes of a run's folder; file systems take 255."""

MOST_VALUES, DEEPEST = 100_000, 60
"""Most values of a YAML file once its aliases are written out, and the deepest nesting."""
TOO_DEEP = f"it is nested more than {DEEPEST} levels deep"


def check_once(keys: Collection[str]) -> None:
    """Raise `UserError` for a key of the command line that is given twice, by another of its names too."""
    given: dict[str, str] = {}
    for key in keys:
        name = "method" if key == "methods" else ALIASES.get(key, key)
        if name in given:
            same = key == given[name]
            twice = f"--{key} is given twice" if same else f"--{given[name]} and --{key} are the same key, which"
            raise UserError(f"{twice} {'and ' if same else ''}has one value; give one.")
        given[name] = key


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


def complete(path: Path) -> str | None:
    """Every key of the recipe in a file with its value, defaults too, as YAML; None for one of another version."""
    try:
        recipe = load_recipe(path)
    except UserError:
        return None
    tree = recipe.model_dump(mode="json", exclude={"out", "methods"})
    methods = [  # of its training keys, those that differ from the recipe's
        {**method.model_dump(mode="json", exclude={"train"}), "train": method.train.model_dump(exclude_unset=True)}
        for method in recipe.methods
    ]
    if recipe.finetune is not None or recipe.model.scratch is not None:
        taught = (recipe.finetune or FinetuneConfig()).complete(named=recipe.model.name is not None)
        tree["finetune"] = taught.model_dump(mode="json")
    return yaml.safe_dump(secrets.masked({**tree, "methods": methods}), sort_keys=False, allow_unicode=True)


def recipe_of(source: str | Path | Mapping[str, Any] | Recipe, keys: Mapping[str, Any] | None = None) -> Recipe:
    """The recipe in a YAML file, in a mapping or as it is, with other values of some dotted `keys`.

    A file may be one that comes with expunge, by its name. Without `out` a file's run is written to `runs/NAME`.
    Raises `UserError` as `load_recipe` does.
    """
    if isinstance(source, Recipe):
        return with_keys(source, keys, where="keys") if keys else source
    if isinstance(source, Mapping):
        tree, where = dict(source), "recipe"
    elif isinstance(source, str | Path):
        source = find(source)
        tree, where = {"out": f"runs/{run_name(Path(source))}", **_read_yaml(Path(source))}, str(source)
    else:
        raise UserError(f"recipe must be a file, a mapping or a Recipe, got {type(source).__name__}.")
    pairs = [(ALIASES.get(key, key), value) for key, value in (keys or {}).items()]
    for key, value in sorted(pairs, key=lambda pair: pair[0].count(".")):
        _set(tree, key, copy.deepcopy(value))
    return parse_recipe(tree, where=where, overrides=[key for key, _ in pairs], overridden="keys")


def run_name(path: Path | None) -> str:
    """`recipes/tofu/scratch/forget10.yaml` → `tofu-scratch-forget10`; without a recipe, `run`."""
    if path is None:
        return "run"
    parts = path.with_suffix("").parts
    return "-".join(parts[parts.index("recipes") + 1 :] if "recipes" in parts else parts[-1:])


def parse_recipe(
    tree: Mapping[str, Any], *, where: str, overrides: Iterable[str] = (), overridden: str = COMMAND_LINE
) -> Recipe:
    """Validate a tree of plain values that stands in `where`, but for the keys in `overrides`, from `overridden`.

    Secrets that a run masked in its `recipe.yaml` are left out: whoever repeats it gives them again.
    Raises `UserError` for the first mistake, with its place and the nearest right name.
    """
    try:
        return Recipe.model_validate(secrets.unmasked(tree))
    except ValidationError as error:
        path, sentence = _sentence(error, single="methods" not in tree)
        if any(f"{path}.".startswith(f"{key}.") or f"{key}.".startswith(f"{path}.") for key in overrides):
            where = overridden
        raise UserError(f"{where}: {sentence}") from error


def combinations(recipe: Recipe) -> list[tuple[str, Recipe]]:
    """A recipe for each combination of the values in `over`, with a name for its folder: `split=forget10,seed=1`.

    Raises `UserError` for a key or a value that the recipe can't have, for two runs of one name, and for too many.
    """
    recipes: list[tuple[str, Recipe]] = []
    check_runs(math.prod(map(len, recipe.over.values())), "over")
    for values in itertools.product(*recipe.over.values()):
        chosen = dict(zip(recipe.over, values, strict=True))
        name = ",".join(f"{key.rpartition('.')[2]}={_file_name(value)}" for key, value in chosen.items())
        if len(name.encode()) > LONGEST_NAME:
            name = (
                f"{name.encode()[: LONGEST_NAME - 9].decode(errors='ignore')}-{sha256(name.encode()).hexdigest()[:8]}"
            )
        if name in (other for other, _ in recipes):
            raise UserError(f"over: two runs would be called {name}; leave one out, or give its value another name.")
        out = str((recipe.out or Path("runs")) / name)
        recipes.append((name, with_keys(recipe, {**chosen, "out": out}, where="over", without={"over"})))
    return recipes


def check_runs(count: int, where: str) -> None:
    """Raise `UserError` for more runs than anybody waits for."""
    if count > MOST_RUNS:
        raise UserError(f"{where}: there must be at most {MOST_RUNS} runs, got {count}.")


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
    """Reads as YAML 1.2 does: `no`, `off` and dates are words, 1e-5 is a number; and no key is listed twice."""

    yaml_implicit_resolvers: typing.ClassVar[dict[str, Any]] = {  # pyright: ignore[reportIncompatibleVariableOverride]
        first: [(tag, pattern) for tag, pattern in pairs if not tag.endswith((":bool", ":timestamp"))]
        for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        self.depth += 1
        if self.depth > DEEPEST:
            raise yaml.constructor.ConstructorError(problem=TOO_DEEP)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def get_single_node(self) -> Any:
        node = super().get_single_node()
        if node is not None:
            _values(node, {}, 0)
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for i, name in enumerate(names):
            if name in names[:i]:
                raise yaml.constructor.ConstructorError(problem=f"{name!r} twice", problem_mark=node.start_mark)
        return super().construct_mapping(node, deep)


def _values(node: yaml.Node, known: dict[int, int], depth: int) -> int:
    """How many values a node holds with its aliases written out.

    Raises `yaml.YAMLError` for too many, for nesting that is too deep, and for a node that holds itself.
    """
    if known.get(id(node)):
        return known[id(node)]
    why = ""
    if id(node) in known:
        why = "an alias holds itself"
    elif depth > DEEPEST:
        why = TOO_DEEP
    else:
        known[id(node)] = 0
        parts = node.value if isinstance(node, yaml.CollectionNode) else []
        inner = [child for part in parts for child in (part if isinstance(part, tuple) else (part,))]
        known[id(node)] = 1 + sum(_values(child, known, depth + 1) for child in inner)
        if known[id(node)] > MOST_VALUES:
            why = f"it holds more than {MOST_VALUES} values with its aliases written out"
    if why:
        raise yaml.constructor.ConstructorError(problem=why, problem_mark=node.start_mark)
    return known[id(node)]


_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile("^(?:true|false)$"), list("tf"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9.]+[eE][-+]?[0-9]+$"), list("-+.0123456789")
)


def _load(text: str) -> Any:
    """The values in a text. The scanner takes the square of the brackets that are open, so they are counted first."""
    depth = deepest = 0
    for bracket in re.findall(r"[][{}]", text):
        depth += 1 if bracket in "[{" else -1
        deepest = max(deepest, depth)
    if deepest > 10 * DEEPEST:  # some may stand in words
        raise yaml.constructor.ConstructorError(problem=TOO_DEEP)
    return yaml.load(text, _Loader)


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
    if path.stat().st_size > MOST_BYTES:
        raise UserError(f"{path}: a {what} must have at most {MOST_BYTES} bytes; give another file.")
    try:
        tree = _load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        problem = first_line(getattr(error, "problem", None) or error)
        raise UserError(f"{path}{line}: not valid YAML ({problem}); mend that line.") from error
    except (ValueError, RecursionError) as error:  # not UTF-8, a number of thousands of digits, lists nested as deep
        raise UserError(f"{path}: not a {what} ({first_line(error)}); write it again.") from error
    if not isinstance(tree, dict):
        raise UserError(f"{path}: a {what} is a mapping; write a line `key: value` for each key.")
    return tree


def _scalar(text: str) -> Any:
    try:
        return _load(text)
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
            node = unfold_objective(node)
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
            hint = _example(path)
            sentence = f"the key {path!r} is missing; give it{hint}."
        case "union_tag_not_found":
            sentence = f"{path}: its name is missing; give it (the key {path + '.name'!r})."
        case "value_error":
            message = str(first["ctx"]["error"]) if "ctx" in first else first["msg"]
            mark = "." if path.endswith("train") else ": "  # of a training key the message begins with its name
            end = "" if message.endswith(("?", ".")) else "."
            sentence = f"{path + mark if path else ''}{message}{end}"
        case "union_tag_invalid":
            known = str(first.get("ctx", {}).get("expected_tags", "")).replace("'", "").split(", ")
            tag = str(first.get("ctx", {}).get("tag", given))
            known += entry_points() if path == "benchmark" else []
            sentence = f"{path}: unknown name {tag!r}.{did_you_mean(tag, known)} Known: {', '.join(known)}."
        case _:
            sentence = wrong_value(path, first)
    return path, sentence + (f" (And {others} more.)" if others else "")


def _example(path: str) -> str:
    """ " (a list: …)": how a benchmark's key is written that must be given and is no single word."""
    fields = (cls.model_fields.get(path.removeprefix("benchmark.")) for cls in BENCHMARKS)
    shown = (info.examples[0] for info in fields if info is not None and info.is_required() and info.examples)
    return next((f" (a list: {example!r})" for example in shown), "")


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
