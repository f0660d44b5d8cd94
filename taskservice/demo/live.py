"""Three live agents of the demo: one reports progress, one asks, and one sometimes fails."""

import random
import threading
import time
from collections.abc import Callable, Iterator

from taskservice.client import Client, Task, TaskServiceError
from taskservice.demo.history import DEPLOY, PRICES, RELEASE, SUPPLIERS, UNAVAILABLE, VIDEO

FRAMES, FRAMES_PER_STEP = 4_800, 80
QUESTION_SECONDS = 3_600
STOP_SECONDS = 1.0


class LiveAgents:
    """Runs each agent in a daemon thread."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._random = random.Random()  # noqa: S311 - not for security
        self._stopping = threading.Event()
        works = (self._encode, self._release, self._watch_prices)
        self._threads = [
            threading.Thread(target=self._repeat, args=[work], daemon=True) for work in works
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Give the agents a second to send their last lines.

        The thread of an agent that waits for an answer continues until the process ends.
        """
        self._stopping.set()
        end = time.monotonic() + STOP_SECONDS
        for thread in filter(threading.Thread.is_alive, self._threads):
            thread.join(max(0, end - time.monotonic()))

    def _repeat(self, work: Callable[[int], None]) -> None:
        number = 0
        while not self._stopping.is_set():
            number += 1
            try:
                work(number)
            except TaskServiceError:
                # The task was cancelled or deleted, or the service is stopping.
                self._stopping.wait(5)

    def _seconds(self, count: int, seconds: float) -> Iterator[int]:
        """The numbers from 1 to `count`, with a pause of `seconds` after each number."""
        for number in range(1, count + 1):
            yield number
            if self._stopping.wait(seconds):
                return

    def _start(self, agent_id: str, name: str | None = None, **labels: str) -> Task:
        return self._client.start(agent_id, name=name, labels=labels)

    def _encode(self, number: int) -> None:
        with self._start(VIDEO, f"Morning recording, part {number}") as task:
            for step in self._seconds(FRAMES // FRAMES_PER_STEP, 1):
                frames = step * FRAMES_PER_STEP
                speed = self._random.uniform(70, 90)
                task.log(f"frame {frames:5,} of {FRAMES:,}  {speed:.1f} frames/s")
                task.progress(frames, FRAMES, "frames")
            task.complete(frames=FRAMES, megabytes=212)

    def _release(self, number: int) -> None:
        if self._stopping.wait(60):
            return
        version = f"4.70.{number}"
        with self._start(RELEASE, f"Release {version}", env="production", version=version) as task:
            for line in (f"building {version}", "1,204 tests passed", "waiting for an answer"):
                task.log(line)
                if self._stopping.wait(1):
                    return
            question = DEPLOY.format(version)
            answer = task.ask(question, choices=["yes", "no"], timeout=QUESTION_SECONDS)
            task.log("deployed" if answer == "yes" else "not deployed")
            task.complete(version=version, deployed=answer == "yes")

    def _watch_prices(self, number: int) -> None:
        with self._start(PRICES) as task:
            for supplier, products in SUPPLIERS.items():
                self._stopping.wait(3)
                if supplier in UNAVAILABLE and number % 3 == 0:
                    task.log(UNAVAILABLE)
                    task.fail(UNAVAILABLE)
                    break
                task.log(f"{supplier}: {products} prices")
            else:
                changed = self._random.randrange(14)
                task.log(f"{changed} prices have changed")
                task.complete(products=sum(SUPPLIERS.values()), changed=changed)
        self._stopping.wait(20)
