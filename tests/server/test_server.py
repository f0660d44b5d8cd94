"""The gunicorn worker, in a real gunicorn with a tiny application."""

import json
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest

from taskservice.error_codes import CODES
from tests.support.gunicorn_process import (
    EMBEDDED,
    GUNICORN,
    HELLO,
    MIB,
    THREADS,
    Code,
    GunicornProcess,
    chunked,
    post,
    read_bodies,
    read_to_end,
    started,
    unready,
)
from tests.support.waiting import PATIENCE_SECONDS, until

# Less than a slow client has; a busy machine may need some of it.
QUICK_SECONDS = 15.0
STREAM = b"GET /stream HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GunicornProcess]:
    """One for all the tests that leave it as it was."""
    with started(tmp_path_factory.mktemp("server")) as server:
        yield server


# As a real one, which closes no slow client while a test lasts.
PATIENT = {"request_seconds": 30.0, "response_seconds": 30.0, "linger_seconds": 5.0}


@pytest.fixture(scope="module")
def patient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GunicornProcess]:
    """One for all the tests whose clients are slow."""
    with started(tmp_path_factory.mktemp("patient"), attributes=PATIENT) as server:
        yield server


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[GunicornProcess]:
    """One that the test may end."""
    with started(tmp_path, attributes=PATIENT) as server:
        yield server


def problem_in(answer: bytes, status: int) -> dict[str, Any]:
    """The problem in an answer of which everything is as it should be."""
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status)
    assert b"Content-Type: application/problem+json" in head
    assert b"Connection: close" in head
    assert b"Cache-Control: no-store" in head
    assert b"Vary: apikey, Authorization" in head
    assert b"Content-Length: %d" % len(body) in head
    problem: dict[str, Any] = json.loads(body)
    assert problem["type"] == "about:blank"
    assert problem["status"] == status
    assert problem["title"]
    assert problem["detail"]
    assert CODES[problem["code"]].status == status
    return problem


# A slow client delays only itself.


@pytest.mark.parametrize(
    "begin",
    [
        b"GET / HTTP/1.1\r\nX-Slow: ",
        post(b"", length=MIB),
        chunked(b"first") + b"fffff\r\n",
    ],
    ids=["head", "body", "chunks"],
)
def test_request_that_is_not_here_in_time_is_408_however_it_drips(
    server: GunicornProcess, begin: bytes
) -> None:
    with server.connect(begin) as client:
        problem_in(answer_to_drips(client), 408)


def test_answer_to_a_body_that_drips_unread_arrives(server: GunicornProcess) -> None:
    with server.connect(post(b"", path="/unread", length=MIB)) as client:
        assert answer_to_drips(client).endswith(b"\r\n\r\nno")


def answer_to_drips(client: socket.socket) -> bytes:
    """All that comes, to a client that sends a byte now and then."""
    ended = Event()
    dripping = Thread(target=drip_until, args=(client, ended))
    dripping.start()
    try:
        return read_to_end(client)
    finally:
        ended.set()
        dripping.join()


def drip_until(client: socket.socket, ended: Event) -> None:
    with suppress(OSError):
        while not ended.wait(0.1):
            client.send(b"1")


def test_clients_that_never_send_anything_hold_no_thread_and_get_no_answer(tmp_path: Path) -> None:
    with started(tmp_path, settings={"keepalive": 2}) as server, ExitStack() as stack:
        idle = [stack.enter_context(server.connect()) for _ in range(3 * THREADS)]
        assert server.get("/hello") == b"hello"
        assert [read_to_end(client) for client in idle] == [b""] * len(idle)


def test_reader_that_stands_still_is_cut_off_and_its_thread_freed(server: GunicornProcess) -> None:
    request = b"GET /large?20000000 HTTP/1.1\r\nHost: x\r\n\r\n"
    with ExitStack() as stack:
        for _ in range(2 * THREADS):
            stack.enter_context(server.connect(request, receive_buffer=16_384))
        # Only a thread that one of them held can answer.
        assert server.get("/hello") == b"hello"
    assert "Traceback" not in server.log


def test_reader_that_takes_nothing_is_let_go_once_and_not_each_time_a_buffer_fills(
    tmp_path: Path,
) -> None:
    attributes = {"response_seconds": 8.0, "more_threads": 0}
    with started(tmp_path, attributes=attributes) as server, ExitStack() as stack:
        request = b"GET /large?20000000 HTTP/1.1\r\nHost: x\r\n\r\n"
        for _ in range(THREADS):
            client = stack.enter_context(server.connect(request, receive_buffer=16_384))
            assert client.recv(1)
        # No thread is free before that.
        assert 7.0 < server.seconds_to_answer() < 16.0


def test_client_that_does_not_close_after_its_answer_holds_no_thread(tmp_path: Path) -> None:
    # The server would wait for such a client for longer than the test does.
    attributes = {"linger_seconds": 10 * PATIENCE_SECONDS, "more_threads": 0}
    settings = {"worker_connections": 5 * THREADS}
    with (
        started(tmp_path, attributes=attributes, settings=settings) as server,
        ExitStack() as stack,
    ):
        for _ in range(10 * THREADS):
            client = stack.enter_context(server.connect(b"GET /hello HTTP/1.0\r\n\r\n"))
            assert read_to_end(client).endswith(b"hello")
        # The latest are still awaited, and read.
        with server.connect(post(bytes(MIB), path="/unread").replace(b"1.1", b"1.0")) as client:
            assert read_to_end(client).endswith(b"no")


def test_idle_clients_leave_file_descriptors_to_others(tmp_path: Path) -> None:
    attributes = {"limited": Code("__import__('resource').setrlimit(7, (120, 120))")}
    settings = {"keepalive": 10 * int(PATIENCE_SECONDS)}
    with (
        started(tmp_path, attributes=attributes, settings=settings) as server,
        ExitStack() as stack,
    ):
        for _ in range(150):
            stack.enter_context(server.connect())
        assert server.get("/hello") == b"hello"
    assert "Traceback" not in server.log


def test_slow_clients_in_all_threads_leave_others_an_answer(patient: GunicornProcess) -> None:
    slow = [b"GET /hello HTTP/1.1\r\nX-Slow: ", post(b"x", length=MIB), chunked(b"first")]
    with ExitStack() as stack:
        for begin in slow * THREADS:
            stack.enter_context(patient.connect(begin))
        for _ in range(3):
            assert patient.seconds_to_answer() < QUICK_SECONDS


def test_each_request_on_a_connection_has_its_own_time_limit(server: GunicornProcess) -> None:
    with server.connect(HELLO) as client:
        assert read_bodies(client) == [b"hello"]
        time.sleep(0.9)
        client.sendall(HELLO)
        assert read_bodies(client) == [b"hello"]


def test_steady_but_slow_reader_gets_all_of_a_large_answer(tmp_path: Path) -> None:
    request = b"GET /large?8000000 HTTP/1.0\r\n\r\n"
    with (
        started(tmp_path, attributes={"response_seconds": 2.0}) as server,
        server.connect(request, receive_buffer=MIB) as client,
    ):
        size = 0
        while piece := client.recv(200_000):
            size += len(piece)
            time.sleep(0.12)
    assert size > 8_000_000


# A request is taken in whole.


@pytest.mark.parametrize("size", [0, 1, 65_536, 65_537, 2 * MIB])
def test_body_of_any_size_arrives_as_it_was_sent(patient: GunicornProcess, size: int) -> None:
    body = os.urandom(size)
    assert patient.ask(post(body)).partition(b"\r\n\r\n")[2] == body
    in_chunks = [body[start : start + 100_000] for start in range(0, size, 100_000)]
    answer = patient.ask(chunked(*in_chunks, b""))
    assert answer.partition(b"\r\n\r\n")[2] == body


def test_body_can_be_read_line_by_line(server: GunicornProcess) -> None:
    assert server.ask(post(b"one\ntwo", path="/lines")).endswith(b"one\n|two")


def test_request_may_come_byte_by_byte(patient: GunicornProcess) -> None:
    for request in (post(b"some body"), chunked(b"some ", b"body", b"")):
        with patient.connect() as client:
            for byte in request:
                client.sendall(bytes([byte]))
            assert read_bodies(client) == [b"some body"]


def test_chunks_may_have_extensions_and_trailers(server: GunicornProcess) -> None:
    body = b'4;a=b;c="d e"\r\nsome\r\n0\r\nX-Trailer: yes\r\n\r\n'
    assert server.ask(chunked() + body).endswith(b"\r\n\r\nsome")


def test_pipelined_requests_are_answered_in_turn(patient: GunicornProcess) -> None:
    requests = post(b"one") + chunked(b"two", b"") + HELLO + post(b"x" * 100_000) + post(b"five")
    with patient.connect(requests) as client:
        assert read_bodies(client, 5) == [b"one", b"two", b"hello", b"x" * 100_000, b"five"]


def test_client_that_has_closed_its_side_still_gets_the_answer(server: GunicornProcess) -> None:
    assert server.ask(b"GET /sleep?0.2 HTTP/1.1\r\nHost: x\r\n\r\n").endswith(b"slept")


def test_client_that_asks_before_it_sends_is_told_to_continue(server: GunicornProcess) -> None:
    with server.connect(post(b"", "Expect: 100-continue", length=4)) as client:
        assert client.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.sendall(b"body")
        assert read_bodies(client) == [b"body"]


def test_answer_to_an_unread_body_arrives(server: GunicornProcess) -> None:
    for size in (1000, 2 * MIB):
        with server.connect(post(bytes(size), path="/unread")) as client:
            assert read_bodies(client) == [b"no"]


# An invalid request is refused as problem+json.


REFUSED = {
    "a malformed request line, or HTTP/2": {
        "no-version": (b"GET /\r\n\r\n", 400),
        "bare-line-feeds": (b"GET / HTTP/1.1\n\n", 400),
        "nothing-but-empty-lines": (b"\r\n\r\n", 400),
        "small-letters": (b"get / HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        "unknown-version": (b"GET / HTTP/3.7\r\nHost: x\r\n\r\n", 400),
        "http-2-preface": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    },
    "no `Host`, two, or an invalid one": {
        "no-host": (b"GET / HTTP/1.1\r\n\r\n", 400),
        "two-hosts": (b"GET / HTTP/1.1\r\nHost: x\r\nHost: x\r\n\r\n", 400),
        "host-with-a-space": (b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n", 400),
        "host-with-a-path": (b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", 400),
        "host-with-a-user": (b"GET / HTTP/1.1\r\nHost: me@x\r\n\r\n", 400),
        "empty-host": (b"GET / HTTP/1.1\r\nHost:\r\n\r\n", 400),
    },
    "a malformed header: no colon, folded, NUL, a space": {
        "header-without-colon": (b"GET / HTTP/1.1\r\nHost: x\r\nno colon\r\n\r\n", 400),
        "folded-header": (b"GET / HTTP/1.1\r\nHost: x\r\nA: b\r\n folded\r\n\r\n", 400),
        "nul-in-a-header": (b"GET / HTTP/1.1\r\nHost: x\r\nA: \0\r\n\r\n", 400),
        "space-before-colon": (b"GET / HTTP/1.1\r\nHost: x\r\nA : b\r\n\r\n", 400),
    },
    "lengths that are no number, negative or contradict": {
        "two-lengths": (post(b"", "Content-Length: 0"), 400),
        "length-and-chunks": (post(b"", "Transfer-Encoding: chunked"), 400),
        "negative-length": (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", 400),
        "length-squared": (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: \xb2\r\n\r\n", 400),
        "length-of-5000-digits": (
            b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %b\r\n\r\n" % (b"9" * 5000),
            400,
        ),
        "chunks-in-http-1.0": (chunked(b"").replace(b"HTTP/1.1", b"HTTP/1.0"), 400),
        "coding-without-chunks": (chunked().replace(b"chunked", b"gzip"), 400),
    },
    "malformed chunks, extensions or trailers": {
        "chunk-size-no-number": (chunked() + b"x\r\n", 400),
        "chunk-size-negative": (chunked() + b"-1\r\n", 400),
        "chunk-size-missing": (chunked() + b"\r\n", 400),
        "chunk-extension-malformed": (chunked() + b"1;=\r\n", 400),
        "chunk-longer-than-it-says": (chunked() + b"5\r\nhelloX0\r\n\r\n", 400),
        "trailer-that-must-not-be": (chunked() + b"0\r\nHost: y\r\n\r\n", 400),
    },
    "an unknown transfer coding, also beside chunks": {
        "unknown-coding": (chunked().replace(b"chunked", b"magic"), 501),
        "coding-beside-chunks": (chunked(b"").replace(b"chunked", b"gzip, chunked"), 501),
        "coding-in-a-header-before": (
            chunked(b"").replace(b"Transfer", b"Transfer-Encoding: deflate\r\nTransfer"),
            501,
        ),
    },
    "a request line that is too long": {
        "line-too-long": (b"GET /%b HTTP/1.1\r\nHost: x\r\n\r\n" % (b"x" * 9000), 414),
    },
    "headers that are too many or too long": {
        "too-many-headers": (
            b"GET / HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * 101 + b"\r\n",
            431,
        ),
        "header-too-long": (b"GET / HTTP/1.1\r\nHost: x\r\nA: %b\r\n\r\n" % (b"x" * 9000), 431),
    },
    "an expectation that nobody knows": {
        "unknown-expectation": (post(b"", "Expect: miracles"), 417),
    },
}


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        pytest.param(*refused, id=name)
        for cases in REFUSED.values()
        for name, refused in cases.items()
    ],
)
def test_unreadable_request_is_refused_immediately_as_a_problem(
    server: GunicornProcess, request_: bytes, status: int
) -> None:
    with server.connect(request_) as client:
        # An incomplete request would get 408 after its time limit.
        problem_in(read_to_end(client), status)


def test_refusals_echo_nothing_to_the_client_or_the_log(server: GunicornProcess) -> None:
    answer = server.ask(b"GET /?apikey=tsk_user_secret HTTP/1.1\r\ntsk_user_secret\r\n\r\n")
    problem_in(answer, 400)
    assert b"secret" not in answer
    assert "tsk_user_secret" not in server.log


@pytest.mark.parametrize("path", ["/fail", "/bad-header"])
def test_application_that_fails_is_500_without_its_reasons(
    server: GunicornProcess, path: str
) -> None:
    answer = server.ask(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    problem_in(answer, 500)
    assert b"secret" not in answer
    assert server.get("/hello") == b"hello"


def test_answers_that_the_application_did_not_give_are_counted_once_each(
    fresh: GunicornProcess,
) -> None:
    for path in ("/fail", "/fail", "/bad-header", "/late-failure"):
        fresh.ask(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    fresh.ask(b"nonsense\r\n\r\n")
    counts = [line for line in fresh.get("/metrics").decode().splitlines() if "_total{" in line]
    name = 'taskservice_requests_total{route="other",method='
    assert counts == [f'{name}"GET",status="500"}} 3', f'{name}"other",status="400"}} 1']


def test_refusal_of_a_head_request_has_no_body(server: GunicornProcess) -> None:
    answer = server.ask(b"HEAD /fail HTTP/1.1\r\nHost: x\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 500 ")
    assert answer.endswith(b"\r\n\r\n")


# An answer is whole, or visibly broken.


def test_answer_that_fails_midway_does_not_look_whole(server: GunicornProcess) -> None:
    answer = server.ask(b"GET /break HTTP/1.1\r\nHost: x\r\n\r\n")
    assert answer.endswith(b"\r\n\r\n4\r\npart\r\n")


def test_failure_after_a_whole_answer_leaves_that_as_it_is(server: GunicornProcess) -> None:
    assert server.get("/late-failure") == b"whole"


def test_pieces_leave_as_they_are_made(server: GunicornProcess) -> None:
    with server.connect(STREAM) as client:
        seen = b""
        while seen.count(b"event") < 3:
            seen += client.recv(1000)
    assert b"Transfer-Encoding: chunked" in seen
    assert seen.index(b"begin") < seen.index(b"event")


def test_answer_in_pieces_is_framed_for_either_version(server: GunicornProcess) -> None:
    answer = server.ask(b"GET /pieces HTTP/1.1\r\nHost: x\r\n\r\n")
    assert answer.endswith(b"\r\n\r\n5\r\nfirst\r\n4\r\nlast\r\n0\r\n\r\n")
    answer = server.ask(b"GET /pieces HTTP/1.0\r\n\r\n")
    assert answer.endswith(b"\r\n\r\nfirstlast")


def test_head_has_the_headers_of_get_and_no_body(server: GunicornProcess) -> None:
    answer = server.ask(b"HEAD /hello HTTP/1.1\r\nHost: x\r\n\r\n")
    assert b"Content-Length: 5\r\n" in answer
    assert b"\r\nDate: " in answer
    assert answer.endswith(b"\r\n\r\n")


def test_connection_is_kept_or_closed_as_the_client_wants(server: GunicornProcess) -> None:
    old = b"GET /hello HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"
    new = b"GET /hello HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    with server.connect(old) as client:
        assert read_bodies(client) == [b"hello"]
        client.sendall(new)
        assert read_to_end(client).endswith(b"hello")
    with server.connect(b"GET /hello HTTP/1.0\r\n\r\n") as client:
        assert read_to_end(client).endswith(b"hello")


def test_server_does_not_tell_its_version(server: GunicornProcess) -> None:
    assert b"Server: gunicorn\r\n" in server.ask(HELLO)


# What the application sees of a request.


def test_unknown_method_reaches_the_application(server: GunicornProcess) -> None:
    assert server.ask(b"BREW / HTTP/1.1\r\nHost: x\r\n\r\n").endswith(b"BREW")


def test_forwarded_headers_change_nothing_by_themselves(server: GunicornProcess) -> None:
    headers = ["X-Forwarded-Proto: https", "X-Forwarded-For: 192.0.2.1", "X-Forwarded-Host: y"]
    environ = json.loads(server.get("/environ", *headers, "SCRIPT_NAME: /environ"))
    assert environ["wsgi.url_scheme"] == "http"
    assert environ["REMOTE_ADDR"] == "127.0.0.1"
    assert environ["HTTP_HOST"] == "x"
    assert environ["SCRIPT_NAME"] == ""
    assert environ["HTTP_X_FORWARDED_PROTO"] == "https"


def test_header_with_an_underscore_does_not_reach_the_application(server: GunicornProcess) -> None:
    environ = json.loads(server.get("/environ", "api_key: x", "X_Forwarded_For: 192.0.2.1"))
    assert not {"HTTP_API_KEY", "HTTP_X_FORWARDED_FOR"} & environ.keys()


def test_doubled_header_arrives_with_a_comma_and_bytes_as_latin_1(server: GunicornProcess) -> None:
    environ = json.loads(server.get("/environ", "apikey: one", "apikey: two", "X-Name: \xe9"))
    assert environ["HTTP_APIKEY"] == "one,two"
    assert environ["HTTP_X_NAME"] == "\xe9"


# It stops quickly, and loses nothing that it has begun.


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT], ids=["TERM", "INT"])
def test_open_streams_and_idle_and_slow_clients_do_not_delay_the_end(
    fresh: GunicornProcess, signum: int
) -> None:
    begun = [
        HELLO,
        STREAM,
        b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n",
        post(b"", length=MIB),
        b"",
    ]
    with ExitStack() as stack:
        clients = [stack.enter_context(fresh.connect(data)) for data in begun]
        assert clients[1].recv(1)
        assert fresh.end(signum) == 0
        assert read_to_end(clients[1]).endswith(b"3\r\nend\r\n0\r\n\r\n")
        assert read_to_end(clients[2]).endswith(b"waited")
        assert problem_in(read_to_end(clients[3]), 503)["code"] == "stopping"
    assert fresh.process.returncode == 0
    assert "Traceback" not in fresh.log


def test_answer_under_way_at_the_end_is_completed(fresh: GunicornProcess) -> None:
    # The request takes longer than the server waits for clients that stand still.
    with fresh.connect(b"GET /sleep?1 HTTP/1.1\r\nHost: x\r\n\r\n") as client:
        until(lambda: "begun" in fresh.log)
        assert fresh.end(signal.SIGTERM) == 0
        answer = read_to_end(client)
    assert answer.endswith(b"slept")


def test_second_ctrl_c_is_not_needed_for_a_request_that_hangs(fresh: GunicornProcess) -> None:
    with fresh.connect(b"GET /sleep?300 HTTP/1.1\r\nHost: x\r\n\r\n"):
        until(lambda: "begun" in fresh.log)
        os.killpg(fresh.process.pid, signal.SIGINT)
        fresh.process.wait(PATIENCE_SECONDS)
    assert "Traceback" not in fresh.log


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGKILL], ids=["TERM", "KILL"])
def test_worker_that_ends_is_replaced_while_others_continue(tmp_path: Path, signum: int) -> None:
    with started(tmp_path, TASKSERVICE_WORKERS="2") as server:
        workers = until(lambda: two_workers(server))
        os.kill(workers[0], signum)
        for _ in range(20):
            assert server.get("/hello") == b"hello"
        until(lambda: workers[0] not in (two_workers(server) or workers))


def two_workers(server: GunicornProcess) -> list[int] | None:
    """Both workers, if both have answered within a few tries."""
    seen = {server.worker() for _ in range(40)}
    return sorted(seen) if len(seen) == 2 else None


# How it starts.


@pytest.mark.parametrize("command", [GUNICORN, EMBEDDED], ids=["gunicorn", "serve"])
def test_address_that_cannot_be_bound_is_one_line(
    server: GunicornProcess, tmp_path: Path, command: list[str], subtests: pytest.Subtests
) -> None:
    in_use = f"127.0.0.1:{server.port}"
    for address, code in ((in_use, 1), ("192.0.2.1:8000", 1), ("nowhere.invalid:8000", 2)):
        with subtests.test(address):
            second = unready(tmp_path, command, TASKSERVICE_BIND=address)
            assert second.process.wait(PATIENCE_SECONDS) == code
            (line,) = [line for line in second.log.splitlines() if "INFO" not in line]
            assert line.startswith(f"taskservice: can't listen on {address}: ")
            assert "TASKSERVICE_BIND" in line


def test_wrong_setting_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    wrong = unready(tmp_path, TASKSERVICE_WORKERS="many")
    assert wrong.process.wait(PATIENCE_SECONDS) == 2
    assert wrong.log.startswith("taskservice: TASKSERVICE_WORKERS: ")
    assert wrong.log.count("\n") == 1


def test_tls_is_refused_rather_than_left_out(tmp_path: Path) -> None:
    certificate = tmp_path / "certificate.pem"
    certificate.touch()
    wrong = unready(tmp_path, settings={"certfile": str(certificate)})
    assert wrong.process.wait(PATIENCE_SECONDS) == 1
    assert "Error: remove certfile and keyfile" in wrong.log


def test_serve_from_within_serves_alike_and_ends_by_ctrl_c(tmp_path: Path) -> None:
    with started(tmp_path, EMBEDDED) as server:
        assert server.get("/hello") == b"hello"
        os.killpg(server.process.pid, signal.SIGINT)
        assert server.process.wait(PATIENCE_SECONDS) == 0
        assert "Traceback" not in server.log


STOPPED_AT_ITS_START = """
import os, runpy, signal, time

fork = os.fork

def fork_and_stop():
    pid = fork()
    if pid == 0:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        os.kill(os.getppid(), signal.SIGTERM)
        while signal.SIGTERM not in signal.sigpending():
            time.sleep(0.01)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    return pid

os.fork = fork_and_stop
runpy.run_path("serve.py", run_name="__main__")
"""


def test_worker_that_is_told_to_stop_before_it_has_its_signal_handlers_does(tmp_path: Path) -> None:
    (tmp_path / "stopped.py").write_text(STOPPED_AT_ITS_START)
    server = unready(tmp_path, [sys.executable, "stopped.py"])
    assert server.process.wait(PATIENCE_SECONDS) == 0
    # Otherwise its parent kills it after 30 seconds.
    assert "Worker exiting" in server.log


def test_unix_socket_is_taken_over_only_from_a_program_that_has_ended(tmp_path: Path) -> None:
    path, folders = tmp_path / "socket", [tmp_path / name for name in ("one", "two", "three")]
    for folder in folders:
        folder.mkdir()
    with on_unix_socket(folders[0], path) as first:
        second = unready(folders[1], TASKSERVICE_BIND=f"unix:{path}")
        assert second.process.wait(PATIENCE_SECONDS) == 1
        (line,) = [line for line in second.log.splitlines() if "INFO" not in line]
        problem = f"taskservice: can't listen on {path}: another program listens there"
        assert line.startswith(problem)
        assert environ_by(path)["wsgi.url_scheme"] == "http"
        # For a proxy in the service's group.
        assert path.stat().st_mode & 0o777 == 0o770
        os.killpg(first.process.pid, signal.SIGKILL)
        first.process.wait()
    assert path.is_socket()
    with on_unix_socket(folders[2], path):
        environ_by(path)


@contextmanager
def on_unix_socket(folder: Path, path: Path) -> Iterator[GunicornProcess]:
    server = unready(folder, TASKSERVICE_BIND=f"unix:{path}")
    try:
        until(lambda: "Listening at" in server.log)
        yield server
    finally:
        server.kill()


def environ_by(path: Path) -> dict[str, str]:
    """What a request over this unix socket has in its environment."""
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        client.sendall(b"GET /environ HTTP/1.0\r\nHost: x\r\nX-Forwarded-Proto: https\r\n\r\n")
        environ: dict[str, str] = json.loads(read_to_end(client).partition(b"\r\n\r\n")[2])
        return environ


def test_two_services_of_one_user_leave_each_other_alone(server: GunicornProcess) -> None:
    assert not list(server.folder.rglob("*.ctl"))
