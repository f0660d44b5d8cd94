"""`taskservice ask` and `task answer`, and questions in the client."""

import json
import os
import pickle
import select
import shlex
import signal
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from taskservice.client import (
    Client,
    Conflict,
    Invalid,
    NotFound,
    QuestionDeclined,
    QuestionExpired,
    QuestionWithdrawn,
    Task,
    TaskCancelled,
    TaskFinished,
)
from tests.support import receiver as play
from tests.support.agent_machine import FORKS_FAIL, AgentMachine, kill, objects
from tests.support.api_client import RemoteClient
from tests.support.cheap_subtests import CheapSubtests
from tests.support.receiver import Receiver, in_turn, unused_port
from tests.support.service import Service
from tests.support.service_answers import losing
from tests.support.waiting import until

Json = dict[str, Any]
CHOICE = {"type": "string", "enum": ["yes", "no"]}


def schema(*required: str, **fields: Json) -> Json:
    return {"type": "object", "properties": fields, "required": list(required)}


DEPLOY = schema(
    "deploy", "where",
    deploy={"type": "boolean", "title": "Deploy?"},
    where={"type": "array", "items": {"type": "string", "enum": ["eu", "us"]}},
    size={"type": "string", "oneOf": [{"const": "s", "title": "Small"}]},
    count={"type": "integer"},
    share={"type": "number", "description": "Of all."},
    when={"type": "string", "format": "date"},
)  # fmt: skip


@pytest.fixture
def task(machine: AgentMachine) -> Json:
    """A task whose program runs on the machine."""
    task = machine.user.start("one", claim=True)
    machine.settings["TASKSERVICE_TASK_ID"] = task["id"]
    return task


def questions(person: RemoteClient, task: Json) -> list[Json]:
    return list(person.read(f"/task/{task['id']}/question"))


def asked(person: RemoteClient, task: Json) -> Json:
    """The open question, as soon as there is one."""

    def find() -> list[Json]:
        return [asked for asked in questions(person, task) if asked["state"] == "open"]

    return until(find)[0]


def ask(person: RemoteClient, task: Json, message: str = "Deploy?", **fields: Any) -> Json:
    return dict(person.write("POST", f"/task/{task['id']}/question", message=message, **fields))


def end(person: RemoteClient, task: Json, question: Json, **content: Any) -> None:
    """Answer a question, or decline it without content."""
    body = {"action": "accept", "content": content} if content else {"action": "decline"}
    person.write("POST", f"/task/{task['id']}/question/{question['id']}/answer", **body)


# --- taskservice ask ---------------------------------------------------------------------


def test_program_asks_and_gets_the_answer(machine: AgentMachine) -> None:
    script = 'echo "answer: $("$@" ask "Deploy  it?" --choice yes --choice no --choice no)"'
    command = ("sh", "-c", script, "sh", *machine.command)
    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(machine.run, "run", "--agent", "one", "--", *command)
        task = until(lambda: machine.user.read("/task"))[0]
        question = asked(machine.user, task)
        assert question["message"] == "Deploy  it?"
        assert question["schema"] == schema("answer", answer=CHOICE)
        answered = machine.run("task", "answer", task["id"][:18], "no")
        assert (answered.returncode, answered.stdout) == (0, "answered\n")
        done = running.result()
    page = f"{machine.user.url}/tasks/{task['id']}"
    notice = f"taskservice: asks: Deploy it? (answer at {page})"
    assert (done.returncode, done.stdout, done.stderr) == (0, "answer: no\n", f"{notice}\n")
    assert sorted(machine.user.the_task()["logs"]) == ["answer: no", notice]


@pytest.mark.parametrize(
    ("fields", "content", "printed"),
    [
        ({"text": {"type": "string"}}, {"text": "two\nlines ü"}, "two\nlines ü\n"),
        ({"sure": {"type": "boolean"}}, {"sure": True}, "true\n"),
        ({"share": {"type": "number"}}, {"share": 0.5}, "0.5\n"),
        ({"where": DEPLOY["properties"]["where"]}, {"where": ["us", "eu"]}, '["us", "eu"]\n'),
        ({"a": CHOICE, "b": CHOICE}, {"b": "yes"}, '{"b": "yes"}\n'),
    ],
)
def test_one_value_is_printed_bare_and_others_as_json(
    machine: AgentMachine, task: Json, tmp_path: Path, fields: Json, content: Json, printed: str
) -> None:
    (tmp_path / "schema.json").write_text(json.dumps(schema(**fields)))
    process = machine.spawn("ask", "What?", "--schema", str(tmp_path / "schema.json"))
    end(machine.user, task, asked(machine.user, task), **content)
    shown, _ = process.communicate(timeout=40)
    assert (process.returncode, shown) == (0, printed)


def test_ask_exits_by_the_outcome(machine: AgentMachine) -> None:
    def outcome(*options: str, method: str = "", end: str = "", **body: Any) -> tuple[int, str]:
        """The exit status and the notice of an `ask` that is ended by a request."""
        task = machine.user.start("one", claim=True)
        machine.settings["TASKSERVICE_TASK_ID"] = task["id"]
        process = machine.spawn("ask", "Deploy?", *options)
        if method:
            question = asked(machine.user, task)["id"]
            path = f"/task/{task['id']}{end.format(question)}"
            machine.user.write(method, path, **body)
        printed, notices = process.communicate(timeout=60)
        assert printed == ""
        _, notice = notices.splitlines()
        return process.returncode, notice.removeprefix("taskservice: ")

    declined = outcome(method="POST", end="/question/{}/answer", action="decline")
    assert declined == (1, "The question was declined")
    assert outcome("--timeout", "1s") == (3, "The question expired without an answer")
    finished = (4, "The task is finished")
    assert outcome(method="PATCH", status="complete") == finished
    assert outcome(method="POST", end="/cancel") == finished
    code, sentence = outcome(method="DELETE")
    assert (code, sentence.partition(": ")[0]) == (4, "Task's ID is not found")
    assert outcome(method="DELETE", end="/question/{}") == (4, "The question was withdrawn")


@pytest.mark.parametrize(
    ("method", "end", "body", "code", "output"),
    [
        (
            "POST",
            "/question/{}/answer",
            {"action": "accept", "content": {"answer": "yes"}},
            0,
            {"answer": "yes"},
        ),
        ("POST", "/question/{}/answer", {"action": "decline"}, 1, {"state": "declined"}),
        ("", "", {}, 3, {"state": "expired"}),
        ("POST", "/cancel", {}, 4, {}),
        ("DELETE", "/question/{}", {}, 4, {"state": "withdrawn"}),
    ],
)
def test_ask_outside_of_a_task_starts_one_that_ends_with_the_answer(
    machine: AgentMachine, method: str, end: str, body: Json, code: int, output: Json
) -> None:
    options = ["--timeout", "1h" if method else "1s", "--choice", "yes", "--choice", "no"]
    process = machine.spawn("ask", "  Deploy?\nAll tests pass.", *options)
    task = until(lambda: machine.user.read("/task"))[0]
    if method:
        path = f"/task/{task['id']}{end.format(asked(machine.user, task)['id'])}"
        machine.user.write(method, path, **body)
    printed, _ = process.communicate(timeout=60)
    assert (process.returncode, printed) == (code, "" if code else "yes\n")
    ended = machine.user.the_task()
    assert (ended["agentId"], ended["name"], ended["questions"]) == ("ask", "Deploy?", [])
    assert ended["output"] == output
    assert ended["status"] == ("error" if end == "/cancel" else "complete")


def test_question_without_an_answer_breaks_no_agent_and_notifies_nobody(
    machine: AgentMachine, client: Client, tmp_path: Path
) -> None:
    with Receiver() as receiver:
        events = ["task.failed", "agent.broken", "agent.fixed", "task.ended"]
        machine.user.write("POST", "/hook", target=receiver.url, events=events)
        assert machine.run("ask", "Deploy?", "--timeout", "1s").returncode == 3
        # A question that is too long is refused before its task starts, and is not printed.
        refused = machine.run("ask", "Deploy? " * 1_125)
        sentence = "message: has 9,000 characters; at most 4,000 are allowed"
        assert (refused.returncode, refused.stderr) == (2, f"taskservice: {sentence}\n")
        assert len(machine.user.tasks()) == 1
        # The service refuses these questions, after their tasks have started.
        with pytest.raises(Invalid, match="message"):
            client.ask("Deploy? " * 1_125)
        wrong = tmp_path / "wrong.json"
        wrong.write_text('{"type": "object", "properties": {"a": {"type": "object"}}}')
        assert machine.run("ask", "Deploy?", "--schema", str(wrong)).returncode == 2
        tasks = machine.user.tasks()
        assert [task["status"] for task in tasks] == ["complete"] * 3
        assert [task["output"]["state"] for task in tasks] == ["refused", "refused", "expired"]
        assert machine.user.read("/attention") == []
        until(lambda: len(receiver.requests) == 3)
        types = [json.loads(request.body)["type"] for request in receiver.requests]
        assert types == ["task.ended"] * 3


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_cancels_the_task_that_was_started_for_a_question(
    machine: AgentMachine, number: int, code: int
) -> None:
    process = machine.spawn("ask", "Deploy?", "--agent", "release")
    task = until(lambda: machine.user.read("/task"))[0]
    asked(machine.user, task)
    printed, _ = process.end(number)
    assert (process.returncode, printed) == (code, "")
    ended = machine.user.the_task()
    assert (ended["agentId"], ended["error"]["type"]) == ("release", "cancelled")
    assert [question["state"] for question in questions(machine.user, task)] == ["withdrawn"]


def test_killed_ask_leaves_no_question_open(machine: AgentMachine) -> None:
    process = machine.spawn("ask", "Deploy?")
    task = until(lambda: machine.user.read("/task"))[0]
    asked(machine.user, task)
    process.kill()
    process.communicate(timeout=60)
    until(lambda: questions(machine.user, task)[0]["state"] == "withdrawn")
    assert machine.user.the_task()["error"]["type"] == "cancelled"


def test_killed_ask_holds_no_file_of_its_caller(
    own_service: Service, own_machine: AgentMachine
) -> None:
    user = own_machine.user
    end_of_caller, inherited = os.pipe()
    with open(end_of_caller, "rb") as pipe:
        process = own_machine.spawn("ask", "Deploy?", pass_fds=[inherited])
        os.close(inherited)
        task = until(lambda: user.read("/task"))[0]
        asked(user, task)
        # The process that cancels the task remains until the service is reachable again.
        kill(own_service)
        process.kill()
        process.communicate(timeout=60)
        assert select.select([pipe], [], [], 20)[0], "another process still has the file"
    own_service.start()
    until(lambda: user.the_task()["error"])


@pytest.mark.parametrize("successes", [0, 1])
def test_ask_works_even_if_no_process_can_be_started(machine: AgentMachine, successes: int) -> None:
    machine.patch(FORKS_FAIL.format(successes))
    process = machine.spawn("ask", "Deploy?")
    task = until(lambda: machine.user.read("/task"))[0]
    end(machine.user, task, asked(machine.user, task), answer="yes")
    printed, _ = process.communicate(timeout=60)
    assert (process.returncode, printed) == (0, "yes\n")
    machine.user.delete(task)
    process = machine.spawn("ask", "Deploy?")
    asked(machine.user, until(lambda: machine.user.read("/task"))[0])
    process.end(signal.SIGINT)
    assert process.returncode == 128 + signal.SIGINT
    assert machine.user.the_task()["error"]["type"] == "cancelled"


def test_signal_is_not_lost_while_ask_forks(machine: AgentMachine) -> None:
    # Python swallows the exception of a handler that runs inside of such a function.
    machine.patch(
        "import os, signal\n"
        "os.register_at_fork(after_in_parent=lambda: os.kill(os.getpid(), signal.SIGINT))"
    )
    done = machine.run("ask", "Deploy?", "--timeout", "20s")
    assert done.returncode == 128 + signal.SIGINT
    assert machine.user.read("/task?asking=true") == []


def test_agent_key_asks_as_its_own_agent(machine: AgentMachine) -> None:
    machine.user.write("PUT", "/agent/one")
    key = machine.user.write("POST", "/key", name="machine", agentId="one")["key"]
    machine.settings["TASKSERVICE_APIKEY"] = key
    process = machine.spawn("ask", "Deploy?")
    task = until(lambda: machine.user.read("/task"))[0]
    asked(machine.user, task)
    process.end(signal.SIGTERM)
    ended = machine.user.the_task()
    assert (ended["agentId"], ended["output"]) == ("one", {"state": "interrupted"})
    assert machine.user.read("/attention") == []


def test_ask_without_a_service_exits_with_69(machine: AgentMachine) -> None:
    machine.url = f"http://127.0.0.1:{unused_port()}"
    assert machine.run("ask", "Deploy?", "--timeout", "1s").returncode == 69


def test_answer_arrives_though_the_service_was_restarted(
    own_service: Service, own_machine: AgentMachine
) -> None:
    user = own_machine.user
    process = own_machine.spawn("ask", "Deploy?")
    task = until(lambda: user.read("/task"))[0]
    question = asked(user, task)
    kill(own_service)
    process.read_error()
    assert "cannot reach" in process.read_error()
    own_service.start()
    end(user, task, question, answer="yes")
    printed, _ = process.communicate(timeout=60)
    assert (process.returncode, printed) == (0, "yes\n")
    assert until(lambda: user.the_task()["status"] != "running")
    assert user.the_task()["output"] == {"answer": "yes"}


def test_task_that_has_ended_asks_nothing(machine: AgentMachine, task: Json) -> None:
    machine.user.cancel(task)
    assert machine.run("ask", "Deploy?").returncode == 4
    machine.user.delete(task)
    assert machine.run("ask", "Deploy?").returncode == 4


def test_question_that_cannot_be_asked_is_refused(
    machine: AgentMachine, task: Json, tmp_path: Path
) -> None:
    wrong, right = tmp_path / "wrong.json", tmp_path / "right.json"
    wrong.write_text('{"type": "object", "properties": {"a": {"type": "object"}}}')
    right.write_text(json.dumps(DEPLOY))
    for arguments, sentence in (
        (["x", "--choice", "yes", "--schema", str(right)], "--choice can't be used with --schema"),
        (["x", "--schema", str(wrong)], "schema: a: the type must be one of"),
        (["x", "--schema", str(tmp_path / "none.json")], "none.json can't be read"),
        ([""], "message: "),
        (["x", "--timeout", "soon"], "'soon' must be a duration such as"),
    ):
        refused = machine.run("ask", *arguments)
        assert (refused.returncode, refused.stdout) == (2, "")
        assert sentence in refused.stderr
    assert questions(machine.user, task) == []
    for _ in range(8):
        ask(machine.user, task)
    assert machine.run("ask", "x").returncode == 69


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_withdraws_the_question(
    machine: AgentMachine, task: Json, number: int, code: int
) -> None:
    process = machine.spawn("ask", "Deploy?")
    asked(machine.user, task)
    printed, notices = process.end(number)
    assert (process.returncode, printed, len(notices.splitlines())) == (code, "", 1)
    assert [asked["state"] for asked in questions(machine.user, task)] == ["withdrawn"]


def test_signal_before_the_service_has_answered_withdraws_the_question(
    machine: AgentMachine, task: Json
) -> None:
    passed_on = losing(machine.user, lambda number: number == 1)
    with Receiver() as between:
        between.answer = in_turn(passed_on, play.silence)
        machine.url = between.url
        process = machine.spawn("ask", "Deploy?")
        between.wait_for(2, 40)
        between.answer = passed_on
        process.end()
    assert process.returncode == 143
    assert [asked["state"] for asked in questions(machine.user, task)] == ["withdrawn"]


def test_ask_is_one_question_though_answers_are_lost(machine: AgentMachine, task: Json) -> None:
    relay = losing(machine.user, lambda number: number in (1, 2, 4, 5))
    busy = play.answer(503, {"Retry-After": "0"})
    with Receiver() as between:
        between.answer = in_turn(play.answer(502), relay, busy, relay, relay, relay)
        machine.url = between.url
        process = machine.spawn("ask", "Deploy?")
        end(machine.user, task, asked(machine.user, task), answer="yes")
        printed, notices = process.communicate(timeout=60)
    assert (process.returncode, printed) == (0, "yes\n")
    assert "status 502; retrying" in notices
    assert len(questions(machine.user, task)) == 1


def test_ask_waits_through_restarts_of_the_service(
    own_service: Service, own_machine: AgentMachine
) -> None:
    user = own_machine.user
    task = user.start("one", claim=True)
    own_machine.settings["TASKSERVICE_TASK_ID"] = task["id"]
    process = own_machine.spawn("ask", "Deploy?")
    asked(user, task)
    kill(own_service)
    process.read_error()
    assert "cannot reach" in process.read_error()
    own_service.start()
    question = asked(user, task)
    own_service.stop()
    own_service.start()
    end(user, task, question, answer="yes")
    printed, _ = process.communicate(timeout=60)
    assert (process.returncode, printed) == (0, "yes\n")
    assert len(questions(user, task)) == 1


# --- taskservice task answer -------------------------------------------------------------


def test_values_are_converted_by_the_schema(machine: AgentMachine, task: Json) -> None:
    ask(machine.user, task, schema=DEPLOY)
    answered = machine.run(
        "task", "answer", task["id"], "deploy=Yes", "where=us", "where=eu", "size=s",
        "count=12345678901234567890", "share=-0.5", "when=2026-11-26", "--json",
    )  # fmt: skip
    assert answered.stderr == ""
    (question,) = questions(machine.user, task)
    assert question["answer"] == {
        "deploy": True, "where": ["us", "eu"], "size": "s",
        "count": 12345678901234567890, "share": -0.5, "when": "2026-11-26",
    }  # fmt: skip
    assert objects(answered.stdout) == [question]


@pytest.mark.parametrize(
    ("field", "values", "answer"),
    [
        ({"type": "string"}, ["some words"], "some words"),
        ({"type": "string"}, ["only=a=b"], "a=b"),
        ({"type": "string"}, ["only="], ""),
        ({"type": "string"}, ["true"], "true"),
        ({"type": "integer"}, ["--", "-5"], -5),
        ({"type": "boolean"}, ["false"], False),
        (DEPLOY["properties"]["where"], ["eu", "only=us"], ["eu", "us"]),
    ],
)
def test_value_of_a_single_field_needs_no_key(
    machine: AgentMachine, task: Json, field: Json, values: list[str], answer: Any
) -> None:
    ask(machine.user, task, schema=schema(only=field))
    assert machine.run("task", "answer", task["id"], *values).returncode == 0
    assert questions(machine.user, task)[0]["answer"] == {"only": answer}


def test_answer_that_does_not_fit_says_why(
    machine: AgentMachine, task: Json, subtests: CheapSubtests
) -> None:
    question = ask(machine.user, task, schema=DEPLOY)
    for values, code, sentence in (
        (["yes"], 2, "yes: must be KEY=VALUE; keys: deploy, where, size"),
        (["Deploy=yes"], 2, "Deploy=yes: must be KEY=VALUE"),
        (["deploy=maybe"], 2, "deploy: must be true or false"),
        (["size=s", "size=s"], 2, "size: was given more than once"),
        (["share=half"], 2, "share: must be a number"),
        (["share=nan"], 2, "share: must be a number"),
        (["share=0.12345678901234567890"], 2, "can't be stored exactly"),
        (["deploy=true"], 1, "where"),
        (["deploy=true", "where=asia"], 1, "where.0: "),
        (["deploy=true", "--decline"], 2, "Give values, --accept or --decline"),
        (["--accept", "--decline"], 2, "Give values, --accept or --decline"),
    ):
        with subtests.test(str(values)):
            assert sentence in machine.fail("task", "answer", task["id"], *values, code=code)
    assert questions(machine.user, task) == [question]


def test_question_is_declined_or_accepted_without_values(machine: AgentMachine, task: Json) -> None:
    ask(machine.user, task)
    declined = machine.run("task", "answer", task["id"], "--decline")
    assert (declined.returncode, declined.stdout) == (0, "declined\n")
    ask(machine.user, task, "Delete all?", schema=schema())
    shown = machine.run("task", "answer", task["id"])
    assert "--accept" in shown.stdout
    accepted = machine.run("task", "answer", task["id"], "--accept")
    assert (accepted.returncode, accepted.stdout) == (0, "answered\n")
    states = [(asked["state"], asked["answer"]) for asked in questions(machine.user, task)]
    assert states == [("declined", None), ("answered", {})]


def test_answer_without_values_shows_the_question(machine: AgentMachine, task: Json) -> None:
    begin = f"taskservice task answer {task['id'][:18]}"
    question = ask(machine.user, task, "Deploy?\nNow \x1b[2J?", schema=DEPLOY)
    shown = machine.run("task", "answer", task["id"])
    assert (shown.returncode, shown.stderr) == (2, "")
    assert shown.stdout.splitlines() == [
        "Deploy?",
        r"Now \u001b[2J?",
        "  deploy      true or false: Deploy?",
        "  where       any of eu, us",
        "  size        s (Small), optional",
        "  count       whole number, optional",
        "  share       number: Of all., optional",
        "  when        date, optional",
        f"to answer:   {begin} deploy=<true or false> where=<choice>",
        f"to decline:  {begin} --decline",
    ]
    assert questions(machine.user, task) == [question]


def test_one_of_several_questions_is_chosen_by_its_id(machine: AgentMachine, task: Json) -> None:
    first, second = ask(machine.user, task, "One?"), ask(machine.user, task, "Two?")
    several = machine.run("task", "answer", task["id"], "yes")
    assert (several.returncode, several.stdout) == (2, "")
    assert several.stderr.splitlines() == [
        f"{first['id']}  asks: One?",
        f"{second['id']}  asks: Two?",
        "taskservice: Several questions match; choose one with --question ID",
    ]
    shown = machine.run("task", "answer", task["id"], "--question", second["id"].upper())
    assert f"--question {second['id']} <text>" in shown.stdout
    chosen = machine.run("task", "answer", task["id"], "--question", second["id"], "yes")
    assert chosen.returncode == 0
    assert [asked["state"] for asked in questions(machine.user, task)] == ["open", "answered"]
    again = machine.run("task", "answer", task["id"], "--question", second["id"], "no")
    was_yes = 'The question is answered by key first: {"answer": "yes"}'
    assert (again.returncode, again.stderr) == (1, f"taskservice: {was_yes}\n")
    unknown = machine.run("task", "answer", task["id"], "--question", "fff", "no")
    assert (unknown.returncode, unknown.stderr) == (
        1, "taskservice: No question matches fff\n",
    )  # fmt: skip


def test_task_that_asks_nothing_cannot_be_answered(machine: AgentMachine, task: Json) -> None:
    for task_id, sentence in (
        (task["id"], "The task has no questions"),
        ("ffff", "No task matches ffff"),
        ("nonsense", "Task's ID is not found: task nonsense"),
    ):
        refused = machine.run("task", "answer", task_id, "yes")
        assert (refused.returncode, refused.stderr) == (1, f"taskservice: {sentence}\n")


def test_answer_says_what_became_of_a_question(machine: AgentMachine, task: Json) -> None:
    ask(machine.user, task)
    for _ in range(2):
        answered = machine.run("task", "answer", task["id"], "yes")
        assert (answered.returncode, answered.stdout, answered.stderr) == (0, "answered\n", "")
    was_yes = 'taskservice: The question is answered by key first: {"answer": "yes"}\n'
    for values in (["no"], ["--decline"], []):
        refused = machine.run("task", "answer", task["id"], *values)
        assert (refused.returncode, refused.stderr) == (1, was_yes)


def test_shown_commands_are_safe_to_paste_into_a_shell(machine: AgentMachine, task: Json) -> None:
    """A command gives the choice that stands in it, or is a syntax error."""

    def commands() -> list[str]:
        shown = machine.run("task", "answer", task["id"]).stdout.splitlines()
        return [line.split(None, 2)[2] for line in shown if line.startswith("to answer:")]

    choices = ["yes", "no; touch x", "--decline", "answer=no"]
    ask(machine.user, task, schema=schema("answer", answer={"type": "string", "enum": choices}))
    values = [shlex.split(command)[4:] for command in commands()]
    assert values == [["yes"], ["no; touch x"], ["answer=--decline"], ["answer=answer=no"]]
    assert machine.run("task", "answer", task["id"], *values[2]).returncode == 0
    assert questions(machine.user, task)[0]["answer"] == {"answer": "--decline"}
    ask(machine.user, task, schema=DEPLOY)
    (command,) = commands()
    assert subprocess.run(["bash", "-n", "-c", command], capture_output=True).returncode != 0


# --- show, list, follow ------------------------------------------------------------------


def test_show_and_list_have_open_questions(machine: AgentMachine, task: Json) -> None:
    ask(machine.user, task, "Deploy\nit?", schema=schema("answer", answer=CHOICE))
    shown = machine.run("task", "show", task["id"]).stdout.splitlines()
    command = f"answer: taskservice task answer {task['id'][:18]}"
    assert shown[-3:] == ["asks: Deploy it?", f"{command} yes", f"{command} no"]
    (listed,) = objects(machine.run("task", "list", "--json").stdout)
    assert listed["questions"] == questions(machine.user, task)
    assert "asks: Deploy it?" in machine.run("task", "list").stdout
    machine.run("task", "answer", task["id"], "yes")
    assert "asks:" not in machine.run("task", "list").stdout
    assert "asks:" not in machine.run("task", "show", task["id"]).stdout


def test_follow_prints_each_question_once(machine: AgentMachine, task: Json) -> None:
    process = machine.spawn("task", "follow", task["id"])
    begin = f"answer: taskservice task answer {task['id'][:18]}"
    first = ask(machine.user, task)
    assert [process.read_error() for _ in range(2)] == ["asks: Deploy?\n", f"{begin} <text>\n"]
    second = ask(machine.user, task, "And now?")
    assert [process.read_error() for _ in range(2)] == [
        "asks: And now?\n", f"{begin} --question {second['id']} <text>\n",
    ]  # fmt: skip
    end(machine.user, task, first, answer="yes")
    machine.user.append(task, "one")
    machine.user.report(task, status="complete")
    printed, notices = process.communicate(timeout=40)
    assert (process.returncode, printed, notices) == (0, "one\n", "complete\n")


# --- the client --------------------------------------------------------------------------


def test_client_asks_for_a_text_a_choice_or_an_object(remote_alice: RemoteClient) -> None:
    task = remote_alice.client().start("one")
    with ThreadPoolExecutor(1) as threads:
        text = threads.submit(task.ask, "Which \udcff?")
        question = asked(remote_alice, task.data)
        assert question["message"] == "Which ??"
        end(remote_alice, task.data, question, answer="this")
        assert text.result(40) == "this"
        choice = threads.submit(task.ask, "Sure?", choices=["yes", "no"], timeout=0)
        question = asked(remote_alice, task.data)
        assert (question["schema"], question["expiresAt"]) == (
            schema("answer", answer=CHOICE),
            None,
        )
        end(remote_alice, task.data, question, answer="no")
        assert choice.result(40) == "no"
        mapping = threads.submit(task.ask, "What?", DEPLOY)
        question = asked(remote_alice, task.data)
        assert task.refresh().questions == [question]
        with pytest.raises(Invalid, match="where"):
            task.answer(question["id"], {"deploy": True})
        content = {"deploy": True, "where": ["eu"]}
        assert task.answer(question["id"], content)["answer"] == content
        assert mapping.result(40) == content
    with pytest.raises(Conflict):
        task.decline(question["id"])
    with pytest.raises(ValueError, match="either a schema or choices"):
        task.ask("What?", DEPLOY, choices=["yes"])  # type: ignore[call-overload]


def test_client_asks_in_a_task_of_its_own(remote_alice: RemoteClient) -> None:
    client = remote_alice.client()
    with ThreadPoolExecutor(1) as threads:
        answer = threads.submit(client.ask, "Sure?", choices=["yes", "no"], agent_id="cleaner")
        task = until(lambda: remote_alice.read("/task"))[0]
        end(remote_alice, task, asked(remote_alice, task), answer="yes")
        assert answer.result(40) == "yes"
        ended = remote_alice.the_task()
        assert (ended["agentId"], ended["output"]) == ("cleaner", {"answer": "yes"})
        declined = threads.submit(client.ask, "What?", DEPLOY)
        task = until(lambda: remote_alice.read("/task?status=running"))[0]
        end(remote_alice, task, asked(remote_alice, task))
        with pytest.raises(QuestionDeclined):
            declined.result(40)


def test_client_tells_why_there_is_no_answer(remote_alice: RemoteClient, client: Client) -> None:
    def error(end: Callable[[Task, str], object]) -> object:
        """The class of what an `ask` raises whose question is ended so."""
        task = client.start("one")
        with ThreadPoolExecutor(1) as threads:
            asking = threads.submit(task.ask, "Which?", timeout=60)
            question = asked(remote_alice, task.data)
            end(task, question["id"])
            return type(asking.exception(40))

    assert error(lambda task, question_id: task.decline(question_id)) is QuestionDeclined
    assert error(
        lambda task, asked: remote_alice.request("DELETE", f"/task/{task.id}/question/{asked}")
    ) is QuestionWithdrawn  # fmt: skip
    assert error(lambda task, question_id: task.cancel()) is TaskCancelled
    assert error(lambda task, question_id: task.delete()) is NotFound
    assert error(lambda task, question_id: client.task(task.id).complete()) is TaskFinished
    with pytest.raises(QuestionExpired) as expired:
        client.start("one").ask("Which?", timeout=1)
    again = pickle.loads(pickle.dumps(expired.value))
    assert (str(again), again.question) == (str(expired.value), expired.value.question)
    assert again.question["state"] == "expired"


def test_interrupted_program_withdraws_its_question(machine: AgentMachine) -> None:
    program = (
        "from taskservice.client import Client\n"
        "with Client().start('one') as task:\n"
        "    task.ask('Which?')\n"
    )
    process = machine.python(program)
    task = until(lambda: machine.user.read("/task"))[0]
    asked(machine.user, task)
    process.end(signal.SIGINT)
    assert [asked["state"] for asked in questions(machine.user, task)] == ["withdrawn"]
    assert machine.user.the_task()["error"]["message"] == "KeyboardInterrupt"
