"""Every key of a recipe in words: its type, default and description, read from the code that takes it."""

import dataclasses
import inspect
import re
import textwrap
import typing
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined
from transformers import TrainingArguments

from expunge.objectives import METHODS, RETAIN, Way
from expunge.recipe.config import Method, Recipe, TrainConfig
from expunge.training.arguments import REFUSED, UnlearnConfig

WIDTH = 100


def listed() -> Iterator[str]:
    """The lines of `expunge run --help-keys`: section by section each key, as the command line takes it."""
    for prefix, model in sections(Recipe):
        prefix = prefix.replace("methods[]", "method")
        yield from _section(prefix, model, {n: described(n, field) for n, field in model.model_fields.items()})
        if model is Method:
            for side, registry in (("forget", METHODS), ("retain", RETAIN)):
                for cls in registry.values():
                    told = {n: field.description or "" for n, field in cls.model_fields.items() if n != "name"}
                    if told:
                        yield from _section(f"{prefix}.{side}", cls, told)
    told = training_descriptions()
    ours = [field.name for field in dataclasses.fields(UnlearnConfig) if field.name in TrainConfig.model_fields]
    yield from _section("train", TrainConfig, {name: told.get(name, "") for name in ours if name not in REFUSED})


def _section(prefix: str, model: type[BaseModel], told: dict[str, str]) -> Iterator[str]:
    yield from textwrap.wrap(f"{title(prefix, model)}. {_first_paragraph(model)}".replace("`", ""), WIDTH)
    for name, text in told.items():
        field = model.model_fields[name]
        key, default = f"{prefix}.{name}" if prefix else name, default_of(field)
        given = default if field.is_required() else "no default" if default == "–" else f"default {default}"
        yield f"  --{key}  ({f'{type_of(field)}; {given}'.replace('`', '')})"
        yield from textwrap.wrap(text.replace("`", ""), WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6)
    yield ""


def sections(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    """Each section of a recipe with its dotted name, each alternative too, but for `train` and the objectives."""
    yield prefix, model
    for name, field in model.model_fields.items():
        for part in _models(field.annotation):
            if name == "train" or issubclass(part, Way):
                continue
            key = f"{prefix}.{name}" if prefix else name
            yield from sections(part, f"{key}[]" if part is Method else key)


def title(prefix: str, model: type[BaseModel]) -> str:
    """A section's heading; a benchmark's or an objective's holds its name."""
    if not prefix:
        return "The recipe"
    name = model.model_fields.get("name")
    alternatives = typing.get_args(name.annotation) if name and typing.get_origin(name.annotation) is Literal else ()
    return f"`{prefix}`" + (f": {', '.join(f'`{value}`' for value in alternatives)}" if alternatives else "")


def type_of(field: FieldInfo) -> str:
    """A field's type in words, with its bounds."""
    bounds = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than", "min_length": "at least"}
    limits = [
        f"{words} {value:,}" for name, words in bounds.items() for item in field.metadata
        if (value := getattr(item, name, None)) is not None
    ]  # fmt: skip
    return ", ".join([type_name(field.annotation), *limits])


def type_name(kind: Any) -> str:
    """A type as a reader of YAML calls it."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in args)
    if origin is typing.Annotated:
        return type_name(args[0])
    if origin in (typing.Union, UnionType):
        names = dict.fromkeys(type_name(arg) for arg in args if arg is not NoneType)
        return " or ".join(names)
    if origin in (list, tuple, set):
        return f"list of {type_name(args[0])}" if args and args[0] is not Any else "list"
    if origin is dict or kind is dict:
        return "mapping"
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return "section"
    if isinstance(kind, type) and issubclass(kind, Enum):
        return "text"
    names = {str: "text", int: "whole number", float: "number", bool: "true or false", Path: "path", list: "list"}
    return names.get(kind, getattr(kind, "__name__", str(kind)))


def described(name: str, field: FieldInfo) -> str:
    """A field's description; without one that of the section it holds, or nothing."""
    if field.description:
        return field.description
    if name == "name":
        return "as in the heading"
    parts = [part for part in _models(field.annotation) if not issubclass(part, Way)]
    return _first_paragraph(parts[0]) if len(parts) == 1 else ""


def default_of(field: FieldInfo) -> str:
    """A field's default as it would stand in a recipe."""
    if field.is_required():
        return "required"
    return shown(None if field.default is PydanticUndefined else field.default)


def shown(value: Any) -> str:
    """A default as it would stand in a recipe."""
    if value is None or isinstance(value, BaseModel):
        return "–"
    if isinstance(value, Enum):
        value = value.value
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{value}`"


def training_descriptions() -> dict[str, str]:
    """The description of each field in the docstrings of `TrainingArguments` and `UnlearnConfig`, in one paragraph."""
    found = {"full_determinism": ["only deterministic algorithms, which are slower"]}
    for cls in (TrainingArguments, UnlearnConfig):
        name = None
        for line in inspect.cleandoc(cls.__doc__ or "").splitlines():
            entry = re.match(r" {4}(\w+) ?(?:\([^:]*\))?: ?(.*)$", line)
            if entry:
                name, first = entry.groups()
                found[name] = [first]
            elif name and line.startswith(" " * 8):
                found[name].append(line.strip())
            elif line.strip():
                name = None
    return {name: re.sub(r"\[`~?([^`\]]+)`\]", r"`\1`", " ".join(lines).strip()) for name, lines in found.items()}


def _first_paragraph(cls: type) -> str:
    text = re.split(r"\n\n|\s*\bUse (?:when|to|where|for)\b", inspect.cleandoc(cls.__doc__ or ""))[0]
    return " ".join(text.split())


def _models(annotation: Any) -> list[type[BaseModel]]:
    """The sections that stand somewhere in a type."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in typing.get_args(annotation) for model in _models(part)]
