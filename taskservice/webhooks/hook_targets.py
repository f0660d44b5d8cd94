"""Derives the default format of a hook, and a name without secrets, from the hook's address."""

import re
from urllib.parse import urlsplit

from taskservice import terms

# Text that a person has probably chosen, such as `alerts-2` or `v1`: words and short numbers.
_WORD = r"(?:[A-Za-z][a-z]{0,11}\d{0,2}|\d{1,4})"
_WORDS = re.compile(rf"{_WORD}(?:[-_.]{_WORD})*")
# The ID of a Slack webhook, such as `B024BE7LH`, or of a Discord webhook.
_NUMBER = re.compile(r"[A-Z][A-Z0-9]{1,11}|\d{1,20}")
_HIDDEN = "…"


def format_of(target: str) -> str:
    """The default format for an address; raises ValueError if the address is not a URL."""
    url = urlsplit(target)
    if url.scheme == "mailto":
        return terms.MAIL
    if url.hostname == "hooks.slack.com" or url.path.endswith("/slack"):
        return terms.SLACK
    return terms.NTFY if url.hostname == "ntfy.sh" else terms.STANDARD


def without_secret(target: str, kind: str) -> str:
    """A short form of an address that people recognize, such as `ntfy.sh/alerts`.

    `kind` is the format. Raises ValueError if the address is not a URL.
    """
    url = urlsplit(target)
    if not url.hostname:
        return url.path or target
    parts = [part for part in url.path.split("/") if part]
    if kind == terms.SLACK:
        # The last part of the path is the secret.
        parts = [part for part in parts if part != "slack"][-2:-1]
        shown = [part for part in parts if _WORDS.fullmatch(part) or _NUMBER.fullmatch(part)]
    elif kind == terms.NTFY:
        # A topic that can't be guessed is a secret. Only its first characters are shown, to
        # distinguish it from other topics.
        shown = [part if _WORDS.fullmatch(part) else _beginning(part) for part in parts]
    else:
        shown = [part if _WORDS.fullmatch(part) else _HIDDEN for part in parts]
    return "/".join([url.netloc.rpartition("@")[2], *shown])


def _beginning(text: str) -> str:
    return text[: min(8, len(text) // 2)] + _HIDDEN
