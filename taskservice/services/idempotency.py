"""The key by which a client can repeat a request."""

import hashlib
from typing import Any, NamedTuple

from taskservice.errors import invalid
from taskservice.schemas import strict_json
from taskservice.terms import IDEMPOTENCY_KEY_REUSED


class Idempotency(NamedTuple):
    """The key by which a request can be repeated, and the digest of what was asked."""

    key: str
    digest: str

    @classmethod
    def of(cls, key: str, body: Any, rerun_of: str | None = None) -> "Idempotency":
        """Of a start, or of a rerun: the same key for both is another request."""
        asked = body if rerun_of is None else {"rerunOf": rerun_of, "body": body}
        return cls(key, hashlib.sha256(strict_json.canonical(asked)).hexdigest())

    def check(self, digest: str) -> None:
        """Raises 422 if the key was used for a request with another digest."""
        if digest != self.digest:
            errors = {"Idempotency-Key": ["Was used with another body."]}
            raise invalid(errors, IDEMPOTENCY_KEY_REUSED)
