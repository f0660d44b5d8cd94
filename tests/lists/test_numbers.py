"""The numbers in the outputs of an agent's tasks, which are read as they were reported."""

import json
from typing import Any

from flask import Flask

from tests.support.api_client import ApiClient, expect, problem
from tests.support.internals import copy_task
from tests.support.marks import one_database

NUMBERS = "/agent/summarizer/numbers"
# The last line of `claude -p --output-format json`.
CLAUDE = {
    "type": "result",
    "is_error": False,
    "duration_ms": 4_213,
    "total_cost_usd": 0.0413,
    "result": "Done.",
    "usage": {"input_tokens": 12, "output_tokens": 1_843, "server": {"searches": 1}},
}


def end(person: ApiClient, output: dict[str, Any], **changes: Any) -> dict[str, Any]:
    task = person.start(claim=True)
    return person.report(task, **{"status": "complete", "output": output, **changes})


def end_as_written(person: ApiClient, output: str) -> dict[str, Any]:
    """With an output whose numbers Python would change."""
    task = person.start(claim=True)
    body = f'{{"status": "complete", "output": {output}}}'
    response = person.patch(f"/task/{task['id']}", data=body, content_type="application/json")
    return dict(expect(response, 200))


def paths(person: ApiClient) -> dict[str, tuple[Any, int]]:
    """Path -> the last number and the count, in the order of the answer."""
    listed = expect(person.get(NUMBERS), 200)["paths"]
    return {entry["path"]: (entry["last"], entry["count"]) for entry in listed}


def values(person: ApiClient, path: str, **query: Any) -> list[Any]:
    listed = expect(person.get(NUMBERS, query_string={"path": path, **query}), 200)
    return [entry["value"] for entry in listed]


def test_numbers_are_found_two_levels_deep(alice: ApiClient) -> None:
    alice.register()
    assert paths(alice) == {}
    assert values(alice, "total_cost_usd") == []
    end(alice, {"total_cost_usd": 1})
    end(alice, CLAUDE)
    assert paths(alice) == {
        "total_cost_usd": (0.0413, 2),
        "duration_ms": (4_213, 1),
        "usage.input_tokens": (12, 1),
        "usage.output_tokens": (1_843, 1),
    }
    assert values(alice, "usage.output_tokens") == [1_843]
    assert values(alice, "usage.server.searches") == values(alice, "nothing") == []


def test_newest_numbers_come_oldest_first(alice: ApiClient) -> None:
    ended = [end(alice, {"rows": number}) for number in range(4)]
    failed = end(alice, {"rows": 4, "other": 1}, status="error")
    alice.report(alice.start(claim=True), output={"rows": 5})
    expect(alice.post(f"/task/{alice.start()['id']}/cancel"), 200)
    numbers = expect(alice.get(f"{NUMBERS}?path=rows&limit=2"), 200)
    assert numbers == [
        {"taskId": task["id"], "finishedAt": task["finishedAt"], "value": value}
        for task, value in ((ended[3], 3), (failed, 4))
    ]
    assert values(alice, "rows") == [0, 1, 2, 3, 4]
    assert paths(alice) == {"rows": (4, 5), "other": (1, 1)}


def test_numbers_are_exactly_as_in_the_output(alice: ApiClient) -> None:
    texts = ["0.1", "123456789012345678901234567890", "0.12345678901234567890123", "-0.0", "1e-400"]
    for text in texts:
        end_as_written(alice, f'{{"n": {text}}}')
    body = alice.get(f"{NUMBERS}?path=n").data.decode()
    assert [part.partition("}")[0] for part in body.split('"value":')[1:]] == texts
    assert '"last":1e-400' in alice.get(NUMBERS).data.decode()
    task = alice.start(claim=True)
    body = '{"output": {"n": 1e400}}'
    problem(alice.patch(f"/task/{task['id']}", data=body, content_type="application/json"), 422)


def test_only_numbers_are_numbers(alice: ApiClient) -> None:
    others = {"true": True, "null": None, "nan": "NaN", "text": "1", "list": [1], "": 7}
    end(alice, {**others, "nested": {**others, "deeper": {"n": 1}}})
    assert paths(alice) == {"": (7, 1), "nested.": (7, 1)}
    assert values(alice, "") == [7]


def test_key_with_a_dot_wins_over_a_nested_one(alice: ApiClient) -> None:
    end(alice, {"a": {"b": 1, "c.d": 3}, "a.b": 2, "a.c": {"d": 4}})
    assert paths(alice) == {"a.b": (2, 1), "a.c.d": (3, 1)}


def test_late_report_counts(alice: ApiClient) -> None:
    task = end(alice, {"rows": 1})
    assert values(alice, "rows") == [1]
    expect(alice.patch(f"/task/{task['id']}", json={"name": "other"}), 200)
    assert values(alice, "rows") == [1]
    expect(alice.delete(f"/task/{task['id']}"), 200)
    assert (values(alice, "rows"), paths(alice)) == ([], {})


def test_most_frequent_paths_are_listed(alice: ApiClient) -> None:
    end(alice, {f"a{number}": number for number in range(60)})
    end(alice, {"a59": 1, "a58": 2})
    listed = paths(alice)
    assert len(listed) == 50
    assert list(listed)[:3] == ["a58", "a59", "a0"]


@one_database
def test_outputs_with_very_many_numbers_count_with_their_first_ones(alice: ApiClient) -> None:
    end(alice, {"list": [1] * 400_000, "rows": 3})
    end(alice, {"nested": {f"{number:x}": number for number in range(60_000)}, "rows": 4})
    listed = paths(alice)
    assert (len(listed), listed["rows"]) == (50, (4, 2))


@one_database
def test_paths_have_up_to_200_characters(alice: ApiClient) -> None:
    end(alice, {"k" * 201: 1, "k" * 200: 2, "n" * 198: {"ab": 3, "a": 4}, "m" * 500_000: {"n": 5}})
    assert paths(alice) == {"k" * 200: (2, 1), f"{'n' * 198}.a": (4, 1)}
    assert values(alice, "k" * 201) == []


@one_database
def test_numbers_of_an_output_and_their_paths_have_up_to_8_kib(alice: ApiClient) -> None:
    end(alice, {f"{n:0196}": 1_000 + n for n in range(60)})
    assert list(paths(alice)) == [f"{n:0196}" for n in range(40)]


@one_database
def test_outputs_of_4_mib_are_read(alice: ApiClient) -> None:
    for number in range(5):
        end(alice, {"rows": number, "text": "x" * 1_000_000})
    assert values(alice, "rows") == [1, 2, 3, 4]
    assert paths(alice) == {"rows": (4, 4)}


@one_database
def test_paths_are_of_the_last_100_tasks_and_numbers_of_1000(alice: ApiClient, app: Flask) -> None:
    copy_task(app, end(alice, {"rows": 1}), 1_000)
    assert paths(alice) == {"rows": (1, 100)}
    assert len(values(alice, "rows")) == 100
    assert len(values(alice, "rows", limit=1_000)) == 1_000


def test_numbers_are_of_this_user_and_agent(alice: ApiClient, bob: ApiClient) -> None:
    end(alice, {"rows": 1})
    problem(bob.get(NUMBERS), 404)
    bob.register()
    end(bob, {"rows": 2})
    assert (values(alice, "rows"), values(bob, "rows")) == ([1], [2])
    assert values(alice.agent_key(), "rows") == [1]
    problem(alice.agent_key("other").get(NUMBERS), 404)
    problem(alice.agent_key("other").get(f"{NUMBERS}?path=rows"), 404)
    problem(alice.get("/agent/none/numbers?path=rows"), 404)


@one_database
def test_wrong_queries_are_refused(alice: ApiClient) -> None:
    alice.register()
    for query in ("limit=5", "path=a&limit=0", "path=a&limit=1001", "paths=a", "path=a&path=b"):
        problem(alice.get(f"{NUMBERS}?{query}"), 422)
    assert json.loads(alice.get(f"{NUMBERS}?path=a&limit=1000").data) == []
