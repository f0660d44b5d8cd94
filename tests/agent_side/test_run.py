"""`taskservice run`: any program becomes a task."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import receiver as play
from tests.support import service_answers as played
from tests.support.agent_machine import AgentMachine, end_for_silence, has_ended, kill
from tests.support.cheap_subtests import CheapSubtests
from tests.support.receiver import Receiver, unused_port
from tests.support.service import Service
from tests.support.waiting import PATIENCE_SECONDS, child_ids, until

PRINTS = """
import os, sys
os.write(1, b"one\\n"); os.write(2, b"two\\n"); os.write(1, b"three\\n")
"""


DRIPS = b"HTTP/1.1 201 Created\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n"


# Runs a program, and prints the most memory that it or a child of it had, in bytes.
MEASURED = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, check=True)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024)
"""


pipe_or_terminal = pytest.mark.parametrize("options", [[], ["--tty"]], ids=["pipe", "terminal"])


def quiet(result: subprocess.CompletedProcess[str]) -> int:
    """The exit status of a run of which we had nothing to say."""
    assert "taskservice:" not in result.stderr
    return result.returncode


def test_program_becomes_a_task(machine: AgentMachine) -> None:
    result = machine.run_script("echo hello; echo oops >&2", "--name", "nightly", "--timeout", "60")
    task = machine.user.the_task()
    assert quiet(result) == 0
    assert (result.stdout, result.stderr) == ("hello\n", "oops\n")
    assert sorted(task["logs"]) == ["hello", "oops"]
    assert (task["name"], task["agentId"], task["status"]) == ("nightly", "a", "complete")
    assert task["claimedAt"] is not None
    assert machine.left_runs() == []


@pytest.mark.parametrize(
    ("script", "code", "message"),
    [
        ("exit 7", 7, "Exit status 7"),
        ("kill -9 $$", 137, "Killed by signal 9 (SIGKILL)"),
        ("kill -TERM $$", 143, "Killed by signal 15 (SIGTERM)"),
    ],
)
@pipe_or_terminal
def test_failure_is_reported_and_passed_on(
    machine: AgentMachine, script: str, code: int, message: str, options: list[str]
) -> None:
    assert quiet(machine.run_script(script, *options)) == code
    assert machine.user.the_task()["error"] == {"type": "failed", "message": message}


@pipe_or_terminal
def test_program_that_cannot_be_started_makes_no_task_and_no_agent(
    machine: AgentMachine, tmp_path: Path, options: list[str]
) -> None:
    """It is a mistake of the person who typed it, so no agent is broken."""
    plain, of_windows = tmp_path / "plain.sh", tmp_path / "windows.sh"
    plain.write_text("echo ran\n")
    of_windows.write_text("#!/bin/no-such-shell -e\r\necho ran\r\n")
    of_windows.chmod(0o755)
    for name, code, reason in (
        ("no-such-program", 127, "No such file or directory"),
        ("", 127, "No such file or directory"),
        (str(tmp_path / "none"), 127, "No such file or directory"),
        (str(plain), 126, "Permission denied"),
        (str(tmp_path), 126, "Permission denied"),
        (str(of_windows), 127, "No such file or directory (/bin/no-such-shell)"),
    ):
        for choice in ([], ["--agent", "a"], ["--strict"]):
            result = machine.run("run", *choice, *options, "--", name, "x")
            (line,) = result.stderr.splitlines()
            assert result.returncode == code
            assert line == f"taskservice: {name} can't be run: {reason}".replace("  ", " ")
    assert machine.user.tasks() == []
    assert machine.user.read("/agent") == []
    assert machine.left_runs() == []
    # A script without a `#!` line is run by sh, as in a shell, and a program is found on $PATH.
    plain.chmod(0o755)
    machine.settings["PATH"] = f"{tmp_path}/none:{tmp_path}:/usr/bin:/bin"
    assert machine.run("run", "--agent", "a", *options, "--", "plain.sh").returncode == 0
    assert machine.user.the_log() == ["ran"]


def test_exit_status_is_known_where_sigchld_is_ignored(machine: AgentMachine) -> None:
    """As started by a program that ignores SIGCHLD, so that it need not wait for its children."""
    machine.command = ["bash", "-c", "trap '' CHLD; exec \"$@\"", "bash", *machine.command]
    result = machine.run_script("echo ran; exit 3")
    assert (result.returncode, result.stdout, result.stderr) == (3, "ran\n", "")
    assert machine.user.the_task()["error"]["message"] == "Exit status 3"


def test_callback_is_called_before_the_run_ends(machine: AgentMachine) -> None:
    with Receiver() as receiver:
        machine.run_script("echo done", "--callback", receiver.url)
    (request,) = receiver.requests
    assert b'"logs":["done"]' in request.body


@pipe_or_terminal
def test_order_is_exact_where_both_outputs_go_to_one_place(
    machine: AgentMachine, options: list[str]
) -> None:
    program = [sys.executable, "-c", PRINTS * 50]
    both = {"capture_output": False, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    result = machine.run("run", "--agent", "a", *options, "--", *program, **both)
    assert result.stdout.splitlines() == ["one", "two", "three"] * 50
    assert machine.user.the_task()["logs"] == ["one", "two", "three"] * 50


def test_output_that_is_read_late_is_shown_whole(machine: AgentMachine) -> None:
    process = machine.spawn("run", "--agent", "a", "--", "seq", "300000")
    until(lambda: machine.user.tasks(status="complete", fields="id"))
    shown, _ = process.communicate(timeout=PATIENCE_SECONDS)
    assert shown.splitlines() == [str(number) for number in range(1, 300_001)]
    assert process.returncode == 0


def test_progress_bar_is_one_line(machine: AgentMachine) -> None:
    bar = r"printf '10%%\r50%%\r'; sleep 0.3; printf '100%%\ndone\r\n\rlast'"
    machine.run_script(bar)
    assert machine.user.the_task()["logs"] == ["100%", "done", "last"]


def test_long_and_binary_lines_are_made_to_fit(machine: AgentMachine) -> None:
    long = "head -c 1000000 /dev/zero | tr '\\0' x; echo"
    script = rf"{long}; printf '\377\000a\n'; {long}; echo end"
    machine.run_script(script, text=False)
    first, binary, second, last = machine.user.the_task()["logs"]
    assert first == second
    assert first.startswith("xxx")
    assert first.endswith("[taskservice: truncated here, the line has 1,000,000 bytes]")
    assert 65_000 < len(first.encode()) <= 65_536
    assert binary == "\ufffd\ufffda"
    assert last == "end"


@pytest.mark.parametrize(
    ("script", "output"),
    [
        ("""echo '{"sum": 15}'""", {"sum": 15}),
        ("""echo '{"sum": 15}'; echo; printf '\\n'""", {"sum": 15}),
        ("""printf '{"sum": 15}'""", {"sum": 15}),
        ("""echo '{"sum": 15}'; echo more""", {}),
        ("""echo '{"sum": NaN}'""", {}),
        ("""echo '{"sum": 1e999999}'""", {}),
        ("""echo '{"loss": 1e-99999999999999999999}'""", {}),
        ("""echo '{"loss": 0e99999999999999999999}'""", {}),
        (r"""printf '{"sum": "\377"}\n'""", {}),
        # In UTF-16.
        (r"""printf '{\0"\0a\0"\0:\0001\0}\0\n'""", {}),
        ("""echo '[15]'""", {}),
        ("""echo '{"sum": 12345678901234567890}'""", {"sum": 12345678901234567890}),
        ("""echo '{"sum": 12345678901234567890.123}'""", {}),
        ("""echo '{"sum": 0.10}'""", {"sum": 0.1}),
        ("""echo '{"sum": 1, "sum": 2}'""", {}),
        (r"""printf '10%%\r{"sum": 15}\n'""", {"sum": 15}),
        ("""echo '{"sum": 15}'; exit 1""", {"sum": 15}),
        ("""echo '{"sum": 1}' > "$TASKSERVICE_OUTPUT"; echo '{"sum": 2}'""", {"sum": 1}),
        ("""printf '{"pad": "%0200000d"}' 7""", {"pad": f"{7:0200000}"}),
    ],
)
def test_output_is_the_last_line_or_the_named_file(
    machine: AgentMachine, script: str, output: dict[str, object]
) -> None:
    result = machine.run_script(script, errors="replace")
    task = machine.user.the_task()
    assert "Traceback" not in result.stderr
    assert quiet(result) == (0 if task["status"] == "complete" else 1)
    assert task["output"] == output
    assert machine.left_runs() == []


def test_last_line_that_is_nested_too_deep_is_a_line_with_the_reason(machine: AgentMachine) -> None:
    # The service takes 64 levels, one of which is the report's. Python can read about 970.
    for depth in (64, 930, 940, 950, 960, 970):
        deep = '{"a":' * depth + "1" + "}" * depth
        assert quiet(machine.run_script(f"echo '{deep}'; exit 3")) == 3
        task = machine.user.tasks()[0]
        reason = "is not the output, since it is nested deeper than 63 levels"
        note = f"[taskservice: the JSON object in the last line {reason}]"
        assert (task["output"], task["logs"]) == ({}, [deep, note])
        assert task["error"]["message"] == "Exit status 3"
    deepest = '{"a":' * 63 + "1" + "}" * 63
    assert quiet(machine.run_script(f"echo '{deepest}'")) == 0
    assert machine.user.tasks()[0]["output"] == json.loads(deepest)


OBJECT = "import sys; sys.stdout.write('{\"pad\":\"' + 'x' * (int(sys.argv[1]) - 10) + '\"}\\n')"


def test_last_line_of_more_than_a_mebibyte_is_left_out_with_the_reason(
    machine: AgentMachine,
) -> None:
    size = 1024 * 1024
    for number in (size, size + 1, 5 * size):
        program = [sys.executable, "-c", OBJECT, str(number)]
        assert quiet(machine.run("run", "--agent", "a", "--", *program)) == 0
        task = machine.user.tasks()[0]
        line, *notes = task["logs"]
        assert line.startswith('{"pad":"xxx')
        assert task["status"] == "complete"
        if number == size:
            assert (task["output"], notes) == ({"pad": "x" * (size - 10)}, [])
        else:
            reason = "is not the output, since it is larger than 1 MiB"
            assert notes == [f"[taskservice: the JSON object in the last line {reason}]"]
            assert task["output"] == {}


def test_number_that_changes_is_the_reason_for_no_output(machine: AgentMachine) -> None:
    assert quiet(machine.run_script("""echo '{"sum": 0.12345678901234567890}'""")) == 0
    reason = "since it has a key twice, or a number that can't be stored exactly]"
    assert machine.user.the_task()["logs"][1].endswith(reason)


@pytest.mark.parametrize(
    "make",
    [
        "echo nonsense >",
        "mkfifo",
        "mkdir",
        "ln -s /dev/zero",
        "ln -s $HOME/elsewhere",
        f"{sys.executable} -c 'from socket import *; from sys import *; "
        "socket(AF_UNIX).bind(argv[1])'",
    ],
    ids=["no JSON", "FIFO", "folder", "link to a device", "link to a file", "socket"],
)
def test_output_that_is_not_a_regular_file_is_not_read(machine: AgentMachine, make: str) -> None:
    (machine.home / "elsewhere").write_text('{"secret": 1}')
    # Where the name of a socket may be no longer than 108 bytes.
    script = f'cd "$(dirname "$TASKSERVICE_OUTPUT")"; {make} "$(basename "$TASKSERVICE_OUTPUT")"'
    process = machine.spawn_script(f"{script} && exit 3")
    try:
        _, notices = process.communicate(timeout=PATIENCE_SECONDS)
    finally:
        process.kill()
    assert process.returncode == 3
    assert "TASKSERVICE_OUTPUT is not a regular file with a JSON object" in notices
    task = machine.user.the_task()
    assert (task["error"]["message"], task["output"]) == ("Exit status 3", {})
    assert "TASKSERVICE_OUTPUT is not a regular file" in task["logs"][-1]
    assert machine.left_runs() == []


def test_output_that_the_service_refuses_does_not_hide_the_end(machine: AgentMachine) -> None:
    half = '{"a": "\\ud800"}'
    quiet(machine.run_script(f"printf '%s\\n' '{half}'; exit 3"))
    task = machine.user.the_task()
    assert (task["error"]["message"], task["output"]) == ("Exit status 3", {})
    assert task["logs"][0] == half
    assert "the output was refused: " in task["logs"][1]


def test_program_can_log_and_report_and_leaves_the_end_to_run(machine: AgentMachine) -> None:
    program = (
        "import sys\n"
        "from taskservice.client import current\n"
        "print('printed', flush=True)\n"
        "with current() as task:\n"
        "    task.log('sent')\n"
        "    task.report(output={'half': 1}, name='half done')\n"
        "    task.output['share'] = 1\n"
        "current().log('and more')\n"
        "sys.exit(4)\n"
    )
    assert quiet(machine.run("run", "--agent", "a", "--", sys.executable, "-c", program)) == 4
    task = machine.user.the_task()
    assert sorted(task["logs"]) == ["and more", "printed", "sent"]
    assert (task["name"], task["output"]) == ("half done", {"half": 1, "share": 1})
    assert task["error"]["message"] == "Exit status 4"


def test_program_knows_its_task(machine: AgentMachine) -> None:
    result = machine.run_script(
        "echo $TASKSERVICE_TASK_ID $TASKSERVICE_TASK_URL $TASKSERVICE_WRITER"
    )
    task_id = machine.user.the_task()["id"]
    url = f"{machine.user.url}/api/v1/task/{task_id}"
    assert result.stdout == f"{task_id} {url} program\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_reaches_all_of_the_program(machine: AgentMachine, number: signal.Signals) -> None:
    # The shell's own child, too: it would continue alone.
    script = "sleep 1000 & echo $!; wait"
    process = machine.spawn(
        "run", "--agent", "a", "--", sys.executable, "-c",
        f"import subprocess; raise SystemExit(subprocess.run(['sh', '-c', {script!r}]).returncode)",
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
    child = int(process.read_line())
    process.end(number)
    error = machine.user.the_task()["error"]
    assert process.returncode != 0
    assert error["type"] == "failed"
    if number == signal.SIGTERM:
        assert process.returncode == 143
        assert error["message"] == "Killed by signal 15 (SIGTERM)"
        until(lambda: not Path(f"/proc/{child}").exists())
    else:
        # A shell's background jobs ignore SIGINT.
        os.kill(child, signal.SIGKILL)


@pytest.mark.parametrize("number", [signal.SIGALRM, signal.SIGXCPU, signal.SIGPWR, signal.SIGRTMIN])
def test_signal_that_would_end_a_program_ends_this_one(machine: AgentMachine, number: int) -> None:
    process = machine.spawn_script("echo ready; exec sleep 60")
    assert process.read_line() == "ready\n"
    process.end(number)
    assert process.returncode == 128 + number
    assert machine.user.the_task()["status"] == "error"


def test_signals_that_come_together_reach_the_program(machine: AgentMachine) -> None:
    process = machine.spawn_script("echo ready; sleep 60")
    assert process.read_line() == "ready\n"
    # As systemd stops what it has paused.
    process.send_signal(signal.SIGSTOP)
    process.send_signal(signal.SIGTERM)
    process.end(signal.SIGCONT)
    assert process.returncode == 143


def test_program_that_takes_a_signal_and_ends_well_is_complete(machine: AgentMachine) -> None:
    program = (
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(print('stopping')))\n"
        "print('ready', flush=True)\n"
        "time.sleep(1000)\n"
    )
    process = machine.spawn("run", "--agent", "a", "--", sys.executable, "-c", program)
    assert process.read_line() == "ready\n"
    process.end()
    task = machine.user.the_task()
    assert (process.returncode, task["status"]) == (0, "complete")
    assert task["logs"] == ["ready", "stopping"]


@pytest.mark.parametrize("how", ["cancelled", "deleted"])
@pytest.mark.parametrize("script", ["sleep 1000", "while :; do echo more; sleep 0.2; done"])
def test_cancel_and_deletion_stop_the_program(machine: AgentMachine, how: str, script: str) -> None:
    machine.beat_often()
    process = machine.spawn_script(f"echo ready; {script}")
    until(lambda: machine.user.the_log()[:1] == ["ready"])
    end = machine.user.cancel if how == "cancelled" else machine.user.delete
    end(machine.user.the_task())
    _, notices = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 143
    assert f"the task was {how}" in notices
    assert [task["endedBy"] for task in machine.user.tasks()] in (["first"], [])
    assert machine.left_runs() == []


def test_program_continues_after_another_client_finished_its_task(machine: AgentMachine) -> None:
    script = "echo ready; read word; echo more; sleep 0.5; echo still here; exit 4"
    process = machine.spawn_script(script)
    until(lambda: machine.user.the_log() == ["ready"])
    machine.user.report(machine.user.the_task(), status="complete")
    printed, _ = process.communicate("go on\n", timeout=PATIENCE_SECONDS)
    assert printed == "ready\nmore\nstill here\n"
    assert process.returncode == 4
    assert machine.user.the_task()["status"] == "complete"
    assert machine.left_runs() == []


def test_heartbeats_come_while_the_program_is_silent(machine: AgentMachine) -> None:
    with Receiver() as receiver:
        receiver.answer = played.appended()
        receiver.paths["/api/v1/task"] = played.task(201)
        receiver.paths["/api/v1/task/1"] = played.task()
        machine.url = receiver.url
        process = machine.spawn(
            "run", "--agent", "a", "--timeout", "1", "--", "sh", "-c", "read word",
            stdin=subprocess.PIPE,
        )  # fmt: skip
        until(lambda: [request.body for request in receiver.requests].count(b'{"logs": []}') >= 2)
        process.communicate("go on\n", timeout=PATIENCE_SECONDS)
    assert process.returncode == 0


def test_lines_come_in_about_five_requests_a_second(machine: AgentMachine) -> None:
    with Receiver() as receiver:
        receiver.answer = played.appended()
        receiver.paths["/api/v1/task"] = played.task(201)
        receiver.paths["/api/v1/task/1"] = played.task()
        machine.url = receiver.url
        machine.run_script("for number in $(seq 100); do echo $number; sleep 0.02; done")
    appends = [request for request in receiver.requests if b'"seq"' in request.body]
    # The receiver closes each connection, which can look as if its answer had been lost.
    once = {body["seq"]: "".join(body["logs"]) for body in (json.loads(a.body) for a in appends)}
    assert "".join(once.values()).split() == [str(number) for number in range(1, 101)]
    seconds = appends[-1].at - appends[0].at
    assert 2 < len(once) < seconds * 10


def test_line_of_100_mb_takes_little_memory(machine: AgentMachine) -> None:
    command = ["run", "--agent", "a", "--", "head", "-c", "100000000", "/dev/zero"]
    # In a small process: a child's peak memory includes what it inherits at its start.
    process = machine.python(MEASURED, *machine.command, *command)
    measured, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert int(measured) < 100_000_000
    (line,) = machine.user.the_task()["logs"]
    assert line.endswith("[taskservice: truncated here, the line has 100,000,000 bytes]")


@pipe_or_terminal
def test_background_process_does_not_hold_the_run(
    machine: AgentMachine, options: list[str]
) -> None:
    result = machine.run_script("sleep 1000 & echo $!", *options)
    os.kill(int(result.stdout), signal.SIGKILL)
    assert machine.user.the_task()["status"] == "complete"


def test_output_without_a_reader_does_not_hold_up_the_log(machine: AgentMachine) -> None:
    script = "seq 100000; echo ready; sleep 1000"
    process = machine.spawn_script(script)
    until(lambda: machine.user.the_log()[-1:] == ["ready"])
    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE_SECONDS) == 143
    process.communicate()
    task = machine.user.the_task()
    assert (task["logCount"], task["error"]["type"]) == (100_001, "failed")
    assert machine.left_runs() == []


def test_signal_after_the_end_waits_no_longer_for_a_reader(machine: AgentMachine) -> None:
    process = machine.spawn("run", "--agent", "a", "--", "seq", "100000")
    until(lambda: machine.user.tasks() and machine.user.the_task()["status"] == "complete")
    time.sleep(0.5)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    # Without the signal it would never end.
    assert process.wait(PATIENCE_SECONDS) == 0
    process.communicate()


# --- settings and refusals ---------------------------------------------------------------


def test_missing_and_wrong_settings_are_one_line(machine: AgentMachine) -> None:
    url, key = machine.url, machine.key
    for machine.url, machine.key, sentence in (
        ("", key, "TASKSERVICE_URL is not set"),
        ("nonsense", key, "TASKSERVICE_URL: 'nonsense' must be a URL"),
        (url, "", "TASKSERVICE_APIKEY is not set"),
        (url, "wrong", "TASKSERVICE_APIKEY: API key is invalid"),
        (f"{url}/elsewhere", key, "elsewhere"),
    ):
        result = machine.run_script("echo x", "--strict")
        assert (result.returncode, result.stdout) == (2, "")
        (line,) = result.stderr.splitlines()
        assert sentence in line


def test_password_in_an_address_is_not_printed(
    machine: AgentMachine, subtests: CheapSubtests
) -> None:
    def printed(*command: str, **settings: str) -> str:
        machine.settings = settings
        done = machine.run(*command)
        assert done.returncode
        assert "secret" not in done.stdout + done.stderr
        return done.stderr

    for user in ("user:secret@", ":secret@", "secret@", "user:se/secret@"):
        with subtests.test(user):
            url = f"http://{user}127.0.0.1:9/"
            assert "because it contains an @" in printed("task", "list", TASKSERVICE_URL=url)
    with subtests.test("a proxy"):
        url, proxy = "http://service.invalid/", "http://user:secret@:::"
        command = ["run", "--strict", "--agent", "a", "--", "true"]
        assert ":::" in printed(*command, TASKSERVICE_URL=url, http_proxy=proxy)
    with subtests.test("a redirect"), Receiver() as redirecting:
        target = {"Location": "http://user:secret@service.invalid/"}
        redirecting.answer = play.answer(302, target)
        sentence = printed("task", "list", TASKSERVICE_URL=redirecting.url)
        assert sentence.startswith("taskservice: TASKSERVICE_URL: ")
        assert "redirects to http://service.invalid/" in sentence


@pytest.mark.parametrize(
    ("options", "code", "sentence"),
    [
        (["--agent", "A b"], 2, "agentId"),
        (["--agent", "a", "--callback", "ftp://x/"], 1, "callback"),
        (["--agent", "a", "--callback", "http://10.0.0.1/"], 1, "callback"),
    ],
)
def test_refused_start_does_not_run_a_strict_program(
    machine: AgentMachine, options: list[str], code: int, sentence: str
) -> None:
    assert sentence in machine.fail("run", "--strict", *options, "--", "echo", "x", code=code)
    assert machine.left_runs() == []


STARTS_REFUSED = {
    "a login page": play.answer(200, {"Content-Type": "text/html"}, b"<h1>Sign in</h1>"),
    "null": played.answer(200, None),
    "a list": played.answer(200, [1]),
    "an object": played.answer(200, {}),
    "another program": play.answer(404, {"Content-Type": "text/html"}, b"<h1>Not here</h1>"),
    "a redirect": play.answer(302, {"Location": "https://elsewhere.example/"}),
    "a revoked key": played.problem(401, "API key is invalid"),
    "a narrower key": played.problem(403, "The key may not do this"),
    "a busy service": played.problem(503, "The database is busy"),
}


@pytest.mark.parametrize("refusal", STARTS_REFUSED.values(), ids=STARTS_REFUSED)
def test_program_runs_whatever_the_service_says(
    machine: AgentMachine, refusal: play.Behaviour
) -> None:
    machine.give_up_soon()
    with Receiver() as receiver:
        receiver.answer = refusal
        machine.url = receiver.url.rstrip("/")
        strict = machine.run_script("echo ran", "--strict")
        assert (strict.returncode in (1, 2), strict.stdout) == (True, "")
        assert machine.left_runs() == []
        result = machine.run_script("echo ran; exit 7")
        assert machine.run("run", "--resend").returncode != 0
    assert (result.returncode, result.stdout) == (7, "ran\n")
    warning, left = result.stderr.splitlines()
    assert "; the program runs, " in warning
    assert "1 line and the exit status could not be sent yet" in left
    assert machine.resend().returncode == 0
    task = machine.user.the_task()
    assert (task["logs"], task["error"]["message"]) == (["ran"], "Exit status 7")
    assert machine.left_runs() == []


def test_program_of_an_agent_id_that_none_can_have_runs_without_a_task(
    machine: AgentMachine,
) -> None:
    """It is reported before the program runs, and nothing remains on the disk."""
    machine.settings["TASKSERVICE_TASK_ID"] = "of an outer run"
    script = "echo told >&2; echo ${TASKSERVICE_TASK_ID-none}; exit 7"
    result = machine.run("run", "--agent", "A b", "--tty", "--", "sh", "-c", script)
    assert (result.returncode, result.stdout) == (7, "none\n")
    warning, told = result.stderr.splitlines()
    assert warning == (
        "taskservice: agentId: A b must match [a-z0-9][a-z0-9._-]{0,63}; "
        "the program runs without a task, and nothing is recorded"
    )
    assert told == "told"
    killed = machine.run("run", "--agent", "A b", "--", "sh", "-c", "yes | head -1; kill -9 $$")
    assert (killed.returncode, killed.stdout) in [(-9, "y\n"), (137, "y\n")]
    assert "Broken pipe" not in killed.stderr
    missing = machine.run("run", "--agent", "A b", "--", "./not-there")
    assert missing.returncode == 127
    assert "./not-there can't be run: No such file or directory" in missing.stderr
    assert machine.left_runs() == []
    assert machine.user.tasks() == []


@pytest.mark.parametrize(
    ("option", "value", "word"),
    [
        ("--callback", "ftp://x/", "callback"),
        ("--callback", "http://10.0.0.1/", "callback"),
        ("--name", "x" * 201, "name"),
        ("--timeout", "9" * 30, "timeout"),
        ("--timeout", "9" * 400, "timeout"),
    ],
)
def test_refused_fields_of_a_start_are_left_out(
    machine: AgentMachine, option: str, value: str, word: str
) -> None:
    result = machine.run_script("echo ran; exit 7", option, value)
    assert (result.returncode, result.stdout) == (7, "ran\n")
    (warning,) = result.stderr.splitlines()
    assert f"taskservice: {word}: " in warning
    assert f"the task is started without {word}" in warning
    task = machine.user.the_task()
    assert (task["logs"], task["callback"], task["name"]) == (["ran"], None, "a")
    assert task["error"]["message"] == "Exit status 7"
    assert machine.left_runs() == []


# --- its input ---------------------------------------------------------------------------


def test_input_of_a_run_becomes_the_input_of_its_task(
    machine: AgentMachine, tmp_path: Path
) -> None:
    (tmp_path / "input.json").write_text('{"day": 1, "exact": 12345678901234567890}')
    parts = [f"@{tmp_path / 'input.json'}", "box=a=b", '{"day": 2}', "empty="]
    result = machine.run_script("true", *[f"--input={part}" for part in parts])
    assert quiet(result) == 0
    exact = {"day": 2, "exact": 12345678901234567890, "box": "a=b", "empty": ""}
    assert machine.user.the_task()["input"] == exact


def test_agent_that_requires_an_input_is_recorded_without_and_with_it(
    machine: AgentMachine,
) -> None:
    required = {"type": "object", "required": ["x"], "properties": {"x": {"type": "string"}}}
    machine.user.register("a", inputSchema=required)
    assert quiet(machine.run_script("echo important; exit 3")) == 3
    assert quiet(machine.run_script("echo important; exit 3", "--input=x=y")) == 3
    with_it, without = machine.user.tasks()
    assert (with_it["input"], without["input"]) == ({"x": "y"}, {})
    assert with_it["logs"] == without["logs"] == ["important"]
    assert machine.left_runs() == []


@pytest.mark.parametrize(
    "text", ['{"a": ' * 70 + "1" + "}" * 70, '{"a": "' + "x" * (1024**2 - 100) + '"}']
)
def test_input_that_the_service_refuses_is_left_out(
    machine: AgentMachine, tmp_path: Path, text: str
) -> None:
    (tmp_path / "input.json").write_text(text)
    options = [f"--input=@{tmp_path / 'input.json'}", "--input=more=" + "x" * 1_000]
    result = machine.run_script("exit 3", *options)
    assert result.returncode == 3
    assert "the task is started without input" in result.stderr
    assert machine.user.the_task()["input"] == {}
    assert machine.left_runs() == []


def test_input_that_cannot_be_one_starts_no_strict_program(machine: AgentMachine) -> None:
    for text in ("word", "[1]", "=x", "@/not/there", '{"a": 1'):
        result = machine.run_script("echo ran", "--strict", f"--input={text}")
        assert (result.returncode, result.stdout) == (2, "")
        assert "'--input'" in result.stderr
    assert machine.user.tasks() == []


def test_strict_program_does_not_run_without_the_service(machine: AgentMachine) -> None:
    machine.lose_service()
    result = machine.run_script("echo ran", "--strict")
    assert (result.returncode, result.stdout) == (1, "")
    (line,) = result.stderr.splitlines()
    assert "cannot reach" in line
    assert machine.left_runs() == []


def test_usage_is_explained(machine: AgentMachine) -> None:
    for arguments in (["--agent", "a"], ["--no-such-option"], ["--resend", "--agent", "a"]):
        assert "Usage:" in machine.fail("run", *arguments, code=2)


# --- without an agent, and without settings ----------------------------------------------


@pytest.mark.parametrize(
    ("file_name", "agent"),
    [
        ("Nightly Backup.SH", "nightly-backup.sh"),
        ("._-hidden_job", "hidden_job"),
        ("job@ü\udcff" + "x" * 70, "job---" + "x" * 58),
    ],
)
def test_agent_is_by_default_the_file_name_of_the_program(
    machine: AgentMachine, tmp_path: Path, file_name: str, agent: str
) -> None:
    program = tmp_path / file_name
    program.write_text("#!/bin/sh\necho told >&2; exit 7\n")
    program.chmod(0o755)
    result = machine.run("run", "--", str(program))
    notice = (
        f"taskservice: the agent is {agent}, named after the program; --agent changes the name\n"
    )
    assert (result.returncode, result.stderr) == (7, f"{notice}told\n")
    assert machine.user.the_task()["agentId"] == agent
    assert quiet(machine.run("run", "--agent", "b", "--", str(program))) == 7


def test_agents_key_names_its_own_agent(machine: AgentMachine) -> None:
    machine.user.register("backup")
    user_key, machine.key = machine.key, machine.user.agent_key("backup")
    assert machine.run("run", "--", "sh", "-c", "exit 7").stderr == ""
    assert machine.user.the_task()["agentId"] == "backup"
    machine.lose_service()
    away = machine.run("run", "--", "sh", "-c", "echo later")
    assert (away.returncode, away.stdout) == (0, "later\n")
    agent_key, machine.key = machine.key, user_key
    other = machine.resend()
    assert other.returncode == 1
    assert "a saved run belongs to key tsk_agent_…" in other.stderr
    machine.key = agent_key
    assert machine.resend().returncode == 0
    assert [task["agentId"] for task in machine.user.tasks()] == ["backup"] * 2
    assert machine.user.tasks()[0]["logs"] == ["later"]


def _no_profiles(path: Path) -> None:
    pass


UNUSABLE_SETTINGS: dict[str, tuple[dict[str, str], Callable[[Path], object], str]] = {
    "nothing": ({}, _no_profiles, "TASKSERVICE_URL is not set"),
    "no key": ({"URL": "http://127.0.0.1:8000"}, _no_profiles, "TASKSERVICE_APIKEY is not set"),
    "no address": ({"APIKEY": "tsk_user_x"}, _no_profiles, "TASKSERVICE_URL is not set"),
    "a wrong address": ({"URL": "example.org", "APIKEY": "x"}, _no_profiles, "must be a URL"),
    "an address in Latin 1": ({"URL": "http://\udcff", "APIKEY": "x"}, _no_profiles, "must be"),
    "a key of two lines": (
        {"URL": "http://127.0.0.1:8000", "APIKEY": "a\nb"}, _no_profiles, "not allowed"
    ),
    "an unknown profile": ({"PROFILE": "gone"}, _no_profiles, "gone is not a stored profile"),
    "a truncated file": ({}, lambda path: path.write_text('{"profiles"'), "can't be read"),
    "a binary file": ({}, lambda path: path.write_bytes(b"\xff\xfe"), "can't be read"),
    "a directory": ({}, Path.mkdir, "can't be read"),
    "another form": ({}, lambda path: path.write_text('{"profiles": [1]}'), "can't be read"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "make_file", "problem"), UNUSABLE_SETTINGS.values(), ids=UNUSABLE_SETTINGS
)
def test_program_runs_without_usable_settings(
    machine: AgentMachine,
    settings: dict[str, str],
    make_file: Callable[[Path], object],
    problem: str,
) -> None:
    """It is reported in one line before the program runs, and nothing remains on the disk."""
    machine.url = machine.key = ""
    machine.settings = {f"TASKSERVICE_{name}": text for name, text in settings.items()}
    machine.settings["TASKSERVICE_TASK_ID"] = "of an outer run"
    file = machine.home / "config" / "taskservice" / "profiles.json"
    file.parent.mkdir(parents=True)
    make_file(file)
    writes = 'echo {} > "$TASKSERVICE_OUTPUT" || exit 1'
    script = f"echo told >&2; {writes}; exit 7$TASKSERVICE_TASK_ID"
    result = machine.run("run", "--name", "n", "--label", "a=b", "--", "sh", "-c", script)
    assert (result.returncode, result.stdout) == (7, "")
    line, told = result.stderr.splitlines()
    assert line.startswith("taskservice: ")
    assert problem in line
    assert line.endswith("; the program runs without a task, and nothing is recorded")
    assert told == "told"
    assert problem in machine.fail("run", "--strict", "--", "echo", "ran", code=2)
    assert machine.left_runs() == []
    assert machine.user.tasks() == []


def test_unknown_profile_of_the_command_line_keeps_no_program_from_running(
    machine: AgentMachine,
) -> None:
    machine.url = machine.key = ""
    result = machine.run("--profile", "gone", "run", "--", "sh", "-c", "exit 7")
    assert result.returncode == 7
    assert "TASKSERVICE_PROFILE: gone is not a stored profile (none)" in result.stderr


def test_program_whose_name_gives_no_agent_runs_without_a_task(
    machine: AgentMachine, tmp_path: Path
) -> None:
    program = tmp_path / "脚本"
    program.write_text("#!/bin/sh\nexit 7\n")
    program.chmod(0o755)
    result = machine.run("run", "--", str(program))
    assert result.returncode == 7
    (line,) = result.stderr.splitlines()
    assert "agentId: 脚本 must match" in line
    assert line.endswith("; the program runs without a task, and nothing is recorded")
    assert "agentId" in machine.fail("run", "--strict", "--", str(program), code=2)
    assert machine.left_runs() == []
    assert machine.user.tasks() == []


@pytest.mark.parametrize(
    ("option", "problem"),
    [
        ("--input=@/not/there", "'--input': /not/there can't be read: No such file or directory"),
        ("--input=word", "'--input': is not JSON"),
        ("--label=host", "'--label': must be KEY=VALUE"),
        ("--label=host=\udcff", "'--label': must be text in UTF-8"),
        ("--name=\udcff", "'--name': must be text in UTF-8"),
        ("--callback=http://\udcff/", "'--callback': must be text in UTF-8"),
        ("--timeout=soon", "'--timeout': 'soon' must be a duration"),
    ],
)
def test_option_with_a_wrong_value_is_left_out(
    machine: AgentMachine, option: str, problem: str
) -> None:
    result = machine.run_script("exit 7", option)
    assert result.returncode == 7
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"taskservice: Invalid value for {problem}")
    assert line.endswith("; the task is started without this option")
    assert machine.user.the_task()["error"]["message"] == "Exit status 7"
    strict = machine.run_script("echo ran", "--strict", option)
    assert (strict.returncode, strict.stdout) == (2, "")
    assert problem in strict.stderr


# --- the service is unavailable ----------------------------------------------------------


def test_without_the_service_the_program_runs_and_its_task_comes_later(
    machine: AgentMachine,
) -> None:
    machine.lose_service()
    away = machine.url
    result = machine.run_script("echo hello; exit 3", "--name", "away")
    assert (result.returncode, result.stdout) == (3, "hello\n")
    assert f"cannot reach {away}: Connection refused; the program runs" in result.stderr
    assert "1 line and the exit status could not be sent yet" in result.stderr
    assert machine.user.tasks() == []
    (folder,) = machine.left_runs()
    assert not [path for path in folder.rglob("*") if machine.key.encode() in path.read_bytes()]
    assert folder.stat().st_mode & 0o777 == 0o700
    other = machine.run("run", "--resend")
    assert other.returncode == 1
    machine.url = machine.user.url
    foreign = machine.run("run", "--resend")
    assert foreign.returncode == 1
    assert f"a saved run belongs to {away}" in foreign.stderr
    # The same service, at another place.
    resent = machine.resend()
    task = machine.user.the_task()
    assert (resent.returncode, resent.stderr) == (0, "")
    assert resent.stdout == f"{task['id']} sent: 1 line and the exit status\n"
    assert (task["name"], task["logs"]) == ("away", ["hello"])
    assert task["error"]["message"] == "Exit status 3"
    assert machine.left_runs() == []


@pytest.mark.parametrize("behaviour", [play.silence, play.drip(b" " * 1000, 0.5, DRIPS)])
def test_service_that_hangs_does_not_hold_the_program(
    machine: AgentMachine, behaviour: play.Behaviour
) -> None:
    machine.start_without_service()
    with Receiver() as receiver:
        receiver.answer = behaviour
        machine.url = receiver.url
        began = time.monotonic()
        process = machine.spawn("run", "--agent", "a", "--", "echo", "hello")
        assert process.read_line() == "hello\n"
        # The run waits 0.3 s for the service; the client's own time limit is 60 s.
        assert time.monotonic() - began < 30
        # The first signal after the program's end.
        until(lambda: child_ids(process.pid) == [])
        _, notices = process.end()
    assert process.returncode == 0
    assert "does not respond" in notices
    assert "the program runs" in notices
    assert len(machine.left_runs()) == 1


def test_resend_leaves_a_run_that_is_alive_alone(machine: AgentMachine) -> None:
    process = machine.spawn_script("echo ready; sleep 1000")
    until(lambda: machine.user.the_log() == ["ready"])
    resent = machine.run("run", "--resend")
    assert (resent.returncode, resent.stdout, resent.stderr) == (0, "", "")
    assert machine.user.the_task()["status"] == "running"
    assert len(machine.left_runs()) == 1
    process.end()


def test_service_that_comes_back_gets_everything_once(
    own_service: Service, own_machine: AgentMachine
) -> None:
    own_machine.start_without_service()
    kill(own_service)
    process = own_machine.spawn_script(
        "seq -f 'line %g' 3; read word; seq -f 'line %g' 4 6; exit 2"
    )
    warning = process.read_error()
    assert warning.endswith("the task will be started when the service is reachable\n")
    own_service.start()
    assert process.read_error() == f"taskservice: {own_service.url} is reachable again\n"
    _, notices = process.communicate("go on\n", timeout=60)
    task = own_machine.user.the_task()
    assert (process.returncode, notices) == (2, "")
    assert task["logs"] == [f"line {number}" for number in range(1, 7)]
    assert task["error"]["message"] == "Exit status 2"


def test_signal_at_the_end_does_not_wait_for_the_service(machine: AgentMachine) -> None:
    limits = "run.START_SECONDS, run.MIN_SILENCE_SECONDS = 0.3, 1000.0"
    machine.patch(f"from taskservice.runner import run; {limits}")
    machine.url = f"http://127.0.0.1:{unused_port()}"
    process = machine.spawn("run", "--agent", "a", "--", "echo", "hello")
    assert process.read_line() == "hello\n"
    until(lambda: has_ended(machine))
    _, notices = process.end()
    assert process.returncode == 0
    assert "--resend" in notices
    assert len(machine.left_runs()) == 1


def test_revoked_key_is_reported_and_keeps_the_lines(machine: AgentMachine) -> None:
    user = machine.user
    process = machine.spawn_script("echo first; read word; echo second")
    until(lambda: user.the_log() == ["first"])
    key = user.write("POST", "/key", name="other")["key"]
    user.write("DELETE", f"/key/{user.read('/user')['key']['id']}")
    _, notices = process.communicate("go on\n", timeout=PATIENCE_SECONDS)
    assert process.returncode == 0
    assert "API key is invalid" in notices
    machine.key = user.session.headers["apikey"] = key
    assert machine.resend().returncode == 0
    assert user.the_log() == ["first", "second"]


def test_late_report_is_accepted(own_service: Service, own_machine: AgentMachine) -> None:
    process = own_machine.spawn_script("echo 1; read word; echo 2")
    until(lambda: own_machine.user.the_log() == ["1"])
    end_for_silence(own_service)
    process.communicate("go on\n", timeout=PATIENCE_SECONDS)
    task = own_machine.user.the_task()
    assert process.returncode == 0
    assert (task["status"], task["error"], task["logs"]) == ("complete", None, ["1", "2"])


@pytest.mark.parametrize("closed", [[0], [1], [2], [0, 1, 2]])
def test_closed_outputs_get_nothing_and_the_log_has_the_lines(
    machine: AgentMachine, closed: list[int]
) -> None:
    result = machine.run_script("echo out; echo err >&2", closed=closed)
    task = machine.user.the_task()
    assert (result.returncode, sorted(task["logs"])) == (0, ["err", "out"])
    assert result.stdout == ("" if 1 in closed else "out\n")
    assert result.stderr == ("" if 2 in closed else "err\n")
    assert machine.left_runs() == []


def test_notices_do_not_go_to_stdout_where_stderr_is_closed(machine: AgentMachine) -> None:
    # This one starts in a real shell.
    command = [*machine.command, "run", "--agent", "a", "--", "no-such-program"]
    shell = ["sh", "-c", '"$@" 2>&-', "sh", *command]
    result = subprocess.run(
        shell, env=machine.environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert (result.returncode, result.stdout) == (127, "")
