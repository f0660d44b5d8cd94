"""What is known of one run, kept in a folder so that it can be sent after the run is gone."""

import contextlib
import errno
import fcntl
import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import NoneType
from typing import Any
from uuid import uuid4

from taskservice.client import api
from taskservice.client.errors import Invalid, NotFound, TaskCancelled, TaskServiceError
from taskservice.client.http import Connection
from taskservice.runner.files import check_private, make_private, open_file, read_file

_RECORD = "run.json"
_LOCK = "lock"
# To make a run's folder, or to remove it, takes much less.
_OLD_SECONDS = 60.0
# So much room is taken from the start: the end must be kept on a disk that is full by then.
_RESERVED_BYTES = 16 * 1024
# More than a run has to write down: its output, with each character escaped.
_MOST_BYTES = 16 * 1024 * 1024
# A task without these is better than none.
_MAY_BE_LEFT_OUT = {"callback", "name", "timeout"}
# What is written down, and as what.
_KEPT: dict[str, tuple[type, ...]] = {
    "url": (str,), "wishes": (dict,), "taskId": (str, NoneType), "userId": (str, NoneType),
    "agentId": (str,), "key": (str,), "report": (dict, NoneType),
}  # fmt: skip


def state_folder() -> Path:
    """Where the runs of this user are kept, by the XDG Base Directory Specification.

    Raises OSError where there is no home.
    """
    state = os.environ.get("XDG_STATE_HOME", "")
    try:
        base = Path(state) if state.startswith("/") else Path.home() / ".local" / "state"
    except RuntimeError as error:
        raise OSError(f"neither XDG_STATE_HOME nor HOME is set: {error}") from None
    return base / "taskservice" / "runs"


class Record:
    """One run: where its task is or how to make it, and how it ended.

    `folder` is None where nothing can be kept on the disk. The folder is locked as long as
    this process lives, however it ends; the API key is not kept.
    """

    def __init__(
        self, url: str, wishes: Mapping[str, Any], task: Mapping[str, Any] | None = None
    ) -> None:
        """`wishes` start the task when there is no `task`, its JSON, yet."""
        self.url = url
        self.wishes = dict(wishes)
        self.task_id: str | None = None
        self.user_id: str | None = None  # whose it is, known with the task
        self.agent_id = str(self.wishes.get("agentId", ""))
        self.key = uuid4().hex  # makes the start safe to repeat
        self.report: dict[str, Any] | None = None
        self.folder: Path | None = None
        self._lock = -1
        self._writing = threading.Lock()
        if task is not None:
            self._has_task(task)

    def _has_task(self, task: Mapping[str, Any]) -> None:
        self.agent_id, self.user_id = str(task["agentId"]), str(task["userId"])
        self.task_id = str(task["id"])

    def is_seen_by(self, user: Mapping[str, Any]) -> bool:
        """Whether the key of this user, as GET /user has both, is one that may send it."""
        narrowed_to = user["key"]["agentId"]
        return self.user_id in (None, user["id"]) and narrowed_to in (None, self.agent_id)

    def is_unwanted(self, error: TaskServiceError | None) -> bool:
        """Whether this refusal says that the task was cancelled or deleted.

        A task that was never made can't have been deleted: the key may not make it.
        """
        is_deleted = isinstance(error, NotFound) and self.task_id is not None
        return is_deleted or isinstance(error, TaskCancelled)

    def made_task(
        self, connection: Connection, say: Callable[[str], None] | None, **options: Any
    ) -> str:
        """The id of its task, made now if it is not there yet. Raises TaskServiceError.

        A callback, name or timeout that the service refuses is left out, and `say` gets a
        sentence about it; where `say` is None, that is an error too.
        """
        while self.task_id is None:
            try:
                self._has_task(api.start_task(connection, self.wishes, self.key, **options))
            except Invalid as error:
                refused = error.errors.keys() & self.wishes.keys() & _MAY_BE_LEFT_OUT
                if say is None or not refused:
                    raise
                self.wishes = {n: value for n, value in self.wishes.items() if n not in refused}
                say(f"{error}; the task is made without {' and '.join(sorted(refused))}")
        return self.task_id

    def keep(self, runs: Path) -> None:
        """Take a folder below `runs`, locked before anybody sees it. Raises OSError."""
        make_private(runs)
        draft = runs / f".{self.key}"
        draft.mkdir(mode=0o700)
        self.folder = draft
        try:
            self._take_lock(os.O_CREAT)
            self.write()
            self.folder = draft.rename(runs / self.key)
        except OSError:
            self.remove()
            raise

    def write(self) -> None:
        """Write down how things stand, whole or not at all. Raises OSError."""
        if self.folder is None:
            return
        kept = json.dumps({
            "url": self.url, "wishes": self.wishes, "taskId": self.task_id,
            "userId": self.user_id, "agentId": self.agent_id,
            "key": self.key, "report": self.report,
        })  # fmt: skip
        with self._writing:
            _replace(self.folder / _RECORD, kept.encode().ljust(_RESERVED_BYTES))

    @classmethod
    def load(cls, folder: Path) -> "Record | None":
        """A run that has been left, locked. Raises OSError, and ValueError for what is no run.

        None while it is still alive, or when another process has just sent it.
        """
        record = cls("", {})
        record.folder = folder
        try:
            check_private(folder)
            record._take_lock()
            kept = _checked(read_file(folder / _RECORD, _MOST_BYTES))
        except (BlockingIOError, FileNotFoundError):
            record.release()
            return None
        except (OSError, ValueError):
            record.release()
            raise
        record.url, record.wishes, record.task_id = kept["url"], kept["wishes"], kept["taskId"]
        record.user_id, record.agent_id = kept["userId"], kept["agentId"]
        record.key, record.report = kept["key"], kept["report"]
        return record

    def _take_lock(self, create: int = 0) -> None:
        assert self.folder is not None
        self._lock = open_file(self.folder / _LOCK, os.O_RDWR | create)
        # Gone when the process is, also when it was killed.
        fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def release(self) -> None:
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def remove(self) -> None:
        """Everything is sent, or nobody wants it: forget this run."""
        if self.folder is not None:
            with contextlib.suppress(OSError):
                # First what makes it a run, so that no half of it is taken for one.
                (self.folder / _RECORD).unlink(missing_ok=True)
            self.release()
            shutil.rmtree(self.folder, ignore_errors=True)
        self.release()


def left_runs(runs: Path) -> list[Path]:
    """What may be the folders of runs, oldest first."""
    with os.scandir(runs) as entries:
        found = [
            Path(entry)
            for entry in entries
            if not entry.name.startswith(".") and (entry.is_symlink() or entry.is_dir())
        ]
    return sorted(found, key=_changed_at)


def remove_drafts(runs: Path) -> None:
    """Remove what was killed before it became a run, or while it was removed."""
    for folder in runs.glob("*"):
        is_old = time.time() - _changed_at(folder) > _OLD_SECONDS
        if is_old and (folder.name.startswith(".") or _has_no_record(folder)):
            shutil.rmtree(folder, ignore_errors=True)


def _has_no_record(folder: Path) -> bool:
    try:
        (folder / _RECORD).lstat()
    except FileNotFoundError:
        return True
    except OSError:  # it can't be looked into
        return False
    return False


def _changed_at(folder: Path) -> float:
    try:
        return folder.lstat().st_mtime
    except OSError:  # another process has just sent it
        return time.time()


def _checked(text: bytes) -> dict[str, Any]:
    """What was written down of a run. Raises ValueError."""
    try:
        kept = json.loads(text)
    except RecursionError as error:
        raise ValueError(f"{_RECORD}: {error}") from None
    if not isinstance(kept, dict):
        raise ValueError(f"{_RECORD} holds no JSON object")
    for name, types in _KEPT.items():
        if not isinstance(kept.get(name, ...), types):
            raise ValueError(f"{_RECORD} has a wrong {name}")
    return kept


def _replace(path: Path, text: bytes) -> None:
    """Replace a file, on a full disk in the blocks that it has. Raises OSError."""
    draft = path.with_suffix(".new")
    try:
        _write(draft, text)
        draft.rename(path)
    except OSError:
        draft.unlink(missing_ok=True)
        if not path.exists() or len(text) > _RESERVED_BYTES:
            raise
        _write(path, text)


def _write(path: Path, text: bytes) -> None:
    file = open_file(path, os.O_WRONLY | os.O_CREAT)
    with contextlib.closing(os.fdopen(file, "wb", buffering=0)) as out:
        if out.write(text) != len(text):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        out.truncate()
        os.fsync(out.fileno())
