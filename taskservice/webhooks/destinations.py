"""Where a webhook may go: which URLs are valid, and which addresses are allowed."""

import re
from dataclasses import dataclass
from fnmatch import fnmatchcase
from ipaddress import IPv6Network, ip_network
from typing import NamedTuple

from taskservice.webhooks.addresses import Address, Network, kind_of, literal_address

SETTING = "TASKSERVICE_CALLBACK_ALLOWED"
KINDS = ("external", "private", "loopback")
URL_BYTES = 2_000

_PORTS = {"http": 80, "https": 443}
_AUTHORITY = re.compile(r"https?://([^/?#]*)", re.IGNORECASE)
_LABEL = r"[a-z0-9_-]{1,63}"
_NAME = re.compile(rf"(?=.{{1,254}}$){_LABEL}(\.{_LABEL})*\.?", re.IGNORECASE)
# The last label has a letter: `*`, `hooks.*` and `10.0.0.*` would allow more than is meant.
_PATTERN = re.compile(r"([a-z0-9_*-]+\.)*[0-9_*-]*[a-z][a-z0-9_*-]*")
_MAPPED = IPv6Network("::ffff:0:0/96")


class RefusedError(ValueError):
    """The destination is not allowed; the text is one sentence with the reason."""


class Target(NamedTuple):
    """Where a checked URL points."""

    scheme: str
    host: str  # as in the URL, lower case, IDNA encoded, without brackets
    port: int
    literal: Address | None  # the address, if `host` is one in any spelling


@dataclass(frozen=True)
class Destinations:
    """The allowed destinations of webhooks."""

    kinds: frozenset[str]
    networks: tuple[Network, ...]
    hosts: tuple[str, ...]

    def __str__(self) -> str:
        return ",".join([*sorted(self.kinds), *map(str, self.networks), *self.hosts])

    @classmethod
    def parse(cls, text: str) -> "Destinations":
        """Read `external`, `private`, `loopback`, networks and hosts, separated by commas.

        A network is `10.0.0.0/8`, `fd00::/8` or one address; a host is `hooks.internal`,
        or `*.lan` with `*` for any characters. Raises ValueError with one sentence.
        """
        kinds, networks, hosts = set(), [], []
        for entry in filter(None, (part.strip().lower() for part in text.split(","))):
            if entry in KINDS:
                kinds.add(entry)
            elif network := _network(entry):
                networks.append(network)
            elif _PATTERN.fullmatch(entry):
                hosts.append(entry)
            else:
                raise ValueError(
                    f"'{entry}' is neither {', '.join(KINDS)}, nor a network such as "
                    "10.0.0.0/8, nor a host such as *.lan."
                )
        return cls(frozenset(kinds), tuple(networks), tuple(hosts))

    def refusal(self, host: str, address: Address) -> str | None:
        """Why no webhook may go to `host` at `address`; None if it is allowed.

        An address is allowed by the word for its kind, or by a network that contains it; other
        kinds than external, private and loopback need a network. A host pattern allows a name
        whatever its address.
        """
        literal = literal_address(host)
        if literal is None and self._matches(host):
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

    def _matches(self, host: str) -> bool:
        name = host.lower().removesuffix(".")
        return any(fnmatchcase(name, pattern) for pattern in self.hosts)


def _network(entry: str) -> Network | None:
    """The network that an entry spells; an IPv4-mapped one as IPv4, as addresses are read."""
    if "%" in entry:  # Python would accept a scope and ignore it
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
    """Where `url` points, if a webhook may go there; raises RefusedError.

    A host that is an address, in any spelling, is checked here. The transport checks a name at
    each attempt, when it is resolved.
    """
    target = read_url(url)
    if target.literal and (reason := allowed.refusal(target.host, target.literal)):
        raise RefusedError(reason)
    return target


def read_url(url: str) -> Target:
    """Split a URL with the parser of requests; refuse what others could read differently.

    Raises RefusedError.
    """
    # The settings need this module, but only tasks with a callback need urllib3.
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
        raise RefusedError("The URL has no valid host and port.") from error
    if port == 0:
        raise RefusedError("The URL's port is not from 1 to 65535.")
    return _target(scheme or "", host or "", port)


def _target(scheme: str, host: str, port: int | None) -> Target:
    bare = host.strip("[]").lower()
    if host.startswith("[") or _NAME.fullmatch(bare):
        try:
            return Target(scheme, bare, port or _PORTS[scheme], literal_address(bare))
        except ValueError as error:
            raise RefusedError("The URL's host is not a valid address.") from error
    raise RefusedError("The URL has no valid host.")
