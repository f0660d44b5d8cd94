"""Connects the client commands to the service, prints errors as one line, and completes IDs."""

import io
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from itertools import islice
from typing import Any

from taskservice.cli.options import has_prefix, only_match
from taskservice.client import Client, SettingError, TaskServiceError, responses
from taskservice.client.http import CONNECT_SECONDS, Connection
from taskservice.client.spool import rfc3339
from taskservice.terminal import escaped, exit_with_error, notice
from taskservice.terms import KEY_VARIABLE, MAX_LIMIT

# If the service is unavailable, commands started by programs retry for this many seconds.
PROGRAM_SECONDS = 5.0
# Commands typed by people print a message after NOTICE_SECONDS without a response, and fail after
# PERSON_SECONDS.
NOTICE_SECONDS = 1.5
PERSON_SECONDS = 10.0
# The exit status for an invalid setting or an ambiguous ID; click also uses it for invalid
# arguments.
WRONG_USE = 2
# The exit status if the service is unavailable. It differs from 1, with which some commands report
# a result.
UNAVAILABLE = 69  # EX_UNAVAILABLE in sysexits.h


class PersonConnection(Connection):
    """A connection for commands that a person types: it waits PERSON_SECONDS for a response."""

    def __init__(self, url: str | None = None, apikey: str | None = None) -> None:
        super().__init__(url, apikey, PERSON_SECONDS)
        self._problem = f"{self.url} does not respond"
        self._is_told = False
        self._timer: threading.Timer | None = None  # runs until a response arrives
        self._until = 0.0

    def once(self, *arguments: Any, **options: Any) -> Any:
        if self._timer is None:
            self._until = time.monotonic() + self.retry_timeout
            # A separate thread can print the message in time, even during a long request.
            self._timer = threading.Timer(NOTICE_SECONDS, self._tell)
            self._timer.daemon = True
            self._timer.start()
        seconds = max(self._until - time.monotonic(), 0.1)
        has_response = True
        try:
            timeout = (min(CONNECT_SECONDS, seconds), seconds)
            return super().once(*arguments, **{"timeout": timeout} | options)
        except responses.RETRYABLE as error:
            self._problem, has_response = str(error), False
            raise
        finally:
            if has_response:
                self._timer.cancel()
                self._timer = None

    def _tell(self) -> None:
        if not self._is_told:
            self._is_told = True
            notice(f"{self._problem}; retrying for {self.retry_timeout:.0f} s")


class _PersonClient(Client):
    def __init__(self) -> None:
        self.connection = PersonConnection()


@contextmanager
def service_client(failure: int = 1) -> Iterator[Client]:
    """A client for a command that a person types; its errors become one line.

    It uses the settings of the environment or of `login`. The exit status is 2 for a wrong setting
    or key, UNAVAILABLE if the service is unavailable, otherwise `failure`. If `failure` is
    UNAVAILABLE, the exit status is 2 for an invalid value too.
    """
    with one_line_errors(failure, UNAVAILABLE):
        yield _PersonClient()


@contextmanager
def program_client(retry_timeout: float | None = None, failure: int = 1) -> Iterator[Client]:
    """Like `service_client`, but for a command that a program starts or that follows a task.

    A call is retried for `retry_timeout` seconds; then the exit status is `failure`.
    """
    with one_line_errors(failure):
        yield Client(retry_timeout=PROGRAM_SECONDS if retry_timeout is None else retry_timeout)


# What people type for the two variables, without underscores.
_SIMILAR = {
    "TASKSERVICE_URL": r"TASKSERVICE(API|BASE|SERVER)?(URL|HOST|ADDRESS|SERVER)",
    KEY_VARIABLE: r"TASKSERVICE(API|USER|AGENT)?(KEY|TOKEN)",
}


def warn_of_similar_variables() -> None:
    """Name each variable that is probably a misspelt TASKSERVICE_URL or TASKSERVICE_APIKEY."""
    for name, pattern in _SIMILAR.items():
        for similar in () if name in os.environ else sorted(os.environ):
            if re.fullmatch(pattern, similar.upper().replace("_", "")):
                notice(f"{escaped(similar)} is not used; the variable is {name}")


@contextmanager
def one_line_errors(failure: int = 1, unavailable: int | None = None) -> Iterator[None]:
    """Turn an error of the client into one line and an exit status, as `service_client` does."""
    warn_of_similar_variables()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # Replace characters that the terminal cannot encode, which would end the command.
            stream.reconfigure(errors="replace")
    try:
        yield
    except SettingError as error:
        exit_with_error(str(error), WRONG_USE)
    except (responses.InvalidKey, responses.NotTheService) as error:
        name = KEY_VARIABLE if isinstance(error, responses.InvalidKey) else "TASKSERVICE_URL"
        source = name if name in os.environ else "taskservice login"
        exit_with_error(f"{source}: {error}", WRONG_USE)
    except TaskServiceError as error:
        code = failure
        if isinstance(error, responses.Invalid) and failure == UNAVAILABLE:
            code = WRONG_USE
        # Status 429 means that the service is available, but there are too many requests.
        elif isinstance(error, responses.RETRYABLE) and getattr(error, "status", 0) != 429:
            code = failure if unavailable is None else unavailable
        exit_with_error(str(error), code)


# A prefix of a task's ID; a whole ID has 36 characters.
_PREFIX = re.compile(r"[0-9a-f][0-9a-f-]{0,34}")
# A task's ID begins with its start time in milliseconds, as this many hexadecimal digits.
_TIME_DIGITS = 12
# The time in an ID can differ from `createdAt`: the ID is created first, and the clock can be set
# in between.
_MARGIN_MS = 60_000
# `datetime` supports no years after 9999.
_MAX_MS = 253_402_214_400_000


def find_task_id(client: Client, text: str, not_found: int = 1) -> str:
    """The ID of the only task with this prefix; exits with `not_found` if there is none."""
    prefix = text.lower()
    if not _PREFIX.fullmatch(prefix):
        return text  # a whole ID, or an invalid ID, which the service refuses
    digits = prefix.replace("-", "")[:_TIME_DIGITS]
    first, last = (int(digits.ljust(_TIME_DIGITS, filler), 16) for filler in "0f")
    bounds = (first - _MARGIN_MS, last + _MARGIN_MS)
    after, before = (rfc3339(min(max(bound, 0), _MAX_MS)) for bound in bounds)
    tasks = client.tasks(
        created_after=after, created_before=before, fields="id", page_size=MAX_LIMIT
    )
    ids = list(islice((task.id for task in tasks if has_prefix(task.id, prefix)), 2))
    return only_match(ids, "task", text, not_found)


def find_agent_id(client: Client, text: str, unknown: Callable[[str], object] = str) -> str:
    """The ID of the only agent with this prefix; otherwise calls `unknown` and returns `text`."""
    known = [agent["id"] for agent in client.agents()]
    ids = [text] if text in known else [name for name in known if text and name.startswith(text)]
    if len(ids) > 1:
        exit_with_error(f"Several agents match {text}: {', '.join(ids)}", WRONG_USE)
    if not ids:
        unknown(did_you_mean(known, text))
    return ids[0] if ids else text


def registered_agent_id(client: Client, text: str, not_found: int = 1) -> str:
    """The ID of the only agent with this prefix; exits with `not_found` if there is none."""
    problem = f"There is no agent {text}"
    return find_agent_id(
        client, text, lambda similar: exit_with_error(problem + similar, not_found)
    )


def did_you_mean(known: Sequence[str], agent_id: str) -> str:
    """The end of a sentence that suggests agents with similar IDs; empty if there are none."""
    similar = get_close_matches(agent_id, known)
    return f"; did you mean {' or '.join(similar)}?" if similar else ""
