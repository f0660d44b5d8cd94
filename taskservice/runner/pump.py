"""What a program prints goes to the log and on to where it would have gone without us."""

import contextlib
import fcntl
import os
import select
import selectors
import sys
import termios
import threading
import time
from collections.abc import Callable

from taskservice.runner.lines import Splitter, Tail

BLOCK_BYTES = 256 * 1024
PIPE_BYTES = 1024 * 1024
# What a program leaves running in the background may hold its output open for ever.
SECONDS_AFTER_END = 1.0


class Stream:
    """One of a program's outputs: the pipe it writes to, and the place where that goes."""

    def __init__(self, out: int) -> None:
        self.reader, self.writer = os.pipe()
        self.lines = Splitter()
        self.owed = 0  # bytes that were in the pipe when the program had ended
        self._out = out
        self._is_open = True
        with contextlib.suppress(AttributeError, OSError):  # Linux has it, within its bounds
            fcntl.fcntl(self.writer, fcntl.F_SETPIPE_SZ, PIPE_BYTES)

    def waiting(self) -> int:
        """How many bytes there are to read."""
        answer = fcntl.ioctl(self.reader, termios.FIONREAD, bytes(4))
        return int.from_bytes(answer, sys.byteorder)

    def pass_on(self, block: bytes) -> None:
        """Write to where it would have gone; whoever reads there may have left."""
        rest = memoryview(block)
        while rest and self._is_open:
            try:
                rest = rest[os.write(self._out, rest) :]
            except BlockingIOError:
                select.select([], [self._out], [])
            except OSError:
                self._is_open = False


class Pump(threading.Thread):
    """Reads a program's output until it ends, in little memory and without delay.

    Where our stdout and stderr are one place, as at a terminal, the program gets one pipe
    for both, and the log has its lines exactly in their order. Where they are two, it gets
    two pipes: what goes to stdout and what goes to stderr is kept apart, and their lines
    are in the order in which they arrive.
    """

    def __init__(self, keep: Callable[[bytes, int], None]) -> None:
        """`keep` gets the text of whole lines, and how many they are."""
        super().__init__(name="pump", daemon=True)
        self.tail = Tail()
        self._keep = keep
        self._streams = [Stream(1)] if _are_one(1, 2) else [Stream(1), Stream(2)]
        self._has_ended = threading.Event()
        self._enough_at: float | None = None

    @property
    def stdout(self) -> int:
        return self._streams[0].writer

    @property
    def stderr(self) -> int:
        return self._streams[-1].writer

    def begin(self) -> None:
        """Read; the program has its own ends of the pipes by now, or could not be run."""
        for stream in self._streams:
            os.close(stream.writer)
        self.start()

    def finish(self) -> None:
        """The program has ended: wait until what it has printed is read."""
        self._has_ended.set()
        self.join()

    def run(self) -> None:
        with selectors.DefaultSelector() as selector:
            for stream in self._streams:
                selector.register(stream.reader, selectors.EVENT_READ, stream)
            while selector.get_map() and not self._is_enough():
                for key, _ in selector.select(0.1):
                    if not self._read(key.data):
                        selector.unregister(key.fileobj)
        for stream in self._streams:
            self._keep(*stream.lines.close())
            os.close(stream.reader)

    def _is_enough(self) -> bool:
        """Whether the program has ended, and what still comes is from somebody else."""
        if not self._has_ended.is_set():
            return False
        if self._enough_at is None:
            self._enough_at = time.monotonic() + SECONDS_AFTER_END
            for stream in self._streams:
                stream.owed = stream.waiting()
        is_read = all(stream.owed <= 0 for stream in self._streams)
        return is_read and time.monotonic() > self._enough_at

    def _read(self, stream: Stream) -> bool:
        block = os.read(stream.reader, BLOCK_BYTES)
        stream.owed -= len(block)
        text, lines = stream.lines.feed(block)
        # First into the log: what has been seen on the terminal is there, whatever happens.
        self._keep(text, lines)
        stream.pass_on(block)
        if stream is self._streams[0]:
            self.tail.feed(block)
        return bool(block)


def _are_one(first: int, second: int) -> bool:
    """Whether two descriptors lead to the same place."""
    try:
        one, other = os.fstat(first), os.fstat(second)
    except OSError:
        return False
    return (one.st_dev, one.st_ino, one.st_rdev) == (other.st_dev, other.st_ino, other.st_rdev)
