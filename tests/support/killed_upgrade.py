"""Runs a command of the service, which is killed at the n-th point of a migration.

    KILL_AT=n python -m tests.support.killed_upgrade db upgrade

Such points are before and after each statement and each commit.
"""

import itertools
import os
import signal
from typing import Any

from sqlalchemy import Engine, event
from sqlalchemy.engine.default import DefaultDialect

from taskservice.cli import main

AT = int(os.environ["KILL_AT"])

points = itertools.count(1)
do_commit: Any = DefaultDialect.do_commit


def point(*_: Any) -> None:
    if next(points) == AT:
        os.kill(os.getpid(), signal.SIGKILL)


def commit_between_points(dialect: DefaultDialect, connection: Any) -> None:
    point()
    do_commit(dialect, connection)
    point()


event.listen(Engine, "before_cursor_execute", point)
event.listen(Engine, "after_cursor_execute", point)
DefaultDialect.do_commit = commit_between_points  # type: ignore[method-assign]

if __name__ == "__main__":
    main()
