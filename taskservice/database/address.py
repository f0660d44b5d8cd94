"""Parses the database URL, and formats it without secrets for messages."""

import os
import re
from itertools import zip_longest
from pathlib import Path
from urllib.parse import quote, unquote_to_bytes

from sqlalchemy.engine import URL

from taskservice.installation import install_command


def parse(text: str) -> URL:
    """Parse a database URL; raises ValueError with the expected form."""
    scheme, separator, rest = text.partition("://")
    if separator and scheme in ("postgresql", "postgresql+psycopg"):
        return _postgresql(f"postgresql://{rest}")
    if scheme == "sqlite" and rest.startswith("//"):
        return _sqlite(rest[1:])
    raise ValueError("must be postgresql://... or sqlite:////absolute/path")


def sqlite_file(address: URL) -> Path | None:
    """The file of an SQLite database; None for PostgreSQL."""
    return Path(address.database or "") if address.get_backend_name() == "sqlite" else None


def shown(address: URL) -> str:
    """The address for messages, without password and parameters, which may contain secrets."""
    if address.get_backend_name() == "sqlite":
        return address.database or ""
    host, port = address.query.get("host", address.host), address.query.get("port", address.port)
    # Enclose an IPv6 address in brackets, and escape each / in the path of a socket directory.
    hosts = [f"[{name}]" if ":" in name else _quoted(name) for name in str(host or "").split(",")]
    pairs = zip_longest(hosts, str(port or "").split(","), fillvalue="")
    shown_hosts = ",".join(host + (port and f":{port}") for host, port in pairs)
    user = f"{_quoted(address.username)}@" if address.username else ""
    return f"postgresql://{user}{shown_hosts}/{_quoted(address.database or '')}"


def _quoted(text: str) -> str:
    return quote(text, safe="")


def _sqlite(path: str) -> URL:
    if "?" in path:
        raise ValueError("must have %3F for a ? in its path, and nothing after the path")
    name = os.fsdecode(unquote_to_bytes(os.fsencode(path)))
    if "\0" in name:
        raise ValueError("must not have %00 in its path")
    # The URL is built from its parts, so that a ? or % in the path needs no escape.
    return URL.create("sqlite", database=name)


def _postgresql(text: str) -> URL:
    parts = _read_by_libpq(text)
    hosts, ports = parts.get("host", "").split(","), parts.pop("port", "").split(",")
    if any("@" in host for host in hosts):
        raise ValueError("must have %40 for an @ in its password")
    for host in hosts:
        check_host(host)
    if not all(re.fullmatch("[0-9]{0,5}", port) and 1 <= int(port or 1) <= 65535 for port in ports):
        raise ValueError("must have ports from 1 to 65535, and %2F for a / in its password")
    if any(ports):
        # libpq accepts one port for all hosts; SQLAlchemy requires a port for each host.
        ports = ports * len(hosts) if len(ports) == 1 else ports
        if len(ports) != len(hosts):
            raise ValueError("must have one port for all hosts, or one for each")
        parts["port"] = ",".join(ports)
    return URL.create(
        "postgresql+psycopg",
        username=parts.pop("user", None),
        password=parts.pop("password", None),
        database=parts.pop("dbname", None),
        query=parts,
    )


def _read_by_libpq(text: str) -> dict[str, str]:
    try:
        from psycopg import Error, conninfo
    except ImportError as error:
        if (error.name or "").partition(".")[0] == "psycopg":
            problem = f"needs taskservice[postgresql]: {install_command('postgresql')}"
        else:
            problem = "needs psycopg, which can't be loaded: " + str(error).partition("\n")[0]
        raise ValueError(problem) from None
    try:
        return {name: str(value) for name, value in conninfo.conninfo_to_dict(text).items()}
    except UnicodeError:
        raise ValueError("must be text in UTF-8") from None
    except Error as error:
        # libpq's message quotes the URL or a part of it, which may contain the password.
        reason = str(error).partition(': "')[0].strip()
        raise ValueError(f"can't be read: {reason}") from None


def check_host(name: str) -> None:
    """Raise ValueError if a host name cannot be encoded for DNS or is too long."""
    try:
        name.encode("idna")
    except UnicodeError:
        raise ValueError("must have a valid host name") from None
