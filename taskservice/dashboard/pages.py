"""Shared by all pages: sessions, the token of forms, security headers, templates and errors."""

import secrets
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from functools import lru_cache, wraps
from threading import Lock
from types import SimpleNamespace
from typing import Any, cast

import flask
from flask import Blueprint, Response, current_app, flash, g, render_template, request, session
from werkzeug.datastructures import MultiDict
from werkzeug.exceptions import HTTPException

from taskservice import errors
from taskservice.auth import KEY_BY_ID, KEY_OF_LOGIN, caller, find, set_caller, valid_key
from taskservice.database import clock
from taskservice.database.types import AnyRow
from taskservice.database.watcher import change_marker
from taskservice.errors import Problem
from taskservice.services import hooks
from taskservice.terms import API_PREFIX, PROBLEM_TYPE
from taskservice.web import responses
from taskservice.web.request import SPACE, canonical, ignore_dates, url_parts

dashboard = Blueprint(
    "dashboard",
    __name__,
    template_folder="templates",
    static_folder="static",
    static_url_path="/static",
)
dashboard.before_request(ignore_dates)

STATIC = "dashboard.static"
ICON = "dashboard.icon"
ENTER, LEAVE = "dashboard.enter", "dashboard.leave"
# What everyone sees who has a link, without a session.
PUBLIC = {"dashboard.answer_links", "dashboard.shared"}
LIST = "dashboard.tasks.list_all"
# The pages that list tasks. Links to tasks contain the way back to the list, as `?back=`.
LISTS = {LIST, "dashboard.search.show", "dashboard.agents.list_all", "dashboard.agents.show"}
# A longer way back would make links that are too long.
MAX_BACK = 2_000
KEEP_BACK = {
    "dashboard.tasks.show",
    "dashboard.tasks.rerun",
    "dashboard.managed.cancel",
    "dashboard.managed.delete",
    "dashboard.managed.redeliver",
}

# The header lets page.js distinguish a deleted task from a proxy's 404.
GONE = Problem(404, "This task was deleted or never existed", headers={"Task-Gone": "true"})

# Images in the outputs of tasks are `data:`. Only the policy own-page of page.js, which reads our
# own pages, can turn text into HTML.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types own-page"
)


# Sessions: a signed cookie with the id of the key that signed in, never the key itself.

# Checked in the session too: a copied cookie must not be valid longer.
LIFETIME = timedelta(days=7)


def resume_session() -> bool:
    """Set the caller of this request, and `g.signed_in`: its key, with `user_name`.

    False without a session or a valid key. Raises 403 for someone whom the proxy names without key.
    """
    now = clock.now()
    if current_app.config["LOGIN_HEADER"]:
        key = _of_proxy(now)
    else:
        key = find(KEY_BY_ID, session["key"], now) if is_session_unexpired() else None
    if key is None:
        session.pop("key", None)
    else:
        set_caller(key, now)
        g.signed_in = key
    return key is not None


def _of_proxy(now: str) -> AnyRow | None:
    """The key of the person in the proxy's header; None if the header is empty. Raises 403."""
    # WSGI gives the bytes of a header as Latin-1. One that is sent twice is joined by a comma.
    sent = request.headers.get(current_app.config["LOGIN_HEADER"], "").strip(SPACE)
    name = sent.encode("latin-1").decode(errors="replace")
    key = find(KEY_OF_LOGIN, name, now) if name and "," not in name else None
    if name and key is None:
        remedy = "ask the people who run this service to add this name with"
        raise Problem(403, f"{name} can't sign in here: {remedy} taskservice key add --login")
    return key


def is_session_unexpired() -> bool:
    """Whether the session of this request has not expired; a proxy has its own sessions."""
    if current_app.config["LOGIN_HEADER"]:
        return True
    return "key" in session and clock.now() < session.get("until", "")


def form_token() -> str:
    """The CSRF token in each form of this session."""
    return str(session.setdefault("token", secrets.token_urlsafe(32)))


def submission_id() -> str:
    """The id in a form that can be sent only once; it changes after each submission."""
    return str(session.setdefault("submission_id", clock.new_id()))


def create_once(create: Callable[[str], Any]) -> Any:
    """What `create` makes of the form and its id; None, with a message, if it was sent before.

    The new row gets this id: if two forms are sent at once, `create` returns None for one of them.
    """
    submitted = request.form.get("submission_id", "").encode()
    is_first = secrets.compare_digest(submitted, submission_id().encode())
    created = create(submission_id()) if is_first else None
    if created is None:
        flash("This form was already sent.")
    else:
        session.pop("submission_id", None)
    return created


def check_form() -> None:
    """Raises Problem 403 unless this form comes from a page of this session."""
    submitted = request.form.get("token", "").encode()
    is_foreign = request.headers.get("Sec-Fetch-Site", "same-origin") not in ("same-origin", "none")
    if is_foreign or not secrets.compare_digest(submitted, form_token().encode()):
        remedy = "go back, reload and try again"
        raise Problem(403, f"This form is out of date, or cookies are disabled: {remedy}")


@dashboard.before_request
def require_session() -> Response | None:
    """Send visitors who are not signed in to sign in; check the token of forms, and ids."""
    if request.endpoint in (STATIC, ICON) or request.blueprint in PUBLIC:
        return None
    if not resume_session():
        return None if request.endpoint in (ENTER, LEAVE) else _to_sign_in()
    if request.method == "POST" and request.endpoint != ENTER:
        check_form()
        if request.endpoint != LEAVE:
            caller.require_full_access()
    path = request.view_args or {}
    path.update(canonical(path))
    return None


@dashboard.after_request
def set_security_headers(response: Response) -> Response:
    """Keep pages from being cached, and from running or being framed by foreign code."""
    response.headers["Content-Security-Policy"] = POLICY
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers.setdefault("Referrer-Policy", "same-origin")
    if request.endpoint not in (STATIC, ICON):
        response.headers["Cache-Control"] = "no-store"
        response.vary.add("Cookie")
    if request.blueprint in PUBLIC:
        response.headers.update(responses.PRIVATE)
    return response


@dashboard.errorhandler(Exception)
def error_page(error: Exception) -> Response:
    """The page for an error that the API would return as a problem."""
    problem = errors.from_exception(error)
    if request.blueprint in PUBLIC and problem.status in (404, 409):
        # The same whether the link was used or revoked, has expired, or never existed.
        return page("answer_link.html", 404)
    if problem.status == 404 and "task_id" in (request.view_args or {}):
        problem = GONE
    response = page("error.html", problem.status, problem=problem)
    response.headers.update(problem.headers)
    return response


def unknown_page(error: HTTPException) -> Response:
    """For a URL without a route: a page for a browser, a problem for other clients."""
    media_type = request.accept_mimetypes.best_match([PROBLEM_TYPE, "text/html"])
    if media_type != "text/html" or request.path.startswith(API_PREFIX):
        return errors.respond(errors.from_exception(error))
    # Paths of links need no session, so that a proxy may leave them out of its sign-in.
    if not request.path.startswith(("/shared/", "/answer/")):
        # Someone whom the proxy names without a key is not signed in either.
        with suppress(Problem):
            resume_session()
    return set_security_headers(error_page(error))


@dashboard.get("/favicon.ico")
def icon() -> Response:
    """The icon that browsers request for responses that are not HTML."""
    return dashboard.send_static_file("icon.svg")


def page(template: str, status: int = 200, **values: Any) -> Response:
    """A page with an ETag; a GET that sends the same ETag gets 304."""
    # Whether the key of this session may cancel, delete and answer.
    can_manage = "signed_in" in g and caller.can_manage
    # Hooks that are off; an error may mean that the database is unavailable.
    hooks_off = hooks.turned_off(caller) if can_manage and status < 500 else ()
    values |= {"signed_in": g.get("signed_in"), "can_manage": can_manage, "hooks_off": hooks_off}
    return html_response(render_template(f"dashboard/{template}", **values), status)


def html_response(html: str | bytes, status: int = 200) -> Response:
    """HTML with an ETag, as `page` returns it."""
    response = Response(html, status)
    if request.method == "GET" and status == 200:
        response.add_etag(weak=True)
        response.make_conditional(request)
    return response


def see_other(url: str) -> Response:
    return cast(Response, flask.redirect(url, 303))


def redirect_to(endpoint: str, message: str = "", **values: Any) -> Response:
    """A redirect to this page of the dashboard, which shows the message once."""
    if message:
        flash(message)
    return see_other(flask.url_for(f"dashboard.{endpoint}", **values))


def texts(values: MultiDict[str, str]) -> dict[str, list[str]]:
    """A form or query string as the API expects it: without NUL, with LF line ends."""
    return {
        name: [text.replace("\0", "\ufffd").replace("\r\n", "\n") for text in texts]
        for name, texts in values.lists()
    }


def first_texts(values: MultiDict[str, str]) -> dict[str, str]:
    """Like `texts`, but only the first text of each name; other names have an empty text."""
    return defaultdict(str, {name: each[0] for name, each in texts(values).items()})


def endpoint_of(path: str) -> str:
    """The endpoint of the dashboard at `path`, without the prefix and with its query, else ""."""
    # The routes match whatever slashes a path begins with; a browser takes //agents for a host.
    if not path.isprintable() or not path.startswith("/") or path.startswith("//"):
        return ""
    try:
        endpoint, _ = current_app.url_map.bind("").match(path.partition("?")[0], "GET")
    except HTTPException:
        return ""
    return str(endpoint) if endpoint.startswith("dashboard.") else ""


def redirect_to_page(path: str, endpoint: str, **values: Any) -> Response:
    """A redirect to `path` if it is in the dashboard, else to this page of it."""
    if not endpoint_of(path):
        return redirect_to(endpoint, **values)
    return see_other(f"{request.script_root}{path}")


def way_back() -> str:
    """The list from which the reader came, or this list, with its query; empty for all tasks."""
    is_list = request.endpoint in LISTS
    path = request.full_path.rstrip("?") if is_list else request.args.get("back", "")
    is_valid = path != "/" and len(path) <= MAX_BACK and endpoint_of(path) in LISTS
    return path if is_valid else ""


@dashboard.url_defaults
def keep_way_back(endpoint: str, values: dict[str, Any]) -> None:
    """Let links from a list to a task, and from there on, remember the list."""
    if endpoint in KEEP_BACK and (path := way_back()):
        values.setdefault("back", path)


def _to_sign_in() -> Response:
    path = request.full_path.rstrip("?")
    if request.method == "POST":
        flash("Nothing was changed because you were signed out. Sign in and try again.")
        # The page that had the form.
        referrer = url_parts(request.referrer or "")
        query = f"?{referrer.query}" if referrer.query else ""
        path = f"{referrer.path.removeprefix(request.script_root)}{query}"
    return redirect_to("enter", next=path if endpoint_of(path) and path != "/" else None)


@dashboard.route("/sign-in", methods=["GET", "POST"])
def enter() -> Response:
    path, problem = request.values.get("next", ""), None
    if request.method == "POST":
        try:
            check_form()
            _begin_session()
            return redirect_to_page(path, "tasks.list_all")
        except Problem as error:
            problem = error
    # A visitor who has signed in in another window no longer needs the form.
    if "signed_in" in g and (problem is None or problem.status != 401):
        return redirect_to_page(path, "tasks.list_all")
    response = page("sign_in.html", problem.status if problem else 200, next=path, problem=problem)
    response.headers.update(problem.headers if problem else {})
    return response


def _begin_session() -> None:
    """Sign this browser in with the key in the form. Raises 401, and 403 behind a proxy."""
    if current_app.config["LOGIN_HEADER"]:
        raise Problem(403, "Sign in at the proxy: this service accepts no keys here")
    now = clock.now()
    key = valid_key(request.form.get("key", "").strip(), now)
    set_caller(key, now)
    session.clear()
    session["key"] = key.id
    # The cookie is renewed with each change of the session; this end stays.
    session["until"] = clock.now(LIFETIME.total_seconds())


@dashboard.post("/sign-out")
def leave() -> Response:
    session.clear()
    return redirect_to("enter", "You are signed out.")


# Pages that the open tabs of a session share: each tab requests its page once a second.

# The maximum age of a page in seconds, since some of it, such as the chart, depends on the time.
MAX_AGE = 2.0
# How long a request waits, in seconds, for another one that makes the page: it holds a thread.
MAX_WAIT = 2.0
CACHE_SIZE = 50
MAX_CACHED = 1024 * 1024  # bytes; each tab has a larger page made for itself

# A page, and the `change_marker` and the time before it was made, by the request with the lock.
_page = lru_cache(CACHE_SIZE)(
    lambda *_key: SimpleNamespace(lock=Lock(), html=b"", marker=None, began=0.0)
)


def shared(view: Callable[..., Response]) -> Callable[..., Response]:
    """Let the view make its page once for all tabs of a session, or viewers of a link.

    The page is made again after any commit to the database; forms are never shared. Raises 503.
    """

    @wraps(view)
    def respond(**values: Any) -> Response:
        if request.method == "POST" or ("signed_in" in g and "_flashes" in session):
            # A page with a message, or with what a form refused, must appear once.
            return view(**values)
        token = form_token() if "signed_in" in g else ""
        page = _page(request.script_root, request.full_path, caller.key_id, token)
        if not page.lock.acquire(timeout=MAX_WAIT):
            raise errors.overloaded("The page takes too long; try again later")
        try:
            # Before the page is read, so that no later commit is missed.
            marker, began = change_marker(), time.monotonic()
            if not page.html or page.marker != marker or began - page.began > MAX_AGE:
                response = view(**values)
                # A 304 has the page too; it is left out when the response is sent.
                html = response.get_data()
                if response.status_code not in (200, 304) or len(html) > MAX_CACHED:
                    return response
                page.html, page.marker, page.began = html, marker, began
            return html_response(page.html)
        finally:
            page.lock.release()

    return respond
