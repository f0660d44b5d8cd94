"""`taskservice work`: a program runs for each task of an agent."""

import os
import resource
import signal
import threading
import time
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from taskservice.cli.work import Worker
from taskservice.client import Client
from tests.support import receiver as play
from tests.support import service_answers as played
from tests.support.agent_machine import AgentMachine, Command, kill
from tests.support.api_client import RemoteClient
from tests.support.receiver import Exchange, Receiver
from tests.support.service import Service
from tests.support.service_answers import passing_on
from tests.support.waiting import PATIENCE_SECONDS, until


def work(machine: AgentMachine, script: str, *options: str) -> Command:
    return machine.spawn("work", "--agent", "worker", *options, "--", "sh", "-c", script)


def stop(*workers: Command) -> list[tuple[str, str]]:
    """What the workers have printed, after they were stopped."""
    for worker in workers:
        worker.send_signal(signal.SIGTERM)
    return [worker.communicate(timeout=40) for worker in workers]


def all_finished(person: RemoteClient, count: int) -> list[dict[str, Any]]:
    return until(
        lambda: len(ended := [t for t in person.tasks() if t["finishedAt"]]) == count and ended
    )


def test_task_is_done_and_its_caller_is_called_back(machine: AgentMachine) -> None:
    worker = work(machine, """echo working; sed 's/.*/{"got": &}/'""")
    with Receiver() as receiver:
        machine.user.start("worker", input={"n": 1}, callback=receiver.url)
        (task,) = all_finished(machine.user, 1)
        until(lambda: receiver.requests)
    ((printed, notices),) = stop(worker)
    assert (task["status"], task["output"]) == ("complete", {"got": {"n": 1}})
    assert task["logs"] == ["working", '{"got": {"n": 1}}']
    assert "working" in printed
    assert str(task["id"]) in notices
    assert worker.returncode == 0


def test_failure_of_one_task_does_not_end_the_worker(machine: AgentMachine) -> None:
    machine.user.start("worker", input={"code": 3})
    machine.user.start("worker", input={"code": 0})
    worker = work(machine, "exit $(tr -dc 0-9)")
    finished = all_finished(machine.user, 2)
    stop(worker)
    assert [task["status"] for task in finished] == ["complete", "error"]
    assert finished[1]["error"] == {"type": "failed", "message": "Exit status 3"}


def test_threads_of_a_program_end_with_it(machine: AgentMachine) -> None:
    worker = work(machine, "echo one")

    def threads() -> int:
        return len(list(Path(f"/proc/{worker.pid}/task").iterdir()))

    def do_one(count: int) -> None:
        machine.user.start("worker")
        all_finished(machine.user, count)
        until(lambda: not machine.left_runs())

    do_one(1)
    first = threads()
    for count in (2, 3, 4, 5):
        do_one(count)
    # A thread may end a little later than its task.
    until(lambda: threads() <= first + 1)
    stop(worker)


def test_several_workers_do_each_task_once(machine: AgentMachine) -> None:
    for number in range(12):
        machine.user.start("worker", input={"number": number})
    # Each program makes one write, because programs that run in parallel share the output.
    program = "printf '%s\\n' \"$(cat)\"; sleep 0.2"
    workers = [work(machine, program) for _ in range(2)]
    workers.append(work(machine, program, "--parallel", "3"))
    finished = all_finished(machine.user, 12)
    printed = "".join(out for out, _ in stop(*workers))
    assert Counter(line for line in printed.splitlines() if line) == Counter(
        f'{{"number": {number}}}' for number in range(12)
    )
    assert all(task["status"] == "complete" for task in finished)


def test_parallel_limits_concurrent_programs(machine: AgentMachine) -> None:
    for _ in range(4):
        machine.user.start("worker")
    worker = work(machine, "sleep 1000", "--parallel", "3")
    until(lambda: sum(task["claimedAt"] is not None for task in machine.user.tasks()) == 3)
    time.sleep(1)
    assert sum(task["claimedAt"] is not None for task in machine.user.tasks()) == 3
    stop(worker)
    ended = [task["error"]["message"] for task in machine.user.tasks() if task["finishedAt"]]
    assert ended == ["Killed by signal 15 (SIGTERM)"] * 3
    assert worker.returncode == 0


def test_cancel_stops_the_program_and_not_the_worker(machine: AgentMachine) -> None:
    first = machine.user.start("worker", input={"seconds": 1000})
    worker = work(machine, "sleep $(tr -dc 0-9)")
    until(lambda: machine.user.read(f"/task/{first['id']}")["claimedAt"])
    machine.user.cancel(first)
    machine.user.start("worker", input={"seconds": 0})
    newest, oldest = all_finished(machine.user, 2)
    stop(worker)
    assert (oldest["error"]["type"], newest["status"]) == ("cancelled", "complete")


def test_worker_waits_for_a_service_that_is_unavailable(tmp_path: Path) -> None:
    with Service(tmp_path / "data") as service:
        alice = service.add_user()
        worker = work(AgentMachine(tmp_path / "home", alice), "echo done")
        until(lambda: alice.read("/agent"))
        kill(service)
        time.sleep(1)
        service.start()
        alice.start("worker")
        (task,) = all_finished(alice, 1)
        ((_, notices),) = stop(worker)
    assert task["logs"] == ["done"]
    assert "retrying" in notices


def test_worker_says_for_which_agent_it_waits(machine: AgentMachine) -> None:
    for agent_id in ("word-count", "backup"):
        machine.user.register(agent_id)
    notices = []
    for lines in (2, 1):
        worker = machine.spawn("work", "--agent", "word-cuont", "--", "true")
        notices += [worker.read_error() for _ in range(lines)]
        ((_, rest),) = stop(worker)
        assert rest == ""
    assert notices == [
        "taskservice: agent word-cuont was registered just now; did you mean word-count?\n",
        "taskservice: waiting for tasks of agent word-cuont\n",
        "taskservice: waiting for tasks of agent word-cuont\n",
    ]


def test_worker_continues_after_another_programs_page(machine: AgentMachine) -> None:
    """A proxy answers while its service is unavailable; at first, the URL would be wrong.

    The connection breaks before.
    """
    page = play.answer(404, {"Content-Type": "text/html"}, b"<h1>Not here</h1>")
    with Receiver() as receiver:
        receiver.answer = page
        machine.url = receiver.url
        assert machine.run("work", "--agent", "worker", "--", "true").returncode == 2
        receiver.paths["/api/v1/agent"] = played.answer(200, [{"id": "worker"}])
        receiver.answer = play.in_turn(play.reset(), page)
        worker = work(machine, "true")
        assert "waiting for tasks" in worker.read_error()
        # A first connection that breaks is reported only if the next one breaks too.
        while "not from taskservice; retrying" not in (line := worker.read_error()):
            assert "retrying" in line
        stop(worker)
    assert worker.returncode == 0


def test_program_gets_each_number_as_it_was_given(machine: AgentMachine) -> None:
    numbers = "[0.1, 1e-400, 12345678901234567890.123, 100000000000000000000, -2.5]"
    machine.user.register("worker")
    start = f'{{"agentId": "worker", "input": {{"numbers": {numbers}, "text": "\\\\u0000 1.5"}}}}'
    headers = {"Content-Type": "application/json"}
    machine.user.request("POST", "/task", data=start, headers=headers).raise_for_status()
    worker = work(machine, "cat")
    (task,) = all_finished(machine.user, 1)
    stop(worker)
    line, note = task["logs"]
    assert line == f'{{"numbers": {numbers}, "text": "\\\\u0000 1.5"}}'
    assert "is not the output, since it has a key twice, or a number" in note


def test_worker_with_a_wrong_key_ends(machine: AgentMachine) -> None:
    machine.key = "wrong"
    result = machine.run("work", "--agent", "worker", "--", "true")
    assert result.returncode == 2
    assert "TASKSERVICE_APIKEY: API key is invalid" in result.stderr


def test_stopping_worker_finishes_its_claimed_tasks(
    machine: AgentMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(machine.home))
    machine.user.register("worker")
    passed_on, started = passing_on(machine.user), threading.Event()

    def wait_for_a_task(exchange: Exchange) -> None:
        started.wait(PATIENCE_SECONDS)
        passed_on(exchange)

    with Receiver(answer=passed_on) as between:
        between.paths["/api/v1/agent/worker/claim"] = wait_for_a_task
        worker = Worker(
            Client(between.url, machine.key).connection, "worker", ["sh", "-c", "sleep 0.2"]
        )
        thread = threading.Thread(target=worker.work)
        thread.start()
        until(lambda: [r for r in between.requests if r.path.endswith("/claim")])
        worker.stop(signal.SIGTERM)
        machine.user.start("worker")
        started.set()
        thread.join(PATIENCE_SECONDS)
    assert machine.user.the_task()["status"] == "complete"


def test_idle_workers_ask_seldom_whether_or_not_the_service_holds_their_claims(
    tmp_path: Path,
) -> None:
    """With its default settings, a service holds at most eight claims at a time."""
    with Service(tmp_path / "data", LOG_LEVEL="DEBUG") as service:
        alice, bob = service.add_user("alice"), service.add_user("bob")
        machine = AgentMachine(tmp_path / "home", alice)
        workers = [work(machine, "true") for _ in range(12)]
        until(lambda: service.log.read_text().count("claim status=204") >= 12)
        before = service.log.read_text().count("claim status=204")
        began = time.monotonic()
        for _ in range(5):
            held = bob.start("other")
            path = f"/task/{held['id']}/logs"
            bob.request("GET", path, headers={"Prefer": "wait=1"}).raise_for_status()
        seconds = time.monotonic() - began
        claims = service.log.read_text().count("claim status=204") - before
        stop(*workers)
    # Each worker asks once a second.
    assert claims <= len(workers) * (seconds + 2)


@pytest.mark.parametrize("breaks_first", [False, True])
def test_worker_repeats_a_claim_no_sooner_than_the_service_says(
    machine: AgentMachine, breaks_first: bool
) -> None:
    """Also where the connection breaks at first, so that the claim is repeated without a wait."""
    breaks = iter([breaks_first])
    asked_at: list[float] = []

    def answer(exchange: Exchange) -> None:
        if next(breaks, False):
            return play.reset()(exchange)
        asked_at.append(time.monotonic())
        return play.answer(204, {"Retry-After": "2"})(exchange)

    with Receiver() as receiver:
        receiver.paths["/api/v1/agent/worker/claim"] = answer
        receiver.paths["/api/v1/agent"] = played.answer(200, [{"id": "worker"}])
        machine.url = receiver.url
        worker = work(machine, "true")
        until(lambda: len(asked_at) == 3)
        stop(worker)
    pauses = [later - earlier for earlier, later in pairwise(asked_at)]
    assert min(pauses) > 1.5


def test_claim_is_repeated_as_one_and_its_task_beats_often(machine: AgentMachine) -> None:
    with Receiver() as receiver:
        claimed = played.task(name="bad \x1b[2Jname", agentId="worker")
        claims = [play.reset(), play.answer(503), claimed, play.silence]
        receiver.paths["/api/v1/agent/worker/claim"] = lambda exchange: claims.pop(0)(exchange)
        receiver.paths["/api/v1/agent"] = played.answer(200, [{"id": "worker"}])
        receiver.answer = played.appended()
        receiver.paths["/api/v1/task/1"] = played.task()
        machine.url = receiver.url
        worker = work(machine, "sleep 2")
        until(lambda: [r for r in receiver.requests if r.method == "PATCH"])
        requests = list(receiver.requests)
        worker.kill()
        _, notices = worker.communicate()
    keys = [r.headers["idempotency-key"] for r in requests if r.path.endswith("/claim")]
    assert len(set(keys[:3])) == 1
    assert len(set(keys[2:])) == len(keys[2:])
    assert len([r for r in requests if r.body == b'{"logs": []}']) >= 2
    assert r"task 1 bad \u001b[2Jname" in notices


def test_task_that_cannot_be_run_does_not_stay_claimed(machine: AgentMachine) -> None:
    machine.user.start("worker")
    few_files = {"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (8, 8))}
    worker = machine.spawn("work", "--agent", "worker", "--", "true", **few_files)
    (task,) = all_finished(machine.user, 1)
    # Three standard files, and at most two connections.
    until(lambda: len(os.listdir(f"/proc/{worker.pid}/fd")) <= 5)
    stop(worker)
    assert task["error"]["message"].startswith("The worker could not start the program: [Errno 24]")
    assert machine.left_runs() == []


def test_worker_whose_program_cannot_be_started_claims_nothing(machine: AgentMachine) -> None:
    task = machine.user.start("worker")
    refused = machine.run("work", "--agent", "worker", "--", "no-such-program")
    sentence = "taskservice: no-such-program can't be run: No such file or directory\n"
    assert (refused.returncode, refused.stdout, refused.stderr) == (127, "", sentence)
    assert machine.run("work", "--agent", "new", "--", "/etc/passwd").returncode == 126
    assert [agent["id"] for agent in machine.user.read("/agent")] == ["worker"]
    assert machine.user.read(f"/task/{task['id']}")["claimedAt"] is None
