"""Cuts lines into chunks of bounded size, without an object for each line."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from operator import itemgetter

from taskservice.database.clock import Times
from taskservice.errors import invalid
from taskservice.terms import MAX_LINE

# Small, since a chunk is read whole, even for one of its lines.
CHUNK_BYTES = 64 * 1024
CHUNK_LINES = 4_096


@dataclass(frozen=True, slots=True)
class Chunk:
    """`count` lines, joined by line feeds; `size` is in bytes of UTF-8, with one for each line.

    Without `times`, their time is now.
    """

    text: str
    count: int
    size: int
    times: Times = ()


def of_text(data: bytes) -> list[Chunk]:
    """The lines of a text: each ends at a line feed, which the last one may lack.

    One carriage return before a line feed is dropped; NUL and invalid UTF-8 become U+FFFD.
    Raises 422 for a line that is too long.
    """
    # A line feed is never part of a longer character, even in invalid UTF-8.
    texts = (piece.decode(errors="replace") for piece in _pieces(data))
    return _checked([_chunk(text.replace("\0", "\ufffd").replace("\r\n", "\n")) for text in texts])


def of_strings(strings: Sequence[str]) -> list[Chunk]:
    """The lines of strings without NUL; an empty string is an empty line."""
    if not strings:
        return []
    text = "\n".join(strings)
    if text.count("\n") >= len(strings):
        # Some strings contain line feeds.
        text = "\n".join(string.replace("\r\n", "\n").removesuffix("\n") for string in strings)
    # The last line also gets a line feed, so that it counts if it is empty.
    return _checked([_chunk(piece.decode()) for piece in _pieces(f"{text}\n".encode())])


def with_times(
    chunks: Sequence[Chunk], strings: Sequence[str], times: Sequence[int]
) -> list[Chunk]:
    """The chunks of `strings`, of which each has its time. Raises 422 for another number of times.

    The lines of one string have one time.
    """
    if len(times) != len(strings):
        raise invalid({"at": ["Must have one time for each string of logs."]})
    counts = [string.removesuffix("\n").count("\n") + 1 for string in strings]
    of_lines = list(zip(accumulate(counts, initial=0), times, strict=False))
    timed, first = [], 0
    for chunk in chunks:
        timed.append(replace(chunk, times=_part(of_lines, first, chunk.count)))
        first += chunk.count
    return timed


def at_one_time(chunks: Sequence[Chunk], time: int) -> list[Chunk]:
    return [replace(chunk, times=[(0, time)]) for chunk in chunks]


def _part(times: Times, first: int, count: int) -> Times:
    """The times of `count` lines from line `first` on, which becomes line 0."""
    start = bisect_right(times, first, key=itemgetter(0)) - 1
    end = bisect_left(times, first + count, key=itemgetter(0))
    return [(max(line - first, 0), time) for line, time in times[start:end]]


def without_first(chunks: Sequence[Chunk], count: int) -> list[Chunk]:
    """These chunks without their first `count` lines."""
    whole = 0
    while whole < len(chunks) and count >= chunks[whole].count:
        count -= chunks[whole].count
        whole += 1
    rest = list(chunks[whole:])
    if rest and count:
        left = _chunk(rest[0].text.split("\n", count)[count] + "\n")
        rest[0] = replace(left, times=_part(rest[0].times, count, left.count))
    return rest


def _pieces(data: bytes) -> Iterator[bytes]:
    """Pieces of whole lines, as large as a chunk may be, or of one longer line."""
    start = 0
    while start < len(data):
        end = _end_of_piece(data, start)
        yield data[start:end]
        start = end


def _end_of_piece(data: bytes, start: int) -> int:
    limit = start + CHUNK_BYTES
    end = len(data)
    if limit < end:
        # At the last line feed before the limit, or else at the first one after it.
        end = data.rfind(b"\n", start, limit) + 1 or data.find(b"\n", limit) + 1 or end
    if data.count(b"\n", start, end) >= CHUNK_LINES:
        end -= len(data[start:end].split(b"\n", CHUNK_LINES)[CHUNK_LINES])
    return end


def _chunk(text: str) -> Chunk:
    text = text.removesuffix("\n")
    return Chunk(text, text.count("\n") + 1, len(text.encode()) + 1)


def _checked(chunks: list[Chunk]) -> list[Chunk]:
    before, too_long = 0, list[int]()
    for chunk in chunks:
        too_long += [before + place for place in _too_long(chunk)]
        before += chunk.count
    if too_long:
        messages = {str(number): [f"Longer than {MAX_LINE} bytes."] for number in too_long[:10]}
        raise invalid({"logs": messages})
    return chunks


def _too_long(chunk: Chunk) -> list[int]:
    """The indexes of the chunk's lines that are too long."""
    if chunk.size <= MAX_LINE:
        return []
    lines = chunk.text.split("\n")
    return [place for place, line in enumerate(lines) if len(line.encode()) > MAX_LINE]
