"""The recipe "A new field of a task" of docs/, followed in a copy of the package."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import requests

from taskservice.database import migrations
from tests.support.api_client import API
from tests.support.documents import ROOT
from tests.support.fork_server import run_forked
from tests.support.next_version import REVISION, copy_package, python_path
from tests.support.service import COMMAND, Service

MIGRATION = f"""
import sqlalchemy as sa
from alembic import op

revision = "{REVISION}"
down_revision = "{migrations.head()}"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("tasks", sa.Column("host", sa.String()))
"""
# File -> the line before which the recipe adds one, and that one.
EDITS = {
    "database/models.py": (
        "    # The open questions as a JSON array,",
        "    host: Mapped[str | None]",
    ),
    "schemas/tasks.py": (
        "    labels = fields.StoredJson(",
        '    host = fields.text("Its machine.", None)',
    ),
    "schemas/requests.py": (
        '    labels = fields.labels("Labels to set;',
        '    host = fields.text("Its machine.", "one", allow_none=True, validate=Length(max=9))',
    ),
    "client/task.py": ('    "status,error,progress,', '    "host,"'),
}
PROGRAM = """
from taskservice.client import Client

client = Client()
task = client.start("summarizer")
task.report(host="two")
print(task.data["host"], [each.data["host"] for each in client.tasks()])
"""


def with_new_field(folder: Path) -> dict[str, str]:
    package = copy_package(folder)
    (package / f"database/alembic/versions/{REVISION}_host.py").write_text(MIGRATION)
    for name, (before, line) in EDITS.items():
        text = (package / name).read_text()
        assert text.count(f"\n{before}") == 1, name
        (package / name).write_text(text.replace(f"\n{before}", f"\n{line}\n{before}"))
    return python_path(folder)


def test_recipe_of_a_new_field_names_the_files_that_it_needs() -> None:
    text = (ROOT / "docs/contributing/recipes-for-changes.md").read_text()
    _, _, recipe = text.partition("## A new field of a task")
    recipe, _, _ = recipe.partition("To show the field to people")
    code = re.findall(
        r"^\d\. `taskservice/([a-z_/]+\.py|database/alembic/versions/)`", recipe, re.M
    )
    assert sorted(code) == sorted([*EDITS, "database/alembic/versions/"])
    assert len(code) <= 5


def test_new_field_is_everywhere_when_the_recipe_is_followed(tmp_path: Path) -> None:
    new = with_new_field(tmp_path / "next")
    service = Service(tmp_path / "data")
    with service:
        # A plain session: other clients of tests know the fields of this version only.
        headers = service.add_user("alice").session.headers

        def call(method: str, path: str, **options: Any) -> requests.Response:
            url = f"{service.url}{API}{path}"
            return requests.request(method, url, headers=headers, timeout=30, **options)

        call("PUT", "/agent/summarizer")
        body = {"agentId": "summarizer", "claim": True}
        task = call("POST", "/task", json=body).json()
        assert service.stop() == 0
        service.environment |= new
        assert service.run("db", "upgrade").returncode == 0
        service.start()
        path = f"/task/{task['id']}"
        assert call("GET", path).json() == task | {"host": None}
        assert call("PATCH", path, json={"host": "x" * 10}).status_code == 422
        assert call("PATCH", path, json={"host": "one"}).json()["host"] == "one"
        assert call("GET", path).json()["host"] == "one"
        assert [task["host"] for task in call("GET", "/task").json()] == ["one"]
        short = [{"id": task["id"], "host": "one"}]
        assert call("GET", "/task?fields=id,host").json() == short
        with call("GET", f"{path}/events", stream=True) as events:
            data = next(line for line in events.iter_lines() if line.startswith(b"data: "))
        assert json.loads(data.removeprefix(b"data: "))["host"] == "one"
        schemas = requests.get(f"{service.url}/openapi.json", timeout=30).json()
        schemas = schemas["components"]["schemas"]
        assert {"Task", "Report"} <= {
            name for name, schema in schemas.items() if "host" in schema.get("properties", {})
        }
        settings = {"TASKSERVICE_URL": service.url, "TASKSERVICE_APIKEY": str(headers["apikey"])}
        ran = subprocess.run(
            [sys.executable, "-c", PROGRAM], env=service.environment | settings,
            capture_output=True, text=True, timeout=100, check=False,
        )  # fmt: skip
        assert ran.stdout == "two ['two', 'one']\n", ran
        exported = service.run("export").stdout
    assert exported.count('"host":"one"') == 1


def run(variables: dict[str, str], *arguments: str, stdin: str = "") -> str:
    """What a command prints, and its errors."""
    done = run_forked(
        [*COMMAND, *arguments], env=variables, capture_output=True, text=True, timeout=100,
        input=stdin,
    )  # fmt: skip
    return str(done.stdout or done.stderr)
