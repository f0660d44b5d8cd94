"""Searches in the logs of tasks: what is found, in which order, and where a search continues."""

import random
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from time import thread_time
from typing import Any
from urllib.parse import unquote

import pytest
from flask import Flask
from sqlalchemy import inspect

from taskservice import resources
from taskservice.background import removal
from taskservice.database import types
from taskservice.database.engine import Database
from taskservice.database.transactions import reading
from taskservice.services import lists, logs, search
from tests.support.api_client import ApiClient, expect, problem
from tests.support.internals import before_reads, reads
from tests.support.marks import one_database
from tests.support.paging import ROOT, next_url
from tests.support.waiting import PATIENCE_SECONDS, until

Page = dict[str, Any]
PARTS = (
    "Error", "disk", "DISK", "50%", "5_0", r"a\b", "'", '"', "'; --", "\0", "\ufffd", "\ufffe",
    "👩‍🚀", "é", "É", "ſ", "K", "ÄRGER", "*", "?", "[", "(", ".", " ", "\t", "\r", "/",
)  # fmt: skip
# For ASCII alone: `lower` of Python knows all scripts.
LOWER = str.maketrans("ABCDEFGHIJKLMNOPQRSTUVWXYZ", "abcdefghijklmnopqrstuvwxyz")


def pages(person: ApiClient, text: str, **query: Any) -> list[Page]:
    """The pages of a search, each by the `Link` of the one before."""
    all_pages: list[Page] = []
    response = person.get("/search", query_string={"text": text, **query})
    while True:
        all_pages.append(expect(response, 200))
        url = next_url(f"{ROOT}/search", response)
        assert (all_pages[-1]["searched"]["until"] is None) == (url is None)
        if url is None:
            return all_pages
        response = person.get(url.removeprefix(ROOT))


def hits(person: ApiClient, text: str, **query: Any) -> list[Page]:
    return [hit for page in pages(person, text, **query) for hit in page["hits"]]


def lines(person: ApiClient, text: str, **query: Any) -> list[tuple[str, int]]:
    return [(hit["taskId"], hit["line"]) for hit in hits(person, text, **query)]


def with_log(person: ApiClient, *strings: str, **fields: Any) -> Page:
    task = person.start(**fields)
    person.append(task, *strings)
    return task


def test_search_finds_lines_of_the_newest_task_first(alice: ApiClient) -> None:
    first = with_log(alice, "one", "Disk full", "two", name="nightly")
    alice.append(first, "the DISK again", at="2026-01-01T00:00:00Z")
    second = with_log(alice, "no disk")
    with_log(alice, "nothing")
    alice.report(first, status="complete")
    page = expect(alice.get("/search?text=disk"), 200)
    assert [(hit["taskId"], hit["line"], hit["text"]) for hit in page["hits"]] == [
        (second["id"], 1, "no disk"),
        (first["id"], 2, "Disk full"),
        (first["id"], 4, "the DISK again"),
    ]
    hit = page["hits"][1]
    assert (hit["name"], hit["agentId"], hit["status"]) == ("nightly", "summarizer", "complete")
    times = expect(alice.get(f"/task/{first['id']}/logs?times=true"), 200)["times"]
    assert [hit["at"] for hit in page["hits"][1:]] == [times[1], times[3]]
    bytes_read = len("one\nDisk full\ntwo\nthe DISK again\nno disk\nnothing\n")
    assert page["searched"] == {"tasks": 3, "bytes": bytes_read, "until": None}
    assert lines(alice, "DISK", case="true") == [(first["id"], 4)]
    assert lines(alice, "disk", agentId="summarizer", status="running") == [(second["id"], 1)]
    assert lines(alice, "disk", q="night") == [(first["id"], 2), (first["id"], 4)]


def test_text_is_literal(alice: ApiClient, subtests: pytest.Subtests) -> None:
    chooser = random.Random(7)
    logs_of = {}
    for _ in range(6):
        strings = ["".join(chooser.choices(PARTS, k=3)) for _ in range(12)]
        strings = [text.replace("\0", "\ufffd") for text in strings]
        logs_of[with_log(alice, *strings)["id"]] = strings
    newest = sorted(logs_of, reverse=True)
    for part in (*PARTS, "error", "k", "ärger", "ÄRGERdisk", "%%", "__", "k*"):
        with subtests.test(part):
            text = part.replace("\0", "\ufffd")
            for case, fold in (("true", str), ("false", lambda text: text.translate(LOWER))):
                expected = [
                    (task_id, number)
                    for task_id in newest
                    for number, line in enumerate(logs_of[task_id], 1)
                    if fold(text) in fold(line)
                ]
                assert lines(alice, part, case=case) == expected


def test_long_line_is_cut_around_the_text(alice: ApiClient) -> None:
    short = "x" * 395 + "Found"
    in_the_middle = "a" * 1_000 + "Found" + "b" * 1_000
    task = with_log(alice, short, in_the_middle, "Found" + "c" * 1_000, "d" * 60_000 + "Found")
    texts = [hit["text"] for hit in hits(alice, "found")]
    assert texts[0] == short
    assert [len(text) for text in texts] == [400] * 4
    assert all("Found" in text for text in texts)
    assert (texts[1][0], texts[1][-1]) == ("a", "b")
    assert [line for _, line in lines(alice, "found")] == [1, 2, 3, 4]
    assert hits(alice, "found found") == []
    # One hit a line.
    alice.append(task, "twice twice")
    assert len(hits(alice, "twice")) == 1


def test_continued_search_finds_each_line_once(
    alice: ApiClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "CHUNK_LINES", 3)
    monkeypatch.setattr(search, "TASKS_PER_READ", 2)
    chooser = random.Random(5)
    for number in range(5):
        task = alice.start(labels={"odd": str(number % 2)})
        if number != 3:
            alice.append(task, *(chooser.choice(["hit", "miss"]) + " é" * 9 for _ in range(16)))
    whole, of_label = lines(alice, "hit"), lines(alice, "hit", label="odd:1")
    assert len(whole) > 20
    assert whole == sorted(whole, key=lambda hit: (hit[0], -hit[1]), reverse=True)
    for page_bytes in (10_000, 64):
        monkeypatch.setattr(types, "PAGE_BYTES", page_bytes)
        for limit in (1, 3, 1_000):
            for search_bytes in (1, 700):
                monkeypatch.setattr(search, "SEARCH_BYTES", search_bytes)
                assert lines(alice, "hit", limit=limit) == whole
        assert lines(alice, "hit", label="odd:1") == of_label
    # Nothing is found, but each page reads only a part.
    all_pages = pages(alice, "absent")
    assert len(all_pages) == 3
    assert {page["searched"]["until"] for page in all_pages[:-1]} <= {
        task["createdAt"] for task in expect(alice.get("/task"), 200)
    }
    assert not any(page["hits"] for page in all_pages)


def test_search_that_took_its_time_continues(
    alice: ApiClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = [with_log(alice, "hit", status) for status in "ab"]
    assert search.SEARCH_SECONDS == 1.0
    monkeypatch.setattr(search, "SEARCH_SECONDS", 0.0)
    monkeypatch.setattr(search, "TASKS_PER_READ", 1)
    all_pages = pages(alice, "hit")
    assert [len(page["hits"]) for page in all_pages] == [1, 1, 0]
    assert [page["searched"]["tasks"] for page in all_pages] == [1, 1, 0]
    assert [page["searched"]["until"] for page in all_pages] == [
        tasks[1]["createdAt"], tasks[0]["createdAt"], None,
    ]  # fmt: skip
    monkeypatch.setattr(lists, "FIRST_SEARCHED", 1)
    monkeypatch.setattr(lists, "MAX_SEARCHED", 1)
    with_log(alice, "hit", labels={"env": "test"})
    # Its filter excludes many tasks in a row.
    assert lines(alice, "hit", claimed="false", label="env:none") == []
    assert lines(alice, "hit", status="running", q="s") == lines(alice, "hit")
    assert lines(alice, "hit")[1:] == [(task["id"], 1) for task in reversed(tasks)]


def test_search_continues_in_a_log_that_changes(
    alice: ApiClient, app: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, task, newest = (with_log(alice, *["hit"] * 4) for _ in range(3))
    response = alice.get("/search?text=hit&limit=7")
    assert [hit["line"] for hit in expect(response, 200)["hits"]] == [1, 2, 3, 4, 1, 2, 3]
    rest = next_url(f"{ROOT}/search", response)
    assert rest is not None
    alice.append(task, "hit 5")
    alice.append(newest, "hit 5")
    with_log(alice, "hit")

    def following() -> list[tuple[str, int]]:
        hits = expect(alice.get(rest.removeprefix(ROOT)), 200)["hits"]
        return [(hit["taskId"], hit["line"]) for hit in hits]

    of_old = [(old["id"], number) for number in (1, 2, 3, 4)]
    assert following() == [*((task["id"], number) for number in (4, 5)), *of_old]
    expect(alice.delete(f"/task/{task['id']}"), 200)
    assert following() == of_old
    alice.report(old, status="complete")
    with app.app_context():
        removal.prune(None, "9999-01-01T00:00:00.000Z")
    assert following() == []


def test_search_reads_only_what_its_key_may_see(alice: ApiClient, bob: ApiClient) -> None:
    mine, other = with_log(alice, "hit"), with_log(alice, "hit", agent_id="reader")
    with_log(bob, "hit of bob")
    agent_key = alice.agent_key()
    assert lines(agent_key, "hit") == [(mine["id"], 1)]
    assert lines(agent_key, "hit", agentId="reader") == []
    assert lines(alice, "hit") == [(other["id"], 1), (mine["id"], 1)]
    # A cursor in the log of another user's task.
    response = alice.get("/search?text=hit&limit=1")
    url = next_url(f"{ROOT}/search", response)
    assert url is not None
    assert lines(bob, "hit", cursor=unquote(url.partition("cursor=")[2])) == []
    assert expect(agent_key.get(url.removeprefix(ROOT)), 200)["searched"]["tasks"] == 1


@one_database
def test_wrong_search_is_refused(alice: ApiClient, subtests: pytest.Subtests) -> None:
    alice.start()
    alice.start()
    of_list = alice.get("/task?limit=1&sort=createdAt").headers["Link"].partition("cursor=")[2]
    for query in (
        "", "text=", f"text={'x' * 201}", "text=a%0Ab", "text=a&text=b", "text=a&sort=-createdAt",
        "text=a&fields=id", "text=a&limit=0", "text=a&limit=1001", "text=a&case=yes",
        "text=a&label=x", "text=a&cursor=x", "text=a&word=b",
        f"text=a&cursor={of_list.partition('>')[0]}",
        "text=a&cursor=WyItY3JlYXRlZEF0IiwiMjAyNi0xMS0yNFQxMzozNjowMC4wMDBaIiwiMDAwMDAwMDAtMDAwMC0"
        "wMDAwLTAwMDAtMDAwMDAwMDAwMDAwIiwtMV0=",
    ):  # fmt: skip
        with subtests.test(query):
            problem(alice.get(f"/search?{query}"), 422)


@one_database
def test_searches_of_one_user_leave_a_place_for_another(
    app: Flask, alice: ApiClient, bob: ApiClient
) -> None:
    with_log(alice, "hit", agent_id="of-alice")
    with_log(bob, "hit")
    is_searching, may_go_on = Event(), Event()

    def wait(_statement: str, values: Any) -> None:
        if "of-alice" in values:
            is_searching.set()
            may_go_on.wait(PATIENCE_SECONDS)

    with ThreadPoolExecutor() as pool, before_reads(app, wait):
        of_alice = ApiClient(app, "alice", alice.key)
        first = pool.submit(of_alice.get, "/search?text=hit&agentId=of-alice")
        assert is_searching.wait(PATIENCE_SECONDS)
        refused = alice.get("/search?text=hit")
        assert problem(refused, 503)["code"] == "overloaded"
        assert refused.headers["Retry-After"].isdigit()
        assert len(hits(bob, "hit")) == 1
        may_go_on.set()
        expect(first.result(), 200)
    assert len(hits(alice, "hit")) == 1


@one_database
def test_one_search_of_a_user_waits_for_another(
    app: Flask, alice: ApiClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert search.slots.wait_seconds == 1.0
    monkeypatch.setattr(search.slots, "wait_seconds", PATIENCE_SECONDS)
    task = with_log(alice, "hit")
    with ThreadPoolExecutor() as pool:
        with search.slots.hold(task["userId"]):
            of_alice = ApiClient(app, "alice", alice.key)
            waiting = pool.submit(of_alice.get, "/search?text=hit")
            until(lambda: search.slots._waiting)
            assert resources.find(Database, app).reads._kept
            # Another one would hold a second thread.
            problem(alice.get("/search?text=hit"), 503)
            assert not waiting.done()
        assert len(expect(waiting.result(), 200)["hits"]) == 1


@one_database
def test_any_case_costs_little_more_than_exact_text(alice: ApiClient) -> None:
    """No other thread runs while Python searches, here for a text that begins at each place."""
    text = "a" * 199 + "b"
    with_log(alice, *["a" * 60_000 + text] * 8)

    def seconds(case: str) -> float:
        began = thread_time()
        assert len(lines(alice, text, case=case)) == 8
        return thread_time() - began

    any_case, exact = (min(seconds(case) for _ in range(3)) for case in ("false", "true"))
    assert any_case < 8 * exact


def test_append_has_no_index_to_keep(app: Flask) -> None:
    with app.app_context(), reading() as connection:
        assert inspect(connection).get_indexes("log_chunks") == []


@one_database
def test_page_has_100_lines_by_default(alice: ApiClient) -> None:
    with_log(alice, *["hit"] * 101)
    assert [len(page["hits"]) for page in pages(alice, "hit")] == [100, 1]
    assert [len(page["hits"]) for page in pages(alice, "hit", limit=1_000)] == [101]


@one_database
def test_large_log_is_read_in_parts(alice: ApiClient, app: Flask) -> None:
    task = alice.start()
    for _ in range(3):
        alice.append(task, *["x" * 60_000] * 40)
    alice.append(task, "hit")
    hits: list[tuple[str, int]] = []
    statements = reads(app, lambda: hits.extend(lines(alice, "hit")))
    assert hits == [(task["id"], 121)]
    assert len([sql for sql, _ in statements if "instr(lower(" in sql]) > 3


@one_database
def test_search_reads_at_most_64_mib_of_uneven_logs(
    alice: ApiClient, app: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All sizes in bytes are a 1,024th of what they are; each line is a separate chunk."""
    assert (types.PAGE_BYTES, logs.CHUNK_BYTES) == (1024 * 1024, 64 * 1024)
    monkeypatch.setattr(search, "SEARCH_BYTES", search.SEARCH_BYTES // 1024)
    monkeypatch.setattr(search, "SEARCH_SECONDS", PATIENCE_SECONDS)
    monkeypatch.setattr(logs, "CHUNK_LINES", 1)
    monkeypatch.setattr(types, "PAGE_BYTES", 1024)
    large, small = ["x" * 63], ["x"]
    strings = [*large * 700, *small * 500, *large * 1_200]
    with_log(alice, *strings)
    all_pages: list[Page] = []
    statements = reads(app, lambda: all_pages.append(expect(alice.get("/search?text=a"), 200)))
    parts = [(values[1], values[2]) for sql, values in statements if "AS BLOB" in sql]
    last = max(after + count for after, count in parts)
    assert sum(len(text) + 1 for text in strings[:last]) <= 64 * 1024
    assert 40 * 1024 < all_pages[0]["searched"]["bytes"] <= 64 * 1024
    assert all_pages[0]["searched"]["until"]
