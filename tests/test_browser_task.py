"""The page of one task in a real browser: its log, its output, and running it again."""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest
from flask import Flask
from playwright.sync_api import Browser, Page, expect

from taskservice.app import create_app
from taskservice.config import Config
from taskservice.database.engine import dispose
from taskservice.database.timestamps import rfc3339
from taskservice.webhooks.destinations import Destinations
from tests.support import sample_data
from tests.support.api_client import ApiClient, add_user
from tests.support.browser import CHROMIUM, Visitor, launched, violations
from tests.support.receiver import Receiver
from tests.support.requirements import needs
from tests.support.service import Service

TRACEBACK = [
    "Traceback (most recent call last):",
    '  File "agent.py", line 88, in read',
    "    return mailbox.fetch(batch)",
    "MailboxLocked: support@example.org is locked",
]


@dataclass
class Site:
    """A service in use, and an app of this process on its data."""

    url: str
    app: Flask
    alice: ApiClient
    receiver: Receiver


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    if CHROMIUM is None:
        needs("Chromium", "install the package chromium")
    with launched() as browser:
        yield browser


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    data = tmp_path_factory.mktemp("site") / "data"
    config = Config(
        DATA=data,
        SECRET_KEY="a secret key for tests, long enough",
        CALLBACK_ALLOWED=Destinations.parse("loopback"),
    ).completed()
    with ExitStack() as stack:
        receiver = stack.enter_context(Receiver())
        app = create_app(config)
        stack.callback(dispose, app)
        alice = add_user(app, "alice")
        service = stack.enter_context(Service(data))
        yield Site(service.url, app, alice, receiver)


@pytest.fixture
def visitor(chromium: Browser, site: Site) -> Iterator[Visitor]:
    """Alice's window, signed in; whatever it did, it must have done quietly."""
    visitor = Visitor(chromium, site.url, viewport={"width": 1440, "height": 900})
    visitor.sign_in(site.alice.key)
    yield visitor
    visitor.check()
    visitor.close()


def start(site: Site, **fields: Any) -> dict[str, Any]:
    return site.alice.start(claim=True, **fields)


def open_task(visitor: Visitor, task: dict[str, Any]) -> Page:
    return visitor.go(f"/tasks/{task['id']}")


def check_accessible(page: Page) -> None:
    """A page has no fault in light and wide, nor in dark and narrow."""
    for scheme, width in (("light", 1440), ("dark", 390)):
        page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
        page.set_viewport_size({"width": width, "height": 844})
        page.wait_for_timeout(100)
        assert violations(page) == []
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


# --- the log -----------------------------------------------------------------------------


def noisy_log(site: Site, task: dict[str, Any]) -> None:
    """1,500 lines: one of 30 a warning, two errors, and a traceback near the end."""
    lines = [
        f"\x1b[33mWARNING\x1b[0m slow {n}" if n % 30 == 0 else f"info line {n}, no error"
        for n in range(1, 1_501)
    ]
    lines[99] = "2026-11-25 12:00:01,123 ERROR agent: first of all"
    lines[799] = "\x1b[31merror\x1b[0m  in the middle"
    lines[1_400:1_404] = TRACEBACK
    site.alice.append(task, *lines)


def test_failed_task_shows_the_end_of_its_log_within_the_window(
    visitor: Visitor, site: Site
) -> None:
    task = start(site, name="Fails")
    noisy_log(site, task)
    site.alice.report(task, status="error", error={"message": "\n".join(TRACEBACK)})
    for width, height in ((1440, 900), (390, 844)):
        visitor.page.set_viewport_size({"width": width, "height": height})
        page = open_task(visitor, task)
        expect(page.locator(".reason")).to_have_text(TRACEBACK[-1])
        expect(page.locator("#log .line").last).to_contain_text("slow 1500")
        expect(page.locator("#log .line").last).to_be_in_viewport(ratio=0.9)
        box = page.locator("#log").bounding_box()
        assert box
        assert box["y"] + box["height"] <= height
    marked = page.locator("#log .marked")
    page.get_by_role("button", name="Last error").click()
    expect(marked).to_contain_text(TRACEBACK[-1])
    page.get_by_role("button", name="First error").click()
    expect(marked).to_contain_text("first of all")
    expect(page.locator("#log-found")).to_have_text("Line 100")
    check_accessible(page)


def test_log_without_an_error_says_so(visitor: Visitor, site: Site) -> None:
    task = start(site, name="Fine")
    site.alice.append(task, "0 errors", "no error", "error_count = 0", "errors: none")
    site.alice.report(task, status="complete")
    page = open_task(visitor, task)
    for button in ("First error", "Last error"):
        page.get_by_role("button", name=button).click()
        expect(page.locator("#log-found")).to_have_text("No error found")


def test_search_counts_and_marks_its_matches(visitor: Visitor, site: Site) -> None:
    task = start(site, name="Searched")
    noisy_log(site, task)
    page = open_task(visitor, task)
    found, marked = page.locator("#log-found"), page.locator("#log .marked")
    page.get_by_role("button", name="Start").click()
    page.get_by_label("Find in the log").fill("WARNING SLOW")
    expect(found).to_have_text("50 found")
    page.get_by_role("button", name="Next match").click()
    expect(found).to_have_text("1 of 50")
    expect(marked).to_contain_text("slow 30")
    page.get_by_role("button", name="Next match").click()
    expect(found).to_have_text("2 of 50")
    for _ in range(2):
        page.get_by_role("button", name="Previous match").click()
    expect(found).to_have_text("50 of 50")
    expect(marked).to_contain_text("slow 1500")
    # Also across the end of a colour.
    assert page.evaluate("[...CSS.highlights.get('found')].map(String)")[0] == "WARNING slow"
    site.alice.append(task, "warning slow again")
    expect(found).to_have_text("50 of 51")
    page.get_by_label("Find in the log").press("Escape")
    expect(found).to_be_empty()
    assert not page.evaluate("CSS.highlights.has('found')")
    site.alice.report(task, status="complete")


def test_levels_filter_the_log(visitor: Visitor, site: Site) -> None:
    task = start(site, name="Filtered")
    noisy_log(site, task)
    page = open_task(visitor, task)
    count, rows = page.locator("#log-count"), page.locator("#log .line")
    page.get_by_role("button", name="Errors").click()
    expect(count).to_have_text("6 of 1,500 lines")
    expect(rows).to_have_count(6)
    assert rows.locator("a").all_text_contents() == ["100", "800", "1401", "1402", "1403", "1404"]
    site.alice.append(task, "info fine", "FATAL no more")
    expect(count).to_have_text("7 of 1,502 lines")
    expect(rows.last).to_contain_text("FATAL no more")
    page.get_by_role("button", name="Warnings").click()
    expect(count).to_have_text("57 of 1,502 lines")
    page.get_by_label("Find in the log").fill("slow 6")
    expect(page.locator("#log-found")).to_have_text("5 found")
    page.get_by_role("button", name="Errors").click()
    page.get_by_role("button", name="Warnings").click()
    expect(count).to_have_text("1,502 lines")
    # A line that the filter leaves out is shown all the same when it is asked for.
    page.get_by_role("button", name="Errors").click()
    expect(rows).to_have_count(7)
    page.evaluate("location.hash = 'L1234'")
    expect(page.locator("#log .marked")).to_contain_text("info line 1234")
    expect(count).to_have_text("1,502 lines")
    site.alice.report(task, status="complete")


def test_times_of_lines_are_shown_as_the_reader_likes(visitor: Visitor, site: Site) -> None:
    task = start(site, name="Timed")
    begin = sample_data.shift(site.app, task, 86_400)
    seconds = [0, 1.5, 61.5, 62, 162.25]
    lines = [f"line {n}" for n in range(len(seconds))]
    at = [rfc3339(begin + timedelta(seconds=each)) for each in seconds]
    site.alice.append(task, *lines, at=at)
    page = open_task(visitor, task)
    rows = page.locator("#log .line")
    expect(rows.nth(2)).to_have_attribute("data-pause", "1 min 0 s")
    assert [row.get_attribute("data-pause") for row in rows.all()] == [
        None, None, "1 min 0 s", None, "1 min 40 s",
    ]  # fmt: skip
    choice, times = page.get_by_label("Times of the lines"), page.locator("#log .line > time")
    assert times.all_text_contents() == [""] * 5
    choice.select_option("Since the start")
    expect(times.last).to_have_text("2:42.250")
    expect(times.nth(1)).to_have_text("0:01.500")
    choice.select_option("Since the line before")
    expect(times.last).to_have_text("+1:40.250")
    expect(times.first).to_be_empty()
    choice.select_option("Clock")
    # The browser is in the time zone of this machine.
    clock = f"{begin.astimezone():%H:%M:%S}.{begin.microsecond // 1000:03}"
    expect(times.first).to_have_text(clock)
    # Also those that come live, and on the next page.
    site.alice.append(task, "now")
    expect(rows.last).to_contain_text("now")
    expect(times.last).not_to_have_text(clock)
    expect(times.last).not_to_be_empty()
    page.reload()
    expect(times.first).not_to_be_empty()
    assert page.evaluate("localStorage.times") == "clock"
    check_accessible(page)
    site.alice.report(task, status="complete")
