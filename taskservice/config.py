"""The settings, each with its name, default, check and help text."""

import os
import re
import secrets
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from sqlalchemy.engine import URL, make_url

from taskservice.database import address
from taskservice.database.address import check_host
from taskservice.database.files import locked, make_folder, open_regular, sync
from taskservice.terms import MAX_NAME
from taskservice.webhooks import destinations
from taskservice.webhooks.destinations import Destinations

PREFIX = "TASKSERVICE_"
# The minimum length, in bytes, of the key that signs sessions. An attacker who guesses the key can
# forge sessions.
KEY_BYTES = 32
MAX_KEY_FILE = 64 * 1024
# Variables of the client, which the service ignores without a warning.
CLIENT_NAMES = {"URL", "APIKEY", "OUTPUT", "PROFILE", "TASK_ID", "TASK_URL", "WRITER"}


class ConfigError(Exception):
    """Raised if a setting has an invalid value; the message is one line for the operator."""


def _number(low: float, high: float, unit: str = "") -> Callable[[str], float]:
    """A parser for decimal numbers if `unit` is given, otherwise for whole numbers."""
    name, kind = (f"number of {unit}", float) if unit else ("whole number", int)
    # `int` and `float` would also accept 1e9, 1_000, spaces, and the digits of other scripts.
    shape = re.compile(r"[0-9]{1,15}" + (r"(\.[0-9]{1,15})?" if unit else ""))

    def parse(text: str) -> float:
        if not shape.fullmatch(text) or not low <= kind(text) <= high:
            raise ValueError(f"must be a {name} from {low:.10g} to {high:.10g}")
        return kind(text)

    return parse


def _choice(*words: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text.lower() not in words:
            raise ValueError(f"must be one of {', '.join(words)}")
        return text.lower()

    return parse


def _bind(text: str) -> str:
    if text.startswith("unix:") and text.removeprefix("unix:").removeprefix("//"):
        return text
    try:
        parts = urlsplit(f"//{text}")
        is_address = parts.netloc == text and parts.hostname and parts.port is not None
    except ValueError:
        is_address = False
    if not is_address or parts.username is not None:
        raise ValueError("must be HOST:PORT, [IPV6]:PORT or unix:PATH, with a port up to 65535")
    check_host(parts.hostname or "")
    return text


def _public_url(text: str) -> str:
    with suppress(destinations.RefusedError):
        destinations.read_url(text)
        if "?" not in text:
            return text.rstrip("/")
    raise ValueError("must be a URL such as https://tasks.example.org, without query")


def _header(text: str) -> str:
    # gunicorn drops headers with an underscore in the name, which could imitate other headers.
    if not re.fullmatch("[A-Za-z0-9-]+", text):
        raise ValueError("must be the name of a header, such as X-Remote-User")
    return text


def _user_name(text: str) -> str:
    if len(text) > MAX_NAME or "\0" in text:
        raise ValueError(f"must be a name of at most {MAX_NAME} characters")
    return text


def _secret_key(text: str) -> str:
    with suppress(UnicodeEncodeError):
        if len(text.encode()) >= KEY_BYTES:
            return text
    raise ValueError(f"must be text in UTF-8 of at least {KEY_BYTES} bytes")


def _setting(default: Any, parse: Callable[[str], Any], help: str) -> Any:
    return field(default=default, metadata={"parse": parse, "help": help})


@dataclass(frozen=True)
class Config:
    """The settings, named after their environment variables without the prefix."""

    DATA: Path = _setting(Path("instance"), Path, "Directory for the database and the secrets.")
    DATABASE_URL: str | URL = _setting(
        "", address.parse, "Database URL: `postgresql://...`; unset: an SQLite file in `DATA`."
    )
    SECRET_KEY: str = _setting(
        "",
        _secret_key,
        "Key that signs dashboard sessions; unset: created in `DATA`; required with PostgreSQL.",
    )
    BIND: str = _setting("127.0.0.1:8000", _bind, "Listen address: `HOST:PORT` or `unix:PATH`.")
    WORKERS: int = _setting(1, _number(1, 64), "Number of server processes; 1 is best with SQLite.")
    THREADS: int = _setting(16, _number(4, 256), "Number of threads of each server process.")
    WAITS: int = _setting(
        200,
        _number(1, 1000),
        "Maximum number of streams and waiting requests per server process; each uses a thread in "
        "addition to `THREADS`.",
    )
    PROXY_HOPS: int = _setting(
        0, _number(0, 10), "Number of trusted reverse proxies; 0: ignore `X-Forwarded-*`."
    )
    LOGIN_HEADER: str = _setting(
        "",
        _header,
        "Header in which the proxy sends the name of the signed-in person; needs `PROXY_HOPS`.",
    )
    CALLBACK_ALLOWED: Destinations = _setting(
        Destinations.parse("external"),
        Destinations.parse,
        "Allowed callback destinations: `external`, `private`, `loopback`, CIDRs, host globs.",
    )
    CALLBACK_TIMEOUT: float = _setting(
        10.0, _number(0.1, 30, "seconds"), "Time limit of one webhook attempt in seconds."
    )
    TASK_TIMEOUT: float = _setting(
        86_400.0,
        _number(0, 31_536_000, "seconds"),
        "A claimed task times out after this many seconds without an append or report; 0: never.",
    )
    RETENTION_DAYS: float = _setting(
        0.0, _number(0, 36_500, "days"), "Days to store finished tasks; 0: forever."
    )
    LOG_RETENTION_DAYS: float = _setting(
        0.0,
        _number(0, 36_500, "days"),
        "Days to store the logs of finished tasks; 0: as long as the tasks.",
    )
    MAX_BODY: int = _setting(
        10 * 1024 * 1024,
        _number(1024, 1024 * 1024 * 1024),
        "Maximum size in bytes of an append to a log; other requests can have at most 2 MiB.",
    )
    PUBLIC_URL: str = _setting(
        "",
        _public_url,
        "URL of the service for links in messages; unset: `http://` and `BIND` on a loopback "
        "address without a proxy, else no links.",
    )
    SMTP_URL: destinations.MailServer | None = _setting(
        None,
        destinations.MailServer.parse,
        "Mail server for hooks: `smtp://` with STARTTLS (port 587), or `smtps://` (port 465).",
    )
    MAIL_FROM: str = _setting(
        "", destinations.check_sender, "Sender of emails; required with `SMTP_URL`."
    )
    FIRST_USER: str = _setting(
        "",
        _user_name,
        "`serve` adds this user to an empty database, and prints a sign-in link and the API key.",
    )
    LOG_LEVEL: str = _setting(
        "info", _choice("debug", "info", "warning", "error"), "Lowest level of logged messages."
    )
    LOG_FORMAT: str = _setting(
        "text", _choice("text", "json"), "Format of the service's log: `text` or `json`."
    )

    @classmethod
    def from_environment(
        cls, environ: Mapping[str, str] = os.environ, may_create: bool = True
    ) -> "Config":
        """The settings from `TASKSERVICE_...` variables. Raises ConfigError.

        An empty variable counts as unset.
        """
        values: dict[str, Any] = {}
        for setting in fields(cls):
            if text := environ.get(PREFIX + setting.name):
                try:
                    values[setting.name] = setting.metadata["parse"](text)
                except ValueError as error:
                    raise ConfigError(f"{PREFIX}{setting.name}: {error}") from None
        config = cls(**values)
        return replace(config, DATA=config.DATA.absolute()).completed(may_create)

    def completed(self, may_create: bool = True) -> "Config":
        """These settings, completed with the URLs and the secret key; creates a missing key if
        `may_create`.
        """
        # The URL is built from parts, since a ? or % in the path would have to be escaped in the
        # text of a URL.
        url = self.DATABASE_URL or URL.create("sqlite", database=str(self.DATA / "taskservice.db"))
        if make_url(url).get_backend_name() == "postgresql" and not self.SECRET_KEY:
            raise ConfigError(
                f"{PREFIX}SECRET_KEY: is required with PostgreSQL, "
                "so that all machines sign with the same key"
            )
        if self.SMTP_URL and not self.MAIL_FROM:
            raise ConfigError(f"{PREFIX}MAIL_FROM: is required with {PREFIX}SMTP_URL")
        if self.LOGIN_HEADER and not self.PROXY_HOPS:
            raise ConfigError(
                f"{PREFIX}LOGIN_HEADER: requires {PREFIX}PROXY_HOPS of 1 or more: without a proxy, "
                "everyone could send this header"
            )
        # Behind a proxy, the service does not know the address at which people reach it.
        host = urlsplit(f"//{self.BIND}").hostname or ""
        is_local = not self.PROXY_HOPS and is_loopback(host)
        public_url = self.PUBLIC_URL or (f"http://{self.BIND}" if is_local else "")
        key = self.SECRET_KEY or _stored_secret_key(self.secret_key_file, may_create)
        return replace(self, DATABASE_URL=url, PUBLIC_URL=public_url, SECRET_KEY=key)

    @property
    def secret_key_file(self) -> Path:
        """The file that contains the secret key if the setting is unset."""
        return self.DATA / "secret_key"


def is_loopback(host: str) -> bool:
    return re.fullmatch(r"localhost|127\..*|::1", host) is not None


def unknown_names(environ: Mapping[str, str] = os.environ) -> list[str]:
    """Environment variables that have the prefix but match no setting: probably misspelt."""
    known = {PREFIX + setting.name for setting in fields(Config)}
    known |= {PREFIX + name for name in CLIENT_NAMES}
    return sorted(name for name in environ if name.startswith(PREFIX) and name not in known)


def documented() -> list[tuple[str, str, str]]:
    """The name, default and help text of each setting, for the documentation and `serve --help`."""
    rows = []
    for setting in fields(Config):
        default = "" if setting.default in ((), None) else setting.default
        shown = f"{default:g}" if isinstance(default, float) else str(default)
        rows.append((PREFIX + setting.name, shown, setting.metadata["help"]))
    return rows


def _stored_secret_key(path: Path, may_create: bool) -> str:
    try:
        if not path.exists():
            if not may_create:
                return ""
            _create_secret_key(path)
        with open_regular(path) as file:
            text = file.read(MAX_KEY_FILE)
        return _secret_key(text.decode(errors="surrogateescape").strip())
    except OSError as error:
        raise ConfigError(f"{PREFIX}DATA: {path} cannot be used: {error.strerror}") from None
    except ValueError as error:
        raise ConfigError(
            f"{PREFIX}DATA: the key in {path} {error}; remove the file to get a new key"
        ) from None


def _create_secret_key(path: Path) -> None:
    """Create the key, unless another process has just created it."""
    make_folder(path.parent)
    with locked(path.parent):
        if path.exists():
            return
        # The file gets its final name only when its content is on the disk. A process that was
        # killed may have left a temporary file.
        draft = path.with_name(f"{path.name}.new")
        draft.unlink(missing_ok=True)
        try:
            draft.touch(0o600, exist_ok=False)
            draft.write_text(f"{secrets.token_hex(KEY_BYTES)}\n")
            sync(draft)
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)
        sync(path.parent)
