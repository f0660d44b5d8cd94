"""Links to one task: everyone who has one can look at it, live, and at nothing else."""

import json
import logging
import re
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from flask import Flask

from taskservice import resources
from taskservice.database.watcher import WaitSlots
from taskservice.operations.request_log import configure_logging
from taskservice.schemas.tasks import SHARED_FIELDS, TASK_FIELDS
from tests.support.api_client import ApiClient, add_user, expect, problem
from tests.support.clocks import Clocks
from tests.support.html_page import Page
from tests.support.internals import rows
from tests.support.maintenance import DAY
from tests.support.marks import one_database
from tests.support.plain_browser import Browser, signed_in
from tests.support.waiting import until

Json = dict[str, Any]
BASE = "http://127.0.0.1:8000"
NOT_SHOWN = {"userId", "input", "callback", "startedBy", "endedBy", "parentId", "rerunOf"}
PARTS = ("", "/task", "/logs", "/events", "/lines?limit=5", "/log.txt", "/live?after=1")


@pytest.fixture
def task(alice: ApiClient) -> Json:
    """A running task with all that a link must not show."""
    parent = alice.start(name="secret parent")
    person = alice.with_key("secret key")
    task = person.start(
        name="nightly", claim=True, parentId=parent["id"], input={"secret": "secret input"},
        callback="http://127.0.0.1:1/secret",
    )  # fmt: skip
    person.report(task, labels={"env": "prod"}, note="34 of 68")
    alice.append(task, "one", "two")
    return task


def link_to(person: ApiClient, task: Json, **fields: Any) -> tuple[Json, str]:
    """A new link, and its path."""
    link = expect(person.post(f"/task/{task['id']}/link", json=fields), 201)
    return link, link["url"].removeprefix(BASE)


def check_invalid(browser: Browser, path: str) -> None:
    """Each link that is not valid has the same page, and the same problem."""
    shown = browser.get(path)
    assert (shown.status_code, "This link is not valid" in shown.text) == (404, True)
    assert shown.text == browser.get("/shared/x").text
    for part in ("/task", "/logs", "/events"):
        refused = problem(browser.get(path + part), 404)
        assert (refused["code"], refused["detail"]) == ("not_found", "No such link")


def test_link_is_made_listed_without_its_url_and_revoked(
    alice: ApiClient, bob: ApiClient, task: Json, stranger: Browser
) -> None:
    link, path = link_to(alice, task)
    assert re.fullmatch(r"/shared/[\w-]{32}", path)
    shown = {name: value for name, value in link.items() if name != "url"}
    assert shown.keys() == {"id", "createdAt", "expiresAt"}
    assert path.removeprefix("/shared/") not in str(rows(alice.app))
    of_links = f"/task/{task['id']}/link"
    assert expect(alice.get(of_links), 200) == [shown]
    other = alice.start()
    for person, code in ((bob, 404), (alice.agent_key(), 403), (alice.read_key(), 403)):
        problem(person.post(of_links), code)
        problem(person.delete(f"{of_links}/{link['id']}"), code)
    problem(bob.get(of_links), 404)
    problem(alice.delete(f"/task/{other['id']}/link/{link['id']}"), 404)
    assert stranger.get(path).status_code == 200
    assert expect(alice.delete(f"{of_links}/{link['id']}"), 200) == shown
    check_invalid(stranger, path)
    problem(alice.delete(f"{of_links}/{link['id']}"), 404)
    assert expect(alice.get(of_links), 200) == []


def test_link_expires(alice: ApiClient, task: Json, stranger: Browser, clocks: Clocks) -> None:
    of_links = f"/task/{task['id']}/link"
    _, path = link_to(alice, task)
    for wrong in (task["createdAt"], "2020-01-01T00:00:00Z", "9999-01-01T00:00:00Z", "soon"):
        refused = problem(alice.post(of_links, json={"expiresAt": wrong}), 422)
        assert list(refused["errors"]) == ["expiresAt"]
    for days, status in ((90, 201), (91, 422)):
        at = datetime.now(UTC) + timedelta(days=days, minutes=-1)
        made = alice.post(of_links, json={"expiresAt": at.isoformat()})
        assert made.status_code == status
    expect(alice.delete(f"{of_links}/{expect(alice.get(of_links), 200)[-1]['id']}"), 200)
    clocks.go_on(7 * DAY - 60)
    assert stranger.get(path).status_code == 200
    clocks.go_on(61)
    check_invalid(stranger, path)
    assert expect(alice.get(of_links), 200) == []
    # Expired links do not count.
    for _ in range(50):
        link_to(alice, task)
    assert problem(alice.post(of_links), 409)["code"] == "too_many_links"
    assert len(rows(alice.app)["links"]) == 50


def test_link_shows_its_task_alone(
    alice: ApiClient, task: Json, stranger: Browser, subtests: pytest.Subtests
) -> None:
    _, path = link_to(alice, task)
    asked = alice.post(f"/task/{task['id']}/question", json={"message": "Deploy?"})
    expect(asked, 201)
    again = expect(alice.post(f"/task/{task['id']}/rerun"), 201)
    page = stranger.get(path)
    for text in ("nightly", "34 of 68", "prod", "Deploy?"):
        assert text in page.text
    shown = expect(stranger.get(f"{path}/task"), 200)
    assert shown == {name: value for name, value in alice.task(task).items()
                     if name not in NOT_SHOWN}  # fmt: skip
    assert {*TASK_FIELDS} - NOT_SHOWN == {*SHARED_FIELDS} == shown.keys()
    alice.report(task, status="complete", output={"sum": 15})
    events = stranger.read(f"{path}/events")
    assert set(json.loads(re.findall("^data: (.*)$", events, re.M)[0])) == set(shown) - {"logs"}
    for part in PARTS:
        with subtests.test(part):
            text = stranger.read(path + part)
            assert "secret" not in text
            assert "alice" not in text
            for hidden in (again["id"], task["parentId"], task["userId"]):
                assert hidden not in text
    # Nothing leads to what needs a key.
    elements = Page(stranger.get(path).text).elements
    hrefs = [attributes["href"] or "" for _, attributes in elements if "href" in attributes]
    assert {href for href in hrefs if not href.startswith(("/static/", "#"))} == {f"{path}/log.txt"}
    assert [name for name, _ in elements if name == "form"] == []


def test_data_of_a_link_is_what_the_api_answers(
    alice: ApiClient, task: Json, stranger: Browser
) -> None:
    _, path = link_to(alice, task)
    for query in ("", "?after=1&times=true", "?limit=1"):
        logs = expect(alice.get(f"/task/{task['id']}/logs{query}"), 200)
        assert expect(stranger.get(f"{path}/logs{query}"), 200) == logs
    text = stranger.get(f"{path}/logs", headers={"Accept": "text/plain"})
    assert text.text == "one\ntwo\n"
    assert expect(stranger.get(f"{path}/task?fields=status,note"), 200) == {
        "status": "running", "note": "34 of 68",
    }  # fmt: skip
    for query in ("fields=input", "expand=user", "fields=startedBy", "stauts=1"):
        problem(stranger.get(f"{path}/task?{query}"), 422)
    etag = stranger.get(f"{path}/task").headers["ETag"]
    unchanged = stranger.get(f"{path}/task", headers={"If-None-Match": etag})
    assert unchanged.status_code == 304
    alice.report(task, status="complete")
    events = stranger.read(f"{path}/events", headers={"Last-Event-ID": "1"})
    assert events.count("event: log") == 1


def test_nothing_can_be_changed_by_a_link(
    app: Flask, alice: ApiClient, task: Json, stranger: Browser
) -> None:
    _, path = link_to(alice, task)
    token = path.removeprefix("/shared/")
    before = rows(app)
    for part in PARTS:
        for method in ("POST", "PUT", "PATCH", "DELETE"):
            assert stranger.client.open(path + part, method=method).status_code == 405
    for headers in ({"apikey": token}, {"Authorization": f"Bearer {token}"}):
        for method in ("GET", "PATCH", "DELETE"):
            called = app.test_client().open(
                f"/api/v1/task/{task['id']}", method=method, headers=headers
            )
            problem(called, 401)
    assert rows(app) == before


@one_database
def test_page_of_a_link_is_private(
    alice: ApiClient, task: Json, stranger: Browser, subtests: pytest.Subtests
) -> None:
    _, path = link_to(alice, task)
    alice.report(task, status="complete")
    for part in (*PARTS, "x"):
        with subtests.test(part):
            response = stranger.get(path + part)
            response.get_data()
            assert response.headers["Referrer-Policy"] == "no-referrer"
            assert response.headers["X-Robots-Tag"] == "noindex"
            assert response.headers["Cache-Control"] == "no-store"
            assert "Set-Cookie" not in response.headers


@one_database
def test_wrong_links_get_the_same_page(alice: ApiClient, task: Json, stranger: Browser) -> None:
    link, path = link_to(alice, task)
    token = path.removeprefix("/shared/")
    flipped = "A" if token[-1] != "A" else "B"
    wrong = ["é", "%00", "%FF", "A" * 32, "A" * 5_000, f"{token}/", f"{token}A", token[:-1],
             f"{token[:-1]}{flipped}", token.swapcase(), f"{token}/x", link["id"]]  # fmt: skip
    for part in wrong:
        shown = stranger.get(f"/shared/{part}")
        assert (shown.status_code, "This link is not valid" in shown.text) == (404, True), part
    assert stranger.get(path).status_code == 200
    expect(alice.delete(f"/task/{task['id']}"), 200)
    check_invalid(stranger, path)
    assert rows(alice.app)["links"] == []


@contextmanager
def viewer(app: Flask, path: str, lines: int = 2) -> Iterator[Future[str]]:
    """Reads the events of a link to their end; yields once this number of lines has arrived."""
    read = b""

    def read_all() -> str:
        nonlocal read
        with Browser(app).get(f"{path}/events") as response:
            for piece in response.iter_encoded():
                read += piece
        return read.decode()

    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(read_all)
        until(lambda: read.startswith(b"event: task") and read.count(b"event: log") == lines)
        yield reading


def test_stream_ends_when_its_link_is_revoked(app: Flask, alice: ApiClient, task: Json) -> None:
    link, path = link_to(alice, task)
    _, kept = link_to(alice, task)
    with viewer(app, path) as events:
        expect(alice.delete(f"/task/{task['id']}/link/{link['id']}"), 200)
        # Only the end of the stream ends this.
        assert events.result().count("event: log") == 2
    assert Browser(app).get(kept).status_code == 200
    assert alice.task(task)["status"] == "running"


def test_stream_ends_when_its_task_is_deleted(app: Flask, alice: ApiClient, task: Json) -> None:
    _, path = link_to(alice, task)
    with viewer(app, path) as events:
        expect(alice.delete(f"/task/{task['id']}"), 200)
        assert events.result().count("event: log") == 2
    check_invalid(Browser(app), path)


def test_wait_ends_when_its_link_is_revoked(app: Flask, alice: ApiClient, task: Json) -> None:
    link, path = link_to(alice, task)
    held = resources.find(WaitSlots, app)._held
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(Browser(app).get, f"{path}/task", headers={"Prefer": "wait=30"})
        until(lambda: held)
        expect(alice.delete(f"/task/{task['id']}/link/{link['id']}"), 200)
        refused = problem(waiting.result(), 404)
    assert refused["detail"] == problem(Browser(app).get("/shared/x/task"), 404)["detail"]


def test_stream_ends_when_its_link_expires(
    app: Flask, alice: ApiClient, task: Json, clocks: Clocks
) -> None:
    _, path = link_to(alice, task)
    with viewer(app, path) as events:
        clocks.go_on(7 * DAY)
        # Only the end of the stream ends this.
        assert events.result()
    check_invalid(Browser(app), path)


def test_viewers_of_one_link_leave_places_to_other_links_and_users(
    app: Flask, alice: ApiClient, bob: ApiClient, task: Json, monkeypatch: pytest.MonkeyPatch
) -> None:
    slots = resources.find(WaitSlots, app)
    # Viewers get four slots.
    monkeypatch.setattr(slots, "_count", 16)
    paths = [link_to(alice, task)[1] for _ in range(3)]
    of_bob = bob.start(claim=True)
    path_of_bob = link_to(bob, of_bob)[1]
    with ExitStack() as stack:
        crowd = [stack.enter_context(viewer(app, paths[0])) for _ in range(4)]
        # The end of the tasks ends the streams.
        stack.callback(alice.report, task, status="complete")
        stack.enter_context(viewer(app, paths[1]))
        stack.callback(bob.report, of_bob, status="complete")
        # The oldest loses its slot, and does not get it back.
        assert crowd[0].result().count("event: log") == 2
        problem(Browser(app).get(f"{paths[0]}/events"), 503)
        stack.enter_context(viewer(app, path_of_bob, lines=0))
        assert crowd[1].result().count("event: log") == 2
        stack.enter_context(viewer(app, path_of_bob, lines=0))
        assert crowd[2].result().count("event: log") == 2
        assert [bool(slot.link_id) for slot in slots._held] == [True] * 4
        # Each user has two slots.
        problem(Browser(app).get(f"{paths[2]}/events"), 503)
        problem(Browser(app).get(f"{path_of_bob}/events"), 503)
        alice.report(task, status="complete")
        bob.report(of_bob, status="complete")


def test_viewers_take_no_place_from_their_user(app: Flask, alice: ApiClient, task: Json) -> None:
    """The app of the tests has two slots, of which viewers get one."""
    _, path = link_to(alice, task)
    with viewer(app, path) as events:
        full = Browser(app).get(f"{path}/events")
        assert problem(full, 503)["code"] == "overloaded"
        assert "Retry-After" in full.headers
        waited = Browser(app).get(f"{path}/task", headers={"Prefer": "wait=20"})
        assert "Preference-Applied" not in waited.headers
        # The user has the other slot.
        hers = alice.get(f"/task/{task['id']}/logs?after=2", headers={"Prefer": "wait=1"})
        assert "Preference-Applied" in hers.headers
        alice.report(task, status="complete")
        assert events.result().count("event: task") == 2


@one_database
def test_viewers_hold_at_most_a_quarter_of_the_waits(app_with: Callable[..., Flask]) -> None:
    app = app_with(WAITS=8)
    alice = add_user(app, "alice")
    task = alice.start(claim=True)
    paths = [link_to(alice, task)[1] for _ in range(2)]
    with viewer(app, paths[0], lines=0) as first, viewer(app, paths[1], lines=0) as second:
        for path in paths:
            assert problem(Browser(app).get(f"{path}/events"), 503)["code"] == "overloaded"
        expect(alice.delete(f"/task/{task['id']}"), 200)
        assert first.result()
        assert second.result()


@one_database
@pytest.mark.parametrize("form", ["text", "json"])
def test_no_token_of_a_link_reaches_the_log(
    alice: ApiClient, task: Json, stranger: Browser, capsys: pytest.CaptureFixture[str], form: str
) -> None:
    configure_logging("debug", form)
    _, path = link_to(alice, task)
    token = path.removeprefix("/shared/")
    alice.report(task, status="complete")
    for part in (*PARTS, "/x y", "x"):
        for method in ("GET", "HEAD", "POST"):
            response = stranger.client.open(path + part, method=method)
            response.get_data()
    logging.getLogger("gunicorn.error").error("Could not respond to GET /shared/%%41%s", token[1:])
    log = capsys.readouterr().err
    assert "GET /shared/…" in log or "GET /shared/\\u2026" in log
    assert token[1:] not in log


@one_database
def test_link_works_below_a_prefix(app_with: Callable[..., Flask]) -> None:
    app = app_with(PROXY_HOPS=1, PUBLIC_URL="")
    alice = add_user(app, "alice")
    task = alice.start(claim=True)
    forwarded = {"X-Forwarded-Prefix": "/agents/one", "X-Forwarded-Host": "public.example",
                 "X-Forwarded-Proto": "https"}  # fmt: skip
    made = expect(alice.post(f"/task/{task['id']}/link", headers=forwarded), 201)
    url = "https://public.example/agents/one"
    assert made["url"].startswith(f"{url}/shared/")
    # As the proxy passes it on.
    path = made["url"].removeprefix(url)
    page = Page(Browser(app, headers=forwarded).get(path).text)
    links = [link for link in page.values("href") if not link.startswith("#")]
    assert all(link.startswith("/agents/one/") for link in links)


# --- the page that makes links ---------------------------------------------------------------


@one_database
def test_links_are_made_and_revoked_in_the_dashboard(
    app: Flask, alice: ApiClient, task: Json, stranger: Browser
) -> None:
    browser = signed_in(alice)
    of_links = f"/tasks/{task['id']}/links"
    assert f'href="{of_links}"' in browser.get(f"/tasks/{task['id']}").text
    made = browser.send(of_links, days="30")
    assert made.status_code == 201
    (path,) = re.findall(rf"{BASE}(/shared/[\w-]+)", made.text)
    assert stranger.get(path).status_code == 200
    page = browser.get(of_links).text
    assert path not in page
    (link,) = expect(alice.get(f"/task/{task['id']}/link"), 200)
    assert link["expiresAt"] in page
    assert browser.send(of_links, days="0").status_code == 422
    assert browser.send(of_links, f"{of_links}/{link['id']}/revoke").status_code == 303
    assert "Revoked" in browser.get(of_links).text
    check_invalid(stranger, path)
    # Signed in too, a link shows what it shows to everyone.
    _, path = link_to(alice, task)
    assert browser.get(path).text == stranger.get(path).text


@one_database
def test_other_keys_cannot_share_in_the_dashboard(
    app: Flask, alice: ApiClient, bob: ApiClient, task: Json
) -> None:
    for person, status in ((alice.read_key(), 403), (alice.agent_key(), 403), (bob, 404)):
        browser = signed_in(person)
        assert browser.get(f"/tasks/{task['id']}/links").status_code == status
        assert "Share…" not in browser.get(f"/tasks/{task['id']}").text
