"""The sign-in page, and the sign-out."""

from flask import Blueprint, Response, g, request, session

from taskservice.dashboard.pages import page, redirect_to, redirect_to_page
from taskservice.dashboard.sessions import begin_session, check_form
from taskservice.errors import Problem

blueprint = Blueprint("sign_in", __name__)


@blueprint.route("/sign-in", methods=["GET", "POST"])
def enter() -> Response:
    path, problem = request.values.get("next", ""), None
    if request.method == "POST":
        try:
            check_form()
            begin_session()
            return redirect_to_page(path, "tasks.list_all")
        except Problem as error:
            problem = error
    # A visitor who has signed in in another window no longer needs the form.
    if "signed_in" in g and (problem is None or problem.status != 401):
        return redirect_to_page(path, "tasks.list_all")
    response = page("sign_in.html", problem.status if problem else 200, next=path, problem=problem)
    response.headers.update(problem.headers if problem else {})
    return response


@blueprint.post("/sign-out")
def leave() -> Response:
    session.clear()
    return redirect_to("sign_in.enter", "You are signed out.")
