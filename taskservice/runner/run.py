"""Runs a program as a task, and sends the unsent data of earlier runs."""

import contextlib
import errno
import json
import math
import os
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, NoReturn

from taskservice import terms
from taskservice.client import responses
from taskservice.client.http import Connection
from taskservice.client.responses import RETRYABLE, NotTheService, TaskCancelled, TaskServiceError
from taskservice.client.sender import (
    CANCELS,
    CLAIMED_HEARTBEAT_SECONDS,
    Sender,
    heartbeat_for,
)
from taskservice.client.spool import Spool, note, now, truncate_message
from taskservice.client.task import Task
from taskservice.exact_json import exact_double, is_deeper, unique_members
from taskservice.quantities import plural
from taskservice.runner import saved_run
from taskservice.runner.process import PROGRAM_ONLY, RESET_TO_DEFAULT, Process, describe
from taskservice.runner.program_output import Masker, OutputReader
from taskservice.runner.saved_run import SavedRun
from taskservice.terminal import exit_with_error, notice, print_line
from taskservice.terms import MAX_OBJECT


# The default of `max_depth` exceeds the limit of the service, so that the service rejects deeply
# nested objects with an error message.
def parse_object(text: bytes, max_depth: int = responses.MAX_DEPTH) -> dict[str, Any] | None:
    """Parse a JSON object; None for any other text, or for an object that can't be stored."""
    try:
        return read_object(text, max_depth)
    except ValueError:
        return None


def read_object(text: bytes, max_depth: int) -> dict[str, Any] | None:
    """Parse a JSON object; None for any other text. Raises ValueError if it can't be stored."""
    text = text.strip()
    if not (text.startswith(b"{") and text.endswith(b"}")):
        return None
    if len(text) > MAX_OBJECT:
        raise ValueError("is larger than 1 MiB")
    try:
        value: dict[str, Any] = _decoder.decode(text.decode())
    except (UnicodeDecodeError, json.JSONDecodeError):
        return None
    except RecursionError:
        is_too_deep = True
    except ValueError:
        raise ValueError("has a key twice, or a number that can't be stored exactly") from None
    else:
        is_too_deep = is_deeper(value, max_depth)
    if is_too_deep:
        raise ValueError(f"is nested deeper than {max_depth} levels")
    return value


def task_input(task: str) -> bytes:
    """The input in a task's JSON; the text of each number is preserved."""
    # Numbers are marked with NUL, since the service stores no string with NUL.
    value = json.loads(task, parse_float=lambda number: f"\0{number}\0")["input"]
    return re.sub(r'"\\u0000([^"\\]*)\\u0000"', r"\1", json.dumps(value)).encode()


def _exact_number(text: str) -> float:
    number = exact_double(text)
    if number is None:
        raise ValueError(f"{text} can't be stored exactly as a number")
    return number


_decoder = json.JSONDecoder(
    parse_constant=_exact_number, parse_float=_exact_number, object_pairs_hook=unique_members
)

WRITER = "run"
START_SECONDS = 3.0  # how long the start of the task can delay the program
# After the program's end, the run saves its data and exits if the service has not responded for
# SILENCE_SECONDS, but not before MIN_SILENCE_SECONDS have passed.
SILENCE_SECONDS = 30.0
MIN_SILENCE_SECONDS = 5.0
# How long after the program's end we may still receive the signal that ended the program.
LATE_SIGNAL_SECONDS = 1.0
OUTPUT = "TASKSERVICE_OUTPUT"
MAX_OUTPUT_DEPTH = 63  # the service accepts 64 levels, one of which is the report's
_OUTPUT_FILE = "output.json"


class Run:
    """A program that runs as a task: call `start`, then `execute`, in any thread.

    Pass either `fields`, with which a task is started, or `task`, which is already claimed.
    """

    def __init__(
        self,
        connection: Connection,
        command: Sequence[str],
        fields: Mapping[str, Any] | None = None,
        task: Task | None = None,
        is_tty: bool = False,
    ) -> None:
        self._connection, self._command = connection, command
        data, hint = task.data if task else None, connection.agent_key_hint
        self._saved = SavedRun(connection.url, fields or {}, data, hint)
        timeout = self._saved.fields.get("timeout")
        self._heartbeat = CLAIMED_HEARTBEAT_SECONDS if task else heartbeat_for(timeout)
        self._stdin_text = task_input(task.json_text) if task else None
        self._process: Process | None = None
        self._ended_at = math.inf
        self._masker = Masker(os.environ)
        self._is_tty = is_tty
        self._reader: OutputReader | None = None
        self._received: list[int] = []
        self._stop_waiting = threading.Event()
        self._notice_once = cache(notice)
        self._start_refusal = ""  # the error if the start was refused

    def forward(self, number: int, is_from_terminal: bool = False) -> None:
        """Forward a signal; after the program's end, stop waiting for the service instead."""
        if number not in PROGRAM_ONLY:
            self._received.append(number)
            # At a terminal, the program can receive Ctrl-C and end before we receive the signal.
            if time.monotonic() > self._ended_at + is_from_terminal * LATE_SIGNAL_SECONDS:
                self._stop_waiting.set()
        if self._process is not None:
            self._process.send_signal(number, is_from_terminal)

    def resize(self) -> None:
        """Give the program's terminal the new size of our terminal."""
        if self._reader is not None and self._process is not None and not self._process.has_ended:
            self._reader.resize()
            self._process.resize()

    def start(self, is_strict: bool = False) -> None:
        """Start the task. If that fails, print a message on stderr; the program runs anyway.

        With `is_strict`, every failure raises TaskServiceError, even a refused optional field.
        """
        try:
            self._saved.create_directory(saved_run.runs_directory())
        except OSError as error:
            notice(f"can't write to the disk, log lines are queued in memory: {error}")
        failure = self._start_in_time(is_strict) if self._saved.task_id is None else None
        if failure is None:
            return
        if is_strict:
            self._saved.remove()
            raise failure
        if isinstance(failure, (*RETRYABLE, NotTheService)):
            text = "the task will be started when the service is reachable"
        elif isinstance(failure, (responses.InvalidKey, responses.Forbidden)):
            self._start_refusal = str(failure)
            text = (
                "nothing is recorded; run `taskservice login` with a full key or an agent key, "
                "then `taskservice run --resend` for this run"
            )
        else:
            self._start_refusal = str(failure)
            text = "its log lines are stored for `taskservice run --resend`"
        notice(f"{failure}; the program runs, {text}")

    def _start_in_time(self, is_strict: bool) -> TaskServiceError | None:
        """Start the task; return the error if this failed or took more than START_SECONDS."""
        reasons: list[TaskServiceError] = [
            responses.Unreachable(f"{self._connection.url} does not respond")
        ]

        def start_task() -> None:
            limits = {"retry_timeout": START_SECONDS, "timeout": (2.0, 3.0)}
            try:
                self._start_task(is_strict=is_strict, is_late=False, **limits)
                reasons.clear()
            except TaskServiceError as error:
                reasons[:] = [error]

        # Use a thread, because resolving a host name has no timeout. A late response is still used.
        starter = threading.Thread(target=start_task, name="starter", daemon=True)
        starter.start()
        starter.join(START_SECONDS + 0.5)
        return next(iter(reasons), None)

    def execute(self) -> int:
        """Run the program and report how it ended; return its exit status."""
        try:
            self._spool = Spool(self._saved.directory, self._on_full_disk)
        except OSError as error:
            self._on_full_disk(error)
            self._spool = Spool(None)
        sender = Sender(
            self._connection, self._spool, WRITER, partial(self._start_task, retry_timeout=0),
            heartbeat=self._heartbeat, on_stop=self._on_stop, on_outage=self._on_outage,
        )  # fmt: skip
        if self._saved.task_id is not None:
            sender.last_response_at = time.monotonic()
        try:
            reader = self._reader = self._open_output()
        except OSError:  # this process has too many open files
            self._spool.close()
            self._saved.remove()
            raise
        code, report = self._run_program(reader, sender)
        self._finish(sender, report)
        # After a signal, do not wait for a reader that has stopped reading.
        reader.flush(self._stop_waiting, max_wait=1.0 if self._received else math.inf)
        return code

    def _open_output(self) -> OutputReader:
        """Open a pipe for the program's output; with `_is_tty`, a terminal if possible."""
        if self._is_tty:
            try:
                return OutputReader(self._spool.put, self._masker, is_tty=True)
            except OSError as error:
                notice(f"no terminal can be opened, the program prints to a pipe: {error.strerror}")
        return OutputReader(self._spool.put, self._masker, is_tty=False)

    def _run_program(self, reader: OutputReader, sender: Sender) -> tuple[int, dict[str, Any]]:
        began = time.monotonic()
        try:
            self._process = self._spawn(reader)
        except OSError as error:
            reader.close_writers()
            reader.finish()
            sender.start()
            code, text = _why_not_run(self._command, error)
            notice(text)
            return code, failed(self._masker.mask_text(text))
        for number in self._received:
            self._process.send_signal(number)
        reader.close_writers()
        sender.start()
        status = self._process.wait()
        self._ended_at = time.monotonic()
        reader.finish()
        report: dict[str, Any] = {"status": terms.COMPLETE}
        if status:
            report = failed(describe(status, self._received))
            # Ctrl-C is a person's decision, not a failure.
            if self._process.at_terminal and signal.SIGINT in (-status, *self._received):
                report[CANCELS] = True
        # Measure the duration here, since the report may be sent hours later.
        report["seconds"] = round(self._ended_at - began, 3)
        if output := self._output(reader):
            report["output"] = self._masker.mask_json(output)
        # As in shells, the exit status is 128 + n if signal n killed the program.
        return status if status >= 0 else 128 - status, report

    def _spawn(self, reader: OutputReader) -> Process:
        # The program needs a different writer name from this process, since every writer numbers
        # its lines from 1.
        variables = {"TASKSERVICE_WRITER": "program"}
        if self._is_tty:
            # Nearly all terminals are compatible with xterm-256color.
            variables["TERM"] = os.environ.get("TERM", "xterm-256color")
        if self._saved.directory is not None:
            variables[OUTPUT] = str(self._saved.directory / _OUTPUT_FILE)
        if task_id := self._saved.task_id:
            variables["TASKSERVICE_TASK_ID"] = task_id
            url = f"{self._connection.url}{terms.API_PREFIX}/task/{task_id}"
            variables["TASKSERVICE_TASK_URL"] = url
        environment = _without_task(os.environ) | variables
        with contextlib.ExitStack() as files:
            stdin = None
            if self._stdin_text is not None:
                # Use a file, because a pipe would need a thread that writes to it.
                file = files.enter_context(tempfile.TemporaryFile())
                file.write(self._stdin_text)
                file.seek(0)
                stdin = file.fileno()
            return Process(self._command, environment, stdin, reader.stdout, reader.stderr)

    def _start_task(self, **options: Any) -> str:
        """Return the task's ID; start the task if it does not exist yet."""
        is_new = self._saved.task_id is None
        task_id = self._saved.ensure_task(self._connection, **options)
        if is_new and sys.stderr.isatty():
            notice(f"{self._connection.url}/tasks/{task_id}")
        return task_id

    def _on_stop(self, error: TaskServiceError) -> None:
        if self._saved.is_cancelled_or_deleted(error):
            what = "cancelled" if isinstance(error, TaskCancelled) else "deleted"
            if self._process is not None and not self._process.has_ended:
                notice(f"the task was {what}; stopping the program")
                self._process.stop(grace=10.0)
        elif str(error) != self._start_refusal:
            notice(f"the service refused a request: {error}; the program continues")

    def _on_outage(self, error: TaskServiceError | None) -> None:
        if error is None:
            notice(f"{self._connection.url} is reachable again")
        elif self._saved.task_id is not None:
            notice(f"{error}; log lines are queued")

    def _on_full_disk(self, error: OSError) -> None:
        self._notice_once(f"log lines can't be written to the disk: {error.strerror or error}")

    def _output(self, reader: OutputReader) -> dict[str, Any] | None:
        """The task's output: the JSON object in the output file, or in the last line of stdout."""
        directory = self._saved.directory
        text = None if directory is None else _take_output_file(directory / _OUTPUT_FILE)
        is_file = text is not None
        try:
            output = read_object(reader.last_line if text is None else text, MAX_OUTPUT_DEPTH)
        except ValueError as error:
            what = f"the JSON object in {OUTPUT if is_file else 'the last line'}"
            problem = f"{what} is not the output, since it {error}"
        else:
            if output is not None or not is_file:
                return output
            problem = f"{OUTPUT} is not a regular file with a JSON object of at most 1 MiB"
        if is_file:
            notice(problem)
        self._spool.put(note(problem), now())
        return None

    def _finish(self, sender: Sender, report: dict[str, Any]) -> None:
        is_saved = self._save_report(report)
        is_done = deliver(sender, self._saved, report, self._stop_waiting)
        lines, lost = self._spool.close()
        if is_done:
            self._saved.remove()
            return
        self._saved.release()
        if is_saved:
            text = f"{plural(lines, 'line')} and the exit status" if lines else "the exit status"
            text += " could not be sent yet; send the rest with `taskservice run --resend`"
            if lost:
                text += f"; {plural(lost, 'line')} were lost because the disk is full"
        else:
            count = plural(lines + lost, "line")
            text = f"{count} and the exit status could not be sent and are lost"
        notice(text)

    def _save_report(self, report: dict[str, Any]) -> bool:
        """Write the report to the disk, if necessary without the output; false if that failed."""
        if self._saved.directory is None:
            return False
        for saved in (report, {name: report[name] for name in report if name != "output"}):
            self._saved.report = saved
            try:
                self._saved.write()
                return True
            except OSError as error:
                self._on_full_disk(error)
        return False


def check_program(command: Sequence[str]) -> None:
    """Exit with one line, and the exit status of a shell, if the program can't be started."""
    try:
        _find_program(command[0])
    except OSError as error:
        code, text = _why_not_run(command, error)
        exit_with_error(text, code)


def _find_program(name: str) -> None:
    """Raise OSError if the program, or the interpreter of a script, is missing or not executable.

    Other reasons are found only when the program starts, such as too many arguments.
    """
    path = shutil.which(name)
    if path is None:
        directories = [""] if "/" in name else os.get_exec_path()
        is_file = any(name and os.path.exists(os.path.join(part, name)) for part in directories)
        number = errno.EACCES if is_file else errno.ENOENT
        raise OSError(number, os.strerror(number))
    first = b""
    with contextlib.suppress(OSError), open(path, "rb") as file:  # a program can be unreadable
        first = file.read(256)
    # The kernel splits only at spaces, tabs and line feeds: a carriage return is part of the name.
    match = re.match(rb"#![ \t]*([^ \t\n]+)", first)
    if match and not os.access(match[1], os.X_OK):
        number = errno.EACCES if os.path.exists(match[1]) else errno.ENOENT
        raise OSError(number, f"{os.strerror(number)} ({os.fsdecode(match[1])})")


def become_program(command: Sequence[str]) -> NoReturn:
    """Replace this process with a program that runs without a task."""
    for number in RESET_TO_DEFAULT:
        signal.signal(number, signal.SIG_DFL)
    try:
        os.execvpe(command[0], list(command), _without_task(os.environ))  # noqa: S606
    except OSError as error:
        code, text = _why_not_run(command, error)
        exit_with_error(text, code)


def _without_task(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment without the variables of an outer run; TASKSERVICE_OUTPUT is /dev/null."""
    of_outer_run = ("TASKSERVICE_TASK_ID", "TASKSERVICE_TASK_URL")
    inherited = {name: text for name, text in environment.items() if name not in of_outer_run}
    return inherited | {OUTPUT: os.devnull}


def _why_not_run(command: Sequence[str], error: OSError) -> tuple[int, str]:
    """The exit status, as in shells, and the message for a program that can't be run."""
    code = 127 if isinstance(error, FileNotFoundError) else 126
    return code, f"{command[0]} can't be run: {error.strerror}"


def deliver(
    sender: Sender, run: SavedRun, report: dict[str, Any], stop_waiting: threading.Event
) -> bool:
    """Send the remaining lines and the report; return True if nothing is left to send."""
    began = time.monotonic()
    sender.finish(report)
    while sender.is_alive() and not stop_waiting.is_set():
        until = max(began + MIN_SILENCE_SECONDS, sender.last_response_at + SILENCE_SECONDS)
        if time.monotonic() > until:
            break
        sender.join(0.05)
    if sender.is_delivered or run.is_cancelled_or_deleted(sender.stop_reason):
        sender.spool.discard()
        return True
    sender.abandon()
    return False


def _take_output_file(path: Path) -> bytes | None:
    """Read the file and remove it, since it can contain secrets; None if it contains no text."""
    try:
        text = saved_run.read_file(path, MAX_OBJECT + 1)
    except FileNotFoundError:
        return None
    except OSError:  # not a regular file
        return b""
    with contextlib.suppress(OSError):
        path.unlink()
    return text if text.strip() else None


def failed(text: str) -> dict[str, Any]:
    """A report with the status `error` and this message."""
    return {"status": terms.ERROR, "error": {"message": truncate_message(text)}}


def resend(connection: Connection) -> bool:
    """Send all saved runs, oldest first; false if a run could not be sent. Raises OSError."""
    runs = saved_run.runs_directory()
    if not runs.exists():
        return True
    saved_run.check_private(runs, may_close=True)
    caller = cache(lambda: connection.call("GET", "/user", responses.USER).data)
    saved = []
    for directory in runs.iterdir():
        if directory.name.startswith(".") or not (directory.is_symlink() or directory.is_dir()):
            continue
        with contextlib.suppress(OSError):  # another process has just sent this run
            saved.append((directory.lstat().st_mtime, directory))
    is_done = [_resend_one(connection, directory, caller) for _, directory in sorted(saved)]
    return all(is_done)


def _resend_one(
    connection: Connection, directory: Path, caller: Callable[[], dict[str, Any]]
) -> bool:
    """Send the run in this directory, and print the result; false if it could not be sent."""
    with contextlib.ExitStack() as opened:
        try:
            run = SavedRun.load(directory)
            if run is None:
                return True
            opened.callback(run.release)
            spool = Spool(directory)
            opened.callback(spool.close)
        except (OSError, ValueError) as error:
            notice(f"{directory} can't be read: {error}")
            return False
        if run.url != connection.url:
            problem = f"a saved run belongs to {run.url}, but TASKSERVICE_URL is {connection.url}"
        elif not _is_owner(caller(), run):
            owner = f"{'key' if run.is_of_key else 'agent'} {run.agent_id}"
            problem = f"a saved run belongs to {owner}, but the key to another user or agent"
        else:
            return _send_left(connection, run, spool)
        notice(f"{problem}; the run remains in {directory}")
        return False


def _is_owner(user: Mapping[str, Any], run: SavedRun) -> bool:
    key = user["key"]
    owners = [key.get("hint")] if run.is_of_key else [key.get("agentId") or run.agent_id]
    return run.agent_id in owners and run.user_id in (None, user["id"])


def _send_left(connection: Connection, run: SavedRun, spool: Spool) -> bool:
    lines = plural(spool.count(), "line")
    sender = Sender(
        connection, spool, WRITER, partial(run.ensure_task, connection, retry_timeout=0)
    )
    sender.start()
    unknown = failed("The exit status is unknown: `taskservice run` was killed")
    is_done = deliver(sender, run, run.report or unknown, threading.Event())
    if is_done:
        run.remove()
        sent = f"sent: {lines} and the exit status"
        print_line(f"{run.task_id} {sent if sender.is_delivered else 'was cancelled or deleted'}")
    else:
        notice(
            f"{run.task_id or 'a task'}: {sender.stop_reason or sender.outage}; "
            f"the run remains in {run.directory}; remove that directory to discard it"
        )
    return is_done
