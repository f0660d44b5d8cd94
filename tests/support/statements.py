"""The number of SQL statements and connections of an action."""

from collections.abc import Callable
from typing import Any
from unittest.mock import patch

from flask import Flask

from taskservice import resources
from taskservice.database.engine import Database
from tests.support.internals import before_reads, before_writes


def used(app: Flask, deed: Callable[[], Any]) -> tuple[int, int, int]:
    """The number of connections for reads, and of statements that read and write, of an action."""
    reads: list[str] = []
    writes: list[str] = []
    connections = resources.find(Database, app).reads
    with (
        patch.object(connections, "acquire", wraps=connections.acquire) as acquire,
        before_reads(app, lambda sql, _: reads.append(sql)),
        before_writes(app, lambda sql, _: writes.append(sql)),
    ):
        deed()
    return acquire.call_count, len(reads), len(writes)
