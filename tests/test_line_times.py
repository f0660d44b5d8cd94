"""Times of lines: as their agent sent them, kept within the task's life, and read back."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from taskservice.database import clock
from tests.support.api_client import ApiClient, expect, problem
from tests.support.internals import moment, run_sql

Task = dict[str, Any]
TEXT = {"Accept": "text/plain"}


def read(alice: ApiClient, task: Task, query: str = "") -> Any:
    return expect(alice.get(f"/task/{task['id']}/logs?times=true{query}"), 200)


def after_start(task: Task, milliseconds: int) -> str:
    return clock.rfc3339(moment(task["createdAt"]) + timedelta(milliseconds=milliseconds))


def wait_until(task: Task, milliseconds: int) -> None:
    """Wait until a task is this old, so that times up to there are not after now."""
    until = moment(task["createdAt"]) + timedelta(milliseconds=milliseconds)
    while datetime.now(UTC) < until:
        pass


def test_lines_without_a_time_have_the_time_of_their_append(alice: ApiClient, task: Task) -> None:
    alice.append(task, "one", "two")
    page = read(alice, task)
    assert page["logs"] == ["one", "two"]
    first, second = map(moment, page["times"])
    assert first == second
    assert moment(task["createdAt"]) <= first <= datetime.now(UTC)


def test_one_time_counts_for_all_lines_of_an_append(alice: ApiClient, task: Task) -> None:
    wait_until(task, 5)
    at = after_start(task, 3)
    alice.append(task, "one", "two\nthree", at=at)
    assert read(alice, task)["times"] == [at] * 3


def test_each_string_may_have_its_time(alice: ApiClient, task: Task) -> None:
    wait_until(task, 9)
    at = [after_start(task, number) for number in (1, 4, 4, 8)]
    alice.append(task, "one", "two\nthree\n", "four", "", at=at)
    assert read(alice, task)["times"] == [at[0], at[1], at[1], at[2], at[3]]
    assert read(alice, task, "&after=2&limit=2")["times"] == [at[1], at[2]]


def test_text_takes_one_time(alice: ApiClient, task: Task) -> None:
    wait_until(task, 5)
    at = after_start(task, 2)
    path = f"/task/{task['id']}/logs"
    expect(alice.put(path, data=b"one\ntwo\n", query_string={"at": at}), 201)
    assert read(alice, task)["times"] == [at, at]


def test_time_is_in_utc_and_cut_to_milliseconds(alice: ApiClient, task: Task) -> None:
    wait_until(task, 5)
    at = after_start(task, 3)
    offset = (moment(at) + timedelta(hours=2)).isoformat(timespec="milliseconds")
    alice.append(task, "one", at=offset.replace("+00:00", "9999+02:00"))
    assert read(alice, task)["times"] == [at]


def test_time_is_not_before_the_start_nor_after_now(alice: ApiClient, task: Task) -> None:
    alice.append(task, "before", at="0001-01-01T00:00:00Z")
    alice.append(task, "after", at="9999-12-31T23:59:59Z")
    before, after = read(alice, task)["times"]
    assert before == task["createdAt"]
    assert moment(after) <= datetime.now(UTC)


def test_resend_keeps_the_first_times(alice: ApiClient, task: Task) -> None:
    wait_until(task, 9)
    first = [after_start(task, number) for number in (1, 2)]
    alice.append(task, "one", "two", seq=1, at=first)
    again = [after_start(task, number) for number in (3, 4, 5)]
    alice.append(task, "one", "two", "three", seq=1, at=again)
    page = read(alice, task)
    assert page["logs"] == ["one", "two", "three"]
    assert page["times"] == [*first, again[2]]


@pytest.mark.parametrize(
    ("at", "field"),
    [
        (["2026-11-24T13:36:00Z"], "at"), (["2026-11-24T13:36:01Z", "2026-11-24T13:36:00Z"], "at"),
        ("yesterday", "at"), (5, "at"), ([None, None], "at"),
    ],
)  # fmt: skip
def test_unfit_times_are_422_and_store_nothing(
    alice: ApiClient, task: Task, at: Any, field: str
) -> None:
    body = {"logs": ["one", "two"], "at": at}
    answer = problem(alice.post(f"/task/{task['id']}/logs", json=body), 422)
    assert field in answer["errors"]
    assert alice.task(task)["logCount"] == 0


def test_text_has_a_time_and_a_space_before_each_line(alice: ApiClient, task: Task) -> None:
    alice.append(task, "one", "", "two words")
    times = read(alice, task)["times"]
    response = alice.get(f"/task/{task['id']}/logs?times=true", headers=TEXT)
    assert response.text == f"{times[0]} one\n{times[1]} \n{times[2]} two words\n"


def test_lines_from_before_there_were_times_have_none(alice: ApiClient, task: Task) -> None:
    alice.append(task, "old")
    run_sql(alice.app, "UPDATE log_chunks SET at = NULL, times = NULL")
    alice.append(task, "new")
    times = read(alice, task)["times"]
    assert times[0] is None
    assert times[1] is not None
    text = alice.get(f"/task/{task['id']}/logs?times=true", headers=TEXT).text
    assert text == f"- old\n{times[1]} new\n"


def test_events_have_times_if_asked(alice: ApiClient, task: Task) -> None:
    alice.append(task, "one", "two")
    alice.report(task, status="complete")
    times = read(alice, task)["times"]
    text = alice.get(f"/task/{task['id']}/events?times=true").text
    events = [event.split("\n") for event in text.split("\n\n") if "event: log" in event]
    assert [json.loads(data.removeprefix("data: ")) for _, _, data in events] == [
        {"at": times[0], "line": "one"},
        {"at": times[1], "line": "two"},
    ]


def test_many_lines_of_one_append_keep_their_times(alice: ApiClient, task: Task) -> None:
    wait_until(task, 200)
    at = [after_start(task, number // 100) for number in range(20_000)]
    lines = [f"line {number}" for number in range(20_000)]
    alice.append(task, *lines, at=at)
    pages = [read(alice, task, f"&after={start}&limit=7000") for start in (0, 7_000, 14_000)]
    assert [line for page in pages for line in page["logs"]] == lines
    assert [time for page in pages for time in page["times"]] == at


@settings(deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.integers(0, 10**14), min_size=1, max_size=50).map(sorted))
def test_times_are_decoded_as_they_were_encoded(milliseconds: list[int]) -> None:
    at, times = clock.encode(list(enumerate(milliseconds)))
    assert clock.decode(at, times, len(milliseconds)) == milliseconds


def test_lines_of_one_time_share_its_storage() -> None:
    same = [(line, 1_795_000_000_000) for line in range(4_096)]
    assert clock.encode(same)[1] is None
