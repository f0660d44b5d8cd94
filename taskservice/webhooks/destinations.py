"""The destinations of webhooks and email: valid URLs, and allowed addresses."""

import re
import socket
from dataclasses import dataclass, field
from difflib import get_close_matches
from fnmatch import fnmatchcase
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import NamedTuple
from urllib.parse import unquote

# The tables of Python's `ipaddress` are not used, since they differ between versions and lack some
# networks. Sources: IANA's registries of special addresses
# (https://www.iana.org/assignments/iana-ipv4-special-registry and iana-ipv6-special-registry), and
# the cloud providers' documentation of their metadata addresses.

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network


def _networks(*texts: str) -> list[Network]:
    return [ip_network(network) for text in texts for network in text.split()]


# The first match decides, so small and dangerous networks are listed first.
_KINDS = {
    # In this order: the IPv4 addresses of Alibaba Cloud, Azure, most clouds, and Oracle Cloud; the
    # IPv6 addresses of AWS, Oracle Cloud, Scaleway and Google Cloud.
    "metadata": _networks(
        "100.100.100.200 168.63.129.16 169.254.169.254 192.0.0.192",
        "fd00:ec2::/32 fd00:c1::a9fe:a9fe fd00:42::42 fd20:ce::254",
    ),
    "loopback": _networks("127.0.0.0/8 ::1"),
    # The customers of an internet provider share 100.64.0.0/10; Tailscale uses it too.
    "private": _networks("10.0.0.0/8 172.16.0.0/12 192.168.0.0/16 100.64.0.0/10 fc00::/7"),
    "link-local": _networks("169.254.0.0/16 fe80::/10"),
    "multicast": _networks("224.0.0.0/4 ff00::/8"),
    "documentation": _networks(
        "192.0.2.0/24 198.51.100.0/24 203.0.113.0/24 2001:db8::/32 3fff::/20"
    ),
    "benchmarking": _networks("198.18.0.0/15 2001:2::/48"),
    # A NAT64, 6to4 or Teredo address contains an IPv4 address, to which a gateway forwards the
    # connection; the IPv4 address could be private.
    "NAT64": _networks("64:ff9b::/96 64:ff9b:1::/48"),
    "6to4": _networks("2002::/16 192.88.99.0/24"),
    "Teredo": _networks("2001::/32"),
    # IPv4: this host (Linux connects 0.0.0.0 to loopback), protocol assignments, AS112, multicast
    # tunneling, AS112, future use and broadcast. IPv6: protocol assignments, AS112.
    "reserved": _networks(
        "0.0.0.0/8 192.0.0.0/24 192.31.196.0/24 192.52.193.0/24 192.175.48.0/24 240.0.0.0/4",
        "2001::/23 2620:4f:8000::/48",
    ),
    # In IPv6, only 2000::/3 is allocated for the internet. All other addresses, such as ::a.b.c.d
    # or fec0::/10, are reserved.
    "external": _networks("0.0.0.0/0 2000::/3"),
}


def kind_of(address: Address) -> str:
    """The kind of an address, such as `external` (on the internet), `private` or `loopback`."""
    for kind, networks in _KINDS.items():
        if any(address in network for network in networks):
            return kind
    return "reserved"


def read_address(text: str) -> Address:
    """Parse an address; an IPv4-mapped address becomes an IPv4 address. Raises ValueError."""
    address = ip_address(text)
    return getattr(address, "ipv4_mapped", None) or address


_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*", re.IGNORECASE)


def literal_address(host: str) -> Address | None:
    """The address if the host of a URL is an address; None if the host is a name.

    `host` has no brackets. Accepts every notation that getaddrinfo accepts: `2130706433`,
    `0177.0.0.1`, `0x7f.1` and `127.1` are 127.0.0.1. As in browsers, a host that ends in a number
    is an address. Raises ValueError for an invalid address, and for an IPv6 address with a scope.
    """
    if ":" in host:
        if "%" in host:
            raise ValueError("an address with a scope")
        return read_address(host)
    host = host.removesuffix(".")
    if not _NUMBER.fullmatch(host.rpartition(".")[2]):
        return None
    try:
        return IPv4Address(socket.inet_aton(host))
    except OSError as error:
        raise ValueError("no address") from error


SETTING = "TASKSERVICE_CALLBACK_ALLOWED"
KINDS = ("external", "private", "loopback")
URL_BYTES = 2_000

_PORTS = {"http": 80, "https": 443}
_AUTHORITY = re.compile(r"https?://([^/?#]*)", re.IGNORECASE)
_LABEL = r"[a-z0-9_-]{1,63}"
_NAME = re.compile(rf"(?=.{{1,254}}$){_LABEL}(\.{_LABEL})*\.?", re.IGNORECASE)
# The last label of a host pattern must contain a letter: `*`, `hooks.*` and `10.0.0.*` would allow
# more than intended.
_PATTERN = re.compile(r"([a-z0-9_*-]+\.)*[0-9_*-]*[a-z][a-z0-9_*-]*")
_MAPPED = IPv6Network("::ffff:0:0/96")


class RefusedError(ValueError):
    """The destination is not allowed; the text is the reason."""


class Target(NamedTuple):
    scheme: str
    host: str  # from the URL: in lower case, IDNA-encoded, without brackets
    port: int
    literal: Address | None  # the address if `host` is an address, in any notation


@dataclass(frozen=True)
class Destinations:
    kinds: frozenset[str]
    networks: tuple[Network, ...]
    hosts: tuple[str, ...]

    def __str__(self) -> str:
        return ",".join([*sorted(self.kinds), *map(str, self.networks), *self.hosts])

    @classmethod
    def parse(cls, text: str) -> "Destinations":
        """Parse a comma-separated list of KINDS, networks and hosts such as `*.lan`. Raises
        ValueError.
        """
        kinds, networks, hosts = set(), [], []
        for entry in filter(None, (part.strip().lower() for part in text.split(","))):
            if entry in KINDS:
                kinds.add(entry)
            elif network := _network(entry):
                networks.append(network)
            # `exernal` is probably no host.
            elif _PATTERN.fullmatch(entry) and not get_close_matches(entry, KINDS, cutoff=0.8):
                hosts.append(entry)
            else:
                raise ValueError(
                    f"'{entry}' is not {', '.join(KINDS)}, a network such as 10.0.0.0/8, or a "
                    "host without scheme, port and final dot, such as hooks.lan or *.lan"
                )
        return cls(frozenset(kinds), tuple(networks), tuple(hosts))

    def refusal(self, host: str, address: Address) -> str | None:
        """Why a webhook to `host` at `address` is not allowed; None if it is allowed."""
        literal, name = literal_address(host), host.lower().removesuffix(".")
        # A pattern allows a host name, whatever its addresses are. An address whose kind is not in
        # KINDS is allowed only if one of the networks contains it.
        if literal is None and any(fnmatchcase(name, pattern) for pattern in self.hosts):
            return None
        kind = kind_of(address)
        if kind in self.kinds or any(address in network for network in self.networks):
            return None
        what = f"{'an' if kind == 'external' else 'a'} {kind} address"
        if literal is None:
            sentence = f"{host} resolves to {address}, {what}"
        elif host == str(address):
            sentence = f"{host} is {what}"
        else:
            sentence = f"{host} is {address}, {what}"
        return f"{sentence}; add it to {SETTING}"


def _network(entry: str) -> Network | None:
    """Parse a network; an IPv4-mapped network becomes an IPv4 network. Returns None if `entry` is
    not a network.
    """
    if "%" in entry:  # Python accepts a scope, but ignores it
        return None
    try:
        network = ip_network(entry)
    except ValueError:
        return None
    if isinstance(network, IPv6Network) and network.subnet_of(_MAPPED):
        mapped = network.network_address.ipv4_mapped
        return ip_network(f"{mapped}/{network.prefixlen - _MAPPED.prefixlen}")
    return network


def check_url(url: str, allowed: Destinations) -> Target:
    """The target of `url`, if webhooks are allowed there; raises RefusedError."""
    # The transport checks the addresses of a host name at each attempt.
    target = read_url(url)
    if target.literal and (reason := allowed.refusal(target.host, target.literal)):
        raise RefusedError(reason)
    return target


def read_url(url: str) -> Target:
    """Split a URL in the same way as `requests`; raises RefusedError for an invalid URL."""
    # Imported here, since only tasks with a callback need urllib3, while the settings always need
    # this module.
    from urllib3.exceptions import LocationParseError
    from urllib3.util import parse_url

    if not url.isprintable() or " " in url or "\\" in url:
        raise RefusedError("The URL contains spaces, backslashes or invisible characters.")
    if len(url.encode()) > URL_BYTES:
        raise RefusedError(f"The URL is longer than {URL_BYTES:,} bytes.")
    if not (authority := _AUTHORITY.match(url)):
        raise RefusedError("The URL does not start with http:// or https://.")
    if "@" in authority[1]:
        raise RefusedError("The URL contains a user name or password.")
    if "#" in url:
        raise RefusedError("The URL contains a fragment (#).")
    try:
        scheme, _, host, port, *_ = parse_url(url)
    except LocationParseError as error:
        raise RefusedError("The URL's host or port is invalid.") from error
    if port == 0:
        raise RefusedError("The URL's port is not between 1 and 65535.")
    scheme, host = scheme or "", host or ""
    bare = host.strip("[]").lower()
    if not host.startswith("[") and not _NAME.fullmatch(bare):
        raise RefusedError("The URL's host is invalid.")
    try:
        return Target(scheme, bare, port or _PORTS[scheme], literal_address(bare))
    except ValueError as error:
        raise RefusedError("The URL's host is not a valid address.") from error


# Email addresses, and the URL of the mail server.

_MAIL_PORTS = {"smtp": 587, "smtps": 465}
_MAIL_URL = re.compile(r"(smtps?)://(?:([^:/?#@]+):([^/?#@]+)@)?([^/?#@]+)/?", re.IGNORECASE)
_WORD = r"[A-Za-z0-9!#$%&'*+=?^_`{|}~-]+"
_DOMAIN_LABEL = r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_MAIL_ADDRESS = re.compile(
    rf"(?=.{{1,254}}\Z)(?=[^@]{{1,64}}@){_WORD}(\.{_WORD})*@{_DOMAIN_LABEL}(\.{_DOMAIN_LABEL})*"
)


@dataclass(frozen=True)
class MailServer:
    """A mail server, from a URL that begins with `smtp://` or `smtps://`."""

    at: Target
    user: str = ""
    password: str = field(default="", repr=False)

    @classmethod
    def parse(cls, text: str) -> "MailServer":
        """Parse a URL. Raises ValueError, whose text contains no part of the URL, since the URL can
        contain a password.
        """
        if parts := _MAIL_URL.fullmatch(text):
            scheme, user, password, host = (part or "" for part in parts.groups())
            port = "" if re.search(r":[0-9]+\Z", host) else f":{_MAIL_PORTS[scheme.lower()]}"
            login = unquote(user), unquote(password)
            if all(part.isascii() and part.isprintable() for part in login):
                try:
                    at = read_url(f"http://{host}{port}")
                    return cls(at._replace(scheme=scheme.lower()), *login)
                except RefusedError:
                    pass
        raise ValueError(
            "must be smtp://user:password@host:587 or smtps://..., in ASCII, with %40 for an @ "
            "and %2F for a / in the password"
        )


# A name and an address as in RFC 5322, except that a name with a dot needs no quotes.
_NAME_AND_ADDRESS = re.compile(r'(?:([^()<>\[\]:;@,"\\]*)|"([^"\\]*)" ?)<([^<>]*)>')


def check_sender(text: str) -> str:
    """Return the text if it is a valid sender of an email; raises ValueError otherwise."""
    name, address = sender_parts(text)
    # An encoded word (`=?`) can hide a line break.
    if not name.isprintable() or "=?" in name or not _MAIL_ADDRESS.fullmatch(address):
        raise ValueError("must be tasks@example.org, or with a name: Tasks <tasks@example.org>")
    return text


def sender_parts(text: str) -> tuple[str, str]:
    """The name, which may be empty, and the address of the sender of an email."""
    if parts := _NAME_AND_ADDRESS.fullmatch(text):
        return (parts[1] or parts[2] or "").strip(), parts[3]
    return "", text


def mail_address(target: str) -> str:
    """The address of `mailto:ADDRESS`; raises ValueError with the reason."""
    scheme, _, text = target.partition(":")
    address = unquote(text)
    if scheme.lower() != "mailto" or {"?", "#"} & set(text) or not _MAIL_ADDRESS.fullmatch(address):
        raise ValueError(
            "The target must be mailto: followed by one ASCII email address, without parameters."
        )
    return address
