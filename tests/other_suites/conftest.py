"""Fixtures: a service that all of these tests share, and what other projects test with."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.api_client import RemoteClient
from tests.support.mcp_clients.packages import node_packages
from tests.support.requirements import needs
from tests.support.service import Service

VERSIONS = json.loads((Path(__file__).parent / "versions.json").read_text())
JDK = "default-jdk-headless"
JAR_FOLDER = Path("/usr/share/java")
# Jar -> its package in Debian.
JARS = {
    "jackson-annotations.jar": "libjackson2-annotations-java",
    "jackson-core.jar": "libjackson2-core-java",
    "jackson-databind.jar": "libjackson2-databind-java",
    "jackson-datatype-jsr310.jar": "libjackson2-modules-java8-java",
    "geronimo-annotation-1.3-spec.jar": "libgeronimo-annotation-1.3-spec-java",
    "jsr305.jar": "libjsr305-java",
}


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One service for all tests, on SQLite; what others left in it does not matter."""
    with Service(tmp_path_factory.mktemp("shared") / "data") as service:
        yield service


@pytest.fixture
def owner(shared: Service) -> RemoteClient:
    """A new user of it."""
    return shared.add_user()


@pytest.fixture(scope="session")
def node_modules() -> Path:
    """The directory with the packages of npm."""
    return node_packages(VERSIONS["npm"])


@pytest.fixture(scope="session")
def java() -> str:
    """The command `java`."""
    return program("java", JDK)


@pytest.fixture(scope="session")
def javac() -> str:
    """The command `javac`."""
    return program("javac", JDK)


@pytest.fixture(scope="session")
def class_path() -> str:
    """The jars that a client for Java is built with, for javac and java."""
    for jar, package in JARS.items():
        if not (JAR_FOLDER / jar).exists():
            needs(jar, f"install the package {package}")
    return os.pathsep.join(str(JAR_FOLDER / jar) for jar in JARS)


@pytest.fixture(scope="session", autouse=True)
def pure_go() -> Iterator[None]:
    """All programs in Go share one build of the standard library, which takes a minute."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CGO_ENABLED", "0")
        yield


@pytest.fixture(scope="session")
def go() -> str:
    """The command `go`."""
    return program("go", "golang-go")


def program(name: str, package: str) -> str:
    return shutil.which(name) or needs(name, f"install the package {package}")
