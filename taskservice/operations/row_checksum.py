"""A checksum of a table that does not depend on the order of its rows or on the database."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson

_MODULUS = 2**256


@dataclass(frozen=True)
class Checksum:
    """The number of rows, and the sum modulo 2^256 of the SHA-256 of each in canonical form.

    A sum can be stored and continued, and two databases may sort their rows differently.
    """

    rows: int = 0
    total: int = 0

    @property
    def hex(self) -> str:
        return f"{self.total:064x}"

    def plus(self, rows: Sequence[bytes]) -> "Checksum":
        """With these rows, in canonical form, added."""
        total = sum(int.from_bytes(hashlib.sha256(row).digest(), "big") for row in rows)
        return Checksum(self.rows + len(rows), (self.total + total) % _MODULUS)


def canonical(values: Sequence[Any]) -> bytes:
    """A row's values as JSON, in the order of the model's columns."""
    return orjson.dumps(tuple(values))
