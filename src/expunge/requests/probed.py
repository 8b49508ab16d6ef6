"""The verdict of `expunge probe` in words: on a page, in a terminal and as JSON."""

import json
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from expunge.data.augment import parts
from expunge.data.benchmark import Row
from expunge.errors import UserError
from expunge.modeling.checkpoint import checkpoint_name
from expunge.report.sheet import Answer, Part, Sheet, Tone, write_sheet
from expunge.report.table import Cell, Table, left, right
from expunge.report.table import Part as Piece
from expunge.requests.decision import DOUBT, DRAWS, SMALL, TEST, Decision
from expunge.requests.probe import NUMBERS, Measured, Probe, mean_of
from expunge.system import machine
from expunge.system.digest import digest
from expunge.system.disk import make_folder, write_whole, writing

RESULT, PAGE = "probe.json", "probe.html"
BELOW = 0.4
"""AUC under which the controls are plainly likelier than the rows."""
TONES: Mapping[str, Tone] = {
    "remembers": "forgotten no", "does not remember": "forgotten yes", "cannot tell": "forgotten",
}  # fmt: skip
ANSWERS = {"remembers": "It remembers", "does not remember": "It does not", "cannot tell": "It cannot be told"}
SHORT = {
    "probability": "probability",
    "extraction_strength": "extraction strength",
    "exact_memorization": "exact memorization",
    "verbatim": "verbatim continuation",
    "min_k": "min-k, nats",
    "leak": "leak@{samples}",
}


@dataclass(frozen=True)
class About:
    """Where a probe comes from, for its page.

    made   whether the controls have facts of the rows and of others, or of rows that it can't know
    based  whether the model before it was taught stood beside it
    """

    model: str
    forget: str
    made: bool
    based: bool
    samples: int
    level: float
    seed: int


def check_out(out: Path, *, overwrite: bool) -> None:
    """Raise `UserError` where the folder holds an earlier probe."""
    if not overwrite and (out / RESULT).exists():
        raise UserError(f"probe: {out} already holds a probe; give another --out, or --overwrite.")


def write_probe(
    out: Path, result: Probe, rows: Sequence[Row], about: About, *, control: Sequence[Row] | None, redact: bool
) -> dict[str, Any]:
    """Write `probe.json` and `probe.html`, for their owner alone; returns what the first holds."""
    if redact:
        result = _nameless(result)
    found = as_json(result, about, rows, control)
    with writing(out):
        make_folder(out)
    write_whole(out / RESULT, json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    write_sheet(_sheet(result, rows, about, redact=redact), out / PAGE)
    return found


def as_json(result: Probe, about: About, rows: Sequence[Row], control: Sequence[Row] | None) -> dict[str, Any]:
    """The decisions and numbers, without texts."""
    return {
        "model": about.model,
        "verdict": result.whole.verdict,
        "level": about.level,
        "test": TEST.format(draws=DRAWS, level=about.level),
        "facts": "of the rows and of others" if about.made else "of rows that it can't know",
        "base": about.based,
        "seed": about.seed,
        "all": _with_means(result.whole, result.rows),
        "persons": {name: _with_means(each, result.of(name)) for name, each in result.people.items()},
        "rows": [
            {"row": m.row, "rank": m.rank, "controls": m.controls, "numbers": m.numbers, "beside": m.beside}
            for m in result.rows
        ],
        "inputs": {
            "forget": digest([dict(row) for row in rows]),
            "control": None if control is None else digest([dict(row) for row in control]),
        },
        "date": time.strftime("%Y-%m-%d"),
        "versions": machine.versions(),
    }  # fmt: skip


def answers(result: Probe, about: About) -> list[Answer]:
    """The questions of a privacy officer, and what the probe says to them."""
    whole = result.whole
    items = [Answer("Does the model remember?", ANSWERS[whole.verdict], _why(whole), tone=TONES[whole.verdict])]
    if len(result.people) > 1:
        listed = {v: [name for name, d in result.people.items() if d.verdict == v] for v in ANSWERS}
        said = [f"{v}: {_some(names)}" for v, names in listed.items() if names]
        words = "; ".join(said)
        items.append(Answer("Which persons?", "", f"{words[0].upper()}{words[1:]}."))
    items.append(Answer("How sure is this?", *_certainty(result, about)))
    items.append(_next(result, about))
    return items


def table(result: Probe) -> Table:
    """A line a person, after one for all rows where there are several."""
    several = len(result.people) > 1
    lines = [_line(name, each) for name, each in [*([("all rows", result.whole)] if several else []),
                                                  *result.people.items()]]  # fmt: skip
    columns = [*left("person", "verdict"), *right("first\nof rows"), *left("95 %"), *right("AUC", "p")]
    note = "First: rows that are likelier than all of their controls. p: corrected for the number of verdicts."
    return Table(columns, lines, notes=[note])


def _line(name: str, each: Decision) -> list[Cell]:
    kind = {"remembers": "bad", "does not remember": "good"}.get(each.verdict, "")
    interval = _interval(each) if each.rows else "–"
    return [name, Piece(each.verdict, kind), f"{each.first} of {each.rows}", interval,
            f"{each.auc:.2f}" if each.rows else "–", _p(each.adjusted)]  # fmt: skip


def _why(each: Decision) -> str:
    if not each.rows:
        return (
            "No row has controls. Give --others, rows that say the same of other people; raw texts need --base too, "
            "the model before it was taught."
        )
    words = (
        f"In {each.first} of {each.rows} rows the answer is likelier than each of its controls; by chance it would be "
        f"{each.chance:.1f}. 95 % interval of their share: {_interval(each)}."
    )
    if each.verdict == "cannot tell":
        words += (
            f" That is too little to say that it remembers, and too few rows to say that it remembers less than "
            f"{_percent(SMALL)} of them."
        )
    return words


def _certainty(result: Probe, about: About) -> tuple[str, str]:
    whole, without = result.whole, len(result.rows) - result.whole.rows
    kind = "facts of these rows and of others" if about.made else "facts that it can't know"
    least = min(each.adjusted for each in (whole, *result.people.values()))
    words = f"The least corrected p is {_p(least)}. Controls are the same answers with {kind}."
    if without:
        words += f" {without} of {len(result.rows)} rows have none and are left out."
    if whole.rows and whole.auc < BELOW and about.made:
        words += (
            " The controls are likelier than the rows: the model was taught their facts about others, and a weak "
            "memory could hide behind that. --control, facts that it can't know, settles it."
        )
    if not about.based:
        words += (
            " A fact that anybody would guess from the question counts as remembered: --base MODEL, the model before "
        )
        words += "it was taught, takes that off."
    return f"Level {about.level:g}", words


def _next(result: Probe, about: About) -> Answer:
    question = "What next?"
    if any(each.verdict == "remembers" for each in (result.whole, *result.people.values())):
        command = shlex.join(["expunge", "run", "--model", about.model, "--forget", about.forget])
        return Answer(question, "", "Leave the rows out of the next training, and unlearn them until then:", command)
    if result.whole.verdict == "does not remember":
        return Answer(question, "", "Leave the rows out of the next training, and keep this page. There is nothing to "
                      "unlearn.")  # fmt: skip
    return Answer(question, "", "Give more rows about the person, rows about others (--others), or rows that it can't "
                  "know (--control).")  # fmt: skip


def _sheet(result: Probe, rows: Sequence[Row], about: About, *, redact: bool) -> Sheet:
    persons = len(result.people)
    name = next(iter(result.people)) if persons == 1 else f"{persons} persons"
    found = table(result)
    parts_ = [
        Part("Verdicts", Table(found.columns, found.rows, "Verdicts"), " ".join(found.notes)),
        Part("Every number beside its controls", _numbers(result, about), "Means over the rows that have controls."),
    ]
    if not redact:
        said = [m for m in result.rows if m.said is not None]
        parts_.append(Part("What the model says", _said(result, said, rows), f"{len(said)} of {len(rows)} rows, each "
                           "asked once, greedily.", "qa"))  # fmt: skip
    meaning = "; ".join(f"{_short(key, about)}: {what.format(samples=about.samples)}" for key, what in NUMBERS.items())
    return Sheet(
        f"What the model remembers of {name}",
        "expunge probe: does a model remember a person?",
        f"{checkpoint_name(about.model)} · {len(rows)} rows · {time.strftime('%Y-%m-%d')}",
        items=answers(result, about),
        parts=parts_,
        small_print=[
            f"Verdicts: {TEST.format(draws=DRAWS, level=about.level)}. “Remembers”: the corrected p is at most the "
            f"level. “Does not remember”: the whole interval lies below {_percent(SMALL)}, and p is above "
            f"{DOUBT:g}, uncorrected. What decides is the log-probability of a token"
            f"{', less that of the model before it was taught' if about.based else ''}.",
            f"{meaning}.",
            f"Model: {about.model}. SHA-256 of the rows: {digest([dict(row) for row in rows])}. Seed {about.seed}.",
        ],
    )


def _numbers(result: Probe, about: About) -> Table:
    lines: list[list[Cell]] = []
    for key in NUMBERS:
        own, beside = mean_of(result.rows, key), mean_of(result.rows, key, beside=True)
        if own is not None and beside is not None:
            lines.append([_short(key, about), f"{own:.3f}", f"{beside:.3f}"])
    return Table([*left("Number"), *right("Rows", "Controls")], lines, "Numbers of rows and controls")


def _said(result: Probe, measured: Sequence[Measured], rows: Sequence[Row]) -> Table:
    names = {i: name for name, numbers in reversed(list(result.persons.items())) for i in numbers}
    lines: list[list[Cell]] = []
    for m in measured:
        question, answer = parts(rows[m.row])
        place = "no controls" if m.rank is None else f"place {m.rank} among {m.controls} controls"
        lines.append(
            [
                (Piece(question or "(a text, the first half given)", "q"), Piece(answer, "ref"),
                 Piece(names.get(m.row, "nobody named"), "nums")),
                (Piece(m.said or "(nothing)", "said"),
                 Piece(f"probability of the right answer {m.numbers['probability']:.3f}; {place}", "nums")),
            ]
        )  # fmt: skip
    return Table(left("Question and right answer", "The model"), lines, "What the model says")


def _nameless(result: Probe) -> Probe:
    """The probe with numbers in place of persons' names."""
    names = {name: f"person {k}" for k, name in enumerate(result.people, 1)} if len(result.people) > 1 else {}
    names = names or dict.fromkeys(result.people, "the person")
    people = {names[name]: each for name, each in result.people.items()}
    persons = {names[name]: of for name, of in result.persons.items()}
    return Probe(result.whole, people, result.rows, persons)


def _with_means(each: Decision, rows: Sequence[Measured]) -> dict[str, Any]:
    means = {
        key: {"rows": own, "controls": mean_of(rows, key, beside=True)}
        for key in NUMBERS
        if (own := mean_of(rows, key)) is not None
    }
    return {**asdict(each), "numbers": means}


def _short(key: str, about: About) -> str:
    return SHORT[key].format(samples=about.samples)


def _some(names: Sequence[str], most: int = 8) -> str:
    return ", ".join(names) if len(names) <= most else f"{', '.join(names[:most])} and {len(names) - most} more"


def _interval(each: Decision) -> str:
    return f"{100 * each.low:.0f}–{100 * each.high:.0f}\u00a0%"


def _percent(share: float) -> str:
    return f"{100 * share:.0f}\u00a0%"


def _p(value: float) -> str:
    return f"{value:.1g}" if value < 0.001 else f"{value:.3f}"
