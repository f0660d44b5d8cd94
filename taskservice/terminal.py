"""Prints the output of commands, with control characters escaped as in JSON."""

import atexit
import json
import logging
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from functools import partial
from types import MappingProxyType
from typing import Any, NoReturn

# C0 and C1 control characters, DEL, characters that end or reorder a line, and lone surrogates.
_CONTROL_CHARACTERS = (
    r"\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff"
)
_UNSAFE = re.compile(f"[{_CONTROL_CHARACTERS}]")
_UNSAFE_IN_LINES = re.compile(f"(?![\t\n])[{_CONTROL_CHARACTERS}]")
# The first group matches escape sequences that change only the look of text, such as its colour.
_COLOUR_OR_UNSAFE = re.compile(rf"(\x1b\[[0-9;:]*m)|{_UNSAFE_IN_LINES.pattern}")
_PLAIN = "\x1b[0m"


def escaped(text: str) -> str:
    """Escape line feeds and all other characters that control a terminal."""
    return _UNSAFE.sub(_escape, text)


def escaped_lines(text: str) -> str:
    """Like `escaped`, but tabs and line feeds are preserved."""
    return _UNSAFE_IN_LINES.sub(_escape, text)


def shortened(text: str, length: int) -> str:
    """The text, truncated with an ellipsis to at most `length` characters."""
    return text if len(text) <= length else f"{text[: length - 1]}…"


def _escape(character: re.Match[str]) -> str:
    return json.dumps(character[0])[1:-1]


def without_user_info(text: str) -> str:
    """The text, without user names and passwords in its URLs."""
    return re.sub(r"(?<=//)[^\s/?#]*@", "", text)


def print_line(text: str = "", *, err: bool = False) -> None:
    """Print a line on stdout or stderr."""
    _write(escaped(text), err=err)


def replace_line(text: str) -> None:
    """On a terminal, write over the last line of stderr; `print_line` ends the line."""
    _write(f"\r{escaped(text)}", err=True, end="")


def _print_notice(level: int, text: str) -> None:
    print_line(f"taskservice: {text}", err=True)


# Writes a notice with a level of `logging`; the service's log can replace this function.
write_notice: Callable[[int, str], None] = _print_notice


def notice(text: str, level: int = logging.INFO) -> None:
    """Print a message of the command itself, as a line on stderr."""
    write_notice(level, without_user_info(text))


def exit_with_error(message: str, code: int = 1) -> NoReturn:
    """Print the message as one line on stderr, and exit."""
    notice(" ".join(map(str.strip, message.split("\n"))), logging.ERROR)
    sys.exit(code)


def print_log_line(text: str) -> None:
    """Print a line of a log, unchanged unless stdout is a terminal.

    On a terminal, control characters are escaped, except colours, which are reset after the line.
    """
    if sys.stdout.isatty():
        text = _COLOUR_OR_UNSAFE.sub(lambda match: match[1] or _escape(match), text)
        if "\x1b" in text and not text.endswith(_PLAIN):
            text += _PLAIN
    _write(text)


def print_json(value: Any) -> None:
    """Print a value as JSON on one line; control characters become JSON escapes."""
    print_line(json.dumps(value, ensure_ascii=False))


def local_time(timestamp: str | None, precision: str = "minutes", has_offset: bool = False) -> str:
    """The time in this machine's time zone, or `-` for None."""
    if timestamp is None:
        return "-"
    local = datetime.fromisoformat(timestamp).astimezone()
    return (local if has_offset else local.replace(tzinfo=None)).isoformat(" ", precision)


with_offset = partial(local_time, precision="seconds", has_offset=True)


def print_rows(rows: Iterable[dict[str, Any]], columns: Sequence[str], as_json: bool) -> None:
    """Print rows on stdout: one JSON object per line, or a table with aligned columns.

    The table shows times, such as `createdAt`, in this machine's time zone.
    """
    if as_json:
        for row in rows:
            print_json(row)
        return
    header = [_words(name).upper() for name in columns]
    print_table([header, *([_cell(name, row[name]) for name in columns] for row in rows)])


def print_fields(fields: Mapping[str, Any]) -> None:
    """Print each field of an object on a line, with times in this machine's time zone."""
    width = max(len(_words(name)) for name in fields)
    for name, value in fields.items():
        text = value
        if value in (None, ""):
            text = "-"
        elif isinstance(value, bool):
            text = "yes" if value else "no"
        elif isinstance(value, dict):
            text = json.dumps(value, ensure_ascii=False)
        elif name.endswith(("At", "Since", "Until")):
            text = with_offset(value)
        print_line(f"{_words(name):{width}}  {text}")


def _words(name: str) -> str:
    """`agentId` becomes `agent`, and `lastUsedAt` becomes `last used`."""
    return re.sub("([A-Z])", r" \1", re.sub("(?:Id|At)$", "", name)).lower()


def _cell(name: str, value: Any) -> str:
    is_time = name == "at" or name.endswith("At")
    return local_time(value, "seconds") if is_time else str(value or "-")


def print_table(
    rows: Sequence[Sequence[str]],
    *,
    colours: Mapping[str, Mapping[str, str]] = MappingProxyType({}),
    optional: Sequence[str] | None = None,
) -> None:
    """Print rows with aligned columns; the first row contains the names of the columns.

    `colours` maps the name of a column, and the text of a cell up to a comma, to the ANSI code of a
    colour. With `optional`, the table is not wider than the terminal: if necessary, empty columns
    are omitted, then the `optional` columns in the given order, and finally cells are truncated.
    """
    table = [[escaped(cell) for cell in row] for row in rows]
    header = table[0]
    is_terminal = sys.stdout is not None and sys.stdout.isatty()
    if is_terminal and optional is not None:
        table = _fitted(table, shutil.get_terminal_size().columns, optional)
    if not is_terminal or "NO_COLOR" in os.environ:
        colours = {}
    widths = _widths(table)
    for row in table:
        line = ""
        for name, cell, width in zip(table[0], row, widths, strict=True):
            number = colours.get(name, {}).get(cell.partition(",")[0])
            shown = f"\x1b[{number}m{cell}{_PLAIN}" if number else cell
            line += shown + " " * (width - len(cell)) + "  "
        _write(line.rstrip())
    filled = {name for name, *cells in zip(*rows, strict=True) if set(cells) - {"-"}}
    if omitted := [name for name in header if name in filled and name not in table[0]]:
        text = f"Not shown: {', '.join(omitted)} (--json prints all)"
        for line in textwrap.wrap(text, shutil.get_terminal_size().columns):
            _write(line)


# Truncated cells have at least _SHORT_CELL characters, and IDs in the first column _SHORT_ID.
_SHORT_CELL, _SHORT_ID = 14, 18
# Optional columns are omitted before other cells are truncated below this length.
_READABLE_CELL = 28


def _fitted(table: list[list[str]], columns: int, optional: Sequence[str]) -> list[list[str]]:
    """Fit the table into `columns` characters: omit years and columns, and truncate cells."""
    if _total(_widths(table)) > columns:
        year = re.compile(rf"^{datetime.now().year}-(?=\d\d-\d\d \d\d:)")
        table = [[year.sub("", cell) for cell in row] for row in table]
        filled = [cells for cells in zip(*table, strict=True) if set(cells[1:]) != {"-"}]
        table = [list(row) for row in zip(*filled, strict=True)]
    for name in optional:
        readable = [min(width, _READABLE_CELL) for width in _widths(table)]
        if name in table[0] and _total(readable) > columns:
            place = table[0].index(name)
            table = [row[:place] + row[place + 1 :] for row in table]
    widths = _widths(table)
    while _total(widths) > columns and len(widths) > 1:
        excess = [widths[0] - _SHORT_ID, *(width - _SHORT_CELL for width in widths[1:])]
        if max(excess) > 0:
            widths[excess.index(max(excess))] -= 1
        else:
            widths.pop()
    return [[shortened(cell, width) for cell, width in zip(row, widths)] for row in table]  # noqa: B905


def _widths(table: Sequence[Sequence[str]]) -> list[int]:
    return [max(map(len, column)) for column in zip(*table, strict=True)]


def _total(widths: Sequence[int]) -> int:
    return sum(widths) + 2 * (len(widths) - 1)


def open_standard_files() -> None:
    """Open /dev/null for each closed standard stream, so that no other file gets its number."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            # `open` returns the lowest free descriptor, which is `number`.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    # Python sets these streams to None if their descriptors were closed when it started.
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)


@atexit.register
def _discard_unwritten_notices() -> None:
    """Discard unwritten messages; otherwise, Python would exit with status 120 on a full disk."""
    try:
        if sys.stderr is not None and not sys.stderr.closed:
            sys.stderr.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


def _write(line: str, *, err: bool = False, end: str = "\n") -> None:
    if err:
        # If stderr is closed or on a full disk, the command continues without its messages.
        with suppress(OSError):
            if sys.stderr is not None:
                # Write the line in one call, unlike `print`, since a running program may write to
                # the same stream.
                sys.stderr.write(f"{line}{end}")
                sys.stderr.flush()
        return
    if sys.stdout is None:  # stdout was closed when Python started
        return
    try:
        try:
            print(line, flush=True)
        except UnicodeEncodeError:
            # The encoding of the locale lacks some of the characters.
            print(re.sub(r"[^\x00-\x7f]", _escape, line), flush=True)
    except OSError as error:
        # Python flushes the buffer at exit; without /dev/null, the flush would fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            # The reader has closed the pipe; click ends the command quietly.
            raise
        exit_with_error(f"stdout can't be written: {error.strerror}")
