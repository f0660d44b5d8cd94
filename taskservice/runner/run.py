"""One program, run as a task: started, recorded, stopped when its user says so, reported."""

import contextlib
import json
import math
import os
import re
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

from taskservice import terminal
from taskservice.client.errors import (
    RETRYABLE,
    NotTheService,
    TaskCancelled,
    TaskServiceError,
    Unreachable,
)
from taskservice.client.http import Connection
from taskservice.client.log_text import cut_message, line_count, note
from taskservice.client.sender import CLAIMED_HEARTBEAT_SECONDS, Sender, heartbeat_for
from taskservice.client.tasks import Task
from taskservice.contract import terms
from taskservice.contract.terms import MAX_OBJECT
from taskservice.runner.files import read_file
from taskservice.runner.process import FOR_ITSELF, Process, describe, exit_code
from taskservice.runner.pump import Pump
from taskservice.runner.record import Record, state_folder
from taskservice.runner.spool import Spool

# Lines are counted by their writer: ours, and the one that the program may use itself.
WRITER = "run"
PROGRAMS_WRITER = "program"

# How long the first start may take before the program runs without its task.
START_SECONDS = 3.0
START_TIMEOUTS = (2.0, 3.0)
# How long a program may take to end after a cancel before it is killed.
GRACE_SECONDS = 10.0
# At the end: how long without any answer until what is left stays on the disk.
SILENCE_SECONDS = 30.0
# The same when the service had been away for long already.
LEAST_SECONDS = 5.0
# How long the wrapper, told to stop, waits for somebody to read what was printed.
SHOW_SECONDS = 1.0
NOT_RUN = 127
NOT_EXECUTABLE = 126

OUTPUT = "TASKSERVICE_OUTPUT"
_OUTPUT_FILE = "output.json"
# Deeper than the service takes. What reads and writes JSON calls itself for each level, and it
# must be written later, where there is less room for that.
_MOST_DEPTH = 200


def remark(text: str) -> None:
    """A line for the person at the terminal."""
    with contextlib.suppress(OSError):  # nobody need be there
        terminal.remark(text)


class Run:
    """A program that runs as a task; `execute` does it, from any thread.

    Either `wishes`, to start the task with, or `task`, which is claimed already.
    """

    def __init__(
        self,
        connection: Connection,
        command: Sequence[str],
        wishes: Mapping[str, Any] | None = None,
        task: Task | None = None,
        say: Callable[[str], None] = remark,
    ) -> None:
        self._connection, self._command, self._say = connection, command, say
        self._record = Record(connection.url, wishes or {}, task.data if task else None)
        self._heartbeat = heartbeat_for(self._record.wishes.get("timeout"))
        if task is not None:
            self._heartbeat = CLAIMED_HEARTBEAT_SECONDS
        self._input = None if task is None else _exact_input(task.json_text)
        self._process: Process | None = None
        self._received: list[int] = []
        self._is_hurried = threading.Event()
        self._has_said_full = False
        self._refusal = ""  # what the start was refused for
        self._is_over = False

    # --- from other threads --------------------------------------------------------------

    def forward(self, number: int, is_from_terminal: bool = False) -> None:
        """Pass on a signal; when the program has ended already, wait no longer for the service."""
        if number not in FOR_ITSELF:
            self._received.append(number)
        if self._process is None:
            return
        if self._is_over:
            if number not in FOR_ITSELF:
                self._is_hurried.set()
        elif not (is_from_terminal and self._process.heard_from_terminal(number)):
            self._process.send(number)

    # --- the run -------------------------------------------------------------------------

    def start(self, is_strict: bool = False) -> None:
        """Start the task, if the service lets us; otherwise the program runs without it.

        With `is_strict` it does not: what keeps the task from being made as it was wished is
        raised as TaskServiceError.

        In a thread: neither a name server nor a service that drips has a time limit that
        can be set. When its answer comes later, it is used then.
        """
        self._keep_record()
        if self._record.task_id is not None:
            return
        problems: list[TaskServiceError] = []
        say = None if is_strict else self._say
        starter = threading.Thread(
            target=self._try_to_start, args=[say, problems.append], name="starter", daemon=True
        )
        starter.start()
        starter.join(START_SECONDS + 0.5)
        if starter.is_alive():
            problems.append(Unreachable(f"{self._connection.url} gives no answer"))
        for problem in problems:
            if is_strict:
                self._record.remove()
                raise problem
            if isinstance(problem, (*RETRYABLE, NotTheService)):
                text = "its task is made when the service is back"
            else:
                self._refusal = str(problem)
                text = "what it prints waits for a key and settings that the service takes"
            self._say(f"{problem}; the program runs, {text}")

    def _try_to_start(
        self, say: Callable[[str], None] | None, tell: Callable[[TaskServiceError], None]
    ) -> None:
        try:
            self._make_task(say, patience=START_SECONDS, timeout=START_TIMEOUTS)
        except TaskServiceError as error:
            tell(error)

    def _keep_record(self) -> None:
        try:
            self._record.keep(state_folder())
        except (OSError, RuntimeError) as error:
            self._say(f"nothing can be kept on the disk, lines wait in memory: {error}")

    def execute(self) -> int:
        """Run the program and report it; returns the exit code. `start` comes before."""
        self._spool = Spool(self._record.folder, on_full=self._disk_is_full)
        sender = Sender(
            self._connection, self._spool, WRITER, self._task_id,
            heartbeat=self._heartbeat, on_stop=self._stop, on_outage=self._outage,
        )  # fmt: skip
        if self._record.task_id is None:
            sender.last_answer_at = float("-inf")  # there was none yet
        try:
            pump = Pump(self._spool.put_text)
        except OSError:  # there are no more files to be had
            self._record.remove()
            raise
        code, report = self._run_program(pump, sender)
        self._is_over = True
        self._finish(sender, report)
        # Whoever was told to stop waits no longer for those who should read and do not.
        pump.show_rest(self._is_hurried, SHOW_SECONDS if self._received else math.inf)
        return code

    def _run_program(self, pump: Pump, sender: Sender) -> tuple[int, dict[str, Any]]:
        try:
            self._process = self._spawn(pump)
        except OSError as error:
            pump.begin()
            pump.finish()
            sender.start()
            text = f"{self._command[0]} can't be run: {error.strerror}"
            self._say(text)
            code = NOT_RUN if isinstance(error, FileNotFoundError) else NOT_EXECUTABLE
            return code, failed(text)
        for number in self._received:
            self._process.send(number)
        pump.begin()
        sender.start()
        status = self._process.wait()
        pump.finish()
        return exit_code(status), self._report(status, pump)

    def _spawn(self, pump: Pump) -> Process:
        with contextlib.ExitStack() as files:
            stdin = None
            if self._input is not None:
                # A file, and no pipe, which somebody would have to fill while it runs.
                file = files.enter_context(tempfile.TemporaryFile())
                file.write(self._input)
                file.seek(0)
                stdin = file.fileno()
            return Process(self._command, self._environment(), stdin, pump.stdout, pump.stderr)

    def _environment(self) -> dict[str, str]:
        own = {"TASKSERVICE_WRITER": PROGRAMS_WRITER}
        if self._record.folder is not None:
            own[OUTPUT] = str(self._record.folder / _OUTPUT_FILE)
        if self._record.task_id is not None:
            own["TASKSERVICE_TASK_ID"] = self._record.task_id
            url = f"{self._connection.url}{terms.API_PREFIX}/task/{self._record.task_id}"
            own["TASKSERVICE_TASK_URL"] = url
        strange = ("TASKSERVICE_TASK_ID", "TASKSERVICE_TASK_URL", OUTPUT)
        return {name: text for name, text in os.environ.items() if name not in strange} | own

    def _task_id(self) -> str:
        """The task's id; it is made now if it could not be before."""
        return self._record.task_id or self._make_task(self._say, patience=0)

    def _make_task(self, say: Callable[[str], None] | None, **options: Any) -> str:
        made = self._record.made_task(self._connection, say, **options)
        self._write_record()
        return made

    def _write_record(self) -> None:
        try:
            self._record.write()
        except OSError as error:
            self._disk_is_full(error)

    # --- what can happen on the way ------------------------------------------------------

    def _stop(self, error: TaskServiceError) -> None:
        if self._record.is_unwanted(error):
            what = "cancelled" if isinstance(error, TaskCancelled) else "deleted"
            if self._process is not None and not self._is_over:
                self._say(f"the task was {what}; the program is told to stop")
                self._process.stop(GRACE_SECONDS)
        elif str(error) != self._refusal:
            self._say(f"the service refuses: {error}; the program runs on")

    def _outage(self, error: TaskServiceError | None) -> None:
        if error is None:
            self._say(f"{self._connection.url} is back")
        elif self._record.task_id is not None:
            self._say(f"{error}; lines wait for it")

    def _disk_is_full(self, error: OSError) -> None:
        if not self._has_said_full:
            self._has_said_full = True
            self._say(f"the lines can't be kept on the disk: {error.strerror or error}")

    # --- the end -------------------------------------------------------------------------

    def _report(self, status: int, pump: Pump) -> dict[str, Any]:
        report = failed(describe(status, self._received)) if status else {"status": terms.COMPLETE}
        output = self._output(pump)
        return report | {"output": output} if output else report

    def _output(self, pump: Pump) -> dict[str, Any] | None:
        """What the program has put out: in the file that was named to it, or as its last line."""
        folder = self._record.folder
        text = None if folder is None else _written(folder / _OUTPUT_FILE)
        if text is None:
            return json_object(pump.tail.last_line())
        output = json_object(text)
        if output is None:
            what = "no regular file with a JSON object of at most 1 MiB"
            self._say(f"what the program left as {OUTPUT} is {what}")
            self._spool.put([note(f"{OUTPUT} is {what}").rstrip()])
        return output

    def _finish(self, sender: Sender, report: dict[str, Any]) -> None:
        is_kept = self._keep_end(report)
        sender.finish(report)
        wait_for(sender, self._is_hurried)
        if sender.is_delivered or self._record.is_unwanted(sender.stop_reason):
            self._spool.discard()
            self._record.remove()
            return
        sender.abandon()
        lost = self._spool.close()
        self._say(_unsent_sentence(self._spool.count(), lost, is_kept))
        self._record.release()

    def _keep_end(self, report: dict[str, Any]) -> bool:
        """Write down how it ended, at least without its output; whether that could be done."""
        if self._record.folder is None:
            return False
        for kept in (report, {name: report[name] for name in report if name != "output"}):
            self._record.report = kept
            try:
                self._record.write()
                return True
            except OSError as error:
                self._disk_is_full(error)
        return False


def wait_for(sender: Sender, is_hurried: threading.Event) -> None:
    """Let a sender finish, as long as it gets answers."""
    began = time.monotonic()
    while sender.is_alive() and not is_hurried.is_set():
        until = max(began + LEAST_SECONDS, sender.last_answer_at + SILENCE_SECONDS)
        if time.monotonic() > until:
            return
        sender.join(0.05)


def _unsent_sentence(lines: int, lost: int, is_end_kept: bool) -> str:
    """What became of the lines and the end of a run that could not be sent."""
    end = "the program's end"
    if not is_end_kept:
        return f"{line_count(lines + lost)} and {end} are lost: they could not be sent"
    waiting = f"{line_count(lines)} and {end} could not be sent yet"
    text = f"{waiting}; `taskservice run --resend` sends them"
    if not lost:
        return text
    return f"{text}; {line_count(lost)} found no room and {'is' if lost == 1 else 'are'} lost"


def json_object(text: bytes) -> dict[str, Any] | None:
    """The JSON object that a text is; None if it is anything else, or can't be kept exactly."""
    if not text.strip().startswith(b"{") or len(text) > MAX_OBJECT:
        return None
    try:
        value = json.loads(
            text.decode(), parse_constant=_number, parse_float=_number, object_pairs_hook=_object
        )
    # ArithmeticError for a number that is too much even for Decimal.
    except (ValueError, ArithmeticError, RecursionError):
        return None
    return value if isinstance(value, dict) and _is_shallow(value) else None


def _exact_input(task: str) -> bytes:
    """The input of a task's JSON, with each number as it is written there."""
    # No text of the service has NUL in it.
    value = json.loads(task, parse_float=lambda number: f"\0{number}\0")["input"]
    return _MARKED.sub(r"\1", json.dumps(value)).encode()


_MARKED = re.compile(r'"\\u0000([^"\\]*)\\u0000"')


def _number(text: str) -> float:
    number = float(text)
    if not math.isfinite(number) or Decimal(repr(number)) != Decimal(text):
        raise ValueError(f"{text} is no number of JSON that can be kept exactly")
    return number


def _is_shallow(value: Any) -> bool:
    level = [value]
    for _ in range(_MOST_DEPTH):
        level = [
            child
            for parent in level
            if isinstance(parent, dict | list)
            for child in (parent.values() if isinstance(parent, dict) else parent)
        ]
    return not level


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        raise ValueError("Of two values with the same key one would be lost")
    return members


def _written(path: Path) -> bytes | None:
    """What a program has written to a file, or its beginning; None if nothing.

    Empty where that is no regular file: to read a FIFO could take for ever.
    """
    try:
        text = read_file(path, MAX_OBJECT + 1)
    except FileNotFoundError:
        return None
    except OSError:
        return b""
    return text if text.strip() else None


def failed(text: str) -> dict[str, Any]:
    return {"status": terms.ERROR, "error": {"message": cut_message(text)}}
