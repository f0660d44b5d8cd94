"""A program as a child of ours: started, signalled, waited for."""

import os
import signal
import threading
from collections.abc import Mapping, Sequence

# What a person or a supervisor may send to us, and means for the program.
FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
# Python ignores these, and what is ignored stays so in a child.
_BACK_TO_DEFAULT = (signal.SIGPIPE, signal.SIGXFSZ)


class Process:
    """A running program.

    Started at a terminal it stays in our process group, so that it can read from the
    terminal and Ctrl-C and Ctrl-Z reach it as ever. Elsewhere it gets a group of its own,
    and signals go to all of it: to what a shell script runs too.
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
        self.at_terminal = stdin is None and os.isatty(0)
        moves = [] if stdin is None else [(os.POSIX_SPAWN_DUP2, stdin, 0)]
        moves += [(os.POSIX_SPAWN_DUP2, stdout, 1), (os.POSIX_SPAWN_DUP2, stderr, 2)]
        self.id = os.posix_spawnp(
            command[0],
            list(command),
            dict(environment),
            file_actions=moves,
            setsigdef=_BACK_TO_DEFAULT,
            setpgroup=os.getpgrp() if self.at_terminal else 0,
        )
        # `send` may be called by a signal handler that interrupts `wait`.
        self._lock = threading.RLock()
        self._has_ended = False

    def wait(self) -> int:
        """Its exit status, negative for the signal that killed it."""
        # Waited for without reaping first: its id must stay its own while we may signal it.
        options = (os.P_PID, self.id, os.WEXITED | os.WNOWAIT)
        waiter = threading.Thread(target=os.waitid, args=options, name="waiter", daemon=True)
        waiter.start()
        join(waiter)
        with self._lock:
            self._has_ended = True
            _, status = os.waitpid(self.id, 0)
        return os.waitstatus_to_exitcode(status)

    def send(self, number: int) -> None:
        """Send it a signal, if it has not ended."""
        with self._lock:
            if self._has_ended:
                return
            try:
                os.kill(self.id, number) if self.at_terminal else os.killpg(self.id, number)
            except ProcessLookupError:
                return  # it ends at this moment

    def heard_from_terminal(self, number: int) -> bool:
        """Whether the terminal has sent it this signal of its own accord, as with Ctrl-C."""
        if not self.at_terminal or number not in (signal.SIGINT, signal.SIGQUIT):
            return False
        try:
            return os.tcgetpgrp(0) == os.getpgrp()
        except OSError:
            return False


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
