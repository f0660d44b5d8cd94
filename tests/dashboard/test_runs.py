"""The forms that run an agent: made from the schema of its input, or one JSON text."""

import json
import re
from html import unescape
from typing import Any

import pytest

from tests.support.api_client import ApiClient, expect
from tests.support.marks import one_database
from tests.support.plain_browser import Browser
from tests.support.sample_data import HOSTILE

Json = dict[str, Any]
SCHEMA: Json = {
    "type": "object",
    "properties": {
        "note": {"type": ["string", "null"], "maxLength": 20, "default": None},
        "level": {"anyOf": [{"$ref": "#/$defs/Level"}, {"type": "null"}], "title": "How much"},
        "folder": {"type": "string", "title": "Folder", "pattern": "^/", "default": "/srv"},
        "days": {"type": "integer", "minimum": 1, "default": 30},
        "dry": {"type": "boolean", "default": True},
        "options": {"type": "object", "properties": {"deep": {"type": "boolean"}}},
        "hosts": {"type": "array", "items": {"$ref": "#/$defs/Host"}},
    },
    "required": ["folder", "hosts"],
    "$defs": {
        "Level": {"type": "string", "enum": ["low", "high"]},
        "Host": {"type": "string", "enum": ["a", "b"]},
    },
}


def register(person: ApiClient, schema: Json = SCHEMA, agent_id: str = "backup") -> None:
    # `json=` of Flask's client would sort the properties.
    body = json.dumps({"inputSchema": schema})
    path = f"/agent/{agent_id}"
    expect(person.put(path, data=body, content_type="application/json"), 200, 201)


def tasks(person: ApiClient) -> list[Json]:
    return list(expect(person.get("/task"), 200))


def send(window: Browser, path: str = "/agents/backup/run", **fields: Any) -> Any:
    """Send the form with these fields; others are as the page has them only if they are given."""
    data = {f"field.{name}": text for name, text in fields.items()}
    return window.send(path, **{"as": "fields", **data})


def labels(text: str) -> list[str]:
    texts = re.findall(r"<(?:label for|legend).*?><bdi>(.+?)</bdi>", text)
    return [unescape(label) for label in texts]


def json_text(text: str) -> Any:
    """What the form has as JSON; raises IndexError while it has fields."""
    return json.loads(unescape(re.findall(r'name="input"[^>]*>\n(.*?)</textarea>', text, re.S)[0]))


def errors(text: str) -> dict[str, str]:
    messages = re.findall(r'field\.(\w+)-error"><bdi>(.+?)</bdi>', text)
    return {name: unescape(message) for name, message in messages if f'id="run-input-field.{name}'}


def test_form_has_the_fields_of_the_schema_with_those_first_that_are_required(
    window: Browser, alice: ApiClient
) -> None:
    register(alice)
    alice.start("backup", input={"folder": "/other", "hosts": []})
    text = window.get("/agents/backup/run").text
    assert labels(text) == ["Folder", "hosts", "note", "How much", "days", "dry", "options"]
    values = dict(re.findall(r'name="field\.(\w+)" value="(.*?)"', text))
    assert (values["folder"], values["days"]) == ("/srv", "30")
    assert re.findall(r'name="field\.(\w+)" value="(\S*?)" checked', text) == [
        ("level", ""), ("dry", "true")
    ]  # fmt: skip
    assert "newest task" not in text
    assert text.count("(not set)") == 2


def test_form_starts_a_task_with_what_is_filled_in(window: Browser, alice: ApiClient) -> None:
    register(alice)
    response = send(
        window, folder="/srv/größe", hosts=['"a"', '"b"'], note="", level='"high"', days="7",
        dry="", options='{"deep": true, "n": 1.50}',
    )  # fmt: skip
    assert response.status_code == 303
    assert tasks(alice)[0]["input"] == {
        "folder": "/srv/größe", "hosts": ["a", "b"], "level": "high", "days": 7,
        "options": {"deep": True, "n": 1.5},
    }  # fmt: skip


def test_what_does_not_fit_is_said_next_to_its_field_and_starts_nothing(
    window: Browser, alice: ApiClient
) -> None:
    register(alice)
    response = send(window, folder="srv", days="0", options="{", note="n" * 21)
    assert response.status_code == 422
    assert errors(response.text) == {
        "folder": "Must match ^/",
        "days": "The value is less than the minimum of 1.",
        "options": "Not valid JSON: Expecting property name enclosed in double quotes"
        " at line 1, column 2.",
        "note": "The value is longer than 20 characters.",
    }
    assert "Nothing was started. Fix the errors below." in response.text
    assert 'value="srv"' in response.text
    response = send(window, folder="", days="7", options="[1]")
    assert errors(response.text) == {"folder": "Fill this in.", "options": "Must be an object."}
    data = {"as": "fields", "name": "n" * 201, "labels": "no sign", "field.folder": "srv"}
    text = unescape(window.send("/agents/backup/run", **data).text)
    for message in ("Name: ", "is not of the form key=value.", "Must match ^/"):
        assert message in text
    assert tasks(alice) == []


def test_error_of_no_field_is_said_above_the_form(window: Browser, alice: ApiClient) -> None:
    register(alice, SCHEMA | {"required": [], "minProperties": 1})
    response = send(window, days="")
    assert response.status_code == 422
    assert "Nothing was started. Input: " in response.text
    register(alice, {"type": "object", "properties": {"a": {}}, "required": ["b"]})
    response = send(window, a="1")
    assert response.status_code == 422
    assert "Nothing was started. Input.b: Missing." in response.text
    assert tasks(alice) == []


def test_input_with_fields_may_be_typed_as_json(window: Browser, alice: ApiClient) -> None:
    register(alice)
    path = "/agents/backup/run"
    (link,) = re.findall('href="([^"]+)">As JSON<', window.get(path).text)
    text = window.get(unescape(link)).text
    assert json_text(text) == {"note": None, "folder": "/srv", "days": 30, "dry": True}
    assert f'href="{path}">As a form<' in text
    fields = {"folder": "/b", "days": 3, "hosts": ["b"]}
    assert window.send(path, input=json.dumps(fields)).status_code == 303
    assert tasks(alice)[0]["input"] == fields
    again = f"/tasks/{tasks(alice)[0]['id']}/rerun"
    assert f'href="{again}?json=1">As JSON<' in window.get(again).text
    assert json_text(window.get(f"{again}?json=1").text) == fields


def test_json_that_does_not_fit_the_schema_is_said_above_it(
    window: Browser, alice: ApiClient
) -> None:
    register(alice)
    response = window.send("/agents/backup/run", input='{"folder": "srv", "days": 0}')
    assert response.status_code == 422
    text = unescape(response.text)
    for message in ("Input.folder: Must match ^/", "Input.days: ", "Input.hosts: Missing."):
        assert message in text
    assert json_text(response.text) == {"folder": "srv", "days": 0}
    register(alice, SCHEMA | {"additionalProperties": False})
    response = window.send("/agents/backup/run", input='{"folder": "/b", "hosts": [], "x": 1}')
    assert "Input.x: Unknown field." in response.text
    assert tasks(alice) == []


def test_task_is_run_again_with_the_form_of_its_old_input(
    window: Browser, alice: ApiClient
) -> None:
    register(alice)
    old = {"folder": "/old", "hosts": ["b"], "dry": False, "options": {"n": 1}}
    task = alice.start("backup", input=old)
    path = f"/tasks/{task['id']}/rerun"
    text = window.get(path).text
    assert 'name="field.folder" value="/old"' in text
    assert re.findall(r'name="field\.(\w+)" value="(\S*?)" checked', text) == [
        ("hosts", "&#34;b&#34;"), ("level", ""), ("dry", "false")
    ]  # fmt: skip
    typed = {"folder": "/old", "hosts": '"b"', "dry": "false", "options": '{"n": 1}'}
    assert send(window, path, **typed).status_code == 303
    assert tasks(alice)[0]["input"] == old
    assert send(window, path, **typed, days="2").status_code == 303
    assert tasks(alice)[0]["input"] == {**old, "days": 2}
    refused = send(window, path, folder="old")
    assert refused.status_code == 422
    assert "Must match ^/" in refused.text
    assert len(tasks(alice)) == 3


def test_old_input_that_the_form_cannot_show_is_shown_as_json(
    window: Browser, alice: ApiClient, subtests: pytest.Subtests
) -> None:
    alice.register("backup")
    for old in (
        {"folder": "/a", "other": 1}, {"folder": 5}, {"folder": ""}, {"folder": "two\nlines"},
        {"days": "3"}, {"hosts": ["c"]}, {"hosts": "a"}, {"level": "none"}, {"note": "a\r"},
    ):  # fmt: skip
        with subtests.test(str(old)):
            alice.register("backup", inputSchema={"type": "object"})
            task = alice.start("backup", input=old)
            register(alice)
            assert json_text(window.get(f"/tasks/{task['id']}/rerun").text) == old


def test_hostile_schema_is_shown_as_text(window: Browser, alice: ApiClient) -> None:
    name = HOSTILE
    register(alice, {
        "type": "object", "title": HOSTILE,
        "properties": {
            name: {"type": "string", "title": HOSTILE, "description": HOSTILE, "default": HOSTILE},
            "choice": {"enum": [HOSTILE, None, 1, {"a": HOSTILE}], "default": {"a": HOSTILE}},
            "json": {"default": {HOSTILE: HOSTILE}},
            "": {"type": "string"}, "bad": True,
            "names": {"type": "string", "enumNames": 5, "minLength": 10**30},
        },
    })  # fmt: skip
    text = window.get("/agents/backup/run").text
    assert "<img" not in text.partition("<main")[2]
    assert "<script>" not in text
    response = send(window, choice='{"a":' + json.dumps(HOSTILE, ensure_ascii=False) + "}")
    assert response.status_code == 303
    assert tasks(alice)[0]["input"] == {"choice": {"a": HOSTILE}}


def test_choice_may_be_of_any_values(window: Browser, alice: ApiClient) -> None:
    values: list[Any] = [1, 1.5, None, True, "1", [1], {"a": 1}]
    register(alice, {
        "type": "object",
        "properties": {
            "only": {"const": "backup"}, "any": {"enum": values},
            "pair": {"type": "array", "enum": [[1, 2], [3, 4]]},
        },
    })  # fmt: skip
    for value in values:
        sent = send(window, only='"backup"', any=json.dumps(value, separators=(",", ":")))
        assert sent.status_code == 303
        assert tasks(alice)[0]["input"] == {"only": "backup", "any": value}
    assert send(window, pair="[3, 4]").status_code == 303
    assert tasks(alice)[0]["input"] == {"pair": [3, 4]}
    assert send(window, any='"2"').status_code == 422


@one_database
def test_form_without_a_useful_schema_is_one_json_text(
    window: Browser, alice: ApiClient, subtests: pytest.Subtests
) -> None:
    for schema in ({"type": "object"}, {"type": "object", "properties": {}}):
        with subtests.test(str(schema)):
            register(alice, schema)
            text = window.get("/agents/backup/run").text
            assert json_text(text) == {}
            assert "As a form" not in text


def test_list_of_texts_has_an_example(window: Browser, alice: ApiClient) -> None:
    tags = {"type": "array", "items": {"type": "string"}, "description": "Of it."}
    register(alice, {"type": "object", "properties": {"tags": tags}})
    for path in ("/agents/backup/run", "/agents/backup"):
        assert 'Of it. A list of texts, such as ["a", "b"].' in unescape(window.get(path).text)
    assert send(window, tags='["a", "b"]').status_code == 303
    assert tasks(alice)[0]["input"] == {"tags": ["a", "b"]}


def test_agent_says_what_it_takes(window: Browser, alice: ApiClient) -> None:
    register(alice)
    alice.register("plain", tool=False)
    text = unescape(window.get("/agents/backup").text)
    inputs = text.partition('id="inputs"')[2].partition("</section>")[0]
    assert re.findall("<th scope=\"row\"><bdi>(.+?)</bdi>", inputs) == [
        "folder", "hosts", "note", "level", "days", "dry", "options"
    ]  # fmt: skip
    assert inputs.count("required") == 2
    cells = re.findall('<td class="text">(.*?)</td>', inputs)
    assert cells[3:6] == ["some of: a, b", "", "<bdi></bdi>"]
    assert cells[12:14] == ["whole number, from 1", "30"]
    assert cells[6:7] == ["text, at most 20 characters"]
    assert cells[15:17] == ["true or false", "true"]
    text = window.get("/agents/plain").text
    assert 'id="inputs"' not in text
    assert "not available as an MCP tool" in text
