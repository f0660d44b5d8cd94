"""`taskservice demo`, as a user starts it, and its data in an app of a test."""

import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from flask import Flask

from taskservice.demo.history import USER, History
from tests.support.api_client import ApiClient, RemoteClient, add_user, expect
from tests.support.service import COMMAND, environment, free_port

DEMO = (*COMMAND, "demo", "--no-browser")


@dataclass
class Demo:
    """A running demo, its sign-in link, and a client with its key."""

    process: subprocess.Popen[str]
    link: str
    client: RemoteClient


def demo_environment(folder: Path, **settings: str) -> dict[str, str]:
    """An environment in which a demo has its data in this directory."""
    return environment(folder / "unused", **settings) | {"TMPDIR": str(folder)}


@contextmanager
def running_demo(folder: Path, command: Sequence[str] = COMMAND, **settings: str) -> Iterator[Demo]:
    """A demo that can be used."""
    variables = demo_environment(folder, **settings)
    arguments = [*command, "demo", "--no-browser", "--port", str(free_port())]
    with subprocess.Popen(
        arguments, env=variables, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout
        try:
            link, key = (process.stdout.readline().split()[-1] for _ in range(2))
            yield Demo(process, link, RemoteClient(link.partition("/sign-in/")[0], key))
        finally:
            process.terminate()


def demo_user(app: Flask, days: int = 1) -> ApiClient:
    """A new user with the last days of the demo's history."""
    person = add_user(app, USER)
    with app.app_context():
        History(expect(person.get("/user"), 200)["id"], days, long_log=1_000).store()
    return person
