"""Every block of commands in the documents is typed: with a mark by its test, without one here."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.api_client import RemoteClient
from tests.support.documents import DOCUMENTS, ROOT, Terminal, command_blocks, install_commands
from tests.support.service import Service

# How a block begins that has no mark and is not typed here, and why.
NOT_TYPED = {
    "git clone ": "`.ci/first-run` and `tests/operations/test_installations.py` have it",
    "make run": "`.ci/first-run` types it",
    "uvx --from ": "`.ci/dist` tries the wheel",
    "pipx install ": "`.ci/dist` tries the wheel",
    "gunicorn -c ": "tests/operations/test_commands.py starts it",
    "make dist": "CI builds a release",
    "git tag ": "it publishes a version",
    ".venv/bin/twine ": "it publishes a version",
    "npx openapi-typescript ": "`tests/api/test_typescript.py` generates the types",
    "curl -s http://127.0.0.1:8000/openapi.json | jq": "`tests/other_suites` generates the clients",
    "version=0.1.0.dev$(git -C taskservice": "`tests/deploy/test_containers.py` builds an image",
    "kubectl create secret ": "it needs a cluster",
    "taskservice agent add clean-up ": "a worker does not end; test_examples.py runs this one",
    "taskservice progress ": "test_questions_and_progress.py runs it inside a task",
    "answer=$(taskservice ask ": "it waits for a person; test_examples.py has it in a program",
    "install -m 644 deploy/": "tests/deploy installs these files, and starts their programs",
    "install -m 640 -g caddy ": "tests/deploy/test_web_servers.py reads this file",
    "systemctl reload caddy": "tests/deploy/test_booted_machine.py restarts it",
    'echo "ann@example.org:': "it asks for a password",
    "podman exec tasks ": "tests/deploy/test_containers.py runs commands in a container",
}
PROGRAMS = {
    "claude": """echo '{"result": "done"}'""",
    "make": "echo tested",
    "read.sh": "cat >/dev/null",
}


def is_typed(block: str) -> bool:
    return not block.lstrip().startswith(tuple(NOT_TYPED))


def unmarked() -> Iterator[tuple[str, str]]:
    for name in DOCUMENTS:
        yield from ((name, block) for mark, block in command_blocks(name) if not mark)


def test_every_mark_has_its_test() -> None:
    tests = "".join(path.read_text() for path in (ROOT / "tests").rglob("*.py"))
    tests += "".join((ROOT / name).read_text() for name in (".ci/dist", "taskservice/terms.py"))
    for name in DOCUMENTS:
        for mark, _ in command_blocks(name):
            part = mark.rpartition(": ")[2]
            assert re.search(f"[\"'](?:{mark}|{part})[\"']", tests), f"{name}: {mark}"


def test_no_exception_is_left_over() -> None:
    blocks = [block.lstrip() for _, block in unmarked()]
    for beginning in NOT_TYPED:
        assert any(block.startswith(beginning) for block in blocks), beginning


def two_runs(person: RemoteClient) -> list[str]:
    """The ids of a good run and of a failed one, with the line that the documents search."""
    good = person.start("summarizer", claim=True)
    person.report(good, status="complete")
    failed = person.start("summarizer", claim=True)
    person.append(failed, "write failed: disk full")
    person.report(failed, status="error")
    return [good["id"], failed["id"]]


def asking_task(person: RemoteClient) -> str:
    task = person.start("summarizer", claim=True)
    person.write("POST", f"/task/{task['id']}/question", message="Deploy to production?")
    return str(task["id"])


def test_commands_in_the_documents_work(
    own_service: Service, terminal: Terminal, tmp_path: Path, subtests: pytest.Subtests
) -> None:
    me, alice = own_service.add_user("me"), own_service.add_user("alice")
    for agent in ("summarizer", "tests", "demo", "reader", "coder"):
        me.register(agent)
    alice.register("backup")
    extra_key = me.write("POST", "/key", name="extra")["id"]
    (good, failed), running = two_runs(me), me.start("summarizer", claim=True)["id"]
    places = {
        "http://127.0.0.1:8000": own_service.url, "tsk_user_...": me.key, "tsk_agent_...": me.key,
        "answer 01a20e63-9249-713c": f"answer {asking_task(me)}",
        "follow 01a20e63-9249-713c": f"follow {good}", "01a20e63-9249-713c": failed,
        "$TASK/question": f"{running}/question", "$TASK/": f"{failed}/", "wait=60": "wait=1",
        "KEY_ID": extra_key, "user add alice": "user add carol", "user add me": "user add dan",
    }  # fmt: skip
    commands = install_commands(tmp_path / ".venv/bin")
    for name, script in PROGRAMS.items():
        (commands / name).write_text(f"#!/bin/sh\n{script}\n")
        (commands / name).chmod(0o755)
    (tmp_path / "read.sh").symlink_to(commands / "read.sh")
    (commands / "activate").touch()
    settings = own_service.environment | {
        "TASKSERVICE_URL": me.url, "TASKSERVICE_APIKEY": me.key, "PYTHONPATH": str(ROOT),
        "API": f"{me.url}/api/v1", "KEY": me.key, "XDG_STATE_HOME": str(tmp_path / "state"),
    }  # fmt: skip
    names = [name for name in settings if name in ("API", "KEY") or "TASKSERVICE" in name]
    exports = [f"{name}='{settings[name]}'" for name in (*names, "PYTHONPATH", "XDG_STATE_HOME")]
    terminal.run(f"export PATH={commands}:$PATH {' '.join(exports)}")
    for name, block in unmarked():
        if is_typed(block):
            with subtests.test(f"{name}: {block}"):
                for old, new in places.items():
                    block = block.replace(old, new)
                shown = terminal.run(f"(set -e\n{block}) </dev/null\necho status $?", 60)
                assert shown.endswith("status 0"), shown
