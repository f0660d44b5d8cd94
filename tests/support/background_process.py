"""`taskservice background` in a separate process."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from flask import Flask

from tests.support.fork_server import ForkedPopen
from tests.support.service import COMMAND, environment
from tests.support.waiting import PATIENCE_SECONDS, until


class Background:
    """`taskservice background` on the database of an app; it has started when this returns."""

    def __init__(self, app: Flask, **settings: str) -> None:
        self.environment = environment(
            app.config["DATA"], DATABASE_URL=app.config["DATABASE_URL"],
            CALLBACK_ALLOWED="loopback", **settings,
        )  # fmt: skip
        # A file, since a pipe without a reader would become full.
        folder = Path(app.config["DATA"])
        folder.mkdir(exist_ok=True)
        self.log = folder / f"background-{uuid4().hex}.log"
        with open(self.log, "wb") as log:
            self.process = ForkedPopen([*COMMAND, "background"], env=self.environment, stderr=log)
        until(lambda: "started" in self.log.read_text() or self.process.poll() is not None)
        assert self.process.poll() is None, self.log.read_text()

    def end(self, signum: int) -> int:
        """The exit status of the process, which must end after this signal."""
        self.process.send_signal(signum)
        return self.process.wait(PATIENCE_SECONDS)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@contextmanager
def working(app: Flask, **settings: str) -> Iterator[Background]:
    process = Background(app, **settings)
    try:
        yield process
    finally:
        process.kill()
