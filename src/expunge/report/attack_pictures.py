"""Pictures of attacks, one for each: how much every model knows at each strength."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, NamedTuple

from expunge.evals.glossary import show
from expunge.report import strips
from expunge.report.comparison import Entry, ReportSection, ResultRow
from expunge.report.lines import Line, Panel, lines
from expunge.report.picture import Figure
from expunge.report.stress import ATTACKED, SEEDS, attacked_run, kind_of, returned, setting_words, strength
from expunge.stress.options import ATTACKS, AttackName
from expunge.stress.outcome import Outcome
from expunge.stress.summary import outcomes

KNOWS = "how much it knows"
PANELS = 3
"""Settings that a picture has room for."""
LIKELY = "Up: it knows more. Counted is how likely it finds the right answers: 0 is not at all, 1 is certain."
COLUMNS = {"begun": "answer begun", "the worst": "whichever suits it best", "best of six": "whichever tells most"}
COLUMNED: tuple[AttackName, ...] = ("wording", "reasoning", "membership")
"""Attacks whose strengths are names."""


class Words(NamedTuple):
    """The end of a picture's title, its horizontal axis, and sentences on how to read it."""

    title: str
    axis: str
    reading: tuple[str, ...]


WORDS: dict[AttackName, Words] = {
    "relearning": Words(
        "how much it knows of the answers it was not shown",
        "training steps",
        (
            LIKELY,
            "A line that climbs: a little training brings back answers that it was not shown.",
            "Over the lines stand the rows that it was shown, and what was trained: all weights or an adapter.",
        ),
    ),
    "quantization": Words(
        "how much it knows of the forget answers",
        "bits a weight",
        (LIKELY, "Left: the model as it is. A line that climbs to the right: compressing it brings answers back."),
    ),
    "sampling": Words(
        "how much its best answer says",
        "answers drawn for each question (log scale)",
        (
            "Up: it knows more. Counted are the words of the right answer that its best answer has: 0 is none, 1 all.",
            "More answers hit more words by chance: the line of a model that never saw the rows climbs, too.",
        ),
    ),
    "wording": Words(
        "how much it knows of the forget answers",
        "",
        (
            LIKELY,
            "A column is a way of asking. Answer begun: a third of the answer is given, and the rest counts.",
            "Within a column the marks stand in the order of the key.",
        ),
    ),
    "reasoning": Words(
        "how much it knows of the forget facts",
        "",
        (
            "Up: it knows more. Counted are facts that its answers state, and how surely it picks a right answer among "
            "wrong ones, from 0 for a guess.",
            "A column is a way of asking. Through another fact: the author is described, not named.",
            "Within a column the marks stand in the order of the key.",
        ),
    ),
    "membership": Words(
        "how surely it was trained on the forget rows",
        "",
        (
            "Up: the forget rows are told from rows that no model saw. 0 is a guess, 1 always (2 AUC − 1).",
            "A column is a score by which they are told apart.",
            "Within a column the marks stand in the order of the key.",
        ),
    ),
}


@dataclass(frozen=True)
class Model:
    """A model under one attack in one setting; of retrained models there may be several. `run` has the outcomes."""

    entry: Entry
    run: ResultRow
    outcomes: tuple[Outcome, ...]

    @property
    def known(self) -> dict[float | str, list[float]]:
        """The knowledge of each model, at every strength of the first."""
        known = [{point.at: point.known for point in outcome.points} for outcome in self.outcomes]
        return {at: [each[at] for each in known if at in each] for at in known[0]}

    @property
    def mean(self) -> dict[float | str, float]:
        return {at: fmean(values) for at, values in self.known.items()}

    def says(self, at: float | str) -> str:
        """Tooltip text of its mark."""
        several, axis = len(self.outcomes) > 1, self.outcomes[0].axis
        name = self.entry.label if several else self.entry.names[self.entry.runs.index(self.run)]
        return f"{name}, {strength(at, axis)}: {KNOWS} {show('', self.mean[at])}"


def attack_pictures(section: ReportSection) -> list[Figure]:
    """A picture of each attack that was made on a method's result."""
    return [_picture(section, attack, found) for attack in ATTACKS if (found := _settings(section, attack))]


def _settings(section: ReportSection, attack: AttackName) -> dict[str, list[Model]]:
    """The models in each setting, in the order of the comparison."""
    found: dict[str, list[Model]] = {}
    for entry in section.entries:
        if (run := attacked_run(entry)) is None:
            continue
        made = [each for model in outcomes(run) for each in model if each.attack == attack]
        for setting in dict.fromkeys(each.setting for each in made):
            of_setting = tuple(each for each in made if each.setting == setting)
            found.setdefault(setting, []).append(Model(entry, run, of_setting))
    return {setting: models for setting, models in found.items() if any(m.entry.role == "method" for m in models)}


def _telling(section: ReportSection, attack: AttackName, found: Mapping[str, Sequence[Model]]) -> list[str]:
    """The settings that bring most back, as the table of attacks counts it, each at the learning rate that does."""
    shares = [each for entry in section.methods for each in returned(section, entry) if each.attack == attack]
    most = {setting: max((s.after for s in shares if s.setting == setting), default=0.0) for setting in found}
    by_most = sorted(found, key=lambda setting: -most[setting])
    first = {kind_of(setting): setting for setting in reversed(by_most)}
    chosen = [setting for setting in by_most if setting in first.values()][:PANELS]
    return [setting for setting in found if setting in chosen]


def _picture(section: ReportSection, attack: AttackName, found: Mapping[str, Sequence[Model]]) -> Figure:
    shown, words = {s: found[s] for s in _telling(section, attack, found)}, WORDS[attack]
    methods = {e.label: e.inference for e in section.methods}
    svg = _columns(attack, shown, methods) if attack in COLUMNED else _panels(attack, shown, methods)
    several = {m.entry.role: len(m.outcomes) for models in shown.values() for m in models}
    left_out = [name for setting, name in setting_words(found).items() if setting not in shown]
    reading = [
        *words.reading,
        "Grey line: the target, before unlearning." if "target" in several else "",
        _control(several.get("retrained", 0)),
        f"In {'the table' if 'target' in several else 'results.json'} only: {'; '.join(left_out)}." if left_out else "",
        SEEDS if len(section.seeds) > 1 else "",
    ]
    title = f"{ATTACKED[attack]}: {words.title}"
    alt = "; ".join(f"{kind_of(setting)}: {', '.join(map(_ends, models))}" for setting, models in shown.items())
    return Figure(attack, title, svg, f"{title}. {alt}.", [r for r in reading if r])


def _control(models: int) -> str:
    if not models:
        return "No model that never saw the rows was attacked: how much such a model would show is not known."
    which = "the retrained model" if models == 1 else f"the mean of {models} retrained models (band: lowest to highest)"
    return (
        f"Dotted black line: {which} under the same attack. A method above it knows more than a model that never knew."
    )


def _ends(model: Model) -> str:
    """The model's first value, and its highest where that is another."""
    (first, start), *_ = model.mean.items()
    at, most = max(model.mean.items(), key=lambda point: point[1])
    more = "" if at == first else f", {show('', most)} {strength(at, model.outcomes[0].axis)}"
    return f"{model.entry.label} {show('', start)}{more}"


def _columns(attack: AttackName, shown: Mapping[str, Sequence[Model]], methods: Mapping[str, bool]) -> str:
    """A column for each way of asking or scoring; a dot for each method, lines for the references."""
    columns = []
    for setting, models in shown.items():
        group = kind_of(setting) if len(shown) > 1 else ""
        for at in models[0].mean:
            cells = {
                m.entry.label: [strips.Estimate(m.mean[at], min(m.known[at]), max(m.known[at]), m.says(at))]
                for m in models
                if at in m.mean
            }
            columns.append(strips.Split(group, COLUMNS.get(str(at), str(at)), cells))
    return strips.strips(columns, name=attack, panels=[f"{KNOWS} (0 to 1)"], methods=methods)


def _panels(attack: AttackName, shown: Mapping[str, Sequence[Model]], methods: Mapping[str, bool]) -> str:
    """A panel for each setting."""
    panels, ticks = [], {}
    for setting, models in shown.items():
        title = f"shown {kind_of(setting)}".replace(", ", "\n") if attack == "relearning" else ""
        panels.append(Panel(title, [_line(attack, model, methods) for model in models]))
        ticks |= {_place(attack, at): f"{at:g}" for model in models for at in model.known}
    if attack == "relearning":
        ticks = {place: text for place, text in ticks.items() if place % 10 == 0 or place == max(ticks)}
    return lines(panels, name=attack, x=WORDS[attack].axis, y=KNOWS, ticks=ticks, methods=list(methods))


def _line(attack: AttackName, model: Model, methods: Mapping[str, bool]) -> Line:
    entry = model.entry
    points = tuple((_place(attack, at), known, model.says(at)) for at, known in model.mean.items())
    band = tuple((min(v), max(v)) for v in model.known.values()) if len(model.outcomes) > 1 else ()
    return Line(entry.label, points, entry.role, entry.inference, band)


def _place(attack: AttackName, at: Any) -> float:
    """Where a strength lies: steps as they are, answers on a log scale, and bits, too, with the fewest at the right."""
    return float(at) if attack == "relearning" else math.log2(at) * (-1 if attack == "quantization" else 1)
