"""Counts the words of text files, and reports the result as a task.

    taskservice login
    python examples/summary.py FILE ...

An exception becomes the error of the task, with the traceback in the log. After a cancellation,
the next `task.log` raises TaskCancelled.
"""

import sys
from pathlib import Path

from taskservice.client import Client


def main(paths: list[str]) -> None:
    with Client().start("summary", name=f"{len(paths)} files", input={"paths": paths}) as task:
        for path in paths:
            words = len(Path(path).read_text().split())
            task.log(f"{path}: {words} words")
            task.output[path] = words


if __name__ == "__main__":
    main(sys.argv[1:])
