"""The Notifications page with the form that adds a hook, and the pages of hooks."""

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from flask import Blueprint, Response, current_app, request
from marshmallow import ValidationError

from taskservice import terms
from taskservice.auth import caller
from taskservice.config import is_loopback
from taskservice.dashboard import schema_form
from taskservice.dashboard.pages import page, redirect_to, texts
from taskservice.dashboard.schema_form import Errors, Json
from taskservice.dashboard.sessions import create_once
from taskservice.database.rows import HookRow
from taskservice.errors import Problem
from taskservice.event_kinds import DEFAULT_EVENTS, KINDS
from taskservice.schemas import strict_json
from taskservice.schemas.hooks import change_hook_schema, create_hook_schema
from taskservice.services import agents, attempts, hooks

blueprint = Blueprint("hooks", __name__)
blueprint.before_request(lambda: caller.require_full_user_key())

# Format -> the kind of receiver, examples of receivers, and a description of the address.
FORMATS = {
    terms.NTFY: (
        "Phone",
        "ntfy",
        "the URL of an ntfy topic, such as https://ntfy.sh/a-name-that-nobody-guesses",
    ),
    terms.SLACK: (
        "Chat",
        "Slack, Mattermost or Discord",
        "the URL of an incoming webhook there, for Discord with /slack at its end",
    ),
    terms.MAIL: ("Email", "", "the email address"),
    terms.STANDARD: ("Program", "signed webhooks", "its URL"),
}
BY_ADDRESS = ""  # the format depends on the address


@blueprint.route("/notifications", methods=["GET", "POST"], strict_slashes=False)
def list_all() -> Response:
    """List the hooks, or add a hook; a rejected form is shown again with its errors."""
    schema, typed, errors = _form_schema(), None, Errors()
    if request.method == "POST":
        typed = texts(request.form)
        content, errors = schema_form.content_of(schema, typed)
        if not errors:
            try:
                return _create(content)
            except (Problem, ValidationError) as error:
                errors = schema_form.errors_of(error)
    return page(
        "hooks.html",
        422 if errors else 200,
        hooks=[_shown(hook) for hook in hooks.list_all(caller)],
        fields=schema_form.fields(schema, typed, errors),
        link_warning=_link_warning(),
        event_kinds=KINDS,
        has_errors=bool(errors),
    )


def _create(content: Json) -> Response:
    """Add a hook from the content of the form. Raises 409, 422 and ValidationError."""
    target, kind = content["target"].strip(), content["format"]
    if kind in (terms.MAIL, BY_ADDRESS) and ":" not in target and "@" in target:
        target = f"mailto:{target}"
    body = {**content, "target": target}
    if kind == BY_ADDRESS:
        del body["format"]
    hook = create_once(lambda form_id: hooks.create(caller, create_hook_schema.load(body), form_id))
    if hook is None:
        return redirect_to("hooks.list_all")
    message = "Added. Send a test to see whether it arrives."
    return redirect_to("hooks.show", message, hook_id=hook.id)


@blueprint.get("/notifications/<hook_id>")
def show(hook_id: str) -> Response:
    hook = hooks.get(caller, hook_id)
    deliveries, waiting = hooks.list_sent(hook)
    return page(
        "hook.html",
        hook=_shown(hook),
        event_kinds=KINDS,
        deliveries=deliveries,
        waiting=waiting,
        is_truncated=len(deliveries) == hooks.MAX_SHOWN,
    )


@blueprint.get("/notifications/<hook_id>/deliveries/<delivery_id>")
def show_body(hook_id: str, delivery_id: str) -> Response:
    """The JSON body of a delivery to a program, with the current state of its task."""
    body = attempts.body_of(hooks.get(caller, hook_id), delivery_id)
    return Response(body, content_type="application/json")


@blueprint.post("/notifications/<hook_id>/test")
def test(hook_id: str) -> Response:
    try:
        outcome = hooks.test(caller, hook_id)
    except Problem as problem:
        if problem.status != 429:
            raise
        message = f"No test was sent. {problem.detail}."
    else:
        arrived = "The test was delivered." if outcome.delivered else "The test was not delivered."
        message = f"{arrived} {outcome.message}"
    return redirect_to("hooks.show", message, hook_id=hook_id)


@blueprint.post("/notifications/<hook_id>/state")
def change_state(hook_id: str) -> Response:
    fields = change_hook_schema.load({"state": request.form.get("state")})
    hook = hooks.change(caller, hook_id, fields)
    message = f"“{hook.name}” is {'on' if hook.state == terms.ACTIVE else 'off'}."
    return redirect_to("hooks.show", message, hook_id=hook_id)


@blueprint.route("/notifications/<hook_id>/delete", methods=["GET", "POST"])
def delete(hook_id: str) -> Response:
    if request.method != "POST":
        return page("delete_hook.html", hook=_shown(hooks.get(caller, hook_id)))
    hook = hooks.delete(caller, hook_id)
    return redirect_to("hooks.list_all", f"Deleted “{hook.name}”.")


@blueprint.post("/notifications/<hook_id>/deliveries/<delivery_id>")
def redeliver(hook_id: str, delivery_id: str) -> Response:
    hooks.redeliver(caller, hook_id, delivery_id)
    message = "The notification is being delivered again."
    return redirect_to("hooks.show", message, hook_id=hook_id, _anchor="deliveries")


def _shown(hook: HookRow) -> dict[str, Any]:
    """The fields of a hook, as the templates show them."""
    shown = {
        "target": hook.target.removeprefix("mailto:"),
        "kind": FORMATS[hook.format][0],
        "events": strict_json.loads(hook.events.encode()),
    }
    return hook._asdict() | shown


def _form_schema() -> Json:
    """The form for a new hook, as a JSON Schema whose properties are the API's fields."""
    config = current_app.config
    shown, without_mail = dict(FORMATS), ""
    if not config["SMTP_URL"]:
        del shown[terms.MAIL]
        without_mail = (
            "Email is not offered: TASKSERVICE_SMTP_URL and TASKSERVICE_MAIL_FROM are not set."
        )
    formats = {BY_ADDRESS: "By the address"}
    formats |= {name: f"{title} ({of})" if of else title for name, (title, of, _) in shown.items()}
    addresses = " ".join(f"{title}: {address}." for title, _, address in shown.values())
    kinds = sorted(KINDS.values(), key=lambda kind: not kind.is_default)
    events = {kind.name: f"{kind.label} ({kind.when})" for kind in kinds}
    answers = "Put an answer link into messages about questions; anyone can use it without a key."
    properties: Json = {
        "target": _property("Address", addresses),
        "format": _choice("Send to", formats, without_mail, default=BY_ADDRESS),
        "events": _property(
            "When", type="array", items=_choice("", events), default=list(DEFAULT_EVENTS)
        ),
        "after": _property(
            "Failures in a row",
            "The number of failures after which this address is notified that an agent is broken.",
            type="integer",
            default=1,
            minimum=1,
            maximum=terms.MAX_AFTER,
        ),
        "name": _property("Name", "By default, the address without its secret part."),
        "agentId": _property("Only for the agent", enum=agents.ids(caller, agents.MAX_CHOICES)),
        "label": _property("Only for tasks with the label", "Such as env:prod."),
        "token": _property("Access token", "For an ntfy server that requires an access token."),
    }
    required = ["target", "format", "events"]
    if config["PUBLIC_URL"]:
        links = _property("Answer links", answers, type="boolean", default=False)
        properties["answerLinks"] = links
        required.append("answerLinks")
    return {"type": "object", "properties": properties, "required": required}


def _property(title: str, description: str = "", **keywords: Any) -> Json:
    return {"type": "string", "title": title, "description": description, **keywords}


def _choice(title: str, titles: Mapping[str, str], description: str = "", **keywords: Any) -> Json:
    options = [{"const": value, "title": text} for value, text in titles.items()]
    return _property(title, description, oneOf=options, **keywords)


def _link_warning() -> str:
    """A warning if messages have no links or only links to this machine; otherwise empty."""
    url: str = current_app.config["PUBLIC_URL"]
    if url and not is_loopback(urlsplit(url).hostname or ""):
        return ""
    fault = f"Links in messages point to {url}, which only this machine can reach."
    remedy = "Set TASKSERVICE_PUBLIC_URL to an address at which phones can reach this service."
    return f"{fault if url else 'Messages have no links.'} {remedy}"
