"""Signing in by the header of a proxy, with the rights of the key that has this name."""

import re
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from flask import Flask

from taskservice.config import Config
from taskservice.services import users
from tests.support.api_client import ApiClient, expect, problem
from tests.support.commands import one_line, run
from tests.support.internals import expire, rows
from tests.support.mcp import McpClient
from tests.support.plain_browser import Browser, hidden

ANN = "ann@example.org"
HEADER = "X-Remote-User"
Json = dict[str, Any]


@pytest.fixture
def config(standard_config: Config) -> Config:
    # The test's own client takes the place of the proxy.
    return replace(standard_config, LOGIN_HEADER=HEADER)


def login(
    app: Flask, name: str = ANN, team: str = "alice", agent: str | None = None, access: str = "full"
) -> Json:
    """A key with this name, which only the server makes."""
    with app.app_context():
        return dict(vars(users.add_key(team, name, agent, None, access, login=True)))


def named(app: Flask, name: str = ANN) -> Browser:
    """A browser behind a proxy that has signed this person in."""
    return Browser(app, headers={HEADER: name.encode().decode("latin-1")})


def check_refused(app: Flask, name: str) -> None:
    """Each page says whom to ask, and shows nothing."""
    headers = {HEADER: name, "Accept": "text/html"}
    for path, status in (("/", 403), ("/sign-in", 403), ("/agents", 403), ("/nowhere", 404)):
        page = Browser(app).get(path, headers=headers)
        assert page.status_code == status
        assert ("ask the people who run this service" in page.text) == (status == 403)
        assert "<nav" not in page.text


def test_person_whom_the_proxy_names_is_signed_in(app: Flask, alice: ApiClient) -> None:
    login(app)
    login(app, "Jörg Müller")
    task = alice.start(name="nightly")
    for name in (ANN, "Jörg Müller"):
        browser = named(app, name)
        assert "nightly" in browser.get("/").text
        page = browser.get(f"/tasks/{task['id']}").text
        assert name in page
        # The proxy would sign in again at once.
        assert "Sign out" not in page
    done = named(app)
    assert done.send(f"/tasks/{task['id']}/cancel").status_code == 303
    assert alice.task(task)["endedBy"] == ANN
    keys = expect(alice.get("/key"), 200)
    (key,) = [listed for listed in keys if listed["name"] == ANN]
    assert (key["login"], key["access"], key["hint"]) == (True, "full", "")


@pytest.mark.parametrize("name", ["Tomà", "Å", "по-ихнему на х", "ПЁТР"])
def test_name_may_end_in_any_letter(app: Flask, alice: ApiClient, name: str) -> None:
    """The last bytes of some letters are spaces or line ends in Latin-1."""
    login(app, name)
    assert named(app, name).get("/").status_code == 200
    assert named(app, f" \t{name}\t ").get("/").status_code == 200


def test_key_decides_on_the_rights(app: Flask, alice: ApiClient, bob: ApiClient) -> None:
    login(app, access="read")
    login(app, "bert", team="bob")
    login(app, "carl", agent=alice.register("idle")["id"])
    task = alice.start()
    path = f"/tasks/{task['id']}"
    assert named(app, "bert").get(path).status_code == 404
    assert named(app, "carl").get(path).status_code == 404
    reader = named(app)
    assert "Cancel…" not in reader.get(path).text
    form = hidden(reader.get("/"))
    form |= {"token": re.findall('name="token" value="([^"]+)"', reader.get("/").text)[0]}
    refused = reader.post(f"{path}/cancel", form)
    assert refused.status_code == 403
    assert alice.task(task)["status"] == "running"


def test_without_a_name_nobody_is_signed_in_whatever_the_cookie_is(
    app: Flask, alice: ApiClient
) -> None:
    login(app)
    browser = Browser(app)
    browser.get("/sign-in")
    app.config["LOGIN_HEADER"] = ""
    assert browser.sign_in(alice.key).status_code == 303
    assert browser.get("/").status_code == 200
    app.config["LOGIN_HEADER"] = HEADER
    for headers in ({}, {HEADER: ""}, {HEADER: "  "}):
        assert browser.get("/", headers=headers).location == "/sign-in"
        shown = browser.get("/sign-in", headers=headers)
        assert "the proxy in front of this service must sign you in" in shown.text
        assert "<form" not in shown.text
        assert browser.post("/sign-in", {"key": alice.key}, headers=headers).status_code == 403
        assert browser.get("/agents", headers=headers).status_code == 303


def test_wrong_names_get_a_page_that_says_whom_to_ask(app: Flask, alice: ApiClient) -> None:
    login(app)
    revoked, expired = login(app, "revoked"), login(app, "expired")
    expect(alice.delete(f"/key/{revoked['id']}"), 200)
    expire(app, expired)
    alice.with_key("no login")
    wrong = ("nobody", "revoked", "expired", "no login", "alice", "first", ANN.upper(),
             f"{ANN},{ANN}", f"{ANN},", f", {ANN}", "<b>x</b>", "\xed\xb3\xbf")  # fmt: skip
    for name in wrong:
        check_refused(app, name)
    twice = Browser(app, headers=[(HEADER, ANN), (HEADER, ANN)])
    assert twice.get("/").status_code == 403
    assert "&lt;b&gt;" in Browser(app, headers={HEADER: "<b>x</b>"}).get("/").text
    assert named(app).get("/").status_code == 200


def test_revocation_signs_out_at_once(app: Flask, alice: ApiClient) -> None:
    key = login(app)
    browser = named(app)
    assert browser.get("/").status_code == 200
    expect(alice.delete(f"/key/{key['id']}"), 200)
    check_refused(app, ANN)
    # The name is free again.
    login(app)
    assert browser.get("/").status_code == 200


def test_forms_keep_their_token(app: Flask, alice: ApiClient) -> None:
    login(app)
    task = alice.start()
    path = f"/tasks/{task['id']}/cancel"
    browser = named(app)
    form = hidden(browser.get(path))
    foreign = {"Sec-Fetch-Site": "cross-site"}
    for wrong, headers in (({}, {}), ({"token": "x"}, {}), (form, foreign)):
        sent = browser.post(path, wrong, headers={HEADER: ANN, **headers})
        assert sent.status_code == 403
    assert alice.task(task)["status"] == "running"
    assert browser.post(path, form).status_code == 303


def test_login_key_has_no_other_use(app: Flask, alice: ApiClient) -> None:
    key = login(app)
    for text in (ANN, key["id"], ""):
        problem(ApiClient(app, "alice", text).get("/user"), 401)
    # The API and MCP ignore the header, with and without a key.
    for path in ("/api/v1/user", "/mcp"):
        response = app.test_client().open(path, method="GET", headers={HEADER: ANN})
        assert response.status_code == 401
    assert expect(alice.get("/user", headers={HEADER: ANN}), 200)["key"]["name"] == "first"
    ping = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
    assert McpClient(alice).post(ping, **{HEADER: "nobody"}).result == {}
    # It does not count as the last key of its user.
    her_key = expect(alice.get("/user"), 200)["key"]
    assert problem(alice.delete(f"/key/{her_key['id']}"), 409)["code"] == "last_user_key"
    assert expect(alice.delete(f"/key/{key['id']}"), 200)["revokedAt"]
    assert list(problem(alice.post("/key", json={"name": "x", "login": True}), 422)["errors"]) == [
        "login"
    ]


def test_header_without_the_setting_is_ignored(app: Flask, alice: ApiClient) -> None:
    login(app)
    app.config["LOGIN_HEADER"] = ""
    assert named(app).get("/").location == "/sign-in"


# --- the server --------------------------------------------------------------------------


def test_setting_without_proxies_is_one_clear_line(tmp_path: Path) -> None:
    for hops in ({}, {"PROXY_HOPS": "0"}):
        refused = run(tmp_path, "user", "list", LOGIN_HEADER=HEADER, **hops)
        assert "TASKSERVICE_LOGIN_HEADER: requires TASKSERVICE_PROXY_HOPS" in one_line(refused, 2)
    for wrong in ("X_Remote_User", "X-Remote-User:", "é", "a b"):
        refused = run(tmp_path, "user", "list", LOGIN_HEADER=wrong, PROXY_HOPS="1")
        assert "must be the name of a header" in one_line(refused, 2)


def test_command_makes_login_keys_whose_names_are_taken_once(
    app: Flask, alice: ApiClient, bob: ApiClient, config: Config, tmp_path: Path
) -> None:
    def key(*arguments: str) -> subprocess.CompletedProcess[str]:
        return run(tmp_path, "key", *arguments, DATABASE_URL=str(config.DATABASE_URL))

    made = key("add", "alice", "--name", ANN, "--login", "--read")
    assert (made.returncode, made.stdout) == (0, f"{ANN} can sign in as alice\n"), made
    (listed,) = [key for key in expect(alice.get("/key"), 200) if key["login"]]
    assert (listed["name"], listed["access"]) == (ANN, "read")
    for team in ("alice", "bob"):
        refused = key("add", team, "--name", ANN, "--login")
        assert one_line(refused, 1) == f"taskservice: Another key already signs in {ANN}"
    for odd in ("Doe, John", " ann", "ann "):
        assert "a comma" in one_line(key("add", "bob", "--name", odd, "--login"), 1)
    # Another kind of key may have the name.
    assert key("add", "bob", "--name", ANN).stdout.startswith("tsk_user_")
    assert key("revoke", listed["id"]).returncode == 0
    assert key("add", "bob", "--name", ANN, "--login").stdout == f"{ANN} can sign in as bob\n"
    assert f'"{ANN}"' in key("list", "--json").stdout
    assert len([row for row in rows(app)["api_keys"] if ANN in row]) == 3
