"""Pages that the open tabs of a session share: each tab asks for its page once a second."""

import time
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from functools import wraps
from threading import Lock
from typing import Any

from flask import request, session
from werkzeug.wrappers import Response as AnyResponse

from taskservice.dashboard import sessions
from taskservice.dashboard.pages import answer_with
from taskservice.database.watcher import change_marker
from taskservice.errors import Problem
from taskservice.terms import OVERLOADED

# The maximum age of a page in seconds, since some of it, such as the bars of the chart, depends on
# the time.
MAX_AGE = 2.0
# A page with OFTEN requests within a second is not made again after each change, but only when it
# is COST_FACTOR times as old as the time that making it took, or a second old.
OFTEN = 8
COST_FACTOR = 30.0
CACHE_SIZE = 50
# How long a request waits while another one makes the page, so that a slow page does not hold all
# threads. After LATE_SECONDS it gets the page as it was before, if that is younger than
# RECENT_SECONDS; otherwise it waits for FIRST_SECONDS and then gets 503.
LATE_SECONDS = 0.1
FIRST_SECONDS = 2.0
RECENT_SECONDS = 10.0
RETRY = {"Retry-After": "2"}

View = Callable[..., AnyResponse]


@dataclass
class _Page:
    """A page, and how it was made; the lock is held by the one request that makes it."""

    lock: Lock = field(default_factory=Lock)
    # The moments of the last requests that had the lock.
    asked: deque[float] = field(default_factory=lambda: deque(maxlen=OFTEN))
    html: bytes | None = None
    # The `change_marker` from before it was made, when that began, and how long it took.
    marker: Any = None
    began: float = 0.0
    seconds: float = 0.0

    def keep(self, html: bytes, marker: Any, began: float) -> None:
        self.html, self.marker, self.began = html, marker, began
        self.seconds = time.monotonic() - began

    def is_recent(self) -> bool:
        """Whether the page may answer a request while another one makes it again."""
        return self.html is not None and time.monotonic() - self.began < RECENT_SECONDS

    def is_current(self, marker: Any) -> bool:
        """Record a request; returns whether the page may answer it. `marker` is the present one."""
        now = time.monotonic()
        self.asked.append(now)
        age = now - self.began
        if self.html is None or age > MAX_AGE:
            return False
        is_asked_often = len(self.asked) == OFTEN and self.asked[0] > now - 1.0
        may_be_late = is_asked_often and age < min(COST_FACTOR * self.seconds, 1.0)
        return may_be_late or self.marker == marker


_lock = Lock()
_cache: OrderedDict[Hashable, _Page] = OrderedDict()


def shared(view: View) -> View:
    """Let the view make its page once for all tabs of a session that show it.

    It makes the page again when anything was committed to the database meanwhile. Raises 503.
    """

    @wraps(view)
    def answer(**values: Any) -> AnyResponse:
        if "_flashes" in session:
            # This page shows a message, which must appear once.
            return view(**values)
        page = _page((request.script_root, request.full_path, session["key"], sessions.token()))
        # Before the page is read: what is committed meanwhile must not be missed.
        marker = change_marker()
        is_mine = page.lock.acquire(timeout=LATE_SECONDS if page.is_recent() else FIRST_SECONDS)
        try:
            if is_mine and not page.is_current(marker):
                began = time.monotonic()
                response = view(**values)
                if response.status_code not in (200, 304):
                    return response
                # A 304 has the page too; it is left out when the response is sent.
                page.keep(response.get_data(), marker, began)
        finally:
            if is_mine:
                page.lock.release()
        if page.html is None or not (is_mine or page.is_recent()):
            raise Problem(503, "The page takes too long", code=OVERLOADED, headers=RETRY)
        return answer_with(page.html)

    return answer


def _page(key: Hashable) -> _Page:
    with _lock:
        page = _cache.setdefault(key, _Page())
        _cache.move_to_end(key)
        while len(_cache) > CACHE_SIZE:
            _cache.popitem(last=False)
        return page
