"""The objectives by name: any forget objective goes with any retain objective; a step on the weights stands alone.

To add one: write its class in the file of its kind and name it in `FORGET`, `RETAIN` or `STEPS`; the recipe, the
command line, `expunge methods` and the test matrix take it from there. An objective outside the package goes by its
import path.
"""

from collections.abc import Mapping
from dataclasses import fields
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, ValidatorFunctionWrapHandler, WrapValidator

from expunge.errors import UserError, did_you_mean
from expunge.objectives.assistant import ULD, Offset, OffsetDPO, OffsetGA, OffsetNPO, ULDDistilled, Uniform
from expunge.objectives.base import Divergence, Kept, Needs, Objective, Signals, Wanted, Way
from expunge.objectives.distill import JSD, KL, PDU, JensUn, UnDIAL, Unilogit
from expunge.objectives.likelihood import CEU, GA, NLL, WGA, SatImp
from expunge.objectives.preference import DPO, NPO, AltPO, SimNPO
from expunge.objectives.representation import RMU, Anchor
from expunge.objectives.steps import Distilled, Noise, RepSelect, Step
from expunge.system.imports import imported, is_path

__all__ = [
    "CEU",
    "DPO",
    "FORGET",
    "GA",
    "JSD",
    "KL",
    "METHODS",
    "NLL",
    "NPO",
    "PDU",
    "RETAIN",
    "RMU",
    "STEPS",
    "ULD",
    "WGA",
    "AltPO",
    "Anchor",
    "Distilled",
    "Divergence",
    "JensUn",
    "Kept",
    "Needs",
    "Noise",
    "Objective",
    "Offset",
    "RepSelect",
    "SatImp",
    "Signals",
    "SimNPO",
    "Step",
    "ULDDistilled",
    "UnDIAL",
    "Uniform",
    "Unilogit",
    "Wanted",
    "Way",
    "describe",
    "known_name",
    "objective_class",
    "split_method",
    "written",
]

W = TypeVar("W", bound=Way)


def _by_path(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
    """Validate an objective of a user's own by its own class; leave ours to `handler`."""
    if isinstance(value, Objective) and is_path(value.recipe_name()):
        return value
    if isinstance(value, Mapping) and is_path(name := value.get("name")):
        options = {key: option for key, option in value.items() if key != "name"}
        return imported(name, Objective, "objective").model_validate(options)
    return handler(value)


ForgetObjective = Annotated[
    GA
    | DPO
    | AltPO
    | NPO
    | SimNPO
    | UnDIAL
    | Unilogit
    | JensUn
    | PDU
    | WGA
    | SatImp
    | CEU
    | RMU
    | OffsetGA
    | OffsetDPO
    | OffsetNPO
    | ULD
    | ULDDistilled
    | RepSelect,
    Field(discriminator="name"),
    WrapValidator(_by_path),
]
RetainObjective = Annotated[NLL | KL | JSD | Anchor, Field(discriminator="name"), WrapValidator(_by_path)]

FORGET: dict[str, type[Objective]] = {
    cls.model_fields["name"].default: cls
    for cls in (
        *(GA, DPO, AltPO, NPO, SimNPO, UnDIAL, Unilogit, JensUn, PDU, WGA, SatImp, CEU, RMU),
        *(OffsetGA, OffsetDPO, OffsetNPO, ULD, ULDDistilled),
    )
}
STEPS: dict[str, type[Step]] = {cls.model_fields["name"].default: cls for cls in (RepSelect,)}
METHODS: dict[str, type[Way]] = {**FORGET, **STEPS}
"""The names that may stand before the plus in the name of a method."""
RETAIN: dict[str, type[Objective]] = {cls.model_fields["name"].default: cls for cls in (NLL, KL, JSD, Anchor)}
ALIASES = {NLL.alias: "nll", "idk": "dpo"}


def split_method(name: str) -> dict[str, Any]:
    """`"unilogit+nll"` → `{"forget": {"name": "unilogit"}, "retain": {"name": "nll"}}`; `"ga"` has no retain term.

    Either part may be the import path of a class of your own, `my_package.losses:Mine`.
    Raises `UserError` for an unknown name, with the nearest known one, and for a path that leads to no objective.
    """
    forget, plus, retain = (part.strip() for part in name.partition("+"))
    kind = objective_class(forget, METHODS, "forget objective")
    parts: dict[str, Any] = {"forget": {"name": kind.recipe_name()}}
    if plus and issubclass(kind, Step):
        raise UserError(f"{name!r}: {forget} is a step on the weights and has no retain term; name it alone.")
    if plus and kind.alone:
        raise UserError(f"{name!r}: {forget} brings its own retain term; name it without +{retain}.")
    if plus:
        parts["retain"] = {"name": objective_class(retain, RETAIN, "retain objective").recipe_name()}
    return parts


def objective_class(name: str, registry: Mapping[str, type[W]], what: str) -> "type[W] | type[Objective]":
    """The class behind a name in recipes, an alias or an import path; `UserError` where there is none."""
    return (
        imported(name, Objective, "objective") if is_path(name) else registry[known_name(name.lower(), registry, what)]
    )


def known_name(name: str, registry: Mapping[str, type[Way]], what: str) -> str:
    """The registry's own name for what may be an alias; `UserError` for an unknown one."""
    known = ALIASES.get(name, name)
    if known not in registry:
        path = " One of your own goes by its import path, package.module:Class." if "." in name else ""
        if registry is METHODS and name in RETAIN:
            raise UserError(f"{name!r} is a retain objective; name a forget objective before it: npo+{name}.")
        raise UserError(f"{name!r} is not a {what}.{did_you_mean(name, registry)} Known: {', '.join(registry)}.{path}")
    return known


def written(objective: Way, *, mode: Literal["json", "python"] = "python", only_set: bool = True) -> dict[str, Any]:
    """The objective as a recipe has it: its name and its options, or `only_set` those that were given."""
    options = objective.model_dump(mode=mode, exclude_unset=only_set)
    name = {"name": objective.recipe_name()}
    return {**options, **name} if "name" in options else {**name, **options}


def describe(cls: type[Way], kind: str) -> dict[str, Any]:
    """The text of `expunge methods` on an objective or a step, read from the class itself."""
    options = {k: f.default for k, f in cls.model_fields.items() if k != "name"}
    needs = cls().needs
    text = " ".join((cls.__doc__ or "").split())
    use_when = text.partition("Use ")[2].partition(" Source:")[0]
    return {
        "name": cls.model_fields["name"].default,
        "kind": kind,
        "reads": [f.name for f in fields(needs) if getattr(needs, f.name) not in (None, False)],
        "reference": needs.reference,
        "removal": cls.removal,
        "options": options,
        "use_when": use_when,
        "source": text.partition("Source: ")[2],
    }
