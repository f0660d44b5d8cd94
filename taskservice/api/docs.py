"""Routes of the documentation: the OpenAPI document, and the page made of it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from flask import Blueprint, Response, current_app, render_template, request
from werkzeug.http import generate_etag

from taskservice import resources
from taskservice.contract.terms import API_PREFIX
from taskservice.openapi import page
from taskservice.openapi.document import Object, document
from taskservice.openapi.operation import JSON
from taskservice.schemas import strict_json
from taskservice.schemas.answers import document_schema
from taskservice.web.request import operation

docs = Blueprint("docs", __name__, template_folder="templates")

HTML = "text/html"
CSS = "text/css"

STYLE = Path(__file__).with_name("static") / "docs.css"

# Nothing but our own style: no script, no image, nothing from elsewhere.
POLICY = (
    "default-src 'none'; style-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)


class DocumentCache(dict[str, tuple[bytes, str]]):
    """Name -> the text and its ETag, made at the first request."""


@docs.get("/openapi.json")
@operation(
    "getOpenapi",
    headers=["If-None-Match"],
    answers={200: document_schema, 304: None},
    answer_headers=["ETag"],
)
def show_document() -> Response:
    """This document.

    OpenAPI 3.1; clients in many languages can be generated from it.
    """
    return _kept("openapi.json", JSON, lambda: strict_json.dumps(_document()))


@docs.get("/docs")
@operation(
    "getDocs",
    headers=["If-None-Match"],
    answers={200: HTML, 304: None},
    answer_headers=["ETag"],
    example="<!doctype html>...",
)
def show_page() -> Response:
    """This document as a page to read.

    It loads nothing from elsewhere and needs no script.
    """
    response = _kept("docs", HTML, _page)
    response.headers["Content-Security-Policy"] = POLICY
    return response


@docs.get("/docs.css")
@operation(
    "getDocsStyle",
    headers=["If-None-Match"],
    answers={200: CSS, 304: None},
    answer_headers=["ETag"],
    example=":root { color-scheme: light dark }",
)
def show_style() -> Response:
    """The style of that page."""
    return _kept("docs.css", CSS, STYLE.read_bytes)


def _document() -> Object:
    return document(current_app, secured=API_PREFIX)


def _page() -> bytes:
    functions: dict[str, Any] = {name: getattr(page, name) for name in page.__all__}
    return render_template("docs.html", document=_document(), **functions).encode()


def _kept(name: str, media_type: str, make: Callable[[], bytes]) -> Response:
    """What is made once and then kept as long as the process lives."""
    kept = resources.find(DocumentCache)
    if name not in kept:
        text = make()
        kept[name] = text, generate_etag(text)
    text, etag = kept[name]
    response = Response(text, mimetype=media_type)
    response.set_etag(etag)
    response.headers["Cache-Control"] = "no-cache"
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.make_conditional(request)
    return response
