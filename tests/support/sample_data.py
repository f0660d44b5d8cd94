"""An output, questions and hostile texts for tests of pages; tasks of an earlier time."""

from datetime import UTC, datetime, timedelta
from itertools import accumulate
from typing import Any

from flask import Flask
from sqlalchemy import update

from taskservice.database.clock import rfc3339
from taskservice.database.models import Task
from taskservice.database.transactions import transaction
from taskservice.schemas import strict_json
from tests.support.api_client import ApiClient, expect

SYNOPSIS = """\
## Monday, 23 November

14 mails, **3 of them urgent**: two refunds and a broken sign-up.

1. Refund for order 20418: *promised for Friday*, still open.
2. The sign-up answers `500` since 06:12, see [the incident](https://status.example.org/214).
   - first seen by ops
   - 41 people were turned away

> Jon asks for the second time.

```
POST /sign-up 500 in 30012 ms
```
"""
OUTPUT = {
    "synopsis": SYNOPSIS,
    "mails": 14,
    "urgent": [
        {"from": "mara@example.org", "subject": "Refund for order 20418", "hours": 26, "sum": 149.9,
         "thread": "https://mail.example.org/t/20418"},
        {"from": "jon@example.org", "subject": "Refund, second try", "hours": 51, "sum": 89,
         "thread": "https://mail.example.org/t/20377"},
        {"from": "ops@example.org", "subject": "Sign-up answers 500", "hours": 2, "sum": None,
         "thread": "https://mail.example.org/t/20431"},
    ],
    "languages": ["en", "de", "el"],
    "cost": {"currency": "EUR", "total": 0.0142, "tokens": {"input": 18_204, "output": 611}},
}  # fmt: skip
DELETE = {"type": "object", "properties": {"delete": {"type": "boolean"}}, "required": ["delete"]}
TERM: dict[str, Any] = {
    "type": "object",
    "properties": {
        "term": {
            "type": "string",
            "title": "French term",
            "description": "It is used in all notes from now on.",
            "maxLength": 80,
        },
        "gender": {
            "type": "string",
            "title": "Gender",
            "oneOf": [{"const": "f", "title": "feminine"}, {"const": "m", "title": "masculine"}],
        },
        "note": {"type": "string", "title": "Note to the translator", "maxLength": 1_000},
    },
    "required": ["term", "gender"],
}
# Texts that must have no effect on any page.
HOSTILE = (
    "<img src=x onerror=\"document.title='owned'\">"
    "<script>document.title='owned'</script>'\"{{31337*31337}}</title></textarea>&amp;\u202etxt.exe"
)


def _ask(
    person: ApiClient, task: dict[str, Any], message: str, schema: dict[str, Any]
) -> dict[str, Any]:
    # `json=` of Flask's client would sort the properties.
    body = strict_json.dumps({"message": message, "schema": schema, "timeout": 3 * 3600})
    path = f"/task/{task['id']}/question"
    return dict(expect(person.post(path, data=body, content_type="application/json"), 201))


def append_over(
    person: ApiClient, task: dict[str, Any], texts: list[str], start: datetime, pauses: list[float]
) -> None:
    """Append lines; `pauses` contains the seconds between each line and the previous one."""
    at = [rfc3339(start + timedelta(seconds=seconds)) for seconds in accumulate(pauses)]
    person.append(task, *texts, at=at)


def shift(
    app: Flask, task: dict[str, Any], seconds: float, lasted: float | None = None
) -> datetime:
    """Make a task look as if it started `seconds` ago and lasted for `lasted` seconds.

    Returns its start.
    """
    start = datetime.now(UTC) - timedelta(seconds=seconds)
    values: dict[str, Any] = {"created_at": rfc3339(start), "claimed_at": rfc3339(start)}
    if lasted is not None:
        values["finished_at"] = rfc3339(start + timedelta(seconds=lasted))
    with app.app_context(), transaction() as connection:
        connection.execute(update(Task).where(Task.id == task["id"]).values(values))
    return start


def make_hostile(person: ApiClient, callback: str) -> dict[str, Any]:
    """A task, its agent and a key with hostile texts, which must have no effect on any page."""
    value = {"type": "string", "title": HOSTILE, "description": HOSTILE, "default": HOSTILE}
    schema = {"type": "object", "properties": {HOSTILE: value}}
    person.register("hostile", name=HOSTILE, description=HOSTILE, inputSchema=schema)
    task = person.start("hostile", name=HOSTILE, input={HOSTILE: HOSTILE}, claim=True,
                        callback=f"{callback}?{'<script>'}")  # fmt: skip
    person.append(task, HOSTILE, f"\x1b[31m{HOSTILE}\x1b[0m", "\x1b]8;;javascript:alert(1)\x07link")
    asked = _ask(person, task, HOSTILE, schema)
    body = {"action": "accept", "content": {HOSTILE: HOSTILE}}
    person.post(f"/task/{task['id']}/question/{asked['id']}/answer", json=body)
    person.report(task, output={HOSTILE: [HOSTILE]}, status="error", error={"message": HOSTILE})
    person.post("/key", json={"name": HOSTILE})
    return task
