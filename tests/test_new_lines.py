"""The lines of a task that another does not have, and what counts as equal."""

from typing import Any
from uuid import uuid4

import pytest
from flask import Flask

from taskservice.services import neighbours, new_lines, search
from tests.support.api_client import ApiClient, expect, problem
from tests.support.internals import plan_of, reads
from tests.support.marks import one_database

GOOD = """\
2026-11-27T02:00:01.250Z start
Fri Nov 27 02:00:01 UTC 2026 host
27/Nov/2026:02:00:01 GET
request 5e0a9c57-0a9e-4f0c-9a52-3f8e1c2d4b6a took 9 ms
commit 0123456789abcdef0123 at 0x7ffe12
wrote /tmp/a1b2/out.txt
 12 of 100 pages, 1.5 MB
two
done: café"""
EQUAL = """\
2026-11-28T12:34:56Z start
Sat Dec  5 13:14:15 UTC 2026 host
05/Dec/2026:13:14:15 GET
request A1B2C3D4-0a9e-4f0c-9a52-3f8e1c2d4bff took 1,234 ms
commit fedcba98765432100000 at 0xAB
wrote /tmp/zz-9/out.txt
 7 of 2000 pages, 20 MB
two
done: café"""


def run(person: ApiClient, text: str, status: str = "complete", **fields: Any) -> dict[str, Any]:
    task = person.start(claim=True, **fields)
    if text:
        person.append(task, *text.split("\n"))
    return person.report(task, status=status)


def compared(person: ApiClient, task: dict[str, Any], query: str = "") -> dict[str, Any]:
    return dict(expect(person.get(f"/task/{task['id']}/new-lines{query}"), 200))


def numbers(comparison: dict[str, Any]) -> list[int]:
    return [line["line"] for line in comparison["lines"]]


def test_lines_of_a_failure_are_compared_with_the_last_good_run(alice: ApiClient) -> None:
    run(alice, EQUAL + "\nboom")
    good = run(alice, GOOD)
    run(alice, "boom", agent_id="other")
    run(alice, "boom", "error")
    failed = run(alice, EQUAL + "\nboom\ntwo\nboom 2\n" + "x" * 500, "error")
    run(alice, "boom")
    comparison = compared(alice, failed)
    assert comparison["against"] == {"id": good["id"], "finishedAt": good["finishedAt"]}
    assert [line["text"] for line in comparison["lines"]] == ["boom", "boom 2", "x" * 400]
    assert numbers(comparison) == [10, 12, 13]
    times = expect(alice.get(f"/task/{failed['id']}/logs?times=true"), 200)["times"]
    assert [line["at"] for line in comparison["lines"]] == [times[9], times[11], times[12]]
    assert comparison["cut"] is False
    assert numbers(compared(alice, failed, f"?against={failed['id']}")) == []
    assert numbers(compared(alice, good, f"?against={failed['id']}")) == []


def test_good_run_is_one_of_the_same_kind(alice: ApiClient) -> None:
    parent = alice.start(claim=True)
    child = {"name": "orders", "parentId": parent["id"]}
    acme, globex = ({"customer": name, "env": "prod"} for name in ("acme", "globex"))
    top = run(alice, "one", name="orders", labels=acme)
    older = run(alice, "one", **child, labels=acme)
    run(alice, "one", **child, labels=globex)
    newest = run(alice, "one", **child, labels=globex)
    run(alice, "one", name="all orders", labels=acme)
    run(alice, "one", parentId=parent["id"], labels=acme)
    for fields, good in (
        ({"name": "orders"}, top),
        ({**child, "labels": acme | {"version": "2"}}, older),
        # None has more equal labels: the latest.
        ({**child, "labels": {"env": "prod"}}, newest),
        ({**child, "labels": {"customer": "initech"}}, newest),
        (child, newest),
    ):
        failed = run(alice, "boom", "error", **fields)
        assert compared(alice, failed)["against"]["id"] == good["id"], fields
    alone = run(alice, "boom", "error", name="others")
    response = alice.get(f"/task/{alone['id']}/new-lines")
    assert problem(response, 404)["code"] == "no_good_run"


def test_words_are_not_equal(alice: ApiClient, subtests: pytest.Subtests) -> None:
    good = run(alice, "read page 5 of a book\nabcdef\n/var/tmp1/x\nMonday\nMarker 5 failed\n")
    for line in (
        "read page 5 of b book", "abcdee", "/var/tmp1/y", "Sunday", "Decoder 3 failed", "5 failed",
        "é", "", "%", "\ufffd",
    ):  # fmt: skip
        with subtests.test(line):
            task = run(alice, f"read page 6 of a book\n{line}\nend", "error")
            expected = [3] if line == "" else [2, 3]
            assert numbers(compared(alice, task, f"?against={good['id']}")) == expected


def test_signs_and_exponents_are_part_of_numbers(alice: ApiClient) -> None:
    good = run(alice, "-7\nmoved by 3\n[1,-2,3] x=5 y=-5\nloss 1e-05, 2E+10 of 1e4\nleft-5 3 - 5")
    equal = "0.5\nmoved by -12\n[-1,2,+3] x=-5 y=5\nloss 12, 1e400 of 3e-7\nleft-7 1 - 2\n-1e-5"
    comparison = compared(alice, run(alice, equal), f"?against={good['id']}")
    assert [line["text"] for line in comparison["lines"]] == []
    others = "left 5 3 - 5\nleft-5 3 5\nleft-5 3 -5\nmoved by e3\nmoved by --3\nmoved by 3e"
    assert numbers(compared(alice, run(alice, others), f"?against={good['id']}")) == [*range(1, 7)]


def test_run_without_a_good_one_has_no_new_lines(alice: ApiClient, bob: ApiClient) -> None:
    failed = run(alice, "boom", "error")
    of_bob = run(bob, "boom")
    path = f"/task/{failed['id']}/new-lines"
    assert problem(alice.get(path), 404)["code"] == "no_good_run"
    for unknown in (of_bob["id"], str(uuid4())):
        assert problem(alice.get(f"{path}?against={unknown}"), 404)["code"] == "not_found"
    problem(bob.get(path), 404)
    problem(alice.get(f"{path}?against=x"), 422)
    other = run(alice, "boom", agent_id="other")
    agent_key = alice.agent_key()
    assert numbers(compared(agent_key, failed, f"?against={failed['id']}")) == []
    problem(agent_key.get(f"{path}?against={other['id']}"), 404)
    # Empty logs.
    empty = run(alice, "")
    assert compared(alice, empty, f"?against={failed['id']}")["lines"] == []
    assert numbers(compared(alice, failed, f"?against={empty['id']}")) == [1]


def test_good_run_is_looked_for_in_the_last_tasks(
    alice: ApiClient, app: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(neighbours, "SEARCHED", 3)
    good = run(alice, "one")
    for _ in range(2):
        run(alice, "two", "error")
    failed = run(alice, "two", "error")
    comparisons: list[Any] = []
    statements = reads(app, lambda: comparisons.append(compared(alice, failed)))
    assert comparisons[0]["against"]["id"] == good["id"]
    (statement,) = [read for read in statements if "coalesce" in read[0]]
    if str(app.config["DATABASE_URL"]).startswith("sqlite"):
        plan = plan_of(app, *statement)
        assert len([step for step in plan if "INDEX tasks_by_agent_end" in step]) == 2, plan
        assert not any("TEMP B-TREE" in step for step in plan), plan
    latest = run(alice, "two", "error")
    path = f"/task/{latest['id']}/new-lines"
    assert problem(alice.get(path), 404)["code"] == "no_good_run"


def test_long_log_is_compared_at_both_ends(
    alice: ApiClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert new_lines.COMPARED_BYTES == 8 * 1024 * 1024
    assert new_lines.COMPARED_SECONDS < 2
    monkeypatch.setattr(new_lines, "COMPARED_BYTES", 100)
    good = run(alice, "one")
    task = alice.start(claim=True)
    for part in range(30):
        alice.append(task, *(f"line {'a' * part}" for _ in range(20)))
    comparison = compared(alice, task, f"?against={good['id']}")
    assert (numbers(comparison)[0], comparison["cut"]) == (1, True)
    assert {1, 600} <= set(numbers(comparison))
    assert 300 not in numbers(comparison)
    monkeypatch.setattr(new_lines, "COMPARED_SECONDS", -1.0)
    comparison = compared(alice, task, f"?against={good['id']}")
    # One chunk of each.
    assert (numbers(comparison), comparison["cut"]) == ([*range(581, 601)], True)


@one_database
def test_at_most_200_new_lines_are_listed(alice: ApiClient) -> None:
    good = run(alice, "one")
    for count, is_cut in ((200, False), (201, True)):
        task = run(alice, "\n".join(["a", "one"] * count))
        comparison = compared(alice, task, f"?against={good['id']}")
        assert (len(comparison["lines"]), comparison["cut"]) == (200, is_cut)
        # The last ones: the error is at the end.
        assert numbers(comparison) == [*range(1, 2 * count, 2)][-200:]


@one_database
def test_comparison_needs_one_of_the_places_for_searches(alice: ApiClient) -> None:
    task = run(alice, "one")
    with search.slots.hold(task["userId"]):
        response = alice.get(f"/task/{task['id']}/new-lines?against={task['id']}")
        assert problem(response, 503)["code"] == "overloaded"
