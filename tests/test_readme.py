"""The documents: tables say what the code says, links lead somewhere."""

import ast
import json
import re
import shlex
import subprocess
from configparser import ConfigParser
from pathlib import Path

import click
import pytest
from flask import Flask

from taskservice import cli, client, config
from taskservice.database import engine, postgresql
from taskservice.schemas import strict_json
from taskservice.webhooks.retry_schedule import JITTER, SCHEDULE
from tests import reference_pages
from tests.support.client_reference import CLIENT_PAGES
from tests.support.documents import (
    DOCUMENTS,
    ROOT,
    SITE,
    anchors,
    blocks,
    command_lines,
    linked,
    links,
    paths,
    section,
    table,
)
from tests.support.packages import EXTRAS, dependencies
from tests.support.service import Service

README = "README.md"
CLIENT = "docs/reference/python-client.md"
CONTRIBUTING = "CONTRIBUTING.md"
INDEX = "docs/index.md"
GUARANTEES = "docs/background/guarantees.md"
TESTS_OF_GUARANTEES = "docs/contributing/guarantees.md"
# What looks like a path, and is built, or not ours.
# Names of MCP look like paths too.
NAMES_OF_MCP = (
    "tools/", "tasks/", "server/", "notifications/", "io.modelcontextprotocol/",
    "taskservice/idempotencyKey",
)  # fmt: skip
NO_PATHS = (
    "build/", "dist/", "text/", "application/", "receiver/", "vendor/", ".venv/", ".vscode/",
    *NAMES_OF_MCP,
)  # fmt: skip


def test_packages_to_install_are_the_same_in_ci() -> None:
    named, installed = (
        {
            word
            for command in re.findall(r"apt-get install ((?:.*\\\n)*.*)", path.read_text())
            for word in command.replace(">/dev/null", "").split()
            if not word.startswith(("-", "\\"))
        }
        for path in (ROOT / CONTRIBUTING, ROOT / ".ci/packages")
    )
    # Another one has it in some systems; the runtime of Java is a part of its JDK.
    others = {"$chromium", "curl", "git", "make", "default-jre-headless"}
    assert installed - others == named - {"chromium-headless-shell"}


# --- tables ------------------------------------------------------------------------------


def test_documented_body_of_a_webhook_has_the_fields_of_a_task(app: Flask) -> None:
    (body,) = blocks("docs/guides/receivers.md", "receivers: body")
    document = app.test_client().get("/openapi.json").json
    assert document is not None
    assert set(json.loads(body)) == set(document["components"]["schemas"]["Task"]["required"])


@pytest.mark.parametrize("page", reference_pages.PAGES)
def test_generated_part_of_the_reference_is_up_to_date(page: str) -> None:
    assert DOCUMENTS[page] == reference_pages.written(page), "make reference"


@pytest.mark.parametrize("part", ["proxy", "receivers", "postgresql", "socket", "mail"])
def test_documented_settings_are_accepted(part: str, tmp_path: Path) -> None:
    (block,) = blocks("docs/reference/configuration.md", f"configuration: {part}")
    settings = dict(line.split("=", 1) for line in shlex.split(block))
    accepted = config.Config.from_environment({"TASKSERVICE_DATA": str(tmp_path)} | settings, False)
    assert config.unknown_names(settings) == []
    for name, text in settings.items():
        default = next(row[1] for row in config.documented() if row[0] == name)
        assert text != default, f"{name} of the example is the default"
    assert accepted


def test_every_dependency_has_its_reason() -> None:
    named = {name for extra in (None, *EXTRAS) for name in dependencies(extra)}
    cells = [row[0] for row in table("docs/contributing/decisions.md", "## Dependencies")]
    assert named <= set(re.findall(r"[\w-]+", " ".join(cells)))


def test_documented_retry_schedule_is_the_schedule() -> None:
    def spoken(seconds: int) -> str:
        size, unit = next(u for u in ((3600, "h"), (60, "min"), (1, "s")) if seconds % u[0] == 0)
        return f"{seconds // size} {unit}"

    *others, last = map(spoken, SCHEDULE)
    text = " ".join(section("docs/guides/webhooks.md", "## Retry schedule").split())
    documented = f"after {', '.join(others)} and {last}, each plus or minus {JITTER * 100:g}%."
    assert documented in text


def test_documented_time_of_a_server_that_does_not_answer_is_in_the_code() -> None:
    *_, (cause, seconds) = table(
        "docs/operate/monitoring.md", "## When the database is unavailable"
    )
    once = engine.BUSY_SECONDS * engine.STATEMENT_FACTOR + postgresql.CANCEL_SECONDS
    assert "does not respond" in cause
    assert seconds == f"{once:g} s for the first request, then {engine.BUSY_SECONDS:g} s"


def test_documented_files_are_in_the_data_directory(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with Service(data, SECRET_KEY=""):
        names = {path.name for path in data.iterdir()}
    _, _, rest = section("docs/operate/postgresql.md", "## SQLite files and versions").partition(
        "**Files.**"
    )
    text, _, _ = rest.partition("\n\n")
    assert set(re.findall(r"`(taskservice\.db[\w-]*|secret_key)`", text)) == names


def test_commands_need_no_newer_curl_than_old_systems_have() -> None:
    """`--json` came with curl 7.82."""
    start_page = (ROOT / "taskservice/dashboard/templates/dashboard/no_tasks.html").read_text()
    for text in (*DOCUMENTS.values(), start_page):
        assert not re.findall(r".*--json ['\"$].*", text)


def test_documented_depth_of_an_output_is_the_code_s() -> None:
    text = " ".join(DOCUMENTS["docs/guides/run-programs.md"].split())
    assert f"is nested deeper than {strict_json.MAX_DEPTH - 1} levels," in text


def test_reference_of_the_client_has_every_name_that_it_exports() -> None:
    rows = table(CLIENT, "## Exceptions")
    errors = {name for row in rows for name in re.findall(r"^`(\w+)`", row[0])}
    generated = "".join(
        DOCUMENTS[page].partition(reference_pages.START)[2] for page in CLIENT_PAGES
    )
    shown = re.findall(r"^##+ (\w+)$", generated, re.MULTILINE)
    exported = {name: getattr(client, name) for name in client.__all__}
    assert errors | {"TaskServiceError"} == {
        name
        for name, exported_type in exported.items()
        if isinstance(exported_type, type) and issubclass(exported_type, Exception)
    }
    assert sorted([*errors, "TaskServiceError", *shown]) == sorted(exported)


# --- names and links ---------------------------------------------------------------------


def test_readme_is_short_and_leads_to_every_document() -> None:
    assert len(DOCUMENTS[README].splitlines()) <= 110
    assert {INDEX, CONTRIBUTING} <= linked(README)
    assert linked(INDEX) == SITE - {INDEX}
    assert linked(CONTRIBUTING) >= set(DOCUMENTS) - SITE - {README, CONTRIBUTING}


def test_site_links_to_its_own_pages_only() -> None:
    for name in SITE:
        assert linked(name) <= SITE, name


@pytest.mark.parametrize("name", sorted(set(DOCUMENTS) - {"CHANGELOG.md"}))
def test_document_is_not_too_long_for_one_reader(name: str) -> None:
    assert len(DOCUMENTS[name].encode()) <= 25_000


def test_description_on_a_package_index_needs_no_other_file() -> None:
    settings = ConfigParser()
    settings.read(ROOT / "setup.cfg")
    name = settings["metadata"]["long_description"].removeprefix("file: ")
    assert not re.findall(r"\]\((?!https://)", (ROOT / name).read_text())


def test_address_of_the_repository_is_replaced_everywhere(tmp_path: Path) -> None:
    (block,) = blocks("CONTRIBUTING.md", "address of the repository")
    names = block.split("\\\n")[1].split()
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text((ROOT / name).read_text())
    subprocess.run(["sh", "-c", block], cwd=tmp_path, check=True)
    texts = {name: text for name, text in DOCUMENTS.items() if name != "CONTRIBUTING.md"}
    for text in (texts | {name: (tmp_path / name).read_text() for name in names}).values():
        assert not re.search(r"repository\.invalid|git clone REPOSITORY", text)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_link_leads_somewhere(name: str) -> None:
    for link in links(name):
        path, _, anchor = link.partition("#")
        if "://" in link:
            continue
        target = (ROOT / name).parent / path if path else ROOT / name
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(str(target.resolve().relative_to(ROOT))), link


def test_dashboard_links_to_help_pages_that_are_there_and_no_message_names_a_file() -> None:
    files = (path for kind in ("*.py", "*.html") for path in (ROOT / "taskservice").rglob(kind))
    texts = [path.read_text() for path in files if "help" not in path.parts]
    assert not re.findall(r"docs/[\w/-]+\.md", "".join(texts))
    linked = set(re.findall(r'help_link\("([\w/-]+)\.html#?([\w-]*)"', "".join(texts)))
    assert len(linked) >= 7
    for page, anchor in linked:
        assert not anchor or anchor in anchors(f"docs/{page}.md"), (page, anchor)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_file_that_is_named_is_there(name: str) -> None:
    """In the architecture, paths begin inside the package."""
    for path in paths(name):
        if not path.startswith(NO_PATHS) and "NAME" not in path:
            assert (ROOT / path).exists() or (ROOT / "taskservice" / path).exists(), path


def test_every_name_in_a_recipe_is_in_its_file() -> None:
    """A name belongs to the file before it in its step, or to the one that follows with `in`."""
    recipes = DOCUMENTS["docs/contributing/recipes-for-changes.md"]
    pairs = re.findall(r"`(\w+)` in\s+`(\w+/[\w/.]+)`", recipes)
    for step in re.findall(r"^\d\. .*(?:\n   .*)*", recipes, re.MULTILINE):
        path = ""
        for code in re.findall(r"`([^`]+)`", re.sub(r"`\w+` in\s+(?=`\w+/)", "", step)):
            if "/" in code:
                path = code if "." in code and "NAME" not in code else ""
            elif path and code.isidentifier():
                pairs.append((code, path))
    assert len(pairs) > 15
    for name, path in pairs:
        assert re.search(rf"\b{name}\b", (ROOT / path).read_text()), f"{name} in {path}"


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_command_that_is_named_is_there(name: str) -> None:
    for words in command_lines(name):
        command: click.Command = cli.main
        for word in words.split():
            if isinstance(command, click.Group):
                inner = command.get_command(click.Context(command), word)
                assert inner is not None, f"taskservice {words}"
                command = inner


def test_every_guarantee_names_a_test_that_is_there() -> None:
    guarantees = re.findall(
        r"^\*\*(.+)\.\*\*", section(GUARANTEES, "## What you can rely on"), re.MULTILINE
    )
    tested = table(TESTS_OF_GUARANTEES, "## Guarantees")
    assert [row[0] for row in tested] == guarantees
    assert len(guarantees) >= 7
    # A row with an empty result is the heading of those below it.
    events = {event for event, result in table(GUARANTEES, "## What happens if") if result}
    tested_events = table(TESTS_OF_GUARANTEES, "## What happens if")
    # That table has more events, of which users notice little.
    assert events <= {row[0] for row in tested_events}
    assert len(events) >= 30
    tested_webhooks = table(TESTS_OF_GUARANTEES, "## Webhooks")
    for event, tests in tested + tested_events + tested_webhooks:
        named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", tests)
        assert named, event
        for path, test in named:
            assert f"\ndef {test or 'test_'}" in (ROOT / path).read_text(), f"{path}::{test}"


def messages_of_the_code() -> list[str]:
    """Every text in the package and its pages, with … instead of each value."""
    texts = []
    for path in (ROOT / "taskservice").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = (getattr(part, "value", None) for part in node.values)
                texts.append("".join(part if isinstance(part, str) else "…" for part in parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
    return texts + [path.read_text() for path in (ROOT / "taskservice").rglob("*.html")]


def test_every_message_that_is_explained_is_in_the_code() -> None:
    shown = re.findall(r"^### `(.*)`$", DOCUMENTS["docs/guides/troubleshooting.md"], re.MULTILINE)
    assert len(shown) > 40
    texts = messages_of_the_code()
    # A text that contains a value, such as the name of a setting.
    long = [wildcards(text) for text in texts if len(text.replace("…", "")) >= 12]
    for message in shown:
        pattern = wildcards(message)
        is_there = any(pattern.search(text) for text in texts)
        assert is_there or any(pattern.fullmatch(message) for pattern in long), message


def wildcards(text: str) -> re.Pattern[str]:
    """The text with anything instead of each …"""
    return re.compile(".*".join(map(re.escape, text.split("…"))), re.DOTALL)


def test_make_targets_that_are_named_are_there() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for name, text in DOCUMENTS.items():
        named = re.findall(r"(?:`|^| {4})make ([a-z-]+)", text, re.MULTILINE)
        assert set(named) <= targets, name
