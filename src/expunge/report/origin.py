"""Where a page's numbers come from: days, commands, and SHA-256 sums that are known already."""

import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

from expunge.report.comparison import ReportSection
from expunge.report.table import Table, left
from expunge.system import manifest

WEIGHTS = (".safetensors", ".bin")
FILES = ("recipe.yaml", "results.json")


def days(sections: Sequence[ReportSection]) -> str:
    """The day of the rows, or the first and the last; empty for runs that did not note it."""
    noted = (run.get("date") for section in sections for entry in section.entries for run in entry.runs)
    found = sorted({day for day in noted if isinstance(day, str)})
    return " to ".join(dict.fromkeys([*found[:1], *found[-1:]]))


def command(directory: Path) -> str:
    """The command that makes a run again."""
    return shlex.join(["expunge", "run", str(directory / "recipe.yaml"), "--out", f"{directory}-again"])


def sums(sections: Sequence[ReportSection], directories: Sequence[Path]) -> Table | None:
    """The sums of rows, models and files, from results and manifests; nothing is read anew."""
    rows = [[name, total] for name, total in dict.fromkeys([*_inputs(sections), *_files(directories)])]
    heads = [*left("What"), *left("SHA-256", kind="code")]
    return Table(heads, rows, "SHA-256 sums") if rows else None


def _inputs(sections: Sequence[ReportSection]) -> Iterator[tuple[str, str]]:
    for section in sections:
        for entry in section.entries:
            for run in entry.runs:
                inputs = run.get("inputs")
                yield from ((str(k), str(v)) for k, v in (inputs if isinstance(inputs, dict) else {}).items())


def _files(directories: Sequence[Path]) -> Iterator[tuple[str, str]]:
    for directory in directories:
        folders = [directory, *sorted(path.parent for path in directory.glob("**/model/manifest.json"))]
        for folder in folders:
            try:
                listed = manifest.read(folder) or {}
            except ValueError:
                continue
            place = "" if len(directories) == 1 else f"{directory.name}/"
            inside = "" if folder == directory else f"{folder.relative_to(directory)}/"
            for name, entry in listed.items():
                if name in FILES or (inside and name.endswith(WEIGHTS)):
                    yield f"{place}{inside}{name}", entry["sha256"]
