"""A proxy that adds an API key, for a client that sends none."""

from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import urlsplit

from tests.support.waiting import PATIENCE_SECONDS

# Headers about one connection, which each side has for itself.
HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding"}


@contextmanager
def key_proxy(url: str, key: str) -> Iterator[str]:
    """The address of a proxy that forwards each request unchanged, with the key."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            netloc = urlsplit(url).netloc
            with closing(HTTPConnection(netloc, timeout=PATIENCE_SECONDS)) as server:
                server.putrequest(
                    self.command, self.path, skip_host=True, skip_accept_encoding=True
                )
                for name, text in _end_to_end(self.headers.items()):
                    server.putheader(name, text)
                server.putheader("Authorization", f"Bearer {key}")
                server.endheaders(body)
                answer = server.getresponse()
                content = answer.read()
            # The suite does not wait for each response.
            with suppress(ConnectionError):
                self.send_response_only(answer.status)
                for name, text in _end_to_end(answer.getheaders()):
                    self.send_header(name, text)
                self.end_headers()
                self.wfile.write(content)

        do_GET = do_DELETE = do_POST

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as proxy:
        Thread(target=proxy.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{proxy.server_port}"
        proxy.shutdown()


def _end_to_end(headers: list[tuple[str, str]]) -> list[tuple[str, str]]:
    return [(name, text) for name, text in headers if name.lower() not in HOP_BY_HOP]
