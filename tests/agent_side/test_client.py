"""`taskservice.client`: tasks for programs in Python."""

import logging
import pickle
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from functools import partial
from itertools import count
from pathlib import Path

import pytest

from taskservice import client as package
from taskservice import error_codes
from taskservice.cli.commands import CLIENT_COMMANDS
from taskservice.client import (
    Client,
    Forbidden,
    Invalid,
    InvalidKey,
    Line,
    NotFound,
    NotTheService,
    SettingError,
    Task,
    TaskCancelled,
    TaskFinished,
    TaskHandler,
    TaskServiceError,
    TooLarge,
    Unavailable,
    Unreachable,
    responses,
)
from taskservice.client.task import SHORT_FIELDS
from taskservice.schemas.tasks import TASK_FIELDS
from tests.support import receiver as play
from tests.support import service_answers as played
from tests.support.agent_machine import AgentMachine, kill
from tests.support.api_client import RemoteClient
from tests.support.fork_server import run_forked
from tests.support.receiver import Behaviour, Received, Receiver, in_turn, unused_port
from tests.support.service import Service
from tests.support.service_answers import losing, passing_on
from tests.support.waiting import until

PACKAGE = Path(package.__file__).parent.parent


# --- doing the work ----------------------------------------------------------------------


def test_block_becomes_a_task(remote_alice: RemoteClient) -> None:
    with (
        Receiver() as receiver,
        remote_alice.client().start(
            "summarizer", name="nightly", input={"day": 1}, callback=receiver.url
        ) as task,
    ):
        task.log("one")
        task.log("two\nthree", "and four")
        task.log()
        task.output["sum"] = 15
    stored = remote_alice.the_task()
    assert stored["logs"] == ["one", "two", "three and four", ""]
    assert (stored["name"], stored["input"]) == ("nightly", {"day": 1})
    assert (stored["status"], stored["output"]) == ("complete", {"sum": 15})
    assert (task.status, task.error, task.data["output"]) == ("complete", None, {"sum": 15})
    assert len(receiver.requests) == 1


def test_exception_becomes_an_error_and_is_raised_on(remote_alice: RemoteClient) -> None:
    def work() -> None:
        with remote_alice.client().start("summarizer") as task:
            task.output["share"] = 1
            task.output["share"] = 1 // 0

    with pytest.raises(ZeroDivisionError):
        work()
    stored = remote_alice.the_task()
    assert stored["error"]["message"].startswith("ZeroDivisionError: ")
    assert stored["logs"][0] == "Traceback (most recent call last):"
    assert stored["logs"][-1] == stored["error"]["message"]
    assert stored["output"] == {"share": 1}


def test_exit_of_the_program_is_told_apart(remote_alice: RemoteClient) -> None:
    for code, status in ((0, "complete"), (None, "complete"), (3, "error")):
        with pytest.raises(SystemExit), remote_alice.client().start("summarizer"):
            sys.exit(code)
        assert remote_alice.tasks()[0]["status"] == status


NO_JSON = (datetime.now(), float("nan"), b"x", {"a": {1}}, "\ud800")


def test_output_that_is_not_json_is_refused_where_it_is_set(remote_alice: RemoteClient) -> None:
    with remote_alice.client().start("summarizer") as task:
        task.output["good"] = 1
        for value in NO_JSON:
            for set_it in (
                partial(task.output.__setitem__, "when", value),
                partial(task.output.update, when=value),
                partial(task.output.__ior__, {"when": value}),
                partial(task.output.setdefault, "when", value),
                partial(setattr, task, "output", {"when": value}),
                partial(task.report, output={"when": value}),
                partial(task.complete, when=value),
            ):
                with pytest.raises((TypeError, ValueError), match=r"output\['when'\] is not JSON"):
                    set_it()
        with pytest.raises(TypeError, match="key 1"):
            task.output[1] = 1  # type: ignore[index]
        task.output.setdefault("rows", []).append(2)
    stored = remote_alice.the_task()
    assert (stored["status"], stored["output"]) == ("complete", {"good": 1, "rows": [2]})


def test_output_that_has_become_no_json_is_an_error(remote_alice: RemoteClient) -> None:
    def work() -> None:
        with remote_alice.client().start("summarizer") as task:
            task.output |= {"good": 1, "rows": []}
            task.output["rows"].append(datetime.now())

    with pytest.raises(TypeError, match=r"output\['rows'\] is not JSON"):
        work()
    stored = remote_alice.the_task()
    assert stored["status"] == "error"
    assert "output['rows']" in stored["error"]["message"]


def test_logged_values_are_one_line_as_printed(remote_alice: RemoteClient) -> None:
    task = remote_alice.client().start("summarizer")
    task.log({"a": 1}, 1.5, None, ValueError("bad"), b"x", Path("y"))
    task.fail(ValueError("no good"))
    stored = remote_alice.the_task()
    assert stored["logs"] == ["{'a': 1} 1.5 None bad b'x' y"]
    assert stored["error"]["message"] == "no good"


def test_report_is_sent_immediately(remote_alice: RemoteClient) -> None:
    with remote_alice.client().start("summarizer") as task:
        task.report(output={"share": 0.5}, name="half done")
        stored = remote_alice.the_task()
        assert (stored["output"], stored["name"]) == ({"share": 0.5}, "half done")
    assert remote_alice.the_task()["output"] == {"share": 0.5}


def test_report_of_the_end_comes_after_the_lines(remote_alice: RemoteClient) -> None:
    task = remote_alice.client().start("summarizer")
    task.log("one\ntwo")
    task.report(status="complete", output={"sum": 15})
    stored = remote_alice.the_task()
    assert stored["logs"] == ["one", "two"]
    assert (stored["status"], stored["output"]) == ("complete", {"sum": 15})


def test_end_that_the_block_reports_itself_is_the_end(remote_alice: RemoteClient) -> None:
    with remote_alice.client().start("summarizer") as task:
        task.log("one")
        task.fail("no")
    stored = remote_alice.the_task()
    assert (stored["logs"], stored["error"]["message"]) == (["one"], "no")


POOLS = """
import multiprocessing, sys
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from taskservice.client import Client, TaskFinished

def work(task_id, number):
    Client().task(task_id).log(f"child {number}")
    return number

def forked(task, number):
    task.log(f"child {number}")

def refused(task_id):
    Client().task(task_id).report(output={"late": 1})

def main():
    context = multiprocessing.get_context(sys.argv[1])
    with Client().start("spread", input={"n": 1}) as task:
        task.log("before")
        task.output["sum"] = 15
        with context.Pool(2) as pool:
            assert pool.map(partial(work, task.id), range(3), chunksize=1) == [0, 1, 2]
            pool.close()
            pool.join()
        with ProcessPoolExecutor(2, mp_context=context) as pool:
            assert list(pool.map(work, [task.id] * 3, range(3, 6))) == [3, 4, 5]
        if sys.argv[1] == "fork":
            child = context.Process(target=forked, args=(task, 6))
        else:
            child = context.Process(target=work, args=(task.id, 6))
        child.start()
        child.join()
        task.log("after")
    with context.Pool(1) as pool:
        try:
            pool.apply(refused, [task.id])
        except TaskFinished as error:
            print(error.task["status"], error)

if __name__ == "__main__":
    main()
"""


@pytest.mark.parametrize("method", ["spawn", "forkserver", "fork"])
def test_other_processes_add_lines_to_a_task(
    machine: AgentMachine, tmp_path: Path, method: str
) -> None:
    (tmp_path / "pools.py").write_text(POOLS)
    command = [sys.executable, str(tmp_path / "pools.py"), method]
    result = run_forked(
        command, env=machine.environment, capture_output=True, text=True, timeout=100
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith("complete ")
    task = machine.user.the_task()
    children = [f"child {number}" for number in range(7)]
    assert sorted(task["logs"]) == ["after", "before", *children]
    assert (task["status"], task["output"]) == ("complete", {"sum": 15})


@pytest.mark.parametrize(
    "error",
    [
        NotFound(404, {"detail": "Task's ID is not found"}),
        TaskCancelled(409, {"detail": "x", "task": {"id": "1", "status": "error"}}),
        Unavailable(503, {}, 7.0),
        Invalid(422, {"errors": {"callback": ["No."]}}),
        Unreachable("out of reach"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_error_goes_to_other_processes(error: TaskServiceError) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy), vars(copy)) == (type(error), str(error), vars(error))


def test_program_does_not_wait_long_for_an_unavailable_service(machine: AgentMachine) -> None:
    program = (
        "from taskservice.client import Client, sender; sender.EXIT_SECONDS = 0.5\n"
        "Client().start('short').log('one\\ntwo')"
    )
    with Receiver() as receiver:
        receiver.paths["/api/v1/task"] = played.task(201)
        receiver.answer = play.answer(503)
        machine.url = receiver.url
        process = machine.python(program)
        _, errors = process.communicate(timeout=60)
    assert "2 lines of task 1 could not be sent in time" in errors


@pytest.mark.parametrize("headers", [{}, {"Retry-After": "9" * 400}], ids=["plain", "enormous"])
def test_lines_that_could_not_be_sent_are_counted(headers: dict[str, str]) -> None:
    with Receiver() as receiver:
        receiver.paths["/api/v1/task"] = played.task(201)
        receiver.answer = play.answer(503, headers)
        task = Client(receiver.url, "key", retry_timeout=1).start("summarizer")
        task.log("one\ntwo")
        with pytest.raises(Unavailable, match="2 lines not sent"):
            task.complete()


def test_cancel_is_raised_at_the_next_report(remote_alice: RemoteClient) -> None:
    def work() -> None:
        with remote_alice.client().start("summarizer") as task:
            remote_alice.cancel(task.data)
            while True:
                task.log("still here")
                time.sleep(0.05)

    with pytest.raises(TaskCancelled) as cancelled:
        work()
    assert cancelled.value.task["error"]["type"] == "cancelled"
    assert remote_alice.the_task()["error"]["type"] == "cancelled"


def test_cancel_and_deletion_are_raised_at_the_end_too(remote_alice: RemoteClient) -> None:
    with pytest.raises(TaskCancelled), remote_alice.client().start("summarizer") as task:
        remote_alice.cancel(task.data)
    with pytest.raises(NotFound), remote_alice.client().start("summarizer") as task:
        remote_alice.delete(task.data)


def test_own_exception_is_raised_where_a_cancel_came_too(remote_alice: RemoteClient) -> None:
    def work() -> None:
        with remote_alice.client().start("summarizer") as task:
            remote_alice.cancel(task.data)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        work()
    assert remote_alice.the_task()["error"]["type"] == "cancelled"


def test_long_and_invalid_lines_are_made_to_fit(remote_alice: RemoteClient) -> None:
    with remote_alice.client().start("summarizer") as task:
        task.log("x" * 100_000)
        task.log("a\0b")
        task.log("lone \ud800 surrogate")
    long, nul, lone = remote_alice.the_task()["logs"]
    assert long.endswith("[taskservice: truncated here, the line has 100,000 bytes]")
    assert (nul, lone) == ("a\ufffdb", "lone ? surrogate")


def test_many_threads_write_to_one_task(client: Client) -> None:
    """Also its first lines, which start the thread that sends them."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(5):
            task = client.start("summarizer")
            with ThreadPoolExecutor(8) as threads:
                for number in range(8):
                    threads.submit(write_lines, task, number)
            task.complete()
            lines = [line.text for line in task.lines()]
            for number in range(8):
                written = [line for line in lines if line.startswith(f"{number} ")]
                assert written == [f"{number} {place}" for place in range(40)]
    finally:
        sys.setswitchinterval(before)


def write_lines(task: Task, number: int) -> None:
    for place in range(40):
        task.log(f"{number} {place}")


def test_log_arguments_become_lines(remote_alice: RemoteClient) -> None:
    logger = logging.getLogger("app")
    with remote_alice.client().start("summarizer") as task:
        handler = TaskHandler(task)
        logging.getLogger().addHandler(handler)
        logging.getLogger().setLevel(logging.DEBUG)
        try:
            logger.warning("watch out for %s", "this")
            handler.setFormatter(logging.Formatter("%(message)s"))
            logger.warning("of the program")
            handler.setFormatter(None)
            try:
                raise ValueError("bad")
            except ValueError:
                logger.exception("it failed")
            time.sleep(0.5)
        finally:
            logging.getLogger().removeHandler(handler)
            logging.getLogger().setLevel(logging.WARNING)
    logs = remote_alice.the_task()["logs"]
    expected = ["WARNING app: watch out for this", "of the program", "ERROR app: it failed"]
    assert logs[:3] == expected
    assert logs[-1] == "ValueError: bad"


CHATTY = """
import logging
from taskservice.client import Client, TaskHandler

with Client(retry_timeout=10).start("agent") as task:
    handler = TaskHandler(task)
    logging.basicConfig(level=logging.DEBUG, handlers=[handler])
    for number in range(400):
        logging.info("%s%s", number, "x" * 60_000)
"""


def test_more_is_logged_than_can_wait_while_the_sender_logs_too(machine: AgentMachine) -> None:
    """As where all that a program and its libraries log, at DEBUG, goes to its task."""
    program = machine.python(CHATTY)
    assert program.communicate(timeout=100) == ("", "")
    assert machine.user.the_task()["logCount"] == 400


def test_claim_takes_what_was_started_for_an_agent(client: Client) -> None:
    client.register_agent("summarizer", description="Sums up")
    assert client.claim("summarizer", wait=0) is None
    first = client.start("summarizer", input={"n": 1}, claim=False)
    client.start("summarizer", input={"n": 2}, claim=False)
    claimed = client.claim("summarizer")
    assert claimed is not None
    assert (claimed.id, claimed.input) == (first.id, {"n": 1})
    with claimed as task:
        task.output["n"] = task.input["n"]
    assert client.task(first.id).data["output"] == {"n": 1}


def test_claim_waits_for_a_task(client: Client) -> None:
    client.register_agent("summarizer")
    began = time.monotonic()
    assert client.claim("summarizer", wait=1) is None
    assert time.monotonic() - began >= 0.9
    timer = threading.Timer(0.5, lambda: client.start("summarizer", claim=False))
    timer.start()
    assert client.claim("summarizer", wait=20) is not None
    timer.join()


# --- watching ----------------------------------------------------------------------------


def test_all_tasks_come_over_all_pages(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("taskservice.client.client.PAGE_TASKS", 2)
    started = [client.start("summarizer", name=f"n {number}").id for number in range(5)]
    client.start("other")
    assert [task.id for task in client.tasks(agent_id="summarizer")] == started[::-1]
    assert [task.name for task in client.tasks(q="N 3")] == ["n 3"]
    assert list(client.tasks(status="error")) == []
    oldest = next(client.tasks(sort="createdAt"))
    assert "logs" not in oldest.data


def test_follow_gives_each_line_once_until_the_end(client: Client) -> None:
    with client.start("summarizer") as task:
        task.log("one\ntwo")
        watched = client.task(task.id)
        lines = watched.follow()
        assert next(lines) == Line(1, "one")
        task.log("three")
        task.output["sum"] = 15
    assert list(lines) == [Line(2, "two"), Line(3, "three")]
    assert (watched.status, watched.data["output"]) == ("complete", {"sum": 15})
    assert list(watched.follow(after=2)) == [Line(3, "three")]
    assert list(watched.lines(after=1)) == [Line(2, "two"), Line(3, "three")]


def test_follow_continues_after_a_restart(own_service: Service, own_machine: AgentMachine) -> None:
    client = own_machine.user.client(retry_timeout=60)
    with client.start("summarizer") as task:
        lines = client.task(task.id).follow()
        task.log("one")
        assert next(lines) == Line(1, "one")
        kill(own_service)
        task.log("two")
        timer = threading.Timer(1, own_service.start)
        timer.start()
        assert next(lines) == Line(2, "two")
        timer.join()
    assert list(lines) == []


def test_follow_and_claim_continue_where_a_proxy_cuts_off_long_requests(
    remote_alice: RemoteClient, client: Client
) -> None:
    def waits(request: Received) -> bool:
        return "prefer" in request.headers

    client.register_agent("agent")
    cut_off = play.answer(504, {"Connection": "close"})
    with Receiver() as between, ThreadPoolExecutor() as threads:
        between.answer = passing_on(remote_alice, waits, cut_off)
        assert remote_alice.client(between.url, retry_timeout=0).claim("agent", wait=1) is None
        behind = remote_alice.client(between.url, retry_timeout=3)
        claimed = threads.submit(behind.claim, "agent", wait=60)
        until(lambda: sum(map(waits, between.requests)) > 3)
        assert not claimed.done()
        client.start("agent", claim=False)
        task = claimed.result()
        assert task is not None
        followed = threads.submit(lambda: list(behind.task(task.id).follow()))
        before = sum(map(waits, between.requests))
        until(lambda: sum(map(waits, between.requests)) > before + 1)
        task.log("late")
        task.complete()
        assert followed.result() == [Line(1, "late")]


def test_follow_continues_after_another_programs_page(remote_alice: RemoteClient) -> None:
    """As a proxy answers for a service that is being replaced."""
    pages = count()

    def is_away(request: Received) -> bool:
        return "/logs" in request.path and 1 <= next(pages) < 4

    task = remote_alice.client().start("agent")
    page = play.answer(404, {"Content-Type": "text/plain"}, b"404 page not found")
    with Receiver() as between:
        between.answer = passing_on(remote_alice, is_away, page)
        behind = remote_alice.client(between.url, retry_timeout=20)
        lines = behind.task(task.id).follow()
        task.log("first")
        assert next(lines) == Line(1, "first")
        task.complete()
        assert list(lines) == []


def test_follow_of_a_deleted_task_is_raised(client: Client) -> None:
    task = client.start("summarizer")
    timer = threading.Timer(0.5, task.delete)
    timer.start()
    with pytest.raises(NotFound):
        list(client.task(task.id).follow())
    timer.join()


def test_cancel_and_delete(remote_alice: RemoteClient) -> None:
    task = remote_alice.client().start("summarizer")
    assert task.cancel().error == {"type": "cancelled", "message": "Cancelled by its user"}
    task.delete()
    with pytest.raises(NotFound):
        task.delete()


# --- a service that accepts small bodies only ---------------------------------------------


def test_lines_are_sent_in_smaller_parts_and_a_large_output_is_left_out(tmp_path: Path) -> None:
    with Service(tmp_path / "data", MAX_BODY="2000") as service:
        alice = service.add_user()
        with alice.client().start("a") as task:
            task.log("\n".join(map(str, range(500))))
            task.output["text"] = "x" * 3_000
        stored = alice.the_task()
    *numbers, note = stored["logs"]
    assert numbers == [str(number) for number in range(500)]
    assert note == "[taskservice: the output was refused: The request's body is too large]"
    assert (stored["status"], stored["output"]) == ("complete", {})


# --- problems ----------------------------------------------------------------------------


def test_one_exception_for_each_problem(remote_alice: RemoteClient, client: Client) -> None:
    task = client.start("summarizer")
    task.report(status="complete")
    with pytest.raises(TaskFinished) as finished:
        task.report(output={"late": 1})
    assert not isinstance(finished.value, TaskCancelled)
    with pytest.raises(NotFound, match="Task's ID is not found"):
        client.task("../user")
    with pytest.raises(Invalid, match="callback") as unfit:
        client.start("summarizer", callback="nonsense")
    assert "callback" in unfit.value.errors
    with pytest.raises(InvalidKey):
        list(Client(remote_alice.url, "wrong").tasks())
    with pytest.raises(TooLarge):
        client.start("summarizer", input={"x": "x" * 11_000_000})
    narrow = Client(remote_alice.url, remote_alice.agent_key("summarizer"))
    with pytest.raises(Forbidden):
        narrow.task(task.id).cancel()
    with pytest.raises(Unreachable, match="Connection refused"):
        next(Client(f"http://127.0.0.1:{unused_port()}", "key", retry_timeout=0).tasks())
    with pytest.raises(TaskServiceError, match="not JSON"):
        client.start("summarizer", input={"x": float("nan")})


@pytest.mark.parametrize(
    ("url", "key", "sentence"),
    [
        ("", "key", "TASKSERVICE_URL is not set"),
        ("ftp://x", "key", "TASKSERVICE_URL: 'ftp://x' must be"),
        ("http://user:secret@x", "key", "TASKSERVICE_URL"),
        ("http://[", "key", "TASKSERVICE_URL"),
        ("http://x", "", "TASKSERVICE_APIKEY is not set"),
        ("http://x", "k\ney", "TASKSERVICE_APIKEY"),
    ],
)
def test_wrong_settings_say_which_and_how(
    url: str, key: str, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TASKSERVICE_URL", raising=False)
    monkeypatch.delenv("TASKSERVICE_APIKEY", raising=False)
    with pytest.raises(SettingError, match=sentence):
        Client(url, key)


def test_url_may_be_the_one_of_the_api(remote_alice: RemoteClient) -> None:
    assert list(Client(f"{remote_alice.url}/api/v1/", remote_alice.key).tasks()) == []


GOOD = played.answer(200, [played.a_task()])


@pytest.mark.parametrize(
    "failure",
    [
        played.problem(500, "x"),
        play.answer(502, {"Content-Type": "text/html"}, b"<h1>Bad Gateway</h1>"),
        play.answer(503, {**played.PROBLEM, "Retry-After": "1"}, b"{}"),
        play.answer(429, {"Retry-After": "0"}),
        play.reset(),
        play.reset(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n[{"),
        play.raw(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n[{"),
        play.raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n[{"),
        play.raw(b""),
        play.raw(b"nonsense\r\n\r\n"),
    ],
)
def test_passing_failures_are_tried_again(failure: Behaviour) -> None:
    with Receiver() as receiver:
        receiver.answer = in_turn(failure, failure, GOOD)
        (task,) = Client(receiver.url, "key", retry_timeout=20).tasks()
    assert task.id == "1"
    assert len(receiver.requests) == 3


def test_retry_after_is_honoured() -> None:
    with Receiver() as receiver:
        receiver.answer = in_turn(play.answer(503, {"Retry-After": "2"}), GOOD)
        list(Client(receiver.url, "key", retry_timeout=20).tasks())
        first, second = receiver.requests
        receiver.answer = play.answer(503, {"Retry-After": "1000"})
        with pytest.raises(Unavailable) as unavailable:
            list(Client(receiver.url, "key", retry_timeout=20).tasks())
    assert second.at - first.at >= 2
    assert unavailable.value.retry_after == 1_000


DRIPPING = {
    "a body": play.drip(b" " * 10_000, 0.1, b"HTTP/1.1 200 OK\r\nContent-Length: 10000\r\n\r\n"),
    "a head": play.drip(b"X: y\r\n" * 10_000, 0.1, b"HTTP/1.1 200 OK\r\n"),
}


@pytest.mark.parametrize("drip", DRIPPING.values(), ids=DRIPPING)
def test_answer_that_drips_has_no_more_time_than_one_that_does_not_come(drip: Behaviour) -> None:
    with Receiver() as service, ThreadPoolExecutor() as threads:
        service.answer = drip
        once = Client(service.url, "key").connection.once
        answer = threads.submit(once, "GET", "/user", responses.USER, timeout=1)
        error = answer.exception(timeout=60)
        assert isinstance(error, Unreachable)
        assert "no response in time" in str(error)


@pytest.mark.parametrize(
    ("url", "environment", "reason"),
    [
        ("http://a..b", {}, "label"),
        ("http://service", {"http_proxy": "http://:::"}, ":::"),
        ("http://service", {"http_proxy": "socks5://127.0.0.1"}, "SOCKS"),
        ("https://service", {"REQUESTS_CA_BUNDLE": "/nowhere"}, "/nowhere"),
        ("http://no-such-name.invalid", {}, r"cannot reach [^()]*$"),
    ],
)
def test_error_says_why_a_request_cannot_be_made(
    url: str, environment: dict[str, str], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in environment.items():
        monkeypatch.setenv(name, text)
    with pytest.raises(Unreachable, match=reason):
        Client(url, "key", retry_timeout=0).task("x")


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 413, 422])
def test_permanent_errors_are_not_retried(status: int) -> None:
    with Receiver() as receiver:
        code = error_codes.default(status)
        receiver.answer = played.problem(status, "Task's ID is not found", code=code)
        with pytest.raises(TaskServiceError, match="Task's ID is not found") as refused:
            list(Client(receiver.url, "key", retry_timeout=20).tasks())
    assert len(receiver.requests) == 1
    assert refused.type is not TaskServiceError


def test_redirect_is_not_followed_with_the_key() -> None:
    with Receiver() as receiver, Receiver() as elsewhere:
        receiver.answer = play.answer(307, {"Location": elsewhere.url})
        with pytest.raises(NotTheService, match="redirects to"):
            list(Client(receiver.url, "key").tasks())
    assert elsewhere.requests == []


def has_line(person: RemoteClient, task: package.Task, number: int) -> bool:
    stored = person.read(f"/task/{task.id}?fields=logCount")
    return bool(stored["logCount"] >= number)


def test_answers_lost_at_appends_double_nothing(remote_alice: RemoteClient) -> None:
    """A proxy between client and service loses every third answer."""
    with Receiver() as between:
        between.answer = losing(remote_alice, lambda number: number % 3 == 0)
        with remote_alice.client(between.url, retry_timeout=30).start("relayed") as task:
            for number in range(8):
                task.log(f"line {number}")
                # Each line is sent in a separate request.
                until(partial(has_line, remote_alice, task, number + 1))
    stored = remote_alice.the_task()
    assert stored["logs"] == [f"line {number}" for number in range(8)]
    assert stored["status"] == "complete"
    assert len(between.requests) > 9


def test_answer_lost_at_a_claim_loses_no_task(remote_alice: RemoteClient) -> None:
    first, second = remote_alice.start("lossy"), remote_alice.start("lossy")
    with Receiver() as between:
        between.answer = losing(remote_alice, lambda number: number == 1)
        client = remote_alice.client(between.url, retry_timeout=30)
        claimed = [client.claim("lossy", wait=0) for _ in range(3)]
    assert [task.id if task else None for task in claimed] == [first["id"], second["id"], None]
    assert len(between.requests) == 4


def test_service_that_stays_away_is_raised_and_does_not_hang(own_service: Service) -> None:
    client = own_service.add_user().client(retry_timeout=1)

    def work() -> None:
        with client.start("summarizer") as task:
            task.log("one")
            kill(own_service)

    with pytest.raises(Unreachable):
        work()


# --- the package -------------------------------------------------------------------------


# What only the server uses.
SERVER_PACKAGES = (
    "flask", "flask_sqlalchemy", "sqlalchemy", "alembic", "marshmallow", "orjson", "apispec",
    "gunicorn",
)  # fmt: skip
IMPORTS = """
import sys
from importlib import import_module
packages, modules = (argument.split(",") for argument in sys.argv[1:])
sys.modules |= dict.fromkeys(packages)  # importing one of these fails now
for module in modules:
    import_module(module)
"""
AGENT_MODULES = [
    "taskservice.client",
    *(f"taskservice.runner.{path.stem}" for path in (PACKAGE / "runner").glob("*.py")),
    *CLIENT_COMMANDS.values(),
]


def test_agent_side_needs_no_package_of_the_server() -> None:
    command = [sys.executable, "-c", IMPORTS, ",".join(SERVER_PACKAGES), ",".join(AGENT_MODULES)]
    subprocess.run(command, check=True)


def test_package_is_typed() -> None:
    assert (PACKAGE / "py.typed").exists()


def test_client_reads_every_field_of_a_task() -> None:
    assert {*SHORT_FIELDS.split(","), "logs"} == set(TASK_FIELDS)
