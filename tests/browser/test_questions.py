"""Forms made from a schema in a real browser: of questions, and for the run of an agent."""

import re
from contextlib import closing
from typing import Any

from playwright.sync_api import Browser, Page, expect

from tests.support.api_client import RemoteClient
from tests.support.browser import Visitor, check_accessible, violations
from tests.support.sample_data import DELETE, HOSTILE, TERM
from tests.support.service import Service
from tests.support.waiting import until

Json = dict[str, Any]
# Whether the text of each button is inside of it.
FIT = "all => all.map((each) => each.scrollWidth <= each.clientWidth && each.clientHeight < 50)"
MANY: Json = {
    "type": "object",
    "properties": {
        HOSTILE: {"type": "string", "title": HOSTILE, "description": HOSTILE, "default": HOSTILE},
        "mail": {"type": "string", "format": "email", "description": "Who is told"},
        "when": {"type": "string", "format": "date-time"},
        "copies": {"type": "integer", "minimum": 1, "maximum": 9, "default": 2},
        "colour": {"type": "string", "enum": ["W" * 400, *"abcde"]},
        "hosts": {"type": "array", "items": {"type": "string", "enum": ["W" * 99, "b", "𝕏日שלום"]}},
        "force": {"type": "boolean"},
        "reason": {"type": "string", "maxLength": 4000},
    },
    "required": ["mail", "force"],
}  # fmt: skip


def window(chromium: Browser, service: Service, alice: RemoteClient, **options: Any) -> Visitor:
    visitor = Visitor(chromium, service.url, **options)
    visitor.sign_in(alice.key)
    return visitor


def ask(alice: RemoteClient, task: Json, message: str, schema: Json | None = None) -> Json:
    response = alice.request(
        "POST", f"/task/{task['id']}/question", json={"message": message, "schema": schema}
    )
    response.raise_for_status()
    return dict(response.json())


def now(alice: RemoteClient, task: Json, question: Json) -> Json:
    response = alice.request("GET", f"/task/{task['id']}/question/{question['id']}")
    return dict(response.json())


def answer(alice: RemoteClient, task: Json, question: Json, **content: Any) -> None:
    alice.request(
        "POST",
        f"/task/{task['id']}/question/{question['id']}/answer",
        json={"action": "accept", "content": content},
    ).raise_for_status()


def form_of(page: Page, question: Json) -> Any:
    return page.locator(f"#question-{question['id']}")


def test_question_appears_is_counted_in_the_title_and_answered_by_keyboard_only(
    visitor: Visitor, alice: RemoteClient
) -> None:
    task = alice.start(name="Notes", claim=True)
    page = visitor.go("/inbox")
    expect(page).to_have_title("Inbox · taskservice")
    question = ask(alice, task, "Which term?", TERM)
    expect(page).to_have_title("(1) Inbox · taskservice")
    expect(page.locator("#icon")).to_have_attribute("href", re.compile("icon-asking"))
    expect(page.get_by_role("heading", name="Questions")).to_be_visible()
    other = ask(alice, alice.start(name="Other", claim=True), "Really?", DELETE)
    expect(page).to_have_title("(2) Inbox · taskservice")
    form = form_of(page, question)
    # From the link to its task on.
    form.get_by_role("link", name="Notes").focus()
    page.keyboard.press("Tab")
    expect(form.get_by_label("French term")).to_be_focused()
    # The keys of the page do nothing here.
    page.keyboard.type("facture r/u?jk")
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    page.keyboard.press("ArrowRight")
    expect(form.get_by_label("masculine")).to_be_checked()
    page.keyboard.press("Tab")
    page.keyboard.type("two")
    page.keyboard.press("Enter")
    page.keyboard.type("lines")
    page.keyboard.press("Tab")
    expect(form.get_by_role("button", name="Answer")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#notice")).to_contain_text("Answered: ")
    assert now(alice, task, question)["answer"] == {
        "term": "facture r/u?jk", "gender": "m", "note": "two\nlines",
    }  # fmt: skip
    expect(page).to_have_title("(1) Inbox · taskservice")
    form_of(page, other).get_by_role("button", name="Yes").click()
    expect(page.locator("#inbox-empty")).to_be_visible()
    expect(page).to_have_title("Inbox · taskservice")


def test_enter_in_a_text_answers(visitor: Visitor, alice: RemoteClient) -> None:
    task = alice.start(name="Notes", claim=True)
    question = ask(alice, task, "Which branch?")
    page = visitor.go(f"/tasks/{task['id']}")
    expect(page).to_have_title("(1) running · Notes · taskservice")
    # The message names the field.
    page.get_by_role("textbox", name="Which branch?").fill("main")
    page.keyboard.press("Enter")
    expect(page.locator("#ended")).to_contain_text("main")
    expect(page).to_have_title("running · Notes · taskservice")
    assert now(alice, task, question)["answer"] == {"answer": "main"}


def test_browser_checks_what_is_typed_first(visitor: Visitor, alice: RemoteClient) -> None:
    task = alice.start(claim=True)
    question = ask(alice, task, "Details?", MANY)
    page = visitor.go(f"/tasks/{task['id']}")
    form = form_of(page, question)
    form.get_by_label("mail").fill("no address")
    form.get_by_role("button", name="Answer").click()
    expect(form.get_by_label("mail")).to_be_focused()
    expect(form.get_by_label("mail")).to_have_accessible_description("Who is told")
    form.get_by_label("mail").fill("a@example.org")
    form.get_by_label("when").fill("2026-11-24T13:36:05")
    form.get_by_label("colour").select_option("c")
    form.get_by_label("b", exact=True).check()
    form.get_by_label("Yes").check()
    form.get_by_role("button", name="Answer").click()
    expect(page.locator("#ended")).to_contain_text("a@example.org")
    assert now(alice, task, question)["answer"] == {
        HOSTILE: HOSTILE, "mail": "a@example.org", "when": "2026-11-24T13:36:05Z", "copies": 2,
        "colour": "c", "hosts": ["b"], "force": True,
    }  # fmt: skip


def test_form_that_is_filled_in_survives_all_refreshes(
    visitor: Visitor, alice: RemoteClient
) -> None:
    task = alice.start(name="First", claim=True)
    before = ask(alice, task, "Before?")
    question = ask(alice, task, "Which term?", TERM)
    for path in ("/inbox", f"/tasks/{task['id']}"):
        page = visitor.go(path)
        form = form_of(page, question)
        field = form.get_by_label("French term")
        field.press_sequentially("fact")
        form.get_by_label("feminine").check()
        field.focus()
        # Changes above, below, and elsewhere on the page.
        later = ask(alice, task, "Later?")
        expect(form_of(page, later)).to_be_visible()
        answer(alice, task, before, answer="yes")
        expect(form_of(page, before).get_by_role("button", name="Answer")).to_be_disabled()
        expect(field).to_be_focused()
        field.press_sequentially("ure")
        expect(field).to_have_value("facture")
        expect(form.get_by_label("feminine")).to_be_checked()
        before = later
    form.get_by_role("button", name="Answer").click()
    expect(page.locator("#ended")).to_contain_text("facture")


def test_form_says_that_its_question_was_answered_while_somebody_types(
    visitor: Visitor, alice: RemoteClient
) -> None:
    task = alice.start(name="First", claim=True)
    for path, told in (
        ("/inbox", "This question is no longer open."),
        (f"/tasks/{task['id']}", "This question is no longer open: answered, Monday."),
    ):
        question = ask(alice, task, "When?")
        later = ask(alice, task, "And then?")
        page = visitor.go(path)
        form = form_of(page, question)
        form.get_by_role("textbox").press_sequentially("Tues")
        answer(alice, task, question, answer="Monday")
        expect(form.get_by_role("status")).to_have_text(told)
        # What is typed stays, and the keys of the page are not meant.
        form.get_by_role("textbox").press_sequentially("day")
        expect(form.get_by_role("textbox")).to_have_value("Tuesday")
        expect(form.get_by_role("button", name="Answer")).to_be_disabled()
        expect(form_of(page, later).get_by_role("button", name="Answer")).to_be_enabled()
        assert violations(page) == []
        assert now(alice, task, question)["answer"] == {"answer": "Monday"}
        answer(alice, task, later, answer="-")


def test_question_that_ended_stays_greyed_until_the_page_is_read_again(
    visitor: Visitor, alice: RemoteClient
) -> None:
    task = alice.start(name="First", claim=True)
    question, other = (ask(alice, task, message, DELETE) for message in ("When?", "Why?"))
    page = visitor.go(f"/tasks/{task['id']}")
    place = form_of(page, other).bounding_box()
    alice.write("DELETE", f"/task/{task['id']}/question/{question['id']}")
    ended = form_of(page, question)
    expect(ended.get_by_role("status")).to_have_text("This question is no longer open: withdrawn.")
    expect(ended.get_by_role("button", name="Yes")).to_be_disabled()
    assert form_of(page, other).bounding_box() == place
    expect(page.locator("#ended")).to_contain_text("withdrawn")
    expect(page).to_have_title("(1) running · First · taskservice")
    page.reload()
    expect(form_of(page, other)).to_be_visible()
    expect(ended).to_have_count(0)


def test_of_two_people_who_answer_at_once_one_is_told_the_answer_of_the_other(
    chromium: Browser, service: Service, visitor: Visitor, alice: RemoteClient
) -> None:
    task = alice.start(claim=True)
    question = ask(alice, task, "Which?", DELETE)
    with closing(window(chromium, service, alice)) as other:
        pages = {"Yes": visitor.page, "No": other.page}
        for page in pages.values():
            page.goto(f"{service.url}/tasks/{task['id']}/questions/{question['id']}")
        for label, page in pages.items():
            page.get_by_role("button", name=label).click(no_wait_after=True)
        for page in pages.values():
            page.wait_for_url(f"{service.url}/tasks/{task['id']}")
        accepted = "Yes" if now(alice, task, question)["answer"]["delete"] else "No"
        for label, page in pages.items():
            told = f"Answered: {label}" if label == accepted else (
                f"Nothing was sent. The question is already answered by key “first”: {accepted}"
            )  # fmt: skip
            expect(page.locator("#notice")).to_contain_text(told)
        other.check()


def test_question_is_answered_without_javascript(
    chromium: Browser, service: Service, alice: RemoteClient
) -> None:
    task = alice.start(name="Notes", claim=True)
    question = ask(alice, task, "Which term?", TERM)
    with closing(window(chromium, service, alice, java_script_enabled=False)) as visitor:
        page = visitor.go("/inbox")
        form = form_of(page, question)
        form.get_by_label("French term").fill("facture")
        form.get_by_label("feminine").check()
        form.get_by_role("button", name="Answer").click()
        page.get_by_text("Answered: ").wait_for()
        assert page.url == f"{service.url}/inbox"
        visitor.check()
    assert now(alice, task, question)["answer"] == {"term": "facture", "gender": "f"}


def test_refused_answer_is_shown_with_its_reasons(visitor: Visitor, alice: RemoteClient) -> None:
    task = alice.start(claim=True)
    question = ask(alice, task, "Details?", MANY)
    page = visitor.go("/inbox")
    form = form_of(page, question)
    form.get_by_label("mail").fill("a@b")
    form.get_by_label("copies").fill("99")
    # As a browser without these checks would do it.
    form.locator("form").evaluate("form => { form.noValidate = true }")
    form.get_by_role("button", name="Answer").click()
    page.get_by_role("alert").wait_for()
    copies = page.get_by_label("copies")
    expect(copies).to_have_value("99")
    expect(copies).to_have_accessible_description("The value is greater than the maximum of 9.")
    expect(page.get_by_role("group", name="force")).to_have_accessible_description("Choose one.")
    check_accessible(page)
    copies.fill("3")
    page.get_by_label("mail").fill("a@example.org")
    page.get_by_label("No", exact=True).check()
    page.get_by_role("button", name="Answer").click()
    expect(page.locator("#notice")).to_contain_text("Answered: ")
    assert page.url == f"{visitor.url}/inbox"
    visitor.complaints = [complaint for complaint in visitor.complaints if "422" not in complaint]


def test_pages_with_questions_have_no_fault(visitor: Visitor, alice: RemoteClient) -> None:
    task = alice.start(name=HOSTILE, input={HOSTILE: "W" * 99}, claim=True)
    first = ask(alice, task, f"{HOSTILE} {'W' * 1000}", DELETE)
    answer(alice, task, first, delete=True)
    for message, schema in (
        ("Delete?", DELETE),
        (f"{HOSTILE}\n{'W' * 3000}", MANY),
        ("Term?", TERM),
    ):
        ask(alice, task, message, schema)
    for path in ("/inbox", f"/tasks/{task['id']}"):
        page = visitor.go(path)
        expect(page.locator(".question")).to_have_count(3)
        check_accessible(page)


def test_notification_tells_of_a_question_and_of_the_end(
    chromium: Browser, service: Service, alice: RemoteClient
) -> None:
    task = alice.start(name="Notes", claim=True)
    with closing(window(chromium, service, alice)) as visitor:
        visitor.context.grant_permissions(["notifications"])
        visitor.page.add_init_script(
            "window.told = [];"
            "window.Notification = class extends EventTarget {"
            "  static requestPermission = async () => 'granted';"
            "  constructor(title, { body }) { super(); told.push([title, body ?? null]); }"
            "};"
        )
        page = visitor.go(f"/tasks/{task['id']}")
        page.get_by_role("button", name="Notify me").click()
        question = ask(alice, task, "Which branch?")
        until(lambda: page.evaluate("told.length") == 1)
        answer(alice, task, question, answer="main")
        expect(page.locator("#ended")).to_contain_text("main")
        alice.request("PATCH", f"/task/{task['id']}", json={"status": "complete"})
        until(lambda: page.evaluate("told.length") == 2)
        assert page.evaluate("told") == [["Notes asks", "Which branch?"], ["complete: Notes", None]]
        expect(page.locator("#watch")).to_be_hidden()
        visitor.check()


def test_agent_is_run_by_keyboard_and_as_json(visitor: Visitor, alice: RemoteClient) -> None:
    alice.request("PUT", "/agent/backup", json={"inputSchema": MANY}).raise_for_status()
    page = visitor.go("/agents/backup/run")
    check_accessible(page)
    page.get_by_label("mail").focus()
    page.keyboard.type("a@example.org")
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    expect(page.get_by_role("group", name="force").get_by_label("Yes")).to_be_checked()
    page.get_by_label("mail").press("Enter")
    page.wait_for_url(re.compile("/tasks/"))
    started = {HOSTILE: HOSTILE, "mail": "a@example.org", "copies": 2, "force": True}
    assert task_of(alice, page)["input"] == started
    page.get_by_role("link", name="Run again").click()
    check_accessible(page)
    assert page.locator("form .buttons .button").evaluate_all(FIT) == [True, True]
    page.get_by_role("link", name="As JSON").click()
    field = page.get_by_label("Input (a JSON object)")
    expect(field).to_have_value(re.compile('"copies": 2'))
    check_accessible(page)
    field.fill(field.input_value().replace('"copies": 2', '"copies": 4'))
    page.get_by_role("button", name="Run again").click()
    page.wait_for_url(re.compile("/tasks/[^/]+$"))
    assert task_of(alice, page)["input"] == started | {"copies": 4}
    page.goto(f"{visitor.url}/agents/backup")
    expect(page.get_by_role("row", name="copies")).to_contain_text("whole number, from 1, up to 9")
    check_accessible(page)


def task_of(alice: RemoteClient, page: Page) -> Json:
    """The task whose page is shown."""
    return dict(alice.request("GET", f"/task/{page.url.rpartition('/')[2]}").json())
