"""The outcomes of attacks as a table: a line for each attack and setting, a column for each method."""

import re
from collections.abc import Iterable

from expunge.evals.glossary import MISSING
from expunge.report.comparison import Entry, ReportSection, ResultRow
from expunge.report.table import Cell, Line, Part, Table, left, right
from expunge.stress.options import AttackName
from expunge.stress.summary import Returned, of_rows

TITLE = "Attacks: does it come back?"
NOTE = (
    "0 %: under the same attack the model shows no more than a model that never saw the rows. 100 %: it shows all that "
    "the target does. Left of the arrow without the attack, right of it where the attack finds most. Bold: the attack "
    "that finds most in this model."
)
MEMBERSHIP = "Of membership inference: left of the arrow the mean of six scores, right of it the one that tells most."
ALONE = "No model that never saw the rows was attacked beside it, so that the shares are counted from 0 and too high."
SEEDS = "The first seed that was attacked; the other seeds are in results.json."

ATTACKED: dict[AttackName, str] = {
    "relearning": "Trained a little on other rows",
    "quantization": "Compressed to few bits",
    "sampling": "Asked again and again",
    "wording": "Asked in other words",
    "reasoning": "Asked in a roundabout way",
    "membership": "Asked which rows it was trained on",
}
"""A model under attack, at the beginning of a sentence."""
SETTINGS = {
    "GGUF": "as in GGUF files",
    "temperature 1": "answers drawn at random (temperature 1)",
    "worst of each row": "or with a third of the answer given",
    "greedy answers": "facts that its answers state",
    "right among wrong": "the right answer picked among wrong ones",
    "rows that no model saw": "membership inference, six scores",
}
WAYS = {
    "begun": "with the answer begun",
    "the worst": "in the wording that suits it best",
    "mean of six": "in the mean of six scores",
    "best of six": "by whichever of six scores tells most",
}
"""Names of strengths, as they end a sentence; others do as they are."""
UNITS = {"steps": "after {} steps", "bits a weight": "at {} bits", "answers": "in {} answers"}
RATE = re.compile(r", (\S+ / width)$")


def attacked_run(entry: Entry | None) -> ResultRow | None:
    """The first run of a model that was attacked."""
    return next((run for run in entry.runs if run.get("stress", {}).get("models")), None) if entry else None


def returned(section: ReportSection, entry: Entry) -> list[Returned]:
    """The finding of each attack on a method's result; nothing where the target was not attacked as well."""
    rows = [attacked_run(section.reference("target")), attacked_run(section.reference("retrained"))]
    run = attacked_run(entry)
    return of_rows(rows[0], run, rows[1]) if run is not None and entry.role == "method" else []


def attack_table(section: ReportSection) -> Table | None:
    """The table of a comparison; `None` where nothing was attacked."""
    found = {entry.label: returned(section, entry) for entry in section.methods}
    found = {label: attacks for label, attacks in found.items() if attacks}
    if not found:
        return None
    kinds: dict[tuple[AttackName, str], None] = {
        (each.attack, each.setting): None for attacks in found.values() for each in attacks
    }
    names = setting_words(setting for _, setting in kinds)
    lines = []
    for attack, setting in kinds:
        cells: list[Cell] = [(ATTACKED[attack], Part(names[setting], "spread"))]
        for attacks in found.values():
            each = next((each for each in attacks if (each.attack, each.setting) == (attack, setting)), None)
            cells.append(_share(each, most=each is max(attacks, key=lambda other: other.after)) if each else MISSING)
        lines.append(Line(cells))
    control = all(each.control for attacks in found.values() for each in attacks)
    notes = [
        NOTE,
        *([MEMBERSHIP] if any(attack == "membership" for attack, _ in kinds) else []),
        *([] if control else [ALONE]),
        *([SEEDS] if len(section.seeds) > 1 else []),
    ]
    return Table([*left("Attack"), *right(*found)], lines, TITLE, [" ".join(notes)])


def setting_words(settings: Iterable[str]) -> dict[str, str]:
    """The settings' names; a learning rate stands only where it tells two of them apart."""
    whole = list(dict.fromkeys(settings))
    kinds = [kind_of(setting) for setting in whole]
    names = {}
    for setting, kind in zip(whole, kinds, strict=True):
        rate = RATE.search(setting)
        names[setting] = f"{kind}, learning rate {rate[1]}" if rate and kinds.count(kind) > 1 else kind
    return names


def kind_of(setting: str) -> str:
    """The name of a setting without its learning rate."""
    kind = RATE.sub("", setting)
    return SETTINGS.get(kind, kind.replace(", LoRA", ", adapter (LoRA)"))


def strength(at: float | str, axis: str) -> str:
    """The strength of an attack at the end of a sentence."""
    return WAYS.get(at, at) if isinstance(at, str) else UNITS.get(axis, f"at {{}} {axis}").format(f"{at:g}")


def _share(found: Returned, *, most: bool) -> Cell:
    before, after = round(100 * found.before), round(100 * found.after)
    where = strength(found.at, found.axis) if after > before else "no more than without"
    return (Part(f"{before} → {after} %", "share most" if most else "share"), Part(where, "spread"))
