"""What to do next: one command, by the answers and by who asks.

Who brought a model of their own is told of learning rate, epochs, method and rows; `finetune` is only for models that
were trained here.
"""

import shlex
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

    def command(self, directory: Path, method: str | None = None) -> str:
        """The command for the run in `directory`; `method` names the one of several that is meant."""
        if self.verb == "chat":
            unlearned = directory / method / "model" if method else directory / "model"
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
    """The entry's method, where the recipe has several and a command must say which."""
    methods = recipe.get("methods")
    if not isinstance(methods, list) or len(methods) < 2:
        return None
    labelled = next((m for m in methods if isinstance(m, Mapping) and m.get("label") == entry.method), {})
    names = [_section(labelled, part).get("name") for part in ("forget", "retain")]
    return "+".join(filter(None, names)) or entry.method


def advise(judgement: Judgement, entry: Entry, recipe: Mapping[str, Any]) -> Advice:
    """The next step for these answers about a model that this recipe made."""
    found, damage = judgement.forgotten, judgement.damage.state
    if not judgement.unlearned:
        if found.state == "yes":
            name = _section(recipe, "model").get("name")
            return Advice("Ask it yourself, in other words than the rows have:", verb="chat", model=name or "MODEL")
        none = {"method": "npo+nll" if _section(recipe, "model").get("name") else "uld_distilled"}  # it says: none
        keys = none if "methods" in recipe else {}
        return Advice("Nothing was unlearned here. Unlearn with the recommended method:", keys)
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
    return Advice("Ask it yourself, in other words than the rows have:", verb="chat")


def _never_known(recipe: Mapping[str, Any]) -> Advice:
    if _is_ours(recipe):
        taught = _section(recipe, "finetune").get("epochs") or TAUGHT[bool(_section(recipe, "model").get("name"))]
        return Advice("Teach the model longer before it forgets:", {"finetune.epochs": f"{2 * int(taught)}"})
    return Advice("Name the model that learnt these rows:", {"model": "MODEL"})


def _damaged(entry: Entry, recipe: Mapping[str, Any]) -> Advice:
    if not _has_retain(recipe):
        return Advice("Give rows that must stay; without them forgetting spreads:", {"retain": "FILE"})
    if "+" not in entry.method and entry.method in ("ga", "npo", "dpo", "simnpo", "wga", "satimp", "ceu", "undial"):
        return Advice("Use a method that trains on the rows to keep as well:", {"method": "npo+nll"})
    key, rate = _rate(entry, recipe)
    return Advice("Train more gently, with half the learning rate:", {key: f"{rate / 2:.2g}"})


def _too_little(entry: Entry, recipe: Mapping[str, Any], state: str) -> Advice:
    key, rate = _rate(entry, recipe)
    ended = str((entry.runs[0].get("stopped") or {}).get("why", ""))
    if " is under " in ended:
        return Advice(
            "Training ended because it cost too much of the rest. Take smaller steps, and more of them:",
            {key: f"{rate / 2:.2g}", "train.num_train_epochs": f"{2 * _epochs(entry, recipe):g}"},
        )
    if state == "no":
        return Advice("Train more strongly, with twice the learning rate:", {key: f"{2 * rate:.2g}"})
    epochs = "method.forget.epochs" if key.startswith("method.forget") else "train.num_train_epochs"
    return Advice("Train longer:", {epochs: f"{2 * _epochs(entry, recipe):g}"})


def _rate(entry: Entry, recipe: Mapping[str, Any]) -> tuple[str, float]:
    """The key of the learning rate and its value: an assistant has one of its own."""
    forget = _section(_method(recipe), "forget")
    if entry.method.startswith("uld") and not entry.method.startswith("uld_distilled"):
        return "method.forget.learning_rate", float(forget.get("learning_rate") or 1e-3)
    own = _section(_method(recipe), "train")
    key = "method.train.learning_rate" if own.get("learning_rate") else "train.learning_rate"
    return key, float(own.get("learning_rate") or _section(recipe, "train").get("learning_rate") or USUAL_RATE)


def _epochs(entry: Entry, recipe: Mapping[str, Any]) -> float:
    own, train = _section(_method(recipe), "train"), _section(recipe, "train")
    if entry.method == "uld":
        return float(_section(_method(recipe), "forget").get("epochs") or 10)
    return float(own.get("num_train_epochs") or train.get("num_train_epochs") or USUAL_EPOCHS)


def _is_ours(recipe: Mapping[str, Any]) -> bool:
    """Whether the model was trained here."""
    return recipe.get("finetune") is not None or bool("scratch" in _section(recipe, "model"))


def _has_retain(recipe: Mapping[str, Any]) -> bool:
    return "data" not in recipe or bool(_section(recipe, "data").get("retain"))


def _method(recipe: Mapping[str, Any]) -> Mapping[str, Any]:
    methods = recipe.get("methods")
    one = methods[0] if isinstance(methods, list) and len(methods) == 1 else recipe.get("method")
    return one if isinstance(one, Mapping) else {}


def _section(tree: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    part = tree.get(name)
    return part if isinstance(part, Mapping) else {}
