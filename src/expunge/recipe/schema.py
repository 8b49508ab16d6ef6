"""The JSON schema of recipes, by which editors complete keys and mark mistakes."""

from typing import Any

from expunge.benchmarks.registry import NAMES
from expunge.recipe.config import SHORT, Recipe
from expunge.training.arguments import REFUSED

_WORD = {"type": "string"}
_OWN = {
    "type": "object",
    "properties": {"name": {"type": "string", "pattern": r"^[\w.]+:\w+$"}},
    "required": ["name"],
}
"""An objective of a user's own, by its import path; its options are known to its class alone."""
_OWN_BENCHMARK = {
    "type": "object",
    "properties": {"name": {"type": "string", "not": {"enum": list(NAMES)}}},
    "required": ["name"],
}
"""A benchmark of a user's own, by its import path or its entry point."""
_UNFOLDED = {"Method": ("forget", "retain"), "EvaluateConfig": ("metrics",)}
"""Keys inside a section that may be one word too."""


def recipe_schema() -> dict[str, Any]:
    """Return the JSON schema (draft 2020-12) of a recipe as it is written, short forms included.

    A recipe that the schema takes can still be refused: rules about several keys are not in it.
    """
    schema = Recipe.model_json_schema()
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
    top, parts = schema["properties"], schema["$defs"]
    method = top["methods"]["items"]
    top["methods"]["items"] = {"anyOf": [method, _WORD]}
    top["method"] = {"anyOf": [method, _WORD], "description": "short for `methods` with one method"}
    for key in SHORT.keys() - {"method"}:
        top[key] = _or_a_word(top[key], *([_OWN_BENCHMARK] if key == "benchmark" else []))
    for section, keys in _UNFOLDED.items():
        for key in keys:
            others = [_OWN] if section == "Method" else []
            parts[section]["properties"][key] = _or_a_word(parts[section]["properties"][key], *others)
    for key in REFUSED:
        parts["TrainConfig"]["properties"].pop(key, None)
    # A default of whole sections repeats every key of them, in words that nobody reads.
    for value in (*top.values(), *parts["Method"]["properties"].values()):
        if isinstance(value.get("default"), dict):
            del value["default"]
    return schema


def _or_a_word(value: dict[str, Any], *others: dict[str, Any]) -> dict[str, Any]:
    notes = {key: value[key] for key in ("title", "description", "default") if key in value}
    rest = {key: part for key, part in value.items() if key not in notes}
    return {"anyOf": [rest, _WORD, *others], **notes}
