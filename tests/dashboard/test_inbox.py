"""The Inbox, its number on each page, and the line above the list."""

import re
from html import unescape
from typing import Any

from flask import Flask

from tests.support.api_client import ApiClient, expect
from tests.support.clocks import Clocks
from tests.support.deliveries import finish
from tests.support.documents import ROOT
from tests.support.internals import run_sql
from tests.support.plain_browser import Browser, hidden, signed_in, text_of
from tests.support.receiver import Receiver, answer

MINUTE = 60.0


def rows(text: str) -> dict[str, str]:
    """The rows of the Inbox without their markup, by name."""
    articles = re.findall('<article class="row[^>]*>(.+?)</article>', text, re.DOTALL)
    texts = [unescape(re.sub("<.+?>", " ", article)).split() for article in articles]
    names = re.findall("<h3[^>]*>(?:<a [^>]+>)?(?:<bdi>)?(.+?)<", text)
    return dict(zip(names, map(" ".join, texts), strict=True))


def number(browser: Browser, path: str = "/") -> str:
    """What the navigation of a page says after "Inbox"."""
    return str(re.findall('id="badge-inbox" data-live>(.*?)</b>', browser.get(path).text)[0])


def line(browser: Browser, path: str = "/") -> str:
    """The line above the list."""
    above = browser.get(path).text.partition('id="attention"')[2].partition("</div>")[0]
    return re.sub("<.+?>", "", above.partition(">")[2]).strip()


def run(person: ApiClient, agent_id: str, status: str, **fields: Any) -> dict[str, Any]:
    return person.report(person.start(agent_id, claim=True), status=status, **fields)


def test_empty_inbox_has_one_sentence(window: Browser) -> None:
    assert "Nothing needs your attention." in text_of(window, "/inbox")
    assert rows(text_of(window, "/inbox")) == {}
    assert number(window) == ""
    assert line(window) == ""


def test_each_agent_in_trouble_is_one_row_with_its_reasons(
    window: Browser, alice: ApiClient, app: Flask, clocks: Clocks, receiver: Receiver
) -> None:
    receiver.answer = answer(410)
    assert finish(alice, alice.start("calls", callback=receiver.url, claim=True)) == "failed"
    waiting = alice.start("waits")
    clocks.go_on(11 * MINUTE)
    error = {"message": "Disk <full>\nmore"}
    failed = [run(alice, "nightly", "error", error=error) for _ in range(2)][-1]
    alice.append(silent := alice.start("poll", claim=True), "reading", "Connection refused")
    alice.report(silent, status="error", error={"message": "exit status 3"})
    run_sql(app, "UPDATE agents SET late_since = '2026-11-24T13:36:00Z' WHERE id = 'nightly'")
    text = text_of(window, "/inbox")
    shown = rows(text)
    assert list(shown) == ["nightly", "poll", "waits", "calls"]
    for name, words in {
        "nightly": ("Broken since ", "Failed 2 times in a row: Disk <full>",
                    "Late since 24 Nov 2026, 13:36:00 UTC", "The expected run did not start"),
        "poll": ("The last task failed: exit status 3: Connection refused",),
        "waits": ("No worker since ", "No worker has asked for a task of this agent yet"),
        "calls": ("Callback failed since ", "The callback was not delivered: "),
    }.items():  # fmt: skip
        assert all(word in shown[name] for word in words), shown[name]
    assert "more" not in shown["nightly"]
    for task in (failed, waiting):
        assert f'class="button" href="/tasks/{task["id"]}?back=/inbox">Open' in text
    assert number(window) == "4"
    assert line(window) == "4 agents need attention"


def test_number_counts_questions_agents_hooks_and_the_backup(
    window: Browser, alice: ApiClient, app: Flask, receiver: Receiver
) -> None:
    task = alice.start("backup", claim=True)
    for message in ("Deploy?", "Really?"):
        expect(alice.post(f"/task/{task['id']}/question", json={"message": message}), 201)
    assert line(window) == "2 questions need attention"
    run(alice, "nightly", "error")
    run_sql(app, "UPDATE agents SET late_since = '2026-11-24T13:36:00Z' WHERE id = 'nightly'")
    expect(alice.post("/hook", json={"target": receiver.url, "name": "phone"}), 201)
    run_sql(app, "UPDATE hooks SET state = 'off', reason = 'The receiver is gone.'")
    assert line(window) == "2 questions, 1 agent, 1 notification need attention"
    assert line(window, "/?status=complete") == line(window)
    pages = ("/inbox", f"/tasks/{task['id']}", "/agents", "/agents/backup", "/keys",
             "/notifications", "/tasks/nothing")  # fmt: skip
    assert {number(window, path) for path in pages} == {"4"}
    row = rows(text_of(window, "/inbox"))["phone"]
    assert row.startswith("phone Off since ")
    assert "The receiver is gone." in row
    # A read key has no page of notifications.
    reader = signed_in(alice.read_key())
    assert number(reader) == "4"
    assert "Open" not in rows(text_of(reader, "/inbox"))["phone"]


def test_muted_agent_comes_last_and_is_not_counted(window: Browser, alice: ApiClient) -> None:
    for agent_id in ("first", "second"):
        run(alice, agent_id, "error")
    page = hidden(window.get("/inbox"))
    mute = {**page, "duration": "8h", "back": "/inbox"}
    assert window.post("/agents/first/mute", mute).location == "/inbox"
    text = text_of(window, "/inbox")
    shown = rows(text)
    assert list(shown) == ["second", "first"]
    assert "Muted until" in shown["first"]
    assert "by first Unmute" in shown["first"]
    assert "Mute 1 h 8 h 7 d" in shown["second"]
    assert number(window) == "1"
    assert line(window) == "1 agent needs attention"
    agents = text_of(window, "/agents").partition('<tr id="of-second"')[2]
    assert '<tr id="of-first" class="muted">' in agents
    assert "Muted until" in agents
    window.post("/agents/second/mute", mute)
    assert number(window) == line(window) == ""
    # A mute ends by hand, or when its time has passed.
    window.post("/agents/second/mute", {**page, "back": "/inbox"})
    assert list(rows(text_of(window, "/inbox"))) == ["second", "first"]
    assert number(window) == "1"


def test_line_above_the_list_leads_to_the_inbox(window: Browser, alice: ApiClient) -> None:
    run(alice, "nightly", "error")
    assert line(window) == "1 agent needs attention"
    assert '<a class="attention" href="/inbox">' in text_of(window, "/")
    run(alice, "nightly", "complete")
    assert line(window) == ""


def test_each_icon_is_used() -> None:
    folder = ROOT / "taskservice" / "dashboard" / "templates" / "dashboard"
    templates = "".join(path.read_text() for path in folder.glob("*.html"))
    icons = {path.stem for path in folder.glob("icons/*.svg")}
    assert {icon for icon in icons if f'"{icon}"' not in templates} == set()
    assert "Lucide" in (folder / "icons" / "LICENSE").read_text()
