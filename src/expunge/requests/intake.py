"""A letter that comes in: the request goes into the ledger, with the person or the rows that it names."""

from pathlib import Path

from expunge.data.files import lines_of, read_records
from expunge.data.formats import rows_of_records
from expunge.errors import UserError
from expunge.requests.ledger import Ledger, Request
from expunge.requests.people import read_people
from expunge.requests.rows import FORGET, WHO
from expunge.system.disk import make_folder, write_whole


def add(ledger: Ledger, *, who: str | None, forget: str | None, reference: str | None, received: str | None) -> Request:
    """Put a request into the ledger, with the person or the rows that it names.

    Raises `UserError`, before anything is written, for a file that can't be read.
    """
    if (who is None) == (forget is None):
        raise UserError("request add: give the person (--who FILE) or the rows (--forget FILE), one of the two.")
    if who is not None:
        read_people(who)
        name, text = WHO, Path(who).read_text(encoding="utf-8")
    else:
        name, text = FORGET, lines_of(rows_of_records(read_records(str(forget))), default=str)
    request = ledger.add(reference, received)
    make_folder(ledger.place(request))
    write_whole(ledger.place(request) / name, text)
    return request
