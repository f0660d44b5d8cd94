"""Sends one webhook once, and describes the outcome."""

import contextlib
import errno
import http.client
import socket
import ssl
import threading
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any

import requests

from taskservice import resources, terms
from taskservice.bounded_http import Deadline, Limits, TooLargeError, tls_context
from taskservice.webhooks import destinations
from taskservice.webhooks.interrupt import Interrupt
from taskservice.webhooks.outcome import Outcome
from taskservice.webhooks.retry_schedule import MAX_RETRY_AFTER

MAX_RESPONSE_BYTES = 64 * 1024
MAX_LOOKUPS = 64
# How many bytes of a response are stored, and the maximum number of bytes of a UTF-8 character.
KEPT_BYTES = 1024
LONGEST_CHARACTER = 4

_HEADERS = {
    "User-Agent": "taskservice",
    "Accept": "*/*",
    "Accept-Encoding": "identity",
    "Connection": "close",
}

Resolver = Callable[[str], list[str]]

# A DNS lookup can only be abandoned, not interrupted, so the number of concurrent lookups is
# limited.
_lookups = threading.BoundedSemaphore(MAX_LOOKUPS)


class NoResponseError(Exception):
    """The receiver did not respond; the message is the reason."""


class Connection(http.client.HTTPConnection):
    """A connection to a target, with a check of its addresses and one deadline for all steps."""

    def __init__(
        self,
        target: destinations.Target,
        allowed: destinations.Destinations,
        deadline: Deadline,
        resolve: Resolver,
        interrupt: Interrupt,
    ) -> None:
        super().__init__(target.host.removesuffix("."), target.port)
        Limits(MAX_RESPONSE_BYTES, deadline).apply(self)
        self._target, self._allowed = target, allowed
        self._deadline, self._resolve, self._interrupt = deadline, resolve, interrupt
        if target.scheme == "https":
            self.default_port = http.client.HTTPS_PORT

    def connect(self) -> None:
        """Connect to the first allowed address that accepts a connection; start TLS if required.

        Raises RefusedError if no address is allowed, NoResponseError if no address accepts a
        connection or TLS fails, TimeoutError and Interrupted.
        """
        addresses = self._allowed_addresses()
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
                if self._target.scheme in ("https", "smtps"):
                    self.start_tls()
                return
        raise NoResponseError(self._connect_failure(failures[0])) from failures[0]

    def send(self, data: Any) -> None:
        """Send bytes; raises TimeoutError at the deadline, however slowly the receiver reads."""
        self.sock.settimeout(self._deadline.remaining())
        super().send(data)

    def getresponse(self) -> http.client.HTTPResponse:
        try:
            return super().getresponse()
        except (OSError, TooLargeError, http.client.HTTPException):
            raise
        except Exception as error:
            # `http.client` parses the parameters of a media type, which can raise any exception.
            raise http.client.HTTPException from error

    def start_tls(self) -> None:
        """Start TLS, and verify the certificate; raises NoResponseError and TimeoutError."""
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
            raise NoResponseError(sentence) from error
        except OSError as error:
            sentence = f"{self.host} does not speak TLS on port {self.port}."
            raise NoResponseError(sentence) from error

    def _allowed_addresses(self) -> list[destinations.Address]:
        """The allowed addresses of the host; raises RefusedError when there are none."""
        host, literal = self._target.host, self._target.literal
        addresses = [literal] if literal else look_up(self._resolve, host, self._deadline)
        refusals = {address: self._allowed.refusal(host, address) for address in addresses}
        allowed = [address for address in addresses if not refusals[address]]
        if not allowed:
            raise destinations.RefusedError(refusals[addresses[0]])
        return allowed

    def _connect_failure(self, error: OSError) -> str:
        if isinstance(error, TimeoutError):
            seconds = f"{self._deadline.seconds:g} s"
            return f"{self.host} did not accept a connection within {seconds}."
        if isinstance(error, ConnectionRefusedError):
            return f"{self.host} refused a connection to port {self.port}."
        return f"{self.host} can't be reached: {error.strerror}."


def system_addresses(host: str) -> list[str]:
    """The addresses of a host from the system's resolver, best first; raises OSError."""
    entries = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return [str(socket_address[0]) for *_, socket_address in entries]


def look_up(resolve: Resolver, host: str, deadline: Deadline) -> list[destinations.Address]:
    """The addresses of a host; raises NoResponseError if `resolve` finds none in time."""

    def run() -> list[str]:
        try:
            return resolve(host)
        finally:
            _lookups.release()

    try:
        if not _lookups.acquire(timeout=deadline.remaining()):
            raise TimeoutError
        try:
            future = resources.start_future("webhook-lookup", run)
        except RuntimeError as error:
            _lookups.release()
            raise OSError(errno.EAGAIN, "the machine has no more threads") from error
        texts = future.result(deadline.remaining())
    except TimeoutError as error:
        raise NoResponseError(f"{host} was not resolved within {deadline.seconds:g} s.") from error
    except OSError as error:
        raise NoResponseError(f"{host} can't be resolved: {error.strerror}.") from error
    if not texts:
        raise NoResponseError(f"{host} can't be resolved: it has no address.")
    return [destinations.read_address(text) for text in texts]


def post_once(
    url: str,
    headers: Mapping[str, str],
    body: bytes,
    *,
    allowed: destinations.Destinations,
    seconds: float,
    resolve: Resolver = system_addresses,
    interrupt: Interrupt | None = None,
    confirm: Callable[[], None] = lambda: None,
) -> Outcome:
    """POST `body` to `url` within `seconds`; a failure of the receiver is returned, not raised.

    Only the status and the headers determine the outcome; a broken body is ignored, and a slow body
    only adds to the duration. Raises Interrupted if `interrupt` was set before the response.
    `confirm` is called immediately before the request is sent, since connecting can be slow.
    Exceptions that `confirm` raises propagate.
    """
    deadline, interrupt = Deadline(seconds), interrupt or Interrupt()
    try:
        target = destinations.check_url(url, allowed)
        connection = Connection(target, allowed, deadline, resolve, interrupt)
        # The request is not sent by a session of `requests`, which would use proxies and .netrc,
        # and would read the whole decoded body of a redirect.
        request = requests.Request("POST", url, {**_HEADERS, **headers}, data=body).prepare()
        with contextlib.closing(connection):
            connection.connect()
            confirm()
            # A receiver may respond and close the connection before it has read the whole request.
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                connection.request("POST", request.path_url, request.body, request.headers)
            outcome = _outcome_of(connection.getresponse())
    except destinations.RefusedError as refusal:
        outcome = Outcome(str(refusal), permanent=True)
    except (NoResponseError, TooLargeError, OSError, http.client.HTTPException) as error:
        outcome = Outcome(_explain(error, seconds))
    if outcome.status_code is None:
        interrupt.check()
    return outcome._replace(duration_ms=round(deadline.elapsed() * 1000))


def _outcome_of(response: http.client.HTTPResponse) -> Outcome:
    status = response.status
    phrase = http.client.responses.get(status, "")  # the receiver's reason phrase is not trusted
    sentence = f"The receiver responded with {status} {phrase}".rstrip()
    if 300 <= status < 400:
        sentence += "; redirects are not followed"
    delivered = 200 <= status < 300
    asked = "" if delivered else response.headers.get("Retry-After", "")
    retry_after = terms.seconds(asked) if asked else None
    return Outcome(
        f"{sentence}.",
        delivered,
        permanent=status == HTTPStatus.GONE,
        status_code=status,
        retry_after=min(retry_after, MAX_RETRY_AFTER) if retry_after else None,
        answer=_beginning(response),
    )


def _beginning(body: http.client.HTTPResponse) -> str | None:
    """Read a body up to the limits; returns at most KEPT_BYTES of text, None if it is empty."""
    data = b""
    # A broken body, such as a chunk of -5 bytes, does not change the outcome.
    with contextlib.suppress(Exception), body:
        while part := body.read1(MAX_RESPONSE_BYTES):
            data += part[: KEPT_BYTES + LONGEST_CHARACTER - len(data)]
    # The text contains no NUL, which PostgreSQL cannot store, and no partial last character.
    text = data.decode(errors="replace").replace("\0", "\ufffd")
    return text.encode()[:KEPT_BYTES].decode(errors="ignore") or None


def _explain(error: Exception, deadline: float) -> str:
    if isinstance(error, NoResponseError):
        return str(error)
    if isinstance(error, TooLargeError):
        return f"The receiver sent {MAX_RESPONSE_BYTES:,} bytes without the end of its response."
    if isinstance(error, TimeoutError):
        return f"No response within {deadline:g} s."
    if isinstance(error, OSError):
        return "The receiver closed the connection before it responded."
    return "The receiver's response is not HTTP."
