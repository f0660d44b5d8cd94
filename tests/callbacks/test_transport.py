"""One attempt, with every fault of the receiver and the network."""

import gzip
import logging
import select
import socket
import ssl
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from taskservice import bounded_http
from taskservice.bounded_http import Deadline
from taskservice.webhooks import transport
from taskservice.webhooks.destinations import Destinations, check_url
from taskservice.webhooks.interrupt import Interrupt, Interrupted
from taskservice.webhooks.outcome import Outcome
from taskservice.webhooks.transport import (
    Connection,
    Resolver,
    post_once,
    system_addresses,
)
from tests.support.certificates import Authority
from tests.support.receiver import (
    Behaviour,
    Exchange,
    Received,
    Receiver,
    answer,
    drip,
    endless,
    held_until_closed,
    raw,
    reset,
    silence,
    sip,
    unused_port,
)
from tests.support.waiting import until

LOOPBACK = Destinations.parse("loopback")
EXTERNAL = Destinations.parse("external")
HEADERS = {"Content-Type": "application/json", "webhook-id": "0193"}
BODY = b'{"status": "complete"}'
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
SOON = 0.4  # a deadline that is meant to pass
OVERDUE_MS = 10_000  # less than any receiver here takes that keeps to no deadline
LATE = 30.0  # one that is not, and a bound for what should be quick


def deliver(
    url: str,
    allowed: Destinations = LOOPBACK,
    deadline: float = LATE,
    body: bytes = BODY,
    resolve: Resolver = system_addresses,
    interrupt: Interrupt | None = None,
) -> Outcome:
    return post_once(
        url, HEADERS, body,
        allowed=allowed, seconds=deadline, resolve=resolve, interrupt=interrupt,
    )  # fmt: skip


def finding(*addresses: str) -> Resolver:
    """A resolver that finds these addresses for every name."""
    return lambda host: list(addresses)


connects: list[str] = []
watching = False


def watch(event: str, arguments: tuple[Any, ...]) -> None:
    """Notes what is connected to, and stops what would leave this machine, DNS included."""
    if not watching:
        return
    if event == "socket.getaddrinfo" and arguments[0] != "localhost":
        ip_address(arguments[0])  # ValueError: a name, which the system would ask about
    if event == "socket.connect" and isinstance(arguments[1], tuple):
        connects.append(arguments[1][0])
        if not ip_address(arguments[1][0].partition("%")[0]).is_loopback:
            raise AssertionError(f"a test was about to connect to {arguments[1]}")


sys.addaudithook(watch)


@pytest.fixture(autouse=True)
def connected() -> Iterator[list[str]]:
    """The addresses connected to in a test; those beyond this machine are never reached."""
    global watching
    connects.clear()
    watching = True
    yield connects
    watching = False


# What goes out.


def test_webhook_arrives_as_it_was_given(receiver: Receiver) -> None:
    outcome = deliver(receiver.url + "hook/ü?a=1&b=ü")

    (request,) = receiver.wait_for(1)
    assert (request.method, request.path) == ("POST", "/hook/%C3%BC?a=1&b=%C3%BC")
    assert request.body == BODY
    assert request.headers == {
        "host": f"127.0.0.1:{receiver.port}",
        "user-agent": "taskservice",
        "accept": "*/*",
        "accept-encoding": "identity",
        "connection": "close",
        "content-type": "application/json",
        "content-length": str(len(BODY)),
        "webhook-id": "0193",
    }
    assert outcome.delivered
    assert not outcome.permanent
    assert outcome.status_code == 204
    assert outcome.message == "The receiver responded with 204 No Content."
    assert 0 <= outcome.duration_ms < 5000


@pytest.mark.parametrize("path", ["", "?a", "a/../b", "/a", "%2e%2e", "?a=%zz"])
def test_unusual_paths_arrive(receiver: Receiver, path: str) -> None:
    assert deliver(receiver.url + path).delivered
    assert receiver.wait_for(1)


def test_host_header_is_the_name_with_its_port(receiver: Receiver) -> None:
    deliver(f"http://Hooks.Example.:{receiver.port}/", resolve=finding("127.0.0.1"))

    assert receiver.wait_for(1)[0].headers["host"] == f"hooks.example:{receiver.port}"


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("http://hooks.example/", b"hooks.example"),
        ("http://hooks.example:443/", b"hooks.example:443"),
        ("https://hooks.example/", b"hooks.example"),
        ("https://hooks.example:80/", b"hooks.example:80"),
    ],
)
def test_host_header_leaves_out_the_usual_port(url: str, host: bytes) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        target = check_url(url, EXTERNAL)
        channel = Connection(target, EXTERNAL, Deadline(LATE), finding(), Interrupt())
        channel.sock = ours
        channel.request("POST", "/")

        assert b"\r\nHost: " + host + b"\r\n" in theirs.recv(4096)


def test_a_large_body_arrives_whole(receiver: Receiver) -> None:
    body = bytes(range(256)) * 16 * 1024

    assert deliver(receiver.url, body=body).delivered
    assert receiver.wait_for(1)[0].body == body


def test_ipv6_receiver_is_reached() -> None:
    with Receiver(host="::1") as receiver:
        assert deliver(receiver.url).delivered
        assert receiver.wait_for(1)[0].headers["host"] == f"[::1]:{receiver.port}"


def test_proxies_and_netrc_of_the_environment_are_ignored(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    netrc = tmp_path / ".netrc"
    netrc.write_text("default login alice password secret\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    monkeypatch.setenv("HOME", str(tmp_path))
    with Receiver() as proxy:
        for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url)
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)

        assert deliver(receiver.url).delivered

        assert proxy.connections == 0
    assert "authorization" not in receiver.wait_for(1)[0].headers


def test_cookies_and_connections_are_not_kept(receiver: Receiver) -> None:
    receiver.answer = answer(200, {"Set-Cookie": "session=1"})

    deliver(receiver.url)
    deliver(receiver.url)

    assert "cookie" not in receiver.wait_for(2)[1].headers
    assert receiver.connections == 2


# What the receiver answers.


@pytest.mark.parametrize(
    ("status", "delivered", "permanent", "message"),
    [
        (200, True, False, "200 OK"),
        (204, True, False, "204 No Content"),
        (299, True, False, "299"),
        (300, False, False, "300 Multiple Choices; redirects are not followed"),
        (304, False, False, "304 Not Modified; redirects are not followed"),
        (400, False, False, "400 Bad Request"),
        (404, False, False, "404 Not Found"),
        (410, False, True, "410 Gone"),
        (429, False, False, "429 Too Many Requests"),
        (500, False, False, "500 Internal Server Error"),
        (503, False, False, "503 Service Unavailable"),
        (999, False, False, "999"),
    ],
)
def test_only_2xx_is_success_and_only_410_is_final(
    receiver: Receiver, status: int, delivered: bool, permanent: bool, message: str
) -> None:
    receiver.answer = answer(status)

    outcome = deliver(receiver.url)

    assert outcome[:5] == (
        f"The receiver responded with {message}.",
        delivered,
        permanent,
        status,
        None,
    )


@pytest.mark.parametrize(
    ("status", "location"),
    [
        (301, "http://127.0.0.1:9/"),
        (302, "http://169.254.169.254/"),
        (303, "http://["),
        (307, "\xff\xfe"),
        (308, "//"),
    ],
)
def test_redirect_is_a_failure_and_is_not_followed(
    receiver: Receiver, status: int, location: str, connected: list[str]
) -> None:
    receiver.answer = answer(status, {"Location": location})

    outcome = deliver(receiver.url)

    assert outcome[1:4] == (False, False, status)
    assert outcome.message.endswith("; redirects are not followed.")
    assert connected == ["127.0.0.1"]


def http_date(seconds: float) -> str:
    return format_datetime(datetime.now(UTC) + timedelta(seconds=seconds), usegmt=True)


@pytest.mark.parametrize("status", [429, 503, 500, 301])
@pytest.mark.parametrize(
    ("value", "low", "high"),
    [
        ("120", 120, 120),
        (" 7 ", 7, 7),
        ("{in an hour}", 3500, 3600),
        ("86400", 86_400, 86_400),
        ("86401", 86_400, 86_400),
        ("9" * 5000, 86_400, 86_400),
        ("{in ten days}", 86_400, 86_400),
        ("Fri, 31 Dec 9999 23:59:59 GMT", 86_400, 86_400),
        ("Fri, 31 Dec 2100 23:59:59 -0000", 86_400, 86_400),
    ],
)
def test_retry_after_is_seconds_or_a_date_and_a_day_at_most(
    receiver: Receiver, status: int, value: str, low: int, high: int
) -> None:
    # Made here: a date in the name of a test would differ between the test processes.
    dates = {"in an hour": http_date(3_600), "in ten days": http_date(864_000)}
    receiver.answer = answer(status, {"Retry-After": value.format_map(dates)})

    retry_after = deliver(receiver.url).retry_after
    assert retry_after is not None
    assert low <= retry_after <= high


@pytest.mark.parametrize(
    "value",
    [
        "", "0", "-1", "+5", "1.5", "1e3", "inf", "nan", "soon", "1_000", "0x10", "²", "5 seconds",
        "Thu, 01 Jan 1970 00:00:00 GMT", "Fri, 31 Dec 99999 23:59:59 GMT",
        "Fri, 31 Dec 99999999999999999999 23:59:59 GMT", "Wed, 99 Foo 2030",
        "Wed, 21 Oct 2099 07:28:00 +9999", "120, 240", "\xff", ",,,", "00:00", "Mon, 1",
    ],
)  # fmt: skip
def test_unusable_retry_after_is_ignored(receiver: Receiver, value: str) -> None:
    receiver.answer = answer(503, {"Retry-After": value})

    outcome = deliver(receiver.url)

    assert outcome.status_code == 503
    assert outcome.retry_after is None


def test_interim_answers_are_passed_over(receiver: Receiver) -> None:
    hints = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
    receiver.answer = raw(b"HTTP/1.1 100 Continue\r\n\r\n" + hints + hints + OK)

    assert deliver(receiver.url).status_code == 200


def test_answer_before_the_body_is_read_counts(receiver: Receiver) -> None:
    receiver.reads_body = False
    receiver.answer = answer(413)

    assert deliver(receiver.url, body=b"x" * 10_000_000).status_code == 413


@pytest.mark.parametrize(
    "body",
    [
        b"Content-Length: 100\r\n\r\nshort",
        b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n-5\r\nabc\r\n",
        b"\r\nrest",
        b"Content-Length: 1, 2\r\n\r\n",
        b"Content-Encoding: gzip\r\n\r\nnone",
        b"no colon\r\n\r\n",
    ],
)
def test_body_does_not_matter_once_the_head_has_come(receiver: Receiver, body: bytes) -> None:
    receiver.answer = raw(b"HTTP/1.1 200 OK\r\n" + body)

    assert deliver(receiver.url).delivered


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1",
        b"HTTP/1.1 200 OK",
        b"HTTP/1.1 200 OK\r\nContent-Le",
        b"HTTP/1.1 200 OK\r\n",
        b"",
        b"HTTP/1.1 200 OK\r\nA: b\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n",
    ],
)
@pytest.mark.parametrize("ending", [raw, reset])
def test_answer_that_ends_in_its_head_is_not_one(
    receiver: Receiver, data: bytes, ending: Callable[[bytes], Behaviour]
) -> None:
    receiver.answer = ending(data)

    outcome = deliver(receiver.url)

    assert not outcome.delivered
    assert not outcome.permanent
    assert outcome.status_code is None
    assert outcome.message == "The receiver closed the connection before it responded."


@pytest.mark.parametrize(
    "data",
    [
        b"SSH-2.0-OpenSSH_9.9\r\n",
        b"\x00" * 100 + b"\n",
        b"HTTP/1.1 abc\r\n\r\n",
        b"200 OK\r\n\r\n",
        b"HTTP/1.1 99 Low\r\n\r\n",
        b"HTTP/2 200\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 101,
        b"\r\n" + OK,
        b"<html>\n",
        b"HTTP/1.1 1000 High\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Type: multipart/x; boundary*=a; boundary*0=b\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Type: multipart/x; boundary*" + b"1" * 5000 + b"=a\r\n\r\n",
    ],
)
def test_answer_that_is_not_http_is_explained(receiver: Receiver, data: bytes) -> None:
    receiver.answer = raw(data + b"\r\n")

    outcome = deliver(receiver.url)

    assert outcome[:4] == ("The receiver's response is not HTTP.", False, False, None)


# How much is read.


def test_endless_body_is_left_soon(receiver: Receiver) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n"
    receiver.answer = endless(b"x" * 65536, first=head)

    with memory_below(megabytes=2):
        outcome = deliver(receiver.url, deadline=120)

    assert outcome.delivered
    assert outcome.duration_ms < LATE * 1000


@pytest.mark.parametrize("status", [200, 301, 500])
def test_gzip_bomb_is_not_unpacked(receiver: Receiver, status: int) -> None:
    bomb = gzip.compress(b"\x00" * 30_000_000)
    fields = {"Content-Encoding": "gzip", "Location": receiver.url}
    receiver.answer = answer(status, fields, bomb)

    with memory_below(megabytes=2):
        assert deliver(receiver.url).status_code == status


@pytest.mark.parametrize(
    ("part", "first"),
    [
        (b"HTTP/1.1 100 Continue\r\nA: b\r\n\r\n", b""),
        (b"HTTP/1.1 103 Early Hints\r\nA: b\r\n\r\n", b""),
        (b"x" * 1000, b""),
        (b"x" * 1000, b"HTTP/1.1 200 OK\r\nA: "),
    ],
    ids=["100", "103", "status line", "header"],
)
def test_endless_head_is_left_soon(receiver: Receiver, part: bytes, first: bytes) -> None:
    receiver.answer = endless(part, first=first)

    outcome = deliver(receiver.url, deadline=120)

    assert outcome[1:4] == (False, False, None)
    assert outcome.duration_ms < LATE * 1000
    if part.startswith(b"HTTP"):
        too_large = "The receiver sent 65,536 bytes without the end of its response."
        assert outcome.message == too_large


@contextmanager
def memory_below(megabytes: float) -> Iterator[None]:
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        yield
        peak = tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()
    assert peak < megabytes * 1_000_000


# How long it takes.


@pytest.fixture(params=["http", "https"])
def tls(request: pytest.FixtureRequest, authority: Authority, trusted: None) -> Any:
    """How a receiver encrypts: not at all, or with a certificate that is trusted."""
    return authority.server("127.0.0.1") if request.param == "https" else None


@pytest.mark.parametrize(
    "behaviour",
    [
        silence,
        drip(OK * 100),
        drip(b"A: b\r\n" * 100, first=b"HTTP/1.1 200 OK\r\n"),
        drip(b"HTTP/1.1 100 Continue\r\n\r\n" * 100),
        drip(b"HTTP/1.1 103 Early Hints\r\n\r\n" * 1000, every=0.005),
    ],
    ids=["silence", "status line", "header", "100", "103"],
)
def test_no_whole_head_by_the_deadline_is_not_an_answer(behaviour: Behaviour, tls: Any) -> None:
    with Receiver(tls=tls, answer=behaviour) as receiver:
        outcome = deliver(receiver.url, deadline=SOON)

    assert outcome[:4] == ("No response within 0.4 s.", False, False, None)
    assert SOON * 1000 <= outcome.duration_ms < OVERDUE_MS


@pytest.mark.parametrize("status", [200, 503])
@pytest.mark.parametrize(
    "framing", [b"Content-Length: 900", b"Transfer-Encoding: chunked", b"A: b"]
)
def test_dripping_body_ends_at_the_deadline_and_the_status_counts(
    receiver: Receiver, status: int, framing: bytes
) -> None:
    head = b"HTTP/1.1 %d Whatever\r\n%b\r\n\r\n" % (status, framing)
    receiver.answer = drip(b"1\r\nx\r\n" * 150, first=head)

    # The head arrives before this deadline.
    outcome = deliver(receiver.url, deadline=2.0)

    assert outcome.status_code == status
    assert outcome.delivered == (status == 200)
    assert outcome.duration_ms < OVERDUE_MS


@pytest.mark.parametrize("behaviour", [silence, sip(every=0.05)], ids=["not", "slowly"])
def test_receiver_that_does_not_take_the_body_is_left_at_the_deadline(
    behaviour: Behaviour, tls: Any
) -> None:
    with Receiver(tls=tls, reads_body=False, answer=behaviour) as receiver:
        outcome = deliver(receiver.url, deadline=SOON, body=b"x" * 30_000_000)

    assert outcome.message == "No response within 0.4 s."
    assert outcome.duration_ms < OVERDUE_MS


def test_stalled_handshake_ends_at_the_deadline() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:  # accepts, and says nothing
        outcome = deliver(f"https://127.0.0.1:{listener.getsockname()[1]}/", deadline=SOON)

    assert outcome.message == "No response within 0.4 s."
    assert outcome.duration_ms < OVERDUE_MS


def test_dripping_handshake_ends_at_the_deadline() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def drip_a_record() -> None:
            peer, _ = listener.accept()
            with peer:
                for byte in b"\x16\x03\x03\x40\x00" + b"\x02" * 100:
                    time.sleep(0.2)
                    try:
                        peer.sendall(bytes([byte]))
                    except OSError:
                        return

        thread = threading.Thread(target=drip_a_record)
        thread.start()
        outcome = deliver(f"https://127.0.0.1:{listener.getsockname()[1]}/", deadline=SOON)
        thread.join()

    assert not outcome.delivered
    assert outcome.duration_ms < OVERDUE_MS


@contextmanager
def deaf(port: int = 0) -> Iterator[tuple[str, int]]:
    """An address and port of this machine where a connection is never completed."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.2", port))
        listener.listen(0)
        fillers = [socket.socket() for _ in range(3)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        # The first one takes the only slot.
        assert select.select([], fillers, [], LATE)[1]
        connects.clear()
        try:
            yield listener.getsockname()
        finally:
            for filler in fillers:
                filler.close()


needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="127.0.0.2 is Linux's")


@needs_linux
def test_connection_that_is_never_completed_ends_at_the_deadline() -> None:
    with deaf() as (host, port):
        outcome = deliver(f"http://{host}:{port}/", deadline=SOON)

    assert outcome.message == "127.0.0.2 did not accept a connection within 0.4 s."
    assert not outcome.permanent
    assert outcome.duration_ms < OVERDUE_MS


# Where it goes.


def test_refused_connection_is_tried_again_later() -> None:
    port = unused_port()

    outcome = deliver(f"http://127.0.0.1:{port}/")

    assert outcome[:4] == (f"127.0.0.1 refused a connection to port {port}.", False, False, None)


LOOPBACK_SPELLINGS = [
    "127.0.0.1", "127.0.0.1.", "2130706433", "017700000001", "0x7f000001", "0177.0.0.1", "0x7f.1",
    "127.1", "%31%32%37.0.0.1", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]",
]  # fmt: skip


@pytest.mark.parametrize("host", LOOPBACK_SPELLINGS)
def test_loopback_in_any_spelling_is_refused_before_a_byte_is_sent_or_allowed(
    receiver: Receiver, host: str, connected: list[str]
) -> None:
    url = f"http://{host}:{receiver.port}/"

    outcome = deliver(url, allowed=Destinations.parse("external,private"))

    assert outcome[1:4] == (False, True, None)
    assert outcome.message.endswith("a loopback address; add it to TASKSERVICE_CALLBACK_ALLOWED")
    assert (connected, receiver.connections) == ([], 0)
    for allowed in ("loopback", "127.0.0.0/8", "127.0.0.1"):
        assert deliver(url, allowed=Destinations.parse(allowed)).delivered


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:{}\\@example.com/",
        "http://example.com@127.0.0.1:{}/",
        "http://[::1%25lo]:{}/",
        "http://１２７.0.0.1:{}/",
    ],
)
def test_url_that_could_be_read_two_ways_is_refused_before_a_byte_is_sent(
    receiver: Receiver, url: str, connected: list[str]
) -> None:
    outcome = deliver(url.format(receiver.port), resolve=finding("127.0.0.1"))

    assert (outcome.delivered, outcome.permanent) == (False, True)
    assert connected == []
    assert receiver.connections == 0


@pytest.mark.parametrize(
    ("address", "kind"),
    [
        ("::1", "loopback"),
        ("::ffff:127.0.0.1", "loopback"),
        ("10.0.0.5", "private"),
        ("169.254.169.254", "metadata"),
        ("fe80::1%lo", "link-local"),
        ("0.0.0.0", "reserved"),
        ("64:ff9b::7f00:1", "NAT64"),
    ],
)
def test_name_of_a_special_address_is_refused_before_a_byte_is_sent(
    address: str, kind: str, connected: list[str]
) -> None:
    outcome = deliver("http://hooks.lan/", allowed=EXTERNAL, resolve=finding(address))

    assert (outcome.delivered, outcome.permanent) == (False, True)
    assert outcome.message.startswith("hooks.lan resolves to ")
    assert f", a {kind} address; add it to " in outcome.message
    assert connected == []


def test_refusal_is_the_sentence_of_the_contract() -> None:
    outcome = deliver("http://hooks.lan/?a", allowed=EXTERNAL, resolve=finding("10.0.0.5"))

    assert outcome.message == (
        "hooks.lan resolves to 10.0.0.5, a private address; add it to TASKSERVICE_CALLBACK_ALLOWED"
    )


@pytest.mark.parametrize("allowed", ["hooks.lan", "*.lan"])
def test_host_pattern_lets_its_host_through_whatever_its_address(
    receiver: Receiver, allowed: str
) -> None:
    url = f"http://hooks.lan:{receiver.port}/"

    outcome = deliver(url, allowed=Destinations.parse(allowed), resolve=finding("127.0.0.1"))

    assert outcome.delivered


def test_name_is_resolved_once_and_what_was_judged_is_connected_to(
    receiver: Receiver, connected: list[str]
) -> None:
    answers = [["127.0.0.1"], ["127.0.0.2"], ["127.0.0.1"]]
    asked = []

    def rebind(host: str) -> list[str]:
        asked.append(host)
        return answers[len(asked) - 1]

    allowed = Destinations.parse("127.0.0.1")
    url = f"http://hooks.lan:{receiver.port}/"
    outcomes = [deliver(url, allowed=allowed, resolve=rebind) for _ in answers]

    assert [outcome.delivered for outcome in outcomes] == [True, False, True]
    assert asked == ["hooks.lan"] * 3
    assert connected == ["127.0.0.1", "127.0.0.1"]


@pytest.mark.parametrize(
    ("addresses", "tried"),
    [
        (["10.0.0.5", "169.254.169.254", "127.0.0.1", "8.8.8.8"], ["127.0.0.1"]),
        (["::1", "127.0.0.1"], ["::1", "127.0.0.1"]),
    ],
    ids=["forbidden", "refuses"],
)
def test_next_address_is_tried_when_the_first_is_forbidden_or_refuses(
    receiver: Receiver, connected: list[str], addresses: list[str], tried: list[str]
) -> None:
    assert deliver(f"http://hooks.lan:{receiver.port}/", resolve=finding(*addresses)).delivered
    assert connected == tried


@needs_linux
def test_next_address_is_tried_within_the_deadline_when_the_first_is_dead(
    receiver: Receiver, connected: list[str]
) -> None:
    with deaf(receiver.port) as (host, port):
        both = finding(host, "127.0.0.1")

        assert deliver(f"http://hooks.lan:{port}/", deadline=1, resolve=both).delivered
        assert connected == [host, "127.0.0.1"]


def unknown(host: str) -> list[str]:
    raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")


@pytest.mark.parametrize(
    ("resolve", "reason"),
    [(unknown, "Name or service not known"), (finding(), "it has no address")],
)
def test_name_that_does_not_resolve_is_tried_again_later(resolve: Resolver, reason: str) -> None:
    outcome = deliver("http://hooks.lan/", resolve=resolve)

    assert outcome[:4] == (f"hooks.lan can't be resolved: {reason}.", False, False, None)


def test_lookups_that_hang_are_bounded_and_are_over_when_they_return(receiver: Receiver) -> None:
    done = threading.Event()

    def hang(host: str) -> list[str]:
        done.wait()
        return ["127.0.0.1"]

    def attempt() -> None:
        outcomes.append(deliver("http://hooks.lan/", deadline=SOON, resolve=hang))

    outcomes: list[Outcome] = []
    threads = [threading.Thread(target=attempt) for _ in range(transport.MAX_LOOKUPS + 10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    hanging = sum(thread.name == "webhook-lookup" for thread in threading.enumerate())
    done.set()

    assert hanging == transport.MAX_LOOKUPS
    late = ("hooks.lan was not resolved within 0.4 s.", False, False)
    assert {outcome[:3] for outcome in outcomes} == {late}
    url = f"http://hooks.lan:{receiver.port}/"
    assert deliver(url, resolve=finding("127.0.0.1")).delivered


def test_system_resolves_localhost(receiver: Receiver) -> None:
    assert deliver(f"http://localhost:{receiver.port}/").delivered
    assert not deliver(f"http://localhost:{receiver.port}/", allowed=EXTERNAL).delivered
    assert receiver.connections == 1


# TLS.


def deliver_securely(
    context: ssl.SSLContext, name: str = "hooks.example"
) -> tuple[Outcome, list[Received]]:
    with Receiver(tls=context) as receiver:
        url = f"https://{name}:{receiver.port}/hook"
        outcome = deliver(url, resolve=finding("127.0.0.1"))
        return outcome, receiver.requests


@pytest.mark.parametrize("name", ["hooks.example", "hooks.example.", "127.0.0.1"])
def test_certificate_of_a_private_authority_is_accepted(
    authority: Authority, trusted: None, name: str
) -> None:
    outcome, requests = deliver_securely(authority.server("127.0.0.1", "hooks.example"), name)

    assert outcome.delivered
    assert requests[0].body == BODY
    assert requests[0].headers["host"].startswith(f"{name.removesuffix('.')}:")


@pytest.mark.parametrize(
    ("context", "reason"),
    [
        (lambda known: known.server("hooks.example", expired=True), "certificate has expired."),
        (lambda known: known.server("other.example"), "not valid for 'hooks.example'."),
        (lambda known: known.server("127.0.0.1"), "not valid for 'hooks.example'."),
        (lambda _: Authority().server("hooks.example"), "local issuer certificate."),
        # OpenSSL writes it with and without a hyphen.
        (lambda _: Authority().server("hooks.example", self_signed=True), "signed certificate."),
    ],
    ids=["expired", "wrong name", "address alone", "unknown authority", "self-signed"],
)
def test_bad_certificate_is_refused_before_the_request(
    authority: Authority, trusted: None, context: Callable[[Authority], Any], reason: str
) -> None:
    outcome, requests = deliver_securely(context(authority))

    assert outcome[1:4] == (False, False, None)
    assert outcome.message.startswith("The certificate of hooks.example is refused: ")
    assert outcome.message.endswith(reason)
    assert requests == []


def test_environment_of_requests_does_not_add_an_authority(
    authority: Authority, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "authority.pem").write_bytes(authority.pem)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "authority.pem"))
    monkeypatch.setenv("CURL_CA_BUNDLE", str(tmp_path / "authority.pem"))
    bounded_http.tls_context.cache_clear()

    assert not deliver_securely(authority.server("hooks.example"))[0].delivered


def test_public_authorities_are_trusted_like_a_private_one(trusted: None) -> None:
    assert len(bounded_http.tls_context().get_ca_certs()) > 50


def test_receiver_that_does_not_speak_tls_is_explained() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

        def answer_in_plain() -> None:
            peer, _ = listener.accept()
            with peer:
                peer.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                peer.recv(4096)

        thread = threading.Thread(target=answer_in_plain)
        thread.start()
        outcome = deliver(f"https://127.0.0.1:{port}/")
        thread.join()

    assert outcome.message == f"127.0.0.1 does not speak TLS on port {port}."
    assert not outcome.permanent


# The messages of outcomes.


@pytest.mark.parametrize(
    "behaviour",
    [
        answer(200),
        answer(500),
        raw(b"HTTP/1.1 200 OK\r\nno colon here\r\n\r\n"),
        raw(b"nonsense\r\n\r\n"),
        reset(),
        answer(301, {"Location": "http://127.0.0.1/"}),
    ],
)
def test_path_and_query_reach_neither_log_nor_message(
    receiver: Receiver, behaviour: Behaviour, caplog: pytest.LogCaptureFixture
) -> None:
    receiver.answer = behaviour
    with caplog.at_level(logging.DEBUG):
        outcome = deliver(receiver.url + "hook-hunter2?token=hunter2")
        nowhere = deliver(f"http://127.0.0.1:{unused_port()}/hook-hunter2?token=hunter2")

    assert receiver.wait_for(1)[0].path == "/hook-hunter2?token=hunter2"
    assert "hunter2" not in caplog.text
    assert "hunter2" not in outcome.message + nowhere.message


def test_text_of_the_receiver_does_not_reach_the_message(receiver: Receiver) -> None:
    receiver.answer = raw(b"HTTP/1.1 500 <script>alert(1)</script>\x1b[31m\r\n\r\n")

    assert deliver(receiver.url).message == "The receiver responded with 500 Internal Server Error."


# Interrupted from outside.


def interrupted(
    url: str,
    happened: threading.Event,
    resolve: Resolver = system_addresses,
    interrupt: Interrupt | None = None,
) -> float:
    """How many seconds an attempt took that is interrupted when `happened`."""
    interrupt = interrupt or Interrupt()

    def wait() -> None:
        happened.wait(LATE)
        interrupt.set()

    thread = threading.Thread(target=wait)
    thread.start()
    began = time.monotonic()
    with pytest.raises(Interrupted):
        deliver(url, resolve=resolve, interrupt=interrupt)
    thread.join()
    return time.monotonic() - began


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_interrupt_breaks_the_connection_immediately(
    scheme: str, authority: Authority, trusted: None
) -> None:
    came, closed = threading.Event(), threading.Event()
    hold = held_until_closed(closed)

    def behave(exchange: Exchange) -> None:
        came.set()
        hold(exchange)

    tls = authority.server("localhost") if scheme == "https" else None
    with Receiver(tls=tls, answer=behave) as receiver:
        url = f"{scheme}://localhost:{receiver.port}/"
        assert interrupted(url, came, resolve=finding("127.0.0.1")) < LATE / 2
        until(closed.is_set)


def test_interrupt_breaks_a_handshake() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        came = threading.Event()
        threading.Timer(0.2, came.set).start()
        assert interrupted(f"https://127.0.0.1:{listener.getsockname()[1]}/", came) < LATE / 2


def is_set(interrupt: Interrupt) -> bool:
    try:
        interrupt.check()
    except Interrupted:
        return True
    return False


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_attempt_interrupted_in_its_lookup_sends_nothing(receiver: Receiver, scheme: str) -> None:
    came, connected, interrupt = threading.Event(), receiver.connections, Interrupt()

    def resolve(host: str) -> list[str]:
        came.set()
        until(lambda: is_set(interrupt))
        return ["127.0.0.1"]

    interrupted(f"{scheme}://localhost:{receiver.port}/", came, resolve, interrupt)
    assert (receiver.connections, receiver.requests) == (connected, [])


def test_attempt_interrupted_before_its_start_sends_nothing(receiver: Receiver) -> None:
    interrupt = Interrupt()
    interrupt.set()
    with pytest.raises(Interrupted):
        deliver(receiver.url, interrupt=interrupt)
    assert receiver.connections == 0


def test_attempt_interrupted_after_the_answer_counts(receiver: Receiver) -> None:
    interrupt = Interrupt()

    def behave(exchange: Exchange) -> None:
        exchange.write(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n")
        time.sleep(0.2)
        interrupt.set()
        exchange.stopping.wait()

    receiver.answer = behave
    began = time.monotonic()
    assert deliver(receiver.url, interrupt=interrupt).delivered
    assert time.monotonic() - began < LATE / 2
