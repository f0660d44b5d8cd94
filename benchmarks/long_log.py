"""The task page with a long log in a real browser: until it can be used, and its memory.

Memory is the heap of the page's scripts after a collection, and the number of its elements.
"""

import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from playwright.sync_api import CDPSession, Page

from tests.support.api_client import RemoteClient
from tests.support.browser import Visitor, launched
from tests.support.service import Service

COUNTS = [int(count) for count in os.environ.get("LINES", "100 100000 1000000").split()]
LIVE_SECONDS = 10
LIVE_RATE = 1_000
DRAWN = """(wanted) => new Promise((resolve) => {
  const look = () => [...document.querySelectorAll('#log .line')].some(
    (line) => line.textContent.endsWith(wanted)) ? resolve() : requestAnimationFrame(look);
  look();
})"""
FRAMES = """() => {
  let last = performance.now();
  window.longest = 0;
  const frame = (now) => {
    window.longest = Math.max(window.longest, now - last);
    last = now;
    requestAnimationFrame(frame);
  };
  requestAnimationFrame(frame);
}"""


def make(alice: RemoteClient, count: int) -> dict[str, Any]:
    task = alice.start(name=f"{count:,} lines", claim=True)
    for first in range(1, count + 1, 10_000):
        last = min(first + 10_000, count + 1)
        alice.append(task, *(f"line {number} of {count}" for number in range(first, last)))
    return task


def memory(page: Page, session: CDPSession) -> str:
    session.send("HeapProfiler.collectGarbage")
    used = session.send("Runtime.getHeapUsage")["usedSize"] / 1024 / 1024
    return f"{used:5.1f} MB, {page.locator('*').count():4} elements"


def measure(visitor: Visitor, alice: RemoteClient, count: int) -> None:
    task = make(alice, count)
    page = visitor.go("/agents")
    began = time.perf_counter()
    page.goto(f"{visitor.url}/tasks/{task['id']}", wait_until="commit")
    page.evaluate(DRAWN, f"line {count} of {count}")
    opened = time.perf_counter() - began
    session = visitor.context.new_cdp_session(page)
    before = memory(page, session)
    began = time.perf_counter()
    page.evaluate(f"location.hash = 'L{count // 2}'")
    page.evaluate(DRAWN, f"line {count // 2} of {count}")
    jumped = time.perf_counter() - began
    # Through all of it, as a person does who drags the scroll bar.
    for part in range(100):
        page.evaluate(
            "(part) => { const log = document.getElementById('log');"
            " log.scrollTop = log.scrollHeight * part / 100; }", part
        )  # fmt: skip
        page.wait_for_timeout(30)
    print(f"{count:9,} lines   shown after {opened * 1000:4.0f} ms   "
          f"jump to the middle {jumped * 1000:4.0f} ms   {before}; "
          f"scrolled through {memory(page, session)}")  # fmt: skip


def measure_live(visitor: Visitor, alice: RemoteClient) -> None:
    task = make(alice, 0)
    page = visitor.go(f"/tasks/{task['id']}")
    page.evaluate(FRAMES)
    session = visitor.context.new_cdp_session(page)
    delays = []
    for number in range(LIVE_SECONDS * 10):
        began = time.perf_counter()
        first = number * LIVE_RATE // 10
        alice.append(task, *(f"line {first + n}" for n in range(1, LIVE_RATE // 10 + 1)))
        page.evaluate(DRAWN, f"line {first + LIVE_RATE // 10}")
        delays.append(time.perf_counter() - began)
        time.sleep(max(0, 0.1 - delays[-1]))
    middle, most = statistics.median(delays) * 1000, max(delays) * 1000
    print(f"{LIVE_RATE:,} lines/s live: shown after {middle:.0f} ms, {most:.0f} ms at most; "
          f"longest frame {page.evaluate('longest'):.0f} ms; {memory(page, session)}")  # fmt: skip


def main() -> None:
    data = Path(tempfile.mkdtemp()) / "data"
    with Service(data, LOG_LEVEL="warning") as service, launched() as browser:
        alice = service.add_user()
        visitor = Visitor(browser, service.url, viewport={"width": 1280, "height": 860})
        visitor.sign_in(alice.key)
        for count in COUNTS:
            measure(visitor, alice, count)
        measure_live(visitor, alice)


if __name__ == "__main__":
    main()
