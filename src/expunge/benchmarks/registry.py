"""Every benchmark by its name in recipes: those in this folder, entry points of other packages, and import paths."""

import pkgutil
from collections.abc import Mapping
from importlib import import_module, metadata
from typing import TYPE_CHECKING, Annotated, Any, Union, get_args

from pydantic import Field, ValidatorFunctionWrapHandler, WrapValidator

from expunge import benchmarks
from expunge.benchmarks.base import BenchmarkConfig
from expunge.evals.glossary import declare
from expunge.system.imports import imported, is_ours, is_path

GROUP = "expunge.benchmarks"
"""The entry point group by which an installed package gives its benchmarks names."""


def _in_this_folder() -> list[type[BenchmarkConfig]]:
    classes: list[type[BenchmarkConfig]] = []
    for module in pkgutil.iter_modules(benchmarks.__path__):
        if module.name not in ("base", "registry"):
            values = vars(import_module(f"{benchmarks.__name__}.{module.name}")).values()
            kinds = (value for value in values if isinstance(value, type) and issubclass(value, BenchmarkConfig))
            classes += [kind for kind in kinds if kind is not BenchmarkConfig and kind not in classes]
    return classes


BENCHMARKS = tuple(_in_this_folder())

NAMES = tuple(name for cls in BENCHMARKS for name in get_args(cls.model_fields["name"].annotation))

for cls in BENCHMARKS:
    declare(cls.metrics, cls.axes)


def entry_points() -> dict[str, str]:
    """The import paths of installed packages' benchmarks by their names."""
    return {entry.name: entry.value for entry in metadata.entry_points(group=GROUP)}


def _by_path(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
    """Validate a benchmark of a user's own by its own class; leave ours to `handler`."""
    if isinstance(value, BenchmarkConfig) and not is_ours(type(value)):
        return value
    if isinstance(value, Mapping):
        name = value.get("name")
        path = name if is_path(name) or name in NAMES else entry_points().get(str(name))
        if is_path(path):
            keys = {key: part for key, part in value.items() if key != "name"}
            return imported(path, BenchmarkConfig, "benchmark").model_validate(keys)
    return handler(value)


if TYPE_CHECKING:
    BenchmarkSection = BenchmarkConfig
else:
    BenchmarkSection = Annotated[Union[BENCHMARKS], Field(discriminator="name"), WrapValidator(_by_path)]  # noqa: UP007
