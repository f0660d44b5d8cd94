"""Subtests that cost nothing while they pass."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest


class CheapSubtests:
    """Like pytest's own, but only failures are reported, since a report costs more than a case."""

    def __init__(self, subtests: pytest.Subtests) -> None:
        self._subtests = subtests

    @contextmanager
    def test(self, name: str) -> Iterator[None]:
        try:
            yield
        # `pytest.fail` and `pytest.raises` raise errors that are not Exceptions.
        except (Exception, pytest.fail.Exception):
            with self._subtests.test(name):
                raise
