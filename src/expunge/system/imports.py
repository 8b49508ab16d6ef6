"""A class of somebody else's package by its import path, `package.module:Class`."""

import inspect
from importlib import import_module
from typing import TypeGuard, TypeVar

from expunge.errors import UserError, did_you_mean, first_line

T = TypeVar("T")


def is_path(name: object) -> TypeGuard[str]:
    """Whether a name in a recipe is an import path rather than one of our own names."""
    return isinstance(name, str) and ":" in name


def is_ours(cls: type) -> bool:
    """Whether a class belongs to this package, so that recipes know it by a name."""
    return cls.__module__.partition(".")[0] == __name__.partition(".")[0]


def path_of(cls: type) -> str:
    """The import path of a class."""
    return f"{cls.__module__}:{cls.__qualname__}"


def imported(path: str, base: type[T], what: str) -> type[T]:
    """The subclass of `base` at `path`; `what` a person calls such a class.

    Raises `UserError` for a module that can't be imported, an absent name, another kind of thing, and a class that
    leaves a method of `base` unwritten.
    """
    value = attribute(path, what)
    # A base class is imported from its folder, whichever file of it holds the class.
    wanted = f"a subclass of {base.__module__.rpartition('.')[0]}.{base.__qualname__}"
    if not isinstance(value, type):
        raise UserError(f"{path} is not a class but {_kind(value)}; {what} must be {wanted}.")
    if not issubclass(value, base):
        raise UserError(f"{path} is no {what}; make it {wanted}.")
    if lacking := " and ".join(sorted(getattr(value, "__abstractmethods__", ()))):
        raise UserError(f"{path} lacks {lacking}, which every {what} needs; write it.")
    return value


def attribute(path: str, what: str) -> object:
    """The object at an import path. Raises `UserError` where the module or the name in it is absent."""
    module_name, _, name = path.partition(":")
    if not module_name or not all(part.isidentifier() for part in (*module_name.split("."), *name.split("."))):
        raise UserError(f"{path!r} is no import path; write {what} as package.module:Name.")
    try:
        value: object = import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{module_name}.".startswith(f"{error.name}."):
            raise UserError(
                f"{path}: there is no module {error.name}; install it, or put its folder on PYTHONPATH."
            ) from error
        raise UserError(f"{path}: importing {module_name} needs {error.name}, which is not installed.") from error
    except Exception as error:  # a stranger's module may raise anything
        raise UserError(
            f"{path}: importing {module_name} raises {type(error).__name__} ({first_line(error)}); mend it."
        ) from error
    for part in name.split("."):
        if not hasattr(value, part):
            raise UserError(f"{path}: {module_name} has no {name}.{did_you_mean(part, dir(value))}")
        value = getattr(value, part)
    return value


def _kind(value: object) -> str:
    return "a function" if inspect.isroutine(value) else f"a value of type {type(value).__name__}"
