"""The search of the documents' site, in a browser: words that people type find their page."""

import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from typing import Any

import pytest
from playwright.sync_api import Browser, expect

from tests.support.documents import ROOT
from tests.support.requirements import needs

# What somebody types -> the page, or its section, that has to be among the first three.
QUESTIONS = {
    "hang": "reference/expected-runs#tasks-that-hang",
    "stuck": "guides/troubleshooting#is-my-task-stuck",
    "not running": "guides/troubleshooting#why-is-my-job-not-running",
    "password": "guides/troubleshooting#what-is-my-password",
    "forgot key": "guides/troubleshooting",
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
    """The address of the documents' site, built once; its diagrams are left as text."""
    if find_spec("sphinx") is None:
        needs("Sphinx", "make .venv/installed-docs")
    site = tmp_path_factory.mktemp("site")
    subprocess.run(
        [sys.executable, "-m", "sphinx", "-q", "-D", "mermaid_output_format=raw",
         "-c", "docs", "-b", "html", ".", str(site)],
        cwd=ROOT, check=True, timeout=300,
    )  # fmt: skip
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Files, directory=str(site))) as server:
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
            expect(page.get_by_text("Search finished")).to_be_visible()
            links = page.locator("#search-results li > a").all()
            targets = [str(link.get_attribute("href")) for link in links[:5]]
            places = [re.sub(r"^docs/|\.html", "", target) for target in targets[:3]]
            pages = [place.partition("#")[0] for place in places]
            assert name in (places if "#" in name else pages), targets
    page.close()
