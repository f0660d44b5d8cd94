"""Two months of tasks of eight agents, from a fixed random seed."""

import random
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, time, timedelta
from itertools import takewhile
from operator import itemgetter
from typing import Any
from uuid import UUID

from sqlalchemy import insert, update

from taskservice.database import clock
from taskservice.database.clock import rfc3339
from taskservice.database.models import Agent, LogChunk, Question, Task, TaskLabel
from taskservice.database.transactions import transaction
from taskservice.schemas import strict_json
from taskservice.services import agents, logs, questions
from taskservice.services.reports import CANCELLED_MESSAGE
from taskservice.terms import BROKEN, CANCELLED, FAILED, OK, OPEN, SERVICE, TIMEOUT

DAYS = 60
LONG_LOG_LINES = 100_000
USER, KEY_NAME = "demo", "first"

BACKUP, INVOICES, REPORT, VIDEO = (
    "nightly-backup",
    "invoice-import",
    "report-mailer",
    "video-encoder",
)
RELEASE, PRICES, SITE, RESEARCH = "release-manager", "price-watcher", "site-check", "researcher"
AGENTS = {
    BACKUP: ("Nightly backup", "Copies the database to the NAS, every night at two."),
    INVOICES: ("Invoice import", "Imports new invoices from the mailbox into the accounts."),
    REPORT: ("Report mailer", "Sends the sales report, every morning at seven."),
    VIDEO: ("Video encoder", "Encodes the day's recordings for the website."),
    RELEASE: ("Release manager", "Builds a release, and asks before it deploys."),
    PRICES: ("Price watcher", "Compares our prices with the prices of three suppliers."),
    SITE: ("Site check", "Checks the most important pages of the shop."),
    RESEARCH: ("Researcher", "An LLM agent that reads sources and writes a summary."),
}
EXPECTED: dict[str, Any] = {
    BACKUP: {"cron": "0 2 * * *", "timeZone": "UTC", "grace": 3_600, "maxDuration": 3_600},
    REPORT: {"cron": "0 7 * * *", "timeZone": "UTC", "grace": 1_800},
}
TABLES = ("customers", "orders", "order_lines", "products", "prices", "events")
SUPPLIERS = {"supplier-a.example": 120, "supplier-b.example": 96, "supplier-c.example": 102}
UNAVAILABLE = "supplier-c.example: HTTP 503 Service Unavailable"
PAGES = ("/", "/search", "/cart", "/checkout", "/account")
NO_VAT_ID = """\
Traceback (most recent call last):
  File "/srv/invoices/importer.py", line 88, in import_invoice
    raise ValueError(f"invoice {invoice.number} has no VAT ID")
ValueError: invoice 2026-0815 has no VAT ID"""
QUESTION = """\
Two sources disagree about the price of the small plan. The website says €12 a month, but the \
price list says €14. Which one is right?"""
DEPLOY = "Deploy {} to production? 12 changes, all tests pass."
SUMMARY = """\
## Summary

Of {count} sources, {used} were useful.

1. The market grew by **{percent}%** in a year.
2. Three competitors have raised their prices.

> Self-hosted products are named more often than a year ago."""


class History:
    """The history of a user's tasks."""

    def __init__(self, user_id: str, days: int = DAYS, long_log: int = LONG_LOG_LINES) -> None:
        self._user_id, self._now = user_id, datetime.now(UTC)
        self._days, self._long_log = days, long_log
        self._random = random.Random(8)  # noqa: S311 - reproducible
        # Rows of the tables, by column name, and the chunks of each task's log.
        self._tasks: list[dict[str, Any]] = []
        self._labels: list[dict[str, str]] = []
        self._questions: list[dict[str, Any]] = []
        self._logs: list[tuple[str, list[logs.Chunk]]] = []

    def store(self) -> None:
        """Store the tasks, with an agent that is late and a task that hangs."""
        for day in range(self._days, -1, -1):
            self._add_day(datetime.combine(self._now - timedelta(days=day), time(), UTC))
        self._add_today()
        with transaction() as connection:
            connection.execute(insert(Agent), [self._agent(agent_id) for agent_id in AGENTS])
            connection.execute(insert(Task), sorted(self._tasks, key=itemgetter("id")))
            connection.execute(insert(TaskLabel), self._labels)
            for task_id, chunks in self._logs:
                log_id = logs.NEW_LOG.scalar(connection, task_id=task_id)
                connection.execute(insert(LogChunk), list(_chunk_rows(log_id, chunks)))
            connection.execute(insert(Question), self._questions)
            for question in self._questions:
                task_id = question["task_id"]
                values = {"questions": questions.open_json(connection, task_id)}
                connection.execute(update(Task).where(Task.id == task_id).values(values))

    def _agent(self, agent_id: str) -> dict[str, Any]:
        """The row of an agent, whose state follows from its finished tasks."""
        name, description = AGENTS[agent_id]
        fields = {"name": name, "description": description, "expect": EXPECTED.get(agent_id)}
        began = rfc3339(self._now - timedelta(days=self._days))
        row: dict[str, Any] = {"user_id": self._user_id, "id": agent_id, "created_at": began}
        row |= {"state": None, "state_since": None, "failures": 0, **agents.columns(fields)}
        ended = sorted(
            (task["finished_at"], task["error_type"] is not None)
            for task in self._tasks
            if task["agent_id"] == agent_id
            and task["finished_at"] is not None
            and task["error_type"] != CANCELLED
        )
        if ended:
            is_broken = ended[-1][1]
            last = list(takewhile(lambda task: task[1] == is_broken, reversed(ended)))
            row |= {"state": BROKEN if is_broken else OK, "state_since": last[-1][0]}
            row["failures"] = len(last) if is_broken else 0
        if agent_id == REPORT:
            due = self._last(7)
            late = rfc3339(due + timedelta(seconds=EXPECTED[REPORT]["grace"]))
            row |= {"due_at": rfc3339(due), "late_at": late, "late_since": late}
        return row

    def _last(self, hour: int) -> datetime:
        """The most recent time at this hour, in UTC, that is at least two hours ago."""
        at = datetime.combine(self._now, time(hour), UTC)
        return at if self._now - at >= timedelta(hours=2) else at - timedelta(days=1)

    def _days_ago(self, at: datetime) -> int:
        return (self._now.date() - at.date()).days

    def _add_day(self, day: datetime) -> None:
        self._add_backup(day + timedelta(hours=2))
        self._add_report(day + timedelta(hours=7))
        for hour in range(0, 24, 3):
            self._add_invoices(day + timedelta(hours=hour, minutes=5))
        for hour in range(1, 24, 6):
            self._add_prices(day + timedelta(hours=hour))
            self._add_site_check(day + timedelta(hours=hour, minutes=30))
        for hour in (9, 15):
            self._add_video(day + timedelta(hours=hour, minutes=self._random.randrange(50)))
        self._add_research(day + timedelta(hours=10, minutes=self._random.randrange(60)))
        if day.weekday() in (1, 3):
            self._add_release(day + timedelta(hours=14, minutes=20))

    def _add_today(self) -> None:
        """Add a backup that hangs, two open questions, and a task with a very long log."""
        self._add_backup(self._last(2), hangs=True)
        self._add(
            RESEARCH, self._now - timedelta(minutes=22), 240, "Prices of our competitors",
            ["Reading 14 sources", "Comparing prices", "2 sources disagree"], {}, status="running",
            labels={"customer": "acme"}, progress=9 / 14, note="9 of 14 sources",
        )  # fmt: skip
        price = {"type": "string", "enum": ["€12", "€14", "neither"]}
        self._ask(self._now - timedelta(minutes=18), QUESTION, "price", price)
        self._add(
            RELEASE, self._now - timedelta(minutes=9), 240, "Release 4.70.0",
            ["building 4.70.0", "1,204 tests passed", "waiting for an answer"], {},
            status="running", labels={"env": "production", "version": "4.70.0"},
        )  # fmt: skip
        deploy = {"type": "string", "enum": ["yes", "no"]}
        self._ask(self._now - timedelta(minutes=5), DEPLOY.format("4.70.0"), "answer", deploy)
        pages = [
            f"GET /standards/{number:06}.html 200 {self._random.randrange(2_000, 90_000)} bytes"
            for number in range(1, self._long_log + 1)
        ]
        began, count = self._now - timedelta(hours=20), f"{self._long_log:,}"
        self._add(
            RESEARCH, began, 5_400, "Crawl of the standards archive", pages,
            {"pages": self._long_log}, labels={"customer": "globex"}, progress=1.0,
            note=f"{count} of {count} pages",
        )  # fmt: skip

    def _ask(self, asked: datetime, message: str, name: str, field: dict[str, Any]) -> None:
        """Add an open question with one field to the task that was added last."""
        schema = {"type": "object", "properties": {name: field}, "required": [name]}
        self._questions.append(
            {
                "id": self._id(asked),
                "task_id": self._tasks[-1]["id"],
                "message": message,
                "schema": _json(schema),
                "state": OPEN,
                "asked_at": rfc3339(asked),
            }
        )

    def _add_backup(self, began: datetime, hangs: bool = False) -> None:
        if began >= self._last(2) and not hangs:
            return
        rows = [self._random.randrange(10_000, 900_000) for _ in TABLES]
        log = ["Backup of shop to nas.lan:/backup"]
        log += [
            f"dumped {table}: {count:,} rows" for table, count in zip(TABLES, rows, strict=True)
        ]
        if hangs:
            log[-1] = f"dumping {TABLES[-1]}: 61%"
            self._add(BACKUP, began, 400, "", log, {}, status="running", progress=0.94,
                      note=f"table {len(TABLES)} of {len(TABLES)}")  # fmt: skip
            longest = timedelta(seconds=EXPECTED[BACKUP]["maxDuration"])
            self._tasks[-1] |= {
                "hanging_since": rfc3339(began + longest),
                "hanging_reason": "runs for 1 h 4 s, longer than its maximum of 1 h",
            }
            return
        megabytes = sum(rows) // 4_000
        log += [f"wrote {megabytes} MB", "checksum is right"]
        seconds = self._random.uniform(640, 800)
        self._add(BACKUP, began, seconds, "", log, {"rows": sum(rows), "megabytes": megabytes})

    def _add_report(self, began: datetime) -> None:
        # The last expected run is missing, so that the agent is late.
        if began < self._last(7):
            orders = self._random.randrange(180, 420)
            log = [
                "Reading yesterday's sales",
                f"{orders} orders",
                "Sent to sales@example.org",
            ]
            output = {"orders": orders, "revenue": round(orders * self._random.uniform(38, 52), 2)}
            self._add(REPORT, began, self._random.uniform(8, 20), "Sales report", log, output)

    def _add_invoices(self, began: datetime) -> None:
        if began >= self._now:
            return
        count = self._random.randrange(3, 9)
        first = 1_000 + int(began.timestamp() // 3_600) % 3_000
        log = [f"{count} new invoices in the mailbox"]
        log += [f"imported invoice 2026-{first + number}" for number in range(count)]
        if self._now - began < timedelta(hours=14):
            # For 14 hours, each run has failed at the same invoice.
            log = [log[0], "importing invoice 2026-0815"]
            self._add(INVOICES, began, 4.2, "", log, {}, error=NO_VAT_ID)
            return
        amount = round(sum(self._random.uniform(40, 900) for _ in range(count)), 2)
        self._add(INVOICES, began, count * 1.4, "", log, {"invoices": count, "amount": amount})

    def _add_prices(self, began: datetime) -> None:
        if began >= self._now - timedelta(hours=1):
            return
        log = [f"{supplier}: {products} prices" for supplier, products in SUPPLIERS.items()]
        # The last task must not fail, so that the agent is not broken.
        if self._days_ago(began) > 1 and self._random.random() < 0.06:
            self._add(PRICES, began, 31, "", log[:-1], {}, error=UNAVAILABLE)
            return
        changed = self._random.randrange(0, 14)
        log.append(f"{changed} prices have changed")
        self._add(PRICES, began, self._random.uniform(9, 16), "", log,
                  {"products": sum(SUPPLIERS.values()), "changed": changed})  # fmt: skip

    def _add_site_check(self, began: datetime) -> None:
        if began >= self._now - timedelta(hours=1):
            return
        times = [round(self._random.uniform(80, 400)) for _ in PAGES]
        log = [f"{page} 200 in {ms} ms" for page, ms in zip(PAGES, times, strict=True)]
        seconds = sum(times) / 1_000 + 2
        parent_id = self._add(SITE, began, seconds, "Shop", log, {"slowest_ms": max(times)})
        for number, (page, ms) in enumerate(zip(PAGES, times, strict=True)):
            at = began + timedelta(seconds=0.2 + number / 5)
            log = [f"GET https://shop.example.org{page}", f"200 in {ms} ms"]
            self._add(SITE, at, ms / 1_000, f"Shop {page}", log, {"ms": ms}, parent=parent_id)

    def _add_video(self, began: datetime) -> None:
        if began >= self._now - timedelta(hours=1):
            return
        minutes = self._random.randrange(8, 42)
        log = [f"recording of {minutes} minutes", "pass 1 of 2", "pass 2 of 2", "uploaded"]
        output = {"minutes": minutes, "megabytes": minutes * self._random.randrange(18, 26)}
        name = f"Recording {began:%d %B}"
        if self._days_ago(began) % 20 == 3 and began.hour == 15:
            # Simulate a computer that went to sleep.
            silence = "Its agent sent nothing for 15 minutes"
            self._add(VIDEO, began, 1_020, name, log[:2], {}, error=silence, error_type=TIMEOUT)
            return
        self._add(VIDEO, began, minutes * 34, name, log, output)

    def _add_release(self, began: datetime) -> None:
        if began >= self._now - timedelta(hours=1):
            return
        number = f"4.{(began - self._now).days + 70}"
        log = [f"building {number}", "1,204 tests passed", "deploying to production", "healthy"]
        labels = {"env": "production", "version": number}
        if self._days_ago(began) // 7 % 5 == 1 and began.weekday() == 3:
            self._add(RELEASE, began, 95, f"Release {number}", log[:1], {}, labels=labels,
                      error=CANCELLED_MESSAGE, error_type=CANCELLED)  # fmt: skip
            return
        self._add(RELEASE, began, self._random.uniform(300, 500), f"Release {number}", log,
                  {"version": number}, labels=labels)  # fmt: skip

    def _add_research(self, began: datetime) -> None:
        if began >= self._now - timedelta(hours=1):
            return
        count = self._random.randrange(8, 22)
        used = count - self._random.randrange(1, 5)
        log = [f"reading source {number} of {count}" for number in range(1, count + 1)]
        text = SUMMARY.format(count=count, used=used, percent=self._random.randrange(4, 19))
        tokens = {"input_tokens": count * 5_210, "output_tokens": used * 96}
        output = {"summary": text, "total_cost_usd": round(count * 0.0174, 4), "usage": tokens}
        labels = {"customer": self._random.choice(["acme", "globex"])}
        self._add(RESEARCH, began, count * 21, "Market summary", log, output, labels=labels)

    def _id(self, at: datetime) -> str:
        """A time-ordered UUID."""
        milliseconds = int(at.timestamp() * 1_000)
        bits = (milliseconds << 80) | 7 << 76 | self._random.getrandbits(12) << 64
        return str(UUID(int=bits | 2 << 62 | self._random.getrandbits(62)))

    def _add(
        self,
        agent_id: str,
        began: datetime,
        seconds: float,
        name: str,
        log: Sequence[str],
        output: dict[str, Any],
        *,
        status: str = "complete",
        error: str | None = None,
        error_type: str = FAILED,
        labels: dict[str, str] | None = None,
        parent: str | None = None,
        progress: float | None = None,
        note: str | None = None,
    ) -> str:
        """Add a task that was active for `seconds`.

        The lines of its log are evenly spaced in time. If the task failed, the last lines contain
        the error.
        """
        ended = began + timedelta(seconds=seconds)
        is_running = status == "running"
        task_id = self._id(began)
        log = [*log, *(error.split("\n") if error and error_type == FAILED else [])]
        # All rows have the same keys, since one statement inserts them.
        name = name or AGENTS[agent_id][0]
        task = {
            "id": task_id,
            "user_id": self._user_id,
            "agent_id": agent_id,
            "name": name,
            "name_folded": name.casefold(),
            "status": "error" if error else status,
            "error_type": error_type if error else None,
            "error_message": error,
            "started_by": KEY_NAME,
            "ended_by": None if is_running else SERVICE if error_type == TIMEOUT else KEY_NAME,
            "input": "{}",
            "output": _json(output),
            "labels": _json(labels or {}),
            "progress": None if progress is None else _json(progress),
            "note": note,
            "parent_id": parent,
            "created_at": rfc3339(began),
            "claimed_at": rfc3339(began),
            "updated_at": rfc3339(ended),
            "finished_at": None if is_running else rfc3339(ended),
            "last_heartbeat_at": rfc3339(self._now),
            "hanging_since": None,
            "hanging_reason": None,
            "first_log": 1,
            "log_count": len(log),
            "log_bytes": sum(len(line.encode()) + 1 for line in log),
            "default_writer_seq": len(log),
            "version": 3,
        }
        self._tasks.append(task)
        for key, value in (labels or {}).items():
            label = {"task_id": task_id, "label": f"{key}:{value}", "user_id": self._user_id}
            self._labels.append(label)
        step = timedelta(seconds=seconds / (len(log) + 1))
        at = [clock.milliseconds(rfc3339(began + step * line)) for line in range(1, len(log) + 1)]
        self._logs.append((task_id, logs.from_strings(log, at)))
        return task_id


def _chunk_rows(log_id: int, chunks: Sequence[logs.Chunk]) -> Iterator[dict[str, Any]]:
    last = 0
    for chunk in chunks:
        last += chunk.count
        row = {"log_id": log_id, "last": last, "count": chunk.count, "text": chunk.text}
        at, times = clock.encode(chunk.times)
        yield row | {"at": at, "times": times}


def _json(value: Any) -> str:
    return strict_json.dumps(value).decode()
