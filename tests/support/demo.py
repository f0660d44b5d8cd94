"""`taskservice demo`, as a user starts it."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.api_client import RemoteClient
from tests.support.service import COMMAND, environment, free_port

DEMO = (*COMMAND, "demo", "--no-browser")


@dataclass
class Demo:
    """A running demo, its sign-in link, and a client with its key."""

    process: subprocess.Popen[str]
    link: str
    client: RemoteClient


def demo_environment(folder: Path, **settings: str) -> dict[str, str]:
    """An environment in which a demo has its data in this folder."""
    return environment(folder / "unused", **settings) | {"TMPDIR": str(folder)}


@contextmanager
def running_demo(folder: Path, **settings: str) -> Iterator[Demo]:
    """A demo that can be used."""
    variables = demo_environment(folder, **settings)
    command = [*DEMO, "--port", str(free_port())]
    with subprocess.Popen(
        command, env=variables, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout
        try:
            link, key = (process.stdout.readline().split()[-1] for _ in range(2))
            yield Demo(process, link, RemoteClient(link.partition("/sign-in/")[0], key))
        finally:
            process.terminate()
