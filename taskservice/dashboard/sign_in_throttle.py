"""Slows down attempts with wrong keys, per address and in bounded memory."""

import ipaddress
import time
from collections import OrderedDict
from threading import Lock

FREE_ATTEMPTS = 3
MAX_WAIT_SECONDS = 60.0
# After this time without a wrong key the count of an address starts again.
RESET_SECONDS = 3_600.0
# The oldest are dropped: a throttle per address is useless against this many addresses.
MAX_ADDRESSES = 10_000


class Throttle:
    """After FREE_ATTEMPTS wrong keys from one address, each further one doubles the wait."""

    def __init__(self) -> None:
        self._lock = Lock()
        # Network -> number of wrong keys, and the earliest time (monotonic) of the next attempt.
        self._wrong: OrderedDict[str, tuple[int, float]] = OrderedDict()

    def seconds_too_early(self, address: str) -> float:
        """How many seconds too early this wrong key came; 0 if it was in time, and is counted."""
        network, now = _network(address), time.monotonic()
        with self._lock:
            count, until = self._wrong.get(network, (0, now))
            if until > now:
                return until - now
            if now - until > RESET_SECONDS:
                count = 0
            self._wrong[network] = count + 1, now + _wait(count + 1)
            self._wrong.move_to_end(network)
            while len(self._wrong) > MAX_ADDRESSES:
                self._wrong.popitem(last=False)
        return 0.0


def _wait(count: int) -> float:
    """The seconds until the next attempt after `count` wrong keys."""
    # The exponent is bounded too, or the power would overflow a float.
    return (
        0.0
        if count < FREE_ATTEMPTS
        else min(MAX_WAIT_SECONDS, 2.0 ** min(count - FREE_ATTEMPTS, 10))
    )


def _network(address: str) -> str:
    """The network of one household or machine: an IPv4 address, or an IPv6 /64."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return address
    return str(ip) if ip.version == 4 else str(ipaddress.ip_network((int(ip), 64), strict=False))
