"""Problems: each has a code for programs, and a 422 names the invalid fields."""

import gc
import re
import sys
from collections.abc import Callable
from typing import Any

import pytest
from flask import Flask

from taskservice.error_codes import CODES
from tests.support.api_client import ApiClient, add_user, expect, problem
from tests.support.documents import ROOT, table
from tests.support.marks import one_database

# --- 422 ---------------------------------------------------------------------------------


def start(alice: ApiClient, key: str, **fields: Any) -> Any:
    body = {"agentId": "summarizer", **fields}
    return alice.post("/task", json=body, headers={"Idempotency-Key": key})


@one_database
def test_unfit_idempotency_key_is_named_in_errors(alice: ApiClient) -> None:
    alice.register()
    claim = "/agent/summarizer/claim"
    for key in ("", "x" * 256):
        for answer in (start(alice, key), alice.post(claim, headers={"Idempotency-Key": key})):
            body = problem(answer, 422)
            assert body["code"] == "invalid"
            assert body["errors"] == {"Idempotency-Key": ["Must have 1 to 255 characters."]}


def test_idempotency_key_that_came_with_another_body_is_named_in_errors(alice: ApiClient) -> None:
    alice.register()
    start(alice, "nightly")
    body = problem(start(alice, "nightly", name="another"), 422)
    assert body["code"] == "idempotency_key_reused"
    assert list(body["errors"]) == ["Idempotency-Key"]


@one_database
def test_unfit_last_event_id_is_named_in_errors(alice: ApiClient) -> None:
    path = f"/task/{alice.start()['id']}/events"
    for text in ("x", "-1", "1.5", "9" * 19, "٣".encode().decode("latin-1")):
        body = problem(alice.get(path, headers={"Last-Event-ID": text}), 422)
        assert list(body["errors"]) == ["Last-Event-ID"]


def test_every_422_is_made_where_it_gets_its_errors() -> None:
    for path in (ROOT / "taskservice").rglob("*.py"):
        if path.name != "errors.py":
            assert not re.search(r"Problem\(\s*422\b", path.read_text()), path


# --- codes -------------------------------------------------------------------------------


def cancelled(alice: ApiClient) -> str:
    task = alice.start()
    alice.post(f"/task/{task['id']}/cancel")
    return f"/task/{task['id']}"


def last_key(alice: ApiClient) -> Any:
    (key,) = expect(alice.get("/key"), 200)
    return alice.delete(f"/key/{key['id']}")


def deleted_agent_with_a_task(alice: ApiClient) -> Any:
    alice.start()
    return alice.delete("/agent/summarizer")


def deleted_by_an_agent(alice: ApiClient) -> Any:
    return alice.agent_key().delete(f"/task/{alice.start()['id']}")


def append(alice: ApiClient, path: str = "", **body: Any) -> Any:
    path = path or f"/task/{alice.start()['id']}"
    return alice.post(f"{path}/logs", json={"logs": ["a line"], **body})


def redelivered_without_a_callback(alice: ApiClient) -> Any:
    return alice.post(f"/task/{alice.start()['id']}/deliveries")


REFUSED: dict[str, tuple[int, Callable[[ApiClient], Any]]] = {
    "unreadable": (400, lambda alice: alice.post("/task", data=b"{", content_type="a/b+json")),
    "invalid_key": (401, lambda alice: alice.get("/user", headers={"apikey": "wrong"})),
    "user_key_required": (403, deleted_by_an_agent),
    "read_only": (403, lambda alice: alice.read_key().post("/task")),
    "not_found": (404, lambda alice: alice.get("/task/nothing")),
    "no_such_path": (404, lambda alice: alice.get("/nothing")),
    "method_not_allowed": (405, lambda alice: alice.put("/user")),
    "not_acceptable": (406, lambda alice: alice.get("/user", headers={"Accept": "image/png"})),
    "task_finished": (409, lambda alice: append(alice, cancelled(alice))),
    "seq_gap": (409, lambda alice: append(alice, seq=7)),
    "agent_has_tasks": (409, deleted_agent_with_a_task),
    "last_user_key": (409, last_key),
    "no_delivery": (409, redelivered_without_a_callback),
    "too_large": (413, lambda alice: alice.post("/task", data=b" " * (2 * 1024 * 1024 + 1))),
    "unsupported_media_type": (415, lambda alice: alice.post("/task", data="x=1")),
    "invalid": (422, lambda alice: alice.get("/task", query_string={"stauts": "error"})),
}


def test_problem_has_its_code(app: Flask, subtests: pytest.Subtests) -> None:
    for code, (status, refused) in REFUSED.items():
        with subtests.test(code):
            assert problem(refused(add_user(app, code)), status)["code"] == code


@one_database
def test_document_lists_every_code(app: Flask) -> None:
    document = expect(app.test_client().get("/openapi.json"), 200)
    code = document["components"]["schemas"]["Problem"]["properties"]["code"]
    assert code["enum"] == list(CODES)
    for name, (status, meaning) in CODES.items():
        assert f"`{name}` ({status}): {meaning}" in code["description"]


def test_table_of_codes_is_the_codes() -> None:
    codes = [[f"`{name}`", str(status), meaning] for name, (status, meaning) in CODES.items()]
    assert table("docs/reference/errors.md", "## Error codes") == codes


@one_database
def test_invalid_body_is_freed_with_its_request(alice: ApiClient) -> None:
    """Without the garbage collector, which runs late if most objects are strings."""
    alice.register()
    body = {"agentId": "summarizer", "input": {"a": [f"{n}" for n in range(200_000)]}}
    gc.disable()
    try:
        problem(alice.post("/task", json=body), 422)
        before = sys.getallocatedblocks()
        problem(alice.post("/task", json=body), 422)
        assert sys.getallocatedblocks() < before + 100_000
    finally:
        gc.enable()
