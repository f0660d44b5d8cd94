"""Runs a command of the service, which is killed at the n-th moment of a migration.

    KILL_AT=n python -m tests.support.killed_upgrade db upgrade

Such moments are before and after each statement and each commit.
"""

import itertools
import os
import signal
from typing import Any

from sqlalchemy import Engine, event
from sqlalchemy.engine.default import DefaultDialect

from taskservice.cli import main

AT = int(os.environ["KILL_AT"])

moments = itertools.count(1)
do_commit: Any = DefaultDialect.do_commit


def moment(*_: Any) -> None:
    if next(moments) == AT:
        os.kill(os.getpid(), signal.SIGKILL)


def commit_between_moments(dialect: DefaultDialect, connection: Any) -> None:
    moment()
    do_commit(dialect, connection)
    moment()


event.listen(Engine, "before_cursor_execute", moment)
event.listen(Engine, "after_cursor_execute", moment)
DefaultDialect.do_commit = commit_between_moments  # type: ignore[method-assign]

if __name__ == "__main__":
    main()
