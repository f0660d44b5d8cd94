"""Text as a log takes it: lines of valid UTF-8, none longer than the limit."""

from taskservice.terms import MAX_LINE, MAX_MESSAGE, MAX_NOTE

# Any line of at most this many bytes fits: a byte that is NUL or invalid UTF-8 becomes a
# character of three bytes.
ALWAYS_FITS = MAX_LINE // 3
# Bytes that a cut line keeps free for the note that says so.
_NOTE_BYTES = 100


def note(text: str) -> bytes:
    """A line that taskservice itself adds to a program's log, with its line feed."""
    return f"[taskservice: {text}]\n".encode()


def line_count(lines: int) -> str:
    """`1 line`, `2,000 lines`."""
    return f"{lines:,} {'line' if lines == 1 else 'lines'}"


def split_lines(text: str) -> list[bytes]:
    """The lines of a text, each cut to the limit; an empty text is one empty line."""
    data = text.encode(errors="replace")
    return [cut_line(line) for line in data.removesuffix(b"\n").split(b"\n")]


def cut_line(line: bytes, size: int | None = None) -> bytes:
    """The line, or, if it is too long, its beginning and a note with its size.

    `size` is the line's full size in bytes where `line` is only its beginning.
    """
    if size is None and len(line) <= ALWAYS_FITS:
        return line
    text = line.decode(errors="replace").replace("\0", "\ufffd").encode()
    if size is None and len(text) <= MAX_LINE:
        return line
    return beginning(text, MAX_LINE - _NOTE_BYTES, size or len(line))


def beginning(line: bytes, max_bytes: int, size: int) -> bytes:
    """At most `max_bytes` bytes of a line, and a note that it has `size` bytes."""
    text = f"… [taskservice: cut here, the line has {size:,} bytes]"
    return _cut_utf8(line, max_bytes) + text.encode()


def cut_message(text: str) -> str:
    """The text, cut to the limit for the message of an error."""
    return _cut_utf8(text.encode(errors="replace"), MAX_MESSAGE).decode().replace("\0", "\ufffd")


def cut_note(text: str) -> str:
    """The text, cut to the limit for the note of a task."""
    return text.encode(errors="replace").decode().replace("\0", "\ufffd")[:MAX_NOTE]


def duration(seconds: float) -> str:
    """`0.21 s`, `34.1 s`, `2 min 5 s`, `1 h 2 min`."""
    if seconds < 60:
        return f"{seconds:.{2 if seconds < 10 else 1}f} s"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def _cut_utf8(text: bytes, max_bytes: int) -> bytes:
    """The longest beginning of at most `max_bytes` that splits no character."""
    return text[:max_bytes].decode(errors="ignore").encode()
