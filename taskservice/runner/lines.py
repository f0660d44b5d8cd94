"""What a program prints, block by block, becomes the lines of a log."""

from collections import deque

from taskservice.client.log_text import ALWAYS_FITS, cut_line
from taskservice.contract.terms import MAX_LINE, MAX_OBJECT

_BLOCK_BYTES = 16 * 1024


class Splitter:
    """Lines out of one stream's blocks, in little memory however long a line is."""

    def __init__(self) -> None:
        self._begun = b""  # the line that has not ended yet, or its beginning
        self._left_out = 0  # how many bytes of it were too many
        self._returned = False  # whether a carriage return came last

    def feed(self, block: bytes) -> tuple[bytes, int]:
        """The text of the lines that end in this block, and how many they are."""
        end = block.rfind(b"\n") + 1
        if not end:
            self._extend(block)
            return b"", 0
        first = 0
        text = b""
        if self._begun or self._left_out or self._returned:
            first = block.find(b"\n") + 1
            self._extend(block[: first - 1])
            text = self._ended() + b"\n"
        text += _tidy(block[first:end])
        self._extend(block[end:])
        return text, block.count(b"\n")

    def close(self) -> tuple[bytes, int]:
        """The last line, when no line feed ended it."""
        if not self._begun and not self._left_out:
            return b"", 0
        return self._ended() + b"\n", 1

    def _extend(self, part: bytes) -> None:
        """More of the line that has not ended; what a carriage return overwrites is gone."""
        text = part.rstrip(b"\r")
        if text:
            start = text.rfind(b"\r") + 1
            if self._returned or start:
                self._begun, self._left_out = b"", 0
            room = MAX_LINE - len(self._begun)
            self._begun += text[start : start + room] if room > 0 else b""
            self._left_out += max(len(text) - start - room, 0)
        self._returned = len(text) < len(part) or (self._returned and not part)

    def _ended(self) -> bytes:
        line, left_out = self._begun, self._left_out
        self._begun, self._left_out, self._returned = b"", 0, False
        return cut_line(line, len(line) + left_out if left_out else None)


def _tidy(text: bytes) -> bytes:
    """Whole lines as the log takes them; mostly they are so already, and nothing is done."""
    if text.endswith(b"\r\n"):
        text = text.replace(b"\r\n", b"\n")  # most likely so in all lines, and soon done
    if b"\r" in text:
        # A progress bar draws its line again and again: what it drew last.
        text = b"\n".join([
            line.rpartition(b"\r")[2] or line.rstrip(b"\r").rpartition(b"\r")[2]
            for line in text.split(b"\n")
        ])  # fmt: skip
    if not _are_short(text):
        text = b"\n".join(map(cut_line, text.split(b"\n")))
    return text


def _are_short(text: bytes) -> bool:
    """Whether no line can be too long, without a look at each."""
    start = 0
    while len(text) - start > ALWAYS_FITS:
        start = text.rfind(b"\n", start, start + ALWAYS_FITS) + 1
        if not start:
            return False
    return True


class Tail:
    """The end of a stream: enough of it for a last line that is the program's output."""

    def __init__(self) -> None:
        self._blocks: deque[bytes] = deque()
        self._size = 0

    def feed(self, block: bytes) -> None:
        if self._blocks and len(block) + len(self._blocks[-1]) <= _BLOCK_BYTES:
            # Many small blocks would cost much more than the text in them.
            self._blocks[-1] += block
        else:
            self._blocks.append(block)
        self._size += len(block)
        while self._size - len(self._blocks[0]) > MAX_OBJECT:
            self._size -= len(self._blocks.popleft())

    def last_line(self) -> bytes:
        """The last line that is not blank, as the log has it; of a far too long one its end."""
        line = b"".join(self._blocks).rstrip().rpartition(b"\n")[2]
        return line.rpartition(b"\r")[2].strip()
