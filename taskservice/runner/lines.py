"""Splits a program's output, which comes in blocks of bytes, into the lines of a log."""

from collections import deque

from taskservice.client.sender import ALWAYS_FITS, cut_line
from taskservice.runner.masking import Masker
from taskservice.terms import MAX_LINE, MAX_OBJECT

_MIN_BLOCK_BYTES = 16 * 1024


class LineSplitter:
    """Splits one stream; its memory is bounded, however long a line is."""

    def __init__(self, masker: Masker) -> None:
        self._masker = masker
        self._partial = b""  # the line that has not ended yet, or its first bytes
        self._excess_bytes = 0  # how many bytes of it were dropped
        self._ends_in_return = False  # whether the last byte was a carriage return

    def feed(self, block: bytes) -> tuple[bytes, int]:
        """The text of the lines that end in this block, and their number."""
        end = block.rfind(b"\n") + 1
        if not end:
            self._extend(block)
            return b"", 0
        first = 0
        text = b""
        if self._partial or self._excess_bytes or self._ends_in_return:
            first = block.find(b"\n") + 1
            self._extend(block[: first - 1])
            text = self._end_line() + b"\n"
        text += _clean(block[first:end], self._masker)
        self._extend(block[end:])
        return text, block.count(b"\n")

    def close(self) -> tuple[bytes, int]:
        """The last line, if no line feed ended it, as `feed` returns it."""
        if not self._partial and not self._excess_bytes:
            return b"", 0
        return self._end_line() + b"\n", 1

    def _extend(self, part: bytes) -> None:
        """Add to the line that has not ended; a carriage return discards what it overwrites."""
        text = part.rstrip(b"\r")
        if text:
            start = text.rfind(b"\r") + 1
            if self._ends_in_return or start:
                self._partial, self._excess_bytes = b"", 0
            space = MAX_LINE - len(self._partial)
            self._partial += text[start : start + space] if space > 0 else b""
            self._excess_bytes += max(len(text) - start - space, 0)
        self._ends_in_return = len(text) < len(part) or (self._ends_in_return and not part)

    def _end_line(self) -> bytes:
        line, excess = self._partial, self._excess_bytes
        self._partial, self._excess_bytes, self._ends_in_return = b"", 0, False
        if excess:
            return cut_line(self._masker.mask_beginning(line), len(line) + excess)
        return cut_line(self._masker.mask(line))


def _clean(text: bytes, masker: Masker) -> bytes:
    """Whole lines as the log takes them; for most text nothing needs to change."""
    if text.endswith(b"\r\n"):
        text = text.replace(b"\r\n", b"\n")  # a fast way where all lines end so
    if b"\r" in text:
        # A progress bar draws its line again and again: keep what it drew last.
        text = b"\n".join([
            line.rpartition(b"\r")[2] or line.rstrip(b"\r").rpartition(b"\r")[2]
            for line in text.split(b"\n")
        ])  # fmt: skip
    # Before a cut, which could leave the beginning of a secret.
    text = masker.mask(text)
    if not _are_short(text):
        text = b"\n".join(map(cut_line, text.split(b"\n")))
    return text


def _are_short(text: bytes) -> bool:
    """Whether every line surely fits, without looking at each of them."""
    start = 0
    while len(text) - start > ALWAYS_FITS:
        start = text.rfind(b"\n", start, start + ALWAYS_FITS) + 1
        if not start:
            return False
    return True


class LastLine:
    """Keeps the end of a stream, so that its last line can become the task's output."""

    def __init__(self) -> None:
        self._blocks: deque[bytes] = deque()
        self._size = 0

    def feed(self, block: bytes) -> None:
        if self._blocks and len(block) + len(self._blocks[-1]) <= _MIN_BLOCK_BYTES:
            # Many small blocks would take much more memory than their text.
            self._blocks[-1] += block
        else:
            self._blocks.append(block)
        self._size += len(block)
        while self._size - len(self._blocks[0]) > MAX_OBJECT:
            self._size -= len(self._blocks.popleft())

    def text(self) -> bytes:
        """The last line that is not blank, as the log has it; of one over 1 MiB only the end."""
        line = b"".join(self._blocks).rstrip().rpartition(b"\n")[2]
        return line.rpartition(b"\r")[2].strip()
