"""Secrets of the environment: hidden in what is stored and sent, and shown on the terminal."""

import json
import random
import sys
from pathlib import Path

import pytest

from taskservice.runner.program_output import LineSplitter, Masker
from tests.support.agent_machine import AgentMachine
from tests.support.waiting import until

SECRET = "hunter2-hunter2"
PEM = "-----BEGIN KEY-----\nMIIEvQIBADANBgkq\nhkiG9w0B\n==\n--------\n-----END KEY-----\n"

# Prints each argument at once, byte by byte.
BYTE_BY_BYTE = """
import os, sys, time
for text in sys.argv[1:]:
    for byte in text.encode():
        os.write(1, bytes([byte]))
        time.sleep(0.005)
"""


def masked(text: str, **environment: str) -> str:
    return Masker(environment).mask(text.encode()).decode()


def split(blocks: list[bytes], **environment: str) -> list[bytes]:
    splitter = LineSplitter(Masker(environment))
    text = b"".join([splitter.feed(block) for block in blocks] + [splitter.close()])
    return text.split(b"\n")[:-1]


# --- what is hidden ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["API_KEY", "apikey", "GitHub_Token", "CLIENT_SECRET_2", "db_password", "TASKSERVICE_APIKEY"],
)
def test_variable_that_looks_secret_is_hidden(name: str) -> None:
    assert masked(f"a {SECRET} b", **{name: SECRET}) == "a *** b"


@pytest.mark.parametrize(
    "environment",
    [
        {"USER": SECRET},
        {"A_KEY": SECRET[:7]},
        {"A_KEY": ""},
        {"A_KEY": " " * 8},
        {"A_KEY": "äöüäöüä"},
    ],
)
def test_other_values_are_left(environment: dict[str, str]) -> None:
    text = f"{SECRET} äöüäöüä {' ' * 20}"
    assert masked(text, **environment) == text


def test_value_of_8_characters_is_hidden() -> None:
    assert masked("<äöüäöüäö>", PASSWORD="äöüäöüäö") == "<***>"


def test_spaces_around_a_value_need_not_be_printed() -> None:
    assert masked(f"<{SECRET}> <  {SECRET} >", A_KEY=f"  {SECRET} ") == "<***> <  *** >"
    assert masked("<secret> <  secret>", A_KEY="  secret") == "<secret> <***>"


def test_secret_that_contains_another_one_leaves_nothing_of_either() -> None:
    keys = {"A_KEY": "efgh1234", "B_KEY": "abcdefgh1234ijklmnop", "C_KEY": "abcdefgh1234"}
    assert masked("<abcdefgh1234ijklmnop>", **keys) == "<***>"
    assert masked("<xefgh1234x>", **keys) == "<x***x>"
    assert masked(f"{SECRET}{SECRET}", A_KEY=SECRET) == "******"


def test_value_of_several_lines_is_hidden_line_by_line_where_it_is_safe() -> None:
    shown = "-----BEGIN KEY-----\nkey: MIIEvQIBADANBgkq\nhkiG9w0B\n==\n--------\n"
    assert masked(shown, TLS_KEY=PEM) == "***\nkey: ***\n***\n==\n--------\n"
    assert masked(f"<{SECRET}>", A_KEY=f"{SECRET}\r\n") == "<***>"


def test_lines_keep_their_number_and_order() -> None:
    chance = random.Random(5)
    for _ in range(200):
        pieces = chance.choices(["a", "\n", SECRET, SECRET[:5], "hkiG9w0B", PEM, "\r"], k=30)
        text = "".join(pieces).encode()
        keys = {"A_KEY": SECRET, "B_KEY": PEM}
        assert len(split([text], **keys)) == len(split([text]))
        cuts = sorted(chance.choices(range(len(text)), k=5))
        bounds = zip([0, *cuts], [*cuts, len(text)], strict=True)
        blocks = [text[start:end] for start, end in bounds]
        assert split(blocks, **keys) == split([text], **keys)
        assert SECRET.encode() not in b"\n".join(split(blocks, **keys))


# --- where a secret is divided -----------------------------------------------------------


def test_secret_is_found_wherever_it_is_divided() -> None:
    text = f"a {SECRET} b\n{SECRET}".encode()
    for cut in range(len(text)):
        assert split([text[:cut], text[cut:]], A_KEY=SECRET) == [b"a *** b", b"***"]
    assert split([bytes([byte]) for byte in text], A_KEY=SECRET) == [b"a *** b", b"***"]


@pytest.mark.parametrize("size", [8, 15, 300])
@pytest.mark.parametrize("is_in_blocks", [True, False])
def test_line_that_is_cut_shows_no_part_of_a_secret(size: int, is_in_blocks: bool) -> None:
    """However much of the secret is before the cut."""
    secret = "".join(chr(ord("A") + number % 26) for number in range(size))
    for before in (65_436 - size // 2, 65_536 - size // 2, 65_435, 65_535):
        line = b"x" * before + secret.encode() + b"y" * 100_000 + b"\n"
        blocks = [line[at : at + 10_000] for at in range(0, len(line), 10_000)]
        (kept,) = split(blocks if is_in_blocks else [line], A_KEY=secret)
        assert kept.startswith(b"x" * 60_000)
        assert secret[:1].encode() not in kept.replace(b"truncated here, the line has", b"")


def test_long_line_of_many_secrets_shows_no_part_of_one() -> None:
    """Masked, the stored part is shorter than the limit of a line."""
    line = f"{SECRET} , " * 20_000
    (kept,) = split([line[at : at + 10_000].encode() for at in range(0, len(line), 10_000)],
                    A_KEY=SECRET)  # fmt: skip
    assert kept.startswith(b"*** , *** , ")
    assert b"hunter" not in kept


def test_secret_that_two_writes_print_is_found(machine: AgentMachine) -> None:
    machine.settings["DB_PASSWORD"] = SECRET
    program = [sys.executable, "-c", BYTE_BY_BYTE, f"log in with {SECRET}\n", f"{SECRET}"]
    done = machine.run("run", "--agent", "a", "--", *program)
    assert done.stdout == f"log in with {SECRET}\n{SECRET}"
    assert machine.user.the_task()["logs"] == ["log in with ***", "***"]


# --- the commands ------------------------------------------------------------------------


def test_secret_is_shown_and_neither_stored_nor_sent(machine: AgentMachine) -> None:
    """While the service is unavailable, its lines and output are on the disk."""
    machine.settings["DB_PASSWORD"] = SECRET
    machine.lose_service()
    script = """
    echo "one $DB_PASSWORD"; echo "two $DB_PASSWORD" >&2; echo three
    echo "{\\"password\\": \\"$DB_PASSWORD\\", \\"a\\": [1.5, true, null]}" > "$TASKSERVICE_OUTPUT"
    exit 7
    """
    done = machine.run_script(script)
    assert done.returncode == 7
    assert done.stdout.splitlines()[:2] == [f"one {SECRET}", "three"]
    assert f"two {SECRET}" in done.stderr
    (folder,) = machine.left_runs()
    assert files_with(SECRET, folder) == []
    assert files_with("***", folder) != []
    assert machine.resend().returncode == 0
    task = machine.user.the_task()
    assert SECRET not in json.dumps(task)
    assert sorted(task["logs"])[:3] == ["one ***", "three", "two ***"]
    assert task["output"] == {"password": "***", "a": [1.5, True, None]}
    assert task["error"]["message"] == "Exit status 7"


def files_with(text: str, folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if text.encode() in path.read_bytes()]


def test_secret_in_the_file_of_the_output_is_not_sent(machine: AgentMachine) -> None:
    machine.settings["PIN_TOKEN"] = "12345678"
    output = '{"12345678": [{"x": "a 12345678 b"}], "pin": 12345678, "more": 123}'
    script = f"""echo '{output}' > "$TASKSERVICE_OUTPUT" """
    machine.run_script(script)
    hidden = {"***": [{"x": "a *** b"}], "pin": "***", "more": 123}
    assert machine.user.the_task()["output"] == hidden


def test_secret_in_the_options_of_a_run_is_not_stored(machine: AgentMachine) -> None:
    """While the service is unavailable, they are on the disk."""
    machine.settings["DB_PASSWORD"] = SECRET
    machine.lose_service()
    options = [f"--name=of {SECRET}", f"--label=db={SECRET}", f"--label=key-{SECRET}=x"]
    options += [f"--input=password=<{SECRET}>", f'--input={{"{SECRET}": [1, "{SECRET}"]}}']
    done = machine.run("run", "--agent", "a", *options, "--", "true")
    (folder,) = machine.left_runs()
    assert files_with(SECRET, folder) == []
    assert "labels: key-***: The key must match" in done.stderr
    assert machine.resend().returncode == 0
    task = machine.user.the_task()
    assert (task["name"], task["labels"]) == ("of ***", {"db": "***"})
    assert task["input"] == {"password": "<***>", "***": [1, "***"]}


def test_secret_that_a_program_tells_and_asks_is_not_stored(machine: AgentMachine) -> None:
    machine.settings["DB_PASSWORD"] = SECRET
    field = {"type": "string", "title": f"not {SECRET}"}
    machine.settings["FIELDS"] = json.dumps({"type": "object", "properties": {"a": field}})
    script = """
    "$@" progress 1/2 "with $DB_PASSWORD"
    "$@" ask "Is it $DB_PASSWORD?" --choice yes --choice "no $DB_PASSWORD" &
    printenv FIELDS | "$@" ask "Which?" --schema - &
    wait
    """
    program = ["sh", "-c", script, "-", *machine.command]
    running = machine.spawn("run", "--agent", "a", "--", *program)
    until(lambda: sum(len(task["questions"]) for task in machine.user.tasks()) == 2)
    task = machine.user.the_task()
    machine.user.cancel(task)
    running.communicate(timeout=60)
    assert task["note"] == "with ***"
    choices, fields = sorted(task["questions"], key=lambda question: str(question["message"]))
    assert choices["message"] == "Is it ***?"
    assert choices["schema"]["properties"]["answer"]["enum"] == ["yes", "no ***"]
    assert fields["schema"]["properties"]["a"]["title"] == "not ***"
    assert SECRET not in json.dumps(task)


def test_worker_hides_secrets_too(machine: AgentMachine) -> None:
    task = machine.user.start("a", claim=False)
    machine.settings["A_SECRET"] = SECRET
    worker = machine.spawn("work", "--agent", "a", "--", "sh", "-c", "echo $A_SECRET")
    path = f"/task/{task['id']}?fields=status"
    assert machine.user.request("GET", path, headers={"Prefer": "wait=50"}).json()
    worker.end()
    assert machine.user.the_task()["logs"] == ["***"]
