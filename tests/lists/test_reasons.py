"""Why a task failed, where its message is only an exit status: of what its program printed last."""

import json
from typing import Any

import pytest
from flask import Flask

from tests.support.api_client import ApiClient, expect
from tests.support.deliveries import looping
from tests.support.marks import one_database
from tests.support.receiver import Receiver

PYTHON = """Traceback (most recent call last):
  File "/app/job.py", line 2, in <module>
    f()
"""
UNIQUE = (
    'psycopg.errors.UniqueViolation: duplicate key value violates unique constraint "orders_pkey"'
)
NODE = """/app/job.js:2
throw new Error("job failed", { cause: e });
^

Error: job failed
    at Object.<anonymous> (/app/job.js:2:7)
    at Module._compile (node:internal/modules/cjs/loader:1521:14)
"""
JAVA = """Exception in thread "main" java.lang.IllegalStateException: job failed
\tat Job.main(Job.java:7)
"""
GO = """panic: the disk is full

goroutine 1 [running]:
main.f(...)
\t/app/job.go:2
main.main()
\t/app/job.go:3 +0x2d
"""

# What the program printed, and the reason in it.
PRINTED: dict[str, tuple[str, str]] = {
    "the last line": ("starting\nthe disk is full\n\n  \n", "the disk is full"),
    "a progress bar": ("10 %\r50 %\r\x1b[31mno space left\x1b[0m\r", "no space left"),
    "an exception of Python": (f"{PYTHON}ValueError: no rows", "ValueError: no rows"),
    "an exception without a message": (f"{PYTHON}KeyboardInterrupt", "KeyboardInterrupt"),
    "an exception that caused another": (
        f"{PYTHON}KeyError: 'a'\n\nThe above exception was the direct cause of the following "
        f"exception:\n\n{PYTHON}RuntimeError: no key a",
        "RuntimeError: no key a",
    ),
    "an exception while another was handled": (
        f"{PYTHON}ZeroDivisionError: division by zero\n\nDuring handling of the above exception, "
        f"another exception occurred:\n\n{PYTHON}OSError: [Errno 28] No space left on device",
        "OSError: [Errno 28] No space left on device",
    ),
    "details of a database": (f"{PYTHON}{UNIQUE}\nDETAIL:  Key (id)=(1) already exists.", UNIQUE),
    "the statement of a database": (
        f"{PYTHON}sqlalchemy.exc.IntegrityError: (x) y\nDETAIL:  Key (id)=(1) already exists.\n"
        "[SQL: INSERT INTO orders\nVALUES (1)]\n(Background on this error at: https://x.example)",
        "sqlalchemy.exc.IntegrityError: (x) y",
    ),
    "an exception group": (
        "  + Exception Group Traceback (most recent call last):\n"
        '  |   File "/app/job.py", line 1, in <module>\n'
        "  | ExceptionGroup: two orders failed (2 sub-exceptions)\n"
        "  +-+---------------- 1 ----------------\n    | ValueError: a\n"
        "    +------------------------------------",
        "ExceptionGroup: two orders failed (2 sub-exceptions)",
    ),
    "an exception that was handled": (
        f"{PYTHON}ConnectionError: refused\nretrying\ngave up: the disk is full",
        "gave up: the disk is full",
    ),
    "an error of Node.js": (f"{NODE}\nNode.js v20.20.2", "Error: job failed"),
    "an error of Node.js with properties": (
        f"{NODE[:-1]} {{\n  code: '42P01',\n  detail: {{ a: 1 }}\n}}\n\nNode.js v20.20.2",
        "Error: job failed",
    ),
    "an error of Node.js with a cause": (
        f"{NODE[:-1]} {{\n  [cause]: Error: connect ECONNREFUSED\n      at a (/app/b.js:1:11) {{\n"
        "    code: 'ECONNREFUSED'\n  }\n}\n\nNode.js v20.20.2",
        "Error: connect ECONNREFUSED",
    ),
    "an error with a message of two lines": (
        NODE.replace("job failed\n   ", "the disk is full\nsecond line\n   "),
        "Error: the disk is full",
    ),
    "an exception of Java": (JAVA, "java.lang.IllegalStateException: job failed"),
    "causes of Java": (
        f"{JAVA}Caused by: java.io.IOException: no order\n\tat Job.read(Job.java:4)\n"
        "Caused by: java.net.ConnectException: Connection refused\n\tat Net.a(Net.java:9)\n"
        "\t... 12 more",
        "java.net.ConnectException: Connection refused",
    ),
    "a panic of Go": (GO, "panic: the disk is full"),
    "a panic of Go that `go run` ends": (f"{GO}exit status 2", "panic: the disk is full"),
    "a signal of Go": (
        GO.replace("\n\n", "\n[signal SIGSEGV: segmentation violation addr=0x0]\n\n", 1),
        "panic: the disk is full",
    ),
    "a shell with set -ex": (
        "+ echo starting\nstarting\n+ ls /nowhere\nls: cannot access '/nowhere'\n++ cleanup",
        "ls: cannot access '/nowhere'",
    ),
    "a failed target of make": (
        "x.c:1: error: no main\nmake[1]: *** [Makefile:2: all] Error 3\nmake: *** [all] Error 2",
        "x.c:1: error: no main",
    ),
    "a long line": ("long " * 200, ("long " * 200)[:400].strip()),
}


def fail(person: ApiClient, message: str, *lines: str, agent_id: str = "job") -> dict[str, Any]:
    task = person.start(agent_id, claim=True)
    if lines:
        person.append(task, *lines)
    return person.report(task, status="error", error={"message": message})


def attention(person: ApiClient) -> dict[str, str]:
    """Agent -> why it needs attention."""
    return {item["agentId"]: item["text"] for item in expect(person.get("/attention"), 200)}


@one_database
def test_reason_is_the_exception_or_else_the_last_line(
    alice: ApiClient, subtests: pytest.Subtests
) -> None:
    agents = {name: f"agent-{number}" for number, name in enumerate(PRINTED)}
    for name, agent_id in agents.items():
        fail(alice, "Exit status 1", PRINTED[name][0], agent_id=agent_id)
    for name, agent_id in agents.items():
        with subtests.test(name):
            text = f"The last task failed: Exit status 1: {PRINTED[name][1]}"
            expected = text if len(text) <= 200 else f"{text[:199]}…"
            assert attention(alice)[agent_id] == expected


def test_message_that_has_a_reason_is_the_reason(alice: ApiClient) -> None:
    for agent_id, message in (
        ("plain", "the disk is full\nsee the log"),
        ("traceback", f"{PYTHON}ValueError: the disk is full\nsecond line"),
        ("status", "Exit status of the disk: full"),
    ):
        fail(alice, message, "not shown", agent_id=agent_id)
    assert attention(alice) == {
        "plain": "The last task failed: the disk is full",
        "traceback": "The last task failed: ValueError: the disk is full",
        "status": "The last task failed: Exit status of the disk: full",
    }


def test_reason_can_be_in_several_appends(alice: ApiClient) -> None:
    fail(alice, "Exit status 1", *PYTHON.splitlines()[:1])
    task = alice.start("job", claim=True)
    for line in f"{PYTHON}{UNIQUE}\nDETAIL:  Key (id)=(1) already exists.".splitlines():
        alice.append(task, line)
    alice.report(task, status="error", error={"message": "Exit status 1"})
    assert attention(alice)["job"].endswith(f"Exit status 1: {UNIQUE}")


def test_person_is_told_the_reason(app: Flask, alice: ApiClient, receiver: Receiver) -> None:
    for name, target in (("ntfy", "phone"), ("slack", "chat")):
        body = {"target": f"{receiver.url}{target}", "format": name}
        expect(alice.post("/hook", json=body), 201)
    fail(alice, "Exit status 3", f"{PYTHON}{UNIQUE}\nDETAIL:  Key (id)=(1) already exists.")
    with looping(app):
        bodies = [json.loads(request.body) for request in receiver.wait_for(2)]
    texts = [body.get("message") or body["text"] for body in bodies]
    assert all("Exit status 3" in text for text in texts)
    assert all("UniqueViolation" in text.replace("\u200b", "") for text in texts)
    assert not any("DETAIL" in text for text in texts)
