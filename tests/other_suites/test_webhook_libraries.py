"""Webhooks, as libraries of Standard Webhooks and the documented receivers verify them."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import requests

from taskservice.webhooks.signing import new_secret, sign
from tests.support.api_client import RemoteClient
from tests.support.documents import ROOT, blocks
from tests.support.receiver import Received, Receiver
from tests.support.requirements import needs
from tests.support.service import Service, free_port, is_port_free
from tests.support.waiting import until

PROGRAM = Path(__file__).parent / "programs" / "verify.mjs"


@pytest.fixture
def folder(node_modules: Path, tmp_path: Path) -> Path:
    """A directory with the program and, as it finds them, the libraries."""
    shutil.copy(PROGRAM, tmp_path)
    (tmp_path / "node_modules").symlink_to(node_modules)
    return tmp_path


def verdicts(folder: Path, webhook: Received, secret: str) -> dict[str, str]:
    """Library -> the ID of the task that it read in the webhook, or why it refused this."""
    received = {"secret": secret, "headers": webhook.headers, "body": webhook.body.decode()}
    done = subprocess.run(
        ["node", PROGRAM.name], cwd=folder, input=json.dumps(received),
        capture_output=True, text=True, timeout=100, check=True,
    )  # fmt: skip
    return dict(json.loads(done.stdout))


def secret(owner: RemoteClient, method: str = "GET") -> str:
    response = owner.request(method, "/callback-secret")
    response.raise_for_status()
    return str(response.json()["secret"])


def webhook(owner: RemoteClient, receiver: Receiver) -> tuple[str, Received]:
    """The ID of a task that ends now, and its webhook."""
    count = len(receiver.requests)
    task = owner.start(callback=receiver.url)
    report = {"status": "complete", "output": {"text": "Zürich \u2028 🎉", "number": 1.50}}
    owner.request("PATCH", f"/task/{task['id']}", json=report).raise_for_status()
    return task["id"], receiver.wait_for(count + 1)[count]


def test_libraries_for_node_verify_a_webhook(
    folder: Path, owner: RemoteClient, receiver: Receiver
) -> None:
    task_id, received = webhook(owner, receiver)
    expected = {"standardwebhooks": task_id, "svix": task_id}
    assert verdicts(folder, received, secret(owner)) == expected


def test_libraries_for_node_verify_with_the_old_and_the_new_secret_after_a_rotation(
    folder: Path, owner: RemoteClient, receiver: Receiver
) -> None:
    old = secret(owner)
    new = secret(owner, "POST")
    assert new != old
    task_id, received = webhook(owner, receiver)
    assert len(received.headers["webhook-signature"].split()) == 2
    for key in (old, new):
        assert verdicts(folder, received, key) == {"standardwebhooks": task_id, "svix": task_id}


def test_libraries_for_node_refuse_a_webhook_with_the_secret_of_another_user(
    folder: Path, shared: Service, owner: RemoteClient, receiver: Receiver
) -> None:
    _, received = webhook(owner, receiver)
    expected = dict.fromkeys(("standardwebhooks", "svix"), "No matching signature found")
    assert verdicts(folder, received, secret(shared.add_user())) == expected


# --- the receivers of docs/guides/receivers.md --------------------------------------------------

# Language -> the file of the receiver, what starts it, its package in Debian.
RECEIVERS = {
    "python": ("receiver.py", [sys.executable, "receiver.py"], ""),
    "node": ("receiver.mjs", ["node", "receiver.mjs"], "nodejs"),
    "go": ("receiver.go", ["go", "run", "receiver.go"], "golang-go"),
    "php": ("receiver.php", ["php", "-S", "127.0.0.1:9000", "receiver.php"], "php-cli"),
}


@pytest.mark.parametrize("language", RECEIVERS)
def test_documented_receiver_prints_what_is_signed_and_nothing_else(
    owner: RemoteClient, tmp_path: Path, language: str
) -> None:
    file, command, package = RECEIVERS[language]
    if shutil.which(command[0]) is None:
        needs(command[0], f"install the package {package}")
    if language == "python":
        (program,) = blocks("docs/guides/receivers.md", "receiver: python")
    else:
        program = (ROOT / "examples" / file).read_text()
    port = free_port()
    assert "9000" in f"{program} {command}"
    (tmp_path / file).write_text(program.replace("9000", str(port)))
    command = [argument.replace("9000", str(port)) for argument in command]
    environment = os.environ | {"CALLBACK_SECRET": secret(owner)}
    url = f"http://127.0.0.1:{port}/"
    if language == "go":
        # So that the start below compiles nothing, which takes minutes on a busy machine.
        subprocess.run(["go", "build", "-o", os.devnull, file], cwd=tmp_path, check=True)
    with (
        (tmp_path / "printed").open("w") as printed,
        subprocess.Popen(
            command, cwd=tmp_path, env=environment, stdout=printed, stderr=printed,
            start_new_session=True,
        ) as receiving,
    ):  # fmt: skip
        try:
            until(lambda: not is_port_free(port))
            task = owner.start(name="sum", callback=url)
            report = {"status": "complete", "output": {"sum": 15}}
            ended = owner.request("PATCH", f"/task/{task['id']}", json=report)
            assert ended.headers["Callback-Status"] == "delivered"
            lines = (tmp_path / "printed").read_text().replace("'", '"').replace(" ", "")
            assert 'sumcomplete{"sum":15}' in lines
            body, now = b"{}", int(time.time())
            stranger = sign([new_secret()], "id", now, body)
            replayed = sign([secret(owner)], "id", now - 3600, body)
            for headers in (stranger, replayed):
                assert requests.post(url, body, headers=headers, timeout=60).status_code == 400
        finally:
            # `go run` and its child.
            os.killpg(receiving.pid, signal.SIGTERM)
