"""The package: its wheel, the dependencies that setup.cfg names, and what these need in turn."""

import re
import shutil
import subprocess
import sys
import venv
from collections.abc import Iterator
from configparser import ConfigParser
from importlib.metadata import requires
from pathlib import Path

from packaging.requirements import Requirement
from uv import find_uv_bin

from tests.support.documents import ROOT
from tests.support.requirements import needs

SOURCES = (
    "setup.cfg", "pyproject.toml", "requirements.txt", "Makefile", "LICENSE",
    "deploy/package-index.md", "CHANGELOG.md", "SECURITY.md",
)  # fmt: skip
_SETUP = ConfigParser()
_SETUP.read(ROOT / "setup.cfg")
EXTRAS = list(_SETUP["options.extras_require"])


def normalized(name: str) -> str:
    """The name of a package as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def dependencies(extra: str | None = None) -> dict[str, Requirement]:
    """The dependencies of the package, or of one of its extras, by name."""
    text = (
        _SETUP["options.extras_require"][extra] if extra else _SETUP["options"]["install_requires"]
    )
    parsed = [Requirement(line) for line in text.split("\n") if line]
    return {
        normalized(requirement.name): requirement
        for requirement in parsed
        if requirement.name != "taskservice"
    }


def with_their_own(direct: dict[str, Requirement]) -> set[str]:
    """The names of these packages and of all that they need, as they are installed here."""
    waiting, names = list(direct.values()), set()
    while waiting:
        requirement = waiting.pop()
        if normalized(requirement.name) not in names:
            names.add(normalized(requirement.name))
            waiting += _needed_by(requirement)
    return names


def _needed_by(requirement: Requirement) -> Iterator[Requirement]:
    for line in requires(requirement.name) or []:
        needed = Requirement(line)
        extras = requirement.extras or {""}
        if needed.marker is None or any(needed.marker.evaluate({"extra": name}) for name in extras):
            yield needed


def new_environment(folder: Path) -> Path:
    """The Python of a new environment, without its own pip, which would take seconds."""
    venv.create(folder, symlinks=True)
    return folder / "bin" / "python"


def install_command(python: Path | str, *arguments: str) -> list[str]:
    """The command that installs packages in an environment: uv takes a tenth of pip's time."""
    return [find_uv_bin(), "pip", "install", "--quiet", "--python", str(python), *arguments]


def run_uv(command: list[str]) -> str:
    """The stdout of a command of uv; the test is skipped if PyPI is unreachable."""
    result = subprocess.run(command, capture_output=True, text=True, timeout=280)
    if "Failed to fetch" in result.stderr:
        needs("PyPI", " ".join(result.stderr.split())[:200])
    assert result.returncode == 0, result.stderr
    return result.stdout


def install(python: Path | str, *arguments: str) -> None:
    run_uv(install_command(python, *arguments))


def installed(python: Path | str) -> set[str]:
    """The names of the packages in an environment."""
    listed = run_uv([find_uv_bin(), "pip", "list", "--format", "freeze", "--python", str(python)])
    return {normalized(line.partition("==")[0]) for line in listed.split()}


def copy_sources(folder: Path) -> Path:
    """The sources of the package, as in an archive of the repository: without git."""
    unwanted = shutil.ignore_patterns("__pycache__", "_version.py", "help")
    for name in ("taskservice", "docs", "examples"):
        shutil.copytree(ROOT / name, folder / name, ignore=unwanted)
    (folder / "deploy").mkdir()
    for name in SOURCES:
        shutil.copy(ROOT / name, folder / name)
    return folder


def build(sources: Path, folder: Path) -> Path:
    """The wheel of these sources, in this directory."""
    folder.mkdir(exist_ok=True)
    before = set(folder.glob("*.whl"))
    python = ["--python", sys.executable]
    run_uv([find_uv_bin(), "build", "--wheel", *python, "--out-dir", str(folder), str(sources)])
    (built,) = set(folder.glob("*.whl")) - before
    return built


def wheel(folder: Path) -> Path:
    """The wheel of the package, built in a copy of its sources."""
    return build(copy_sources(folder / "sources"), folder)
