"""Answer links: a page that answers one question, once, without signing in."""

import json
import logging
import re
from collections.abc import Callable
from html import unescape
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from flask import Flask
from standardwebhooks import Webhook

from taskservice.operations.request_log import configure_logging
from tests.support.api_client import ApiClient, add_user, expect, problem
from tests.support.clocks import Clocks
from tests.support.concurrency import at_once
from tests.support.deliveries import looping, make_due
from tests.support.html_page import Page
from tests.support.internals import rows
from tests.support.maintenance import DAY
from tests.support.marks import one_database
from tests.support.plain_browser import Browser, signed_in
from tests.support.receiver import Received, Receiver, answer
from tests.support.sample_data import HOSTILE
from tests.support.waiting import until

Json = dict[str, Any]
# What a browser sends with a form of another site, or of a chat.
CROSS_SITE = {"Origin": "https://chat.example", "Sec-Fetch-Site": "cross-site"}


def choice(*options: str, **keywords: Any) -> Json:
    """A schema with one property that wants one of these."""
    field = {"type": "string", "enum": [*options], **keywords}
    return {"type": "object", "properties": {"choice": field}, "required": ["choice"]}


@pytest.fixture
def hook(alice: ApiClient, receiver: Receiver) -> Json:
    """For a program, with answer links."""
    receiver.answer = answer(200)
    return add_hook(alice, receiver.url)


def add_hook(person: ApiClient, target: str, **fields: Any) -> Json:
    body = {"target": target, "events": ["task.asks"], "answerLinks": True, **fields}
    return dict(expect(person.post("/hook", json=body), 201))


def ask(person: ApiClient, message: str = "Deploy?", **fields: Any) -> Json:
    """A task with an open question."""
    task = person.start(name="Release", claim=True)
    asked = person.post(f"/task/{task['id']}/question", json={"message": message, **fields})
    return task | {"question": expect(asked, 201)}


def asked_message(person: ApiClient, receiver: Receiver, **fields: Any) -> tuple[Json, Received]:
    """A task that asks, and the message that told of it."""
    count = len(receiver.requests)
    with looping(person.app):
        task = ask(person, **fields)
        return task, receiver.wait_for(count + 1)[-1]


def link_to(person: ApiClient, receiver: Receiver, **fields: Any) -> tuple[Json, str]:
    """A task that asks, and the path of the link that answers it."""
    task, message = asked_message(person, receiver, **fields)
    url = json.loads(message.body)["data"]["answerUrl"]
    return task, url.removeprefix("http://127.0.0.1:8000")


def the_question(person: ApiClient, task: Json) -> Json:
    path = f"/task/{task['id']}/question/{task['question']['id']}"
    return dict(expect(person.get(path), 200))


def check_invalid(browser: Browser, path: str) -> None:
    """Each link that is no longer valid has the same page."""
    for send in (browser.get, lambda path: browser.post(path, {"field.answer": "late"})):
        response = send(path)
        assert response.status_code == 404, response.text
        assert "This link is not valid" in response.text
        assert "Release" not in response.text


def test_link_answers_its_question_once(
    alice: ApiClient, hook: Json, receiver: Receiver, stranger: Browser
) -> None:
    task, path = link_to(alice, receiver)
    assert re.fullmatch(r"/answer/[\w-]{43}", path)
    page = stranger.get(path)
    assert page.status_code == 200
    assert "Deploy?" in page.text
    done = stranger.post(path, {"action": "accept", "field.answer": "yes"}, headers=CROSS_SITE)
    assert done.status_code == 200
    assert "Answered: yes" in done.text
    assert re.search(r'<p><time datetime="[^"]+Z?"[^>]*>[^<]+</time>', done.text)
    question = the_question(alice, task)
    assert (question["state"], question["answer"]) == ("answered", {"answer": "yes"})
    assert question["answeredBy"] == "link"
    now = alice.task(task)
    assert (now["questions"], now["status"]) == ([], "running")
    before = rows(alice.app)
    check_invalid(stranger, path)
    assert rows(alice.app) == before
    window = signed_in(alice)
    assert "by an answer link" in window.get(f"/tasks/{task['id']}").text


def test_link_can_decline(
    alice: ApiClient, hook: Json, receiver: Receiver, stranger: Browser
) -> None:
    task, path = link_to(alice, receiver)
    assert "Declined." in stranger.post(path, {"action": "decline"}).text
    question = the_question(alice, task)
    assert (question["state"], question["answeredBy"]) == ("declined", "link")
    check_invalid(stranger, path)


def test_previews_change_nothing(
    alice: ApiClient, hook: Json, receiver: Receiver, stranger: Browser
) -> None:
    task, path = link_to(alice, receiver)
    before = rows(alice.app)
    for method in ("GET", "HEAD", "OPTIONS", "PUT", "PATCH", "DELETE"):
        for query in ("", "?field.answer=yes&action=accept"):
            response = stranger.client.open(path + query, method=method)
            assert response.status_code == (405 if method in ("PUT", "PATCH", "DELETE") else 200)
            assert path not in response.text
    assert rows(alice.app) == before
    assert the_question(alice, task)["state"] == "open"


def test_page_is_private_and_has_nothing_but_the_question(
    alice: ApiClient, hook: Json, receiver: Receiver
) -> None:
    alice.register("summarizer", name="Summaries")
    task, path = link_to(alice, receiver)
    window = signed_in(alice)
    for browser in (Browser(alice.app), window):
        for status, address in ((200, path), (404, f"{path}x"), (404, f"{path}/x")):
            response = browser.get(address)
            assert response.status_code == status
            assert response.headers["Cache-Control"] == "no-store"
            assert response.headers["Referrer-Policy"] == "no-referrer"
            assert response.headers["X-Robots-Tag"] == "noindex"
            assert "frame-ancestors 'none'" in response.headers["Content-Security-Policy"]
            assert "Set-Cookie" not in response.headers
            page = Page(response.text)
            assert page.open == []
            # Only the way to the content, and what makes the page look good.
            links = [link for link in page.values("href") if not link.startswith("/static/")]
            assert links == ["#content"]
            assert page.values("src") == page.values("action") == []
            assert "token" not in page.values("name")
            for secret in (task["id"], task["userId"], "alice", path):
                assert secret not in response.text
    text = Browser(alice.app).get(path).text
    assert "Release" in text
    assert "Summaries" in text
    # A message of the dashboard waits for a page of the dashboard.
    window.send("/callback-secret/rotate")
    assert "rotated" not in window.get(path).text
    assert "The callback secret was rotated" in window.get("/keys").text


def test_answer_that_does_not_match_leaves_the_link_alive(
    alice: ApiClient, hook: Json, receiver: Receiver, stranger: Browser
) -> None:
    number = {"type": "integer", "minimum": 1, "title": "Copies"}
    schema = {"type": "object", "properties": {"copies": number}, "required": ["copies"]}
    task, path = link_to(alice, receiver, schema=schema)
    for typed in ("", "0", "1.5", "many"):
        wrong = stranger.post(path, {"field.copies": typed})
        assert wrong.status_code == 422
        assert "Nothing was sent" in wrong.text
        assert f'value="{typed}"' in wrong.text
    assert stranger.client.post(path, json={"copies": 2}).status_code == 422
    assert the_question(alice, task)["state"] == "open"
    assert stranger.post(path, {"field.copies": "2"}).status_code == 200
    assert the_question(alice, task)["answer"] == {"copies": 2}


def test_wrong_and_foreign_tokens_get_the_same_page(
    alice: ApiClient, hook: Json, receiver: Receiver, stranger: Browser
) -> None:
    task, path = link_to(alice, receiver)
    other, _ = link_to(alice, receiver)
    token = path.removeprefix("/answer/")
    flipped = "A" if token[-3] != "A" else "B"
    wrong = [
        "x", "é", "%00", "%FF", "A" * 43, "A" * 5000, f"{token}/", f"%20{token}", f"{token}=",
        f"{token}A", token[:-1], f"{token[:-3]}{flipped}{token[-2:]}", token.swapcase(),
        other["question"]["id"],
    ]  # fmt: skip
    pages = {stranger.get(f"/answer/{text}").text for text in wrong}
    assert len(pages) == 1
    for text in wrong:
        check_invalid(stranger, f"/answer/{text}")
    assert the_question(alice, task)["state"] == "open"
    assert stranger.get(path).status_code == 200


def test_link_dies_with_its_question(
    alice: ApiClient, hook: Json, receiver: Receiver, stranger: Browser
) -> None:
    def withdraw(task: Json) -> None:
        expect(alice.delete(f"/task/{task['id']}/question/{task['question']['id']}"), 200)

    def decline(task: Json) -> None:
        answered = f"/task/{task['id']}/question/{task['question']['id']}/answer"
        expect(alice.post(answered, json={"action": "decline"}), 200)

    def cancel(task: Json) -> None:
        expect(alice.post(f"/task/{task['id']}/cancel"), 200)

    def delete(task: Json) -> None:
        expect(alice.delete(f"/task/{task['id']}"), 200)

    for end in (withdraw, decline, cancel, delete):
        task, path = link_to(alice, receiver)
        assert stranger.get(path).status_code == 200
        end(task)
        check_invalid(stranger, path)


def test_link_expires_with_its_question_or_after_seven_days(
    alice: ApiClient, hook: Json, receiver: Receiver, stranger: Browser, clocks: Clocks
) -> None:
    _, short = link_to(alice, receiver, timeout=60)
    task, long = link_to(alice, receiver, timeout=0)
    clocks.go_on(61)
    check_invalid(stranger, short)
    clocks.go_on(7 * DAY - 120)
    assert stranger.get(long).status_code == 200
    clocks.go_on(120)
    check_invalid(stranger, long)
    assert the_question(alice, task)["state"] == "open"


def test_of_two_answers_at_the_same_instant_one_counts(
    app: Flask, alice: ApiClient, hook: Json, receiver: Receiver
) -> None:
    for forms in (
        [{"field.answer": "yes"}, {"field.answer": "yes"}],
        [{"field.answer": "yes"}, {"field.answer": "no"}, {"action": "decline"}],
    ):
        task, path = link_to(alice, receiver)

        def send(form: dict[str, str], path: str = path) -> int:
            return Browser(app).post(path, form).status_code

        statuses = at_once([lambda form=form: send(form) for form in forms])  # type: ignore[misc]
        assert sorted(statuses) == [200, *[404] * (len(forms) - 1)]
        question = the_question(alice, task)
        first = forms[statuses.index(200)]
        assert question["answer"] == ({"answer": first["field.answer"]} if len(first) == 1
                                      and "field.answer" in first else None)  # fmt: skip


def test_link_and_dashboard_at_the_same_instant_give_one_answer(
    app: Flask, alice: ApiClient, hook: Json, receiver: Receiver
) -> None:
    task, path = link_to(alice, receiver)
    answered = f"/task/{task['id']}/question/{task['question']['id']}/answer"
    body = {"action": "accept", "content": {"answer": "by key"}}
    statuses = at_once([
        lambda: Browser(app).post(path, {"field.answer": "by link"}).status_code,
        lambda: ApiClient(app, "alice", alice.key).post(answered, json=body).status_code,
    ])  # fmt: skip
    assert statuses in ([200, 409], [404, 200])
    is_link = statuses[0] == 200
    question = the_question(alice, task)
    assert question["answer"] == {"answer": "by link" if is_link else "by key"}
    assert (question["answeredBy"] == "link") == is_link


@one_database
def test_hostile_question_is_shown_as_text(
    alice: ApiClient, hook: Json, receiver: Receiver, stranger: Browser
) -> None:
    alice.register("summarizer", name=HOSTILE)
    field = {"type": "string", "title": HOSTILE, "description": HOSTILE, "default": HOSTILE}
    schema = {"type": "object", "properties": {HOSTILE: field}}
    _, path = link_to(alice, receiver, message=HOSTILE, schema=schema)
    text = stranger.get(path).text
    assert "<img src=x" not in text
    assert "<script>" not in text
    assert str(31337 * 31337) not in text
    assert HOSTILE in unescape(text)
    assert Page(text).open == []


def test_link_is_the_same_at_every_attempt(
    app: Flask, alice: ApiClient, hook: Json, receiver: Receiver
) -> None:
    receiver.answer = answer(503)
    with looping(app):
        task = ask(alice)
        receiver.wait_for(1)
        until(lambda: attempts_of(alice, hook))
        make_due(app)
        first, second = receiver.wait_for(2)
    secret = expect(alice.get("/callback-secret"), 200)["secret"]
    one, two = (Webhook(secret).verify(sent.body, sent.headers) for sent in (first, second))
    assert one == two
    assert one["data"]["question"] == task["question"]
    assert one["data"]["answerUrl"].startswith("http://127.0.0.1:8000/answer/")


def attempts_of(person: ApiClient, hook: Json) -> list[Json]:
    deliveries = expect(person.get(f"/hook/{hook['id']}/deliveries"), 200)
    return [attempt for delivery in deliveries for attempt in delivery["attempts"]]


def test_hook_without_answer_links_has_none(alice: ApiClient, receiver: Receiver) -> None:
    add_hook(alice, receiver.url, answerLinks=False)
    add_hook(alice, f"{receiver.url}topic", answerLinks=False, format="ntfy")
    with looping(alice.app):
        ask(alice)
        messages = receiver.wait_for(2)
    for message in messages:
        assert b"answer/" not in message.body
        assert b"answerUrl" not in message.body


def test_ntfy_gets_a_button_for_each_choice(
    alice: ApiClient, receiver: Receiver, stranger: Browser
) -> None:
    hook = add_hook(alice, f"{receiver.url}alerts", format="ntfy")
    receiver.answer = lambda exchange: answer(200, body=exchange.request.body)(exchange)
    schema = choice("s", "l", enumNames=["Small", "Large & <big>"])
    task, message = asked_message(alice, receiver, schema=schema)
    sent = json.loads(message.body)
    assert [action["label"] for action in sent["actions"]] == ["Small", "Large & <big>"]
    second = sent["actions"][1]
    assert (second["action"], second["method"]) == ("http", "POST")
    assert second["url"] == sent["click"]
    path = urlsplit(second["url"]).path
    headers = second["headers"]
    done = stranger.client.post(path, data=second["body"], headers=headers | CROSS_SITE)
    assert done.status_code == 200
    assert the_question(alice, task)["answer"] == {"choice": "l"}
    # What ntfy responds, and so what is stored of its response, would repeat the link.
    until(lambda: attempts_of(alice, hook))
    assert path.removeprefix("/answer/") not in str(rows(alice.app))


@pytest.mark.parametrize(
    ("schema", "bodies"),
    [
        (None, []),
        ({"type": "object", "properties": {}}, []),
        ({"type": "object", "properties": {"ok?": {"type": "boolean"}}}, ["true", "false"]),
        (choice("a", "b", "c"), ['"a"', '"b"', '"c"']),
        (choice("a", "b", "c", "d"), []),
        ({"type": "object", "properties": {"size": {"type": "string", "oneOf": [
            {"const": "s", "title": "Small"}, {"const": "", "title": ""}]}}}, ['"s"', '""']),
        ({"type": "object", "properties": {"hosts": {"type": "array", "items": {
            "type": "string", "enum": ["a", "b"]}}}}, []),
        ({"type": "object", "properties": {"a": {"type": "boolean"}, "b": {"type": "boolean"}}},
         []),
        ({"type": "object", "properties": {"a": {"type": "boolean"}, "b": {"type": "string"}},
          "required": ["a"]}, ["true", "false"]),
        ({"type": "object", "properties": {"a": {"type": "boolean"}, "b": {"type": "boolean"}},
          "required": ["a", "b"]}, []),
    ],
)  # fmt: skip
@one_database
def test_only_few_choices_become_buttons(
    alice: ApiClient, receiver: Receiver, stranger: Browser, schema: Json | None, bodies: list[str]
) -> None:
    add_hook(alice, f"{receiver.url}alerts", format="ntfy")
    fields = {"schema": schema} if schema else {}
    task, message = asked_message(alice, receiver, **fields)
    sent = json.loads(message.body)
    actions = sent.get("actions", [])
    values = [value for action in actions for value in parse_qs(action["body"]).values()]
    assert values == [[body] for body in bodies]
    if actions:
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        path, body = urlsplit(sent["click"]).path, actions[0]["body"]
        assert stranger.client.post(path, data=body, headers=headers).status_code == 200
        [value] = the_question(alice, task)["answer"].values()
        assert json.dumps(value) == bodies[0]


def test_message_that_comes_after_the_answer_has_no_link(
    app: Flask, alice: ApiClient, receiver: Receiver
) -> None:
    add_hook(alice, f"{receiver.url}alerts", format="ntfy")
    task = ask(alice, schema=choice("yes", "no"))
    answered = f"/task/{task['id']}/question/{task['question']['id']}/answer"
    expect(alice.post(answered, json={"action": "decline"}), 200)
    with looping(app):
        [message] = receiver.wait_for(1)
    sent = json.loads(message.body)
    assert "actions" not in sent
    assert sent["click"] == f"http://127.0.0.1:8000/tasks/{task['id']}"


@pytest.mark.parametrize("form", ["text", "json"])
@one_database
def test_no_token_reaches_the_log(
    alice: ApiClient, hook: Json, receiver: Receiver, stranger: Browser,
    capsys: pytest.CaptureFixture[str], form: str,
) -> None:  # fmt: skip
    configure_logging("debug", form)
    _, path = link_to(alice, receiver)
    token = path.removeprefix("/answer/")
    html = {"Accept": "text/html"}
    for method in ("GET", "HEAD", "PUT", "POST", "POST"):
        stranger.client.open(path, method=method, headers=html, data={"field.answer": "yes"})
    stranger.get(f"{path}/x y")
    # As gunicorn logs a request that it could not respond to, percent-encoded as it came.
    logging.getLogger("gunicorn.error").error("Could not respond to GET /answer/%%41%s", token[1:])
    log = capsys.readouterr().err
    assert "POST /answer/…" in log
    assert token[1:] not in log
    answered = [line for line in log.splitlines() if "POST /answer/…" in line and "200" in line]
    assert "alice" in answered[0]
    assert "link" in answered[0]


@one_database
def test_link_works_below_a_prefix(app_with: Callable[..., Flask], receiver: Receiver) -> None:
    url = "https://public.example/agents/one"
    app = app_with(PROXY_HOPS=1, PUBLIC_URL=url)
    alice = add_user(app, "alice")
    add_hook(alice, receiver.url)
    task, message = asked_message(alice, receiver)
    address = json.loads(message.body)["data"]["answerUrl"]
    assert address.startswith(f"{url}/answer/")
    # As the proxy passes it on.
    path = address.removeprefix(url)
    stranger = Browser(app, headers={"X-Forwarded-Prefix": "/agents/one"})
    page = Page(stranger.get(path).text)
    links = [link for link in page.values("href") if not link.startswith("#")]
    assert all(link.startswith("/agents/one/static/") for link in links)
    # The form is sent to the address of the page.
    assert page.values("action") == []
    assert stranger.post(path, {"field.answer": "yes"}).status_code == 200
    assert the_question(alice, task)["answer"] == {"answer": "yes"}


@one_database
def test_service_without_public_url_makes_no_links(
    app_with: Callable[..., Flask], receiver: Receiver
) -> None:
    app = app_with(BIND="0.0.0.0:8000", PUBLIC_URL="")
    alice = add_user(app, "alice")
    body = {"target": receiver.url, "answerLinks": True}
    assert "answerLinks" in problem(alice.post("/hook", json=body), 422)["errors"]


@one_database
def test_secret_key_of_another_service_makes_other_links(
    app: Flask, app_with: Callable[..., Flask], alice: ApiClient, hook: Json, receiver: Receiver
) -> None:
    _, path = link_to(alice, receiver)
    other = app_with(SECRET_KEY="another secret key, as long")
    check_invalid(Browser(other), path)
    assert Browser(app).get(path).status_code == 200
