"""Signing in and out."""

from math import ceil

from flask import Blueprint, flash, g, request, session
from werkzeug.wrappers import Response as AnyResponse

from taskservice import resources
from taskservice.auth import valid_key
from taskservice.dashboard import sessions
from taskservice.dashboard.pages import page, redirect_to, redirect_to_page
from taskservice.dashboard.sign_in_throttle import Throttle
from taskservice.database import clock
from taskservice.errors import Problem

sign_in = Blueprint("sign_in", __name__)


@sign_in.get("/sign-in")
def show() -> AnyResponse:
    if "signed_in" in g:
        return redirect_to_page(request.args.get("next", ""), "tasks.list_all")
    return page("sign_in.html", next=request.args.get("next", ""))


@sign_in.post("/sign-in")
def enter() -> AnyResponse:
    try:
        sessions.check_form()
        key = valid_key(request.form.get("key", "").strip(), clock.now())
    except Problem as problem:
        return _refused(problem)
    sessions.begin(key)
    return redirect_to_page(request.form.get("next", ""), "tasks.list_all")


@sign_in.post("/sign-out")
def leave() -> AnyResponse:
    session.clear()
    flash("You are signed out.")
    return redirect_to("sign_in.show")


def _throttled(problem: Problem) -> Problem:
    """The answer to a wrong key. The throttle never delays a valid one."""
    wait = ceil(resources.find(Throttle).seconds_too_early(request.remote_addr or ""))
    if not wait:
        return problem
    detail = f"Too many wrong keys; try again in {wait} s"
    return Problem(429, detail, headers={"Retry-After": str(wait)})


def _refused(problem: Problem) -> AnyResponse:
    if problem.status == 401:
        problem = _throttled(problem)
    elif "signed_in" in g:
        # The visitor has signed in in another window: this form is no longer needed.
        return redirect_to("tasks.list_all")
    response = page(
        "sign_in.html", problem.status, next=request.form.get("next", ""), problem=problem
    )
    response.headers.update(problem.headers)
    return response
