"""A program as a child of ours: started, signalled, waited for."""

import errno
import math
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from taskservice.runner.process_tree import ProcessTree

# What Ctrl-C and the like send to all of the terminal's foreground.
_FROM_TERMINAL = (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP)
# Meant for the program itself: whoever does not expect these dies of them.
FOR_ITSELF = (signal.SIGUSR1, signal.SIGUSR2)
# Python ignores these, and what is ignored stays so in a child.
_BACK_TO_DEFAULT = (signal.SIGPIPE, signal.SIGXFSZ)
# A paused program would not see these before it goes on.
_WITH_CONTINUE = (signal.SIGTERM, signal.SIGHUP)
# How often it is looked whether all processes are paused: those of another user can't be, and
# one that waits for its child to begin is not before that goes on.
_MOST_LOOKS = 50
_SECONDS_BETWEEN_LOOKS = 0.01
# After SIGKILL, for the kernel to do it.
_SECONDS_TO_DIE = 2.0


class Process:
    """A running program.

    Started at a terminal it stays in our process group, so that it can read from the
    terminal and Ctrl-C and Ctrl-Z reach it as ever. Elsewhere, or with a `stdin` that is
    ours, it gets a group of its own. Signals go to all that it has started, too.
    """

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        stdin: int | None,
        stdout: int,
        stderr: int,
    ) -> None:
        """Start it; raises OSError where it can't be run."""
        self.at_terminal = stdin is None and _has_terminal()
        moves = [] if stdin is None else [(os.POSIX_SPAWN_DUP2, stdin, 0)]
        moves += [(os.POSIX_SPAWN_DUP2, stdout, 1), (os.POSIX_SPAWN_DUP2, stderr, 2)]
        options: dict[str, Any] = {"file_actions": moves, "setsigdef": _BACK_TO_DEFAULT}
        # We wait for signals with all of them blocked.
        options |= {"setsigmask": (), "env": dict(environment)}
        if self.at_terminal:
            options |= {"setpgroup": os.getpgrp()}
        elif stdin is None:
            options |= {"setpgroup": 0}
        else:
            # A terminal that we have would stop it in the background, if it should ask there.
            options |= {"setsid": True}
        self.id = _spawn(list(command), options)
        self._tree = ProcessTree(self.id, None if self.at_terminal else self.id)
        # `send` may be called by a signal handler that interrupts `wait`.
        self._lock = threading.RLock()
        self._status: int | None = None
        self._has_ended = False
        self._is_stopped = False
        self._killed_at = math.inf

    def wait(self) -> int:
        """Its exit status, negative for the signal that killed it."""
        waiter = threading.Thread(target=self._wait_for_end, name="waiter", daemon=True)
        waiter.start()
        join(waiter)
        self._wait_for_rest()
        with self._lock:
            self._has_ended = True
            if self._status is None:
                _, self._status = os.waitpid(self.id, 0)
        return os.waitstatus_to_exitcode(self._status)

    def _wait_for_end(self) -> None:
        """Wait without reaping: its id must stay its own while we may signal it."""
        if hasattr(os, "waitid"):
            os.waitid(os.P_PID, self.id, os.WEXITED | os.WNOWAIT)
            return
        while self._status is None:  # macOS before Python 3.13
            with self._lock:
                ended, status = os.waitpid(self.id, os.WNOHANG)
                self._status = status if ended else None
            time.sleep(0.02)

    def _wait_for_rest(self) -> None:
        """What it has started may still be ending, when it was stopped."""
        while self._is_stopped:
            with self._lock:
                rest = self._tree.members()
            if not rest or time.monotonic() > self._killed_at + _SECONDS_TO_DIE:
                return
            time.sleep(0.05)

    def send(self, number: int) -> None:
        """Send it a signal, if it has not ended."""
        with self._lock:
            if self._has_ended:
                return
            if number in FOR_ITSELF:
                _kill([self.id], number)
            elif self.at_terminal:
                self._send_all(number)
            else:
                _kill([-self.id], number)

    def stop(self, grace: float) -> None:
        """Tell it, and all that it has started, to end; after so many seconds it is killed."""
        self._is_stopped = True
        self._send_all(signal.SIGTERM)
        timer = threading.Timer(grace, self._kill_all)
        timer.daemon = True
        timer.start()

    def _kill_all(self) -> None:
        self._send_all(signal.SIGKILL)
        self._killed_at = time.monotonic()

    def _send_all(self, number: int) -> None:
        """Send a signal to each process of the program, and to none that it starts afterwards."""
        with self._lock:
            if self._has_ended:
                return
            self._pause()
            # The group at once, which no process that is just being made can miss.
            groups = [] if self.at_terminal else [-self.id]
            ids = [*groups, *self._tree.outside_group()]
            _kill(ids, number)
            _kill(ids, signal.SIGCONT)

    def _pause(self) -> None:
        """Stop the processes of the program where they are, until there is none that runs.

        A process could otherwise start another and end, between the look and the signal:
        that one would have neither the signal nor a parent by which it can be found. To be
        paused takes a moment, in which a process that is just being made is still made.
        """
        told: set[int] = set()
        were_paused = False
        for _ in range(_MOST_LOOKS):
            new = set(self._tree.members()) - told
            if were_paused and not new:
                return
            _kill(new, signal.SIGSTOP)
            told |= new
            were_paused = self._tree.is_paused()
            time.sleep(_SECONDS_BETWEEN_LOOKS)

    def heard_from_terminal(self, number: int) -> bool:
        """Whether the terminal, which sent us this signal, has sent it the same."""
        return self.at_terminal and number in _FROM_TERMINAL and _is_in_foreground()


def _spawn(command: list[str], options: dict[str, Any]) -> int:
    environment = options.pop("env")
    try:
        return os.posix_spawnp(command[0], command, environment, **options)
    except NotImplementedError:  # a system without that: a group will do
        options["setpgroup"] = 0
        del options["setsid"]
        return os.posix_spawnp(command[0], command, environment, **options)
    except OSError as error:
        if error.errno != errno.ENOEXEC:
            raise
        # A script that does not say what runs it: as shells do.
        script = shutil.which(command[0]) or command[0]
        return os.posix_spawn("/bin/sh", ["sh", script, *command[1:]], environment, **options)


def _kill(ids: Iterable[int], number: int) -> None:
    """Send a signal to processes, or to groups by their negative ids."""
    for id in ids:
        try:
            os.kill(id, number)
            if number in _WITH_CONTINUE:
                os.kill(id, signal.SIGCONT)
        except (ProcessLookupError, PermissionError):
            continue  # it ends at this moment, or has become another user's


def _has_terminal() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_CLOEXEC))
    except OSError:
        return False
    return True


def _is_in_foreground() -> bool:
    try:
        terminal = os.open("/dev/tty", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return True  # it has just hung up
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:
        return False
    finally:
        os.close(terminal)


def join(thread: threading.Thread) -> None:
    """Wait for a thread, and let signal handlers run meanwhile.

    A signal can come to any thread, but Python runs its handler in the main one, which
    a signal to another does not wake.
    """
    while thread.is_alive():
        thread.join(0.2)


def exit_code(status: int) -> int:
    """As a shell has it: 128 and the signal's number for a program that was killed."""
    return status if status >= 0 else 128 - status


def describe(status: int, received: Sequence[int]) -> str:
    """How a program ended that did not succeed, in one sentence."""
    if status < 0:
        text = f"Killed by signal {-status} ({signal_name(-status)})"
    else:
        text = f"Exit status {status}"
    others = [signal_name(number) for number in received if number != -status]
    return f"{text}, after {' and '.join(others)}" if others else text


def signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
