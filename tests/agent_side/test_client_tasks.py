"""`taskservice.client`: labels, parents, progress, steps, reruns and agents."""

import asyncio
import json
import logging
import pickle
import re
import subprocess
import sys
from typing import Any

import pytest

from taskservice.client import Client, Conflict, Invalid, Line, NotFound, TaskCancelled, sender
from tests.support import receiver as play
from tests.support import service_answers as played
from tests.support.agent_machine import AgentMachine
from tests.support.api_client import RemoteClient
from tests.support.receiver import Behaviour, Exchange, Receiver, in_turn
from tests.support.service_answers import losing
from tests.support.waiting import until


def reports(receiver: Receiver) -> list[Any]:
    """The bodies of the reports that came, without those that only ask."""
    sent = [json.loads(request.body) for request in receiver.requests if request.method == "PATCH"]
    return [body for body in sent if body]


def answering(report: Behaviour) -> Behaviour:
    """Answers reports so, and all else as the service does."""

    def behave(exchange: Exchange) -> None:
        is_report = exchange.request.method == "PATCH" and exchange.request.body != b"{}"
        is_append = "/logs" in exchange.request.path
        (report if is_report else played.appended() if is_append else played.task())(exchange)

    return behave


# --- labels and parents ------------------------------------------------------------------


def test_labels_are_kept_and_found_by(client: Client) -> None:
    emoji = {"env": "prod", "odd": "a=b:c 🌍"}
    first = client.start("one", labels=emoji)
    client.start("one", labels={"env": "test"})
    assert first.labels == emoji
    assert [task.id for task in client.tasks(labels=emoji)] == [first.id]
    assert list(client.tasks(labels={"env": "prod", "odd": "other"})) == []
    first.report(labels={"odd": None, "team": "mail"})
    assert first.labels == {"env": "prod", "team": "mail"}


def test_parent_is_the_one_that_is_given(client: Client) -> None:
    parent = client.start("one")
    child = client.start("two", parent_id=parent.id)
    assert child.data["parentId"] == parent.id
    assert [task.id for task in client.tasks(parent_id=parent.id)] == [child.id]
    with pytest.raises(Invalid, match="parentId"):
        client.start("two", parent_id="00000000-0000-7000-8000-000000000000")


def test_parent_is_the_task_of_the_program(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    parent = client.start("one")
    monkeypatch.setenv("TASKSERVICE_TASK_ID", parent.id)
    assert client.start("two").data["parentId"] == parent.id
    assert client.start("two", parent_id="").data["parentId"] is None


@pytest.mark.parametrize("unseen", ["nonsense", "00000000-0000-7000-8000-000000000000"])
def test_task_of_the_program_that_the_key_cannot_see_is_not_its_parent(
    client: Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, unseen: str
) -> None:
    monkeypatch.setenv("TASKSERVICE_TASK_ID", unseen)
    with caplog.at_level(logging.WARNING):
        assert client.start("new agent".replace(" ", "-")).data["parentId"] is None
    assert f"has no access to task {unseen}" in caplog.text


def test_filters_find_what_they_name(client: Client) -> None:
    waiting = client.start("one", claim=False)
    failed, cancelled = client.start("one"), client.start("one").cancel()
    failed.fail("no")
    list_tasks = client.tasks
    assert [task.id for task in list_tasks(error_type="failed")] == [failed.id]
    assert [task.id for task in list_tasks(status="error", claimed=True)] == [
        cancelled.id,
        failed.id,
    ]
    assert [task.id for task in list_tasks(claimed=False)] == [waiting.id]
    assert [task.id for task in list_tasks(asking=True)] == []
    assert len(list(list_tasks(asking=False))) == 3
    assert list(list_tasks(hanging=True)) == []
    assert len(list(list_tasks(hanging=False))) == 3


# --- progress and steps ------------------------------------------------------------------


def test_progress_is_seen_while_the_task_runs(remote_alice: RemoteClient) -> None:
    with remote_alice.client().start("one") as task:
        task.progress(34, 68, "pages")
        until(lambda: remote_alice.the_task()["progress"] == 0.5)
        assert remote_alice.the_task()["note"] == "34 of 68 pages"


def test_last_progress_is_there_at_the_end(remote_alice: RemoteClient) -> None:
    with remote_alice.client().start("one") as task:
        for page in range(1, 1001):
            task.progress(page, 1000, "pages")
    assert (task.data["progress"], task.data["note"]) == (1, "1,000 of 1,000 pages")
    assert remote_alice.the_task()["status"] == "complete"


def test_loop_sends_progress_at_most_once_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sender, "PROGRESS_INTERVAL", 1000)
    with Receiver() as receiver:
        receiver.answer = answering(played.task())
        task = Client(receiver.url, "key").task("1")
        task.progress(0, 100)
        until(lambda: reports(receiver))
        for page in range(1, 100):
            task.progress(page, 100)
        task.report(name="new")
    first, last = reports(receiver)
    assert first == {"progress": 0, "note": "0 of 100"}
    assert last == {"progress": 0.99, "note": "99 of 100", "name": "new"}


def test_progress_that_could_not_be_sent_is_sent_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sender, "PROGRESS_INTERVAL", 0.05)
    with Receiver() as receiver:
        receiver.answer = answering(in_turn(play.reset(), play.answer(502), played.task()))
        task = Client(receiver.url, "key").task("1")
        task.progress(0.25, note="a quarter")
        until(lambda: len(reports(receiver)) == 3)
    assert reports(receiver) == [{"progress": 0.25, "note": "a quarter"}] * 3


def test_lines_and_progress_of_a_program_that_just_ends_are_sent(machine: AgentMachine) -> None:
    program = (
        "from taskservice.client import Client, sender\n"
        "sender.PROGRESS_INTERVAL = 1000\n"
        "task = Client().start('one')\n"
        "task.log('one\\ntwo')\n"
        "for page in range(1, 4): task.progress(page, 4)\n"
    )
    process = machine.python(program)
    _, notices = process.communicate(timeout=60)
    assert (process.returncode, notices) == (0, "")
    task = machine.user.the_task()
    assert (task["logs"], task["progress"]) == (["one", "two"], 0.75)


def test_program_ends_although_the_service_holds_its_progress() -> None:
    program = (
        "import sys\n"
        "from taskservice.client import Client\n"
        "Client(sys.argv[1], 'key').task('1').progress(1, 2)\n"
        "sys.stdin.read()\n"
    )
    with Receiver() as receiver:
        receiver.answer = answering(play.silence)
        command = [sys.executable, "-c", program, receiver.url]
        with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
            until(lambda: reports(receiver))
            process.communicate(timeout=30)  # the limit is 5 s
    assert process.returncode == 0


@pytest.mark.parametrize("block", ["", "with task: "])
def test_program_below_run_tells_its_progress(machine: AgentMachine, block: str) -> None:
    program = (
        "from taskservice.client import current, sender\n"
        "sender.PROGRESS_INTERVAL = 1000\n"
        "task = current()\n"
        f"{block}[task.progress(page, 4, 'pages') for page in range(1, 4)]\n"
    )
    ended = machine.run("run", "--agent", "one", "--", sys.executable, "-c", program)
    assert ended.returncode == 0, ended.stderr
    task = machine.user.the_task()
    assert (task["status"], task["progress"], task["note"]) == ("complete", 0.75, "3 of 4 pages")


def test_note_is_made_to_fit(client: Client) -> None:
    with client.start("one") as task:
        task.progress(1, note="x\0\ud800" + "y" * 300)
    assert task.data["note"] == "x\ufffd?" + "y" * 197


def test_progress_that_is_none_is_refused_where_it_is_told(client: Client) -> None:
    task = client.start("one")
    nan = float("nan")
    for done, total in ((2, 1), (-1, 1), (0, 0), (nan, 1), (1, nan), (1, float("inf"))):
        with pytest.raises(ValueError, match="from 0 to its total"):
            task.progress(done, total)


def test_step_says_how_long_it_took(remote_alice: RemoteClient) -> None:
    with remote_alice.client().start("one") as task, task.step("read the mail"):
        task.log("inside")
    inside, line = remote_alice.the_task()["logs"]
    assert inside == "inside"
    assert re.fullmatch(r"read the mail took \d+\.\d\d s", line)


def test_failed_step_is_in_the_log(remote_alice: RemoteClient) -> None:
    with remote_alice.client().start("one") as task:
        with pytest.raises(KeyError), task.step("read the mail"):
            raise KeyError("subject")
        with pytest.raises(SystemExit), task.step("stop"):
            raise SystemExit(0)
    failed, stopped = remote_alice.the_task()["logs"]
    assert re.fullmatch(r"read the mail failed after \d+\.\d\d s: KeyError: 'subject'", failed)
    assert re.fullmatch(r"stop took \d+\.\d\d s", stopped)


def test_step_of_a_cancelled_task_raises_the_programs_own_error(client: Client) -> None:
    task = client.start("one")
    task.log("one")
    client.task(task.id).cancel()

    def work() -> None:
        with task.step("read"):
            raise KeyError("subject")

    with pytest.raises(KeyError):
        work()
    with pytest.raises(TaskCancelled):
        task.complete()


def test_coroutines_work_on_tasks_side_by_side(remote_alice: RemoteClient) -> None:
    async def work(number: int) -> None:
        task = await asyncio.to_thread(remote_alice.client().start, "one", name=str(number))
        with task.step("sleep"):
            await asyncio.sleep(0.01)
        task.progress(1, 2)
        await asyncio.to_thread(task.complete, number=number)

    async def work_on_all() -> None:
        await asyncio.gather(*map(work, range(8)))

    asyncio.run(work_on_all())
    done = remote_alice.tasks()
    assert {task["name"] for task in done} == set(map(str, range(8)))
    for task in done:
        assert (task["status"], task["progress"]) == ("complete", 0.5)
        assert task["output"] == {"number": int(task["name"])}
        assert re.fullmatch(r"sleep took \d+\.\d\d s", *task["logs"])


# --- reruns, times, agents ---------------------------------------------------------------


def test_rerun_has_the_same_input_and_labels_or_others(client: Client) -> None:
    task = client.start("one", name="first", input={"day": 1}, labels={"env": "prod"})
    task.fail("no")
    again = task.rerun()
    assert (again.data["rerunOf"], again.data["claimedAt"]) == (task.id, None)
    assert (again.name, again.input, again.labels) == ("first", {"day": 1}, {"env": "prod"})
    assert task.rerun({"day": 2}).input == {"day": 2}
    assert task.rerun({}).input == {}
    assert task.rerun(labels={"env": "test"}).labels == {"env": "test"}
    assert task.rerun(labels={}).labels == {}


def test_lost_answer_starts_one_task(remote_alice: RemoteClient) -> None:
    with Receiver() as between:
        between.answer = losing(remote_alice, lambda number: number == 2)
        client = remote_alice.client(between.url, retry_timeout=20)
        task = client.task(str(remote_alice.start("one")["id"]))
        again = task.rerun()
        assert len(between.requests) == 3
    assert {task_json["id"] for task_json in remote_alice.tasks()} == {task.id, again.id}


def test_lines_come_with_their_times(remote_alice: RemoteClient) -> None:
    task = remote_alice.client().start("one")
    body = {"logs": ["one"], "at": "2000-01-01T00:00:00Z"}
    remote_alice.request("POST", f"/task/{task.id}/logs", json=body).raise_for_status()
    at = task.data["createdAt"]
    assert list(task.lines(times=True)) == [Line(1, "one", at)]
    assert list(task.lines()) == [Line(1, "one", None)]
    task.cancel()
    assert list(task.follow(times=True)) == [Line(1, "one", at)]
    assert "\n".join(map(str, task.lines(times=True))) == "one"


def test_agents_are_listed_with_their_health_and_deleted(client: Client) -> None:
    client.start("healthy").complete()
    client.register_agent("idle-agent", "Idle", "Does nothing.")
    agents = {agent["id"]: agent for agent in client.agents(health=True)}
    assert agents["healthy"]["health"]["successRate"] == 1
    assert agents["healthy"]["health"]["recent"][-1]["status"] == "complete"
    assert agents["idle-agent"]["health"]["recent"] == []
    client.delete_agent("idle-agent")
    assert "idle-agent" not in {agent["id"] for agent in client.agents()}
    with pytest.raises(NotFound):
        client.delete_agent("idle-agent")
    with pytest.raises(Conflict):
        client.delete_agent("healthy")


# --- what a person sees ------------------------------------------------------------------


def test_objects_show_what_they_are_and_no_key(client: Client) -> None:
    task = client.start("one", name="nightly")
    assert repr(task) == f"<Task {task.id} 'nightly' of one: running>"
    task.report(progress=0.5)
    assert repr(task).endswith(": running 50%>")
    task.fail("no")
    assert repr(task) == f"<Task {task.id} 'nightly' of one: error (failed)>"
    (narrow,) = client.tasks(fields="id")
    assert repr(narrow) == f"<Task {task.id} '?' of ?: ?>"
    assert repr(client) == f"<Client of {client.connection.url}>"
    for thing in (client, task):
        with pytest.raises(TypeError, match="cannot pickle"):
            pickle.dumps(thing)


def test_page_url_leads_to_the_dashboard(remote_alice: RemoteClient) -> None:
    task = remote_alice.client().start("one")
    assert task.page_url == f"{remote_alice.url}/tasks/{task.id}"
