"""Runs a program as a child process: starts it, sends it signals, and waits for its end."""

import errno
import math
import os
import select
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, NamedTuple


class FoundProcess(NamedTuple):
    """A running process; `started` distinguishes it from a later process with the same ID."""

    parent: int
    group: int
    started: str
    is_paused: bool


def processes() -> dict[int, FoundProcess]:
    """All processes on this machine except zombies, by ID."""
    return dict(_from_proc() if Path("/proc/self/stat").exists() else _from_ps())


def _from_proc() -> Iterator[tuple[int, FoundProcess]]:
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            text = Path("/proc", name, "stat").read_text(errors="replace")
        except OSError:  # the process has just ended
            continue
        # The name is in parentheses, and can itself contain parentheses and spaces.
        state, parent, group, *rest = text.rpartition(")")[2].split()
        if state not in "ZX":
            yield int(name), FoundProcess(int(parent), int(group), rest[16], state in "Tt")


def _from_ps() -> Iterator[tuple[int, FoundProcess]]:
    command = ["ps", "-A", "-o", "pid=,ppid=,pgid=,stat=,lstart="]
    listed = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    for line in listed.stdout.splitlines():
        pid, parent, group, state, started = line.split(maxsplit=4)
        if not state.startswith("Z"):
            yield int(pid), FoundProcess(int(parent), int(group), started, state[0] in "Tt")


# Signals that a terminal sends to all of its foreground processes, for example on Ctrl-C.
_TERMINAL_SIGNALS = (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP)
# Real-time signals, whose meaning each program defines; macOS has no real-time signals.
REAL_TIME = range(getattr(signal, "SIGRTMIN", 0), getattr(signal, "SIGRTMAX", -1) + 1)
# Signals that are not sent to descendants, since such a signal kills a process that does not handle
# it.
PROGRAM_ONLY = (signal.SIGUSR1, signal.SIGUSR2, *REAL_TIME)
# Python ignores these signals, and a child process would ignore them too.
RESET_TO_DEFAULT = (signal.SIGPIPE, signal.SIGXFSZ)
JOIN_SECONDS = 0.2  # how often a wait for a thread is interrupted, so that signal handlers can run
_POLL_SECONDS = 0.02  # how often to check for the program's end, on systems without pidfd
_KILL_SECONDS = 2.0  # how long the kernel can take to end a process after SIGKILL


class Process:
    """A running program.

    At a terminal, the program remains in our process group, so that it can read from the terminal
    and receives Ctrl-C as usual. Otherwise, the program gets its own process group. Most signals
    are also sent to the program's descendants.
    """

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        stdin: int | None,
        stdout: int,
        stderr: int,
    ) -> None:
        """Start the program. Raises OSError if the program can't be run."""
        self.at_terminal = stdin is None and _foreground_group() is not None
        moves = [] if stdin is None else [(os.POSIX_SPAWN_DUP2, stdin, 0)]
        moves += [(os.POSIX_SPAWN_DUP2, stdout, 1), (os.POSIX_SPAWN_DUP2, stderr, 2)]
        options: dict[str, Any] = {"setpgroup": os.getpgrp() if self.at_terminal else 0}
        if stdin is not None:
            # In our session, a background process that reads from our terminal would be stopped.
            options = {"setsid": True}
        self.id = _spawn(list(command), dict(environment), file_actions=moves, **options)
        self._seen: dict[int, FoundProcess] = {}  # the last result of `_members`
        # The lock is reentrant, since a signal handler that interrupts `wait` can call
        # `send_signal`.
        self._lock = threading.RLock()
        self.has_ended = False
        self._is_stopped = False
        self._kill_at = self._killed_at = math.inf

    def wait(self) -> int:
        """Wait until the program ends; return its exit status, or the negated signal number."""
        ended, poll, seconds = 0, select.poll(), _POLL_SECONDS
        with ExitStack() as opened:
            with suppress(AttributeError, OSError):  # Linux only
                file = os.pidfd_open(self.id)
                opened.callback(os.close, file)
                # `work --parallel` can open many files, but `select` supports only 1,024 files.
                poll.register(file, select.POLLIN)
                seconds = JOIN_SECONDS
            while not ended:
                self._kill_if_due()
                poll.poll(seconds * 1000)
                with self._lock:
                    ended, status = os.waitpid(self.id, os.WNOHANG)
                    # After `stop`, signals are still sent to the descendants, even if the program
                    # itself has ended.
                    self.has_ended = bool(ended) and not self._is_stopped
        while self._is_stopped and time.monotonic() <= self._killed_at + _KILL_SECONDS:
            self._kill_if_due()
            with self._lock:
                if not self._members():
                    break
            time.sleep(0.05)
        with self._lock:
            self.has_ended = True
        return os.waitstatus_to_exitcode(status)

    def send_signal(self, number: int, is_from_terminal: bool = False) -> None:
        """Send the program a signal, unless the terminal has already sent it to the program."""
        is_for_both = is_from_terminal and self.at_terminal and number in _TERMINAL_SIGNALS
        # `_foreground_group` returns None if the terminal was just closed.
        if is_for_both and _foreground_group() in (os.getpgrp(), None):
            return
        with self._lock:
            if self.has_ended:
                return
            if number in PROGRAM_ONLY:
                _kill([self.id], number)
            elif self.at_terminal:
                self._signal_all(number)
            else:
                _kill([-self.id], number)
                # A paused program handles these signals only when it continues.
                if number in (signal.SIGTERM, signal.SIGHUP):
                    _kill([-self.id], signal.SIGCONT)

    def resize(self) -> None:
        """Notify the processes of the program that the size of their terminal has changed."""
        with self._lock:
            if not self.has_ended:
                _kill(self._members(), signal.SIGWINCH)

    def stop(self, grace: float) -> None:
        """Send SIGTERM to the program and its descendants; kill them after `grace` seconds."""
        self._is_stopped = True
        self._kill_at = time.monotonic() + grace
        self._signal_all(signal.SIGTERM)

    def _kill_if_due(self) -> None:
        if time.monotonic() >= self._kill_at:
            self._kill_at = math.inf
            self._signal_all(signal.SIGKILL)
            self._killed_at = time.monotonic()

    def _signal_all(self, number: int) -> None:
        """Send a signal to the program and its descendants."""
        with self._lock:
            if self.has_ended:
                return
            self._pause()
            ids = list(self._seen)
            if not self.at_terminal:
                # One call signals the whole group, including a process that is just being created.
                ids = [-self.id, *(pid for pid in ids if self._seen[pid].group != self.id)]
            _kill(ids, number)
            _kill(ids, signal.SIGCONT)

    def _pause(self) -> None:
        """Pause all processes, so that they start no new process before they receive the signal."""
        signalled, were_paused = set[int](), False
        # A process can start new processes until it is paused, so read the list until it contains
        # no new process. Limit the number of attempts, since processes of other users, and
        # processes that wait in vfork, can't be paused.
        for _ in range(50):
            new = self._members() - signalled
            if were_paused and not new:
                return
            _kill(new, signal.SIGSTOP)
            signalled |= new
            were_paused = all(process.is_paused for process in self._seen.values())
            time.sleep(0.01)

    def _members(self) -> set[int]:
        """The IDs of the program, the processes in its group, and its descendants.

        A descendant is included even if its parent has ended.
        """
        running = processes()
        ids = {
            pid
            for pid, process in running.items()
            if pid == self.id
            or (process.group == self.id and not self.at_terminal)
            or (pid in self._seen and process.started == self._seen[pid].started)
        }
        while new := {pid for pid in running.keys() - ids if running[pid].parent in ids}:
            ids |= new
        self._seen = {pid: running[pid] for pid in ids}
        return ids


def _spawn(command: list[str], environment: dict[str, str], **options: Any) -> int:
    # The program must not inherit the signal mask of our threads.
    options |= {"setsigmask": (), "setsigdef": RESET_TO_DEFAULT}
    if not command[0]:  # posix_spawnp would raise ValueError
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
    try:
        return os.posix_spawnp(command[0], command, environment, **options)
    except OSError as error:
        if error.errno != errno.ENOEXEC:
            raise
        # Run a script without a `#!` line with sh, as shells do.
        script = shutil.which(command[0]) or command[0]
        return os.posix_spawn("/bin/sh", ["sh", script, *command[1:]], environment, **options)


def _kill(ids: Iterable[int], number: int) -> None:
    """Send a signal to processes; a negative ID means a process group."""
    for process_id in ids:
        # The process may have just ended, or may run as another user now.
        with suppress(ProcessLookupError, PermissionError):
            os.kill(process_id, number)


def _foreground_group() -> int | None:
    """The process group to which our terminal sends Ctrl-C; None without a terminal."""
    try:
        with open("/dev/tty") as terminal:
            return os.tcgetpgrp(terminal.fileno())
    except OSError:
        return None


def describe(status: int, received: Sequence[int]) -> str:
    """An error message that says how a program failed."""
    killed = f"Killed by signal {-status} ({signal_name(-status)})"
    text = killed if status < 0 else f"Exit status {status}"
    others = [signal_name(number) for number in received if number != -status]
    return f"{text}, after {' and '.join(others)}" if others else text


def signal_name(number: int) -> str:
    return next((known.name for known in signal.Signals if known == number), f"signal {number}")


# Signals that end a process by default, except signals for its own faults, such as SIGSEGV.
_ENDING = (
    "SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2",
    "SIGALRM", "SIGVTALRM", "SIGPROF", "SIGXCPU", "SIGIO", "SIGPWR", "SIGSTKFLT",
)  # fmt: skip
FORWARDED = (*(getattr(signal, name) for name in _ENDING if hasattr(signal, name)), *REAL_TIME)


def forward_signals(forward: Callable[[int, bool], None]) -> None:
    """Call `forward` for each signal: with its number, and whether the terminal sent it.

    Signals that were ignored remain ignored, as with nohup. Call this before other threads start.
    """
    # If SIGCHLD is ignored, which we can inherit from our parent, the kernel discards exit
    # statuses.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    numbers = [number for number in FORWARDED if signal.getsignal(number) is not signal.SIG_IGN]
    if not hasattr(signal, "sigwaitinfo"):
        # On macOS, the sender is unknown, so assume that the terminal sent the signal.
        for number in numbers:
            signal.signal(number, lambda received, frame: forward(received, True))
        return

    def forward_all() -> None:
        while True:
            received = signal.sigwaitinfo(numbers)
            # `si_code` is positive if the kernel sent the signal, for example on Ctrl-C.
            forward(received.si_signo, received.si_code > 0)

    signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    threading.Thread(target=forward_all, daemon=True).start()
