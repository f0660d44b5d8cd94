"""Secrets and signatures of webhooks, by Standard Webhooks 1.0."""

import base64
import hashlib
import hmac
import re
from collections.abc import Mapping, Sequence
from secrets import token_bytes

PREFIX = "whsec_"
SECRET_BYTES = 32  # the specification asks for 24 to 64
# A webhook whose timestamp is further away may be a replayed copy.
TOLERANCE_SECONDS = 300
_TIMESTAMP = re.compile(r"[0-9]{1,12}")


def new_secret() -> str:
    """A new secret, in the form that receivers use: `whsec_` and base64."""
    return PREFIX + base64.b64encode(token_bytes(SECRET_BYTES)).decode()


def is_secret(text: str) -> bool:
    """Whether this has the form of a secret."""
    try:
        _key(text)
    except ValueError:
        return False
    return True


def sign(secrets: Sequence[str], webhook_id: str, timestamp: int, body: bytes) -> dict[str, str]:
    """The three headers of a webhook, signed by each of `secrets`, newest first.

    `timestamp` is the time of this attempt in seconds since 1970; `webhook_id` is the same at every
    attempt. Raises ValueError without a secret, for an invalid secret, and for an id with a full
    stop, which would let one signature match two messages.
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
    """Whether `headers` sign `body` with one of `secrets`, at most five minutes from `now`."""
    timestamp = headers.get("webhook-timestamp") or ""
    if not _TIMESTAMP.fullmatch(timestamp) or abs(now - int(timestamp)) > TOLERANCE_SECONDS:
        return False
    content = f"{headers.get('webhook-id')}.{timestamp}.".encode() + body
    expected = [_signature(secret, content).encode() for secret in secrets]
    signatures = (headers.get("webhook-signature") or "").encode().split(b" ")
    return any(hmac.compare_digest(one, other) for one in expected for other in signatures)


def _signature(secret: str, content: bytes) -> str:
    digest = hmac.digest(_key(secret), content, hashlib.sha256)
    return "v1," + base64.b64encode(digest).decode()


def _key(secret: str) -> bytes:
    key = base64.b64decode(secret.removeprefix(PREFIX), validate=True)
    if not key:
        raise ValueError("The secret of a webhook is empty.")
    return key
