"""Requests are read strictly, and every refusal is a problem."""

import gzip
import json
from collections.abc import Iterator
from io import BytesIO
from typing import Any

import pytest
from flask import Flask
from werkzeug.test import TestResponse

from taskservice.config import Config
from taskservice.schemas.strict_json import MAX_DEPTH, MAX_NUMBER
from taskservice.terms import MAX_OBJECT
from tests.support.api_client import ApiClient, expect, problem
from tests.support.internals import FITTING_BODIES, filled, rows, rules
from tests.support.marks import one_database

JSON = "application/json"
OPERATIONS = ("/livez", "/readyz")


def nested(depth: int, opening: bytes = b"[", closing: bytes = b"]") -> bytes:
    return opening * depth + closing * depth


def ids(alice: ApiClient) -> dict[str, str]:
    """Things that exist, as the routes name their parts."""
    key = expect(alice.post("/key", json={"name": "another"}), 201)
    task = alice.start(claim=True)
    question = expect(alice.post(f"/task/{task['id']}/question", json={"message": "?"}), 201)
    new_hook = {"target": "https://hooks.invalid/", "events": ["task.ended"]}
    hook = expect(alice.post("/hook", json=new_hook), 201)
    alice.report(alice.start(claim=True), status="complete")
    [delivery] = expect(alice.get(f"/hook/{hook['id']}/deliveries"), 200)
    link = expect(alice.post(f"/task/{task['id']}/link"), 201)
    return {
        "task_id": task["id"], "link_id": link["id"], "question_id": question["id"],
        "agent_id": "summarizer", "key_id": key["id"], "hook_id": hook["id"],
        "delivery_id": delivery["id"],
    }  # fmt: skip


def body_routes(alice: ApiClient) -> list[tuple[str, str]]:
    """Every way in for JSON."""
    task = alice.start()
    return [
        ("POST", "/task"), ("PATCH", f"/task/{task['id']}"), ("POST", f"/task/{task['id']}/logs"),
        ("PUT", f"/task/{task['id']}/logs"), ("PUT", "/agent/summarizer"), ("PUT", "/agent/new"),
        ("POST", "/key"), ("POST", "/hook"),
    ]  # fmt: skip


def start_text(alice: ApiClient, text: bytes) -> TestResponse:
    """Start a task with this text as the member `x` of its input."""
    body = b'{"agentId":"summarizer","input":{"x":' + text + b"}}"
    return alice.post("/task", data=body, content_type=JSON)


# --- JSON, read strictly -----------------------------------------------------------------

UNREADABLE: dict[str, list[bytes]] = {
    "a body of spaces": [b" \n"],
    "a body that is not UTF-8": [
        '{"name":"x"}'.encode("utf-16"), '{"name":"x"}'.encode("utf-16-le"),
        '{"name":"x"}'.encode("utf-32"), '{"name":"ü"}'.encode("latin-1"),
        b'\xef\xbb\xbf{"name":"x"}', b'{"name":"\xff"}', b'{"name":"\xc0\xaf"}',
        b'{"name":"\xf4\x90\x80\x80"}', b'{"name":"\xe2\x82"}', b'{"name":"\xed\xa0\x80"}',
    ],
    "a lone surrogate": [
        b'{"name":"\\ud800"}', b'{"name":"\\uDC00"}', b'{"name":"\\ude00\\ud83d"}',
        b'{"\\ud800":1}', b'{"output":{"a":[{"b":"x\\udfffy"}]}}',
    ],
    "NaN or Infinity": [
        b'{"name":NaN}', b"NaN", b'{"name":Infinity}', b'{"output":{"x":[-Infinity]}}',
    ],
    "a key twice in one object": [
        b'{"name":"x","name":"x"}', b'{"output":{"a":{"b":1,"c":2,"b":3}}}',
        b'{"output":{"a":[{"b":1,"b":1}]}}', b'{"name":"x","\\u006eame":"y"}',
        b'{"output":{"\\u0000":1,"\\ufffd":2}}',
    ],
    "a raw control character in a string": [
        b'{"name":"a\0b"}', b'{"name":"a\nb"}', b'{"name":"a\tb"}', b'{"name":"a\x1fb"}',
    ],
    "something after the end": [
        b'{"name":"x"}\0', b'{"name":"x"} x', b'{"name":"x"}{"name":"y"}', b'{"name":"x"},',
    ],
    "commas, quotes, comments and escapes that JSON lacks": [
        b'{"name":"x",}', b'{"logs":["x",]}', b"{'name':'x'}", b'{name:"x"}', b'{"name":"x"} // y',
        b'{"name":"\\x41"}', b'{"name":"\\u00"}', b'{"name":True}', b'\x0c{"name":"x"}',
        b'\xc2\xa0{"name":"x"}',
    ],
    "a number spelled as JSON does not": [
        b'{"name":+1}', b'{"name":01}', b'{"name":.5}', b'{"name":5.}', b'{"name":0x10}',
    ],
    "a text that breaks off": [b'{"name":"x"', b'{"name":"x', b'{"name":}'],
    "depth 65 and more, up to 100,000": [
        b'{"output":' + nested(MAX_DEPTH) + b"}", nested(MAX_DEPTH + 1),
        nested(MAX_DEPTH, b'{"a":', b"}").replace(b":}", b":{}}"),
        b'{"a":' + b"[[]," * 63 + b"1" + b"]" * 63 + b"}", nested(1_000), nested(100_000),
        b'{"a":' * 100_000 + b"1" + b"}" * 100_000, b"[" * 100_000, b'{"":' * 100_000,
    ],
    "a form or XML": [b"name=x&agentId=summarizer", b"<name>x</name>"],
}  # fmt: skip
UNFIT: dict[str, list[bytes]] = {
    "JSON that is not an object": [
        b"[]", b'[{"name":"x"}]', b'"x"', b"5", b"123456789012345678901234567890", b"true",
    ],
    "a number past a double": [
        b'{"name":1e999}', b'{"name":-1e999}', b'{"name":1e99999999999999999999}',
        b'{"name":1e-99999999999999999999}',
    ],
    "a number of 5,000 or 100,000 digits": [
        b'{"name":' + b"1" * 5_000 + b"}", b'{"name":-' + b"1" * 5_000 + b"}",
        b'{"name":0.' + b"1" * 5_000 + b"}", b'{"name":' + b"9" * 100_000 + b"}",
    ],
    "an unknown member": [b'{"nonsense":1}', b'{"":1}', '{"ü\\u0000\\n\\"":1}'.encode()],
}  # fmt: skip


@one_database
@pytest.mark.parametrize(("bodies", "status"), [(UNREADABLE, 400), (UNFIT, 422)])
def test_invalid_json_is_refused(
    alice: ApiClient, app: Flask, subtests: pytest.Subtests,
    bodies: dict[str, list[bytes]], status: int,
) -> None:  # fmt: skip
    ways, before = body_routes(alice), rows(app)
    for group, texts in bodies.items():
        for data in texts:
            with subtests.test(f"{group}: {data[:40]!r}"):
                for method, path in ways:
                    response = alice.request(method, path, data=data, content_type=JSON)
                    assert ("errors" in problem(response, status)) == (status == 422)
    assert rows(app) == before


def test_depth_64_is_fit_and_65_is_not(alice: ApiClient) -> None:
    alice.register()
    for opening, closing in ((b"[", b"]"), (b'{"a":', b"}"), (b'[{"a":', b"}]")):
        # The body, its input, and then what is in there.
        levels = (MAX_DEPTH - 2) // len(closing)
        deepest = opening * levels + b"1" + closing * levels
        response = start_text(alice, deepest)
        expect(response, 201)
        assert deepest in response.data
        problem(start_text(alice, b"[" + deepest + b"]"), 400)
    # Side by side is not inside one another.
    expect(start_text(alice, b"[" + b",".join([b"[]"] * 1_000) + b"]"), 201)
    # Brackets in a string are none.
    expect(start_text(alice, b'"' + b"[{" * 1_000 + b'"'), 201)


KEPT_NUMBERS = (
    "0", "-1", "9007199254740993", "9223372036854775807", "9223372036854775808",
    "-9223372036854775808", "-9223372036854775809", "18446744073709551615",
    "18446744073709551616", "1" * 100, "-" + "1" * 100, "1" * MAX_NUMBER,
    "0.1", "-0.5", "0.30000000000000004", "3.14159265358979323846264338327950288",
    "0." + "1" * (MAX_NUMBER - 2), "1e-400", "123456789.123456789123456789", "2.5e-324",
)  # fmt: skip


def test_numbers_are_kept_exactly(alice: ApiClient, subtests: pytest.Subtests) -> None:
    alice.register()
    for number in KEPT_NUMBERS:
        with subtests.test(number[:40]):
            response = start_text(alice, number.encode())
            task = expect(response, 201)
            expected = b'"input":{"x":' + number.encode() + b"}"
            for answer in (response, alice.get(f"/task/{task['id']}"), alice.get("/task")):
                assert expected in answer.data


LOST_NUMBERS = (
    "1e999", "-1e999", "1" * (MAX_NUMBER + 1), "0." + "1" * MAX_NUMBER, "1e" + "9" * 30,
)  # fmt: skip


@one_database
def test_number_that_cannot_be_kept_is_422(alice: ApiClient, subtests: pytest.Subtests) -> None:
    alice.register()
    for number in LOST_NUMBERS:
        with subtests.test(number[:40]):
            assert problem(start_text(alice, number.encode()), 422)["errors"]
    assert expect(alice.get("/task"), 200) == []


def test_nul_is_replaced_everywhere(alice: ApiClient) -> None:
    alice.register()
    body = (
        rb'{"agentId":"summarizer","name":"\u0000a\u0000\u0000",'
        rb'"input":{"\u0000k":["\u0000","\\u0000","\\\u0000","\\\\u0000"]}}'
    )
    task = expect(alice.post("/task", data=body, content_type=JSON), 201)
    assert task["name"] == "\ufffda\ufffd\ufffd"
    assert task["input"] == {"\ufffdk": ["\ufffd", "\\u0000", "\\\ufffd", "\\\\u0000"]}
    assert alice.task(task) == task
    described = alice.put(
        "/agent/summarizer", data=rb'{"description":"a\u0000"}', content_type=JSON
    )
    assert expect(described, 200)["description"] == "a\ufffd"


def test_text_is_kept_whatever_its_script(alice: ApiClient) -> None:
    alice.register()
    text = "ü\u0301 𝛂 😀 \u202e \u2028 \x7f \ufffe \uffff \U0010ffff \" \\ / </script> ' \t\r\n"
    task = alice.start(name=text[:40], input={text: [text]})
    assert (task["name"], task["input"]) == (text[:40], {text: [text]})
    assert alice.task(task) == task
    escaped = rb'"\u00FC\ud83D\uDE00\/\b\f\n\r\t\""'
    assert expect(start_text(alice, escaped), 201)["input"] == {"x": 'ü😀/\b\f\n\r\t"'}


@one_database
def test_spaces_around_json_do_not_matter(alice: ApiClient) -> None:
    alice.register()
    for data in (
        b' \t\r\n{ "agentId" :\n"summarizer" } \r\n',
        b'{"agentId":"summarizer"}' + b" " * 100_000,
    ):
        expect(alice.post("/task", data=data, content_type=JSON), 201)


# --- content types -----------------------------------------------------------------------


OTHER_TYPES = (
    "text/html", "text/plain", "text/json", "application/x-www-form-urlencoded",
    "multipart/form-data; boundary=x", "application/octet-stream", "application/xml",
    "application", "json", "nonsense", ";", "application/json; charset=utf-16",
    "application/json; charset=iso-8859-1", "application/json; charset=nonsense",
)  # fmt: skip


@one_database
def test_other_content_types_are_415(
    alice: ApiClient, app: Flask, subtests: pytest.Subtests
) -> None:
    ways, before = body_routes(alice), rows(app)
    fit = b'{"agentId":"summarizer","name":"x","logs":["x"]}'
    for content_type in OTHER_TYPES:
        with subtests.test(content_type[:40]):
            for method, path in ways:
                if not (path.endswith("/logs") and content_type == "text/plain"):
                    problem(alice.request(method, path, data=fit, content_type=content_type), 415)
    assert rows(app) == before


TYPES_OF_JSON = (
    "application/json", "Application/JSON", "application/json; charset=utf-8",
    'application/json;charset="UTF-8"', "application/json; charset=us-ascii",
    "application/merge-patch+json",
)  # fmt: skip


@one_database
def test_content_types_of_json_are_fit(alice: ApiClient, subtests: pytest.Subtests) -> None:
    alice.register()
    data = '{"agentId":"summarizer","name":"ü"}'.encode()
    for content_type in TYPES_OF_JSON:
        with subtests.test(content_type[:40]):
            task = expect(alice.post("/task", data=data, content_type=content_type), 201)
            assert task["name"] == "ü"


@one_database
def test_body_without_a_content_type_is_415_and_none_at_all_is_an_empty_object(
    alice: ApiClient,
) -> None:
    alice.register()
    problem(alice.post("/task", data=b'{"agentId":"summarizer"}'), 415)
    assert list(problem(alice.post("/task"), 422)["errors"]) == ["agentId"]
    expect(alice.put("/agent/summarizer"), 200)


# --- large bodies ------------------------------------------------------------------------


class Untouchable:
    """A body that must not be read."""

    def read(self, size: int = -1) -> bytes:
        raise AssertionError("the body was read")

    readline = __iter__ = read


@one_database
def test_body_that_says_it_is_too_large_is_413_unread(alice: ApiClient, config: Config) -> None:
    for method, path in body_routes(alice):
        largest = config.MAX_BODY if path.endswith("/logs") else 2 * MAX_OBJECT
        for size in (largest + 1, 10 * 1024**3, 1 << 63):
            response = alice.request(
                method,
                path,
                environ_overrides={"wsgi.input": Untouchable(), "CONTENT_LENGTH": str(size)},
                content_type=JSON,
            )
            problem(response, 413)


@one_database
def test_body_that_turns_out_too_large_is_413(alice: ApiClient) -> None:
    task = alice.start()
    spaces = b" " * (2 * MAX_OBJECT - 2)
    assert expect(send_chunked(alice, task, b"{}" + spaces), 200) == task
    problem(send_chunked(alice, task, b"{}" + spaces + b" "), 413)
    problem(send_chunked(alice, task, b'{"name":"x"}' + spaces + b" " * 1024 * 1024), 413)
    assert alice.task(task) == task


def send_chunked(alice: ApiClient, task: dict[str, Any], data: bytes) -> TestResponse:
    """A report whose length its head does not tell, as a server hands over chunks."""
    return alice.patch(
        f"/task/{task['id']}",
        input_stream=BytesIO(data),
        environ_overrides={"wsgi.input_terminated": True},
        content_type=JSON,
    )


@one_database
def test_largest_body_is_fit(alice: ApiClient, config: Config) -> None:
    task = alice.start()
    path, spaces = f"/task/{task['id']}", b" " * (2 * MAX_OBJECT - 2)
    assert expect(alice.patch(path, data=b"{}" + spaces, content_type=JSON), 200) == task
    problem(alice.patch(path, data=b"{}" + spaces + b" ", content_type=JSON), 413)
    problem(alice.delete(path, data=b"{}" + spaces + b" ", content_type=JSON), 413)
    # Only an append may be larger.
    assert config.MAX_BODY == 10 * MAX_OBJECT
    path, body = f"{path}/logs", b'{"logs":[]}'
    body += b" " * (config.MAX_BODY - len(body))
    expect(alice.post(path, data=body, content_type=JSON), 201)
    problem(alice.post(path, data=body + b" ", content_type=JSON), 413)


@one_database
def test_json_with_very_many_values_is_400(alice: ApiClient) -> None:
    task = alice.start()
    path = f"/task/{task['id']}"
    few = b"[]," * 349_500 + b"0"
    expect(alice.patch(path, data=b'{"output":{"a":[' + few + b"]}}", content_type=JSON), 200)
    for many in (b"[" * 350_001, b"[" + b"{}," * 350_000, b"\xff" + b"[]," * 350_001):
        refused = problem(alice.patch(path, data=many, content_type=JSON), 400)
        assert "more than 350,000 objects and arrays" in refused["detail"]
    few = b'{"logs":[' + b'"a",' * 699_997
    expect(alice.post(f"{path}/logs", data=few + b'"a"]}', content_type=JSON), 201)
    refused = problem(alice.post(f"{path}/logs", data=few + b'"","",""]}', content_type=JSON), 400)
    assert "more than 700,000 values" in refused["detail"]
    # In strings they do not count, also in one without an end.
    assert alice.append(task, *[r'{"a":[[[[[[[[[["\\"]]]]]]]]]]}'] * 60_000)["logCount"] == 759_998
    endless = b'{"name":"' + rb"\"" * 500_000 + b"[" * 700_000
    refused = problem(alice.patch(path, data=endless, content_type=JSON), 400)
    assert "Unterminated string" in refused["detail"]


# --- paths, methods, media types ---------------------------------------------------------


UNKNOWN_PATHS = (
    "", "/", "/nothing", "/tasks", "/Task", "/task/", "/agent/", "/user/x", "/agent/a/b",
    "//task", "/task//x", "/task/x/logs/y", "/task%2f", "/%00", "/%ff", "/ü", "/..",
    "/<script>", "/" + "x" * 5_000, "/task;x",
)  # fmt: skip


@one_database
def test_unknown_path_is_404(alice: ApiClient, subtests: pytest.Subtests) -> None:
    for path in UNKNOWN_PATHS:
        with subtests.test(path[:40]):
            for method in ("GET", "POST", "PUT", "PATCH", "DELETE"):
                problem(alice.request(method, path, json={}), 404)


PATHS_OUTSIDE = ("/nothing", "/api", "/api/v2/task", "/v1/task", "/livez/")


@one_database
def test_unknown_path_outside_of_the_api_is_404_too(app: Flask, subtests: pytest.Subtests) -> None:
    for path in PATHS_OUTSIDE:
        with subtests.test(path[:40]):
            response = app.test_client().open(path="/", environ_overrides={"PATH_INFO": path})
            problem(response, 404)


@one_database
def test_wrong_method_is_405_with_allow(alice: ApiClient, app: Flask) -> None:
    things = ids(alice)
    allowed: dict[str, set[str]] = {}
    for method, rule in rules(app):
        allowed.setdefault(filled(rule, **things), set()).add(method)
    before = rows(app)
    for path, methods in allowed.items():
        for method in {"GET", "POST", "PUT", "PATCH", "DELETE", "TRACE", "FOO"} - methods:
            response = alice.request(method, path)
            problem(response, 405)
            assert set(response.headers["Allow"].split(", ")) == methods
    assert rows(app) == before


@one_database
def test_wrong_method_of_an_operators_route_is_405(app: Flask) -> None:
    for path in OPERATIONS:
        response = app.test_client().post(path)
        problem(response, 405)
        assert "GET" in response.headers["Allow"]


EXCLUDING = (
    "text/html", "text/plain", "image/*", "application/xml", "application/pdf, text/*;q=0.5",
    "application/json;q=0", "text/html, application/json;q=0", "*/*;q=0", "nonsense",
)  # fmt: skip


@one_database
def test_accept_that_excludes_json_is_406(
    alice: ApiClient, app: Flask, subtests: pytest.Subtests
) -> None:
    ways = [*body_routes(alice), ("GET", "/task"), ("GET", "/agent"), ("GET", "/user")]
    ways += [("DELETE", "/agent/summarizer"), ("POST", "/callback-secret")]
    before = rows(app)
    for accept in EXCLUDING:
        with subtests.test(accept):
            for method, path in ways:
                fit = {"agentId": "summarizer", "logs": ["x"], "name": "x"}
                headers = {"Accept": accept}
                problem(alice.request(method, path, json=fit, headers=headers), 406)
    assert rows(app) == before


INCLUDING = (
    None, "", "*/*", "application/*", "application/json", "Application/JSON",
    "application/json; charset=utf-8", "text/html, application/json;q=0.1",
    "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8",
    "application/json, application/problem+json", "*/*;q=0.1",
)  # fmt: skip


@one_database
def test_accept_that_includes_json_is_fit(alice: ApiClient, subtests: pytest.Subtests) -> None:
    task = alice.start()
    for accept in INCLUDING:
        with subtests.test(str(accept)):
            headers = {} if accept is None else {"Accept": accept}
            response = alice.get(f"/task/{task['id']}", headers=headers)
            assert expect(response, 200) == task
            assert response.content_type == "application/json"


# --- query strings -----------------------------------------------------------------------

ODD_QUERIES = (
    "nonsense=1", "nonsense", "=1", "=", "%00=1", "%ff=1", "%FF%FE", "ü=1", "%C3%BC=1", "Fields=id",
    "apikey=x", "fields[]=id", "fields%20=id", "x" * 3000, "&".join(f"p{n}=1" for n in range(500)),
)  # fmt: skip


@one_database
def test_unknown_query_parameter_is_422_everywhere(
    alice: ApiClient, app: Flask, subtests: pytest.Subtests
) -> None:
    things, before = ids(alice), rows(app)
    for method, rule in rules(app):
        if method not in ("OPTIONS", "HEAD"):
            with subtests.test(f"{method} {rule}"):
                path = filled(rule, **things)
                # No body, so that nothing could be done even if the query were let through.
                body = problem(alice.request(method, f"{path}?nonsense=1"), 422)
                # A parameter that is required is missing too.
                assert body["errors"].keys() - {"text"} == {"nonsense"}
    assert rows(app) == before


@one_database
def test_unknown_query_parameter_is_422_for_operators_too(app: Flask) -> None:
    for path in OPERATIONS:
        problem(app.test_client().get(f"{path}?nonsense=1"), 422)


@one_database
def test_unusual_query_is_refused_whatever_its_bytes(
    alice: ApiClient, subtests: pytest.Subtests
) -> None:
    for query in ODD_QUERIES:
        with subtests.test(query[:40]):
            response = alice.get("/task", query_string=query)
            # Invalid UTF-8 is unreadable (400); the rest are unknown parameters (422).
            problem(response, 400 if "%ff" in query.lower() else 422)


QUERIES_OF_NO_UTF8 = (b"\xff", b"\xff=1", b"fields=\xff", b"\xed\xa0\x80=1", b"\xc3")


@one_database
def test_query_that_is_not_utf8_is_refused(alice: ApiClient, subtests: pytest.Subtests) -> None:
    for query in QUERIES_OF_NO_UTF8:
        with subtests.test(repr(query)):
            environ = {"QUERY_STRING": query.decode("latin-1")}
            response = alice.get("/task", environ_overrides=environ)
            assert response.status_code in (400, 422)
            problem(response, response.status_code)


@one_database
def test_empty_query_is_not_a_filter(alice: ApiClient) -> None:
    for query in ("&", "&&", ""):
        assert expect(alice.get(f"/task?{query}"), 200) == []


@one_database
def test_body_that_is_coded_is_415(alice: ApiClient, app: Flask, subtests: pytest.Subtests) -> None:
    ways = body_routes(alice)
    before = rows(app)
    for method, path in ways:
        for coding in ("gzip", "GZIP", "deflate", "br", "zstd", "identity, gzip", "nonsense"):
            with subtests.test(f"{method} {path} {coding}"):
                response = alice.request(
                    method, path, data=gzip.compress(b'{"name":"x"}'), content_type=JSON,
                    headers={"Content-Encoding": coding},
                )  # fmt: skip
                problem(response, 415)
    assert rows(app) == before
    task = alice.start()
    expect(
        alice.put(f"/task/{task['id']}/logs", data=b"x", headers={"Content-Encoding": "Identity"}),
        201,
    )


def routes_without_a_body(app: Flask) -> list[tuple[str, str]]:
    taken = {("PUT", "/agent/<agent_id>"), ("PATCH", "/task/<task_id>"), *FITTING_BODIES}
    taken |= {("POST", "/task"), ("POST", "/task/<task_id>/rerun"), ("POST", "/key")}
    taken |= {("POST", "/task/bulk"), ("POST", "/task/<task_id>/link"), ("POST", "/sign-in-link")}
    taken |= {("POST", "/hook"), ("PATCH", "/hook/<hook_id>")}
    return [
        (method, rule)
        for method, rule in rules(app)
        if method in ("POST", "PUT", "PATCH", "DELETE") and (method, rule) not in taken
    ]


@one_database
def test_body_where_none_is_taken_is_refused(
    alice: ApiClient, app: Flask, subtests: pytest.Subtests
) -> None:
    things, routes = ids(alice), routes_without_a_body(app)
    assert len(routes) == 12
    before = rows(app)
    for method, rule in routes:
        path = filled(rule, **things)
        for data, status in (
            (b'{"error":{"message":"x"}}', 422), (b"[]", 422), (b"0", 422), (b"x=1", 400),
            (b"{", 400), (b"\xff", 400), (b'{"a":NaN}', 400), (b" ", 400),
        ):  # fmt: skip
            for content_type in (JSON, "application/x-www-form-urlencoded", "text/plain", None):
                with subtests.test(f"{method} {rule} {data!r} {content_type}"):
                    response = alice.request(method, path, data=data, content_type=content_type)
                    problem(response, status)
    assert rows(app) == before


NO_BODY: tuple[dict[str, Any], ...] = (
    {}, {"json": {}}, {"data": b"{ }"},
    # As generated clients have it.
    {"data": b"", "content_type": JSON}, {"data": b"null", "content_type": JSON},
    # As `curl -X POST -d ''` has it.
    {"data": b"", "content_type": "application/x-www-form-urlencoded"},
    {"data": b"{}", "content_type": "application/x-www-form-urlencoded"},
)  # fmt: skip


@one_database
def test_request_without_a_body_may_take_several_forms(
    alice: ApiClient, subtests: pytest.Subtests
) -> None:
    for options in NO_BODY:
        with subtests.test(str(options)):
            task = alice.start()
            assert expect(alice.post("/agent/summarizer/claim", **options), 200)["id"] == task["id"]
            if options.get("content_type", JSON) == JSON and options.get("data") != b"{ }":
                if options.get("data") != b"null":
                    expect(alice.put("/agent/summarizer", **options), 200)
                    expect(alice.patch(f"/task/{task['id']}", **options), 200)
                again = alice.post(f"/task/{task['id']}/rerun", **options)
                expect(alice.delete(f"/task/{expect(again, 201)['id']}"), 200)
            expect(alice.post("/callback-secret", **options), 201)
            expect(alice.post(f"/task/{task['id']}/cancel", **options), 200)
            expect(alice.delete(f"/task/{task['id']}", **options), 200)


@one_database
def test_null_is_refused_where_an_object_is_wanted(alice: ApiClient, app: Flask) -> None:
    task = alice.start(claim=True)
    link = f"/task/{task['id']}/link"
    hook = expect(alice.post("/hook", json={"target": "https://example.org/hook"}), 201)
    before = rows(app)
    for method, path in (
        ("PUT", "/agent/summarizer"), ("PATCH", f"/task/{task['id']}"), ("POST", link),
        ("PATCH", f"/hook/{hook['id']}"), ("POST", "/sign-in-link"), ("POST", "/hook"),
        ("POST", "/task/bulk"), ("PUT", f"/task/{task['id']}/logs"),
    ):  # fmt: skip
        problem(alice.request(method, path, data=b"null", content_type=JSON), 422)
    assert rows(app) == before


@one_database
def test_body_that_is_required_must_be_there(alice: ApiClient, app: Flask) -> None:
    task = alice.start(claim=True)
    before = rows(app)
    for path in ("/task", "/key", f"/task/{task['id']}/logs", f"/task/{task['id']}/question"):
        problem(alice.post(path, data=b"", content_type=JSON), 400)
        problem(alice.post(path, data=b"null", content_type=JSON), 422)
        problem(alice.post(path), 422)
    assert rows(app) == before


# --- whatever comes ----------------------------------------------------------------------

ODD_IDS = (
    "x", "%00", "%ff", "ü", "%ED%A0%80", "..", "%2e%2e", "a%2Fb", "' OR 1=1 --", "9" * 400,
    "00000000-0000-0000-0000-000000000000", "{00000000-0000-0000-0000-000000000000}",
    "urn:uuid:00000000-0000-0000-0000-000000000000", "0000000000000000000000000000000000000000",
    "٠٠٠٠٠٠٠٠-٠٠٠٠-٠٠٠٠-٠٠٠٠-٠٠٠٠٠٠٠٠٠٠٠٠", "00000000-0000-0000-0000-00000000000\n", "-1", "%",
    "%G1", "NaN", "None", "a\u0301", "a b", "<b>",
)  # fmt: skip


def odd_spellings(real: str) -> Iterator[str]:
    """What some readers of UUIDs take for this one, which begins with the digit 0."""
    digits = real.replace("-", "")
    yield from (digits, f"{digits}----", f"----{digits}", f"{{{real}}}", f"{{{digits}}}--")
    yield from (f"urn:{digits}", f"urn:uuid:{real}", f"uuid:{real}", f"({real})")
    yield from (f"%2b{real[1:]}", f"+{real[1:]}", f"%20{real}", f"{real}%20", f"{real}%0a")
    yield from (f"{real}%00", f"0x{real}", f"０{real[1:]}", f"٠{real[1:]}", f"{real}-", f"0{real}")
    yield from (real.replace("-", "_"), real.replace("-", "%2d%2d"), real.replace("-", "–"))
    yield from ("-".join([digits[:4], digits[4:8], digits[8:12], digits[12:16], digits[16:]]),)


def test_id_may_be_in_upper_case_and_has_no_other_spelling(
    alice: ApiClient, subtests: pytest.Subtests
) -> None:
    things = ids(alice)
    for thing, path in (("task_id", "/task"), ("key_id", "/key")):
        real = things[thing]
        assert real.startswith("0")
        methods = ("GET", "PATCH", "DELETE") if path == "/task" else ("DELETE",)
        for odd in odd_spellings(real):
            with subtests.test(odd):
                for method in methods:
                    problem(alice.request(method, f"{path}/{odd}"), 404)
        assert expect(alice.delete(f"{path}/{real.upper()}"), 200)["id"] == real


def odd_requests() -> Iterator[dict[str, Any]]:
    yield {}
    yield {"json": {"logs": ["x"], "name": "x", "agentId": "\0\ud7ff"}}
    yield {"data": b"\xff\0", "content_type": "text/plain"}
    yield {"data": b"\xff\0", "content_type": JSON}
    yield {"data": b"x=1", "content_type": "multipart/form-data"}
    yield {"headers": {"Accept": "\xff;q=\xfe", "Content-Type": "\xff/\xfe; charset=\xfd"}}
    yield {"headers": {"Idempotency-Key": "\xff" * 255, "X-Request-Id": "\xff", "Host": "\xff"}}
    yield {"headers": {"Prefer": "wait=\xff", "If-None-Match": "\xff", "Last-Event-ID": "-1"}}
    yield {"headers": {"Content-Length": "x"}}
    yield {"headers": {"Content-Length": "-1"}}
    yield {"query_string": {"fields": "\0", "expand": "\ufffd", "seq": "\0", "after": "9" * 99}}


def test_unusual_ids_never_cause_a_500(
    alice: ApiClient, app: Flask, subtests: pytest.Subtests
) -> None:
    for method, rule in rules(app):
        if method != "OPTIONS" and "<" in rule:
            for odd in ODD_IDS:
                with subtests.test(f"{method} {rule} {odd[:40]}"):
                    path = filled(rule, task_id=odd, agent_id=odd, key_id=odd)
                    check_answer(alice.request(method, path))
                    if method in ("POST", "PUT", "PATCH"):
                        check_answer(alice.request(method, path, json={"logs": ["x"]}))


def test_unusual_requests_never_cause_a_500(
    alice: ApiClient, app: Flask, subtests: pytest.Subtests
) -> None:
    for method, rule in rules(app):
        if method not in ("OPTIONS", "HEAD"):
            with subtests.test(f"{method} {rule}"):
                things = ids(alice)
                if rule.endswith("/events"):
                    # The stream ends with its task.
                    expect(alice.post(f"/task/{things['task_id']}/cancel"), 200)
                for options in odd_requests():
                    check_answer(alice.request(method, filled(rule, **things), **options))


def check_answer(response: TestResponse) -> None:
    """A response in JSON, or a problem that describes the error in the request."""
    data, status = response.get_data(), response.status_code
    assert status < 500, data
    if status == 204:
        return
    if status < 300:
        assert response.content_type in (JSON, "text/plain; charset=utf-8", "text/event-stream")
        return
    assert status >= 400
    assert response.content_type == "application/problem+json"
    assert not data.lstrip().startswith(b"<")
    if response.request.method != "HEAD":
        problem(response, status)


# --- HEAD, and the ID of a request -------------------------------------------------------


def test_head_is_get_without_its_body(alice: ApiClient, app: Flask) -> None:
    things = ids(alice)
    alice.append({"id": things["task_id"]}, "one", "two")
    # A stream would not end before its task.
    expect(alice.post(f"/task/{things['task_id']}/cancel"), 200)
    paths = {filled(rule, **things) for method, rule in rules(app) if method == "GET"}
    for path in sorted({*paths, "/nothing", "/task/x", "/task?nonsense=1", "/task?fields=id"}):
        get, head = alice.get(path), alice.request("HEAD", path)
        assert head.status_code == get.status_code
        assert head.data == b""
        different = {"X-Request-Id", "Date"}
        assert [pair for pair in head.headers if pair[0] not in different] == [
            pair for pair in get.headers if pair[0] not in different
        ]


ODD_REQUEST_IDS = ("", "a b", "ü", "x" * 129, "a\tb")


@one_database
def test_invalid_request_id_is_replaced(alice: ApiClient, subtests: pytest.Subtests) -> None:
    for taken in ODD_REQUEST_IDS:
        with subtests.test(taken[:40]):
            response = alice.get("/task", headers={"X-Request-Id": taken})
            assert response.headers["X-Request-Id"] not in ("", taken)


@one_database
def test_answers_are_compact_json_in_utf8(alice: ApiClient) -> None:
    response = alice.put("/agent/summarizer", json={"name": "ü"})
    assert response.content_type == JSON
    assert '"name":"ü"'.encode() in response.data
    assert (
        response.data
        == json.dumps(
            response.json, ensure_ascii=False, separators=(",", ":"), sort_keys=False
        ).encode()
    )
