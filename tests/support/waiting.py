"""Waits for an event, however busy the machine is, and shows what processes run."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal, TypeVar

# Only a test that fails waits this long.
PATIENCE_SECONDS = 120.0

Result = TypeVar("Result")


def until(happened: Callable[[], Result | Literal[False] | None]) -> Result:
    """The result of `happened` as soon as it is true; AssertionError after PATIENCE_SECONDS."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not (result := happened()):
        assert time.monotonic() < deadline, f"It did not happen within {PATIENCE_SECONDS:.0f} s"
        time.sleep(0.02)
    return result


def has_ended(process_id: int) -> bool:
    """Whether a process has ended, even if no process has waited for it."""
    try:
        stat = Path(f"/proc/{process_id}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True
    return stat.rpartition(")")[2].split()[0] == "Z"


def child_ids(process_id: int) -> list[int]:
    """The IDs of the processes that the main thread of this process has started."""
    children = Path(f"/proc/{process_id}/task/{process_id}/children").read_text()
    return [int(child) for child in children.split()]
