"""Subtests that cost nothing while they pass."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest


class CheapSubtests:
    """As pytest's own, but only what fails is reported, which costs more than most cases do."""

    def __init__(self, subtests: pytest.Subtests) -> None:
        self._subtests = subtests

    @contextmanager
    def test(self, name: str) -> Iterator[None]:
        try:
            yield
        # What `pytest.fail` and `pytest.raises` raise is not an Exception.
        except (Exception, pytest.fail.Exception):
            with self._subtests.test(name):
                raise
