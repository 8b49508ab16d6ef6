"""The outcomes of attacks as a table: a line for each attack and setting, a column for each method."""

from expunge.report.comparison import Entry, ReportSection
from expunge.report.table import Table, left, right
from expunge.stress.options import AttackName
from expunge.stress.summary import Returned, of_rows

TITLE = "Attacks: does it come back?"
NOTE = (
    "Share of what the target knew, beyond what models that never knew show under the same attack: without the attack "
    "→ where it finds most, and how strong it was there."
)
ALONE = "No model that never knew was attacked beside it, so that the shares are counted from 0 and are too high."


def returned(section: ReportSection, entry: Entry) -> list[Returned]:
    """The finding of each attack on a method's result; nothing where the target was not attacked as well."""
    rows = {which: e.runs[0] if (e := section.reference(which)) else None for which in ("target", "retrained")}
    return of_rows(rows["target"], entry.runs[0], rows["retrained"]) if entry.role == "method" else []


def attack_table(section: ReportSection) -> Table | None:
    """The table of a comparison; `None` where nothing was attacked."""
    found = {entry.label: returned(section, entry) for entry in section.methods}
    found = {label: attacks for label, attacks in found.items() if attacks}
    if not found:
        return None
    kinds: dict[tuple[AttackName, str], None] = {
        (each.attack, each.setting): None for attacks in found.values() for each in attacks
    }
    lines = []
    for kind in kinds:
        of_kind = [[each for each in attacks if (each.attack, each.setting) == kind] for attacks in found.values()]
        lines.append([*kind, *(_share(each[0]) if each else "" for each in of_kind)])
    control = all(each.control for attacks in found.values() for each in attacks)
    return Table([*left("Attack", "Setting"), *right(*found)], lines, TITLE, [NOTE if control else f"{NOTE} {ALONE}"])


def _share(found: Returned) -> str:
    at = f"{found.at:g} {found.axis}" if isinstance(found.at, float | int) else found.at
    return f"{100 * found.before:.0f} → {100 * found.after:.0f} % ({at})"
