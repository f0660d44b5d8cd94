"""Shared caches: none gives one user's answer to another or stores a private answer."""

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import requests
from flask import Flask

from tests.support.api_client import API, ApiClient, RemoteClient
from tests.support.internals import PREFIX, filled, is_page
from tests.support.nginx import CACHING, CACHING_ALL, NGINX, nginx
from tests.support.requirements import needs
from tests.support.service import Service

# It is the same on every database.
on_sqlite = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


class Site(NamedTuple):
    """A service behind a proxy that caches, and two users of it."""

    url: str
    alice: RemoteClient
    bob: RemoteClient
    task: dict[str, Any]
    obeys: bool


@pytest.fixture(scope="module", params=[CACHING, CACHING_ALL], ids=["obedient", "greedy"])
def cached_site(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    if NGINX is None:
        needs("nginx", "install the package nginx")
    folder = tmp_path_factory.mktemp("caching")
    with (
        Service(folder / "data", PROXY_HOPS="1") as service,
        nginx(folder / "nginx", service.port, request.param) as url,
    ):
        alice, bob = service.add_user("alice"), service.add_user("bob")
        task = alice.start(name="of alice")
        alice.request("POST", f"/task/{task['id']}/logs", json={"logs": ["a line"]})
        alice.url = bob.url = url
        yield Site(url, alice, bob, task, request.param == CACHING)


def ask(site: Site, path: str, **headers: str) -> requests.Response:
    return requests.get(site.url + API + path, headers=headers, timeout=30)


def test_no_proxy_gives_an_answer_to_another_user_or_without_a_key(
    cached_site: Site, subtests: pytest.Subtests
) -> None:
    one = f"/task/{cached_site.task['id']}"
    for path in (
        "/callback-secret", "/key", "/user", "/task", "/agent", "/agent/summarizer",
        one, f"{one}/logs", f"{one}/deliveries", "/nothing",
    ):  # fmt: skip
        with subtests.test(path):
            # An answer without a key must not reach alice either.
            assert ask(cached_site, path).status_code == 401
            hers = ask(cached_site, path, apikey=cached_site.alice.key)
            assert hers.status_code in (200, 404)
            his = ask(cached_site, path, apikey=cached_site.bob.key)
            assert comparable(his) != comparable(hers) or path == "/nothing"
            assert comparable(
                ask(cached_site, path, Authorization=f"Bearer {cached_site.bob.key}")
            ) == (comparable(his))
            assert ask(cached_site, path).status_code == 401


def comparable(answer: requests.Response) -> tuple[int, str]:
    """What an answer says; without the ID of the request, which is always another."""
    return answer.status_code, re.sub('"requestId":".*?"', "", answer.text)


def test_no_proxy_gives_an_answer_that_has_changed(cached_site: Site) -> None:
    path = f"/task/{cached_site.task['id']}"
    for query in ("", "/logs", "?expand=agent"):
        before = cached_site.alice.session.get(cached_site.url + API + path + query)
        appended = cached_site.alice.request("POST", f"{path}/logs", json={"logs": ["one more"]})
        assert appended.status_code == 201
        headers = {"If-None-Match": before.headers.get("ETag", "none")}
        after = cached_site.alice.session.get(cached_site.url + API + path + query, headers=headers)
        if cached_site.obeys:
            assert (after.status_code, after.text != before.text) == (200, True)
        else:
            # The proxy caches for one user.
            assert after.headers["X-Cache-Status"] == "HIT"


def sign_in(site: Site, person: RemoteClient) -> requests.Session:
    """A browser in which this person is signed in."""
    browser = requests.Session()
    token = re.search('name="token" value="(.*?)"', browser.get(f"{site.url}/sign-in").text)
    assert token
    form = {"token": token[1], "key": person.key}
    assert browser.post(f"{site.url}/sign-in", data=form).ok
    return browser


def test_no_proxy_gives_a_page_to_another_user_or_without_a_session(cached_site: Site) -> None:
    hers, his = sign_in(cached_site, cached_site.alice), sign_in(cached_site, cached_site.bob)
    for path in ("/", "/keys"):
        assert ">alice<" in hers.get(cached_site.url + path).text
        page = his.get(cached_site.url + path).text
        assert ">bob<" in page
        assert "alice" not in page
        assert "No key yet?" in requests.get(cached_site.url + path).text


# --- what each answer says ---------------------------------------------------------------


def caching(response: Any) -> tuple[str | None, set[str]]:
    """What an answer says to caches."""
    vary = response.headers.get("Vary", "")
    return response.headers.get("Cache-Control"), {name for name in vary.split(", ") if name}


OF_THE_API = {"apikey", "Authorization"}


@on_sqlite
def test_every_answer_of_the_api_is_for_its_caller_alone(
    app: Flask, alice: ApiClient, subtests: pytest.Subtests
) -> None:
    task = alice.start()
    for rule in app.url_map.iter_rules():
        if not rule.rule.startswith(PREFIX):
            continue
        path = filled(rule.rule, task_id=task["id"], agent_id="summarizer")
        for method in sorted(rule.methods or ()):
            for headers in ({"apikey": alice.key}, {}):
                with subtests.test(f"{method} {rule.rule} {sorted(headers)}"):
                    response = app.test_client().open(path, method=method, headers=headers)
                    told, vary = caching(response)
                    has_etag = "ETag" in response.headers
                    assert told == ("private, no-cache" if has_etag else "no-store")
                    assert vary >= OF_THE_API
                    response.close()


@on_sqlite
def test_answer_with_an_etag_is_private(alice: ApiClient) -> None:
    path = f"/task/{alice.start()['id']}"
    first = alice.get(path)
    again = alice.get(path, headers={"If-None-Match": first.headers["ETag"]})
    assert again.status_code == 304
    for response in (first, again):
        assert caching(response) == ("private, no-cache", OF_THE_API)


@on_sqlite
def test_refusals_are_not_kept_either(app: Flask, alice: ApiClient) -> None:
    refused = {
        401: alice.get("/task", headers={"apikey": "wrong"}),
        404: alice.get("/nothing"),
        405: alice.put("/user"),
        406: alice.get("/user", headers={"Accept": "image/png"}),
        422: alice.get("/task?stauts=error"),
    }
    for status, response in refused.items():
        assert (response.status_code, *caching(response)) == (status, "no-store", OF_THE_API)
    for path in ("/nothing", "/livez", "/readyz", "/metrics"):
        assert caching(app.test_client().get(path))[0] == "no-store"


@on_sqlite
def test_page_is_private_and_a_static_file_is_revalidated(app: Flask) -> None:
    client = app.test_client()
    for rule in app.url_map.iter_rules():
        if is_page(rule) and "GET" in (rule.methods or ()):
            is_file = rule.endpoint in ("dashboard.static", "dashboard.icon", "docs.static")
            name = "docs.js" if rule.endpoint == "docs.static" else "page.js"
            response = client.get(filled(rule.rule, filename=name))
            told, vary = caching(response)
            assert told == ("no-cache" if is_file else "no-store"), rule.rule
            assert ("Cookie" in vary) != is_file, rule.rule
            assert "ETag" in response.headers or not is_file
            response.close()
    assert "Cookie" in caching(client.get("/nothing", headers={"Accept": "text/html"}))[1]
