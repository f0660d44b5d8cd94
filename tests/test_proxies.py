"""Forwarded headers: ignored without trusted proxies, counted with them."""

import pytest
from flask import Flask, request

from taskservice.web.request import trust_proxies
from tests.support.api_client import expect

HEADERS = {
    "X-Forwarded-For": "6.6.6.6, 1.1.1.1, 2.2.2.2",
    "X-Forwarded-Proto": "evil, https, http",
    "X-Forwarded-Host": "evil.example, public.example, inner.example",
    "X-Forwarded-Prefix": "/tasks",
}


def seen(hops: int, headers: dict[str, str]) -> tuple[str, str, str]:
    app = Flask(__name__, static_folder=None)

    @app.get("/where")
    def where() -> dict[str, str | None]:
        return {"from": request.remote_addr, "base": request.url_root, "path": request.path}

    if hops:
        app.wsgi_app = trust_proxies(app.wsgi_app, hops)  # type: ignore[method-assign]
    body = expect(app.test_client().get("/where", headers=headers), 200)
    return body["from"], body["base"], body["path"]


def test_without_proxies_forwarded_headers_are_ignored() -> None:
    assert seen(0, HEADERS) == ("127.0.0.1", "http://localhost/", "/where")


def test_with_two_proxies_the_second_value_from_the_right_counts() -> None:
    assert seen(2, HEADERS) == ("1.1.1.1", "https://public.example/tasks/", "/where")


def test_forwarded_header_with_too_few_values_is_ignored() -> None:
    assert seen(2, {"X-Forwarded-For": "6.6.6.6"})[0] == "127.0.0.1"


@pytest.mark.parametrize(
    ("prefix", "root"),
    [
        ("/tasks/", "/tasks/"),
        ("/outer, /inner", "/outer/"),
        ("/spoofed, /outer, /inner", "/outer/"),
        ("//other.example", "/"),
        # The last byte of some letters is a space in Latin-1.
        ("/outer/\xc3\xa0 , /inner", "/outer/à/"),
        ("relative", "/"),
        ("", "/"),
    ],
)
def test_prefix_is_the_outermost_proxys(prefix: str, root: str) -> None:
    _, base, _ = seen(2, {"X-Forwarded-Prefix": prefix})
    assert base == f"http://localhost{root}"
