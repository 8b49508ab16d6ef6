"""The ledger: nothing is lost or taken twice, in a file and in a database that machines share."""

import os
import signal
import stat
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from expunge.errors import MachineError, UserError

pytest.importorskip("sqlalchemy", reason="needs the extra expunge[requests]")

from expunge.requests.ledger import Ledger

Opened = Callable[[], Ledger]


@pytest.fixture(params=["a file", "a database"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Opened]:
    """Opens the same empty ledger as often as one likes, as processes would."""
    url = request.getfixturevalue("postgres") if request.param == "a database" else None
    if url is not None:
        import psycopg

        with psycopg.connect(url) as connection:
            connection.execute("DROP TABLE IF EXISTS expunge_events, expunge_requests")
    ledgers: list[Ledger] = []

    def once_more() -> Ledger:
        ledgers.append(Ledger(tmp_path / "requests", url))
        return ledgers[-1]

    yield once_more
    for ledger in ledgers:
        ledger.close()


def test_a_request_and_what_happened_to_it_stay(opened: Opened) -> None:
    first = opened().add("2026-17", "2026-11-20")
    opened().change(first, "20 rows found", rows=20, state="running")
    again = opened().get("2026-17")
    assert (again.rows, again.state, again.received) == (20, "running", "2026-11-20")
    assert [event.what for event in opened().events(again)] == ["added", "20 rows found"]


def test_one_that_has_no_reference_goes_by_its_number(opened: Opened) -> None:
    ledger = opened()
    assert [ledger.add().reference for _ in range(2)] == ["request-1", "request-2"]


def test_requests_that_come_in_at_once_all_stay(opened: Opened) -> None:
    opened()
    with ThreadPoolExecutor(8) as pool:
        added = list(pool.map(lambda _: opened().add(), range(24)))
    assert len({request.reference for request in added}) == len(opened().all()) == 24


def test_nobody_takes_a_request_that_somebody_has(opened: Opened) -> None:
    mine, other = opened(), opened()
    first, second = mine.add("first"), mine.add("second")
    with mine.held(first):
        with pytest.raises(MachineError, match="another expunge is at work"), other.held(first):
            pass
        assert other.is_held(first) and not other.is_held(second)
    with other.held(first) as now:
        assert now == first
    assert not mine.is_held(first)


@pytest.mark.parametrize("kind", [signal.SIGKILL, signal.SIGTERM])
def test_a_request_is_free_once_the_process_that_had_it_is_dead(
    opened: Opened, tmp_path: Path, kind: signal.Signals
) -> None:
    ledger = opened()
    ledger.add("first")
    code = textwrap.dedent("""
        import sys, time
        from pathlib import Path
        from expunge.requests.ledger import Ledger
        ledger = Ledger(Path(sys.argv[1]), sys.argv[2] or None)
        with ledger.held(ledger.get("first")):
            print("held", flush=True)
            time.sleep(60)
    """)
    words = [sys.executable, "-c", code, str(ledger.folder), str(ledger._url or "")]
    with subprocess.Popen(words, stdout=subprocess.PIPE, env={**os.environ}) as process:
        assert process.stdout is not None and process.stdout.readline() == b"held\n"
        assert ledger.is_held(ledger.get("first"))
        process.send_signal(kind)
        process.wait()
    for _ in range(100):  # a server takes a moment to see that a connection is gone
        if not ledger.is_held(ledger.get("first")):
            break
    assert not ledger.is_held(ledger.get("first"))


def test_a_change_and_its_note_are_written_both_or_neither(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = opened()
    request = ledger.add("first")

    def fails(*_: Any) -> None:
        raise RuntimeError("in the middle")

    monkeypatch.setattr(Ledger, "_note", fails)
    with pytest.raises(RuntimeError):
        ledger.change(request, "done", state="done")
    monkeypatch.undo()
    assert opened().get("first").state == "waiting" and len(opened().events(request)) == 1


def test_a_reference_stands_once(opened: Opened) -> None:
    ledger = opened()
    ledger.add("first")
    with pytest.raises(UserError, match="the ledger has a request of that name"):
        ledger.add("first")
    assert len(ledger.all()) == 1


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("nonsense", "not a database's URL"),
        ("mysql://host/x", "must be a PostgreSQL URL"),
        ("postgresql://me:secret@127.0.0.1:1/x", "is it running"),
    ],
)
def test_a_database_that_cannot_be_used_is_one_sentence_without_the_password(
    tmp_path: Path, url: str, said: str
) -> None:
    with pytest.raises(UserError, match=said) as caught:
        Ledger(tmp_path, url)
    assert "secret" not in str(caught.value)


def test_the_file_is_its_owners_alone(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "requests")
    ledger.add()
    assert stat.S_IMODE((tmp_path / "requests").stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in (tmp_path / "requests").iterdir()} == {0o600}
    ledger.close()
