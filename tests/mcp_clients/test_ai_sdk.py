"""The AI SDK as a subscriber to events: it verifies each message, and answers the challenge."""

import json
import subprocess
from pathlib import Path
from typing import Any

from taskservice.terms import EVENTS
from tests.support.api_client import RemoteClient
from tests.support.service import Service

PROGRAM = Path(__file__).parent / "client_programs" / "ai_sdk_events.mjs"
CLIENT_SECONDS = 120


def test_ai_sdk_subscribes_receives_refreshes_and_is_told_of_the_end(
    node: Path, mcp_service: Service
) -> None:
    # Not the owner of the other tests, whose agents run meanwhile.
    subscriber = mcp_service.add_user()
    steps = steps_of(node, subscriber)
    assert steps["errors"] == []
    assert steps["listed"] == list(EVENTS)
    subscription = steps["subscribed"]["id"]
    for task, message in (("failed", "event"), ("failedAgain", "eventAgain")):
        assert steps[message]["id"] == subscription
        event = steps[message]["event"]
        assert event["name"] == "task.failed"
        assert event["timestamp"] == steps[task]["finishedAt"]
        assert event["data"]["task"]["id"] == steps[task]["id"]
        assert event["data"]["task"]["error"] == {"type": "failed", "message": "no"}
    assert steps["refreshed"]["id"] == subscription
    assert steps["refreshed"]["refreshBefore"] >= steps["subscribed"]["refreshBefore"]
    [hook] = steps["hooks"]
    assert (hook["format"], hook["events"]) == ("mcp", ["task.failed"])
    # The SDK puts its own key into the query.
    assert hook["target"].endswith("/hook")
    error = {"code": -32012, "message": "Forbidden"}
    assert steps["terminated"] == {
        "id": subscription, "termination": {"type": "terminated", "error": error}
    }  # fmt: skip


def steps_of(node: Path, subscriber: RemoteClient) -> dict[str, Any]:
    """Step -> what the SDK returned."""
    key = str(subscriber.session.headers["apikey"])
    run = subprocess.run(
        [node / ".bin" / "node", PROGRAM, node, subscriber.url, key],
        capture_output=True, text=True, timeout=CLIENT_SECONDS, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    steps: dict[str, Any] = json.loads(run.stdout)
    print(json.dumps(steps, indent=1))
    return steps
