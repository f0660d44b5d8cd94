"""Hides the secrets of the environment in what a program prints, before it is stored or sent."""

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

_NAME = re.compile("KEY|TOKEN|SECRET|PASSWORD", re.IGNORECASE)
# A shorter value, such as `true`, is no secret, and to hide it would hide much else.
_MIN_CHARACTERS = 8
_MASK = b"***"
_LINE_END = re.compile(r"[\r\n]+")

Span = tuple[int, int]


class Masker:
    """Hides the values of the variables whose names say that they are secret."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        values = (value for name, value in environment.items() if _NAME.search(name))
        self._secrets = {os.fsencode(part) for value in values for part in _parts(value)}

    def mask(self, text: bytes) -> bytes:
        """The text with each secret replaced; its line feeds stay."""
        found = [secret for secret in self._secrets if secret in text]
        return _replace(text, (span for secret in found for span in _spans(text, secret)))

    def mask_beginning(self, line: bytes) -> bytes:
        """The same for a line that goes on: it may end in the middle of a secret."""
        masked = self.mask(line)
        cut = max((_overlap(masked, secret) for secret in self._secrets), default=0)
        return masked[: len(masked) - cut] + _MASK if cut else masked

    def mask_text(self, text: str) -> str:
        return self.mask(text.encode(errors="surrogatepass")).decode(errors="surrogatepass")

    def mask_json(self, value: Any) -> Any:
        """A value of JSON with the secrets replaced in its strings, keys and numbers."""
        if isinstance(value, dict):
            return {self.mask_text(key): self.mask_json(each) for key, each in value.items()}
        if isinstance(value, list):
            return [self.mask_json(each) for each in value]
        if isinstance(value, str):
            return self.mask_text(value)
        written = json.dumps(value)
        masked = self.mask_text(written)
        return value if masked == written else masked


def _parts(value: str) -> list[str]:
    """What to look for: the value, or, since a log has lines, each of its lines that is long.

    A line of punctuation alone would hide much else.
    """
    lines = [line for line in _LINE_END.split(value) if line.strip()]
    if len(lines) > 1:
        lines = [line.strip() for line in lines if any(map(str.isalnum, line))]
    return [_core(line) for line in lines if len(line) >= _MIN_CHARACTERS]


def _core(secret: str) -> str:
    """The secret without the blanks around it, which programs often cut off, if enough is left."""
    core = secret.strip()
    return core if len(core) >= _MIN_CHARACTERS else secret


def _spans(text: bytes, secret: bytes) -> Iterator[Span]:
    """Where the secret is, also where it overlaps itself."""
    start = text.find(secret)
    while start >= 0:
        yield start, start + len(secret)
        start = text.find(secret, start + 1)


def _replace(text: bytes, spans: Iterable[Span]) -> bytes:
    """Replace spans, of which those that overlap count as one."""
    parts, end = [], 0
    for start, until in sorted(spans):
        if start >= end:
            parts += [text[end:start], _MASK]
        end = max(end, until)
    return b"".join([*parts, text[end:]])


def _overlap(text: bytes, secret: bytes) -> int:
    """How many bytes at the end of the text may be the beginning of the secret."""
    tail, first = text[1 - len(secret) :], secret[:1]
    start = tail.find(first)
    while start >= 0 and not secret.startswith(tail[start:]):
        start = tail.find(first, start + 1)
    return len(tail) - start if start >= 0 else 0
