"""Saves a run on the disk, so that it can be sent after its process has ended."""

import contextlib
import errno
import fcntl
import json
import os
import shutil
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

from taskservice.client import responses
from taskservice.client.http import Connection
from taskservice.client.log_tail import open_file
from taskservice.client.responses import Invalid, NotFound, TaskCancelled, TaskServiceError
from taskservice.client.task import start_task
from taskservice.terminal import notice
from taskservice.terms import AGENT_PREFIX

_FILE = "run.json"
_MAX_FILE_BYTES = 16 * 1024 * 1024
_RESERVED_BYTES = 16 * 1024  # reserved for the report, in case the disk is full
# If the service refuses an optional field, the task is started without the field.
OPTIONAL = {"callback", "claimedAt", "input", "labels", "name", "parentId", "timeout"}
# The members of the file, and the attributes in which they are stored.
_MEMBERS = {
    "url": "url", "startFields": "fields", "taskId": "task_id", "userId": "user_id",
    "agentId": "agent_id", "key": "idempotency_key", "report": "report",
}  # fmt: skip


def runs_directory() -> Path:
    """The directory of the user's runs, according to the XDG specification. Raises OSError."""
    state = os.environ.get("XDG_STATE_HOME", "")
    try:
        base = Path(state) if state.startswith("/") else Path.home() / ".local" / "state"
    except RuntimeError as error:
        raise OSError(f"neither XDG_STATE_HOME nor HOME is set: {error}") from None
    return base / "taskservice" / "runs"


class SavedRun:
    """A run: the task or the fields that start the task, and the final report, without the API key.

    `directory` is locked until this process ends. If nothing can be written to the disk,
    `directory` is None.
    """

    def __init__(
        self,
        url: str,
        fields: Mapping[str, Any],
        task: Mapping[str, Any] | None = None,
        agent_key_hint: str = "",
    ) -> None:
        """`task` is the JSON of an existing task; otherwise, a task is started with `fields`.

        If `fields` contains no `agentId`, the task belongs to the agent of the agent key,
        whose hint is `agent_key_hint`.
        """
        self.url = url
        self.fields = dict(fields)
        self.task_id: str | None = None
        self.user_id: str | None = None  # the owner of the task; None until the task exists
        self.agent_id = str(self.fields.get("agentId", agent_key_hint))
        self.idempotency_key = uuid4().hex  # prevents a repeated start from creating another task
        self.report: dict[str, Any] | None = None
        self.directory: Path | None = None
        self._lock = contextlib.ExitStack()  # closes the lock file
        self._write_lock = threading.Lock()
        if task is not None:
            self._set_task(task)

    def _set_task(self, task: Mapping[str, Any]) -> None:
        self.agent_id, self.user_id = str(task["agentId"]), str(task["userId"])
        self.task_id = str(task["id"])

    @property
    def is_of_key(self) -> bool:
        """Whether only the agent's key is known; `agent_id` is then the hint of the key."""
        return self.agent_id.startswith(f"{AGENT_PREFIX}…")

    def is_cancelled_or_deleted(self, error: TaskServiceError | None) -> bool:
        """Whether this error means that the task was cancelled or deleted."""
        # Before the task exists, a 404 means that the key is not allowed to start it.
        is_deleted = isinstance(error, NotFound) and self.task_id is not None
        return is_deleted or isinstance(error, TaskCancelled)

    def ensure_task(
        self, connection: Connection, is_strict: bool = False, is_late: bool = True, **options: Any
    ) -> str:
        """Start the task unless it exists; return its ID. Raises TaskServiceError.

        If the service refuses fields of OPTIONAL, they are omitted; with `is_strict`, the error is
        raised. Only a late start contains `claimedAt`, which must not be in the future.
        """
        if self.task_id is None and "agentId" not in self.fields:  # the key determines the agent
            user = connection.call("GET", "/user", responses.USER, **options).data
            self.fields["agentId"] = user["key"]["agentId"]
        while self.task_id is None:
            fields = {n: value for n, value in self.fields.items() if is_late or n != "claimedAt"}
            try:
                self._set_task(start_task(connection, fields, self.idempotency_key, **options))
                # If the ID is not saved, a later process repeats the start with the same key.
                with contextlib.suppress(OSError):
                    self.write()
            except (Invalid, responses.BadRequest, responses.TooLarge) as error:
                if "claimedAt" in fields and "Idempotency-Key" in getattr(error, "errors", ()):
                    # An earlier request without `claimedAt` has started the task, but its response
                    # was lost.
                    is_late = False
                    continue
                # The input is the only field that can be too large or nested too deeply.
                named = error.errors.keys() if isinstance(error, Invalid) else {"input"}
                refused = named & self.fields.keys() & OPTIONAL
                if is_strict or not refused:
                    raise
                self.fields = {n: value for n, value in self.fields.items() if n not in refused}
                why, left_out = str(error).rstrip("."), " and ".join(sorted(refused))
                notice(f"{why}; the task is started without {left_out}")
        return self.task_id

    def create_directory(self, runs: Path) -> None:
        """Create the directory in `runs`, locked before it becomes visible. Raises OSError."""
        runs.mkdir(mode=0o700, parents=True, exist_ok=True)
        check_private(runs, may_close=True)
        draft = runs / f".{self.idempotency_key}"
        draft.mkdir(mode=0o700)
        self.directory = draft
        try:
            self._lock_directory(draft)
            self.write()
            self.directory = draft.rename(runs / self.idempotency_key)
        except OSError:
            self.remove()
            self.directory = None
            raise

    def write(self) -> None:
        """Replace the file, atomically unless the disk is full. Raises OSError."""
        if self.directory is None:
            return
        members = {name: getattr(self, attribute) for name, attribute in _MEMBERS.items()}
        text = json.dumps(members).encode().ljust(_RESERVED_BYTES)
        path = self.directory / _FILE
        draft = path.with_suffix(".new")
        with self._write_lock:
            try:
                _write_file(draft, text)
                draft.rename(path)
            except OSError:
                draft.unlink(missing_ok=True)
                if not path.exists() or len(text) > _RESERVED_BYTES:
                    raise
                _write_file(path, text)  # on a full disk, overwrite the existing file

    @classmethod
    def load(cls, directory: Path) -> "SavedRun | None":
        """Lock and read a run; None if it is running or was sent. Raises OSError or ValueError."""
        run = cls("", {})
        run.directory = directory
        with contextlib.ExitStack() as on_error:
            on_error.callback(run.release)
            try:
                check_private(directory)
                # This creates the lock file if it is missing, for example in a copy of a run.
                run._lock_directory(directory)
                data = json.loads(read_file(directory / _FILE, _MAX_FILE_BYTES))
                for name, attribute in _MEMBERS.items():
                    setattr(run, attribute, data[name])
            except (BlockingIOError, FileNotFoundError):
                return None
            except (KeyError, TypeError, RecursionError) as error:
                raise ValueError(f"{_FILE} is not the file of a run") from error
            on_error.pop_all()
        return run

    def _lock_directory(self, directory: Path) -> None:
        file = open_file(directory / "lock", os.O_RDWR | os.O_CREAT)
        self._lock.callback(os.close, file)
        # The kernel releases the lock when this process ends, even if the process is killed.
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def release(self) -> None:
        self._lock.close()

    def remove(self) -> None:
        """Remove the run from the disk."""
        if self.directory is not None:
            with contextlib.suppress(OSError):
                # Remove the file of the run first: a directory without this file is not a saved
                # run.
                (self.directory / _FILE).unlink(missing_ok=True)
                # Hide the directory, so that no other process creates the lock file again.
                self.directory = self.directory.rename(
                    self.directory.with_name(f".{self.directory.name}")
                )
            self.release()
            shutil.rmtree(self.directory, ignore_errors=True)


def _write_file(path: Path, text: bytes) -> None:
    with os.fdopen(open_file(path, os.O_WRONLY | os.O_CREAT), "wb") as file:
        file.write(text)
        file.truncate()
        os.fsync(file)


def read_file(path: Path, max_bytes: int = -1) -> bytes:
    """Read at most `max_bytes` of a regular file. Raises OSError."""
    with os.fdopen(open_file(path, os.O_RDONLY), "rb") as file:
        return file.read(max_bytes)


def check_private(directory: Path, may_close: bool = False) -> None:
    """Raise OSError unless only this user has access to the directory.

    With `may_close`, remove the access of other users to a directory that this user owns.
    """
    opened = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        status = os.fstat(opened)
        if status.st_uid != os.geteuid():
            problem = "The directory belongs to another user"
            raise PermissionError(errno.EPERM, problem, str(directory))
        if status.st_mode & 0o077 and not may_close:
            problem = "The directory is open to other users; its mode must be 0700"
            raise PermissionError(errno.EPERM, problem, str(directory))
        if status.st_mode & 0o077:
            os.fchmod(opened, 0o700)
    finally:
        os.close(opened)
