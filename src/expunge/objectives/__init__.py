"""The objectives by name: any forget objective goes with any retain objective.

To add one: write its class in the file of its kind and name it in `FORGET` or `RETAIN`; the recipe, the command line,
`expunge methods` and the test matrix take it from there.
"""

from dataclasses import fields
from typing import Annotated, Any

from pydantic import Field

from expunge.errors import UserError, did_you_mean
from expunge.objectives.assistant import ULD, Offset, OffsetDPO, OffsetGA, OffsetNPO, ULDDistilled, Uniform
from expunge.objectives.base import Divergence, Needs, Objective, Signals
from expunge.objectives.distill import KL, UnDIAL, Unilogit
from expunge.objectives.likelihood import CEU, GA, NLL, WGA, SatImp
from expunge.objectives.preference import DPO, NPO, SimNPO
from expunge.objectives.representation import RMU, Anchor

__all__ = [
    "CEU",
    "DPO",
    "FORGET",
    "GA",
    "KL",
    "NLL",
    "NPO",
    "RETAIN",
    "RMU",
    "ULD",
    "WGA",
    "Anchor",
    "Divergence",
    "Needs",
    "Objective",
    "Offset",
    "SatImp",
    "Signals",
    "SimNPO",
    "ULDDistilled",
    "UnDIAL",
    "Uniform",
    "Unilogit",
    "describe",
    "known_name",
    "split_method",
    "written",
]

ForgetObjective = Annotated[
    GA
    | DPO
    | NPO
    | SimNPO
    | UnDIAL
    | Unilogit
    | WGA
    | SatImp
    | CEU
    | RMU
    | OffsetGA
    | OffsetDPO
    | OffsetNPO
    | ULD
    | ULDDistilled,
    Field(discriminator="name"),
]
RetainObjective = Annotated[NLL | KL | Anchor, Field(discriminator="name")]

FORGET: dict[str, type[Objective]] = {
    cls.model_fields["name"].default: cls
    for cls in (
        *(GA, DPO, NPO, SimNPO, UnDIAL, Unilogit, WGA, SatImp, CEU, RMU),
        *(OffsetGA, OffsetDPO, OffsetNPO, ULD, ULDDistilled),
    )
}
RETAIN: dict[str, type[Objective]] = {cls.model_fields["name"].default: cls for cls in (NLL, KL, Anchor)}
ALIASES = {NLL.alias: "nll", "idk": "dpo"}


def split_method(name: str) -> dict[str, Any]:
    """`"unilogit+nll"` → `{"forget": {"name": "unilogit"}, "retain": {"name": "nll"}}`; `"ga"` has no retain term.

    Raises `UserError` for an unknown name, with the nearest known one.
    """
    forget, plus, retain = (part.strip().lower() for part in name.partition("+"))
    parts: dict[str, Any] = {"forget": {"name": known_name(forget, FORGET, "forget objective")}}
    if plus and FORGET[parts["forget"]["name"]].alone:
        raise UserError(f"{name!r}: {forget} brings its own retain term; name it without +{retain}.")
    if plus:
        parts["retain"] = {"name": known_name(retain, RETAIN, "retain objective")}
    return parts


def known_name(name: str, registry: dict[str, type[Objective]], what: str) -> str:
    """The registry's own name for what may be an alias; `UserError` for an unknown one."""
    known = ALIASES.get(name, name)
    if known not in registry:
        raise UserError(f"{name!r} is not a {what}.{did_you_mean(name, registry)} Known: {', '.join(registry)}")
    return known


def written(objective: Objective) -> dict[str, Any]:
    """The objective as a recipe has it: its name and the options that were given."""
    return {"name": type(objective).model_fields["name"].default, **objective.model_dump(exclude_unset=True)}


def describe(cls: type[Objective], kind: str) -> dict[str, Any]:
    """What `expunge methods` says of an objective, read from the class itself."""
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
