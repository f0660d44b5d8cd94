"""A way to PostgreSQL on which each connection ends after some of the server's messages."""

import math
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import BinaryIO

from psycopg.conninfo import conninfo_to_dict

# What a server says to each client when it is shut down; see "Message Formats" in its manual.
_FIELDS = b"SFATAL\0VFATAL\0C57P01\0Mterminating connection due to administrator command\0\0"
FAREWELL = b"E" + struct.pack("!I", len(_FIELDS) + 4) + _FIELDS
READY_FOR_QUERY = b"Z"


class CutConnections:
    """Passes connections on, and ends each after `limit` messages since it was ready.

    `farewell` is sent to the client before the end.
    """

    def __init__(self, url: str) -> None:
        parts = conninfo_to_dict(url)
        self._server = f"{parts['host']}/.s.PGSQL.{parts.get('port', 5432)}"
        self._listener = socket.create_server(("127.0.0.1", 0))
        # TLS would hide the messages.
        self.url = (
            f"postgresql://{parts['user']}@127.0.0.1:{self._listener.getsockname()[1]}"
            f"/{parts['dbname']}?sslmode=disable&gssencmode=disable"
        )
        self.limit, self.farewell = math.inf, b""
        self._open: set[socket.socket] = set()
        threading.Thread(target=self._accept, daemon=True).start()

    def end_all(self) -> None:
        for connection in list(self._open):
            _end(connection)

    def close(self) -> None:
        _end(self._listener)
        self._listener.close()
        self.end_all()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                threading.Thread(target=self._pass_on, args=(client,), daemon=True).start()

    def _pass_on(self, client: socket.socket) -> None:
        with client, socket.socket(socket.AF_UNIX) as server, suppress(OSError):
            self._open.add(client)
            server.connect(self._server)
            threading.Thread(target=_copy, args=(client, server), daemon=True).start()
            self._answer(client, server)
            self._open.discard(client)
            _end(client)
            _end(server)

    def _answer(self, client: socket.socket, server: socket.socket) -> None:
        count, is_ready = 0, False
        with server.makefile("rb") as stream:
            for message in _messages(stream):
                client.sendall(message)
                is_ready = is_ready or message[:1] == READY_FOR_QUERY
                count += is_ready
                if count >= self.limit:
                    client.sendall(self.farewell)
                    return


def _messages(stream: BinaryIO) -> Iterator[bytes]:
    while head := stream.read(5):
        yield head + stream.read(struct.unpack("!I", head[1:])[0] - 4)


def _copy(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    _end(target)


def _end(connection: socket.socket) -> None:
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


@contextmanager
def cut_connections(url: str) -> Iterator[CutConnections]:
    connections = CutConnections(url)
    try:
        yield connections
    finally:
        connections.close()
