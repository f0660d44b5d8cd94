"""`taskservice login` and `logout`: the address and key that need not be in the environment."""

import json
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.agent_machine import AgentMachine, objects
from tests.support.api_client import RemoteClient
from tests.support.pseudo_terminal import on_terminal
from tests.support.receiver import Receiver, unused_port
from tests.support.service import Service


@pytest.fixture
def laptop(machine: AgentMachine) -> AgentMachine:
    """A machine on which nothing is set."""
    machine.key = machine.url = ""
    return machine


def log_in(laptop: AgentMachine, person: RemoteClient, *options: str) -> Any:
    return laptop.run("login", person.url, *options, input=f"{person.key}\n")


def kept_file(laptop: AgentMachine) -> Path:
    return laptop.home / "config" / "taskservice" / "profiles.json"


def test_kept_key_serves_commands_and_the_python_client(laptop: AgentMachine) -> None:
    before = laptop.run("task", "list")
    assert (before.returncode, "run `taskservice login`" in before.stderr) == (2, True)
    kept = log_in(laptop, laptop.user)
    assert kept.returncode == 0, kept.stderr
    assert f"is logged in to {laptop.user.url} (key first)" in kept.stdout
    assert laptop.user.key not in kept.stdout + kept.stderr
    assert laptop.run("run", "--agent", "nightly", "--", "true").returncode == 0
    with laptop.python("from taskservice.client import Client\nClient().start('two').complete()"):
        pass
    assert {task["agentId"] for task in laptop.user.tasks()} == {"nightly", "two"}
    assert f"{laptop.user.url}/mcp" in laptop.run("mcp-config").stdout
    file = kept_file(laptop)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert laptop.run("logout").stdout == f"Logged out of {laptop.user.url}\n"
    assert laptop.user.key not in file.read_text()
    assert laptop.run("task", "list").returncode == 2
    assert "Profile to remove" in laptop.run("logout", "--help").stdout
    again = laptop.run("logout")
    assert (again.returncode, again.stderr) == (
        1,
        "taskservice: There is no stored profile default\n",
    )


def test_terminal_asks_for_the_key_and_does_not_show_it(laptop: AgentMachine) -> None:
    command = [*laptop.command, "login", laptop.user.url]
    typed = {f"API key for {laptop.user.url}: ": laptop.user.key}
    shown = on_terminal(command, laptop.environment, typed)
    assert "is logged in" in shown
    assert laptop.user.key not in shown
    assert laptop.run("task", "list").returncode == 0


def test_what_does_not_work_is_not_kept(laptop: AgentMachine) -> None:
    refused = laptop.run("login", laptop.user.url, input="wrong\n")
    assert refused.returncode == 2
    assert "API key is invalid" in refused.stderr
    assert laptop.run("login", "ftp://x", input="key\n").returncode == 2
    assert laptop.run("login", laptop.user.url, input="").returncode == 2
    laptop.give_up_soon()
    away = laptop.run("login", f"http://127.0.0.1:{unused_port()}", input="key\n")
    assert (away.returncode, "refused" in away.stderr) == (69, True)
    assert not kept_file(laptop).exists()


def test_address_of_the_environment_is_the_default(laptop: AgentMachine) -> None:
    laptop.url = laptop.user.url
    kept = laptop.run("login", input=f"{laptop.user.key}\n")
    assert f"is logged in to {laptop.user.url}" in kept.stdout
    assert "while TASKSERVICE_URL is set, the stored URL and key are not used" in kept.stderr


def test_file_that_cannot_be_written_is_one_line(laptop: AgentMachine) -> None:
    laptop.settings["XDG_CONFIG_HOME"] = "/proc"
    refused = log_in(laptop, laptop.user)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert len(refused.stderr.splitlines()) == 1


def test_address_in_python_gets_no_kept_key(laptop: AgentMachine) -> None:
    log_in(laptop, laptop.user)
    with Receiver() as stranger:
        program = f"from taskservice.client import Client\nClient({stranger.url!r}).agents()"
        with laptop.python(program, stderr=subprocess.PIPE) as process:
            assert "TASKSERVICE_APIKEY is not set" in str(process.communicate()[1])
        assert stranger.requests == []


def test_environment_wins_and_a_kept_key_goes_nowhere_else(
    laptop: AgentMachine, shared_service: Service
) -> None:
    log_in(laptop, laptop.user)
    bob = shared_service.add_user()
    bob.start("of-bob")
    laptop.url, laptop.key = bob.url, bob.key
    (listed,) = objects(laptop.run("task", "list", "--json").stdout)
    assert listed["agentId"] == "of-bob"
    with Receiver() as stranger:
        laptop.url, laptop.key = stranger.url, ""
        refused = laptop.run("task", "list")
        assert (refused.returncode, stranger.requests) == (2, [])
    assert "TASKSERVICE_APIKEY is not set" in refused.stderr
    laptop.url, laptop.key = "", bob.key
    assert "TASKSERVICE_URL is not set" in laptop.run("task", "list").stderr


def test_each_profile_has_its_own_key(laptop: AgentMachine, shared_service: Service) -> None:
    bob = shared_service.add_user()
    bob.start("of-bob")
    laptop.user.start("of-alice")
    log_in(laptop, laptop.user)
    log_in(laptop, bob, "--profile", "team")

    def agents(*options: str) -> list[str]:
        listed = laptop.run(*options, "task", "list", "--json")
        return [task["agentId"] for task in objects(listed.stdout)]

    assert agents() == ["of-alice"]
    assert agents("--profile", "team") == ["of-bob"]
    laptop.settings["TASKSERVICE_PROFILE"] = "team"
    assert agents() == ["of-bob"]
    # A program that a command starts uses the same profile.
    del laptop.settings["TASKSERVICE_PROFILE"]
    inner = [sys.executable, "-m", "taskservice", "task", "list", "--json"]
    ran = laptop.run("--profile", "team", "run", "--agent", "inner", "--", *inner)
    assert "of-bob" in ran.stdout
    laptop.settings["TASKSERVICE_PROFILE"] = "taem"
    unknown = laptop.run("task", "list")
    assert unknown.returncode == 2
    assert "taem is not a stored profile (default, team)" in unknown.stderr


def test_damaged_file_is_named(laptop: AgentMachine) -> None:
    log_in(laptop, laptop.user)
    for text in ("{", "[]", json.dumps({"profiles": 1}), '{"profiles": {"default": {}}}'):
        kept_file(laptop).write_text(text)
        refused = laptop.run("task", "list")
        assert refused.returncode == 2
        assert f"{kept_file(laptop)} can't be read" in refused.stderr
