"""The schema of an agent's input: what it may be, and that every start is checked by it."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import update

from taskservice.database.models import Agent
from taskservice.database.transactions import transaction
from taskservice.schemas.input_schema import DIALECT, input_problems
from taskservice.services import tasks
from tests.support.api_client import ApiClient, expect, problem
from tests.support.marks import one_database

Json = dict[str, Any]
MAIL: Json = {
    "type": "object",
    "properties": {
        "mailbox": {"type": "string", "minLength": 1},
        "days": {"type": "integer", "minimum": 1, "maximum": 31},
        "since": {"type": "string", "format": "date"},
        "kind": {"enum": ["short", "long"]},
        "from": {"$ref": "#/$defs/sender"},
        "tags": {"type": "array", "items": {"type": "string"}, "uniqueItems": True},
    },
    "required": ["mailbox"],
    "additionalProperties": False,
    "$defs": {
        "sender": {
            "type": "object",
            "properties": {"address": {"type": "string", "pattern": "^[^@]+@[^@]+$"}},
            "required": ["address"],
        }
    },
}


def has(**properties: Any) -> Json:
    return {"type": "object", "properties": properties}


def nested(depth: int) -> Json:
    value: Json = {}
    for _ in range(depth - 1):
        value = {"a": value}
    return value


def doubled(levels: int) -> Json:
    """Each definition uses the next one twice, so that 2 ** levels schemas are checked."""
    last = {f"d{levels}": {"type": "string"}}
    double = {
        f"d{level}": {"allOf": [{"$ref": f"#/$defs/d{level + 1}"}] * 2} for level in range(levels)
    }
    return {**has(x={"$ref": "#/$defs/d0"}), "$defs": double | last}


def faults(alice: ApiClient, input_: Json) -> Json:
    """The errors of a start with this input, which must be refused."""
    refused = problem(alice.post("/task", json={"agentId": "summarizer", "input": input_}), 422)
    assert refused["code"] == "invalid"
    return dict(refused["errors"])


# --- the schema --------------------------------------------------------------------------

FIT: tuple[Json, ...] = (
    MAIL,
    {"type": "object", "$schema": DIALECT},
    # Where a keyword's name is only a name, or data, it means nothing.
    has(**{"$ref": {"type": "string"}, "$id": {}, "oneOf": True, "enum": {"type": "null"}}),
    has(x={"const": {"$ref": "http://x.example/"}, "enum": [{"$id": "x"}], "default": {"$ref": 1}}),
    {"type": "object", "examples": [{"$dynamicRef": "x"}], "x-order": ["b", "a"]},
    # Below the root, all of JSON Schema.
    has(x={"oneOf": [{"type": "string"}, {"not": {"enum": [1]}}]}),
    has(**{"a/b~c%": {"type": "string"}, "y": {"$ref": "#/properties/a~1b~0c%25"}}),
    {**has(x={"$ref": "#/definitions/a"}), "definitions": {"a": {"type": "string"}}},
    doubled(7),
    nested(15) | {"type": "object"},
    has(x={"pattern": r"^\p{L}+$"}, y={"pattern": "^[a-z-]{1,500}$"}, z={"pattern": r"\d" * 200}),
    has(price={"multipleOf": 0.01}),
    {"type": "object", "title": "x" * 16_356},
)


def test_schema_is_answered_as_it_was_given(alice: ApiClient, subtests: pytest.Subtests) -> None:
    for schema in FIT:
        with subtests.test(json.dumps(schema)[:60]):
            # Not by `json`, which sorts the keys.
            body = json.dumps({"inputSchema": schema})
            response = alice.put("/agent/summarizer", data=body, content_type="application/json")
            agent = expect(response, 200, 201)
            assert agent["inputSchema"] == schema
            assert list(agent["inputSchema"]) == list(schema)
            assert expect(alice.get("/agent/summarizer"), 200) == agent
            assert expect(alice.get("/agent?expand=health"), 200)[0]["inputSchema"] == schema


PATTERN = "unsupported pattern"
UNFIT: tuple[tuple[Json, str], ...] = (
    ({}, 'Must have "type": "object".'),
    ({"type": ["object", "null"]}, 'Must have "type": "object".'),
    *(
        ({"type": "object", keyword: {}}, f"Not allowed at the top level: {keyword}.")
        for keyword in ("oneOf", "anyOf", "allOf", "not", "if", "enum", "$ref")
    ),
    ({"type": "object", "title": "x" * 16_357}, "Longer than 16384 bytes."),
    ({"type": "object", "title": "ü" * 8_180}, "Longer than 16384 bytes."),
    ({"type": "object", "default": nested(16)}, "Nested deeper than 16 levels."),
    (has(x={"type": "strin"}), "properties.x.type: must be one or several of object, array"),
    (has(x={"minLength": -1}), "properties.x.minLength: The value is less than the minimum of 0."),
    (has(x=5), "properties.x: Must be true or false or an object."),
    ({"type": "object", "properties": []}, "properties: Must be an object."),
    ({"type": "object", "required": "x"}, "required: Must be an array."),
    (has(x={"pattern": "("}), f"properties.x.pattern: {PATTERN}"),
    (has(x={"pattern": "(?=a)b"}), f"properties.x.pattern: {PATTERN}"),
    (has(x={"pattern": r"(a)\1"}), f"properties.x.pattern: {PATTERN}"),
    (has(x={"pattern": "(a{1000}){1000}"}), f"properties.x.pattern: {PATTERN}"),
    ({"type": "object", "patternProperties": {"(?!a)": {}}}, f"patternProperties.(?!a): {PATTERN}"),
    *(
        (has(x={"$ref": target}), 'properties.x: $ref must be "#/..." and refer to a schema.')
        for target in ("#/nowhere", "http://x.example/", DIALECT, "other.json")
    ),
    (has(x={"$ref": 5}), "properties.x.$ref: Must be a string."),
    # Data is not a schema.
    (has(x={"$ref": "#/properties/y/default"}, y={"default": {}}), "properties.x: $ref must be"),
    (has(x={"$ref": "#"}), "must not lead back to itself."),
    (has(x={"items": {"$ref": "#/properties/x"}}), "must not lead back to itself."),
    (
        {"type": "object", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}},
        "must not lead back to itself.",
    ),
    (has(x={"$id": "http://x.example/"}), "properties.x: not allowed: $id."),
    (has(x={"anyOf": [{"$anchor": "a"}]}), "properties.x.anyOf.0: not allowed: $anchor."),
    (has(x={"$dynamicRef": "#"}), "properties.x: not allowed: $dynamicRef."),
    (has(x={"$schema": "http://x.example/"}), "properties.x: not allowed: $schema."),
    (has(x={"x-mcp-header": "Region"}), "properties.x: not allowed: x-mcp-header."),
    ({"type": "object", "$schema": "http://x.example/"}, "$schema, if given, must be https://json"),
    (has(x={"unevaluatedProperties": False}), "properties.x: not allowed: unevaluatedProperties."),
    (has(x={"pattern": "^.{1,700}$"}), "at most 128 KiB when compiled (a . has about 1 KiB"),
    (has(x={"pattern": r"\s" * 300}, y={"pattern": r"\W" * 201}), "More than 500 backslashes."),
    (has(x={"anyOf": [True] * 2_000}, y={"enum": list(range(10)) * 200}), "More than 4,000 values"),
    (doubled(30), "More than 4,000 values, with each $ref followed;"),
    (has(**{f"p{n}": {"pattern": f"a{n}"} for n in range(51)}), "More than 50 patterns, with each"),
    (
        {
            **has(x={"allOf": [{"$ref": "#/$defs/y"}] * 3}),
            "$defs": {"y": {"patternProperties": {f"a{n}": True for n in range(17)}}},
        },
        "More than 50 patterns, with each $ref followed.",
    ),
)


def test_schema_that_is_not_allowed_is_refused_with_the_reason(
    alice: ApiClient, subtests: pytest.Subtests
) -> None:
    agent = alice.register(inputSchema=MAIL)
    for schema, reason in UNFIT:
        with subtests.test(json.dumps(schema)[:60]):
            refused = problem(alice.put("/agent/summarizer", json={"inputSchema": schema}), 422)
            (message,) = refused["errors"]["inputSchema"]
            assert reason in message
    assert expect(alice.get("/agent/summarizer"), 200) == agent


@one_database
def test_no_schema_makes_the_service_fetch_anything(alice: ApiClient) -> None:
    """Neither an agent's nor a question's."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

        def log_message(self, *args: Any) -> None:
            """Nothing."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}/schema.json"
        for schema in (
            {"type": "object", "$schema": url},
            has(x={"$ref": url}),
            has(x={"$schema": url}),
            has(x={"default": {"$schema": url, "$ref": url}}),
        ):
            alice.put("/agent/summarizer", json={"inputSchema": schema})
        task = alice.start(claim=True)
        question = {"message": "Deploy?", "schema": {"$schema": url, **has(a={"type": "string"})}}
        response = alice.post(f"/task/{task['id']}/question", json=question)
        if response.status_code == 201:
            assert response.json
            answer = {"action": "accept", "content": {"a": "b"}}
            alice.post(f"/task/{task['id']}/question/{response.json['id']}/answer", json=answer)
        server.shutdown()
        thread.join()
    assert asked == []


# --- an input ----------------------------------------------------------------------------


def test_start_is_checked_by_the_schema_of_its_agent(alice: ApiClient) -> None:
    alice.register(inputSchema=MAIL)
    fields = {"mailbox": "office", "days": 7, "since": "2026-11-26", "kind": "long"}
    assert alice.start(input=fields)["input"] == fields
    assert faults(alice, {}) == {"input.mailbox": ["Missing."]}
    assert faults(alice, {"mailbox": 5, "days": 0.5}) == {
        "input.mailbox": ["Must be a string."],
        "input.days": ["Must be a whole number.", "The value is less than the minimum of 1."],
    }
    assert faults(
        alice,
        {
            "mailbox": "", "since": "yesterday", "kind": "wide", "from": {"address": "nobody"},
            "tags": ["a", 5], "nonsense": 1,
        },
    ) == {
        "input.mailbox": ["The value is shorter than 1 character."],
        "input.since": ["Must have the format date."],
        "input.kind": ['Must be one of "short", "long".'],
        "input.from.address": ["Must match ^[^@]+@[^@]+$"],
        "input.tags.1": ["Must be a string."],
        "input.nonsense": ["Unknown field."],
    }  # fmt: skip
    assert faults(alice, {"mailbox": "a", "from": {}}) == {"input.from.address": ["Missing."]}
    # As without an input.
    refused = problem(alice.post("/task", json={"agentId": "summarizer", "input": None}), 422)
    assert refused["errors"] == {"input.mailbox": ["Missing."]}
    assert len(expect(alice.get("/task"), 200)) == 1


def test_agent_without_input_says_what_is_too_much(alice: ApiClient) -> None:
    alice.register(inputSchema={"type": "object", "additionalProperties": False})
    unknown = ["Unknown field."]
    assert faults(alice, {"a": 1, "b": 2}) == {"input.a": unknown, "input.b": unknown}
    alice.start()


def test_numbers_are_compared_as_doubles_and_stored_exactly(alice: ApiClient) -> None:
    alice.register(inputSchema=has(x={"maximum": 12345678901234567890123}, y={"multipleOf": 5}))
    for name, text in (
        ("x", "12345678901234567890123"), ("x", "12345678901234567890124"),
        ("x", "0.30000000000000000000001"), ("y", "15.0"), ("y", "9007199254740990"),
    ):  # fmt: skip
        body = f'{{"agentId": "summarizer", "input": {{"{name}": {text}}}}}'
        response = alice.post("/task", data=body, content_type="application/json")
        assert f'"input":{{"{name}":{text}}}' in response.text
    for name, text in (("x", "12345678901234570000000"), ("x", "9" * 400), ("y", "15.5")):
        body = f'{{"agentId": "summarizer", "input": {{"{name}": {text}}}}}'
        refused = problem(alice.post("/task", data=body, content_type="application/json"), 422)
        assert list(refused["errors"]) == [f"input.{name}"]


def test_rerun_is_checked_by_the_schema_as_it_now_is(alice: ApiClient) -> None:
    task = alice.start(input={"mailbox": "office", "old": True})
    path = f"/task/{task['id']}/rerun"
    expect(alice.post(path), 201)
    alice.register(inputSchema=MAIL)
    assert problem(alice.post(path), 422)["errors"] == {"input.old": ["Unknown field."]}
    wrong = problem(alice.post(path, json={"input": {"mailbox": 5}}), 422)
    assert wrong["errors"] == {"input.mailbox": ["Must be a string."]}
    right = expect(alice.post(path, json={"input": {"mailbox": "office"}}), 201)
    assert right["rerunOf"] == task["id"]
    alice.register(inputSchema={"type": "object"})
    assert expect(alice.post(path), 201)["input"] == task["input"]


def test_claimed_start_is_recorded_whatever_the_schema_says(alice: ApiClient) -> None:
    """Its program runs already; a rerun, which no program has begun, is checked."""
    agent = alice.agent_key()
    alice.register(inputSchema=MAIL)
    assert agent.start(input={"mailbox": 5})["input"] == {"mailbox": 5}
    task = alice.start(input={"days": "many"}, claim=True)
    assert (task["input"], task["claimedAt"] is None) == ({"days": "many"}, False)
    assert faults(alice, {"days": "many"})
    for who in (alice, agent):
        assert problem(who.post(f"/task/{task['id']}/rerun"), 422)["errors"] == {
            "input.mailbox": ["Missing."],
            "input.days": ["Must be a whole number."],
        }


def test_repeated_start_is_answered_whatever_the_schema_now_is(alice: ApiClient) -> None:
    alice.register()
    body = {"agentId": "summarizer", "input": {"old": True}}
    headers = {"Idempotency-Key": "once"}
    task = expect(alice.post("/task", json=body, headers=headers), 201)
    rerun = expect(alice.post(f"/task/{task['id']}/rerun", headers={"Idempotency-Key": "two"}), 201)
    alice.register(inputSchema=MAIL)
    again = alice.post("/task", json=body, headers=headers)
    assert (expect(again, 201), again.headers["Idempotency-Replayed"]) == (task, "true")
    again = alice.post(f"/task/{task['id']}/rerun", headers={"Idempotency-Key": "two"})
    assert (expect(again, 201), again.headers["Idempotency-Replayed"]) == (rerun, "true")
    # A refused start does not use the key up.
    headers = {"Idempotency-Key": "other"}
    problem(alice.post("/task", json=body, headers=headers), 422)
    alice.register(inputSchema={"type": "object"})
    expect(alice.post("/task", json=body, headers=headers), 201)


# --- what it costs -----------------------------------------------------------------------


TOO_LARGE = "Too large to be checked against the agent's inputSchema."
DOES_NOT_MATCH = "Does not match the agent's inputSchema."
HALVES = [n + 0.5 for n in range(1_800)]
LONG: tuple[tuple[Json, Json, str | None], ...] = (
    (has(x={"items": {"type": "integer"}}), {"x": [1] * 300_000}, None),
    (has(x={"items": {"type": "string"}}), {"x": [1] * 300_000}, DOES_NOT_MATCH),
    (has(x={"pattern": "^(a+)+$"}), {"x": "a" * 1_000_000}, None),
    # Many values, each with many schemas.
    (has(x={"items": {"allOf": [{"type": "integer"}] * 700}}), {"x": [1] * 300_000}, TOO_LARGE),
    # The validator compares such numbers digit by digit.
    (has(x={"items": {"enum": HALVES}}), {"x": [1799.5] * 3_500}, TOO_LARGE),
    (has(x={"items": {"allOf": [{"multipleOf": 3}] * 300}}), {"x": [3e307] * 2_000}, TOO_LARGE),
    (has(x={"items": {"enum": [*range(900), 3e307]}}), {"x": [3e307] * 2_000}, TOO_LARGE),
    (
        has(x={"items": {"allOf": [{"uniqueItems": True}] * 90}}),
        {"x": [[n + 0.5 for n in range(15)]] * 200},
        TOO_LARGE,
    ),
    # Each character may be any of 200, which the engine all keeps in mind.
    (has(x={"pattern": "[ab]*a[ab]{500}c"}), {"x": "ab" * 50_000}, TOO_LARGE),
)


@one_database
def test_long_input_is_checked_but_never_for_long(
    alice: ApiClient, subtests: pytest.Subtests
) -> None:
    for schema, input_, message in LONG:
        with subtests.test(json.dumps(schema)[:60]):
            alice.register(inputSchema=schema)
            if message is None:
                alice.start(input=input_)
            else:
                assert faults(alice, input_) == {"input": [message]}


def test_schema_that_was_stored_before_a_limit_is_named(app: Flask, alice: ApiClient) -> None:
    task = alice.start(input={"x": "a"})
    for schema, reason in (
        (has(x={"allOf": [{"pattern": f"a{n}"} for n in range(51)]}), "More than 50 patterns,"),
        (has(x={"$ref": "#"}), "More than 4,000 values,"),
        (has(x={"type": "any"}), "properties.x.type: must be one or several of object,"),
        ({"properties": []}, "properties: Must be an object."),
        (has(x={"$ref": "http://x.example/"}), 'properties.x: $ref must be "#/..."'),
    ):
        with app.app_context(), transaction() as connection:
            connection.execute(update(Agent).values(input_schema=json.dumps(schema)))
        for refused in (
            alice.post("/task", json={"agentId": "summarizer", "input": {"x": "a"}}),
            alice.post(f"/task/{task['id']}/rerun"),
        ):
            (message,) = problem(refused, 422)["errors"]["input"]
            assert message.startswith(f"The agent's inputSchema is not allowed: {reason}")
        alice.start(input={"x": "a"}, claim=True)


@one_database
def test_pattern_takes_time_in_proportion_to_the_text(alice: ApiClient) -> None:
    """With an engine that goes back, this one takes longer than the universe has existed."""
    alice.register(inputSchema=has(x={"pattern": "^(a|a)*$"}))
    began = time.monotonic()
    assert faults(alice, {"x": "a" * 5_000 + "b"}) == {"input.x": ["Must match ^(a|a)*$"]}
    assert time.monotonic() - began < 60


def test_long_check_is_made_by_the_schema_that_counts_in_the_end(alice: ApiClient) -> None:
    """It happens outside the transaction, so the schema can change during it."""
    alice.register(inputSchema=has(x={"items": {"type": "integer"}}))
    changes = [has(x={"items": {"maximum": 2}}), has(x={"items": {"maximum": 0}})]
    input_ = {"x": [1] * 400_000}

    def check_and_change(schema: str, text: str) -> dict[str, list[str]]:
        problems = input_problems(schema, text)
        if changes:
            alice.register(inputSchema=changes.pop(0))
        return problems

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tasks, "input_problems", check_and_change)
        assert faults(alice, input_) == {"input": [DOES_NOT_MATCH]}
    assert expect(alice.get("/task"), 200) == []
