"""A real browser for the tests, with checks of every page that it shows."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal
from urllib.parse import urlsplit

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import (
    Browser,
    BrowserContext,
    Locator,
    Page,
    Request,
    expect,
    sync_playwright,
)

from tests.support.requirements import needs

# The first, which has no window to draw, takes half of the CPU time.
NAMES = ("chromium-headless-shell", "chromium", "chromium-browser")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
# The browser's own requests must not reach the network.
OPTIONS = [
    "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip

# Only a test that fails waits this long.
TIMEOUT_MS = 30_000.0
expect.set_options(timeout=TIMEOUT_MS)


@contextmanager
def launched() -> Iterator[Browser]:
    if CHROMIUM is None:
        needs("Chromium", "install the package chromium")
    options = OPTIONS + (["--no-sandbox"] if os.geteuid() == 0 else [])
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=options)
        yield browser
        browser.close()


def check_accessible(page: Page) -> None:
    """A page has no fault in light colours and wide, nor in dark colours and narrow."""
    schemes: tuple[tuple[Literal["light", "dark"], int], ...] = (("light", 1440), ("dark", 390))
    for scheme, width in schemes:
        page.emulate_media(color_scheme=scheme)
        page.set_viewport_size({"width": width, "height": 900})
        page.wait_for_timeout(100)
        assert violations(page) == [], page.url
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), page.url


class Visitor:
    """A browser window with a separate session, and the errors in it."""

    def __init__(self, browser: Browser, url: str, **options: Any) -> None:
        self.url = url
        self.requests: list[Request] = []
        self.complaints: list[str] = []
        self.context: BrowserContext = browser.new_context(
            permissions=["clipboard-read", "clipboard-write"], **options
        )
        self.context.set_default_timeout(TIMEOUT_MS)
        self.context.on("request", lambda request: self.requests.append(request))
        self.context.on("console", lambda message: self._complain(message.type, message.text))
        self.context.on("weberror", lambda error: self._complain("error", str(error.error)))
        self.page = self.context.new_page()

    def _complain(self, kind: str, text: str) -> None:
        if kind in ("error", "warning"):
            self.complaints.append(text)

    def go(self, path: str = "/") -> Page:
        self.page.goto(self.url + path)
        return self.page

    def sign_in(self, key: str) -> None:
        page = self.go("/sign-in")
        page.get_by_label("API key").fill(key)
        page.get_by_role("button", name="Sign in").click()
        page.get_by_role("heading", name="Tasks", exact=True).wait_for()
        page.wait_for_load_state()
        # A list without tasks reloads itself at the first task, which would interrupt a navigation.
        self.page.goto("about:blank")

    def check(self) -> None:
        """No request left the host, and the console has no errors."""
        host = urlsplit(self.url).netloc
        assert {urlsplit(request.url).netloc for request in self.requests} <= {host}
        assert self.complaints == [], self.complaints

    def close(self) -> None:
        self.context.close()


def log_menu(page: Page) -> Locator:
    """The menu of a task's log, open."""
    menu = page.locator("#log-menu")
    if menu.get_attribute("open") is None:
        menu.locator("summary").click()
    return menu


def violations(page: Page, *without: str) -> list[str]:
    """The errors that axe-core finds on a page, without some rules: rule and elements."""
    # Its script is large, and remains in the page.
    axe = Axe("0") if page.evaluate("'axe' in window") else Axe()
    rules = {rule: {"enabled": False} for rule in without}
    options = {"resultTypes": ["violations"], "rules": rules}
    broken_rules = axe.run(page, options=options).response["violations"]
    return [f"{rule['id']}: {node['html']}" for rule in broken_rules for node in rule["nodes"]]
