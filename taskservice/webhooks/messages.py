"""T."""

import json
from typing import Any, NamedTuple


class Notice(NamedTuple):
    event: str
    at: str
    agent: str
    task: str | None = None
    reason: str | None = None
    seconds: float | None = None
    since: str | None = None
    on_time: bool | None = None
    url: str | None = None
    answer_url: str | None = None
    choices: Any = ()


class Made(NamedTuple):
    url: str
    body: bytes
    headers: dict
    subject: str = ""


def _any(target, notices, count):
    return Made(
        target, json.dumps({"text": [n._asdict() for n in notices], "count": count}).encode(), {}
    )


FORMATS = {"ntfy": _any, "slack": _any, "mail": _any}
