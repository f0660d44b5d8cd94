"""What commands print, with all that a terminal would obey or hide written as JSON escapes it."""

import json
import re
import sys
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

# C0, DEL and C1; what ends a line or reorders it; what can't be encoded.
_OBEYED = r"\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff"
_UNSAFE = re.compile(f"[{_OBEYED}]")
_UNSAFE_IN_LINES = re.compile(f"(?![\t\n])[{_OBEYED}]")
# Colours and the like: of what a terminal obeys, all that changes nothing but a text's looks.
_COLOUR = re.compile(r"(\x1b\[[0-9;:]*m)")
_PLAIN = "\x1b[0m"


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


def give_up(message: str, code: int = 1) -> NoReturn:
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


def _write(line: str, *, err: bool = False) -> None:
    stream = sys.stderr if err else sys.stdout
    # There is none where it was closed before the start.
    if stream is not None:
        print(line, file=stream, flush=True)
