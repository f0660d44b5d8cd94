"""The sign-in page, the pages of sign-in links, and the sign-out."""

from flask import Blueprint, Response, g, request, session

from taskservice.dashboard.pages import page, redirect_to, redirect_to_page
from taskservice.dashboard.sessions import (
    begin_session,
    check_form,
    form_key,
    require_own_sign_in,
)
from taskservice.errors import Problem
from taskservice.services import sign_in_links

blueprint = Blueprint("sign_in", __name__)
links = Blueprint("sign_in_links", __name__, url_prefix="/sign-in")


@blueprint.route("/sign-in", methods=["GET", "POST"])
def enter() -> Response:
    path, problem = request.values.get("next", ""), None
    if request.method == "POST":
        try:
            check_form()
            require_own_sign_in()
            begin_session(form_key())
            return redirect_to_page(path, "tasks.list_all")
        except Problem as error:
            problem = error
    # A visitor who is already signed in does not need the form.
    if "signed_in" in g and (problem is None or problem.status != 401):
        return redirect_to_page(path, "tasks.list_all")
    response = page("sign_in.html", problem.status if problem else 200, next=path, problem=problem)
    response.headers.update(problem.headers if problem else {})
    return response


@links.route("/<path:token>", methods=["GET", "POST"])
def enter_by_link(token: str) -> Response:
    """Show a form; only its POST uses up the link, since link previews send a GET."""
    require_own_sign_in()
    if request.method == "POST":
        # A form on another site is sent without the session cookie, so its token is rejected.
        check_form()
        begin_session(sign_in_links.use(token))
        return redirect_to("tasks.list_all")
    return page("sign_in_link.html", link=sign_in_links.find(token))


@blueprint.post("/sign-out")
def leave() -> Response:
    session.clear()
    return redirect_to("sign_in.enter", "You are signed out.")
