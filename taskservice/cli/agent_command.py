"""What the commands on the agent's side share: the service as the environment names it."""

import io
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
