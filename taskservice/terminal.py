"""What commands print, with all that a terminal would obey or hide written as JSON escapes it."""

import json
import os
import re
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any, NoReturn

# C0, DEL and C1; what ends a line or reorders it; what can't be encoded.
_OBEYED = r"\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff"
_UNSAFE = re.compile(f"[{_OBEYED}]")
_UNSAFE_IN_LINES = re.compile(f"(?![\t\n])[{_OBEYED}]")
# Colours and the like: of what a terminal obeys, all that changes nothing but a text's looks.
_COLOUR = re.compile(r"(\x1b\[[0-9;:]*m)")
_PLAIN = "\x1b[0m"

# Whether what is printed can come to anybody; said at the start, before /dev/null takes its place.
has_stdout = sys.stdout is not None


def escaped(text: str) -> str:
    """A text as one line that a terminal only shows."""
    return _UNSAFE.sub(_escape, text)


def escaped_lines(text: str) -> str:
    """The same for a text that may have tabs and several lines."""
    return _UNSAFE_IN_LINES.sub(_escape, text)


def coloured(text: str) -> str:
    """A line of a log as a terminal may get it: with its colours, which end with it."""
    *pieces, last = _COLOUR.split(text)
    shown = "".join(map(_piece, pieces)) + escaped_lines(last)
    return shown + _PLAIN if pieces and not shown.endswith(_PLAIN) else shown


def _piece(text: str) -> str:
    return text if _COLOUR.fullmatch(text) else escaped_lines(text)


def _escape(character: re.Match[str]) -> str:
    return json.dumps(character[0])[1:-1]


def print_line(text: str = "", *, err: bool = False) -> None:
    """A line on stdout or stderr."""
    _write(escaped(text), err=err)


def remark(text: str) -> None:
    """What a command has to say of itself: a line on stderr."""
    print_line(f"taskservice: {text}", err=True)


def exit_with_error(message: str, code: int = 1) -> NoReturn:
    remark(" ".join(map(str.strip, message.split("\n"))))
    sys.exit(code)


def print_log_line(text: str) -> None:
    """A line of a log: on a terminal with its colours, in a file or a pipe exactly as it is."""
    _write(coloured(text) if sys.stdout.isatty() else text)


def print_json(value: Any) -> None:
    """One JSON object on a line of its own; what is escaped in it says the same."""
    print_line(json.dumps(value, ensure_ascii=False))


def print_rows(rows: Iterable[dict[str, Any]], columns: Sequence[str], as_json: bool) -> None:
    """Rows on stdout: one JSON object a line, or a table with aligned columns."""
    if as_json:
        for row in rows:
            print_json(row)
        return
    table = [list(columns)] + [[escaped(str(row[name] or "-")) for name in columns] for row in rows]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for line in table:
        padded = [cell.ljust(width) for cell, width in zip(line, widths, strict=True)]
        print_line("  ".join(padded).rstrip())


def open_standard_files() -> None:
    """Open /dev/null for what of stdin, stdout and stderr is closed, before a file takes its place.

    Otherwise the next file or socket gets its number, and what a program prints goes there.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            # The lowest free number is this one; a program that is started inherits it.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    # Python has none for what was closed when it started.
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)


def put_on_stdout(line: str) -> None:
    """A line as it is; raises OSError where it can't be written."""
    # There is none where it was closed before the start.
    if sys.stdout is None:
        return
    try:
        print(line, flush=True)
    except OSError:
        # What is left in its buffer would otherwise fail once more at the exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise


def _write(line: str, *, err: bool = False) -> None:
    if err:
        # Where it is closed or on a full disk, a command goes on without its remarks.
        with suppress(OSError):
            if sys.stderr is not None:
                print(line, file=sys.stderr, flush=True)
        return
    try:
        put_on_stdout(line)
    except BrokenPipeError:
        # The reader has had enough; click ends the command quietly.
        raise
    except OSError as error:
        exit_with_error(f"stdout can't be written: {error.strerror}")
