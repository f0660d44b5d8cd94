"""Slows down whoever tries wrong keys, by address and in bounded memory."""

import ipaddress
import time
from collections import OrderedDict
from threading import Lock

FREE_TRIES = 3
LONGEST_SECONDS = 60.0
# An address that was quiet for so long starts anew.
FORGOTTEN_SECONDS = 3_600.0
# Whoever has as many addresses as this can as well wait.
ADDRESSES = 10_000


class Throttle:
    """After some wrong keys from one address, each further one doubles the wait for the next."""

    def __init__(self) -> None:
        self._lock = Lock()
        # Address -> how many were wrong, and the moment from which on the next may come.
        self._wrong: OrderedDict[str, tuple[int, float]] = OrderedDict()

    def was_wrong(self, address: str) -> float:
        """How many seconds too early this wrong key came; 0 when it came in time, and counts."""
        network, now = _network(address), time.monotonic()
        with self._lock:
            count, until = self._wrong.get(network, (0, now))
            if until > now:
                return until - now
            if now - until > FORGOTTEN_SECONDS:
                count = 0
            self._wrong[network] = count + 1, now + _wait(count + 1)
            self._wrong.move_to_end(network)
            while len(self._wrong) > ADDRESSES:
                self._wrong.popitem(last=False)
        return 0.0


def _wait(wrong: int) -> float:
    """The seconds until the next try after so many wrong keys."""
    # The exponent is bounded too: nobody may make a number of it that is no float.
    return 0.0 if wrong < FREE_TRIES else min(LONGEST_SECONDS, 2.0 ** min(wrong - FREE_TRIES, 10))


def _network(address: str) -> str:
    """What one household or machine has: an address, or a /64 of IPv6."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return address
    return str(ip) if ip.version == 4 else str(ipaddress.ip_network((int(ip), 64), strict=False))
