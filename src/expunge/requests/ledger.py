"""The ledger: which requests came in, what was done about each, and who is at work on it now.

It holds no name and no text, which lie in the request's folder; a file of SQLite, or a PostgreSQL database.
"""

import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from getpass import getuser
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

import sqlalchemy as sa
from sqlalchemy import event, exc

from expunge.errors import MachineError, UserError, first_line
from expunge.secrets import masked_text, remember
from expunge.system.disk import alone, make_folder, private, writing

State = Literal["waiting", "running", "done", "failed", "back"]
"""`back` is one whose rows a later look found in the model again; it is queued like one that waits."""
OPEN: tuple[State, ...] = ("waiting", "running", "failed", "back")

FILE = "ledger.db"

_META = sa.MetaData()
_REQUESTS = sa.Table(
    "expunge_requests",
    _META,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("reference", sa.String(200), nullable=False, unique=True),
    sa.Column("received", sa.String(10)),
    sa.Column("added", sa.String(25), nullable=False),
    sa.Column("changed", sa.String(25), nullable=False),
    sa.Column("by", sa.String(200)),
    sa.Column("state", sa.String(10), nullable=False),
    sa.Column("rows", sa.Integer),
    sa.Column("data", sa.String(64)),
    sa.Column("remedy", sa.String(40)),
    sa.Column("why", sa.Text),
    sa.Column("model_before", sa.Text),
    sa.Column("model_after", sa.Text),
    sa.Column("turn", sa.Integer),
)
_EVENTS = sa.Table(
    "expunge_events",
    _META,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("request", sa.Integer, sa.ForeignKey("expunge_requests.id"), nullable=False),
    sa.Column("at", sa.String(25), nullable=False),
    sa.Column("by", sa.String(200)),
    sa.Column("what", sa.Text, nullable=False),
)


@dataclass(frozen=True)
class Request:
    """A request as the ledger has it.

    received      day of the letter
    added, changed  when it came into the ledger, and when its line last changed (UTC)
    by            who changed it last
    rows, data    how many rows are about the person, and their SHA-256 sum
    remedy, why   what was done, and why that and nothing cheaper or dearer
    model_before, model_after  folders, or names on the hub
    turn          its place among those that were done, first 1
    """

    id: int
    reference: str
    received: str | None
    added: str
    changed: str
    by: str | None
    state: State
    rows: int | None = None
    data: str | None = None
    remedy: str | None = None
    why: str | None = None
    model_before: str | None = None
    model_after: str | None = None
    turn: int | None = None


@dataclass(frozen=True)
class Event:
    """Something that happened to a request."""

    at: str
    by: str | None
    what: str


_NAMES = {field.name for field in fields(Request)}


class Ledger:
    """The requests in a folder, or in a database whose URL is given beside it.

    folder  where the files of each request lie, and the ledger where no `url` is given
    url     postgresql://user:password@host/database

    Raises `UserError` for a database that can't be used.
    """

    def __init__(self, folder: Path, url: str | None = None) -> None:
        self.folder = Path(folder)
        with writing(self.folder), private():
            make_folder(self.folder)
            self._engine = _engine(url, self.folder / FILE)
            with _told(url):
                _META.create_all(self._engine)
        self._url = url

    @property
    def shared(self) -> bool:
        """Whether other machines may hold a request."""
        return self._engine.dialect.name == "postgresql"

    def place(self, request: Request) -> Path:
        """The folder of a request's files."""
        return self.folder / f"{request.id:04d}"

    def add(self, reference: str | None = None, received: str | None = None) -> Request:
        """A new request, which waits; without a reference it goes by its number.

        Raises `UserError` for a reference that is there already.
        """
        now = _now()
        values = {"received": received, "added": now, "changed": now, "by": _who(), "state": "waiting"}
        try:
            with self._begin() as connection:
                row = {**values, "reference": reference or uuid4().hex}
                (identity,) = connection.execute(_REQUESTS.insert().values(row)).inserted_primary_key or (0,)
                if reference is None:
                    named = _REQUESTS.update().where(_REQUESTS.c.id == identity)
                    connection.execute(named.values(reference=f"request-{identity}"))
                self._note(connection, identity, "added")
        except exc.IntegrityError:
            raise UserError(
                f"--reference {reference}: the ledger has a request of that name; give another one."
            ) from None
        return self.get(int(identity))

    def get(self, which: int | str) -> Request:
        """A request by its number or reference; `UserError` where there is none."""
        column = _REQUESTS.c.id if isinstance(which, int) else _REQUESTS.c.reference
        found = self._read(sa.select(_REQUESTS).where(column == which))
        if not found:
            raise UserError(f"{which}: the ledger has no such request; expunge request status lists them.")
        return found[0]

    def all(self) -> list[Request]:
        """Every request, oldest first."""
        return self._read(sa.select(_REQUESTS).order_by(_REQUESTS.c.id))

    def events(self, request: Request) -> list[Event]:
        """The events of a request, oldest first."""
        query = sa.select(_EVENTS).where(_EVENTS.c.request == request.id).order_by(_EVENTS.c.id)
        with self._begin() as connection:
            return [Event(row.at, row.by, row.what) for row in connection.execute(query)]

    def change(self, request: Request, what: str, **values: Any) -> Request:
        """Note that something happened, with what it changes in the request's line, both or neither."""
        assert values.keys() <= _NAMES
        with self._begin() as connection:
            values |= {"changed": _now(), "by": _who()}
            connection.execute(_REQUESTS.update().where(_REQUESTS.c.id == request.id).values(values))
            self._note(connection, request.id, what)
        return self.get(request.id)

    def end(self, request: Request) -> Request:
        """Note that a request is done, after all that were done before."""
        with self._begin() as connection:
            turn = 1 + (connection.scalar(sa.select(sa.func.max(_REQUESTS.c.turn))) or 0)
            values = {"changed": _now(), "by": _who(), "state": "done", "turn": turn}
            connection.execute(_REQUESTS.update().where(_REQUESTS.c.id == request.id).values(values))
            self._note(connection, request.id, "done")
        return self.get(request.id)

    @contextmanager
    def held(self, request: Request) -> Iterator[Request]:
        """The request as it is now, while nobody else can hold it; free again however this process ends.

        Raises `MachineError` where somebody else is at work on it.
        """
        if not self.shared:
            with alone(self.place(request)):
                yield self.get(request.id)
            return
        key = zlib.crc32(b"expunge request") * 2**16 + request.id  # a lock of the session: it goes with the connection
        with _told(self._url), self._engine.connect() as connection:
            if not connection.scalar(sa.select(sa.func.pg_try_advisory_lock(key))):
                raise MachineError(f"another expunge is at work on {request.reference}; wait until it has ended.")
            try:
                yield self.get(request.id)
            finally:
                connection.scalar(sa.select(sa.func.pg_advisory_unlock(key)))

    def is_held(self, request: Request) -> bool:
        """Whether somebody is at work on it now."""
        try:
            with self.held(request):
                return False
        except MachineError:
            return True

    def close(self) -> None:
        self._engine.dispose()

    @contextmanager
    def _begin(self) -> Iterator[sa.Connection]:
        with _told(self._url), self._engine.begin() as connection:
            yield connection

    def _read(self, query: Any) -> list[Request]:
        with self._begin() as connection:
            return [Request(**row._mapping) for row in connection.execute(query)]

    def _note(self, connection: sa.Connection, request: int, what: str) -> None:
        connection.execute(_EVENTS.insert().values(request=request, at=_now(), by=_who(), what=what))


def _engine(url: str | None, file: Path) -> sa.Engine:
    if url is None:
        file.touch(0o600)
        engine = sa.create_engine(f"sqlite:///{file}", connect_args={"timeout": 60})
        event.listen(engine, "connect", _set_up)
        event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
        return engine
    try:
        remember(url)
        parsed = sa.make_url(url)
    except exc.ArgumentError:
        raise UserError("--ledger: not a database's URL; write postgresql://user:password@host/database.") from None
    if parsed.drivername not in ("postgresql", "postgres"):
        raise UserError(f"--ledger must be a PostgreSQL URL, got {parsed.drivername}; leave it out for a file.")
    parsed = parsed.set(drivername="postgresql+psycopg", query={"connect_timeout": "10", **parsed.query})
    try:
        return sa.create_engine(parsed, pool_pre_ping=True)
    except ImportError:
        raise UserError("--ledger needs the package psycopg[binary]; pip install 'psycopg[binary]'.") from None


def _set_up(connection: Any, _record: Any) -> None:
    """A committed line survives the loss of power; transactions begin where this module begins them."""
    connection.isolation_level = None
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


@contextmanager
def _told(url: str | None) -> Iterator[None]:
    """Raise `UserError` for a database that can't be used or went away."""
    try:
        yield
    except exc.IntegrityError:
        raise
    except exc.SQLAlchemyError as error:
        shown = "the ledger" if url is None else f"--ledger {masked_text(url)}"
        why = first_line(error).removeprefix("(psycopg.OperationalError) ")
        raise UserError(f"{shown} can't be used ({why}); is it running? The same command goes on.") from error


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _who() -> str | None:
    try:
        return getuser()
    except (OSError, KeyError):
        return None


def as_json(request: Request, events: list[Event] | None = None) -> Mapping[str, Any]:
    shown: dict[str, Any] = asdict(request)
    if events is not None:
        shown["events"] = [asdict(each) for each in events]
    return shown
