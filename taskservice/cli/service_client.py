"""A client for the client commands, whose errors become one line; IDs by their prefixes."""

import io
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from itertools import islice

from taskservice.client import Client, SettingError, TaskServiceError, responses
from taskservice.client.spool import rfc3339
from taskservice.terminal import exit_with_error
from taskservice.terms import KEY_VARIABLE, MAX_LIMIT

# How long a command retries while the service is unavailable.
PATIENCE_SECONDS = 5.0
# The exit code for a wrong setting or an ambiguous ID, as click has it for wrong arguments.
WRONG_USE = 2
# The exit code of commands whose other codes have a meaning.
UNAVAILABLE = 69  # EX_UNAVAILABLE in sysexits.h


@contextmanager
def service_client(patience: float | None = None, failure: int = 1) -> Iterator[Client]:
    """A client with the settings of the environment or of `login`; its errors become one line.

    The exit code is 2 for a wrong setting or key, otherwise `failure`; if that is UNAVAILABLE, it
    is 2 for an invalid value too. A call is retried for `patience` seconds.
    """
    with one_line_errors(failure):
        yield Client(patience=PATIENCE_SECONDS if patience is None else patience)


@contextmanager
def one_line_errors(failure: int = 1) -> Iterator[None]:
    """Turn an error of the client into one line and an exit code, as `service_client` does."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A character that the terminal cannot encode must not end the command.
            stream.reconfigure(errors="replace")
    try:
        yield
    except SettingError as error:
        exit_with_error(str(error), WRONG_USE)
    except responses.OtherVersion as error:
        exit_with_error(str(error), failure)
    except (responses.InvalidKey, responses.NotTheService) as error:
        name = KEY_VARIABLE if isinstance(error, responses.InvalidKey) else "TASKSERVICE_URL"
        source = name if name in os.environ else "taskservice login"
        exit_with_error(f"{source}: {error}", WRONG_USE)
    except TaskServiceError as error:
        is_wrong_use = isinstance(error, responses.Invalid) and failure == UNAVAILABLE
        exit_with_error(str(error), WRONG_USE if is_wrong_use else failure)


# A prefix of a task's id; a whole id has 36 characters.
_PREFIX = re.compile(r"[0-9a-f][0-9a-f-]{0,34}")
# A task's id begins with the milliseconds of its start, in this many hexadecimal digits.
_TIME_DIGITS = 12
# The id is created shortly before the time of the start, and the clock can be set in between.
_MARGIN_MS = 60_000
# Python has no time after the year 9999.
_MAX_MS = 253_402_214_400_000


def find_task_id(client: Client, text: str, not_found: int = 1) -> str:
    """The id of the only task with this prefix; exits with `not_found` if there is none."""
    prefix = text.lower()
    if not _PREFIX.fullmatch(prefix):
        return text  # a whole id or not an id: the service decides
    digits = prefix.replace("-", "")[:_TIME_DIGITS]
    first, last = (int(digits.ljust(_TIME_DIGITS, filler), 16) for filler in "0f")
    bounds = (first - _MARGIN_MS, last + _MARGIN_MS)
    after, before = (rfc3339(min(max(bound, 0), _MAX_MS)) for bound in bounds)
    tasks = client.tasks(created_after=after, created_before=before, fields="id", page=MAX_LIMIT)
    ids = list(islice((task.id for task in tasks if task.id.startswith(prefix)), 2))
    return only_match(ids, "task", text, not_found)


def only_match(ids: Sequence[str], noun: str, text: str, not_found: int = 1) -> str:
    """The only one of the ids that a prefix matches; exits if there is none, or more than one."""
    if not ids:
        exit_with_error(f"No {noun} matches {text}", not_found)
    if len(ids) > 1:
        exit_with_error(f"Several {noun}s match {text}, such as {' and '.join(ids[:2])}", WRONG_USE)
    return ids[0]


def find_agent_id(client: Client, text: str, unknown: Callable[[str], object] = str) -> str:
    """The id of the only agent with this prefix; else the text, once `unknown` was called."""
    known = [agent["id"] for agent in client.agents()]
    ids = [text] if text in known else [name for name in known if text and name.startswith(text)]
    if len(ids) > 1:
        exit_with_error(f"Several agents match {text}: {', '.join(ids)}", WRONG_USE)
    if not ids:
        unknown(did_you_mean(known, text))
    return ids[0] if ids else text


def registered_agent_id(client: Client, text: str, not_found: int = 1) -> str:
    """The id of the only agent with this prefix; exits with `not_found` if there is none."""
    problem = f"There is no agent {text}"
    return find_agent_id(
        client, text, lambda similar: exit_with_error(problem + similar, not_found)
    )


def did_you_mean(known: Sequence[str], agent_id: str) -> str:
    """The agents with a similar id, as the end of a sentence; empty without any."""
    similar = get_close_matches(agent_id, known)
    return f"; did you mean {' or '.join(similar)}?" if similar else ""
