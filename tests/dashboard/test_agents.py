"""The dashboard's pages of agents: their health and runs, and the forms that run and edit them."""

import re
from datetime import UTC, datetime, timedelta
from html import unescape
from typing import Any

import pytest
from flask import Flask
from werkzeug.test import TestResponse

from taskservice.background.maintenance import Maintenance
from taskservice.database import clock
from taskservice.schemas import strict_json
from taskservice.services.expected_runs import due_times
from tests.support.api_client import ApiClient, expect
from tests.support.clocks import Clocks
from tests.support.internals import end_for_silence, plan_of, reads
from tests.support.marks import one_database
from tests.support.plain_browser import Browser, hidden, signed_in, text_of
from tests.support.sample_data import HOSTILE


def facts(text: str) -> dict[str, str]:
    """What a page says of the health of its first agent."""
    pairs = re.findall("<div><dt>(.+?)</dt><dd>(.+?)</dd></div>", text)
    pairs += re.findall('<td[^>]*data-name="(.+?)">(.+?)</td>', text)
    return {name: re.sub("<.+?>", "", value).strip() for name, value in reversed(pairs)}


@pytest.fixture
def used(app: Flask, alice: ApiClient) -> dict[str, Any]:
    """An agent with tasks in every state, by that."""
    tasks = {state: alice.start("backup", name=state, claim=True)
             for state in ("complete", "failed", "cancelled", "timeout", "running")}  # fmt: skip
    tasks["waiting"] = alice.start("backup", name="waiting")
    alice.report(tasks["complete"], status="complete")
    alice.report(tasks["failed"], status="error")
    alice.post(f"/task/{tasks['cancelled']['id']}/cancel")
    end_for_silence(app, tasks["timeout"])
    return tasks


def test_agent_shows_its_health_in_the_list_and_on_its_page(
    window: Browser, used: dict[str, Any]
) -> None:
    for path in ("/agents", "/agents/backup"):
        text = text_of(window, path)
        values = facts(text)
        assert values["Success"] == "33% of 3"
        assert values["Usual duration"].endswith(" s")
        assert values["Now"] == "1 running, 1 waiting"
        assert "The last 4 runs: " in text
        for outcome in ("complete", "failed", "cancelled", "timeout"):
            assert f"1 {outcome}" in text
            assert f'<rect class="{outcome}"' in text
        # The numbers lead to the tasks that they count.
        links = re.findall('<a href="([^"]+)">1 (running|waiting)</a>', text)
        assert len(links) == 2
        for link, name in links:
            rows = text_of(window, unescape(link)).partition('<tbody id="rows"')[2]
            assert re.findall("<bdi>(.+?)</bdi>", rows) == [name]
    (good,) = re.findall('<dd><a href="([^"?]+)[^>]+><time', text)
    assert good == f"/tasks/{used['complete']['id']}"


def test_last_tasks_say_how_long_they_took_and_why_they_failed(
    window: Browser, alice: ApiClient
) -> None:
    began = (datetime.now(UTC) - timedelta(minutes=90)).isoformat()
    task = alice.start("backup", claim=True, claimedAt=began)
    alice.report(task, status="error", error={"message": "Disk <full>\nmore"})
    text = text_of(window, "/agents/backup")
    row = text.partition('<ul class="recent-tasks">')[2].partition("</ul>")[0]
    assert "<bdi>Disk &lt;full&gt;</bdi>" in row
    assert "1 h 30 min ·" in row
    assert "more" not in row


def test_success_rate_is_rounded_to_the_nearest_percent(window: Browser, alice: ApiClient) -> None:
    for status in ("complete", "complete", "error"):
        alice.report(alice.start("backup", claim=True), status=status)
    alice.post(f"/task/{alice.start('backup')['id']}/cancel")
    for path in ("/agents", "/agents/backup"):
        assert facts(text_of(window, path))["Success"] == "67% of 3"


def test_agent_that_fails_often_is_marked_in_words(window: Browser, alice: ApiClient) -> None:
    def run(agent_id: str, status: str, count: int) -> None:
        for _ in range(count):
            alice.report(alice.start(agent_id, claim=True), status=status)

    run("bad", "complete", 3)
    run("bad", "error", 2)
    run("good", "complete", 4)
    run("good", "error", 1)
    run("new", "error", 4)
    text = text_of(window, "/agents")
    rows = re.findall(r'<tr id="of-(\w+)">(.+?)</tr>', text, re.DOTALL)
    assert [name for name, row in rows if "fails often" in row] == ["bad"]
    assert "fails often" in text_of(window, "/agents/bad")
    assert "fails often" not in text_of(window, "/agents/good")


def test_plot_has_a_point_and_a_row_of_its_table_for_each_run(
    window: Browser, used: dict[str, Any]
) -> None:
    text = text_of(window, "/agents/backup")
    table = text[text.index('id="durations-table"') :].partition("</table>")[0]
    for outcome in ("complete", "failed", "cancelled", "timeout"):
        assert len(re.findall(f'class="point {outcome}"', text)) == 1
        assert f"<td>{outcome}</td>" in table
        link = f"/tasks/{used[outcome]['id']}?back=/agents/backup"
        assert f'href="{link}"><bdi>{outcome}</bdi>' in table
    assert used["running"]["id"] not in table
    assert f"usual: {facts(text)['Usual duration']}".replace("<", "&lt;") in text


def test_plot_is_drawn_from_three_runs_on(window: Browser, alice: ApiClient) -> None:
    for count in (1, 2, 3):
        alice.report(alice.start("backup", claim=True), status="complete")
        alice.report(alice.start("unclaimed"), status="complete")
        # Another path, since the page is cached for a while.
        text = text_of(window, f"/agents/backup?{count}")
        assert text.count('class="point complete"') == (3 if count == 3 else 0)
    assert 'id="durations"' not in text_of(window, "/agents/unclaimed")


def test_agent_without_runs_has_a_page(window: Browser, alice: ApiClient) -> None:
    alice.register("new")
    text = text_of(window, "/agents/new")
    assert 'id="durations"' not in text
    assert facts(text)["Success"] == "–"
    assert "/agents/new" in text_of(window, "/agents")
    assert window.get("/agents/nothing").status_code == 404


def test_form_starts_a_task(window: Browser, alice: ApiClient) -> None:
    alice.register("backup", name="The backup")
    response = window.send(
        "/agents/backup/run",
        name="By hand",
        input='{"path": "/srv", "n": 1.50}',
        labels="env=prod\r\n\r\n who = a=b \r\n",
    )
    assert response.status_code == 303
    task = expect(alice.get("/task"), 200)[0]
    assert response.location == f"/tasks/{task['id']}"
    assert (task["name"], task["agentId"]) == ("By hand", "backup")
    assert task["input"] == {"path": "/srv", "n": 1.5}
    assert task["labels"] == {"env": "prod", "who": "a=b"}
    assert task["claimedAt"] is None
    assert "Started “By hand”." in text_of(window, response.location)
    window.send("/agents/backup/run")
    assert expect(alice.get("/task"), 200)[0]["name"] == "The backup"


def test_form_has_the_input_of_the_newest_task(window: Browser, alice: ApiClient) -> None:
    alice.start("backup", input={"path": "/old"})
    newest = alice.start("backup", name=HOSTILE[:200], input={"path": f"/srv/{HOSTILE}"})
    alice.start("other", input={"path": "/other"})
    text = text_of(window, "/agents/backup/run")
    field = unescape(text[text.index('id="run-input"') :].partition("</textarea>")[0])
    assert strict_json.loads(field.partition(">\n")[2].encode()) == newest["input"]
    assert "The input of the newest task" in text
    assert f'href="/tasks/{newest["id"]}"' in text
    # One that is long or empty says little of what the agent expects.
    for unfit in ({"path": "p" * 8_000}, {}):
        alice.start("backup", input=unfit)
        text = text_of(window, "/agents/backup/run")
        assert re.search(r'id="run-input"[^>]*>\n{}</textarea>', text)
        assert "newest task" not in text


def test_form_that_is_sent_twice_starts_one_task(window: Browser, alice: ApiClient) -> None:
    alice.register("backup")
    fields = {**hidden(window.get("/agents/backup/run")), "name": "Once"}
    first, second = (window.post("/agents/backup/run", fields) for _ in range(2))
    assert first.location == second.location
    assert len(expect(alice.get("/task"), 200)) == 1


@one_database
@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"input": "{"}, "Input: Not valid JSON: "),
        ({"input": "[1]"}, "Input: "),
        ({"input": '{"a": 1e999}'}, "Input: Not valid JSON: "),
        ({"labels": "no sign"}, "Labels: “no sign” is not of the form key=value."),
        ({"labels": "Upper=1"}, "Labels: Upper: "),
        ({"name": "n" * 201}, "Name: "),
        ({"name": "n" * 201, "input": "{", "labels": "no sign"}, "is not of the form key=value."),
        ({"name": "n" * 201, "input": "{", "labels": "no sign"}, "Name: "),
        ({"name": "n" * 201, "input": "{", "labels": "no sign"}, "Input: Not valid JSON"),
    ],
)
def test_form_that_does_not_fit_says_why_and_keeps_its_text(
    window: Browser, alice: ApiClient, fields: dict[str, str], sentence: str
) -> None:
    alice.register("backup")
    sent = {"name": "Kept", "input": '{"kept": 1}', "labels": "kept=yes", **fields}
    response = window.send("/agents/backup/run", **sent)
    assert response.status_code == 422
    text = unescape(response.text)
    assert "Nothing was started." in text
    assert sentence in text
    for value in sent.values():
        assert value in text
    assert expect(alice.get("/task"), 200) == []


def test_name_and_description_are_edited(window: Browser, alice: ApiClient) -> None:
    alice.register("backup", name="Old", description="Old too")
    response = window.send("/agents/backup/edit", name=HOSTILE[:200], description=HOSTILE)
    assert response.location == "/agents/backup"
    agent = expect(alice.get("/agent/backup"), 200)
    assert (agent["name"], agent["description"]) == (HOSTILE[:200], HOSTILE)
    for path in ("/agents", "/agents/backup", "/agents/backup/edit", "/agents/backup/run"):
        assert "<script>" not in text_of(window, path)
    response = window.send("/agents/backup/edit", name="n" * 201, description="Kept")
    assert response.status_code == 422
    assert "Nothing was changed. Name:" in response.text
    assert "Kept" in response.text
    assert window.get("/agents/nothing/edit").status_code == 404


def test_agent_key_sees_its_agent_without_forms(
    app: Flask, alice: ApiClient, used: dict[str, Any]
) -> None:
    alice.register("other")
    window = signed_in(alice.agent_key("backup"))
    text = text_of(window, "/agents/backup")
    assert "Run…" not in text
    assert "Edit…" not in text
    assert window.get("/agents/backup/run").status_code == 403
    assert window.get("/agents/other").status_code == 404


def test_agents_of_others_do_not_exist(window: Browser, bob: ApiClient) -> None:
    bob.start("secret")
    for path in ("/agents/secret", "/agents/secret/run", "/agents/secret/edit"):
        assert window.get(path).status_code == 404


@one_database
def test_pages_of_agents_read_few_tasks_by_their_indexes(
    app: Flask, window: Browser, alice: ApiClient, used: dict[str, Any]
) -> None:
    for path in ("/agents", "/agents/backup", "/agents/backup/run"):
        searched = set()
        for sql, parameters in reads(app, lambda: text_of(window, path)):  # noqa: B023
            plan = plan_of(app, sql, parameters)
            # The alias is joined by its ID.
            looks = {step for step in plan if " tasks " in step}
            assert all(step.startswith("SEARCH tasks USING") for step in looks), plan
            # Agents are sorted by their last task, and the few tasks that ask or hang by the time.
            is_sorted = any(
                name in sql for name in ("FROM agents", "FROM questions", "BY tasks.hanging")
            )
            assert is_sorted or not looks or "TEMP B-TREE" not in " ".join(plan), plan
            searched |= looks
        if not path.endswith("/run"):
            # Those that run are counted for all agents at once, up to a limit.
            assert any("tasks_by_status (user_id=? AND status=?)" in step for step in searched)
        indexes = ("tasks_unclaimed", "tasks_by_agent_end", "tasks_by_agent")
        for index in indexes[2 if path.endswith("/run") else 0 :]:
            assert any(f"{index} (user_id=? AND agent_id=?" in step for step in searched), index


# --- expected runs -------------------------------------------------------------------------

EMPTY = {"every": "", "cron": "", "zone": "", "grace": "", "maxDuration": ""}


def times_due(text: str) -> list[str]:
    """The next times that the agent page shows."""
    shown = text[text.index('id="due-times"') :].partition("</p>")[0]
    return re.findall('datetime="(.+?)" data-show="both"', shown)


def send_expected(window: Browser, form: dict[str, str]) -> TestResponse:
    return window.send("/agents/backup/edit", name="Backup", description="", **form)


def typed(window: Browser) -> list[str]:
    """The expected runs in the form."""
    text = text_of(window, "/agents/backup/edit")
    return [field(text, name) for name in EMPTY]


def test_expected_runs_are_set_in_the_form_of_the_agent(window: Browser, alice: ApiClient) -> None:
    alice.register("backup")
    text = text_of(window, "/agents/backup")
    assert times_due(text) == []
    assert "Next run" not in facts(text)
    every = EMPTY | {"every": " 25h ", "zone": "Europe/Berlin", "grace": "0"}
    every |= {"maxDuration": "2h"}
    assert send_expected(window, every).status_code == 303
    agent = expect(alice.get("/agent/backup?expand=health"), 200)
    assert agent["expect"] == {"every": 90_000, "grace": 0, "maxDuration": 7_200}
    text = text_of(window, "/agents/backup")
    first, *_ = due = times_due(text)
    assert first == agent["health"]["dueAt"]
    assert due == due_times(agent["expect"], clock.moved(first, -90_000), 3)
    assert facts(text)["Next run"].startswith("due ")
    assert typed(window) == ["25h", "", "", "0s", "2h"]
    assert "A run counts as hanging after 2 h." in re.sub(r"\s+", " ", text)


def test_expected_runs_by_cron_are_in_the_zone_of_the_form(
    window: Browser, alice: ApiClient
) -> None:
    alice.register("backup")
    cron = EMPTY | {"cron": "0 2 * * *", "zone": "Asia/Kolkata"}
    assert send_expected(window, cron).status_code == 303
    text = text_of(window, "/agents/backup")
    assert typed(window) == ["", "0 2 * * *", "Asia/Kolkata", "1h", ""]
    assert [time[10:] for time in times_due(text)] == ["T20:30:00.000Z"] * 3
    assert send_expected(window, cron | {"cron": "", "grace": "1h"}).status_code == 303
    assert expect(alice.get("/agent/backup"), 200)["expect"] is None
    alone = EMPTY | {"grace": "1h", "maxDuration": "2h"}
    assert send_expected(window, alone).status_code == 303
    assert expect(alice.get("/agent/backup"), 200)["expect"] == {"maxDuration": 7_200}


def test_wrong_expectation_keeps_what_was_typed(window: Browser, alice: ApiClient) -> None:
    alice.register("backup")
    for typed, fault in (
        ({"cron": "0 0 30 2 *"}, "Cron: Not a cron expression of five fields: Bad day-of-month."),
        ({"every": "daily"}, "Every: “daily” is not a duration such as 25h."),
        ({"every": "1h", "cron": "0 2 * * *"}, "Every: Not allowed with `cron`."),
        (
            {"cron": "0 2 * * *", "zone": "<b>"},
            "TimeZone: Unknown time zone; use a name such as Europe/Berlin.",
        ),
    ):
        response = send_expected(window, EMPTY | typed)
        assert response.status_code == 422
        assert f"Nothing was changed. {fault}" in unescape(response.text)
        assert {name: field(response.text, name) for name in EMPTY} == EMPTY | typed
    assert expect(alice.get("/agent/backup"), 200)["expect"] is None


def field(text: str, name: str) -> str:
    """The value of an input of a page."""
    (value,) = re.findall(f'<input name="{name}" value="(.*?)"', text)
    return unescape(value)


def test_late_agent_is_marked(
    app: Flask, window: Browser, alice: ApiClient, no_grace: None, clocks: Clocks
) -> None:
    alice.start("backup")
    alice.register("backup", expect={"every": 60, "grace": 0})
    clocks.go_on_with(Maintenance(app), seconds=100)
    due_at = expect(alice.get("/agent/backup?expand=health"), 200)["health"]["dueAt"]
    for path in ("/agents", "/agents/backup"):
        assert facts(text_of(window, path))["Next run"].startswith("was due ")
    assert times_due(text_of(window, "/agents/backup")) == [due_at]
    # A new name does not end its lateness, as a new expectation does.
    form = EMPTY | {"every": "60", "grace": "0"}
    assert send_expected(window, form).status_code == 303
    assert facts(text_of(window, "/agents/backup"))["Next run"].endswith(" late")
    assert send_expected(window, form | {"every": "25h"}).status_code == 303
    assert not facts(text_of(window, "/agents/backup"))["Next run"].endswith(" late")


def test_agent_is_muted_and_unmuted_on_its_page(alice: ApiClient, window: Browser) -> None:
    alice.register("backup")
    page = "/agents/backup"
    assert window.send(page, f"{page}/mute", duration="8h", back="/agents").location == "/agents"
    agent = expect(alice.get("/agent/backup"), 200)
    assert clock.now(7.9 * 3_600) < agent["mutedUntil"] <= clock.now(8 * 3_600)
    text = text_of(window, page)
    assert "Muted until" in text
    assert f"by <bdi>{agent['mutedBy']}</bdi>" in text
    assert window.send(page, f"{page}/mute").location == page
    assert expect(alice.get("/agent/backup"), 200)["mutedUntil"] is None
    assert "Muted until" not in text_of(window, page)
    assert window.send(page, "/agents/unknown/mute", duration="1h").status_code == 404
    reader = signed_in(alice.read_key())
    assert reader.send("/agents", f"{page}/mute", duration="1h").status_code == 403
    assert f'action="{page}/mute"' not in text_of(reader, page)
