"""`taskservice task`: tasks started, listed, shown, followed, rerun, cancelled and deleted."""

import re
import signal
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import parse_qs, urlsplit
from zoneinfo import ZoneInfo

import requests

from tests.support import receiver as play
from tests.support import service_answers as played
from tests.support.agent_machine import AgentMachine, end_for_silence, objects
from tests.support.pseudo_terminal import on_terminal
from tests.support.receiver import Receiver
from tests.support.service import Service


def test_list_has_a_line_for_each_task(machine: AgentMachine) -> None:
    first = machine.user.start("one", name="first")
    second = machine.user.start("two", name="bad \x1b[2J\nname")
    machine.user.report(first, status="error", error={"message": "no"})
    header, newest, oldest = machine.run("task", "list").stdout.splitlines()
    assert header.split() == ["ID", "STATUS", "STARTED", "TOOK", "LINES", "AGENT", "NAME", "NOTE"]
    assert newest.startswith(str(second["id"])[:13])
    assert newest.endswith(r"two    bad \u001b[2J\nname")
    assert oldest.split()[:2] == [str(first["id"])[:13], "failed"]
    assert oldest.split()[-5:] == ["-", "0", "one", "first", "no"]
    only = machine.run("task", "list", "--agent", "one", "--status", "error", "--q", "FIRST")
    assert [line.split()[0] for line in only.stdout.splitlines()] == ["ID", oldest.split()[0]]
    limited = machine.run("task", "list", "--limit", "1", "--json")
    assert [task["id"] for task in objects(limited.stdout)] == [second["id"]]


def test_show_has_everything_but_the_log(machine: AgentMachine) -> None:
    task = machine.user.start("one", name="first", input={"day": 1})
    machine.user.append(task, "one", "two")
    machine.user.report(task, status="error", error={"message": "no"}, output={"sum": 15})
    shown = machine.run("task", "show", str(task["id"]))
    words = {line.split()[0]: line for line in shown.stdout.splitlines()}
    assert words["status"].split(maxsplit=1)[1] == "error: failed: no"
    assert words["lines"].split()[1] == "2"
    assert words["page"].split()[1] == f"{machine.user.url}/tasks/{task['id']}"
    assert words['"sum":'].strip() == '"sum": 15'
    as_json = machine.run("task", "show", str(task["id"]), "--json")
    (shown_task,) = objects(as_json.stdout)
    assert shown_task["input"] == {"day": 1}


def test_follow_prints_the_log_as_it_grows(machine: AgentMachine) -> None:
    task = machine.user.start("one")
    machine.user.append(task, "one")
    process = machine.spawn("task", "follow", str(task["id"]))
    assert process.read_line() == "one\n"
    machine.user.append(task, "two")
    assert process.read_line() == "two\n"
    machine.user.report(task, status="complete")
    printed, notices = process.communicate(timeout=40)
    assert (printed, notices, process.returncode) == ("", "complete\n", 0)
    as_json = machine.run("task", "follow", str(task["id"]), "--json")
    first, second, last = objects(as_json.stdout)
    assert [line | {"at": None} for line in (first, second)] == [
        {"number": 1, "text": "one", "at": None},
        {"number": 2, "text": "two", "at": None},
    ]
    assert str(task["createdAt"]) <= first["at"] <= second["at"]
    assert last["status"] == "complete"


def test_terminal_that_lacks_a_character_is_not_a_failure(machine: AgentMachine) -> None:
    machine.user.start("one", name="nächtlich ☾")
    command = [*machine.command, "task", "list"]
    environment = {**machine.environment, "PYTHONIOENCODING": "latin-1"}
    listed = subprocess.run(command, env=environment, capture_output=True, check=True)
    assert "nächtlich ?" in listed.stdout.decode("latin-1")


def test_short_list_asks_for_no_more_than_it_shows(machine: AgentMachine) -> None:
    with Receiver() as receiver:
        receiver.answer = play.answer(200, {"Content-Type": "application/json"}, b"[]")
        machine.url = receiver.url
        assert machine.run("task", "list", "--limit", "1").returncode == 0
    (request,) = receiver.requests
    assert "limit=2" in request.path
    assert "output" not in request.path


def test_follow_exits_by_the_outcome(machine: AgentMachine, shared_service: Service) -> None:
    failed, cancelled, silent = (machine.user.start("one") for _ in range(3))
    machine.user.report(failed, status="error", error={"message": "no"})
    machine.user.cancel(cancelled)
    end_for_silence(shared_service)
    for task, code in ((failed, 1), (cancelled, 3), (silent, 4)):
        result = machine.run("task", "follow", str(task["id"]))
        assert (result.returncode, result.stdout) == (code, "")
        assert result.stderr.startswith("error: ")


def test_follow_says_that_the_task_was_deleted(machine: AgentMachine) -> None:
    task = machine.user.start("one")
    machine.user.append(task, "one")
    process = machine.spawn("task", "follow", str(task["id"]))
    process.read_line()
    machine.user.delete(task)
    _, notices = process.communicate(timeout=40)
    assert (process.returncode, notices) == (5, "taskservice: The task was deleted\n")


def test_follow_tells_a_failed_task_from_one_that_cannot_be_asked(machine: AgentMachine) -> None:
    unknown = machine.run("task", "follow", "nonsense")
    assert (unknown.returncode, unknown.stderr) == (
        5, "taskservice: Task's ID is not found: task nonsense\n",
    )  # fmt: skip
    with Receiver() as receiver:
        receiver.answer = play.answer(503, {"Retry-After": "1000"})
        machine.url = receiver.url
        away = machine.run("task", "follow", "nonsense")
    assert away.returncode == 69


def test_follow_ends_at_ctrl_c(machine: AgentMachine) -> None:
    task = machine.user.start("one")
    machine.user.append(task, "one")
    process = machine.spawn("task", "follow", str(task["id"]))
    process.read_line()
    _, notices = process.end(signal.SIGINT)
    assert (process.returncode, notices) == (130, "")


def test_refusals_are_one_line(machine: AgentMachine) -> None:
    machine.user.start("one")
    done = machine.user.start("one")
    machine.user.report(done, status="complete")
    for arguments, sentence in (
        (["cancel", str(done["id"])], "The task is finished"),
        (["show", "nonsense"], "Task's ID is not found"),
        (["delete", "nonsense"], "Task's ID is not found"),
        (["show", "../user"], "Task's ID is not found"),
        (["list", "--agent", "B@D"], "There is no agent B@D"),
        (["start", "--agent", "B@D"], "There is no agent B@D"),
        (["start", "--agent", "one", "--label", "B@D=1"], "labels: "),
        (["rerun", "nonsense"], "Task's ID is not found"),
        (["logs", "nonsense"], "Task's ID is not found"),
    ):
        assert sentence in machine.fail("task", *arguments)


def test_closed_output_is_not_a_failure_of_ours(machine: AgentMachine) -> None:
    for _ in range(3):
        machine.user.start("one")
    process = machine.spawn("task", "list")
    with process:
        process.stdout.close()
        assert "Traceback" not in process.stderr.read()


# --- starting ----------------------------------------------------------------------------


def test_start_prints_the_id_of_a_task_that_waits(machine: AgentMachine) -> None:
    machine.user.register("one")
    started = machine.run(
        "task", "start", "--agent", "one", "--name", "by hand", "--input", '{"day": 1}',
        "--label", "env=prod", "--label", "odd=a=b:c", "--timeout", "1h30m",
    )  # fmt: skip
    task = machine.user.the_task()
    assert started.stdout == f"{task['id']}\n"
    assert started.stderr == (
        f"taskservice: waiting for a worker of agent one: {machine.user.url}/tasks/{task['id']}\n"
    )
    assert (task["name"], task["input"], task["claimedAt"]) == ("by hand", {"day": 1}, None)
    assert task["labels"] == {"env": "prod", "odd": "a=b:c"}


def test_start_takes_its_input_from_a_file_or_stdin(machine: AgentMachine, tmp_path: Path) -> None:
    machine.user.register("one")
    (tmp_path / "input.json").write_text('{"from": "a file", "exact": 12345678901234567890}')
    with open(tmp_path / "input.json") as file:
        options: tuple[tuple[str, dict[str, object]], ...] = (
            (f"@{tmp_path / 'input.json'}", {}),
            ("@-", {"stdin": file}),
        )
        for text, input_of in options:
            started = machine.run(
                "task", "start", "--agent", "one", "--input", text, "--json", **input_of
            )
            (task,) = objects(started.stdout)
            assert task["input"] == {"from": "a file", "exact": 12345678901234567890}
            assert (task["status"], task["claimedAt"]) == ("running", None)


def test_input_that_is_none_says_why_and_starts_nothing(
    machine: AgentMachine, tmp_path: Path
) -> None:
    task = machine.user.start("one")
    for text, reason in (
        ("{", "is not JSON"),
        ("\udcff", "is not JSON"),
        ("[1]", "must be a JSON object"),
        ('{"a": 1, "a": 2}', "a key twice"),
        ('{"a": 0.12345678901234567890}', "can't be stored exactly"),
        (f"@{tmp_path / 'none'}", "No such file or directory"),
        (f"@{tmp_path}", "Is a directory"),
        ("@/dev/zero", "larger than 1 MiB"),
    ):
        for command in (["start", "--agent", "one"], ["rerun", str(task["id"])]):
            refused = machine.run("task", *command, "--input", text)
            assert (refused.returncode, refused.stdout) == (2, "")
            assert reason in " ".join(refused.stderr.split()), text
    assert machine.user.the_task()["id"] == task["id"]


def test_unknown_agent_is_refused_with_similar_names(machine: AgentMachine) -> None:
    machine.user.register("word-count")
    for command in (["task", "start", "--agent"], ["task", "list", "--agent"], ["agent", "delete"]):
        refused = machine.run(*command, "word-cuont")
        assert (refused.returncode, refused.stdout) == (1, "")
        line = "taskservice: There is no agent word-cuont; did you mean word-count?\n"
        assert refused.stderr == line
    assert machine.user.request("GET", "/agent/word-cuont").status_code == 404


def test_started_task_is_followed_until_a_worker_has_done_it(machine: AgentMachine) -> None:
    machine.user.register("followed")
    process = machine.spawn("task", "start", "--agent", "followed", "--follow")
    claim = machine.user.request("POST", "/agent/followed/claim", headers={"Prefer": "wait=50"})
    machine.user.append(claim.json(), "one")
    machine.user.report(claim.json(), status="error", error={"message": "no"})
    printed, notices = process.communicate(timeout=40)
    task_id = claim.json()["id"]
    assert (printed, process.returncode) == ("one\n", 1)
    assert notices.splitlines() == [
        f"taskservice: task {task_id}: {machine.user.url}/tasks/{task_id}",
        "error: failed: no",
    ]


def test_rerun_prints_the_id_of_the_new_task(machine: AgentMachine) -> None:
    task = machine.user.start("one", name="first", input={"day": 1}, labels={"env": "prod"})
    machine.user.report(task, status="error", error={"message": "no"})
    again = machine.run("task", "rerun", str(task["id"])).stdout.strip()
    rerun = machine.user.read(f"/task/{again}")
    assert (rerun["rerunOf"], rerun["input"]) == (task["id"], {"day": 1})
    (other,) = objects(
        machine.run("task", "rerun", again, "--input", '{"day": 2}', "--json").stdout
    )
    assert (other["rerunOf"], other["input"], other["labels"]) == (
        again, {"day": 2}, {"env": "prod"},
    )  # fmt: skip


# --- lists -------------------------------------------------------------------------------


def shown_ids(machine: AgentMachine, *filters: str) -> list[str]:
    listed = machine.run("task", "list", "--json", *filters)
    assert listed.returncode == 0, listed.stderr
    return [task["id"] for task in objects(listed.stdout)]


def test_list_has_filters_for_what_a_person_looks_for(
    machine: AgentMachine, shared_service: Service
) -> None:
    silent = str(machine.user.start("one", claim=True)["id"])
    end_for_silence(shared_service)
    failed, cancelled = (machine.user.start("one", labels={"env": "prod"}) for _ in range(2))
    machine.user.report(failed, status="error", error={"message": "no"})
    machine.user.cancel(cancelled)
    waiting = machine.user.start("one", labels={"env": "prod", "team": "a=b"})
    child = str(machine.user.start("two", parentId=waiting["id"], claim=True)["id"])
    body = {"message": "Go on?"}
    machine.user.request("POST", f"/task/{child}/question", json=body).raise_for_status()
    for status, ids in (
        ("failed", [failed["id"], silent]),
        ("cancelled", [cancelled["id"]]),
        ("timeout", [silent]),
        ("waiting", [waiting["id"]]),
    ):
        assert shown_ids(machine, f"--{status}") == ids
        assert shown_ids(machine, "--status", status) == ids
    assert len(shown_ids(machine, "--status", "running")) == 2
    assert len(shown_ids(machine, "--status", "error")) == 3
    assert shown_ids(machine, "--asking") == [child]
    assert shown_ids(machine, "--hanging") == []
    assert shown_ids(machine, "--label", "env=prod", "--label", "team=a=b") == [waiting["id"]]
    assert shown_ids(machine, "--label", "env=prod", "--failed") == [failed["id"]]
    assert shown_ids(machine, "--parent", str(waiting["id"])) == [child]
    assert len(shown_ids(machine, "--since", "1h")) == 5
    assert shown_ids(machine, "--since", "0") == []
    for arguments in (["--failed", "--waiting"], ["--failed", "--status", "running"]):
        refused = machine.run("task", "list", *arguments)
        assert refused.returncode == 2
        assert "can't be used with another status" in refused.stderr


def test_list_shows_labels_and_how_far_a_task_is(machine: AgentMachine) -> None:
    waiting = machine.user.start("one", name="waiting")
    running = machine.user.start("one", name="running", claim=True, labels={"env": "prod"})
    machine.user.report(running, progress=0.5, note="34 of 68 pages")
    failed = machine.user.start("one", name="x" * 200)
    machine.user.report(failed, status="error", error={"message": "first line\nsecond line"})
    machine.settings["TZ"] = "Asia/Kolkata"
    header, *rows = machine.run("task", "list").stdout.splitlines()
    columns = header.split()
    assert columns == [
        "ID", "STATUS", "STARTED", "TOOK", "LINES", "AGENT", "NAME", "NOTE", "LABELS"
    ]  # fmt: skip
    words = {line.split()[1]: line for line in rows}
    assert words.keys() == {"failed", "running", "waiting"}
    assert "x" * 59 + "…  first line" in words["failed"]
    assert "second" not in words["failed"]
    assert words["running"].endswith("  50% 34 of 68 pages  env=prod")
    started = datetime.fromisoformat(str(waiting["createdAt"])).astimezone(ZoneInfo("Asia/Kolkata"))
    assert started.strftime("%Y-%m-%d %H:%M") in words["waiting"]
    # Each column begins at the same place.
    assert {line.index("one") for line in rows} == {header.index("AGENT")}


def test_list_says_that_there_are_more(machine: AgentMachine) -> None:
    for number in range(21):
        machine.user.start("one", name=f"number {number}")
    listed = machine.run("task", "list")
    assert len(listed.stdout.splitlines()) == 21
    assert "only the newest 20 tasks are shown" in listed.stderr
    assert "only the newest task is shown" in machine.run("task", "list", "--limit", "1").stderr
    assert len(shown_ids(machine)) == 21
    all_of_them = machine.run("task", "list", "--limit", "21")
    assert (len(all_of_them.stdout.splitlines()), all_of_them.stderr) == (22, "")


def test_terminal_shows_as_much_of_a_row_as_fits(machine: AgentMachine) -> None:
    machine.user.start("one", name="x" * 50)
    environment = machine.environment | {"COLUMNS": "80", "NO_COLOR": "1"}
    header, row = on_terminal([*machine.command, "task", "list"], environment).splitlines()
    assert header.startswith("ID ")
    assert len(row) == 80
    assert row.endswith("x…")


def test_terminal_shows_each_status_in_its_colour(machine: AgentMachine) -> None:
    task = machine.user.start("one", name="failed")
    machine.user.report(task, status="error", error={"message": "no"})
    shown = on_terminal([*machine.command, "task", "list"], machine.environment)
    assert shown.splitlines()[1].startswith(f"{str(task['id'])[:13]}  \x1b[31mfailed\x1b[0m  ")
    assert shown.count("\x1b") == 2
    without = machine.environment | {"NO_COLOR": "1"}
    assert "\x1b" not in on_terminal([*machine.command, "task", "list"], without)
    assert "\x1b" not in machine.run("task", "list").stdout


def test_duration_is_shown_for_what_ran(machine: AgentMachine) -> None:
    began = (datetime.now(UTC) - timedelta(minutes=90)).isoformat()
    task = machine.user.start("one", name="one", claim=True, claimedAt=began)
    machine.user.report(task, status="complete")
    (header, row) = machine.run("task", "list").stdout.splitlines()
    # The task has the name of its agent, so there is no column NAME.
    assert header.split() == ["ID", "STATUS", "STARTED", "TOOK", "LINES", "AGENT"]
    assert "1 h 30 min" in row
    assert re.search(
        "^took +1 h 30 min$", machine.run("task", "show", str(task["id"])).stdout, re.M
    )


def test_list_shows_ids_that_tell_its_tasks_apart(machine: AgentMachine) -> None:
    same = "01a20e63-9249"
    rows = [played.a_task(id=f"{same}-7{digit}13-aada-f8fd1cd47589") for digit in "01"]
    with Receiver() as receiver:
        machine.url = receiver.url
        for tasks, length in ((rows, 18), (rows[:1], 13)):
            receiver.answer = played.answer(200, tasks)
            _, *shown = machine.run("task", "list").stdout.splitlines()
            assert [row.split()[0] for row in shown] == [task["id"][:length] for task in tasks]


def test_show_has_the_fields_that_tell_where_a_task_comes_from(machine: AgentMachine) -> None:
    parent = machine.user.start("one")
    task = machine.user.start("one", labels={"env": "prod"}, parentId=parent["id"])
    machine.user.report(task, progress=0.25, note="a quarter")
    again = machine.user.request("POST", f"/task/{task['id']}/rerun").json()
    machine.user.report(task, status="complete")
    lines = machine.run("task", "show", str(task["id"])).stdout.splitlines()
    words = {line[:10].strip(): line[12:] for line in lines}
    assert words["progress"] == "25% a quarter"
    assert words["labels"] == "env=prod"
    assert words["parent"] == parent["id"]
    assert words["started by"] == words["ended by"] == "first"
    shown = machine.run("task", "show", again["id"]).stdout
    assert f"rerun of    {task['id']}\n" in shown
    assert "status      waiting\n" in shown


# --- logs --------------------------------------------------------------------------------


def test_logs_prints_the_lines_with_their_times(machine: AgentMachine) -> None:
    task = machine.user.start("one")
    machine.user.append(task, "\x1b[31mred\x1b[0m", "two")
    assert machine.run("task", "logs", str(task["id"])).stdout == "\x1b[31mred\x1b[0m\ntwo\n"
    machine.settings["TZ"] = "Asia/Kolkata"
    first, second = objects(machine.run("task", "logs", str(task["id"]), "--json").stdout)
    assert (second["number"], second["text"]) == (2, "two")
    local = datetime.fromisoformat(first["at"]).astimezone(ZoneInfo("Asia/Kolkata"))
    time = local.replace(tzinfo=None).isoformat(" ", timespec="milliseconds")
    timed = machine.run("task", "logs", str(task["id"]), "--times").stdout.splitlines()
    assert timed == [f"{time} \x1b[31mred\x1b[0m", f"{time} two"]
    machine.user.report(task, status="complete")
    followed = machine.run("task", "follow", str(task["id"]), "--times")
    assert followed.stdout.splitlines() == timed


def test_logs_prints_a_part(machine: AgentMachine) -> None:
    began = datetime.now(UTC) - timedelta(hours=2)
    task = machine.user.start("one", claim=True, claimedAt=began.isoformat())
    body = {"logs": ["old one", "old Error"], "at": began.isoformat()}
    machine.user.write("POST", f"/task/{task['id']}/logs", **body)
    machine.user.append(task, "new one", "new error", "end")

    def logs(*options: str) -> list[str]:
        return machine.run("task", "logs", str(task["id"]), *options).stdout.splitlines()

    assert logs("--tail", "2") == ["new error", "end"]
    assert logs("--tail", "0") == []
    assert len(logs("--tail", "9")) == 5
    assert logs("--since", "1h") == ["new one", "new error", "end"]
    assert logs("--grep", "eRROR") == ["old Error", "new error"]
    assert logs("--grep", "error", "--since", "1h") == ["new error"]
    following = machine.spawn("task", "logs", str(task["id"]), "--tail", "2", "--grep", "e", "-f")
    assert [following.read_line() for _ in range(2)] == ["new error\n", "end\n"]
    machine.user.append(task, "not", "later")
    machine.user.report(task, status="complete")
    assert following.communicate()[0] == "later\n"
    assert following.returncode == 0


# --- beginnings of IDs -------------------------------------------------------------------


def test_prefix_of_an_id_is_enough(machine: AgentMachine) -> None:
    task = machine.user.start("one")
    machine.user.append(task, "one")
    machine.user.report(task, status="complete")
    task_id = str(task["id"])
    for beginning in (
        task_id[:18],
        task_id[:4],
        task_id[:-1],
        task_id.upper(),
        task_id[:13],
        task_id.replace("-", ""),
    ):
        (shown,) = objects(machine.run("task", "show", beginning, "--json").stdout)
        assert shown["id"] == task_id
    assert machine.run("task", "logs", task_id[:18]).stdout == "one\n"
    assert machine.run("task", "follow", task_id[:18]).stdout == "one\n"
    again = machine.run("task", "rerun", task_id[:18]).stdout.strip()
    cancelled = machine.run("task", "cancel", again[:23])
    assert cancelled.stdout == "error: cancelled: Cancelled by its user\n"
    assert machine.run("task", "delete", again[:23]).stdout == f"{again} is deleted\n"


def test_prefix_of_several_tasks_or_none_is_refused(machine: AgentMachine) -> None:
    ids = [str(machine.user.start("one")["id"]) for _ in range(3)]
    for command in ("show", "logs", "follow", "rerun", "cancel", "delete"):
        several = machine.run("task", command, ids[0][:6])
        assert (several.returncode, several.stdout) == (2, "")
        assert several.stderr == (
            f"taskservice: Several IDs match {ids[0][:6]}, such as {ids[2]} and {ids[1]}\n"
        )
        none = machine.run("task", command, "ffff")
        assert (none.returncode, none.stdout) == (5 if command == "follow" else 1, "")
        assert none.stderr == "taskservice: No task matches ffff\n"
    assert len(shown_ids(machine)) == 3


def test_beginning_is_looked_for_among_the_tasks_of_its_time(machine: AgentMachine) -> None:
    with Receiver() as receiver:
        receiver.answer = play.answer(200, {"Content-Type": "application/json"}, b"[]")
        machine.url = receiver.url
        for beginning in ("01a20e63", "0", "f", "01a20e63-9249-7"):
            assert machine.run("task", "show", beginning).returncode == 1
    asked = [parse_qs(urlsplit(request.path).query) for request in receiver.requests]
    (first,), (last,) = asked[0]["createdAfter"], asked[0]["createdBefore"]
    spread = datetime.fromisoformat(last) - datetime.fromisoformat(first)
    assert timedelta(minutes=2) < spread < timedelta(minutes=4)
    assert {query["fields"][0] for query in asked} == {"id"}


def test_link_shows_the_task_to_everyone(machine: AgentMachine) -> None:
    task = machine.user.start("one", name="first")
    machine.user.append(task, "two")
    printed = machine.run("task", "link", str(task["id"])[:20]).stdout.strip()
    url = machine.user.url + urlsplit(printed).path
    assert "first" in requests.get(url, timeout=30).text
    assert requests.get(f"{url}/logs", timeout=30).json()["logs"] == ["two"]
    as_json = machine.run("task", "link", str(task["id"]), "--expires", "90d", "--json")
    (link,) = objects(as_json.stdout)
    assert link.keys() == {"id", "url", "createdAt", "expiresAt"}
    created, expires = (datetime.fromisoformat(link[at]) for at in ("createdAt", "expiresAt"))
    assert timedelta(days=89) < expires - created <= timedelta(days=90)
    assert machine.run("task", "link", str(task["id"]), "--expires", "91d").returncode == 2
