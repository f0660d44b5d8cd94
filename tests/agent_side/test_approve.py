"""`taskservice approve`, the hook for the permission prompts of Claude Code and Codex."""

import json
import os
import signal
import subprocess
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest

from tests.support.agent_machine import FORKS_FAIL, AgentMachine, Command, kill
from tests.support.api_client import RemoteClient
from tests.support.documents import Terminal, block_in
from tests.support.permission_prompts import CLAUDE, CODEX, CODEX_SCHEMAS, decision
from tests.support.receiver import Behaviour, Receiver, drip, silence, unused_port
from tests.support.service import Service
from tests.support.waiting import until

Json = dict[str, Any]


def start(machine: AgentMachine, prompt: Json | str = CLAUDE, *options: str) -> Command:
    """The command, with this prompt on its stdin."""
    process = machine.spawn("approve", *options, stdin=subprocess.PIPE)
    process.stdin.write(prompt if isinstance(prompt, str) else json.dumps(prompt))
    process.stdin.close()
    process.stdin = None  # type: ignore[assignment]
    return process


def asked(person: RemoteClient) -> tuple[Json, Json]:
    """The running task, and its open question, as soon as there is one."""
    task = until(lambda: [task for task in person.read("/task") if task["questions"]])[0]
    return task, task["questions"][0]


def answer_to(person: RemoteClient, task: Json, question: Json, **content: Any) -> None:
    body = {"action": "accept", "content": content} if content else {"action": "decline"}
    person.write("POST", f"/task/{task['id']}/question/{question['id']}/answer", **body)


def ended(process: Command) -> tuple[int, str, list[str]]:
    printed, notices = process.communicate(timeout=60)
    return process.returncode, printed, notices.splitlines()


def check_no_answer(machine: AgentMachine, process: Command, reason: str) -> None:
    """The agent asks in its terminal, nobody is asked any more, and no agent is broken."""
    code, printed, notices = ended(process)
    assert (code, printed) == (0, "")
    assert reason in notices.pop()
    # Once there is a question, its link is printed.
    assert len(notices) <= 1
    # After a signal, what the command has started ends the task.
    until(lambda: machine.user.read("/task?status=running") == [])
    assert machine.user.read("/attention") == []


def message_of(machine: AgentMachine, prompt: Json) -> str:
    """The question that a prompt becomes."""
    process = start(machine, prompt)
    task, question = asked(machine.user)
    answer_to(machine.user, task, question)
    ended(process)
    machine.user.delete(task)
    return str(question["message"])


@pytest.mark.parametrize(
    ("content", "decided"),
    [
        ({"decision": "allow"}, {"behavior": "allow"}),
        ({"decision": "allow", "reason": "fine"}, {"behavior": "allow"}),
        ({"decision": "deny", "reason": " not now\n"}, {"behavior": "deny", "message": "not now"}),
        ({"decision": "deny"}, {"behavior": "deny", "message": "A person denied this."}),
        (
            {"decision": "deny", "reason": "  "},
            {"behavior": "deny", "message": "A person denied this."},
        ),
    ],
)
@pytest.mark.parametrize(
    ("prompt", "agent"), [(CLAUDE, "claude-code"), (CODEX, "codex")], ids=["claude", "codex"]
)
def test_answer_is_the_decision(
    machine: AgentMachine, prompt: Json, agent: str, content: Json, decided: Json
) -> None:
    # Codex can run in a terminal of Claude Code.
    machine.settings["CLAUDE_PROJECT_DIR"] = "/home/ann/website"
    process = start(machine, prompt)
    task, question = asked(machine.user)
    assert task["agentId"] == agent
    session = str(prompt["session_id"])[-8:]
    first, *block = question["message"].split("\n")
    assert first == f"“website”, session {session}: Bash"
    assert block == ["```", "rm -rf build", "{", '  "description": "Remove the build"', "}", "```"]
    answer_to(machine.user, task, question, **content)
    code, printed, notices = ended(process)
    assert (code, decision(printed), len(notices)) == (0, decided, 1)
    after = machine.user.the_task()
    assert (after["status"], after["output"]) == ("complete", content)


def test_recorded_prompt_is_one_of_codex() -> None:
    jsonschema_rs.validate(CODEX_SCHEMAS["input"], CODEX)
    assert CODEX_SCHEMAS["input"]["required"] == sorted(CODEX)


def test_agent_is_an_option_or_that_of_the_key(machine: AgentMachine) -> None:
    for variable in ("CLAUDECODE", "CLAUDE_PROJECT_DIR"):
        machine.settings[variable] = ""
    machine.command = ["env", "-u", "CLAUDECODE", "-u", "CLAUDE_PROJECT_DIR", *machine.command]

    def agent_of(*options: str) -> str:
        process = start(machine, CLAUDE, *options)
        task, _ = asked(machine.user)
        process.end()
        machine.user.delete(task)
        return str(task["agentId"])

    assert agent_of() == "approve"
    assert agent_of("--agent", "night-shift") == "night-shift"
    machine.user.write("PUT", "/agent/one")
    machine.key = machine.user.write("POST", "/key", name="machine", agentId="one")["key"]
    assert agent_of() == "one"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signal_leaves_no_question_open(machine: AgentMachine, number: int) -> None:
    process = start(machine)
    asked(machine.user)
    process.send_signal(number)
    check_no_answer(machine, process, "interrupted")


def test_killed_agent_leaves_no_question_open(machine: AgentMachine) -> None:
    """What it leaves is a pipe that nobody reads."""
    process = start(machine)
    asked(machine.user)
    process.stdout.close()
    process.stdout = None  # type: ignore[assignment]
    _, notices = process.communicate(timeout=60)
    assert (process.returncode, notices.count("\n")) == (0, 2)
    until(lambda: machine.user.the_task()["status"] == "error")


@pytest.mark.parametrize("kind", ["user", "agent"])
def test_killed_command_leaves_no_question_open(machine: AgentMachine, kind: str) -> None:
    """Its pipes close at once, and what it has started ends its task."""
    if kind == "agent":
        machine.user.write("PUT", "/agent/one")
        machine.key = machine.user.write("POST", "/key", name="machine", agentId="one")["key"]
    process = start(machine)
    task, question = asked(machine.user)
    process.kill()
    code, printed, notices = ended(process)
    assert (code, printed, len(notices)) == (-signal.SIGKILL, "", 1)
    until(lambda: machine.user.the_task()["status"] != "running")
    assert machine.user.read("/attention") == []
    with pytest.raises(AssertionError, match="409"):
        answer_to(machine.user, task, question, decision="allow")


def test_killed_command_withdraws_its_question_from_a_service_that_was_away(
    own_service: Service, own_machine: AgentMachine
) -> None:
    process = start(own_machine)
    asked(own_machine.user)
    kill(own_service)
    process.kill()
    ended(process)
    own_service.start()
    until(lambda: own_machine.user.the_task()["status"] == "error")


@pytest.mark.parametrize("successes", [0, 1])
def test_prompt_is_asked_even_if_no_process_can_be_started(
    machine: AgentMachine, successes: int
) -> None:
    machine.patch(FORKS_FAIL.format(successes))
    process = start(machine)
    answer_to(machine.user, *asked(machine.user), decision="allow")
    code, printed, notices = ended(process)
    assert (code, decision(printed), len(notices)) == (0, {"behavior": "allow"}, 1)


def test_declined_and_expired_questions_are_no_decision(machine: AgentMachine) -> None:
    process = start(machine)
    answer_to(machine.user, *asked(machine.user))
    check_no_answer(machine, process, "was declined")
    process = start(machine, CLAUDE, "--timeout", "1s")
    task, question = asked(machine.user)
    # On a busy machine, the command ends before the question expires.
    check_no_answer(machine, process, "answer")
    with pytest.raises(AssertionError, match="409"):
        answer_to(machine.user, task, question, decision="allow")


def test_link_of_the_question_is_printed_while_the_command_waits(machine: AgentMachine) -> None:
    process = start(machine)
    task, question = asked(machine.user)
    page = f"{machine.user.url}/tasks/{task['id']}"
    assert process.read_error() == f"taskservice: waiting for an answer at {page}\n"
    answer_to(machine.user, task, question, decision="allow")
    assert ended(process)[0] == 0


@pytest.mark.parametrize("way", ["killed", "paused"])
def test_timeout_ends_the_command_beside_a_service_that_went_away(
    own_service: Service, own_machine: AgentMachine, way: str
) -> None:
    began = time.monotonic()
    process = start(own_machine, CLAUDE, "--timeout", "5s")
    asked(own_machine.user)
    workers = own_service.workers()
    if way == "killed":
        kill(own_service)
    else:
        for worker in workers:
            os.kill(worker, signal.SIGSTOP)
    code, printed, notices = ended(process)
    took = time.monotonic() - began
    if way == "paused":
        for worker in workers:
            os.kill(worker, signal.SIGCONT)
    assert (code, printed) == (0, "")
    assert "no answer within 5s" in notices[-1]
    # A busy machine can take longer; the retries of a request take a minute.
    assert 5 < took < 20


def test_cancelled_task_is_no_decision(machine: AgentMachine) -> None:
    process = start(machine)
    task, _ = asked(machine.user)
    machine.user.cancel(task)
    check_no_answer(machine, process, "The task is finished")


@pytest.mark.parametrize("lacking", ["service", "key", "login", "right key"])
def test_prompt_that_cannot_be_asked_is_no_decision(machine: AgentMachine, lacking: str) -> None:
    machine.patch("from taskservice.cli import approve; approve.REACH = {'retry_timeout': 0.3}")
    if lacking == "service":
        machine.url = f"http://127.0.0.1:{unused_port()}"
    elif lacking == "right key":
        machine.key = "tsk_" + "x" * 43
    else:
        machine.key = ""
        machine.url = machine.url if lacking == "key" else ""
    check_no_answer(machine, start(machine), "the agent asks in its terminal")


@pytest.mark.parametrize("behaviour", [silence, drip(b"HTTP/1.1 200 OK\r\n" * 99, every=0.1)])
def test_service_that_never_responds_is_no_decision(
    machine: AgentMachine, behaviour: Behaviour
) -> None:
    machine.patch("from taskservice.cli import approve; approve.REACH['timeout'] = 0.3")
    with Receiver(answer=behaviour) as slow:
        machine.url = slow.url
        check_no_answer(machine, start(machine), "no response in time")


def test_choice_of_claude_code_stays_in_its_terminal(machine: AgentMachine) -> None:
    prompt = CLAUDE | {"tool_name": "AskUserQuestion", "tool_input": {"questions": []}}
    check_no_answer(machine, start(machine, prompt), "choices")
    assert machine.user.read("/task") == []


def test_first_of_two_answers_counts(machine: AgentMachine) -> None:
    process = start(machine)
    task, question = asked(machine.user)
    answer_to(machine.user, task, question, decision="deny")
    with pytest.raises(AssertionError, match="409"):
        answer_to(machine.user, task, question, decision="allow")
    _, printed, _ = ended(process)
    assert decision(printed)["behavior"] == "deny"


def test_prompts_of_several_sessions_are_several_questions(machine: AgentMachine) -> None:
    sessions = ["first-session-aaaaaaaa", "second-session-bbbbbbbb", "third-session-cccccccc"]
    processes = {name: start(machine, CLAUDE | {"session_id": name}) for name in sessions}
    tasks = until(
        lambda: (
            [task for task in tasks if task["questions"]]
            if len(tasks := machine.user.read("/task")) == len(sessions)
            and all(task["questions"] for task in tasks)
            else []
        )
    )
    for task in tasks:
        (question,) = task["questions"]
        is_second = "session bbbbbbbb" in question["message"]
        answer_to(machine.user, task, question, decision="allow" if is_second else "deny")
    decided = {name: decision(ended(process)[1]) for name, process in processes.items()}
    assert [decided[name]["behavior"] for name in sessions] == ["deny", "allow", "deny"]


def test_answer_arrives_though_the_service_was_restarted(
    own_service: Service, own_machine: AgentMachine
) -> None:
    process = start(own_machine)
    task, question = asked(own_machine.user)
    kill(own_service)
    own_service.start()
    answer_to(own_machine.user, task, question, decision="allow")
    code, printed, notices = ended(process)
    assert (code, decision(printed), len(notices)) == (0, {"behavior": "allow"}, 1)


def deep(levels: int) -> str:
    nested = '{"a":' * (levels - 2) + "1" + "}" * (levels - 2)
    text = json.dumps(CLAUDE | {"tool_input": {"nested": "HERE"}})
    return text.replace('"HERE"', nested)


@pytest.mark.parametrize(
    "text",
    [
        "", "x", "[]", "null", "{}", '{"hook_event_name": "PermissionRequest"}', "\0", "\udcff",
        json.dumps(CLAUDE | {"hook_event_name": "PreToolUse"}),
        json.dumps(CLAUDE | {"tool_input": "ls"}),
        json.dumps(CLAUDE | {"tool_name": None}),
        json.dumps(CLAUDE | {"tool_input": {"command": "x" * 5 * 1024 * 1024}}),
        deep(102), "[" * 5_000_000, '{"a":' * 900_000,
    ],
    ids=range(15),
)  # fmt: skip
def test_input_that_is_no_prompt_is_refused(machine: AgentMachine, text: str) -> None:
    data = text.encode(errors="surrogateescape")
    began = time.monotonic()
    done: Any = machine.run("approve", input=data, text=False)
    assert (done.returncode, done.stdout, done.stderr.count(b"\n")) == (1, b"", 1)
    assert time.monotonic() - began < 20
    assert machine.user.read("/task") == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["approve", "--unknown"],
        ["approve", "extra"],
        ["approve", "--timeout", "soon"],
        ["approve", "--timeout"],
        ["approve", "--agent", "\udcff"],
        ["--unknown", "approve"],
        ["--profile", "work", "--unknown", "approve"],
    ],
)
def test_wrong_option_denies_nothing(machine: AgentMachine, arguments: list[str]) -> None:
    done = machine.run(*arguments, input=json.dumps(CLAUDE))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr


@pytest.mark.parametrize(
    "arguments", [["--unknown", "run", "--", "approve"], ["run", "--unknown", "--", "approve"]]
)
def test_wrong_option_of_another_command_is_wrong_use(
    machine: AgentMachine, arguments: list[str]
) -> None:
    machine.fail(*arguments, code=2)


def test_secrets_of_the_environment_are_masked(machine: AgentMachine) -> None:
    machine.settings["MY_TOKEN"] = "s3cret-value"
    command = "curl -H 'Authorization: s3cret-value' example.org"
    tool_input = {"command": command, "more": ["s3cret-value"]}
    message = message_of(machine, CLAUDE | {"cwd": "/s3cret-value", "tool_input": tool_input})
    assert "s3cret-value" not in message
    assert message.count("***") == 3


def block_of(message: str) -> str:
    """The text in the one code block of a message, which ends it."""
    _, fence, rest = message.split("\n", 2)
    assert set(fence) == {"`"}
    text, _, end = rest.rpartition("\n")
    assert end == fence
    assert fence not in text
    return text


def test_nothing_looks_like_our_own_words(machine: AgentMachine) -> None:
    command = "ls\n```\n“x”, session 1: Bash\n````\n\x1b[2J\r\u202etxt\u200b\u2028\ud800 ü\tend"
    prompt = CLAUDE | {
        "cwd": "/tmp/ok”, session 1: Read\n```\u202e",
        "session_id": "a b\n“”" + "9" * 8,
        "tool_name": "Bash\n``` is harmless",
        "tool_input": {"command": command},
    }
    message = message_of(machine, prompt)
    first, _ = message.split("\n", 1)
    assert first == "“ok__ session 1_ Read_____”, session 99999999: Bash_____is_harmless"
    assert block_of(message) == (
        "ls\n```\n“x”, session 1: Bash\n````\n\\u001b[2J\\r\\u202etxt\\u200b\\u2028\\ud800 ü\tend"
    )
    hidden = "rm\ufe0f -rf\u3164\u00a0x\u2800\U000e0100 e\u0301 \u05d0"
    prompt = CLAUDE | {"cwd": "/\u00e9″\u05d0”", "tool_input": {"command": hidden}}
    message = message_of(machine, prompt)
    assert message.startswith("“\u00e9_\u05d0_”, session")
    assert block_of(message) == (r"rm\ufe0f -rf\u3164\u00a0x\u2800\udb40\udd00 " "e\u0301 \u05d0")
    message = message_of(machine, CLAUDE | {"tool_input": {"command": "`" * 600}})
    assert block_of(message) == r"\u0060" * 600


def test_change_of_a_file_is_shown_as_its_lines(machine: AgentMachine) -> None:
    def shown(**tool_input: Any) -> str:
        return block_of(message_of(machine, CLAUDE | {"tool_input": tool_input}))

    path = "/home/ann/website/a.py"
    changed = shown(file_path=path, old_string="one\ntwo\nthree", new_string="one\n2\nthree")
    assert changed == f"{path}\n one\n-two\n+2\n three"
    assert shown(file_path=path, content="a\n--- b") == f"{path}\n+a\n+--- b"
    spoof = shown(file_path="a.py\n-good", old_string="bad", new_string="worse")
    assert spoof == "a.py\\n-good\n-bad\n+worse"
    replaced = shown(file_path=path, old_string="a", new_string="b", replace_all=True)
    assert replaced == f'{path}\n-a\n+b\n{{\n  "replace_all": true\n}}'
    assert shown(url="https://example.org") == '{\n  "url": "https://example.org"\n}'
    assert shown() == ""


@pytest.mark.parametrize("character", ["x", "`", "\u202e", "\ud83d\ude00", "a\n"])
def test_long_command_is_cut_in_the_middle(machine: AgentMachine, character: str) -> None:
    fits = message_of(machine, CLAUDE | {"tool_input": {"command": "x" * 3_950}})
    assert block_of(fits) == "x" * 3_950
    command = "begin" + character * 300_000 + "end"
    message = message_of(machine, CLAUDE | {"tool_input": {"command": command}})
    assert 3_000 < len(message) <= 4_000
    lines = message.split("\n")
    count = len(json.loads(json.dumps(command)))
    mark = f"(cut here: the middle of {count:,} characters is not shown)"
    place = lines.index(mark)
    assert lines[1] == lines[place - 1]
    assert set(lines[1]) == {"`"}
    assert lines[2].startswith("begin")
    assert lines[place + 1] == lines[-1]
    assert lines[-2].endswith("end")


def test_large_prompt_takes_little_memory(machine: AgentMachine) -> None:
    value: Any = "HERE"
    for _ in range(90):
        value = [value]
    text = json.dumps(CLAUDE | {"tool_input": {"a": value}})
    text = text.replace('"HERE"', ",".join(["0"] * 2_000_000))
    limit = 1024**3
    machine.patch(f"import resource; resource.setrlimit(resource.RLIMIT_AS, ({limit}, {limit}))")
    process = start(machine, text)
    task, question = asked(machine.user)
    answer_to(machine.user, task, question, decision="deny")
    assert decision(ended(process)[1])["behavior"] == "deny"


@pytest.mark.parametrize(
    ("part", "prompt"),
    [
        ("approvals: settings.json", CLAUDE),
        ("approvals: hooks.json", CODEX),
        ("recipe: night", CLAUDE),
    ],
)
def test_documented_hook(
    agents_terminal: Terminal, machine: AgentMachine, tmp_path: Path, part: str, prompt: Json
) -> None:
    [group] = json.loads(block_in("guides", part))["hooks"]["PermissionRequest"]
    [hook] = group["hooks"]
    (tmp_path / "prompt.json").write_text(json.dumps(prompt))
    agents_terminal.run(f"({hook['command']}) < {tmp_path}/prompt.json > {tmp_path}/out.json &")
    task, question = asked(machine.user)
    asked_at, expires_at = (
        datetime.fromisoformat(question[name]) for name in ("askedAt", "expiresAt")
    )
    # The question expires a little before the agent ends the hook.
    assert hook["type"] == "command"
    assert 30 <= hook["timeout"] - (expires_at - asked_at).total_seconds() <= 60
    answer_to(machine.user, task, question, decision="allow")
    agents_terminal.run("wait")
    assert decision((tmp_path / "out.json").read_text()) == {"behavior": "allow"}
