"""Unlearning for language models: an objective is a small formula over per-token signals.

They load on first use, so that `import expunge` takes milliseconds and leaves torch alone.
"""

from typing import TYPE_CHECKING

from expunge.errors import UserError

__all__ = [
    "UnlearnConfig",
    "UnlearnTrainer",
    "UserError",
    "__version__",
    "evaluate",
    "load",
    "objectives",
    "run",
]

if TYPE_CHECKING:
    from expunge import objectives
    from expunge.modeling.loading import load
    from expunge.pipeline.api import evaluate, run
    from expunge.training.arguments import UnlearnConfig
    from expunge.training.trainer import UnlearnTrainer

    __version__: str
else:  # hidden from type checkers, for whom a module `__getattr__` would make every name valid

    def __getattr__(name: str) -> object:
        from importlib import import_module, metadata

        match name:
            case "UnlearnConfig":
                value = import_module("expunge.training.arguments").UnlearnConfig
            case "UnlearnTrainer":
                value = import_module("expunge.training.trainer").UnlearnTrainer
            case "evaluate" | "run":
                value = getattr(import_module("expunge.pipeline.api"), name)
            case "load":
                value = import_module("expunge.modeling.loading").load
            case "objectives":
                value = import_module("expunge.objectives")
            case "__version__":
                value = metadata.version("expunge")
            case _:
                raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
