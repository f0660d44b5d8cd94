"""The page Notifications: hooks, their form, their tests and deliveries; and which ones are off."""

import itertools
import json
import re
from collections.abc import Callable
from html import unescape
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import select, update

from taskservice.database.models import Attempt, Hook
from taskservice.database.transactions import reading, transaction
from taskservice.database.types import database_now
from taskservice.event_kinds import DEFAULT_EVENTS, EVENTS
from taskservice.webhooks import destinations
from tests.support.api_client import ApiClient, add_user, expect
from tests.support.deliveries import looping, make_message_due
from tests.support.html_page import Page
from tests.support.internals import plan_of, reads
from tests.support.marks import one_database
from tests.support.plain_browser import Browser, hidden, signed_in
from tests.support.receiver import Receiver, answer, unused_port
from tests.support.sample_data import HOSTILE
from tests.support.waiting import until

Json = dict[str, Any]
PAGE = "/notifications"


def text_of(window: Browser, path: str = PAGE) -> str:
    response = window.get(path)
    assert response.status_code == 200, response.text
    page = Page(response.text)
    assert page.open == []
    ids = page.values("id")
    assert len(set(ids)) == len(ids)
    return response.text


def add(window: Browser, kind: str, target: str, **fields: Any) -> Any:
    """Send the form of a new hook, as it is at first but for these fields."""
    values = {"answerLinks": False, "events": list(DEFAULT_EVENTS), **fields, "format": kind}
    data: dict[str, Any] = {"field.target": target}
    for name, value in values.items():
        texts = value if isinstance(value, list) else [value]
        data[f"field.{name}"] = [
            text if name in ("name", "label", "token") else json.dumps(text) for text in texts
        ]
    return window.send(PAGE, **data)


def add_hook(person: ApiClient, target: str, **fields: Any) -> Json:
    body = {"target": target, "events": ["task.ended"], **fields}
    return dict(expect(person.post("/hook", json=body), 201))


def hooks_of(person: ApiClient) -> list[Json]:
    hooks: list[Json] = expect(person.get("/hook"), 200)
    return hooks


def turn_off(app: Flask, hook: Json, reason: str | None = "The receiver is gone.") -> None:
    """As the service turns it off after three lost deliveries."""
    with app.app_context(), transaction() as connection:
        this = update(Hook).where(Hook.id == hook["id"])
        connection.execute(this.values(state="off", reason=reason))


# --- the form ------------------------------------------------------------------------------


def test_form_begins_with_the_usual_events(window: Browser) -> None:
    text = text_of(window)
    assert "No notifications yet" in text
    chosen = re.findall(r'name="field\.events" value="([^"]+)" checked', text)
    assert [json.loads(unescape(value)) for value in chosen] == list(DEFAULT_EVENTS)
    values = re.findall(r'name="field\.events" value="([^"]+)"', text)
    assert {json.loads(unescape(value)) for value in values} == set(EVENTS)
    # The service sends no email.
    formats = re.findall(r'name="field\.format" value="([^"]+)"', text)
    assert [json.loads(unescape(value)) for value in formats] == ["", "ntfy", "slack", "standard"]
    unset = "TASKSERVICE_SMTP_URL and TASKSERVICE_MAIL_FROM are not set"
    assert f"Email is not offered: {unset}." in text


def test_form_recognizes_the_format_from_the_address(
    window: Browser, alice: ApiClient, subtests: pytest.Subtests
) -> None:
    [chosen] = re.findall(r'name="field\.format" value="([^"]+)" checked', text_of(window))
    for target, kind in (
        ("https://hooks.slack.com/services/T0/B0/x", "slack"),
        ("https://discord.com/api/webhooks/1/x/slack", "slack"),
        ("https://ntfy.sh/alerts", "ntfy"),
        ("https://example.org/hook", "standard"),
    ):
        with subtests.test(target):
            assert add(window, json.loads(unescape(chosen)), target).status_code == 303
            assert hooks_of(alice)[-1]["format"] == kind


@one_database
def test_form_says_where_the_links_of_messages_lead(
    alice: ApiClient, app_with: Callable[..., Flask], subtests: pytest.Subtests
) -> None:
    for public_url, warning in (
        ("https://tasks.example.org", None),
        ("http://127.0.0.1:8000", "point to http://127.0.0.1:8000, which only this machine can"),
        ("http://[::1]:8000", "point to http://[::1]:8000, which only this machine can"),
        ("http://localhost:8000/tasks", "point to http://localhost:8000/tasks, which only"),
        ("", "Messages have no links"),
    ):
        with subtests.test(public_url):
            app = app_with(BIND="0.0.0.0:8000", PUBLIC_URL=public_url)
            text = text_of(signed_in(ApiClient(app, alice.name, alice.key)))
            assert ("TASKSERVICE_PUBLIC_URL" in text) == bool(warning)
            assert (warning or "") in text


def test_hook_is_added_with_all_that_the_form_has(
    window: Browser, alice: ApiClient, receiver: Receiver
) -> None:
    alice.register("backup")
    url = f"{receiver.url}alerts"
    fields = {"name": "Ann's phone", "agentId": "backup", "label": "env:prod", "token": "tk_1",
              "answerLinks": True, "events": ["task.failed", "task.asks"],
              "after": 3}  # fmt: skip
    made = add(window, "ntfy", url, **fields)
    [hook] = hooks_of(alice)
    assert (made.status_code, made.location) == (303, f"{PAGE}/{hook['id']}")
    del fields["token"]
    assert {name: hook[name] for name in fields} == fields
    assert (hook["target"], hook["format"]) == (url, "ntfy")
    page = text_of(window, made.location)
    assert "Added. Send a test" in page
    for shown in (
        url,
        "task fails, task asks",
        "backup",
        "env:prod",
        "with answer links",
        "after 3 failures",
    ):
        assert shown in page
    assert "tk_1" not in page + text_of(window)
    assert "Ann&#39;s phone" in text_of(window)


@one_database
def test_form_that_is_sent_twice_adds_one_hook(
    window: Browser, alice: ApiClient, receiver: Receiver
) -> None:
    form = {"field.target": receiver.url, "field.format": '"standard"',
            "field.events": '"task.ended"', "field.answerLinks": "false",
            **hidden(window.get(PAGE))}  # fmt: skip
    assert window.post(PAGE, form).location == f"{PAGE}/{hooks_of(alice)[0]['id']}"
    assert window.post(PAGE, form).location == PAGE
    assert "This form was already sent." in text_of(window)
    assert len(hooks_of(alice)) == 1


def test_only_the_address_is_needed(
    window: Browser, alice: ApiClient, receiver: Receiver, subtests: pytest.Subtests
) -> None:
    host = f"127.0.0.1:{receiver.port}"
    for kind, name in (("ntfy", f"{host}/x"), ("slack", host), ("standard", f"{host}/x")):
        with subtests.test(kind):
            assert add(window, kind, f" {receiver.url}x ").status_code == 303
            hook = hooks_of(alice)[-1]
            assert (hook["format"], hook["events"]) == (kind, list(DEFAULT_EVENTS))
            assert (hook["target"], hook["name"]) == (f"{receiver.url}x", name)
            assert (hook["agentId"], hook["label"]) == (None, None)


@one_database
def test_mail_is_offered_where_the_service_can_send_it(app_with: Callable[..., Flask]) -> None:
    server = destinations.MailServer.parse(f"smtp://127.0.0.1:{unused_port()}")
    settings = {"SMTP_URL": server, "MAIL_FROM": "tasks@example.org"}
    app = app_with(**settings)
    alice = add_user(app, "alice")
    window = signed_in(alice)
    assert "Email is not offered" not in text_of(window)
    typed_in = itertools.product(("mail", ""), ("ann@example.org", "mailto:ann@example.org"))
    for kind, typed in typed_in:
        made = add(window, kind, typed)
        assert made.status_code == 303
        hook = hooks_of(alice)[-1]
        assert (hook["target"], hook["format"]) == ("mailto:ann@example.org", "mail")
        assert "mailto:" not in text_of(window, made.location)
    assert add(window, "mail", "nobody").status_code == 422
    tested = window.send(made.location, f"{made.location}/test")
    assert "The test was not delivered. " in text_of(window, tested.location)


@one_database
def test_without_an_own_address_no_answer_links_are_offered(
    app_with: Callable[..., Flask], receiver: Receiver
) -> None:
    app = app_with(BIND="0.0.0.0:8000", PUBLIC_URL="")
    window = signed_in(add_user(app, "alice"))
    assert "Answer links" not in text_of(window)
    assert add(window, "standard", receiver.url).status_code == 303


@pytest.mark.parametrize(
    ("kind", "target", "fields", "message"),
    [
        ("ntfy", "", {}, "Fill this in."),
        ("ntfy", "alerts", {}, "URL"),
        ("ntfy", "https://ntfy.sh/", {}, "topic"),
        ("standard", "http://169.254.169.254/x", {}, "169.254.169.254"),
        ("slack", "http://[::1", {}, "valid URL"),
        ("", "http://[::1", {}, "valid URL"),
        ("", "ann@example.org", {}, "SMTP_URL"),
        ("mail", "ann@example.org", {}, "Choose from the list."),
        ("sms", "https://ntfy.sh/a", {}, "Choose from the list."),
        ("ntfy", "https://ntfy.sh/a", {"events": []}, "at least one event"),
        ("ntfy", "https://ntfy.sh/a", {"events": ["task.started"]}, "Choose from the list."),
        ("ntfy", "https://ntfy.sh/a", {"label": "prod"}, "key:value"),
        ("ntfy", "https://ntfy.sh/a", {"token": "a b"}, "printable"),
        ("ntfy", "https://ntfy.sh/a", {"agentId": "another"}, "Choose from the list."),
        ("ntfy", "https://ntfy.sh/a", {"name": "n" * 201}, "200"),
    ],
)
@one_database
def test_error_is_next_to_its_field_and_the_typed_text_stays(
    window: Browser, alice: ApiClient, kind: str, target: str, fields: Json, message: str
) -> None:
    alice.register("backup")
    response = add(window, kind, target, **fields)
    assert response.status_code == 422
    assert "Nothing was added" in response.text
    errors = re.findall(r'<p class="field-error"[^>]*><bdi>(.*?)</bdi>', response.text)
    assert len(errors) == 1
    assert message in unescape(errors[0])
    page = Page(response.text)
    assert page.open == []
    assert target in page.values("value")
    if fields.keys() & {"name", "label", "token"}:
        # The part with this field is open.
        assert '<details class="field" open>' in response.text
        assert next(iter(fields.values())) in page.values("value")
    assert hooks_of(alice) == []


@one_database
def test_51st_hook_is_refused_in_words(
    window: Browser, alice: ApiClient, receiver: Receiver
) -> None:
    for _ in range(50):
        add_hook(alice, receiver.url)
    refused = add(window, "standard", receiver.url)
    assert refused.status_code == 409
    assert "The user has 50 hooks already" in refused.text


@one_database
def test_hostile_texts_are_shown_as_text(
    app: Flask, window: Browser, alice: ApiClient, receiver: Receiver
) -> None:
    alice.register("summarizer", name=HOSTILE)
    receiver.answer = answer(400, body=HOSTILE.encode())
    hook = add_hook(alice, f"{receiver.url}?{HOSTILE[:40].replace(' ', '+')}", name=HOSTILE[:200],
                    label=f"a:{HOSTILE}")  # fmt: skip
    alice.report(alice.start(claim=True, labels={"a": HOSTILE}), status="complete")
    with looping(app):
        until(lambda: deliveries_of(alice, hook)[0]["attempts"])
    turn_off(app, hook, HOSTILE)
    path = f"{PAGE}/{hook['id']}"
    for page in (PAGE, path, f"{path}/delete", "/"):
        text = text_of(window, page)
        assert "<img src=x" not in text
        assert "<script>" not in text
        assert str(31337 * 31337) not in text
    assert HOSTILE in unescape(text_of(window, path))


# --- one hook ------------------------------------------------------------------------------


def deliveries_of(person: ApiClient, hook: Json) -> list[Json]:
    deliveries: list[Json] = expect(person.get(f"/hook/{hook['id']}/deliveries"), 200)
    return deliveries


def test_test_says_in_a_sentence_what_happened(
    window: Browser, alice: ApiClient, receiver: Receiver
) -> None:
    for status, sentence in ((200, "was delivered."), (503, "was not delivered.")):
        hook = add_hook(alice, f"{receiver.url}{status}")
        path = f"{PAGE}/{hook['id']}"
        receiver.answer = answer(status)
        done = window.send(path, f"{path}/test")
        assert (done.status_code, done.location) == (303, path)
        text = text_of(window, path)
        assert f"The test {sentence} The receiver responded with {status}" in text
    assert window.send(path, f"{path}/test").location == path
    text = text_of(window, path)
    assert "No test was sent. A test was sent to this address less than 10 s ago; the next" in text
    assert len(receiver.requests) == 2
    assert "A test does not appear here" in text


def test_page_of_a_hook_has_each_attempt_and_delivers_again(
    app: Flask, window: Browser, alice: ApiClient, receiver: Receiver
) -> None:
    receiver.answer = answer(503, body=b"the queue is full")
    hook = add_hook(alice, receiver.url, events=["task.ended", "agent.broken"])
    task = alice.start(name="nightly", claim=True)
    alice.report(task, status="error")
    path = f"{PAGE}/{hook['id']}"
    assert text_of(window, path).count("No attempt yet.") == 2
    with looping(app):
        until(lambda: all(row["attempts"] for row in deliveries_of(alice, hook)))
    text = text_of(window, path)
    for shown in ("task ends", "agent breaks", "The receiver responded with 503",
                  "the queue is full", f"/tasks/{task['id']}", "/agents/summarizer"):  # fmt: skip
        assert shown in text
    receiver.answer = answer(200)
    again = re.findall(rf'action="({path}/deliveries/[^"]+)"', text)
    assert len(again) == 2
    done = window.send(path, again[0])
    assert done.location == f"{path}#deliveries"
    with looping(app):
        until(lambda: "delivered" in [row["state"] for row in deliveries_of(alice, hook)])
    assert "The receiver responded with 200" in text_of(window, path)


def fail(person: ApiClient, agent_id: str, message: str) -> Json:
    error = {"type": "failed", "message": message}
    return person.report(person.start(agent_id, claim=True), status="error", error=error)


def test_page_of_a_hook_shows_the_messages_that_people_got(
    app: Flask, window: Browser, alice: ApiClient, receiver: Receiver
) -> None:
    receiver.answer = answer(200, body=b"the receiver repeats it")
    hook = add_hook(alice, f"{receiver.url}slack", events=["agent.broken", "task.asks"])
    path = f"{PAGE}/{hook['id']}"
    for agent_id in ("backup", "reports"):
        fail(alice, agent_id, f"No {agent_id} disk")
    assert "2 events wait" in text_of(window, path)
    with looping(app):
        until(lambda: {row["state"] for row in deliveries_of(alice, hook)} == {"delivered"})
        text = text_of(window, path)
        assert text.count('<div class="delivery">') == 1
        assert "2 agents broke: backup, reports" in text
        for agent_id in ("backup", "reports"):
            assert f"- {agent_id} failed: No {agent_id} disk (" in unescape(text)
        assert "events wait" not in text
        assert "the receiver repeats it" not in text
        # One alone leads to its task.
        receiver.answer = answer(503, body=b"the queue is full")
        task = fail(alice, "cleanup", "No space")
        make_message_due(app)
        until(lambda: deliveries_of(alice, hook)[0]["attempts"])
    text = text_of(window, path)
    assert text.count('<div class="delivery">') == 2
    for shown in ("cleanup failed", "No space", f'href="/tasks/{task["id"]}', "the queue is full"):
        assert shown in text


@one_database
def test_page_of_a_hook_stores_no_answer_link(
    app: Flask, window: Browser, alice: ApiClient, receiver: Receiver
) -> None:
    hook = add_hook(alice, f"{receiver.url}alerts", format="ntfy", events=["task.asks"],
                    answerLinks=True)  # fmt: skip
    path = f"/task/{alice.start(claim=True)['id']}/question"
    expect(alice.post(path, json={"message": "Deploy to production?"}), 201)
    with looping(app):
        until(lambda: deliveries_of(alice, hook)[0]["state"] == "delivered")
    assert "/answer/" in receiver.requests[0].body.decode()
    with app.app_context(), reading() as connection:
        [(stored,)] = connection.execute(select(Attempt.text)).all()
    assert stored is not None
    assert "Deploy to production?" in stored
    assert "/answer/" not in stored
    assert "Deploy to production?" in text_of(window, f"{PAGE}/{hook['id']}")


def test_page_of_a_hook_leads_to_what_a_program_got(
    app: Flask, window: Browser, alice: ApiClient, receiver: Receiver
) -> None:
    hook = add_hook(alice, receiver.url)
    alice.report(alice.start(claim=True), status="complete")
    with looping(app):
        until(lambda: deliveries_of(alice, hook)[0]["state"] == "delivered")
    [delivery] = deliveries_of(alice, hook)
    path = f"{PAGE}/{hook['id']}/deliveries/{delivery['id']}"
    assert f'href="{path}"' in text_of(window, f"{PAGE}/{hook['id']}")
    shown = window.get(path)
    assert shown.headers["Content-Type"] == "application/json"
    assert shown.get_data() == receiver.requests[0].body
    assert window.get(f"{path[:-1]}x").status_code == 404


def test_hook_is_turned_off_and_on(window: Browser, alice: ApiClient, receiver: Receiver) -> None:
    hook = add_hook(alice, receiver.url)
    path = f"{PAGE}/{hook['id']}"
    for state, word, button in (("off", "off", "Turn on"), ("active", "on", "Turn off")):
        assert window.send(path, f"{path}/state", state=state).location == path
        text = text_of(window, path)
        assert f"is {word}." in text
        assert button in text
        assert hooks_of(alice)[0]["state"] == state
        # A person who turned it off knows it.
        assert 'class="failure"' not in text
        assert "The hook" not in text_of(window, "/")
    assert window.send(path, f"{path}/state", state="asleep").status_code == 422
    assert window.send(path, f"{path}/state").status_code == 422


def test_hook_is_deleted_after_a_question(
    window: Browser, alice: ApiClient, receiver: Receiver
) -> None:
    hook = add_hook(alice, receiver.url, name="Old phone")
    path = f"{PAGE}/{hook['id']}"
    assert f'href="{path}/delete"' in text_of(window, path)
    assert "Old phone" in text_of(window, f"{path}/delete")
    assert hooks_of(alice) == [hook]
    assert window.send(f"{path}/delete").location == PAGE
    assert "Deleted “Old phone”." in text_of(window)
    assert hooks_of(alice) == []
    assert window.get(path).status_code == 404


def test_hooks_of_others_do_not_exist(
    app: Flask, alice: ApiClient, bob: ApiClient, receiver: Receiver
) -> None:
    hook = add_hook(alice, receiver.url, name="Alice's phone")
    alice.report(alice.start(claim=True), status="complete")
    [delivery] = deliveries_of(alice, hook)
    window = signed_in(bob)
    assert "Alice" not in text_of(window)
    path = f"{PAGE}/{hook['id']}"
    for page in (path, f"{path}/delete", f"{PAGE}/nothing"):
        assert window.get(page).status_code == 404
    for form in ("test", "state", "delete", f"deliveries/{delivery['id']}"):
        assert window.send(PAGE, f"{path}/{form}", state="off").status_code == 404
    assert hooks_of(alice) == [hook]
    assert deliveries_of(alice, hook) == [delivery]


def test_agent_key_has_no_notifications(app: Flask, alice: ApiClient, receiver: Receiver) -> None:
    hook = add_hook(alice, receiver.url)
    turn_off(app, hook)
    window = signed_in(alice.agent_key())
    assert window.get(PAGE).status_code == 403
    text = text_of(window, "/")
    assert PAGE not in text
    assert "The receiver is gone." not in text


def test_hook_that_fails_is_red_with_the_reason(
    app: Flask, window: Browser, alice: ApiClient, receiver: Receiver
) -> None:
    hook = add_hook(alice, receiver.url)
    reason = "The receiver responded with 503 Service Unavailable."
    with app.app_context(), transaction() as connection:
        failures = {"failed_since": database_now(-180), "attempt_count": 2, "last_error": reason}
        connection.execute(update(Hook).where(Hook.id == hook["id"]).values(failures))
    for path in (PAGE, f"{PAGE}/{hook['id']}"):
        text = text_of(window, path)
        assert '<span class="delivery-state failed">failing</span> since <time' in text
        assert reason in text
    row = text_of(window, "/inbox").partition(f'id="hook-{hook["id"]}"')[2]
    assert "<b>Failing</b> since <time" in row
    assert reason in row
    assert ">1 failing</b>" in text_of(window, "/keys")


# --- each page says which are off ----------------------------------------------------------


def test_every_page_says_how_many_hooks_the_service_turned_off(
    app: Flask, window: Browser, alice: ApiClient, bob: ApiClient, receiver: Receiver
) -> None:
    task = alice.start(claim=True)
    first, second = (add_hook(alice, receiver.url, name=f"phone {n}") for n in (1, 2))
    pages = ("/", f"/tasks/{task['id']}", f"/tasks/{task['id']}/delete", "/agents",
             "/agents/summarizer", "/agents/summarizer/run", "/keys", PAGE,
             f"{PAGE}/{second['id']}", "/callback-secret/rotate", "/tasks/nothing")  # fmt: skip

    def mark(browser: Browser, path: str = "/") -> str:
        """What the navigation says after the name of the page."""
        text = browser.get(path).text
        return str(re.findall('id="badge-hooks" data-live>(.*?)</b>', text)[0])

    assert mark(window) == ""
    for count, hook in enumerate((first, second), 1):
        turn_off(app, hook)
        assert {mark(window, path) for path in pages} == {f"{count} off"}
    assert mark(signed_in(bob)) == ""
    expect(alice.patch(f"/hook/{second['id']}", json={"state": "active"}), 200)
    expect(alice.delete(f"/hook/{first['id']}"), 200)
    assert mark(window) == ""


@one_database
def test_hooks_that_are_off_are_found_by_an_index(
    app: Flask, window: Browser, alice: ApiClient
) -> None:
    statements = reads(app, lambda: text_of(window, "/keys"))
    [(sql, parameters)] = [read for read in statements if "FROM hooks" in read[0]]
    (step,) = plan_of(app, sql, parameters)
    assert step.startswith("SEARCH hooks USING INDEX hooks_user_id_created_at_id (")
