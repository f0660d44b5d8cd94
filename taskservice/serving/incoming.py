"""Takes in a request as its bytes come, so that no thread has to wait for a slow client."""

import io
import re
from collections import Counter
from collections.abc import Generator
from contextlib import suppress
from enum import Enum
from tempfile import SpooledTemporaryFile
from threading import Lock
from typing import IO, TypeVar

from gunicorn import http
from gunicorn.config import Config
from gunicorn.http import errors
from gunicorn.http.body import CHUNK_EXT_RE, Body, LengthReader
from gunicorn.http.unreader import IterUnreader

from taskservice.serving.refusals import BodyTooLargeError, NoRoomError, TooManyChunksError

MAX_HEAD = 64 * 1024
MAX_CHUNK_LINE = 1024
# Each chunk counts as at least this many bytes, since it costs as much to take in.
SMALLEST_CHUNK = 64
# A connection takes in this many chunks, in about 0.3 ms, before others have their turn.
CHUNKS_PER_TURN = 32
# A body of this size stays in memory, and there is always room for it.
SMALL_BODY = 64 * 1024

# How a browser begins that was told https:// by mistake.
TLS_HANDSHAKE = b"\x16"

_HOST = re.compile(r"(?:[\w.~!$&'()*+,;=%-]+|\[[0-9A-Fa-f:.]+\])(?::\d{0,5})?", re.ASCII)
_CHUNK_SIZE = re.compile(rb"[0-9A-Fa-f]{1,16}")

Result = TypeVar("Result")


class Need(Enum):
    """Without what a request can't be taken in any further."""

    MORE_BYTES = 1
    # The client waits for leave to send the body.
    CONTINUE = 2
    # Enough was done for this client, while others may wait.
    TURN = 3


class Request(http.Request):
    """gunicorn's request with a checked Host, and its body, once it `is_whole`, in `content`.

    `length` is that of the body in bytes, None if it comes in chunks.
    """

    content: IO[bytes]
    is_whole = False
    length: int | None
    _expected_100_continue: bool

    def set_body_reader(self) -> None:
        super().set_body_reader()
        assert isinstance(self.body, Body)
        reader = self.body.reader
        self.length = reader.length if isinstance(reader, LengthReader) else None
        self._check_codings()
        self._check_host()

    def _check_codings(self) -> None:
        # gunicorn lets some pass that it does not undo.
        for name, value in self.headers:
            codings = {coding.strip(" \t").lower() for coding in value.split(",")}
            if name == "TRANSFER-ENCODING" and codings - {"chunked", "identity"}:
                raise errors.UnsupportedTransferCoding(value)

    def _check_host(self) -> None:
        host = next((value for name, value in self.headers if name == "HOST"), None)
        if host is None and self.version == (1, 0):
            return
        if host is None or not _HOST.fullmatch(host):
            raise errors.InvalidHeader("HOST", req=self)

    def wants_to_be_asked(self) -> bool:
        """Whether the client holds the body back; asked once, since gunicorn would ask again."""
        waits, self._expected_100_continue = self._expected_100_continue, False
        return waits


# Runs until it needs something: a request is yielded to be told whose it is, if it has an owner.
Steps = Generator[Need | Request, str | None, Result]


class BodyMemory:
    """How many bytes the large bodies of all requests may take together.

    No owner may take more than it leaves free: alone half of the room, of two each a third.
    """

    def __init__(self, size: int) -> None:
        self._free = size
        self._taken: Counter[str] = Counter()
        self._lock = Lock()

    def take(self, size: int, owner: str) -> None:
        with self._lock:
            if self._taken[owner] + size > self._free - size:
                raise NoRoomError
            self._add(size, owner)

    def give_back(self, size: int, owner: str) -> None:
        with self._lock:
            self._add(-size, owner)

    def _add(self, size: int, owner: str) -> None:
        self._free -= size
        self._taken[owner] += size
        if not self._taken[owner]:
            del self._taken[owner]


class Content(SpooledTemporaryFile[bytes]):
    """The body of a request: in memory while it is small, then in a file, if there is room."""

    def __init__(self, room: BodyMemory, owner: str) -> None:
        super().__init__(SMALL_BODY)
        self.size = 0
        self._room = room
        self._owner = owner
        self._taken = 0

    def add(self, data: bytes) -> None:
        """Raises NoRoomError, also when the disk is full."""
        self.size += len(data)
        if self.size > SMALL_BODY:
            self._room.take(len(data), self._owner)
            self._taken += len(data)
        try:
            self.write(data)
        except OSError as error:
            raise NoRoomError from error

    def rewind(self) -> None:
        """Makes it ready to be read. Raises NoRoomError when the disk is full."""
        try:
            self.seek(0)
        except OSError as error:
            raise NoRoomError from error

    def close(self) -> None:
        with suppress(OSError):
            # What the disk had no room for is tried once more.
            super().close()
        self._room.give_back(self._taken, self._owner)
        self._taken = 0


class Intake:
    """Makes requests out of the bytes of one connection.

    `received` is what has arrived and is not yet used: the caller adds to it, does what
    `request()` says that it needs, and takes the next step, until a request is complete.
    """

    def __init__(self, cfg: Config, client: object, max_body: int, room: BodyMemory) -> None:
        self.received = bytearray()
        self._cfg = cfg
        self._client = client
        self._max_body = max_body
        self._room = room
        self._number = 0

    def request(self) -> Steps[Request]:
        """Raises gunicorn's ParseException, and what is here of the refusals."""
        searched = 0
        while not (end := self._end_of_head(searched)):
            searched = len(self.received)
            yield Need.MORE_BYTES
        request = self._parse_head(self._cut(end))
        waits = request.wants_to_be_asked()
        if request.length != 0:
            request.content = yield from self._body(request, waits)
        request.is_whole = True
        return request

    def _end_of_head(self, searched: int) -> int:
        """Where the head ends: 0 if that isn't here yet, the last byte if it can't come.

        Only what came after the first `searched` bytes is looked at, so that a head which comes
        byte by byte costs no more than any other.
        """
        received = self.received
        end = received.find(b"\r\n\r\n", max(0, searched - 3))
        if end >= 0:
            return end + 4
        before = max(0, searched - 1)
        hopeless = (
            len(received) > MAX_HEAD
            or received.startswith((TLS_HANDSHAKE, b"\n"))
            or received.count(b"\n", before + 1) != received.count(b"\r\n", before)
        )
        return len(received) if hopeless else 0

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

    def _body(self, request: Request, waits: bool) -> Steps[Content]:
        """Takes in a body, of which the client waits to be asked for or not."""
        owner: str | None = None
        if request.length is None or request.length > SMALL_BODY:
            owner = yield request
        limit = min(SMALL_BODY, self._max_body) if owner is None else self._max_body
        if request.length is not None and request.length > limit:
            raise BodyTooLargeError
        if waits and not self.received:
            yield Need.CONTINUE
        return (yield from self._content(request, Content(self._room, owner or ""), limit))

    def _content(self, request: Request, content: Content, limit: int) -> Steps[Content]:
        try:
            if request.length is None:
                yield from self._chunks(content, limit)
                yield from self._trailers(request)
            else:
                yield from self._fill(content, request.length)
            content.rewind()
        except BaseException:
            content.close()
            raise
        return content

    def _fill(self, content: Content, size: int) -> Steps[None]:
        while size:
            while not self.received:
                yield Need.MORE_BYTES
            piece = self._cut(size)
            content.add(piece)
            size -= len(piece)

    def _chunks(self, content: Content, limit: int) -> Steps[None]:
        count = 0
        while size := _chunk_size((yield from self._line())):
            count += 1
            if content.size + size > limit:
                raise BodyTooLargeError
            if count * SMALLEST_CHUNK > limit:
                raise TooManyChunksError
            yield from self._fill(content, size)
            while len(self.received) < 2:
                yield Need.MORE_BYTES
            if (end := self._cut(2)) != b"\r\n":
                raise errors.ChunkMissingTerminator(end)
            if count % CHUNKS_PER_TURN == 0:
                yield Need.TURN

    def _trailers(self, request: Request) -> Steps[None]:
        lines: list[bytes] = []
        while line := (yield from self._line()):
            lines.append(line)
            if len(lines) > request.limit_request_fields:
                raise errors.LimitRequestHeaders("too many trailers")
        if lines:
            request.trailers = request.parse_headers(b"\r\n".join(lines), from_trailer=True)

    def _line(self) -> Steps[bytes]:
        while (end := self.received.find(b"\n", 0, MAX_CHUNK_LINE)) < 0:
            if len(self.received) >= MAX_CHUNK_LINE:
                raise errors.InvalidChunkSize(b"line too long")
            yield Need.MORE_BYTES
        line = self._cut(end + 1)
        if not line.endswith(b"\r\n"):
            raise errors.InvalidChunkSize(b"bare LF")
        return line[:-2]

    def _cut(self, size: int) -> bytes:
        piece = bytes(self.received[:size])
        del self.received[:size]
        return piece


def _chunk_size(line: bytes) -> int:
    digits = _CHUNK_SIZE.match(line)
    if not digits or not CHUNK_EXT_RE.fullmatch(line, digits.end()):
        raise errors.InvalidChunkSize(line)
    return int(digits[0], 16)
