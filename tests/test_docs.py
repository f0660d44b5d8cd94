"""The documentation page: complete, readable without scripts, and loading nothing else."""

import os
import re
import shutil
import subprocess
import time
from collections import Counter
from urllib.parse import urljoin

import pytest
from flask import Flask

from taskservice.schemas import examples
from tests.support.api_client import RemoteClient, expect
from tests.support.html_page import Page
from tests.support.requirements import needs
from tests.support.service import Service

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)

HOOK = {"target": "https://hooks.invalid/", "events": ["task.ended"]}


@pytest.fixture
def html(app: Flask) -> str:
    response = app.test_client().get("/docs", headers={"Accept": "text/html,*/*;q=0.8"})
    assert response.status_code == 200
    assert response.content_type == "text/html; charset=utf-8"
    return response.text


def test_page_is_well_formed_and_its_links_lead_somewhere(app: Flask, html: str) -> None:
    page = Page(html)
    assert page.open == []
    ids = Counter(page.values("id"))
    assert set(ids.values()) == {1}
    for link in page.values("href"):
        if link.startswith("#"):
            assert link[1:] in ids
        else:
            with app.test_client().get(urljoin("/docs", link), follow_redirects=True) as response:
                assert response.status_code == 200
    for labels in page.values("aria-labelledby"):
        assert labels in ids


def test_page_has_every_operation_and_every_schema(app: Flask, html: str) -> None:
    document = expect(app.test_client().get("/openapi.json"), 200)
    ids = Page(html).values("id")
    for methods in document["paths"].values():
        for operation in methods.values():
            assert operation["operationId"] in ids
    assert set(document["components"]["schemas"]) <= set(ids)


def test_page_holds_under_a_prefix(html: str) -> None:
    for link in Page(html).values("href"):
        assert urljoin("http://localhost/a/prefix/docs", link).startswith(
            "http://localhost/a/prefix/"
        )


def test_page_loads_its_own_style_and_script_and_nothing_else(app: Flask, html: str) -> None:
    page = Page(html)
    assert not {tag for tag, _ in page.elements} & {"style", "iframe", "form"}
    assert page.values("style") == []
    assert sorted(page.values("src")) == ["docs/docs.js", "favicon.ico"]
    assert not [name for _, attributes in page.elements for name in attributes if name[:2] == "on"]
    assert [attributes["href"] for tag, attributes in page.elements if tag == "link"] == [
        "favicon.ico",
        "static/dashboard.css",
        "docs/docs.css",
    ]
    with app.test_client().get("/docs/docs.css") as style:
        assert style.content_type == "text/css; charset=utf-8"
        assert not re.search(r"url\(|@import", style.get_data(as_text=True))
    with app.test_client().get("/docs/docs.js") as script:
        assert script.content_type == "text/javascript; charset=utf-8"
        assert not re.search(r"\bimport\b|fetch\(", script.get_data(as_text=True))
    policy = app.test_client().get("/docs").headers["Content-Security-Policy"]
    assert {"default-src 'none'", "style-src 'self'"} <= set(policy.split("; "))


def test_text_of_the_document_is_no_markup(html: str) -> None:
    assert "<code>apikey: &lt;key&gt;</code>" in html
    assert "{{" not in html
    assert "Undefined" not in html


def test_commands_on_the_page_run_as_printed(
    html: str, service: Service, subtests: pytest.Subtests
) -> None:
    if shutil.which("curl") is None:
        needs("curl", "install the package curl")
    alice = service.add_user()
    variables = {"URL": service.url, "KEY": str(alice.session.headers["apikey"])}
    commands = [code for code in Page(html).codes if code.startswith("curl ")]
    assert len(commands) > 20
    for command in commands:
        with subtests.test(command):
            # curl prints the status last.
            script = fitting(command, alice).replace("curl", "curl -sw '%{http_code}'", 1)
            printed = shown_by(script, os.environ | variables)
            while printed.endswith("409") and "is being posted" in printed:
                # On a slow machine the next attempt may be under way.
                time.sleep(0.2)
                printed = shown_by(script, os.environ | variables)
            assert re.search(r"2\d\d$", printed), printed


def shown_by(script: str, environment: dict[str, str]) -> str:
    result = subprocess.run(
        ["sh", "-c", script],
        env=environment, capture_output=True, text=True, timeout=30, check=True,
    )  # fmt: skip
    return result.stdout


def fitting(command: str, person: RemoteClient) -> str:
    """The command, with things that are there in place of those in the example."""
    person.request("PUT", "/agent/summarizer")
    if examples.TASK in command:
        if "/new-lines" in command:
            good = person.start(claim=True)
            person.request("PATCH", f"/task/{good['id']}", json={"status": "complete"})
        task = person.start(claim=True, callback=f"{person.url}/livez")
        if examples.QUESTION in command:
            # What the example of an answer answers.
            schema = {"type": "object", "properties": {"deploy": {"type": "boolean"}}}
            asked = {"message": "Deploy?", "schema": schema}
            question = person.request("POST", f"/task/{task['id']}/question", json=asked).json()
            command = command.replace(examples.QUESTION, question["id"])
        if examples.LINK in command:
            link = person.request("POST", f"/task/{task['id']}/link").json()
            command = command.replace(examples.LINK, link["id"])
        if "/events" in command or "/deliveries" in command:
            # The stream ends with the task, and a finished task has a delivery.
            person.request("POST", f"/task/{task['id']}/cancel").raise_for_status()
        return command.replace(examples.TASK, task["id"])
    if examples.HOOK in command:
        hook = person.request("POST", "/hook", json=HOOK).json()
        command = command.replace(examples.HOOK, hook["id"])
        task = person.start(claim=True)
        person.request("PATCH", f"/task/{task['id']}", json={"status": "complete"})
        [delivery] = person.request("GET", f"/hook/{hook['id']}/deliveries").json()
        return command.replace(examples.DELIVERY, delivery["id"])
    if examples.KEY in command:
        key = person.request("POST", "/key", json={"name": "another"}).json()
        return command.replace(examples.KEY, key["id"])
    if "DELETE" in command:
        person.request("PUT", "/agent/idle")
        return command.replace("/agent/summarizer", "/agent/idle")
    return command
