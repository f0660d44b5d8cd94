"""Realistic sample data: agents, tasks in every state, logs, deliveries, keys."""

import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import accumulate
from typing import Any

from flask import Flask
from sqlalchemy import update

from taskservice.database.clock import rfc3339
from taskservice.database.models import Task
from taskservice.database.transactions import transaction
from taskservice.schemas import strict_json
from tests.support.api_client import ApiClient, add_user, expect
from tests.support.internals import end_for_silence, set_columns

AGENTS = {
    "summarizer": ("Summarizer", "Reads the day's mail and writes a synopsis of it."),
    "invoice-reader": ("Invoice reader", "Takes amounts and due dates out of scanned invoices."),
    "link-checker": ("Link checker", "Checks every night that our links still work."),
    "translator": ("Translator", "Translates release notes into German, French and Greek."),
    "backup": ("backup", ""),
}
NAMES = {
    "summarizer": ["Morning synopsis", "Support mailbox digest", "Weekly digest"],
    "invoice-reader": ["November invoices", "Scan batch 0412", "Late invoices"],
    "link-checker": ["Nightly check of docs", "Shop check", "Blog check"],
    "translator": ["Release notes 4.2 to German", "Release notes 4.2 to Greek"],
    "backup": ["Nightly backup", "Wiki backup"],
}
INPUT = {"mailbox": "support@example.org", "since": "2026-11-23", "languages": ["en", "de", "el"]}
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
TRACEBACK = (
    "Traceback (most recent call last):",
    '  File "agent.py", line 88, in read',
    "    return mailbox.fetch(batch)",
    "MailboxLocked: support@example.org is locked by another session",
)
FAILURE = "\n".join(TRACEBACK)
FAILURES = (
    "PermissionError: [Errno 13] Permission denied: '/srv/inbox/0412.pdf'",
    "HTTPError: 502 Server Error: Bad Gateway for url: https://api.example.org/v2/read",
    "cannot open /srv/inbox: No such file or directory",
)
# Of a program that says no more than its exit status.
UNREACHABLE = [
    "backup of 3 folders to nas.example.org",
    "connecting to nas.example.org",
    "ssh: connect to host nas.example.org port 22: Connection timed out",
]
TIDY = [
    "/srv/backups: 91 % of 2.0 TB",
    "1,204 backups, the oldest of 3 March",
    "41 of them are older than 30 days",
    "waiting for an answer before anything is deleted",
]
DAYS = {
    "type": "object",
    "properties": {"days": {"type": "integer", "title": "Days", "minimum": 7, "default": 30}},
    "required": ["days"],
}
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
# What must do nothing anywhere.
HOSTILE = (
    "<img src=x onerror=\"document.title='owned'\">"
    "<script>document.title='owned'</script>'\"{{31337*31337}}</title></textarea>&amp;\u202etxt.exe"
)


def lines(count: int) -> Iterator[str]:
    """Lines as an agent prints them, some of them in colours."""
    verbs = ("read", "classified", "summed up", "filed")
    for number in range(1, count + 1):
        mail = f"mail {number:>4} of {count}"
        if number % 29 == 0:
            yield f"\x1b[33mwarning\x1b[0m {mail}: no date, taking that of its arrival"
        elif number % 13 == 0:
            yield f"\x1b[37;41mretry\x1b[0m   {mail}: \x1b[7mpage {number}\x1b[0m was locked"
        elif number % 17 == 0:
            yield f"\x1b[7;31mlate\x1b[0m    {mail}: \x1b[2;7;30;46mcame yesterday\x1b[0m"
        elif number % 41 == 0:
            yield f"\x1b[1;31merror\x1b[0m   {mail}: an attachment can't be read, left out"
        else:
            yield f"\x1b[32minfo\x1b[0m    {mail}: {verbs[number % 4]} in {number * 37 % 900} ms"


def make(app: Flask, name: str, good_url: str, bad_url: str, count: int = 110) -> ApiClient:
    """Fill an empty database for one user; `bad_url` is a receiver that answers 503."""
    person = add_user(app, name)
    for agent_id, (agent_name, description) in AGENTS.items():
        person.register(agent_id, name=agent_name, description=description)
    dice = random.Random(4)
    for number in range(count):
        agent_id = dice.choice(list(AGENTS))
        task = person.start(
            agent_id, name=dice.choice(NAMES[agent_id]), claim=True,
            callback=good_url if number % 3 == 0 else None,
        )  # fmt: skip
        texts = list(lines(dice.randrange(3, 60)))
        fails = dice.random() < 0.14
        seconds = dice.random() ** 2 * 86_000 + 400
        lasted = min(dice.expovariate(1 / 90) + 0.4, seconds - 60)
        failure = FAILURES[number % len(FAILURES)] if fails else None
        _run(app, person, task, texts, number, seconds, lasted, failure)
    _special(app, person, good_url, bad_url)
    person.post("/key", json={"name": "nightly jobs"})
    person.post("/key", json={"name": "link checker", "agentId": "link-checker"})
    key = expect(person.post("/key", json={"name": "old machine"}), 201)
    person.delete(f"/key/{key['id']}")
    return person


def _run(
    app: Flask,
    person: ApiClient,
    task: dict[str, Any],
    texts: list[str],
    number: int,
    seconds: float,
    lasted: float,
    failure: str | None,
) -> None:
    """Let a task print its lines evenly from `seconds` ago on, and end."""
    start = shift(app, task, seconds)
    texts += [failure] if failure else []
    append_over(person, task, texts, start, [0.99 * lasted / len(texts)] * len(texts))
    if failure:
        person.report(task, status="error", error={"message": failure}, output={"read": number})
    else:
        person.report(task, status="complete", output={"sum": number})
    end(app, task, start + timedelta(seconds=lasted))


def _special(app: Flask, person: ApiClient, good_url: str, bad_url: str) -> None:
    silent = person.start("backup", name="Wiki backup", claim=True, callback=bad_url)
    start = shift(app, silent, 1_300)
    append_over(person, silent, ["Waiting for the lock of /srv/wiki …"], start, [0.3])
    end_for_silence(app, silent)
    end(app, silent, start + timedelta(seconds=900))
    lost = person.start("backup", name="Nightly backup", claim=True)
    start = shift(app, lost, 2_100)
    append_over(person, lost, UNREACHABLE, start, [0.1, 0.8, 40.0])
    person.report(lost, status="error", error={"message": "exit status 255"}, output={"files": 0})
    end(app, lost, start + timedelta(seconds=41))
    labels = {"env": "prod", "mailbox": "support@example.org"}
    earlier = INPUT | {"since": "2026-11-22"}
    digest: dict[str, Any] = {
        "name": "Support mailbox digest",
        "claim": True,
        "callback": bad_url,
    }
    good = person.start(**digest, input=earlier, labels=labels | {"version": "4.1"})
    start = shift(app, good, 86_400)
    append_over(person, good, [*lines(40)], start, [0.2] * 40)
    person.report(good, status="complete", output={"read": 40})
    end(app, good, start + timedelta(seconds=9))
    failed = person.start(**digest, input=INPUT, labels=labels | {"version": "4.2"})
    start = shift(app, failed, 340)
    # It hangs before it fails.
    append_over(person, failed, [*lines(214), *TRACEBACK], start, [0.2] * 214 + [100.0] + [0.0] * 3)
    person.report(failed, status="error", error={"message": FAILURE}, output={"read": 214})
    end(app, failed, start + timedelta(seconds=143))
    stopped = person.start("translator", name="Release notes 4.2 to French", claim=True)
    person.post(f"/task/{stopped['id']}/cancel")
    shift(app, stopped, 250, 47)
    done = person.start(
        name="Morning synopsis", input=INPUT, claim=True, callback=good_url, labels={"env": "prod"}
    )
    start = shift(app, done, 190)
    append_over(person, done, list(lines(1_482)), start, [0.05] * 1_482)
    person.report(done, status="complete", output=OUTPUT)
    end(app, done, start + timedelta(seconds=75))
    _family(app, person)
    person.start("translator", name="Release notes 4.3 to Greek", callback=good_url)
    running = person.start("invoice-reader", name="November invoices", input={"folder": "inbox"},
                           claim=True, callback=good_url)  # fmt: skip
    append_over(person, running, list(lines(318)), shift(app, running, 95), [0.25] * 318)
    person.report(running, progress=0.62, note="318 of 512 mails")


def _family(app: Flask, person: ApiClient) -> None:
    """A task that started others, one after another."""
    parent = person.start("link-checker", name="Check of all our sites", claim=True)
    for number, (site, seconds) in enumerate([("docs", 40), ("shop", 75), ("blog", 22)]):
        child = person.start(
            "link-checker", name=f"Check of the {site}", claim=True, parentId=parent["id"]
        )
        failure = "shop.example.org: Connection refused" if site == "shop" else None
        _run(
            app,
            person,
            child,
            [f"checking the {site}"],
            number,
            700 - 45 * number,
            seconds,
            failure,
        )
    start = shift(app, parent, 710)
    append_over(person, parent, ["3 sites, one of them failed"], start, [139.0])
    person.report(parent, status="complete", output={"sites": 3, "failed": ["shop"]})
    end(app, parent, start + timedelta(seconds=140))


def make_asking(app: Flask, name: str) -> ApiClient:
    """A user with two tasks that ask something, and one that has been answered before."""
    person = add_user(app, name)
    for agent_id in ("backup", "translator"):
        person.register(agent_id, name=AGENTS[agent_id][0], description=AGENTS[agent_id][1])
    tidy = person.start("backup", name="Tidy up of old backups", claim=True)
    start = shift(app, tidy, 400)
    append_over(person, tidy, TIDY, start, [1.0, 8.0, 20.0, 4.0])
    first = _ask(person, tidy, "The disk is 91 % full. How many days should be kept?", DAYS)
    body = {"action": "accept", "content": {"days": 30}}
    person.post(f"/task/{tidy['id']}/question/{first['id']}/answer", json=body)
    _ask(person, tidy, "Delete 41 backups from before 27 October, 312 GB?", DELETE)
    notes = person.start("translator", name="Release notes 4.3 to French", claim=True)
    shift(app, notes, 130)
    _ask(person, notes, "The notes name “Sammelrechnung” for the first time.", TERM)
    done = person.start("translator", name="Release notes 4.3 to German", claim=True)
    start = shift(app, done, 900)
    append_over(person, done, ["reading 4.3.md", "42 paragraphs"], start, [1.0, 70.0])
    person.report(done, status="complete", output={"paragraphs": 42})
    end(app, done, start + timedelta(seconds=95))
    return person


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
    """Append lines; `pauses` has the seconds between each and the one before."""
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


def end(app: Flask, task: dict[str, Any], moment: datetime) -> None:
    """Make a task that has ended look as if it had ended at this time."""
    set_columns(app, task, finished_at=rfc3339(moment))


def make_hostile(person: ApiClient, callback: str) -> dict[str, Any]:
    """A task, its agent and a key that hold what must do nothing, wherever it is shown."""
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
