"""deploy/Caddyfile in a real Caddy; only addresses are replaced."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from tests.support.deployed_nginx import HOST, answers, replaced
from tests.support.documents import ROOT, block_in
from tests.support.requirements import needs
from tests.support.service import free_port
from tests.support.waiting import until

# A test can't use the ports of the machine's own Caddy, and must not change its trusted CAs.
AROUND_CADDY = """
{
	admin off
	auto_https disable_redirects
	skip_install_trust
	grace_period 1s
	servers {
		protocols h1 h2
	}
}
"""


def needs_other_names(version: str) -> bool:
    """Whether this Caddy is too old for the names of buffers in the file."""
    return [int(number) for number in re.findall(r"\d+", version)[:3]] < [2, 6, 3]


@contextmanager
def deployed_caddy(
    folder: Path, text: str = (ROOT / "deploy/Caddyfile").read_text(), behind: int = 0
) -> Iterator[tuple[str, Path]]:
    """Caddy with this text, in front of the service on the port `behind`: URL and authority."""
    program = shutil.which("caddy")
    if program is None:
        needs("Caddy", "install the package caddy")
    folder.mkdir(exist_ok=True)
    url = f"https://{HOST}:{free_port()}"
    values = {"127.0.0.1:8000": f"127.0.0.1:{behind}", "\ntasks.example.org {": f"\n{url} {{"}
    path = folder / "Caddyfile"
    path.write_text(AROUND_CADDY + replaced(text, values))
    version = subprocess.run([program, "version"], capture_output=True, text=True, timeout=60)
    if needs_other_names(version.stdout):
        block = block_in("operate", "caddy before 2.6.3")
        command = ["bash", "-ec", block.replace("/etc/caddy/Caddyfile", str(path))]
        subprocess.run(command, check=True, timeout=60)
    command = [program, "run", "--adapter", "caddyfile", "--config", str(path)]
    variables = {"HOME": str(folder), "XDG_DATA_HOME": str(folder), "XDG_CONFIG_HOME": str(folder)}
    authority = folder / "caddy/pki/authorities/local/root.crt"
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | variables)
    try:
        until(partial(answers, process, folder / "log", url, authority))
        yield url, authority
    finally:
        process.terminate()
        process.wait(timeout=60)
