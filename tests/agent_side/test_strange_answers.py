"""Answers that are not from this service: nothing is lost, and the error is one line."""

import gc
import gzip
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest

from taskservice.client import Client, Task, TaskServiceError, Unavailable, Unreachable, responses
from taskservice.client.task import ask, list_questions
from tests.support import receiver as play
from tests.support import service_answers as played
from tests.support.agent_machine import AgentMachine, Command, has_ended
from tests.support.api_client import RemoteClient
from tests.support.receiver import Behaviour, Received, Receiver, in_turn
from tests.support.service_answers import passing_on
from tests.support.waiting import until

HTML = {"Content-Type": "text/html"}
LOGIN_PAGE = play.answer(200, HTML, b"<h1>Sign in</h1>")
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
APPENDED = b'{"logCount": 1, "status": "running"}'


def nested(depth: int) -> Any:
    value: Any = "deep"
    for _ in range(depth):
        value = {"x": value}
    return value


STRANGE = {
    "a login page": LOGIN_PAGE,
    "null": played.answer(200, None),
    "null-201": played.answer(201, None),
    "a list": played.answer(200, [1]),
    "an object": played.answer(200, {}),
    "an object-201": played.answer(201, {}),
    "another type": play.answer(201, HTML, APPENDED),
    "no type": play.answer(201, {}, APPENDED),
    "another status": play.answer(205),
    "201 without a body": play.answer(201, played.JSON),
    "half": play.answer(201, played.JSON, APPENDED[:-5]),
    "broken off": play.answer(201, played.JSON | {"Content-Length": "100"}, APPENDED),
    "no UTF-8": play.answer(201, played.JSON, b'{"id": "\xff"}'),
    "deep": play.answer(200, played.JSON, b"[" * 100_000),
    "a redirect to nowhere": play.answer(302, {"Location": "http://["}),
    "a redirect in no encoding": play.answer(302, {"Location": "\xff"}),
    "a chunk of less than nothing": play.raw(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\n"
    ),
    "a problem of another program": played.problem(404, "No static resource"),
    "a problem without members": play.answer(404, played.PROBLEM, b"{}"),
    "a problem in a list": play.answer(409, played.PROBLEM, b"[]"),
    "a finished task that is null": played.problem(409, "Finished", task=None),
    "a finished task without an error": played.problem(409, "Finished", task={"id": "1"}),
    "a finished task with a number": played.problem(
        409, "Finished", task={"id": "1", "status": "error", "error": 5}
    ),
    "a gap before the first line": played.problem(409, "A gap", expected=-1),
    "a gap that is no number": played.problem(409, "A gap", expected="x"),
    "errors that are a text": played.problem(422, "Invalid", errors="x"),
    "errors in a list": played.problem(422, "Invalid", errors=[["agentId"]]),
    "errors that are deep": played.problem(422, "Invalid", errors={"x": nested(900)}),
    "a code that is a list": played.problem(404, "Not found", code=["not_found"]),
    "a detail that is an object": played.problem(403, {"x": "Forbidden"}),
    "compressed": play.answer(
        201, played.JSON | {"Content-Encoding": "gzip"}, gzip.compress(APPENDED)
    ),
}
strange_answers = pytest.mark.parametrize("strange", STRANGE.values(), ids=STRANGE)


def a_task(client: Client) -> Task:
    return Task(client.connection, played.a_task())


def append(client: Client) -> None:
    task = a_task(client)
    task.log("one")
    task.complete()


CALLS: dict[str, Callable[[Client], object]] = {
    "start": lambda client: client.start("a"),
    "append": append,
    "report": lambda client: a_task(client).report(name="new"),
    "end": lambda client: a_task(client).complete(),
    "claim": lambda client: client.claim("a", wait=0),
    "get": lambda client: client.task("1"),
    "list": lambda client: list(client.tasks()),
    "lines": lambda client: list(a_task(client).lines(times=True)),
    "follow": lambda client: list(a_task(client).follow(times=True)),
    "cancel": lambda client: a_task(client).cancel(),
    "delete": lambda client: a_task(client).delete(),
    "register_agent": lambda client: client.register_agent("a"),
    "rerun": lambda client: a_task(client).rerun(),
    "ask": lambda client: ask(client.connection, "1", "x", timeout=1),
    "answer": lambda client: a_task(client).answer("1", {"answer": "x"}),
    "questions": lambda client: list_questions(client.connection, "1"),
    "agents": lambda client: client.agents(health=True),
    "delete an agent": lambda client: client.delete_agent("a"),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_strange_answer_is_one_sentence(call: Callable[[Client], object]) -> None:
    # Deep inside the parser of a nested answer, the sockets of others' garbage could not be closed.
    gc.collect()
    with Receiver() as receiver:
        client = Client(receiver.url, "key", retry_timeout=0)
        for name, receiver.answer in STRANGE.items():
            with pytest.raises(TaskServiceError) as error:
                call(client)
            assert str(error.value), name
            assert len(str(error.value).splitlines()) == 1, name


QUESTION: dict[str, Any] = {
    "id": "1", "message": "ok?", "schema": {"properties": {}}, "state": "open",
    "askedAt": played.TIME, "expiresAt": None, "answer": None, "answeredBy": None,
}  # fmt: skip
PAGE: dict[str, Any] = {"logs": ["one"], "next": 1, "status": "complete", "times": [None]}
ODD_MEMBERS = {
    "a huge number": ("get", played.a_task(progress=10**400)),
    "a time without a zone": ("get", played.a_task(createdAt="2026-11-24T13:36:00")),
    "a time that no zone can show": ("get", played.a_task(createdAt="0001-01-01T00:00:00Z")),
    "labels in a list": ("get", played.a_task(labels=["a"])),
    "a question without a schema": ("get", played.a_task(questions=[QUESTION | {"schema": {}}])),
    "a question's time": ("questions", [QUESTION | {"askedAt": 5}]),
    "a number as a line": ("lines", PAGE | {"logs": [5]}),
    "a word as a time": ("lines", PAGE | {"times": ["soon"]}),
}


@pytest.mark.parametrize(("call", "value"), ODD_MEMBERS.values(), ids=ODD_MEMBERS)
def test_member_of_another_type_is_an_error(call: str, value: Any) -> None:
    with Receiver() as receiver:
        receiver.answer = played.answer(200, value)
        with pytest.raises(TaskServiceError, match="not from taskservice"):
            CALLS[call](Client(receiver.url, "key", retry_timeout=0))


@strange_answers
def test_sender_continues_after_a_strange_answer(
    remote_alice: RemoteClient, strange: Behaviour
) -> None:
    """At the first append and at the first report, and the service does not even see them."""
    refused = set[str]()

    def is_first(request: Received) -> bool:
        """Whether this is the first append, or the first report."""
        kind = "append" if "/logs" in request.path else request.method
        is_new = kind in ("append", "PATCH") and kind not in refused
        refused.add(kind)
        return is_new

    with Receiver() as between:
        between.answer = passing_on(remote_alice, is_first, strange)
        with remote_alice.client(between.url, retry_timeout=30).start("a") as task:
            task.log("one\ntwo")
            task.output["sum"] = 15
    stored = remote_alice.the_task()
    assert (stored["logs"], stored["output"]) == (["one", "two"], {"sum": 15})
    assert stored["status"] == "complete"


def test_large_answers_of_the_service_are_read() -> None:
    text = "x" * 10 * 2**20
    with Receiver() as receiver:
        client = Client(receiver.url, "key", retry_timeout=20)
        receiver.answer = played.task(output={"text": text[: 3 * 2**20]})
        task = client.task("1")
        assert task.output == {"text": text[: 3 * 2**20]}
        receiver.answer = in_turn(
            played.answer(200, {"logs": [text, text], "next": 2, "status": "running"}),
            played.answer(200, {"logs": [], "next": 2, "status": "running"}),
        )
        assert [len(line.text) for line in task.lines()] == [len(text)] * 2


LARGE = {
    "compressed": play.answer(
        201, played.JSON | {"Content-Encoding": "gzip"}, gzip.compress(bytes(256 * 2**20))
    ),
    "plain": play.answer(201, played.JSON, APPENDED + b" " * 64 * 2**20),
    "endless": play.endless(b" " * 65536, b"HTTP/1.1 201 Created\r\n\r\n"),
}


@pytest.mark.parametrize("large", LARGE.values(), ids=LARGE)
def test_large_answer_to_an_append_fills_no_memory(large: Behaviour) -> None:
    with Receiver() as receiver:
        receiver.answer = large
        once = Client(receiver.url, "key").connection.once
        tracemalloc.start()
        try:
            with pytest.raises(Unreachable, match="the response is"):
                once("POST", "/task/1/logs", responses.APPENDED, json={"logs": []})
            assert tracemalloc.get_traced_memory()[1] < 32 * 2**20
        finally:
            tracemalloc.stop()
    assert receiver.requests[0].headers["accept-encoding"] == "identity"


# --- Retry-After -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("7", 7),
        ("0", 0),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0),
        ("-5", None),
        ("1.5", None),
        ("soon", None),
        ("Fri, 31 Dec 99999999999999999999 23:59:59 GMT", None),
        ("Fri, 31 Dec 99999 23:59:59 GMT", None),
        ("Wed, 99 Foo 2030", None),
        ("\xff", None),
        ("", None),
    ],
)
def test_retry_after_is_read_or_left(text: str, seconds: float | None) -> None:
    with Receiver() as receiver:
        receiver.answer = play.answer(503, {"Retry-After": text})
        with pytest.raises(Unavailable) as unavailable:
            Client(receiver.url, "key", retry_timeout=0).task("1")
    assert unavailable.value.retry_after == seconds


def test_sender_continues_after_any_text_in_retry_after(remote_alice: RemoteClient) -> None:
    texts = ("Fri, 31 Dec 99999999999999999999 23:59:59 GMT", "-1", "soon", "\xff", "9" * 0)
    passed_on = passing_on(remote_alice)
    busy = [play.answer(503, {"Retry-After": text}) for text in texts]
    with Receiver() as between:
        between.answer = in_turn(passed_on, *busy, passed_on)
        remote_alice.register("a")
        with remote_alice.client(between.url, retry_timeout=60).start("a") as task:
            task.log("one")
    assert remote_alice.the_task()["logs"] == ["one"]


# --- the commands ------------------------------------------------------------------------

PAGES = {name: STRANGE[name] for name in ("a login page", "null", "a list", "an object")}
pages = pytest.mark.parametrize("page", PAGES.values(), ids=PAGES)


def ended(machine: AgentMachine, process: Command) -> tuple[str, str]:
    """What a run has printed; it waits for no service any more when its program has ended."""
    until(lambda: has_ended(machine))
    return process.end()


LINES_REFUSED = {name: STRANGE[name] for name in STRANGE if "gap" in name or "finished" in name}
LINES_REFUSED["each body of a size"] = play.answer(413)


@pytest.mark.parametrize("refusal", LINES_REFUSED.values(), ids=LINES_REFUSED)
def test_run_exits_as_its_program_whatever_refuses_its_lines(
    machine: AgentMachine, refusal: Behaviour
) -> None:
    machine.give_up_soon()
    with Receiver() as between:
        between.answer = passing_on(machine.user, lambda request: "/logs" in request.path, refusal)
        machine.url = between.url
        ended = machine.run_script("echo one; exit 7")
        assert (ended.returncode, ended.stdout) == (7, "one\n")
        assert "Traceback" not in ended.stderr
        assert "1 line and the exit status could not be sent yet" in ended.stderr
    assert machine.resend().returncode == 0
    assert machine.user.the_task()["logs"] == ["one"]


@pages
def test_run_that_a_page_comes_over_loses_nothing(machine: AgentMachine, page: Behaviour) -> None:
    with Receiver() as between:
        between.answer = passing_on(machine.user)
        machine.url = between.url
        process = machine.spawn_script("echo one; read word; echo $word; exit 7")
        until(lambda: machine.user.the_log() == ["one"])
        between.answer = page
        process.stdin.write("two\n")
        process.stdin.flush()
        printed, notices = ended(machine, process)
        assert (process.returncode, printed) == (7, "one\ntwo\n")
        assert "1 line and the exit status could not be sent yet" in notices
    resent = machine.resend()
    assert (resent.returncode, resent.stderr) == (0, "")
    task = machine.user.the_task()
    assert (task["logs"], task["error"]["message"]) == (["one", "two"], "Exit status 7")
    assert machine.left_runs() == []


@pages
def test_worker_waits_until_a_page_is_gone(machine: AgentMachine, page: Behaviour) -> None:
    machine.user.start("worker")
    with Receiver() as between:
        between.answer = page
        machine.url = between.url
        worker = machine.spawn("work", "--agent", "worker", "--", "echo", "done")
        between.wait_for(2, 30)
        between.answer = passing_on(machine.user)
        until(lambda: machine.user.the_task()["finishedAt"])
        _, notices = worker.end()
    assert worker.returncode == 0
    assert "not from taskservice; retrying" in notices
    assert machine.user.the_task()["logs"] == ["done"]


def test_path_that_a_service_does_not_have_is_named(machine: AgentMachine) -> None:
    with Receiver() as receiver:
        machine.url = receiver.url
        receiver.answer = played.problem(404, "No such path: /api/v1/hook", code="no_such_path")
        # By chance a connection breaks.
        old = until(lambda: (run := machine.run("hook", "list")).returncode == 2 and run)
        assert old.stdout == ""
        assert old.stderr == (
            f"taskservice: TASKSERVICE_URL: {receiver.url.rstrip('/')}/api/v1/hook does not exist: "
            "the URL is wrong, or the service is older than this client\n"
        )


@pytest.mark.parametrize(
    ("refusal", "message"),
    [
        (
            played.problem(422, "Invalid", errors={"agentName": ["Unknown field."]}),
            "agentName: Unknown field",
        ),
        (
            played.problem(404, "No such path: /api/v1/task", code="no_such_path"),
            "the service is older than this client",
        ),
    ],
    ids=["field", "path"],
)
def test_run_that_an_older_service_refuses_is_kept_for_the_upgrade(
    machine: AgentMachine, refusal: Behaviour, message: str
) -> None:
    machine.give_up_soon()
    with Receiver() as receiver:
        receiver.answer = refusal
        machine.url = receiver.url.rstrip("/")
        _, errors = ended(machine, machine.spawn("run", "--agent", "a", "--", "echo", "ran"))
    assert message in errors
    assert machine.resend().returncode == 0
    assert machine.user.the_task()["logs"] == ["ran"]


def test_command_reports_a_strange_answer_in_one_line(
    machine: AgentMachine, subtests: pytest.Subtests
) -> None:
    machine.give_up_soon()
    with Receiver() as receiver:
        machine.url = receiver.url
        receiver.answer = STRANGE["null"]
        # This leaves a run for --resend.
        ended(machine, machine.spawn("run", "--agent", "a", "--", "true"))
        for command in (
            "task show 1", "task list", "task follow 1", "task cancel 1", "task delete 1",
            "task start --agent a", "task logs 1", "task rerun x", "agent list", "agent add a",
            "agent delete a", "task answer 1 x", "run --resend",
        ):  # fmt: skip
            with subtests.test(command):
                assert "not from taskservice" in machine.fail(*command.split(), code=2)
