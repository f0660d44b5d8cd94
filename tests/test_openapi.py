"""The OpenAPI document: complete, valid, correct, and enough to generate a client."""

import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import urljoin

import jsonschema_rs
import pytest
import requests
from flask import Flask

from taskservice.openapi.components import ALWAYS_REFUSED
from taskservice.openapi.document import document as document_of
from taskservice.openapi.document import openapi_path
from taskservice.openapi.page import resolved
from taskservice.schemas.tasks import TaskSchema
from taskservice.terms import API_PREFIX
from tests.support import conformance
from tests.support.api_client import ApiClient, add_user, expect
from tests.support.conformance import validator
from tests.support.internals import is_document, is_page
from tests.support.receiver import Received, Receiver, unused_port

Object = dict[str, Any]

# It is the same on every database.
pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


@pytest.fixture
def document(app: Flask) -> Object:
    return dict(expect(app.test_client().get("/openapi.json"), 200))


def operations(document: Object) -> Iterator[tuple[str, str, Object]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield method, path, operation


def contents(document: Object, operation: Object) -> Iterator[Object]:
    """Every body that an operation reads or answers with."""
    yield from operation.get("requestBody", {}).get("content", {}).values()
    for answer in operation["responses"].values():
        yield from resolved(document, answer).get("content", {}).values()


# --- complete and valid ------------------------------------------------------------------


def test_document_is_valid_openapi(document: Object) -> None:
    # Here, since this import takes seconds in each process that collects the tests.
    from openapi_spec_validator import validate

    assert document["openapi"].startswith("3.1.")
    validate(document)


def test_document_is_made_without_copies_of_large_schemas(
    app: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With them the first reader waits for seconds, and so do all others."""

    def refuse(schema: TaskSchema, memo: object) -> None:
        raise AssertionError(f"{schema} is copied")

    monkeypatch.setattr(TaskSchema, "__deepcopy__", refuse, raising=False)
    assert document_of(app, API_PREFIX)["paths"]


def test_every_route_is_in_the_document_and_nothing_else(app: Flask, document: Object) -> None:
    documented = {(method.upper(), path) for method, path, _ in operations(document)}
    routes = {
        (method, openapi_path(rule.rule))
        for rule in app.url_map.iter_rules()
        if not (is_page(rule) or is_document(rule))
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
    }
    # MCP describes itself, in its own protocol; links answer as the routes with a key do.
    others = {route for route in routes if route[1].startswith(("/mcp", "/shared/"))}
    assert documented == routes - others


def test_every_operation_says_what_it_does(document: Object) -> None:
    names = [operation["operationId"] for _, _, operation in operations(document)]
    assert len(set(names)) == len(names)
    tags = {tag["name"] for tag in document["tags"]}
    for method, path, operation in operations(document):
        told = f"{method} {path}"
        assert set(operation["tags"]) <= tags, told
        assert operation["summary"], told
        assert operation["description"], told
        assert all(parameter["description"] for parameter in operation["parameters"]), told
        for content in contents(document, operation):
            assert content["schema"], told
            assert content["example"], told


def test_every_field_of_a_schema_is_described(document: Object) -> None:
    for name, schema in document["components"]["schemas"].items():
        assert schema["description"], name
        for field, value in schema["properties"].items():
            is_named = "$ref" in value or "anyOf" in value
            assert is_named or value["description"], f"{name}.{field}"


def test_every_operation_has_its_errors(document: Object) -> None:
    for method, path, operation in operations(document):
        statuses = operation["responses"].keys()
        told = f"{method} {path}"
        assert statuses >= {str(status) for status in ALWAYS_REFUSED}, told
        assert ("401" in statuses) == path.startswith(API_PREFIX), told
        assert ("404" in statuses) == ("{" in path), told
        assert ("415" in statuses) == ("requestBody" in operation), told
        for status, reference in operation["responses"].items():
            answer = resolved(document, reference)
            assert "X-Request-Id" in answer["headers"], told
            if status >= "400":
                assert list(answer["content"]) == ["application/problem+json"], told


def test_only_operations_without_a_key_have_no_security(document: Object) -> None:
    assert document["security"] == [{"apikey": []}, {"bearer": []}]
    bearer = document["components"]["securitySchemes"]["bearer"]
    assert bearer == {"type": "http", "scheme": "bearer"}
    key = document["components"]["securitySchemes"]["apikey"]
    assert key == {"type": "apiKey", "in": "header", "name": "apikey"}
    for _, path, operation in operations(document):
        assert (operation.get("security") == []) == (not path.startswith(API_PREFIX))


def test_schema_says_where_unknown_fields_are_refused(document: Object) -> None:
    for _, _, operation in operations(document):
        for kind, body in operation.get("requestBody", {}).get("content", {}).items():
            if kind == "application/json":
                assert resolved(document, body["schema"])["additionalProperties"] is False


def test_server_is_right_under_any_prefix(document: Object) -> None:
    (server,) = document["servers"]
    for base in ("http://localhost:8000", "https://example.com/some/prefix"):
        # Tools append the path to the server's URL without its last slash.
        server_url = urljoin(f"{base}/openapi.json", server["url"]).rstrip("/")
        assert server_url == base


def test_unchanged_document_is_304(app: Flask) -> None:
    client = app.test_client()
    first = client.get("/openapi.json")
    again = client.get("/openapi.json", headers={"If-None-Match": first.headers["ETag"]})
    assert (again.status_code, again.data) == (304, b"")
    for path in ("/openapi.json", "/docs"):
        response = client.get(path)
        conformance.check("GET", path, response)
        assert response.status_code == 200
        assert client.head(path).data == b""


# What the example of an answer answers.
QUESTION = {
    "message": "Deploy to production?",
    "schema": {"type": "object", "properties": {"deploy": {"type": "boolean"}}},
}

# --- its examples ------------------------------------------------------------------------


def test_examples_are_what_their_schemas_say(document: Object) -> None:
    for method, path, operation in operations(document):
        for content in contents(document, operation):
            told = f"{method} {path}: {content['example']}"
            assert validator(json.dumps(content["schema"])).is_valid(content["example"]), told
        for parameter in operation["parameters"]:
            for example in parameter["schema"].get("examples", []):
                assert validator(json.dumps(parameter["schema"])).is_valid(example), told


def test_example_requests_are_answered_as_documented(
    app: Flask, document: Object, subtests: pytest.Subtests
) -> None:
    for method, path, operation in operations(document):
        bodies = operation.get("requestBody", {}).get("content", {None: {"example": ""}})
        for kind, body in bodies.items() if path.startswith(API_PREFIX) else ():
            name = f"{operation['operationId']} {kind}"
            with subtests.test(name):
                example = body["example"]
                text = example if isinstance(example, str) else json.dumps(example)
                person = add_user(app, name)
                response = person.request(
                    method.upper(), path_for(person, path), data=text, content_type=kind
                )
                good = {status for status in operation["responses"] if status < "300"}
                assert str(response.status_code) in good, response.data


def path_for(person: ApiClient, path: str) -> str:
    """The path, below the prefix, of things that this person has."""
    person.register("summarizer")
    values = {"agentId": "summarizer"}
    if "{taskId}" in path:
        task = person.start(claim=True, callback=f"http://127.0.0.1:{unused_port()}/")
        values["taskId"] = task["id"]
        if "{questionId}" in path:
            asked = person.post(f"/task/{task['id']}/question", json=QUESTION)
            values["questionId"] = expect(asked, 201)["id"]
        if "{linkId}" in path:
            values["linkId"] = expect(person.post(f"/task/{task['id']}/link"), 201)["id"]
        if path.endswith("/deliveries"):
            person.report(task, status="complete")
    if "{hookId}" in path:
        new_hook = {"target": f"http://127.0.0.1:{unused_port()}/", "events": ["task.ended"]}
        hook = expect(person.post("/hook", json=new_hook), 201)
        values["hookId"] = hook["id"]
        person.report(person.start(claim=True), status="complete")
        [delivery] = expect(person.get(f"/hook/{hook['id']}/deliveries"), 200)
        values["deliveryId"] = delivery["id"]
    if "{keyId}" in path:
        values["keyId"] = expect(person.post("/key", json={"name": "another"}), 201)["id"]
    if path.endswith("/new-lines"):
        path += "?against={taskId}"
    if path.endswith("/search"):
        path += "?text=full"
    return path.removeprefix(API_PREFIX).format(**values)


# --- the comparison that all other tests make --------------------------------------------


def answer(status: int, body: Any, **headers: str) -> requests.Response:
    """An answer as it could come over a socket."""
    response = requests.Response()
    response.status_code = status
    response._content = json.dumps(body).encode()
    response.headers.update({"Content-Type": "application/json", "X-Request-Id": "7"})
    response.headers.update(headers)
    return response


def test_answer_as_documented_is_fit(task: Object) -> None:
    part = answer(200, {"id": task["id"]})
    conformance.check("GET", f"{API_PREFIX}/task/{task['id']}?fields=id", part)
    conformance.check("GET", f"{API_PREFIX}/task?fields=id", answer(200, [{"id": task["id"]}]))
    conformance.check("GET", f"{API_PREFIX}/task", answer(200, [task]))
    conformance.check("POST", f"{API_PREFIX}/task", answer(201, task, Location="task/7"))


@pytest.mark.parametrize(
    ("method", "path", "status", "headers"),
    [
        pytest.param("POST", "/task", 200, {"Location": "task/7"}, id="status"),
        pytest.param("POST", "/task", 302, {"Location": "task/7"}, id="redirect"),
        pytest.param("POST", "/task", 201, {}, id="header left out"),
        pytest.param("POST", "/task", 201, {"Location": "x", "X-More": "1"}, id="header too many"),
        pytest.param("POST", "/nothing", 201, {}, id="path"),
        pytest.param("DELETE", "/task", 201, {}, id="method"),
        pytest.param("PUT", "/agent/a", 200, {"Content-Type": "text/html"}, id="type"),
        pytest.param("PATCH", "/task/x", 200, {"Callback-Status": "perhaps"}, id="header's value"),
    ],
)
def test_undocumented_answer_is_found(
    task: Object, method: str, path: str, status: int, headers: dict[str, str]
) -> None:
    with pytest.raises((AssertionError, jsonschema_rs.ValidationError)):
        conformance.check(method, API_PREFIX + path, answer(status, task, **headers))


@pytest.mark.parametrize("change", [{"status": "done"}, {"logCount": None}, {"more": 1}, {"id": 7}])
def test_undocumented_body_is_found(task: Object, change: Object) -> None:
    for response in (answer(201, task | change, Location="x"), answer(201, [], Location="x")):
        with pytest.raises(jsonschema_rs.ValidationError):
            conformance.check("POST", f"{API_PREFIX}/task", response)
    del task["output"]
    with pytest.raises(jsonschema_rs.ValidationError):
        conformance.check("POST", f"{API_PREFIX}/task", answer(201, task, Location="x"))


def test_answer_that_is_expanded_without_being_asked_is_found(alice: ApiClient) -> None:
    for path, embedded in (("/task", "user"), ("/agent", "health")):
        alice.start()
        (item,) = expect(alice.get(f"{path}?expand={embedded}"), 200)[:1]
        conformance.check("GET", f"{API_PREFIX}{path}?expand={embedded}", answer(200, [item]))
        with pytest.raises(jsonschema_rs.ValidationError):
            conformance.check("GET", API_PREFIX + path, answer(200, [item]))


# --- its webhooks ------------------------------------------------------------------------


def test_webhooks_are_sent_as_documented(
    alice: ApiClient, document: Object, receiver: Receiver
) -> None:
    for number, end in enumerate(("complete", "error", "cancel"), 1):
        task = alice.start(callback=receiver.url, claim=True, labels={"env": "prod"})
        alice.append(task, "a line")
        if end == "cancel":
            expect(alice.post(f"/task/{task['id']}/cancel"), 200)
        else:
            alice.report(task, status=end)
        check_webhook(document, receiver.wait_for(number)[-1])


def check_webhook(document: Object, received: Received) -> None:
    operation = document["webhooks"]["taskEnded"]["post"]
    for parameter in operation["parameters"]:
        assert parameter["required"]
        text, schema = received.headers[parameter["name"]], parameter["schema"]
        value = int(text) if schema["type"] == "integer" else text
        validator(json.dumps(schema)).validate(value)
    (content,) = operation["requestBody"]["content"].items()
    assert received.headers["content-type"] == content[0]
    schema = conformance.of_request(content[1]["schema"], "")
    validator(json.dumps(schema)).validate(json.loads(received.body))


def test_documented_webhook_is_complete(document: Object) -> None:
    operation = document["webhooks"]["taskEnded"]["post"]
    assert operation["summary"]
    assert operation["description"]
    # It is signed, and has no API key.
    assert operation["security"] == []
    names = {operation["operationId"] for _, _, operation in operations(document)}
    assert operation["operationId"] not in names
    assert set(operation["responses"]) == {"2XX", "410", "default"}
    assert "Retry-After" in operation["responses"]["default"]["headers"]
    (body,) = operation["requestBody"]["content"].values()
    schema = conformance.of_request(body["schema"], "")
    validator(json.dumps(schema)).validate(body["example"])
    for parameter in operation["parameters"]:
        for example in parameter["schema"]["examples"]:
            validator(json.dumps(parameter["schema"])).validate(example)


# --- as strict as the service ------------------------------------------------------------

# A body that the service refuses, and one that it accepts.
RULES: tuple[tuple[str, str, Object, Object], ...] = (
    ("POST", "/task", {"labels": {"A b": "x"}}, {"labels": {"a-b": "x"}}),
    ("PATCH", "/task/{taskId}", {"labels": {"A b": None}}, {"labels": {"a-b": None}}),
    ("PATCH", "/task/{taskId}", {"error": {"message": "x"}}, {"error": None}),
    ("PATCH", "/task/{taskId}", {"status": "complete", "error": {"message": "x"}},
     {"status": "error", "error": {"message": "x"}}),
    ("PUT", "/agent/{agentId}", {"inputSchema": {"type": "array"}},
     {"inputSchema": {"type": "object", "required": ["x"]}}),
    ("PUT", "/agent/{agentId}", {"inputSchema": {}}, {"inputSchema": None}),
    ("PUT", "/agent/{agentId}", {"expect": {"every": 60, "cron": "* * * * *"}},
     {"expect": {"cron": "* * * * *"}}),
    ("PUT", "/agent/{agentId}", {"expect": {"every": 60, "timeZone": "UTC"}},
     {"expect": {"every": 60, "grace": 0}}),
    ("PUT", "/agent/{agentId}", {"expect": {"grace": 60}}, {"expect": None}),
    ("PUT", "/agent/{agentId}", {"expect": {"maxDuration": 60, "grace": 60}},
     {"expect": {"maxDuration": 60}}),
    ("PUT", "/agent/{agentId}", {"expect": {"maxDuration": 60, "timeZone": "UTC"}},
     {"expect": {"maxDuration": 60, "every": 60, "grace": 60}}),
    ("POST", "/task/{taskId}/question", {"message": "?", "schema": {"type": "object"}},
     {"message": "?", "schema": None}),
    ("POST", "/task/{taskId}/question/{questionId}/answer",
     {"action": "decline", "content": {"deploy": True}}, {"action": "decline", "content": None}),
)  # fmt: skip


def test_document_refuses_what_the_service_refuses(app: Flask, document: Object) -> None:
    for number, (method, path, *bodies) in enumerate(RULES):
        operation = document["paths"][API_PREFIX + path][method.lower()]
        schema = json.dumps(operation["requestBody"]["content"]["application/json"]["schema"])
        person = add_user(app, f"user {number}")
        for body, is_fit in zip(bodies, (False, True), strict=True):
            sent = {"agentId": "summarizer", **body} if path == "/task" else body
            response = person.request(method, path_for(person, API_PREFIX + path), json=sent)
            assert (response.status_code < 300) == is_fit, response.text
            assert validator(schema).is_valid(sent) == is_fit, (path, sent)


def test_events_are_sent_as_documented(alice: ApiClient, document: Object) -> None:
    operation = document["paths"][f"{API_PREFIX}/task/{{taskId}}/events"]["get"]
    content = operation["responses"]["200"]["content"]["text/event-stream"]
    task = alice.start(claim=True)
    alice.append(task, "a line")
    alice.report(task, status="complete")
    for query, line in (("", "a line"), ("?times=true", None)):
        text = alice.get(f"/task/{task['id']}/events{query}").text
        events = [
            dict(field.split(": ", 1) for field in event.splitlines())
            for event in text.strip().split("\n\n")
        ]
        assert [event["event"] for event in events] == ["task", "log", "task"]
        for event in events:
            validator(json.dumps(content["schema"])).validate(event)
        if line is not None:
            assert json.loads(events[1]["data"]) == line


# --- clients made from it ----------------------------------------------------------------


def test_webhooks_have_a_tag_of_their_own(document: Object) -> None:
    """Generators make a class of each tag: the webhooks' class would replace the paths' class."""
    webhooks = [
        operation for methods in document["webhooks"].values() for operation in methods.values()
    ]
    tags = {tag["name"] for tag in document["tags"]}
    of_paths = {tag for _, _, operation in operations(document) for tag in operation["tags"]}
    for webhook in webhooks:
        assert set(webhook["tags"]) <= tags - of_paths


def test_no_schema_is_named_as_the_constructor_of_another(document: Object) -> None:
    """In Go, `NewKey` makes a `Key`."""
    names = set(document["components"]["schemas"])
    assert not {f"New{name}" for name in names} & names


def test_every_choice_of_types_is_a_named_schema_or_null(document: Object) -> None:
    """Generators for Java cannot choose between an array and another type."""
    for place, schema in nodes(document):
        for choice in schema.get("anyOf", ()):
            assert "$ref" in choice or choice == {"type": "null"}, place
        assert not {"oneOf", "allOf"} & schema.keys(), place
        kinds = schema["type"] if isinstance(schema.get("type"), list) else []
        assert len(kinds) <= 2, place
        assert len(kinds) < 2 or "null" in kinds, place


def test_members_of_any_type_are_true_in_the_document(document: Object) -> None:
    """Generators for Go make a pointer of `{}`."""
    for place, schema in nodes(document):
        assert schema.get("additionalProperties") != {}, place


def nodes(node: Any, place: str = "") -> Iterator[tuple[str, Object]]:
    """(place, object) of each object in the document, without examples."""
    inside = (
        node.items()
        if isinstance(node, dict)
        else enumerate(node)
        if isinstance(node, list)
        else ()
    )
    if isinstance(node, dict):
        yield place, node
    for name, child in inside:
        if name not in ("example", "examples"):
            yield from nodes(child, f"{place}/{name}")
