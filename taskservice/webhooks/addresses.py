"""Classifies IP addresses, and reads the address that the host of a URL spells."""

import re
import socket
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)

# Python's own tables differ between versions and miss some networks. Sources: the
# special-purpose registries of IANA for IPv4 and IPv6
# (https://www.iana.org/assignments/iana-ipv4-special-registry and -ipv6-), and the
# documentation of the clouds for their metadata addresses.

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network


def _networks(*texts: str) -> tuple[Network, ...]:
    return tuple(ip_network(text) for text in texts)


# The first kind that matches counts, so small and dangerous networks come first.
_KINDS: tuple[tuple[str, tuple[Network, ...]], ...] = (
    (
        "metadata",
        _networks(
            "100.100.100.200",  # Alibaba Cloud
            "168.63.129.16",  # Azure
            "169.254.169.254",  # used by most clouds
            "192.0.0.192",  # Oracle Cloud
            "fd00:ec2::/32",  # AWS
            "fd00:c1::a9fe:a9fe",  # Oracle Cloud
            "fd00:42::42",  # Scaleway
            "fd20:ce::254",  # Google Cloud
        ),
    ),
    ("loopback", _networks("127.0.0.0/8", "::1")),
    # 100.64.0.0/10 is shared by the customers of a provider; Tailscale lives there too.
    (
        "private",
        _networks("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "fc00::/7"),
    ),
    ("link-local", _networks("169.254.0.0/16", "fe80::/10")),
    ("multicast", _networks("224.0.0.0/4", "ff00::/8")),
    (
        "documentation",
        _networks(
            "192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24", "2001:db8::/32", "3fff::/20"
        ),
    ),
    ("benchmarking", _networks("198.18.0.0/15", "2001:2::/48")),
    # These contain an IPv4 address that some gateway translates; where that leads is unknown.
    ("NAT64", _networks("64:ff9b::/96", "64:ff9b:1::/48")),
    ("6to4", _networks("2002::/16", "192.88.99.0/24")),
    ("Teredo", _networks("2001::/32")),
    (
        "reserved",
        _networks(
            "0.0.0.0/8",  # this host: Linux connects 0.0.0.0 to loopback
            "192.0.0.0/24",  # protocol assignments
            "192.31.196.0/24",  # AS112, a sink for stray queries, as 192.175.48.0/24
            "192.52.193.0/24",  # automatic multicast tunneling
            "192.175.48.0/24",
            "240.0.0.0/4",  # future use, and the broadcast address
            "2001::/23",  # protocol assignments
            "2620:4f:8000::/48",  # AS112
        ),
    ),
    # Of IPv6 only 2000::/3 is allocated: all else, such as ::, the IPv4-compatible
    # ::a.b.c.d and the old site-local fec0::/10, is reserved.
    ("external", _networks("0.0.0.0/0", "2000::/3")),
    ("reserved", _networks("::/0")),
)


def kind_of(address: Address) -> str:
    """`external` (any machine on the internet), `private`, `loopback`, or another kind."""
    return next(
        kind for kind, networks in _KINDS if any(address in network for network in networks)
    )


def read_address(text: str) -> Address:
    """The address that `text` spells canonically; an IPv4-mapped one is the IPv4 address.

    The operating system connects `::ffff:127.0.0.1` to 127.0.0.1. Raises ValueError.
    """
    address = ip_address(text)
    return getattr(address, "ipv4_mapped", None) or address


_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*", re.IGNORECASE)


def literal_address(host: str) -> Address | None:
    """The address that a URL's host, without brackets, spells; None if it is a name.

    Accepts every spelling that getaddrinfo accepts: `2130706433`, `0177.0.0.1`, `0x7f.1` and
    `127.1` are 127.0.0.1. As in browsers, a host that ends in a number is an address. Raises
    ValueError if it is not a valid one, and for an IPv6 address with a scope.
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
