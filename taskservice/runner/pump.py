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
WAITING_BYTES = 16 * 1024 * 1024
# What a program leaves running in the background may hold its output open for ever.
SECONDS_AFTER_END = 1.0


class Outlet:
    """Where output would have gone without us; whoever reads there may be slow, or leave."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._is_open = True
        self._can_wait = _can_wait(descriptor)
        self._blocks: deque[bytes] = deque()
        self._bytes = 0
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self.taken_at = 0.0  # when its reader took something last

    def pass_on(self, block: bytes) -> None:
        """Write it there, soon; never waits for a reader."""
        if not self._can_wait:
            self._write(block)
            return
        with self._changed:
            self._blocks.append(block)
            self._bytes += len(block)
            self._changed.notify_all()
        if self._thread is None:
            self._thread = threading.Thread(target=self._write_all, name="outlet", daemon=True)
            self._thread.start()

    def is_full(self) -> bool:
        """Whether so much waits to be read that the program should wait too."""
        return self._bytes >= WAITING_BYTES

    def is_empty(self, seconds: float) -> bool:
        """Whether everything has been written, at once or within so many seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._bytes, seconds)

    def _write_all(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._blocks)
                block = self._blocks.popleft()
            self._write(block)
            self.taken_at = time.monotonic()
            with self._changed:
                self._bytes -= len(block)
                self._changed.notify_all()

    def _write(self, block: bytes) -> None:
        rest = memoryview(block)
        while rest and self._is_open:
            try:
                rest = rest[os.write(self._descriptor, rest) :]
            except BlockingIOError:
                select.select([], [self._descriptor], [])
            except OSError:
                self._is_open = False


class Stream:
    """One of a program's outputs: the pipe it writes to, and the place where that goes."""

    def __init__(self, out: int) -> None:
        self.reader, self.writer = os.pipe()
        self.lines = Splitter()
        self.outlet = Outlet(out)
        self.owed = 0  # bytes that were in the pipe when the program had ended
        with contextlib.suppress(AttributeError, OSError):  # Linux has it, within its bounds
            fcntl.fcntl(self.writer, fcntl.F_SETPIPE_SZ, PIPE_BYTES)

    def waiting(self) -> int:
        """How many bytes there are to read."""
        answer = fcntl.ioctl(self.reader, termios.FIONREAD, bytes(4))
        return int.from_bytes(answer, sys.byteorder)


class Pump:
    """Takes a program's output until it ends, in little memory and without delay.

    Where our stdout and stderr are one place, as at a terminal, the program gets one pipe
    for both, and the log has its lines exactly in their order. Where they are two, it gets
    two pipes: what goes to stdout and what goes to stderr is kept apart, and their lines
    are in the order in which they arrive.

    One thread reads, so that the program need not wait for what another does with it.
    """

    def __init__(self, keep: Callable[[bytes, int], None]) -> None:
        """`keep` gets the text of whole lines, and how many they are."""
        self.tail = Tail()
        self._keep = keep
        self._streams = _streams([1] if _are_one(1, 2) else [1, 2])
        self._blocks: deque[tuple[Stream, bytes]] = deque()
        self._bytes = 0
        self._changed = threading.Condition()
        self._is_keeper_idle = False
        self._is_read = False
        self._has_ended = threading.Event()
        self._enough_at: float | None = None
        self._reader = threading.Thread(target=self._read_all, name="reader", daemon=True)
        self._keeper = threading.Thread(target=self._keep_all, name="keeper", daemon=True)

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
        self._reader.start()
        self._keeper.start()

    def finish(self) -> None:
        """The program has ended: wait until what it has printed is kept."""
        self._has_ended.set()
        join(self._reader)
        with self._changed:
            self._is_read = True
            self._changed.notify_all()
        join(self._keeper)

    def show_rest(self, is_hurried: threading.Event, patience: float) -> None:
        """Wait until all is shown, or whoever should read has not for `patience` seconds."""
        began = time.monotonic()
        for stream in self._streams:
            while not is_hurried.is_set() and not stream.outlet.is_empty(0.1):
                if time.monotonic() - max(began, stream.outlet.taken_at) > patience:
                    return

    def _read_all(self) -> None:
        with selectors.DefaultSelector() as selector:
            open_streams = list(self._streams)
            while open_streams and not self._is_enough():
                self._listen(selector, open_streams)
                for key, _ in selector.select(0.1):
                    stream: Stream = key.data
                    block = os.read(stream.reader, BLOCK_BYTES)
                    self._hand_over(stream, block)
                    if not block:
                        selector.unregister(stream.reader)
                        open_streams.remove(stream)
        for stream in self._streams:
            os.close(stream.reader)

    def _listen(self, selector: selectors.BaseSelector, streams: list[Stream]) -> None:
        """Leave a program that prints faster than somebody reads waiting, as a pipe would."""
        listened = selector.get_map()
        for stream in streams:
            is_wanted = self._has_ended.is_set() or not stream.outlet.is_full()
            if is_wanted and stream.reader not in listened:
                selector.register(stream.reader, selectors.EVENT_READ, stream)
            elif not is_wanted and stream.reader in listened:
                selector.unregister(stream.reader)

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

    def _hand_over(self, stream: Stream, block: bytes) -> None:
        stream.owed -= len(block)
        with self._changed:
            # With no end of a line in it there is nothing to keep yet: it is soon done here,
            # where to wake another thread would take longer.
            is_soon_done = self._is_keeper_idle and not self._blocks and b"\n" not in block
            if not is_soon_done:
                self._changed.wait_for(lambda: self._bytes < WAITING_BYTES)
                self._blocks.append((stream, block))
                self._bytes += len(block)
                self._changed.notify_all()
        if is_soon_done:
            self._take(stream, block)

    def _keep_all(self) -> None:
        while blocks := self._handed_over():
            for stream, block in blocks:
                self._take(stream, block)
                with self._changed:
                    self._bytes -= len(block)
                    self._changed.notify_all()
        for stream in self._streams:
            self._keep(*stream.lines.close())

    def _handed_over(self) -> deque[tuple[Stream, bytes]]:
        """All that waits to be kept, or will; nothing at the end."""
        with self._changed:
            self._is_keeper_idle = True
            self._changed.wait_for(lambda: self._blocks or self._is_read)
            self._is_keeper_idle = False
            blocks, self._blocks = self._blocks, deque()
            return blocks

    def _take(self, stream: Stream, block: bytes) -> None:
        text, lines = stream.lines.feed(block)
        # First into the log: what has been seen on the terminal is there, whatever happens.
        if lines:
            self._keep(text, lines)
        stream.outlet.pass_on(block)
        if stream is self._streams[0]:
            self.tail.feed(block)


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


def _can_wait(descriptor: int) -> bool:
    """Whether writing there can take for ever: to anything but a file, or nowhere."""
    try:
        found = os.fstat(descriptor)
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
