"""The dependencies that setup.cfg names, and all that these need in turn."""

import re
from collections.abc import Iterator
from configparser import ConfigParser
from importlib.metadata import requires

from packaging.requirements import Requirement

from tests.support.documents import ROOT

_SETUP = ConfigParser()
_SETUP.read(ROOT / "setup.cfg")
EXTRAS = list(_SETUP["options.extras_require"])


def normalized(name: str) -> str:
    """The name of a package as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def dependencies(extra: str | None = None) -> dict[str, Requirement]:
    """What the package needs, or what an extra of it adds, by name."""
    text = (
        _SETUP["options.extras_require"][extra] if extra else _SETUP["options"]["install_requires"]
    )
    parsed = [Requirement(line) for line in text.split("\n") if line]
    return {normalized(each.name): each for each in parsed if each.name != "taskservice"}


def with_their_own(direct: dict[str, Requirement]) -> set[str]:
    """The names of these packages and of all that they need, as they are installed here."""
    waiting, found = list(direct.values()), set()
    while waiting:
        each = waiting.pop()
        if normalized(each.name) not in found:
            found.add(normalized(each.name))
            waiting += _needed_by(each)
    return found


def _needed_by(requirement: Requirement) -> Iterator[Requirement]:
    for line in requires(requirement.name) or []:
        each = Requirement(line)
        extras = requirement.extras or {""}
        if each.marker is None or any(each.marker.evaluate({"extra": name}) for name in extras):
            yield each
