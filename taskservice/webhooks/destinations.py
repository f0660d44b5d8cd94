"""Where a webhook may go: which URLs are taken, and which addresses are connected to."""

import re
from dataclasses import dataclass
from fnmatch import fnmatchcase
from ipaddress import IPv6Network, ip_network
from typing import NamedTuple

from urllib3.exceptions import LocationParseError
from urllib3.util import parse_url

from taskservice.webhooks.addresses import Address, Network, kind_of, literal_address

SETTING = "TASKSERVICE_CALLBACK_ALLOWED"
KINDS = ("external", "private", "loopback")
URL_BYTES = 2_000

_PORTS = {"http": 80, "https": 443}
_AUTHORITY = re.compile(r"https?://([^/?#]*)", re.IGNORECASE)
_LABEL = r"[a-z0-9_-]{1,63}"
_NAME = re.compile(rf"(?=.{{1,254}}$){_LABEL}(\.{_LABEL})*\.?", re.IGNORECASE)
# The last label has a letter: `*`, `hooks.*` and `10.0.0.*` would say more than is meant.
_PATTERN = re.compile(r"([a-z0-9_*-]+\.)*[0-9_*-]*[a-z][a-z0-9_*-]*")
_MAPPED = IPv6Network("::ffff:0:0/96")


class RefusedError(ValueError):
    """A webhook may not go there; as text one plain sentence that says why."""


class Target(NamedTuple):
    """What a checked URL points to."""

    scheme: str
    host: str  # as in the URL, lower case, IDNA encoded, without brackets
    port: int
    literal: Address | None  # the address, if `host` is one in any spelling


@dataclass(frozen=True)
class Destinations:
    """The places that webhooks may go to."""

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

    def judge(self, host: str, address: Address) -> str | None:
        """None if `host`, which is or resolved to `address`, may be sent to; else why not.

        An address is let through by the word for its kind or by a network that holds it;
        what is neither external, private nor loopback, by a network alone. A name is let
        through by a host pattern too, whatever its address.
        """
        literal = literal_address(host)
        if literal is None and self._names(host):
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

    def _names(self, host: str) -> bool:
        name = host.lower().removesuffix(".")
        return any(fnmatchcase(name, pattern) for pattern in self.hosts)


def _network(entry: str) -> Network | None:
    """The network that an entry spells, IPv4-mapped ones as IPv4, since that is judged."""
    if "%" in entry:  # a scope would be read, and then forgotten
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
    """What `url` points to, if a webhook may be sent there; raises RefusedError.

    A host that is an address is judged at once, in every spelling; a name only when it
    is resolved, by the transport, each time anew.
    """
    target = _read_url(url)
    if target.literal and (reason := allowed.judge(target.host, target.literal)):
        raise RefusedError(reason)
    return target


def _read_url(url: str) -> Target:
    """Split a URL by the parser that requests uses; what could be read two ways is refused."""
    if not url.isprintable() or " " in url or "\\" in url:
        raise RefusedError("The URL holds spaces, backslashes or characters that can't be seen.")
    if len(url.encode()) > URL_BYTES:
        raise RefusedError(f"The URL is longer than {URL_BYTES:,} bytes.")
    if not (authority := _AUTHORITY.match(url)):
        raise RefusedError("The URL does not begin with http:// or https://.")
    if "@" in authority[1]:
        raise RefusedError("The URL holds a user name or password.")
    if "#" in url:
        raise RefusedError("The URL holds a fragment (#).")
    try:
        scheme, _, host, port, *_ = parse_url(url)
    except LocationParseError as error:
        raise RefusedError("The URL holds no valid host and port.") from error
    if port == 0:
        raise RefusedError("The URL's port is not from 1 to 65535.")
    return _target(scheme or "", host or "", port)


def _target(scheme: str, host: str, port: int | None) -> Target:
    bare = host.strip("[]").lower()
    if host.startswith("[") or _NAME.fullmatch(bare):
        try:
            return Target(scheme, bare, port or _PORTS[scheme], literal_address(bare))
        except ValueError as error:
            raise RefusedError("The URL's host is no valid address.") from error
    raise RefusedError("The URL holds no valid host.")
