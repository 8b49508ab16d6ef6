"""The commands for a request to be forgotten. Heavy modules are imported inside."""

import argparse
import json
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from expunge.cli.commands import refuse
from expunge.cli.terminal import print_answers, print_table
from expunge.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from expunge.requests.ledger import Ledger, Request


def find(args: argparse.Namespace, _overrides: list[tuple[str, str]]) -> None:
    from expunge.data.files import local_path
    from expunge.requests.find import find
    from expunge.requests.found import check_out, summary, write_found
    from expunge.requests.people import read_people
    from expunge.requests.sources import search_in

    out = local_path(args.out, "out")
    check_out(out, overwrite=args.overwrite)
    people = read_people(args.who)
    records = search_in(args.data, but=out)
    found = find(people, records, least=args.least)
    files = write_found(out, people, records, found, least=args.least)
    print_table(summary(people, found), as_json=args.json)
    if not args.json:
        print(f"{len(records):,} records searched; written: {', '.join(map(str, files))}")


def probe(args: argparse.Namespace, _overrides: list[tuple[str, str]]) -> int:
    from expunge.data.files import local_path
    from expunge.data.formats import read_rows
    from expunge.modeling.checkpoint import checkpoint_name, whereabouts
    from expunge.modeling.loading import load
    from expunge.requests.persons import persons_in
    from expunge.requests.probe import probe
    from expunge.requests.probed import About, answers, check_out, table, write_probe

    for name in filter(None, (args.model, args.base)):
        whereabouts(name)
    if args.who is not None and args.person is not None:
        raise UserError("probe: --who and --person both say whose rows these are; give one.")
    if args.control is not None:
        refuse(args, "others", when="with --control")
    out = local_path(args.out or f"runs/probe-{checkpoint_name(args.model)}", "out")
    check_out(out, overwrite=args.overwrite)
    rows, persons = persons_in(args.forget, who=args.who, column=args.person)
    control = None if args.control is None else read_rows(args.control)
    others = [row for source in args.others or () for row in read_rows(source)]
    result = probe(
        *load(args.model),
        rows,
        persons=persons,
        control=control,
        others=others,
        base=None if args.base is None else load(args.base),
        most=args.controls,
        samples=args.samples,
        level=args.level,
        seed=args.seed,
    )
    made, based = control is None, args.base is not None
    about = About(args.model, args.forget, made, based, args.samples, args.level, args.seed)
    found = write_probe(out, result, rows, about, control=control, redact=args.redact)
    if args.json:
        print(json.dumps(found, indent=1, ensure_ascii=False))
    else:
        print_answers(answers(result, about))
        print_table(table(result))
        print(f"numbers and page: {out}/  (open {out}/probe.html)")
    verdicts = {each.verdict for each in (result.whole, *result.people.values())}
    unwanted = {"remembers", "cannot tell"} if args.fail_if == "not-cleared" else {args.fail_if}
    return 3 if verdicts & unwanted else 0


def evidence(args: argparse.Namespace, _overrides: list[tuple[str, str]]) -> None:
    if args.what[0] == "verify" and len(args.what) == 2:
        refuse(args, "out", "method", "reference", "received", when="with verify")
        _verify(args)
        return
    if len(args.what) > 1:
        raise UserError(f"evidence takes one run, or verify and a folder; got {' '.join(args.what)}.")
    refuse(args, "data", "model", "json", when="without verify")
    if args.out is None:
        raise UserError("evidence: give a new folder with --out.")
    _check_day(args.received)
    from expunge.requests.evidence import write

    write(
        Path(args.what[0]),
        args.out,
        key=args.key,
        method=args.method,
        reference=args.reference,
        received=args.received,
    )
    unsigned = "" if args.key else "; it is not signed, so anybody can change it: expunge keys, then --key FILE"
    print(f"evidence: {args.out / 'index.html'}{unsigned}")


def _check_day(day: str | None) -> None:
    from datetime import date

    try:
        if day is not None:
            date.fromisoformat(day)
    except ValueError:
        raise UserError(f"--received must be a day such as 2026-11-28, got {day}.") from None


def request(args: argparse.Namespace, overrides: list[tuple[str, str]]) -> None:
    own = {
        "add": ("who", "forget", "reference", "received"),
        "run": ("model", "data", "allow", "retrain", "least", "key"),
        "status": ("json",),
        "check": ("json",),
        "show": ("json",),
    }
    others = {name for names in own.values() for name in names} - {*own[args.action]}
    when = f"with request {args.action}"
    refuse(args, *sorted(others), when=when, overrides=[] if args.action == "run" else overrides)
    if args.action in ("check", "show") and args.what is None:
        raise UserError(f"request {args.action}: name the {'model' if args.action == 'check' else 'request'}.")
    if args.action in ("add", "status") and args.what is not None:
        raise UserError(f"request {args.action} takes options alone, got {args.what}.")
    _check_day(args.received)
    what = str(args.what)
    from expunge.requests.ledger import Ledger

    with closing(Ledger(args.folder or Path("requests"), args.ledger)) as ledger:
        match args.action:
            case "add":
                from expunge.requests.intake import add

                added = add(ledger, who=args.who, forget=args.forget, reference=args.reference, received=args.received)
                print(f"{added.reference}: {ledger.place(added)}")
            case "run":
                _run(args, overrides, ledger)
            case "status":
                _status(args, ledger)
            case "check":
                from expunge.report.table import Table
                from expunge.requests.handling import check

                found = [{"request": name, "verdict": verdict} for name, verdict in check(ledger, what).items()]
                table = Table.of(found, {"request": "request", "verdict": "verdict"}, title=what)
                print_table(table, as_json=args.json, frame="cells")
            case "show":
                _show(args, ledger)


def _status(args: argparse.Namespace, ledger: "Ledger") -> None:
    from expunge.report.table import Table
    from expunge.requests.ledger import as_json

    rows = [{**as_json(each), "state": _state_of(ledger, each)} for each in ledger.all()]
    cells = {"request": "reference", "received": _word("received"), "state": "state", "rows": _word("rows"),
             "remedy": _word("remedy"), "why": _word("why")}  # fmt: skip
    print_table(Table.of(rows, cells, title="requests"), as_json=args.json, frame="cells")


def _word(key: str) -> Callable[[Mapping[str, Any]], str]:
    return lambda row: "" if row[key] is None else str(row[key])


def _show(args: argparse.Namespace, ledger: "Ledger") -> None:
    from expunge.report.table import Table
    from expunge.requests.ledger import as_json

    shown = ledger.get(str(args.what))
    events = ledger.events(shown)
    if args.json:
        print(json.dumps(as_json(shown, events), indent=1, ensure_ascii=False))
        return
    title = f"{shown.reference}: {_state_of(ledger, shown)}; {ledger.place(shown)}"
    cells = {"when": "at", "who": _word("by"), "what": "what"}
    print_table(Table.of([asdict(event) for event in events], cells, title=title), frame="cells")


def _state_of(ledger: "Ledger", request: "Request") -> str:
    """The state in a word: of one that was begun, whether anybody is at work on it."""
    return "interrupted" if request.state == "running" and not ledger.is_held(request) else request.state


def _run(args: argparse.Namespace, overrides: list[tuple[str, str]], ledger: "Ledger") -> None:
    from expunge.requests.find import TAKEN
    from expunge.requests.handling import Means, handle
    from expunge.requests.ledger import OPEN
    from expunge.requests.remedies import REMEDIES, USUAL

    allowed = [word.strip() for word in args.allow.split(",")] if args.allow else list(USUAL)
    if wrong := next((word for word in allowed if word not in REMEDIES), None):
        raise UserError(
            f"--allow: {wrong} is no remedy; there are {', '.join(REMEDIES)}.{did_you_mean(wrong, REMEDIES)}"
        )
    if args.what is not None:
        request = ledger.get(args.what)
    else:
        queue = sorted(ledger.all(), key=lambda each: each.state == "failed")  # those that failed come last
        request = next((each for each in queue if each.state in OPEN and not ledger.is_held(each)), None)
    if request is None:
        print("no request waits")
        return
    means = Means(
        model=args.model,
        data=args.data or (),
        allow=[remedy for remedy in REMEDIES if remedy in allowed],
        retrain=args.retrain,
        least=TAKEN if args.least is None else args.least,
        key=args.key,
        keys=overrides,
    )
    done = handle(ledger, request, means)
    print(f"{done.reference}: {done.remedy}, since {done.why}; the model now: {done.model_after}")


def _verify(args: argparse.Namespace) -> None:
    from expunge.report.table import Table
    from expunge.requests.verification import verify

    folder = Path(args.what[1])
    checks = verify(folder, key=args.key, data=args.data, model=args.model)
    words = {True: "holds", False: "FAILS", None: "not checked"}
    cells = {"what": "what", "": lambda row: words[row["holds"]], "found": "found"}
    print_table(Table.of([asdict(check) for check in checks], cells), as_json=args.json, frame="cells")
    if failed := next((check for check in checks if check.holds is False), None):
        raise UserError(f"{folder}: {failed.what}: {failed.found}.")


def keys(args: argparse.Namespace, _overrides: list[tuple[str, str]]) -> None:
    from expunge.requests.signing import make_keys

    print(f"key {make_keys(args.out)}: {args.out} (keep it secret), {args.out}.pub (give it to who checks)")
