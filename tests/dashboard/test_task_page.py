"""The task page over HTTP: its relatives, its progress, and running it again."""

import json
import re
from html import unescape
from typing import Any
from urllib.parse import unquote_plus

import pytest
from flask import Flask

from taskservice.database.models import Attempt
from taskservice.services import neighbours, search
from taskservice.webhooks.destinations import Destinations
from tests.support.api_client import ApiClient, expect
from tests.support.internals import end_for_silence, plan_of, reads, rows
from tests.support.marks import one_database
from tests.support.plain_browser import Browser, signed_in, text_of
from tests.support.receiver import Receiver, answer, raw

ANSWER = Attempt.__table__.columns.keys().index("answer")


def task_page(window: Browser, task: dict[str, Any]) -> str:
    return unescape(text_of(window, f"/tasks/{task['id']}"))


def steps_on_tasks(app: Flask, window: Browser, path: str, condition: str) -> list[str]:
    """How SQLite finds the tasks of the page's statement that has this condition."""
    statements = reads(app, lambda: text_of(window, path))
    ((sql, parameters),) = [read for read in statements if condition in read[0]]
    return [step for step in plan_of(app, sql, parameters) if " tasks " in step]


def reruns(alice: ApiClient, task: dict[str, Any]) -> list[dict[str, Any]]:
    return [rerun for rerun in alice.get("/task").json or [] if rerun["rerunOf"] == task["id"]]


# --- running it again --------------------------------------------------------------------


def test_task_is_run_again_with_the_same_input(window: Browser, alice: ApiClient) -> None:
    task = alice.start(name="nightly", input={"n": 12345678901234567890.5, "s": "a\r\nb"})
    path = f"/tasks/{task['id']}/rerun"
    form = unescape(re.findall(r"<textarea.*?>\n(.*?)</textarea>", window.get(path).text, re.S)[0])
    # As a browser sends it.
    response = window.send(path, input=form.replace("\n", "\r\n"))
    (again,) = reruns(alice, task)
    assert response.location == f"/tasks/{again['id']}"
    assert again["input"] == task["input"]
    assert "Started a rerun of" in window.get(response.location).text


def test_task_is_run_again_with_other_labels(window: Browser, alice: ApiClient) -> None:
    task = alice.start(labels={"env": "prod", "note": " two\nlines"})
    path = f"/tasks/{task['id']}/rerun"
    assert ">\nenv=prod\nnote= two\nlines</textarea>" in window.get(path).text
    window.send(path, input="{}", labels="env=prod\r\nnote= two\r\nlines")
    assert reruns(alice, task)[0]["labels"] == task["labels"]
    window.send(path, input="{}", labels="env=test\r\n")
    assert reruns(alice, task)[0]["labels"] == {"env": "test"}
    refused = window.send(path, input="{}", labels="env")
    assert refused.status_code == 422
    assert "“env” is not of the form key=value." in refused.text
    assert len(reruns(alice, task)) == 2


def test_only_line_ends_separate_labels(window: Browser, alice: ApiClient) -> None:
    labels = {"a": "one\u2028b=two", "c": "three\x85\x0b\x1cfour", "d": "five\u00a0"}
    task = alice.start(labels=labels)
    typed = "\r\n".join(f"{key}={value}" for key, value in labels.items())
    window.send(f"/tasks/{task['id']}/rerun", input="{}", labels=f"{typed}\r\ne=six")
    assert reruns(alice, task)[0]["labels"] == labels | {"e": "six"}


def test_task_is_run_again_with_another_input(window: Browser, alice: ApiClient) -> None:
    task = alice.start(input={"a": 1})
    window.send(f"/tasks/{task['id']}/rerun", input='{"a": 2, "text": "' + "é" * 300_000 + '"}')
    (again,) = reruns(alice, task)
    assert again["input"] == {"a": 2, "text": "é" * 300_000}


@one_database
def test_form_that_is_sent_twice_starts_one_task(window: Browser, alice: ApiClient) -> None:
    task = alice.start(input={"a": 1})
    path = f"/tasks/{task['id']}/rerun"
    inputs = re.findall(r'name="(token|submission_id)" value="([^"]+)"', window.get(path).text)
    form = {**dict(inputs), "input": '{"a": 3}'}
    locations = {window.post(path, form).location for _ in range(2)}
    assert len(locations) == len(reruns(alice, task)) == 1
    # A reader who went back to the form, and changed the text in it.
    assert window.post(path, {**form, "input": '{"a": 4}'}).status_code == 303
    assert len(reruns(alice, task)) == 2


@one_database
@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('{"a": 1', "Input: Not valid JSON"),
        ("[1]", "Input: Must be an object."),
        ('{"a": NaN}', "Input: Not valid JSON"),
        ("", "Input: Not valid JSON"),
        ('{"a": "' + "x" * 1_100_000 + '"}', "Input: Longer than"),
        ("[" * 200, "Input: Not valid JSON"),
        ('{"a": ' + "[" * 350_000, "Input: Not valid JSON: more than 350,000 objects"),
    ],
)
def test_unfit_input_is_a_sentence_in_the_form_and_starts_nothing(
    window: Browser, alice: ApiClient, text: str, sentence: str
) -> None:
    task = alice.start(input={"a": 1})
    response = window.send(f"/tasks/{task['id']}/rerun", input=text)
    assert response.status_code == 422
    assert sentence in response.text
    assert text in unescape(response.text)
    assert reruns(alice, task) == []


@one_database
def test_callback_that_is_no_longer_allowed_is_a_sentence_in_the_form(
    app: Flask, window: Browser, alice: ApiClient
) -> None:
    app.config["CALLBACK_ALLOWED"] = Destinations.parse("loopback")
    task = alice.start(callback="http://127.0.0.1:9/hook")
    app.config["CALLBACK_ALLOWED"] = Destinations.parse("external")
    response = window.send(f"/tasks/{task['id']}/rerun", input="{}")
    assert response.status_code == 422
    assert "Nothing was started. Callback: " in response.text
    assert "loopback" in response.text
    assert reruns(alice, task) == []


@one_database
def test_agent_key_runs_its_own_tasks_again_and_no_others(app: Flask, alice: ApiClient) -> None:
    agent = alice.agent_key()
    visible, other = agent.start(), alice.start("translator")
    window = signed_in(agent)
    window.send(f"/tasks/{visible['id']}/rerun", input="{}")
    assert len(reruns(alice, visible)) == 1
    assert window.get(f"/tasks/{other['id']}/rerun").status_code == 404


def test_page_and_form_of_a_task_say_that_it_was_run_again(
    window: Browser, alice: ApiClient
) -> None:
    task = alice.start(name="nightly", claim=True)
    alice.report(task, status="error")
    paths = (f"/tasks/{task['id']}", f"/tasks/{task['id']}/rerun")
    main_button = re.compile('main"[^>]*>Run again')
    pages = [window.get(path).text for path in paths]
    assert not [page for page in pages if "Run again <time" in page]
    assert all(main_button.search(page) for page in pages)
    window.send(paths[1], input="{}")
    first = reruns(alice, task)[0]
    window.send(paths[1], input='{"a": 1}')
    (newest,) = [rerun for rerun in reruns(alice, task) if rerun["id"] != first["id"]]
    pages = [window.get(path).text for path in paths]
    for page in pages:
        assert f'<a href="/tasks/{newest["id"]}">Run again <time' in page
        assert '<span class="pill waiting">waiting' in page
        assert f'{first["id"]}">Run again' not in page
        assert not main_button.search(page)


# --- what the page shows -----------------------------------------------------------------


def test_relatives_are_links(window: Browser, alice: ApiClient) -> None:
    parent = alice.start(name="the whole night", claim=True)
    child = alice.start(name="one part", parentId=parent["id"], claim=True)
    alice.report(child, status="complete")
    alice.start(name="another part", parentId=parent["id"])
    assert "Part of" not in task_page(window, parent)
    page = task_page(window, parent)
    assert page.index("one part") < page.index("another part")
    assert page.count("<rect class=") == 2
    assert f'Part of <a href="/tasks/{parent["id"]}"><bdi>the whole night' in task_page(
        window, child
    )
    window.send(f"/tasks/{child['id']}/rerun", input="{}")
    (again,) = reruns(alice, child)
    assert f'href="/tasks/{child["id"]}"' in task_page(window, again)


@one_database
def test_agent_key_sees_no_relatives_of_other_agents(app: Flask, alice: ApiClient) -> None:
    parent = alice.start("translator", name="secret parent")
    child = alice.start(name="own", parentId=parent["id"])
    alice.start("translator", name="secret child", parentId=child["id"])
    window = signed_in(alice.agent_key())
    assert "secret" not in task_page(window, child)


@one_database
def test_many_children_are_cut_with_a_link_to_all(window: Browser, alice: ApiClient) -> None:
    parent = alice.start(name="parent")
    for number in range(51):
        alice.start(name=f"child {number}", parentId=parent["id"])
    page = task_page(window, parent)
    assert page.count("<rect class=") == 50
    (path,) = re.findall(r'href="(/\?parentId=[^"]+)"', page)
    assert "child 50" in window.get(path).text


@one_database
def test_labels_lead_to_the_list_with_that_label(window: Browser, alice: ApiClient) -> None:
    labels = {"env": "a=b:c&d <b>", "run": "🎉" * 100}
    task = alice.start(name="labelled", labels=labels)
    page = window.get(f"/tasks/{task['id']}").text
    links = [unescape(link) for link in re.findall(r'href="/\?label=([^"]+)"', page)]
    assert list(map(unquote_plus, links)) == [f"{key}:{text}" for key, text in labels.items()]


def test_waiting_task_says_if_no_worker_came_and_how_to_start_one(
    window: Browser, alice: ApiClient
) -> None:
    hints = ("No worker has asked for a task", "taskservice work --agent translator -- CMD")
    first, second = alice.start("translator"), alice.start("translator")
    # The program of a `run` does not count as a worker.
    alice.start("translator", claim=True)
    page = task_page(window, first)
    assert "Waiting for a worker of translator" in page
    assert all(hint in page for hint in hints)
    alice.post("/agent/translator/claim")
    assert "Waiting for" not in task_page(window, first)
    page = task_page(window, second)
    assert "Waiting for a worker of translator" in page
    assert not any(hint in page for hint in hints)
    assert "<dt>Ended</dt>" not in page


@one_database
def test_page_of_a_task_finds_other_tasks_by_their_indexes(
    app: Flask, window: Browser, alice: ApiClient
) -> None:
    path = f"/tasks/{alice.start()['id']}"
    for sign, other in (("<", ">"), (">", "<")):
        # Another path, since the page is cached for a while.
        condition = f"(tasks.created_at, tasks.id) {sign}"
        plan, end = steps_on_tasks(app, window, f"{path}?{sign}", condition)
        # The search has two ends.
        assert "INDEX tasks_by_agent (user_id=? AND agent_id=? AND " in plan
        assert f"created_at{other}?" in plan
        assert f"(created_at,id){sign}(?,?)" in plan
        assert "COVERING INDEX tasks_by_agent " in end
    assert steps_on_tasks(app, window, path, "tasks.rerun_of = ") == [
        "SEARCH tasks USING INDEX tasks_by_rerun (rerun_of=?)"
    ]


@one_database
def test_running_task_shows_its_progress_and_the_time_left(
    window: Browser, alice: ApiClient
) -> None:
    task = alice.start(claim=True)
    assert 'class="progress"' not in task_page(window, task)
    alice.report(task, progress=0.299, note="3 of 10 <pages>")
    page = task_page(window, task)
    assert '<progress value="0.299"' in page
    assert "29%" in page
    assert "3 of 10 <pages>" in page
    assert 'data-show="left"' in page
    alice.report(task, progress=0.29)
    assert "<b>29%</b>" in task_page(window, task)
    alice.report(task, progress=0.999)
    assert "<b>99%</b>" in task_page(window, task)
    alice.report(task, progress=1e-300)
    assert 'data-show="left"' not in task_page(window, task)
    alice.report(task, status="complete")
    assert 'class="progress"' not in task_page(window, task)


@one_database
def test_without_progress_the_usual_duration_tells_the_time_left(
    window: Browser, alice: ApiClient
) -> None:
    alice.report(alice.start(claim=True), status="complete")
    page = task_page(window, alice.start(claim=True))
    assert "estimate from earlier runs" in page


@one_database
def test_task_that_asks_has_no_expected_end(window: Browser, alice: ApiClient) -> None:
    alice.report(alice.start(claim=True), status="complete")
    for progress in (0, 0.5):
        task = alice.start(claim=True)
        alice.report(task, progress=progress)
        path = f"/task/{task['id']}/question"
        asked = expect(alice.post(path, json={"message": "Deploy?"}), 201)
        assert 'data-show="left"' not in task_page(window, task)
        expect(alice.delete(f"{path}/{asked['id']}"), 200)
        assert 'data-show="left"' in task_page(window, task)


@one_database
def test_reason_of_a_failure_stands_above_its_message(window: Browser, alice: ApiClient) -> None:
    task = alice.start(claim=True)
    message = "Traceback (most recent call last):\n  File x\nValueError: <b>no</b>\n"
    alice.report(task, status="error", error={"message": message})
    page = task_page(window, task)
    assert '<p class="reason"><bdi>ValueError: <b>no</b></bdi>' in page
    assert page.index('id="log"') > page.index("Traceback")
    for word in ("Started", "Ended"):
        assert f"<dt>{word} by</dt><dd>key “<bdi>first</bdi>”" in page
    assert '<section class="failure failed"' in page


@one_database
def test_error_has_one_colour_on_the_whole_page(
    app: Flask, window: Browser, alice: ApiClient
) -> None:
    parent = alice.start(claim=True)
    silent = alice.start(claim=True, parentId=parent["id"])
    end_for_silence(app, silent)
    page = task_page(window, silent)
    assert '<span class="pill error timeout">' in page
    assert '<section class="failure timeout"' in page
    assert "<dt>Ended by</dt><dd>the service</dd>" in page
    assert '<rect class="timeout"' in task_page(window, parent)


@one_database
def test_complete_task_has_its_output_before_its_log(window: Browser, alice: ApiClient) -> None:
    task = alice.start(claim=True)
    alice.report(task, output={"sum": 15})
    page = task_page(window, task)
    assert page.index('id="log"') < page.index('id="output"')
    alice.report(task, status="complete")
    page = task_page(window, task)
    assert page.index('id="output"') < page.index('id="log"')
    assert page.count('id="output"') == 1
    assert json.loads(re.findall(r'<pre id="output-json".*?>(.*?)</pre>', page, re.S)[0]) == {
        "sum": 15
    }


# --- the callback ------------------------------------------------------------------------


def end_with_callback(alice: ApiClient, receiver: Receiver, name: str = "done") -> dict[str, Any]:
    task = alice.start(claim=True, name=name, callback=f"{receiver.url}hook?a=[1]&b='")
    return alice.report(task, status="complete", output={"it's": "done"})


@one_database
def test_answer_of_the_receiver_is_shown_to_user_keys_only(
    app: Flask, window: Browser, alice: ApiClient, receiver: Receiver
) -> None:
    receiver.answer = answer(503, body=b"<b>no</b> \0\xff \xe2\x80\xaetxt " + b"x" * 2_000)
    task = end_with_callback(alice, receiver)
    page = task_page(window, task)
    assert "<b>no</b> \ufffd\ufffd \\u202etxt xxx" in page
    assert "<b>no</b>" not in window.get(f"/tasks/{task['id']}").text
    (stored,) = rows(app)["attempts"]
    assert len(stored[ANSWER].encode()) == 1024
    agent_window = signed_in(alice.agent_key())
    assert "x" * 20 not in task_page(agent_window, task)


@one_database
@pytest.mark.parametrize(
    ("body", "kept"),
    [
        (b"", None),
        ("é".encode() * 600, "é" * 512),
        (("x" + "🎉" * 600).encode(), "x" + "🎉" * 255),
        (b"\xff" * 2_000, "\ufffd" * 341),
    ],
)
def test_answer_is_kept_in_whole_characters(
    app: Flask, alice: ApiClient, receiver: Receiver, body: bytes, kept: str | None
) -> None:
    receiver.answer = answer(200, body=body)
    end_with_callback(alice, receiver)
    assert [row[ANSWER] for row in rows(app)["attempts"]] == [kept]


@one_database
def test_answer_that_breaks_off_is_kept_as_far_as_it_came(
    app: Flask, alice: ApiClient, receiver: Receiver
) -> None:
    chunked = b"HTTP/1.1 500 No\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nsome\r\n-5\r\n"
    for behaviour in (answer(500, {"Content-Length": "99"}, b"some"), raw(chunked)):
        receiver.answer = behaviour
        end_with_callback(alice, receiver)
    assert [row[ANSWER] for row in rows(app)["attempts"]] == ["some", "some"]


# --- what is new in a failure ------------------------------------------------------------


def ended(person: ApiClient, status: str, *lines: str, **fields: Any) -> dict[str, Any]:
    task = person.start(claim=True, **fields)
    person.append(task, *lines)
    return person.report(task, status=status, output={"n": 1 if status == "complete" else 2})


def test_failure_is_compared_with_the_last_good_run(
    app: Flask, window: Browser, alice: ApiClient, bob: ApiClient
) -> None:
    good = ended(alice, "complete", "page 1", input={"a": 1, "same": 5, "old": "x"})
    hostile = "<script>alert(1)</script>"
    changed = {"a": hostile, "same": 5, "new": "y" * 300}
    lines = [f"line {'a' * n}" for n in range(1, 23)]
    failed = ended(
        alice, "error", "page 2", f"\x1b[31m{hostile}\x1b[0m", *lines,
        *["page 3"] * 4, "Traceback", *["page 4"] * 3, "boom", "page 5",
        input=changed, labels={"env": "prod"},
    )  # fmt: skip
    path = f"/tasks/{failed['id']}/new-lines"
    page = window.get(f"/tasks/{failed['id']}").text
    parts = ('id="failure"', '<div id="log"', "New in this failure")
    assert sorted(parts, key=page.index) == list(parts)
    assert f'<a href="{path}">Compare the runs</a>' in page
    assert f'href="/tasks/{good["id"]}">last good run</a>' in page
    compared = window.get(path).text
    assert "<script>alert" not in compared
    assert f'{failed["id"]}#L2" aria-label="Line 2">2</a> <bdi>&lt;script&gt;' in compared
    assert '#L1"' not in compared
    fold, _, shown = compared.partition('id="more-new-lines"')[2].partition("</details>")
    assert "<summary>3 earlier lines</summary>" in fold
    assert ('#L4"' in fold, '#L5"' in fold, '#L5"' in shown, '#L24"' in shown) == (
        True, False, True, True,
    )  # fmt: skip
    # The log above shows its end already.
    end = shown.partition('<details id="new-end">')[2]
    assert "<summary>2 lines at the end of the log, from line 29 on</summary>" in end
    assert ('#L24"' in end, '#L29"' in end, '#L33"' in end) == (False, True, True)
    cells = re.findall(r"<tr><th.*?</tr>", compared, re.S)
    rows = [unescape(re.sub(r"\s+", " ", re.sub("<[^>]*>", " ", cell))).strip() for cell in cells]
    assert sorted(rows) == sorted([
        f'Input a "{hostile}" 1', f'Input new "{"y" * 199}… –', 'Input old – "x"',
        'Labels env "prod" –', "Output n 2 1",
    ])  # fmt: skip
    of_bob = signed_in(bob)
    assert of_bob.get(path).status_code == 404
    of_agent = signed_in(alice.agent_key())
    assert '#L2"' in of_agent.get(path).text
    # The same as the last good run, and while all slots are taken.
    equal = {"input": good["input"], "labels": {}}
    again = alice.report(alice.start(claim=True, **equal), status="error", output={"n": 1})
    path = f"/tasks/{again['id']}/new-lines"
    assert "No line of the log is new" in window.get(path).text
    assert "<table" not in window.get(path).text
    with search.slots.hold(good["userId"]):
        response = window.get(path)
    assert (response.status_code, "Try again" in response.text) == (503, True)


def test_nothing_is_compared_without_a_failure_or_a_good_run(
    window: Browser, alice: ApiClient
) -> None:
    first = ended(alice, "error", "one")
    complete = ended(alice, "complete", "one")
    cancelled = alice.start(claim=True)
    expect(alice.post(f"/task/{cancelled['id']}/cancel"), 200)
    for task in (first, complete, cancelled):
        assert "New in this failure" not in window.get(f"/tasks/{task['id']}").text
    response = window.get(f"/tasks/{first['id']}/new-lines")
    assert response.location == f"/tasks/{first['id']}"


def beside(window: Browser, task_id: str) -> dict[str, str]:
    """The IDs of the previous and the next run to which a task page links."""
    page = window.get(f"/tasks/{task_id}").text
    return dict(re.findall(r'id="(previous|next)-run" href="/tasks/([^"]+)"', page))


def test_runs_of_the_same_kind_before_and_after_are_linked(
    window: Browser, alice: ApiClient, bob: ApiClient
) -> None:
    bob.start()
    first, other, second, third = (
        alice.start(agent_id=agent)["id"] for agent in ("a", "b", "a", "a")
    )
    # Neither its own child, nor one with another name.
    child = alice.start("a", parentId=second)["id"]
    named = alice.start("a", name="another")["id"]
    fourth, sibling = alice.start("a")["id"], alice.start("a", parentId=third)["id"]
    for task_id, previous, following in (
        (first, None, second), (second, first, third), (third, second, fourth),
        (fourth, third, None), (child, None, sibling), (sibling, child, None),
        (other, None, None), (named, None, None),
    ):  # fmt: skip
        runs = {"previous": previous, "next": following}
        assert beside(window, task_id) == {name: run for name, run in runs.items() if run}


@one_database
def test_missing_output_of_a_failure_is_not_a_difference(window: Browser, alice: ApiClient) -> None:
    for status, output in (
        ("complete", {"orders": 418, "rows": [1], "same": 1}),
        ("error", {"orders": 417, "same": 1, "new": 1}),
    ):
        task = alice.start(claim=True)
        alice.report(task, status=status, output=output)
    compared = window.get(f"/tasks/{task['id']}/new-lines").text
    heads = re.findall(r'<th scope="row">(.*?)</th>', compared)
    assert [re.sub("<.*?>", "", head) for head in heads] == ["Output orders"]


@one_database
def test_neighbour_of_a_task_is_looked_for_among_a_limited_number(
    window: Browser, alice: ApiClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(neighbours, "SEARCHED", 3)
    first = alice.start()["id"]
    near, far = (alice.start(name=name)["id"] for name in ("near", "far"))
    for _ in range(2):
        alice.start(name="x")
    last_near, last_far = (alice.start(name=name)["id"] for name in ("near", "far"))
    assert beside(window, first) == {}
    assert beside(window, near) == {}
    assert beside(window, last_far) == {}
    alice.start(name="far")
    assert "next" in beside(window, last_far)
    assert "previous" not in beside(window, far)
    assert last_near != near
