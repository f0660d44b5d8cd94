"""The search of the help pages, in a browser: words that people type find their page."""

import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from zipfile import ZipFile

import pytest
from playwright.sync_api import Browser, expect

from tests.support.packages import wheel

# What somebody types -> the page, or its section, that has to be among the first three.
QUESTIONS = {
    "hang": "reference/expected-runs#tasks-that-hang",
    "stuck": "guides/troubleshooting#is-my-task-stuck",
    "not running": "guides/troubleshooting#why-is-my-job-not-running",
    "password": "guides/troubleshooting#what-is-my-password",
    "forgot key": "guides/common-questions",
    "cost": "guides/run-programs",
    "exit code": "guides/run-programs",
    "offline": "guides/run-programs",
    "cron": "guides/recipes",
    "kubernetes": "guides/recipes",
    "email": "guides/notifications",
    "phone": "guides/notifications",
    "slack": "guides/notifications",
    "hook": "guides/notifications",
    "webhook signature": "guides/webhooks",
    "claude code": "guides/mcp",
    "queue": "guides/workers",
    "curl": "guides/http",
    "backup": "operate/backup",
    "another machine": "operate/move",
    "change the port": "guides/common-questions#how-do-i-change-the-port",
    "notifications for a night": "guides/common-questions",
    "docker": "operate/proxies",
    "proxy": "operate/proxies",
    "rate limit": "operate/proxies",
    "rotate secret": "operate/rotation",
    "memory": "operate/sizing",
    "timeout": "operate/retention",
    "delete old": "operate/retention",
    "gdpr": "operate/privacy",
    "upgrade": "operate/upgrade",
    "rollback": "operate/upgrade",
    "failover": "operate/high-availability",
    "sse": "reference/http-api",
    "postgres": "operate/postgresql",
}


class Files(SimpleHTTPRequestHandler):
    """Serves the files of a directory, and prints nothing."""

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of the help pages, as a wheel contains them."""
    folder = tmp_path_factory.mktemp("site")
    with ZipFile(wheel(folder)) as file:
        file.extractall(folder)
    pages = partial(Files, directory=str(folder / "taskservice" / "help"))
    with ThreadingHTTPServer(("127.0.0.1", 0), pages) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_search_finds_the_page_of_what_people_type(
    site: str, chromium: Browser, subtests: pytest.Subtests
) -> None:
    page = chromium.new_page()
    for question, name in QUESTIONS.items():
        with subtests.test(question):
            page.goto(f"{site}/search.html?q={question}")
            expect(page.get_by_role("heading", name="pages contain")).to_be_visible()
            links = page.locator("#results a").all()
            targets = [str(link.get_attribute("href")) for link in links[:5]]
            places = [target.replace(".html", "") for target in targets[:3]]
            pages = [place.partition("#")[0] for place in places]
            assert name in (places if "#" in name else pages), targets
    page.close()
