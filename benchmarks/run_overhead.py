"""How much slower a program is below `taskservice run` than in a pipe to cat, and its memory.

The program's own time counts, until it has written everything. Each figure is the median of
interleaved rounds. Above a ratio of 1.2 or 100 MB of memory, the exit status is 1, except for
EXTREME.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.support.service import COMMAND, Service

ROUNDS = int(os.environ.get("ROUNDS", "5"))

MILLION_LINES_IN_TEN_SECONDS = """
import sys, time
began = time.monotonic()
for part in range(1_000):
    first = part * 1_000
    sys.stdout.write("".join(f"line {number} of a million\\n" for number in range(first, first + 1_000)))
    sys.stdout.flush()
    time.sleep(max(0, began + (part + 1) * 0.01 - time.monotonic()))
"""  # noqa: E501 - a program in a program

EXTREME = "20 million lines at once"
PROGRAMS = {
    "a million lines in 10 s": [sys.executable, "-c", MILLION_LINES_IN_TEN_SECONDS],
    EXTREME: ["seq", "20000000"],
    "a line of 100 MB": ["head", "-c", "100000000", "/dev/zero"],
    "100 MB of random bytes": ["head", "-c", "100000000", "/dev/urandom"],
}


def timed(command: list[str], mark: Path) -> list[str]:
    """A command that writes down when it began and when it ended."""
    script = 'date +%s%N >"$0"; "$@"; date +%s%N >>"$0"'
    return ["sh", "-c", script, str(mark), *command]


def seconds(mark: Path) -> float:
    began, ended = map(int, mark.read_text().split())
    return (ended - began) / 1e9


def run(command: list[str], environment: dict[str, str]) -> int:
    """Run it with its output thrown away; returns the most memory it had, in bytes."""
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = status
    assert status == 0, command
    return usage.ru_maxrss * 1024


def main() -> int:
    is_over = False
    folder = Path(tempfile.mkdtemp())
    mark = folder / "mark"
    with Service(folder / "data", LOG_LEVEL="warning") as service:
        # It stands in for another machine, and should not take a CPU from this one.
        for process in [service.process.pid, *service.workers()] if service.process else []:
            os.setpriority(os.PRIO_PROCESS, process, 19)
        environment = os.environ | {
            "TASKSERVICE_URL": service.url, "TASKSERVICE_APIKEY": service.add_user().key,
            "XDG_STATE_HOME": str(folder),
        }  # fmt: skip
        for name, program in PROGRAMS.items():
            beside, below, memory = [], [], 0
            for _ in range(1 if "10 s" in name else ROUNDS):
                run(["sh", "-c", '"$@" | cat', "sh", *timed(program, mark)], environment)
                beside.append(seconds(mark))
                command = [*COMMAND, "run", "--agent", "bench", "--", *timed(program, mark)]
                memory = max(memory, run(command, environment))
                below.append(seconds(mark))
                time.sleep(0.5)
            ratio = statistics.median(below) / statistics.median(beside)
            is_within = ratio <= 1.2 and memory < 100e6
            is_over = is_over or not (is_within or name == EXTREME)
            print(
                f"{name:24} {statistics.median(beside):6.2f} s beside cat, "
                f"{statistics.median(below):6.2f} s below run: {ratio:5.2f}, "
                f"{memory / 1e6:4.0f} MB{'' if is_within else '   over the bound'}"
            )
    return int(is_over)


if __name__ == "__main__":
    sys.exit(main())
