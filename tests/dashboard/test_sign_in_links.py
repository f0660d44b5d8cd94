"""Links that sign a person in, once."""

import logging
import re
from functools import partial
from typing import Any

import pytest
from flask import Flask

from taskservice.operations.request_log import configure_logging
from taskservice.services.sign_in_links import MAX_VALID, VALID_SECONDS
from tests.support.api_client import ApiClient, add_user, expect, problem
from tests.support.concurrency import at_once
from tests.support.internals import set_clock
from tests.support.plain_browser import Browser, hidden, signed_in

Json = dict[str, Any]
CROSS_SITE = {"Origin": "https://chat.example", "Sec-Fetch-Site": "cross-site"}


def create_link(person: ApiClient, **fields: Any) -> str:
    """The path of a new link."""
    link = expect(person.post("/sign-in-link", json=fields), 201)
    assert link.keys() == {"url", "expiresAt"}
    return "/" + str(link["url"]).split("/", 3)[3]


def create_key(person: ApiClient, name: str, **fields: Any) -> ApiClient:
    key = expect(person.post("/key", json={"name": name, **fields}), 201)
    return ApiClient(person.app, person.name, key["key"])


def key_of(browser: Browser) -> str:
    """The name of the key in whose name this browser is signed in; empty if it is not."""
    page = browser.get("/").text
    match = re.search(r"Signed in with the (?:read )?key (?:<bdi>)?(.*?)<", page)
    return match[1] if match else ""


def check_invalid(person: ApiClient, path: str) -> None:
    """Every link that is not valid has the same page."""
    browser = Browser(person.app)
    for response in (browser.get(path), browser.send("/sign-in", path)):
        assert response.status_code == 404
        assert "This link is not valid" in response.text
    assert not key_of(browser)


def test_link_signs_in_once_with_the_key_that_created_it(alice: ApiClient) -> None:
    laptop = create_key(alice, "laptop")
    path = create_link(laptop)
    browser = Browser(alice.app)
    for method in (browser.client.get, browser.client.head, browser.client.get):
        assert method(path).status_code == 200
    page = browser.get(path)
    assert "alice" in page.text
    assert "laptop" in page.text
    # The browser shows the time as "in 15 min".
    assert re.search('works only once, and expires <time [^>]+ data-show="due">', page.text)
    assert page.headers["Cache-Control"] == "no-store"
    assert page.headers["Referrer-Policy"] == "no-referrer"
    assert page.headers["X-Robots-Tag"] == "noindex"
    assert not key_of(browser)
    assert browser.send(path).headers["Location"] == "/"
    assert key_of(browser) == "laptop"
    check_invalid(alice, path)


def test_one_of_several_browsers_is_signed_in(alice: ApiClient) -> None:
    path = create_link(alice)
    browsers = [Browser(alice.app) for _ in range(8)]
    forms = [hidden(browser.get(path)) for browser in browsers]
    pairs = zip(browsers, forms, strict=True)
    answers = at_once([partial(browser.post, path, form) for browser, form in pairs])
    assert sorted(answer.status_code for answer in answers) == [303] + [404] * 7
    assert sum(bool(key_of(browser)) for browser in browsers) == 1


def test_form_of_another_site_uses_nothing_up(alice: ApiClient) -> None:
    path = create_link(alice)
    stranger = Browser(alice.app)
    form = hidden(stranger.get(path))
    assert stranger.post(path, form, headers=CROSS_SITE).status_code == 403
    # Without the cookie, as with SameSite.
    assert Browser(alice.app).post(path, form, headers={"Origin": "null"}).status_code == 403
    assert not key_of(stranger)
    # A browser sends this from a page without a referrer.
    same_site = {"Origin": "null", "Sec-Fetch-Site": "same-origin"}
    assert stranger.post(path, form, headers=same_site).status_code == 303


def test_link_expires(alice: ApiClient, monkeypatch: pytest.MonkeyPatch) -> None:
    path = create_link(alice)
    set_clock(monkeypatch, VALID_SECONDS - 60)
    assert Browser(alice.app).get(path).status_code == 200
    set_clock(monkeypatch, VALID_SECONDS + 60)
    check_invalid(alice, path)


def test_link_of_a_revoked_key_is_invalid(alice: ApiClient) -> None:
    path = create_link(create_key(alice, "lost"))
    [key] = [key for key in expect(alice.get("/key"), 200) if key["name"] == "lost"]
    expect(alice.delete(f"/key/{key['id']}"), 200)
    check_invalid(alice, path)


@pytest.mark.parametrize(
    "path", ["/sign-in/", "/sign-in/x", "/sign-in/a/b", f"/sign-in/{'é' * 40}"]
)
def test_unknown_links_are_invalid(alice: ApiClient, path: str) -> None:
    assert Browser(alice.app).get(path).status_code == 404


def test_oldest_links_end_when_there_are_too_many(alice: ApiClient, app: Flask) -> None:
    bob = add_user(app, "bob")
    of_bob = create_link(bob)
    paths = [create_link(alice) for _ in range(MAX_VALID + 2)]
    statuses = [Browser(app).get(path).status_code for path in [*paths, of_bob]]
    assert statuses == [404, 404] + [200] * (MAX_VALID + 1)


def test_link_has_the_rights_of_the_named_key(alice: ApiClient) -> None:
    screen = create_key(alice, "wall-screen", access="read")
    browser = Browser(alice.app)
    browser.send(create_link(alice, keyName="wall-screen"))
    assert key_of(browser) == "wall-screen"
    browser.send(create_link(screen))
    assert key_of(browser) == "wall-screen"
    first = expect(alice.get("/user"), 200)["key"]["name"]
    refused = problem(screen.post("/sign-in-link", json={"keyName": first}), 403)
    assert refused["code"] == "read_only"
    assert create_link(screen, keyName="wall-screen")


def test_keys_without_a_person_have_no_link(alice: ApiClient) -> None:
    expect(alice.put("/agent/summarizer", json={}), 200, 201)
    agent = create_key(alice, "machine", agentId="summarizer")
    assert problem(agent.post("/sign-in-link", json={}), 403)
    for name in ("machine", "unknown", ""):
        errors = problem(alice.post("/sign-in-link", json={"keyName": name}), 422)["errors"]
        assert errors.keys() == {"keyName"}


def test_keys_page_shows_a_link_for_another_device(alice: ApiClient) -> None:
    browser = signed_in(alice)
    response = browser.send("/keys", "/keys/sign-in-link")
    assert response.status_code == 201
    assert "<svg" in response.text
    assert "TASKSERVICE_PUBLIC_URL" in response.text  # 127.0.0.1 is not reached by a phone
    match = re.search(r'id="sign-in-url">http://[^/]+(/sign-in/[^<]+)<', response.text)
    assert match
    phone = Browser(alice.app)
    phone.send(match[1])
    assert key_of(phone) == key_of(browser)


def test_links_are_not_logged(alice: ApiClient, capfd: pytest.CaptureFixture[str]) -> None:
    configure_logging("debug", "text")
    try:
        path = create_link(alice)
        Browser(alice.app).get(path)
        Browser(alice.app).get(path.replace("sign-in", "sign-in/x"))
    finally:
        logging.getLogger("taskservice").handlers.clear()
    log = capfd.readouterr().err
    assert "GET /sign-in/…" in log
    assert path.rsplit("/", 1)[1] not in log
