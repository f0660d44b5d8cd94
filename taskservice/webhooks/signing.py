"""Secrets and signatures of webhooks, by Standard Webhooks 1.0."""

import base64
import hashlib
import hmac
import re
import time
from collections.abc import Mapping, Sequence
from secrets import token_bytes
from threading import Lock
from typing import NamedTuple

PREFIX = "whsec_"
SECRET_BYTES = 32  # the specification asks for 24 to 64
# A webhook whose timestamp is further away may be a replayed copy.
TOLERANCE_SECONDS = 300
_TIMESTAMP = re.compile(r"[0-9]{1,12}")


def new_secret() -> str:
    """A new secret, in the form that receivers use: `whsec_` and base64."""
    return PREFIX + base64.b64encode(token_bytes(SECRET_BYTES)).decode()


def sign(secrets: Sequence[str], webhook_id: str, timestamp: int, body: bytes) -> dict[str, str]:
    """The three headers of a webhook, signed by each of `secrets`, newest first.

    `timestamp` is the moment of this attempt in seconds since 1970; `webhook_id` is the same at
    every attempt. Send exactly the bytes of `body`. Raises ValueError without a secret, for an
    invalid secret, and for an id with a full stop, which would let one signature match two
    messages.
    Source: https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
    """
    if not secrets:
        raise ValueError("A webhook needs at least one secret.")
    if "." in webhook_id:
        raise ValueError("The id of a webhook must not contain a full stop.")
    content = f"{webhook_id}.{timestamp}.".encode() + body
    return {
        "webhook-id": webhook_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": " ".join(_signature(secret, content) for secret in secrets),
    }


def is_signed(secrets: Sequence[str], headers: Mapping[str, str], body: bytes, now: float) -> bool:
    """Whether `headers` sign `body` by one of `secrets`, at most five minutes from `now`.

    `now` is in seconds since 1970.
    """
    timestamp = headers.get("webhook-timestamp") or ""
    if not _TIMESTAMP.fullmatch(timestamp) or abs(now - int(timestamp)) > TOLERANCE_SECONDS:
        return False
    content = f"{headers.get('webhook-id')}.{timestamp}.".encode() + body
    expected = [_signature(secret, content).encode() for secret in secrets]
    given = (headers.get("webhook-signature") or "").encode().split(b" ")
    return any(hmac.compare_digest(one, other) for one in expected for other in given)


def _signature(secret: str, content: bytes) -> str:
    digest = hmac.digest(_key(secret), content, hashlib.sha256)
    return "v1," + base64.b64encode(digest).decode()


def _key(secret: str) -> bytes:
    key = base64.b64decode(secret.removeprefix(PREFIX), validate=True)
    if not key:
        raise ValueError("The secret of a webhook is empty.")
    return key


# When a failed webhook is posted again.

# Seconds from each failed attempt to the next one; after the last of them the delivery fails.
SCHEDULE = (5, 300, 1_800, 7_200, 18_000, 36_000, 50_400, 72_000, 86_400)
# The part of each delay by which it may be shorter or longer.
JITTER = 0.2
# The longest delay that a receiver can ask for.
MAX_RETRY_AFTER = 86_400.0
LONGEST_DELAY_SECONDS = max(max(SCHEDULE) * (1 + JITTER), MAX_RETRY_AFTER)


# Remembers receivers whose last attempts failed, so that no request waits for them.

MAX_FAILURES = 3
OPEN_SECONDS = 60.0
MAX_RECEIVERS = 1_000


class Receiver(NamedTuple):
    """A host as one user's callbacks have it: at the same host, another user's may do better."""

    user_id: str
    # With its port, as in the URL.
    host: str


class _Failures(NamedTuple):
    in_a_row: int
    last: float


class CircuitBreaker:
    """Is open for a receiver after three failures in a row, until a minute after the last one.

    It remembers the 1,000 receivers that failed last.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        # In the order of their last failure.
        self._failures: dict[Receiver, _Failures] = {}

    def is_open(self, receiver: Receiver) -> bool:
        return self._recent_failures(receiver) >= MAX_FAILURES

    def open_receivers(self) -> set[Receiver]:
        with self._lock:
            return {receiver for receiver in self._failures if self.is_open(receiver)}

    def record(self, receiver: Receiver, *, has_failed: bool) -> None:
        """Count how an attempt ended: a success resets the count of its receiver."""
        with self._lock:
            count = self._recent_failures(receiver)
            self._failures.pop(receiver, None)
            if has_failed:
                self._failures[receiver] = _Failures(count + 1, time.monotonic())
                if len(self._failures) > MAX_RECEIVERS:
                    del self._failures[next(iter(self._failures))]

    def _recent_failures(self, receiver: Receiver) -> int:
        failures = self._failures.get(receiver)
        if failures is None or time.monotonic() - failures.last > OPEN_SECONDS:
            return 0
        return failures.in_a_row
