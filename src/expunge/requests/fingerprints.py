"""Rows named by salted hashes: whoever holds a row can tell that it is meant, and nobody else can read it.

scrypt (RFC 7914) makes guessing short texts slow, not impossible: whoever has the evidence can try a guess in some
milliseconds. A telephone number alone has few enough of them to be found.
"""

import hashlib
import secrets
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from expunge.data.augment import parts
from expunge.data.benchmark import Row
from expunge.data.checks import canonical
from expunge.data.encode import question_row

COST, BLOCK, LENGTH = 2**13, 8, 16


@dataclass(frozen=True)
class Salt:
    """The salt of one folder of evidence, and how slow its hashes are."""

    salt: str
    kdf: str = "scrypt"
    n: int = COST
    r: int = BLOCK
    p: int = 1

    @classmethod
    def new(cls) -> "Salt":
        return cls(secrets.token_hex(16))

    def of(self, row: Row) -> str:
        """The row's hash, in hex: of its question and answer, whatever its columns are called."""
        text = canonical(question_row(*parts(row))).encode()
        return hashlib.scrypt(text, salt=bytes.fromhex(self.salt), n=self.n, r=self.r, p=self.p, dklen=LENGTH).hex()

    def of_all(self, rows: Iterable[Row]) -> list[str]:
        """The hashes of rows; two rows with the same words have the same one."""
        return [self.of(row) for row in rows]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)
