"""The list of tasks in a real browser: it stays where the reader is, and ranges are selected."""

import re
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect
from sqlalchemy import update

from taskservice.config import Config
from taskservice.database import clock
from taskservice.database.models import Task
from taskservice.database.transactions import transaction
from tests.support.api_client import RemoteClient
from tests.support.apps import without_routes
from tests.support.browser import Visitor, check_accessible
from tests.support.service import Service

PHONE = {"has_touch": True, "is_mobile": True, "viewport": {"width": 390, "height": 844}}


def scroll(page: Page, pixels: int) -> None:
    page.evaluate("y => scrollTo(0, y)", pixels)
    page.wait_for_function("y => scrollY === y", arg=pixels)


def make_old(service: Service, tasks: list[dict[str, Any]], days: int) -> None:
    ids, created_at = [task["id"] for task in tasks], clock.now(-86_400.0 * days)
    with without_routes(Config.from_environment(service.environment)), transaction() as connection:
        connection.execute(update(Task).where(Task.id.in_(ids)).values(created_at=created_at))


@pytest.fixture
def failures(alice: RemoteClient) -> list[dict[str, Any]]:
    """Failed tasks, more than one page of them, every second one with a label."""
    tasks = [
        alice.start(name=f"Task {number:02}", labels={"env": "prod"} if number % 2 else {})
        for number in range(60)
    ]
    alice.request("POST", "/agent/summarizer/claim").raise_for_status()
    for task in tasks:
        body = {"status": "error", "error": {"message": "the disk is full"}}
        alice.request("PATCH", f"/task/{task['id']}", json=body).raise_for_status()
    return tasks


@pytest.mark.usefixtures("failures")
def test_list_stays_where_it_was_after_filters_and_pages(visitor: Visitor) -> None:
    page = visitor.go()
    page.set_viewport_size({"width": 1280, "height": 600})
    names, filters = page.locator("#rows th > a:first-child"), page.locator("#filters")
    expect(names.first).to_have_text("Task 59")
    scroll(page, 40)
    tab = page.locator("#tab-failed")
    tab.click()
    page.wait_for_url(re.compile(r"\?errorType=failed$"))
    expect(tab).to_have_attribute("aria-current", "true")
    expect(tab).to_be_focused()
    expect(page.locator("#shown")).to_have_text("Tasks on this page: 50")
    page.get_by_label("Started").select_option("24h")
    page.wait_for_url(re.compile("started=24h"))
    expect(page.locator("#tab-all")).to_have_attribute("href", re.compile("started=24h"))
    assert page.evaluate("scrollY") == 40
    page.get_by_role("link", name="Next page").click()
    expect(names).to_have_count(10)
    # What had the focus is on the first page: the list has it, and its beginning is in view.
    expect(page.locator("#list")).to_be_focused()
    expect(filters).to_be_in_viewport()
    expect(names.first).to_be_in_viewport()
    page.go_back()
    expect(names).to_have_count(50)
    scroll(page, 1_200)
    label = page.locator("#rows").get_by_role("link", name="env:prod").locator("visible=true")
    label.nth(17).click()
    expect(names).to_have_text([f"Task {number:02}" for number in range(59, 0, -2)])
    expect(names.first).to_be_in_viewport()
    page.wait_for_function("Math.abs(filters.getBoundingClientRect().top) < 1")
    page.get_by_role("link", name="Remove the filter Label env:prod").click()
    expect(names).to_have_count(50)
    page.get_by_role("link", name="Show all tasks").click()
    page.wait_for_url(f"{visitor.url}/")
    expect(page.get_by_label("Started")).to_have_value("")
    check_accessible(page)


@pytest.mark.usefixtures("failures")
def test_list_stays_where_it_was_after_a_change_of_tasks(visitor: Visitor) -> None:
    page = visitor.go("/?errorType=failed")
    page.set_viewport_size({"width": 1280, "height": 600})
    scroll(page, 900)
    for number in (40, 41):
        page.get_by_role("row", name=f"Task {number}").get_by_role("checkbox").check()
    expect(page.locator("#selected-count")).to_have_text("2 selected")
    place = page.evaluate("scrollY")
    assert place > 800
    page.get_by_role("button", name="Delete…").click()
    page.get_by_role("button", name="Delete permanently").click()
    expect(page.get_by_role("row", name="Task 39")).to_be_in_viewport()
    assert page.evaluate("scrollY") == place
    expect(page.get_by_text("2 tasks deleted.")).to_be_in_viewport(ratio=1)


def test_shift_selects_all_between_two_boxes(visitor: Visitor, alice: RemoteClient) -> None:
    for number in range(6):
        alice.start(name=f"Task {number}")
    page = visitor.go()
    boxes, count = page.get_by_label("Select this task"), page.locator("#selected-count")
    whole = page.get_by_label("Select this page")
    boxes.nth(1).click()
    boxes.nth(4).click(modifiers=["Shift"])
    expect(count).to_have_text("4 selected")
    expect(whole).not_to_be_checked()
    assert whole.evaluate("box => box.indeterminate")
    # It takes the selection away too, and a new task does not move it.
    alice.start(name="Later")
    expect(page.locator("#rows tr")).to_have_count(7)
    boxes.nth(3).click(modifiers=["Shift"])
    expect(count).to_have_text("1 selected")
    whole.check()
    expect(count).to_have_text("7 selected")
    check_accessible(page)
    boxes.nth(0).uncheck()
    expect(whole).not_to_be_checked()
    page.get_by_role("button", name="Cancel…").click()
    expect(page.get_by_role("heading")).to_have_text("Cancel 6 tasks?")


def test_old_tasks_are_deleted_with_four_clicks(
    visitor: Visitor, alice: RemoteClient, service: Service
) -> None:
    make_old(service, [alice.start(name=f"Old {number}") for number in range(30)], 31)
    alice.start(name="New")
    page = visitor.go()
    page.get_by_label("Started").select_option(label="Older than 30 days")
    expect(page.locator("#rows tr")).to_have_count(30)
    page.get_by_label("Select this page").check()
    page.get_by_role("button", name="Delete…").click()
    expect(page.get_by_role("heading")).to_have_text("Delete 30 tasks?")
    page.get_by_role("button", name="Delete permanently").click()
    expect(page.locator("#no-match")).to_be_visible()
    assert [task["name"] for task in alice.request("GET", "/task").json()] == ["New"]


def test_children_open_in_place(visitor: Visitor, alice: RemoteClient) -> None:
    parent = alice.start(name="Parent", claim=True)
    for number in range(3):
        child = alice.start(name=f"Child {number}", claim=True, parentId=parent["id"])
    alice.start(name="Single")
    page = visitor.go()
    names = page.locator("#rows th > a:first-child")
    expect(names).to_have_text(["Single", "Parent"])
    fold = page.get_by_role("link", name="Show 3 children")
    fold.focus()
    page.keyboard.press("Enter")
    expect(names).to_have_text(["Single", "Parent", "Child 0", "Child 1", "Child 2"])
    expect(page.get_by_role("link", name="Hide 3 children")).to_be_focused()
    check_accessible(page)
    body = {"status": "error", "error": {"message": "no"}}
    alice.request("PATCH", f"/task/{child['id']}", json=body).raise_for_status()
    expect(page.get_by_role("row", name="Child 2")).to_contain_text("failed")
    expect(page.get_by_role("link", name="Hide 3 children")).to_contain_text("1 failed")
    names.nth(3).click()
    page.get_by_role("heading", name="Child 1").wait_for()
    page.go_back()
    expect(names).to_have_count(5)
    page.get_by_role("link", name="Hide 3 children").click()
    expect(names).to_have_text(["Single", "Parent"])
    page.locator("#tab-running").click()
    expect(names).to_have_text(["Child 1", "Child 0", "Parent"])
    page.get_by_role("row", name="Child 0").get_by_role("link", name="Parent").click()
    page.get_by_role("heading", name="Parent").wait_for()


def test_name_of_an_agent_leads_to_it(visitor: Visitor, alice: RemoteClient) -> None:
    alice.start("etl-orders", name="Orders of acme")
    page = visitor.go()
    page.locator("#rows").get_by_role("link", name="etl-orders").click()
    page.wait_for_url(f"{visitor.url}/agents/etl-orders")
    page.get_by_role("link", name="All tasks").click()
    expect(page.locator("#chosen")).to_contain_text("Agent etl-orders")
    page.locator("#chosen").get_by_role("link", name="etl-orders", exact=True).click()
    page.wait_for_url(f"{visitor.url}/agents/etl-orders")


@pytest.mark.usefixtures("failures")
def test_filters_and_selection_work_without_scripts(
    chromium: Browser, service: Service, alice: RemoteClient
) -> None:
    visitor = Visitor(chromium, service.url, java_script_enabled=False, **PHONE)
    visitor.sign_in(alice.key)
    page = visitor.go()
    page.get_by_text("Filter", exact=True).click()
    page.get_by_label("Name").fill("task 1")
    page.get_by_role("button", name="Apply").click()
    expect(page.locator("#rows tr")).to_have_count(10)
    # The result is in view.
    expect(page.locator("#rows tr").first).to_be_in_viewport(ratio=1)
    page.get_by_label("Select this page").check()
    page.get_by_role("button", name="Delete…").click()
    expect(page.get_by_role("heading")).to_have_text("Delete 10 tasks?")
    visitor.close()
