"""`taskservice approve`: lets a person answer permission prompts of Claude Code and Codex."""

import difflib
import json
import os
import re
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import islice
from pathlib import PurePath
from typing import Any, NoReturn
from unicodedata import category

import click

from taskservice.cli import options
from taskservice.cli.service_client import warn_of_similar_variables
from taskservice.cli.watchdog import SIGNALS, ended_if_killed
from taskservice.client import Client, Task, TaskServiceError, responses
from taskservice.client.task import ask_alone
from taskservice.exact_json import is_deeper
from taskservice.quantities import typed
from taskservice.runner.program_output import Masker
from taskservice.terminal import exit_with_error, notice, print_json, shortened
from taskservice.terms import CUT_HERE, MAX_TIMEOUT

# The `PermissionRequest` hook is described at https://code.claude.com/docs/en/hooks and
# https://developers.openai.com/codex/hooks. Its JSON Schemas are in the source code of Codex:
# codex-rs/hooks/schema/generated/permission-request.command.*.schema.json.
EVENT = "PermissionRequest"
FIELDS = {"tool_name": str, "cwd": str, "session_id": str, "tool_input": dict}
MAX_INPUT = 5 * 1024 * 1024  # in bytes
MAX_MESSAGE = 4_000
# Runs of at least this many backticks are escaped, so that the fence of a code block stays short.
LONGEST_RUN = 16
# Unicode categories of characters that are escaped: control, format (such as right-to-left marks),
# surrogates and separators.
UNSAFE = {"Cc", "Cf", "Cs", "Zl", "Zp", "Zs"}
# Other invisible characters that are escaped: fillers, joiners and variation selectors.
BLANK = re.compile(
    "[\u034f\u115f\u1160\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)
# If the service is unavailable for this many seconds, the agent asks in its own terminal.
REACH: Any = {"retry_timeout": 10.0, "timeout": 10.0}
DECISION = {"type": "string", "title": "Decision", "enum": ["allow", "deny"]}
REASON = {"type": "string", "title": "Reason", "description": "Sent to the agent with deny."}
PROPERTIES = {"decision": DECISION, "reason": REASON}
SCHEMA = {"type": "object", "properties": PROPERTIES, "required": ["decision"]}


@options.command("taskservice approve", "< prompt.json")
@options.text_option(
    "--agent", metavar="ID", help="Agent that asks (default: claude-code, codex or approve)."
)
@click.option(
    "--timeout",
    type=options.Duration(minimum=1, maximum=MAX_TIMEOUT),
    default="9m",  # both agents end a hook after ten minutes by default
    help="Time until the question expires; must be shorter than the hook's timeout (default: 9m).",
)
def command(agent: str | None, timeout: int) -> None:
    """Let a person answer the permission prompt of a coding agent.

    Claude Code and Codex call this command from their PermissionRequest hook, with the prompt as
    JSON on stdin. The command starts a task that asks a person, prints the link of the question on
    stderr, and prints the decision.
    The command prints no decision and exits with 0 if the question expires or is declined, if the
    service or the key can't be used, or if a signal arrives. The agent then asks in its own
    terminal. The exit status is 1 if stdin contains no prompt or an option is wrong.
    """
    # A thread waits for these signals, since an exception that a signal handler raises can be lost.
    signals = {number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    warn_of_similar_variables()
    try:
        connection = Client().connection
        with ended_if_killed(connection, timeout) as on_start:
            for wait, reason in (
                (partial(signal.sigwait, signals), "interrupted"),
                (_wait_until_nobody_reads, "interrupted"),
                # A service that went away never reports that the question expired.
                (partial(time.sleep, timeout + 1), f"no answer within {typed(timeout)}"),
            ):
                threading.Thread(target=_end_after, args=[wait, reason], daemon=True).start()
            prompt = _prompt()
            if prompt["tool_name"] == "AskUserQuestion":
                _no_answer("only the terminal shows the choices")
            connection.call("GET", "/user", responses.USER, **REACH)
            agent = agent or (None if connection.agent_key_hint else _caller(prompt))

            def announce(task: Task) -> None:
                on_start(task)
                notice(f"waiting for an answer at {task.page_url}")

            asking: Any = {"agent_id": agent, "on_start": announce}
            question = ask_alone(connection, _message(prompt), SCHEMA, timeout, **asking)
    except TaskServiceError as error:
        _no_answer(str(error))
    answer = question["answer"] or {}
    decision = {"behavior": "allow"}
    if answer.get("decision") != "allow":
        reason = str(answer.get("reason", "")).strip()
        decision = {"behavior": "deny", "message": reason or "A person denied this."}
    print_json({"hookSpecificOutput": {"hookEventName": EVENT, "decision": decision}})


def _no_answer(reason: str) -> NoReturn:
    """Exit at once, from any thread; the watchdog process ends the task."""
    notice(f"no decision, so the agent asks in its terminal: {reason}")
    os._exit(0)


def _wait_until_nobody_reads() -> None:
    """Wait until the agent has closed the pipe for the decision, or was killed."""
    poll = select.poll()
    poll.register(1, 0)
    poll.poll()


def _end_after(wait: Callable[[], object], reason: str) -> NoReturn:
    wait()
    _no_answer(reason)


def _prompt() -> dict[str, Any]:
    """The prompt on stdin, with secrets masked; exits with 1 if stdin contains no prompt."""
    with open(0, "rb", closefd=False) as file:
        data = file.read(MAX_INPUT + 1)
    try:
        prompt = json.loads(data) if len(data) <= MAX_INPUT else None
    except (ValueError, RecursionError):
        prompt = None
    if (
        not isinstance(prompt, dict)
        or prompt.get("hook_event_name") != EVENT
        or not all(isinstance(prompt.get(name), kind) for name, kind in FIELDS.items())
        or is_deeper(prompt, 100)
    ):
        exit_with_error(f"stdin must contain the JSON of a {EVENT} hook, at most 5 MiB")
    return dict(Masker(os.environ).mask_json(prompt))


def _caller(prompt: Mapping[str, Any]) -> str:
    """The agent that called this command; only prompts of Codex contain the ID of a turn."""
    if "turn_id" in prompt:
        return "codex"
    return "claude-code" if {"CLAUDE_PROJECT_DIR", "CLAUDECODE"} & os.environ.keys() else "approve"


def _message(prompt: Mapping[str, Any]) -> str:
    """The question: directory, session and tool on the first line, the rest in a code block."""
    directory = shortened(PurePath(prompt["cwd"]).name or "root", 100)
    # Only letters, marks, numbers and a few other characters are shown, since a quotation mark
    # would seem to end the name.
    directory = "".join(c if category(c)[0] in "LMN" or c in " .…+@*-" else "_" for c in directory)
    session = re.sub(r"[^\w-]", "", prompt["session_id"], flags=re.ASCII)[-8:]
    tool = re.sub(r"[^\w.:/-]", "_", prompt["tool_name"][:100], flags=re.ASCII)
    first_line = f"“{directory}”, session {session}: {tool}\n"
    details = "\n".join(_details(prompt["tool_input"]))
    return first_line + _fenced(details, MAX_MESSAGE - len(first_line))


def _details(tool_input: Mapping[str, Any]) -> Iterator[str]:
    """The input of the tool: a command, or a file with its change; all other input as JSON."""
    texts = {name: text for name, text in tool_input.items() if isinstance(text, str)}
    shown = {"command", "file_path"} & texts.keys()
    if "file_path" in shown:
        # The path stays on one line, since the change begins on the next line.
        texts["file_path"] = _visible(texts["file_path"], kept=" ")
    yield from (texts[name] for name in sorted(shown))
    if {"old_string", "new_string"} <= texts.keys():
        shown |= {"old_string", "new_string"}
        yield from _change(texts["old_string"], texts["new_string"])
    elif {"file_path", "content"} <= texts.keys():
        shown |= {"content"}
        yield from _change("", texts["content"])
    if others := {name: value for name, value in tool_input.items() if name not in shown}:
        text = json.dumps(others, ensure_ascii=False)
        # Long JSON is not indented, since indentation can make deeply nested JSON many times
        # longer.
        yield json.dumps(others, ensure_ascii=False, indent=2) if len(text) < MAX_MESSAGE else text


def _change(old: str, new: str) -> Iterator[str]:
    """The lines of a change, each marked as added, removed or unchanged."""
    before, after = (text.split("\n") if text else [] for text in (old, new))
    if len(old) + len(new) > 2 * MAX_MESSAGE:  # comparing long texts is slow
        return iter([f"-{line}" for line in before] + [f"+{line}" for line in after])
    # Skip the header of the diff, which contains file names and line numbers.
    return islice(difflib.unified_diff(before, after, n=len(before), lineterm=""), 3, None)


def _fenced(text: str, room: int) -> str:
    """The text in a code block; a text that is too long is shortened in the middle."""
    if len(text) <= room and len(block := _block(_visible(text))) <= room:
        return block
    mark = f"{CUT_HERE}the middle of {len(text):,} characters is not shown)"
    half = (room - len(mark) - 4 * (LONGEST_RUN + 2)) // 2
    head, tail = _visible(text[:half])[:half], _visible(text[-half:])[-half:]
    return f"{_block(head)}\n{mark}\n{_block(tail)}"


def _block(text: str) -> str:
    """A code block with a fence that is longer than any fence in the text."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}\n{text}\n{fence}"


def _visible(text: str, kept: str = " \n\t") -> str:
    """The text, with escapes for characters that control a terminal, or hide or reorder text."""
    unsafe = {c for c in set(text) - set(kept) if category(c) in UNSAFE or BLANK.match(c)}
    visible = text.translate({ord(char): json.dumps(char)[1:-1] for char in unsafe})
    return re.sub(f"`{{{LONGEST_RUN},}}", lambda run: r"\u0060" * len(run[0]), visible)
