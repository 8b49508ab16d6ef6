"""Options as pydantic checks them: frozen, without unknown keys, and in Python too a mistake is one sentence."""

from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, ValidationError

from expunge.errors import UserError, did_you_mean, wrong_value


class _Called(type(BaseModel)):
    """The metaclass of options. pydantic does not call a class as it reads a recipe, whose errors name its keys."""

    if not TYPE_CHECKING:  # pydantic's own signature stays

        def __call__(cls, *args: Any, **options: Any) -> Any:
            try:
                return super().__call__(*args, **options)
            except ValidationError as error:
                raise UserError(_sentence(cls, error)) from error


class Options(BaseModel, metaclass=_Called):
    """Base of everything that a recipe configures and that can be made in Python."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def _sentence(cls: type[BaseModel], error: ValidationError) -> str:
    """The first mistake, with the name of the class and of the option; a misspelt option goes before a missing one."""
    errors = error.errors()
    first = next((e for e in errors if e["type"] == "extra_forbidden"), errors[0])
    option, known = ".".join(map(str, first["loc"])), cls.model_fields
    match first["type"]:
        case "extra_forbidden":
            sentence = f"unknown option {option!r}.{did_you_mean(option, known)} Known: {', '.join(known)}."
        case "missing":
            sentence = f"{option} is missing; give {cls.__name__}({option}=…)."
        case "value_error":
            sentence = f"{option}{': ' if option else ''}{str(first.get('ctx', {}).get('error')).removesuffix('.')}."
        case _:
            sentence = wrong_value(option, first)
    return f"{cls.__name__}: {sentence}"
