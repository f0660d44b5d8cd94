"""Finds the lines of a log that another log lacks; differences in numbers and IDs are ignored."""

import re
from collections.abc import Iterator
from operator import itemgetter
from time import monotonic, sleep
from typing import Any

from taskservice.auth import Caller
from taskservice.database.rows import TaskRow
from taskservice.error_codes import NO_GOOD_RUN
from taskservice.errors import Problem
from taskservice.services import logs, neighbours, tasks
from taskservice.services.search import MAX_SHOWN_LINE, slots

MAX_NEW_LINES = 200
# A comparison reads up to COMPARED_BYTES at the start and at the end of each log, and takes at most
# COMPARED_SECONDS.
COMPARED_BYTES = 8 * 1024 * 1024
COMPARED_SECONDS = 1.8


def new_lines(caller: Caller, task_id: str, against_id: str | None) -> dict[str, Any]:
    """The log lines of a task that are missing in another run, by default the last good run.

    Raises 404 and 503.
    """
    task = tasks.get(caller, task_id)
    if against_id is None:
        good = neighbours.last_good_run(task)
        if good is None:
            raise Problem(404, "No good run of the agent to compare with", code=NO_GOOD_RUN)
        against_id = good.id
    return lines_not_in(tasks.get(caller, against_id), task)


def lines_not_in(good: TaskRow, task: TaskRow) -> dict[str, Any]:
    """The log lines of `task` that `good` lacks, as JSON. Raises 503."""
    is_cut = max(task.log_bytes, good.log_bytes) > 2 * COMPARED_BYTES
    known, lines = set[bytes](), list[dict[str, Any]]()
    with slots.hold(task.user_id):
        began = monotonic()
        for chunk in logs.ends_of(good, COMPARED_BYTES):
            known.update(_without_values(chunk.text).split(b"\n"))
            if is_late := monotonic() > began + COMPARED_SECONDS / 2:
                is_cut |= is_late
                break
        for chunk in logs.ends_of(task, COMPARED_BYTES):
            lines += _unknown(chunk, known, task.first_log)
            if is_late := monotonic() > began + COMPARED_SECONDS:
                is_cut |= is_late
                break
    lines.sort(key=itemgetter("line"))
    # The last lines are shown, since an error is usually at the end.
    shown, is_cut = lines[-MAX_NEW_LINES:], is_cut or len(lines) > MAX_NEW_LINES
    against = {"id": good.id, "finishedAt": good.finished_at}
    return {"against": against, "lines": shown, "cut": is_cut}


def _unknown(chunk: Any, known: set[bytes], first_log: int) -> Iterator[dict[str, Any]]:
    """The lines of a chunk that are not in `known`, as JSON; only the last if they are too many."""
    lines = _without_values(chunk.text).split(b"\n")
    places = [place for place, line in enumerate(lines) if line not in known]
    first = chunk.last - chunk.count + 1
    places = [place for place in places if first + place >= first_log][-MAX_NEW_LINES - 1 :]
    if places:
        texts, times = chunk.text.split("\n"), logs.times_of(chunk)
        for place in places:
            text = texts[place][:MAX_SHOWN_LINE]
            yield {"line": first + place, "at": times[place], "text": text}


_DIGITS = bytes.maketrans(b"123456789", b"0" * 9)
_HEX = bytes(ord("h") if chr(code) in "0123456789abcdefABCDEF" else 0 for code in range(256))
_H = rb"[0a-fA-F]"
# Each pattern begins with a set of bytes or a literal, so that Python finds candidates quickly. The
# patterns match UUIDs, runs of at least 16 hexadecimal digits, numbers such as 0x1f, temporary
# paths, and the names of months and weekdays in dates.
_LONG_HEX = re.compile(
    _H + _H + rb"{7}(?:-" + (_H + rb"{4}-") * 3 + _H + rb"{12}|" + _H + rb"{8,})"
)
_SHORT_HEX = re.compile(rb"0[xX][0a-fA-F]+")
_TEMPORARY = re.compile(rb"/tmp/[^\s'\":,)]*")
# Follows the first three letters of a name in a pattern, and checks that no letter, digit or
# underscore precedes them.
_IS_WHOLE = rb"(?<!\w.{3})"
_MONTH = re.compile(
    rb"(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)"
    + _IS_WHOLE
    + rb"(?:uary|ruary|ch|il|e|y|ust|t|tember|ober|ember)?\.?[ /-]+(?=0)"
)
_WEEKDAY = re.compile(
    rb"(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun)" + _IS_WHOLE + rb"(?:day|sday|nesday|rsday|urday)?,? +(?=0)"
)
# The sign of a number, with the byte before it; the sign is removed.
_SIGNS = [f"{before}{sign}0".encode() for before in "\n\t =:,([" for sign in "-+"]
# Parts of numbers in which each digit was replaced by 0; each of these parts is reduced to one 0.
_NUMBERS = (b"00", b"0.0", b"0:0", b"0,0", b"0e0", b"0e-0", b"0e+0", b"0E0", b"0E-0", b"0E+0")
# Spaces that align numbers; the lookbehind makes the search consider each series of spaces once.
_SPACES = re.compile(rb"  (?<! {3}) *+(?=0)")


def _without_values(text: str) -> bytes:
    """The text with each number, ID, time and temporary path replaced by one zero."""
    sleep(0.0001)  # Let other threads run.
    # Replacing bytes is several times as fast as one regular expression for all values.
    data = f"\n{text}".encode().translate(_DIGITS)
    if b"h" * 12 in data.translate(_HEX):
        data = _LONG_HEX.sub(b"0", data)
    for mark, pattern in ((b"0x", _SHORT_HEX), (b"0X", _SHORT_HEX), (b"/tmp/", _TEMPORARY)):
        if mark in data:
            data = pattern.sub(b"0", data)
    if _MONTH.search(data):
        data = _MONTH.sub(b"0", data)
        data = _WEEKDAY.sub(b"0", data)
    data = data.replace(b"0000", b"0")
    for signed in _SIGNS:
        data = data.replace(signed, signed[:1] + b"0")
    for digits in _NUMBERS:
        while digits in data:
            data = data.replace(digits, b"0")
    return _SPACES.sub(b" ", data[1:])
