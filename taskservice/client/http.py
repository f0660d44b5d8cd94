"""Sends requests to the service, and handles settings, timeouts, retries and errors."""

import json
import os
import random
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests
from requests.exceptions import ChunkedEncodingError, ContentDecodingError, SSLError
from urllib3.exceptions import ReadTimeoutError

from taskservice import __version__, terms
from taskservice.bounded_http import Limits, Session
from taskservice.client import responses
from taskservice.client.responses import Expected, Response, SettingError, T, TaskServiceError
from taskservice.terminal import without_user_info
from taskservice.terms import API_PREFIX, KEY_VARIABLE, PROFILE_VARIABLE

CONNECT_SECONDS = 5.0
READ_SECONDS = 60.0
READ_AFTER_WAIT = 30.0  # seconds to receive a response after the requested wait
MIN_RATE = 16 * 1024  # bytes per second; a faster response never times out
FIRST_DELAY = 0.25
LONGEST_DELAY = 5.0
MAX_PAUSE = 3600.0  # the maximum pause in seconds, even if `Retry-After` is longer
WAIT_SECONDS = 30  # seconds that a request asks the service to wait for a change
# Minimum seconds between two requests that ask the service to wait, since the service may respond
# immediately.
REPEAT_SECONDS = 1.0
RETRY_SECONDS = 60.0  # by default, a failed call is retried for this long


class Connection:
    """A connection to the service with one API key; threads may share it."""

    def __init__(
        self,
        url: str | None = None,
        apikey: str | None = None,
        retry_timeout: float = RETRY_SECONDS,
    ) -> None:
        """By default, `url` and `apikey` are read from the environment or the profile.

        Raises SettingError.
        """
        default_url, default_key = ("", "") if url and apikey else stored_settings(url)
        self.url = checked_url(url or default_url)
        self.retry_timeout = retry_timeout
        self._apikey = _checked_key(apikey or default_key)
        self._has_responded = False
        # Each thread has its own session, since sessions of `requests` are not thread-safe.
        self._local = threading.local()

    def call(
        self,
        method: str,
        path: str,
        expected: Expected[T],
        *,
        wait: int = 0,
        retry_timeout: float | None = None,
        pause: Callable[[float, TaskServiceError], None] = lambda seconds, _: time.sleep(seconds),
        **options: Any,
    ) -> Response[T]:
        """Make a request that is safe to repeat, and retry it for `retry_timeout` seconds.

        The service may wait up to `wait` seconds before it responds. `pause` is called with the
        seconds until the next attempt, and can raise an error. Raises TaskServiceError; temporary
        errors are raised only after `retry_timeout` seconds.
        """
        retry_timeout = self.retry_timeout if retry_timeout is None else retry_timeout
        until = time.monotonic() + retry_timeout
        has_wait = wait > 0
        if has_wait:
            self._local.repeat_at = time.monotonic() + REPEAT_SECONDS
        pauses = delays()
        while True:
            try:
                response = self.once(method, path, expected, wait=wait, **options)
                if has_wait:
                    retry_after = terms.seconds(response.headers.get("Retry-After", "")) or 0
                    paused_until = time.monotonic() + min(retry_after, MAX_PAUSE)
                    self._local.repeat_at = max(self._local.repeat_at, paused_until)
                return response
            except TaskServiceError as error:
                # NotTheService means that the URL is wrong or, if the service has responded
                # before, that a proxy temporarily can't reach the service.
                is_known = self._has_responded and isinstance(error, responses.NotTheService)
                is_temporary = is_known or isinstance(error, responses.RETRYABLE)
                if not is_temporary:
                    raise
                if wait:
                    # Many proxies end long requests, so retry this request without a wait.
                    until, wait = time.monotonic() + retry_timeout, 0
                    continue
                seconds = pause_after(error, next(pauses))
                if time.monotonic() + seconds > until:
                    raise
                pause(seconds, error)

    @property
    def agent_key_hint(self) -> str:
        """The start and end of the API key if it is an agent key, otherwise empty."""
        is_of_agent = self._apikey.startswith(terms.AGENT_PREFIX)
        return terms.key_hint(self._apikey) if is_of_agent else ""

    def seconds_before_repeat(self) -> float:
        """Seconds until this thread may send another request with a `wait`."""
        repeat_at: float = getattr(self._local, "repeat_at", 0.0)
        return max(repeat_at - time.monotonic(), 0)

    def once(self, method: str, path: str, expected: Expected[T], **options: Any) -> Response[T]:
        """Make one attempt. Raises TaskServiceError.

        Options other than `wait` are passed to `requests`.
        """
        headers = dict(options.pop("headers", {}))
        if "json" in options:
            options["data"] = _as_json(options.pop("json"))
            headers["Content-Type"] = responses.JSON
        if wait := options.pop("wait", 0):
            options.setdefault("timeout", (CONNECT_SECONDS, wait + READ_AFTER_WAIT))
            headers["Prefer"] = f"wait={wait}"
        received = self._receive(method, API_PREFIX + path, expected, headers=headers, **options)
        response = responses.read(received, expected)
        self._has_responded = True
        return response

    def _receive(
        self, method: str, path: str, expected: Expected[Any], **options: Any
    ) -> requests.Response:
        options.setdefault("timeout", (CONNECT_SECONDS, READ_SECONDS))
        session = self._session()
        session.limits.max_bytes = expected.max_bytes
        try:
            return session.request(method, self.url + path, **options)
        # For malformed responses, the HTTP libraries raise exceptions of many types.
        except Exception as error:
            reason = without_user_info(_reason(error))
            raise responses.Unreachable(f"cannot reach {self.url}: {reason}") from None

    def _session(self) -> Session:
        session: Session | None = getattr(self._local, "session", None)
        if session is None or self._local.process != os.getpid():
            # After a fork, the connections of the old session belong to the parent.
            self._local.process = os.getpid()
            session = self._local.session = Session(
                Limits(responses.MAX_OBJECT_BYTES, min_rate=MIN_RATE)
            )
            session.headers["apikey"] = self._apikey
            session.headers["User-Agent"] = f"taskservice/{__version__}"
        return session


def _as_json(value: Any) -> bytes:
    try:
        # ASCII escapes could make an allowed output exceed the maximum size of a request.
        text = json.dumps(value, allow_nan=False, ensure_ascii=False)
        return text.encode(errors="surrogatepass")  # the service rejects lone surrogates
    except (TypeError, ValueError) as error:
        raise TaskServiceError(f"The value can't be encoded as JSON: {error}") from None


def delays() -> Any:
    """Generate pauses between attempts, in seconds: they double from 0.25 to 5, with jitter."""
    delay = FIRST_DELAY
    while True:
        # The jitter prevents all clients from retrying at the same time.
        yield delay * random.uniform(0.5, 1)
        delay = min(delay * 2, LONGEST_DELAY)


def pause_after(error: TaskServiceError, delay: float) -> float:
    """Seconds until the next attempt: `delay`, or `Retry-After` if it is longer."""
    retry_after = error.retry_after if isinstance(error, responses.Unavailable) else None
    return max(delay, min(retry_after or 0, MAX_PAUSE))


def checked_url(url: str) -> str:
    """The URL without a trailing slash or /api/v1. Raises SettingError."""
    if not url:
        raise SettingError(
            "TASKSERVICE_URL is not set; set it to the address of the service, "
            "for example http://127.0.0.1:8000, or run `taskservice login`"
        )
    url = url.rstrip("/").removesuffix(API_PREFIX)
    try:
        parts = urlsplit(url)
        is_complete = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        has_more = parts.query or parts.fragment or "@" in parts.netloc
        is_usable = is_complete and not has_more and url.isprintable()
    except ValueError:
        is_usable = False
    if not is_usable:
        # The text before an @ may contain a password.
        shown = "the value (hidden, because it contains an @)" if "@" in url else repr(url)
        raise SettingError(f"TASKSERVICE_URL: {shown} must be a URL such as http://127.0.0.1:8000")
    return url


def _checked_key(key: str) -> str:
    if not key:
        raise SettingError(
            "TASKSERVICE_APIKEY is not set; set it to an API key, or run `taskservice login`"
        )
    if not key.isascii() or not key.isprintable() or " " in key:
        raise SettingError(
            "TASKSERVICE_APIKEY contains characters that are not allowed, such as spaces"
        )
    return key


def _reason(error: Exception) -> str:
    """A short description of the error, without the URL."""
    if isinstance(error, requests.ConnectTimeout):
        return "no connection in time"
    inner = _innermost(error)
    if isinstance(error, requests.Timeout) or isinstance(inner, ReadTimeoutError):
        return "no response in time"
    if isinstance(error, SSLError):
        return f"TLS failed: {inner}"
    if isinstance(error, requests.ConnectionError):
        text = str(inner).rpartition("] ")[2] or "the connection was lost"
        return text if "(" in text else text.removesuffix(")")
    if isinstance(error, ChunkedEncodingError | ContentDecodingError):
        return "the response was cut off"
    # Other errors have causes such as an invalid host name, proxy address or certificate file.
    return str(inner) or type(inner).__name__


def _innermost(error: BaseException) -> BaseException:
    """The innermost error that an error from requests or urllib3 wraps."""
    inner = next((part for part in error.args if isinstance(part, BaseException)), None)
    inner = getattr(error, "reason", None) or inner
    return _innermost(inner) if isinstance(inner, BaseException) else error


# `taskservice login` stores the address and the key of each profile in a file with mode 0600.

DEFAULT_PROFILE = "default"


def chosen_profile() -> str:
    return os.environ.get(PROFILE_VARIABLE) or DEFAULT_PROFILE


def stored_settings(url: str | None = None) -> tuple[str, str]:
    """The address and the key from the environment or the profile; empty strings if neither is set.

    The profile is used only if `url` and both environment variables are unset, since a stored key
    must be sent only to the address in the same profile. Raises SettingError.
    """
    environment = os.environ.get("TASKSERVICE_URL", ""), os.environ.get(KEY_VARIABLE, "")
    if url or any(environment):
        return environment
    profiles = load_profiles()
    profile = profiles.get(chosen_profile())
    if profile is None and os.environ.get(PROFILE_VARIABLE):
        known = ", ".join(profiles) or "none"
        raise SettingError(
            f"{PROFILE_VARIABLE}: {chosen_profile()} is not a stored profile ({known})"
        )
    return (profile["url"], profile["apikey"]) if profile else ("", "")


def load_profiles() -> dict[str, Mapping[str, str]]:
    """The stored profiles by name, each with `url` and `apikey`. Raises SettingError."""
    path = profiles_file()
    try:
        profiles = json.loads(path.read_text(encoding="utf-8"))["profiles"]
        names = ("url", "apikey")
        return {key: {name: str(text[name]) for name in names} for key, text in profiles.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise SettingError(f"{path} can't be read ({error}); remove it and log in again") from None


def save_profiles(profiles: Mapping[str, Mapping[str, str]]) -> None:
    """Replace the profiles file atomically. Raises OSError."""
    path = profiles_file()
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    new = path.with_suffix(f".{os.getpid()}")
    with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        json.dump({"profiles": profiles}, file, indent=2)
    new.replace(path)


def profiles_file() -> Path:
    """The path of the profiles file, by the XDG specification. Raises SettingError."""
    directory = os.environ.get("XDG_CONFIG_HOME", "")
    try:
        base = Path(directory) if directory.startswith("/") else Path.home() / ".config"
    except RuntimeError:
        raise SettingError("neither XDG_CONFIG_HOME nor HOME is set") from None
    return base / "taskservice" / "profiles.json"
