"""The commands on the server, run as processes."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from urllib.parse import unquote

import pytest
import requests

import taskservice
from taskservice.database import migrations
from tests.support import receiver as play
from tests.support.commands import one_line, run, without_database
from tests.support.databases import Databases
from tests.support.fork_server import ForkedPopen, run_forked
from tests.support.receiver import Receiver
from tests.support.service import COMMAND, Service, environment


def test_tables_have_the_times_of_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", "Asia/Kolkata")
    run(tmp_path, "user", "add", "alice")
    for noun in ("user", "key"):
        (row,) = map(json.loads, run(tmp_path, noun, "list", "--json").stdout.splitlines())
        local = datetime.fromisoformat(row["createdAt"]) + timedelta(hours=5, minutes=30)
        assert f"{local:%Y-%m-%d %H:%M:%S}" in run(tmp_path, noun, "list").stdout


def test_user_add_prints_the_key_alone(tmp_path: Path) -> None:
    added = run(tmp_path, "user", "add", "alice")
    assert (added.returncode, added.stderr) == (0, "")
    assert added.stdout.startswith("tsk_user_")
    assert len(added.stdout.split()) == 1
    (user,) = map(json.loads, run(tmp_path, "user", "list", "--json").stdout.splitlines())
    assert user["name"] == "alice"
    assert "alice" in run(tmp_path, "user", "list").stdout
    assert "A user alice already exists" in one_line(run(tmp_path, "user", "add", "alice"), 1)


def test_key_add_list_and_revoke(tmp_path: Path) -> None:
    run(tmp_path, "user", "add", "alice")
    added = run(tmp_path, "key", "add", "alice", "--name", "machine", "--expires", "90d")
    assert added.stdout.startswith("tsk_user_")
    listed = run(tmp_path, "key", "list", "--json")
    keys = {key["name"]: key for key in map(json.loads, listed.stdout.splitlines())}
    assert keys.keys() == {"first", "machine"}
    assert keys["machine"]["expiresAt"] > keys["machine"]["createdAt"]
    assert keys["machine"]["hint"][-4:] == added.stdout.strip()[-4:]
    assert added.stdout.strip() not in listed.stdout
    revoked = run(tmp_path, "key", "revoke", keys["machine"]["id"])
    assert (revoked.returncode, revoked.stdout, revoked.stderr) == (0, "", "")
    assert "No key matches nonsense" in one_line(run(tmp_path, "key", "revoke", "nonsense"), 1)
    table = run(tmp_path, "key", "list").stdout
    assert "machine" in table


def test_headers_of_tables_are_words_in_capitals(tmp_path: Path) -> None:
    run(tmp_path, "user", "add", "alice")
    headers = {
        name: re.split("  +", run(tmp_path, name, "list").stdout.splitlines()[0])
        for name in ("user", "key", "delivery")
    }
    assert headers == {
        "user": ["NAME", "ID", "CREATED"],
        "key": [
            "USER", "NAME", "HINT", "AGENT", "ACCESS", "LOGIN", "ID", "CREATED", "EXPIRES",
            "LAST USED", "REVOKED",
        ],
        "delivery": ["ID", "STATE", "USER", "TASK", "CALLBACK", "CREATED", "NEXT ATTEMPT"],
    }  # fmt: skip


def test_prefix_of_a_key_is_enough(databases: Databases, tmp_path: Path) -> None:
    for settings in ({}, {"DATABASE_URL": databases.new_postgresql()}):
        for name in ("alice", "bob"):
            run(tmp_path, "user", "add", name, **settings)

        def revoked(of_settings: dict[str, str] = settings) -> dict[str, bool]:
            listed = run(tmp_path, "key", "list", "--json", **of_settings).stdout.splitlines()
            return {key["id"]: bool(key["revokedAt"]) for key in map(json.loads, listed)}

        several = run(tmp_path, "key", "revoke", "0", **settings)
        assert "Several IDs match 0, such as " in one_line(several, 2)
        first, second = revoked()
        for prefix in (first[:-1], second[:-1].upper()):
            assert run(tmp_path, "key", "revoke", prefix, **settings).returncode == 0
        assert revoked() == {first: True, second: True}


def test_key_revoke_of_a_user_revokes_all_of_that_user(
    databases: Databases, tmp_path: Path
) -> None:
    for settings in ({}, {"DATABASE_URL": databases.new_postgresql()}):
        for name in ("alice", "bob"):
            run(tmp_path, "user", "add", name, **settings)
        run(tmp_path, "key", "add", "alice", "--name", "machine", **settings)
        for message in ("2 keys revoked", "0 keys revoked"):
            revoked = run(tmp_path, "key", "revoke", "--user", "alice", **settings)
            assert (revoked.returncode, revoked.stdout) == (0, f"{message}\n")
            assert without_database(revoked.stderr) == ""
        listed = run(tmp_path, "key", "list", "--json", **settings).stdout.splitlines()
        keys = [(key["user"], key["revokedAt"] is None) for key in map(json.loads, listed)]
        assert keys == [("alice", False), ("alice", False), ("bob", True)]
        unknown = run(tmp_path, "key", "revoke", "--user", "nobody", **settings)
        assert "No such user: nobody" in one_line(unknown, 1)


@pytest.mark.parametrize("arguments", [(), ("x", "--user", "alice")])
def test_key_revoke_wants_a_key_or_a_user(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    run(tmp_path, "user", "add", "alice")
    refused = run(tmp_path, "key", "revoke", *arguments)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "Give KEY_ID or --user." in refused.stderr


def test_name_that_the_encoding_of_stdout_lacks_is_printed_as_json_escapes_it(
    tmp_path: Path,
) -> None:
    run(tmp_path, "user", "add", "jürgen 漢")
    listed = subprocess.run(
        [*COMMAND, "user", "list", "--json"],
        env=environment(tmp_path) | {"PYTHONIOENCODING": "latin-1"},
        capture_output=True, timeout=60, check=True,
    )  # fmt: skip
    assert json.loads(listed.stdout)["name"] == "jürgen 漢"


def test_refusal_is_one_line(tmp_path: Path, subtests: pytest.Subtests) -> None:
    run(tmp_path, "user", "add", "alice")
    for arguments, sentence in (
        (["key", "add", "nobody", "--name", "x"], "No such user: nobody"),
        (["key", "add", "alice", "--name", "x", "--agent", "none"], "No such agent"),
        (["key", "add", "alice", "--name", ""], "Must have 1 to 200"),
        (["user", "add", ""], "Must have 1 to 200"),
        (["callback", "test", "http://127.0.0.1/", "--user", "nobody"], "No such user: nobody"),
    ):
        with subtests.test(" ".join(arguments)):
            assert sentence in one_line(run(tmp_path, *arguments), 1)


def test_argument_that_is_not_utf_8_is_refused(tmp_path: Path, subtests: pytest.Subtests) -> None:
    run(tmp_path, "user", "add", "alice")
    for command in (
        "user add \udcff", "key add \udcff --name x", "key add alice --name \udcff",
        "key add alice --name x --agent \udcff", "key revoke \udcff", "callback test http://\udcff/",
        "callback test http://127.0.0.1:9/ --user \udcff", "delivery list --state \udcff",
    ):  # fmt: skip
        with subtests.test(ascii(command)):
            result = run(tmp_path, *command.split())
            assert (result.returncode, result.stdout) == (2, "")
            assert result.stderr.splitlines()[-1].startswith("Error: Invalid value for ")
    for command in ("delivery show \udcff", "delivery redeliver \udcff"):
        with subtests.test(ascii(command)):
            one_line(run(tmp_path, *command.split()), 1)


@pytest.mark.parametrize(
    "command",
    [
        "user list --json", "user delete alice --yes --now", "key add alice --name x", "key list",
        "key revoke x", "delivery list", "delivery show x", "delivery redeliver x",
        "prune --dry-run", "callback test http://127.0.0.1:9/", "background", "db check",
        "db backup backup.db", "export",
    ],
)  # fmt: skip
def test_command_makes_no_database_where_there_is_none(tmp_path: Path, command: str) -> None:
    data = tmp_path / "none"
    result = run(data, *command.split(), SECRET_KEY="")
    assert result.returncode == 1
    (line,) = [line for line in (result.stdout + result.stderr).splitlines() if "no data" in line]
    assert f"There is no database at {data / 'taskservice.db'}" in line
    assert list(tmp_path.iterdir()) == []


def test_command_makes_no_tables_where_there_are_none(databases: Databases, tmp_path: Path) -> None:
    (tmp_path / "taskservice.db").touch()
    url = databases.new_postgresql()
    for settings in ({}, {"DATABASE_URL": url}):
        line = one_line(run(tmp_path, "user", "list", **settings), 1)
        assert "There is no database at " in line
    assert (tmp_path / "taskservice.db").read_bytes() == b""
    # After a command that only reads, another one can still create the tables.
    assert run(tmp_path, "db", "upgrade", DATABASE_URL=url).returncode == 0
    assert run(tmp_path, "user", "list", DATABASE_URL=url).returncode == 0


def test_wrong_setting_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    result = run(tmp_path, "serve", THREADS="none")
    assert "TASKSERVICE_THREADS: must be" in one_line(result, 2)


def test_unknown_setting_is_a_warning(tmp_path: Path) -> None:
    result = run(tmp_path, "db", "upgrade", THREDS="16")
    assert result.returncode == 0
    assert "TASKSERVICE_THREDS is not a known setting" in result.stderr


def test_serve_on_a_broken_database_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "taskservice.db").write_text("not a database")
    assert "is not an SQLite database" in one_line(run(tmp_path, "serve"), 1)
    assert (tmp_path / "taskservice.db").read_text() == "not a database"


def test_serve_on_a_taken_port_is_an_error(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        bind = f"127.0.0.1:{taken.getsockname()[1]}"
        result = run(tmp_path, "serve", BIND=bind, FIRST_USER="me")
    line = one_line(result, 1)
    assert line.startswith(f"taskservice: can't listen on {bind}: Address already in use; ")
    assert "TASKSERVICE_BIND" in line
    # Nobody was added whose key was never shown.
    assert not (tmp_path / "taskservice.db").exists()


def test_db_upgrade_says_the_revision(tmp_path: Path) -> None:
    assert run(tmp_path, "db", "upgrade").stdout == f"{migrations.head()}\n"


def test_version_and_help_need_no_database(tmp_path: Path) -> None:
    assert run(tmp_path / "none", "--version").stdout.startswith("taskservice, version ")
    assert "Server commands:" in run(tmp_path / "none", "--help").stdout
    assert not (tmp_path / "none").exists()


def test_callback_test_sends_a_signed_sample(tmp_path: Path) -> None:
    run(tmp_path, "user", "add", "alice")
    with Receiver() as receiver:
        ok = run(tmp_path, "callback", "test", receiver.url, CALLBACK_ALLOWED="loopback")
        receiver.answer = play.answer(500)
        failed = run(
            tmp_path, "callback", "test", receiver.url, "--user", "alice",
            CALLBACK_ALLOWED="loopback",
        )  # fmt: skip
    assert ok.returncode == 0
    assert failed.returncode == 1
    assert "500" in failed.stdout
    assert all("webhook-signature" in request.headers for request in receiver.requests)


def test_callback_test_says_how_to_allow_an_address(tmp_path: Path) -> None:
    run(tmp_path, "db", "upgrade")
    result = run(tmp_path, "callback", "test", "http://127.0.0.1:9/")
    assert result.returncode == 1
    assert "TASKSERVICE_CALLBACK_ALLOWED" in result.stdout


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_service_stops_at_sigterm_and_starts_again_with_its_tasks(service: Service) -> None:
    alice = service.add_user()
    task = alice.start()
    assert str(service.environment["TASKSERVICE_DATA"]) in service.log.read_text()
    assert service.stop() == 0
    service.start()
    assert alice.request("GET", f"/task/{task['id']}").json() == task
    assert service.stop(signal.SIGINT) == 0


def test_flask_command_finds_the_factory_and_its_settings(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "flask", "--app", "taskservice.app", "routes"]
    environment = {**os.environ, "TASKSERVICE_DATA": str(tmp_path / "data")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "/api/v1/task/<task:task_id>" in done.stdout
    assert (tmp_path / "data" / "taskservice.db").exists()


def test_gunicorn_alone_serves_the_same(tmp_path: Path) -> None:
    service = Service(tmp_path / "data")
    key = service.add_user("alice").session.headers["apikey"]
    command = [
        COMMAND[0], "-m", "gunicorn", "-c", "python:taskservice.serving.gunicorn_config",
        "wsgi:app",
    ]  # fmt: skip
    root = Path(__file__).parents[2]
    with open(service.log, "wb") as log:
        process = ForkedPopen(
            command, env=service.environment, cwd=root, stderr=log, start_new_session=True
        )
    service.process = process
    try:
        service.wait_until_ready()
        answer = requests.get(f"{service.url}/api/v1/user", headers={"apikey": key}, timeout=10)
        assert answer.json()["name"] == "alice"
    finally:
        process.terminate()
        process.wait(timeout=30)


def test_no_secret_reaches_the_log(tmp_path: Path) -> None:
    with Service(tmp_path / "data", LOG_FORMAT="json", LOG_LEVEL="debug") as service:
        alice = service.add_user()
        key = alice.key
        with Receiver() as receiver:
            task = alice.start(callback=f"{receiver.url}?token=hidden")
            alice.request("GET", f"/task?apikey={key}")
            alice.request("PATCH", f"/task/{task['id']}", json={"status": "complete"})
        secret = alice.request("GET", "/callback-secret").json()["secret"]
    log = service.log.read_text()
    assert "GET /api/v1/task" in log
    assert not [word for word in (key, secret, "hidden") if word in log]


# --- files that are none, and rights that are missing --------------------------------------


def make_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize("make", [os.mkfifo, make_device, Path.mkdir])
def test_file_of_the_service_that_is_not_a_regular_file_is_one_line(
    tmp_path: Path, make: Callable[[Path], None], subtests: pytest.Subtests
) -> None:
    make(tmp_path / "secret_key")
    for command in (["serve"], ["db", "backup", "x"]):
        with subtests.test(f"secret_key {command}"):
            line = one_line(run(tmp_path, *command, SECRET_KEY=""), 2)
            assert line.endswith("secret_key cannot be used: it is not a regular file")
    make(tmp_path / "taskservice.db")
    for command in (["serve"], ["user", "list"]):
        with subtests.test(f"taskservice.db {command}"):
            line = one_line(run(tmp_path, *command), 1)
            assert line.endswith("taskservice.db cannot be opened: it is not a regular file")


def test_folder_that_cannot_be_used_is_one_line(tmp_path: Path, subtests: pytest.Subtests) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "none")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for name in ("file", "link", "loop"):
        with subtests.test(name):
            line = one_line(run(tmp_path / name, "db", "upgrade", SECRET_KEY=""), 2)
            assert line.endswith(f"{name} is not a directory")
            line = one_line(run(tmp_path / name, "db", "upgrade"), 1)
            assert line.endswith(f"{name} is not a directory")


def test_serve_leaves_gunicorn_no_settings_of_its_own(tmp_path: Path) -> None:
    """It comes to the point of listening."""
    served = subprocess.run(
        [*COMMAND, "serve"],
        env=environment(tmp_path, BIND="nowhere.invalid:8000")
        | {"WEB_CONCURRENCY": "", "FORWARDED_ALLOW_IPS": "proxy", "GUNICORN_CMD_ARGS": "--none"},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert served.returncode == 2
    assert "can't listen on nowhere.invalid:8000" in served.stderr.splitlines()[-1]
    assert "Traceback" not in served.stderr


def test_umask_that_takes_the_rights_of_the_owner_changes_nothing(tmp_path: Path) -> None:
    data = tmp_path / "new" / "data"
    # What a killed process may have left.
    data.mkdir(parents=True)
    (data / "secret_key.new").write_text("half a k")
    (data / "secret_key.new").chmod(0o400)
    command = [*COMMAND, "user", "add", "alice"]
    environ = environment(data, SECRET_KEY="")
    run_forked(command, env=environ, umask=0o377, timeout=60, check=True)
    modes = {path.name: path.stat().st_mode & 0o777 for path in data.iterdir()}
    made = ["secret_key", "taskservice.db", "taskservice.db-version", "taskservice.db-writers"]
    assert modes == dict.fromkeys(made, 0o600)


# --- paths with signs that mean something in a URL ----------------------------------------

ODD_NAMES = ["a b?c=d#e%41f%", "ü漢&:@;+~'\"", os.fsdecode(b"not \xff UTF-8")]
odd_names = pytest.mark.parametrize("name", ODD_NAMES, ids=["signs", "unicode", "bytes"])


def users_of(data: Path) -> list[str]:
    listed = run(data, "user", "list", "--json")
    assert listed.returncode == 0, listed
    return [json.loads(line)["name"] for line in listed.stdout.splitlines()]


@odd_names
def test_folder_of_any_name_has_all_of_the_data(tmp_path: Path, name: str) -> None:
    data, restored = tmp_path / name, tmp_path / f"{name} restored"
    restored.mkdir()
    added = run(data, "user", "add", "alice", SECRET_KEY="")
    assert added.returncode == 0, added
    assert {path.name for path in tmp_path.iterdir()} == {name, restored.name}
    assert {"taskservice.db", "secret_key"} <= {path.name for path in data.iterdir()}
    assert run(data, "db", "check").returncode == 0
    made = run(data, "db", "backup", str(restored / "taskservice.db"))
    assert made.returncode == 0, made
    assert users_of(data) == users_of(restored) == ["alice"]


@odd_names
def test_service_with_a_folder_of_any_name_serves_its_database(tmp_path: Path, name: str) -> None:
    with Service(tmp_path / name) as service:
        person = service.add_user("alice")
        assert person.request("GET", "/user").json()["name"] == "alice"
    assert users_of(tmp_path / name) == ["alice"]


@pytest.mark.parametrize("name", ["with 100% 漢 and %(here)s?#"])
def test_package_in_a_folder_of_any_name_migrates(tmp_path: Path, name: str) -> None:
    shutil.copytree(Path(taskservice.__file__).parent, tmp_path / name / "taskservice")
    upgraded = subprocess.run(
        [sys.executable, "-m", "taskservice", "db", "upgrade"],
        env=environment(tmp_path / "data"),
        cwd=tmp_path / name, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert upgraded.returncode == 0, upgraded


@pytest.mark.parametrize("path", ["a%3Fb", "a%2541"])
def test_path_in_a_database_url_is_spelled_as_in_any_url(tmp_path: Path, path: str) -> None:
    data = tmp_path / "data"
    done = run(data, "db", "upgrade", DATABASE_URL=f"sqlite:///{tmp_path}/{path}.db")
    assert done.returncode == 0, done
    assert (tmp_path / f"{unquote(path)}.db").exists()
