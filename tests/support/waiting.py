"""Waits for an event, however busy the machine is."""

import time
from collections.abc import Callable
from typing import Literal, TypeVar

# Only a test that fails waits this long.
PATIENCE_SECONDS = 60.0

Result = TypeVar("Result")


def until(happened: Callable[[], Result | Literal[False] | None]) -> Result:
    """What `happened` gives as soon as that is true; AssertionError after a minute."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not (result := happened()):
        assert time.monotonic() < deadline, f"It did not happen within {PATIENCE_SECONDS:.0f} s"
        time.sleep(0.02)
    return result
