"""Appends: lines that arrive once, in order, whole, and as they were sent."""

import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import insert
from werkzeug.test import TestResponse

from taskservice.database.models import LogWriter
from taskservice.database.transactions import transaction
from taskservice.services.logs import CHUNK_BYTES, CHUNK_LINES
from taskservice.terms import MAX_LINE, MAX_WRITER, MAX_WRITERS
from taskservice.web import request
from tests.support.api_client import API, ApiClient, check_invalid_fields, expect, problem
from tests.support.concurrency import at_once
from tests.support.internals import column, rows
from tests.support.marks import one_database

Task = dict[str, Any]


def logs(task: Task) -> str:
    return f"/task/{task['id']}/logs"


def append_text(person: ApiClient, task: Task, text: bytes, query: str = "") -> TestResponse:
    return person.post(logs(task) + query, data=text, content_type="text/plain")


def lines(person: ApiClient, task: Task) -> list[str]:
    """The lines of a task, which its counts must agree with."""
    now = person.task(task)
    assert (now["firstLog"], now["logCount"]) == (1, len(now["logs"]))
    return list(now["logs"])


# --- the ways to append ------------------------------------------------------------------


def test_lines_are_kept_in_the_order_in_which_they_came(alice: ApiClient) -> None:
    task = alice.start()
    time.sleep(0.002)
    assert alice.append(task, "one", "two") == {"logCount": 2, "status": "running"}
    assert alice.append(task, "three") == {"logCount": 3, "status": "running"}
    now = alice.task(task)
    assert (now["logs"], now["firstLog"], now["logCount"]) == (["one", "two", "three"], 1, 3)
    assert now["updatedAt"] > task["updatedAt"]
    assert expect(alice.get("/task"), 200) == [now]


FIT_TYPES = (
    "text/plain", "text/plain; charset=utf-8", "Text/Plain; charset=UTF-8", "application/json",
)  # fmt: skip


@one_database
def test_post_and_put_take_json_and_text(alice: ApiClient, subtests: pytest.Subtests) -> None:
    for method, content_type in product(("POST", "PUT"), FIT_TYPES):
        with subtests.test(f"{method} {content_type}"):
            task, is_json = alice.start(), "json" in content_type
            data = b'{"logs":["one","tw\xc3\xb6"]}' if is_json else b"one\ntw\xc3\xb6\n"
            response = alice.request(method, logs(task), data=data, content_type=content_type)
            assert expect(response, 201) == {"logCount": 2, "status": "running"}
            assert lines(alice, task) == ["one", "twö"]


@one_database
def test_put_without_a_content_type_is_text(alice: ApiClient) -> None:
    task = alice.start()
    expect(alice.put(logs(task), data=b'{"logs":["not JSON"]}\nsecond'), 201)
    assert lines(alice, task) == ['{"logs":["not JSON"]}', "second"]


@one_database
def test_post_without_a_content_type_is_415(alice: ApiClient) -> None:
    task = alice.start()
    problem(alice.post(logs(task), data=b'{"logs":["x"]}'), 415)
    assert lines(alice, task) == []


OTHER_TYPES = (
    "text/html", "text/plain; charset=utf-16", "text/plain; charset=iso-8859-1",
    "application/json; charset=utf-16", "application/x-www-form-urlencoded",
    "application/x-ndjson", "application/octet-stream", "nonsense",
)  # fmt: skip


@one_database
def test_other_content_types_are_415(alice: ApiClient, subtests: pytest.Subtests) -> None:
    task = alice.start()
    for content_type in OTHER_TYPES:
        with subtests.test(content_type):
            for method in ("POST", "PUT"):
                response = alice.request(method, logs(task), data=b"x", content_type=content_type)
                problem(response, 415)
    assert lines(alice, task) == []


# --- where a line ends -------------------------------------------------------------------

ODD_CHARACTERS = (
    "\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e", "\t", "\x1b",
    "𝛂", "\u0301", "\u202e", "\uffff", "\U0010ffff",
)  # fmt: skip
# text, its lines when sent as text, its lines when sent as one JSON string
CORNERS: tuple[tuple[str, list[str], list[str]], ...] = (
    ("", [], [""]),
    ("a", ["a"], ["a"]),
    ("a\n", ["a"], ["a"]),
    ("\n", [""], [""]),
    ("\n\n", ["", ""], ["", ""]),
    ("\na", ["", "a"], ["", "a"]),
    ("a\n\nb", ["a", "", "b"], ["a", "", "b"]),
    ("a\n\n", ["a", ""], ["a", ""]),
    ("a\r\nb\r\n", ["a", "b"], ["a", "b"]),
    ("\r\n", [""], [""]),
    ("a\r\r\nb", ["a\r", "b"], ["a\r", "b"]),
    ("a\n\rb", ["a", "\rb"], ["a", "\rb"]),
    ("a\rb", ["a\rb"], ["a\rb"]),
    ("a\rb\r\nc", ["a\rb", "c"], ["a\rb", "c"]),
    # No line feed follows, so nothing is dropped.
    ("a\r", ["a\r"], ["a\r"]),
    ("\r", ["\r"], ["\r"]),
    ("a\n\r", ["a", "\r"], ["a", "\r"]),
    *((f"a{odd}b{odd}", [f"a{odd}b{odd}"], [f"a{odd}b{odd}"]) for odd in ODD_CHARACTERS),
    (" a \n\t", [" a ", "\t"], [" a ", "\t"]),
    ("\ufeffa", ["\ufeffa"], ["\ufeffa"]),
    ("a\0b", ["a\ufffdb"], ["a\ufffdb"]),
    ("\0\n\0", ["\ufffd", "\ufffd"], ["\ufffd", "\ufffd"]),
    ("\\u0000\\n", ["\\u0000\\n"], ["\\u0000\\n"]),
)


@pytest.mark.parametrize("form", ["text", "json"])
def test_lines_end_at_line_feeds_only(
    alice: ApiClient, subtests: pytest.Subtests, form: str
) -> None:
    task, after = alice.start(), 0
    for text, as_text, as_json in CORNERS:
        with subtests.test(repr(text)):
            if form == "text":
                answer = expect(append_text(alice, task, text.encode()), 201)
            else:
                answer = alice.append(task, text)
            expected = as_text if form == "text" else as_json
            new = expect(alice.get(f"{logs(task)}?after={after}"), 200)["logs"]
            assert new == expected
            after += len(expected)
            assert answer["logCount"] == after
    assert len(lines(alice, task)) == after


def test_strings_with_line_feeds_are_several_lines(alice: ApiClient) -> None:
    task = alice.start()
    assert alice.append(task, "a\nb\n", "", "c\r\n\r\nd", "\n")["logCount"] == 7
    assert lines(alice, task) == ["a", "b", "", "c", "", "d", ""]


def test_invalid_utf8_is_replaced_in_text(alice: ApiClient) -> None:
    task = alice.start()
    expect(append_text(alice, task, b"a\xffb\n\xc3\n\xed\xa0\x80c\n\xf0\x9f\x98\nend\xe2\x82"), 201)
    assert lines(alice, task) == [
        "a\ufffdb", "\ufffd", "\ufffd\ufffd\ufffdc", "\ufffd", "end\ufffd",
    ]  # fmt: skip


@one_database
def test_escapes_in_json_are_what_they_stand_for(alice: ApiClient) -> None:
    task = alice.start()
    body = rb'{"logs":["\u00fc\ud83d\ude00\u0000\\u0000\"\/\ta\nb"]}'
    expect(alice.post(logs(task), data=body, content_type="application/json"), 201)
    assert lines(alice, task) == ['ü😀\ufffd\\u0000"/\ta', "b"]


# --- once each ---------------------------------------------------------------------------


def test_resend_changes_nothing(alice: ApiClient, app: Flask) -> None:
    task = alice.start()
    alice.append(task, "one", "two", seq=1)
    before, version = alice.task(task), column(app, task, "version")
    time.sleep(0.002)
    for again in (["one", "two"], ["one"], ["other", "words"]):
        assert alice.append(task, *again, seq=1)["logCount"] == 2
    assert alice.append(task, "two", seq=2)["logCount"] == 2
    assert alice.task(task) == before
    assert column(app, task, "version") == version


def test_of_an_overlap_only_the_new_lines_are_added(alice: ApiClient) -> None:
    task = alice.start()
    alice.append(task, "1\n2", "3", seq=1)
    assert alice.append(task, "2", "3\n4", "5", seq=2)["logCount"] == 5
    assert alice.append(task, "1\n2\n3\n4\n5\n6\n", seq=1)["logCount"] == 6
    assert alice.append(task, "7", seq=7)["logCount"] == 7
    assert lines(alice, task) == list("1234567")


def test_gap_is_409_and_tells_the_expected_number(alice: ApiClient) -> None:
    for stored, seq in ((0, 2), (2, 4), (2, 1 << 53)):
        task = alice.start()
        alice.append(task, *["x"] * stored)
        before = alice.task(task)
        response = alice.post(logs(task), json={"logs": ["y"], "seq": seq})
        assert problem(response, 409)["expected"] == stored + 1
        assert alice.task(task) == before
        assert alice.append(task, "y", seq=stored + 1)["logCount"] == stored + 1


def test_gap_of_an_unknown_writer_stores_nothing(alice: ApiClient, app: Flask) -> None:
    task = alice.start()
    before = rows(app)
    problem(alice.post(logs(task), json={"logs": ["y"], "seq": 2, "writer": "new"}), 409)
    assert rows(app) == before


def test_lines_without_seq_count_for_their_writer(alice: ApiClient) -> None:
    task = alice.start()
    alice.append(task, "1", "2")
    alice.append(task, "a", writer="other")
    assert alice.append(task, "2", "3", seq=2)["logCount"] == 4
    alice.append(task, "4")
    assert alice.append(task, "4", "5", seq=4)["logCount"] == 6
    assert alice.append(task, "a", "b", seq=1, writer="other")["logCount"] == 7
    assert lines(alice, task) == ["1", "2", "a", "3", "4", "5", "b"]


def test_writers_do_not_disturb_each_other(alice: ApiClient) -> None:
    task = alice.start()
    names = ("", "stdout", "stderr", "Stdout", "stdout ", "ü", "w" * MAX_WRITER)
    for number in (1, 2):
        for name in names:
            alice.append(task, f"{name} {number}", seq=number, writer=name)
    for name in names:
        before = alice.task(task)
        alice.append(task, "resent", "too", seq=1, writer=name)
        assert alice.task(task) == before
        response = alice.post(logs(task), json={"logs": ["x"], "seq": 4, "writer": name})
        assert problem(response, 409)["expected"] == 3
    assert lines(alice, task) == [f"{name} {number}" for number in (1, 2) for name in names]


def test_writer_is_unnamed_by_default(alice: ApiClient) -> None:
    task = alice.start()
    alice.append(task, "1", seq=1)
    alice.append(task, "2", seq=2, writer="")
    alice.append(task, "3", seq=3, writer=None)
    expect(append_text(alice, task, b"4", "?seq=4"), 201)
    expect(append_text(alice, task, b"4\n5", "?seq=4&writer="), 201)
    alice.append(task, "6", seq=None)
    assert lines(alice, task) == list("123456")


def test_text_has_seq_and_writer_in_the_query(alice: ApiClient) -> None:
    task = alice.start()
    expect(append_text(alice, task, b"1\n2\n", "?seq=1&writer=a"), 201)
    expect(append_text(alice, task, b"2\n3\n", "?seq=2&writer=a"), 201)
    response = append_text(alice, task, b"9\n", "?seq=9&writer=a")
    assert problem(response, 409)["expected"] == 4
    assert alice.append(task, "3", "4", seq=3, writer="a")["logCount"] == 4
    expect(alice.put(f"{logs(task)}?seq=4&writer=a", data=b"4\n5"), 201)
    assert lines(alice, task) == list("12345")


def test_nul_in_a_writer_is_replaced_everywhere(alice: ApiClient) -> None:
    task = alice.start()
    alice.append(task, "1", seq=1, writer="a\0")
    expect(append_text(alice, task, b"1\n2", "?seq=1&writer=a%00"), 201)
    alice.append(task, "1", "2", "3", seq=1, writer="a\ufffd")
    assert lines(alice, task) == ["1", "2", "3"]


# --- what is unfit -----------------------------------------------------------------------

INVALID: dict[str, list[Any]] = {
    "logs": [
        None, "a line", {"0": "x"}, 5, [5], [None], [True], ["fit", ["x"]],
        ["fit", "x" * (MAX_LINE + 1)], ["fit", "a\n" + "ü" * (MAX_LINE // 2) + "x\nb"],
    ],
    "seq": [0, -1, 1.0, "1", True, [1], (1 << 53) + 1, 1 << 63, 10**30],
    "writer": ["w" * (MAX_WRITER + 1), 5, ["w"]],
    "nonsense": [1], "status": ["complete"], "log": [["x"]],
}  # fmt: skip
UNFIT_QUERIES = (
    ("seq=0", "seq"), ("seq=-1", "seq"), ("seq=+1", "seq"), ("seq=1.0", "seq"), ("seq=", "seq"),
    ("seq=x", "seq"), ("seq=%201", "seq"), ("seq=1_0", "seq"), ("seq=%D9%A1", "seq"),
    ("seq=%00", "seq"), (f"seq={(1 << 53) + 1}", "seq"), ("seq=" + "9" * 5000, "seq"),
    ("seq=1&seq=1", "seq"), ("writer=" + "w" * (MAX_WRITER + 1), "writer"),
    ("writer=a&writer=b", "writer"), ("nonsense=1", "nonsense"), ("logs=x", "logs"),
)  # fmt: skip


@one_database
def test_unfit_append_is_422_names_its_field_and_stores_nothing(
    alice: ApiClient, app: Flask, subtests: pytest.Subtests
) -> None:
    task = alice.start()
    before = rows(app)
    check_invalid_fields(partial(alice.post, logs(task)), {"logs": ["x"]}, INVALID, subtests)
    assert list(problem(alice.post(logs(task), json={}), 422)["errors"]) == ["logs"]
    assert rows(app) == before


@one_database
def test_unfit_query_is_422_names_its_parameter_and_stores_nothing(
    alice: ApiClient, app: Flask, subtests: pytest.Subtests
) -> None:
    task = alice.start()
    before = rows(app)
    for query, field in UNFIT_QUERIES:
        with subtests.test(query[:60]):
            response = append_text(alice, task, b"x", f"?{query}")
            assert list(problem(response, 422)["errors"]) == [field]
            assert rows(app) == before


@one_database
def test_seq_and_writer_of_json_do_not_go_into_the_query(alice: ApiClient) -> None:
    task = alice.start()
    for name in ("seq", "writer"):
        body = problem(alice.post(f"{logs(task)}?{name}=1", json={"logs": ["x"]}), 422)
        assert list(body["errors"]) == [name]
    assert lines(alice, task) == []


# --- limits ------------------------------------------------------------------------------


def test_line_of_64_kib_is_fit_and_one_byte_more_is_not(alice: ApiClient, app: Flask) -> None:
    assert MAX_LINE == 64 * 1024
    task = alice.start()
    longest = ["x" * MAX_LINE, "ü" * (MAX_LINE // 2), "𝛂" * (MAX_LINE // 4)]
    alice.append(task, *longest)
    # The line break does not count.
    expect(append_text(alice, task, "\r\n".join(longest).encode()), 201)
    assert lines(alice, task) == longest * 2
    before = rows(app)
    for line in longest:
        problem(alice.post(logs(task), json={"logs": ["fit", line + "x", "fit"]}), 422)
        problem(append_text(alice, task, f"fit\n{line}x\nfit".encode()), 422)
        problem(append_text(alice, task, f"fit\n{line}\r".encode()), 422)
    # The limit is for the stored text.
    problem(append_text(alice, task, b"\xff" * (MAX_LINE // 3 + 1)), 422)
    problem(append_text(alice, task, b"\0" * (MAX_LINE // 3 + 1)), 422)
    assert rows(app) == before


def test_number_of_writers_of_a_task_is_limited(alice: ApiClient, app: Flask) -> None:
    task = alice.start()
    alice.append(task, "1", writer="first")
    writers = [
        {"task_id": task["id"], "writer": f"writer {number}", "seq": 1}
        for number in range(MAX_WRITERS - 2)
    ]
    with app.app_context(), transaction() as connection:
        connection.execute(insert(LogWriter), writers)
    alice.append(task, "2", writer="last")
    before = rows(app)
    refused = alice.post(logs(task), json={"logs": ["3"], "writer": "one more"})
    assert list(problem(refused, 422)["errors"]) == ["writer"]
    problem(append_text(alice, task, b"3", "?writer=another"), 422)
    assert rows(app) == before
    # A heartbeat needs no writer, and the known writers can still append.
    alice.append(task, writer="one more")
    alice.append(task, "1", "3", seq=1, writer="first")
    assert lines(alice, task) == ["1", "2", "3"]


# --- heartbeats --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "beat",
    [
        lambda person, task: person.post(logs(task), json={"logs": []}),
        lambda person, task: person.post(logs(task), json={"logs": [], "seq": 3, "writer": None}),
        lambda person, task: append_text(person, task, b""),
        lambda person, task: person.put(logs(task)),
        lambda person, task: person.post(logs(task), json={"logs": ["one"], "seq": 1}),
    ],
    ids=["bare", "with-seq", "text", "put", "resend"],
)
def test_heartbeat_is_recorded_and_changes_nothing_visible(
    alice: ApiClient, app: Flask, beat: Callable[[ApiClient, Task], TestResponse]
) -> None:
    task = alice.start(claim=True)
    alice.append(task, "one", "two")
    before = alice.task(task)
    heard, version = column(app, task, "last_heartbeat_at"), column(app, task, "version")
    time.sleep(0.002)
    assert expect(beat(alice, task), 201) == {"logCount": 2, "status": "running"}
    assert alice.task(task) == before
    assert column(app, task, "version") == version
    assert column(app, task, "last_heartbeat_at") > heard


def test_append_is_a_heartbeat_and_raises_the_version(alice: ApiClient, app: Flask) -> None:
    task = alice.start(claim=True)
    heard, version = column(app, task, "last_heartbeat_at"), column(app, task, "version")
    time.sleep(0.002)
    alice.append(task, "one")
    assert column(app, task, "last_heartbeat_at") > heard
    assert column(app, task, "version") > version


# --- tasks that have ended ---------------------------------------------------------------


@pytest.mark.parametrize("ending", ["complete", "error", "cancelled"])
def test_finished_task_takes_no_lines(alice: ApiClient, app: Flask, ending: str) -> None:
    task = alice.start()
    alice.append(task, "in time", seq=1)
    if ending == "cancelled":
        ended = expect(alice.post(f"/task/{task['id']}/cancel"), 200)
    else:
        ended = alice.report(task, status=ending)
    before = rows(app)
    bodies: list[Task] = [{"logs": ["late"]}, {"logs": []}, {"logs": ["in time"], "seq": 1}]
    for body in bodies:
        told = problem(alice.post(logs(task), json=body), 409)["task"]
        assert told == {name: ended[name] for name in ("id", "status", "error")}
    told = problem(alice.put(logs(task), data=b"late"), 409)["task"]
    assert (told["error"] or {}).get("type") == (
        {"complete": None, "error": "failed", "cancelled": "cancelled"}[ending]
    )
    assert rows(app) == before


# --- long logs ---------------------------------------------------------------------------


def sizes_around_the_chunks() -> Iterator[tuple[str, list[str]]]:
    for count in (CHUNK_LINES - 1, CHUNK_LINES, CHUNK_LINES + 1, 2 * CHUNK_LINES + 1):
        yield f"{count} lines", [str(number) for number in range(count)]
        yield f"{count} empty lines", [""] * count
    for size in (CHUNK_BYTES - 2, CHUNK_BYTES - 1, CHUNK_BYTES):
        for after in (0, 1):
            yield f"a line of {size} bytes and {after}", ["x" * size, *["y"] * after]
    yield "lines of all sizes", ["ü" * (number * 37 % 9000) for number in range(200)]


def test_lines_around_the_size_of_a_chunk_come_back_the_same(
    alice: ApiClient, subtests: pytest.Subtests
) -> None:
    for name, sent in sizes_around_the_chunks():
        with subtests.test(name):
            task = alice.start()
            alice.append(task, "before")
            alice.append(task, *sent)
            alice.append(task, "after")
            assert lines(alice, task) == ["before", *sent, "after"]


@pytest.mark.parametrize("form", ["text", "json"])
def test_100_000_lines_come_back_the_same(alice: ApiClient, app: Flask, form: str) -> None:
    task = alice.start()
    sent = [f"line {number} " + "ü" * (number % 11) for number in range(80_000)]
    sent += [""] * 20_000
    if form == "text":
        text = "".join(f"{line}\n" for line in sent)
        answer = expect(append_text(alice, task, text.encode()), 201)
    else:
        answer = alice.append(task, *sent)
    assert answer["logCount"] == 100_000
    assert lines(alice, task) == sent
    assert alice.append(task, *sent[-2:], "more", seq=99_999)["logCount"] == 100_001
    # A chunk is read whole, so none may be large.
    chunks = rows(app)["log_chunks"]
    assert sum(count for _, _, count, *_ in chunks) == 100_001
    assert max(count for _, _, count, *_ in chunks) == CHUNK_LINES
    assert max(len(text) for _, _, _, text, *_ in chunks) <= CHUNK_BYTES


def test_long_log_reads_the_same_alone_in_a_list_and_when_deleted(alice: ApiClient) -> None:
    tasks = [alice.start(name=f"task {number}") for number in range(3)]
    for task, appends in ((tasks[0], 1), (tasks[1], 7), (tasks[2], 3)):
        for count in range(appends):
            alice.append(task, *[f"{count}.{number} " + 'ü\\"\t' * 1000 for number in range(100)])
    alone = [alice.get(f"/task/{task['id']}").data for task in reversed(tasks)]
    assert max(map(len, alone)) > 3 * 1024 * 1024
    assert alice.get("/task").data == b"[" + b",".join(alone) + b"]"
    assert expect(alice.get("/task?fields=id,logs"), 200) == [
        {"id": task["id"], "logs": lines(alice, task)} for task in reversed(tasks)
    ]
    for task, text in zip(reversed(tasks), alone, strict=True):
        assert alice.delete(f"/task/{task['id']}").data == text
    assert expect(alice.get("/task"), 200) == []


@one_database
def test_answer_to_a_delete_can_be_closed(alice: ApiClient) -> None:
    """As a server does when it has sent the answer, outside of the request."""
    task = alice.start()
    alice.append(task, "one")
    response = alice.delete(f"/task/{task['id']}")
    expect(response, 200)
    response.close()


def test_resend_into_the_middle_of_a_chunk_adds_the_new_lines(alice: ApiClient) -> None:
    task = alice.start()
    sent = [f"{number}" for number in range(3 * CHUNK_LINES)]
    text = "\n".join(sent)
    for end in (1, CHUNK_LINES - 1, CHUNK_LINES, CHUNK_LINES + 1, 2 * CHUNK_LINES + 7, len(sent)):
        part = "\n".join(sent[:end]).encode()
        assert expect(append_text(alice, task, part, "?seq=1"), 201)["logCount"] == end
    assert expect(append_text(alice, task, text.encode(), "?seq=1"), 201)["logCount"] == len(sent)
    assert lines(alice, task) == sent


@one_database
def test_large_bodies_are_parsed_one_for_each_of_two_users_at_a_time(
    alice: ApiClient, bob: ApiClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    slots = request.large_body_slots
    monkeypatch.setattr(slots, "wait_seconds", 0.1)
    task, large = alice.start(), b"line\n" * 300_000
    of_bob = bob.start()
    with slots.hold(task["userId"]):
        expect(append_text(bob, of_bob, large), 201)
    with slots.hold(task["userId"]), slots.hold("another user"):
        problem(append_text(bob, of_bob, large), 503)
        refused = append_text(alice, task, large)
        assert problem(refused, 503)["code"] == "overloaded"
        assert int(refused.headers["Retry-After"]) > 0
        alice.append(task, "a small one")
    expect(append_text(alice, task, large), 201)
    expect(append_text(alice, task, large), 201)
    assert alice.append(task)["logCount"] == 600_001


@one_database
def test_large_json_of_every_other_request_is_parsed_in_a_slot_too(
    alice: ApiClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    slots = request.large_body_slots
    monkeypatch.setattr(slots, "wait_seconds", 0.0)
    task, blanks = alice.start(), b" " * request.LARGE_BODY
    bodies = {
        ("POST", f"{API}/task"): b'{"agentId": "summarizer"}',
        ("PATCH", f"{API}/task/{task['id']}"): b'{"output": {"a": 1}}',
        ("POST", f"{API}/task/{task['id']}/cancel"): b"{}",
        ("POST", "/mcp"): b'{"jsonrpc": "2.0", "id": 1, "method": "ping"}',
    }
    # Smaller, but with as many objects.
    many = b'{"agentId": "summarizer", "input": {"b": [' + b"{}," * 50_000 + b"0]}}"
    requests = [(*to, body + blanks) for to, body in bodies.items()]
    for method, path, body in [*requests, ("POST", f"{API}/task", many)]:
        send = partial(
            alice.app.test_client().open, path, method=method, headers={"apikey": alice.key},
            data=body, content_type="application/json",
        )  # fmt: skip
        with slots.hold(task["userId"]):
            assert problem(send(), 503)["code"] == "overloaded"
        assert send().status_code in (200, 201)


# --- at once -----------------------------------------------------------------------------


def in_threads(work: Callable[[int], object]) -> None:
    """Run `work` with the numbers 0 to 7 in threads that begin together."""
    at_once([partial(work, number) for number in range(8)])


def test_concurrent_writers_lose_and_duplicate_nothing(alice: ApiClient, app: Flask) -> None:
    task = alice.start()
    rounds = 10

    def write(number: int) -> None:
        person = ApiClient(app, "alice", alice.key)
        for start in range(0, 3 * rounds, 3):
            sent = [f"{number}:{start + step}" for step in range(3)]
            person.append(task, *sent, seq=start + 1, writer=str(number))
            # An answer that was lost on the way makes a client send again.
            person.append(task, *sent, seq=start + 1, writer=str(number))

    in_threads(write)
    stored = lines(alice, task)
    assert len(stored) == len(set(stored)) == 8 * 3 * rounds
    for number in range(8):
        of_writer = [line for line in stored if line.startswith(f"{number}:")]
        assert of_writer == [f"{number}:{step}" for step in range(3 * rounds)]


def test_concurrent_appends_without_a_writer_lose_nothing(alice: ApiClient, app: Flask) -> None:
    task = alice.start()

    def write(number: int) -> None:
        person = ApiClient(app, "alice", alice.key)
        for step in range(5):
            person.append(task, f"{number}:{step}:a\n{number}:{step}:b")

    in_threads(write)
    stored = lines(alice, task)
    pairs = list(zip(stored[::2], stored[1::2], strict=True))
    # The lines of one append stay together.
    assert all((a[:-1], a[-1], b[-1]) == (b[:-1], "a", "b") for a, b in pairs)
    assert len(set(stored)) == 8 * 5 * 2
    assert alice.append(task, "next", seq=len(stored) + 1)["logCount"] == len(stored) + 1


def test_same_lines_sent_concurrently_are_stored_once(alice: ApiClient, app: Flask) -> None:
    task = alice.start()
    sent = [f"line {number}" for number in range(50)]
    in_threads(lambda _: ApiClient(app, "alice", alice.key).append(task, *sent, seq=1))
    assert lines(alice, task) == sent


def test_concurrent_appends_add_no_line_after_the_end(alice: ApiClient, app: Flask) -> None:
    task = alice.start()
    taken: list[str] = []

    def work(number: int) -> None:
        person = ApiClient(app, "alice", alice.key)
        if number == 0:
            time.sleep(0.01)
            person.report(task, status="complete")
            return
        for step in range(20):
            response = person.post(logs(task), json={"logs": [f"{number}:{step}"]})
            if response.status_code == 409:
                return
            expect(response, 201)
            taken.append(f"{number}:{step}")

    in_threads(work)
    ended = alice.task(task)
    assert ended["updatedAt"] == ended["finishedAt"]
    assert sorted(ended["logs"]) == sorted(taken)
