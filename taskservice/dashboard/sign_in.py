"""Signing in and out."""

from flask import Blueprint, current_app, flash, g, request, session
from werkzeug.wrappers import Response as AnyResponse

from taskservice.auth import valid_key
from taskservice.dashboard import sessions
from taskservice.dashboard.pages import page, redirect_to, redirect_to_page
from taskservice.database import clock
from taskservice.errors import Problem

blueprint = Blueprint("sign_in", __name__)


@blueprint.get("/sign-in")
def show() -> AnyResponse:
    if "signed_in" in g:
        return redirect_to_page(request.args.get("next", ""), "tasks.list_all")
    return page("sign_in.html", next=request.args.get("next", ""))


@blueprint.post("/sign-in")
def enter() -> AnyResponse:
    try:
        sessions.check_form()
        if current_app.config["LOGIN_HEADER"]:
            raise Problem(403, "Sign in at the proxy: this service accepts no keys here")
        key = valid_key(request.form.get("key", "").strip(), clock.now())
    except Problem as problem:
        if problem.status != 401 and "signed_in" in g:
            # The visitor has signed in in another window: this form is no longer needed.
            return redirect_to("tasks.list_all")
        response = page(
            "sign_in.html", problem.status, next=request.form.get("next", ""), problem=problem
        )
        response.headers.update(problem.headers)
        return response
    sessions.begin(key)
    return redirect_to_page(request.form.get("next", ""), "tasks.list_all")


@blueprint.post("/sign-out")
def leave() -> AnyResponse:
    session.clear()
    flash("You are signed out.")
    return redirect_to("sign_in.show")
