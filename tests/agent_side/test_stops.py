"""A cancelled or deleted task raises soon, whatever its sender is doing."""

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest

from taskservice.client import Client, NotFound, Task, TaskCancelled
from tests.support import receiver as play
from tests.support.api_client import RemoteClient
from tests.support.receiver import Behaviour, Exchange, Received, Receiver
from tests.support.service_answers import losing
from tests.support.waiting import PATIENCE_SECONDS, until

# So many lines of 60,000 bytes are 16 MiB; the next one must wait.
MOST_LINES = 280
LINE = "x" * 60_000
PAUSING = play.answer(503, {"Retry-After": "1000"})
# What becomes of the sender's appends: it pauses after them, or waits for their answer.
STATES = {"in a pause": PAUSING, "in a request": play.silence}

# The client, and whether one of its senders is held up.
HeldUp = tuple[Client, Callable[[], bool]]


def has_lines(request: Received) -> bool:
    return b'"seq"' in request.body


@pytest.fixture(params=list(STATES.values()), ids=list(STATES))
def held_up(request: pytest.FixtureRequest, remote_alice: RemoteClient) -> Iterator[HeldUp]:
    """A client whose senders get no line to the service."""
    state: Behaviour = request.param
    passed_on = losing(remote_alice, lambda number: False)

    def behave(exchange: Exchange) -> None:
        (state if has_lines(exchange.request) else passed_on)(exchange)

    with Receiver() as between:
        between.answer = behave
        client = Client(between.url, str(remote_alice.session.headers["apikey"]), patience=90)
        yield client, lambda: any(map(has_lines, between.requests))


def cancel(person: RemoteClient, task: Task) -> None:
    person.request("POST", f"/task/{task.id}/cancel").raise_for_status()


def delete(person: RemoteClient, task: Task) -> None:
    person.request("DELETE", f"/task/{task.id}").raise_for_status()


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


stops = pytest.mark.parametrize(
    ("stop", "kind"), [(cancel, TaskCancelled), (delete, NotFound)], ids=["cancelled", "deleted"]
)


@stops
def test_log_that_waits_for_room_raises_soon(
    remote_alice: RemoteClient,
    held_up: HeldUp,
    stop: Callable[[RemoteClient, Task], None],
    kind: type[Exception],
) -> None:
    client, is_held_up = held_up
    task = client.start("a")
    logged: list[int] = []

    def log_on() -> None:
        while True:
            task.log(LINE)
            logged.append(1)

    program = Program(log_on)
    until(lambda: len(logged) == MOST_LINES)
    until(is_held_up)
    stop(remote_alice, task)
    assert isinstance(program.end(), kind)
    assert len(logged) == MOST_LINES
    for deed in (
        task.check,
        lambda: task.log("more"),
        lambda: task.report(output={"sum": 1}),
        task.complete,
    ):
        with pytest.raises(kind):
            deed()


ENDS: dict[str, Callable[[Task], object]] = {
    "complete": lambda task: task.complete(),
    "fail": lambda task: task.fail("no"),
    "report": lambda task: task.report(status="complete"),
    "with": lambda task: task.__exit__(None, None, None),
}


@stops
@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
def test_end_that_waits_for_its_lines_raises_soon(
    remote_alice: RemoteClient,
    held_up: HeldUp,
    end: Callable[[Task], object],
    stop: Callable[[RemoteClient, Task], None],
    kind: type[Exception],
) -> None:
    client, is_held_up = held_up
    task = client.start("a")
    task.log("one")
    program = Program(lambda: end(task))
    until(is_held_up)
    stop(remote_alice, task)
    assert isinstance(program.end(), kind)


def test_report_with_a_later_retry_raises_soon(remote_alice: RemoteClient) -> None:
    passed_on = losing(remote_alice, lambda number: False)

    def behave(exchange: Exchange) -> None:
        is_report = exchange.request.method == "PATCH"
        (play.answer(503, {"Retry-After": "60"}) if is_report else passed_on)(exchange)

    with Receiver() as between:
        between.answer = behave
        task = Client(between.url, str(remote_alice.session.headers["apikey"]), patience=90).start(
            "a"
        )
        task.log("one")
        program = Program(lambda: task.report(name="new"))
        until(lambda: [r for r in between.requests if r.method == "PATCH"])
        cancel(remote_alice, task)
        assert isinstance(program.end(), TaskCancelled)


def test_log_raises_soon_while_lines_arrive(remote_alice: RemoteClient) -> None:
    """The service itself, which takes lines more slowly than the program makes them."""
    task = Client(remote_alice.url, str(remote_alice.session.headers["apikey"])).start("a")

    def log_on() -> None:
        while True:
            task.log("\n".join([LINE] * 20))

    programs = [Program(log_on) for _ in range(3)]
    until(
        lambda: remote_alice.request("GET", f"/task/{task.id}?fields=logCount").json()["logCount"]
    )
    cancel(remote_alice, task)
    for program in programs:
        assert isinstance(program.end(), TaskCancelled)
