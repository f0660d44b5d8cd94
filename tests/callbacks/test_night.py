"""A night of forty agents: the messages that a person gets, in order, and no other."""

import json
from typing import Any

import pytest
from flask import Flask

from taskservice.background.maintenance import Maintenance
from taskservice.database import clock
from tests.support.api_client import ApiClient, expect
from tests.support.clocks import Clocks
from tests.support.deliveries import columns, looping
from tests.support.receiver import Receiver, unused_port
from tests.support.waiting import until

AGENTS = [f"agent-{number:02}" for number in range(33)]
SPECIAL = ["backup", "index", "mail", "deploy", "import", "sync", "loud"]
MINUTE, HOUR, DAY = 60, 3_600, 86_400
STEP_SECONDS = 50


class Night:
    """Agents that run once a day, and a person who is notified by ntfy."""

    def __init__(self, app: Flask, person: ApiClient, phone: Receiver, clocks: Clocks) -> None:
        self.app, self.person, self.phone, self.clocks = app, person, phone, clocks
        self.maintenance = Maintenance(app)
        target = f"{phone.url}night"
        body = {"target": target, "format": "ntfy"}
        self.hook: dict[str, Any] = expect(person.post("/hook", json=body), 201)
        # The titles of the messages so far.
        self.seen: list[str] = []

    def pass_time(self, minutes: float) -> None:
        for _ in range(0, round(minutes * MINUTE), STEP_SECONDS):
            self.clocks.go_on_with(self.maintenance, seconds=STEP_SECONDS)
            # Two steps are longer than a lease, after which an attempt would be made again.
            until(lambda: all(lease is None for (lease,) in columns(self.app, "lease")))

    def run(self, agent_id: str, status: str = "complete", message: str = "") -> None:
        task = self.person.start(agent_id, claim=True)
        error = {"error": {"message": message}} if message else {}
        self.person.report(task, status=status, **error)

    def ask(self, agent_id: str, message: str) -> dict[str, Any]:
        task = self.person.start(agent_id, claim=True)
        asked = self.person.post(f"/task/{task['id']}/question", json={"message": message})
        return task | {"question": expect(asked, 201)}

    def titles(self) -> list[str]:
        return [json.loads(request.body)["title"] for request in self.phone.requests]

    def gets(self, *titles: str) -> None:
        """Wait for the next messages of the person."""
        expected = [*self.seen, *titles]
        until(lambda: len(self.titles()) >= len(expected))
        assert self.titles() == expected
        # If the clocks went on before its outcome is stored, its lease would run out.
        of_phone = (self.hook["id"], "pending")
        until(lambda: of_phone not in columns(self.app, "hook_id", "state"))
        self.seen = expected


@pytest.mark.timeout(300)
def test_person_is_told_each_thing_of_a_night_once(
    app: Flask, alice: ApiClient, receiver: Receiver, clocks: Clocks
) -> None:
    night = Night(app, alice, receiver, clocks)
    for agent_id in AGENTS + SPECIAL:
        alice.register(agent_id, expect={"every": DAY, "grace": HOUR})
        night.run(agent_id)
    alice.register("import", expect={"every": DAY, "grace": HOUR, "maxDuration": HOUR})
    # Nobody listens there.
    dead = {"target": f"http://127.0.0.1:{unused_port()}/", "format": "slack", "name": "chat"}
    expect(alice.post("/hook", json=dead), 201)
    with looping(app, stop_seconds=0):
        tell(night, alice)
        # Nothing more, after all is sent.
        night.pass_time(60)
        assert night.titles() == night.seen
    attention = expect(alice.get("/attention"), 200)
    assert [(item["kind"], item["agentId"]) for item in attention] == [
        ("question", "deploy"),
        ("broken", "loud"),
        ("hanging", "import"),
        ("hook_failing", None),
    ]
    for request in receiver.requests:
        body = json.loads(request.body)
        print(f"{body['title']}\n    " + body["message"].replace("\n", "\n    "))


def tell(night: Night, alice: ApiClient) -> None:
    # At ten in the evening; each agent ran last at midnight.
    night.clocks.go_on(22 * HOUR)
    alice.register("loud", mutedUntil=clock.now(4.5 * HOUR))
    alice.start("import", claim=True)
    night.pass_time(10)
    for agent_id in AGENTS[:12]:
        night.run(agent_id)
    night.run("backup", "error", "pg_dump: connection to server failed")
    night.gets("backup failed")
    night.pass_time(30)
    night.run("index", "error", "Out of memory")
    night.gets("index failed")
    # Nothing is sent about muted events.
    for status in ("error", "complete", "error"):
        night.run("loud", status, "no answer" if status == "error" else "")
    night.pass_time(25)
    night.gets("import hangs")
    night.pass_time(5)
    night.run("index")
    night.gets("index works again")
    for agent_id in AGENTS[12:24]:
        night.run(agent_id)
    night.run("deploy")
    night.run("sync")
    night.run("sync")
    stuck = alice.start("sync", claim=True)
    night.pass_time(15)
    night.gets("sync hangs")
    # An outage of two hours, in which the other agents ran; what they did is reported afterwards.
    began = clock.now()
    night.clocks.go_on(2 * HOUR)
    for agent_id in AGENTS[24:]:
        ran = {"agentId": agent_id, "claim": True, "claimedAt": began}
        alice.report(expect(alice.post("/task", json=ran), 201), status="complete")
    night.pass_time(10)
    # `mail` did not run at all.
    night.gets("mail is late")
    first = night.ask("deploy", "Deploy version 7?")
    night.gets("deploy asks")
    path = f"/task/{first['id']}/question/{first['question']['id']}/answer"
    expect(alice.post(path, json={"action": "accept", "content": {"answer": "yes"}}), 200)
    alice.report(first, status="complete")
    night.pass_time(10)
    night.ask("deploy", "Remove version 6?")
    night.gets("deploy asks")
    night.pass_time(10)
    night.run("mail")
    night.gets("mail ran again")
    night.run("backup", "error", "pg_dump: connection to server failed")
    night.run("backup")
    night.gets("backup works again")
    alice.report(stuck, status="complete")
    night.gets("sync no longer hangs")
    night.pass_time(60)
    night.gets("loud failed")
