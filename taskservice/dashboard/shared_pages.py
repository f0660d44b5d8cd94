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

from taskservice.contract.error_codes import OVERLOADED
from taskservice.dashboard import sessions
from taskservice.dashboard.pages import answer_with
from taskservice.database.watcher import change_marker
from taskservice.problems import Problem

# What a page shows of the time, such as the bars of the chart, is this old at most, in seconds.
MAX_AGE = 2.0
# A page that is asked for more often than this in a second is made anew after each change only
# once in COST_FACTOR times as long as that takes, in a second at most.
OFTEN = 8
COST_FACTOR = 30.0
CACHE_SIZE = 50
# How long a tab waits while another one's request makes the page. After that it gets the page
# before, if that is recent, or else 503, so that a slow page does not hold all threads.
LATE_SECONDS = 0.1
FIRST_SECONDS = 2.0
RECENT_SECONDS = 10.0
RETRY = {"Retry-After": "2"}

View = Callable[..., AnyResponse]


@dataclass
class _Page:
    lock: Lock = field(default_factory=Lock)
    # When it was asked for, the last times.
    asked: deque[float] = field(default_factory=lambda: deque(maxlen=OFTEN))
    html: bytes | None = None
    marker: Any = None
    began: float = 0.0
    seconds: float = 0.0

    def keep(self, html: bytes, marker: Any, began: float) -> None:
        self.html, self.marker, self.began = html, marker, began
        self.seconds = time.monotonic() - began

    def is_recent(self) -> bool:
        """Whether it may be shown while another request makes it anew."""
        return self.html is not None and time.monotonic() - self.began < RECENT_SECONDS

    def is_current(self, marker: Any) -> bool:
        """Whether it may be shown, where `marker` is that of the database now."""
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
    """Make the page of a view once for all tabs of a session that show it.

    It is made again when anything was committed to the database since.
    """

    @wraps(view)
    def answer(**values: Any) -> AnyResponse:
        if "_flashes" in session:
            # A message is shown once.
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
