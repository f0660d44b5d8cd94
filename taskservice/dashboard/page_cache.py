"""Caches pages for all tabs of a session, since each tab requests its page every second."""

import time
from collections.abc import Callable
from functools import lru_cache, wraps
from threading import Lock
from types import SimpleNamespace
from typing import Any

from flask import Response, g, request, session

from taskservice import errors
from taskservice.auth import caller
from taskservice.dashboard.pages import html_response
from taskservice.dashboard.sessions import form_token
from taskservice.database.watcher import change_marker

# Maximum age of a cached page in seconds: some parts of a page, such as a chart, change as time
# passes.
MAX_AGE = 2.0
# How long a request waits, in seconds, while another request renders the page. The wait is short,
# since the waiting request occupies a thread.
MAX_WAIT = 2.0
CACHE_SIZE = 50
MAX_CACHED = 1024 * 1024  # bytes; a larger page is not cached

# A rendered page, with the `change_marker` and the time just before it was rendered.
_page = lru_cache(CACHE_SIZE)(
    lambda *_key: SimpleNamespace(lock=Lock(), html=b"", marker=None, began=0.0)
)


def shared(view: Callable[..., Response]) -> Callable[..., Response]:
    """Let the view render its page once for all tabs of a session, or for all viewers of a link.

    After any commit to the database, the page is rendered again. Responses to submitted forms are
    not shared. Raises 503.
    """

    @wraps(view)
    def respond(**values: Any) -> Response:
        if request.method == "POST" or ("signed_in" in g and "_flashes" in session):
            # A page with a message, or with the errors of a form, is only for the tab that sent the
            # request.
            return view(**values)
        token = form_token() if "signed_in" in g else ""
        page = _page(request.script_root, request.full_path, caller.key_id, token)
        if not page.lock.acquire(timeout=MAX_WAIT):
            raise errors.overloaded("Rendering the page takes too long; try again later")
        try:
            # Read the marker before the page is rendered, so that no commit is missed.
            marker, began = change_marker(), time.monotonic()
            if not page.html or page.marker != marker or began - page.began > MAX_AGE:
                response = view(**values)
                # The response object of a 304 contains the page too, although only the headers are
                # sent.
                html = response.get_data()
                if response.status_code not in (200, 304) or len(html) > MAX_CACHED:
                    return response
                page.html, page.marker, page.began = html, marker, began
            return html_response(page.html)
        finally:
            page.lock.release()

    return respond
