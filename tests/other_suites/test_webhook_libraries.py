"""Webhooks, as the libraries of Standard Webhooks for Node.js verify them."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.api_client import RemoteClient
from tests.support.receiver import Received, Receiver
from tests.support.service import Service

PROGRAM = Path(__file__).parent / "programs" / "verify.mjs"


@pytest.fixture
def folder(node_modules: Path, tmp_path: Path) -> Path:
    """A folder with the program and, as it finds them, the libraries."""
    shutil.copy(PROGRAM, tmp_path)
    (tmp_path / "node_modules").symlink_to(node_modules)
    return tmp_path


def verdicts(folder: Path, webhook: Received, secret: str) -> dict[str, str]:
    """Library -> the id of the task that it read in the webhook, or why it refused this."""
    given = {"secret": secret, "headers": webhook.headers, "body": webhook.body.decode()}
    done = subprocess.run(
        ["node", PROGRAM.name], cwd=folder, input=json.dumps(given),
        capture_output=True, text=True, timeout=100, check=True,
    )  # fmt: skip
    return dict(json.loads(done.stdout))


def secret(owner: RemoteClient, method: str = "GET") -> str:
    response = owner.request(method, "/callback-secret")
    response.raise_for_status()
    return str(response.json()["secret"])


def webhook(owner: RemoteClient, receiver: Receiver) -> tuple[str, Received]:
    """The id of a task that ends now, and its webhook."""
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
    for each in (old, new):
        assert verdicts(folder, received, each) == {"standardwebhooks": task_id, "svix": task_id}


def test_libraries_for_node_refuse_a_webhook_with_the_secret_of_another_user(
    folder: Path, shared: Service, owner: RemoteClient, receiver: Receiver
) -> None:
    _, received = webhook(owner, receiver)
    expected = dict.fromkeys(("standardwebhooks", "svix"), "No matching signature found")
    assert verdicts(folder, received, secret(shared.add_user())) == expected
