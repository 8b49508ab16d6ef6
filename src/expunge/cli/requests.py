"""The commands for a request to be forgotten. Heavy modules are imported inside."""

import argparse
from pathlib import Path

from expunge.cli.commands import refuse
from expunge.cli.terminal import print_table
from expunge.errors import UserError


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
        date.fromisoformat(day or "2026-11-28")
    except ValueError:
        raise UserError(f"--received must be a day such as 2026-11-28, got {day}.") from None


def _verify(args: argparse.Namespace) -> None:
    from dataclasses import asdict

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
