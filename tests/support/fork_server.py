"""Programs in Python by a fork of one process that has imported everything already.

`ForkedPopen` is `subprocess.Popen`, and the program is a child of this process as always: only
the second of CPU time that Python takes to start and to import is saved. What a fork can't do as
a new process would, for example to read another PYTHONPATH, is done by a new process.
"""

import atexit
import ctypes
import gc
import io
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from functools import cache
from importlib import import_module
from inspect import signature
from threading import Lock
from typing import Any

import gunicorn.config

from taskservice.cli.commands import COMMANDS
from taskservice.operations import metrics

IMPORTED = [
    *COMMANDS.values(), "alembic.ddl.postgresql", "gunicorn.app.wsgiapp",
    "psycopg", "sqlalchemy.dialects.postgresql.psycopg", "sqlalchemy.dialects.sqlite.pysqlite",
    "taskservice.client", "alembic.command",
    "taskservice.openapi", "taskservice.serving.worker",
    "taskservice.webhooks.transport",
]  # fmt: skip
# Variables that are read once: by the interpreter, by the C library, and when gunicorn is imported.
STARTUP_VARIABLES = (
    "PYTHON", "LANG", "LC_", "TZ", "LD_", "MALLOC_",
    "FORWARDED_ALLOW_IPS", "PORT", "SENDFILE", "WEB_CONCURRENCY",
)  # fmt: skip
# A module that patches others may have to do so before they are imported; the last two patch only
# names that are looked up at each call.
FORKED_MODULES = (
    ["-m", "taskservice"], ["-m", "gunicorn"], ["-m", "tests.support.crash_points"],
    ["-m", "tests.support.killed_upgrade"],
)  # fmt: skip
MAX_MESSAGE = 64 * 1024
SET_CHILD_SUBREAPER = 36


class ForkServer:
    """The process that forks; it ends at the latest when this one ends."""

    def __init__(self) -> None:
        self.variables = startup_variables(os.environ)
        self._lock = Lock()
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(theirs.fileno())],
                cwd=os.path.dirname(sys.modules["tests"].__file__ or "") + "/..",
                pass_fds=[theirs.fileno()],
            )

    def close(self) -> None:
        self._socket.close()
        self._process.wait()

    def fork(self, job: bytes, files: Sequence[int]) -> int:
        """The ID of a new child of this process, which does the job with these three files."""
        with self._lock:
            # The parent of the new process ends at once: the nearest subreaper inherits it.
            _be_subreaper(True)
            try:
                socket.send_fds(self._socket, [job], files)
                pid = int(self._socket.recv(100))
                # Now the parent has ended.
                self._socket.recv(100)
            finally:
                _be_subreaper(False)
        return pid


@cache
def fork_server() -> ForkServer:
    return ForkServer()


def close_fork_server() -> None:
    if fork_server.cache_info().currsize:
        fork_server().close()
        fork_server.cache_clear()


def _be_subreaper(value: bool) -> None:
    ctypes.CDLL(None).prctl(SET_CHILD_SUBREAPER, int(value), 0, 0, 0)


def startup_variables(environ: Mapping[str, str]) -> dict[str, str]:
    # A fork has the bytecode of the server's modules in any case.
    return {
        name: text
        for name, text in environ.items()
        if name.startswith(STARTUP_VARIABLES) and name != "PYTHONDONTWRITEBYTECODE"
    }


class ForkedPopen(subprocess.Popen[Any]):
    """A process by the fork server where that is the same, else a new one.

    `closed` are the standard files, of three, that it does not have.
    """

    def __init__(
        self, args: Sequence[str], *, closed: Collection[int] = (), **options: Any
    ) -> None:
        self._closed = [*closed]
        if closed:
            options["preexec_fn"] = self._close  # a fork does it by itself
        super().__init__(args, **options)

    def _close(self) -> None:
        for file in self._closed:
            os.close(file)

    # subprocess has no public name for this.
    def _execute_child(
        self, args: Any, executable: Any, preexec_fn: Any, close_fds: Any, pass_fds: Any,
        cwd: Any, env: Any, startupinfo: Any, creationflags: Any, shell: Any,
        p2cread: int, p2cwrite: int, c2pread: int, c2pwrite: int, errread: int, errwrite: int,
        restore_signals: Any, gid: Any, gids: Any, uid: Any, umask: int,
        start_new_session: bool, process_group: int,
    ) -> None:  # fmt: skip
        environ = dict(os.environ if env is None else env)
        folder = str(cwd or os.getcwd())
        options = [start_new_session, umask, self._closed]
        job = json.dumps([args, folder, environ, *options]).encode()
        own_start = preexec_fn and not self._closed
        others = (executable, own_start, pass_fds, shell, gid, gids, uid)
        if any(others) or process_group != -1 or not _can_fork(args, environ, job):
            super()._execute_child(  # type: ignore[misc]
                args, executable, preexec_fn, close_fds, pass_fds, cwd, env, startupinfo,
                creationflags, shell, p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite,
                restore_signals, gid, gids, uid, umask, start_new_session, process_group,
            )  # fmt: skip
            return
        files = [fd if fd != -1 else n for n, fd in enumerate((p2cread, c2pwrite, errwrite))]
        self.pid = fork_server().fork(job, files)
        self._child_created = True
        self._close_pipe_fds(  # type: ignore[attr-defined]
            p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite
        )


def _parameters(kind: Any) -> list[str]:
    return list(signature(kind._execute_child).parameters)


# A Python with other parameters than 3.11 to 3.13: each program is a new process there.
if _parameters(ForkedPopen) != _parameters(subprocess.Popen):
    del ForkedPopen._execute_child


def _can_fork(args: Any, environ: dict[str, str], job: bytes) -> bool:
    return (
        args[0] == sys.executable
        and (args[1] == "-c" or args[1].endswith(".py") or list(args[1:3]) in FORKED_MODULES)
        and startup_variables(environ) == fork_server().variables
        and len(job) < MAX_MESSAGE
    )


def run_forked(
    args: Sequence[str], *, timeout: float, check: bool = False, **options: Any
) -> subprocess.CompletedProcess[Any]:
    """As `subprocess.run`."""
    if options.pop("capture_output", False):
        options |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    text = options.pop("input", None)
    if text is not None:
        options["stdin"] = subprocess.PIPE
    with ForkedPopen(args, **options) as process:
        try:
            output, errors = process.communicate(text, timeout)
        except BaseException:
            process.kill()
            raise
    result = subprocess.CompletedProcess(args, process.returncode, output, errors)
    if check:
        result.check_returncode()
    return result


# The following code runs in the fork server.


def _wait_for_job(server: socket.socket) -> list[str]:
    """Fork for each job; returns in the new process, with what a new Python has in `sys.argv`."""
    while True:
        message, files, _, _ = socket.recv_fds(server, MAX_MESSAGE, 3)
        if not message:
            sys.exit(0)
        parent = os.fork()
        if parent == 0:
            alive, end = os.pipe()
            if pid := os.fork():
                server.send(b"%d" % pid)
                os._exit(0)
            server.close()
            os.close(end)
            # Until this process has its real parent.
            os.read(alive, 1)
            os.close(alive)
            return _settle(*json.loads(message), files=files)
        for file in files:
            os.close(file)
        os.waitpid(parent, 0)
        server.send(b"forked")


def _settle(
    args: list[str], cwd: str, environ: dict[str, str], own_session: bool, umask: int,
    closed: list[int], *, files: list[int],
) -> list[str]:  # fmt: skip
    if own_session:
        os.setsid()
    if umask != -1:
        os.umask(umask)
    for number, file in enumerate(files):
        os.dup2(file, number)
    for file in [*files, *closed]:
        os.close(file)
    os.chdir(cwd)
    # gunicorn reads the current directory when it is imported.
    gunicorn.config.Chdir.default = cwd
    # Its memory is shared by all forks.
    metrics.requests = metrics.RequestCounts()
    os.environ.clear()
    os.environ.update(environ)
    sys.stdin = sys.__stdin__ = _text(0, "r", sys.stdin, closed)  # type: ignore[misc]
    sys.stdout = sys.__stdout__ = _text(1, "w", sys.stdout, closed)  # type: ignore[misc]
    sys.stderr = sys.__stderr__ = _text(2, "w", sys.stderr, closed)  # type: ignore[misc]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    return args[1:]


def _text(file: int, mode: str, like: Any, closed: list[int]) -> Any:
    if file in closed:
        return None
    buffer: Any = open(file, mode + "b", closefd=False)  # noqa: SIM115 - it is the standard stream
    return io.TextIOWrapper(
        buffer, like.encoding, like.errors, None if mode == "r" else "\n",
        line_buffering=mode == "w" and (file == 2 or os.isatty(file)),
    )  # fmt: skip


def _run(args: list[str]) -> None:
    """Run as Python runs its arguments."""
    if args[0] == "-m":
        sys.argv, sys.path[0] = args[1:], os.getcwd()
        runpy.run_module(args[1], run_name="__main__", alter_sys=True)
    elif args[0] == "-c":
        sys.argv, sys.path[0] = ["-c", *args[2:]], ""
        exec(compile(args[1], "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.argv, sys.path[0] = args, os.path.dirname(args[0])
        runpy.run_path(args[0], run_name="__main__")


def _end(code: Any) -> None:
    """End as Python does, but leave the memory to the system, which takes a tenth of the time.

    Returns if there is more to do at the end.
    """
    if not isinstance(code, int | None):
        return
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    with suppress(OSError, ValueError):
        for stream in filter(None, (sys.stdout, sys.stderr)):
            stream.flush()
        os._exit((code or 0) & 0xFF)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    connection = socket.socket(fileno=int(sys.argv[1]))
    for module in IMPORTED:
        with suppress(ModuleNotFoundError):  # a driver that is not here
            import_module(module)
    gc.collect()
    gc.freeze()
    arguments = _wait_for_job(connection)
    try:
        _run(arguments)
    except SystemExit as end:
        _end(end.code)
        raise
    _end(None)
