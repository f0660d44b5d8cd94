"""Reads the output of a program, stores it in the log, and forwards it to stdout and stderr."""

import contextlib
import fcntl
import json
import os
import re
import select
import selectors
import sys
import termios
import threading
import time
from collections.abc import Callable, Mapping
from queue import SimpleQueue
from typing import Any

from taskservice.client.spool import now, truncate_line
from taskservice.runner.process import JOIN_SECONDS
from taskservice.terms import MAX_LINE, MAX_OBJECT

_NAME = re.compile("KEY|TOKEN|SECRET|PASSWORD", re.IGNORECASE)
# Shorter values, such as `true`, are not masked: they are rarely secrets, and can occur in other
# text.
_MIN_CHARACTERS = 8


class Masker:
    """Masks the values of the environment variables whose names indicate a secret."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        values = (value for name, value in environment.items() if _NAME.search(name))
        secrets = {os.fsencode(part) for value in values for part in _parts(value)}
        # Mask the longest secret first, since a secret can contain another secret.
        self._secrets = sorted(secrets, key=len, reverse=True)
        self.longest = len(self._secrets[0]) if secrets else 0

    def mask(self, text: bytes) -> bytes:
        """Replace each secret in the text with `***`; no secret contains a line feed."""
        for secret in self._secrets:
            text = text.replace(secret, b"***")
        return text

    def mask_text(self, text: str) -> str:
        return self.mask(text.encode(errors="surrogatepass")).decode(errors="surrogatepass")

    def mask_json(self, value: Any) -> Any:
        """A JSON value with the secrets replaced in its strings, keys and numbers."""
        if isinstance(value, dict):
            return {self.mask_text(key): self.mask_json(item) for key, item in value.items()}
        if isinstance(value, list):
            return [self.mask_json(item) for item in value]
        if isinstance(value, str):
            return self.mask_text(value)
        written = json.dumps(value)
        masked = self.mask_text(written)
        return value if masked == written else masked


def _parts(value: str) -> list[str]:
    """The texts to mask: each line of the value that has at least `_MIN_CHARACTERS` characters."""
    lines = [line for line in re.split(r"[\r\n]+", value) if line.strip()]
    if len(lines) > 1:
        # A line that contains only punctuation is not masked, since it can occur in other text.
        lines = [line.strip() for line in lines if any(map(str.isalnum, line))]
    secrets = [line for line in lines if len(line) >= _MIN_CHARACTERS]
    # Programs often strip the spaces around a secret.
    return [core if len(core := line.strip()) >= _MIN_CHARACTERS else line for line in secrets]


class LineSplitter:
    """Splits a stream into lines, in bounded memory even if a line is very long."""

    def __init__(self, masker: Masker) -> None:
        self._masker = masker
        # The unfinished line, truncated, with any carriage return at its end.
        self._partial = b""
        self._excess_bytes = 0  # how many bytes were truncated from the line

    def feed(self, block: bytes) -> bytes:
        """Add a block; return the lines that end in the block."""
        first, line_feed, others = block.partition(b"\n")
        self._extend(first)
        if not line_feed:
            return b""
        end = others.rfind(b"\n") + 1
        text = self._end_line() + b"\n" + self._clean(others[:end])
        self._extend(others[end:])
        return text

    def close(self) -> bytes:
        """Return the unfinished line, if any, with a line feed."""
        return self._end_line() + b"\n" if self._partial else b""

    def _extend(self, part: bytes) -> None:
        """Extend the unfinished line; a carriage return discards the text that it overwrites."""
        text = self._partial + part
        shown = text.rstrip(b"\r")
        start = shown.rfind(b"\r") + 1
        line = shown[start : start + 2 * MAX_LINE]  # masking can shorten the line
        dropped = len(shown) - start - len(line)
        self._excess_bytes = dropped + (0 if start else self._excess_bytes)
        self._partial = line + (b"\r" if line and len(shown) < len(text) else b"")

    def _end_line(self) -> bytes:
        line, excess = self._partial.removesuffix(b"\r"), self._excess_bytes
        self._partial, self._excess_bytes = b"", 0
        masked = self._masker.mask(line)
        if not excess:
            return truncate_line(masked)
        # The truncated line may end within a secret, so drop as many bytes as the longest secret
        # has.
        return truncate_line(
            masked[: max(len(masked) - self._masker.longest, 0)], len(line) + excess
        )

    def _clean(self, text: bytes) -> bytes:
        """Mask and truncate whole lines, and remove overwritten text."""
        if text.endswith(b"\r\n"):
            text = text.replace(b"\r\n", b"\n")  # fast if all lines end with CRLF
        if b"\r" in text:
            # A progress bar overwrites its line repeatedly; store only the last version.
            lines = text.split(b"\n")
            text = b"\n".join([line.rstrip(b"\r").rpartition(b"\r")[2] for line in lines])
        # Mask before truncating, since a truncated secret would not be recognized.
        return b"\n".join(map(truncate_line, self._masker.mask(text).split(b"\n")))


def last_line(text: bytes) -> bytes:
    """The text from the start of its last non-empty line; a very long line loses its middle."""
    printed = text.rstrip()
    # Without the limit, a progress bar that extends its line for hours would make each call slow.
    start = max(printed.rfind(b"\n"), printed.rfind(b"\r")) + 1
    # Both ends remain, so that an object that is too large can still be recognized.
    is_short = len(text) - start <= 2 * MAX_OBJECT
    return text[start:] if is_short else text[start : start + MAX_OBJECT] + text[-MAX_OBJECT:]


def open_terminal() -> tuple[int, int]:
    """Open a pseudo-terminal of the same size as ours; return its two ends. Raises OSError."""
    reader, writer = os.openpty()
    # Do not convert line feeds to CRLF, since our own terminal does so.
    attributes = termios.tcgetattr(writer)
    attributes[1] &= ~termios.OPOST
    termios.tcsetattr(writer, termios.TCSANOW, attributes)
    copy_size(writer)
    return reader, writer


def copy_size(terminal: int) -> None:
    """Resize a terminal to the size of our terminal, or to 80 by 24 if we have no terminal."""
    sizes = [os.terminal_size((80, 24))]
    for descriptor in (0, 2, 1):
        with contextlib.suppress(OSError):
            sizes.append(os.get_terminal_size(descriptor))
    columns, lines = next(size for size in reversed(sizes) if all(size))
    with contextlib.suppress(OSError, termios.error):  # the terminal may have been closed
        termios.tcsetwinsize(terminal, (lines, columns))


MAX_BUFFER_BYTES = 16 * 1024 * 1024  # the program blocks if more bytes wait to be forwarded
SECONDS_AFTER_END = 1.0  # a background process can hold the output open forever


class Stream:
    """A pipe or pseudo-terminal for a program's output, and our stdout or stderr."""

    def __init__(self, out: int, is_tty: bool) -> None:
        self.reader, self.writer = open_terminal() if is_tty else os.pipe()
        with contextlib.suppress(AttributeError, OSError):  # only Linux can resize a pipe
            fcntl.fcntl(self.writer, fcntl.F_SETPIPE_SZ, 1024 * 1024)
        self._out = out
        self._blocks: SimpleQueue[bytes] = SimpleQueue()
        # Numbers of bytes; only one thread writes to each counter, so no lock is needed.
        self._queued = self._written = 0
        self.forwarded_at = 0.0  # the time at which the reader of our output last read something

    def forward(self, block: bytes) -> None:
        """Queue a block for the thread that writes it; an empty block ends the thread."""
        self._queued += len(block)
        self._blocks.put(block)

    def waiting_bytes(self) -> int:
        """The number of bytes that are not forwarded yet."""
        return self._queued - self._written

    def forward_all(self) -> None:
        """Write the queued blocks in order, until an empty block."""
        is_open = True
        while block := self._blocks.get():
            rest = memoryview(block)
            while rest and is_open:
                try:
                    rest = rest[os.write(self._out, rest) :]
                except BlockingIOError:
                    select.select([], [self._out], [])
                except OSError:
                    is_open = False
            self.forwarded_at = time.monotonic()
            self._written += len(block)


class OutputReader:
    """Reads the output of a program until its end, in bounded memory and without delay.

    If our stdout and stderr are the same file, as at a terminal, the program also gets the same
    file for both, and the log contains the lines in the order in which they were printed.
    Otherwise, the log contains the lines in the order in which they arrived.
    """

    def __init__(self, store: Callable[[bytes, int], None], masker: Masker, is_tty: bool) -> None:
        """`store` is called with lines and the time, in ms, when they were read. Raises OSError."""
        self.last_line = b""  # the last line of stdout, which can become the task's output
        self._store, self._masker = store, masker
        self._has_ended = threading.Event()
        # Locked while a block is read and stored, so that blocks are stored in the order in which
        # they were read.
        self._arrival = threading.Lock()
        self._streams: list[Stream] = []
        try:
            for out in [1] if os.path.sameopenfile(1, 2) else [1, 2]:
                self._streams.append(Stream(out, is_tty))
        except OSError:
            for stream in self._streams:
                os.close(stream.reader)
            self.close_writers()
            raise
        # The descriptors that the program writes to.
        self.stdout, self.stderr = self._streams[0].writer, self._streams[-1].writer
        for stream in self._streams:
            threading.Thread(target=stream.forward_all, name="forwarder", daemon=True).start()
        self._readers = [
            threading.Thread(target=self._read_all, args=[stream], name="reader", daemon=True)
            for stream in self._streams
        ]
        for reader in self._readers:
            reader.start()

    def resize(self) -> None:
        """Give the program's terminals the size of our terminal."""
        for stream in self._streams:
            copy_size(stream.reader)

    def close_writers(self) -> None:
        """Close our writing ends of the pipes, after the program has started or failed to start."""
        for stream in self._streams:
            os.close(stream.writer)

    def finish(self) -> None:
        """Wait until all output is stored; call this after the program has ended."""
        self._has_ended.set()
        for reader in self._readers:
            # Wait in short intervals: Python runs signal handlers in the main thread, but a signal
            # that another thread receives does not wake the main thread.
            while reader.is_alive():
                reader.join(JOIN_SECONDS)

    def flush(self, is_interrupted: threading.Event, max_wait: float) -> None:
        """Wait until all output is forwarded, or a reader reads nothing for `max_wait` seconds."""
        began = time.monotonic()
        for stream in self._streams:
            while stream.waiting_bytes() and not is_interrupted.wait(0.01):
                if time.monotonic() - max(began, stream.forwarded_at) > max_wait:
                    return

    def _read_all(self, stream: Stream) -> None:
        lines = LineSplitter(self._masker)
        # `unread` is the number of unread bytes that were in the pipe at the program's end. Bytes
        # that arrive later were written by other processes.
        read_at, unread, done_at = 0, 0, 0.0
        with selectors.DefaultSelector() as selector:
            selector.register(stream.reader, selectors.EVENT_READ)
            while not done_at or unread > 0 or time.monotonic() <= done_at:
                if self._has_ended.is_set() and not done_at:
                    done_at = time.monotonic() + SECONDS_AFTER_END
                    in_pipe = fcntl.ioctl(stream.reader, termios.FIONREAD, bytes(4))
                    unread = int.from_bytes(in_pipe, sys.byteorder)
                if stream.waiting_bytes() >= MAX_BUFFER_BYTES and not done_at:
                    self._has_ended.wait(0.1)  # as with a pipe, the program waits for a slow reader
                elif selector.select(0.1):
                    block = b""
                    with self._arrival:
                        # On Linux, `read` raises OSError at the end of a terminal's output.
                        with contextlib.suppress(OSError):
                            block = os.read(stream.reader, 256 * 1024)
                        read_at, unread = now() if block else read_at, unread - len(block)
                        # Store the lines before they are forwarded, so that after a crash the log
                        # contains each line that was printed.
                        self._store(lines.feed(block), read_at)
                    if not block:
                        break
                    stream.forward(block)
                    if stream is self._streams[0]:
                        self.last_line = last_line(self.last_line + block)
        self._store(lines.close(), read_at)
        os.close(stream.reader)
        stream.forward(b"")
