"""A real nginx in front of the service, under a prefix; it can cache."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.readiness import is_up
from tests.support.service import free_port
from tests.support.waiting import until

NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
PREFIX = "/agents/tasks"

_FRAME = """
{user}
daemon off;
pid {folder}/pid;
worker_processes 1;
events {{ }}
http {{
  access_log off;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  {http}
}}
"""
SERVER = """
  {caching}
  server {{
    listen 127.0.0.1:{port};
    location {prefix}/ {{
      proxy_pass http://127.0.0.1:{behind}/;
      proxy_http_version 1.1;
      proxy_set_header Host $http_host;
      proxy_set_header Connection "";
      proxy_set_header X-Forwarded-For $remote_addr;
      proxy_set_header X-Forwarded-Proto $scheme;
      proxy_set_header X-Forwarded-Prefix {prefix};
    }}
  }}
"""

# It caches all permitted responses, including errors.
CACHING = """
  proxy_cache_path {folder}/cache keys_zone=cache:1m;
  proxy_cache cache;
  proxy_cache_key $request_uri;
  proxy_cache_valid any 10m;
  add_header X-Cache-Status $upstream_cache_status always;
"""
# Settings of an operator who caches more than the service permits.
CACHING_ALL = f"{CACHING}  proxy_ignore_headers Cache-Control Expires;\n"


def settings(folder: Path, http: str) -> str:
    """The text of an nginx.conf with all files in this directory; `http` is its variable part."""
    # By default its workers run as the user `nobody`, who can't write into a test's directory.
    user = "user root;" if os.geteuid() == 0 else ""
    return _FRAME.format(user=user, folder=folder, http=http)


@contextmanager
def nginx(folder: Path, behind: int, caching: str = "") -> Iterator[str]:
    """Run nginx in front of the service on this port; yields the URL of the service behind it."""
    folder.mkdir()
    port = free_port()
    file = folder / "nginx.conf"
    values = {"folder": folder, "port": port, "behind": behind, "prefix": PREFIX}
    server = SERVER.format(caching=caching.format(**values), **values)
    file.write_text(settings(folder, server))
    assert NGINX
    command = [NGINX, "-c", str(file), "-e", str(folder / "error.log"), "-p", str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}{PREFIX}"
    try:
        until(lambda: is_up(f"{url}/livez"))
        yield url
    finally:
        process.terminate()
        process.wait(timeout=10)
