"""Routes of the documentation: the OpenAPI document, and a page made from it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from flask import Blueprint, Response, current_app, render_template, request
from werkzeug.http import generate_etag

from taskservice import resources
from taskservice.openapi import page
from taskservice.openapi.components import Object
from taskservice.schemas import strict_json
from taskservice.schemas.tasks import document_schema
from taskservice.terms import API_PREFIX
from taskservice.web.request import JSON, operation, replace_unreadable_dates

blueprint = Blueprint("docs", __name__, template_folder="templates")

blueprint.before_request(replace_unreadable_dates)

HTML = "text/html"
CSS = "text/css"
SCRIPT = "text/javascript"

STATIC = Path(__file__).with_name("static")

# The page loads its own style, script and icon, and nothing else.
POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)


class DocumentCache(dict[str, tuple[bytes, str]]):
    """Name -> the text and its ETag, made at the first request."""


@blueprint.get("/openapi.json")
@operation(
    "getOpenapi",
    headers=["If-None-Match"],
    answers={200: document_schema, 304: None},
    answer_headers=["ETag"],
)
def show_document() -> Response:
    """This document.

    OpenAPI 3.1. Clients in many languages can be generated from it.
    """
    return _cached("openapi.json", JSON, lambda: strict_json.dumps(_document()))


@blueprint.get("/docs")
@operation(
    "getDocs",
    headers=["If-None-Match"],
    answers={200: HTML, 304: None},
    answer_headers=["ETag"],
    example="<!doctype html>...",
)
def show_page() -> Response:
    """This document as a web page.

    It loads nothing from other hosts, and needs no script but for its copy buttons.
    """
    response = _cached("docs", HTML, _page)
    response.headers["Content-Security-Policy"] = POLICY
    return response


@blueprint.get("/docs.css")
@operation(
    "getDocsStyle",
    headers=["If-None-Match"],
    answers={200: CSS, 304: None},
    answer_headers=["ETag"],
    example=":root { color-scheme: light dark }",
)
def show_style() -> Response:
    """The style sheet of that page."""
    return _cached("docs.css", CSS, (STATIC / "docs.css").read_bytes)


@blueprint.get("/docs.js")
@operation(
    "getDocsScript",
    headers=["If-None-Match"],
    answers={200: SCRIPT, 304: None},
    answer_headers=["ETag"],
    example="// Copy buttons",
)
def show_script() -> Response:
    """The script of that page."""
    return _cached("docs.js", SCRIPT, (STATIC / "docs.js").read_bytes)


def _document() -> Object:
    # It loads apispec, which only this document needs.
    from taskservice.openapi.document import document

    return document(current_app, secured=API_PREFIX)


def _page() -> bytes:
    functions: dict[str, Any] = {name: getattr(page, name) for name in page.__all__}
    return render_template("docs.html", document=_document(), **functions).encode()


def _cached(name: str, media_type: str, make: Callable[[], bytes]) -> Response:
    """An answer whose body is made once and then cached until the process ends."""
    cache = resources.find(DocumentCache)
    if name not in cache:
        text = make()
        cache[name] = text, generate_etag(text)
    text, etag = cache[name]
    response = Response(text, mimetype=media_type)
    response.set_etag(etag)
    response.headers["Cache-Control"] = "no-cache"
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.make_conditional(request)
    return response
