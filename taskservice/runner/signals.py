"""Forwards signals from a person or a supervisor to the program."""

import signal
import threading
from collections.abc import Callable, Sequence

FORWARDED = (
    signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2,
)  # fmt: skip


def forward_signals(forward: Callable[[int, bool], None]) -> None:
    """Call `forward` with the number of each signal, and whether it came from the terminal.

    A signal that was ignored when we started stays ignored, as with nohup. Call it in the
    main thread, before there are others.
    """
    wanted = [number for number in FORWARDED if signal.getsignal(number) is not signal.SIG_IGN]
    if not hasattr(signal, "sigwaitinfo"):  # as on macOS: take each as the terminal's
        for number in wanted:
            signal.signal(number, lambda received, frame: forward(received, True))
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, wanted)
    waiter = threading.Thread(target=_wait_for, args=[wanted, forward], name="signals", daemon=True)
    waiter.start()


def _wait_for(wanted: Sequence[int], forward: Callable[[int, bool], None]) -> None:
    while True:
        received = signal.sigwaitinfo(wanted)
        # The kernel sends it for Ctrl-C and the like.
        forward(received.si_signo, received.si_code > 0)
