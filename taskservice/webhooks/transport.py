"""Sends one webhook once, and describes the outcome in one sentence."""

import contextlib
import errno
import functools
import http.client
import io
import socket
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from http import HTTPStatus
from typing import Any, cast

import certifi
import requests
from requests.adapters import BaseAdapter
from requests.structures import CaseInsensitiveDict

from taskservice import terms
from taskservice.threads import start_thread
from taskservice.webhooks.attempt import Interrupt, Outcome
from taskservice.webhooks.destinations import (
    Address,
    Destinations,
    RefusedError,
    Target,
    check_url,
    read_address,
)
from taskservice.webhooks.signing import MAX_RETRY_AFTER

# One HTTP connection to a checked address, under one deadline whatever the receiver does.

MAX_ANSWER_BYTES = 64 * 1024
MAX_LOOKUPS = 64

Resolver = Callable[[str], list[str]]

# A look-up cannot be interrupted, only abandoned, so this limits how many run at once.
_lookups = threading.BoundedSemaphore(MAX_LOOKUPS)


class NoAnswerError(Exception):
    """The receiver did not answer; the text is one sentence with the reason."""


class Deadline:
    """The moment at which an attempt ends, `seconds` after this object is created."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._started = time.monotonic()

    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._started

    def remaining(self) -> float:
        """Seconds left, more than 0; raises TimeoutError when there are none."""
        left = self.seconds - self.elapsed()
        if left <= 0:
            raise TimeoutError
        return left


class Connection(http.client.HTTPConnection):
    """HTTP to a target: resolves its host, checks each address, connects to an allowed one."""

    def __init__(
        self,
        target: Target,
        allowed: Destinations,
        deadline: Deadline,
        resolve: Resolver,
        interrupt: Interrupt,
    ) -> None:
        super().__init__(target.host.removesuffix("."), target.port)
        answer = functools.partial(_Answer, deadline)
        self.response_class = cast(type[http.client.HTTPResponse], answer)
        self._target = target
        self._allowed = allowed
        self._deadline = deadline
        self._resolve = resolve
        self._interrupt = interrupt

    def connect(self) -> None:
        """Connect to the first allowed address that accepts.

        Raises RefusedError if no address is allowed, NoAnswerError if none accepts, and
        Interrupted.
        """
        addresses = self._allowed_of(self._addresses())
        failures = []
        for index, address in enumerate(addresses):
            self._interrupt.check()
            share = self._deadline.remaining() / (len(addresses) - index)
            try:
                self.sock = socket.create_connection((str(address), self.port), timeout=share)
            except OSError as error:
                failures.append(error)
            else:
                self._interrupt.watch(self.sock)
                self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                return
        raise NoAnswerError(self._connect_failure(failures[0])) from failures[0]

    def send(self, data: Any) -> None:
        """Send bytes; raises TimeoutError at the deadline, however slowly the receiver reads."""
        if self.sock is None:
            self.connect()
        view = memoryview(data)
        while view:
            self.sock.settimeout(self._deadline.remaining())
            view = view[self.sock.send(view) :]

    def _addresses(self) -> list[Address]:
        host = self._target.host
        if self._target.literal:
            return [self._target.literal]
        try:
            return look_up(self._resolve, host, self._deadline)
        except TimeoutError as error:
            seconds = f"{self._deadline.seconds:g} s"
            raise NoAnswerError(f"{host} was not resolved within {seconds}.") from error
        except OSError as error:
            raise NoAnswerError(f"{host} can't be resolved: {error.strerror}.") from error

    def _allowed_of(self, addresses: list[Address]) -> list[Address]:
        """The allowed ones of these addresses; raises RefusedError when there are none."""
        allowed, reasons = [], []
        for address in addresses:
            if reason := self._allowed.refusal(self._target.host, address):
                reasons.append(reason)
            else:
                allowed.append(address)
        if reasons and not allowed:
            raise RefusedError(reasons[0])
        return allowed

    def _connect_failure(self, error: OSError) -> str:
        if isinstance(error, TimeoutError):
            seconds = f"{self._deadline.seconds:g} s"
            return f"{self.host} did not accept a connection within {seconds}."
        if isinstance(error, ConnectionRefusedError):
            return f"{self.host} refused a connection to port {self.port}."
        return f"{self.host} can't be reached: {error.strerror}."


class SecureConnection(Connection):
    """HTTPS, with the certificate verified."""

    default_port = http.client.HTTPS_PORT

    def connect(self) -> None:
        """Raises what Connection raises, TimeoutError, and NoAnswerError if the handshake fails."""
        super().connect()
        self.sock.settimeout(self._deadline.remaining())
        try:
            self.sock = tls_context().wrap_socket(
                self.sock, server_hostname=self.host, do_handshake_on_connect=False
            )
            self._interrupt.watch(self.sock)
            self.sock.do_handshake()
        except TimeoutError:
            raise
        except ssl.SSLCertVerificationError as error:
            reason = error.verify_message.removesuffix(".")
            sentence = f"The certificate of {self.host} is refused: {reason}."
            raise NoAnswerError(sentence) from error
        except OSError as error:
            sentence = f"{self.host} does not speak TLS on port {self.port}."
            raise NoAnswerError(sentence) from error


@functools.cache
def tls_context() -> ssl.SSLContext:
    """A context that trusts the authorities of the system and of certifi.

    Add a private authority to the system's, or to the file that SSL_CERT_FILE names. The context
    is cached, since reading the authorities takes 10 ms.
    """
    context = ssl.create_default_context()
    context.load_verify_locations(certifi.where())
    return context


def system_addresses(host: str) -> list[str]:
    """The addresses of a host by the system's resolver, best first; raises OSError."""
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return [str(socket_address[0]) for *_, socket_address in found]


def look_up(resolve: Resolver, host: str, deadline: Deadline) -> list[Address]:
    """The addresses that `resolve` finds; raises what it raises, and TimeoutError."""
    found: Future[list[str]] = Future()

    def run() -> None:
        try:
            found.set_result(resolve(host))
        except Exception as error:
            found.set_exception(error)
        finally:
            _lookups.release()

    if not _lookups.acquire(timeout=deadline.remaining()):
        raise TimeoutError
    try:
        start_thread("webhook-lookup", run)
    except RuntimeError as error:
        _lookups.release()
        raise OSError(errno.EAGAIN, "the machine has no more threads") from error
    addresses = [read_address(text) for text in found.result(deadline.remaining())]
    if not addresses:
        raise socket.gaierror(socket.EAI_NONAME, "it has no address")
    return addresses


class _Answer(http.client.HTTPResponse):
    """An answer that is read until the deadline, and up to MAX_ANSWER_BYTES."""

    def __init__(self, deadline: Deadline, sock: socket.socket, method: str | None = None) -> None:
        super().__init__(sock, method=method)
        self._intake = _LimitedStream(sock, self.fp.detach(), deadline)
        self.fp = io.BufferedReader(self._intake)

    def begin(self) -> None:
        """Read the head after all interim answers; the base class skips only status 100."""
        super().begin()
        while 101 < self.status < 200:
            self.headers = cast(http.client.HTTPMessage, None)  # as before the first head
            super().begin()
        self._intake.in_head = False


class _LimitedStream(io.RawIOBase):
    """The bytes of a receiver, up to a limit and a deadline."""

    def __init__(self, sock: socket.socket, stream: io.RawIOBase, deadline: Deadline) -> None:
        self._sock = sock
        self._stream = stream
        self._deadline = deadline
        self._left = MAX_ANSWER_BYTES
        self.in_head = True

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._left:
            raise NoAnswerError(
                f"The receiver sent {MAX_ANSWER_BYTES:,} bytes and no end of its answer."
            )
        self._sock.settimeout(self._deadline.remaining())
        count = self._stream.readinto(memoryview(buffer)[: self._left]) or 0
        if not count and self.in_head:  # the base class would accept half a head
            raise ConnectionResetError
        self._left -= count
        return count

    def close(self) -> None:
        self._stream.close()
        super().close()


# Sends one webhook once, and describes the outcome in one sentence.

# How much of an answer is kept, and the bytes that its last character may have in all.
KEPT_BYTES = 1024
LONGEST_CHARACTER = 4

_HEADERS = {
    "User-Agent": "taskservice",
    "Accept": "*/*",
    "Accept-Encoding": "identity",
    "Connection": "close",
}


def send(
    url: str,
    headers: Mapping[str, str],
    body: bytes,
    *,
    allowed: Destinations,
    deadline: float,
    resolve: Resolver = system_addresses,
    interrupt: Interrupt | None = None,
    confirm: Callable[[], None] = lambda: None,
) -> Outcome:
    """POST `body` to `url` within `deadline` seconds; failures of the receiver are outcomes.

    Status and headers are the answer; a slow or broken body only adds to the duration. `headers`
    override the default ones. Raises Interrupted when `interrupt` was set before the answer.

    `confirm` is called after the connection is made, which may take long, and before anything is
    sent. What it raises ends the attempt and is raised here.
    """
    clock, interrupt = Deadline(deadline), interrupt or Interrupt()
    try:
        response, beginning = _post(url, headers, body, allowed, clock, resolve, interrupt, confirm)
    except RefusedError as refusal:
        outcome = Outcome(str(refusal), permanent=True)
    except (NoAnswerError, OSError, http.client.HTTPException) as error:
        outcome = Outcome(_explain(error, deadline))
    else:
        outcome = _outcome_of_answer(response)._replace(answer=_text(beginning))
    if outcome.status_code is None:
        interrupt.check()
    return outcome._replace(duration_ms=round(clock.elapsed() * 1000))


def _post(
    url: str,
    headers: Mapping[str, str],
    body: bytes,
    allowed: Destinations,
    clock: Deadline,
    resolve: Resolver,
    interrupt: Interrupt,
    confirm: Callable[[], None],
) -> tuple[requests.Response, bytes]:
    """The answer and the beginning of its body, which is read up to a limit."""
    target = check_url(url, allowed)
    kind = SecureConnection if target.scheme == "https" else Connection
    request = requests.Request("POST", url, headers={**_HEADERS, **headers}, data=body)
    connection = kind(target, allowed, clock, resolve, interrupt)
    with contextlib.closing(_Adapter(connection, interrupt, confirm)) as adapter:
        # Not a Session, which would use proxies and .netrc, and read the whole decoded body of a
        # redirect even without following it.
        response = adapter.send(request.prepare())
        return response, _read(response.raw)


def _read(answer: Any) -> bytes:
    """Read a body up to the limit of its connection; returns its beginning."""
    beginning = b""
    # A broken body, such as a chunk of -5 bytes, does not change the answer.
    with contextlib.suppress(Exception):
        while part := answer.read1(MAX_ANSWER_BYTES):
            beginning += part[: KEPT_BYTES + LONGEST_CHARACTER - len(beginning)]
    return beginning


def _text(beginning: bytes) -> str | None:
    """At most KEPT_BYTES of UTF-8, with no half of a character at the end; None for nothing."""
    # NUL too, which PostgreSQL cannot store.
    text = beginning.decode(errors="replace").replace("\0", "\ufffd")
    return text.encode()[:KEPT_BYTES].decode(errors="ignore") or None


class _Adapter(BaseAdapter):
    """Sends one request of requests over our connection."""

    def __init__(
        self, connection: Connection, interrupt: Interrupt, confirm: Callable[[], None]
    ) -> None:
        super().__init__()
        self._connection = connection
        self._interrupt = interrupt
        self._confirm = confirm

    def send(self, request: requests.PreparedRequest, *_: Any, **__: Any) -> requests.Response:
        self._connection.connect()
        self._confirm()
        # A receiver may answer and close the connection before it has read everything.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._connection.request(
                str(request.method), request.path_url, request.body, request.headers
            )
        answer = self._answer()
        response = requests.Response()
        response.request = request
        response.status_code = answer.status
        response.headers = CaseInsensitiveDict(answer.getheaders())
        response.raw = answer
        return response

    def close(self) -> None:
        self._interrupt.release()
        self._connection.close()

    def _answer(self) -> http.client.HTTPResponse:
        try:
            return self._connection.getresponse()
        except (NoAnswerError, OSError, http.client.HTTPException):
            raise
        except Exception as error:  # an unexpected error of the parsers
            raise http.client.HTTPException from error


def _outcome_of_answer(response: requests.Response) -> Outcome:
    status = response.status_code
    phrase = http.client.responses.get(status, "")  # the receiver's own phrase is not trusted
    sentence = f"The receiver answered {status} {phrase}".rstrip()
    if 200 <= status < 300:
        return Outcome(f"{sentence}.", delivered=True, status_code=status)
    if 300 <= status < 400:
        sentence += "; redirects are not followed"
    return Outcome(
        f"{sentence}.",
        permanent=status == HTTPStatus.GONE,
        status_code=status,
        retry_after=_retry_after(response),
    )


def _retry_after(response: requests.Response) -> float | None:
    seconds = terms.seconds(response.headers.get("Retry-After", ""))
    return min(seconds, MAX_RETRY_AFTER) if seconds else None


def _explain(error: Exception, deadline: float) -> str:
    if isinstance(error, NoAnswerError):
        return str(error)
    if isinstance(error, TimeoutError):
        return f"No answer within {deadline:g} s."
    if isinstance(error, OSError):
        return "The receiver closed the connection before it answered."
    return "The receiver's answer is not HTTP."
