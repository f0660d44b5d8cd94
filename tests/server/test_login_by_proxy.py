"""The header of a proxy that signs people in, through real sockets."""

from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlsplit

from tests.support.nginx import NGINX, nginx
from tests.support.requirements import needs
from tests.support.service import Service


def ask(url: str, *names: str) -> tuple[int, str]:
    """The status and the text of the first page, with one header for each name."""
    parts = urlsplit(url)
    connection = HTTPConnection(parts.netloc, timeout=30)
    connection.putrequest("GET", f"{parts.path}/")
    for name in names:
        connection.putheader("X-Remote-User", name)
    connection.endheaders()
    response = connection.getresponse()
    text = response.read().decode()
    connection.close()
    return response.status, text


def test_header_that_comes_twice_signs_nobody_in(tmp_path: Path) -> None:
    if NGINX is None:
        needs("nginx", "install the package nginx")
    settings = {"PROXY_HOPS": "1", "LOGIN_HEADER": "X-Remote-User"}
    with Service(tmp_path / "data", **settings) as service:
        service.add_user("alice")
        assert service.run("key", "add", "alice", "--name", "ann", "--login").returncode == 0
        with nginx(tmp_path / "nginx", service.port) as proxied:
            for url in (service.url, proxied):
                status, page = ask(url, "ann")
                assert (status, "<nav" in page) == (200, True)
                for names in (("ann", "ann"), ("ann", "bob"), ("", "ann"), ("ann", "")):
                    status, page = ask(url, *names)
                    assert status == 403
                    assert "ask the people who run this service" in page
                    assert "<nav" not in page
