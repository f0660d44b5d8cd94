"""deploy/nginx.conf in a real nginx; only addresses and paths are replaced."""

import subprocess
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import requests

from tests.support.certificates import Authority
from tests.support.documents import ROOT
from tests.support.nginx import NGINX, settings
from tests.support.requirements import needs
from tests.support.service import free_port
from tests.support.waiting import until

SAMPLE = (ROOT / "deploy/nginx.conf").read_text()
HOST = "localhost"
SERVER = "server 127.0.0.1:8000 max_fails=3 fail_timeout=2s;"


def replaced(text: str, values: dict[str, str]) -> str:
    for old, new in values.items():
        assert old in text
        text = text.replace(old, new)
    return text


def answers(process: "subprocess.Popen[bytes]", log: Path, url: str, authority: Path) -> bool:
    assert process.poll() is None, log.read_text()
    try:
        requests.get(url, verify=str(authority), timeout=60)
        return True
    except (requests.ConnectionError, OSError):
        return False


class DeployedNginx:
    """nginx with this text of deploy/nginx.conf, in front of the nodes on these ports.

    Without ports the nodes are the ones in the text.
    """

    def __init__(
        self,
        folder: Path,
        ports: Sequence[int],
        text: str = (ROOT / "deploy/nginx.conf").read_text(),
    ) -> None:
        if NGINX is None:
            needs("nginx", "install the package nginx-light")
        folder.mkdir(exist_ok=True)
        self._folder, port = folder, free_port()
        self.url = f"https://{HOST}:{port}"
        self.authority = folder / "authority.pem"
        authority, pem = Authority(), folder / "server.pem"
        self.authority.write_bytes(authority.pem)
        pem.write_bytes(authority.server_pem(HOST))
        nodes = {SERVER: "\n".join(SERVER.replace("8000", str(port)) for port in ports)}
        values = {
            **(nodes if ports else {}),
            "listen 443": f"listen 127.0.0.1:{port}",
            "tasks.example.org;": f"{HOST};",
            "/etc/ssl/certs/tasks.example.org.pem": str(pem),
            "/etc/ssl/private/tasks.example.org.key": str(pem),
        }
        (folder / "taskservice.conf").write_text(replaced(text, values))
        included = f"include {folder}/taskservice.conf;"
        (folder / "nginx.conf").write_text(settings(folder, included))
        paths = ["-c", f"{folder}/nginx.conf", "-e", f"{folder}/log", "-p", str(folder)]
        self._command = [NGINX, *paths]

    def __enter__(self) -> "DeployedNginx":
        checked = subprocess.run([*self._command, "-t"], capture_output=True, text=True, timeout=60)
        assert "[warn]" not in checked.stderr
        assert checked.returncode == 0, checked.stderr
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        log = self._folder / "log"
        with open(log, "ab") as out:
            self._process = subprocess.Popen(self._command, stdout=out, stderr=out)
        until(partial(answers, self._process, log, self.url, self.authority))

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(timeout=60)
