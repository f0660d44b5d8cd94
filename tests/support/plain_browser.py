"""A browser without scripts, for the dashboard in this process."""

import re
from contextlib import closing
from typing import Any

from flask import Flask
from werkzeug.test import TestResponse

from tests.support.api_client import ApiClient


class Browser:
    """A browser without scripts, which stores cookies, and sends the forms of pages."""

    def __init__(self, app: Flask, **base: Any) -> None:
        self.client = app.test_client()
        self._base = base

    def get(self, path: str, **options: Any) -> TestResponse:
        return self.client.get(path, **{**self._base, **options})

    def read(self, path: str, **options: Any) -> str:
        """A stream to its end; until it is closed it holds one of few slots."""
        with closing(self.get(path, **options)) as response:
            return response.text

    def post(self, path: str, data: dict[str, str], **options: Any) -> TestResponse:
        return self.client.post(path, data=data, **{**self._base, **options})

    def send(self, page: str, path: str = "", **data: str) -> TestResponse:
        """Send the form of `page`, to `path` if it is given."""
        return self.post(path or page, {**hidden(self.get(page)), **data})

    def sign_in(self, key: str, **data: str) -> TestResponse:
        return self.send("/sign-in", key=key, **data)

    def tab(self, app: Flask) -> "Browser":
        """Another tab of the same session, which can be used at the same time."""
        cookie = self.client.get_cookie(app.session_interface.get_cookie_name(app))
        assert cookie
        tab = Browser(app, headers={"Cookie": f"{cookie.key}={cookie.value}"})
        tab.client = app.test_client(use_cookies=False)
        return tab

    def cookies(self) -> list[str]:
        return list(self.get("/sign-in").headers.getlist("Set-Cookie"))


def signed_in(person: ApiClient) -> Browser:
    """A browser in which this person has signed in."""
    browser = Browser(person.app)
    assert browser.sign_in(person.key).status_code == 303
    return browser


def text_of(browser: Browser, path: str) -> str:
    """The text of a page, which must exist."""
    response = browser.get(path)
    assert response.status_code == 200, response.text
    return response.text


def hidden(response: TestResponse) -> dict[str, str]:
    """The hidden fields of the forms of a page."""
    assert response.status_code == 200, response.text
    return hidden_text(response.text)


def hidden_text(page: str) -> dict[str, str]:
    inputs = re.findall(r'name="(token|submission_id)"(?: id="[^"]+")? value="([^"]+)"', page)
    return dict(inputs)
