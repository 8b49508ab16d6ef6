"""How a sweep looks in the terminal: live while it runs, the Pareto front in the end."""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from time import monotonic
from typing import Any

from rich.console import Console, RenderableType
from rich.live import Live

from expunge.evals.glossary import metric_named, show
from expunge.report.pareto import keys_in_words, value_in_words
from expunge.report.table import Table, left, metrics, right
from expunge.sweep.choice import STATES, TrialRow
from expunge.sweep.definition import Objectives

log = logging.getLogger(__name__)

SHOWN = 12
"""Trials in the live table: those that run, then the front, then the others that are finished."""


class Watch:
    """Shows the rows that it is called with: a live table in a terminal, elsewhere a line per finished trial."""

    def __init__(self, objectives: Objectives, *, quiet: bool = False) -> None:
        console = Console(stderr=True, markup=False)
        self.objectives = objectives
        self.live = Live(console=console, auto_refresh=False, transient=True)
        self.shown = console.is_terminal and not quiet
        self.began = monotonic()
        self.logged: set[int] | None = None

    def __enter__(self) -> "Watch":
        return self

    def __exit__(self, *_: object) -> None:
        self.live.stop()

    def __call__(self, rows: list[TrialRow]) -> None:
        if self.shown:
            self.live.start()
            self.live.update(self.table(rows), refresh=True)
            return
        done = {row["trial"]: row for row in rows if row["state"] in ("finished", "failed")}
        for number in done.keys() - (done.keys() if self.logged is None else self.logged):
            log.info("%d of %d: trial %d, %s", len(done), len(rows), number, _words(done[number], self.objectives))
        self.logged = set(done)

    def table(self, rows: Sequence[TrialRow]) -> RenderableType:
        """Those of the rows that matter most now, under a count of them all."""
        counts = Counter(row["state"] for row in rows)
        states = ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state])
        order = sorted(rows, key=lambda r: (r["state"] != "running", not r["front"], r["state"] != "finished"))
        title = f"{states}; {(monotonic() - self.began) / 60:.1f} min"
        return _table(order[:SHOWN], self.objectives, title=title).rich()


def print_outcome(rows: Sequence[TrialRow], objectives: Objectives, out: Path, *, keep: float, console: Any) -> None:
    """The Pareto front, the trial that is chosen, and what is left to do."""
    finished = [row for row in rows if row["state"] == "finished"]
    front = sorted((row for row in finished if row["front"]), key=lambda r: r["metrics"][objectives[0]], reverse=True)
    if front:
        title = f"Pareto front: {len(front)} of {len(finished)} trials"
        console.print(_table(front, objectives, title=title).rich())
    for row in rows:
        if row["state"] == "failed":
            console.print(f"trial {row['trial']} failed: {row['error']}", markup=False, highlight=False)
    if left := [row for row in rows if row["state"] in ("waiting", "running", "lost")]:
        console.print(f"{len(left)} of {len(rows)} trials are not finished; the same command goes on with them.")
    if not finished:
        return
    name = metric_named(objectives[1]).label
    if (best := next((row for row in rows if row["best"]), None)) is None and all(r["kept"] is None for r in finished):
        console.print(f"The target's own {name} is 0, so no trial can keep a share of it; choose with --keep 0.")
    elif best is None:
        console.print(f"No trial keeps {keep:.0%} of the target's {name}; choose with a lower --keep.")
    else:
        here = (out / "best").is_symlink()
        where = f"{out}/best/" if here else f"on {best['place'].partition(':')[0]}: {best['folder']}"
        rule = f"best {metric_named(objectives[0]).label} of those that keep {keep:.0%} of the target's {name}"
        console.print(f"chosen: trial {best['trial']}, {rule}: {where}", soft_wrap=True)
    if (out / "report.html").exists():
        console.print(f"all trials: {out}/report.html, {out}/results.md, {out}/trials.json", soft_wrap=True)


def _table(rows: Sequence[TrialRow], objectives: Objectives, *, title: str) -> Table:
    keys = list(dict.fromkeys(key for row in rows for key in row["keys"]))
    columns = right("trial")
    for key in keys:
        widest = max(len(value_in_words(row["keys"].get(key))) for row in rows)
        columns += left(key.rpartition(".")[2].replace("_", "\n"), wrap="fold", least=min(14, widest))
    columns += [replace(c, head=c.head.replace(" ", "\n")) for c in metrics(*objectives)]
    lines = []
    for row in rows:
        values = [show(name, row["metrics"].get(name)) for name in objectives]
        kept = "" if row["kept"] is None else f"{row['kept']:.0%}".rstrip("%")
        seconds = "" if row["seconds"] is None else f"{row['seconds']:.1f}"
        mark = "best" if row["best"] else "front" if row["front"] else ""
        mark = mark if row["state"] == "finished" else row["state"]
        lines.append(
            [str(row["trial"]), *(value_in_words(row["keys"].get(key)) for key in keys), *values, kept, seconds, mark]
        )
    return Table([*columns, *right("kept\n%", "time\ns"), *left("")], lines, title)


def _words(row: TrialRow, objectives: Objectives) -> str:
    if row["error"]:
        return row["error"]
    return f"{keys_in_words(row['keys'])}: " + ", ".join(
        f"{metric_named(name).label} {show(name, row['metrics'][name])}" for name in objectives
    )
