"""The next step: one command, by the answers and by who asks.

Who brought a model of their own is told of learning rate, epochs, method and rows; `finetune` is only for models that
were trained here.
"""

import math
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from expunge.report.comparison import Entry
from expunge.report.judgement import Judgement

USUAL_RATE, USUAL_EPOCHS = 1e-5, 5
"""Defaults of `train.learning_rate` and `train.num_train_epochs`."""
TAUGHT = {True: 5, False: 30}
"""Default epochs of `finetune`, of a named model and of one from nothing."""


@dataclass(frozen=True)
class Advice:
    """Words, and the command: a run of the same recipe with other `keys`, or a chat with a model."""

    words: str
    keys: Mapping[str, str] = field(default_factory=dict)
    verb: Literal["run", "chat"] = "run"
    model: str | None = None

    def command(self, directory: Path, method: str | None = None, *, folder: str | None = None) -> str:
        """The command for the run in `directory`; `method` is the one of several that is meant, in its `folder`."""
        if self.verb == "chat":
            unlearned = directory / (folder or method) / "model" if method else directory / "model"
            return shlex.join(["expunge", "chat", self.model or str(unlearned)])
        keys = {**({"method": method} if method and "method" not in self.keys else {}), **self.keys}
        words = ["expunge", "run", str(directory / "recipe.yaml")]
        words += [word for key, value in keys.items() for word in (f"--{key}", value)]
        return shlex.join([*words, "--out", f"{directory}-next"])


def recipe_of(directory: Path) -> dict[str, Any]:
    """The recipe as it stands in a run directory; nothing where none can be read."""
    try:
        tree = yaml.safe_load((directory / "recipe.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError, RecursionError):
        return {}
    return tree if isinstance(tree, dict) else {}


def method_meant(entry: Entry, recipe: Mapping[str, Any]) -> str | None:
    """The entry's method with its settings, where the recipe has several and a command must say which."""
    if _alone(recipe):
        return None
    method = dict(_method(entry, recipe))
    parts = {part: _section(method, part) for part in ("forget", "retain") if part in method}
    if all(set(part) == {"name"} for part in parts.values()) and not set(method) - {*parts, "label"}:
        return _named(method) or entry.method
    teacher = _section(method, "forget").get("teacher")
    # A teacher in the same recipe is left out by the command.
    if teacher and any(teacher in (m.get("label"), _named(m)) for m in _sections(recipe)):
        method["forget"] = {**method["forget"], "teacher": str(entry.directory / str(teacher))}
    return yaml.safe_dump(method, default_flow_style=True, sort_keys=False, width=sys.maxsize).strip()


def advise(judgement: Judgement, entry: Entry, recipe: Mapping[str, Any]) -> Advice:
    """The next step for these answers about a model that this recipe made."""
    found, damage, name = judgement.forgotten, judgement.damage.state, _section(recipe, "model").get("name")
    ask = "Ask it yourself, in other words than the rows have:"
    if not judgement.unlearned:
        if found.state == "yes":
            return Advice(ask, verb="chat", model=str(name or "MODEL"))
        # A recipe whose list of methods is empty wants none, and no recommended one either.
        keys = {"method": "npo+nll" if name else "uld_distilled"} if "methods" in recipe else {}
        return Advice("Nothing was unlearned here. Unlearn with the recommended method:", keys)
    if (given := entry.runs[0].get("checkpoint")) is not None:  # which no method of this recipe made
        return Advice(ask, verb="chat", model=str(given))
    if found.why == "never known":
        return _never_known(recipe)
    if damage in ("much", "most") or found.why == "broken text":
        return _damaged(entry, recipe)
    if judgement.removal == "inference":
        method = "uld_distilled" if _has_retain(recipe) else "undial"
        return Advice("To remove it from the weights too, train with a method that changes them:", {"method": method})
    if found.why == "how low is not known":
        return Advice(
            "Name a model that never saw the forget rows, so that there is something to compare with:",
            {"retrained": "MODEL"},
        )
    if found.state in ("no", "partly"):
        return _too_little(entry, recipe, found.state)
    if judgement.certainty.seeds < 3 and _is_ours(recipe):
        return Advice("Repeat it with other seeds, to see how much of this is chance:", {"seeds": "3"})
    return Advice(ask, verb="chat")


def _never_known(recipe: Mapping[str, Any]) -> Advice:
    if _is_ours(recipe):
        usual = TAUGHT[bool(_section(recipe, "model").get("name"))]
        taught = _number(_section(recipe, "finetune").get("epochs"), usual)
        return Advice("Teach the model longer before it forgets:", {"finetune.epochs": f"{2 * taught:.0f}"})
    return Advice("Name the model that learnt these rows:", {"model": "MODEL"})


def _damaged(entry: Entry, recipe: Mapping[str, Any]) -> Advice:
    if not _has_retain(recipe):
        return Advice("Give rows of your own that must stay, near to what is forgotten:", {"retain": "FILE"})
    if "+" not in entry.method and entry.method in ("ga", "npo", "dpo", "simnpo", "wga", "satimp", "ceu", "undial"):
        return Advice("Use a method that trains on the rows to keep as well:", {"method": "npo+nll"})
    if _is_step(entry, recipe):
        return Advice("Go no further than the rest allows:", {"evaluate.utility_budget": "0.95"})
    key, rate = _rate(entry, recipe)
    return Advice("Train more gently, with half the learning rate:", {key: f"{rate / 2:.2g}"})


def _too_little(entry: Entry, recipe: Mapping[str, Any], state: str) -> Advice:
    ended = str((entry.runs[0].get("stopped") or {}).get("why", ""))
    if _is_step(entry, recipe) and " is under " in ended:
        return Advice(
            "Forgetting more cost too much of the rest. Use a method that trains on the rows to keep:",
            {"method": "npo+nll"},
        )
    if _is_step(entry, recipe):
        from expunge.objectives import RepSelect  # torch comes with it, which a page needs for nothing else

        far = _number(_section(_method(entry, recipe), "forget").get("distance"), RepSelect().distance)
        return Advice("Go twice as far:", {"method.forget.distance": f"{2 * far:.2g}"})
    (key, rate), (length, epochs) = _rate(entry, recipe), _epochs(entry, recipe)
    if " is under " in ended:
        return Advice(
            "Forgetting more cost too much of the rest. Take smaller steps, and more of them:",
            {key: f"{rate / 2:.2g}", length: f"{2 * epochs:g}"},
        )
    if state == "no":
        return Advice("Train more strongly, with twice the learning rate:", {key: f"{2 * rate:.2g}"})
    return Advice("Train longer:", {length: f"{2 * epochs:g}"})


def _is_step(entry: Entry, recipe: Mapping[str, Any]) -> bool:
    from expunge.objectives import STEPS

    return (_named(_method(entry, recipe)) or entry.method) in STEPS


def _rate(entry: Entry, recipe: Mapping[str, Any]) -> tuple[str, float]:
    """The key of the learning rate and its value."""
    return _training(entry, recipe, ("learning_rate", "learning_rate"), usual=USUAL_RATE, assistant=1e-3)


def _epochs(entry: Entry, recipe: Mapping[str, Any]) -> tuple[str, float]:
    """The key of the number of epochs and its value."""
    return _training(entry, recipe, ("num_train_epochs", "epochs"), usual=USUAL_EPOCHS, assistant=10)


def _training(
    entry: Entry, recipe: Mapping[str, Any], names: tuple[str, str], *, usual: float, assistant: float
) -> tuple[str, float]:
    """A training key and its value: the assistant's, the method's own, or the recipe's.

    `names` are what it is called in `train` and by an assistant, whose default is `assistant`.
    """
    method = _method(entry, recipe)
    if (_named(method) or entry.method).partition("+")[0] == "uld":
        return f"method.forget.{names[1]}", _number(_section(method, "forget").get(names[1]), assistant)
    own, train = _section(method, "train").get(names[0]), _section(recipe, "train").get(names[0])
    key = f"method.train.{names[0]}" if own is not None else f"train.{names[0]}"
    return key, _number(own, _number(train, usual))


def _number(value: Any, usual: float) -> float:
    """The value as a number above 0; `usual` where it is none, since a recipe is read as it stands."""
    try:
        found = float(value)
    except (TypeError, ValueError):
        return usual
    return found if 0 < found < math.inf else usual


def _is_ours(recipe: Mapping[str, Any]) -> bool:
    """Whether the model was trained here."""
    return recipe.get("finetune") is not None or bool("scratch" in _section(recipe, "model"))


def _has_retain(recipe: Mapping[str, Any]) -> bool:
    return "data" not in recipe or bool(_section(recipe, "data").get("retain"))


def _alone(recipe: Mapping[str, Any]) -> bool:
    """Whether the recipe has one method at most, whose keys the command line reaches."""
    methods = recipe.get("methods")
    return not isinstance(methods, list) or len(methods) < 2


def _method(entry: Entry, recipe: Mapping[str, Any]) -> Mapping[str, Any]:
    """The section of the entry's method, of one or of several."""
    sections = _sections(recipe)
    known = (m for m in sections if entry.method in (m.get("label"), _named(m), f"{_named(m)}-undo"))
    return next(known, sections[0] if len(sections) == 1 else {})


def _sections(recipe: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The recipe's methods."""
    methods = recipe.get("methods")
    return [m for m in (methods if isinstance(methods, list) else [recipe.get("method")]) if isinstance(m, Mapping)]


def _named(method: Mapping[str, Any]) -> str:
    """A method by its objectives, `npo+nll`; empty where they have no name."""
    return "+".join(str(name) for part in ("forget", "retain") if (name := _section(method, part).get("name")))


def _section(tree: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    part = tree.get(name)
    return part if isinstance(part, Mapping) else {}
