"""A client for the commands on the agent's side, whose errors become one line."""

import io
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

from taskservice.client import (
    Client,
    InvalidKey,
    NotTheService,
    OtherVersion,
    SettingError,
    TaskServiceError,
)
from taskservice.terminal import exit_with_error
from taskservice.terms import MAX_LIMIT

# How long a command retries while the service is away.
PATIENCE_SECONDS = 5.0
# The exit code for a wrong setting, the same as of the commands on the server.
WRONG_SETTING = 2


@contextmanager
def service_client(patience: float | None = None, failure: int = 1) -> Iterator[Client]:
    """A client with the settings of the environment; its errors become one line.

    The exit code is 2 for a wrong setting or key, else `failure`. `patience` is the number
    of seconds for which a call is retried, by default PATIENCE_SECONDS.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A character that the terminal cannot encode must not end the command.
            stream.reconfigure(errors="replace")
    try:
        yield Client(patience=PATIENCE_SECONDS if patience is None else patience)
    except SettingError as error:
        exit_with_error(str(error), WRONG_SETTING)
    except InvalidKey as error:
        exit_with_error(f"TASKSERVICE_APIKEY: {error}", WRONG_SETTING)
    except OtherVersion as error:
        exit_with_error(str(error), failure)
    except NotTheService as error:
        exit_with_error(f"TASKSERVICE_URL: {error}", WRONG_SETTING)
    except TaskServiceError as error:
        exit_with_error(str(error), failure)


# Finds tasks and agents by an unambiguous beginning of their id.

# Of a task's id; the whole of it has 36 characters.
_BEGINNING = re.compile(r"[0-9a-f][0-9a-f-]{0,34}")
# A task's id begins with the milliseconds of its start, in this many hexadecimal digits.
_TIME_DIGITS = 12
# The id is made a moment before the start is noted, and the clock may be set between them.
_MARGIN_MS = 60_000
# Python has no moment after the year 9999.
_MAX_MS = 253_402_214_400_000
AMBIGUOUS = 2


def find_task_id(client: Client, text: str, not_found: int = 1) -> str:
    """The id of the one task that begins so; exits with `not_found` if there is none."""
    beginning = text.lower()
    if not _BEGINNING.fullmatch(beginning):
        return text  # whole, or no id at all: the service says so
    found = _task_ids(client, beginning)
    if not found:
        exit_with_error(f"No task's id begins with {text}", not_found)
    if len(found) > 1:
        exit_with_error(
            f"Several tasks begin with {text}, such as {' and '.join(found)}", AMBIGUOUS
        )
    return found[0]


def _task_ids(client: Client, beginning: str) -> list[str]:
    """The ids that begin so, at most two of them."""
    digits = beginning.replace("-", "")[:_TIME_DIGITS]
    first, last = (int(digits.ljust(_TIME_DIGITS, filler), 16) for filler in "0f")
    tasks = client.tasks(
        created_after=_moment(first - _MARGIN_MS),
        created_before=_moment(last + _MARGIN_MS),
        fields="id",
        page=MAX_LIMIT,
    )
    found: list[str] = []
    for task in tasks:
        if task.id.startswith(beginning):
            found.append(task.id)
        if len(found) == 2:
            break
    return found


def _moment(milliseconds: int) -> str:
    bounded = min(max(milliseconds, 0), _MAX_MS)
    return (datetime.fromtimestamp(0, UTC) + timedelta(milliseconds=bounded)).isoformat()


def find_agent_id(known: Sequence[str], text: str) -> str:
    """The id of the one agent that begins so; the text itself if there is none."""
    found = [text] if text in known else [name for name in known if text and name.startswith(text)]
    if len(found) > 1:
        exit_with_error(f"Several agents begin with {text}: {', '.join(found)}", AMBIGUOUS)
    return found[0] if found else text


def agent_ids(client: Client) -> list[str]:
    return [agent["id"] for agent in client.agents()]
