"""Settings of PostgreSQL that the service must not depend on, and a test of its behaviour."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from flask import Flask

from taskservice.config import Config
from tests.support.api_client import ApiClient, expect
from tests.support.apps import new_app

TEXT = "☃ \\ 'one' %"
# Settings of a database or user on which the service must not depend.
SETTINGS = (
    {
        "datestyle": "German", "timezone": "Pacific/Auckland", "client_encoding": "LATIN1",
        "default_transaction_isolation": "serializable", "standard_conforming_strings": "off",
        "bytea_output": "escape",
    },
    {
        "datestyle": "SQL, DMY", "client_encoding": "SQL_ASCII",
        "default_transaction_isolation": "repeatable read", "default_transaction_deferrable": "on",
        "intervalstyle": "sql_standard", "extra_float_digits": "-15",
    },
)  # fmt: skip


@contextmanager  # fmt: skip
def app_at(url: str, folder: Path) -> Iterator[Flask]:
    config = Config(
        DATA=folder,
        DATABASE_URL=driven(url),
        SECRET_KEY="a secret key for tests, long enough",
        THREADS=4,
    )
    with new_app(config.completed()) as app:
        yield app


def driven(url: str) -> str:
    """The URL as the service has it, with the driver's name."""
    return url.replace("postgresql", "postgresql+psycopg", 1)


def work_a_while(alice: ApiClient) -> None:
    """The life of tasks, with all that a setting could break; every response is correct."""
    for _ in range(2):
        task = alice.start(name=TEXT, input={"text": TEXT}, claim=True, timeout=60)
        alice.append(task, TEXT)
        matches = expect(alice.get("/task", query_string={"q": TEXT.upper()}), 200)
        assert task["id"] in [listed["id"] for listed in matches]
        done = alice.report(task, status="complete", output={"text": TEXT})
        assert (done["name"], done["logs"], done["output"]) == (TEXT, [TEXT], {"text": TEXT})
        assert done["createdAt"] == task["createdAt"]
        assert expect(alice.get(f"/task/{task['id']}/logs"), 200)["logs"] == [TEXT]


def work_at_once(alice: ApiClient, threads: int = 4) -> None:
    with ThreadPoolExecutor(threads) as pool:
        for done in [pool.submit(work_a_while, alice) for _ in range(threads)]:
            done.result()
