"""Pages as checkers read them: of the W3C and the WHATWG (vnu), and HTML_CodeSniffer."""

import json
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urldefrag, urljoin, urlsplit

from flask import Flask

from tests.support.api_client import ApiClient, RemoteClient
from tests.support.browser import launched
from tests.support.demo import demo_user
from tests.support.html_page import Page
from tests.support.marks import one_database
from tests.support.plain_browser import Browser
from tests.support.receiver import Receiver, answer
from tests.support.service import Service

CODE_SNIFFER = "html_codesniffer/build/HTMLCS.js"
# Errors and warnings, without what only a person can check.
SNIFF = """() => new Promise((done, fail) => HTMLCS.process("WCAG2AA", document, () => done(
  HTMLCS.getMessages().filter((message) => message.type !== HTMLCS.NOTICE)
    .map((message) => `${message.msg} ${message.element.outerHTML}`)), fail, "en"))"""
VNU = "vnu-jar/build/dist/vnu.jar"
HTML = {"Accept": "text/html"}
# How many pages of one route are read.
ENOUGH = 4
STARTS = ("/", "/sign-in", "/docs", "/tasks/nowhere")
ROUTES = {
    "/", "/docs", "/help/<path:filename>", "/sign-in",
    "/agents", "/agents/<agent_id>", "/agents/<agent_id>/edit", "/agents/<agent_id>/run",
    "/callback-secret/rotate", "/inbox", "/keys", "/keys/<key_id>/revoke",
    "/notifications", "/notifications/<hook_id>", "/notifications/<hook_id>/delete",
    "/tasks/<task_id>", "/tasks/<task_id>/cancel", "/tasks/<task_id>/delete",
    "/tasks/<task_id>/links", "/tasks/<task_id>/new-lines",
    "/tasks/<task_id>/questions/<question_id>", "/tasks/<task_id>/rerun",
}  # fmt: skip
# Beginning of a message -> why it is not a defect.
EXCUSED = {"Article lacks heading": "a question is named by its message, a text of any length"}
BROKEN = "<!doctype html><html lang=en><title>Broken</title><p><div></p></div></html>"


def pages(app: Flask, person: ApiClient) -> Iterator[tuple[str, str]]:
    """(path, HTML) of the pages to which links lead, some of each route."""
    browser = Browser(app, headers=HTML)
    yield "/sign-in", browser.read("/sign-in")
    browser.sign_in(person.key)
    seen: Counter[str] = Counter()
    waiting = [*STARTS, *questions(person)]
    known = set(waiting)
    while waiting:
        path = waiting.pop(0)
        if seen[route(app, path)] >= ENOUGH:
            continue
        response = browser.get(path)
        if response.mimetype == "text/html" and response.status_code != 303:
            seen[route(app, path)] += 1
            html = response.text
            yield path, html
            links = (urldefrag(urljoin(path, link)).url for link in Page(html).values("href"))
            new = [link for link in links if link.startswith("/") and link not in known]
            waiting += dict.fromkeys(new)
            known.update(new)
        response.close()


def questions(person: ApiClient) -> list[str]:
    """The pages of the open questions."""
    tasks = person.get("/task").json
    return [f"/tasks/{task['id']}/questions/{question['id']}"
            for task in tasks or () for question in task["questions"]]  # fmt: skip


def route(app: Flask, path: str) -> str:
    rule, _ = app.url_map.bind("localhost").match(urlsplit(path).path, return_rule=True)
    return rule.rule


@one_database
def test_pages_have_no_error_and_no_warning(
    app: Flask, node_modules: Path, java: str, receiver: Receiver, tmp_path: Path
) -> None:
    folder = tmp_path / "pages"
    folder.mkdir()
    with Receiver(answer=answer(500)) as failing:
        person = demo_user(app)
        person.post("/hook", json={"target": receiver.url, "events": ["task.ended"]})
        for url, status in ((receiver.url, "complete"), (failing.url, "error")):
            person.report(person.start(claim=True, callback=url), status=status)
        # At some hours, no running task of the demo is among the newest.
        person.start(claim=True)
        paths: dict[str, str] = {}
        for path, html in pages(app, person):
            name = f"{len(paths)}.html"
            (folder / name).write_text(html)
            paths[name] = path
    assert {route(app, path) for path in paths.values()} == ROUTES
    # The program must find what is wrong with this one.
    (folder / "broken.html").write_text(BROKEN)
    jar = str(node_modules / VNU)
    command = [java, "-jar", jar, "--format", "json", "--exit-zero-always", "--stdout", "."]
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=280, check=True
    )
    messages = [
        (paths.get(Path(message["url"]).name, "broken"), message["message"])
        for message in json.loads(done.stdout)["messages"]
    ]
    assert any(path == "broken" for path, _ in messages)
    messages = [(path, text) for path, text in messages if path != "broken"]
    excused = {text for _, text in messages if text.startswith(tuple(EXCUSED))}
    assert [(path, text) for path, text in messages if text not in excused] == []
    # An excuse that is no longer needed goes.
    assert len(excused) == len(EXCUSED)


def test_sign_in_pages_follow_the_rules_of_accessibility(
    shared: Service, owner: RemoteClient, node_modules: Path
) -> None:
    link = owner.write("POST", "/sign-in-link")["url"]
    with launched() as browser:
        # The pages allow no scripts of others.
        page = browser.new_page(bypass_csp=True)
        for url in (f"{shared.url}/sign-in", link):
            page.goto(url)
            page.add_script_tag(path=node_modules / CODE_SNIFFER)
            assert page.evaluate(SNIFF) == []
        # It must find what is wrong with this one.
        page.locator("h1").evaluate("(heading) => { heading.replaceChildren(); }")
        assert page.evaluate(SNIFF)
