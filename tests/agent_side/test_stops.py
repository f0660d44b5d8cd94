"""A task that is cancelled raises soon, whatever the program waits for."""

from concurrent.futures import ThreadPoolExecutor

from taskservice.client import TaskCancelled
from tests.support import receiver as play
from tests.support.api_client import RemoteClient
from tests.support.receiver import Received, Receiver
from tests.support.service_answers import passing_on
from tests.support.waiting import PATIENCE_SECONDS, until

LINE = "x" * 60_000


def is_report(request: Received) -> bool:
    return request.method == "PATCH"


def test_report_with_a_later_retry_raises_soon(remote_alice: RemoteClient) -> None:
    busy = play.answer(503, {"Retry-After": "60"})
    with Receiver() as between, ThreadPoolExecutor() as threads:
        between.answer = passing_on(remote_alice, is_report, busy)
        task = remote_alice.client(between.url, retry_timeout=90).start("a")
        task.log("one")
        reporting = threads.submit(task.report, name="new")
        until(lambda: any(map(is_report, between.requests)))
        remote_alice.cancel(task.data)
        # After 90 s of retries it would raise Unavailable.
        assert isinstance(reporting.exception(PATIENCE_SECONDS), TaskCancelled)


def test_log_raises_soon_while_lines_arrive(remote_alice: RemoteClient) -> None:
    """The service itself, which takes lines more slowly than the program makes them."""
    task = remote_alice.client().start("a")

    def log_on() -> None:
        while True:
            task.log("\n".join([LINE] * 20))

    with ThreadPoolExecutor() as threads:
        logging = [threads.submit(log_on) for _ in range(3)]
        until(lambda: remote_alice.read(f"/task/{task.id}?fields=logCount")["logCount"])
        remote_alice.cancel(task.data)
        for future in logging:
            assert isinstance(future.exception(PATIENCE_SECONDS), TaskCancelled)
