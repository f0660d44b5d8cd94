"""A log of as many bytes as it may have."""

from typing import Any

from flask import Flask
from werkzeug.test import TestResponse

from taskservice.terms import MAX_LINE, MAX_LOG
from tests.support.api_client import ApiClient, expect, problem
from tests.support.internals import column

Task = dict[str, Any]


def append_text(person: ApiClient, task: Task, text: bytes, query: str = "") -> TestResponse:
    path = f"/task/{task['id']}/logs{query}"
    return person.post(path, data=text, content_type="text/plain")


def test_log_of_100_mib_is_fit_and_one_byte_more_is_not(alice: ApiClient, app: Flask) -> None:
    """A line's end is one byte of its log, so that empty lines have an end too."""
    assert MAX_LOG == 100 * 1024 * 1024
    task = alice.start()
    line = b"x" * (MAX_LINE - 1) + b"\n"
    for count in [144] * 11 + [16]:
        expect(append_text(alice, task, line * count), 201)
    before = column(app, task, "version"), column(app, task, "log_count")
    for text in (b"\n", b"x", line * 100):
        assert problem(append_text(alice, task, text), 413)["code"] == "log_full"
        problem(append_text(alice, task, text, "?writer=new"), 413)
    assert (column(app, task, "version"), column(app, task, "log_count")) == before
    # A heartbeat and a resend still come through, and so does the result.
    assert alice.append(task)["logCount"] == 1600
    assert expect(append_text(alice, task, line, "?seq=1"), 201)["logCount"] == 1600
    path = f"/task/{task['id']}"
    assert alice.patch(path, json={"output": {"full": True}}).status_code == 200
    body = b'{"logs":[' + b",".join([b'"' + line[:-1] + b'"'] * 1600) + b"]}"
    is_whole = alice.get(f"{path}?fields=logs").data == body
    assert is_whole  # whose explanation by pytest would take longer than all of it
    assert expect(alice.delete(f"{path}?fields=logCount"), 200) == {"logCount": 1600}
