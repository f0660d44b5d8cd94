"""deploy/nginx.conf and deploy/Caddyfile, in the real programs; only addresses are replaced."""

import re
import shutil
import socket
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from urllib.parse import urljoin, urlsplit

import pytest
import requests

from tests.support.api_client import RemoteClient
from tests.support.deployed_caddy import deployed_caddy
from tests.support.deployed_nginx import DeployedNginx, replaced
from tests.support.documents import ROOT
from tests.support.followers import events, open_stream
from tests.support.mcp import McpClient, structured
from tests.support.receiver import Receiver, answer, reset, unused_port
from tests.support.requirements import needs
from tests.support.service import Service

DEPLOY = ROOT / "deploy"
PREFIX = "/tasks"
MAX_BODY = 10 * 1024 * 1024


def without_prefix(text: str) -> str:
    """Changed as the first lines of the file say."""
    text = text.replace("header_up X-Forwarded-Prefix /tasks", "header_up -X-Forwarded-Prefix")
    text = re.sub(r"\tredir .*\n", "", text).replace("handle_path /tasks/*", "handle")
    return re.sub('/tasks(?=[/"])', "", text)


@contextmanager
def nginx(folder: Path, text: str, behind: int) -> Iterator[tuple[str, Path]]:
    with DeployedNginx(folder, [behind], text) as running:
        yield running.url, running.authority


PROGRAMS = {"nginx": ("nginx.conf", nginx), "caddy": ("Caddyfile", deployed_caddy)}


@contextmanager
def service_behind(program: str, folder: Path, prefix: str) -> Iterator[RemoteClient]:
    """A user of the service, through the program."""
    name, _ = PROGRAMS[program]
    text = (DEPLOY / name).read_text()
    with Service(folder / "data", PROXY_HOPS="1") as service:
        text = text if prefix else without_prefix(text)
        with user_through(program, folder, text, service, prefix) as person:
            yield person


@contextmanager
def user_through(
    program: str, folder: Path, text: str, service: Service, prefix: str
) -> Iterator[RemoteClient]:
    _, run = PROGRAMS[program]
    person = service.add_user("alice")
    with run(folder, text, service.port) as (url, authority):
        person.url, person.session.verify = f"{url}{prefix}", str(authority)
        # What the service itself sends is compared with its document.
        person.session.headers["Accept-Encoding"] = "identity"
        yield person


@pytest.fixture(scope="module", params=PROGRAMS)
def alice(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RemoteClient]:
    with service_behind(request.param, tmp_path_factory.mktemp("web"), PREFIX) as person:
        yield person


def test_page_has_the_prefix_in_its_links(alice: RemoteClient) -> None:
    with requests.Session() as browser:
        browser.verify, browser.trust_env = alice.session.verify, False
        page = browser.get(f"{alice.url}/", timeout=60)
        (token,) = re.findall(r'name="token" value="([^"]*)"', page.text)
        assert f'action="{PREFIX}/sign-in"' in page.text
        form = {"token": token, "next": "", "key": alice.key}
        signed_in = browser.post(f"{alice.url}/sign-in", data=form, timeout=60)
        assert signed_in.status_code == 200, signed_in.text
        assert signed_in.url.startswith(f"{alice.url}/")
        cookie = signed_in.history[0].headers["Set-Cookie"]
        assert {f"Path={PREFIX}/", "Secure"} <= set(cookie.split("; "))
        links = re.findall(r'(?:href|src)="(/[^"]*)"', signed_in.text)
        assert links
        assert [link for link in links if not link.startswith(f"{PREFIX}/")] == []


def test_events_arrive_line_by_line(alice: RemoteClient) -> None:
    task = alice.start(claim=True)
    with open_stream(alice, task) as response:
        received = events(response)
        assert next(received).kind == "task"
        for number in range(1, 6):
            # Were they held back, the next one would not come.
            line = {"logs": [f"line {number}"]}
            alice.request("POST", f"/task/{task['id']}/logs", json=line).raise_for_status()
            event = next(event for event in received if event.kind == "log")
            assert (event.id, event.data) == (str(number), f"line {number}")


def test_answers_are_compressed_but_not_events(alice: RemoteClient) -> None:
    task = alice.start(claim=True, input={"text": "x" * 3000})
    get = partial(alice.session.get, f"{alice.url}/api/v1/task/{task['id']}", timeout=60)
    plain, packed = get(), get(headers={"Accept-Encoding": "gzip"})
    assert "Content-Encoding" not in plain.headers
    assert packed.headers["Content-Encoding"] == "gzip"
    assert packed.json() == plain.json() == task
    for response in (plain, packed):
        headers = {"Accept-Encoding": "gzip", "If-None-Match": response.headers["ETag"]}
        assert get(headers=headers).status_code == 304
    events_url = f"{alice.url}/api/v1/task/{task['id']}/events"
    headers = {"Accept-Encoding": "gzip", "Accept": "text/event-stream"}
    with alice.session.get(events_url, headers=headers, stream=True, timeout=60) as stream:
        assert stream.headers["Content-Type"].startswith("text/event-stream")
        assert "Content-Encoding" not in stream.headers


def test_largest_body_passes(alice: RemoteClient) -> None:
    task = alice.start(claim=True)
    response = alice.session.post(
        f"{alice.url}/api/v1/task/{task['id']}/logs",
        data=(b"x" * 1023 + b"\n") * (MAX_BODY // 1024),
        headers={"Content-Type": "text/plain"},
        timeout=60,
    )
    assert response.status_code == 201, response.text
    assert response.json()["logCount"] == MAX_BODY // 1024


def test_request_that_waits_is_not_cut_off(alice: RemoteClient) -> None:
    task = alice.start(claim=True)
    waited = alice.request("GET", f"/task/{task['id']}", headers={"Prefer": "wait=2"}, timeout=60)
    assert waited.headers["Preference-Applied"] == "wait=2"


def test_tools_are_called_through_it(alice: RemoteClient) -> None:
    result = McpClient(alice).call("list_tasks")
    assert "tasks" in structured(result)


def test_what_needs_no_key_is_not_passed_on(alice: RemoteClient) -> None:
    for name in ("livez", "readyz", "metrics"):
        answer = alice.session.get(f"{alice.url}/{name}", timeout=60)
        assert answer.status_code == 404
        assert "taskservice" not in answer.text


def test_address_without_its_last_slash_redirects_to_the_dashboard(alice: RemoteClient) -> None:
    response = alice.session.get(alice.url, allow_redirects=False, timeout=60)
    assert response.status_code == 301
    assert urljoin(response.url, response.headers["Location"]) == f"{alice.url}/"


def test_other_paths_return_404(alice: RemoteClient) -> None:
    for path in ("/", "/tasks-of-others", "/api/v1/task"):
        url = alice.url.removesuffix(PREFIX) + path
        assert alice.session.get(url, timeout=60).status_code == 404


def test_browsers_are_served_over_http_2(alice: RemoteClient) -> None:
    address = urlsplit(alice.url)
    tls = ssl.create_default_context(cafile=str(alice.session.verify))
    tls.set_alpn_protocols(["h2", "http/1.1"])
    with (
        socket.create_connection((address.hostname, address.port), timeout=60) as connection,
        tls.wrap_socket(connection, server_hostname=address.hostname) as secured,
    ):
        assert secured.selected_alpn_protocol() == "h2"


def test_events_arrive_line_by_line_over_http_2(alice: RemoteClient) -> None:
    task, key = alice.start(claim=True), alice.key
    command = [
        "curl", "--silent", "--show-error", "--no-buffer", "--http2", "--include",
        "--max-time", "60", "--cacert", str(alice.session.verify),
        "--header", f"apikey: {key}", f"{alice.url}/api/v1/task/{task['id']}/events",
    ]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as curl:
        assert curl.stdout is not None
        try:
            assert curl.stdout.readline().startswith("HTTP/2 200")
            for number in range(1, 4):
                # If it was held back, the next one would not be sent.
                line = {"logs": [f"line {number}"]}
                alice.request("POST", f"/task/{task['id']}/logs", json=line).raise_for_status()
                assert f'data: "line {number}"\n' in iter(curl.stdout.readline, "")
        finally:
            curl.kill()


def test_prefix_that_a_client_sends_is_ignored(alice: RemoteClient) -> None:
    check_prefix_is_ignored(alice, PREFIX)


def check_prefix_is_ignored(person: RemoteClient, prefix: str) -> None:
    page = person.session.get(
        f"{person.url}/agents",
        headers={"X-Forwarded-Prefix": "/evil"},
        allow_redirects=False,
        timeout=60,
    )
    assert page.status_code == 303
    assert urlsplit(page.headers["Location"]).path == f"{prefix}/sign-in"


@pytest.mark.parametrize("program", PROGRAMS)
def test_without_a_prefix_it_is_at_the_root(program: str, tmp_path: Path) -> None:
    with service_behind(program, tmp_path, "") as alice:
        assert alice.request("GET", "/user").json()["name"] == "alice"
        created = alice.request("PUT", "/agent/reader")
        assert created.status_code == 201
        assert alice.session.get(f"{alice.url}/metrics", timeout=60).status_code == 404
        page = alice.session.get(f"{alice.url}/", timeout=60)
        assert page.status_code == 200
        assert "/tasks/tasks" not in page.text
        check_prefix_is_ignored(alice, "")


def status(nginx: DeployedNginx, method: str) -> int:
    body = None if method in ("GET", "HEAD", "DELETE") else b"line\n"
    url, trusted = f"{nginx.url}{PREFIX}/api/v1/task", str(nginx.authority)
    return requests.request(method, url, data=body, verify=trusted, timeout=60).status_code


@pytest.mark.parametrize("method", ["GET", "HEAD", "DELETE", "PUT", "POST", "PATCH"])
def test_nginx_repeats_no_request_that_may_have_added_something(
    method: str, tmp_path: Path
) -> None:
    """Each node is lost when it has received it."""
    with (
        Receiver(answer=reset()) as one,
        Receiver(answer=reset()) as two,
        DeployedNginx(tmp_path, [one.port, two.port]) as nginx,
    ):
        assert status(nginx, method) == 502
        times = sorted(len(node.requests) for node in (one, two))
    assert times == ([1, 1] if method in ("GET", "HEAD", "DELETE") else [0, 1])


@pytest.mark.parametrize("method", ["GET", "POST", "PATCH", "DELETE"])
def test_nginx_asks_another_node_when_one_is_unavailable(method: str, tmp_path: Path) -> None:
    with (
        Receiver(answer=answer(204, {"Connection": "close"})) as node,
        DeployedNginx(tmp_path, [unused_port(), node.port]) as nginx,
    ):
        assert [status(nginx, method) for _ in range(4)] == [204] * 4


# --- people who sign in at the proxy -----------------------------------------------------

PERSON, PASSWORD = "ann@example.org", "a password of the proxy"


def printed_by(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout


def with_password_file(folder: Path, text: str) -> str:
    """The text of nginx.conf with nginx-login.conf, and one person in the password file."""
    login, passwords = folder / "login.conf", folder / "passwords"
    passwords.write_text(f"{PERSON}:{printed_by('openssl', 'passwd', '-apr1', PASSWORD)}")
    passwords.chmod(0o644)
    values = {"/etc/nginx/taskservice.htpasswd": str(passwords)}
    login.write_text(replaced((DEPLOY / "nginx-login.conf").read_text(), values))
    return replaced(text, {"#include /etc/nginx/taskservice-login.conf": f"include {login}"})


def with_hash(folder: Path, text: str) -> str:
    """The text of Caddyfile with Caddyfile-login, and the hash of the person's password."""
    if shutil.which("caddy") is None:
        needs("Caddy", "install the package caddy")
    login = folder / "login"
    hashed = printed_by("caddy", "hash-password", "--plaintext", PASSWORD)
    of_file = (DEPLOY / "Caddyfile-login").read_text()
    login.write_text(re.sub(rf"{PERSON} .*\n", f"{PERSON} {hashed}", of_file))
    return replaced(text, {"#import /etc/caddy/Caddyfile-login": f"import {login}"})


@pytest.fixture(scope="module", params=PROGRAMS)
def behind_passwords(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RemoteClient]:
    folder = tmp_path_factory.mktemp("passwords")
    name, _ = PROGRAMS[request.param]
    change = {"nginx": with_password_file, "caddy": with_hash}[request.param]
    text = change(folder, (DEPLOY / name).read_text())
    settings = {"PROXY_HOPS": "1", "LOGIN_HEADER": "X-Remote-User"}
    with (
        Service(folder / "data", **settings) as service,
        user_through(request.param, folder, text, service, PREFIX) as person,
    ):
        added = service.run("key", "add", "alice", "--name", PERSON, "--login")
        assert added.returncode == 0, added.stderr
        yield person


def browse(
    person: RemoteClient, path: str, password: str | None, **headers: str
) -> requests.Response:
    """GET without an API key, as a browser sends it, with dots and escapes as they are."""
    user = (PERSON, password) if password is not None else None
    with requests.Session() as browser:
        browser.trust_env = False
        prepared = browser.prepare_request(
            requests.Request("GET", person.url, auth=user, headers=headers)
        )
        prepared.url = person.url + path
        return browser.send(prepared, verify=person.session.verify, timeout=60)


def test_password_of_the_proxy_signs_in_to_the_dashboard(behind_passwords: RemoteClient) -> None:
    for password in (None, "", "wrong"):
        refused = browse(behind_passwords, "/", password)
        assert refused.status_code == 401
        assert refused.headers["WWW-Authenticate"].startswith("Basic ")
    for headers in ({}, {"X-Remote-User": "boss"}, {"X-Forwarded-Prefix": "/evil"}):
        page = browse(behind_passwords, "/agents", PASSWORD, **headers)
        assert page.status_code == 200
        assert PERSON in page.text
        links = re.findall(r'(?:href|src)="(/[^"]*)"', page.text)
        assert [link for link in links if not link.startswith(f"{PREFIX}/")] == []


def test_programs_and_links_need_no_password_of_the_proxy(behind_passwords: RemoteClient) -> None:
    alice = behind_passwords
    task = alice.start(claim=True)
    alice.request("PUT", "/agent/reader").raise_for_status()
    assert "tasks" in structured(McpClient(alice).call("list_tasks"))
    created = alice.request("POST", f"/task/{task['id']}/link")
    link = created.json()["url"].removeprefix(alice.url)
    page = browse(alice, link, None)
    assert page.status_code == 200
    for path in re.findall(rf'(?:href|src)="{PREFIX}(/static/[^"]*)"', page.text):
        assert browse(alice, path, None).status_code == 200
    # The page says that the token is wrong.
    assert browse(alice, "/answer/x", None).status_code == 404
    for path in ("/docs", "/openapi.json", "/favicon.ico"):
        assert browse(alice, path, None).status_code == 200


@pytest.mark.parametrize(
    "path",
    ["/agents", "/static/../agents", "/static/%2e%2e/agents", "/static/..%2fagents",
     "//agents", "/mcp/../agents", "/agents;/mcp", "/agents?/tasks/mcp", "/MCP/../agents",
     "/shared/x/..%2f..%2fagents"],
)  # fmt: skip
def test_person_that_a_client_names_is_not_signed_in(
    behind_passwords: RemoteClient, path: str
) -> None:
    for password in (None, "wrong"):
        page = browse(behind_passwords, path, password, **{"X-Remote-User": PERSON})
        assert page.status_code in (401, 404)
        assert "<nav" not in page.text
