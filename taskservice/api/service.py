"""Routes that need no key: liveness, readiness, metrics, and the documentation."""

from functools import cache
from inspect import getmembers, isfunction

from flask import Blueprint, Response, current_app, render_template, request, url_for

from taskservice.operations import health, metrics
from taskservice.schemas import strict_json
from taskservice.schemas.tasks import DocumentSchema, HealthSchema, ReadinessSchema
from taskservice.terms import API_PREFIX
from taskservice.web import responses
from taskservice.web.request import JSON, TEXT, ignore_dates, operation

operators = Blueprint("operations", __name__)

# Prometheus requests a media type with a version; other clients request plain text.
METRICS_TYPES = (TEXT, f"{TEXT}; version=0.0.4")
METRICS_EXAMPLE = """\
# HELP taskservice_tasks Tasks by status.
# TYPE taskservice_tasks gauge
taskservice_tasks{status="running"} 3
"""


@operators.get("/livez")
@operation("isLive", HealthSchema(), is_public=True)
def live() -> Response:
    """Liveness.

    Returns 200 while the process runs, whatever the state of the database.
    """
    return responses.json({"status": "ok"})


@operators.get("/readyz")
@operation("isReady", ReadinessSchema(), is_public=True)
def ready() -> Response:
    """Readiness.

    Returns 200 if the database can be read and written. Returns 503 if the database can't
    be read or written, or does not respond within a second. `notice` is present if neither the
    server nor `taskservice background` does the background work.
    """
    health.require_usable()
    notice = current_app.config.get("NOTICE")
    if notice is None or health.is_running(current_app.config["DATA"] / health.BACKGROUND_LOCK):
        return responses.json({"status": "ok"})
    return responses.json({"status": "ok", "notice": notice})


@operators.get("/metrics")
@operation("getMetrics", METRICS_TYPES, example=METRICS_EXAMPLE, is_public=True)
def show_metrics() -> Response:
    """Metrics.

    Returns the metrics of all server processes combined, in the Prometheus text format. If the
    database can't be read, the response contains only the metrics that do not need it.
    """
    limit = current_app.config["WAITS"] * current_app.config["WORKERS"]
    of_processes = [metrics.BUILD, *metrics.requests.metrics(limit)]
    lines = [*of_processes, *health.database_metrics(), *health.backup_metrics()]
    return Response("".join(lines), content_type=metrics.CONTENT_TYPE)


# The API documentation: the OpenAPI document, and a page generated from it.
docs = Blueprint(
    "docs", __name__, template_folder="templates", static_folder="static", static_url_path="/docs"
)
docs.before_request(ignore_dates)

# The help pages, which docs/site/build_help.py writes when the package is built.
help_pages = Blueprint("help", __name__, static_folder="../help", static_url_path="/help")
help_pages.before_request(ignore_dates)

HTML = "text/html"

# The pages load only style sheets, scripts and images of this service.
POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)

# The help pages have a search form.
HELP_POLICY = POLICY.replace("form-action 'none'", "form-action 'self'")


@help_pages.get("/help")
@help_pages.get("/help/")
def show_help() -> Response:
    """Redirect to the first help page, so that its relative links work."""
    return Response(status=303, headers={"Location": url_for("help.static", filename="index.html")})


@help_pages.after_request
def restrict_help(response: Response) -> Response:
    response.headers["Content-Security-Policy"] = HELP_POLICY
    return trust_media_type(response)


@docs.get("/openapi.json")
@operation("getOpenapi", DocumentSchema(), headers=["If-None-Match"], is_public=True)
def show_document() -> Response:
    """Get the OpenAPI document.

    Returns an OpenAPI 3.1 document. Clients in many languages can be generated from the document.
    """
    return _with_etag(_document(), JSON)


@docs.get("/docs")
@operation("getDocs", HTML, headers=["If-None-Match"], example="<!doctype html>...", is_public=True)
def show_page() -> Response:
    """Get the documentation as a web page.

    The page loads nothing from other hosts, and needs JavaScript only for its copy buttons.
    """
    response = _with_etag(_page(), HTML)
    response.headers["Content-Security-Policy"] = POLICY
    return response


# Imports apispec only when a client requests this document, since nothing else needs apispec.
@cache
def _document() -> bytes:
    from taskservice.openapi.document import document

    return strict_json.dumps(document(current_app, secured=API_PREFIX))


@cache
def _page() -> bytes:
    from taskservice.openapi import page

    functions = dict(getmembers(page, isfunction))
    document = strict_json.loads(_document())
    return render_template("docs.html", document=document, **functions).encode()


def _with_etag(text: bytes, media_type: str) -> Response:
    response = Response(text, mimetype=media_type)
    response.add_etag()
    response.headers["Cache-Control"] = "no-cache"
    response.make_conditional(request)
    return response


@docs.after_request
def trust_media_type(response: Response) -> Response:
    response.headers["X-Content-Type-Options"] = "nosniff"
    return response
