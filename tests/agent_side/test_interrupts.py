"""Ctrl-C at any time leaves a task whose lines and end still arrive."""

import signal
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from types import FrameType
from typing import Any

import pytest

from taskservice.client import Task
from tests.support.api_client import RemoteClient
from tests.support.receiver import Exchange, Receiver
from tests.support.service_answers import passing_on

# Python looks for signals when a function begins, and after a call.
POINTS = ("call", "return", "c_return")


@pytest.fixture
def client_task(remote_alice: RemoteClient) -> Iterator[Task]:
    # A sender that waits for a lock does not wait for the service.
    client = remote_alice.client(retry_timeout=5)
    with client.start("agent") as task:
        task.log("first")
        yield task


def is_in_finalizer(frame: FrameType | None) -> bool:
    """Whether a finalizer runs, of which Python ignores all exceptions."""
    while frame is not None:
        if frame.f_code.co_filename == weakref.__file__:
            return True
        frame = frame.f_back
    return False


def interrupted_at(point: int, deed: Callable[[], object]) -> bool:
    """Whether the deed has that many points; it is interrupted at this one, as by Ctrl-C."""
    left = point

    def interrupt(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal left
        left -= event in POINTS
        if left <= 0 and event in POINTS and not is_in_finalizer(frame):
            sys.setprofile(None)
            raise KeyboardInterrupt

    try:
        sys.setprofile(interrupt)
        deed()
    except KeyboardInterrupt:
        return True
    finally:
        sys.setprofile(None)
    return False


def test_line_may_be_interrupted_at_any_time(remote_alice: RemoteClient, client_task: Task) -> None:
    point = 1
    while interrupted_at(point, partial(client_task.log, point)):
        point += 1
    client_task.complete()
    logs = remote_alice.the_task()["logs"]
    assert point > 10
    # An interrupted line is there or not; none comes twice, or in another place.
    assert logs[0] == "first"
    assert logs[-1] == str(point)
    numbers = list(map(int, logs[1:]))
    assert numbers == sorted(set(numbers))


@pytest.mark.parametrize("point", range(1, 60, 3))
def test_end_may_be_interrupted_at_any_time(
    remote_alice: RemoteClient, client_task: Task, point: int
) -> None:
    if interrupted_at(point, client_task.complete):
        client_task.complete()
    assert remote_alice.the_task()["status"] == "complete"


def test_end_may_be_interrupted_while_it_waits(remote_alice: RemoteClient) -> None:
    pass_on, may_answer = passing_on(remote_alice), threading.Event()
    main = threading.get_ident()

    def hold(exchange: Exchange) -> None:
        if exchange.request.method == "PATCH" and not may_answer.is_set():
            signal.pthread_kill(main, signal.SIGINT)
            may_answer.wait()
        pass_on(exchange)

    with Receiver() as between:
        between.answer = hold
        task = remote_alice.client(between.url).start("agent")
        task.log("line")
        with pytest.raises(KeyboardInterrupt):
            task.complete()
        may_answer.set()
        task.complete()
    assert remote_alice.the_task()["status"] == "complete"
