"""The text of an API key: how it is made, and checked without a look-up."""

import hashlib
import re
import secrets
import string
import zlib

USER_PREFIX = "tsk_user_"
AGENT_PREFIX = "tsk_agent_"

_ALPHABET = string.digits + string.ascii_letters
_RANDOM_LENGTH = 40  # of 62 letters each: 238 bits
# A checksum of 6 letters is made of three pairs, which is faster than letter by letter.
_PAIRS = [first + second for first in _ALPHABET for second in _ALPHABET]
_CHECKSUM_LENGTH = 6
_SHAPE = re.compile(
    rf"(?:{USER_PREFIX}|{AGENT_PREFIX})[0-9A-Za-z]{{{_RANDOM_LENGTH + _CHECKSUM_LENGTH}}}"
)


def new(*, for_agent: bool) -> str:
    """A fresh key: a prefix, 238 random bits, and a checksum over both."""
    body = "".join(secrets.choice(_ALPHABET) for _ in range(_RANDOM_LENGTH))
    unchecked = (AGENT_PREFIX if for_agent else USER_PREFIX) + body
    return unchecked + _checksum(unchecked)


def is_well_formed(text: str) -> bool:
    """Whether `text` has the shape and the checksum of a key; a mistyped key has not."""
    shaped = _SHAPE.fullmatch(text) is not None
    return shaped and _checksum(text[:-_CHECKSUM_LENGTH]) == text[-_CHECKSUM_LENGTH:]


def digest(text: str) -> str:
    """SHA-256 in hexadecimal: all that is stored. 238 random bits need no slow hash."""
    return hashlib.sha256(text.encode()).hexdigest()


def hint(text: str) -> str:
    """The beginning and end of a key, by which its owner recognises it in a list."""
    return f"{text[: text.rindex('_') + 1]}…{text[-4:]}"


def _checksum(text: str) -> str:
    first, rest = divmod(zlib.crc32(text.encode()), len(_PAIRS) ** 2)
    second, third = divmod(rest, len(_PAIRS))
    return _PAIRS[first] + _PAIRS[second] + _PAIRS[third]
