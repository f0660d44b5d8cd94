"""How many SQL statements and connections something uses."""

from collections.abc import Callable
from typing import Any
from unittest.mock import patch

from flask import Flask

from taskservice import resources
from taskservice.database.engine import Database
from tests.support.internals import before_reads, before_writes


def used(app: Flask, deed: Callable[[], Any]) -> tuple[int, int, int]:
    """How many connections for reads a deed uses, and how many statements that read and write."""
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
