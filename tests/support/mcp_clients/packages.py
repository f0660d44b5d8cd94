"""The clients' packages, installed once in the versions that `versions.json` names."""

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.support.packages import install_command, new_environment
from tests.support.requirements import needs

TESTS = Path(__file__).parents[2] / "mcp_clients"
VERSIONS = json.loads((TESTS / "versions.json").read_text())
# Inside the virtual environment: `make clean` removes them, and no checkout shows them.
CACHE = Path(sys.prefix) / "other-programs"
INSTALL_SECONDS = 280
NPM_INSTALL = (
    "npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "--no-save",
    "--fetch-retry-mintimeout=1000",
)  # fmt: skip


def node_packages(versions: dict[str, str] = VERSIONS["npm"]) -> Path:
    """The `node_modules` with these packages; by default the clients and Node.js itself."""
    if not shutil.which("npm"):
        needs("npm", "install the packages nodejs and npm")
    with _folder("npm", versions) as (folder, is_installed):
        if not is_installed:
            (folder / "package.json").write_text('{"private": true}')
            _install("npm registry", folder, *NPM_INSTALL, *_pinned(versions, "@"))
    return folder / "node_modules"


def python_environment(name: str, versions: dict[str, str] | None = None) -> Path:
    """The Python of an environment with these packages; by default the ones of one client."""
    versions = versions or VERSIONS["pypi"][name]
    with _folder(name, versions) as (folder, is_installed):
        python = folder / "bin" / "python"
        if not is_installed:
            new_environment(folder)
            _install("PyPI", folder, *install_command(python, *_pinned(versions, "==")))
    return python


def _pinned(versions: Mapping[str, str], separator: str) -> list[str]:
    return [f"{name}{separator}{version}" for name, version in versions.items()]


@contextmanager
def _folder(name: str, versions: Mapping[str, str]) -> Iterator[tuple[Path, bool]]:
    """The directory of these versions, and whether they are installed; for one process only."""
    digest = hashlib.sha256(json.dumps(versions).encode()).hexdigest()[:8]
    folder = CACHE / f"{name}-{digest}"
    folder.mkdir(parents=True, exist_ok=True)
    with (CACHE / f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield folder, (folder / "installed").exists()
        (folder / "installed").touch()


def _install(source: str, folder: Path, *command: str) -> None:
    try:
        done = subprocess.run(
            command, cwd=folder, env=os.environ | {"PYTHONNOUSERSITE": "1"}, capture_output=True,
            text=True, timeout=INSTALL_SECONDS, check=False,
        )  # fmt: skip
        problem = "" if done.returncode == 0 else " ".join(done.stderr.split())[:200]
    except subprocess.TimeoutExpired:
        problem = f"{command[0]} took over {INSTALL_SECONDS} s"
    if problem:
        shutil.rmtree(folder)
        needs(source, problem)
