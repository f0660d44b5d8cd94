"""Events of MCP: listed, polled along cursors, and delivered to subscriptions."""

import base64
import json
import os
import re
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import jsonschema_rs
import pytest
from flask import Flask
from sqlalchemy import insert, select, update
from standardwebhooks import Webhook

from taskservice.background.maintenance import Maintenance
from taskservice.config import Config
from taskservice.database import clock
from taskservice.database.engine import dispose
from taskservice.database.models import Agent, ApiKey, Delivery, Event, Hook
from taskservice.database.transactions import reading, transaction
from taskservice.database.types import database_now
from taskservice.schemas.json_schema import MAX_SCHEMA
from taskservice.services import events as event_service
from taskservice.services.events import NewEvent
from taskservice.terms import (
    EVENTS,
    MAX_LABEL_VALUE,
    MAX_LABELS,
    MAX_MESSAGE,
    MAX_NAME,
    MAX_QUESTION,
)
from taskservice.webhooks.destinations import Destinations
from tests.support.api_client import ApiClient, expect, problem
from tests.support.apps import Apps
from tests.support.certificates import Authority
from tests.support.deliveries import looping, make_due
from tests.support.internals import expire
from tests.support.marks import one_database
from tests.support.mcp import Answer, Json, McpClient
from tests.support.receiver import (
    Exchange,
    Received,
    Receiver,
    answer,
    reset,
    silence,
    unused_port,
)
from tests.support.waiting import until

CURSOR = re.compile("[A-Za-z0-9_-]{1,128}")
MINUTE, HOUR, DAY = 60, 3_600, 86_400


@pytest.fixture
def mcp(alice: ApiClient) -> McpClient:
    alice.register()
    return McpClient(alice)


def error_of(response: Answer) -> tuple[int, Any]:
    """The code and the data of an error, which HTTP answers with 200."""
    assert response.status == 200
    return response.code, response.json["error"].get("data")


def run(person: ApiClient, status: str = "complete", **fields: Any) -> Json:
    """A task that ended with this status."""
    return person.report(person.start(claim=True, **fields), status=status)


def ask(person: ApiClient, task: Json) -> Json:
    asked = person.post(f"/task/{task['id']}/question", json={"message": "Deploy?"})
    return dict(expect(asked, 201))


# --- the list ----------------------------------------------------------------------------


@one_database
def test_list_has_all_events_with_their_schemas(mcp: McpClient) -> None:
    modern = mcp.modern("events/list").result
    assert (modern["ttlMs"], modern["cacheScope"]) == (60_000, "private")
    assert mcp.legacy("events/list").result == {"events": modern["events"]}
    assert [event["name"] for event in modern["events"]] == list(EVENTS)
    for event in modern["events"]:
        assert event["delivery"] == ["webhook", "poll"]
        assert event["description"].endswith(".")
        names = ["agentId"] + (["label", "taskId"] if event["name"].startswith("task.") else [])
        assert list(event["inputSchema"]["properties"]) == names
        assert event["inputSchema"]["additionalProperties"] is False
        for name in ("inputSchema", "payloadSchema"):
            jsonschema_rs.meta.validate(event[name])
            assert event[name]["type"] == "object"


def test_data_of_each_event_fits_its_schema(
    app: Flask, alice: ApiClient, mcp: McpClient, no_grace: None
) -> None:
    cursor = poll(mcp, "task.ended")["cursor"]
    alice.register("summarizer", name="Summarizer")
    failed = alice.start(claim=True, labels={"env": "prod"}, name="nightly")
    question = ask(alice, failed)
    message = "x" * 2_000
    alice.report(failed, status="error", error={"type": "failed", "message": message})
    run(alice)
    alice.register("summarizer", expect={"every": 60, "grace": 0})
    with app.app_context(), transaction() as connection:
        overdue = {"due_at": clock.now(-HOUR), "late_at": clock.now(-HOUR)}
        connection.execute(update(Agent).values(overdue))
    Maintenance(app).do_round()
    late_since = expect(alice.get("/agent/summarizer?expand=health"), 200)["health"]["lateSince"]
    last_run = run(alice)
    data, times, ids = {}, {}, set()
    for event in mcp.modern("events/list").result["events"]:
        [*_, last] = poll(mcp, event["name"], cursor=cursor)["events"]
        assert last["name"] == event["name"]
        jsonschema_rs.validate(event["payloadSchema"], last["data"])
        assert event["payloadSchema"]["required"] == list(event["payloadSchema"]["properties"])
        assert last["data"].keys() == event["payloadSchema"]["properties"].keys()
        data[last["name"]], times[last["name"]] = last["data"], last["timestamp"]
        ids.add(last["eventId"])
    assert len(ids) == len(EVENTS)
    names = ("id", "name", "agentId", "endedBy", "labels", "createdAt", "finishedAt")
    ended = alice.task(failed)
    error = {"type": "failed", "message": "x" * 999 + "…"}
    expected = {name: ended[name] for name in names} | {"status": "error", "error": error}
    assert data["task.failed"] == {"task": expected}
    assert data["task.asks"]["question"] == {
        name: question[name] for name in ("id", "message", "schema", "expiresAt")
    }
    assert data["agent.broken"]["agent"] == {"id": "summarizer", "name": "Summarizer"}
    assert data["agent.fixed"]["brokenSince"] == ended["finishedAt"]
    assert data["agent.back"]["dueAt"] == data["agent.late"]["dueAt"]
    assert times["task.asks"] == question["askedAt"]
    assert times["agent.broken"] == ended["finishedAt"]
    assert times["agent.late"] == late_since
    assert times["agent.back"] == last_run["createdAt"]


# --- polls -------------------------------------------------------------------------------


def poll(client: McpClient, name: str, arguments: Json | None = None, **params: Any) -> Json:
    """The result of a poll, in the era without capabilities."""
    params = {"name": name, "arguments": arguments or {}, **params}
    result = client.legacy("events/poll", params).result
    assert CURSOR.fullmatch(result["cursor"])
    assert result["nextPollMs"] == 5_000
    return result


def tasks_of(result: Json) -> list[str]:
    return [event["data"]["task"]["id"] for event in result["events"]]


def test_poll_returns_each_event_once_in_the_order_of_their_commits(
    alice: ApiClient, mcp: McpClient
) -> None:
    run(alice)
    first = poll(mcp, "task.ended")
    assert (first["events"], first["truncated"], first["hasMore"]) == ([], False, False)
    done = [run(alice), run(alice, "error"), run(alice)]
    second = poll(mcp, "task.ended", cursor=first["cursor"])
    assert tasks_of(second) == [task["id"] for task in done]
    assert [event["timestamp"] for event in second["events"]] == [
        task["finishedAt"] for task in done
    ]
    assert len({event["eventId"] for event in second["events"]}) == 3
    # A cursor is good for any name, and repeatedly.
    for _ in range(2):
        assert tasks_of(poll(mcp, "task.failed", cursor=first["cursor"])) == [done[1]["id"]]
        assert poll(mcp, "task.ended", cursor=first["cursor"])["events"] == second["events"]
    assert poll(mcp, "task.ended", cursor=second["cursor"])["events"] == []
    assert poll(mcp, "task.ended", cursor=None)["events"] == []


def test_cursor_is_good_after_a_restart_and_in_another_process(
    app: Flask, alice: ApiClient, mcp: McpClient, apps: Apps, config: Config
) -> None:
    cursor = poll(mcp, "task.ended")["cursor"]
    first = run(alice)
    other = apps.new(config)
    there = McpClient(ApiClient(other, "alice", alice.key))
    second = run(alice)
    page = poll(there, "task.ended", cursor=cursor)
    assert tasks_of(page) == [first["id"], second["id"]]
    third = run(alice)
    for client in (mcp, there):
        assert tasks_of(poll(client, "task.ended", cursor=page["cursor"])) == [third["id"]]
    dispose(other)


def test_poll_of_the_modern_era_may_name_the_event_in_a_header(mcp: McpClient) -> None:
    params = {"name": "task.ended"}
    assert mcp.modern("events/poll", params).result["resultType"] == "complete"
    assert mcp.modern("events/poll", params, Mcp_Name="task.ended").result["events"] == []
    refused = mcp.modern("events/poll", params, Mcp_Name="task.failed")
    assert refused.refused == (400, -32020)


def test_pages_of_events_have_all_of_them(alice: ApiClient, mcp: McpClient) -> None:
    cursor = poll(mcp, "task.ended")["cursor"]
    done = [run(alice)["id"] for _ in range(5)]
    seen, more = [], True
    while more:
        page = poll(mcp, "task.ended", cursor=cursor, maxEvents=2)
        cursor, more = page["cursor"], page["hasMore"]
        seen.append(tasks_of(page))
    assert seen == [done[:2], done[2:4], done[4:]]


def test_poll_is_cut_to_200_events(app: Flask, alice: ApiClient, mcp: McpClient) -> None:
    cursor = poll(mcp, "task.ended")["cursor"]
    record_many(app, run(alice), 250)
    assert len(poll(mcp, "task.ended", cursor=cursor)["events"]) == 50
    page = poll(mcp, "task.ended", cursor=cursor, maxEvents=1_000)
    assert (len(page["events"]), page["hasMore"]) == (200, True)


def record_many(app: Flask, task: Json, count: int) -> None:
    """As if the task had ended this many times."""
    ended = NewEvent("task.ended", clock.now(), task["userId"], task["agentId"], task["id"])
    with app.app_context(), transaction() as connection:
        event_service.record_events(connection, [ended] * count)


def test_arguments_select_events(alice: ApiClient, mcp: McpClient) -> None:
    cursor = poll(mcp, "task.ended")["cursor"]
    plain = run(alice)
    labelled = run(alice, labels={"env": "prod"})
    other = run(alice, agent_id="other", labels={"env": "prod"})
    for arguments, expected in [
        ({"agentId": "summarizer"}, [plain, labelled]),
        ({"label": "env:prod"}, [labelled, other]),
        ({"taskId": plain["id"].upper()}, [plain]),
        ({"label": "env:prod", "agentId": "other"}, [other]),
        ({"taskId": plain["id"], "label": "env:prod"}, []),
    ]:
        found = poll(mcp, "task.ended", arguments, cursor=cursor)
        assert tasks_of(found) == [task["id"] for task in expected], arguments


def test_agent_key_gets_events_of_its_agent_only(alice: ApiClient, mcp: McpClient) -> None:
    narrow = McpClient(alice.agent_key("other"))
    assert narrow.modern("server/discover").status == 200
    assert narrow.legacy("initialize").status == 200
    assert narrow.post({"jsonrpc": "2.0", "method": "notifications/initialized"}).status == 202
    assert len(narrow.legacy("events/list").result["events"]) == 7
    cursor = poll(narrow, "task.ended")["cursor"]
    mine = run(alice, agent_id="other")
    hidden = run(alice)
    assert tasks_of(poll(narrow, "task.ended", cursor=cursor)) == [mine["id"]]
    for arguments in ({"agentId": "summarizer"}, {"taskId": hidden["id"]}):
        params = {"name": "task.ended", "arguments": arguments}
        assert error_of(narrow.legacy("events/poll", params))[0] == -32602
    for method in ("tools/list", "tools/call", "tasks/get"):
        assert narrow.modern(method, {"name": "x"}).status == 403


def test_users_do_not_see_events_of_others(
    alice: ApiClient, bob: ApiClient, mcp: McpClient
) -> None:
    theirs = McpClient(bob)
    cursor = poll(theirs, "task.ended")["cursor"]
    mine = poll(mcp, "task.ended")["cursor"]
    task = run(alice)
    assert poll(theirs, "task.ended", cursor=cursor)["events"] == []
    foreign = poll(theirs, "task.ended", cursor=mine)
    assert (foreign["events"], foreign["truncated"]) == ([], True)
    for arguments in ({"agentId": "summarizer"}, {"taskId": task["id"]}):
        params = {"name": "task.ended", "arguments": arguments}
        assert error_of(theirs.legacy("events/poll", params))[0] == -32602


def test_unknown_cursor_starts_now_and_says_so(alice: ApiClient, mcp: McpClient) -> None:
    real = poll(mcp, "task.ended")["cursor"]
    run(alice)
    for cursor in ("", "x", "1-2-3", real[:-1], f"9{real}", "\u00e9" * 200):
        found = poll(mcp, "task.ended", cursor=cursor)
        assert (found["events"], found["truncated"]) == ([], True), cursor
    # What it returns is a cursor.
    task = run(alice)
    assert tasks_of(poll(mcp, "task.ended", cursor=found["cursor"])) == [task["id"]]


def set_back(app: Flask, days: float, *tasks: Json) -> None:
    """Let the events of tasks be this old."""
    with app.app_context(), transaction() as connection:
        of_tasks = update(Event).where(Event.task_id.in_([task["id"] for task in tasks]))
        connection.execute(of_tasks.values(at=clock.now(-days * DAY)))


def test_too_old_cursor_goes_on_from_the_oldest_event_that_is_kept(
    app: Flask, alice: ApiClient, mcp: McpClient, monkeypatch: pytest.MonkeyPatch, no_grace: None
) -> None:
    with monkeypatch.context() as then:
        now = clock.now
        then.setattr(clock, "now", lambda offset=0.0: now(offset - 7 * DAY))
        cursor = poll(mcp, "task.ended")["cursor"]
    poll(mcp, "task.ended")
    old, kept = run(alice), run(alice)
    set_back(app, 7.1, old)
    Maintenance(app).do_round()
    found = poll(mcp, "task.ended", cursor=cursor)
    assert (tasks_of(found), found["truncated"]) == ([kept["id"]], True)
    again = poll(mcp, "task.ended", cursor=found["cursor"])
    assert (again["events"], again["truncated"]) == ([], False)


def test_events_that_are_too_old_for_the_client_are_passed_over(
    app: Flask, alice: ApiClient, mcp: McpClient
) -> None:
    cursor = poll(mcp, "task.ended")["cursor"]
    old, new = run(alice), run(alice)
    set_back(app, 1, old)
    found = poll(mcp, "task.ended", cursor=cursor, maxAgeMs=HOUR * 1000)
    assert (tasks_of(found), found["truncated"]) == ([new["id"]], True)
    for params in ({}, {"maxAgeMs": 2**60}, {"maxAgeMs": None}):
        found = poll(mcp, "task.ended", cursor=cursor, **params)
        assert (len(found["events"]), found["truncated"]) == (2, False)
    # What is passed over is not what was wanted.
    found = poll(mcp, "task.asks", cursor=cursor, maxAgeMs=0)
    assert (found["events"], found["truncated"]) == ([], False)


def test_deleted_task_takes_its_events_along(alice: ApiClient, mcp: McpClient) -> None:
    cursor = poll(mcp, "task.ended")["cursor"]
    task, other = run(alice), run(alice)
    expect(alice.delete(f"/task/{task['id']}"), 200)
    found = poll(mcp, "task.ended", cursor=cursor)
    assert (tasks_of(found), found["truncated"]) == ([other["id"]], False)


def test_events_are_recorded_until_seven_days_after_the_last_poll(
    app: Flask, alice: ApiClient, mcp: McpClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(alice)
    assert count_events(app) == 0
    poll(mcp, "task.ended")
    now = clock.now
    for days, recorded in ((6.9, 1), (7.1, 1)):
        monkeypatch.setattr(clock, "now", lambda offset=0.0, days=days: now(offset + days * DAY))
        run(alice)
        assert count_events(app) == recorded


def count_events(app: Flask) -> int:
    with app.app_context(), reading() as connection:
        return len(connection.execute(select(Event.id)).all())


def test_poll_skips_nothing_whoever_commits_when(alice: ApiClient, mcp: McpClient) -> None:
    cursor = poll(mcp, "task.ended")["cursor"]
    started = [alice.start(agent_id=f"agent-{n % 3}", claim=True) for n in range(30)]
    seen: list[str] = []
    with ThreadPoolExecutor(4) as pool:
        reports = [pool.submit(alice.report, task, status="complete") for task in started]
        while len(seen) < len(started):
            page = poll(mcp, "task.ended", cursor=cursor)
            cursor = page["cursor"]
            seen += tasks_of(page)
            assert seen or not all(report.done() and report.exception() for report in reports)
    assert sorted(seen) == sorted(task["id"] for task in started)


# --- errors ------------------------------------------------------------------------------

SECRET = "whsec_" + base64.b64encode(bytes(range(32))).decode()


def subscription(url: str = "https://chat.example/hook", **changes: Any) -> Json:
    delivery = {"mode": "webhook", "url": url, "secret": SECRET} | changes.pop("delivery", {})
    return {"name": "task.ended", "arguments": {}, "delivery": delivery} | changes


WRONG_DELIVERIES: list[Json] = [
    {"url": None},
    {"url": "http://chat.example/"},
    {"url": "http://10.0.0.1/"},
    {"url": "https://10.0.0.1/"},
    {"url": "https://169.254.169.254/"},
    {"url": "https://user@chat.example/"},
    {"url": "https://chat.example/#a"},
    {"url": "ftp://chat.example/"},
    {"url": "https://chat.example/" + "x" * 2_000},
    {"secret": None},
    {"secret": SECRET.removeprefix("whsec_")},
    {"secret": SECRET.rstrip("=")},
    {"secret": SECRET.replace("A", "*")},
    {"secret": "whsec_" + base64.b64encode(bytes(23)).decode()},
    {"secret": "whsec_" + base64.b64encode(bytes(65)).decode()},
    {"secret": "whsec_é"},
]
WRONG_ANYWHERE: list[Json] = [
    {"name": 5},
    {"name": None},
    {"arguments": []},
    {"arguments": {"status": "error"}},
    {"arguments": {"agentId": None}},
    {"arguments": {"agentId": 5}},
    {"arguments": {"agentId": "unknown"}},
    {"arguments": {"taskId": "unknown"}},
    {"arguments": {"taskId": "0193b0a0-0000-7000-8000-000000000000"}},
    {"arguments": {"label": "env"}},
    {"arguments": {"label": "env:"}},
    {"cursor": 5},
    {"maxAgeMs": -1},
    {"maxAgeMs": "5"},
    {"maxAgeMs": True},
]


@one_database
@pytest.mark.parametrize("change", [*WRONG_ANYWHERE, {"maxEvents": 0}, {"maxEvents": 1.5}])
def test_wrong_parameters_of_a_poll_are_refused(mcp: McpClient, change: Json) -> None:
    for call in (mcp.legacy, mcp.modern):
        answer = call("events/poll", {"name": "task.ended"} | change, Mcp_Name=None)
        assert error_of(answer)[0] == -32602, change


@one_database
@pytest.mark.parametrize(
    "change",
    [
        *WRONG_ANYWHERE,
        {"ttlMs": -1},
        {"ttlMs": "5"},
        {"delivery": None},
        *({"delivery": wrong} for wrong in WRONG_DELIVERIES),
    ],
)
def test_wrong_parameters_of_a_subscription_are_refused(mcp: McpClient, change: Json) -> None:
    params = {"delivery": None} if change == {"delivery": None} else subscription(**change)
    assert error_of(mcp.legacy("events/subscribe", params))[0] == -32602


@one_database
def test_errors_are_numbered_as_chatgpt_does(mcp: McpClient) -> None:
    for method in ("events/poll", "events/subscribe", "events/unsubscribe"):
        params = subscription(name="task.started")
        assert error_of(mcp.legacy(method, params)) == (-32011, {"kind": "event"})
    for mode in ("push", "poll"):
        params = {"name": "task.ended", "delivery": {"mode": mode}}
        data = {"feature": "deliveryMode", "value": mode}
        assert error_of(mcp.modern("events/subscribe", params, Mcp_Name=None)) == (-32014, data)
    assert mcp.modern("events/stream", {}).refused == (404, -32601)
    assert mcp.legacy("events/stream", {}).refused == (200, -32601)


# --- the challenge -----------------------------------------------------------------------


def body_of(request: Received) -> Json:
    return dict(json.loads(request.body))


def answer_challenge(exchange: Exchange) -> None:
    """What a client answers: its challenge, and 204 to all else."""
    body = body_of(exchange.request)
    is_challenge = body.get("type") == "verification"
    reply = json.dumps({"challenge": body.get("challenge")}).encode()
    (answer(200, body=reply) if is_challenge else answer(204))(exchange)


@pytest.fixture
def client(receiver: Receiver) -> Receiver:
    """The server of an MCP client, which answers challenges."""
    receiver.answer = answer_challenge
    return receiver


def subscribe(mcp: McpClient, client: Receiver, **changes: Any) -> Json:
    return mcp.legacy("events/subscribe", subscription(client.url, **changes)).result


def messages(client: Receiver, count: int) -> list[Received]:
    """What was delivered, as soon as there are so many, without challenges."""

    def delivered() -> list[Received]:
        return [each for each in client.requests if body_of(each).get("type") != "verification"]

    until(lambda: len(delivered()) >= count)
    assert len(delivered()) == count
    return delivered()


def verify(request: Received, secret: str = SECRET) -> None:
    Webhook(secret).verify(request.body, request.headers)


def test_new_url_must_answer_a_signed_challenge(
    alice: ApiClient, mcp: McpClient, client: Receiver
) -> None:
    result = subscribe(mcp, client, unknown=1)
    assert re.fullmatch("sub_[0-9a-f]{32}", result["id"])
    assert result.keys() == {"id", "refreshBefore", "cursor", "truncated"}
    assert result["truncated"] is False
    [challenge] = client.requests
    verify(challenge)
    assert len(body_of(challenge)["challenge"]) >= 32
    assert body_of(challenge).keys() == {"type", "challenge"}
    assert re.fullmatch("msg_verification_[0-9a-f]{32}", challenge.headers["webhook-id"])
    assert challenge.headers["x-mcp-subscription-id"] == result["id"]
    assert challenge.headers["content-type"] == "application/json"
    # The URL is verified for this key, but not for others.
    other = subscribe(mcp, client, name="task.failed")
    assert other["id"] != result["id"]
    assert len(client.requests) == 1
    assert subscribe(McpClient(alice.with_key("other")), client)["id"] != result["id"]
    assert len(client.requests) == 2


def challenge_failures(client: Receiver) -> list[tuple[Any, str]]:
    right = b'{"challenge": "something else"}'
    return [
        (answer(200, body=right), "challenge_failed"),
        (answer(204), "challenge_failed"),
        (answer(200, body=b"[]"), "challenge_failed"),
        (answer(200, body=b"nonsense"), "challenge_failed"),
        (answer(302, {"Location": client.url}), "http_4xx"),
        (answer(404), "http_4xx"),
        (answer(500, body=b"internal"), "http_5xx"),
        (reset(), "connection_refused"),
        (silence, "timeout"),
    ]


def test_failed_challenge_says_why_and_stores_nothing(
    app: Flask, alice: ApiClient, mcp: McpClient, client: Receiver, subtests: Any
) -> None:
    app.config["CALLBACK_TIMEOUT"] = 1.0
    for behaviour, reason in challenge_failures(client):
        with subtests.test(reason):
            client.answer = behaviour
            params = subscription(client.url)
            assert error_of(mcp.legacy("events/subscribe", params)) == (-32015, {"reason": reason})
    nobody = subscription(f"http://127.0.0.1:{unused_port()}/")
    refused = (-32015, {"reason": "connection_refused"})
    assert error_of(mcp.legacy("events/subscribe", nobody)) == refused
    # The eleventh in a minute is not sent.
    sent = len(client.requests)
    limit = (-32013, {"limit": "verifications"})
    assert error_of(mcp.legacy("events/subscribe", subscription(client.url))) == limit
    assert len(client.requests) == sent
    assert expect(alice.get("/hook"), 200) == []


@one_database
@pytest.mark.parametrize("host", ["nobody.invalid", "localhost"])
def test_host_without_an_allowed_address_is_an_error_of_the_connection(
    app: Flask, mcp: McpClient, host: str
) -> None:
    app.config["CALLBACK_ALLOWED"] = Destinations.parse("external")
    params = subscription(f"https://{host}/")
    reason = {"reason": "connection_refused"}
    assert error_of(mcp.legacy("events/subscribe", params)) == (-32015, reason)
    params = subscription("http://127.0.0.1/")
    assert error_of(mcp.legacy("events/subscribe", params))[0] == -32602


@one_database
def test_wrong_certificate_is_an_error_of_tls(mcp: McpClient, authority: Authority) -> None:
    with Receiver(tls=authority.server("127.0.0.1")) as receiver:
        receiver.answer = answer_challenge
        params = subscription(receiver.url)
        assert error_of(mcp.legacy("events/subscribe", params))[1] == {"reason": "tls_error"}


@one_database
def test_challenge_holds_only_a_share_of_the_threads(
    app: Flask, mcp: McpClient, client: Receiver
) -> None:
    client.answer = silence
    app.config["CALLBACK_TIMEOUT"] = 5.0
    params = subscription(client.url)
    with ThreadPoolExecutor(1) as pool:
        # One thread of four is for first attempts.
        waiting = pool.submit(mcp.legacy, "events/subscribe", params)
        client.wait_for(1)
        limit = (-32013, {"limit": "verifications"})
        assert error_of(mcp.legacy("events/subscribe", params)) == limit
        assert error_of(waiting.result())[1] == {"reason": "timeout"}


# --- subscriptions -----------------------------------------------------------------------


def seconds_from_now(text: str) -> float:
    return (datetime.fromisoformat(text) - datetime.now(UTC)).total_seconds()


@one_database
def test_lifetime_is_brought_into_its_limits(mcp: McpClient, client: Receiver) -> None:
    lifetimes: list[tuple[Json, int]] = [
        ({}, DAY),
        ({"ttlMs": None}, 30 * DAY),
        ({"ttlMs": 2**60}, 30 * DAY),
        ({"ttlMs": 0}, MINUTE),
        ({"ttlMs": 7_200_000}, 2 * HOUR),
        # With the shortest secret.
        ({"delivery": {"secret": "whsec_" + base64.b64encode(bytes(24)).decode()}}, DAY),
    ]
    for params, seconds in lifetimes:
        refresh_before = subscribe(mcp, client, **params)["refreshBefore"]
        assert refresh_before.endswith("Z")
        assert abs(seconds_from_now(refresh_before) - seconds) < MINUTE / 2


def test_subscription_ends_with_its_key_at_the_latest(
    app: Flask, alice: ApiClient, client: Receiver
) -> None:
    expires_at = (datetime.now(UTC) + timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M:%S.000Z")
    key = expect(alice.post("/key", json={"name": "brief", "expiresAt": expires_at}), 201)
    mcp = McpClient(ApiClient(app, alice.name, key["key"]))
    assert subscribe(mcp, client)["refreshBefore"] == expires_at


def test_event_is_delivered_as_a_poll_returns_it(
    app: Flask, alice: ApiClient, mcp: McpClient, client: Receiver
) -> None:
    result = subscribe(mcp, client)
    with looping(app):
        task = run(alice)
        [message] = messages(client, 1)
    verify(message)
    [event] = poll(mcp, "task.ended", cursor=result["cursor"])["events"]
    delivered = body_of(message)
    cursor = delivered.pop("cursor")
    assert delivered == event
    assert event["data"]["task"]["id"] == task["id"]
    assert message.headers["webhook-id"] == event["eventId"]
    assert message.headers["x-mcp-subscription-id"] == result["id"]
    assert message.headers["content-type"] == "application/json"
    later = run(alice)
    assert tasks_of(poll(mcp, "task.ended", cursor=cursor)) == [later["id"]]


def test_read_key_polls_and_subscribes(
    app: Flask, alice: ApiClient, mcp: McpClient, client: Receiver
) -> None:
    screen = McpClient(alice.read_key())
    assert screen.legacy("events/list").result == mcp.legacy("events/list").result
    cursor = subscribe(screen, client)["cursor"]
    with looping(app):
        task = run(alice)
        [message] = messages(client, 1)
    assert body_of(message)["data"]["task"]["id"] == task["id"]
    assert tasks_of(poll(screen, "task.ended", cursor=cursor)) == [task["id"]]
    delivery = {"url": client.url}
    params = {"name": "task.ended", "arguments": {}, "delivery": delivery}
    assert screen.legacy("events/unsubscribe", params).result == {}
    assert expect(alice.get("/hook"), 200) == []


def test_restart_changes_nothing_of_a_subscription(
    app: Flask, alice: ApiClient, mcp: McpClient, client: Receiver, apps: Apps, config: Config
) -> None:
    first = subscribe(mcp, client)
    other = apps.new(config)
    there = ApiClient(other, "alice", alice.key)
    with looping(other):
        task = run(there)
        [message] = messages(client, 1)
        assert body_of(message)["data"]["task"]["id"] == task["id"]
        again = subscribe(McpClient(there), client)
    assert (again["id"], again["deliveryStatus"]["active"]) == (first["id"], True)
    dispose(other)


@one_database
def test_largest_event_has_at_most_256_kib(
    app: Flask, alice: ApiClient, mcp: McpClient, client: Receiver
) -> None:
    # In JSON, this character takes six bytes.
    wide = "\x01"
    labels = {f"{number:x}".rjust(64, "k"): wide * MAX_LABEL_VALUE for number in range(MAX_LABELS)}
    task = alice.start(claim=True, name=wide * MAX_NAME, labels=labels)
    field = {"type": "string", "description": "x" * (MAX_SCHEMA - 1_000)}
    schema = {"type": "object", "properties": {"why": field}}
    for name in ("task.asks", "task.failed"):
        subscribe(mcp, client, name=name)
    asked = {"message": wide * MAX_QUESTION, "schema": schema}
    expect(alice.post(f"/task/{task['id']}/question", json=asked), 201)
    alice.report(task, status="error", error={"message": wide * (MAX_MESSAGE // 2)})
    with looping(app):
        sizes = [len(message.body) for message in messages(client, 2)]
    assert 64 * 1024 < max(sizes) <= 256 * 1024


def test_subscription_gets_what_its_arguments_select(
    app: Flask, alice: ApiClient, mcp: McpClient, client: Receiver
) -> None:
    running = alice.start(claim=True)
    narrow = McpClient(alice.agent_key("other"))
    for caller, arguments in [
        (mcp, {"agentId": "summarizer", "label": "env:prod"}),
        (mcp, {"taskId": running["id"]}),
        (narrow, {}),
    ]:
        subscribe(caller, client, arguments=arguments)
    with looping(app):
        wanted = {
            run(alice, labels={"env": "prod"})["id"],
            alice.report(running, status="complete")["id"],
            run(alice, agent_id="other")["id"],
        }
        run(alice)
        run(alice, agent_id="third", labels={"env": "prod"})
        found = messages(client, 3)
    assert {body_of(each)["data"]["task"]["id"] for each in found} == wanted


def test_cursor_of_a_message_leaves_out_nothing_that_is_pending(
    app: Flask, alice: ApiClient, mcp: McpClient, client: Receiver
) -> None:
    start = subscribe(mcp, client)["cursor"]
    client.answer = answer(500)
    with looping(app):
        first = run(alice)
        messages(client, 1)
        until(lambda: attempts_of(app) == [1])
        client.answer = answer_challenge
        second = run(alice)
        _, message = messages(client, 2)
        assert body_of(message)["data"]["task"]["id"] == second["id"]
        cursor = body_of(message)["cursor"]
        assert tasks_of(poll(mcp, "task.ended", cursor=cursor)) == [first["id"], second["id"]]
        assert subscribe(mcp, client)["cursor"] != start
        *_, message = messages(client, 3)
        # The same event is sent under the same id.
        assert message.headers["webhook-id"] == messages(client, 3)[0].headers["webhook-id"]
    cursor = body_of(message)["cursor"]
    assert tasks_of(poll(mcp, "task.ended", cursor=cursor)) == [second["id"]]
    until(lambda: poll(mcp, "task.ended", cursor=subscribe(mcp, client)["cursor"])["events"] == [])


def until_attempted(app: Flask, count: int) -> None:
    """Wait until one of the deliveries was attempted this often."""
    until(lambda: max(attempts_of(app)) == count)


def attempts_of(app: Flask) -> list[int]:
    with app.app_context(), reading() as connection:
        return list(connection.scalars(select(Delivery.attempt_count).order_by(Delivery.id)))


def test_refresh_keeps_the_subscription_and_changes_expiry_and_secret(
    app: Flask, alice: ApiClient, mcp: McpClient, client: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = subscribe(mcp, client, arguments={"agentId": "summarizer", "label": "a:b"})
    old, new = SECRET, "whsec_" + base64.b64encode(os.urandom(64)).decode()
    changes = {"arguments": {"label": "a:b", "agentId": "summarizer"}, "ttlMs": None}
    cursor = poll(mcp, "task.ended")["cursor"]
    second = subscribe(mcp, client, delivery={"secret": new}, cursor="ignored", **changes)
    assert second["id"] == first["id"]
    assert second["refreshBefore"] > first["refreshBefore"]
    status = {"active": True, "lastDeliveryAt": None, "lastError": None}
    assert (second["deliveryStatus"], second["truncated"]) == (status, False)
    assert cursor
    with looping(app):
        run(alice, labels={"a": "b"})
        [message] = messages(client, 1)
        verify(message, new)
        verify(message, old)
        with app.app_context(), transaction() as connection:
            connection.execute(update(Hook).values(replaced_at=clock.now(-DAY)))
        run(alice, labels={"a": "b"})
        message = messages(client, 2)[1]
    verify(message, new)
    assert len(message.headers["webhook-signature"].split()) == 1
    status = subscribe(mcp, client, delivery={"secret": new}, **changes)["deliveryStatus"]
    assert status["lastDeliveryAt"] is not None
    assert len(expect(alice.get("/hook"), 200)) == 1


def test_refresh_tells_of_failures_and_sends_what_waits(
    app: Flask, alice: ApiClient, mcp: McpClient, client: Receiver
) -> None:
    subscribe(mcp, client)
    client.answer = answer(503, body=b"secret words of the endpoint")
    with looping(app):
        run(alice)
        messages(client, 1)
        until(lambda: attempts_of(app) == [1])
        client.answer = answer_challenge
        status = subscribe(mcp, client)["deliveryStatus"]
        assert status["active"] is True
        assert (status["lastDeliveryAt"], status["lastError"]) == (None, "http_5xx")
        assert seconds_from_now(status["failedSince"]) < 0
        messages(client, 2)
        until(lambda: the_hook(alice)["lastDeliveredAt"] is not None)
    status = subscribe(mcp, client)["deliveryStatus"]
    assert status.keys() == {"active", "lastDeliveryAt", "lastError"}
    assert status["lastError"] is None
    assert status["lastDeliveryAt"] is not None


def the_hook(person: ApiClient) -> Json:
    [hook] = expect(person.get("/hook"), 200)
    return dict(hook)


@pytest.mark.parametrize("status", [410, 413])
def test_refusal_ends_one_event_and_three_in_a_row_turn_the_subscription_off(
    app: Flask, alice: ApiClient, mcp: McpClient, client: Receiver, status: int
) -> None:
    subscribe(mcp, client)
    client.answer = answer(status)
    with looping(app):
        for lost in (1, 2, 3):
            assert the_hook(alice)["state"] == "active"
            cursor = poll(mcp, "task.ended")["cursor"]
            last = run(alice)
            messages(client, lost)
            until(lambda: pending(app) == [])
        until(lambda: the_hook(alice)["state"] == "off")
        missed = run(alice)
        client.answer = answer_challenge
        assert pending(app) == []
        result = subscribe(mcp, client, cursor=cursor)
        assert result["deliveryStatus"]["active"] is False
        assert result["deliveryStatus"]["lastError"] == "http_4xx"
        replayed = messages(client, 5)[3:]
        assert {body_of(each)["data"]["task"]["id"] for each in replayed} == {
            last["id"],
            missed["id"],
        }
        assert the_hook(alice)["state"] == "active"
        assert subscribe(mcp, client)["deliveryStatus"]["active"] is True


def pending(app: Flask) -> list[str]:
    with app.app_context(), reading() as connection:
        return list(connection.scalars(select(Delivery.id).where(Delivery.state == "pending")))


def test_new_subscription_gets_what_came_after_its_cursor(
    app: Flask, alice: ApiClient, mcp: McpClient, client: Receiver
) -> None:
    run(alice)
    cursor = poll(mcp, "task.ended")["cursor"]
    old, new = run(alice), run(alice)
    set_back(app, 1, old)
    result = subscribe(mcp, client, cursor=cursor, maxAgeMs=HOUR * 1000)
    assert result["truncated"] is True
    other = subscribe(mcp, client, cursor=cursor, arguments={"agentId": "summarizer"})
    assert other["truncated"] is False
    # Until they are delivered, the client has to begin there once more.
    assert len(poll(mcp, "task.ended", cursor=other["cursor"])["events"]) == 2
    assert subscribe(mcp, client, cursor="?", arguments={"label": "a:b"})["truncated"] is True
    with looping(app):
        found = messages(client, 3)
    ids = sorted(body_of(each)["data"]["task"]["id"] for each in found)
    assert ids == sorted([old["id"], new["id"], new["id"]])


def test_new_subscription_gets_at_most_the_last_thousand(
    app: Flask, alice: ApiClient, mcp: McpClient, client: Receiver
) -> None:
    cursor = poll(mcp, "task.ended")["cursor"]
    task = run(alice)
    record_many(app, task, 1_001)
    assert subscribe(mcp, client, cursor=cursor)["truncated"] is True
    assert len(pending(app)) == 1_000


def test_of_too_many_waiting_events_the_oldest_are_given_up(
    app: Flask, alice: ApiClient, mcp: McpClient, client: Receiver
) -> None:
    subscribe(mcp, client)
    task = run(alice)
    record_many(app, task, 1_009)
    for _ in range(2):
        Maintenance(app).do_round()
        # And the message of the gap.
        assert len(pending(app)) == 1_001
    with app.app_context(), transaction() as connection:
        gaps = select(Event.id).where(Event.name == "gap")
        later = update(Delivery).where(Delivery.event_id.not_in(gaps))
        connection.execute(
            later.where(Delivery.state == "pending").values(next_attempt_at=database_now(DAY))
        )
    with looping(app):
        [message] = messages(client, 1)
    verify(message)
    assert body_of(message).keys() == {"type", "cursor"}
    assert body_of(message)["type"] == "gap"
    assert re.fullmatch("msg_gap_[0-9a-f]{32}", message.headers["webhook-id"])
    seen = 0
    cursor = body_of(message)["cursor"]
    while True:
        page = poll(mcp, "task.ended", cursor=cursor, maxEvents=200)
        seen, cursor = seen + len(page["events"]), page["cursor"]
        if not page["hasMore"]:
            break
    assert seen == 1_000


def test_fifty_subscriptions_are_the_limit_beside_the_hooks(
    app: Flask, alice: ApiClient, mcp: McpClient, client: Receiver
) -> None:
    first = subscribe(mcp, client)
    with app.app_context(), transaction() as connection:
        row = connection.execute(select(Hook.__table__)).one()
        copies = [
            row._asdict() | {"id": clock.new_id(), "subscription": f"sub_{n}"} for n in range(49)
        ]
        connection.execute(insert(Hook), copies)
    limit = (-32013, {"limit": "subscriptions", "max": 50})
    params = subscription(client.url, name="task.failed")
    assert error_of(mcp.legacy("events/subscribe", params)) == limit
    assert subscribe(mcp, client)["id"] == first["id"]
    expect(alice.post("/hook", json={"target": client.url}), 201)
    with app.app_context(), transaction() as connection:
        one = update(Hook).where(Hook.subscription == "sub_7")
        connection.execute(one.values(expires_at=clock.now(-1)))
    assert mcp.legacy("events/subscribe", params).status == 200


def test_lapsed_subscription_ends_in_silence_and_begins_again_with_its_id(
    app: Flask, alice: ApiClient, mcp: McpClient, client: Receiver
) -> None:
    first = subscribe(mcp, client)
    run(alice)
    with app.app_context(), transaction() as connection:
        connection.execute(update(Hook).values(expires_at=clock.now(-1)))
    run(alice)
    assert expect(alice.get("/hook"), 200) == []
    Maintenance(app).do_round()
    assert pending(app) == []
    with looping(app):
        again = subscribe(mcp, client)
        assert again["id"] == first["id"]
        assert "deliveryStatus" not in again
        last = run(alice)
        [message] = messages(client, 1)
    assert body_of(message)["data"]["task"]["id"] == last["id"]
    # The URL was still verified.
    assert len(client.requests) == 2


def test_url_stays_verified_for_an_hour_after_the_last_subscription(
    app: Flask, mcp: McpClient, client: Receiver
) -> None:
    for seconds, challenges in ((HOUR - MINUTE, 1), (HOUR + MINUTE, 2)):
        subscribe(mcp, client)
        Maintenance(app).do_round()
        assert len(client.requests) == 1
        with app.app_context(), transaction() as connection:
            connection.execute(update(Hook).values(expires_at=clock.now(-seconds)))
        Maintenance(app).do_round()
        subscribe(mcp, client, name="task.failed")
        assert len(client.requests) == challenges


def test_unsubscribed_client_gets_nothing_more(
    app: Flask, alice: ApiClient, bob: ApiClient, mcp: McpClient, client: Receiver
) -> None:
    subscribe(mcp, client)
    run(alice)
    endpoint = {"name": "task.ended", "arguments": {}, "delivery": {"url": client.url}}
    assert McpClient(bob).legacy("events/unsubscribe", endpoint).result == {}
    assert the_hook(alice)["format"] == "mcp"
    for _ in range(2):
        assert mcp.legacy("events/unsubscribe", endpoint).result == {}
    assert expect(alice.get("/hook"), 200) == []
    run(alice)
    with looping(app):
        Maintenance(app).do_round()
        until(lambda: pending(app) == [])
    messages(client, 0)


# --- subscriptions as hooks --------------------------------------------------------------


def test_hooks_list_a_subscription_without_its_secrets(
    alice: ApiClient, mcp: McpClient, client: Receiver
) -> None:
    params = subscription(f"{client.url}hook?token=private", arguments={"label": "a:b"})
    result = mcp.legacy("events/subscribe", params).result
    hook = the_hook(alice)
    assert hook["target"] == f"{client.url}hook"
    assert hook["expiresAt"] == result["refreshBefore"]
    assert (hook["format"], hook["events"], hook["label"]) == ("mcp", ["task.ended"], "a:b")
    assert "private" not in json.dumps(hook)
    assert SECRET not in json.dumps(hook)
    path = f"/hook/{hook['id']}"
    assert expect(alice.patch(path, json={"name": "mine"}), 200)["name"] == "mine"
    assert "target" in problem(alice.patch(path, json={"target": client.url}), 422)["errors"]
    problem(alice.post("/hook", json={"target": client.url, "format": "mcp"}), 422)
    assert expect(alice.post(f"{path}/test"), 200)["delivered"] is True
    verify(client.requests[-1])
    assert body_of(client.requests[-1])["type"] == "verification"
    assert expect(alice.delete(path), 200) == hook | {"name": "mine"}
    problem(alice.get(path), 404)


def end_by_delete(app: Flask, owner: ApiClient, user: ApiClient) -> None:
    first = expect(owner.get("/hook"), 200)[0]
    expect(owner.delete(f"/hook/{first['id']}"), 200)


def key_of(user: ApiClient) -> Json:
    return dict(expect(user.get("/user"), 200)["key"])


def end_by_revocation(app: Flask, owner: ApiClient, user: ApiClient) -> None:
    expect(owner.delete(f"/key/{key_of(user)['id']}"), 200)


def end_by_expiry(app: Flask, owner: ApiClient, user: ApiClient) -> None:
    expire(app, key_of(user))


@pytest.mark.parametrize("end", [end_by_delete, end_by_revocation, end_by_expiry])
def test_client_is_told_that_its_subscription_was_ended(
    app: Flask, alice: ApiClient, client: Receiver, end: Any
) -> None:
    user = alice.with_key("chat")
    subscribe(McpClient(user), client)
    run(alice)
    end(app, alice, user)
    run(alice)
    client.answer = answer(500)
    with looping(app):
        Maintenance(app).do_round()
        for attempt in (1, 2, 3):
            message = messages(client, attempt)[-1]
            until_attempted(app, attempt)
            make_due(app)
        # What was pending is cancelled by the next round.
        Maintenance(app).do_round()
        assert pending(app) == []
    verify(message)
    error = {"code": -32012, "message": "Forbidden"}
    assert body_of(message) == {"type": "terminated", "error": error}
    ids = {each.headers["webhook-id"] for each in messages(client, 3)}
    assert len(ids) == 1
    assert re.fullmatch("msg_terminated_[0-9a-f]{32}", ids.pop())


def end_by_client(app: Flask, owner: ApiClient, user: ApiClient) -> None:
    [hook, _] = expect(owner.get("/hook"), 200)
    endpoint = {"name": "task.ended", "delivery": {"url": hook["target"]}}
    assert McpClient(user).legacy("events/unsubscribe", endpoint).result == {}


@pytest.mark.parametrize("end", [end_by_client, end_by_delete])
def test_events_are_recorded_until_seven_days_after_the_last_subscription(
    app: Flask, alice: ApiClient, client: Receiver, end: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    mcp = McpClient(alice)
    subscribe(mcp, client, ttlMs=None)
    subscribe(mcp, client, name="agent.broken", ttlMs=8 * DAY * 1000)
    end(app, alice, alice)
    now = clock.now
    for days, recorded in ((14.9, 1), (15.1, 0)):
        before = count_events(app)
        monkeypatch.setattr(clock, "now", lambda offset=0.0, days=days: now(offset + days * DAY))
        run(alice)
        assert count_events(app) - before == recorded


def test_subscription_that_expires_with_its_key_is_told(
    app: Flask, alice: ApiClient, client: Receiver
) -> None:
    user = alice.with_key("chat")
    subscribe(McpClient(user), client)
    with app.app_context(), transaction() as connection:
        connection.execute(update(Hook).values(expires_at=clock.now(-1)))
    expire(app, key_of(user))
    with app.app_context(), transaction() as connection:
        expires_at = connection.scalar(select(ApiKey.expires_at).where(ApiKey.name == "chat"))
        connection.execute(update(Hook).values(expires_at=expires_at))
    with looping(app):
        Maintenance(app).do_round()
        [message] = messages(client, 1)
    assert body_of(message)["type"] == "terminated"
