"""Prints the text of commands, with control characters escaped as in JSON."""

import atexit
import json
import os
import re
import shutil
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any, NoReturn

# C0, DEL and C1; characters that end or reorder a line; lone surrogates.
_CONTROL_CHARACTERS = (
    r"\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff"
)
_UNSAFE = re.compile(f"[{_CONTROL_CHARACTERS}]")
_UNSAFE_IN_LINES = re.compile(f"(?![\t\n])[{_CONTROL_CHARACTERS}]")
_NOT_ASCII = re.compile(r"[^\x00-\x7f]")
# The escape sequences that change only the look of text, such as its colour.
_COLOUR = re.compile(r"(\x1b\[[0-9;:]*m)")
_PLAIN = "\x1b[0m"

# What stands before the host in a URL: a user's name and password.
_USER_INFO = re.compile(r"(?<=//)[^\s/?#]*@")


def escaped(text: str) -> str:
    """The text as one line, escaped so that a terminal only shows it."""
    return _UNSAFE.sub(_escape, text)


def escaped_lines(text: str) -> str:
    """The same, but tabs and line feeds stay."""
    return _UNSAFE_IN_LINES.sub(_escape, text)


def shortened(text: str, length: int) -> str:
    """The text, or its beginning with an ellipsis, of at most `length` characters."""
    return text if len(text) <= length else f"{text[: length - 1]}…"


def coloured(text: str) -> str:
    """A line of a log for a terminal: its colours stay, and end with the line."""
    pieces = _COLOUR.split(text)
    shown = "".join(piece if _COLOUR.fullmatch(piece) else escaped_lines(piece) for piece in pieces)
    return shown + _PLAIN if len(pieces) > 1 and not shown.endswith(_PLAIN) else shown


def _escape(character: re.Match[str]) -> str:
    return json.dumps(character[0])[1:-1]


def without_user_info(text: str) -> str:
    """The text, with no user's name and password in the URLs that it contains."""
    return _USER_INFO.sub("", text)


def print_line(text: str = "", *, err: bool = False) -> None:
    """A line on stdout or stderr."""
    _write(escaped(text), err=err)


def remark(text: str) -> None:
    """Print a remark of the command itself: a line on stderr."""
    print_line(f"taskservice: {without_user_info(text)}", err=True)


def exit_with_error(message: str, code: int = 1) -> NoReturn:
    """Print the message as one line on stderr, and exit."""
    remark(" ".join(map(str.strip, message.split("\n"))))
    sys.exit(code)


def print_log_line(text: str) -> None:
    """Print a line of a log: with its colours on a terminal, unchanged to a file or a pipe."""
    _write(coloured(text) if sys.stdout.isatty() else text)


def print_json(value: Any) -> None:
    """Print one JSON object on one line; the escapes do not change its value."""
    print_line(json.dumps(value, ensure_ascii=False))


def print_rows(rows: Iterable[dict[str, Any]], columns: Sequence[str], as_json: bool) -> None:
    """Rows on stdout: one JSON object a line, or a table with aligned columns."""
    if as_json:
        for row in rows:
            print_json(row)
        return
    print_table([list(columns), *([str(row[name] or "-") for name in columns] for row in rows)])


def print_table(rows: Sequence[Sequence[str]], *, is_cut: bool = False) -> None:
    """Rows with aligned columns; with `is_cut`, a terminal shows as much of each as fits."""
    table = [[escaped(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        padded = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        line = "  ".join(padded).rstrip()
        if is_cut and sys.stdout.isatty():
            line = shortened(line, shutil.get_terminal_size().columns)
        print_line(line)


def open_standard_files() -> None:
    """Open /dev/null in place of each of stdin, stdout and stderr that is closed.

    Otherwise the next file or socket gets its number, and the program prints into that.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            # It gets the lowest free number, which is this one; child processes inherit it.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    # Python sets these to None for a descriptor that was closed when it started.
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)


@atexit.register
def _drop_unwritten_remarks() -> None:
    """Give up what a full disk did not take, which Python would make the exit code 120."""
    try:
        if sys.stderr is not None and not sys.stderr.closed:
            sys.stderr.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


def _print_encoded(line: str) -> None:
    try:
        print(line, flush=True)
    except UnicodeEncodeError:
        # The encoding of the locale lacks some of the characters.
        print(_NOT_ASCII.sub(_escape, line), flush=True)


def _write(line: str, *, err: bool = False) -> None:
    if err:
        # If it is closed or on a full disk, the command continues without its remarks.
        with suppress(OSError):
            if sys.stderr is not None:
                # In one write, unlike `print`: a program that runs may write to it too.
                sys.stderr.write(f"{line}\n")
                sys.stderr.flush()
        return
    # It is None if it was closed before the start.
    if sys.stdout is None:
        return
    try:
        _print_encoded(line)
    except OSError as error:
        # Otherwise the rest of its buffer would fail once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            # The reader has closed the pipe; click ends the command quietly.
            raise
        exit_with_error(f"stdout can't be written: {error.strerror}")
