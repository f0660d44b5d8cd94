"""Reads URLs and hosts that clients send, which may contain anything."""

import ipaddress
from urllib.parse import SplitResult, urlsplit


def url_parts(url: str) -> SplitResult:
    """The parts of a URL; all are empty if it is not a valid one."""
    try:
        return urlsplit(url)
    except ValueError:
        return urlsplit("")


def is_loopback(host: str | None) -> bool:
    """Whether this host, without port and brackets, is this machine itself."""
    try:
        return ipaddress.ip_address(host or "").is_loopback
    except ValueError:
        return host is not None and (host == "localhost" or host.endswith(".localhost"))
