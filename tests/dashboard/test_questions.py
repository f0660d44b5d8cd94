"""Questions in the dashboard: their forms, what is said next to a field, and their history."""

import json
import re
from html import unescape
from typing import Any
from urllib.parse import quote

import pytest
from flask import Flask

from taskservice.background.maintenance import Maintenance
from taskservice.dashboard import questions
from taskservice.schemas import answer_schema
from tests.support.api_client import ApiClient, expect
from tests.support.clocks import Clocks
from tests.support.html_page import Page
from tests.support.internals import plan_of, reads
from tests.support.marks import one_database
from tests.support.plain_browser import Browser, signed_in, text_of
from tests.support.sample_data import HOSTILE

Json = dict[str, Any]
ALL_KINDS: Json = {
    "type": "object",
    "properties": {
        "branch": {"type": "string", "title": "Branch", "description": "Where it goes",
                   "minLength": 3, "maxLength": 40, "default": "main"},
        "mail": {"type": "string", "format": "email"},
        "page": {"type": "string", "format": "uri"},
        "day": {"type": "string", "format": "date"},
        "when": {"type": "string", "format": "date-time"},
        "reason": {"type": "string", "maxLength": 2000},
        "share": {"type": "number", "minimum": 0, "maximum": 1},
        "copies": {"type": "integer", "minimum": 1, "maximum": 9},
        "force": {"type": "boolean", "title": "By force?"},
        "size": {"type": "string", "oneOf": [{"const": "s", "title": "Small"},
                                             {"const": "l", "title": "Large"}]},
        "colour": {"type": "string", "enum": ["r", "g", "b", "c", "m", "y"],
                   "enumNames": ["Red", "Green", "Blue", "Cyan", "Magenta", "Yellow"]},
        "hosts": {"type": "array", "items": {"type": "string", "enum": ["a", "b", "c"]},
                  "maxItems": 2, "default": ["b"]},
    },
    "required": ["branch", "force"],
}  # fmt: skip


@pytest.fixture
def task(alice: ApiClient) -> Json:
    return alice.start(name="Release", claim=True)


def ask(person: ApiClient, task: Json, message: str = "Deploy?", **fields: Any) -> Json:
    path = f"/task/{task['id']}/question"
    # `json=` of Flask's client would sort the properties.
    body = json.dumps({"message": message, **fields})
    return dict(expect(person.post(path, data=body, content_type="application/json"), 201))


def choice(*options: str, **keywords: Any) -> Json:
    """A schema with one property that wants one of these."""
    return {
        "type": "object",
        "properties": {"choice": {"type": "string", "enum": [*options], **keywords}},
        "required": ["choice"],
    }


def path_of(task: Json, question: Json) -> str:
    return f"/tasks/{task['id']}/questions/{question['id']}"


def now(person: ApiClient, task: Json, question: Json) -> Json:
    return dict(expect(person.get(f"/task/{task['id']}/question/{question['id']}"), 200))


def answer(window: Browser, task: Json, question: Json, **content: str) -> Any:
    data = {f"field.{name}": text for name, text in content.items()}
    return window.send(path_of(task, question), **data)


def title_of(text: str) -> str:
    return unescape(re.findall("<title>(.+?)</title>", text)[0])


def fields(text: str) -> dict[str, Json]:
    """The attributes of the fields of a page's form, by name; of radio buttons, the last one."""
    tags = re.findall(r'<(?:input|select|textarea)\b[^>]*\bname="field\.[^>]+>', text)
    elements = [dict(re.findall(r'(\S+?)="(.*?)"', tag)) for tag in tags]
    return {attributes["name"].removeprefix("field."): attributes for attributes in elements}


def check_form(text: str) -> None:
    """The page is well-formed, and what its fields refer to is there, once."""
    page = Page(text)
    assert page.open == []
    ids = page.values("id")
    assert len(set(ids)) == len(ids)
    for attribute in ("for", "aria-describedby", "aria-labelledby"):
        assert set(" ".join(page.values(attribute)).split()) <= set(ids)


def test_code_block_of_a_message_ends_only_at_its_fence(alice: ApiClient, task: Json) -> None:
    code = "ls  -l\n```\n“website”: Read\n```\n\nrm x</pre>"
    ask(alice, task, f"Run this?\r\n````sh\r\n{code}\n````\nAnd `that`:\n```\n\n```\n```\nopen")
    browser = signed_in(alice)
    for path in ("/inbox", f"/tasks/{task['id']}"):
        page = browser.get(path).text
        (message,) = re.findall(r'<div class="message"[^>]*>(.*?)</div>', page, re.DOTALL)
        parts = [(kind, unescape(text)) for kind, text, _ in re.findall(
            r"<(p|pre)>(.*?)</(p|pre)>", message, re.DOTALL)]  # fmt: skip
        assert parts == [
            ("p", "Run this?"), ("pre", code),
            ("p", "And `that`:"), ("pre", ""), ("p", "```\nopen"),
        ]  # fmt: skip


# --- the form ----------------------------------------------------------------------------


def test_form_has_the_right_control_for_each_kind_of_value(
    window: Browser, alice: ApiClient, task: Json
) -> None:
    question = ask(alice, task, schema=ALL_KINDS)
    text = text_of(window, f"/tasks/{task['id']}")
    shown = fields(text)
    assert list(shown) == list(ALL_KINDS["properties"])
    kinds = {name: shown[name].get("type") for name in shown}
    assert kinds == {
        "branch": "text", "mail": "email", "page": "url", "day": "date", "when": "datetime-local",
        "reason": None, "share": "number", "copies": "number", "force": "radio", "size": "radio",
        "colour": None, "hosts": "checkbox",
    }  # fmt: skip
    branch = shown["branch"]
    assert (branch["minlength"], branch["maxlength"], branch["value"]) == ("3", "40", "main")
    assert branch["required"] == "required"
    assert "required" not in shown["mail"]
    assert {name: shown["copies"][name] for name in ("min", "max", "step")} == {
        "min": "1", "max": "9", "step": "1",
    }  # fmt: skip
    assert shown["share"]["step"] == "any"
    hint = re.findall(f'id="{re.escape(branch["aria-describedby"])}"><bdi>(.+?)</bdi>', text)
    assert hint == ["Where it goes"]
    assert f'<label for="{branch["id"]}"><bdi>Branch</bdi></label>' in text
    assert "<bdi>mail</bdi> <small>(optional)</small>" in text
    # The default is chosen, and nothing else.
    checked = re.findall(r'name="(field\.\w+)" value="([^"]*)" checked', text)
    assert checked == [("field.size", ""), ("field.hosts", "&#34;b&#34;")]
    # It is in the Inbox and on its own page, too.
    for path in ("/inbox", path_of(task, question)):
        assert fields(text_of(window, path)) == shown
        check_form(text_of(window, path))


def test_answer_of_every_kind_arrives_as_its_agent_wants_it(
    window: Browser, alice: ApiClient, task: Json
) -> None:
    question = ask(alice, task, schema=ALL_KINDS)
    response = answer(
        window, task, question,
        branch="größe/日本", mail="a@example.org", page="https://example.org/", day="2026-11-24",
        when="2026-11-24T13:36", reason="one\r\ntwo", share=".5", copies="07", force="true",
        size='"l"', colour='"m"',
    )  # fmt: skip
    assert response.status_code == 303
    assert now(alice, task, question)["answer"] == {
        "branch": "größe/日本", "mail": "a@example.org", "page": "https://example.org/",
        "day": "2026-11-24", "when": "2026-11-24T13:36:00Z", "reason": "one\ntwo", "share": 0.5,
        "copies": 7, "force": True, "size": "l", "colour": "m",
    }  # fmt: skip


def test_what_is_left_empty_is_left_out(window: Browser, alice: ApiClient, task: Json) -> None:
    question = ask(alice, task, schema=ALL_KINDS)
    empty = dict.fromkeys(ALL_KINDS["properties"], "") | {"branch": "main", "force": "false"}
    assert answer(window, task, question, **empty).status_code == 303
    assert now(alice, task, question)["answer"] == {"branch": "main", "force": False}


def test_several_options_can_be_chosen(window: Browser, alice: ApiClient, task: Json) -> None:
    schema: Json = {"type": "object", "properties": {"hosts": ALL_KINDS["properties"]["hosts"]}}
    for chosen in (["a", "c"], []):
        question = ask(alice, task, schema=schema | {"required": ["hosts"]})
        data: Any = {"field.hosts": [f'"{host}"' for host in chosen]}
        assert window.send(path_of(task, question), **data).status_code == 303
        assert now(alice, task, question)["answer"] == {"hosts": chosen}


def test_error_is_shown_next_to_its_field_which_keeps_its_text(
    window: Browser, alice: ApiClient, task: Json
) -> None:
    question = ask(alice, task, schema=ALL_KINDS)
    typed = {"branch": "x", "mail": "<b>no mail</b>", "share": "1.5", "copies": "many",
             "size": '"other"', "reason": "kept\r\nlines"}  # fmt: skip
    response = answer(window, task, question, **typed)
    assert response.status_code == 422
    errors = {
        name: unescape(message)
        for name, message in re.findall(
            r'id="[0-9a-f-]+-field\.(\w+)-error"><bdi>(.+?)</bdi>', response.text
        )
    }
    assert errors == {
        "branch": "The value is shorter than 3 characters.", "mail": "Must have the format email.",
        "share": "The value is greater than the maximum of 1.", "copies": "Not a number.",
        "force": "Choose one.", "size": "Choose from the list.",
    }  # fmt: skip
    check_form(response.text)
    shown = fields(response.text)
    assert unescape(shown["mail"]["value"]) == typed["mail"]
    assert shown["copies"]["value"] == "many"
    assert ">\nkept\nlines</textarea>" in response.text
    for name in ("branch", "mail", "copies"):
        assert shown[name]["aria-invalid"] == "true"
        assert shown[name]["aria-describedby"].endswith(f"field.{name}-error")
    assert now(alice, task, question)["state"] == "open"


def test_few_short_options_answer_with_one_click(
    window: Browser, alice: ApiClient, task: Json, subtests: pytest.Subtests
) -> None:
    boolean: Json = {
        "type": "object", "properties": {"deploy": {"type": "boolean", "default": True}},
        "required": ["deploy"],
    }  # fmt: skip
    for name, schema, labels in (
        ("boolean", boolean, ["Yes", "No"]),
        ("options", choice("s", "m", enumNames=["Small", "Medium"]), ["Small", "Medium"]),
        ("too many", choice(*"abcde"), ["Answer"]),
        ("too long", choice("short", "x" * 41), ["Answer"]),
        ("optional", {**boolean, "required": []}, ["Answer"]),
        ("nothing to fill in", {"type": "object", "properties": {}}, ["Accept"]),
    ):
        with subtests.test(name):
            question = ask(alice, task, schema=schema)
            text = text_of(window, path_of(task, question))
            form = text.partition('<form class="answer"')[2].partition("</form>")[0]
            buttons = re.findall(r"<button[^>]*>(?:<bdi>)?(.+?)(?:</bdi>)?</button>", form)
            assert buttons == [*labels, "Decline"]
            window.send(path_of(task, question), action="decline")
    question = ask(alice, task, schema=boolean)
    assert 'class="option main"><bdi>Yes</bdi>' in text_of(window, "/inbox")
    assert answer(window, task, question, deploy="false").status_code == 303
    assert now(alice, task, question)["answer"] == {"deploy": False}


def test_question_without_fields_is_accepted(window: Browser, alice: ApiClient, task: Json) -> None:
    question = ask(alice, task, schema={"type": "object", "properties": {}})
    window.send(path_of(task, question), action="accept")
    assert now(alice, task, question)["answer"] == {}
    assert "Answered: accepted" in text_of(window, f"/tasks/{task['id']}")


def test_question_is_declined_whatever_its_form_has(
    window: Browser, alice: ApiClient, task: Json
) -> None:
    question = ask(alice, task, schema=ALL_KINDS)
    response = window.send(path_of(task, question), action="decline", **{"field.copies": "many"})
    assert response.status_code == 303
    assert now(alice, task, question)["state"] == "declined"
    assert "Declined." in text_of(window, response.headers["Location"])


def test_hostile_names_and_texts_are_shown_as_text(
    window: Browser, alice: ApiClient, task: Json
) -> None:
    names = [HOSTILE, "a.b", "a", "b c&d=e+f", "नाम", "שם", "\u202eexe", "x" * 200]
    schema: Json = {
        "type": "object",
        "properties": {
            name: {"type": "string", "title": HOSTILE, "description": HOSTILE, "default": HOSTILE,
                   "enum": [HOSTILE, "𝕏" * 100, "two\r\nlines"], "enumNames": [HOSTILE]}
            for name in names
        },
        "required": names,
    }  # fmt: skip
    question = ask(alice, task, f"{HOSTILE}\n{'W' * 3_000}", schema=schema)
    pages = [text_of(window, path) for path in ("/inbox", f"/tasks/{task['id']}")]
    for text in (*pages, text_of(window, path_of(task, question))):
        assert "<img" not in text.partition("<main")[2]
        assert "<script>" not in text
        assert "961500" not in text
        check_form(text)
    data = {f"field.{quote(name, safe='')}": '"two\\r\\nlines"' for name in names}
    assert window.send(path_of(task, question), **data).status_code == 303
    assert now(alice, task, question)["answer"] == dict.fromkeys(names, "two\r\nlines")
    shown = text_of(window, f"/tasks/{task['id']}").partition("<main")[2]
    assert "<img" not in shown
    assert unescape(shown).count("two\r\nlines") == len(names)


# --- on the list --------------------------------------------------------------------------


def test_inbox_has_the_questions_and_its_title_counts_them(
    window: Browser, alice: ApiClient, task: Json
) -> None:
    assert 'class="question"' not in text_of(window, "/inbox")
    assert ">asks<" not in text_of(window, "/")
    question = ask(alice, task, timeout=3600)
    text = text_of(window, "/inbox")
    assert title_of(text) == "(1) Inbox · taskservice"
    link = f'<a href="/tasks/{task["id"]}?back=/inbox"><bdi>Release</bdi></a>'
    assert f"{link} · summarizer · asked <time" in text
    assert f'expires <time datetime="{question["expiresAt"]}"' in text
    assert 'data-state="asking"' in text
    assert '</span> <small class="status-detail">asks</small></td>' in text_of(window, "/")
    ask(alice, alice.start(name="Other", claim=True), "Really?", timeout=0)
    text = text_of(window, "/inbox")
    assert title_of(text) == "(2) Inbox · taskservice"
    assert text.count("expires <time") == 1
    assert title_of(text_of(window, "/?status=complete")) == "(2) Tasks · taskservice"


def test_inbox_distinguishes_tasks_with_the_same_name(window: Browser, alice: ApiClient) -> None:
    inputs: list[Json] = [{}, {"env": "prod <1>"}, {"text": "\u202e" + "é" * 80}]
    for sent in inputs:
        ask(alice, alice.start("deploy", name="deploy", input=sent, claim=True), timeout=0)
    text = unescape(text_of(window, "/inbox"))
    lines = re.findall("· deploy · asked <time [^>]+>.+?</time>(.*)</p>", text)
    assert lines == [
        "", ' · <bdi>{"env":"prod <1>"}</bdi>', ' · <bdi>{"text":"\\u202e' + "é" * 70 + "…</bdi>"
    ]  # fmt: skip


def test_answer_in_the_inbox_leads_back_to_it(
    window: Browser, alice: ApiClient, task: Json
) -> None:
    question = ask(alice, task)
    back = re.findall('name="back" value="([^"]+)"', text_of(window, "/inbox"))[0]
    assert back == "/inbox"
    data = {"back": back, "field.answer": ""}
    refused = window.send(path_of(task, question), **data)
    assert refused.status_code == 422
    # The form that it shows leads back too.
    assert 'name="back" value="/inbox"' in refused.text
    sent = window.send(path_of(task, question), **data | {"field.answer": "yes"})
    assert sent.headers["Location"] == "/inbox"
    assert "Answered: yes" in text_of(window, "/inbox")
    other = ask(alice, task)
    outside = {"back": "https://example.org/", "field.answer": "yes"}
    sent = window.send(path_of(task, other), **outside)
    assert sent.headers["Location"] == f"/tasks/{task['id']}"


def test_question_that_was_stored_before_a_limit_can_be_answered_and_declined(
    window: Browser, alice: ApiClient, task: Json, monkeypatch: pytest.MonkeyPatch
) -> None:
    schema = {
        "type": "object",
        "properties": {"x" * n: {"type": "string"} for n in range(1, 220, 3)},
    }
    with monkeypatch.context() as before:
        before.setattr(answer_schema, "MAX_PROPERTIES", 1_000)
        before.setattr(answer_schema, "MAX_PROPERTY_NAME", 1_000)
        asked = [ask(alice, task, schema=schema) for _ in range(3)]
    for page in ("/inbox", f"/tasks/{task['id']}", path_of(task, asked[0])):
        assert f'name="field.{"x" * 217}"' in text_of(window, page)
    accepted = {f"field.{'x' * 217}": "last"}
    assert window.send(path_of(task, asked[0]), **accepted).status_code == 303
    assert window.send(path_of(task, asked[1]), action="decline").status_code == 303
    answer = {"action": "accept", "content": {"x": "first"}}
    expect(alice.post(f"/task/{task['id']}/question/{asked[2]['id']}/answer", json=answer), 200)
    states = [asked["state"] for asked in expect(alice.get(f"/task/{task['id']}/question"), 200)]
    assert states == ["answered", "declined", "answered"]
    assert "last" in text_of(window, f"/tasks/{task['id']}")


def test_inbox_has_the_questions_that_expire_first_and_then_the_oldest(
    window: Browser, alice: ApiClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    many = alice.start(claim=True)
    # The oldest task has questions that expire second, fifth and never.
    for task, message, timeout in (
        (many, "sixth", 0),
        (many, "fifth", 9_000),
        (alice.start(claim=True), "seventh", 0),
        (alice.start(claim=True), "first", 60),
        (alice.start(claim=True), "third", 600),
        (alice.start(claim=True), "fourth", 6_000),
        (many, "second", 120),
    ):
        ask(alice, task, message, timeout=timeout)
    text = text_of(window, "/inbox")
    messages = re.findall(r'id="message-[^>]+><p>(\w+)', text)
    assert messages == ["first", "second", "third", "fourth", "fifth", "sixth", "seventh"]
    assert "more question" not in text
    monkeypatch.setattr(questions, "SHOWN_QUESTIONS", 4)
    ask(alice, many, "eighth", timeout=0)
    text = text_of(window, "/inbox")
    assert title_of(text) == "(8) Inbox · taskservice"
    assert re.findall(r'id="message-[^>]+><p>(\w+)', text) == messages[:4]
    assert "4 more questions will be shown here" in text


def test_inbox_has_forms_only_for_keys_that_can_answer(
    app: Flask, alice: ApiClient, bob: ApiClient, task: Json
) -> None:
    question = ask(alice, task, "A secret?")
    for person, status in ((bob, 404), (alice.agent_key("translator"), 403)):
        window = signed_in(person)
        assert "A secret?" not in text_of(window, "/inbox")
        assert title_of(text_of(window, "/inbox")) == "Inbox · taskservice"
        assert window.get(path_of(task, question)).status_code == status
        data = {"token": re.findall('name="token" value="(.+?)"', window.get("/").text)[0]}
        assert window.post(path_of(task, question), data).status_code == status
    window = signed_in(alice.agent_key())
    assert window.get(path_of(task, question)).status_code == 403
    # It sees what its task asks, without a form.
    for path in ("/inbox", f"/tasks/{task['id']}"):
        text = text_of(window, path)
        assert "A secret?" in text
        assert "Sign in with a user key to answer." in text
        assert "Decline" not in text


@one_database
def test_tasks_that_ask_are_found_by_their_index(
    app: Flask, window: Browser, alice: ApiClient, task: Json, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(questions, "SHOWN_QUESTIONS", 1)
    for asking in (task, alice.start(claim=True)):
        ask(alice, asking)
    statements = reads(app, lambda: text_of(window, "/inbox"))
    by_index = [read for read in statements if "questions <> '[]'" in read[0]]
    assert len(by_index) == 2
    for sql, parameters in by_index:
        plan = plan_of(app, sql, parameters)
        # The few tasks that ask are sorted by their questions.
        for table, index in (("tasks", "tasks_asking (user_id=?"), ("questions", "questions_open")):
            looks = [step for step in plan if f" {table} " in step]
            assert looks, plan
            assert all(f"INDEX {index}" in step for step in looks), plan


# --- how it ended --------------------------------------------------------------------------


def test_page_of_a_task_shows_how_its_questions_ended(
    window: Browser, alice: ApiClient, task: Json
) -> None:
    path = f"/tasks/{task['id']}"
    answered = ask(alice, task, "Which size?", schema=ALL_KINDS)
    content = {"branch": "main", "force": True, "size": "l", "hosts": ["a", "c"]}
    body = {"action": "accept", "content": content}
    expect(alice.post(f"/task/{task['id']}/question/{answered['id']}/answer", json=body), 200)
    declined = ask(alice, task, "Delete it?")
    window.send(path_of(task, declined), action="decline")
    withdrawn = ask(alice, task, "Never mind?")
    expect(alice.delete(f"/task/{task['id']}/question/{withdrawn['id']}"), 200)
    ask(alice, task, "Still open?")
    text = text_of(window, path)
    assert title_of(text) == "(1) running · Release · taskservice"
    history = text.partition('id="ended"')[2].partition("</section>")[0]
    ended = re.findall(
        r'<div class="message"><p>(.+?)</p></div>\n<p class="outcome"><b[^>]*>(\w+)', history
    )
    assert ended == [("Never mind?", "withdrawn"), ("Delete it?", "declined"),
                     ("Which size?", "answered")]  # fmt: skip
    pairs = re.findall("<div><dt>([^<]+)</dt><dd>(.+?)</dd></div>", history)
    assert pairs == [("Branch", "main"), ("By force?", "Yes"), ("size", "Large"),
                     ("hosts", "a, c")]  # fmt: skip
    alice.report(task, status="complete")
    text = text_of(window, path)
    assert "Still open?" in text.partition('id="ended"')[2]
    assert 'class="question"' not in text
    assert title_of(text) == "complete · Release · taskservice"


def test_history_has_the_newest_questions(
    window: Browser, alice: ApiClient, task: Json, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(questions, "SHOWN_ENDED", 2)
    for number in range(4):
        window.send(path_of(task, ask(alice, task, f"Question {number}?")), action="decline")
    text = text_of(window, f"/tasks/{task['id']}")
    assert re.findall(r"Question (\d)\?", text) == ["3", "2"]


def test_expired_question_has_no_form_before_maintenance_either(
    app: Flask, window: Browser, alice: ApiClient, task: Json, clocks: Clocks
) -> None:
    question = ask(alice, task, timeout=60)
    clocks.go_on(61)
    assert 'class="question"' not in text_of(window, "/inbox")
    assert title_of(text_of(window, "/")) == "1 running · Tasks · taskservice"
    text = text_of(window, f"/tasks/{task['id']}")
    assert 'class="state expired"' in text
    assert 'class="question"' not in text
    assert window.get(path_of(task, question)).status_code == 303
    Maintenance(app).do_round()
    assert 'class="state expired"' in text_of(window, f"/tasks/{task['id']}")


def test_question_that_another_person_answered_is_shown_with_the_answer(
    app: Flask, window: Browser, alice: ApiClient, task: Json, subtests: pytest.Subtests
) -> None:
    other = signed_in(alice.with_key("a colleague"))
    schema = choice("s", "m", enumNames=["Small", "Medium"])
    question = ask(alice, task, schema=schema)
    assert answer(other, task, question, choice='"m"').status_code == 303
    token = re.findall('name="token" value="(.+?)"', text_of(window, "/keys"))[0]

    def late(**data: str) -> str:
        response = window.post(path_of(task, question), {"token": token, **data})
        assert response.headers["Location"] == f"/tasks/{task['id']}"
        return text_of(window, f"/tasks/{task['id']}")

    told = "Nothing was sent. The question is already answered by key “a colleague”: Medium"
    for data in ({"field.choice": '"s"'}, {"field.choice": '"wrong"'}, {"action": "decline"}):
        with subtests.test(str(data)):
            assert told in late(**data)
    # The same answer changes nothing.
    assert "Answered: Medium" in late(**{"field.choice": '"m"'})
    assert now(alice, task, question)["answer"] == {"choice": "m"}
    assert "by key “<bdi>a colleague</bdi>” · asked" in text_of(window, f"/tasks/{task['id']}")
    question = ask(alice, task, schema=schema)
    answer(other, task, question)
    other.send(path_of(task, question), action="decline")
    assert "Nothing was sent. The question is declined by key “a colleague”." in late(
        **{"field.choice": '"s"'}
    )


def test_question_of_a_deleted_task_does_not_exist(
    window: Browser, alice: ApiClient, task: Json
) -> None:
    question = ask(alice, task)
    token = re.findall('name="token" value="(.+?)"', text_of(window, "/"))[0]
    alice.delete(f"/task/{task['id']}")
    response = window.post(path_of(task, question), {"token": token, "field.answer": "yes"})
    assert response.status_code == 404
    assert "This task was deleted" in response.text
