"""The dashboard over HTTP: sessions, form tokens, pages and their headers."""

import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from functools import partial
from html import unescape
from importlib import import_module
from io import BytesIO
from typing import Any
from urllib.parse import unquote, urlencode

import pytest
import requests
from flask import Flask
from werkzeug.routing import Rule
from werkzeug.test import TestResponse

from taskservice.dashboard import sessions
from taskservice.dashboard.sessions import LIFETIME
from taskservice.database import clock as timestamps
from taskservice.services import agents, lists
from taskservice.web.request import Sessions
from taskservice.webhooks.destinations import Destinations
from tests.support.api_client import ApiClient, add_user, expect
from tests.support.concurrency import at_once
from tests.support.deliveries import looping
from tests.support.html_page import Page
from tests.support.internals import (
    end_for_silence,
    expire,
    filled,
    is_page,
    plan_of,
    reads,
    rows,
    set_columns,
)
from tests.support.marks import one_database
from tests.support.plain_browser import Browser, hidden, hidden_text, signed_in
from tests.support.receiver import Receiver, answer
from tests.support.sample_data import HOSTILE, make_hostile
from tests.support.service import Service
from tests.support.waiting import until


def tabs(text: str) -> dict[str, str]:
    """What the tabs of the list say: status -> count."""
    return dict(re.findall(r'id="tab-(\w+)".*?<small>(.*?)</small>', text))


def token(response: TestResponse) -> str:
    return hidden(response)["token"]


NO_LINES: dict[str, Any] = {"lines": [], "times": []}


@pytest.fixture
def task(alice: ApiClient) -> dict[str, Any]:
    task = alice.start(name="nightly summary", claim=True)
    alice.append(task, "one", "two")
    return task


# --- signing in --------------------------------------------------------------------------


@one_database
def test_every_page_redirects_to_the_sign_in_without_a_session(
    app: Flask, task: dict[str, Any]
) -> None:
    before = rows(app)
    count = 0
    for rule in app.url_map.iter_rules():
        if not is_page(rule) or rule.rule in ("/sign-in", "/sign-out") or is_open(rule):
            continue
        for method in {"GET", "POST"} & (rule.methods or set()):
            window, path = Browser(app), filled(rule.rule, task_id=task["id"])
            data = {"token": token(window.get("/sign-in"))} if method == "POST" else None
            response = window.client.open(path, method=method, data=data)
            assert response.status_code == 303, path
            assert response.location.partition("?")[0] == "/sign-in"
            assert task["name"] not in response.text
            count += 1
    assert count > 15
    assert rows(app) == before


@one_database
def test_wrong_key_gets_the_sentence_of_the_api(app: Flask, alice: ApiClient) -> None:
    mistyped = alice.key[:-1] + ("y" if alice.key.endswith("x") else "x")
    for key in ("", "nonsense", mistyped, alice.key.replace("user", "agent")):
        window = Browser(app)
        response = window.sign_in(key)
        assert response.status_code == 401
        assert "API key is invalid" in response.text
        assert window.get("/").status_code == 303


@one_database
def test_sign_in_is_what_a_password_manager_fills(app: Flask) -> None:
    form = Browser(app).get("/sign-in").text
    kinds = re.findall(r'<input [^>]*name="(\w+)"[^>]*autocomplete="([^"]+)"', form)
    assert kinds == [("username", "username"), ("key", "current-password")]


@one_database
def test_sign_in_leads_back_to_the_page_that_was_asked_for(
    app: Flask, alice: ApiClient, task: dict[str, Any]
) -> None:
    for path in (f"/tasks/{task['id']}?x=%26", "/?status=error&q=%C3%A9"):
        window = Browser(app)
        response = window.get(path)
        page = window.get(response.location)
        field = re.findall(r'name="next" value="([^"]+)"', page.text)[0]
        again = window.sign_in(alice.key, next=unescape(field))
        assert again.location == path


@pytest.mark.parametrize(
    "path",
    ["https://evil.example/", "//evil.example", "/\\evil.example", "/\t/evil.example",
     "javascript:1", "/api/v1/task", "/sign-out", "tasks", "/nowhere", "\r\nX: y", "/?x=\ny",
     "/livez", "/docs", "//agents", "//keys?x", "//agents/x", "//", "agents"],
)  # fmt: skip
@one_database
def test_sign_in_leads_to_no_other_site(app: Flask, alice: ApiClient, path: str) -> None:
    assert Browser(app).sign_in(alice.key, next=path).location == "/"


@one_database
def test_key_is_nowhere_in_what_the_browser_keeps(app: Flask, alice: ApiClient) -> None:
    window = Browser(app)
    response = window.sign_in(alice.key)
    (cookie,) = response.headers.getlist("Set-Cookie")
    assert alice.key not in cookie
    attributes = cookie.split("; ")[1:]
    assert set(attributes) == {"HttpOnly", "Path=/", "SameSite=Lax"}
    session = window.client.get_cookie(cookie.partition("=")[0])
    assert session is not None
    serializer = Sessions().get_signing_serializer(app)
    assert serializer is not None
    values = serializer.loads(session.value)
    assert set(values) == {"key", "until"}
    assert alice.key[9:20] not in str(values)


def test_revoked_and_expired_keys_end_their_sessions(app: Flask, alice: ApiClient) -> None:
    for expires in (False, True):
        fields = {"name": "old", "expiresAt": timestamps.now(3600)}
        key = expect(alice.post("/key", json=fields), 201)
        window = Browser(app)
        window.sign_in(key["key"])
        assert window.get("/").status_code == 200
        if expires:
            expire(app, key)
        else:
            alice.delete(f"/key/{key['id']}")
        assert window.get("/").location == "/sign-in"


@one_database
def test_signing_out_ends_the_session(window: Browser) -> None:
    assert window.send("/", "/sign-out").location == "/sign-in"
    assert "You are signed out" in window.get("/sign-in").text
    assert window.get("/").status_code == 303


@one_database
def test_cookie_of_another_service_or_of_last_month_opens_no_session(
    app: Flask, window: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert window.get("/").status_code == 200
    later = time.time() + LIFETIME.total_seconds() + 60
    with monkeypatch.context() as context:
        context.setattr("itsdangerous.timed.time.time", lambda: later)
        assert window.get("/").status_code == 303
    app.config["SECRET_KEY"] = "another secret key for tests"
    assert window.get("/").status_code == 303


@one_database
def test_form_that_is_not_of_a_page_is_refused(app: Flask) -> None:
    client, fields = app.test_client(), "&".join(f"{number}=" for number in range(10_001))
    form = "application/x-www-form-urlencoded"
    assert client.post("/sign-in", data=fields, content_type=form).status_code == 413
    page = client.get("/sign-in")
    # With the token, but of a type that no page sends.
    data = {"token": token(page), "file": (BytesIO(b"a"), "name")}
    assert client.post("/sign-in", data=data).status_code == 403


@one_database
def test_session_is_found_among_the_cookies_of_other_programs(app: Flask, alice: ApiClient) -> None:
    header = Browser(app).sign_in(alice.key).headers["Set-Cookie"].partition(";")[0]
    stranger = app.test_client(use_cookies=False)
    for before, after in (("", " ;"), ('a="b', "; c"), (";;=; a=b;\t", '\t;d="')):
        cookies = f"{before};{header}{after};{'e=' + 'f' * 5_000}"
        assert stranger.get("/", headers={"Cookie": cookies}).status_code == 200
    assert stranger.get("/", headers={"Cookie": f'a="{header}"'}).status_code == 303


@one_database
def test_session_ends_in_time_though_its_cookie_was_renewed(
    app: Flask, alice: ApiClient, task: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "LIFETIME", timedelta(seconds=6))
    window = signed_in(alice)
    with closing(window.get(f"/tasks/{task['id']}/events")) as stream:
        # The form leaves a message for the next page, which renews the cookie.
        window.send("/callback-secret/rotate")
        assert window.get("/keys").status_code == 200
        # The page of the keys costs less than the list.
        until(lambda: window.get("/keys").status_code == 303)
        assert window.get("/").location == "/sign-in"
        # An open stream of the session ends too.
        assert stream.text.startswith("event: task")


@one_database
def test_api_takes_no_session_and_the_dashboard_no_header(
    window: Browser, alice: ApiClient
) -> None:
    assert window.get("/api/v1/user").status_code == 401
    assert Browser(alice.app).get("/", headers={"apikey": alice.key}).status_code == 303


# --- forms -------------------------------------------------------------------------------


def refusal(path: str) -> tuple[int, str | None]:
    """The status and Location of a refused form; the sign-in form of a session redirects to `/`."""
    return (303, "/") if path == "/sign-in" else (403, None)


def is_open(rule: Rule) -> bool:
    """Whether a rule needs no session: the files of pages, and links."""
    files = ("dashboard.static", "dashboard.icon", "docs.static")
    return rule.endpoint in files or rule.rule.startswith(("/answer/", "/shared/", "/sign-in/"))


def forms(app: Flask, task: dict[str, Any]) -> Iterator[str]:
    for rule in app.url_map.iter_rules():
        if is_page(rule) and "POST" in (rule.methods or ()) and not is_open(rule):
            yield filled(rule.rule, task_id=task["id"])


@one_database
def test_no_form_is_taken_without_the_token_of_its_session(
    app: Flask, window: Browser, task: dict[str, Any], bob: ApiClient
) -> None:
    other = signed_in(bob)
    stolen = token(other.get("/"))
    before = rows(app)
    for path in forms(app, task):
        for data in ({}, {"token": ""}, {"token": "wrong"}, {"token": "é"}, {"token": stolen}):
            response = window.post(path, {"key": bob.key, **data})
            assert (response.status_code, response.location) == refusal(path), path
    assert rows(app) == before
    assert "<bdi>alice</bdi>" in window.get("/").text


@one_database
def test_no_form_is_taken_from_another_site(
    app: Flask, window: Browser, task: dict[str, Any]
) -> None:
    right = token(window.get("/"))
    for path in forms(app, task):
        for site in ("cross-site", "same-site"):
            response = window.post(path, {"token": right}, headers={"Sec-Fetch-Site": site})
            assert (response.status_code, response.location) == refusal(path), path


@one_database
def test_form_of_a_session_that_has_ended_leads_to_the_sign_in_and_back(
    app: Flask, alice: ApiClient, task: dict[str, Any]
) -> None:
    path = f"/tasks/{task['id']}"
    for referrer, way_back in [
        (path, f"?next=/tasks/{task['id']}"),
        (f"{path}?back=/?sort%3DcreatedAt", f"?next={path}?back=/?sort=createdAt"),
        ("/", ""),
        ("/docs", ""),
    ]:
        window = Browser(app)
        headers = {"Referer": f"http://localhost{referrer}"}
        response = window.post(f"{path}/redeliver", {"token": "old"}, headers=headers)
        assert response.status_code == 303
        assert unquote(unquote(response.location)) == f"/sign-in{way_back}"
        assert "Nothing was changed" in window.get(response.location).text
    assert alice.task(task)["status"] == "running"


@one_database
def test_old_sign_in_form_is_not_a_dead_end(app: Flask, window: Browser, alice: ApiClient) -> None:
    assert window.get("/sign-in").location == "/"
    assert window.get("/sign-in?next=/agents").location == "/agents"
    assert window.post("/sign-in", {"token": "old", "key": alice.key}).location == "/"
    response = Browser(app).post("/sign-in", {"token": "old", "key": alice.key})
    assert response.status_code == 403
    assert "This form is out of date" in response.text
    assert 'name="key"' in response.text


# --- pages -------------------------------------------------------------------------------


@one_database
def test_pages_are_not_cached_and_run_nothing_from_elsewhere(
    app: Flask, window: Browser, task: dict[str, Any]
) -> None:
    for rule in app.url_map.iter_rules():
        if is_page(rule) and "GET" in (rule.methods or ()) and not is_open(rule):
            response = window.get(filled(rule.rule, task_id=task["id"]), buffered=False)
            policy = response.headers["Content-Security-Policy"]
            assert "default-src 'none'" in policy
            assert "unsafe" not in policy
            assert response.headers["Cache-Control"] == "no-store", rule.rule
            assert response.headers["X-Content-Type-Options"] == "nosniff"
            response.close()


FAR = "Thu, 01 Jan 99999999999 00:00:00 GMT"
ODD_HEADERS: list[dict[str, str]] = [
    {"If-Modified-Since": FAR},
    {"If-Range": FAR, "Range": "bytes=0-1"},
    {"Referer": "http://[::1"},
    {"Referer": "http://[::1", "Sec-Fetch-Site": "cross-site"},
]


@one_database
@pytest.mark.usefixtures("patient_probe")
def test_unusual_headers_never_cause_a_500(
    app: Flask, window: Browser, task: dict[str, Any], subtests: pytest.Subtests
) -> None:
    """On pages, and on all else that is not below /api/v1."""
    places = [rule for rule in app.url_map.iter_rules() if not rule.rule.startswith("/api/")]
    for rule in places:
        path = filled(rule.rule, task_id=task["id"], filename="page.js")
        for headers in ODD_HEADERS:
            for person in (window, Browser(app)):
                for ask in (person.get, partial(person.post, data={})):
                    with subtests.test(f"{rule.rule} {headers}"):
                        with ask(path, headers=headers, buffered=False) as response:
                            assert response.status_code < 500
                        assert response.status_code != 206


@one_database
def test_pages_have_no_inline_code_and_ids_once(
    window: Browser, alice: ApiClient, task: dict[str, Any]
) -> None:
    for path in ("/", f"/tasks/{task['id']}", f"/tasks/{task['id']}/cancel",
                 f"/tasks/{task['id']}/delete", "/agents", "/keys", "/callback-secret/rotate",
                 "/notifications", "/sign-in"):  # fmt: skip
        page = Page(window.get(path).text)
        assert page.values("style") == []
        names = [name for _, attributes in page.elements for name in attributes]
        assert not [name for name in names if name.startswith("on")]
        assert not [tag for tag, _ in page.elements if tag == "style"]
        scripts = [attributes for tag, attributes in page.elements if tag == "script"]
        assert all("src" in attributes for attributes in scripts)
        assert len(set(page.values("id"))) == len(page.values("id"))


@one_database
def test_stored_markup_is_shown_as_text(
    window: Browser, alice: ApiClient, receiver: Receiver
) -> None:
    task = make_hostile(alice, f"{receiver.url}hook")
    for path in ("/", "/?q=<script>", f"/tasks/{task['id']}", f"/tasks/{task['id']}/delete",
                 f"/tasks/{task['id']}/cancel", f"/tasks/{task['id']}/rerun", "/agents",
                 "/agents/hostile", "/agents/hostile/run", "/keys"):  # fmt: skip
        text = window.get(path).text
        assert "<img src=x" not in text
        assert "<script>" not in text
        # The product appears only if a template runs the text as code.
        assert str(31337 * 31337) not in text, path
    page = unescape(window.get(f"/tasks/{task['id']}").text)
    assert HOSTILE in page
    lines = window.get(f"/tasks/{task['id']}/lines?after=0&limit=10").json
    assert lines is not None
    assert lines["lines"][0] == HOSTILE
    download = window.get(f"/tasks/{task['id']}/log.txt")
    assert download.content_type == "text/plain; charset=utf-8"
    assert download.headers["Content-Disposition"].startswith("attachment")


def test_no_user_sees_things_of_another_user(
    app: Flask, task: dict[str, Any], bob: ApiClient
) -> None:
    window = signed_in(bob)
    before = rows(app)
    right = token(window.get("/"))
    for rule in app.url_map.iter_rules():
        if is_page(rule) and "task_id" in rule.arguments:
            path = filled(rule.rule, task_id=task["id"])
            for method in {"GET", "POST"} & (rule.methods or set()):
                data = {"token": right} if method == "POST" else None
                response = window.client.open(path, method=method, data=data)
                assert response.status_code == 404, path
                assert "This task was deleted" in response.text
    assert task["name"] not in window.get("/").text
    assert "summarizer" not in window.get("/agents").text
    assert rows(app) == before


def test_agent_key_sees_its_tasks_and_no_forbidden_buttons(
    app: Flask, alice: ApiClient, task: dict[str, Any]
) -> None:
    other = alice.start("translator", name="not for this key")
    window = signed_in(alice.agent_key("summarizer"))
    text = window.get("/").text
    assert task["name"] in text
    assert other["name"] not in text
    assert "/keys" not in text
    page = window.get(f"/tasks/{task['id']}").text
    assert "Cancel…" not in page
    assert "Delete…" not in page
    before = rows(app)
    right = token(window.get("/"))
    for path in forms(app, task):
        if "sign" not in path and not path.endswith("/rerun"):
            assert window.post(path, {"token": right}).status_code == 403, path
    assert window.get("/keys").status_code == 403
    assert rows(app) == before


@one_database
def test_errors_of_pages_are_pages_and_of_the_api_are_problems(window: Browser) -> None:
    wrong = ("/?status=unknown", "/?stauts=error", "/?started=1y", "/?cursor=x")
    for path, status in [("/tasks/nothing", 404), *((path, 422) for path in wrong)]:
        response = window.get(path)
        assert response.status_code == status
        assert response.content_type == "text/html; charset=utf-8"
    for path in ("/nowhere", "/api/v1/nowhere"):
        assert window.get(path).content_type == "application/problem+json"


@one_database
def test_unknown_paths_are_pages_for_a_browser(
    app: Flask, window: Browser, alice: ApiClient
) -> None:
    headers = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
    for path, status in (("/nowhere", 404), ("/sign-out", 405), ("/keys/x", 404)):
        response = window.get(path, headers=headers)
        assert response.status_code == status
        assert response.content_type == "text/html; charset=utf-8"
        assert "default-src 'none'" in response.headers["Content-Security-Policy"]
        assert "<bdi>alice</bdi>" in response.text
        assert "Sign out" not in Browser(app).get(path, headers=headers).text
    keyed = {**headers, "apikey": alice.key}
    response = window.get("/api/v1/nowhere", headers=keyed)
    assert response.content_type == "application/problem+json"
    for path in ("/tasks", "/tasks/"):
        assert window.get(path).location == "/"
    for path in ("/agents/", "/keys/", "/notifications/"):
        assert window.get(path).status_code == 200


@one_database
def test_page_of_a_deleted_task_says_that_it_was_deleted(
    window: Browser, alice: ApiClient, task: dict[str, Any]
) -> None:
    alice.delete(f"/task/{task['id']}")
    for path in (f"/tasks/{task['id']}", f"/tasks/{task['id']}/delete", "/tasks/nothing"):
        response = window.get(path)
        assert response.status_code == 404
        assert "This task was deleted or never existed" in response.text
        assert response.headers["Task-Gone"] == "true"
    assert "Task-Gone" not in window.get("/keys/nothing/revoke").headers


@one_database
def test_cancel_says_that_the_task_has_finished(
    window: Browser, alice: ApiClient, task: dict[str, Any]
) -> None:
    path = f"/tasks/{task['id']}"
    asked = hidden(window.get(f"{path}/cancel"))
    alice.report(task, status="complete")
    assert window.post(f"{path}/cancel", asked).location == path
    assert "The task has already ended." in window.get(path).text
    assert window.get(f"{path}/cancel").location == path
    assert alice.task(task)["status"] == "complete"


@one_database
@pytest.mark.parametrize("name", [" ", "\u200b", "\u2003\ufeff", "\u3164"])
def test_invisible_name_is_still_a_link(window: Browser, alice: ApiClient, name: str) -> None:
    task = alice.start("blank", name=name)
    alice.register("blank", name=name)
    alice.post("/key", json={"name": name})
    for path, back in (("/", ""), ("/agents/blank", "?back=/agents/blank")):
        link = f'<a href="/tasks/{task["id"]}{back}"><span class="faint">unnamed</span></a>'
        assert link in window.get(path).text
    assert (
        '<a href="/agents/blank"><span class="faint">unnamed</span></a>'
        in window.get("/agents").text
    )
    assert "<title>waiting · unnamed" in window.get(f"/tasks/{task['id']}").text
    assert "unnamed" in window.get("/keys").text


def test_filters_and_pages_are_as_in_the_api(window: Browser, alice: ApiClient) -> None:
    started = [alice.start(name=f"Task {number:02}") for number in range(55)]
    alice.report(started[3], status="error")
    alice.start("translator", name="Other")
    first = window.get("/?agentId=summarizer")
    names = re.findall(r"Task \d\d", first.text)
    assert names == [f"Task {number:02}" for number in range(54, 4, -1)]
    (following,) = re.findall(r'href="\?([^"]+)" rel="next"', first.text)
    rest = window.get(f"/?{unescape(following)}").text
    assert re.findall(r"Task \d\d", rest) == [f"Task {number:02}" for number in range(4, -1, -1)]
    assert re.findall(r"Task \d\d", window.get("/?status=error").text) == ["Task 03"]
    assert re.findall(r"Task \d\d", window.get("/?q=task+0&sort=createdAt&started=1h").text) == [
        f"Task {number:02}" for number in range(10)
    ]
    assert window.get("/?status=error&q=&agentId=").location == "/?status=error"


@one_database
def test_page_that_has_not_changed_is_304(window: Browser, alice: ApiClient) -> None:
    alice.start()
    response = window.get("/")
    headers = {"If-None-Match": response.headers["ETag"]}
    assert window.get("/", headers=headers).status_code == 304
    alice.start()
    assert window.get("/", headers=headers).status_code == 200


def test_tabs_count_the_filtered_tasks(window: Browser, alice: ApiClient) -> None:
    for number in range(4):
        task = alice.start(name=f"Morning {number}" if number else "Evening")
        if number > 1:
            alice.report(task, status="error")
    text = window.get("/?q=morning").text
    by_status = {"all": "3", "running": "0", "complete": "0"}
    by_state = {"waiting": "1", "failed": "2", "cancelled": "0", "timeout": "0"}
    assert tabs(text) == by_status | by_state
    assert tabs(window.get("/?q=morning&status=error").text)["waiting"] == "1"
    assert tabs(window.get("/?agentId=other").text)["all"] == "0"


def test_task_that_hangs_has_a_tab_and_its_reason_in_the_list(
    app: Flask, window: Browser, alice: ApiClient
) -> None:
    tasks = [alice.start(name=f"Task {number}", claim=True) for number in range(3)]
    assert "tab-hanging" not in window.get("/").text
    for task in tasks[:2]:
        set_columns(app, task, hanging_since=timestamps.now(), hanging_reason="runs for 3 h")
    for query in ("", "?q=task"):
        text = window.get(f"/{query}").text
        assert tabs(text)["hanging"] == "2"
        assert text.count('<p class="reason failed">Runs for 3 h</p>') == 2
    (link,) = re.findall('id="tab-hanging" href="([^"]+)"', text)
    hanging = window.get(unescape(link)).text
    assert re.findall("<bdi>(Task .)</bdi>", hanging) == ["Task 1", "Task 0"]
    assert tabs(hanging)["running"] == "3"
    assert "tab-hanging" in window.get("/?hanging=true&q=absent").text


@one_database
def test_list_has_the_tasks_of_a_period_and_those_that_are_older(
    app: Flask, window: Browser, alice: ApiClient
) -> None:
    """Whatever the time of day: some tasks are just inside of each period, some just outside."""
    for minutes in (0, 59, 61, 23 * 60 + 59, 24 * 60 + 1, 7 * 24 * 60 - 1, 30 * 24 * 60 - 1,
                    33 * 24 * 60):  # fmt: skip
        set_columns(app, alice.start(), created_at=timestamps.now(-60.0 * minutes))
    for started, count in (("1h", 2), ("24h", 4), ("7d", 6), ("30d", 7), ("before-24h", 4),
                           ("before-7d", 2), ("before-30d", 1), ("before-90d", 0)):  # fmt: skip
        text = window.get(f"/?started={started}").text
        assert tabs(text)["all"] == str(count)
        assert text.count('<tr id="task-') == count


@one_database
def test_filters_are_named_and_each_can_be_removed(window: Browser, alice: ApiClient) -> None:
    task = alice.start(labels={"env": "prod"})
    query = f"agentId=summarizer&label=env:prod&parentId={task['id']}&status=error&asking=true"
    text = window.get(f"/?{query}&createdAfter=2026-11-01T12:00:00Z&started=before-30d").text
    (chosen,) = re.findall('<p class="chosen".*?</p>', text, re.DOTALL)
    shown = re.sub('<span class="visually-hidden">.*?</span>', "", chosen)
    words = " ".join(re.sub("<[^>]+>", " ", shown).split())
    assert words == (
        f"Agent summarizer × Label env:prod × Started by {task['id'][:8]} × Status error × "
        "Asks true × Started after 1 Nov 2026, 12:00:00 UTC × Started older than 30 days × "
        "Show all tasks"
    )
    assert 'href="/agents/summarizer"' in chosen
    for link in re.findall('class="remove" href="([^"]+)"', chosen):
        assert window.get(unescape(link)).text.count('class="remove"') == 6
    # The tab says this.
    assert 'class="remove"' not in window.get("/?errorType=failed").text


@one_database
def test_last_time_there_is_may_bound_the_list(window: Browser) -> None:
    last = "9999-12-31T23:59:59.999Z"
    assert window.get(f"/?createdAfter={last}&createdBefore={last}").status_code == 200


@one_database
def test_many_tasks_are_not_counted_to_the_end(
    window: Browser, alice: ApiClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(import_module("taskservice.dashboard.tasks"), "MAX_COUNT", 2)
    for _ in range(3):
        alice.start(claim=True)
    text = window.get("/").text
    assert tabs(text)["running"] == "2+"
    assert "<title>2+ running · Tasks" in text


def test_search_among_many_tasks_says_how_far_it_came(
    window: Browser, alice: ApiClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lists, "FIRST_SEARCHED", 1)
    monkeypatch.setattr(lists, "MAX_SEARCHED", 1)
    monkeypatch.setattr(lists, "MAX_CANDIDATES", 0)
    monkeypatch.setattr(lists, "MAX_COUNTED", 2)
    tasks = [alice.start(name=name) for name in ("Oldest", "Second", "Third", "Last")]
    text = window.get("/?q=oldest").text
    assert "No task on this page matches the filters." in text
    assert "Searched back to" in text
    assert set(tabs(text).values()) == {"0+"}
    (further,) = re.findall(r'href="\?([^"]+)" rel="next">Continue searching', text)
    text = window.get(f"/?{unescape(further)}").text
    assert "<bdi>Oldest</bdi>" in text
    for task in tasks:
        alice.report(task, status="complete")
    for sort, direction in (
        ("", "back"), ("&sort=-createdAt", "back"), ("&sort=duration", "back"),
        ("&sort=createdAt", "up"), ("&sort=finishedAt", "up"),
    ):  # fmt: skip
        assert f"Searched {direction} to " in window.get(f"/?q=absent{sort}").text, sort


def test_list_says_why_a_task_failed_and_what_one_that_runs_does(
    window: Browser, alice: ApiClient
) -> None:
    for message, shown in (
        ("disk is full\nsecond line", "disk is full"),
        ("\n\n  indented\n", "indented"),
        ("Traceback (most recent call last):\n  File x\nKeyError: 'a'\n", "KeyError: 'a'"),
        ("x" * 60_000, "x" * 300),
        (HOSTILE, HOSTILE),
    ):
        task = alice.start(name="Failed", claim=True)
        alice.report(task, status="error", error={"message": message})
        text = window.get("/").text
        reasons = re.findall('<p class="reason failed"><bdi>(.*?)</bdi>', text)
        assert unescape(reasons[0]) == shown
        assert "second line" not in text
    alice.report(alice.start(claim=True), progress=0.5, note="34 of 68 pages")
    text = window.get("/").text
    assert "<bdi>34 of 68 pages</bdi>" in text
    assert '<progress value="0.5" aria' in text
    assert "<progress" not in window.get("/?status=error").text


def test_generic_message_is_followed_by_the_last_line_of_the_log(
    window: Browser, alice: ApiClient
) -> None:
    def fail(message: str | None, *lines: str) -> None:
        task = alice.start(claim=True)
        alice.append(task, *lines)
        error = {"error": {"message": message}} if message else {}
        alice.report(task, status="error", **error)

    generic = ("Exit status 7", "exit status 255", "Killed by signal 9 (SIGKILL)", None, "failed")
    for message in generic:
        fail(message, "earlier", f"\x1b[31m10 %\rwhy {HOSTILE}\x1b[0m", " ")
    fail("Exit status 1", "long " * 13_000)
    fail("Exit status 2")
    fail("Exit status of the disk: full", "not shown")
    fail("error in the plan", "not shown")
    shown = re.findall('<p class="reason failed"><bdi>(.*?)</bdi>', window.get("/").text)
    *others, long, alone, disk, plan = reversed([unescape(reason) for reason in shown])
    messages = [message or "The agent reported an error" for message in generic]
    assert others == [f"{message}: why {HOSTILE}" for message in messages]
    assert len(long) <= 300
    assert "long long" in long
    assert (alone, plan) == ("Exit status 2", "error in the plan")
    assert disk == "Exit status of the disk: full"


@one_database
def test_ends_of_logs_are_read_together_and_by_keys(
    app: Flask, window: Browser, alice: ApiClient
) -> None:
    for _ in range(3):
        task = alice.start(claim=True)
        alice.append(task, "why")
        alice.report(task, status="error")
    statements = reads(app, lambda: window.get("/"))
    # One for the list, and one for the agent that needs attention.
    of_logs = [read for read in statements if "log_chunks" in read[0]]
    assert len(of_logs) == 2
    for sql, parameters in of_logs:
        plan = [step for step in plan_of(app, sql, parameters) if "json_each" not in step]
        steps = [step for step in plan if re.search(" (tasks|logs|log_chunks)", step)]
        assert len(steps) == 3, plan
        assert all(step.startswith("SEARCH") for step in steps), plan


def test_longest_tasks_of_the_filters_come_first(window: Browser, alice: ApiClient) -> None:
    for name, minutes in (("short", 5), ("long", 90), ("middle", 30), ("other", 200)):
        began = (datetime.now(UTC) - timedelta(minutes=minutes)).isoformat()
        task = alice.start(
            "sender" if name == "other" else "summarizer",
            name=f"Run {name}", claim=True, claimedAt=began,
        )  # fmt: skip
        if name != "middle":
            alice.report(task, status="complete")
    alice.start(name="Run waiting")
    text = window.get("/?sort=duration&agentId=summarizer").text
    # A running one counts until now; a waiting one has no duration.
    assert re.findall(r"<bdi>Run (\w+)</bdi>", text) == ["long", "middle", "short"]
    assert '<option value="duration" selected>' in text
    assert re.findall(r"<bdi>Run (\w+)</bdi>", window.get("/?sort=duration").text)[0] == "other"


def test_tabs_filter_by_state_and_keep_the_other_filters(
    app: Flask, window: Browser, alice: ApiClient
) -> None:
    names = ("waiting", "running", "complete", "failed", "cancelled", "timeout")
    label = {"env": "a=b"}
    tasks = {
        name: alice.start(name=f"Task {name}", claim=name != "waiting", labels=label)
        for name in names
    }
    alice.report(tasks["complete"], status="complete")
    alice.report(tasks["failed"], status="error")
    alice.post(f"/task/{tasks['cancelled']['id']}/cancel")
    end_for_silence(app, tasks["timeout"])
    alice.start(name="Task of others")
    expected = {name: [name] for name in names} | {
        "all": ["timeout", "cancelled", "failed", "complete", "running", "waiting"]
    }
    filtered = "/?label=env:a%3Db&q=task"
    for start in (
        filtered,
        f"{filtered}&status=running&claimed=false",
        f"{filtered}&errorType=failed",
    ):
        text = window.get(start).text
        assert tabs(text) == {name: str(len(shown)) for name, shown in expected.items()}
        for name, shown in expected.items():
            (link,) = re.findall(f'id="tab-{name}" href="([^"]+)"', text)
            page = window.get(unescape(link)).text
            assert re.findall(r"<bdi>Task (\w+)</bdi>", page) == shown
            assert re.findall('id="tab-([a-z]+)"[^>]* aria-current', page) == [name]
    assert tabs(window.get("/").text)["waiting"] == "2"
    assert tabs(window.get("/?started=1h").text)["failed"] == "1"


@one_database
def test_wrong_filter_is_said_in_a_sentence(window: Browser) -> None:
    for path in ("/?status=done", "/?errorType=x", "/?unknown=1"):
        response = window.get(path)
        assert response.status_code == 422
        assert "contains an invalid value</h1>" in response.text
        assert "see `errors`" not in response.text
    assert "<b>status</b>: Must be one of: " in window.get("/?status=done").text


def test_labels_are_chips_that_filter_and_can_be_removed(window: Browser, alice: ApiClient) -> None:
    unusual = {"a": "=", "b": "x:y", "c": "🙂" * 256, "d": "&#%+ ", "e": "1", "f": "2"}
    alice.start(name="Wanted", labels=unusual)
    alice.start(name="Other", labels={"e": "1"})
    text = window.get("/").text
    chips = re.findall('<a class="chip" href="([^"]+)"', text)
    assert len(chips) == 5
    assert ">+2</span>" in text
    for link in chips[1:]:
        page = window.get(unescape(link)).text
        assert re.findall("<bdi>(Wanted|Other)</bdi>", page) == ["Wanted"]
    both = window.get("/?label=e:1&label=a:%3D&status=running")
    assert re.findall("<bdi>(Wanted|Other)</bdi>", both.text) == ["Wanted"]
    removals = re.findall('class="remove" href="([^"]+)"><span [^>]+>[^<]+ Label', both.text)
    assert [unescape(link) for link in removals] == [
        "/?label=a:%3D&status=running", "/?label=e:1&status=running",
    ]  # fmt: skip
    kept = re.findall('<input type="hidden" name="(label|status)" value="([^"]+)">', both.text)
    assert kept == [("label", "e:1"), ("label", "a:="), ("status", "running")]
    assert window.get("/?label=e:1&label=&q=").location == "/?label=e%3A1"
    assert window.get("/?label=nothing").status_code == 422


def test_list_is_narrowed_to_callbacks_that_did_not_arrive(
    app: Flask, window: Browser, alice: ApiClient, receiver: Receiver
) -> None:
    for name, status in (("Good", 204), ("Later", 503), ("Never", 410)):
        receiver.answer = answer(status)
        alice.report(alice.start(name=name, claim=True, callback=receiver.url), status="complete")
    for state, name in (("pending", "Later"), ("failed", "Never")):
        text = window.get(f"/?callback={state}").text
        assert re.findall("<bdi>(Good|Later|Never)</bdi>", text) == [name]
    assert window.get("/?callback=delivered").status_code == 422
    guest = signed_in(alice.agent_key())
    assert guest.get("/?callback=failed").status_code == 403


def help_links(window: Browser, path: str) -> list[str]:
    """The help pages that a page links to."""
    return re.findall('href="/help/([^"]+)"', window.get(path).text)


@one_database
def test_pages_link_to_the_help_that_a_reader_needs_there(
    app: Flask, window: Browser, alice: ApiClient, receiver: Receiver
) -> None:
    assert help_links(Browser(app), "/sign-in") == ["guides/troubleshooting.html#i-lost-the-key"]
    assert help_links(window, "/") == ["tutorial.html#run-a-program-as-a-task"]
    waiting = f"/tasks/{alice.start()['id']}"
    assert help_links(window, waiting) == ["guides/workers.html#run-a-worker"]
    assert help_links(window, "/") == []
    redeliver = "guides/webhooks.html#inspect-and-redeliver-webhooks"
    receiver.answer = answer(410)
    for allowed, named in (
        ("loopback", [redeliver]),
        ("external", ["guides/webhooks.html#allowed-destinations", redeliver]),
    ):
        app.config["CALLBACK_ALLOWED"] = Destinations.parse("loopback")
        task = alice.start(claim=True, callback=receiver.url)
        assert help_links(window, f"/tasks/{task['id']}") == []
        app.config["CALLBACK_ALLOWED"] = Destinations.parse(allowed)
        alice.report(task, status="complete")
        assert help_links(window, f"/tasks/{task['id']}") == named


def test_agents_are_sorted_by_their_last_tasks(window: Browser, alice: ApiClient) -> None:
    for name in ("a", "b", "c", "unused"):
        alice.register(name)
    for name in ("a", "c", "b", "c"):
        alice.start(name)
        time.sleep(0.002)
    text = window.get("/agents").text
    assert re.findall(r'id="of-(\w+)"', text) == ["c", "b", "a"]
    unused = text[text.index("Agents without tasks:") :]
    assert re.findall("<code>(.+?)</code>", unused) == ["unused"]
    assert window.get("/agents?page=x").status_code == 200
    assert "<code>" not in window.get(f"/agents?page={'9' * 30}").text


@one_database
def test_keys_of_this_session_come_first_and_invalid_ones_last(
    window: Browser, alice: ApiClient
) -> None:
    for name in ("first made", "gone"):
        key = alice.post("/key", json={"name": name}).json
    assert key is not None
    alice.delete(f"/key/{key['id']}")
    text = window.get("/keys").text
    places = [
        text.index(word)
        for word in ("this session", "first made", "1 revoked or expired key", "gone")
    ]
    assert places == sorted(places)


@one_database
def test_page_of_keys_shows_the_newest_ones(
    window: Browser, alice: ApiClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(import_module("taskservice.dashboard.keys"), "MAX_KEYS", 2)
    assert "Only the newest" not in window.get("/keys").text
    for name in ("key 1", "key 2", "key 3", "gone 1", "gone 2", "gone 3"):
        key = alice.post("/key", json={"name": name}).json
        if key is not None and name.startswith("gone"):
            alice.delete(f"/key/{key['id']}")
    text = window.get("/keys").text
    assert "Only the newest 2 valid keys, and as many revoked or expired keys, are shown" in text
    shown = set(re.findall(r"(?:key|gone) \d", text[: text.index('id="create-title"')]))
    assert shown == {"key 2", "key 3", "gone 2", "gone 3"}


@one_database
def test_pages_offer_the_first_agents_and_the_one_that_is_chosen(
    window: Browser, alice: ApiClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agents, "MAX_CHOICES", 2)
    for agent_id in ("a", "b", "c", "d"):
        alice.start(agent_id)

    def choices(page: str) -> list[str]:
        return re.findall('id="agent-choice-(.+?)"', window.get(page).text)

    assert choices("/keys") == choices("/") == ["a", "b"]
    assert choices("/?agentId=d") == ["a", "b", "d"]


@one_database
def test_every_page_has_an_emblem_and_a_way_back(app: Flask, window: Browser) -> None:
    with Browser(app).get("/favicon.ico") as icon:
        assert (icon.status_code, icon.mimetype) == (200, "image/svg+xml")
    assert '<a class="title" href="./">' in window.get("/docs").text
    headers = {"X-Forwarded-Prefix": "/deep"}
    assert "/deep/" not in window.get("/docs", headers=headers).text


# --- what can be done --------------------------------------------------------------------


def test_cancel_and_delete_ask_first_and_say_what_will_be_gone(
    window: Browser, alice: ApiClient, receiver: Receiver
) -> None:
    task = alice.start(name="to go", claim=True, callback=receiver.url)
    alice.append(task, "one", "two")
    path = f"/tasks/{task['id']}"
    stops = "<code>taskservice run</code> and <code>work</code> stop its program within seconds"
    question = window.get(f"{path}/cancel").text
    assert receiver.url in question
    assert stops in question
    assert stops in window.get(f"{path}/delete").text
    assert alice.task(task)["status"] == "running"
    assert window.send(f"{path}/cancel").location == path
    assert "The task was cancelled. Webhook: delivered." in window.get(path).text
    assert alice.task(task)["error"]["type"] == "cancelled"
    question = window.get(f"{path}/delete").text
    assert stops not in question
    assert "its log: 2 lines" in question
    assert "1 delivery" in question
    assert window.send(f"{path}/delete").location == "/"
    assert "Deleted “to go”." in window.get("/").text
    assert window.get(path).status_code == 404
    assert alice.get(path.replace("tasks", "task")).status_code == 404


def link_to(task: dict[str, Any], page: str) -> str:
    """Where the link to a task leads."""
    return unescape(re.findall(f'href="(/tasks/{task["id"]}[^"/]*(?:/[^"]*)?)"', page)[0])


def action(name: str, page: str) -> str:
    return unescape(re.findall(f'href="([^"]+)">{name}…</a>', page)[0])


@one_database
def test_end_of_a_task_leads_back_to_the_list_where_one_was(
    window: Browser, alice: ApiClient
) -> None:
    tasks = [alice.start(name=f"run {number}", labels={"t": "é &=1"}) for number in range(53)]
    where = "/?sort=createdAt&label=t:%C3%A9+%26%3D1&q=run"
    (following,) = re.findall(r'href="(\?[^"]+)" rel="next"', window.get(where).text)
    where = f"/{unescape(following)}"
    for task, word, notice in (
        (tasks[50], "Cancel", "The task was cancelled."),
        (tasks[50], "Delete", "Deleted “run 50”."),
        (tasks[51], "Delete", "Deleted “run 51”."),
    ):
        page = window.get(link_to(task, window.get(where).text)).text
        assert f'<link rel="up" href="{where}">' in unescape(page)
        confirmation = action(word, page)
        # The way back is also kept when the action is not confirmed.
        page = window.get(confirmation).text
        assert confirmation == action(word, window.get(link_to(task, page)).text)
        assert window.send(confirmation).location == where
        assert notice in window.get(where).text
    rows = re.findall("<bdi>(run .+?)</bdi>", window.get(where).text.partition("<tbody")[2])
    assert rows == ["run 52"]


@one_database
def test_way_back_survives_reruns_relatives_questions_and_redeliveries(
    window: Browser, alice: ApiClient, receiver: Receiver
) -> None:
    parent = alice.start(name="parent", claim=True, callback=receiver.url)
    child = alice.start(name="child", parentId=parent["id"], claim=True)
    path = f"/tasks/{parent['id']}?back=/?status=running"
    asked = expect(alice.post(f"/task/{parent['id']}/question", json={"message": "Go on?"}), 201)
    back = unescape(re.findall(r'name="back" value="([^"]+)"', window.get(path).text)[0])
    answer = {"back": back, "field.answer": "yes"}
    answered = window.send(path, f"/tasks/{parent['id']}/questions/{asked['id']}", **answer)
    assert unquote(answered.location) == path
    assert "back=/?status" in unquote(link_to(child, window.get(path).text))
    rerun = unescape(re.findall(r'href="([^"]+)">Run again…', window.get(path).text)[0])
    assert unquote(window.send(rerun, input="{}").location).endswith("?back=/?status=running")
    alice.report(parent, status="complete")
    (redeliver,) = re.findall(r'action="([^"]+/redeliver[^"]*)"', window.get(path).text)
    assert unquote(window.send(path, unescape(redeliver)).location) == f"{path}#callback"


@one_database
def test_task_of_an_agents_page_leads_back_to_that_page(window: Browser, alice: ApiClient) -> None:
    for where in ("/agents/summarizer", "/agents", "/inbox"):
        task = alice.start(claim=True)
        if where != "/agents/summarizer":
            alice.report(task, status="error")
        page = window.get(link_to(task, window.get(where).text)).text
        assert window.send(action("Delete", page)).location == where
        assert "Deleted “" in window.get(where).text


@pytest.mark.parametrize(
    "path",
    ["https://evil.example/", "//evil.example", "/\\evil.example", "/\t/evil.example",
     "javascript:1", "/keys", "/sign-out", "/tasks/x/events", "/nowhere", "\r\nX: y", "/?x=\ny",
     "/?q=" + "x" * 2_000, "//agents", "//agents/x", "//", "agents"],
)  # fmt: skip
@one_database
def test_way_back_leads_only_to_a_list(window: Browser, alice: ApiClient, path: str) -> None:
    task = alice.start()
    page = f"/tasks/{task['id']}?{urlencode({'back': path})}"
    assert 'rel="up"' not in window.get(page).text
    query = urlencode({"back": path})
    assert window.send(f"/tasks/{task['id']}/cancel?{query}").location == f"/tasks/{task['id']}"
    assert window.send(f"/tasks/{task['id']}/delete?{query}").location == "/"


@one_database
def test_confirmation_tells_the_task_from_others_of_its_name(
    window: Browser, task: dict[str, Any]
) -> None:
    for word in ("cancel", "delete"):
        text = window.get(f"/tasks/{task['id']}/{word}").text
        assert '<p><span class="pill running">running</span> · summarizer · started <time' in text
        assert f'datetime="{task["createdAt"]}"' in text


@one_database
def test_every_form_has_a_button_that_sends_it(
    window: Browser, alice: ApiClient, task: dict[str, Any]
) -> None:
    alice.post(f"/task/{task['id']}/question", json={"message": "Go on?"})
    path = f"/tasks/{task['id']}"
    for page in ("/", path, f"{path}/cancel", f"{path}/delete", f"{path}/rerun", "/agents",
                 "/agents/summarizer", "/agents/summarizer/edit", "/agents/summarizer/run",
                 "/keys", "/callback-secret/rotate", "/notifications"):  # fmt: skip
        # A browser with scripts takes no elements from `noscript`.
        text = re.sub("<noscript>.*?</noscript>", "", window.get(page).text, flags=re.DOTALL)
        forms = re.findall("<form.*?</form>", text, re.DOTALL)
        assert forms, page
        buttons = [re.findall('<button(?! type="button")', form) for form in forms]
        assert all(buttons), page


def test_each_attempt_is_shown_and_a_webhook_delivered_again(
    app: Flask, window: Browser, alice: ApiClient, receiver: Receiver
) -> None:
    receiver.answer = answer(503)
    task = alice.start(claim=True, callback=receiver.url)
    alice.report(task, status="complete")
    path = f"/tasks/{task['id']}"
    assert "The receiver responded with 503" in window.get(path).text
    receiver.answer = answer(204)
    assert window.send(path, f"{path}/redeliver").location == f"{path}#callback"
    with looping(app):
        first, second = receiver.wait_for(2)
    assert first.headers["webhook-id"] == second.headers["webhook-id"]
    assert second.headers["webhook-id"] in window.get(path).text


def test_key_is_created_shown_once_used_and_revoked(app: Flask, window: Browser) -> None:
    made = window.send("/keys", name="machine", agent="", expires="7 days")
    assert made.status_code == 201
    # Once to copy, and once in the lines for MCP clients.
    (key,) = set(re.findall(r"tsk_user_[0-9A-Za-z]{40,}", made.text))
    assert key not in window.get("/keys").text
    guest = Browser(app)
    assert guest.sign_in(key).status_code == 303
    (path,) = re.findall(
        r'href="(/keys/[^"]+)">Revoke…<span class="visually-hidden"> machine', made.text
    )
    assert window.send(path).location == "/keys"
    assert guest.get("/").status_code == 303
    assert "revoked <time" in window.get("/keys").text


def test_form_that_is_sent_twice_concurrently_creates_one_key(two_workers: Service) -> None:
    alice, url = two_workers.add_user(), f"{two_workers.url}/keys"
    window = requests.Session()
    form = hidden_text(window.get(f"{two_workers.url}/sign-in", timeout=30).text)
    form["key"] = alice.key
    window.post(f"{two_workers.url}/sign-in", form, timeout=30).raise_for_status()
    form = hidden_text(window.get(url, timeout=30).text) | {"name": "machine"}
    cookies = window.cookies.get_dict()
    post = partial(requests.post, url, form, cookies=cookies, allow_redirects=False, timeout=30)
    answers = at_once([post] * 6)
    assert sorted(answer.status_code for answer in answers) == [201, *[303] * 5]
    keys = alice.request("GET", "/key").json()
    assert [key["name"] for key in keys].count("machine") == 1


@one_database
def test_form_that_creates_a_key_does_so_once(window: Browser) -> None:
    data = {**hidden(window.get("/keys")), "name": "machine"}
    # An invalid value can be corrected in the same form.
    assert window.post("/keys", data | {"name": ""}).status_code == 422
    assert window.post("/keys", data).status_code == 201
    again = window.post("/keys", data)
    assert (again.status_code, again.location) == (303, "/keys")
    page = window.get("/keys").text
    assert "This form was already sent" in page
    assert page.count("<bdi>machine</bdi>") == 1
    assert window.send("/keys", name="another").status_code == 201


@one_database
def test_key_that_does_not_fit_says_why(window: Browser, alice: ApiClient) -> None:
    for data in ({"name": ""}, {"name": "x", "agent": "nobody"}, {"name": "x", "expires": "soon"}):
        response = window.send("/keys", **data)
        assert response.status_code == 422
        assert "<b>" in response.text


def test_nul_and_absurd_numbers_are_not_a_failure(window: Browser, alice: ApiClient) -> None:
    task = alice.start()
    alice.report(task, status="complete")
    assert "No task matches the filters" in window.get("/?q=a%00b").text
    assert "a\ufffdb" in window.send("/keys", name="a\0b").text
    assert window.send("/keys", name="x", agent="a\0b").status_code == 422
    assert window.get("/agents?after=%00").status_code == 200
    assert window.get("/tasks/%00").status_code == 404
    path = f"/tasks/{task['id']}"
    for number in ("9" * 30, "9" * 5_000, "-1", "x", "٣"):
        assert window.get(f"{path}/lines?limit=5&after={number}").json == NO_LINES
        assert window.read(f"{path}/events?after={number}").startswith("event: task")
    resumed = window.read(f"{path}/events", headers={"Last-Event-ID": "x"})
    assert resumed.startswith("event: task")


@one_database
def test_last_user_key_stays(window: Browser) -> None:
    (path,) = re.findall(r'href="(/keys/[^"]+/revoke)"', window.get("/keys").text)
    response = window.send(path)
    assert response.status_code == 409
    assert "last user key" in response.text


@one_database
def test_callback_secret_is_shown_and_rotated(window: Browser, alice: ApiClient) -> None:
    before = alice.get("/callback-secret").json
    assert before is not None
    assert before["secret"] in window.get("/keys").text
    window.send("/callback-secret/rotate")
    after = alice.get("/callback-secret").json
    assert after is not None
    assert after["secret"] != before["secret"]
    assert after["secret"] in window.get("/keys").text


# --- the log -----------------------------------------------------------------------------


def test_lines_come_by_range(window: Browser, alice: ApiClient) -> None:
    task = alice.start(claim=True)
    for start in range(0, 300, 7):
        alice.append(task, *[f"line {number}" for number in range(start + 1, start + 8)])
    path = f"/tasks/{task['id']}/lines"
    for after, limit in ((0, 1), (0, 10), (5, 100), (6, 1), (7, 7), (290, 100), (301, 5), (999, 5)):
        expected = [f"line {number}" for number in range(1, 302)][after : after + limit]
        part = window.get(f"{path}?after={after}&limit={limit}").json
        assert part is not None
        assert part["lines"] == expected
        assert len(part["times"]) == len(expected)
    assert window.get(path).json == NO_LINES
    assert window.get(f"{path}?after=-5&limit=x").json == NO_LINES


@one_database
def test_long_lines_come_few_at_a_time_and_cut(window: Browser, alice: ApiClient) -> None:
    task = alice.start(claim=True)
    for _ in range(60):
        alice.append(task, "x" * 64_000)
    part = window.get(f"/tasks/{task['id']}/lines?after=0&limit=1000").json
    assert part is not None
    lines = part["lines"]
    assert 10 < len(lines) < 40
    assert {len(line) for line in lines} == {5_001}


def test_events_resume_after_the_line_that_came_last(window: Browser, alice: ApiClient) -> None:
    task = alice.start(claim=True)
    alice.append(task, "one", "two\ttab", "three")
    alice.report(task, status="complete")
    path = f"/tasks/{task['id']}/events"
    with closing(window.get(path)) as response:
        assert response.mimetype == "text/event-stream"
        assert response.headers["X-Accel-Buffering"] == "no"
        events = re.findall(r"id: (\d)\nevent: log\ndata: (.*)\n", response.text)
    lines = alice.get(f"/task/{task['id']}/logs?times=true").json
    assert lines is not None
    assert [(number, json.loads(data)) for number, data in events] == [
        (str(number), {"at": at, "line": line})
        for number, at, line in zip((1, 2, 3), lines["times"], lines["logs"], strict=True)
    ]
    resumed = window.read(path, headers={"Last-Event-ID": "2"})
    assert re.findall(r"id: (\d)\n", resumed) == ["3"]
    assert re.findall(r"id: (\d)\n", window.read(f"{path}?after=1")) == ["2", "3"]


# --- behind a proxy ----------------------------------------------------------------------


@one_database
def test_everything_stays_below_a_prefix(app_with: Callable[..., Flask]) -> None:
    app = app_with(PROXY_HOPS=1)
    alice = add_user(app, "alice")
    task = alice.start(claim=True)
    asked = expect(alice.post(f"/task/{task['id']}/question", json={"message": "Go on?"}), 201)
    headers = {"X-Forwarded-Prefix": "/agents/one", "X-Forwarded-Proto": "https"}
    window = Browser(app, headers=headers, base_url="https://localhost")
    first = window.get(f"/tasks/{task['id']}")
    assert first.location.startswith("/agents/one/sign-in?next=")
    cookie = window.get("/sign-in").headers["Set-Cookie"]
    assert "Path=/agents/one/" in cookie
    assert "Secure" in cookie
    entered = app.test_client(use_cookies=False)
    jar = cookie.partition(";")[0]
    page = entered.get("/sign-in", headers=headers | {"Cookie": jar})
    data = {"token": token(page), "key": alice.key, "next": f"/tasks/{task['id']}"}
    done = entered.post("/sign-in", data=data, headers=headers | {"Cookie": jar})
    assert done.location == f"/agents/one/tasks/{task['id']}"
    jar = done.headers["Set-Cookie"].partition(";")[0]
    for path in ("/", f"/tasks/{task['id']}", "/agents", "/keys", "/notifications"):
        shown_page = Page(entered.get(path, headers=headers | {"Cookie": jar}).text)
        for name in ("href", "src", "action"):
            for link in shown_page.values(name):
                assert link.startswith(("/agents/one/", "#", "?")), link
    path = f"/tasks/{task['id']}/questions/{asked['id']}"
    page = entered.get(path, headers=headers | {"Cookie": jar})
    # The token of its form is in the session.
    jar = page.headers["Set-Cookie"].partition(";")[0]
    data = {"token": token(page), "field.answer": "yes", "back": "/?status=running"}
    done = entered.post(path, data=data, headers=headers | {"Cookie": jar})
    assert done.location == "/agents/one/?status=running"


@one_database
def test_services_on_one_host_have_cookies_of_their_own(app_with: Callable[..., Flask]) -> None:
    names = []
    for secret in ("the secret of the first one", "the secret of the other"):
        app = app_with(SECRET_KEY=secret)
        names.append(Browser(app).cookies()[0].partition("=")[0])
    assert names[0] != names[1]
