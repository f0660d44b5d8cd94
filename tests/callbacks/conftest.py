"""Fixtures of several files: a server for mail, and patience on a busy machine."""

from collections.abc import Iterator

import pytest

from taskservice.database import transactions
from tests.support.mail_server import MailServer
from tests.support.waiting import PATIENCE_SECONDS


@pytest.fixture(autouse=True)
def patient_writers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A writer waits as long as a busy machine needs, behind hundreds of attempts."""
    monkeypatch.setattr(transactions, "BUSY_SECONDS", PATIENCE_SECONDS)


@pytest.fixture
def mail_server() -> Iterator[MailServer]:
    with MailServer() as server:
        yield server
