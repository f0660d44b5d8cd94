"""The dashboard in a real browser, under a prefix behind a real nginx; and shortly, alone."""

import base64
import json
import os
import re
import signal
import time
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from playwright.sync_api import Browser, Page, Route, expect

from taskservice.app import create_app
from taskservice.config import Config
from taskservice.database.engine import dispose
from taskservice.webhooks.destinations import Destinations
from tests.support import sample_data
from tests.support.api_client import ApiClient, RemoteClient, add_user
from tests.support.api_client import expect as answered
from tests.support.browser import Visitor, check_accessible, log_menu, violations
from tests.support.demo import demo_user
from tests.support.internals import end_for_silence
from tests.support.nginx import NGINX, nginx
from tests.support.receiver import Receiver, answer
from tests.support.requirements import needs
from tests.support.service import Service

PAGES = (
    "/", "/?status=error&q=nothing", "/?status=wrong", "/inbox", "/agents", "/keys",
    "/notifications", "/callback-secret/rotate", "/tasks/nothing",
)  # fmt: skip


@dataclass
class Site:
    """A service in use, with or without a proxy, and an app of this process on its data."""

    service: Service
    url: str
    app: Flask
    alice: ApiClient
    # A receiver that answers 503, but for the paths that a test changes.
    bad: Receiver
    # The cookies of a window in which alice is signed in.
    state: Any = None


# Behind it everything is harder; a machine without it sees the rest of it all the same.
SITE = "behind nginx" if NGINX or os.environ.get("CI") else "alone"


@pytest.fixture(scope="module", params=[SITE])
def site(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    behind = request.param != "alone"
    if behind and NGINX is None:
        needs("nginx", "install the package nginx")
    folder = tmp_path_factory.mktemp("site")
    with ExitStack() as stack:
        bad = stack.enter_context(Receiver(answer=answer(503)))
        app = create_app(settings(folder / "data"))
        stack.callback(dispose, app)
        alice = demo_user(app)
        silent = alice.start(name="Wiki backup", claim=True, callback=f"{bad.url}wiki")
        end_for_silence(app, silent)
        alice.post(f"/task/{alice.start(name='Cancelled')['id']}/cancel")
        service = stack.enter_context(Service(folder / "data", PROXY_HOPS=str(int(behind))))
        url = stack.enter_context(nginx(folder / "nginx", service.port)) if behind else service.url
        yield Site(service, url, app, alice, bad)


def settings(data: Path) -> Config:
    return Config(
        DATA=data,
        SECRET_KEY="a secret key for tests, long enough",
        CALLBACK_ALLOWED=Destinations.parse("loopback"),
        CALLBACK_TIMEOUT=2.0,
    ).completed()


@pytest.fixture
def visitor(chromium: Browser, site: Site) -> Iterator[Visitor]:
    """Alice's window, signed in; whatever it did, it must have done quietly."""
    visitor = window(chromium, site)
    yield visitor
    visitor.check()
    visitor.close()


def window(browser: Browser, site: Site, **options: Any) -> Visitor:
    """A window in which alice is signed in."""
    visitor = Visitor(browser, site.url, storage_state=site.state, **options)
    if site.state is None:
        visitor.sign_in(site.alice.key)
        site.state = visitor.context.storage_state()
    return visitor


def start(site: Site, **fields: Any) -> dict[str, Any]:
    return site.alice.start(claim=True, **fields)


def sign_out(page: Page) -> None:
    page.locator("#menu summary").click()
    page.get_by_role("button", name="Sign out").click()


def expect_lines(page: Page, *lines: str) -> None:
    expect(page.locator("#log .line > span")).to_have_text(list(lines))


def test_list_follows_within_two_seconds(visitor: Visitor, site: Site) -> None:
    page = visitor.go()
    task = start(site, name="Appears by itself")
    row = page.locator(f"#task-{task['id']}")
    expect(row).to_contain_text("running")
    link = row.get_by_role("link", name="Appears by itself")
    link.focus()
    site.alice.report(task, status="complete")
    expect(row).to_contain_text("complete")
    # A link that has the focus keeps it.
    expect(link).to_be_focused()
    site.alice.delete(f"/task/{task['id']}")
    expect(row).to_have_count(0)


def test_open_page_looks_again_well_within_two_seconds(visitor: Visitor) -> None:
    page = visitor.go()
    looks = []
    for _ in range(4):
        with page.expect_response(
            lambda response: response.request.resource_type == "fetch"
        ) as look:
            pass
        look.value.finished()
        looks.append(look.value.request.timing)
    # Not counted is how long an answer takes; on a busy machine one look may be late, but not all.
    pauses = [
        after["startTime"] - before["startTime"] - before["responseEnd"]
        for before, after in pairwise(looks)
    ]
    assert 0 < min(pauses) < 1_750


def test_404_of_a_proxy_is_not_a_deletion(visitor: Visitor, site: Site) -> None:
    task = start(site, name="Still here")
    page = visitor.go(f"/tasks/{task['id']}")
    pattern = re.compile(f"/tasks/{task['id']}$")
    page.route(pattern, lambda route: route.fulfill(status=404, body="no upstream"))
    expect(page.locator("#notice")).to_contain_text("Trying again")
    page.unroute(pattern)
    expect(page.locator("#notice")).to_be_empty()
    site.alice.post(f"/task/{task['id']}/cancel")
    visitor.complaints[:] = [text for text in visitor.complaints if "404" not in text]


def test_long_log_is_never_all_in_the_page(visitor: Visitor, site: Site) -> None:
    task = start(site, name="100,000 lines")
    for first in range(1, 100_001, 10_000):
        site.alice.append(task, *[f"line {n} of many" for n in range(first, first + 10_000)])
    site.alice.report(task, status="complete")
    page = visitor.go(f"/tasks/{task['id']}")
    expect(page.locator("#log .line").first).to_have_text("1line 1 of many")
    session = visitor.context.new_cdp_session(page)
    heaps = []
    for first in (0, 50):
        for part in range(first, first + 51):
            page.evaluate(
                "(part) => { const log = document.getElementById('log');"
                " log.scrollTop = (log.scrollHeight - log.clientHeight) * part / 100; }", part
            )  # fmt: skip
            expect(page.locator("#log .line > span").last).not_to_be_empty()
            assert page.locator("*").count() < 500
        session.send("HeapProfiler.collectGarbage")
        heaps.append(session.send("Runtime.getHeapUsage")["usedSize"])
    expect(page.locator("#log .line").last).to_have_text("100000line 100000 of many")
    # The second half takes the place of the first: ours are 40 blocks of 200 lines.
    assert heaps[1] - heaps[0] < 300_000


def test_key_is_not_kept_in_the_browser(chromium: Browser, site: Site) -> None:
    guest = Visitor(chromium, site.url)
    guest.sign_in(site.alice.key)
    page = guest.go()
    task = start(site, name="Kept")
    site.alice.append(task, "one line")
    log_menu(guest.go(f"/tasks/{task['id']}")).get_by_label("Wrap long lines").check()
    stores = page.evaluate("JSON.stringify([{...localStorage}, {...sessionStorage}])")
    assert json.loads(stores) == [{"wrap": "yes"}, {}]
    (cookie,) = guest.context.cookies()
    assert set(json.loads(payload(cookie["value"]))) <= {"key", "until", "token", "number"}
    assert site.alice.key[9:20] not in payload(cookie["value"])
    assert site.alice.key not in page.content()
    guest.close()


def payload(cookie: str) -> str:
    """The content of a signed cookie, which is readable without the key."""
    text = cookie.lstrip(".").partition(".")[0]
    data = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    return (zlib.decompress(data) if cookie.startswith(".") else data).decode()


def test_filters_live_in_the_url(visitor: Visitor, site: Site) -> None:
    page = visitor.go()
    page.get_by_label("Name").fill("wiki")
    page.get_by_label("Name").press("Enter")
    page.wait_for_url(f"{site.url}/?q=wiki")
    choice = page.get_by_label("Started")
    choice.focus()
    choice.select_option("7d")
    page.wait_for_url(f"{site.url}/?q=wiki&started=7d")
    expect(choice).to_be_focused()
    page.get_by_role("navigation", name="Status").get_by_role("link", name="Timeout").click()
    page.wait_for_url(f"{site.url}/?q=wiki&started=7d&errorType=timeout")
    expect(page.locator("#rows tr")).to_have_count(1)
    page.get_by_label("Sort").select_option("createdAt")
    page.wait_for_url(re.compile("errorType=timeout.*sort=createdAt"))
    page.reload()
    expect(page.locator("#rows")).to_contain_text("Wiki backup")
    page.go_back()
    expect(page.get_by_label("Sort")).to_have_value("")
    page.get_by_role("link", name="Show all tasks").click()
    page.wait_for_url(f"{site.url}/")
    for label in ("Name", "Started", "Sort"):
        expect(page.get_by_label(label)).to_have_value("")


def test_click_before_the_filtered_list_arrives_keeps_the_filter(
    visitor: Visitor, site: Site
) -> None:
    page = visitor.go("/?q=wiki")
    requests: list[Route] = []
    page.route("**/*started=7d", lambda route: requests.append(route))
    with page.expect_request("**/*started=7d"):
        page.get_by_label("Started").select_option("7d")
    page.get_by_role("navigation", name="Status").get_by_role("link", name="Timeout").click()
    page.get_by_role("link", name="Remove the filter Name wiki").click()
    for request in requests:
        request.continue_()
    page.wait_for_url(f"{site.url}/?started=7d&errorType=timeout")


def test_first_agent_and_first_task_appear_by_themselves(chromium: Browser, site: Site) -> None:
    newcomer = add_user(site.app, f"newcomer {time.monotonic_ns()}")
    guest = Visitor(chromium, site.url)
    guest.sign_in(newcomer.key)
    page = guest.go()
    assert violations(page) == []
    expect(page.get_by_role("heading", name="No tasks yet")).to_be_visible()
    assert f"TASKSERVICE_URL={site.url}\n" in str(page.locator("#start-curl").text_content())
    agents, other = guest.context.new_page(), guest.context.new_page()
    agents.goto(f"{site.url}/agents")
    assert violations(agents) == []
    other.goto(f"{site.url}/keys")
    newcomer.register("counter")
    expect(agents.locator("#unused")).to_contain_text("counter")
    expect(other.locator("#agent-choice-counter")).to_be_attached()
    task = newcomer.start("counter", name="The first one")
    expect(agents.locator("#agents")).to_contain_text("1 waiting")
    expect(page.locator(f"#task-{task['id']}")).to_be_visible()
    newcomer.register("second")
    expect(page.locator("#agent-choice-second")).to_be_attached()
    guest.check()
    guest.close()


def test_running_task_is_followed_live(visitor: Visitor, site: Site) -> None:
    task = start(site, name="Live", callback=None)
    page = visitor.go(f"/tasks/{task['id']}")
    expect(page.locator("#log-state")).to_have_text("live")
    site.alice.append(task, "first line", "\x1b[31mred\x1b[0m and \x1b]0;title\x07plain")
    expect(page.locator("#log .line").first).to_contain_text("first line")
    expect_lines(page, "first line", "red and plain")
    expect(page.locator("#log .fg-1")).to_have_text("red")
    site.alice.report(task, output={"sum": 15}, status="complete")
    expect(page.locator("#log-state")).to_have_text("ended")
    # The second status is of the previous run.
    expect(page.locator("#summary .pill").first).to_have_text("complete")
    expect(page.locator("#output-json")).to_contain_text('"sum": 15')


def test_fast_log_keeps_few_lines_in_the_page_and_all_in_order(
    visitor: Visitor, site: Site
) -> None:
    task = start(site, name="Fast")
    page = visitor.go(f"/tasks/{task['id']}")
    expect(page.locator("#log-state")).to_have_text("live")
    for second in range(3):
        for part in range(4):
            first = second * 1_000 + part * 250
            site.alice.append(task, *[f"line {first + n}" for n in range(1, 251)])
            page.wait_for_timeout(150)
    expect(page.locator("#log-count")).to_have_text("3,000 lines")
    expect(page.locator("#log .line").last).to_contain_text("line 3000")
    lines = page.locator("#log .line > span").all_text_contents()
    assert lines == [f"line {n}" for n in range(3_001 - len(lines), 3_001)]
    assert len(lines) < 100
    log_menu(page).get_by_role("button", name="Go to the start").click()
    expect(page.locator("#log .line").first).to_contain_text("line 1")
    site.alice.append(task, "one more")
    expect(page.locator("#log-count")).to_have_text("3,001 lines")
    # Paused, it stays where the reader is.
    expect(page.get_by_role("button", name="Follow")).to_be_visible()
    expect(page.locator("#log .line > span").first).to_have_text("line 1")
    page.get_by_role("button", name="Follow").click()
    expect(page.locator("#log .line").last).to_contain_text("one more")
    site.alice.post(f"/task/{task['id']}/cancel")


def test_reader_pauses_and_resumes_at_new_lines(visitor: Visitor, site: Site) -> None:
    task = start(site, name="Read slowly")
    site.alice.append(task, *[f"line {n}" for n in range(1, 301)])
    page = visitor.go(f"/tasks/{task['id']}")
    last = page.locator("#log .line").last
    expect(last).to_have_text("300line 300")
    # Just when the page scrolls for a new line.
    page.evaluate(
        "() => new MutationObserver((_, observer) => { observer.disconnect();"
        " document.getElementById('log-follow').click(); })"
        ".observe(document.getElementById('log-lines'), { childList: true })"
    )
    site.alice.append(task, "line 301")
    expect(page.get_by_role("button", name="Follow")).to_be_visible()
    page.wait_for_timeout(300)
    top = page.locator("#log").evaluate("element => element.scrollTop")
    site.alice.append(task, *[f"line {n}" for n in range(302, 339)])
    expect(page.get_by_role("button", name="37 new lines")).to_be_visible()
    expect(page.get_by_role("button", name="Follow")).to_be_visible()
    assert page.locator("#log").evaluate("element => element.scrollTop") == top
    page.get_by_role("button", name="37 new lines").click()
    expect(last).to_have_text("338line 338")
    expect(page.locator("#log-new")).to_be_hidden()
    # A selection stays, even when its lines are out of view.
    lines = page.locator("#log .line > span")
    lines.nth(20).click(click_count=3)
    expect(page.get_by_role("button", name="Follow")).to_be_visible()
    chosen = page.evaluate("getSelection().toString().trim()")
    assert chosen.startswith("line 3")
    page.locator("#log").hover()
    page.mouse.wheel(0, -3_000)
    page.wait_for_timeout(300)
    expect(page.locator("#log .line", has_text="line 200")).to_be_attached()
    assert page.evaluate("getSelection().toString().trim()") == chosen
    # The log is one stop for the keyboard, and keeps the focus that a row takes with it.
    assert page.locator("#log a:not([tabindex='-1'])").count() == 0
    page.evaluate("getSelection().removeAllRanges()")
    page.locator("#log .line > a").nth(20).focus()
    page.keyboard.press("End")
    expect(last).to_have_text("338line 338")
    expect(page.locator("#log")).to_be_focused()
    expect(page.get_by_role("button", name="Pause")).to_be_visible()
    site.alice.post(f"/task/{task['id']}/cancel")


def test_long_lines_can_be_wrapped_and_are_wrapped_on_a_phone(
    visitor: Visitor, chromium: Browser, site: Site
) -> None:
    task = start(site, name="Long lines")
    long = "it was the best of lines, " * 20
    site.alice.append(task, *[f"line {n}: {long if n % 3 else ''}" for n in range(1, 301)])
    page = visitor.go(f"/tasks/{task['id']}")
    line, height = page.locator("#log .line"), "element => element.offsetHeight"
    expect(line.last).to_contain_text("line 300")
    assert line.filter(has_text="line 299").evaluate(height) == 20
    log_menu(page).get_by_label("Wrap long lines").check()
    expect(page.locator(".wrapped")).to_be_visible()
    expect(line.last).to_be_in_viewport()
    assert line.filter(has_text="line 299").evaluate(height) > 20
    fits = "element => element.scrollWidth === element.clientWidth"
    assert page.locator("#log").evaluate(fits)
    seen = set()
    log_menu(page).get_by_role("button", name="Go to the start").click()
    page.locator("#log").hover()
    for _ in range(60):
        seen |= {int(number) for number in page.locator("#log .line > a").all_text_contents()}
        page.mouse.wheel(0, 400)
        page.wait_for_timeout(20)
    assert sorted(seen) == list(range(1, max(seen) + 1))
    page.goto(f"{site.url}/tasks/{task['id']}#L150")
    page.reload()
    expect(log_menu(page).get_by_label("Wrap long lines")).to_be_checked()
    expect(page.locator("#log .marked")).to_be_in_viewport()
    phone = window(chromium, site, viewport={"width": 390, "height": 800})
    phone.go(f"/tasks/{task['id']}")
    expect(log_menu(phone.page).get_by_label("Wrap long lines")).to_be_checked()
    expect(phone.page.get_by_role("button", name="Pause")).to_be_visible()
    phone.check()
    phone.close()
    site.alice.post(f"/task/{task['id']}/cancel")


def test_number_of_a_line_is_a_link_to_it(visitor: Visitor, site: Site) -> None:
    task = start(site, name="Long")
    site.alice.append(task, *[f"line {n}" for n in range(1, 2_001)])
    site.alice.report(task, status="complete")
    page = visitor.go(f"/tasks/{task['id']}#L1234")
    marked = page.locator("#log .marked")
    expect(marked).to_have_text("1234line 1234")
    expect(marked).to_be_in_viewport()
    page.get_by_role("link", name="1236", exact=True).click()
    expect(marked).to_have_text("1236line 1236")
    assert page.url.endswith("#L1236")
    page.get_by_role("link", name="1239", exact=True).click(modifiers=["Shift"])
    assert page.url.endswith("#L1236-L1239")
    expect(marked).to_have_count(4)
    page.get_by_role("button", name="Copy lines 1236–1239").click()
    expect(page.get_by_role("button", name="Copied lines 1236–1239")).to_be_visible()
    # The text stays when the log is drawn again, as after scrolling.
    page.evaluate(
        "document.getElementById('log').dispatchEvent(new Event('scroll'));"
        " new Promise((drawn) => requestAnimationFrame(() => requestAnimationFrame(drawn)))"
    )
    assert page.locator("#log-copy").text_content() == "Copied lines 1236–1239"
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied.splitlines() == [f"line {n}" for n in range(1236, 1240)]
    finder = page.get_by_label("Find in the log")
    finder.fill("NE 17")
    for keys, number in (
        ("Enter", 1700), ("Enter", 1701), ("Shift+Enter", 1700), ("Shift+Enter", 179),
    ):  # fmt: skip
        finder.press(keys)
        expect(marked).to_have_count(1)
        expect(marked).to_have_text(f"{number}line {number}")
        expect(marked).to_be_in_viewport()
    finder.fill("nowhere")
    finder.press("Enter")
    expect(page.locator("#log-found")).to_have_text("Not found")
    page.locator("#log").press("End")
    expect(page.locator("#log .line").last).to_have_text("2000line 2000")
    page.locator("#log").press("Home")
    expect(page.locator("#log .line").first).to_have_text("1line 1")
    with page.expect_download() as download:
        log_menu(page).get_by_role("link", name="Download").click()
    text = download.value.path().read_text()
    assert text == "".join(f"line {n}\n" for n in range(1, 2_001))


def test_click_in_a_log_that_grows_is_not_lost(visitor: Visitor, site: Site) -> None:
    task = start(site, name="Grows")
    site.alice.append(task, *[f"line {n}" for n in range(1, 101)])
    page = visitor.go(f"/tasks/{task['id']}")
    expect(page.locator("#log-state")).to_have_text("live")
    tools = page.context.new_cdp_session(page)
    tools.send("Network.enable")
    came: list[str] = []
    tools.on("Network.eventSourceMessageReceived", lambda event: came.append(event["data"]))
    number = page.get_by_role("link", name="99", exact=True)
    number.hover()
    page.mouse.down()
    site.alice.append(task, "one", "two", "three")
    while "three" not in " ".join(came):
        page.wait_for_timeout(20)
    expect(page.locator("#log .line").last).to_have_text("100line 100")
    page.mouse.up()
    expect(page.locator("#log .marked")).to_have_text("99line 99")
    site.alice.append(task, "four")
    # Sooner than a press ends by itself.
    expect(page.locator("#log-count")).to_have_text("104 lines", timeout=8_000)


def test_restart_under_an_open_page_loses_and_doubles_no_line(visitor: Visitor, site: Site) -> None:
    task = start(site, name="Restarted")
    site.alice.append(task, "one", "two")
    page = visitor.go(f"/tasks/{task['id']}")
    expect(page.locator("#log-state")).to_have_text("live")
    site.service.stop()
    site.alice.append(task, "three")
    expect(page.locator("#log-state")).to_have_text("reconnecting…")
    site.alice.append(task, "four")
    site.service.start()
    expect(page.locator("#log-state")).to_have_text("live")
    site.alice.append(task, "five")
    expect(page.locator("#log-count")).to_have_text("5 lines")
    expect_lines(page, "one", "two", "three", "four", "five")
    expect(page.locator("#notice")).to_be_empty()
    # The same when the client closed the connection without notice.
    with page.expect_request(lambda request: request.resource_type == "eventsource"):
        os.kill(site.service.workers()[0], signal.SIGKILL)
    site.alice.append(task, "six")
    expect(page.locator("#log-state")).to_have_text("live")
    site.alice.append(task, "seven")
    expect(page.locator("#log-count")).to_have_text("7 lines")
    expect_lines(page, "one", "two", "three", "four", "five", "six", "seven")
    site.alice.post(f"/task/{task['id']}/cancel")
    # That the service was away is all that the console may say.
    visitor.complaints[:] = [text for text in visitor.complaints if "net::ERR" not in text
                             and "502" not in text]  # fmt: skip


@pytest.mark.parametrize("running", [True, False])
def test_open_page_says_that_its_task_was_deleted_elsewhere(
    visitor: Visitor, site: Site, running: bool
) -> None:
    task = start(site, name="Deleted elsewhere")
    if not running:
        site.alice.report(task, status="complete")
    page = visitor.go(f"/tasks/{task['id']}")
    expect(page.locator("#log-state")).to_have_text("live" if running else "ended")
    site.alice.delete(f"/task/{task['id']}")
    expect(page.locator("#notice")).to_contain_text("This task was deleted.")
    expect(page.locator("#log-state")).to_have_text("This task was deleted.")
    visitor.complaints[:] = [text for text in visitor.complaints if "404" not in text]


def test_open_page_says_that_its_session_ended(chromium: Browser, site: Site) -> None:
    key = answered(site.alice.post("/key", json={"name": "guest"}), 201)
    guest = Visitor(chromium, site.url)
    guest.sign_in(key["key"])
    page = guest.go()
    site.alice.delete(f"/key/{key['id']}")
    page.get_by_role("link", name="Sign in again").click()
    expect(page.get_by_label("API key")).to_be_visible()
    guest.check()
    guest.close()


def test_log_of_an_open_page_stops_when_its_session_has_ended(
    chromium: Browser, site: Site
) -> None:
    task = start(site, name="Not for guests")
    guest = Visitor(chromium, site.url)
    guest.sign_in(site.alice.key)
    page, other = guest.go(f"/tasks/{task['id']}"), guest.context.new_page()
    expect(page.locator("#log-state")).to_have_text("live")
    other.goto(f"{site.url}/keys")
    sign_out(other)
    expect(page.locator("#log-state")).to_have_text("You are signed out.")
    site.alice.append(task, "a secret")
    shown = page.locator("[data-since]").text_content()
    page.wait_for_timeout(1_500)
    expect(page.locator("#log-count")).to_have_text("0 lines")
    assert page.locator("[data-since]").text_content() == shown
    site.alice.post(f"/task/{task['id']}/cancel")
    guest.check()
    guest.close()


def test_key_is_created_copied_used_and_revoked(
    visitor: Visitor, chromium: Browser, site: Site
) -> None:
    page = visitor.go("/keys")
    page.get_by_label("Name").fill("from the browser")
    page.get_by_label("Expires").select_option("30 days")
    page.get_by_role("button", name="Create").dblclick()
    page.get_by_role("button", name="Copy the new key").click()
    expect(page.get_by_role("button", name="Copied the new key")).to_be_visible()
    key = page.evaluate("navigator.clipboard.readText()")
    assert re.fullmatch(r"tsk_user_\w{46}", key)
    page.reload()
    expect(page.get_by_role("heading", name="The new key")).to_have_count(0)
    expect(page.locator("th", has_text="from the browser")).to_have_count(1)
    guest = Visitor(chromium, site.url)
    guest.sign_in(key)
    guest.go()
    page.get_by_role("link", name="Revoke… from the browser").click()
    page.get_by_role("button", name="Revoke the key").click()
    expect(page.locator("#notice")).to_contain_text("Revoked the key “from the browser”.")
    expect(guest.page.locator("#notice")).to_contain_text("You are signed out.")
    guest.check()
    guest.close()


def test_sign_out_leaves_nothing_to_go_back_to(chromium: Browser, site: Site) -> None:
    guest = Visitor(chromium, site.url)
    guest.sign_in(site.alice.key)
    page = guest.go()
    sign_out(page)
    expect(page.get_by_text("You are signed out.")).to_be_visible()
    page.go_back()
    expect(page.get_by_label("API key")).to_be_visible()
    guest.close()


def test_keyboard_alone_reaches_a_task(visitor: Visitor) -> None:
    page = visitor.go()
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    page.keyboard.press("Enter")
    for _ in range(30):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.closest('#rows th') !== null"):
            break
    page.keyboard.press("Enter")
    page.wait_for_url(re.compile("/tasks/"))


def test_service_needs_no_proxy(chromium: Browser, tmp_path: Path) -> None:
    with Service(tmp_path / "data") as service:
        alice = service.add_user("alice")
        task = alice.start(name="Without a proxy", claim=True)
        visitor = Visitor(chromium, service.url)
        visitor.sign_in(alice.key)
        page = visitor.go()
        page.get_by_role("link", name="Without a proxy").click()
        expect(page.locator("#log-state")).to_have_text("live")
        alice.request("POST", f"/task/{task['id']}/logs", json={"logs": ["one line"]})
        expect(page.locator("#log .line")).to_have_count(1)
        page.get_by_role("link", name="Cancel…").click()
        page.get_by_role("button", name="Cancel the task").click()
        expect(page.locator("#log-state")).to_have_text("ended")
        sign_out(page)
        expect(page.get_by_label("API key")).to_be_visible()
        visitor.check()
        visitor.close()


def test_every_page_keeps_the_rules_of_accessibility(visitor: Visitor, site: Site) -> None:
    names = ("Nightly backup", "Market summary", "Invoice import", "Prices of our competitors",
             "Cancelled", "Wiki backup")  # fmt: skip
    page = visitor.go()
    links = [page.locator("#rows").get_by_role("link", name=name).first for name in names]
    tasks = [re.findall("/tasks/[^/]+$", str(link.get_attribute("href")))[0] for link in links]
    tasks.append(f"/tasks/{start(site, name=chr(0x200B))['id']}")
    for path in [*PAGES, *tasks]:
        check_accessible(visitor.go(path))
    for question in ("cancel", "delete"):
        page = visitor.go(f"{tasks[0]}/{question}")
        assert violations(page) == [], question
    page = visitor.go("/keys")
    page.get_by_role("link", name="Revoke…").last.click()
    check_accessible(page)
    page = visitor.go("/keys")
    page.get_by_label("Name").fill("to be seen")
    page.get_by_role("button", name="Create").click()
    check_accessible(page)
    page = visitor.go("/notifications")
    page.get_by_label("Program").check()
    page.get_by_role("textbox", name="Address").fill(f"{site.bad.url}notifications")
    page.get_by_role("button", name="Add").click()
    page.get_by_role("button", name="Send a test").click()
    expect(page.locator("#notice")).to_contain_text("The receiver responded with 503")
    check_accessible(page)
    sign_out(page)
    check_accessible(page)
    visitor.sign_in(site.alice.agent_key().key)
    check_accessible(visitor.go("/keys"))
    errors = ("404", "422", "403")
    visitor.complaints[:] = [
        text for text in visitor.complaints if not any(status in text for status in errors)
    ]


def test_hostile_content_does_nothing(chromium: Browser, site: Site) -> None:
    mallory = add_user(site.app, f"{time.monotonic_ns()} {sample_data.HOSTILE}")
    task = sample_data.make_hostile(mallory, f"{site.bad.url}hook")
    visitor = Visitor(chromium, site.url)
    visitor.sign_in(mallory.key)
    for path in ("/", "/inbox", f"/tasks/{task['id']}", f"/tasks/{task['id']}/delete", "/agents",
                 "/keys", f"/?q={sample_data.HOSTILE[:60]}"):  # fmt: skip
        page = visitor.go(path)
        expect(page.locator("main")).to_contain_text("owned" if "q=" not in path else "Tasks")
        page.wait_for_timeout(100)
        assert "owned" not in page.title().replace(sample_data.HOSTILE, "")
        assert page.locator("img:not(.title img), body script, iframe").count() == 0
        assert page.locator("a[href^=javascript]").count() == 0
        expect(page.locator("#menu summary")).to_contain_text("<script>")
    page = visitor.go(f"/tasks/{task['id']}")
    expect(page.locator("#log .line")).to_have_count(3)
    # A character that changes the direction of writing is shown as its escape.
    harmless = sample_data.HOSTILE.replace("\u202e", "\\u202e")
    expect_lines(page, harmless, harmless, "link")
    visitor.check()
    visitor.close()


def test_page_updates_while_a_hostile_name_comes_and_goes(visitor: Visitor, site: Site) -> None:
    page = visitor.go()
    task = start(site, name=sample_data.HOSTILE)
    row = page.locator(f"#task-{task['id']}")
    expect(row).to_contain_text("<script>")
    assert page.locator("main img, main script").count() == 0
    site.alice.delete(f"/task/{task['id']}")
    expect(row).to_have_count(0)


def test_many_open_pages_get_a_new_line(visitor: Visitor, site: Site) -> None:
    task = start(site, name="Watched by many")
    pages = [visitor.context.new_page() for _ in range(4)]
    for page in pages:
        page.goto(f"{site.url}/tasks/{task['id']}")
        expect(page.locator("#log-state")).to_have_text("live")
    site.alice.append(task, "for all")
    for page in pages:
        expect(page.locator("#log .line")).to_have_count(1)
        page.close()
    site.alice.post(f"/task/{task['id']}/cancel")


def test_page_without_a_place_among_the_followers_keeps_up_all_the_same(
    visitor: Visitor, site: Site
) -> None:
    task = start(site, name="Crowded")
    remote = RemoteClient(site.service.url, site.alice.key)
    path = f"/task/{task['id']}/events"
    with ExitStack() as stack:
        # As many as there are places.
        for _ in range(Config.WAITS):
            stack.enter_context(remote.request("GET", path, stream=True))
        page = visitor.go(f"/tasks/{task['id']}")
        expect(page.locator("#log-state")).to_have_text("updates every second")
        site.alice.append(task, "one", "two")
        expect(page.locator("#log .line")).to_have_count(2)
    expect(page.locator("#log-state")).to_have_text("live")
    site.alice.post(f"/task/{task['id']}/cancel")
    visitor.complaints[:] = [text for text in visitor.complaints if "503" not in text]
