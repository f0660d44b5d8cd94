"""A task that is cancelled raises soon, whatever the program waits for."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from taskservice.client import Task, TaskCancelled
from tests.support import receiver as play
from tests.support.api_client import RemoteClient
from tests.support.receiver import Exchange, Receiver
from tests.support.service_answers import passing_on
from tests.support.waiting import PATIENCE_SECONDS, until

LINE = "x" * 60_000


def cancel(person: RemoteClient, task: Task) -> None:
    person.cancel(task.data)


@dataclass
class Program:
    """Calls something with a task in a separate thread; `error` is what it raised."""

    deed: Callable[[], object]
    error: Exception | None = None
    thread: threading.Thread = field(init=False)

    def __post_init__(self) -> None:
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            self.deed()
        except Exception as error:
            self.error = error

    def end(self) -> Exception | None:
        """What was raised, once the thread has ended: sooner than by its own patience of 90 s."""
        self.thread.join(PATIENCE_SECONDS)
        assert not self.thread.is_alive()
        return self.error


def test_report_with_a_later_retry_raises_soon(remote_alice: RemoteClient) -> None:
    passed_on = passing_on(remote_alice)

    def behave(exchange: Exchange) -> None:
        is_report = exchange.request.method == "PATCH"
        (play.answer(503, {"Retry-After": "60"}) if is_report else passed_on)(exchange)

    with Receiver() as between:
        between.answer = behave
        task = remote_alice.client(between.url, patience=90).start("a")
        task.log("one")
        program = Program(lambda: task.report(name="new"))
        until(lambda: [r for r in between.requests if r.method == "PATCH"])
        cancel(remote_alice, task)
        assert isinstance(program.end(), TaskCancelled)


def test_log_raises_soon_while_lines_arrive(remote_alice: RemoteClient) -> None:
    """The service itself, which takes lines more slowly than the program makes them."""
    task = remote_alice.client().start("a")

    def log_on() -> None:
        while True:
            task.log("\n".join([LINE] * 20))

    programs = [Program(log_on) for _ in range(3)]
    until(lambda: remote_alice.read(f"/task/{task.id}?fields=logCount")["logCount"])
    cancel(remote_alice, task)
    for program in programs:
        assert isinstance(program.end(), TaskCancelled)
