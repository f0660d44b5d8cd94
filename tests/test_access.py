"""Access: which keys are valid, and what a key may see and do."""

import hashlib
import math
import re
import sqlite3
from base64 import b64encode
from typing import Any

import pytest
from flask import Flask

from taskservice import auth
from taskservice.config import Config
from taskservice.database import clock
from taskservice.services import users as user_service
from tests.support.api_client import ApiClient, expect, problem, problem_text
from tests.support.internals import FITTING_BODIES, PREFIX, filled, reads, rows, rules
from tests.support.marks import one_database

METHODS = ("GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE", "TRACE", "PROPFIND", "FOO")
UNKNOWN_PATHS = (
    "", "/", "/nothing", "/task/", "//task", "/task//", "/task/a/b/c", "/Task", "/tasks",
    "/%00", "/ü", "/%ff", "/..", "/task/../user", "/agent/a/b", "/" + "x" * 4000,
)  # fmt: skip

# All that the contract lets an agent key do; everything else returns 403.
MAY_DO = {
    ("GET", "/task"), ("POST", "/task"),
    ("GET", "/task/<task_id>"), ("PATCH", "/task/<task_id>"),
    ("POST", "/task/<task_id>/logs"), ("PUT", "/task/<task_id>/logs"),
    ("GET", "/task/<task_id>/logs"), ("GET", "/task/<task_id>/events"),
    ("POST", "/task/<task_id>/rerun"),
    ("GET", "/task/<task_id>/question"), ("POST", "/task/<task_id>/question"),
    ("GET", "/task/<task_id>/question/<question_id>"),
    ("DELETE", "/task/<task_id>/question/<question_id>"),
    ("GET", "/agent"), ("GET", "/agent/<agent_id>"), ("PUT", "/agent/<agent_id>"),
    ("POST", "/agent/<agent_id>/claim"), ("GET", "/agent/<agent_id>/numbers"),
    ("GET", "/attention"), ("GET", "/search"),
    ("GET", "/task/<task_id>/new-lines"), ("GET", "/user"),
}  # fmt: skip


def mistype(text: str, place: int) -> str:
    """`text` with another letter or digit at this place."""
    other = "a" if text[place] != "a" else "b"
    return text[:place] + other + text[place + 1 :]


def wrong_keys(key: str) -> dict[str, list[str]]:
    """The headers `apikey` of requests that are refused, by what is wrong with them."""
    return {
        "missing": [], "empty": [""], "a space": [" "], "another word": ["apikey123"],
        "another scheme": [f"Bearer {key}"], "SQL": ["' OR 1=1 --"],
        "its digest": [hashlib.sha256(key.encode()).hexdigest()],
        "unknown": [auth.new(for_agent=False)], "unknown, of an agent": [auth.new(for_agent=True)],
        "mistyped in the middle": [mistype(key, 30)], "mistyped at the end": [mistype(key, -1)],
        "mistyped prefix": [mistype(key, 5)], "in upper case": [key.upper()],
        "of a user, shown as an agent's": [key.replace("_user_", "_agent_")],
        "not ASCII": [mistype(key, 30)[:-1] + "ü"], "digits of another script": [key[:-1] + "²"],
        "too short": [key[:-1]], "too long": [key + "a"], "the prefix alone": ["tsk_user_"],
        "8 kB": [key + "a" * 8192], "sent twice": [key, key], "sent with another": [key, "other"],
        "sent with an empty one": [key, ""], "joined by a comma": [f"{key},{key}"],
    }  # fmt: skip


def answer_without_key(app: Flask, **options: Any) -> Any:
    """The answer to a request without the key of a fixture."""
    return app.test_client().open(**options)


# --- 401 ---------------------------------------------------------------------------------


@one_database
def test_every_wrong_key_gets_the_same_401(
    alice: ApiClient, app: Flask, subtests: pytest.Subtests
) -> None:
    first = answer_without_key(app, path=f"{PREFIX}/task")
    assert problem(first, 401)["detail"] == "API key is invalid"
    for name, texts in wrong_keys(alice.key).items():
        with subtests.test(name):
            headers = [("apikey", text) for text in texts]
            response = answer_without_key(app, path=f"{PREFIX}/task", headers=headers)
            problem(response, 401)
            assert response.data == first.data
            assert response.headers["WWW-Authenticate"] == 'Bearer realm="taskservice"'
    expect(alice.get("/task"), 200)


@one_database
def test_key_in_the_query_does_not_count(alice: ApiClient, app: Flask) -> None:
    for name in ("apikey", "api_key", "key"):
        problem(answer_without_key(app, path=f"{PREFIX}/task", query_string={name: alice.key}), 401)
    body = problem(alice.get("/task", query_string={"apikey": alice.key}), 422)
    assert list(body["errors"]) == ["apikey"]


@one_database
def test_key_in_another_header_or_a_cookie_does_not_count(alice: ApiClient, app: Flask) -> None:
    for headers in (
        {"X-Api-Key": alice.key},
        {"Proxy-Authorization": f"Bearer {alice.key}"},
        {"Cookie": f"apikey={alice.key}"},
    ):
        problem(answer_without_key(app, path=f"{PREFIX}/task", headers=headers), 401)


@one_database
def test_bearer_key_is_the_same_as_that_in_the_header_apikey(alice: ApiClient, app: Flask) -> None:
    for text in (f"Bearer {alice.key}", f"bearer {alice.key}", f"BEARER   {alice.key} "):
        headers = [("Authorization", text)]
        response = answer_without_key(app, path=f"{PREFIX}/user", headers=headers)
        assert expect(response, 200)["key"] == expect(alice.get("/user"), 200)["key"]


def wrong_authorizations(key: str) -> dict[str, tuple[str | None, list[str]]]:
    """A header `apikey`, or none, and headers `Authorization`, by what is wrong with them."""
    other, mistyped = auth.new(for_agent=False), mistype(key, 30)
    password = b64encode(f"alice:{key}".encode()).decode()
    bearer, basic = f"Bearer {key}", "Basic YTpi"
    return {
        "another key with a bearer": (other, [bearer]),
        "a key with another bearer": (key, [f"Bearer {other}"]),
        "the same wrong key twice": (mistyped, [f"Bearer {mistyped}"]),
        "both, and Basic": (key, [basic, bearer]),
        "bearer twice": (None, [bearer, bearer]), "bearer, then Basic": (None, [bearer, basic]),
        "Basic, then bearer": (None, [basic, bearer]), "no scheme": (None, [key]),
        "another scheme": (None, [f"Token {key}"]),
        "a key as the password of Basic": (None, [f"Basic {password}"]),
        "no space": (None, [f"Bearer{key}"]), "a tab": (None, [f"Bearer\t{key}"]),
        "an empty one": (None, ["Bearer"]), "an empty one twice": ("", ["Bearer "]),
        "two words": (None, [f"{bearer} {key}"]), "an unknown one": (None, [f"Bearer {other}"]),
        "a mistyped one": (None, [f"Bearer {mistyped}"]),
        "in quotation marks": (None, [f'Bearer "{key}"']),
    }  # fmt: skip


@one_database
def test_every_other_way_to_send_a_bearer_gets_the_same_401(
    alice: ApiClient, app: Flask, subtests: pytest.Subtests
) -> None:
    first = answer_without_key(app, path=f"{PREFIX}/task")
    for name, (apikey, authorizations) in wrong_authorizations(alice.key).items():
        with subtests.test(name):
            headers = [("apikey", apikey)] if apikey is not None else []
            headers += [("Authorization", text) for text in authorizations]
            response = answer_without_key(app, path=f"{PREFIX}/task", headers=headers)
            problem(response, 401)
            assert response.data == first.data


@one_database
def test_same_key_in_both_headers_counts(alice: ApiClient, bob: ApiClient, app: Flask) -> None:
    """Some generated clients send it under each scheme that the document offers."""
    bearer = ("Authorization", f"Bearer {alice.key}")
    for headers in ([("apikey", alice.key), bearer], [bearer, ("apikey", alice.key)]):
        for path in ("/task", "/user"):
            expect(answer_without_key(app, path=PREFIX + path, headers=headers), 200)
    hers = [("apikey", bob.key), bearer]
    problem(answer_without_key(app, path=f"{PREFIX}/task", headers=hers), 401)


@one_database
def test_header_without_a_key_is_ignored_if_the_other_has_one(alice: ApiClient, app: Flask) -> None:
    """openapi-generator's client for Ruby sends `Bearer` alone if only `apikey` is set."""
    for apikey, bearer in (
        (alice.key, "Bearer"),
        (alice.key, "bearer  "),
        ("", f"Bearer {alice.key}"),
    ):
        headers = [("apikey", apikey), ("Authorization", bearer)]
        expect(answer_without_key(app, path=f"{PREFIX}/user", headers=headers), 200)
    wrong = [("apikey", mistype(alice.key, 30)), ("Authorization", "Bearer")]
    problem(answer_without_key(app, path=f"{PREFIX}/user", headers=wrong), 401)


@one_database
def test_another_scheme_is_ignored_where_the_header_apikey_is_sent(alice: ApiClient) -> None:
    """A proxy that requires a password passes it on."""
    for text in ("Basic YTpi", 'Digest username="a, b", realm="c"', "Negotiate YTpi", ""):
        expect(alice.get("/user", headers={"Authorization": text}), 200)


def test_expired_key_is_401_and_one_that_expires_later_is_not(alice: ApiClient, app: Flask) -> None:
    with app.app_context():
        expired = user_service.add_key("alice", "old", None, clock.now(-1)).text
        valid = user_service.add_key("alice", "new", None, clock.now(3600)).text
    first = answer_without_key(app, path=f"{PREFIX}/user")
    response = ApiClient(app, "alice", expired).get("/user")
    problem(response, 401)
    assert problem_text(response) == problem_text(first)
    expect(ApiClient(app, "alice", valid).get("/user"), 200)


@one_database
def test_nothing_below_the_api_answers_without_a_key(app: Flask, subtests: pytest.Subtests) -> None:
    paths = {filled(rule) for _, rule in rules(app)} | set(UNKNOWN_PATHS)
    for path in sorted(paths):
        with subtests.test(path[:40]):
            for method in METHODS:
                response = answer_without_key(app, path=PREFIX + path, method=method)
                assert (method, response.status_code) == (method, 401)
                assert response.content_type == "application/problem+json"


@one_database
def test_no_other_spelling_of_a_path_gets_past_the_key(alice: ApiClient, app: Flask) -> None:
    """Handed over as a server does, which takes a path as it comes."""
    alice.start(name="secret")
    for path in (
        "//api/v1/task", "/api//v1/task", "/api/v1//task", "/api/v1", "/API/V1/task",
        "/api/./v1/task", "/api/v1/../v1/task", "/api/v1/task/",
    ):  # fmt: skip
        response = app.test_client().open(environ_overrides={"PATH_INFO": path})
        assert response.status_code in (308, 401, 404)
        assert b"secret" not in response.data


@one_database
def test_key_is_checked_before_anything_else(app: Flask) -> None:
    for options in (
        {"data": b"{", "content_type": "application/json"},
        {"data": b"x", "content_type": "text/html"},
        {"headers": {"Accept": "text/html"}},
        {"query_string": {"nonsense": "1"}},
        {"environ_overrides": {"CONTENT_LENGTH": str(1 << 40)}},
    ):
        problem(answer_without_key(app, path=f"{PREFIX}/task", method="POST", **options), 401)


@one_database
@pytest.mark.usefixtures("patient_probe")
@pytest.mark.parametrize("path", ["/livez", "/readyz"])
def test_operators_routes_need_no_key(app: Flask, path: str) -> None:
    expect(answer_without_key(app, path=path), 200)
    expect(answer_without_key(app, path=path, headers={"apikey": "wrong"}), 200)


# --- another user ------------------------------------------------------------------------


def belongings(alice: ApiClient) -> dict[str, str]:
    """Something of each kind that belongs to Alice, as the routes name their parts."""
    task = alice.start("secret-agent", name="secret", callback="https://alice.example/secret")
    alice.append(task, "a secret line")
    key = expect(alice.post("/key", json={"name": "secret"}), 201)
    return {"task_id": task["id"], "agent_id": "secret-agent", "key_id": key["id"]}


def test_everything_of_another_user_is_404_and_stays_as_it_is(
    alice: ApiClient, bob: ApiClient, app: Flask, subtests: pytest.Subtests
) -> None:
    hers, before = belongings(alice), rows(app)
    for method, rule in rules(app):
        # A PUT of an agent creates the caller's own.
        if "<" in rule and (method, rule) != ("PUT", "/agent/<agent_id>") and method != "OPTIONS":
            with subtests.test(f"{method} {rule}"):
                fields = FITTING_BODIES.get((method, rule))
                response = bob.request(method, filled(rule, **hers), json=fields)
                assert response.status_code == 404
                unknown = bob.request(method, filled(rule), json=fields)
                assert problem_text(response) == problem_text(unknown)
    assert rows(app) == before


def test_agent_key_of_another_user_learns_nothing(
    alice: ApiClient, bob: ApiClient, app: Flask, subtests: pytest.Subtests
) -> None:
    hers = belongings(alice)
    stranger = bob.agent_key("own-agent")
    before = rows(app)
    for method, rule in rules(app):
        if "<" in rule and method != "OPTIONS":
            with subtests.test(f"{method} {rule}"):
                fields = FITTING_BODIES.get((method, rule))
                response = stranger.request(method, filled(rule, **hers), json=fields)
                # To what an agent key may never do the answer is the same for every ID.
                may = (method.replace("HEAD", "GET"), rule) in MAY_DO
                assert response.status_code == (404 if may else 403)
                if "agent_id" not in rule:
                    unknown = stranger.request(method, filled(rule), json=fields)
                    assert problem_text(response) == problem_text(unknown)
    assert rows(app) == before


def test_lists_hold_nothing_of_another_user(alice: ApiClient, bob: ApiClient) -> None:
    belongings(alice)
    assert expect(bob.get("/task"), 200) == []
    assert expect(bob.get("/task?expand=agent,user"), 200) == []
    assert expect(bob.get("/agent"), 200) == []
    assert [key["name"] for key in expect(bob.get("/key"), 200)] == ["first"]
    hers, his = (expect(person.get("/callback-secret"), 200) for person in (alice, bob))
    assert hers["secret"] != his["secret"]


def test_agent_of_another_user_is_as_one_that_does_not_exist(
    alice: ApiClient, bob: ApiClient
) -> None:
    alice.register("secret-agent")
    for path, fields in (("/task", {}), ("/key", {"name": "k"})):
        taken = bob.post(path, json={"agentId": "secret-agent", **fields})
        unknown = bob.post(path, json={"agentId": "nobody", **fields})
        assert list(problem(taken, 422)["errors"]) == ["agentId"]
        assert problem_text(taken) == problem_text(unknown)


# --- agent keys --------------------------------------------------------------------------


def test_agent_key_does_the_work_of_its_agent(alice: ApiClient) -> None:
    agent = alice.agent_key()
    task = expect(agent.post("/task", json={"agentId": "summarizer"}), 201)
    agent.append(task, "one")
    agent.report(task, status="complete", output={"answer": 42})
    assert agent.task(task) == alice.task(task)
    assert agent.task(task)["status"] == "complete"
    assert expect(agent.get("/task"), 200) == [alice.task(task)]
    changed = expect(agent.put("/agent/summarizer", json={"name": "New name"}), 200)
    assert expect(agent.get("/agent/summarizer"), 200) == changed
    me = expect(agent.get("/user"), 200)
    assert (me["name"], me["key"]["agentId"]) == ("alice", "summarizer")


def test_agent_key_sees_nothing_of_other_agents(alice: ApiClient) -> None:
    agent = alice.agent_key("summarizer")
    visible, other = alice.start("summarizer"), alice.start("translator")
    assert [task["id"] for task in expect(agent.get("/task"), 200)] == [visible["id"]]
    assert [listed["id"] for listed in expect(agent.get("/agent"), 200)] == ["summarizer"]
    path = f"/task/{other['id']}"
    for response in (
        agent.get(path), agent.get(f"{path}?expand=agent,user"),
        agent.patch(path, json={"status": "complete"}), agent.patch(path, json={}),
        agent.post(f"{path}/logs", json={"logs": ["x"]}), agent.put(f"{path}/logs", data=b"x"),
        agent.get("/agent/translator"), agent.put("/agent/translator", json={"name": "mine"}),
        agent.put("/agent/a-new-one", json={}),
    ):  # fmt: skip
        problem(response, 404)
    unfit = problem(agent.post("/task", json={"agentId": "translator"}), 422)
    assert list(unfit["errors"]) == ["agentId"]
    assert alice.task(other) == other
    assert len(expect(alice.get("/agent"), 200)) == 2


def test_agent_key_does_only_what_the_contract_lets_it(
    alice: ApiClient, app: Flask, subtests: pytest.Subtests
) -> None:
    agent = alice.agent_key()
    task = alice.start()
    ids = {"task_id": task["id"], "agent_id": "summarizer"}
    before = rows(app)
    for method, rule in rules(app):
        if method not in ("HEAD", "OPTIONS") and (method, rule) not in MAY_DO:
            with subtests.test(f"{method} {rule}"):
                problem(agent.request(method, filled(rule, **ids)), 403)
    assert rows(app) == before


# --- keys at rest ------------------------------------------------------------------------


def test_keys_have_their_shape(alice: ApiClient) -> None:
    agent = alice.agent_key()
    for key, kind in ((alice.key, "user"), (agent.key, "agent")):
        match = re.fullmatch(rf"tsk_{kind}_([0-9A-Za-z]+)", key)
        assert match
        assert (len(match[1]) - 6) * math.log2(62) >= 200


def test_keys_are_stored_as_digests_only(
    alice: ApiClient, app: Flask, config: Config, database_url: str
) -> None:
    created = expect(alice.post("/key", json={"name": "another"}), 201)["key"]
    keys = [alice.key, alice.agent_key().key, created]
    alice.start()
    stored = repr(rows(app))
    if database_url.startswith("sqlite"):
        stored += "".join(
            path.read_bytes().decode("latin-1") for path in config.DATA.iterdir() if path.is_file()
        )
    for key in keys:
        assert hashlib.sha256(key.encode()).hexdigest() in stored
        # A hint may show the last characters of a key, but no more.
        assert key[-10:] not in stored
        assert key.removeprefix("tsk_user_")[:12] not in stored


@one_database
def test_mistyped_key_is_refused_without_a_look_up(alice: ApiClient, app: Flask) -> None:
    wrong = ApiClient(app, "alice", mistype(alice.key, 20))
    assert reads(app, lambda: problem(wrong.get("/user"), 401)) == []
    assert reads(app, lambda: expect(alice.get("/user"), 200))


# --- reads -------------------------------------------------------------------------------


def test_no_get_writes(
    alice: ApiClient, app: Flask, config: Config, database_url: str, subtests: pytest.Subtests
) -> None:
    ids = belongings(alice)
    expect(alice.patch(f"/task/{ids['task_id']}", json={"name": "read me"}), 200)
    expect(alice.post(f"/task/{ids['task_id']}/cancel"), 200)
    before = rows(app)
    watcher = None
    if database_url.startswith("sqlite"):
        watcher = sqlite3.connect(config.DATA / "taskservice.db")
    version = watcher and watcher.execute("PRAGMA data_version").fetchone()
    paths = [filled(rule, **ids) for method, rule in rules(app) if method == "GET"]
    for path in [*paths, "/task?expand=agent,user", "/task?fields=id", *UNKNOWN_PATHS]:
        with subtests.test(path[:40]):
            for method in ("GET", "HEAD"):
                alice.request(method, path).get_data()
                assert rows(app) == before
    if watcher:
        # It rises with every commit of another connection, whatever was written.
        assert watcher.execute("PRAGMA data_version").fetchone() == version
        alice.start()
        assert watcher.execute("PRAGMA data_version").fetchone() != version
        watcher.close()
