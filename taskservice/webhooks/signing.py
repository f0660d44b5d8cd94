"""Secrets and signatures of webhooks, as specified by Standard Webhooks 1.0."""

import base64
import hashlib
import hmac
from collections.abc import Sequence
from secrets import token_bytes

PREFIX = "whsec_"
SECRET_BYTES = 32  # the specification requires 24 to 64 bytes


def new_secret() -> str:
    """A new secret in the format of Standard Webhooks: `whsec_` and base64."""
    return PREFIX + base64.b64encode(token_bytes(SECRET_BYTES)).decode()


def sign(secrets: Sequence[str], webhook_id: str, timestamp: int, body: bytes) -> dict[str, str]:
    """The three headers of a webhook, with a signature by each of `secrets`, newest first.

    `timestamp` is the time of this attempt in seconds since 1970; `webhook_id` is the same at every
    attempt. Raises ValueError without a secret, for an invalid secret, and for an ID with a full
    stop, which would let one signature match two messages.
    Source: https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
    """
    if not secrets:
        raise ValueError("A webhook needs at least one secret.")
    if "." in webhook_id:
        raise ValueError("The ID of a webhook must not contain a full stop.")
    content = f"{webhook_id}.{timestamp}.".encode() + body
    return {
        "webhook-id": webhook_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": " ".join(_signature(secret, content) for secret in secrets),
    }


def _signature(secret: str, content: bytes) -> str:
    digest = hmac.digest(_key(secret), content, hashlib.sha256)
    return "v1," + base64.b64encode(digest).decode()


def _key(secret: str) -> bytes:
    key = base64.b64decode(secret.removeprefix(PREFIX), validate=True)
    if not key:
        raise ValueError("The secret of a webhook is empty.")
    return key
