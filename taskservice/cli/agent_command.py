"""What the commands on the agent's side share: the service as the environment names it."""

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from taskservice.client import Client, InvalidKey, NotTheService, SettingError, TaskServiceError
from taskservice.terminal import give_up

# How long a person waits for a command while the service is away.
PATIENCE_SECONDS = 5.0
# As with the settings of the service.
WRONG_SETTING = 2


@contextmanager
def the_service(patience: float = PATIENCE_SECONDS, failure: int = 1) -> Iterator[Client]:
    """A client for the service; what goes wrong there becomes one line and an exit code.

    That is `failure`, where it is neither a setting nor the key.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A terminal that lacks a character is no reason to fail.
            stream.reconfigure(errors="replace")
    try:
        yield Client(patience=patience)
    except SettingError as error:
        give_up(str(error), WRONG_SETTING)
    except InvalidKey as error:
        give_up(f"TASKSERVICE_APIKEY: {error}", WRONG_SETTING)
    except NotTheService as error:
        give_up(f"TASKSERVICE_URL: {error}", WRONG_SETTING)
    except TaskServiceError as error:
        give_up(str(error), failure)


def open_standard_files() -> None:
    """Open /dev/null for what of stdin, stdout and stderr is closed, before a file takes its place.

    Otherwise the next file or socket gets its number, and what a program prints goes there.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            # The lowest free number is this one; a program that is started inherits it.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    # Python has none for what was closed when it started.
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)
