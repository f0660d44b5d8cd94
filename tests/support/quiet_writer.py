"""A writer in a separate process, which writes little and measures how long it waits."""

import subprocess
import sys
import time
from select import select

from tests.support.api_client import RemoteClient

PAUSE_SECONDS = 0.01


class QuietWriter:
    """Appends lines while the block runs; then `worst` is its longest wait."""

    worst: float

    def __init__(self, person: RemoteClient) -> None:
        self._task = person.start()["id"]
        self._arguments = [person.url, person.key, self._task]

    def __enter__(self) -> "QuietWriter":
        command = [sys.executable, "-m", "tests.support.quiet_writer", *self._arguments]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"
        return self

    def __exit__(self, *_: object) -> None:
        told = self._process.communicate(timeout=60)[0]
        self.worst = float(told or "inf")


def write(url: str, key: str, task_id: str) -> float:
    """The longest of the waits until stdin is closed, in seconds."""
    person = RemoteClient(url, key)
    # The first one also connects.
    waits = [0.0]
    person.session.put(f"{url}/api/v1/task/{task_id}/logs", data=b"a line\n", timeout=30)
    print("ready", flush=True)
    while not select([sys.stdin], [], [], PAUSE_SECONDS)[0]:
        began = time.perf_counter()
        person.session.put(
            f"{url}/api/v1/task/{task_id}/logs", data=b"a line\n", timeout=30
        ).raise_for_status()
        waits.append(time.perf_counter() - began)
    return max(waits)


if __name__ == "__main__":
    print(write(*sys.argv[1:]))
