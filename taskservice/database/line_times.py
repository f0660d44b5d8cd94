"""The times of a chunk's lines as two columns: a few bytes for each append, not for each line."""

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

# The index of a line, and the time in milliseconds since 1970 that lines from there on have.
Times: TypeAlias = Sequence[tuple[int, int]]


class Columns(NamedTuple):
    """The time of the first line in milliseconds since 1970, and how the others differ from it.

    `times` has `line:milliseconds` for each line whose time differs from that of the line before:
    its index, and the difference to the first line. It is None if all have one time.
    """

    at: int
    times: str | None


def encode(of_lines: Times) -> Columns:
    """The columns of lines with these times, of which the first is that of line 0."""
    first = before = of_lines[0][1]
    changes = []
    for line, value in of_lines:
        if value != before:
            changes.append(f"{line}:{value - first}")
            before = value
    return Columns(first, ",".join(changes) or None)


def decode(at: int, times: str | None, count: int) -> list[int]:
    """The times of `count` lines that `encode` wrote."""
    if times is None:
        return [at] * count
    decoded: list[int] = []
    value = at
    for change in times.split(","):
        line, _, difference = change.partition(":")
        decoded += [value] * (int(line) - len(decoded))
        value = at + int(difference)
    return decoded + [value] * (count - len(decoded))
