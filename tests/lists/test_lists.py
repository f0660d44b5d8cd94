"""The list of tasks: filtered, ordered, shaped, and in pages that miss and repeat nothing."""

import json
import random
import time
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from functools import partial
from itertools import islice, product
from typing import Any
from urllib.parse import parse_qs, quote, urlencode, urlsplit
from uuid import uuid4

import pytest
from flask import Flask
from sqlalchemy import update

from taskservice import resources
from taskservice.database import clock
from taskservice.database.models import Task as TaskModel
from taskservice.database.transactions import transaction
from taskservice.services import lists as list_queries
from taskservice.web.responses import LongListSlots
from tests.support.api_client import ApiClient, add_user, expect, of_task, problem
from tests.support.internals import (
    Statement,
    before_reads,
    end_for_silence,
    hang,
    plan_of,
    reads,
)
from tests.support.marks import one_database
from tests.support.paging import ROOT, Task, in_pages, next_url, pages

SORTS = ("-createdAt", "createdAt", "finishedAt")


def listed(person: ApiClient, **query: Any) -> list[Task]:
    return list(expect(person.get("/task", query_string=query), 200))


def ids(tasks: list[Task]) -> list[str]:
    return [task["id"] for task in tasks]


def query(**fields: Any) -> str:
    return urlencode({name: value for name, value in fields.items() if value is not None})


def in_order(tasks: list[Task], sort: str | None) -> list[Task]:
    """The tasks as the list has to have them."""
    by_creation = sorted(tasks, key=lambda task: (task["createdAt"], task["id"]))
    if sort == "finishedAt":
        ended = [task for task in tasks if task["finishedAt"]]
        return sorted(ended, key=lambda task: (task["finishedAt"], task["id"]))
    return by_creation if sort == "createdAt" else by_creation[::-1]


FILTERS: dict[str, Callable[[Task, str], bool]] = {
    "status": lambda task, value: task["status"] == value,
    "agentId": lambda task, value: task["agentId"] == value,
    "q": lambda task, value: value.casefold() in task["name"].casefold(),
    "createdAfter": lambda task, value: task["createdAt"] > value,
    "createdBefore": lambda task, value: task["createdAt"] < value,
    "finishedAfter": lambda task, value: (task["finishedAt"] or "") > value,
    "errorType": lambda task, value: (task["error"] or {}).get("type") == value,
    "claimed": lambda task, value: (task["claimedAt"] is not None) == (value == "true"),
    "asking": lambda task, value: bool(task["questions"]) == (value == "true"),
    "hanging": lambda task, value: bool(task["hangingSince"]) == (value == "true"),
    "parentId": lambda task, value: task["parentId"] == value,
    "label": lambda task, value: value in map(":".join, task["labels"].items()),
}


def expected(tasks: list[Task], fields: Mapping[str, str | None]) -> list[Task]:
    """The part of `tasks` that the list has to have, in its order."""
    chosen = [
        task
        for task in tasks
        if all(fits(task, value) for name, fits in FILTERS.items() if (value := fields.get(name)))
    ]
    return in_order(chosen, fields.get("sort"))


@pytest.fixture
def tasks(alice: ApiClient, app: Flask) -> list[Task]:
    """A dozen tasks of two agents in every status, in the order of their creation."""
    started: list[Task] = []
    for number in range(12):
        name = f"{'Nightly' if number % 3 else 'hourly'} run {number}"
        fields: dict[str, Any] = {"claim": True} if number % 4 == 1 else {}
        if number % 5:
            labels = {"env": "prod", "n": str(number % 2)}
            fields |= {"parentId": started[0]["id"], "labels": labels}
        started.append(alice.start(("summarizer", "translator")[number % 2], name=name, **fields))
        alice.append(started[-1], "the start")
        # Apart by a millisecond, so that bounds lie between tasks.
        time.sleep(0.002)
    for number in (7, 1, 4, 10):
        alice.report(started[number], status="complete", output={"number": number})
        time.sleep(0.002)
    for number in (8, 3):
        alice.report(started[number], status="error", error={"message": "no"})
    expect(alice.post(f"/task/{started[0]['id']}/cancel"), 200)
    alice.append(started[5], "one", "two")
    for number in (5, 9):
        expect(alice.post(f"/task/{started[number]['id']}/question", json={"message": "?"}), 201)
    for number in (5, 9, 11):
        hang(app, started[number])
    # test_tasks.py compares the tasks of the list with each task read alone.
    tasks = listed(alice, sort="createdAt")
    assert ids(tasks) == ids(started)
    return tasks


# --- filters -----------------------------------------------------------------------------


# It divides no number of choices, so that each choice comes with every other one.
STEP = 1_999


def test_every_filter_alone_and_with_all_others_in_every_order(
    alice: ApiClient, bob: ApiClient, tasks: list[Task]
) -> None:
    bob.start(name="Nightly run of another user")
    choices: dict[str, list[str | None]] = {
        "status": [None, "running", "complete", "error"], "agentId": [None, "translator"],
        "q": [None, "NIGHTLY"], "createdAfter": [None, tasks[2]["createdAt"]],
        "createdBefore": [None, tasks[9]["createdAt"]],
        "finishedAfter": [None, tasks[1]["finishedAt"]], "errorType": [None, None, None, "failed"],
        "claimed": [None, None, None, "true", "false"],
        "asking": [None, None, None, "true", "false"],
        "hanging": [None, None, None, "true", "false"],
        "parentId": [None, None, None, tasks[0]["id"]],
        "label": [None, None, None, "env:prod", "n:1"], "sort": [None, "createdAt", "finishedAt"],
    }  # fmt: skip
    sizes = set()
    for values in list(product(*choices.values()))[::STEP]:
        fields = dict(zip(choices, values, strict=True))
        fitting = expected(tasks, fields)
        assert expect(alice.get(f"/task?{query(**fields)}"), 200) == fitting, fields
        assert in_pages(alice.get, query(**fields, limit=3)) == fitting, fields
        sizes.add(len(fitting))
    # The filters have found none, some and all of the tasks.
    assert {0, 1, 2, 3, 12} <= sizes


def test_search_in_logs_has_the_filters_of_the_list(alice: ApiClient, tasks: list[Task]) -> None:
    values = {
        "status": "error", "agentId": "translator", "q": "NIGHTLY",
        "createdAfter": tasks[2]["createdAt"], "createdBefore": tasks[9]["createdAt"],
        "finishedAfter": tasks[1]["finishedAt"],
        "errorType": "cancelled", "claimed": "false", "asking": "true", "hanging": "true",
        "parentId": tasks[0]["id"],
        "label": "n:1",
    }  # fmt: skip
    assert values.keys() == FILTERS.keys()
    for fields in ({}, values, *({name: value} for name, value in values.items())):
        results = expect(alice.get("/search", query_string={"text": "the start", **fields}), 200)
        fitting = ids(expected(tasks, fields))
        assert [hit["taskId"] for hit in results["hits"]] == fitting, fields
        assert fitting == ids(listed(alice, **fields))
        assert bool(fitting) == (fields != values), fields


@pytest.mark.parametrize("few", [0, 4, 100])
def test_search_that_stops_early_continues_with_the_next_page(
    alice: ApiClient, tasks: list[Task], monkeypatch: pytest.MonkeyPatch, few: int
) -> None:
    """As among very many tasks: a page may have fewer tasks than its limit, even none."""
    monkeypatch.setattr(list_queries, "FIRST_SEARCHED", 1)
    monkeypatch.setattr(list_queries, "MAX_SEARCHED", 2)
    monkeypatch.setattr(list_queries, "MAX_CANDIDATES", few)
    agent = alice.agent_key("translator")
    of_agent = [task for task in tasks if task["agentId"] == "translator"]
    cut: list[list[Task]] = []
    for fields in SEARCHES:
        for person, visible in ((alice, tasks), (agent, of_agent)):
            fitting = expected(visible, fields)
            assert expect(person.get(f"/task?{query(**fields)}"), 200) == fitting, fields
            in_parts = list(pages(person.get, query(**fields, limit=3)))
            assert [task for page in in_parts for task in page] == fitting, fields
            cut += [page for page in in_parts[:-1] if len(page) < 3]
    assert cut or few


SEARCHES: tuple[dict[str, str], ...] = (
    *({"q": part, "sort": sort} for part in ("run 1", "hourly", "absent") for sort in SORTS),
    *({"status": "error", "agentId": "translator", "sort": sort} for sort in SORTS),
    *({"finishedAfter": "2020-01-01T00:00:00Z", "sort": sort} for sort in SORTS),
    {"q": "run 0", "status": "error", "createdAfter": "2020-01-01T00:00:00Z"},
)


def test_bounds_are_exclusive(alice: ApiClient, tasks: list[Task]) -> None:
    task = tasks[4]
    for name in ("createdAfter", "createdBefore", "finishedAfter"):
        bound = task["finishedAt" if name == "finishedAfter" else "createdAt"]
        step = timedelta(milliseconds=1 if name == "createdBefore" else -1)
        beside = clock.rfc3339(datetime.fromisoformat(bound) + step)
        assert task["id"] not in ids(listed(alice, **{name: bound}))
        assert task["id"] in ids(listed(alice, **{name: beside}))


def test_bounds_finer_than_a_millisecond_are_kept(alice: ApiClient, tasks: list[Task]) -> None:
    task = tasks[4]
    just_after, just_before = (
        task["createdAt"].replace("Z", "9Z"),
        clock.rfc3339(datetime.fromisoformat(task["createdAt"]) - timedelta(milliseconds=1)),
    )
    assert task["id"] not in ids(listed(alice, createdAfter=just_after))
    assert task["id"] in ids(listed(alice, createdBefore=just_after))
    assert task["id"] in ids(listed(alice, createdAfter=just_before.replace("Z", "9Z")))
    assert task["id"] not in ids(listed(alice, createdBefore=just_before.replace("Z", "9Z")))


def test_bounds_may_be_at_either_end_of_time(alice: ApiClient, tasks: list[Task]) -> None:
    for latest in ("9999-12-31T23:59:59.999Z", "9999-12-31T23:59:59.9999Z"):
        assert len(listed(alice, createdBefore=latest)) == len(tasks)
        assert listed(alice, createdAfter=latest) == []
    assert len(listed(alice, createdAfter="0001-01-01T00:00:00Z")) == len(tasks)


def test_bounds_may_be_written_with_any_offset(alice: ApiClient, tasks: list[Task]) -> None:
    moment = datetime.fromisoformat(tasks[4]["createdAt"])
    for hours in (-11.5, -1, 0, 5.75, 14):
        shifted = moment.astimezone(timezone(timedelta(hours=hours))).isoformat()
        assert ids(listed(alice, createdAfter=shifted, sort="createdAt")) == ids(tasks[5:])


# --- q -----------------------------------------------------------------------------------


NAMES_AND_PARTS = (
    ("Nightly Summary", "nightly", True), ("Nightly Summary", "LY SUM", True),
    ("Nightly Summary", "nightly  summary", False), ("Straße", "STRASSE", True),
    ("STRASSE", "straße", True), ("Straße", "ẞ", True), ("Straße", "ß", True),
    ("İstanbul", "İSTANBUL", True), ("İstanbul", "i̇stanbul", True), ("ISTANBUL", "istanbul", True),
    ("ÜBER allem", "über", True), ("über allem", "ÜBER", True), ("über allem", "uber", False),
    ("ΣΊΣΥΦΟΣ", "σίσυφος", True), ("ЁЖИК", "ёжик", True), ("ﬁle", "FILE", True),
    ("日本語の要約", "本語", True), ("👩‍🚀 launch", "👩‍🚀", True), ("ß" * 200, "SS" * 100, True),
)  # fmt: skip


def test_q_finds_a_part_of_the_name_in_any_case(
    alice: ApiClient, subtests: pytest.Subtests
) -> None:
    alice.start(name="another")
    for name, part, is_part in NAMES_AND_PARTS:
        with subtests.test(f"{part[:20]} in {name[:20]}"):
            task = alice.start(name=name)
            assert (task["id"] in ids(listed(alice, q=part))) == is_part
            assert "another" not in [task["name"] for task in listed(alice, q=part)]


def test_q_finds_a_task_by_its_new_name_only(alice: ApiClient) -> None:
    task = alice.start(name="Straße")
    alice.report(task, name="ÜBERWEG")
    assert listed(alice, q="strasse") == []
    assert ids(listed(alice, q="überweg")) == [task["id"]]


ODD_NAMES = (
    "100% sure", "100 sure", "a_b", "axb", "a\\b", "a/b", "a%b", "\\", "_", "%", "/", "[ab]", "a*b",
    "a?b", "it's", '"quoted"', "; DROP TABLE tasks; --", "\\%", "/%", "//_", "a\0b", "\n", "  ",
)  # fmt: skip
ODD_PARTS = (
    "%", "%%", "_", "__", "\\", "\\\\", "/", "//", "/%", "/_", "\\%", "\\_", "a_b", "a%b", "a\\b",
    "[ab]", "*", "?", "'", "''", '"', "--", ";", "100%", "\0", "\n", " ", "x", "%' OR '1'='1",
)  # fmt: skip


def test_q_takes_wildcards_literally(alice: ApiClient) -> None:
    for name in ODD_NAMES:
        alice.start(name=name)
    for part in ODD_PARTS:
        expected_names = [name for name in ODD_NAMES if part.casefold() in name.casefold()]
        names = [task["name"] for task in listed(alice, q=part, sort="createdAt")]
        # NUL is stored as U+FFFD, and is searched for as that.
        assert names == [name.replace("\0", "\ufffd") for name in expected_names], part


@one_database
def test_links_keep_unusual_parts_as_they_are(alice: ApiClient) -> None:
    for part in ("%", "a&b=c#d", "<>", "ü", "+", " ", '"', "\0", ">; rel=next"):
        started = [alice.start(name=f"{part} {number}") for number in range(3)]
        listed_tasks = in_pages(alice.get, query(q=part, limit=1, sort="createdAt"))
        assert ids(listed_tasks)[-3:] == ids(started), part


# --- shapes and whole lists --------------------------------------------------------------


def test_pages_put_together_equal_the_streamed_whole(
    alice: ApiClient, tasks: list[Task], monkeypatch: pytest.MonkeyPatch
) -> None:
    # With 5 tasks per read, even a short list takes several reads.
    monkeypatch.setattr(list_queries, "TASKS_PER_READ", 5)
    monkeypatch.setattr(list_queries, "POSITIONS_PER_READ", 5)
    for sort in SORTS:
        whole = listed(alice, sort=sort)
        assert whole == in_order(tasks, sort)
        for limit in (1, 4, 5, 11, 12, 13, 1000):
            in_parts = list(pages(alice.get, query(sort=sort, limit=limit)))
            assert [task for page in in_parts for task in page] == whole
            assert [len(page) for page in in_parts[:-1]] == [limit] * (len(in_parts) - 1)
            # The last page is not empty, and says that it is the last.
            assert len(in_parts) == -(-len(whole) // limit)


def test_pages_of_tasks_of_one_millisecond_hold_together(
    alice: ApiClient, app: Flask, tasks: list[Task]
) -> None:
    with app.app_context(), transaction() as connection:
        moment = tasks[3]["createdAt"]
        connection.execute(update(TaskModel).values(created_at=moment))
        ended = update(TaskModel).where(TaskModel.finished_at.is_not(None))
        connection.execute(ended.values(finished_at=tasks[3]["finishedAt"]))
    for sort in SORTS:
        whole = listed(alice, sort=sort)
        assert whole == in_order(whole, sort)
        assert {task["createdAt"] for task in whole} == {moment}
        for limit in (1, 2, 5):
            assert in_pages(alice.get, query(sort=sort, limit=limit)) == whole


def test_fields_and_expand_shape_every_page(alice: ApiClient, tasks: list[Task]) -> None:
    agents = {agent["id"]: agent for agent in expect(alice.get("/agent"), 200)}
    user = expect(alice.get("/user"), 200)
    del user["key"]
    shaped = [
        {"id": task["id"], "logs": task["logs"], "agent": of_task(agents[task["agentId"]])}
        | {"user": user}
        for task in reversed(tasks)
    ]
    fields = query(fields="logs,id", expand="user,agent")
    assert expect(alice.get(f"/task?{fields}"), 200) == shaped
    assert in_pages(alice.get, f"{fields}&limit=5") == shaped
    names = [{"name": task["name"]} for task in expected(tasks, {"status": "complete"})]
    assert in_pages(alice.get, "fields=name&status=complete&limit=1") == names


# What JSON escapes, what it does not, and what could be taken for an escape.
ODD_TEXTS = (
    " ", '"', "\\", "\\n", '\\\\n\\"', "\\\\", '","', '\\","', "%s %d %%", "{}", "'", "/",
    "".join(map(chr, range(1, 0x20))).replace("\n", ""), "\x7f\x80\x9f\xa0", "\u2028\u2029",
    "ü\u0308", "\ufeff\ufffd\ufffe\uffff", "😀\U0010ffff", "\\u0000\\u0001",
)  # fmt: skip


def test_list_has_the_same_bytes_as_each_task_alone(
    alice: ApiClient, app: Flask, monkeypatch: pytest.MonkeyPatch, subtests: pytest.Subtests
) -> None:
    """The database writes the JSON of a list, and the schema the JSON of one task."""
    monkeypatch.setattr(list_queries, "TASKS_PER_READ", 7)
    odd_tasks(alice)
    large_tasks(alice)
    related_tasks(alice)
    end_for_silence(app, alice.start(claim=True))
    started = listed(alice, sort="createdAt")
    shapes = [f"fields={name}" for name in started[0]]
    shapes += ["", "expand=user,agent", "fields=logs,callback&expand=agent"]
    for shape in shapes:
        with subtests.test(shape):
            alone = [alice.get(f"/task/{task['id']}?{shape}").data for task in started]
            for limit in ("", "&limit=100"):
                together = alice.get(f"/task?sort=createdAt&{shape}{limit}").data
                assert together == b"[" + b",".join(alone) + b"]"


def odd_tasks(person: ApiClient) -> None:
    """Tasks in every status whose texts are odd."""
    task = person.start(input={"a": [1.50, 10**30]}, callback="https://example.com/?a='")
    person.append(task, "", *ODD_TEXTS, "")
    for number, text in enumerate(ODD_TEXTS):
        task = person.start(name=text, input={text: text}, labels={"odd": text, "k.e_y-0": "v"})
        person.append(task, *[text] * (number % 3))
        person.report(task, note=text)
        if number % 3 == 1:
            person.report(task, status="error", error={"message": text})
        elif number % 3 == 2:
            person.report(task, status="complete", output={text: text})


def large_tasks(person: ApiClient) -> list[Task]:
    """Tasks that are not read together with others, with a small one among them."""
    with_log, small, with_input, with_output, with_error = (
        person.start(input={"text": "ü" * size}) for size in (1, 2, 9_000, 4, 5)
    )
    person.append(with_log, *["x" * 1_000] * 40)
    person.report(with_output, status="complete", output={"text": '"' * 9_000})
    person.report(with_error, status="error", error={"message": "ü" * 9_000})
    return [with_log, small, with_input, with_output, with_error]


# Each number as it is sent.
PROGRESS = (0, 1, 0.0, 1.0, -0.0, 0.1, 0.30000000000000004, 1e-7, 5e-324, 1 - 2**-53)


def related_tasks(person: ApiClient) -> None:
    """Tasks that others started or run again, with progress; some ended by a key of an odd name."""
    parent = person.start(labels={f"l{number}": "🙂" * 256 for number in range(16)})
    for progress in PROGRESS:
        child = person.start(parentId=parent["id"])
        person.report(child, progress=progress, note="ü" * 200)
    person.with_key("\"'\\ <b>\u2028\x7f").report(child, status="complete")
    again = expect(person.post(f"/task/{parent['id']}/rerun"), 201)
    person.report(again, labels={"l0": None, "l1": "1"})
    gone = person.start()
    person.start(parentId=gone["id"])
    expect(person.post(f"/task/{gone['id']}/rerun"), 201)
    expect(person.delete(f"/task/{gone['id']}"), 200)


def test_large_task_deleted_during_a_read_of_its_list_is_left_out(
    alice: ApiClient, app: Flask
) -> None:
    with_log, small, with_input, *others = ids(large_tasks(alice))
    other, going = ApiClient(app, alice.name, alice.key), list[str]()

    def delete(statement: str, _: Any) -> None:
        if going and "NULL AS json" in statement:
            with ThreadPoolExecutor(1) as pool:
                expect(pool.submit(other.delete, f"/task/{going.pop()}").result(), 200)

    with before_reads(app, delete):
        going.append(with_log)
        whole = listed(alice, sort="createdAt")
        assert ids(whole) == [small, with_input, *others]
        going.append(with_input)
        assert in_pages(alice.get, "sort=createdAt&limit=10") == [whole[0], *whole[2:]]


@one_database
def test_columns_that_fields_leave_out_are_not_read(
    alice: ApiClient, app: Flask, tasks: list[Task]
) -> None:
    for limit, (fields, columns) in product(
        ("", "&limit=3"),
        (("id,name,logs", []), ("id,input", ["input"]), ("output", ["output"]),
         ("", ["input", "output"])),
    ):  # fmt: skip
        fields = f"fields={fields}" if fields else "sort=createdAt"
        request = partial(alice.get, f"/task?{fields}{limit}")
        statements = [text for text, _ in statements_on_tasks(app, request)]
        with_fields = [text for text in statements if " AS json" in text]
        assert with_fields
        for read in with_fields:
            assert [name for name in ("input", "output") if f"tasks.{name}" in read] == columns


def test_task_deleted_with_its_agent_during_a_read_is_left_out(
    alice: ApiClient, app: Flask
) -> None:
    kept, other = alice.start("summarizer"), ApiClient(app, alice.name, alice.key)
    going: list[Task] = []

    def delete_both(statement: str, _: Any) -> None:
        if going and "FROM agents" in statement:
            paths = [f"/task/{going.pop()['id']}", "/agent/translator"]
            with ThreadPoolExecutor(1) as pool:
                for answer in pool.map(other.delete, paths):
                    expect(answer, 200)

    with before_reads(app, delete_both):
        for path in ("/task?expand=agent", "/task?expand=user", "/task?limit=2&expand=agent"):
            alice.register("translator")
            going.append(alice.start("translator"))
            assert [task["id"] for task in expect(alice.get(path), 200)] == [kept["id"]]
        alice.register("translator")
        going.append(alice.start("translator"))
        problem(alice.get(f"/task/{going[0]['id']}?expand=agent"), 404)


def test_agent_key_lists_its_own_agents_tasks_only(alice: ApiClient, tasks: list[Task]) -> None:
    agent = alice.agent_key("translator")
    visible = [task for task in tasks if task["agentId"] == "translator"]
    for sort in SORTS:
        assert listed(agent, sort=sort) == in_order(visible, sort)
        assert in_pages(agent.get, query(sort=sort, limit=2)) == in_order(visible, sort)
    assert listed(agent, agentId="translator") == in_order(visible, None)
    assert listed(agent, agentId="summarizer") == []
    assert in_pages(agent.get, "agentId=summarizer&limit=1") == []
    assert ids(listed(agent, q="nightly", status="complete")) == ids(
        expected(visible, {"q": "nightly", "status": "complete"})
    )


# --- links -------------------------------------------------------------------------------


@one_database
def test_link_is_relative_and_keeps_all_parameters(alice: ApiClient, tasks: list[Task]) -> None:
    fields = {"limit": "2", "sort": "createdAt", "q": "run", "fields": "id,name", "expand": "user"}
    link = alice.get(f"/task?{query(**fields)}").headers["Link"]
    assert link.startswith("<?")
    assert link.endswith('>; rel="next"')
    parameters = parse_qs(link[2:].partition(">")[0])
    assert parameters.pop("cursor")
    assert parameters == {name: [value] for name, value in fields.items()}


@one_database
def test_list_without_more_has_no_link(alice: ApiClient, tasks: list[Task]) -> None:
    for path in ("/task", "/task?limit=12", "/task?limit=1000", "/task?limit=1&q=nothing-has-this"):
        assert "Link" not in alice.get(path).headers
    assert "Link" in alice.get("/task?limit=11").headers


@one_database
def test_links_hold_under_the_prefix_of_a_proxy(app_with: Callable[..., Flask]) -> None:
    app = app_with(PROXY_HOPS=1)
    alice = add_user(app, "alice")
    started = [alice.start() for _ in range(5)]
    outside = "https://tools.example/our/tasks"
    forwarded = {
        "X-Forwarded-Host": "tools.example",
        "X-Forwarded-Proto": "https",
        "X-Forwarded-Prefix": "/our/tasks",
    }
    url: str | None = f"{outside}/api/v1/task?limit=2"
    task_ids = []
    while url:
        # What the proxy does: it takes its prefix away and passes the rest on.
        assert url.startswith(f"{outside}/api/v1/task?")
        response = alice.get(url.removeprefix(f"{outside}/api/v1"), headers=forwarded)
        task_ids += ids(expect(response, 200))
        url = next_url(url, response)
    assert task_ids == ids(started)[::-1]


# --- what does not fit -------------------------------------------------------------------

BAD_LIMITS = (
    "0", "-1", "1" + "0" * 24, "abc", "+5", "%2B5", "1001", "", "1.0", "1e1", "0x10", "1_0", "true",
    " 5", "٣", "5,5", "1" * 5000,
)  # fmt: skip


@one_database
def test_limit_is_a_whole_number_from_1_to_1000(
    alice: ApiClient, subtests: pytest.Subtests
) -> None:
    for limit in BAD_LIMITS:
        with subtests.test(limit[:20]):
            written = limit if "%" in limit or "+" in limit else quote(limit)
            response = alice.get(f"/task?limit={written}")
            assert list(problem(response, 422)["errors"]) == ["limit"]


UNFIT = (
    ("status", "done"), ("status", ""), ("status", "Running"), ("status", "running,error"),
    ("agentId", ""), ("agentId", "No Agent"), ("agentId", "x" * 65), ("agentId", "a\n"),
    ("q", ""), ("q", "x" * 201),
    ("errorType", "error"), ("errorType", ""), ("claimed", "yes"), ("claimed", "True"),
    ("asking", "yes"), ("asking", ""), ("hanging", "1"),
    ("parentId", ""), ("parentId", "no-uuid"), ("label", "env"), ("label", ":prod"),
    ("label", "env:"), ("label", "Env:prod"), ("label", f"env:{'x' * 257}"),
    ("sort", "name"), ("sort", ""), ("sort", "-finishedAt"), ("sort", "createdat"),
    ("createdAfter", ""), ("createdAfter", "yesterday"), ("createdAfter", "2026-11-24"),
    ("createdBefore", "2026-11-24T13:36:00"), ("createdBefore", "2026-13-01T00:00:00Z"),
    ("createdBefore", "0001-01-01T00:00:00+01:00"), ("finishedAfter", "1764000000"),
    ("createdBefore", "9999-12-31T23:59:59-01:00"), ("finishedAfter", "null"),
    ("finishedBefore", "2026-11-24T13:36:00Z"), ("offset", "3"), ("page", "2"),
    ("Limit", "3"), ("order", "name"), ("agent", "summarizer"),
)  # fmt: skip


@one_database
def test_unfit_or_unknown_parameter_is_422(alice: ApiClient, subtests: pytest.Subtests) -> None:
    alice.start()
    for name, value in UNFIT:
        with subtests.test(f"{name}={value[:30]}"):
            response = alice.get("/task", query_string={name: value})
            assert list(problem(response, 422)["errors"]) == [name]


@one_database
def test_repeated_parameter_is_422(alice: ApiClient) -> None:
    for name in (
        "status", "agentId", "q", "createdAfter", "createdBefore", "finishedAfter", "sort",
        "limit", "cursor", "fields", "expand",
    ):  # fmt: skip
        response = alice.get(f"/task?{name}=running&{name}=running")
        assert list(problem(response, 422)["errors"]) == [name]


# --- cursors -----------------------------------------------------------------------------


def cursor_of(person: ApiClient, sort: str = "-createdAt") -> str:
    """The cursor of a second page."""
    url = next_url(f"{ROOT}/task", person.get(f"/task?limit=2&sort={sort}"))
    assert url
    return parse_qs(urlsplit(url).query)["cursor"][0]


def with_cursor(person: ApiClient, cursor: str, sort: str = "-createdAt") -> Any:
    return person.get("/task", query_string={"limit": 2, "sort": sort, "cursor": cursor})


def refused(response: Any) -> None:
    assert list(problem(response, 422)["errors"]) == ["cursor"]


@one_database
def test_garbage_is_not_a_cursor(alice: ApiClient, subtests: pytest.Subtests) -> None:
    for cursor in (
        "", "x", "abc", "%", "====", "ü", "\0", "bnVsbA==", "W10=", "e30=", "MQ==", "WzEsMl0=",
        "gICA", "x" * 5000, "[]", "' OR 1=1 --",
    ):  # fmt: skip
        with subtests.test(cursor[:20]):
            refused(with_cursor(alice, cursor))


@one_database
def test_cursor_allows_a_limit_and_no_other_order(alice: ApiClient, tasks: list[Task]) -> None:
    for sort in SORTS:
        cursor = cursor_of(alice, sort)
        refused(alice.get("/task", query_string={"cursor": cursor, "sort": sort}))
        for other in SORTS:
            if other != sort:
                refused(with_cursor(alice, cursor, other))
        assert len(expect(with_cursor(alice, cursor, sort), 200)) == 2


@one_database
def test_truncated_cursor_is_refused(alice: ApiClient, tasks: list[Task]) -> None:
    cursor = cursor_of(alice)
    for length in range(len(cursor.rstrip("=")) - 1):
        refused(with_cursor(alice, cursor[:length]))


def test_altered_letter_of_a_cursor_does_no_harm(
    alice: ApiClient, bob: ApiClient, tasks: list[Task]
) -> None:
    bob.start(name="not hers")
    cursor, hers = cursor_of(alice, "finishedAt"), set(ids(tasks))
    for place, letter in enumerate(cursor):
        other = "A" if letter != "A" else "_"
        altered = cursor[:place] + other + cursor[place + 1 :]
        response = with_cursor(alice, altered, "finishedAt")
        assert response.status_code in (200, 422), response.text
        assert response.status_code == 422 or set(ids(response.json)) <= hers


ODD_PARTS_OF_A_CURSOR: list[Any] = [
    None, True, False, 0.0, 1.0, 2, -1, 10**18, "", "x", "0", [], {}, "\0", "createdat",
    "2026-02-30T00:00:00.000Z", "9999-99-99T99:99:99.999Z", "0000-00-00T00:00:00.000Z",
    "2026-11-24T24:00:00.000Z", "2026-11-24T23:59:60.000Z", "2026-11-24T13:36:00Z",
    "2026-11-24T13:36:00.000+00:00", "２０２６-11-24T13:36:00.000Z",
    str(uuid4()).upper(), str(uuid4()).replace("-", ""), "{" + str(uuid4()) + "}",
    f"urn:uuid:{uuid4().hex[:27]}", uuid4().hex + "----", [0] * 36, [""] * 36,
    {str(number): 0 for number in range(36)}, ["2026-11-24T13:36:00.000Z"],
]  # fmt: skip


def as_cursor(parts: Any) -> str:
    return urlsafe_b64encode(json.dumps(parts).encode()).decode()


@one_database
def test_altered_part_of_a_cursor_is_refused(alice: ApiClient, tasks: list[Task]) -> None:
    """A forged cursor causes no 500."""
    for sort in SORTS:
        parts = json.loads(urlsafe_b64decode(cursor_of(alice, sort)))
        assert len(parts) == 3
        for place, odd in product(range(3), ODD_PARTS_OF_A_CURSOR):
            response = with_cursor(
                alice, as_cursor([*parts[:place], odd, *parts[place + 1 :]]), sort
            )
            assert response.status_code == 422, (odd, response.text)
            refused(response)


def odd_value(dice: random.Random, parts: list[Any], depth: int = 0) -> Any:
    """Any JSON value, often with a part of a real cursor in it, and often as long as an ID."""
    kind = dice.randrange(5 if depth < 2 else 3)
    if kind == 0:
        return dice.choice(parts)
    if kind in (1, 2):
        return dice.choice(ODD_PARTS_OF_A_CURSOR)
    values = [odd_value(dice, parts, depth + 1) for _ in range(dice.choice([0, 1, 5, 24, 36]))]
    return values if kind == 3 else {str(number): value for number, value in enumerate(values)}


def test_cursor_of_any_structure_is_taken_or_refused(alice: ApiClient, tasks: list[Task]) -> None:
    dice = random.Random(3)
    for sort in SORTS:
        parts = json.loads(urlsafe_b64decode(cursor_of(alice, sort)))
        for _ in range(50):
            forged = [part if dice.random() < 0.6 else odd_value(dice, parts) for part in parts]
            altered = dice.choice([forged, forged, forged[1:], [*forged, forged[0]], forged[0]])
            cursor = as_cursor(altered)
            if len(cursor) < 30_000:
                response = with_cursor(alice, cursor, sort)
                assert response.status_code in (200, 422), (altered, response.text)


def test_cursor_of_another_user_shows_nothing_of_theirs(
    alice: ApiClient, bob: ApiClient, tasks: list[Task]
) -> None:
    his = ids([bob.start() for _ in range(3)])
    for sort in SORTS:
        page = expect(with_cursor(bob, cursor_of(alice, sort), sort), 200)
        assert set(ids(page)) <= set(his)


def test_cursor_may_change_its_limit_and_its_fields(alice: ApiClient, tasks: list[Task]) -> None:
    response = alice.get(f"/task?limit=1000&fields=id&cursor={quote(cursor_of(alice))}")
    assert expect(response, 200) == [{"id": task_id} for task_id in ids(tasks)[-3::-1]]


# --- while things change -----------------------------------------------------------------


class World:
    """Tasks that are started, finished, renamed and deleted at random."""

    def __init__(self, person: ApiClient) -> None:
        self.person, self.random = person, random.Random(1)
        self.running: list[Task] = []
        self.finished: list[Task] = []
        self.deleted: set[str] = set()

    def start(self) -> None:
        self.running.append(self.person.start())

    def finish(self) -> None:
        if self.running:
            task = self.running.pop(self.random.randrange(len(self.running)))
            self.person.report(task, status=self.random.choice(["complete", "error"]))
            self.finished.append(task)

    def rename(self) -> None:
        self.person.report(self.random.choice(self.running + self.finished), name="new name")

    def delete(self) -> None:
        kept = self.random.choice([self.running, self.finished])
        if kept:
            task = kept.pop(self.random.randrange(len(kept)))
            expect(self.person.delete(f"/task/{task['id']}"), 200)
            self.deleted.add(task["id"])

    def change(self) -> None:
        self.random.choice([self.start, self.start, self.finish, self.finish, self.rename,
                            self.delete])()  # fmt: skip


@pytest.mark.parametrize("sort", SORTS)
def test_pages_neither_skip_nor_repeat_while_tasks_change(alice: ApiClient, sort: str) -> None:
    world = World(alice)
    for _ in range(24):
        world.start()
    for _ in range(9):
        world.finish()
    existing = set(ids(world.finished if sort == "finishedAt" else world.running + world.finished))
    seen: Counter[str] = Counter()
    for page in pages(alice.get, query(sort=sort, limit=3, fields="id")):
        seen.update(ids(page))
        for _ in range(4):
            world.change()
    assert existing - world.deleted - seen.keys() == set()
    assert [task_id for task_id, times in seen.items() if times > 1] == []
    assert world.deleted & existing


@pytest.mark.parametrize("sort", SORTS)
def test_cursor_of_a_deleted_task_still_leads_on(
    alice: ApiClient, tasks: list[Task], sort: str
) -> None:
    whole, seen = ids(listed(alice, sort=sort)), []
    for page in pages(alice.get, query(sort=sort, limit=2)):
        seen += ids(page)
        for task in page:
            expect(alice.delete(f"/task/{task['id']}"), 200)
    assert seen == whole
    assert listed(alice, sort=sort) == []


def test_list_by_end_has_finished_tasks_only(alice: ApiClient, tasks: list[Task]) -> None:
    finished = [task for task in tasks if task["finishedAt"]]
    assert listed(alice, sort="finishedAt") == in_order(finished, "finishedAt")
    assert listed(alice, sort="finishedAt", status="running") == []


def test_tasks_that_end_while_a_list_by_end_is_read_come_at_its_end(alice: ApiClient) -> None:
    started = [alice.start() for _ in range(6)]
    alice.report(started[4], status="complete")
    alice.report(started[2], status="complete")
    seen: list[str] = []
    for number, page in enumerate(pages(alice.get, "sort=finishedAt&limit=1")):
        if number == 0:
            alice.report(started[0], status="error")
        seen += ids(page)
    assert seen == ids([started[4], started[2], started[0]])


def test_late_report_moves_its_task_to_its_new_place_in_a_list_by_end(
    alice: ApiClient, app: Flask
) -> None:
    silent, other = alice.start(), alice.start()
    end_for_silence(app, silent)
    time.sleep(0.002)
    alice.report(other, status="complete")
    assert ids(listed(alice, sort="finishedAt")) == ids([silent, other])
    time.sleep(0.002)
    alice.report(silent, status="complete")
    assert ids(listed(alice, sort="finishedAt")) == ids([other, silent])


# --- the indexes -------------------------------------------------------------------------

LISTS: tuple[dict[str, str], ...] = (
    *({"sort": sort} for sort in SORTS),
    *({"sort": sort, "agentId": "translator"} for sort in SORTS),
    *({"sort": sort, "status": status}
      for sort in SORTS for status in ("running", "complete", "error")
      if (sort, status) != ("finishedAt", "running")),
    *({"sort": sort, "status": "complete", "agentId": "translator"} for sort in SORTS),
    *({"sort": sort, "errorType": "failed"} for sort in SORTS),
    *({"sort": sort, "errorType": "cancelled"} for sort in SORTS[:2]),
    *({"sort": sort, "errorType": "failed", "agentId": "translator"} for sort in SORTS),
    *({"sort": sort, "asking": "true"} for sort in SORTS[:2]),
    *({"sort": sort, "hanging": "true"} for sort in SORTS[:2]),
    {"createdAfter": "2020-01-01T00:00:00Z"},
    {"createdBefore": "2120-01-01T00:00:00Z", "sort": "createdAt"},
    {"finishedAfter": "2020-01-01T00:00:00Z", "sort": "finishedAt"},
    {"finishedAfter": "2020-01-01T00:00:00Z"},
)  # fmt: skip


# Filters that may leave few of very many tasks -> the index that has their candidates.
SELECTIVE: dict[str, dict[str, str]] = {
    "tasks_by_parent": {"parentId": "the first"},
    "task_labels_by_label": {"label": "n:1"},
    "tasks_unclaimed": {"status": "running", "claimed": "false"},
    "tasks_by_error": {"errorType": "cancelled"},
    "tasks_asking": {"asking": "true"},
    "tasks_hanging": {"hanging": "true"},
}


def selective(tasks: list[Task]) -> dict[str, dict[str, str]]:
    """SELECTIVE with the ID of the first task, which has children."""
    first = tasks[0]["id"]
    return {
        index: {name: first if name == "parentId" else value for name, value in fields.items()}
        for index, fields in SELECTIVE.items()
    }


def statements_on_tasks(app: Flask, request: Callable[[], Any]) -> list[Statement]:
    """What a request reads of the table of tasks."""
    on_tasks = [statement for statement in reads(app, request) if "FROM tasks" in statement[0]]
    assert on_tasks
    return on_tasks


def read_pages(person: ApiClient, fields: str) -> None:
    """The first page, and two that a cursor leads to."""
    list(islice(pages(person.get, fields), 3))


@one_database
def test_list_is_read_in_the_order_of_an_index(
    alice: ApiClient, app: Flask, tasks: list[Task], subtests: pytest.Subtests
) -> None:
    for person, fields in product((alice, alice.agent_key("translator")), LISTS):
        request = partial(read_pages, person, query(**fields, limit=1))
        for statement, parameters in statements_on_tasks(app, request):
            plan = plan_of(app, statement, parameters)
            with subtests.test(query(**fields)):
                looks = [step for step in plan if "tasks" in step]
                assert looks
                assert all(step.startswith("SEARCH tasks USING") for step in looks), plan
                assert "TEMP B-TREE" not in " ".join(plan), plan
                assert "ORDER BY tasks" in statement or "(id=?)" in looks[0], plan


@one_database
def test_filter_that_leaves_few_finds_them_in_an_index(
    alice: ApiClient,
    app: Flask,
    tasks: list[Task],
    monkeypatch: pytest.MonkeyPatch,
    subtests: pytest.Subtests,
) -> None:
    monkeypatch.setattr(list_queries, "FIRST_SEARCHED", 1)
    for sort, (index, fields) in product(SORTS[:2], selective(tasks).items()):
        with subtests.test(query(sort=sort, **fields)):
            request = partial(alice.get, f"/task?{query(sort=sort, **fields, limit=9)}")
            plans = [plan_of(app, *statement) for statement in statements_on_tasks(app, request)]
            looks = [step for plan in plans for step in plan if "task" in step]
            assert all(step.startswith("SEARCH") for step in looks), plans
            assert any(f" {index} " in step for step in looks), plans


LONG = 6


@one_database
@pytest.mark.parametrize("path", ["/task", "/agent", "/agent?expand=health"])
def test_long_lists_of_one_user_leave_threads_for_another(
    app: Flask, alice: ApiClient, bob: ApiClient, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    slots = resources.find(LongListSlots, app)
    assert slots.wait_seconds == 3.0
    monkeypatch.setattr(slots, "wait_seconds", 0.0)
    for number in range(LONG):
        alice.register(
            f"agent-{number}", inputSchema={"type": "object", "description": "x" * 15_000}
        )
        alice.start(f"agent-{number}", input={"text": "x" * 15_000})
    bob.start()
    count, headers = app.config["THREADS"] // 4, {"apikey": alice.key}
    client = app.test_client()
    reading = [client.get(f"/api/v1{path}", headers=headers) for _ in range(count)]
    assert {response.status_code for response in reading} == {200}
    refused = alice.get(path)
    assert problem(refused, 503)["code"] == "overloaded"
    assert refused.headers["Retry-After"].isdigit()
    assert expect(bob.get(path), 200)
    assert len(expect(alice.get("/task?limit=1000"), 200)) == LONG
    for response in reading:
        response.close()
    assert len(expect(alice.get(path), 200)) == LONG
