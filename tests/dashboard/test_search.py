"""The search box of the list, and the page that searches in logs and in errors."""

import re
from html import unescape
from typing import Any
from urllib.parse import quote

import pytest
from flask import Flask

from taskservice.services import search
from tests.support.api_client import ApiClient
from tests.support.html_page import Page
from tests.support.marks import one_database
from tests.support.plain_browser import Browser, signed_in
from tests.support.sample_data import HOSTILE

Json = dict[str, Any]


def with_log(person: ApiClient, *lines: str, **fields: Any) -> Json:
    task = person.start(**fields)
    person.append(task, *lines)
    return task


def failed(person: ApiClient, message: str, **fields: Any) -> Json:
    task = person.start(**fields)
    person.report(task, status="error", error={"message": message})
    return task


def links_of(window: Browser, query: str) -> list[tuple[str, str]]:
    """The ID of the task and the number of each line that the page links to."""
    html = window.read(f"/search?{query}")
    return re.findall(r'<li><a href="/tasks/([0-9a-f-]{36})[^"#]*(?:#L(\d+))?"', html)


def test_id_or_its_beginning_leads_to_the_task(
    app: Flask, alice: ApiClient, bob: ApiClient, window: Browser
) -> None:
    task = alice.start()
    id = task["id"]
    for text in (id, id.upper(), id[:-4], id.replace("-", ""), f" {id} "):
        response = window.get("/", query_string={"q": text, "status": "running"})
        assert response.status_code == 303
        assert response.location.partition("?")[0] == f"/tasks/{id}"
    # Too short, two tasks, another user's, and no ID.
    alice.start()
    for text in (id[:7], id[:8], bob.start()["id"], "f" * 33, f"{id}0", "-" * 36, "20261128"):
        assert window.get("/", query_string={"q": text}).status_code == 200
    of_agent = signed_in(alice.agent_key("reader"))
    assert of_agent.get(f"/?q={id}").status_code == 200


def test_label_becomes_a_filter_if_a_task_has_it(
    alice: ApiClient, bob: ApiClient, window: Browser
) -> None:
    alice.start(labels={"env": "a=b c"})
    bob.start(labels={"team": "x"})
    named = alice.start(name="team=x")
    response = window.get("/?status=running&q=env%3Da%3Db+c&label=env:none")
    assert response.status_code == 303
    assert response.location == "/?status=running&label=env:none&label=env:a%3Db+c"
    assert window.get("/?q=env:a%3Db+c").location == "/?label=env:a%3Db+c"
    assert named["id"] in window.read("/?q=team%3Dx")
    for text in ("=", "env=", "=a", "ENV=a=b c", "env=\0", f"env={'x' * 190}"):
        assert window.get("/", query_string={"q": text}).status_code == 200


def test_logs_are_searched_with_the_filters_of_the_list(
    alice: ApiClient, bob: ApiClient, window: Browser
) -> None:
    first = with_log(alice, "one", "Disk full", "\x1b[31mdisk\x1b[0m again", name="nightly")
    second = with_log(alice, "no disk", agent_id="reader")
    with_log(bob, "disk of bob")
    expected = [(second["id"], "1"), (first["id"], "2"), (first["id"], "3")]
    assert links_of(window, "q=disk") == expected
    form = "q=disk&agentId=summarizer&started=&callback=&sort=duration&status=running"
    response = window.get(f"/search?{form}")
    assert response.status_code == 303
    assert links_of(window, response.location.partition("?")[2]) == expected[1:]
    html = window.read("/search?q=DISK&agentId=summarizer&started=24h")
    assert 'Agent <bdi>summarizer</bdi></span><span class="chip">Started <bdi>in the last' in html
    assert "<mark>Disk</mark> full" in html
    assert "<bdi><mark>disk</mark> again</bdi>" in html
    assert "nightly" in html
    assert " of bob" not in html
    assert "Searched all tasks that match." in html
    assert "Nothing was found." in window.read("/search?q=absent")
    assert "Nothing was found" not in window.read("/search")
    # An empty list leads here.
    links = Page(window.read("/?q=disk+full&status=running&sort=createdAt")).values("href")
    assert "/search?q=disk+full&status=running&where=logs" in links


def test_search_continues_where_it_stopped(
    alice: ApiClient, window: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = [with_log(alice, "hit", "miss", f"hit {name}", name=name) for name in "ab"]
    errors = [failed(alice, f"hit {name}") for name in "cd"]
    lines = [(task["id"], number) for task in reversed(tasks) for number in ("1", "3")]
    monkeypatch.setattr("taskservice.dashboard.filters.PAGE_SIZE", 1)
    for where, expected in (
        ("logs", lines),
        ("errors", [(task["id"], "") for task in reversed(errors)]),
    ):
        query, seen = f"q=hit&status=error&where={where}", []
        if where == "logs":
            query = query.replace("&status=error", "")
        while query:
            seen += links_of(window, query)
            html = window.read(f"/search?{query}")
            following = re.search(r'href="\?([^"]+)" rel="next"', html)
            assert ("there may be more" in html) == bool(following)
            query = unescape(following[1]) if following else ""
        assert seen == expected
    monkeypatch.setattr(search, "MAX_ERRORS", 1)
    assert "Nothing was found yet." in window.read("/search?q=hit+c&where=errors")


def test_errors_are_searched(app: Flask, alice: ApiClient, bob: ApiClient, window: Browser) -> None:
    message = "Traceback\n  line 1\nOSError: No Space left\nmore"
    task = failed(alice, message)
    other = failed(alice, "no space", agent_id="reader")
    late = failed(alice, "first line\n" + "x" * 5_000 + "no space")
    failed(bob, "no space for bob")
    with_log(alice, "no space")
    expected = [(failed["id"], "") for failed in (late, other, task)]
    assert links_of(window, "q=no+space&where=errors") == expected
    assert links_of(window, "q=no+space&where=errors&agentId=summarizer&status=complete") == [
        expected[0],
        expected[2],
    ]
    html = window.read("/search?q=no+space&where=errors")
    assert "<bdi>OSError: <mark>No Space</mark> left</bdi>" in html
    assert f"<bdi>{'x' * 392}<mark>no space</mark></bdi>" in html
    assert " for bob" not in html
    of_agent = signed_in(alice.agent_key("reader"))
    assert links_of(of_agent, "q=no+space&where=errors") == [(other["id"], "")]


def test_agent_key_finds_lines_of_its_agent_only(
    app: Flask, alice: ApiClient, bob: ApiClient
) -> None:
    task = with_log(alice, "hit", agent_id="reader")
    with_log(alice, "hit")
    window = signed_in(alice.agent_key("reader"))
    assert links_of(window, "q=hit") == [(task["id"], "1")]
    assert links_of(window, "q=hit&agentId=summarizer") == []
    assert links_of(signed_in(bob), "q=hit") == []


@one_database
def test_hostile_text_is_shown_as_text(alice: ApiClient, window: Browser) -> None:
    with_log(alice, HOSTILE, name=HOSTILE)
    failed(alice, HOSTILE, name=HOSTILE)
    for where in ("logs", "errors"):
        for text in (HOSTILE, "<script>", "'\"{{", "</title>", "&amp;"):
            html = window.read(f"/search?q={quote(text)}&where={where}")
            assert "<mark>" in html, text
            assert "<script>document" not in html
            assert "<img src=x" not in html
            assert "982007569" not in html
            Page(html)
    for query in ("q=a%0Ab", f"q={'x' * 201}", "q=a&cursor=x", "q=a&status=x", "_anchor=x", "a=b"):
        assert window.get(f"/search?{query}").status_code == 422, query
    assert window.get("/search?q=a&where=nowhere").status_code == 200
    assert window.get("/search?q=%00").status_code == 200
    assert window.get("/?q=a%3Db&endpoint=x").status_code == 422


@one_database
def test_busy_search_offers_to_try_again(alice: ApiClient, window: Browser) -> None:
    task = with_log(alice, "hit")
    with search.slots.hold(task["userId"]):
        for where in ("logs", "errors"):
            response = window.get(f"/search?q=hit&where={where}")
            assert response.status_code == 503
            assert response.headers["Retry-After"].isdigit()
            assert "Too many searches at once" in response.text
            assert f'href="/search?q=hit&amp;where={where}">Try again' in response.text
    assert len(links_of(window, "q=hit")) == 1
