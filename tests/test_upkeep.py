"""Upkeep: what the loop of a worker does between the requests."""

import sqlite3
from pathlib import Path

import pytest
from flask import Flask

from taskservice.upkeep import Upkeep
from tests.live import Service
from tests.people import Person, expect


def key_of(person: Person) -> dict[str, object]:
    key: dict[str, object] = expect(person.get("/user"), 200)["key"]
    return key


def test_last_use_of_a_key_is_kept_to_the_minute(app: Flask, alice: Person) -> None:
    assert key_of(alice)["lastUsedAt"] is None
    Upkeep(app).do_round()
    last_used_at = str(key_of(alice)["lastUsedAt"])
    assert last_used_at.endswith(":00.000Z")
    assert last_used_at[:13] in (str(key_of(alice)["createdAt"])[:13], last_used_at[:13])


def test_failing_chore_does_not_stop_the_others(
    app: Flask, alice: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    from taskservice import upkeep

    def fail() -> None:
        raise OSError("as if the disk were gone")

    monkeypatch.setattr(upkeep, "CHORES", (fail, *upkeep.CHORES))
    key_of(alice)
    Upkeep(app).do_round()
    assert key_of(alice)["lastUsedAt"] is not None


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_uses_are_written_down_when_the_service_stops(service: Service, tmp_path: Path) -> None:
    service.add_user().request("GET", "/user")
    assert service.stop() == 0
    connection = sqlite3.connect(tmp_path / "data" / "taskservice.db")
    ((last_used_at,),) = connection.execute("SELECT last_used_at FROM api_keys").fetchall()
    connection.close()
    assert last_used_at is not None
