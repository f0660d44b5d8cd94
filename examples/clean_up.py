"""An MCP tool that deletes old files in a folder, after asking a person for approval.

    taskservice agent add clean-up --input-schema @examples/clean_up.json \
        --description "Deletes old files of a folder. It asks before it deletes."
    taskservice work --agent clean-up -- python examples/clean_up.py

An MCP client that is connected to the service now has the tool `clean_up`. Without one:

    taskservice task start --agent clean-up --input '{"folder": "/tmp/reports"}' --follow
"""

import json
import sys
import time
from pathlib import Path

from taskservice.client import QuestionNotAnswered, Task, current

CHOICES = ["delete", "keep"]
# How many file names a question lists.
SHOWN = 20


def old_files(folder: Path, days: float) -> list[Path]:
    """The files of a folder that are older than `days`, without links and folders."""
    limit = time.time() - days * 86_400
    files = (path for path in sorted(folder.iterdir()) if path.is_file() and not path.is_symlink())
    return [path for path in files if path.lstat().st_mtime <= limit]


def is_approved(task: Task, folder: Path, files: list[Path]) -> bool:
    names = [path.name for path in files[:SHOWN]]
    if len(files) > SHOWN:
        names.append(f"and {len(files) - SHOWN} more")
    message = "\n".join([f"Delete {len(files)} files of {folder}?", *names])
    try:
        return task.ask(message, choices=CHOICES, timeout=3600) == "delete"
    except QuestionNotAnswered as reason:
        print(f"{reason}: nothing is deleted", flush=True)
        return False


def main() -> None:
    task_input = json.load(sys.stdin)
    folder = Path(task_input["folder"])
    if not folder.is_dir():
        sys.exit(f"{folder} is not a folder")
    files = old_files(folder, task_input.get("days", 30))
    print(f"{folder} has {len(files)} old files", flush=True)
    with current() as task:
        task.output["deleted"] = 0
        if files and is_approved(task, folder, files):
            for number, path in enumerate(files, 1):
                path.unlink(missing_ok=True)
                task.output["deleted"] = number
                task.progress(number, len(files), "files")


if __name__ == "__main__":
    main()
