"""Fixtures of several files: a server for mail."""

from collections.abc import Iterator

import pytest

from tests.support.mail_server import MailServer


@pytest.fixture
def mail_server() -> Iterator[MailServer]:
    with MailServer() as server:
        yield server
