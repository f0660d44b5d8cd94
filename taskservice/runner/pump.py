"""What a program prints goes to the log and on to where it would have gone without us."""

import contextlib
import fcntl
import os
import select
import selectors
import stat
import sys
import termios
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

from taskservice.runner.lines import Splitter, Tail
from taskservice.runner.process import join

BLOCK_BYTES = 256 * 1024
PIPE_BYTES = 1024 * 1024
# What has been read and not kept yet; a burst of the program need not wait for the disk.
WAITING_BYTES = 8 * 1024 * 1024
# What is kept and not shown yet, of each output; then the program waits, as with any pipe.
UNSHOWN_BYTES = 8 * 1024 * 1024
# What a program leaves running in the background may hold its output open for ever.
SECONDS_AFTER_END = 1.0


class Stream:
    """One of a program's outputs: the pipe it writes to, and the place where that goes."""

    def __init__(self, out: int) -> None:
        self.reader, self.writer = os.pipe()
        self.lines = Splitter()
        self.owed = 0  # bytes that were in the pipe when the program had ended
        self.can_wait = _can_wait(out)
        self.unshown: deque[bytes] = deque()
        self.unshown_bytes = 0
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


class Pump:
    """Takes a program's output until it ends, in little memory and without delay.

    Where our stdout and stderr are one place, as at a terminal, the program gets one pipe
    for both, and the log has its lines exactly in their order. Where they are two, it gets
    two pipes: what goes to stdout and what goes to stderr is kept apart, and their lines
    are in the order in which they arrive.

    One thread reads, so that the program need not wait for what another does with it; one
    keeps; and one for each output shows what is kept, where whoever reads it may be slow or
    do nothing at all. What costs more than all their work is to hand over from one to the
    next, so whoever has nothing to wait for does the next one's work.
    """

    def __init__(self, keep: Callable[[bytes, int], None]) -> None:
        """`keep` gets the text of whole lines, and how many they are."""
        self.tail = Tail()
        self._keep = keep
        self._streams = _streams([1] if _are_one(1, 2) else [1, 2])
        self._blocks: deque[tuple[Stream, bytes]] = deque()
        self._bytes = 0
        self._is_keeping = False
        self._changed = threading.Condition()
        self._is_read = self._is_kept = False
        self._has_ended = threading.Event()
        self._enough_at: float | None = None
        self._shown_at = 0.0
        self._reader = threading.Thread(target=self._read_all, name="reader", daemon=True)
        self._keeper = threading.Thread(target=self._keep_all, name="keeper", daemon=True)
        self._showers = [
            threading.Thread(target=self._show_all, args=[stream], name="shower", daemon=True)
            for stream in self._streams
            if stream.can_wait
        ]

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
        for thread in (self._reader, self._keeper, *self._showers):
            thread.start()

    def finish(self) -> None:
        """The program has ended: wait until what it has printed is kept, and mostly shown."""
        self._has_ended.set()
        join(self._reader)
        with self._changed:
            self._is_read = True
            self._changed.notify_all()
        join(self._keeper)
        with self._changed:
            self._is_kept = True
            self._changed.notify_all()
        self.show_rest(threading.Event(), SECONDS_AFTER_END)

    def show_rest(self, is_hurried: threading.Event, patience: float) -> None:
        """Wait until all is shown, or whoever should read has not for `patience` seconds."""
        self._shown_at = time.monotonic()
        for thread in self._showers:
            while thread.is_alive() and not is_hurried.is_set():
                if time.monotonic() - self._shown_at > patience:
                    return
                thread.join(0.05)

    # --- reading -------------------------------------------------------------------------

    def _read_all(self) -> None:
        with selectors.DefaultSelector() as selector:
            for stream in self._streams:
                selector.register(stream.reader, selectors.EVENT_READ, stream)
            while selector.get_map() and not self._is_enough():
                for key, _ in selector.select(0.1):
                    block = os.read(key.fd, BLOCK_BYTES)
                    self._read(key.data, block)
                    if not block:
                        selector.unregister(key.fileobj)
        for stream in self._streams:
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

    def _read(self, stream: Stream, block: bytes) -> None:
        stream.owed -= len(block)
        if stream.unshown_bytes >= UNSHOWN_BYTES or self._bytes >= WAITING_BYTES:
            self._wait_for_room(stream)
        # Nobody but this thread gives the keeper anything to do.
        if not self._blocks and not self._is_keeping and b"\n" not in block:
            self._take(stream, block)
            return
        with self._changed:
            self._blocks.append((stream, block))
            self._bytes += len(block)
            if not self._is_keeping:
                self._changed.notify_all()

    def _wait_for_room(self, stream: Stream) -> None:
        """Let the program wait; what it has printed when it has ended is taken all the same."""
        with self._changed:
            while stream.unshown_bytes >= UNSHOWN_BYTES or self._bytes >= WAITING_BYTES:
                if self._is_enough() or (self._has_ended.is_set() and stream.owed > 0):
                    return
                self._changed.wait(0.1)

    # --- keeping -------------------------------------------------------------------------

    def _keep_all(self) -> None:
        while blocks := self._next_blocks():
            for stream, block in blocks:
                self._take(stream, block)
        for stream in self._streams:
            self._keep(*stream.lines.close())

    def _next_blocks(self) -> Sequence[tuple[Stream, bytes]]:
        """All that wait; none at the end."""
        with self._changed:
            self._is_keeping = False
            self._changed.wait_for(lambda: self._blocks or self._is_read)
            blocks, self._blocks = self._blocks, deque()
            self._bytes = 0
            self._is_keeping = True
            self._changed.notify_all()
            return blocks

    def _take(self, stream: Stream, block: bytes) -> None:
        text, lines = stream.lines.feed(block)
        # First into the log: what has been seen on the terminal is there, whatever happens.
        self._keep(text, lines)
        if stream is self._streams[0]:
            self.tail.feed(block)
        if not stream.can_wait:
            stream.pass_on(block)
            return
        with self._changed:
            stream.unshown.append(block)
            stream.unshown_bytes += len(block)
            self._changed.notify_all()

    # --- showing -------------------------------------------------------------------------

    def _show_all(self, stream: Stream) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: stream.unshown or self._is_kept)
                if not stream.unshown:
                    return
                block = stream.unshown.popleft()
            stream.pass_on(block)
            self._shown_at = time.monotonic()
            with self._changed:
                stream.unshown_bytes -= len(block)
                self._changed.notify_all()


def _streams(outs: Sequence[int]) -> list[Stream]:
    """All of them, or OSError and none."""
    made: list[Stream] = []
    try:
        for out in outs:
            made.append(Stream(out))
    except OSError:
        for stream in made:
            os.close(stream.reader)
            os.close(stream.writer)
        raise
    return made


def _can_wait(out: int) -> bool:
    """Whether writing there can take for ever: to anything but a file, or nowhere."""
    try:
        found = os.fstat(out)
    except OSError:
        return False
    return not stat.S_ISREG(found.st_mode) and found.st_rdev != os.stat(os.devnull).st_rdev


def _are_one(first: int, second: int) -> bool:
    """Whether two descriptors lead to the same place."""
    try:
        one, other = os.fstat(first), os.fstat(second)
    except OSError:
        return False
    return (one.st_dev, one.st_ino, one.st_rdev) == (other.st_dev, other.st_ino, other.st_rdev)
