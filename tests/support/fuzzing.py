"""Hooks for schemathesis: valid IDs for requests, and routes to skip."""

import os
from typing import Any

import schemathesis

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


@schemathesis.hook("before_call")
def mean_any_version(
    context: schemathesis.HookContext, case: schemathesis.Case[Any], kwargs: dict[str, Any]
) -> None:
    """Every other `If-Match` gets 412, and nothing after this check would be tested."""
    if case.headers and "If-Match" in case.headers:
        case.headers["If-Match"] = "*"


@schemathesis.hook("filter_case")
def keep_own_key(context: schemathesis.HookContext, case: schemathesis.Case[Any]) -> bool:
    """The key of all requests must not be revoked."""
    return case.path_parameters.get("keyId") != os.environ["OWN_KEY_ID"]


@schemathesis.hook("filter_case")
def keep_to_methods_of_bulk(
    context: schemathesis.HookContext, case: schemathesis.Case[Any]
) -> bool:
    """This path could be a task with the ID `bulk`, which has other methods."""
    return case.path != "/api/v1/task/bulk" or case.method == "POST"


@schemathesis.hook("filter_case")
def send_bodies(context: schemathesis.HookContext, case: schemathesis.Case[Any]) -> bool:
    """No body, and null, are accepted where a body is optional; other tests cover that."""
    fits = case.meta is None or case.meta.generation.mode.is_positive
    has_body = isinstance(case.body, dict | list | str | int | float)
    return fits or has_body or not list(case.operation.body)
