"""The address of the database: read from a setting, and shown without its secrets."""

import os
import re
from importlib import import_module
from itertools import zip_longest
from urllib.parse import quote, unquote_to_bytes

from sqlalchemy.engine import URL
from sqlalchemy.exc import ArgumentError

_SQLITE = "sqlite:///"
_SCHEMES = ("postgresql://", "postgresql+psycopg://")


def is_port(text: str) -> bool:
    return re.fullmatch("[0-9]{1,5}", text) is not None and 1 <= int(text) <= 65535


def parse(text: str) -> URL:
    """The address that a URL names; raises ValueError with the expected form."""
    for scheme in _SCHEMES:
        if text.startswith(scheme):
            return _postgresql("postgresql://" + text[len(scheme) :])
    if text.startswith(f"{_SQLITE}/"):
        return _sqlite(text[len(_SQLITE) :])
    raise ValueError("must be postgresql://... or sqlite:////absolute/path")


def shown(address: URL) -> str:
    """The address for messages: without its password and parameters, which may be secret."""
    if address.get_backend_name() == "sqlite":
        return address.database or ""
    user = f"{quote(address.username, safe='')}@" if address.username else ""
    return f"postgresql://{user}{_shown_hosts(address)}/{quote(address.database or '', safe='')}"


def _sqlite(path: str) -> URL:
    if "?" in path:
        raise ValueError("must have %3F for a ? in its path, and nothing after the path")
    name = os.fsdecode(unquote_to_bytes(os.fsencode(path)))
    if "\0" in name:
        raise ValueError("must not have %00 in its path")
    # Built from parts: in a URL's text, ? and % of the path would need escapes.
    return URL.create("sqlite", database=name)


def _postgresql(text: str) -> URL:
    parts = _read_by_libpq(text)
    hosts, ports = parts.get("host", "").split(","), parts.pop("port", "").split(",")
    if any("@" in host for host in hosts):
        raise ValueError("must have %40 for an @ in its password")
    for host in hosts:
        check_host(host)
    if not all(port == "" or is_port(port) for port in ports):
        raise ValueError("must have ports from 1 to 65535, and %2F for a / in its password")
    if any(ports):
        # libpq takes one port for all hosts; SQLAlchemy wants one for each.
        parts["port"] = ",".join(ports * len(hosts) if len(ports) == 1 else ports)
    address = URL.create(
        "postgresql+psycopg",
        username=parts.pop("user", None),
        password=parts.pop("password", None),
        database=parts.pop("dbname", None),
        query=parts,
    )
    try:
        address.get_dialect()().create_connect_args(address)
    except ArgumentError:
        raise ValueError("must have one port for all hosts, or one for each") from None
    return address


def _read_by_libpq(text: str) -> dict[str, str]:
    try:
        conninfo, errors = import_module("psycopg.conninfo"), import_module("psycopg.errors")
    except ImportError as error:
        if (error.name or "").partition(".")[0] == "psycopg":
            problem = "needs taskservice[postgresql]: pip install 'taskservice[postgresql]'"
        else:
            problem = "needs psycopg, which can't be loaded: " + str(error).partition("\n")[0]
        raise ValueError(problem) from None
    try:
        return dict(conninfo.conninfo_to_dict(text))
    except UnicodeError:
        raise ValueError("must be text in UTF-8") from None
    except errors.Error as error:
        # libpq's message quotes the URL or a part of it, which may contain the password.
        reason = str(error).partition(': "')[0].strip()
        raise ValueError(f"can't be read: {reason}") from None


def check_host(name: str) -> None:
    """Raises ValueError for a host name that can't be resolved: not encodable, or too long."""
    try:
        name.encode("idna")
    except UnicodeError:
        raise ValueError("must have a valid host name") from None


def _shown_hosts(address: URL) -> str:
    host, port = address.query.get("host", address.host), address.query.get("port", address.port)
    hosts, ports = str(host or "").split(","), str(port or "").split(",")
    # IPv6, or a name; the folder of a socket has a / in it.
    hosts = [f"[{host}]" if ":" in host else quote(host, safe="") for host in hosts]
    pairs = zip_longest(hosts, ports, fillvalue="")
    return ",".join(host + (port and f":{port}") for host, port in pairs)
