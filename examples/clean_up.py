"""An MCP tool that deletes old files of a directory, if a person allows it.

    taskservice agent add clean-up --input-schema @examples/clean_up.json \
        --description "Deletes old files of a directory. It asks first."
    taskservice work --agent clean-up -- python examples/clean_up.py

An MCP client that is connected to the service now has the tool `clean_up`. Without a client:

    taskservice task start --agent clean-up --input '{"directory": "/tmp/reports"}' --follow
"""

import json
import sys
import time
from pathlib import Path

from taskservice.client import QuestionNotAnswered, Task, current

CHOICES = ["delete", "keep"]
# The maximum number of file names in a question.
SHOWN = 20


def old_files(directory: Path, days: float) -> list[Path]:
    """The files that have not changed for `days`, without links and directories."""
    limit = time.time() - days * 86_400
    files = (
        path for path in sorted(directory.iterdir()) if path.is_file() and not path.is_symlink()
    )
    return [path for path in files if path.lstat().st_mtime <= limit]


def is_approved(task: Task, directory: Path, files: list[Path]) -> bool:
    names = [path.name for path in files[:SHOWN]]
    if len(files) > SHOWN:
        names.append(f"and {len(files) - SHOWN} more")
    message = "\n".join([f"Delete {len(files)} files of {directory}?", *names])
    try:
        return task.ask(message, choices=CHOICES, timeout=3600) == "delete"
    except QuestionNotAnswered as reason:
        print(f"{reason}: nothing is deleted", flush=True)
        return False


def main() -> None:
    task_input = json.load(sys.stdin)
    directory = Path(task_input["directory"])
    if not directory.is_dir():
        sys.exit(f"{directory} is not a directory")
    files = old_files(directory, task_input.get("days", 30))
    print(f"{directory} has {len(files)} old files", flush=True)
    with current() as task:
        task.output["deleted"] = 0
        if files and is_approved(task, directory, files):
            for number, path in enumerate(files, 1):
                path.unlink(missing_ok=True)
                task.output["deleted"] = number
                task.progress(number, len(files), "files")


if __name__ == "__main__":
    main()
