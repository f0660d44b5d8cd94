"""What needs attention outside the Inbox: marks in the dashboard, and missing workers."""

import re
from typing import Any

from flask import Flask

from taskservice.background.maintenance import Maintenance
from tests.support.api_client import ApiClient, expect
from tests.support.clocks import Clocks
from tests.support.internals import hang, run_sql
from tests.support.plain_browser import Browser

MINUTE = 60.0


def rows(text: str) -> list[str]:
    return text.partition('<tbody id="rows"')[2].split("</tr>")[:-1]


def run(person: ApiClient, agent_id: str, status: str) -> dict[str, Any]:
    return person.report(person.start(agent_id, claim=True), status=status)


def agent_rows(text: str) -> dict[str, str]:
    """The row of each agent, in the order of the page."""
    return dict(re.findall(r'<tr id="of-([\w-]+)">(.+?)</tr>', text, re.DOTALL))


def test_agents_in_trouble_come_first_with_the_reason(
    window: Browser, alice: ApiClient, app: Flask, clocks: Clocks
) -> None:
    alice.start("waits")
    hanging = alice.start("hangs", claim=True)
    hang(app, hanging)
    clocks.go_on(11 * MINUTE)
    for _ in range(5):
        newest = run(alice, "broken", "error")
    run(alice, "good", "complete")
    alice.register("late")
    late = "late_since = '2026-11-24T13:36:00Z', due_at = '2026-11-24T12:36:00Z'"
    run_sql(app, f"UPDATE agents SET {late} WHERE id = 'late'")
    agents = agent_rows(window.get("/agents").text)
    assert list(agents) == ["hangs", "broken", "late", "waits", "good"]
    for agent_id, word, task in (("hangs", "Hangs", hanging), ("broken", "Broken", newest)):
        link = f'<a href="/tasks/{task["id"]}?back=/agents"><b>{word}</b></a> since <time'
        assert link in agents[agent_id]
    assert "Failed 5 times in a row" in agents["broken"]
    assert "<b>Late</b> since <time" in agents["late"]
    assert "was due <time" in agents["late"]
    assert 'class="alarm' not in agents["good"]
    assert "Failed 5 times in a row" in window.get("/agents/broken").text
    run(alice, "broken", "complete")
    assert list(agent_rows(window.get("/agents").text))[:3] == ["hangs", "late", "waits"]


def test_hanging_task_is_marked_in_lists_and_its_page_says_why(
    window: Browser, alice: ApiClient, app: Flask
) -> None:
    hanging = alice.start("backup", claim=True)
    hang(app, hanging)
    alice.start("backup", claim=True)
    assert window.get("/agents/backup").text.count(">hangs<") == 1
    marked = [row for row in rows(window.get("/").text) if ">hangs<" in row]
    assert [hanging["id"] in row for row in marked] == [True]
    page = window.get(f"/tasks/{hanging['id']}").text
    assert page.index("This task hangs") < page.index('id="log"')
    assert "runs for 3 h, longer than its maximum of 1 h." in page
    alice.report(hanging, status="complete")
    assert "This task hangs" not in window.get(f"/tasks/{hanging['id']}").text


def test_start_that_would_only_wait_is_warned_of(
    window: Browser, alice: ApiClient, app: Flask, clocks: Clocks
) -> None:
    task = run(alice, "backup", "complete")
    forms = ("/agents/backup/run", f"/tasks/{task['id']}/rerun")

    def warnings() -> set[str | None]:
        trouble = re.compile(r'class="trouble"[^>]*>(.+?)\.</p>')
        texts = [trouble.search(window.get(form).text) for form in forms]
        return {match and match[1] for match in texts}

    assert warnings() == {"No worker has asked for a task of this agent yet"}
    expect(alice.post("/agent/backup/claim"), 204)
    Maintenance(app).do_round()
    assert warnings() == {None}
    clocks.go_on(3 * 1440 * MINUTE)
    assert warnings() == {"No worker has asked for a task of this agent for 3 d"}
    # A worker that works on a task does not ask for another one.
    alice.start("backup")
    expect(alice.post("/agent/backup/claim"), 200)
    clocks.go_on(11 * MINUTE)
    assert warnings() == {None}
