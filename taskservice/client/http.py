"""Sends every request to the service: its headers, deadlines, retries and errors."""

import json
import os
import random
import threading
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import requests
from requests.exceptions import ChunkedEncodingError, ContentDecodingError, SSLError
from urllib3.exceptions import ReadTimeoutError

from taskservice import __version__, terms
from taskservice.bounded_http import Adapter, Limits, Session
from taskservice.client.responses import (
    JSON,
    OPENAPI,
    RETRYABLE,
    Expected,
    NotTheService,
    OtherVersion,
    Response,
    SettingError,
    TaskServiceError,
    Unavailable,
    Unreachable,
    may_be_of_another_version,
    read,
)
from taskservice.terminal import without_user_info
from taskservice.terms import API_PREFIX

CONNECT_SECONDS = 5.0
# The service answers sooner.
READ_SECONDS = 60.0
# The same for a request that waits, besides its wait.
READ_AFTER_WAIT = 30.0
# A response that arrives faster than this, in bytes per second, never times out.
MIN_RATE = 16 * 1024
# A page of the list may have 100 tasks, each with two objects of 1 MiB, and a page of a log a whole
# log, in which JSON makes six bytes of some.
MAX_BYTES = 8 * terms.MAX_LOG
FIRST_DELAY = 0.25
LONGEST_DELAY = 5.0
# The longest pause, whatever `Retry-After` says.
MAX_PAUSE = 3600.0
# How long the service may usually wait.
WAIT_SECONDS = 30
# The service may answer a waiting request at once: the next one is sent after this time.
REPEAT_SECONDS = 1.0
# How many seconds a call is retried before it fails, by default.
PATIENCE_SECONDS = 60.0


class Connection:
    """A connection to the service with one API key; threads may share it."""

    def __init__(
        self, url: str | None = None, apikey: str | None = None, patience: float = PATIENCE_SECONDS
    ) -> None:
        """`url` and `apikey` come from the environment by default. Raises SettingError."""
        self.url = checked_url(url or os.environ.get("TASKSERVICE_URL", ""))
        self.patience = patience
        self._apikey = _checked_key(apikey or os.environ.get("TASKSERVICE_APIKEY", ""))
        self._has_answered = False
        # A session of `requests` must not be shared by threads.
        self._local = threading.local()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_local": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state | {"_local": threading.local()}

    def call(
        self,
        method: str,
        path: str,
        expected: Expected,
        *,
        wait: int = 0,
        patience: float | None = None,
        sleep: Callable[[float], None] = time.sleep,
        **options: Any,
    ) -> Response:
        """Make a request that may be repeated, and retry it for `patience` seconds.

        `path` is the path below /api/v1, `expected` what the response must be; `wait` is how many
        seconds the service may wait before it answers; `rest` is called to wait before the next
        attempt; `options` are those of `once`. Raises TaskServiceError: one that may pass only
        after `patience`.
        """
        patience = self.patience if patience is None else patience
        until = time.monotonic() + patience
        if wait:
            self._local.repeat_at = time.monotonic() + REPEAT_SECONDS
        for delay in delays():
            try:
                return self._once_with_wait(method, path, expected, wait, options)
            except TaskServiceError as error:
                if not self._may_pass(error):
                    raise
                if wait:
                    # The service may be there: many proxies cut off a request that takes long.
                    until, wait = time.monotonic() + patience, 0
                    continue
                pause = pause_after(error, delay)
                if time.monotonic() + pause > until:
                    raise
                sleep(pause)
        raise AssertionError("delays never end")

    def _may_pass(self, error: TaskServiceError) -> bool:
        if isinstance(error, OtherVersion):
            return False
        # At first the response of another program means a wrong URL; once the service has
        # answered, it comes from a proxy whose service is away.
        is_known = self._has_answered and isinstance(error, NotTheService)
        return is_known or isinstance(error, RETRYABLE)

    def _once_with_wait(
        self, method: str, path: str, expected: Expected, wait: int, options: dict[str, Any]
    ) -> Response:
        if not wait:
            return self.once(method, path, expected, **options)
        headers = {"Prefer": f"wait={wait}", **options.get("headers", {})}
        options = {"timeout": (CONNECT_SECONDS, wait + READ_AFTER_WAIT)} | options
        response = self.once(method, path, expected, **(options | {"headers": headers}))
        asked = terms.seconds(response.headers.get("Retry-After", "")) or 0
        repeat_at = time.monotonic() + min(asked, MAX_PAUSE)
        self._local.repeat_at = max(self._local.repeat_at, repeat_at)
        return response

    def seconds_before_repeat(self) -> float:
        """How long not to repeat the last request of this thread that had a `wait`."""
        repeat_at: float = getattr(self._local, "repeat_at", 0.0)
        return max(repeat_at - time.monotonic(), 0)

    def once(self, method: str, path: str, expected: Expected, **options: Any) -> Response:
        """Make one attempt; `options` are those of `requests`. Raises TaskServiceError."""
        if "json" in options:
            options["data"] = _as_json(options.pop("json"))
            options["headers"] = {"Content-Type": JSON, **options.get("headers", {})}
        received = self._receive(method, API_PREFIX + path, options)
        try:
            response = read(received, expected)
        except TaskServiceError as error:
            if may_be_of_another_version(received, error):
                self._compare_versions()
            raise
        self._has_answered = True
        return response

    def _compare_versions(self) -> None:
        """Raise OtherVersion if the service says that it has another version than this client."""
        try:
            received = self._receive("GET", "/openapi.json", {})
            version = read(received, OPENAPI).data["info"]["version"]
        except TaskServiceError:
            return
        if version != __version__:
            raise OtherVersion(
                f"the service has the version {version}, and this client {__version__}: "
                "upgrade the older one"
            )

    def _receive(self, method: str, path: str, options: dict[str, Any]) -> Response:
        options.setdefault("timeout", (CONNECT_SECONDS, READ_SECONDS))
        try:
            response = self._session().request(method, self.url + path, **options)
        # For a malformed response, the libraries below raise errors of many kinds.
        except Exception as error:
            reason = without_user_info(_reason(error))
            raise Unreachable(f"{self.url} is out of reach: {reason}") from None
        return Response(response.url, response.status_code, response.headers, response.content)

    def _session(self) -> requests.Session:
        session: requests.Session | None = getattr(self._local, "session", None)
        if session is None or self._local.process != os.getpid():
            # After a fork, the connections of the old session are the parent's.
            self._local.process = os.getpid()
            session = self._local.session = Session(Adapter(Limits(MAX_BYTES, min_rate=MIN_RATE)))
            session.headers["apikey"] = self._apikey
            session.headers["User-Agent"] = f"taskservice/{__version__}"
        return session


def _as_json(value: Any) -> bytes:
    try:
        text = json.dumps(value, allow_nan=False, ensure_ascii=False)
        # In UTF-8 the largest output fits in a body, with escapes it may not. The service refuses a
        # lone surrogate.
        return text.encode(errors="surrogatepass")
    except (TypeError, ValueError) as error:
        raise TaskServiceError(f"This is not JSON: {error}") from None


def delays() -> Any:
    """Seconds to wait after each failure: from 0.25 s up to 5 s, less up to half."""
    delay = FIRST_DELAY
    while True:
        # Random, so that not all clients come at once when the service is back.
        yield delay * random.uniform(0.5, 1)
        delay = min(delay * 2, LONGEST_DELAY)


def pause_after(error: TaskServiceError, delay: float) -> float:
    """Seconds until the next attempt: `delay`, or more where the service asks for more."""
    asked = error.retry_after if isinstance(error, Unavailable) else None
    return max(delay, min(asked or 0, MAX_PAUSE))


def checked_url(url: str) -> str:
    """The URL without a slash or /api/v1 at its end."""
    if not url:
        raise SettingError(
            "TASKSERVICE_URL is not set: the address of the service, such as http://127.0.0.1:8000"
        )
    url = url.rstrip("/").removesuffix(API_PREFIX)
    if not _is_usable(url):
        # What stands before an @ may be a password.
        shown = "it, which contains an @," if "@" in url else repr(url)
        raise SettingError(f"TASKSERVICE_URL: {shown} must be a URL such as http://127.0.0.1:8000")
    return url


def _is_usable(url: str) -> bool:
    try:
        parts = urlsplit(url)
        is_complete = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        return False
    has_more = parts.query or parts.fragment or "@" in parts.netloc
    return bool(is_complete) and not has_more and url.isprintable()


def _checked_key(key: str) -> str:
    if not key:
        raise SettingError("TASKSERVICE_APIKEY is not set: the service requires an API key")
    if not key.isascii() or not key.isprintable() or " " in key:
        raise SettingError(
            "TASKSERVICE_APIKEY: contains characters that no API key has, such as spaces"
        )
    return key


def _reason(error: Exception) -> str:
    """What went wrong, in a few words without the URL."""
    if isinstance(error, requests.ConnectTimeout):
        return "no connection in time"
    inner = _innermost(error)
    if isinstance(error, requests.Timeout) or isinstance(inner, ReadTimeoutError):
        return "no answer in time"
    if isinstance(error, SSLError):
        return f"TLS failed: {inner}"
    if isinstance(error, requests.ConnectionError):
        text = str(inner).rpartition("] ")[2] or "the connection broke"
        return text if "(" in text else text.removesuffix(")")
    if isinstance(error, ChunkedEncodingError | ContentDecodingError):
        return "the answer broke off"
    # The name of a host, the address of a proxy or a file of certificates can't be used.
    return str(inner) or type(inner).__name__


def _innermost(error: BaseException) -> BaseException:
    """The original error, inside those of requests and urllib3."""
    while True:
        inner = getattr(error, "reason", None) or next(
            (argument for argument in error.args if isinstance(argument, BaseException)), None
        )
        if not isinstance(inner, BaseException):
            return error
        error = inner
