"""A small load generator: connections kept alive, each in a thread, one request after another."""

import re
import socket
import sys
import threading
import time

LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)


def request(method: str, path: str, key: str = "", body: bytes = b"") -> bytes:
    """The bytes of one request."""
    head = f"{method} {path} HTTP/1.1\r\nHost: x\r\napikey: {key}\r\n"
    if body:
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    return head.encode() + b"\r\n" + body


def read_answer(connection: socket.socket) -> bytes:
    """One answer, whole; raises on anything but 2xx."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += _received(connection)
    head, _, body = data.partition(b"\r\n\r\n")
    if head[9:10] != b"2":
        raise RuntimeError(data[:500])
    length = LENGTH.search(head)
    if length:
        missing = int(length[1]) - len(body)
        while missing > 0:
            body += (part := _received(connection))
            missing -= len(part)
        return body
    while not body.endswith(b"0\r\n\r\n"):
        body += _received(connection)
    return body


def _received(connection: socket.socket) -> bytes:
    part = connection.recv(262_144)
    if not part:
        raise RuntimeError("The connection was closed")
    return part


def requests_per_second(port: int, data: bytes, connections: int, seconds: float) -> float:
    """How many of these requests are answered per second, over this many connections."""
    counts = [0] * connections
    began = time.perf_counter()
    until = began + seconds

    def work(number: int) -> None:
        with socket.create_connection(("127.0.0.1", port)) as connection:
            while time.perf_counter() < until:
                connection.sendall(data)
                read_answer(connection)
                counts[number] += 1

    threads = [threading.Thread(target=work, args=(number,)) for number in range(connections)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / (time.perf_counter() - began)


if __name__ == "__main__":
    # Run as a separate process, so that it can be pinned to another processor.
    port, connections, seconds = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    print(requests_per_second(port, sys.stdin.buffer.read(), connections, seconds))
