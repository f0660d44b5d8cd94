"""Forwards signals from a person or a supervisor to the program."""

import signal
import threading
from collections.abc import Callable, Sequence

from taskservice.runner.process import REAL_TIME
from taskservice.threads import try_start

# Each signal that by default ends a process, except those that a process raises by its own fault.
_ENDING = (
    "SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2",
    "SIGALRM", "SIGVTALRM", "SIGPROF", "SIGXCPU", "SIGIO", "SIGPWR", "SIGSTKFLT",
)  # fmt: skip
_NAMED = [getattr(signal, name) for name in _ENDING if hasattr(signal, name)]
FORWARDED = (*_NAMED, *REAL_TIME)


def forward_signals(forward: Callable[[int, bool], None]) -> None:
    """Call `forward` with the number of each signal, and whether it came from the terminal.

    A signal that was ignored when we started stays ignored, as with nohup. Call it in the
    main thread, before there are others.
    """
    # If our parent ignores it, so do we, and then the kernel keeps no exit status for us.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    wanted = [number for number in FORWARDED if signal.getsignal(number) is not signal.SIG_IGN]
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, wanted)
        if try_start(threading.Thread(target=_wait_for, args=[wanted, forward], daemon=True)):
            return
        signal.pthread_sigmask(signal.SIG_UNBLOCK, wanted)
    # On macOS, or without a thread: take each as the terminal's.
    for number in wanted:
        signal.signal(number, lambda received, frame: forward(received, True))


def _wait_for(wanted: Sequence[int], forward: Callable[[int, bool], None]) -> None:
    while True:
        received = signal.sigwaitinfo(wanted)
        # The kernel sends it for Ctrl-C and the like.
        forward(received.si_signo, received.si_code > 0)
