"""The Inbox, the list below its line, and the page of agents, in a real browser."""

import re
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta

import pytest
from playwright.sync_api import Browser, Locator, Page, ViewportSize, expect

from tests.support.api_client import RemoteClient
from tests.support.browser import Visitor, check_accessible
from tests.support.receiver import Receiver, answer
from tests.support.sample_data import DELETE, HOSTILE, TERM
from tests.support.service import Service

LONG = "Orders of all customers from all shops into the warehouse, nightly and by hand"
NO_BREAK = "psycopg.errors.UniqueViolation: duplicate key value violates unique constraint"
MUTED = re.compile(r"Muted until (tomorrow )?\d\d:\d\d by first")
# Times as they are shown.
TIME_OF_DAY = re.compile(r"^\d\d:\d\d$")
YESTERDAY = re.compile(r"^yesterday \d\d:\d\d$")
DATE = re.compile(r"^[A-Z][a-z]{2} \d+, \d\d:\d\d$")
# The top of the first row of a list, from the top of the page.
TOP = "row => row.getBoundingClientRect().top + scrollY"
# How a row of the Inbox looks: its opacity, and the colours of its name, icon, problem and button.
LOOK = """row => [getComputedStyle(row).opacity].concat(
  ["h3 a", ".icon", ".alarm b", ".row-actions .button"].map(
    (part) => getComputedStyle(row.querySelector(part)).color))"""
# Words that continue on the next line, though they fit on one.
BROKEN_WORDS = """main => {
  const walker = document.createTreeWalker(main, NodeFilter.SHOW_TEXT), broken = [];
  while (walker.nextNode()) {
    for (const { 0: word, index } of walker.currentNode.data.matchAll(/[\\w.,:'-]+/g)) {
      const range = new Range();
      range.setStart(walker.currentNode, index);
      range.setEnd(walker.currentNode, index + word.length);
      const tops = new Set([...range.getClientRects()].map(({ top }) => Math.round(top)));
      if (tops.size > 1) broken.push(word);
    }
  }
  return broken;
}"""


def fail(alice: RemoteClient, agent_id: str, message: str) -> None:
    task = alice.start(agent_id, name=LONG, claim=True)
    changes = {"status": "error", "error": {"message": message}}
    alice.request("PATCH", f"/task/{task['id']}", json=changes).raise_for_status()


def ask(
    alice: RemoteClient, message: str, schema: object = None, timeout: int | None = None
) -> str:
    """Ask a question; returns the path of its task in the API."""
    task = alice.start("deploy", name=LONG, labels={"env": "prod"}, claim=True)
    path = f"/task/{task['id']}"
    question = {"message": message, "schema": schema, "timeout": timeout}
    alice.request("POST", f"{path}/question", json=question).raise_for_status()
    return path


@pytest.fixture
def night(alice: RemoteClient) -> Iterator[RemoteClient]:
    """Three questions, seven agents in trouble, a hook that is off, and long names."""
    with Receiver(answer=answer(410)) as gone:
        hook = {"target": gone.url, "name": LONG, "events": ["task.failed"]}
        alice.request("POST", "/hook", json=hook).raise_for_status()
        for number in range(7):
            agent = {"name": f"{LONG} {number}"}
            alice.request("PUT", f"/agent/agent-{number}", json=agent).raise_for_status()
            fail(alice, f"agent-{number}", f"{NO_BREAK} {number}\nsecond line")
        for message, schema in (("Delete 41 backups?", DELETE), ("Term?", TERM), ("Why?", None)):
            ask(alice, message, schema)
        gone.wait_for(1)
        yield alice


def phone(chromium: Browser, service: Service, alice: RemoteClient) -> Visitor:
    size = ViewportSize(width=390, height=844)
    visitor = Visitor(chromium, service.url, viewport=size, has_touch=True)
    visitor.sign_in(str(alice.session.headers["apikey"]))
    return visitor


def expect_number(page: Page, number: str) -> None:
    expect(page.locator("#badge-inbox")).to_have_text(number)


def test_list_begins_at_the_same_height_whatever_needs_attention(
    chromium: Browser, service: Service, visitor: Visitor, night: RemoteClient
) -> None:
    filters = f"label=env:prod&q={LONG[:30]}&started=24h&status=running&claimed=true"
    with closing(phone(chromium, service, night)) as on_phone:
        for window, size, highest in (
            (visitor, ViewportSize(width=1440, height=900), 360),
            (on_phone, ViewportSize(width=390, height=844), 420),
        ):
            for query in ("", filters):
                page = window.go(f"/?{query}")
                page.set_viewport_size(size)
                expect(page.locator("#attention")).to_contain_text("3 questions, 7 agents")
                assert page.locator("#rows tr").first.evaluate(TOP) <= highest, query
        on_phone.check()
    check_accessible(visitor.page)


def test_question_is_answered_with_one_tap_on_a_phone(
    chromium: Browser, service: Service, night: RemoteClient
) -> None:
    with closing(phone(chromium, service, night)) as visitor:
        page = visitor.go("/inbox")
        expect_number(page, "11")
        expect(page).to_have_title("(11) Inbox · taskservice")
        assert page.locator("main").evaluate(BROKEN_WORDS) == []
        page.get_by_role("button", name="Yes").tap()
        expect(page.locator("#notice")).to_have_text("Answered: Yes")
        expect(page).to_have_url(f"{service.url}/inbox")
        expect(page.locator(".question")).to_have_count(2)
        expect_number(page, "10")
        check_accessible(page)
        visitor.check()


def test_inbox_and_its_number_renew_themselves(visitor: Visitor, alice: RemoteClient) -> None:
    page = visitor.go("/inbox")
    expect(page.locator("#inbox-empty")).to_be_visible()
    expect_number(page, "")
    fail(alice, "backup", "Disk full")
    row = page.locator("#agent-backup")
    expect(row).to_contain_text("The last task failed: Disk full")
    expect(row.locator("time")).to_have_text(TIME_OF_DAY)
    expect_number(page, "1")
    expect(page).to_have_title("(1) Inbox · taskservice")
    fail(alice, "backup", HOSTILE)
    expect(row).to_contain_text("Failed 2 times in a row")
    check_accessible(page)
    page = visitor.go()
    ask(alice, "Why?")
    expect(page.locator("#attention")).to_have_text("1 question, 1 agent need attention")
    page.locator("#attention a").click()
    expect(page.get_by_role("heading", name="Inbox")).to_be_visible()


def test_time_of_another_day_has_its_date(visitor: Visitor, alice: RemoteClient) -> None:
    fail(alice, "backup", "Disk full")
    for days, shown in ((0, TIME_OF_DAY), (1, YESTERDAY), (3, DATE)):
        # Later in the browser alone.
        visitor.page.clock.set_fixed_time(datetime.now(UTC) + timedelta(days=days))
        page = visitor.go("/inbox")
        expect(page.locator("#agent-backup time")).to_have_text(shown)


def withdraw(alice: RemoteClient, path: str) -> None:
    (question,) = alice.read(path)["questions"]
    alice.write("DELETE", f"{path}/question/{question['id']}")


def question_of(page: Page, message: str) -> Locator:
    return page.locator(".question").filter(has_text=message)


def test_press_after_a_question_has_ended_answers_no_other_question(
    visitor: Visitor, alice: RemoteClient
) -> None:
    for number in range(20):
        paths = [ask(alice, f"Delete {number} {letter}?", DELETE) for letter in "ab"]
        with closing(visitor.context.new_page()) as page:
            page.goto(f"{visitor.url}/inbox")
            first, second = (question_of(page, f"Delete {number} {letter}?") for letter in "ab")
            places = [question.bounding_box() for question in (first, second)]
            yes = first.get_by_role("button", name="Yes")
            yes.hover()
            withdraw(alice, paths[0])
            if is_shown := bool(number % 2):
                expect(yes).to_be_disabled()
                assert [question.bounding_box() for question in (first, second)] == places
            page.wait_for_timeout(number * 500 / 19)
            page.mouse.down()
            page.mouse.up()
            refused = page.locator("#notice").get_by_text("The question is withdrawn.")
            expect(refused.or_(yes.and_(page.locator(":disabled")))).to_be_visible()
            if is_shown:
                expect(second.get_by_role("button", name="Yes")).to_be_enabled()
        assert alice.read(paths[1])["questions"], number
        withdraw(alice, paths[1])


def test_second_click_of_a_double_click_does_not_answer_the_next_question(
    visitor: Visitor, alice: RemoteClient
) -> None:
    paths = [ask(alice, f"Delete {letter}?", DELETE) for letter in "ab"]
    page = visitor.go("/inbox")
    question_of(page, "Delete a?").get_by_role("button", name="Yes").click(trial=True)
    # The animation of a question that has just appeared lasts until the test ends it.
    page.add_init_script(
        "addEventListener('animationstart', ({ target }) => {"
        "  for (const animation of target.getAnimations()) animation.pause();"
        "});"
    )
    question_of(page, "Delete a?").get_by_role("button", name="Yes").click()
    expect(page.locator("#notice")).to_have_text("Answered: Yes")
    place = question_of(page, "Delete b?").get_by_role("button", name="Yes").bounding_box()
    assert place is not None
    page.wait_for_function("document.getAnimations().some((each) => each.playState === 'paused')")
    page.mouse.click(place["x"] + 9, place["y"] + 9)
    page.evaluate("document.getAnimations().forEach((each) => each.finish())")
    question_of(page, "Delete b?").get_by_role("button", name="No").click()
    expect(page.locator("#notice")).to_have_text("Answered: No")
    assert [alice.read(path)["questions"] for path in paths] == [[], []]


def test_question_that_ended_is_greyed_and_new_ones_follow(
    visitor: Visitor, alice: RemoteClient
) -> None:
    first, _ = [ask(alice, f"Delete {letter}?", DELETE) for letter in "ab"]
    page = visitor.go("/inbox")
    expect_number(page, "2")
    expect(page.locator(".question")).to_have_count(2)
    colour = "question => getComputedStyle(question).color"
    open_colour = question_of(page, "Delete a?").evaluate(colour)
    withdraw(alice, first)
    expect(question_of(page, "Delete a?").get_by_role("button", name="Yes")).to_be_disabled()
    assert question_of(page, "Delete a?").evaluate(colour) != open_colour
    assert question_of(page, "Delete b?").evaluate(colour) == open_colour
    expect_number(page, "1")
    # It expires first, so it is on top when the page is read again.
    ask(alice, "Delete c?", DELETE, timeout=600)
    expect(page.locator(".question")).to_have_text([re.compile(f"Delete {x}") for x in "abc"])
    fail(alice, "backup", "Disk full")
    expect(page.locator("#agent-backup")).to_be_visible()
    expect(page.locator(".question")).to_have_text([re.compile(f"Delete {x}") for x in "abc"])
    check_accessible(page)
    page = visitor.go("/inbox")
    expect(page.locator(".question")).to_have_text([re.compile(f"Delete {x}") for x in "cb"])


def test_form_is_kept_while_other_questions_end(visitor: Visitor, alice: RemoteClient) -> None:
    paths = [ask(alice, f"Question {number}?") for number in range(1, 6)]
    page = visitor.go("/inbox")
    last = page.locator(".question").last
    last.get_by_role("textbox").press_sequentially("kept")
    for path, number in ((paths[0], 1), (paths[3], 4)):
        withdraw(alice, path)
        ended = question_of(page, f"Question {number}?")
        expect(ended.get_by_role("button", name="Answer")).to_be_disabled()
        expect(last.get_by_role("textbox")).to_have_value("kept")
        expect(last.get_by_role("textbox")).to_be_focused()
    last.get_by_role("button", name="Answer").click()
    expect(page.locator("#notice")).to_have_text("Answered: kept")
    expect(page.locator(".question")).to_have_count(2)


def test_agent_is_muted_with_one_click(visitor: Visitor, alice: RemoteClient) -> None:
    for agent_id in ("backup", "poll"):
        fail(alice, agent_id, "Disk full")
    page = visitor.go("/inbox")
    page.get_by_role("button", name="Mute backup for 1 h").click()
    row = page.locator("#agent-backup")
    expect(row).to_contain_text(MUTED)
    expect(page.locator("#inbox .row").last).to_have_id("agent-backup")
    looks = [page.locator(f"#agent-{id_}").evaluate(LOOK) for id_ in ("backup", "poll")]
    assert all(muted != other for muted, other in zip(*looks, strict=True)), looks
    expect_number(page, "1")
    check_accessible(page)
    row.get_by_role("button", name="Unmute backup").click()
    expect(row).not_to_contain_text("Muted")
    expect_number(page, "2")


def test_keys_lead_to_each_page_and_through_the_inbox(
    visitor: Visitor, alice: RemoteClient
) -> None:
    for agent_id in ("backup", "poll"):
        fail(alice, agent_id, "Disk full")
    page = visitor.go()
    for key, path in (("i", "/inbox"), ("a", "/agents"), ("n", "/notifications"), ("t", "/")):
        page.keyboard.press("g")
        page.keyboard.press(key)
        page.wait_for_url(f"{visitor.url}{path}")
    # Only after g.
    page.keyboard.press("i")
    page.keyboard.press("g")
    page.keyboard.press("i")
    page.wait_for_url(f"{visitor.url}/inbox")
    page.keyboard.press("j")
    page.keyboard.press("j")
    expect(page.locator("#agent-poll h3 a")).to_be_focused()
    page.keyboard.press("Enter")
    page.wait_for_url(f"{visitor.url}/agents/poll")


def test_twelve_agents_are_on_a_screen_the_worst_first(
    chromium: Browser, service: Service, visitor: Visitor, night: RemoteClient
) -> None:
    for number in range(9):
        night.register(f"fine-{number}", description=LONG)
        task = night.start(f"fine-{number}", claim=True)
        night.request("PATCH", f"/task/{task['id']}", json={"status": "complete"})
    page = visitor.go("/agents")
    page.set_viewport_size({"width": 1440, "height": 900})
    rows = page.locator("#agents tr")
    ends = rows.evaluate_all("rows => rows.map((row) => row.getBoundingClientRect().bottom)")
    assert sum(end <= 900 for end in ends) >= 12
    expect(rows.first).to_contain_text("Broken since ")
    expect(rows.nth(7)).not_to_contain_text("Broken")
    check_accessible(page)
    with closing(phone(chromium, service, night)) as on_phone:
        page = on_phone.go("/agents")
        expect(page.locator("#agents tr").first).to_contain_text("The last task failed")
        assert page.locator("main").evaluate(BROKEN_WORDS) == []
        on_phone.check()
