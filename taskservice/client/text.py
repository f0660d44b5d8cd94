"""Lines as a log takes them: whole, in UTF-8, and none too long."""

from taskservice.contract.terms import MAX_LINE, MAX_MESSAGE

# A byte that is no UTF-8, or is NUL, becomes a character of three bytes.
SURELY_SHORT = MAX_LINE // 3
_ROOM_FOR_MARK = 100


def mark(text: str) -> bytes:
    """A line of our own in somebody's log."""
    return f"[taskservice: {text}]\n".encode()


def counted(lines: int) -> str:
    return f"{lines:,} {'line' if lines == 1 else 'lines'}"


def lines_of(text: str) -> list[bytes]:
    """The lines of a text, each cut where it is too long; an empty text is an empty line."""
    data = text.encode(errors="replace")
    return [cut(line) for line in data.removesuffix(b"\n").split(b"\n")]


def cut(line: bytes, size: int | None = None) -> bytes:
    """A line that a log takes: with its end replaced by a mark if it is too long.

    `size` is how many bytes it really has, where `line` is only its beginning.
    """
    if size is None and len(line) <= SURELY_SHORT:
        return line
    text = line.decode(errors="replace").replace("\0", "\ufffd").encode()
    if size is None and len(text) <= MAX_LINE:
        return line
    return head(text, MAX_LINE - _ROOM_FOR_MARK) + (
        f"… [taskservice: cut here, the line has {size or len(line):,} bytes]".encode()
    )


def head(text: bytes, most: int) -> bytes:
    """The longest beginning of a UTF-8 text that has at most `most` bytes and is whole."""
    return text[:most].decode(errors="ignore").encode()


def message(text: str) -> str:
    """A text that fits as the message of an error."""
    return head(text.encode(errors="replace"), MAX_MESSAGE).decode().replace("\0", "\ufffd")
