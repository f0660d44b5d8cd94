"""What the dashboard says needs attention beside the Inbox: marks, and missing workers."""

import re
from typing import Any

from flask import Flask

from taskservice.background.maintenance import Maintenance
from tests.support.api_client import ApiClient, expect
from tests.support.clocks import Clocks
from tests.support.internals import run_sql
from tests.support.plain_browser import Browser

MINUTE = 60.0


def rows(text: str) -> list[str]:
    return text.partition('<tbody id="rows"')[2].split("</tr>")[:-1]


def run(person: ApiClient, agent_id: str, status: str) -> dict[str, Any]:
    return person.report(person.start(agent_id, claim=True), status=status)


def cards(text: str) -> dict[str, str]:
    """The card of each agent, in the order of the page."""
    sections = re.findall(r'<section class="card" id="of-([\w-]+)"(.+?)</section>', text, re.DOTALL)
    return dict(sections)


def test_agents_in_trouble_come_first_and_say_so(
    window: Browser, alice: ApiClient, app: Flask
) -> None:
    for _ in range(5):
        newest = run(alice, "broken", "error")
    run(alice, "good", "complete")
    alice.register("late")
    late = "late_since = '2026-11-24T13:36:00Z', due_at = '2026-11-24T12:36:00Z'"
    run_sql(app, f"UPDATE agents SET {late} WHERE id = 'late'")
    agents = cards(window.get("/agents").text)
    assert list(agents) == ["broken", "late", "good"]
    assert "Failed 5 times in a row, " in agents["broken"]
    assert f'<a href="/tasks/{newest["id"]}?back=/agents">since ' in agents["broken"]
    assert '<span class="low">late</span>' in agents["late"]
    assert 'class="trouble"' not in agents["good"]
    assert "Failed 5 times in a row" in window.get("/agents/broken").text
    run(alice, "broken", "complete")
    assert list(cards(window.get("/agents").text)) == ["late", "broken", "good"]


def test_hanging_task_is_marked_in_lists(window: Browser, alice: ApiClient, clocks: Clocks) -> None:
    run(alice, "backup", "complete")
    hanging = alice.start("backup", claim=True)
    clocks.go_on(11 * MINUTE)
    alice.start("backup", claim=True)
    for path in ("/agents", "/agents/backup"):
        assert window.get(path).text.count(">hangs<") == 1
    marked = [row for row in rows(window.get("/").text) if ">hangs<" in row]
    assert [hanging["id"] in row for row in marked] == [True]


def test_start_that_would_only_wait_is_warned_of(
    window: Browser, alice: ApiClient, app: Flask, clocks: Clocks
) -> None:
    task = run(alice, "backup", "complete")
    forms = ("/agents/backup/run", f"/tasks/{task['id']}/rerun")

    def warnings() -> set[str | None]:
        trouble = re.compile(r'class="trouble"[^>]*>(.+?)\.</p>')
        texts = [trouble.search(window.get(form).text) for form in forms]
        return {match and match[1] for match in texts}

    assert warnings() == {"No worker has asked for work of this agent yet"}
    expect(alice.post("/agent/backup/claim"), 204)
    Maintenance(app).do_round()
    assert warnings() == {None}
    clocks.go_on(3 * 1440 * MINUTE)
    # Tabs share a page until something changes.
    alice.register("other")
    assert warnings() == {"No worker has asked for work of this agent for 3 d"}
    # It works on a task.
    alice.start("backup", claim=True)
    assert warnings() == {None}
