"""A user's own keys and callback secrets: created, listed, revoked, rotated."""

import re
import time
from base64 import b64decode
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from functools import partial
from io import BytesIO
from typing import Any
from uuid import UUID, uuid4

import pytest
from flask import Flask
from sqlalchemy import select, update
from standardwebhooks import Webhook, WebhookVerificationError

from taskservice import auth
from taskservice.database import clock
from taskservice.database.models import CallbackSecret
from taskservice.database.transactions import reading, transaction
from taskservice.services import users as user_service
from tests.support.api_client import ApiClient, check_invalid_fields, expect, problem
from tests.support.concurrency import at_once
from tests.support.internals import expire, moment, set_for_database
from tests.support.receiver import Receiver

Key = dict[str, Any]

SHOWN = {"id", "name", "hint", "agentId", "access", "login"}
SHOWN |= {"createdAt", "expiresAt", "lastUsedAt", "revokedAt"}


def create(person: ApiClient, name: str = "machine", **fields: Any) -> Key:
    return dict(expect(person.post("/key", json={"name": name, **fields}), 201))


def bearer(person: ApiClient, key: Key) -> ApiClient:
    """The same user with this key."""
    return ApiClient(person.app, person.name, key["key"])


def listed(person: ApiClient) -> list[Key]:
    return list(expect(person.get("/key"), 200))


def revoke(person: ApiClient, key: Key) -> Any:
    return person.delete(f"/key/{key['id']}")


def own_key(person: ApiClient) -> Key:
    return dict(expect(person.get("/user"), 200)["key"])


# --- create and list ---------------------------------------------------------------------


def test_created_user_key_does_what_its_user_may(alice: ApiClient) -> None:
    key = create(alice, "machine of Ann")
    assert key.keys() == SHOWN | {"key"}
    assert UUID(key["id"]).version == 7
    assert (key["name"], key["agentId"], key["expiresAt"]) == ("machine of Ann", None, None)
    assert (key["lastUsedAt"], key["revokedAt"]) == (None, None)
    assert key["key"].startswith("tsk_user_")
    assert auth.is_well_formed(key["key"])
    assert (key["hint"][:9], key["hint"][-4:]) == ("tsk_user_", key["key"][-4:])
    ann = bearer(alice, key)
    task = ann.start()
    assert alice.task(task) == task
    expect(ann.delete(f"/task/{task['id']}"), 200)
    assert create(ann)["agentId"] is None
    assert own_key(ann)["id"] == key["id"]


def test_created_agent_key_is_narrowed_to_its_agent(alice: ApiClient) -> None:
    alice.register("summarizer")
    other = alice.start("translator")
    key = create(alice, agentId="summarizer")
    assert key["agentId"] == "summarizer"
    assert key["key"].startswith("tsk_agent_")
    agent = bearer(alice, key)
    task = expect(agent.post("/task", json={"agentId": "summarizer"}), 201)
    assert expect(agent.get("/task"), 200) == [task]
    problem(agent.get(f"/task/{other['id']}"), 404)
    problem(agent.delete(f"/task/{task['id']}"), 403)


def test_list_has_all_keys_in_order_and_no_secrets(alice: ApiClient, bob: ApiClient) -> None:
    alice.register()
    create(bob, "not hers")
    created = [
        create(alice, "one"),
        create(alice, "of the agent", agentId="summarizer"),
        create(alice, "one", expiresAt=clock.now(60)),
    ]
    expect(revoke(alice, created[0]), 200)
    response = alice.get("/key")
    keys = expect(response, 200)
    assert all(key.keys() == SHOWN for key in keys)
    assert [key["name"] for key in keys] == ["first", "one", "of the agent", "one"]
    assert [key["id"] for key in keys[1:]] == [key["id"] for key in created]
    assert [bool(key["revokedAt"]) for key in keys] == [False, True, False, False]
    for key in created:
        assert key["key"] not in response.text
        assert auth.digest(key["key"]) not in response.text


INVALID: dict[str, list[Any]] = {
    "name": [None, "", "x" * 201, 5], "agentId": ["nobody", "", "x\0", 5],
    "key": ["tsk_user_mine"], "id": [str(uuid4())], "userId": [str(uuid4())], "revokedAt": [None],
    "access": ["write"], "login": [True], "expires": ["2099-01-01T00:00:00Z"],
}  # fmt: skip


def test_invalid_key_is_422_and_not_made(alice: ApiClient, subtests: pytest.Subtests) -> None:
    check_invalid_fields(partial(alice.post, "/key"), {"name": "k"}, INVALID, subtests)
    assert list(problem(alice.post("/key", json={}), 422)["errors"]) == ["name"]
    assert len(listed(alice)) == 1


def test_null_is_as_leaving_it_out(alice: ApiClient) -> None:
    key = create(alice, "ü" * 200, agentId=None, expiresAt=None)
    assert (key["name"], key["agentId"], key["expiresAt"]) == ("ü" * 200, None, None)


# --- expiry ------------------------------------------------------------------------------


SPELLINGS = {
    "2099-06-30T12:00:00Z": "2099-06-30T12:00:00.000Z",
    "2099-06-30t12:00:00z": "2099-06-30T12:00:00.000Z",
    "2099-06-30T12:00:00+00:00": "2099-06-30T12:00:00.000Z",
    "2099-06-30T12:00:00-00:00": "2099-06-30T12:00:00.000Z",
    "2099-06-30T12:00:00.5Z": "2099-06-30T12:00:00.500Z",
    "2099-06-30T12:00:00.1234Z": "2099-06-30T12:00:00.123Z",
    "2099-06-30T12:00:00.123456789Z": "2099-06-30T12:00:00.123Z",
    "2099-06-30T12:00:00.999999999z": "2099-06-30T12:00:00.999Z",
    "2099-06-30T12:00:00+05:45": "2099-06-30T06:15:00.000Z",
    "2099-06-30T23:30:00.25-01:30": "2099-07-01T01:00:00.250Z",
    "2099-06-30T12:00:00+23:59": "2099-06-29T12:01:00.000Z",
    "2096-02-29T00:00:00Z": "2096-02-29T00:00:00.000Z",
    "9999-12-31T23:59:59.999Z": "9999-12-31T23:59:59.999Z",
}


def test_expiry_may_be_written_in_every_way_of_rfc_3339(
    alice: ApiClient, subtests: pytest.Subtests
) -> None:
    for written, kept in SPELLINGS.items():
        with subtests.test(written):
            key = create(alice, expiresAt=written)
            assert key["expiresAt"] == kept
            assert listed(alice)[-1]["expiresAt"] == kept
            assert own_key(bearer(alice, key))["expiresAt"] == kept


NO_TIMES: list[Any] = [
    "", "tomorrow", "2099-06-30", "2099-06-30T12:00", "2099-06-30T12:00:00", "4086000000",
    "2099-06-30T12:00:00 Z", "2099-06-30 12:00:00", "2099-06-30T12:00:00.Z", "20990630T120000Z",
    "2099-06-30T12:00:00+0545", "2099-06-30T12:00:00+5:45", "2099-06-30T12:00:00+24:00",
    "2099-06-30T12:00:00UTC", "2099-06-31T12:00:00Z", "2099-13-01T12:00:00Z",
    "2097-02-29T12:00:00Z", "2099-06-30T25:00:00Z", "2099-06-30T12:60:00Z",
    "9999-12-31T23:59:59-00:01", "12099-06-30T12:00:00Z", "-2099-06-30T12:00:00Z",
    "２０９９-06-30T12:00:00Z", "2099-06-30T12:00:00Z\n", "2099-06-30T12:00:00Z\0",
    "2099-W26-2T12:00:00Z", 4086000000, 4086000000.5, True, [], {},
]  # fmt: skip


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
@pytest.mark.parametrize("zone", ["Asia/Tokyo", "America/New_York"])
def test_expiry_at_either_end_of_time_is_read_wherever_the_server_is(
    alice: ApiClient, app: Flask, zone: str
) -> None:
    set_for_database(app, "timezone", f"'{zone}'")
    try:
        made = expect(
            alice.post("/key", json={"name": "k", "expiresAt": "9999-12-31T23:59:59.999Z"}), 201
        )
        assert made["expiresAt"] == "9999-12-31T23:59:59.999Z"
        assert expect(alice.get("/key"), 200)[-1]["expiresAt"] == made["expiresAt"]
        expect(ApiClient(app, "alice", made["key"]).get("/user"), 200)
    finally:
        set_for_database(app, "timezone", "'UTC'")


def test_expiry_that_is_not_a_time_is_422(alice: ApiClient, subtests: pytest.Subtests) -> None:
    post = partial(alice.post, "/key")
    check_invalid_fields(post, {"name": "k"}, {"expiresAt": NO_TIMES}, subtests)
    assert len(listed(alice)) == 1


def test_expiry_in_the_past_is_422(alice: ApiClient) -> None:
    now = datetime.now(timezone(timedelta(hours=5)))
    for past in (
        "2020-01-01T00:00:00Z",
        "0001-01-01T00:00:00Z",
        clock.now(-0.001),
        # In its own time zone the hour is later than here, but the time is past.
        (now - timedelta(minutes=1)).isoformat(),
    ):
        response = alice.post("/key", json={"name": "k", "expiresAt": past})
        assert list(problem(response, 422)["errors"]) == ["expiresAt"]
    assert len(listed(alice)) == 1


def test_key_ends_in_the_very_second_of_its_expiry(alice: ApiClient) -> None:
    # A slow machine may need longer for the first request than the first key lives.
    for life in (1.3, 5, 30):
        ahead = datetime.fromisoformat(clock.now(life)).replace(microsecond=0)
        machine = bearer(alice, create(alice, expiresAt=ahead.isoformat()))
        answers = [machine.get("/user").status_code]
        if answers == [200]:
            break
    expiry = clock.rfc3339(ahead)
    while answers.count(401) < 5:
        before = clock.now()
        status = machine.get("/user").status_code
        after = clock.now()
        answers.append(status)
        assert status == 200 or after >= expiry
        assert status == 401 or before < expiry
        time.sleep(0.002)
    assert (answers[0], answers[-1]) == (200, 401)
    assert answers == sorted(answers)
    assert listed(alice)[-1]["revokedAt"] is None


# --- revoke ------------------------------------------------------------------------------


def test_revoked_key_is_401_from_the_next_request_on(alice: ApiClient) -> None:
    alice.register()
    for fields in ({}, {"agentId": "summarizer"}):
        key = create(alice, **fields)
        holder = bearer(alice, key)
        expect(holder.get("/user"), 200)
        revoked = expect(revoke(alice, key), 200)
        del key["key"]
        assert revoked == key | {"revokedAt": revoked["revokedAt"]}
        assert moment(revoked["revokedAt"]) >= moment(key["createdAt"])
        assert revoked in listed(alice)
        for _ in range(2):
            problem(holder.get("/user"), 401)
        # A revoked key does not learn that it is revoked.
        problem(revoke(holder, key), 401)


def test_revoking_again_changes_nothing(alice: ApiClient) -> None:
    key = create(alice)
    first = expect(revoke(alice, key), 200)
    time.sleep(0.003)
    assert expect(revoke(alice, key), 200) == first
    assert expect(alice.delete(f"/key/{key['id'].upper()}"), 200) == first
    assert listed(alice)[-1] == first


def test_key_may_revoke_itself_while_there_is_another(alice: ApiClient) -> None:
    machine = bearer(alice, create(alice))
    expect(revoke(machine, own_key(machine)), 200)
    problem(machine.get("/user"), 401)
    expect(alice.get("/user"), 200)


def is_the_last(person: ApiClient, key: Key) -> None:
    """Revoking `key` is refused, and it still works."""
    before = listed(person)
    assert "last user key" in problem(revoke(person, key), 409)["detail"]
    assert listed(person) == before


def test_only_another_valid_user_key_lets_the_last_one_be_revoked(
    alice: ApiClient, bob: ApiClient, app: Flask
) -> None:
    create(bob)
    alice.register()
    of_agent, expired = create(alice, agentId="summarizer"), create(alice)
    expect(revoke(alice, create(alice)), 200)
    expire(app, expired)
    is_the_last(alice, own_key(alice))
    for key in (of_agent, expired):
        assert expect(revoke(alice, key), 200)["revokedAt"]


def test_server_can_revoke_the_last_user_key(alice: ApiClient, app: Flask) -> None:
    with app.app_context():
        user_service.revoke_any_key(own_key(alice)["id"])
    problem(alice.get("/user"), 401)


def test_two_keys_that_revoke_each_other_concurrently_leave_one(alice: ApiClient) -> None:
    people = [alice, bearer(alice, create(alice))]
    for _ in range(8):
        keys = [own_key(person) for person in people]
        deeds = [partial(revoke, people[0], keys[1]), partial(revoke, people[1], keys[0])]
        statuses = [answer.status_code for answer in at_once(deeds)]
        # The later request is for the last key (409), or its own key is revoked (401).
        assert sorted(statuses) in ([200, 401], [200, 409])
        left = people[statuses.index(200)]
        is_the_last(left, own_key(left))
        people = [left, bearer(left, create(left))]


def test_one_key_is_left_when_many_revoke_themselves_concurrently(alice: ApiClient) -> None:
    people = [alice, *(bearer(alice, create(alice)) for _ in range(7))]
    deeds = [partial(revoke, person, own_key(person)) for person in people]
    statuses = [answer.status_code for answer in at_once(deeds)]
    assert sorted(statuses) == [200] * 7 + [409]
    left = people[statuses.index(409)]
    assert [key["revokedAt"] is None for key in listed(left)].count(True) == 1


class SlowBody(BytesIO):
    """The body of a request that takes long, while something else happens."""

    def __init__(self, body: bytes, meanwhile: Callable[[], Any]) -> None:
        super().__init__(body)
        self._meanwhile = meanwhile

    def readinto(self, buffer: Any) -> int:
        self._meanwhile()
        return super().readinto(buffer)


def test_key_that_is_revoked_during_its_request_leaves_no_new_key(
    alice: ApiClient, app: Flask
) -> None:
    def revoke_all() -> None:
        with app.app_context():
            user_service.revoke_keys(alice.name)

    body = b'{"name": "survivor"}'
    response = alice.post(
        "/key", input_stream=SlowBody(body, revoke_all), content_type="application/json",
        content_length=len(body),
    )  # fmt: skip
    problem(response, 401)
    with app.app_context():
        assert [key.name for key in user_service.list_keys() if key.user_name == alice.name] == [
            "first"
        ]


def test_id_of_no_key_is_404(alice: ApiClient) -> None:
    key = create(alice)
    texts = (key["key"], key["hint"], auth.digest(key["key"]))
    for key_id in ("1", "first", "%00", "ü", "a" * 36, "tsk_user_abc", "x" * 3000, *texts):
        problem(alice.delete(f"/key/{key_id}"), 404)
    expect(bearer(alice, key).get("/user"), 200)


# --- callback secrets --------------------------------------------------------------------


def secret(person: ApiClient) -> dict[str, str]:
    return dict(expect(person.get("/callback-secret"), 200))


def rotate(person: ApiClient) -> dict[str, str]:
    return dict(expect(person.post("/callback-secret"), 201))


def signers(alice: ApiClient, receiver: Receiver, secrets: list[dict[str, str]]) -> list[bool]:
    """Which of these secrets sign a webhook that is sent now."""
    task = alice.start(callback=receiver.url)
    response = alice.patch(f"/task/{task['id']}", json={"status": "complete"})
    assert response.headers["Callback-Status"] == "delivered"
    request = receiver.requests[-1]
    verdicts = []
    for candidate in secrets:
        try:
            Webhook(candidate["secret"]).verify(request.body, request.headers)
            verdicts.append(True)
        except WebhookVerificationError:
            verdicts.append(False)
    return verdicts


def age(app: Flask, old: dict[str, str], seconds: float) -> None:
    """Make a secret look as if it was replaced this long ago."""
    with app.app_context(), transaction() as connection:
        replaced = update(CallbackSecret).where(
            CallbackSecret.secret == old["secret"], CallbackSecret.replaced_at.is_not(None)
        )
        assert connection.execute(replaced.values(replaced_at=clock.now(-seconds))).rowcount == 1


def test_user_has_a_secret_from_the_beginning(alice: ApiClient, bob: ApiClient) -> None:
    hers = secret(alice)
    assert hers.keys() == {"secret", "createdAt"}
    assert re.fullmatch(r"whsec_[A-Za-z0-9+/]+=*", hers["secret"])
    assert 24 <= len(b64decode(hers["secret"].removeprefix("whsec_"))) <= 64
    assert secret(alice) == hers
    assert secret(bob)["secret"] != hers["secret"]


def test_rotation_makes_a_new_secret_and_shows_it_from_then_on(
    alice: ApiClient, bob: ApiClient
) -> None:
    old, his = secret(alice), secret(bob)
    time.sleep(0.003)
    new = rotate(alice)
    assert new.keys() == {"secret", "createdAt"}
    assert new["secret"] != old["secret"]
    assert moment(new["createdAt"]) > moment(old["createdAt"])
    assert secret(alice) == new
    assert secret(bob) == his


def test_replaced_secret_signs_for_a_day(alice: ApiClient, app: Flask, receiver: Receiver) -> None:
    first = secret(alice)
    second = rotate(alice)
    third = rotate(alice)
    secrets = [first, second, third]
    assert signers(alice, receiver, secrets) == [True, True, True]
    age(app, first, 86_400 - 30)
    assert signers(alice, receiver, secrets) == [True, True, True]
    age(app, first, 86_400 + 1)
    assert signers(alice, receiver, secrets) == [False, True, True]
    age(app, second, 86_400 + 1)
    assert signers(alice, receiver, secrets) == [False, False, True]
    # The current one signs however old it is.
    with app.app_context(), transaction() as connection:
        old = {"created_at": "2020-01-01T00:00:00.000Z"}
        connection.execute(update(CallbackSecret).values(old))
    assert signers(alice, receiver, secrets) == [False, False, True]


def test_tenth_rotation_in_a_day_is_refused_until_the_first_secret_is_a_day_old(
    alice: ApiClient, bob: ApiClient, app: Flask, receiver: Receiver
) -> None:
    secrets = [secret(alice), *(rotate(alice) for _ in range(9))]
    response = alice.post("/callback-secret")
    assert "9 replaced secrets are still within" in problem(response, 429)["detail"]
    assert 86_300 < int(response.headers["Retry-After"]) <= 86_400
    assert secret(alice) == secrets[-1]
    assert signers(alice, receiver, secrets) == [True] * 10
    rotate(bob)
    age(app, secrets[0], 86_400 + 1)
    rotate(alice)
    problem(alice.post("/callback-secret"), 429)


def test_concurrent_rotations_leave_one_current_secret(
    alice: ApiClient, app: Flask, receiver: Receiver
) -> None:
    first = secret(alice)
    people = [ApiClient(app, alice.name, alice.key) for _ in range(12)]
    # A concurrent read finds one too.
    deeds = [partial(rotate if number % 3 else secret, one) for number, one in enumerate(people)]
    answers = at_once(deeds)
    made = [answer for number, answer in enumerate(answers) if number % 3]
    assert len({answer["secret"] for answer in made}) == 8
    with app.app_context(), reading() as connection:
        current = select(CallbackSecret.secret).where(CallbackSecret.replaced_at.is_(None))
        (kept,) = connection.execute(current).scalars()
    assert secret(alice)["secret"] == kept
    assert kept in {answer["secret"] for answer in made}
    seen = {first["secret"], *(answer["secret"] for answer in made)}
    assert {answer["secret"] for answer in answers} <= seen
    assert all(signers(alice, receiver, [first, *made]))
