"""Questions: an agent asks, a person answers, and the task continues."""

from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from functools import partial
from typing import Any
from urllib.parse import urljoin

import pytest
from flask import Flask
from sqlalchemy import select

from taskservice.background.maintenance import Maintenance
from taskservice.database import clock
from taskservice.database.models import Question, Task
from taskservice.database.transactions import transaction
from taskservice.services import questions
from tests.support.api_client import ApiClient, expect, problem
from tests.support.clocks import Clocks
from tests.support.concurrency import at_once
from tests.support.internals import column, is_waiting_for_a_lock, rows
from tests.support.maintenance import fall_silent
from tests.support.marks import one_database, only_postgresql
from tests.support.waiting import until

Json = dict[str, Any]
DEPLOY = {
    "type": "object",
    "properties": {
        "deploy": {"type": "boolean", "title": "Deploy?"},
        "when": {"type": "string", "format": "date-time"},
        "where": {"type": "array", "items": {"type": "string", "enum": ["a", "b"]}},
        "size": {"type": "string", "oneOf": [{"const": "s", "title": "Small"}]},
    },
    "required": ["deploy"],
}


@pytest.fixture
def task(alice: ApiClient) -> Json:
    return alice.start(claim=True)


def path(task: Json, question: Json | None = None) -> str:
    return f"/task/{task['id']}/question" + (f"/{question['id']}" if question else "")


def ask(person: ApiClient, task: Json, message: str = "Deploy?", **fields: Any) -> Json:
    return dict(expect(person.post(path(task), json={"message": message, **fields}), 201))


def answer(person: ApiClient, task: Json, question: Json, **content: Any) -> Any:
    body = {"action": "accept", "content": content}
    return person.post(f"{path(task, question)}/answer", json=body)


def decline(person: ApiClient, task: Json, question: Json) -> Any:
    return person.post(f"{path(task, question)}/answer", json={"action": "decline"})


# --- asked -------------------------------------------------------------------------------


def test_location_of_a_question_leads_to_it(alice: ApiClient, task: Json) -> None:
    asked = alice.post(path(task), json={"message": "Deploy?"})
    question = expect(asked, 201)
    # It is relative to the URL of the request.
    there = urljoin(path(task), asked.headers["Location"])
    assert there == path(task, question)
    assert expect(alice.get(there), 200) == question


def test_question_is_in_its_task_while_it_is_open(alice: ApiClient, task: Json) -> None:
    question = ask(alice, task, schema=DEPLOY, timeout=60)
    assert question["message"] == "Deploy?"
    assert question["schema"] == DEPLOY
    assert (question["state"], question["answer"]) == ("open", None)
    assert question["answeredBy"] is None
    asked, expires = (datetime.fromisoformat(question[name]) for name in ("askedAt", "expiresAt"))
    assert expires - asked == timedelta(seconds=60)
    assert alice.task(task)["questions"] == [question]
    assert expect(alice.get("/task"), 200) == [alice.task(task)]
    assert expect(alice.get(path(task)), 200) == [question]
    assert expect(alice.get(path(task, question)), 200) == question
    other = ask(alice, task, "And now?")
    assert alice.task(task)["questions"] == [question, other]


def test_question_wants_one_text_and_lasts_a_day_by_default(alice: ApiClient, task: Json) -> None:
    question = ask(alice, task, schema=None, timeout=None)
    assert question["schema"]["required"] == ["answer"]
    asked, expires = (datetime.fromisoformat(question[name]) for name in ("askedAt", "expiresAt"))
    assert expires - asked == timedelta(days=1)
    assert ask(alice, task, timeout=0)["expiresAt"] is None


def test_each_change_raises_the_version(alice: ApiClient, task: Json) -> None:
    def etag() -> str:
        return str(alice.get(f"/task/{task['id']}").headers["ETag"])

    seen = [etag()]
    question = ask(alice, task)
    seen.append(etag())
    expect(answer(alice, task, question, answer="yes"), 200)
    seen.append(etag())
    expect(alice.delete(path(task, ask(alice, task))), 200)
    seen.append(etag())
    assert len(set(seen)) == 4


def test_only_a_running_task_that_is_claimed_may_ask(alice: ApiClient, task: Json) -> None:
    waiting = alice.start()
    refused = problem(alice.post(path(waiting), json={"message": "x"}), 409)
    assert refused["code"] == "not_claimed"
    alice.report(task, status="complete")
    refused = problem(alice.post(path(task), json={"message": "x"}), 409)
    assert refused["code"] == "task_finished"


def test_task_has_at_most_eight_open_questions(alice: ApiClient, task: Json) -> None:
    questions = [ask(alice, task) for _ in range(8)]
    refused = problem(alice.post(path(task), json={"message": "x"}), 409)
    assert refused["code"] == "too_many_questions"
    expect(decline(alice, task, questions[0]), 200)
    ask(alice, task)


def test_asking_is_idempotent(alice: ApiClient, task: Json) -> None:
    headers = {"Idempotency-Key": "k"}
    first = alice.post(path(task), json={"message": "x"}, headers=headers)
    again = alice.post(path(task), json={"message": "x"}, headers=headers)
    assert expect(again, 201) == expect(first, 201)
    assert again.headers["Idempotency-Replayed"] == "true"
    other = alice.post(path(task), json={"message": "y"}, headers=headers)
    assert problem(other, 422)["code"] == "idempotency_key_reused"
    expect(answer(alice, task, first.json or {}, answer="yes"), 200)
    replayed = alice.post(path(task), json={"message": "x"}, headers=headers)
    assert expect(replayed, 201)["state"] == "answered"
    assert len(expect(alice.get(path(task)), 200)) == 1


ODD: list[Any] = [{}, [], True, -1.5, [[{}]]]
UNFIT: list[tuple[Json, str]] = [
    ({}, "message"), ({"message": ""}, "message"), ({"message": "x" * 4001}, "message"),
    ({"timeout": -1}, "timeout"), ({"timeout": "1"}, "timeout"),
    ({"schema": {}}, "schema"), ({"schema": []}, "schema"),
    ({"schema": {"type": "object", "properties": {"a": {"type": "object"}}}}, "schema"),
    ({"schema": {"type": "object", "properties": {"a": {"type": "string", "pattern": "a"}}}},
     "schema"),
    ({"schema": {"type": "object", "properties": {}, "additionalProperties": {}}}, "schema"),
    ({"schema": {"type": "object", "properties": {"a": {"$ref": "#"}}}}, "schema"),
    ({"schema": {"type": "object", "properties": {"a": {"type": "array"}}}}, "schema"),
    ({"schema": {"type": "object", "properties": {}, "required": ["a"]}}, "schema"),
    ({"schema": {"type": "object", "properties": {"a": {"type": "string", "maxLength": "x"}}}},
     "schema"),
    ({"schema": {"type": "object", "properties": {"a": {"type": "string", "format": "ipv4"}}}},
     "schema"),
    ({"schema": {"type": "object", "properties": {}, "$schema": 5}}, "schema"),
    ({"schema": {"type": "object", "properties": {}, "required": {}}}, "schema"),
    ({"schema": {"type": "object", "properties": {}, "required": [[]]}}, "schema"),
    *(({"schema": {"type": "object", "properties": {"a": {"type": kind, keyword: odd}}}}, "schema")
      for kind, keywords in (
          ("string", ("title", "description", "minLength", "maxLength", "format", "enum", "oneOf")),
          ("number", ("minimum", "maximum")), ("array", ("items", "minItems", "maxItems")),
      )
      for keyword in keywords for odd in ODD
      if not (keyword in ("minimum", "maximum") and odd == -1.5) and (keyword, odd) not in (
          ("enum", []), ("enum", [[{}]]))),
]  # fmt: skip


@one_database
def test_unfit_question_is_422(alice: ApiClient, task: Json, subtests: pytest.Subtests) -> None:
    for fields, name in UNFIT:
        with subtests.test(str(fields)[:80]):
            body = {"message": "x", **fields} if name != "message" else fields
            assert list(problem(alice.post(path(task), json=body), 422)["errors"]) == [name]
    assert alice.task(task)["questions"] == []


def of_texts(count: int, name: str = "") -> Json:
    fields = {f"{name}{number}": {"type": "string"} for number in range(count)}
    return {"type": "object", "properties": fields}


def of_choices(*counts: int) -> Json:
    """A question with a list of this many choices in each field."""
    items = [[f"{number:x}" for number in range(count)] for count in counts]
    fields = {f"c{number}": {"type": "array", "items": {"type": "string", "enum": choices}}
              for number, choices in enumerate(items)}  # fmt: skip
    return {"type": "object", "properties": fields}


def of_options(count: int) -> Json:
    field = {"type": "string", "oneOf": [{"const": f"{n:x}", "title": ""} for n in range(count)]}
    return {"type": "object", "properties": {"c": field}}


TOO_WIDE = [
    (of_texts(50), of_texts(51), "More than 50 properties."),
    (of_choices(250), of_choices(251), "More than 250 choices."),
    (of_choices(200, 50), of_choices(200, 51), "More than 250 choices."),
    (of_options(250), of_options(251), "More than 250 choices."),
    (of_texts(1, "é" * 99 + "a"), of_texts(1, "é" * 100), "A name is longer than 200 bytes."),
]


def test_question_has_no_more_than_a_person_fills_in(
    alice: ApiClient, task: Json, subtests: pytest.Subtests
) -> None:
    for widest, too_wide, message in TOO_WIDE:
        with subtests.test(message):
            question = ask(alice, task, schema=widest)
            expect(decline(alice, task, question), 200)
            refused = alice.post(path(task), json={"message": "x", "schema": too_wide})
            assert problem(refused, 422)["errors"] == {"schema": [message]}


# --- answered, declined, withdrawn -------------------------------------------------------


def test_answer_is_kept_as_it_was_given(alice: ApiClient, task: Json) -> None:
    question = ask(alice, task, schema=DEPLOY)
    content = {"deploy": True, "where": ["b", "a"], "size": "s", "when": "2026-11-24T13:36:00Z"}
    answered = expect(answer(alice, task, question, **content), 200)
    changed = {"state": "answered", "answer": content, "answeredBy": "first"}
    assert answered == question | changed
    assert expect(alice.get(path(task, question)), 200) == answered
    assert alice.task(task)["questions"] == []


def test_same_answer_again_is_200_and_another_one_is_409(alice: ApiClient, task: Json) -> None:
    question = ask(alice, task)
    first = expect(answer(alice, task, question, answer="yes"), 200)
    assert expect(answer(alice, task, question, answer="yes"), 200) == first
    refused = problem(answer(alice, task, question, answer="no"), 409)
    assert refused["code"] == "question_closed"
    problem(decline(alice, task, question), 409)
    problem(alice.delete(path(task, question)), 409)


def test_declined_and_withdrawn_questions_stay_so(alice: ApiClient, task: Json) -> None:
    declined, withdrawn = ask(alice, task), ask(alice, task)
    for _ in range(2):
        assert expect(decline(alice, task, declined), 200)["state"] == "declined"
        assert expect(alice.delete(path(task, withdrawn)), 200)["state"] == "withdrawn"
    problem(answer(alice, task, declined, answer="yes"), 409)
    problem(answer(alice, task, withdrawn, answer="yes"), 409)


def test_answer_that_does_not_fit_names_its_fields(alice: ApiClient, task: Json) -> None:
    question = ask(alice, task, schema=DEPLOY)
    for content, name in (
        ({"deploy": "yes"}, "content.deploy"), ({}, "content.deploy"),
        ({"deploy": True, "x": 1}, "content.x"),
        ({"deploy": True, "where": ["c"]}, "content.where.0"),
        ({"deploy": True, "when": "soon"}, "content.when"),
        ({"deploy": True, "size": "m"}, "content.size"),
    ):  # fmt: skip
        assert list(problem(answer(alice, task, question, **content), 422)["errors"]) == [name]
    body = {"action": "decline", "content": {"deploy": True}}
    problem(alice.post(f"{path(task, question)}/answer", json=body), 422)
    problem(alice.post(f"{path(task, question)}/answer", json={"action": "maybe"}), 422)
    assert alice.task(task)["questions"] == [question]


def test_answer_that_takes_too_long_to_check_is_422(alice: ApiClient, task: Json) -> None:
    choices = [{"const": n + 0.5, "title": ""} for n in range(250)]
    several = {"type": "array", "items": {"anyOf": choices}}
    question = ask(alice, task, schema={"type": "object", "properties": {"a": several}})
    refused = problem(answer(alice, task, question, a=[249.5] * 2_500), 422)
    message = "Too large to be checked against the question's schema."
    assert refused["errors"] == {"content": [message]}
    expect(answer(alice, task, question, a=[249.5]), 200)


def test_numbers_are_kept_exactly(alice: ApiClient, task: Json) -> None:
    number = {"type": "number", "minimum": 12345678901234567890}
    schema = {"type": "object", "properties": {"number": number}}
    question = ask(alice, task, schema=schema)
    assert question["schema"] == schema
    problem(answer(alice, task, question, number=12345678901234560000), 422)
    text = '{"action": "accept", "content": {"number": 22345678901234567890.123456789}}'
    headers = {"Content-Type": "application/json"}
    response = alice.post(f"{path(task, question)}/answer", data=text, headers=headers)
    assert '"answer":{"number":22345678901234567890.123456789}' in response.text


def test_agent_asks_and_a_person_answers(alice: ApiClient) -> None:
    agent = alice.agent_key()
    task = agent.start()
    question = ask(agent, task)
    problem(answer(agent, task, question, answer="yes"), 403)
    expect(answer(alice, task, question, answer="yes"), 200)
    assert expect(agent.get(path(task, question)), 200)["answer"] == {"answer": "yes"}


def test_answer_and_decline_name_the_key_that_gave_them(alice: ApiClient, task: Json) -> None:
    question, other, withdrawn = (ask(alice, task) for _ in range(3))
    laptop, phone = alice.with_key("laptop"), alice.with_key("phone")
    answered = expect(answer(laptop, task, question, answer="yes"), 200)
    assert answered["answeredBy"] == "laptop"
    # The first one counts.
    assert expect(answer(phone, task, question, answer="yes"), 200) == answered
    refused = problem(answer(phone, task, question, answer="no"), 409)
    assert refused["question"] == answered
    declined = expect(decline(phone, task, other), 200)
    assert (declined["state"], declined["answeredBy"]) == ("declined", "phone")
    assert expect(alice.delete(path(task, withdrawn)), 200)["answeredBy"] is None
    listed = expect(alice.get(path(task)), 200)
    assert [question["answeredBy"] for question in listed] == ["laptop", "phone", None]


def test_question_of_another_user_does_not_exist(
    alice: ApiClient, bob: ApiClient, task: Json
) -> None:
    question, other = ask(alice, task), alice.start(claim=True)
    problem(bob.get(path(task)), 404)
    for method, end in (("GET", ""), ("DELETE", ""), ("POST", "/answer")):
        body = {"action": "decline"} if end else None
        problem(bob.request(method, path(task, question) + end, json=body), 404)
        problem(alice.request(method, path(other, question) + end, json=body), 404)
    problem(alice.get(f"{path(task)}/no-uuid"), 404)


def test_one_of_many_answers_at_once_counts(alice: ApiClient, task: Json) -> None:
    question = ask(alice, task)
    clients = [ApiClient(alice.app, alice.name, alice.key) for _ in range(6)]
    answers = at_once(
        [
            partial(answer, client, task, question, answer=str(number))
            for number, client in enumerate(clients)
        ]
    )
    statuses = sorted(response.status_code for response in answers)
    assert statuses == [200] + [409] * 5
    winner = next(response.json for response in answers if response.status_code == 200)
    assert expect(alice.get(path(task, question)), 200) == winner


# --- waiting, expiry and the end ---------------------------------------------------------


def test_asking_waits_for_the_answer(alice: ApiClient, task: Json) -> None:
    asker = ApiClient(alice.app, alice.name, alice.key)
    wait = {"Prefer": "wait=30"}
    with ThreadPoolExecutor(2) as threads:
        asked = threads.submit(asker.post, path(task), json={"message": "x"}, headers=wait)
        question = until(lambda: alice.task(task)["questions"])[0]
        reader = ApiClient(alice.app, alice.name, alice.key)
        read = threads.submit(reader.get, path(task, question), headers=wait)
        expect(answer(alice, task, question, answer="yes"), 200)
        assert expect(asked.result(), 201)["answer"] == {"answer": "yes"}
        assert expect(read.result(), 200)["answer"] == {"answer": "yes"}


def test_question_is_an_event(alice: ApiClient, task: Json) -> None:
    question = ask(alice, task)
    alice.report(task, status="complete")
    text = alice.get(f"/task/{task['id']}/events").text
    assert question["id"] not in text
    assert '"questions":[]' in text


def test_end_of_the_task_withdraws_its_questions(alice: ApiClient, task: Json) -> None:
    kept, left = ask(alice, task), ask(alice, task)
    expect(answer(alice, task, kept, answer="yes"), 200)
    assert alice.report(task, status="complete")["questions"] == []
    states = [question["state"] for question in expect(alice.get(path(task)), 200)]
    assert states == ["answered", "withdrawn"]
    problem(answer(alice, task, left, answer="late"), 409)


def test_deleted_task_has_no_questions(alice: ApiClient, task: Json, app: Flask) -> None:
    ask(alice, task)
    expect(alice.delete(f"/task/{task['id']}"), 200)
    assert rows(app)["questions"] == []


def test_question_expires_in_every_read_at_once(
    alice: ApiClient, task: Json, app: Flask, maintenance: Maintenance, clocks: Clocks
) -> None:
    question = ask(alice, task, timeout=600)
    etag = alice.get(f"/task/{task['id']}").headers["ETag"]
    clocks.go_on(600)

    def has_expired() -> bool:
        seen = expect(alice.get(path(task, question)), 200)
        return bool(seen == question | {"state": "expired"})

    until(has_expired)
    assert until(lambda: alice.task(task)["questions"] == [])
    assert expect(alice.get("/task"), 200) == [alice.task(task)]
    headers = {"If-None-Match": etag}
    expect(alice.get(f"/task/{task['id']}", headers=headers), 200)
    problem(answer(alice, task, question, answer="late"), 409)
    version = column(app, task, "version")
    maintenance.do_round()
    assert column(app, task, "version") == version + 1
    assert column(app, task, "questions") == "[]"


def test_wait_for_a_question_ends_when_it_expires(alice: ApiClient, task: Json) -> None:
    question = ask(alice, task, timeout=1)
    waited = expect(alice.get(path(task, question), headers={"Prefer": "wait=60"}), 200)
    assert waited["state"] == "expired"
    body = {"message": "Shall I?", "timeout": 1}
    asked = expect(alice.post(path(task), json=body, headers={"Prefer": "wait=60"}), 201)
    assert asked["state"] == "expired"


def test_question_that_has_expired_stays_so_at_the_end_of_its_task(
    alice: ApiClient, task: Json
) -> None:
    expired, left = ask(alice, task, timeout=1), ask(alice, task)
    until(lambda: expect(alice.get(path(task, expired)), 200)["state"] == "expired")
    alice.report(task, status="complete")
    states = [question["state"] for question in expect(alice.get(path(task)), 200)]
    assert states == ["expired", "withdrawn"]
    assert expect(alice.delete(path(task, left)), 200)["state"] == "withdrawn"


@pytest.mark.parametrize("timeout", [None, 60])
def test_task_does_not_time_out_while_its_question_is_open(
    alice: ApiClient, app: Flask, maintenance: Maintenance, timeout: int | None
) -> None:
    task = alice.start(claim=True, timeout=timeout)
    question = ask(alice, task)
    fall_silent(app, task, 10 * 86_400)
    maintenance.do_round()
    assert alice.task(task)["status"] == "running"
    # Afterwards the silence is counted from the start.
    expect(answer(alice, task, question, answer="yes"), 200)
    maintenance.do_round()
    assert alice.task(task)["status"] == "running"
    fall_silent(app, task, 10 * 86_400)
    maintenance.do_round()
    assert alice.task(task)["status"] == "error"


@only_postgresql
def test_clock_correction_locks_a_task_before_its_question(app: Flask, alice: ApiClient) -> None:
    task = alice.start(claim=True)
    asked = expect(alice.post(f"/task/{task['id']}/question", json={"message": "Deploy?"}), 201)
    this_task = select(Task.id).where(Task.id == task["id"])
    this_question = select(Question.id).where(Question.id == asked["id"])

    def correct() -> None:
        with app.app_context():
            questions.correct_future_times(clock.now(-3_600), clock.now())

    with ThreadPoolExecutor() as pool:
        with app.app_context(), transaction() as connection:
            connection.execute(this_task.with_for_update())
            correction = pool.submit(correct)
            until(lambda: is_waiting_for_a_lock(app))
            # Otherwise both would wait for each other.
            connection.execute(this_question.with_for_update(nowait=True))
        correction.result()
    assert alice.task(task)["questions"][0]["askedAt"] != asked["askedAt"]
