"""The lines that connect an MCP client: the same in the document, the command and the page."""

import json
import os
import re
import shlex
import subprocess
from html import unescape

import pytest
from flask import Flask

from taskservice.terms import CLIENTS, MCP_PATH
from tests.support.api_client import ApiClient
from tests.support.documents import blocks
from tests.support.marks import one_database
from tests.support.plain_browser import Browser
from tests.support.service import COMMAND

URL = "http://127.0.0.1:8000"
KEY = "tsk_user_secret"


def printed(*arguments: str, url: str = URL) -> str:
    environment = os.environ | {"TASKSERVICE_URL": url, "TASKSERVICE_APIKEY": KEY}
    command = [*COMMAND, "mcp-config", *arguments]
    return subprocess.run(
        command, env=environment, check=True, stdout=subprocess.PIPE, text=True
    ).stdout


def test_document_has_the_lines_of_every_client() -> None:
    for name, client in CLIENTS.items():
        assert blocks("docs/guides/mcp.md", f"client: {name}") == [client.text(URL) + "\n"]


def test_command_prints_the_same_without_the_key() -> None:
    everything = printed()
    for client in CLIENTS.values():
        assert f"# {client.title}: {client.where}\n\n{client.text(URL)}\n" in everything
    assert KEY not in everything


@pytest.mark.parametrize("name", CLIENTS)
def test_command_prints_one_client_as_its_file_or_shell_takes_it(name: str) -> None:
    shown = printed("--client", name, url=f"{URL}/below/api/v1/")
    url = f"{URL}/below{MCP_PATH}"
    assert shown == CLIENTS[name].text(f"{URL}/below") + "\n"
    if CLIENTS[name].file is None:
        assert url in shlex.split(shown)
    else:
        (server,) = next(iter(v for k, v in json.loads(shown).items() if "erver" in k)).values()
        assert server["url"] == url
    assert KEY not in shown


def test_command_needs_an_address() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TASKSERVICE_URL"}
    ended = subprocess.run(
        [*COMMAND, "mcp-config"], env=environment, check=False, capture_output=True, text=True
    )
    assert (ended.returncode, ended.stdout) == (2, "")
    assert "TASKSERVICE_URL is not set" in ended.stderr


def test_odd_address_is_one_word_of_the_shell() -> None:
    url = "http://127.0.0.1:8000/a b';$(reboot)"
    for client in CLIENTS.values():
        if client.file is None:
            assert url + MCP_PATH in shlex.split(client.text(url))


def pre(page: str) -> dict[str, str]:
    """Id -> text of what can be copied from a page."""
    texts = re.findall(r'<pre id="mcp-([^"]+)">(.*?)</pre>', page, re.DOTALL)
    return {name: unescape(text) for name, text in texts}


@one_database
def test_page_of_keys_shows_them_with_the_address_and_a_new_user_key(
    app: Flask, alice: ApiClient
) -> None:
    alice.register("backup")
    url = "http://tasks.example:8080/below"
    browser = Browser(app, base_url=url)
    browser.sign_in(alice.key)
    lines = {name: client.text(url) for name, client in CLIENTS.items()}
    assert pre(browser.get("/keys").text) == {
        "key": "export TASKSERVICE_APIKEY=tsk_user_…",
        **lines,
    }
    made = browser.send("/keys", name="chat", agent="", expires="").text
    shown = pre(made)
    (key,) = re.findall(r'id="new-key">(tsk_user_\w+)<', made)
    assert shown == {"key": f"export TASKSERVICE_APIKEY={key}", **lines}
    # The key of an agent is of no use there.
    made = browser.send("/keys", name="worker", agent="backup", expires="").text
    assert "tsk_agent_" in made
    assert pre(made) == {"key": "export TASKSERVICE_APIKEY=tsk_user_…", **lines}
