"""The space of a sweep: keys of a recipe and the values they may take → points → recipes."""

import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from expunge.errors import UserError
from expunge.recipe.config import Recipe, Section
from expunge.recipe.parsing import with_keys
from expunge.secrets import secret_name

Search = Literal["grid", "random", "tpe"]

Params = dict[str, Any]
"""A point as Optuna keeps it: numbers, words, and whatever else a choice may be as JSON."""

STARTUP = 10
"""Points of an adaptive search that are drawn at random before it learns from results; Optuna's own number."""

NOT_SEARCHED = {"out": "every trial has its own", "over": "use --seeds", "methods": "use the key method"}


class ChoiceList(Section):
    """A key that takes one of these values; or, under any other name, mappings of keys and values that go together."""

    choices: list[Any] = Field(min_length=1)

    @model_validator(mode="after")
    def _each_once(self) -> "ChoiceList":
        if twice := [label for i, label in enumerate(self.labels) if label in self.labels[:i]]:
            raise ValueError(f"{twice[0]} is listed twice")
        return self

    @property
    def labels(self) -> list[Any]:
        return [c if isinstance(c, str | int | float) else json.dumps(c, ensure_ascii=False) for c in self.choices]

    @property
    def samples(self) -> list[Any]:
        return self.labels

    def suggest(self, trial: Any, key: str) -> Any:
        return trial.suggest_categorical(key, self.labels)

    def value(self, param: Any) -> Any:
        return self.choices[self.labels.index(param)]


class Range(Section):
    """A key that takes any number from `low` to `high`; whole numbers where both of them are."""

    low: int | float = Field(allow_inf_nan=False)
    high: int | float = Field(allow_inf_nan=False)
    log: bool = Field(default=False, description="each order of magnitude is as likely")

    @model_validator(mode="after")
    def _holds_something(self) -> "Range":
        if self.low >= self.high:
            raise ValueError(f"high must be above low ({self.low}), got {self.high}")
        if self.log and self.low <= 0:
            raise ValueError(f"low {self.low} has no logarithm; take a low above 0, or leave log out")
        return self

    @property
    def samples(self) -> list[Any]:
        return [self.low, self.high]

    def suggest(self, trial: Any, key: str) -> Any:
        whole = isinstance(self.low, int) and isinstance(self.high, int)
        return (trial.suggest_int if whole else trial.suggest_float)(key, self.low, self.high, log=self.log)

    def value(self, param: Any) -> Any:
        return param


@dataclass(frozen=True)
class Space:
    """The keys that a sweep varies, by their dotted names."""

    keys: dict[str, ChoiceList | Range]

    @classmethod
    def parse(cls, tree: Mapping[str, Any]) -> "Space":
        """From plain values: `{choices: […]}` (or just the list), or `{low: , high: , log: true}`; else `UserError`."""
        if not tree:
            raise UserError("space: no key to vary; give one, such as {method: {choices: [npo+nll, unilogit+nll]}}.")
        if named := secret_name(tree):
            raise UserError(f"space: {named} is a secret, and trials are called by their values; set it in the recipe.")
        return cls({key: _values(key, spec) for key, spec in tree.items()})

    def suggest(self, trial: Any) -> Params:
        """The point of an Optuna trial."""
        return {key: values.suggest(trial, key) for key, values in self.keys.items()}

    def recipe(self, base: Recipe, params: Params) -> Recipe:
        """The recipe at a point; `UserError` where these values do not go together."""
        where = "space, " + ", ".join(f"{key}={value}" for key, value in params.items())
        return with_keys(base, {key: self.keys[key].value(value) for key, value in params.items()}, where=where)

    def around(self) -> list[Params]:
        """The first value of every key, and each other choice and end of a range with the others at their first."""
        first = {key: values.samples[0] for key, values in self.keys.items()}
        others = [{**first, key: other} for key, values in self.keys.items() for other in values.samples[1:]]
        return [first, *others]

    def points(self, search: Search, trials: int | None, *, seed: int) -> list[Params | None]:
        """The points to try, in order; Optuna chooses where one is `None`. More trials begin with the same points.

        Raises `UserError` for a grid over a range, and for a number of trials missing or out of place.
        """
        if search == "grid":
            ranges = [key for key, values in self.keys.items() if isinstance(values, Range)]
            if ranges:
                raise UserError(
                    f"space: a grid needs choices, and {ranges[0]} is a range; list its values, or search at random."
                )
            if trials is not None:
                raise UserError("--trials: a grid has as many trials as combinations; leave it out.")
            every = itertools.product(*(values.samples for values in self.keys.values()))
            return [dict(zip(self.keys, values, strict=True)) for values in every]
        if trials is None or trials < 1:
            got = "which is missing" if trials is None else f"got {trials}"
            raise UserError(f"--trials must be at least 1, {got}; a search by {search} has no end of its own.")
        drawn = self._draw(trials if search == "random" else min(trials, STARTUP), seed)
        return [*drawn, *([None] * (trials - len(drawn)) if search == "tpe" else [])]

    def _draw(self, count: int, seed: int) -> list[Params]:
        """Different points at random; fewer than `count` where the space holds no more."""
        import optuna

        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
        drawn: list[Params] = []
        for _ in range(count + 1000):
            params = self.suggest(study.ask())
            if params not in drawn:
                drawn.append(params)
            if len(drawn) == count:
                break
        return drawn


def _values(key: str, spec: Any) -> ChoiceList | Range:
    if reason := NOT_SEARCHED.get(key.partition(".")[0]):
        raise UserError(f"space: {key} can't be searched; {reason}.")
    if isinstance(spec, list):
        spec = {"choices": spec}
    kind = Range if isinstance(spec, Mapping) and spec.keys() & Range.model_fields.keys() else ChoiceList
    try:
        return kind.model_validate(spec)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, (key, *first["loc"])))
        message = str(first["ctx"]["error"] if "ctx" in first and first["type"] == "value_error" else first["msg"])
        raise UserError(
            f"space: {place}: {message[:1].lower()}{message[1:]} "
            "(a key takes {choices: [a, b]} or {low: 1, high: 2, log: true})."
        ) from error
