"""Signing in and out."""

import ipaddress
import time
from collections import OrderedDict
from math import ceil
from threading import Lock

from flask import Blueprint, flash, g, request, session
from werkzeug.wrappers import Response as AnyResponse

from taskservice import resources
from taskservice.auth import valid_key
from taskservice.dashboard import sessions
from taskservice.dashboard.pages import page, redirect_to, redirect_to_page
from taskservice.database import clock
from taskservice.errors import Problem

# Slows down attempts with wrong keys, per address and in bounded memory.

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
    if count < FREE_ATTEMPTS:
        return 0.0
    # The exponent is bounded too, or the power would overflow a float.
    return min(MAX_WAIT_SECONDS, 2.0 ** min(count - FREE_ATTEMPTS, 10))


def _network(address: str) -> str:
    """The network of one household or machine: an IPv4 address, or an IPv6 /64."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return address
    return str(ip) if ip.version == 4 else str(ipaddress.ip_network((int(ip), 64), strict=False))


# Signing in and out.

blueprint = Blueprint("sign_in", __name__)


@blueprint.get("/sign-in")
def show() -> AnyResponse:
    if "signed_in" in g:
        return redirect_to_page(request.args.get("next", ""), "tasks.list_all")
    return page("sign_in.html", next=request.args.get("next", ""))


@blueprint.post("/sign-in")
def enter() -> AnyResponse:
    try:
        sessions.check_form()
        key = valid_key(request.form.get("key", "").strip(), clock.now())
    except Problem as problem:
        return _refused(problem)
    sessions.begin(key)
    return redirect_to_page(request.form.get("next", ""), "tasks.list_all")


@blueprint.post("/sign-out")
def leave() -> AnyResponse:
    session.clear()
    flash("You are signed out.")
    return redirect_to("sign_in.show")


def _refused(problem: Problem) -> AnyResponse:
    if problem.status == 401:
        # The throttle never delays a valid key.
        wait = ceil(resources.find(Throttle).seconds_too_early(request.remote_addr or ""))
        if wait:
            detail = f"Too many wrong keys; try again in {wait} s"
            problem = Problem(429, detail, headers={"Retry-After": str(wait)})
    elif "signed_in" in g:
        # The visitor has signed in in another window: this form is no longer needed.
        return redirect_to("tasks.list_all")
    response = page(
        "sign_in.html", problem.status, next=request.form.get("next", ""), problem=problem
    )
    response.headers.update(problem.headers)
    return response
