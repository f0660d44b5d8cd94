"""The task page in a real browser: its log, its output, and running it again."""

import json
import re
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from flask import Flask
from playwright.sync_api import Browser, Page, Route, expect

from taskservice.app import create_app
from taskservice.config import Config
from taskservice.database.clock import rfc3339
from taskservice.database.engine import dispose
from taskservice.webhooks.destinations import Destinations
from tests.support import sample_data
from tests.support.api_client import ApiClient, add_user
from tests.support.browser import Visitor, check_accessible, log_menu, violations
from tests.support.internals import end_for_silence, hang
from tests.support.receiver import Receiver, answer
from tests.support.service import Service
from tests.support.waiting import until

TRACEBACK = [
    "Traceback (most recent call last):",
    '  File "agent.py", line 88, in read',
    "    return mailbox.fetch(batch)",
    "MailboxLocked: support@example.org is locked",
]


@dataclass
class Site:
    """A service in use, an app of this process on its data, and a user."""

    url: str
    app: Flask
    alice: ApiClient


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Flask]]:
    """One service for all tests of this module, and the app."""
    data = tmp_path_factory.mktemp("site") / "data"
    config = Config(
        DATA=data,
        SECRET_KEY="a secret key for tests, long enough",
        CALLBACK_ALLOWED=Destinations.parse("loopback"),
    ).completed()
    with ExitStack() as stack:
        app = create_app(config)
        stack.callback(dispose, app)
        yield stack.enter_context(Service(data)).url, app


@pytest.fixture
def site(served: tuple[str, Flask]) -> Site:
    """With a new user in each test, so that none finds what an earlier one has left."""
    return Site(*served, add_user(served[1], f"alice {uuid4()}"))


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


# Whether the match to which the reader has gone is in the window.
IS_IN_VIEW = """() => {
  const [range] = CSS.highlights.get("current-in-output");
  const { top, bottom } = range.getBoundingClientRect();
  return top >= 0 && bottom <= innerHeight;
}"""


def highlighted(page: Page, name: str) -> list[str]:
    """The texts that a search has marked."""
    return list(page.evaluate("name => [...(CSS.highlights.get(name) ?? [])].map(String)", name))


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
    log_menu(page).get_by_role("button", name="Go to the last error").click()
    expect(marked).to_contain_text(TRACEBACK[-1])
    page.get_by_role("button", name="First error").click()
    expect(marked).to_contain_text("first of all")
    expect(page.locator("#log-found")).to_have_text("Line 100")
    check_accessible(page)


# The words of a text that a line break splits, of short words outside of code.
BROKEN_WORDS = """() => {
  const broken = [];
  const walker = document.createTreeWalker(document.querySelector("main"), NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    if (node.parentElement.closest("pre, code, #log, .new-lines")) continue;
    for (const { index, 0: word } of node.data.matchAll(/\\p{L}{2,20}/gu)) {
      const range = new Range();
      range.setStart(node, index);
      range.setEnd(node, index + word.length);
      if (new Set(Array.from(range.getClientRects(), ({ top }) => top)).size > 1) broken.push(word);
    }
  }
  return broken;
}"""


def long_failure(site: Site) -> tuple[dict[str, Any], list[str]]:
    """A good run, and one with other labels that fails with a traceback of 30 lines in its log."""
    lines = [f"INFO order {n}: 3 items" for n in range(400)]
    frames = [f'  File "/srv/etl/step{"x" * n}.py", line {n}, in load' for n in range(28)]
    traceback = [TRACEBACK[0], *frames, TRACEBACK[-1]]
    good = start(site, labels={"version": "4.1", "customer": "acme"}, input={"batch": 200})
    site.alice.append(good, *lines[:30])
    site.alice.report(good, status="complete", output={"orders": 30, "rows": list(range(99))})
    failed = start(site, labels={"version": "4.2", "customer": "acme"}, input={"batch": 500})
    site.alice.append(failed, *lines, "WARN no currency", *lines[:20], *traceback)
    error = {"message": "\n".join(traceback)}
    return site.alice.report(failed, status="error", error=error), traceback


def test_failed_task_shows_each_part_once_and_its_message_first(
    visitor: Visitor, site: Site
) -> None:
    task, traceback = long_failure(site)
    for width, height in ((1440, 900), (390, 844)):
        visitor.page.set_viewport_size({"width": width, "height": height})
        page = open_task(visitor, task)
        expect(page.locator("#new-lines table")).to_be_visible()
        expect(page.locator("#log .line").last).to_contain_text(traceback[-1])
        tops = [
            page.locator(part).evaluate("part => part.getBoundingClientRect().top")
            for part in ("#failure", "#log", "#new", "#new-lines table")
        ]
        assert tops == sorted(tops)
        assert tops[1] <= 500
        frame = page.get_by_text(traceback[-2])
        assert [text.is_visible() for text in frame.all()].count(True) == 1
        expect(page.locator("#new-lines li").first).to_contain_text("WARN no currency")
        expect(page.locator("#new-end summary")).to_have_text(
            "30 lines at the end of the log, from line 422 on"
        )
        assert page.evaluate(BROKEN_WORDS) == []
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.locator("#message summary").click()
    expect(page.get_by_label("Error message")).to_contain_text(traceback[1])
    check_accessible(page)


def test_page_says_first_that_its_task_hangs(visitor: Visitor, site: Site) -> None:
    task = start(site, name="Stuck")
    site.alice.append(task, "one line")
    site.alice.report(task, progress=0.5)
    hang(site.app, task)
    page = open_task(visitor, task)
    expect(page.locator("#hangs")).to_contain_text("This task hangs")
    expect(page.locator("#progress time")).to_have_count(0)
    tops = [
        page.locator(part).evaluate("part => part.getBoundingClientRect().top")
        for part in ("h1", "#hangs", "#progress", "#log")
    ]
    assert tops == sorted(tops)
    check_accessible(page)
    site.alice.report(task, status="complete")
    expect(page.locator("#hangs")).to_have_count(0)


def test_message_that_is_not_in_the_log_is_open(visitor: Visitor, site: Site) -> None:
    task = start(site)
    site.alice.append(task, "one line")
    site.alice.report(task, status="error", error={"message": "\n".join(TRACEBACK)})
    page = open_task(visitor, task)
    expect(page.locator(".reason")).to_have_text(TRACEBACK[-1])
    expect(page.get_by_label("Error message")).to_be_visible()


def test_few_controls_of_a_log_are_in_one_row(visitor: Visitor, site: Site) -> None:
    task = start(site)
    site.alice.append(task, *(f"line {n}" for n in range(100)))
    controls = "#log-card .head :is(button, select, input, summary, a):visible"
    for width, height in ((1440, 900), (390, 844)):
        visitor.page.set_viewport_size({"width": width, "height": height})
        page = open_task(visitor, task)
        expect(page.get_by_role("button", name="Pause")).to_be_visible()
        for text in ("", "line 7"):
            page.get_by_label("Find in the log").fill(text)
            expect(page.get_by_role("button", name="Next match")).to_be_visible(visible=bool(text))
            boxes = [control.bounding_box() for control in page.locator(controls).all()]
            middles = [box["y"] + box["height"] / 2 for box in boxes if box]
            assert len(middles) <= 5
            assert max(middles) - min(middles) < 3
    # The menu works by keyboard.
    menu = page.locator("#log-menu")
    menu.locator("summary").focus()
    page.keyboard.press("Enter")
    expect(menu.get_by_label("Wrap long lines")).to_be_visible()
    check_accessible(page)
    page.keyboard.press("Tab")
    expect(menu.get_by_role("button", name="Go to the last error")).to_be_focused()
    page.keyboard.press("Escape")
    expect(menu.get_by_label("Wrap long lines")).to_be_hidden()
    expect(menu.locator("summary")).to_be_focused()
    log_menu(page).get_by_role("button", name="Go to the start").click()
    expect(menu.get_by_label("Wrap long lines")).to_be_hidden()
    expect(page.locator("#log")).to_be_focused()
    site.alice.post(f"/task/{task['id']}/cancel")


def test_log_says_that_it_has_no_error(visitor: Visitor, site: Site) -> None:
    task = start(site, name="Fine")
    site.alice.append(task, "0 errors", "no error", "error_count = 0", "errors: none")
    site.alice.report(task, status="complete")
    page = open_task(visitor, task)
    log_menu(page)
    for button in ("Go to the last error", "First error"):
        page.get_by_role("button", name=button).click()
        expect(page.locator("#log-found")).to_have_text("No error found")


LEVELS = {
    "error": [
        "ERROR: x", "2026-11-25 12:00:01,123 ERROR agent: x", "[error] x", "Error: x",
        "agent: error: x", "level=error msg=x", '{"level":"error","msg":1}', "FATAL no",
        "CRITICAL x", "panic: runtime error", "thread 'main' panicked at x",
        "Traceback (most recent call last):",
        "ValueError: x", "  java.lang.NullPointerException: x", "Caused by: x", "npm ERR! x",
        "src/a.c:3:1: error: x", "error[E0308]: x", "Segmentation fault (core dumped)",
        "Uncaught TypeError: x",
        "Connection timed out", "ssh: connect to host db port 22: Connection refused",
        "git@example.org: Permission denied (publickey).", "cannot open /srv/x",
        "python: can't open file 'x.py'", "fatal: not a git repository", "Aborted (core dumped)",
        "cp: cannot stat 'x': No such file or directory", "A fatal error has occurred",
        "exit status 255", "process exited with code 1", "sh: 1: rsnc: command not found",
        "subprocess returned non-zero exit status 2", "Host db: exit code: 3", "abort!",
    ],
    "warning": ["WARN x", "warning: x", "2026-01-01T00:00:00Z warn x"],
    "info": ["INFO x", "2026-01-01T00:00:00Z info x", "info line 3, no error"],
    "debug": ["DEBUG x", "level=trace x"],
    None: [
        "0 errors", "no error", "error_count = 0", "errors: none", "error = 0", "error-free run",
        "finished without errors", "The Error is human", "infomail", "ERROR_LOG=/tmp/x", "",
        "information about", "0 requests timed out", "no connection refused", "refused: 0",
        "exit status 0", "exited with code 0", "a non-fatal error", "denied_hosts = 3",
        "what you cannot see", "the deployment was not aborted", "timeout=30", "abortive",
"[" * 10_000, "a.b-c/" * 2_000,
    ],
}  # fmt: skip


def test_level_of_a_line_follows_from_its_words(visitor: Visitor, site: Site) -> None:
    page = visitor.go()
    lines = [line for level_lines in LEVELS.values() for line in level_lines]
    shown = page.evaluate(
        "async lines => { const { levelOf } = await import('./static/levels.js');"
        " return lines.map(levelOf); }", lines
    )  # fmt: skip
    levels = [level for level, level_lines in LEVELS.items() for _ in level_lines]
    assert list(zip(lines, shown, strict=True)) == list(zip(lines, levels, strict=True))


def test_lines_have_links_and_the_colours_of_their_levels(visitor: Visitor, site: Site) -> None:
    task = start(site)
    address = "https://a.example/run?id=1"
    lines = [
        f"WARNING see {address}, then (http://b.example/x).",
        "ERROR <a href='https://c.example'>no</a> javascript:alert(1) https://d.example/\u202egnp",
        f"\x1b[32minfo {address}\x1b[0m",
        "at \x1b[36mhttp://localhost:\x1b[1m5173\x1b[22m/\x1b[39m now",
        "done",
    ]
    site.alice.append(task, *lines)
    page = open_task(visitor, task)
    line = page.locator("#log .line > span")
    second = lines[1].replace("\u202e", "\\u202e")
    expect(line).to_have_text(
        [lines[0], second, f"info {address}", "at http://localhost:5173/ now", "done"]
    )
    links = page.locator("#log .line > span a")
    assert [link.get_attribute("href") for link in links.all()] == [
        address, "http://b.example/x", "https://c.example/", "https://d.example/", address,
        *["http://localhost:5173/"] * 3,
    ]  # fmt: skip
    for link in links.all():
        assert link.get_attribute("rel") == "noopener noreferrer"
        assert link.get_attribute("target") == "_blank"
    colours = line.evaluate_all("all => all.map((each) => getComputedStyle(each).color)")
    assert len({*colours[:2], colours[-1]}) == 3
    assert colours[2] == colours[-1]
    # The numbers are the links that select lines.
    page.locator("#log .line > a").first.click()
    page.locator("#log .line > a").nth(1).click(modifiers=["Shift"])
    expect(page.locator(".line.marked")).to_have_count(2)
    check_accessible(page)
    site.alice.report(task, status="complete")


def test_search_counts_and_marks_its_matches(visitor: Visitor, site: Site) -> None:
    task = start(site, name="Searched")
    noisy_log(site, task)
    page = open_task(visitor, task)
    counter, marked = page.locator("#log-found"), page.locator("#log .marked")
    log_menu(page).get_by_role("button", name="Go to the start").click()
    page.get_by_label("Find in the log").fill("WARNING SLOW")
    expect(counter).to_have_text("50 found")
    page.get_by_role("button", name="Next match").click()
    expect(counter).to_have_text("1 of 50")
    expect(marked).to_contain_text("slow 30")
    page.get_by_role("button", name="Next match").click()
    expect(counter).to_have_text("2 of 50")
    for _ in range(2):
        page.get_by_role("button", name="Previous match").click()
    expect(counter).to_have_text("50 of 50")
    expect(marked).to_contain_text("slow 1500")
    # Also across the end of a colour.
    until(lambda: "WARNING slow" in highlighted(page, "found"))
    site.alice.append(task, "warning slow again")
    expect(counter).to_have_text("50 of 51")
    page.get_by_label("Find in the log").press("Escape")
    expect(counter).to_be_empty()
    until(lambda: not highlighted(page, "found"))
    site.alice.report(task, status="complete")


def test_levels_filter_the_log(visitor: Visitor, site: Site) -> None:
    task = start(site, name="Filtered")
    noisy_log(site, task)
    page = open_task(visitor, task)
    count, rows = page.locator("#log-count"), page.locator("#log .line")
    errors, warnings = (log_menu(page).get_by_label(name) for name in ("Errors", "Warnings"))
    errors.check()
    expect(count).to_have_text("6 of 1,500 lines")
    expect(rows).to_have_count(6)
    assert rows.locator("a").all_text_contents() == ["100", "800", "1401", "1402", "1403", "1404"]
    site.alice.append(task, "info fine", "FATAL no more")
    expect(count).to_have_text("7 of 1,502 lines")
    expect(rows.last).to_contain_text("FATAL no more")
    warnings.check()
    expect(count).to_have_text("57 of 1,502 lines")
    page.get_by_label("Find in the log").fill("slow 6")
    expect(page.locator("#log-found")).to_have_text("5 found")
    log_menu(page)
    errors.uncheck()
    warnings.uncheck()
    expect(count).to_have_text("1,502 lines")
    # A line that the filter leaves out is shown all the same when it is asked for.
    errors.check()
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
    at = [rfc3339(begin + timedelta(seconds=offset)) for offset in seconds]
    site.alice.append(task, *lines, at=at)
    page = open_task(visitor, task)
    rows = page.locator("#log .line")
    texts = page.locator("#log .line > span")
    expect(texts.nth(2)).to_have_attribute("data-pause", "1 min 0 s")
    assert [text.get_attribute("data-pause") for text in texts.all()] == [
        None, None, "1 min 0 s", None, "1 min 40 s",
    ]  # fmt: skip
    choice, times = log_menu(page).get_by_label("Times"), page.locator("#log .line > time")
    assert times.all_text_contents() == [""] * 5
    choice.select_option("Since the start")
    expect(times.last).to_have_text("2:42.250")
    expect(times.nth(1)).to_have_text("0:01.500")
    choice.select_option("Since the previous line")
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


# For each pace of a log, the seconds between its lines, and the places of the marked pauses.
PACES: dict[str, tuple[list[float], list[int]]] = {
    "a steady one": ([37] * 20, []),
    "several lines at each of its rounds": ([0, 0, 0.1, 60] * 6, []),
    "steady until it waits": ([37] * 20 + [400.0] + [37] * 3, [21]),
    "fast until it waits": ([0.2] * 30 + [38, 0.2, 31], [31, 33]),
    "two lines": ([60], [1]),
    "too short a pause": ([0.1] * 10 + [29], []),
}


def test_pause_is_marked_that_is_long_for_its_log(
    visitor: Visitor, site: Site, subtests: pytest.Subtests
) -> None:
    for name, (pauses, marked) in PACES.items():
        with subtests.test(name):
            task = start(site, name=name)
            begin = sample_data.shift(site.app, task, sum(pauses) + 1)
            texts = [f"line {n}" for n in range(len(pauses) + 1)]
            sample_data.append_over(site.alice, task, texts, begin, [0, *pauses])
            site.alice.report(task, status="complete")
            page = open_task(visitor, task)
            expect(page.locator("#log .line")).to_have_count(len(texts))
            places = page.locator("#log .line").evaluate_all(
                "all => all.flatMap((line, n) => line.lastElementChild.dataset.pause ? [n] : [])"
            )
            assert places == marked


def test_silence_before_the_end_of_a_task_is_marked(visitor: Visitor, site: Site) -> None:
    task = start(site, name="Hangs")
    begin = sample_data.shift(site.app, task, 300)
    lines = [*(f"line {n}" for n in range(100)), "connecting"]
    site.alice.append(task, *lines, at=rfc3339(begin + timedelta(seconds=170.5)))
    page = open_task(visitor, task)
    mark = page.locator("#log-silence")
    expect(mark).to_have_text(re.compile(r"no output for 2 min \d+ s"))
    expect(mark).to_be_in_viewport(ratio=0.9)
    site.alice.append(task, "connected")
    expect(mark).to_be_hidden()
    site.alice.report(task, status="error", error={"message": "exit status 255"})
    expect(page.locator(".failure")).to_be_visible()
    expect(mark).to_be_hidden()
    task = start(site, name="Hangs again")
    begin = sample_data.shift(site.app, task, 300)
    site.alice.append(task, *lines, at=rfc3339(begin + timedelta(seconds=10)))
    end_for_silence(site.app, task)
    sample_data.shift(site.app, task, 300, 50.5)
    for width, height in ((1440, 900), (390, 844)):
        visitor.page.set_viewport_size({"width": width, "height": height})
        page = open_task(visitor, task)
        expect(mark).to_have_text("no output for 40 s, then timed out")
        expect(mark).to_be_in_viewport(ratio=0.9)
    check_accessible(page)


def test_log_says_that_it_has_no_lines_of_a_level(visitor: Visitor, site: Site) -> None:
    task = start(site, name="Harmless")
    site.alice.append(task, "info one", "info two", "warning three")
    site.alice.report(task, status="error", error={"message": "exit status 255"})
    page = open_task(visitor, task)
    rows, copy = page.locator("#log .line"), page.get_by_role("button", name="Copy line 2")
    expect(page.locator("#details time").first).to_have_text(re.compile(r"^\d\d:\d\d:\d\d \("))
    # A failed task shows when each line came, in the same form.
    expect(page.locator("#log-times")).to_have_value("clock")
    expect(rows.locator("time").first).to_have_text(re.compile(r"\d\d:\d\d:\d\d\.\d{3}"))
    rows.nth(1).get_by_role("link").click()
    expect(copy).to_be_visible()
    errors, warnings = (log_menu(page).get_by_label(name) for name in ("Errors", "Warnings"))
    errors.check()
    expect(page.locator("#log-no-lines")).to_contain_text("No error lines")
    expect(copy).to_be_hidden()
    check_accessible(page)
    log_menu(page)
    warnings.check()
    expect(rows).to_have_count(1)
    expect(page.locator("#log-no-lines")).to_be_hidden()
    warnings.uncheck()
    page.keyboard.press("Escape")
    expect(page.locator("#log-menu summary")).to_be_focused()
    page.get_by_role("button", name="Show all").click()
    expect(rows).to_have_count(3)
    expect(copy).to_be_visible()
    expect(errors).not_to_be_checked()
    log_menu(page).get_by_label("Times").select_option("Hide")
    page.reload()
    expect(page.locator("#log-times")).to_have_value("")


# --- the output --------------------------------------------------------------------------


def complete(site: Site, output: dict[str, Any], name: str = "With an output") -> dict[str, Any]:
    task = start(site, name=name)
    site.alice.report(task, status="complete", output=output)
    return task


def test_output_is_shown_as_it_is_read(visitor: Visitor, site: Site) -> None:
    page = open_task(visitor, complete(site, sample_data.OUTPUT))
    view = page.locator("#output-view")
    expect(view.get_by_role("heading", name="Monday, 23 November")).to_be_visible()
    expect(view.locator("strong")).to_have_text("3 of them urgent")
    expect(view.locator("ol > li")).to_have_count(2)
    expect(view.locator("ol ul > li")).to_have_count(2)
    expect(view.locator("blockquote, pre, em")).to_have_count(3)
    link = view.get_by_role("link", name="the incident")
    expect(link).to_have_attribute("href", "https://status.example.org/214")
    assert {element.get_attribute("rel") for element in view.locator("a").all()} == {
        "noopener noreferrer"
    }
    expect(page.locator("#output-json")).to_be_hidden()
    page.get_by_role("button", name="Raw").click()
    expect(page.locator("#output-json")).to_be_visible()
    expect(view).to_be_hidden()
    page.get_by_role("button", name="Raw").click()
    expect(view).to_be_visible()
    check_accessible(page)


def test_tables_answers_and_code_keep_the_rules_of_accessibility(
    visitor: Visitor, site: Site, receiver: Receiver
) -> None:
    receiver.answer = answer(503, body=b"The queue is full\n" * 50)
    task = start(site, name="Answered", callback=receiver.url)
    rows = [{"name": f"row {n}", "text": "long " * 20} for n in range(3)]
    tables = "| a | b |\n|---|---|\n| 1 | 2 |\n"
    text = f"### Third\n\n{tables}\n# First\n\n{tables}\n```\n{'code ' * 99}\n```\n\n#### Fourth"
    output = {"one": rows, "other": rows, "text": text}
    site.alice.report(task, status="complete", output=output)
    expect(open_task(visitor, task).locator(".attempts pre")).to_have_count(1)
    site.alice.post(f"/task/{task['id']}/deliveries")
    receiver.wait_for(2)
    page = visitor.page
    expect(page.locator(".attempts pre")).to_have_count(2)
    check_accessible(page)


# A GIF of one pixel, and a PNG that is none.
PIXEL = "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"
BROKEN = "data:image/png;base64,AAAA"
SVG = "data:image/svg+xml;base64,PHN2ZyB4bWxucz0iaHR0cDovL3d3dy53My5vcmcvMjAwMC9zdmciLz4="


def test_images_of_an_output_are_shown(visitor: Visitor, site: Site) -> None:
    output = {"plot": PIXEL, "pages": [{"page": 1, "shot": PIXEL}], "broken": BROKEN, "svg": SVG}
    task = complete(site, output)
    page = visitor.go(f"/tasks/{task['id']}")
    images = page.locator("#output-view img")
    expect(images).to_have_count(2)
    assert images.evaluate_all("images => images.every((image) => image.naturalWidth === 1)")
    for text in (BROKEN, SVG):
        expect(page.locator("#output-view")).to_contain_text(text)
    assert violations(page) == []


def test_table_of_an_output_sorts_by_its_columns(visitor: Visitor, site: Site) -> None:
    rows = [{"name": f"row {n}", "size": (n * 7_919) % 10_007} for n in range(10_000)]
    rows[3]["size"], rows[4] = 12345678901234567890, {"name": "row 4"}
    rows[5]["size"] = None
    page = open_task(visitor, complete(site, {"rows": rows}))
    cells = page.locator("#output-view tbody tr")
    expect(cells).to_have_count(50)
    # A column of numbers is aligned at its end, with its head and where it has none.
    expect(page.locator("th.end")).to_have_text(["size"])
    expect(cells.nth(5).locator("td.end")).to_have_text("null")
    page.get_by_role("button", name="Show 50 more of 10,000 rows").click()
    expect(cells).to_have_count(100)
    page.get_by_role("button", name="size").click()
    expect(cells.first).to_have_text("row 00")
    expect(page.locator("th", has_text="size")).to_have_attribute("aria-sort", "ascending")
    page.get_by_role("button", name="size").click()
    # A number that JavaScript would round is shown as it was written.
    expect(cells.first).to_have_text("row 312345678901234567890")
    page.get_by_role("button", name="name").click()
    expect(cells.nth(10)).to_contain_text("row 10")


def test_output_is_searched(visitor: Visitor, site: Site) -> None:
    rows = [{"name": f"row {n}", "deep": {"a": {"b": [f"value {n}"]}}} for n in range(1_000)]
    text = f"{'x ' * 100_000}Needle{' y' * 100_000}"
    page = open_task(visitor, complete(site, {"rows": rows, "text": text, "other": "hay"}))
    field = page.get_by_label("Find in the output")
    field.fill("VALUE 77")
    expect(page.locator("#output-found")).to_have_text("11 found, the rest hidden")
    expect(page.locator("#output-view tbody tr")).to_have_count(11)
    expect(page.locator("#output-view")).to_contain_text("value 770")
    expect(page.locator("#output-view")).not_to_contain_text("hay")
    until(lambda: "value 77" in highlighted(page, "found-in-output"))
    field.fill("needle")
    expect(page.locator("#output-found")).to_have_text("1 found, the rest hidden")
    expect(page.locator("#output-view")).to_contain_text("x Needle y")
    page.get_by_role("button", name="Raw").click()
    field.fill("row 99")
    expect(page.locator("#output-found")).to_have_text("11 found")
    expect(page.locator("#output-json")).to_contain_text("hay")
    expect(page.locator("#output-json")).to_be_visible()
    field.press("Enter")
    expect(page.locator("#output-found")).to_have_text("1 of 11")
    field.press("Shift+Enter")
    expect(page.locator("#output-found")).to_have_text("11 of 11")
    assert highlighted(page, "current-in-output") == ["row 99"]
    assert page.evaluate(IS_IN_VIEW)
    field.fill("value 77")
    field.press("Enter")
    field.press("Enter")
    expect(page.locator("#output-found")).to_have_text("2 of 11")
    page.get_by_role("button", name="Raw").click()
    expect(page.locator("#output-found")).to_have_text("11 found, the rest hidden")
    field.press("Enter")
    expect(page.locator("#output-found")).to_have_text("1 of 11")
    assert page.evaluate(IS_IN_VIEW)
    field.fill("nowhere")
    expect(page.locator("#output-found")).to_have_text("Not found")
    field.fill("")
    expect(page.locator("#output-view")).to_contain_text("hay")


def test_hostile_output_is_text(visitor: Visitor, site: Site) -> None:
    hostile = sample_data.HOSTILE
    markdown = (
        f"# {hostile}\n\n[click](javascript:alert(1)) [data](data:text/html,x) "
        f"![image](https://evil.example/x.png) [{hostile}](https://example.org/<b>)\n\n"
        f"<iframe src=https://evil.example>\n\n| {hostile} |\n|---|\n| javascript:alert(1) |\n"
    )
    output = {
        "markdown": markdown,
        "__proto__": {"polluted": hostile},
        hostile: [{hostile: hostile, "url": "javascript:alert(1)"}],
        "text": f"{hostile} javascript:alert(1) https://a.example/\u202egnp.exe http://x@@",
        "deep": json.loads("[" * 60 + "]" * 60),
    }
    page = open_task(visitor, complete(site, output))
    view = page.locator("#output-view")
    expect(view).to_contain_text("\\u202etxt.exe")
    assert "\u202e" not in view.inner_text()
    assert page.evaluate("({}).polluted") is None
    assert view.locator("img, script, iframe, b, [style], [onerror]").count() == 0
    links = {str(link.get_attribute("href")) for link in view.locator("a").all()}
    assert links <= {
        "https://evil.example/x.png",
        "https://evil.example/",
        "https://example.org/%3Cb%3E",
        "https://a.example/",
    }
    assert page.title() != "owned"
    for _ in range(57):
        view.locator("details:not([open]) > summary").click()
    expect(view).to_contain_text("empty list")


def test_of_a_megabyte_only_the_beginning_is_drawn(visitor: Visitor, site: Site) -> None:
    size = 1_000_000
    item = "- **item** `code` [a](https://example.org)\n"
    row = {"b": "some text in a cell", "c": {"d": [1]}}
    outputs: dict[str, dict[str, Any]] = {
        "one string": {"text": "x" * size}, "one line of words": {"text": "word " * (size // 5)},
        "Markdown": {"text": "# Title\n\n" + item * 22_000}, "stars": {"text": "**" * (size // 2)},
        "brackets": {"text": "[" * size}, "spaces": {"text": "# " + " " * (size - 10) + "x"},
        "line feeds": {"text": "\n" * (size // 2)}, "numbers": {"list": list(range(140_000))},
        "rows": {"rows": [{"a": n, **row} for n in range(16_000)]},
        "fields": {f"field {n}": n for n in range(50_000)},
    }  # fmt: skip
    for name, output in outputs.items():
        view = open_task(visitor, complete(site, output, name)).locator("#output-view")
        expect(view.locator(".fields dd").first).to_be_attached()
        # The rest is drawn when the reader asks for it.
        assert view.locator("*").count() < 3_000, name
        assert view.evaluate("view => view.textContent.length") < 50_000, name


# --- running it again --------------------------------------------------------------------


def test_failed_task_is_run_again_with_another_input(visitor: Visitor, site: Site) -> None:
    task = start(site, name="Try again", input={"n": 1})
    site.alice.report(task, status="error", error={"message": "n must be 2"})
    page = open_task(visitor, task)
    page.get_by_role("link", name="Run again…").click()
    field = page.get_by_label("Input (a JSON object)")
    expect(field).to_have_value('{\n  "n": 1\n}')
    check_accessible(page)
    field.fill('{"n": 2')
    page.get_by_role("button", name="Run again").click()
    expect(page.get_by_role("alert")).to_contain_text("Not valid JSON")
    check_accessible(page)
    visitor.complaints.clear()
    field.fill('{"n": 2}')
    page.get_by_role("button", name="Run again").click()
    expect(page.locator("#notice")).to_contain_text("Started a rerun of")
    expect(page.locator("#input-json")).to_contain_text('"n": 2')
    expect(page.locator("div.waiting")).to_contain_text("Waiting for a worker of summarizer")
    command = page.locator("#work-command")
    expect(command).to_have_text("taskservice work --agent summarizer -- CMD")
    page.get_by_role("button", name="Copy the command").click()
    expect(page.get_by_role("button", name="Copied the command")).to_be_visible()
    assert page.evaluate("navigator.clipboard.readText()") == command.text_content()
    check_accessible(page)
    page.get_by_role("link", name="Try again").click()
    expect(page.locator(".failure")).to_contain_text("n must be 2")
    expect(page.locator(".again")).to_contain_text("waiting")
    check_accessible(page)


def test_open_pages_of_a_task_learn_that_it_was_run_again(visitor: Visitor, site: Site) -> None:
    task = start(site, name="Fails")
    site.alice.report(task, status="error")
    form = visitor.context.new_page()
    form.goto(f"{site.url}/tasks/{task['id']}/rerun")
    form.get_by_label("Input (a JSON object)").fill("{...")
    page = open_task(visitor, task)
    expect(page.locator(".button.main")).to_have_text("Run again…")
    again = site.alice.post(f"/task/{task['id']}/rerun").json or {}
    soon = re.compile(r"Run again (just now|\d+ s ago): waiting")
    for tab in (page, form):
        expect(tab.locator(".again")).to_have_text(soon)
        expect(tab.locator(".main", has_text="Run again")).to_have_count(0)
    expect(form.get_by_label("Input (a JSON object)")).to_have_value("{...")
    sample_data.shift(site.app, again, 150)
    expect(page.locator(".again")).to_have_text("Run again 2 min ago: running")
    page.get_by_role("link", name="Run again 2 min ago").click()
    expect(page).to_have_url(f"{site.url}/tasks/{again['id']}")


def test_progress_and_output_come_live(visitor: Visitor, site: Site) -> None:
    task = start(site, name="Progressing")
    page = open_task(visitor, task)
    site.alice.report(task, progress=0.5, note="half of it")
    expect(page.get_by_role("progressbar")).to_have_attribute("value", "0.5")
    expect(page.locator(".progress")).to_contain_text("half of it")
    late = re.compile(r"50%\s+half of it\s+taking longer than expected")
    expect(page.locator(".progress")).to_have_text(late)
    site.alice.report(task, output={"part": "one"})
    expect(page.locator("#side #output-view")).to_contain_text("one")
    site.alice.report(task, output={"part": "two"})
    expect(page.locator("#side #output-view")).to_contain_text("two")
    site.alice.report(task, status="complete")
    expect(page.locator("#results #output-view")).to_contain_text("two")
    expect(page.locator("#output-view")).to_have_count(1)


# --- what is new in a failure ------------------------------------------------------------


def test_new_lines_come_after_the_page_and_lead_into_the_log(visitor: Visitor, site: Site) -> None:
    good = start(site, agent_id="nightly")
    site.alice.append(good, "page 1")
    site.alice.report(good, status="complete")
    failed = start(site, agent_id="nightly", input={"day": 2})
    site.alice.append(failed, *(f"page {n}" for n in range(300)), "<b>boom</b>")
    page = open_task(visitor, failed)
    expect(page.locator("#new")).to_have_count(0)
    again = f'<a href="/tasks/{failed["id"]}/new-lines" data-again="new-lines">Try again</a>'
    busy = f'<div id="new-lines">{again}</div>'
    answers = iter([busy])

    def answer_once(route: Route) -> None:
        body = next(answers, None)
        route.fulfill(body=body, content_type="text/html") if body else route.continue_()

    page.route("**/new-lines", answer_once)
    # It appears when the task fails.
    site.alice.report(failed, status="error")
    page.get_by_role("link", name="Try again").click()
    line = page.get_by_role("link", name="Line 301")
    expect(page.locator("#new-lines li")).to_contain_text("<b>boom</b>")
    expect(page.locator("#new-lines")).to_contain_text("Differences")
    page.get_by_text("1 line at the end of the log").click()
    check_accessible(page)
    line.click()
    expect(page).to_have_url(re.compile("#L301$"))
    expect(page.locator(".line.marked")).to_contain_text("boom")
    expect(page.locator(".line.marked")).to_be_in_viewport(ratio=0.9)
    page.locator("h1").click()
    page.keyboard.press("p")
    expect(page).to_have_url(re.compile("(?<!#L301)$"))
    expect(page.get_by_role("link", name="Next run")).to_be_visible()
    # Its script runs before the page has loaded.
    page.wait_for_load_state()
    page.keyboard.press("n")
    expect(page).to_have_url(re.compile(failed["id"]))
