"""Each case of JSONTestSuite, as a whole body and as a value in the input of a task.

Its package for npm has texts, so no bytes that are not UTF-8.
"""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import requests

from tests.support.api_client import RemoteClient

PROGRAM = Path(__file__).parent / "programs" / "json_cases.mjs"
# Valid JSON that docs/reference/http-api.md refuses: the same key twice.
REFUSED = {"y_object_duplicated_key.json", "y_object_duplicated_key_and_value.json"}
AS_VALUE = (b'{"agentId": "reader", "input": {"value": ', b"}}")
AS_BODY = (b"", b"")
# No body at all.
EMPTY = b""
# The service keeps U+FFFD instead of NUL, which PostgreSQL does not store.
WITHOUT_NUL = {
    "y_object_escaped_null_in_key.json": {"foo\ufffdbar": 42},
    "y_string_null_escape.json": ["\ufffd"],
}


@pytest.fixture(scope="module")
def cases(node_modules: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Name of a case -> its text; `y_` is valid JSON, `n_` is not, of `i_` opinions differ."""
    folder = tmp_path_factory.mktemp("json_cases")
    shutil.copy(PROGRAM, folder)
    (folder / "node_modules").symlink_to(node_modules)
    printed = subprocess.run(
        ["node", PROGRAM.name], cwd=folder, capture_output=True, timeout=100, check=True
    ).stdout
    cases = {case["name"]: case["input"].encode() for case in json.loads(printed)}
    assert {name[:2] for name in cases} == {"y_", "n_", "i_"}
    return cases


@pytest.fixture
def owner(owner: RemoteClient) -> RemoteClient:
    owner.request("PUT", "/agent/reader").raise_for_status()
    return owner


def start(owner: RemoteClient, text: bytes, around: tuple[bytes, bytes]) -> requests.Response:
    headers = {"Content-Type": "application/json"}
    return owner.request("POST", "/task", data=text.join(around), headers=headers)


def test_invalid_json_is_400(cases: dict[str, bytes], owner: RemoteClient) -> None:
    invalid = {name: text for name, text in cases.items() if name.startswith("n_")}
    for around in (AS_VALUE, AS_BODY):
        statuses = {name: start(owner, text, around).status_code for name, text in invalid.items()
                 if text.join(around) != EMPTY}  # fmt: skip
        assert {name: status for name, status in statuses.items() if status != 400} == {}


def test_valid_json_comes_back_as_it_was_sent(cases: dict[str, bytes], owner: RemoteClient) -> None:
    different, refused = [], {}
    for name, text in cases.items():
        if name.startswith("y_"):
            response = start(owner, text, AS_VALUE)
            if response.status_code != 201:
                refused[name] = response.status_code
            elif response.json()["input"]["value"] != WITHOUT_NUL.get(name, json.loads(text)):
                different.append(name)
    assert different == []
    assert refused == dict.fromkeys(REFUSED, 400)


def test_valid_json_that_starts_no_task_is_422(
    cases: dict[str, bytes], owner: RemoteClient
) -> None:
    statuses = {name: start(owner, text, AS_BODY).status_code for name, text in cases.items()
             if name.startswith("y_") and name not in REFUSED}  # fmt: skip
    assert set(statuses.values()) == {422}, statuses


def test_json_of_which_opinions_differ_is_taken_or_refused(
    cases: dict[str, bytes], owner: RemoteClient
) -> None:
    answers = {name: start(owner, text, AS_VALUE) for name, text in cases.items()
             if name.startswith("i_")}  # fmt: skip
    statuses = {name: response.status_code for name, response in answers.items()}
    assert set(statuses.values()) == {201, 400, 422}, statuses
    for name, response in answers.items():
        if response.status_code == 201:
            assert response.json()["input"] == {"value": json.loads(cases[name])}, name
