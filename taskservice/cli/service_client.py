"""A client for the commands on the agent's side, whose errors become one line."""

import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from taskservice.client import (
    Client,
    InvalidKey,
    NotTheService,
    OtherVersion,
    SettingError,
    TaskServiceError,
)
from taskservice.terminal import exit_with_error

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
