"""Parses a request as its bytes arrive, so that no thread waits for a slow client."""

import io
import re
from collections import Counter
from collections.abc import Generator
from contextlib import suppress
from tempfile import SpooledTemporaryFile
from threading import Lock
from typing import IO, TypeVar

from gunicorn import http
from gunicorn.config import Config
from gunicorn.http import errors
from gunicorn.http.body import CHUNK_EXT_RE, Body, LengthReader
from gunicorn.http.unreader import IterUnreader

from taskservice.errors import Problem, overloaded

BODY_TOO_LARGE = "The request's body is too large"
TOO_MUCH_AT_ONCE = "Too many large requests at once; try again later"

# A body of up to this many bytes stays in memory and does not count towards the budget.
SMALL_BODY = 64 * 1024


class BodyBudget:
    """Limits the bytes that the large bodies of all requests use together."""

    def __init__(self, size: int) -> None:
        self._free = size
        self._used: Counter[str] = Counter()
        self._lock = Lock()

    def acquire(self, size: int, owner: str) -> None:
        with self._lock:
            # No user may use more than what is left free: one gets half, two get a third each.
            if self._used[owner] + size > self._free - size:
                raise overloaded(TOO_MUCH_AT_ONCE)
            self._free -= size
            self._used[owner] += size

    def release(self, size: int, owner: str) -> None:
        with self._lock:
            self._free += size
            # Subtracting drops an owner whose count falls to 0.
            self._used -= Counter({owner: size})


class RequestBody(SpooledTemporaryFile[bytes]):
    """The body of a request: in memory while it is small, in a file above `SMALL_BODY` bytes."""

    def __init__(self, budget: BodyBudget, owner: str) -> None:
        super().__init__(SMALL_BODY)
        self.size = 0
        self._budget = budget
        self._owner = owner
        self._acquired = 0

    def add(self, data: bytes) -> None:
        """Append `data`; raises a Problem when the budget is used up, OSError on a full disk."""
        self.size += len(data)
        if self.size > SMALL_BODY:
            self._budget.acquire(len(data), self._owner)
            self._acquired += len(data)
        self.write(data)

    def close(self) -> None:
        with suppress(OSError):
            # On a full disk this fails too, since closing flushes the buffer.
            super().close()
        self._budget.release(self._acquired, self._owner)
        self._acquired = 0


MAX_HEAD = 64 * 1024
MAX_CHUNK_LINE = 1024
# A smaller chunk counts as this many bytes, since parsing it costs as much.
MIN_CHUNK_COST = 64
# The first byte of a TLS handshake, as a browser sends it to an https:// URL.
TLS_HANDSHAKE = b"\x16"

_HOST = re.compile(r"(?:[\w.~!$&'()*+,;=%-]+|\[[0-9A-Fa-f:.]+\])(?::\d{0,5})?", re.ASCII)
_CHUNK_SIZE = re.compile(rb"[0-9A-Fa-f]{1,16}")

Result = TypeVar("Result")


class Request(http.Request):
    """gunicorn's request with a checked Host, and its body in `content` once it `is_complete`."""

    content: IO[bytes]
    is_complete = False
    # The length of the body in bytes, None for a chunked one.
    length: int | None
    # Whether the client waits for `100 Continue` before it sends the body.
    expects_continue: bool
    _expected_100_continue: bool

    def set_body_reader(self) -> None:
        super().set_body_reader()
        assert isinstance(self.body, Body)
        reader = self.body.reader
        self.length = reader.length if isinstance(reader, LengthReader) else None
        # Cleared, or gunicorn would send it too.
        self.expects_continue, self._expected_100_continue = self._expected_100_continue, False
        for name, value in self.headers:
            if name == "TRANSFER-ENCODING":
                # gunicorn accepts transfer codings that it does not decode.
                codings = {coding.strip(" \t").lower() for coding in value.split(",")}
                if codings - {"chunked", "identity"}:
                    raise errors.UnsupportedTransferCoding(value)
        host = next((value for name, value in self.headers if name == "HOST"), None)
        if host is None and self.version == (1, 0):
            return
        if host is None or not _HOST.fullmatch(host):
            raise errors.InvalidHeader("HOST", req=self)


# Yields None for more bytes, bytes to send, or a Request for the id of its owner (None: no owner).
Steps = Generator[Request | bytes | None, str | None, Result]


class RequestParser:
    """Parses the requests of one connection.

    The caller appends what arrives to `received`, and resumes the generator that `request()`
    returns after it was given what it yields, until it returns the complete request.
    """

    def __init__(self, cfg: Config, client: object, max_body: int, budget: BodyBudget) -> None:
        self.received = bytearray()
        self._cfg = cfg
        self._client = client
        self._max_body = max_body
        self._budget = budget
        self._number = 0

    def request(self) -> Steps[Request]:
        """Raises gunicorn's ParseException, or a Problem."""
        searched = 0
        while not (end := self._end_of_head(searched)):
            searched = len(self.received)
            yield None
        request = self._parse_head(self._take(end))
        if request.length != 0:
            request.content = yield from self._body(request)
        request.is_complete = True
        return request

    def _end_of_head(self, searched: int) -> int:
        """The length of the head: 0 while incomplete, all received bytes if it is malformed.

        Skips the first `searched` bytes, so that a head that arrives byte by byte costs no more.
        """
        received = self.received
        end = received.find(b"\r\n\r\n", max(0, searched - 3))
        if end >= 0:
            return end + 4
        before = max(0, searched - 1)
        is_malformed = (
            len(received) > MAX_HEAD
            or received.startswith((TLS_HANDSHAKE, b"\n"))
            or received.count(b"\n", before + 1) != received.count(b"\r\n", before)
        )
        return len(received) if is_malformed else 0

    def _parse_head(self, head: bytes) -> Request:
        self._number += 1
        try:
            request = Request(self._cfg, IterUnreader([head]), self._client, self._number)
        except errors.NoMoreData:
            if len(head) <= MAX_HEAD:
                raise errors.InvalidRequestLine("") from None
            if b"\r\n" not in head:
                raise errors.LimitRequestLine(len(head), MAX_HEAD) from None
            raise errors.LimitRequestHeaders("head too large") from None
        request.content = io.BytesIO()
        return request

    def _body(self, request: Request) -> Steps[RequestBody]:
        owner: str | None = None
        if request.length is None or request.length > SMALL_BODY:
            owner = yield request
        limit = min(SMALL_BODY, self._max_body) if owner is None else self._max_body
        if request.length is not None and request.length > limit:
            raise Problem(413, BODY_TOO_LARGE)
        if request.expects_continue and not self.received:
            yield b"HTTP/1.1 100 Continue\r\n\r\n"
        body = RequestBody(self._budget, owner or "")
        try:
            if request.length is None:
                yield from self._read_chunks(body, limit)
                yield from self._read_trailers(request)
            else:
                yield from self._read_bytes(body, request.length)
            body.seek(0)
        except BaseException as error:
            body.close()
            if isinstance(error, OSError):
                raise overloaded(TOO_MUCH_AT_ONCE) from error
            raise
        return body

    def _read_bytes(self, body: RequestBody, size: int) -> Steps[None]:
        while size:
            while not self.received:
                yield None
            piece = self._take(size)
            body.add(piece)
            size -= len(piece)

    def _read_chunks(self, body: RequestBody, limit: int) -> Steps[None]:
        count = 0
        while size := _chunk_size((yield from self._read_line())):
            count += 1
            if body.size + size > limit:
                raise Problem(413, BODY_TOO_LARGE)
            if count * MIN_CHUNK_COST > limit:
                raise Problem(413, "The request's body has too many chunks")
            yield from self._read_bytes(body, size)
            while len(self.received) < 2:
                yield None
            if (end := self._take(2)) != b"\r\n":
                raise errors.ChunkMissingTerminator(end)

    def _read_trailers(self, request: Request) -> Steps[None]:
        lines: list[bytes] = []
        while line := (yield from self._read_line()):
            lines.append(line)
            if len(lines) > request.limit_request_fields:
                raise errors.LimitRequestHeaders("too many trailers")
        if lines:
            request.trailers = request.parse_headers(b"\r\n".join(lines), from_trailer=True)

    def _read_line(self) -> Steps[bytes]:
        while (end := self.received.find(b"\n", 0, MAX_CHUNK_LINE)) < 0:
            if len(self.received) >= MAX_CHUNK_LINE:
                raise errors.InvalidChunkSize(b"line too long")
            yield None
        line = self._take(end + 1)
        if not line.endswith(b"\r\n"):
            raise errors.InvalidChunkSize(b"bare LF")
        return line[:-2]

    def _take(self, size: int) -> bytes:
        piece = bytes(self.received[:size])
        del self.received[:size]
        return piece


def _chunk_size(line: bytes) -> int:
    digits = _CHUNK_SIZE.match(line)
    if not digits or not CHUNK_EXT_RE.fullmatch(line, digits.end()):
        raise errors.InvalidChunkSize(line)
    return int(digits[0], 16)
