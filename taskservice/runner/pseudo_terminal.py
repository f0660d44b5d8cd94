"""A pseudo-terminal for what a program prints, in place of a pipe."""

import contextlib
import os
import termios

_DEFAULT_SIZE = os.terminal_size((80, 24))
_OUTPUT_FLAGS = 1  # their place in what `tcgetattr` returns


def open_terminal() -> tuple[int, int]:
    """The descriptors to read and to write, as of a pipe; as wide as our terminal.

    Raises OSError.
    """
    reader, writer = os.openpty()
    # The text comes out as it was printed: our own terminal makes its line ends.
    attributes = termios.tcgetattr(writer)
    attributes[_OUTPUT_FLAGS] &= ~termios.OPOST
    termios.tcsetattr(writer, termios.TCSANOW, attributes)
    copy_size(writer)
    return reader, writer


def copy_size(terminal: int) -> None:
    """Give a terminal the size of ours, or a usual one if we have none."""
    columns, lines = _our_size()
    with contextlib.suppress(OSError, termios.error):  # it may have just been closed
        termios.tcsetwinsize(terminal, (lines, columns))


def _our_size() -> os.terminal_size:
    for descriptor in (1, 2, 0):
        with contextlib.suppress(OSError):
            size = os.get_terminal_size(descriptor)
            if all(size):
                return size
    return _DEFAULT_SIZE
