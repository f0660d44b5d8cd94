"""Hooks for schemathesis: valid IDs for requests, and routes to skip."""

import os
from typing import Any

import schemathesis

from taskservice.errors import sentences
from taskservice.schemas.tasks import TASK_FIELDS

# Registered before, since tasks of made-up agents could not be started.
AGENT = "summarizer"
NOBODY = "http://127.0.0.1:9/"


@schemathesis.hook("map_body")
def make_starts_possible(context: schemathesis.HookContext, body: Any) -> Any:
    """Any text may be an agent's ID, so that invalid IDs remain invalid."""
    if isinstance(body, dict) and isinstance(body.get("agentId"), str):
        return body | {"agentId": AGENT}
    return body


@schemathesis.hook("map_case")
def make_appends_possible(context: schemathesis.HookContext, case: schemathesis.Case[Any]) -> Any:
    """The parameters of an append are for text, and are refused with JSON."""
    fits = case.meta is not None and case.meta.generation.mode.is_positive
    if fits and case.path.endswith("/logs") and case.media_type == "application/json":
        case.query = {}
    return case


@schemathesis.hook("before_call")
def call_back_nobody(
    context: schemathesis.HookContext, case: schemathesis.Case[Any], kwargs: dict[str, Any]
) -> None:
    """Callbacks lead to no receiver on any machine; their lengths do not change."""
    if isinstance(case.body, dict):
        callback = case.body.get("callback")
        if isinstance(callback, str) and callback.lower().startswith("http"):
            case.body = {**case.body, "callback": NOBODY.ljust(len(callback), "x")}


@schemathesis.hook("before_call")
def want_all_fields(
    context: schemathesis.HookContext, case: schemathesis.Case[Any], kwargs: dict[str, Any]
) -> None:
    """The document describes the answers to requests without `fields`."""
    if case.query and is_accepted(case.query.get("fields")):
        case.query = {name: value for name, value in case.query.items() if name != "fields"}


def is_accepted(fields: object) -> bool:
    return isinstance(fields, str) and set(fields.split(",")) <= set(TASK_FIELDS)


@schemathesis.hook("before_call")
def wait_for_nothing(
    context: schemathesis.HookContext, case: schemathesis.Case[Any], kwargs: dict[str, Any]
) -> None:
    """A wait would take too long, and end without a change."""
    fits = case.meta is not None and case.meta.generation.mode.is_positive
    if fits and case.headers and "Prefer" in case.headers:
        case.headers["Prefer"] = "wait=0"


@schemathesis.hook("filter_case")
def keep_own_key(context: schemathesis.HookContext, case: schemathesis.Case[Any]) -> bool:
    """The key of all requests must not be revoked."""
    return case.path_parameters.get("keyId") != os.environ["OWN_KEY_ID"]


# What a schema can't say: part of a message -> what the value depends on. All other values that a
# schema allows must be accepted.
NOT_IN_A_SCHEMA = {
    "Not a valid integer": "the notation: for JSON Schema, 1.0 is an integer",
    "Longer than": "the length in bytes",
    "limit: Only allowed with `path`": "another parameter",
    "cursor: ": "the list, which alone makes its cursors",
    "target: ": "`format`, and the settings",
    "format: ": "`target`, and the settings",
    "token: ": "`format`",
    "answerLinks: ": "the settings",
    "expiresAt: Must be": "the time of the request",
    "mutedUntil: Must be": "the time of the request",
    "claimedAt: ": "the time of the request, and `claim`",
    "logs: Missing data": "the content type, which an empty text is sent without",
    "at: Must be ascending": "the other times",
    "at: Must be an RFC 3339 time": "the schema has no type, since generators in Java fail on it",
    "Belongs in the JSON body": "the content type",
    "content": "the schema of the question",
    "input": "the schema of the agent, or the rules of JSON Schema",
    "schema: ": "the rules of JSON Schema, in a value",
    "cron: ": "the rules of cron",
    "timeZone: ": "the time zones of the server",
    "agentId: No such": "the agents of the user",
    "parentId: ": "the tasks of the user",
    "keyName: ": "the keys of the user",
    "Idempotency-Key: Was used": "an earlier request",
}


@schemathesis.check
def accepts_what_the_schema_allows(
    context: schemathesis.CheckContext,
    response: schemathesis.Response,
    case: schemathesis.Case[Any],
) -> None:
    fits = case.meta is not None and case.meta.generation.mode.is_positive
    if fits and response.status_code in (400, 413, 415, 422):
        problem = response.json()
        refused = list(sentences(problem.get("errors", {"": [problem["detail"]]})))
        left = [line for line in refused if not any(text in line for text in NOT_IN_A_SCHEMA)]
        assert not left, f"refused although the schema allows it: {left}"
