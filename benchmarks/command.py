"""What the commands that measure share: their options, their directory, and how they print."""

import argparse
import platform
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest

from benchmarks.servers import pin_load
from benchmarks.table import Run, markdown

# A helper of the tests skips or fails where PostgreSQL can't be started.
UNMEASURABLE = (Exception, pytest.skip.Exception, pytest.fail.Exception)


def parser(program: str, description: str | None, parts: Iterable[str]) -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(prog=f"python -m {program}", description=description)
    options.add_argument("--only", action="append", choices=list(parts), help="may be repeated")
    options.add_argument("--seconds", type=float, default=2.0, help="of each measurement (2)")
    options.add_argument("--rounds", type=int, default=3, help="of all measurements in turn (3)")
    options.add_argument("--scale", type=float, default=1.0, help="of the numbers of tasks (1)")
    options.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    return options


@contextmanager
def measuring(options: argparse.Namespace) -> Iterator[Run]:
    """A run in a temporary directory, with the load on another CPU than the servers."""
    pin_load()
    folder = Path(tempfile.mkdtemp(prefix="benchmarks-"))
    # PostgreSQL runs as another user.
    folder.chmod(0o755)
    try:
        yield Run(folder, options.seconds, options.rounds, options.scale)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def reason(error: BaseException) -> str:
    """Why something could not be measured, in part of a line."""
    return " ".join(str(error).split())[:160] or type(error).__name__


def show(began: float, head: Sequence[str], lines: Sequence[Sequence[str]]) -> None:
    """Print a table below the date, the machine and the time that it took since `began`."""
    seconds = time.monotonic() - began
    print(f"{datetime.now(UTC):%Y-%m-%d}, {_machine()}, measured in {seconds:.0f} s\n")
    print(markdown(head, lines))


def _machine() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    model = next(models, platform.machine())
    return f"{model}, Linux {platform.release()}, Python {platform.python_version()}"
