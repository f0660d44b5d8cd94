"""Access control, security headers, templates, errors and links back to a list, for all pages."""

from collections import defaultdict
from contextlib import suppress
from typing import Any, cast

import flask
from flask import Blueprint, Response, current_app, flash, g, render_template, request
from werkzeug.datastructures import MultiDict
from werkzeug.exceptions import HTTPException

from taskservice import errors
from taskservice.auth import caller
from taskservice.dashboard.sessions import check_form, resume_session
from taskservice.errors import Problem
from taskservice.services import attention
from taskservice.terms import API_PREFIX, PROBLEM_TYPE
from taskservice.web import responses
from taskservice.web.request import MAX_BODY_WITHOUT_KEY, canonical, ignore_dates, url_parts

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
ENTER, LEAVE = "dashboard.sign_in.enter", "dashboard.sign_in.leave"
# The blueprints of pages that are opened with a secret link, and need no session.
PUBLIC = {"dashboard.answer_links", "dashboard.shared", "dashboard.sign_in_links"}
LIST = "dashboard.tasks.list_all"
# The pages that list tasks. Their links to tasks contain the URL of the list, as `?back=`.
LISTS = {
    LIST,
    "dashboard.inbox.show",
    "dashboard.search.show",
    "dashboard.agents.list_all",
    "dashboard.agents.show",
}
# Maximum length of the URL in `back`.
MAX_BACK = 2_000
KEEP_BACK = {
    "dashboard.tasks.show",
    "dashboard.tasks.rerun",
    "dashboard.managed.cancel",
    "dashboard.managed.delete",
    "dashboard.managed.redeliver",
}

# The header lets page.js distinguish a deleted task from a 404 that a proxy sends.
GONE = Problem(404, "This task was deleted or never existed", headers={"Task-Gone": "true"})

# `data:` allows images in the outputs of tasks. Only page.js can turn text into HTML, with the
# Trusted Types policy `own-page`.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types own-page"
)


@dashboard.before_request
def require_session() -> Response | None:
    """Redirect visitors without a session to the sign-in page; check CSRF tokens and path IDs."""
    is_public = request.endpoint in (STATIC, ICON) or request.blueprint in PUBLIC
    if is_public or not resume_session():
        request.max_content_length = MAX_BODY_WITHOUT_KEY
        needs_key = not is_public and request.endpoint not in (ENTER, LEAVE)
        return _to_sign_in() if needs_key else None
    if request.method == "POST" and request.endpoint != ENTER:
        check_form()
        if request.endpoint != LEAVE:
            caller.require_full_access()
    path = request.view_args or {}
    path.update(canonical(path))
    return None


@dashboard.after_request
def set_security_headers(response: Response) -> Response:
    """Set headers that prevent caching, code from other sites, and display in frames."""
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
        # The page is the same whether the link was used, was revoked, has expired or never existed.
        return page("answer_link.html", 404)
    if problem.status == 404 and "task_id" in (request.view_args or {}):
        problem = GONE
    response = page("error.html", problem.status, problem=problem)
    response.headers.update(problem.headers)
    return response


def unknown_page(error: HTTPException) -> Response:
    """The response for an unknown URL: a page for browsers, a problem for other clients."""
    media_type = request.accept_mimetypes.best_match([PROBLEM_TYPE, "text/html"])
    if media_type != "text/html" or request.path.startswith(API_PREFIX):
        return errors.respond(errors.from_exception(error))
    # A proxy may exempt the paths of links from its sign-in, so these paths use no session.
    if not request.path.startswith(("/shared/", "/answer/", "/sign-in/")):
        # `resume_session` raises Problem if the proxy sends the name of a person who has no key.
        with suppress(Problem):
            resume_session()
    return set_security_headers(error_page(error))


@dashboard.get("/favicon.ico")
def icon() -> Response:
    """The icon that browsers request for responses that are not HTML."""
    return dashboard.send_static_file("icon.svg")


def page(template: str, status: int = 200, **values: Any) -> Response:
    """A page with an ETag. A GET that sends the same ETag gets a 304."""
    # Whether the session's key has the right to cancel, delete and answer.
    can_manage = "signed_in" in g and caller.can_manage
    # For an error page, do not query the items, since the database may be unavailable.
    items = attention_items() if "signed_in" in g and status < 500 else []
    values |= {"signed_in": g.get("signed_in"), "can_manage": can_manage}
    values |= {"attention": items, "inbox": attention.counts(items)}
    return html_response(render_template(f"dashboard/{template}", **values), status)


def attention_items() -> list[dict[str, Any]]:
    """The items that need attention, read at most once per request."""
    if "attention" not in g:
        g.attention = attention.items(caller)
    return cast(list[dict[str, Any]], g.attention)


def html_response(html: str | bytes, status: int = 200) -> Response:
    """A response with HTML and an ETag, or a 304 if the client sends the same ETag."""
    response = Response(html, status)
    if request.method == "GET" and status == 200:
        response.add_etag(weak=True)
        response.make_conditional(request)
    return response


def see_other(url: str) -> Response:
    return cast(Response, flask.redirect(url, 303))


def redirect_to(endpoint: str, message: str = "", **values: Any) -> Response:
    """A redirect to a page of the dashboard, which shows the message once."""
    if message:
        flash(message)
    return see_other(flask.url_for(f"dashboard.{endpoint}", **values))


def texts(values: MultiDict[str, str]) -> dict[str, list[str]]:
    """The texts of a form or query string as the API expects them: no NUL, and LF line endings."""
    return {
        name: [text.replace("\0", "\ufffd").replace("\r\n", "\n") for text in texts]
        for name, texts in values.lists()
    }


def first_texts(values: MultiDict[str, str]) -> dict[str, str]:
    """Like `texts`, but with only the first text of each name; a missing name has an empty text."""
    return defaultdict(
        str, {name: texts_of_name[0] for name, texts_of_name in texts(values).items()}
    )


def endpoint_of(path: str) -> str:
    """The endpoint of the page at `path`, which can include a query; empty if there is no such
    page.
    """
    # Flask's routes match //agents too, but a browser treats //agents as a host name.
    if not path.isprintable() or not path.startswith("/") or path.startswith("//"):
        return ""
    try:
        endpoint, _ = current_app.url_map.bind("").match(path.partition("?")[0], "GET")
    except HTTPException:
        return ""
    return str(endpoint) if endpoint.startswith("dashboard.") else ""


def redirect_to_page(path: str, endpoint: str, **values: Any) -> Response:
    """A redirect to `path` if it is a page of the dashboard, otherwise to the page `endpoint`."""
    if not endpoint_of(path):
        return redirect_to(endpoint, **values)
    return see_other(f"{request.script_root}{path}")


def way_back() -> str:
    """The URL of this list, or of the list that links to this page; empty for the list of all
    tasks.
    """
    is_list = request.endpoint in LISTS
    path = request.full_path.rstrip("?") if is_list else request.args.get("back", "")
    is_valid = path != "/" and len(path) <= MAX_BACK and endpoint_of(path) in LISTS
    return path if is_valid else ""


@dashboard.url_defaults
def keep_way_back(endpoint: str, values: dict[str, Any]) -> None:
    """Add `back`, the URL of the list, to links to tasks and their forms."""
    if endpoint in KEEP_BACK and (path := way_back()):
        values.setdefault("back", path)


def _to_sign_in() -> Response:
    path = request.full_path.rstrip("?")
    if request.method == "POST":
        flash("Nothing was changed because you were signed out. Sign in and try again.")
        # After the sign-in, return to the page that contains the form.
        referrer = url_parts(request.referrer or "")
        query = f"?{referrer.query}" if referrer.query else ""
        path = f"{referrer.path.removeprefix(request.script_root)}{query}"
    return redirect_to("sign_in.enter", next=path if endpoint_of(path) and path != "/" else None)
