"""Pages to sign in and out."""

from math import ceil

from flask import Blueprint, Response, current_app, flash, redirect, request, session
from werkzeug.exceptions import HTTPException
from werkzeug.wrappers import Response as AnyResponse

from taskservice.auth import valid_key
from taskservice.dashboard import sessions
from taskservice.dashboard.door import page, to
from taskservice.dashboard.throttle import Throttle
from taskservice.problems import Problem

sign_in = Blueprint("sign_in", __name__)


@sign_in.get("/sign-in")
def show() -> Response:
    return page("sign_in.html", next=request.args.get("next", ""))


@sign_in.post("/sign-in")
def enter() -> AnyResponse:
    throttle: Throttle = current_app.extensions["throttle"]
    address = request.remote_addr or ""
    wait = ceil(throttle.seconds(address))
    if wait:
        return _refused(Problem(429, f"Too many wrong keys; try again in {wait} s"), wait)
    try:
        key = valid_key(request.form.get("key", "").strip())
    except Problem as problem:
        throttle.was_wrong(address)
        return _refused(problem)
    throttle.was_right(address)
    sessions.begin(key)
    return _back(request.form.get("next", ""))


@sign_in.post("/sign-out")
def leave() -> AnyResponse:
    session.clear()
    flash("You are signed out.")
    return to("sign_in.show")


def _refused(problem: Problem, wait: int = 0) -> Response:
    response = page(
        "sign_in.html", problem.status, next=request.form.get("next", ""), problem=problem
    )
    if wait:
        response.headers["Retry-After"] = str(wait)
    return response


def _back(path: str) -> AnyResponse:
    """To the page that was asked for; whatever is no page of ours is none."""
    try:
        routes = current_app.url_map.bind("")
        endpoint, _ = routes.match(path.partition("?")[0], "GET")
    except HTTPException:
        endpoint = ""
    if not endpoint.startswith("dashboard."):
        return to("tasks.list_all")
    return redirect(f"{request.script_root}{path}", 303)
