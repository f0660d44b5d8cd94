"""Many callers at the same instant, each with a separate thread and connection."""

import fcntl
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import BinaryIO, TypeVar

from tests.support.api_client import RemoteClient

T = TypeVar("T")


def at_once(deeds: Sequence[Callable[[], T]]) -> list[T]:
    """Call all of these at the same instant; returns their results, in their order."""
    start = threading.Barrier(len(deeds))

    def wait_and_do(deed: Callable[[], T]) -> T:
        start.wait(timeout=30)
        return deed()

    with ThreadPoolExecutor(len(deeds)) as pool:
        return list(pool.map(wait_and_do, deeds))


def copies(person: RemoteClient, count: int) -> list[RemoteClient]:
    """This many clients of one user, each with an open connection."""
    key = person.key
    people = [RemoteClient(person.url, key) for _ in range(count)]
    for one in people:
        one.request("GET", "/user").raise_for_status()
    return people


def is_free(queue: BinaryIO) -> bool:
    try:
        fcntl.flock(queue, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    fcntl.flock(queue, fcntl.LOCK_UN)
    return True
