"""The declaration of a benchmark: the keys of its section in a recipe, its data, its metrics and axes."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from expunge.data.benchmark import Benchmark
from expunge.evals.glossary import Axes, Metric
from expunge.system.imports import is_ours, path_of
from expunge.system.options import Options


class BenchmarkConfig(Options, ABC):
    """The keys of a benchmark's section in a recipe; unknown keys are errors.

    A benchmark of this package has a field `name`; any other goes by its import path or by the name of its entry point.
    """

    metrics: ClassVar[Mapping[str, Metric]] = {}
    """Metrics that its probes and question sets give and that no other benchmark has, in the order of tables."""
    axes: ClassVar[Axes] = Axes()

    @abstractmethod
    def load(self) -> Benchmark:
        """The data, read or generated. Raises `UserError` for keys and files that a person can mend."""

    def written(self, *, mode: Literal["json", "python"] = "python", only_set: bool = True) -> dict[str, Any]:
        """The section as a recipe has it: the benchmark's name and its keys, or `only_set` those that were given."""
        keys = self.model_dump(mode=mode, exclude_unset=only_set)
        keys["name"] = getattr(self, "name", None) if is_ours(type(self)) else path_of(type(self))
        return {"name": keys.pop("name"), **keys}
